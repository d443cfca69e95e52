"""Sampled executions, the history of metrics, and the shape of remembered statements."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_ID = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    # Filled when a query is next written: the literals of a text that was kept before need not be hashed.
    op.add_column("queries", sa.Column("shape", sa.Text, nullable=False, server_default=""))
    op.create_table(
        "query_metrics",
        sa.Column("id", _ID, primary_key=True, autoincrement=True),
        sa.Column("uid", sa.String(64), nullable=False, unique=True),
        sa.Column("at", sa.Float(53), nullable=False),
        *(sa.Column(name, sa.Text, nullable=False) for name in ("database", "user", "application", "search_path")),
        sa.Column("fingerprint", sa.Text, nullable=False),
        sa.Column("key", sa.String(64), nullable=False),
        sa.Column("took_ms", sa.Float(53), nullable=False),
        sa.Column("rows", sa.BigInteger, nullable=False),
        sa.Column("estimated_cost", sa.Float(53), nullable=False),
        *(sa.Column(name, sa.Text, nullable=False) for name in ("decision", "arm", "model", "failed")),
        *(sa.Column(name, sa.Text, nullable=False) for name in ("text", "params")),
        sqlite_autoincrement=True,
    )
    op.create_index("query_metrics_by_time", "query_metrics", ["at"])
    op.create_index("query_metrics_by_fingerprint", "query_metrics", ["fingerprint", "at"])
    op.create_table(
        "metric_history",
        sa.Column("at", sa.Float(53), primary_key=True),
        sa.Column("model", sa.String(300), primary_key=True),
        sa.Column("metric", sa.String(100), primary_key=True),
        sa.Column("seconds", sa.Float(53), nullable=False),
        sa.Column("count", sa.BigInteger, nullable=False),
        *(sa.Column(name, sa.Float(53), nullable=False) for name in ("p50", "p95", "p99")),
    )
    op.create_index("metric_history_by_metric", "metric_history", ["metric", "at"])
