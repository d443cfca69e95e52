"""What several instances put together: when pairs of runs were made; the state of guards; what a ledger line is of."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("arms", sa.Column("moments", sa.Text, nullable=False, server_default="[]"))
    op.add_column("arms", sa.Column("since", sa.Float(53), nullable=False, server_default="0"))
    op.add_column("ledger", sa.Column("scope", sa.String(20), nullable=False, server_default=""))
    op.create_table(
        "guards",
        sa.Column("name", sa.String(400), primary_key=True),
        sa.Column("content", sa.Text, nullable=False),
        sa.Column("updated", sa.Float(53), nullable=False),
        sa.Column("revision", sa.BigInteger, nullable=False),
    )
    op.create_index("guards_by_revision", "guards", ["revision"])
