"""The demo's rows, drawn by a seed: who buys, what there is to buy, and in which stores. `sales` draws what was sold.

Everything is numpy arrays, column by column, so that two million rows take seconds. What makes the data hard for a
planner is what makes any shop's data hard: few products make most of the sales, few customers most of the orders, and
columns of different tables know of each other (a country's people shop in that country's stores, pay in its way and
get parcels from its carriers; a promotion's orders all lie in its days).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pilotwire.demo.vocabulary import (
    ADJECTIVES,
    COUNTRIES,
    DEPARTMENTS,
    FIRST_NAMES,
    LAST_NAMES,
)

Array: TypeAlias = NDArray[Any]
Columns: TypeAlias = dict[str, Array]
"""One table: columns of one length by name. NULL is NaT in dates, -1 in integers, NaN in floats."""

FIRST_DAY: Final = np.datetime64("2022-01-01")
LAST_DAY: Final = np.datetime64("2024-12-31")
DAYS: Final = int((LAST_DAY - FIRST_DAY).astype(int)) + 1
COUNTRY_CODES: Final = tuple(country.code for country in COUNTRIES)


@dataclass(frozen=True, slots=True)
class Sizes:
    """How many rows of each kind; at scale 1 all tables together have about two million."""

    customers: int
    products: int
    stores: int
    promotions: int
    orders: int

    @staticmethod
    def at(scale: float) -> Sizes:
        return Sizes(
            customers=max(500, int(100_000 * scale)),
            products=max(600, int(12_000 * scale)),
            stores=max(36, int(120 * min(1.0, scale * 2))),
            promotions=180,
            orders=max(1_500, int(290_000 * scale)),
        )


@dataclass(frozen=True, slots=True)
class World:
    """What sales are drawn from. Indexes count from 0; ids are one more. ``countries`` are indexes into COUNTRIES.

    ``product_weight`` is a product's share within its department, ``habit`` how often a customer buys, both relative.
    """

    stores: Columns
    categories: Columns
    products: Columns
    promotions: Columns
    customers: Columns
    category_department: Array
    product_department: Array
    product_weight: Array
    promotion_department: Array
    customer_country: Array
    habit: Array
    favourite: Array


def pick(random: np.random.Generator, shares: Any, size: int) -> Array:
    """`size` indexes drawn by relative `shares`."""
    cumulative = np.cumsum(np.asarray(shares, dtype=float))
    found = np.searchsorted(cumulative, random.random(size) * cumulative[-1], side="right")
    drawn: Array = np.minimum(found, len(cumulative) - 1)
    return drawn


def pick_rows(random: np.random.Generator, shares: Array, rows: Array) -> Array:
    """One index for each element of `rows`, drawn by the relative shares in that row of the matrix `shares`."""
    cumulative = np.cumsum(shares, axis=1)
    cumulative /= cumulative[:, -1:]
    found = (cumulative[rows] <= random.random(len(rows))[:, None]).sum(axis=1)
    drawn: Array = np.minimum(found, shares.shape[1] - 1)
    return drawn


def names(values: Any, indexes: Array) -> Array:
    """The strings `values` at `indexes` as objects, which COPY's text needs no conversion for."""
    return np.array(values, dtype=object)[indexes]


def make_world(random: np.random.Generator, sizes: Sizes) -> World:
    """Master data: stores, categories, products, promotions, customers."""
    categories, category_department = _categories()
    products, product_department, weight = _products(random, sizes.products, categories, category_department)
    promotions, promotion_department = _promotions(random, sizes.promotions, category_department)
    customers, country, habit, favourite = _customers(random, sizes.customers)
    return World(
        stores=_stores(random, sizes.stores),
        categories=categories,
        products=products,
        promotions=promotions,
        customers=customers,
        category_department=category_department,
        product_department=product_department,
        product_weight=weight,
        promotion_department=promotion_department,
        customer_country=country,
        habit=habit,
        favourite=favourite,
    )


