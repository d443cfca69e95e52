"""Orders, with an amount that was a float at first."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.create_table(
        "shop_orders",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("customer_id", sa.Integer, sa.ForeignKey("shop_customers.id"), nullable=False),
        sa.Column("amount", sa.Float, nullable=False),
        sa.Column("details", JSONB, nullable=False, server_default="{}"),
    )
    op.execute("insert into shop_orders (customer_id, amount) select id, id * 1.25 from shop_customers")


def downgrade() -> None:
    op.drop_table("shop_orders")
