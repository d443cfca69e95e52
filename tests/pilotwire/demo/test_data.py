"""The demo's rows: the same by the same seed, whole in their keys, and correlated as a shop's rows are."""

from __future__ import annotations

import numpy as np
import pytest

from pilotwire.demo.data import LAST_DAY, Columns
from pilotwire.demo.sales import generate

SCALE = 0.03


@pytest.fixture(scope="module")
def tables() -> dict[str, Columns]:
    return generate(1, SCALE)


def size(columns: Columns) -> int:
    [found] = {len(values) for values in columns.values()}
    return found


def test_a_seed_gives_the_same_rows_and_another_gives_others(tables: dict[str, Columns]) -> None:
    again, other = generate(1, SCALE), generate(2, SCALE)
    for table, columns in tables.items():
        for name, values in columns.items():
            assert (again[table][name].astype(str) == values.astype(str)).all(), f"{table}.{name}"
    assert not np.array_equal(tables["orders"]["customer_id"], other["orders"]["customer_id"])


def test_every_reference_points_at_a_row(tables: dict[str, Columns]) -> None:
    for table, column, other in (
        ("orders", "customer_id", "customers"),
        ("orders", "store_id", "stores"),
        ("orders", "promotion_id", "promotions"),
        ("order_items", "order_id", "orders"),
        ("order_items", "product_id", "products"),
        ("products", "category_id", "categories"),
        ("payments", "order_id", "orders"),
        ("shipments", "order_id", "orders"),
        ("customers", "referred_by", "customers"),
    ):
        values = tables[table][column]
        assert values[values >= 0].min() >= 1, f"{table}.{column}"
        assert values.max() <= size(tables[other]), f"{table}.{column}"
    lines = {*zip(tables["order_items"]["order_id"].tolist(), tables["order_items"]["line_no"].tolist(), strict=True)}
    assert len(lines) == size(tables["order_items"])
    back = {*zip(tables["returns"]["order_id"].tolist(), tables["returns"]["line_no"].tolist(), strict=True)}
    assert back <= lines


def test_time_runs_forward(tables: dict[str, Columns]) -> None:
    orders = tables["orders"]
    assert (np.diff(orders["ordered_at"].astype(int)) >= 0).all()
    signed_up = tables["customers"]["signed_up_on"][orders["customer_id"] - 1]
    assert (orders["ordered_at"].astype("datetime64[D]") >= signed_up).all()
    assert orders["ordered_at"].max().astype("datetime64[D]") <= LAST_DAY
    shipments = tables["shipments"]
    sent = ~np.isnat(shipments["delivered_at"])
    assert (shipments["delivered_at"][sent] > shipments["shipped_at"][sent]).all()


def test_an_order_costs_what_its_lines_cost(tables: dict[str, Columns]) -> None:
    items = tables["order_items"]
    amount = items["unit_price"] * items["quantity"] - items["discount"]
    total = np.bincount(items["order_id"], amount, minlength=size(tables["orders"]) + 1)[1:]
    assert np.allclose(total, tables["orders"]["total"], atol=0.01)


def test_few_sell_most_and_few_buy_most(tables: dict[str, Columns]) -> None:
    sold = np.sort(np.bincount(tables["order_items"]["product_id"]))[::-1]
    assert sold[: len(sold) // 20].sum() > 0.35 * sold.sum()
    bought = np.sort(np.bincount(tables["orders"]["customer_id"], minlength=size(tables["customers"]) + 1))[::-1]
    assert bought[: len(bought) // 10].sum() > 0.4 * bought.sum()
    assert (bought == 0).sum() > 0.2 * len(bought)


def test_columns_of_different_tables_know_of_each_other(tables: dict[str, Columns]) -> None:
    """What independence assumptions get wrong: shares inside a group are far from the shares overall."""
    orders, customers, payments = tables["orders"], tables["customers"], tables["payments"]
    country = customers["country"][orders["customer_id"] - 1]
    store = tables["stores"]["country"][orders["store_id"] - 1]
    assert (country == store).mean() > 0.95
    method, paid_in = payments["method"], country[payments["order_id"] - 1]
    assert (method[paid_in == "DE"] == "invoice").mean() > 10 * (method[paid_in == "US"] == "invoice").mean()
    tier = customers["tier"][orders["customer_id"] - 1]
    assert (tier == "platinum").mean() > 5 * (customers["tier"] == "platinum").mean()
    promoted = orders["promotion_id"] >= 0
    starts = tables["promotions"]["starts_on"][orders["promotion_id"][promoted] - 1]
    assert (orders["ordered_at"][promoted].astype("datetime64[D]") >= starts).all()
    items = tables["order_items"]
    key = items["order_id"] * 100 + items["line_no"]
    returned = np.isin(key, tables["returns"]["order_id"] * 100 + tables["returns"]["line_no"])
    category = tables["products"]["category_id"][items["product_id"] - 1]
    department = tables["categories"]["department"][category - 1]
    assert returned[department == "Shoes"].mean() > 5 * returned[department == "Books"].mean()
