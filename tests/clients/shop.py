"""The tables the SQLAlchemy tests use: customers and their orders."""

from __future__ import annotations

import datetime
from decimal import Decimal
from typing import Any

import sqlalchemy as sa
from sqlalchemy import orm
from sqlalchemy.dialects.postgresql import JSONB


class Base(orm.DeclarativeBase):
    """Holds the metadata of both."""


class Customer(Base):
    __tablename__ = "shop_customers"

    id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
    name: orm.Mapped[str] = orm.mapped_column(unique=True)
    orders: orm.Mapped[list[Order]] = orm.relationship(cascade="all, delete-orphan", order_by="Order.id")


class Order(Base):
    __tablename__ = "shop_orders"

    id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
    customer_id: orm.Mapped[int] = orm.mapped_column(sa.ForeignKey("shop_customers.id"))
    placed: orm.Mapped[datetime.datetime] = orm.mapped_column(sa.DateTime(timezone=True), index=True)
    amount: orm.Mapped[Decimal] = orm.mapped_column(sa.Numeric(12, 2))
    details: orm.Mapped[dict[str, Any]] = orm.mapped_column(JSONB)
