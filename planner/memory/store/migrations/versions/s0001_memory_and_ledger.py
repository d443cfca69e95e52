"""The plan memory and the ledger, whose lines cannot be changed."""

from __future__ import annotations

import secrets
import time

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_ID = sa.BigInteger().with_variant(sa.Integer, "sqlite")
_NO_CHANGES_SQLITE = """
CREATE TRIGGER ledger_is_append_only BEFORE UPDATE ON ledger
BEGIN SELECT RAISE(ABORT, 'a line of the ledger is never changed'); END
"""
_NO_CHANGES_POSTGRES = (
    """
    CREATE FUNCTION pilotwire_ledger_is_append_only() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN RAISE EXCEPTION 'a line of the ledger is never changed'; END $$
    """,
    """
    CREATE TRIGGER ledger_is_append_only BEFORE UPDATE ON ledger
    FOR EACH ROW EXECUTE FUNCTION pilotwire_ledger_is_append_only()
    """,
)


def upgrade() -> None:
    op.create_table(
        "queries",
        sa.Column("key", sa.String(64), primary_key=True),
        sa.Column("template", sa.String(64), nullable=False),
        *(sa.Column(name, sa.Text, nullable=False) for name in ("database", "search_path", "fingerprint")),
        *(sa.Column(name, sa.Text, nullable=False) for name in ("text", "params", "baseline", "actor")),
        *(sa.Column(name, sa.Float(53), nullable=False) for name in ("first_seen", "last_seen", "total_ms", "updated")),
        *(sa.Column(name, sa.BigInteger, nullable=False) for name in ("calls", "revision")),
        *(sa.Column(name, sa.Boolean, nullable=False) for name in ("opted_out", "forgotten")),
    )
    op.create_index("queries_by_revision", "queries", ["revision"])
    op.create_index("queries_by_total", "queries", ["total_ms"])
    op.create_index("queries_by_template", "queries", ["template"])
    op.create_index("queries_by_last_seen", "queries", ["last_seen"])
    op.create_table(
        "arms",
        sa.Column("key", sa.String(64), primary_key=True),
        sa.Column("arm", sa.String(200), primary_key=True),
        sa.Column("state", sa.String(20), nullable=False),
        *(sa.Column(name, sa.Text, nullable=False) for name in ("advice", "dialect", "model", "latencies", "baseline")),
        *(sa.Column(name, sa.Text, nullable=False) for name in ("schema_hash", "drift", "why", "actor")),
        *(sa.Column(name, sa.Float(53), nullable=False) for name in ("expected_gain", "measured_gain", "updated")),
        *(sa.Column(name, sa.BigInteger, nullable=False) for name in ("runs", "losses", "server_version", "revision")),
    )
    op.create_index("arms_by_revision", "arms", ["revision"])
    op.create_index("arms_by_state", "arms", ["state"])
    _create_ledger()
    info = op.create_table(
        "store_info", sa.Column("name", sa.String(40), primary_key=True), sa.Column("value", sa.Text, nullable=False)
    )
    op.bulk_insert(info, [{"name": "salt", "value": secrets.token_hex(16)}])
    counter = op.create_table(
        "store_revision",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("value", sa.BigInteger, nullable=False),
    )
    op.bulk_insert(counter, [{"id": 1, "value": int(time.time() * 1000)}])


def _create_ledger() -> None:
    op.create_table(
        "ledger",
        sa.Column("id", _ID, primary_key=True, autoincrement=True),
        sa.Column("uid", sa.String(64), nullable=False, unique=True),
        sa.Column("at", sa.Float(53), nullable=False),
        sa.Column("kind", sa.String(40), nullable=False),
        sa.Column("key", sa.String(64), nullable=False),
        *(sa.Column(name, sa.Text, nullable=False) for name in ("database", "fingerprint", "arm", "advice", "model")),
        *(sa.Column(name, sa.Text, nullable=False) for name in ("before", "after", "actor", "why", "text")),
        *(sa.Column(name, sa.Float(53), nullable=False) for name in ("expected_gain", "measured_gain", "took_ms")),
        sqlite_autoincrement=True,
    )
    op.create_index("ledger_by_time", "ledger", ["at"])
    op.create_index("ledger_by_key", "ledger", ["key", "id"])
    op.create_index("ledger_by_kind", "ledger", ["kind", "id"])
    statements = (_NO_CHANGES_SQLITE,) if op.get_bind().dialect.name == "sqlite" else _NO_CHANGES_POSTGRES
    for statement in statements:
        op.execute(statement)
