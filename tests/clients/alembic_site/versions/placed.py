"""When an order was placed; exact amounts; an index built without locking the table, which no transaction may hold."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    placed = sa.Column("placed", sa.DateTime(timezone=True), nullable=False, server_default=sa.text("now()"))
    op.add_column("shop_orders", placed)
    op.alter_column("shop_orders", "amount", type_=sa.Numeric(12, 2))
    op.alter_column("shop_orders", "placed", server_default=None)
    op.alter_column("shop_orders", "details", server_default=None)
    with op.get_context().autocommit_block():
        op.create_index("ix_shop_orders_placed", "shop_orders", ["placed"], postgresql_concurrently=True)


def downgrade() -> None:
    with op.get_context().autocommit_block():
        op.drop_index("ix_shop_orders_placed", "shop_orders", postgresql_concurrently=True)
    op.alter_column("shop_orders", "amount", type_=sa.Float)
    op.drop_column("shop_orders", "placed")
