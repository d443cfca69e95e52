"""A small schema whose joins PostgreSQL estimates badly, made in a second: regions of customers and orders agree."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from planner.features import flat
from tests.support.models import cardinality_model

SCHEMA = """
CREATE TABLE customers (id int PRIMARY KEY, region text NOT NULL, tier int NOT NULL);
CREATE TABLE orders (id int PRIMARY KEY, customer_id int NOT NULL REFERENCES customers, region text, total numeric);
CREATE TABLE items (order_id int NOT NULL REFERENCES orders, product_id int NOT NULL, quantity int NOT NULL);
CREATE TABLE products (id int PRIMARY KEY, category text NOT NULL);
CREATE TABLE secrets (id int PRIMARY KEY, order_id int);
ALTER TABLE secrets ENABLE ROW LEVEL SECURITY;
CREATE FUNCTION odd(int) RETURNS bool LANGUAGE sql AS 'SELECT random() < $1';
CREATE VIEW big_orders AS SELECT * FROM orders o WHERE o.total > 400;
INSERT INTO customers SELECT g, (ARRAY['north','south','east','west'])[1 + g % 4], g % 3
    FROM generate_series(1, 2000) g;
INSERT INTO products SELECT g, 'c' || g % 20 FROM generate_series(1, 500) g;
INSERT INTO orders SELECT g, 1 + (g * 7) % 2000, (ARRAY['north','south','east','west'])[1 + (1 + (g * 7) % 2000) % 4],
    g % 500 FROM generate_series(1, 10000) g;
INSERT INTO items SELECT 1 + g % 10000, 1 + g % 500, g % 5 FROM generate_series(1, 30000) g;
CREATE INDEX ON orders (customer_id);
CREATE INDEX ON items (order_id);
ANALYZE;
"""
PAUSE = (
    "CREATE FUNCTION pause(seconds float) RETURNS int STABLE LANGUAGE plpgsql AS "
    "'BEGIN PERFORM pg_sleep(seconds); RETURN 0; END'"
)
"""For statements that take long and leave the processors alone; `pg_sleep` itself is volatile, and so left alone."""
QUERY = (
    "SELECT count(*) FROM customers c JOIN orders o ON o.customer_id = c.id JOIN items i ON i.order_id = o.id "
    "WHERE c.region = 'north' AND o.region = 'north'"
)
WITH_PARAMETER = QUERY.replace("c.region = 'north'", "c.region = $1")


def constant_model(
    folder: Path, name: str = "times-e2", version: str = "1.0.0", log_ratio: float = 2.0, **more: Any
) -> Path:
    """A model that corrects every join by the same factor, in a file of its own in ``folder``."""
    path = folder / f"{name}.onnx"
    cardinality_model(
        path,
        name,
        version,
        log_ratio,
        features=flat.NAMES,
        featurizer=("flat", flat.VERSION),
        **{"clip": (-10.0, 10.0), **more},
    )
    return path
