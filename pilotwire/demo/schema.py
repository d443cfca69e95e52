"""The demo's tables: what a careful developer would write, with keys, foreign keys, checks and the usual indexes.

Tables come first, keys and indexes after the rows, as pg_restore does it. Nothing is left out or added to make a plan
good or bad: every foreign key has its index, and so have the columns that reports select by.
"""

from __future__ import annotations

from typing import Final

TABLES: Final = """
CREATE TABLE stores (
    id integer NOT NULL,
    name text NOT NULL,
    kind text NOT NULL,
    country text NOT NULL,
    region text NOT NULL,
    city text,
    opened_on date NOT NULL,
    floor_space integer
);
CREATE TABLE categories (
    id integer NOT NULL,
    parent_id integer,
    name text NOT NULL,
    department text NOT NULL
);
CREATE TABLE products (
    id integer NOT NULL,
    sku text NOT NULL,
    name text NOT NULL,
    brand text NOT NULL,
    category_id integer NOT NULL,
    price numeric(10, 2) NOT NULL,
    cost numeric(10, 2) NOT NULL,
    launched_on date NOT NULL,
    discontinued_on date,
    rating numeric(2, 1)
);
CREATE TABLE promotions (
    id integer NOT NULL,
    code text NOT NULL,
    kind text NOT NULL,
    category_id integer,
    discount_percent smallint NOT NULL,
    starts_on date NOT NULL,
    ends_on date NOT NULL,
    CHECK (ends_on >= starts_on)
);
CREATE TABLE customers (
    id integer NOT NULL,
    email text NOT NULL,
    full_name text NOT NULL,
    country text NOT NULL,
    city text NOT NULL,
    tier text NOT NULL,
    signed_up_on date NOT NULL,
    birth_year smallint,
    newsletter boolean NOT NULL,
    referred_by integer
);
CREATE TABLE orders (
    id integer NOT NULL,
    customer_id integer NOT NULL,
    store_id integer NOT NULL,
    promotion_id integer,
    channel text NOT NULL,
    status text NOT NULL,
    ordered_at timestamp NOT NULL,
    total numeric(12, 2) NOT NULL
);
CREATE TABLE order_items (
    order_id integer NOT NULL,
    line_no smallint NOT NULL,
    product_id integer NOT NULL,
    quantity smallint NOT NULL CHECK (quantity > 0),
    unit_price numeric(10, 2) NOT NULL,
    discount numeric(10, 2) NOT NULL
);
CREATE TABLE payments (
    id integer NOT NULL,
    order_id integer NOT NULL,
    method text NOT NULL,
    status text NOT NULL,
    amount numeric(12, 2) NOT NULL,
    paid_at timestamp NOT NULL
);
CREATE TABLE shipments (
    id integer NOT NULL,
    order_id integer NOT NULL,
    carrier text NOT NULL,
    warehouse text NOT NULL,
    promised_on date NOT NULL,
    shipped_at timestamp NOT NULL,
    delivered_at timestamp
);
CREATE TABLE returns (
    id integer NOT NULL,
    order_id integer NOT NULL,
    line_no smallint NOT NULL,
    reason text NOT NULL,
    requested_at timestamp NOT NULL,
    refund numeric(10, 2) NOT NULL
);
"""

PRIMARY_KEYS: Final = {
    "stores": "id",
    "categories": "id",
    "products": "id",
    "promotions": "id",
    "customers": "id",
    "orders": "id",
    "order_items": "order_id, line_no",
    "payments": "id",
    "shipments": "id",
    "returns": "id",
}

INDEXES: Final = {
    "stores": ("CREATE INDEX ON stores (country)",),
    "categories": ("CREATE INDEX ON categories (parent_id)", "CREATE UNIQUE INDEX ON categories (department, name)"),
    "products": (
        "CREATE UNIQUE INDEX ON products (sku)",
        "CREATE INDEX ON products (category_id)",
        "CREATE INDEX ON products (brand)",
    ),
    "promotions": ("CREATE UNIQUE INDEX ON promotions (code)", "CREATE INDEX ON promotions (category_id)"),
    "customers": (
        "CREATE UNIQUE INDEX ON customers (email)",
        "CREATE INDEX ON customers (country, city)",
        "CREATE INDEX ON customers (signed_up_on)",
        "CREATE INDEX ON customers (referred_by)",
    ),
    "orders": (
        "CREATE INDEX ON orders (customer_id)",
        "CREATE INDEX ON orders (store_id)",
        "CREATE INDEX ON orders (promotion_id)",
        "CREATE INDEX ON orders (ordered_at)",
    ),
    "order_items": ("CREATE INDEX ON order_items (product_id)",),
    "payments": ("CREATE INDEX ON payments (order_id)", "CREATE INDEX ON payments (paid_at)"),
    "shipments": ("CREATE INDEX ON shipments (order_id)", "CREATE INDEX ON shipments (shipped_at)"),
    "returns": ("CREATE INDEX ON returns (order_id, line_no)", "CREATE INDEX ON returns (requested_at)"),
}

FOREIGN_KEYS: Final = (
    ("categories", "parent_id", "categories"),
    ("products", "category_id", "categories"),
    ("promotions", "category_id", "categories"),
    ("customers", "referred_by", "customers"),
    ("orders", "customer_id", "customers"),
    ("orders", "store_id", "stores"),
    ("orders", "promotion_id", "promotions"),
    ("order_items", "order_id", "orders"),
    ("order_items", "product_id", "products"),
    ("payments", "order_id", "orders"),
    ("shipments", "order_id", "orders"),
    ("returns", "order_id, line_no", "order_items"),
)


def finishing(table: str) -> list[str]:
    """The statements that follow the rows of `table`: its primary key, then its indexes."""
    return [f"ALTER TABLE {table} ADD PRIMARY KEY ({PRIMARY_KEYS[table]})", *INDEXES[table]]


def references() -> list[str]:
    """The foreign keys, for when every table has its primary key."""
    return [
        f"ALTER TABLE {table} ADD FOREIGN KEY ({columns}) REFERENCES {other}" for table, columns, other in FOREIGN_KEYS
    ]
