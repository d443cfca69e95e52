"""A small shop with skewed and correlated data, and queries over it."""

from __future__ import annotations

import random
from typing import Final

from tests.support.postgres import Postgres

SCHEMA: Final = """
CREATE TABLE regions (id int PRIMARY KEY, name text);
CREATE TABLE customers (id int PRIMARY KEY, region_id int, age int, loyal boolean);
CREATE TABLE products (id int PRIMARY KEY, kind int, price int);
CREATE TABLE orders (id int PRIMARY KEY, customer_id int, placed date, status text);
CREATE TABLE items (order_id int, product_id int, amount int);
CREATE TABLE reviews (id int PRIMARY KEY, product_id int, customer_id int, stars int);
INSERT INTO regions SELECT n, 'region ' || n FROM generate_series(1, 8) n;
INSERT INTO customers SELECT n, 1 + (n * n) % 11 % 8, 18 + n % 60, n % 10 = 0 FROM generate_series(1, 400) n;
INSERT INTO products SELECT n, n % 9, 5 + (n % 9) * 10 + n % 7 FROM generate_series(1, 150) n;
INSERT INTO orders SELECT n, CASE WHEN n % 3 = 0 THEN (1 + n % 40) * 10 ELSE 1 + (n * 7) % 400 END,
    date '2024-01-01' + n % 365, (ARRAY['new', 'paid', 'sent', NULL])[1 + n % 4] FROM generate_series(1, 2000) n;
INSERT INTO items SELECT 1 + (n * 13) % 2000, CASE WHEN n % 4 = 0 THEN 1 + n % 5 ELSE 1 + (n * 31) % 150 END, 1 + n % 5
    FROM generate_series(1, 5000) n;
INSERT INTO reviews SELECT n, 1 + (n * n) % 97 % 30, 10 * (1 + n % 40), 1 + n % 5 FROM generate_series(1, 800) n;
CREATE INDEX ON orders (customer_id);
CREATE INDEX ON items (order_id);
CREATE UNIQUE INDEX ON customers (region_id, id);
"""
FILTERS: Final = {
    "c": ("c.age < {}", "c.age BETWEEN {} AND {}", "c.loyal", "NOT c.loyal", "c.region_id = {low}"),
    "o": ("o.status = 'paid'", "o.status IS NULL", "o.placed >= '2024-03-01'::date", "o.customer_id <= {}"),
    "i": ("i.amount > {low}", "i.amount IN (1, 2)"),
    "p": ("p.kind = {low}", "p.price < {}", "p.kind < {low} OR p.price > {}"),
    "r": ("r.stars >= {low}", "r.customer_id < {}"),
    "g": ("g.name LIKE 'region %'", "g.id < {low}"),
}
TABLES: Final = {
    "c": "customers", "o": "orders", "i": "items", "p": "products", "r": "reviews", "g": "regions",
}  # fmt: skip
JOINS: Final = {
    ("c", "o"): "c.id = o.customer_id",
    ("o", "i"): "o.id = i.order_id",
    ("i", "p"): "p.id = i.product_id",
    ("p", "r"): "r.product_id = p.id",
    ("c", "g"): "c.region_id = g.id",
    ("c", "r"): "r.customer_id = c.id",
    ("o", "r"): "o.customer_id = r.customer_id",
}


def create(postgres: Postgres) -> str:
    """The DSN of a new database with the shop in it, analysed."""
    name = postgres.create_database()
    postgres.sql(SCHEMA, name)
    postgres.sql("ANALYZE", name)
    return postgres.dsn(name)


def queries(count: int, seed: int = 0, largest: int = 4) -> list[str]:
    """Joins of 2 to ``largest`` tables along the shop's edges, some with two edges between the same tables or in a
    circle, filtered here and there."""
    chance = random.Random(seed)
    return [_query(chance, largest) for _ in range(count)]


def _query(chance: random.Random, largest: int) -> str:
    aliases = [chance.choice(list(TABLES))]
    size = chance.randint(2, largest)
    while len(aliases) < size:
        near = {one if other in aliases else other for one, other in JOINS if (one in aliases) != (other in aliases)}
        aliases.append(chance.choice(sorted(near)))
    joins = [text for pair, text in JOINS.items() if set(pair) <= set(aliases)]
    filters = []
    for alias in aliases:
        if chance.random() < 0.6:
            low = chance.randint(1, 5)
            values = sorted(chance.sample(range(10, 90), 2))
            filters.append(f"({chance.choice(FILTERS[alias]).format(*values, low=low)})")
    chance.shuffle(aliases)
    tables = ", ".join(f"{TABLES[alias]} {alias}" for alias in aliases)
    return f"SELECT count(*) FROM {tables} WHERE {' AND '.join([*joins, *filters])}"
