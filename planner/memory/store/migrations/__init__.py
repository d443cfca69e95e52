"""Alembic's scripts; `planner.memory.store.schema` runs them."""
