"""What the demo's model learns from: queries on the same tables as a year of ad-hoc questions would ask them.

They come from a generator of their own: a random walk over the foreign keys, random conditions on some of the tables,
one count. None is a statement of the workload, and their literals are drawn apart from the workload's.
"""

from __future__ import annotations

import random
from string import Template
from typing import Final, NamedTuple

from pilotwire.demo.workload import draw_literals

COUNT: Final = 240
SIZES: Final = {2: 3, 3: 6, 4: 8, 5: 6, 6: 2}
"""How many tables a query joins, and how often relative to the others."""
CONDITIONS: Final = {0: 1, 1: 8, 2: 12, 3: 6, 4: 2}


class Key(NamedTuple):
    """A way to join: columns of one table equal columns of the other."""

    table: str
    columns: tuple[str, ...]
    other: str
    other_columns: tuple[str, ...]
    weight: int = 4


KEYS: Final = (
    Key("orders", ("customer_id",), "customers", ("id",), 8),
    Key("orders", ("store_id",), "stores", ("id",), 3),
    Key("orders", ("promotion_id",), "promotions", ("id",), 4),
    Key("order_items", ("order_id",), "orders", ("id",), 9),
    Key("order_items", ("product_id",), "products", ("id",), 9),
    Key("products", ("category_id",), "categories", ("id",), 8),
    Key("promotions", ("category_id",), "products", ("category_id",), 1),
    Key("payments", ("order_id",), "orders", ("id",), 5),
    Key("shipments", ("order_id",), "orders", ("id",), 5),
    Key("returns", ("order_id", "line_no"), "order_items", ("order_id", "line_no"), 4),
    Key("returns", ("order_id",), "orders", ("id",), 3),
    Key("returns", ("order_id",), "shipments", ("order_id",), 1),
    Key("customers", ("referred_by",), "customers", ("id",), 1),
)
TWICE: Final = frozenset({"orders", "order_items", "customers", "products", "categories"})
"""Tables that a question may need a second time: other orders of a customer, other lines of a basket."""

FILTERS: Final = {
    "customers": (
        "country = $country", "country IN ($country, $country2)", "country = $country AND $.city = $city",
        "tier = $tier", "tier IN ('gold', 'platinum')", "tier = 'silver'", "tier <> 'basic'", "newsletter",
        "signed_up_on >= $month AND $.signed_up_on < $next_month", "signed_up_on >= $year_ago",
        "birth_year > $born", "birth_year BETWEEN $born AND $born + 15",
    ),
    "orders": (
        "ordered_at >= $month AND $.ordered_at < $next_month",
        "ordered_at >= $quarter AND $.ordered_at < $next_quarter",
        "ordered_at >= $year_ago AND $.ordered_at < $month", "ordered_at >= $half_ago",
        "ordered_at >= $bf AND $.ordered_at < $bf_end", "ordered_at >= $december AND $.ordered_at < $january",
        "channel = $channel", "channel = 'store'", "channel = 'phone'", "status = 'completed'", "status = 'cancelled'",
        "total > $amount", "total < $amount", "promotion_id IS NOT NULL",
    ),
    "order_items": ("quantity > $few", "unit_price > $amount", "unit_price < $price", "discount > 0"),
    "products": (
        "brand = $brand", "brand IN ($brand, $brand2)", "price > $amount", "price < $price", "rating >= 4.5",
        "launched_on >= $year_ago", "discontinued_on IS NOT NULL", "name LIKE '%' || $category || '%'",
        "price BETWEEN $price AND $amount",
    ),
    "categories": (
        "department = $department", "department = $department AND $.name = $category", "name = $category",
        "department IN ($department, $department2)", "department IN ('Fashion', 'Shoes')",
    ),
    "promotions": (
        "kind = $kind", "kind = 'seasonal'", "kind = 'welcome'", "kind = 'loyalty'", "code = $bf_code",
        "discount_percent >= $percent", "starts_on >= $year_ago", "category_id IS NOT NULL",
    ),
    "stores": ("region = $region", "country = $country", "kind = 'online'", "kind <> 'online'", "floor_space > 500"),
    "payments": (
        "method = $method", "method = 'instalments'", "method = 'invoice'", "status = 'captured'", "status = 'failed'",
        "status = 'pending'", "amount > $amount", "paid_at >= $month AND $.paid_at < $next_month",
        "paid_at >= $half_ago",
    ),
    "shipments": (
        "carrier = $carrier", "delivered_at IS NULL", "delivered_at::date > $.promised_on",
        "shipped_at >= $quarter AND $.shipped_at < $next_quarter",
        "shipped_at >= $december AND $.shipped_at < $january",
        "shipped_at >= $half_ago",
    ),
    "returns": (
        "reason = $reason", "reason = 'does not fit'", "requested_at >= $year_ago", "refund > $amount",
        "requested_at >= $quarter AND $.requested_at < $next_quarter",
    ),
}  # fmt: skip
"""Conditions by table; ``$.`` stands for the alias, also in front of the first column."""