def _stores(random: np.random.Generator, count: int) -> Columns:
    """One online store per country, then shops where the customers are."""
    countries = len(COUNTRIES)
    country = np.concatenate(
        [np.arange(countries), pick(random, [one.customers for one in COUNTRIES], count - countries)]
    )
    kind = np.concatenate([np.zeros(countries, int), 1 + pick(random, [0.62, 0.22, 0.16], count - countries)])
    kinds = ("online", "shop", "outlet", "flagship")
    cities = [COUNTRIES[at].cities[int(random.integers(len(COUNTRIES[at].cities)))] for at in country]
    label = [
        f"Online {COUNTRIES[at].code}" if not what else f"{city} {kinds[what].title()} {number}"
        for number, (at, what, city) in enumerate(zip(country, kind, cities, strict=True), start=1)
    ]
    space = np.where(kind == 0, -1, random.lognormal(np.choose(kind, [0, 5.6, 6.4, 7.3]), 0.3).astype(int))
    return {
        "id": np.arange(1, count + 1),
        "name": np.array(label, dtype=object),
        "kind": names(kinds, kind),
        "country": names(COUNTRY_CODES, country),
        "region": names([one.region for one in COUNTRIES], country),
        "city": np.array(["\\N" if not what else city for what, city in zip(kind, cities, strict=True)], dtype=object),
        "opened_on": FIRST_DAY - random.integers(0, 4000, count).astype("timedelta64[D]"),
        "floor_space": space,
    }


def _categories() -> tuple[Columns, Array]:
    """The departments themselves, then their categories below them."""
    rows = [(-1, one.name, at) for at, one in enumerate(DEPARTMENTS)]
    rows += [(at + 1, name, at) for at, one in enumerate(DEPARTMENTS) for name in one.categories]
    department = np.array([at for _, _, at in rows])
    columns = {
        "id": np.arange(1, len(rows) + 1),
        "parent_id": np.array([parent for parent, _, _ in rows]),
        "name": np.array([name for _, name, _ in rows], dtype=object),
        "department": names([one.name for one in DEPARTMENTS], department),
    }
    return columns, department


def _products(
    random: np.random.Generator, count: int, categories: Columns, category_department: Array
) -> tuple[Columns, Array, Array]:
    """Goods in order of their launch. A category has few of its department's brands; cheap goods sell more."""
    department = pick(random, [one.share**0.6 for one in DEPARTMENTS], count)
    category = np.empty(count, int)
    brand = np.empty(count, dtype=object)
    price = np.empty(count)
    for at, one in enumerate(DEPARTMENTS):
        mine = np.flatnonzero(department == at)
        places = np.flatnonzero(category_department == at)[1:]
        chosen = pick(random, 1 / (np.arange(len(places)) + 1.5) ** 0.8, len(mine))
        category[mine] = places[chosen]
        level = random.lognormal(0, one.spread * 0.7, len(places))
        price[mine] = one.price * level[chosen] * random.lognormal(0, one.spread * 0.6, len(mine))
        carried = random.random((len(places), len(one.brands))) ** 5
        brand[mine] = names(one.brands, pick_rows(random, carried, chosen))
    price = np.maximum(np.round(price) - 0.01, 0.99)
    launched = FIRST_DAY + (random.random(count) ** 0.6 * 2600 - 1600).astype("timedelta64[D]")
    order = np.argsort(launched, kind="stable")
    department, category, brand, price, launched = (
        department[order], category[order], brand[order], price[order], launched[order]
    )  # fmt: skip
    gone = launched + (200 + random.exponential(700, count)).astype("timedelta64[D]")
    gone[(gone > LAST_DAY) | (random.random(count) < 0.45)] = np.datetime64("NaT")
    weight = 1 / (random.permutation(count) / count * 400 + 1) ** 1.1 * (price + 5) ** -0.35
    nouns = [_singular(name) for name in categories["name"]]
    label = brand + " " + names(ADJECTIVES, random.integers(0, len(ADJECTIVES), count)) + " " + names(nouns, category)
    number = np.arange(1, count + 1)
    columns = {
        "id": number,
        "sku": np.array([f"P{at:06d}" for at in number], dtype=object),
        "name": label,
        "brand": brand,
        "category_id": category + 1,
        "price": price,
        "cost": np.round(price * random.uniform(0.35, 0.8, count), 2),
        "launched_on": launched,
        "discontinued_on": gone,
        "rating": np.where(
            random.random(count) < 0.2, np.nan, np.round(5 - random.gamma(2, 0.45, count).clip(0, 4), 1)
        ),
    }
    return columns, department, weight


def _singular(name: str) -> str:
    return name.removesuffix("s") if name.endswith("s") and not name.endswith("ss") else name


