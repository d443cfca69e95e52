"""Customers."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "shop_customers",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("name", sa.String, nullable=False, unique=True),
    )
    op.bulk_insert(
        sa.table("shop_customers", sa.column("name", sa.String)), [{"name": f"customer {n}"} for n in range(50)]
    )


def downgrade() -> None:
    op.drop_table("shop_customers")
