"""Alembic's entry point for the migrations here: one engine, each migration in a transaction of its own."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import context

from tests.clients.shop import Base

url = context.config.get_main_option("sqlalchemy.url")
assert url is not None, "set sqlalchemy.url in the Alembic Config"

if context.is_offline_mode():
    context.configure(url=url, target_metadata=Base.metadata, literal_binds=True)
    with context.begin_transaction():
        context.run_migrations()
else:
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    with engine.connect() as connection:
        context.configure(
            connection=connection, target_metadata=Base.metadata, transaction_per_migration=True, compare_type=True
        )
        with context.begin_transaction():
            context.run_migrations()