def _promotions(random: np.random.Generator, count: int, category_department: Array) -> tuple[Columns, Array]:
    """Black Friday and its like come every year for everything; the others last days or weeks for one category."""
    rows: list[tuple[str, str, int, int, Any, int]] = []
    for year in (2022, 2023, 2024):
        for code, kind, percent, start, days in (
            ("BLACKFRIDAY", "seasonal", 25, "11-22", 8),
            ("XMAS", "seasonal", 15, "12-05", 17),
            ("SUMMERSALE", "seasonal", 30, "07-01", 28),
            ("WINTERSALE", "seasonal", 30, "01-04", 24),
            ("WELCOME", "welcome", 10, "01-01", 364),
            ("LOYAL", "loyalty", 12, "01-01", 364),
        ):
            rows.append((f"{code}{year % 100}", kind, -1, percent, np.datetime64(f"{year}-{start}"), days))
    below = np.arange(len(DEPARTMENTS), len(category_department))
    for number in range(count - len(rows)):
        flash = random.random() < 0.4
        begins = FIRST_DAY + np.timedelta64(int(random.integers(0, DAYS - 10)), "D")
        days = int(random.integers(1, 4)) if flash else int(random.integers(7, 40))
        percent = int(random.choice([10, 15, 20, 25, 30, 40]))
        kind = "flash" if flash else str(random.choice(["clearance", "brand week", "newsletter"]))
        below_at = int(random.choice(below)) if random.random() < 0.9 else -1
        rows.append((f"{kind[:5].strip().upper()}{number:03d}", kind, below_at, percent, begins, days))
    rows.sort(key=lambda row: row[4])
    category = np.array([row[2] for row in rows])
    starts = np.array([row[4] for row in rows])
    columns = {
        "id": np.arange(1, len(rows) + 1),
        "code": np.array([row[0] for row in rows], dtype=object),
        "kind": np.array([row[1] for row in rows], dtype=object),
        "category_id": np.where(category < 0, -1, category + 1),
        "discount_percent": np.array([row[3] for row in rows]),
        "starts_on": starts,
        "ends_on": starts + np.array([row[5] for row in rows]).astype("timedelta64[D]"),
    }
    return columns, np.where(category < 0, -1, category_department[category])


def _customers(random: np.random.Generator, count: int) -> tuple[Columns, Array, Array, Array]:
    """People in order of signing up. A quarter never buys, one in a hundred buys all the time.

    The tier is left to `sales`, which knows what each of them bought.
    """
    country = pick(random, [one.customers for one in COUNTRIES], count)
    span = DAYS + 1200
    signed_up = LAST_DAY - np.sort((random.random(count) ** 1.3 * span).astype(int))[::-1].astype("timedelta64[D]")
    most = max(len(one.cities) for one in COUNTRIES)
    shares = np.zeros((len(COUNTRIES), most))
    for at, one in enumerate(COUNTRIES):
        shares[at, : len(one.cities)] = 1 / (np.arange(len(one.cities)) + 1) ** 1.1
    cities = np.array([list(one.cities) + [""] * (most - len(one.cities)) for one in COUNTRIES], dtype=object)
    birth = (
        (1984 - random.normal(0, 13, count) + (signed_up - FIRST_DAY).astype(int) / 400).astype(int).clip(1930, 2006)
    )
    birth[random.random(count) < 0.15] = -1
    habit = random.lognormal(0, 1.35, count) * (random.random(count) > 0.25)
    first = random.integers(0, len(FIRST_NAMES), count)
    last = random.integers(0, len(LAST_NAMES), count)
    number = np.arange(1, count + 1)
    emails = [
        f"{FIRST_NAMES[a]}.{LAST_NAMES[b]}{n}@mail.example".lower() for a, b, n in zip(first, last, number, strict=True)
    ]
    # Few people bring most of those who were referred, and only after they came themselves.
    referrer = (random.random(count) ** 3 * np.arange(count)).astype(int) + 1
    columns = {
        "id": number,
        "email": np.array(emails, dtype=object),
        "full_name": names(FIRST_NAMES, first) + " " + names(LAST_NAMES, last),
        "country": names(COUNTRY_CODES, country),
        "city": cities[country, pick_rows(random, shares, country)],
        "tier": np.full(count, "basic", dtype=object),
        "signed_up_on": signed_up,
        "birth_year": birth,
        "newsletter": random.random(count) < np.where(habit > 1, 0.6, 0.25),
        "referred_by": np.where((random.random(count) < 0.12) & (number > 1), referrer, -1),
    }  # fmt: skip
    favourite = pick(random, [one.share for one in DEPARTMENTS], count)
    return columns, country, habit, favourite