def training_queries(seed: int, count: int = COUNT, scale: float = 1.0) -> list[str]:
    """`count` different statements; the same seed gives the same ones."""
    draw = random.Random(f"{seed} training")  # noqa: S311 - not for secrets
    found: dict[str, None] = {}
    while len(found) < count:
        found[_query(draw, scale)] = None
    return list(found)


def _query(draw: random.Random, scale: float) -> str:
    size = draw.choices(list(SIZES), list(SIZES.values()))[0]
    tables, joins = _walk(draw, size)
    literals = draw_literals(draw, scale) | {
        "born": str(draw.randint(1945, 2000)),
        "amount": str(draw.choice([50, 100, 150, 200, 300, 500])),
        "price": str(draw.choice([10, 15, 20, 30, 40])),
        "few": str(draw.choice([1, 2, 5])),
        "percent": str(draw.choice([15, 20, 25, 30, 40])),
    }
    wanted = draw.choices(list(CONDITIONS), list(CONDITIONS.values()))[0]
    conditions = []
    for alias in draw.sample(list(tables), min(wanted, len(tables))):
        template = draw.choice(FILTERS[tables[alias]]).replace("$.", f"{alias}.")
        conditions.append(Template(f"{alias}.{template}").substitute(literals))
    sources = ", ".join(f"{table} {alias}" for alias, table in tables.items())
    return f"SELECT count(*) FROM {sources} WHERE {' AND '.join([*joins, *conditions])}"  # noqa: S608


def _walk(draw: random.Random, size: int) -> tuple[dict[str, str], list[str]]:
    """Tables by alias, joined along `KEYS` into a tree, and the conditions that join them."""
    start = draw.choices(KEYS, [key.weight for key in KEYS])[0]
    first = draw.choice([start.table, start.other])
    tables = {f"{first}_1": first}
    joins: list[str] = []
    while len(tables) < size:
        steps = []
        for alias, table in tables.items():
            for key in KEYS:
                if key.table == table and _may_join(draw, tables, key.other):
                    steps.append((key.weight, alias, key.columns, key.other, key.other_columns))
                if key.other == table and _may_join(draw, tables, key.table):
                    steps.append((key.weight, alias, key.other_columns, key.table, key.columns))
        _, alias, columns, table, other = draw.choices(steps, [step[0] for step in steps])[0]
        new = f"{table}_{1 + sum(known == table for known in tables.values())}"
        tables[new] = table
        joins += [f"{alias}.{a} = {new}.{b}" for a, b in zip(columns, other, strict=True)]
    return tables, joins


def _may_join(draw: random.Random, tables: dict[str, str], table: str) -> bool:
    """New tables always; a few may come a second time, now and then."""
    times = sum(known == table for known in tables.values())
    return times == 0 or (times == 1 and table in TWICE and draw.random() < 0.06)
