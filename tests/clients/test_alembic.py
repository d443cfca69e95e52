"""Alembic: up, down, half-way, one that fails, CREATE INDEX CONCURRENTLY, and the comparison with the models."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import alembic
import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext

from tests.clients.shop import Base
from tests.clients.target import Target
from tests.support.postgres import Postgres

pytestmark = pytest.mark.client("Alembic")

SITE = Path(__file__).parent / "alembic_site"

FAILING = """
from alembic import op
revision = "0004"
down_revision = "0003"
def upgrade() -> None:
    op.execute("create table half_done (a int)")
    op.execute("insert into half_done select 1/0")
def downgrade() -> None:
    pass
"""


@pytest.fixture(scope="session")
def client_version() -> str:
    return alembic.__version__


@pytest.fixture
def fresh(target: Target, postgres: Postgres) -> Iterator[Target]:
    """A database without tables."""
    database = postgres.create_database()
    yield replace(target, database=database)
    postgres.drop_database(database)


def configuration(target: Target, *more: Path) -> Config:
    config = Config(output_buffer=io.StringIO())
    config.set_main_option("script_location", str(SITE))
    config.set_main_option("path_separator", "os")
    config.set_main_option("version_locations", ":".join(map(str, [SITE / "versions", *more])))
    config.set_main_option("sqlalchemy.url", target.dsn("postgresql+psycopg").replace("%", "%%"))
    return config


def version_of(postgres: Postgres, target: Target) -> str:
    return postgres.sql("select version_num from alembic_version", target.database)


def test_upgrade_to_the_head(fresh: Target, postgres: Postgres) -> None:
    command.upgrade(configuration(fresh), "head")
    assert version_of(postgres, fresh) == "0003"
    assert postgres.sql("select count(*), sum(amount) from shop_orders", fresh.database) == "50|1593.75"
    valid = "select indisvalid from pg_index where indexrelid = 'ix_shop_orders_placed'::regclass"
    assert postgres.sql(valid, fresh.database) == "t"


def test_the_result_is_what_the_models_say(fresh: Target) -> None:
    command.upgrade(configuration(fresh), "head")
    engine = sa.create_engine(fresh.dsn("postgresql+psycopg"))
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []
    engine.dispose()
    command.check(configuration(fresh))


def test_step_by_step_down_and_up_again(fresh: Target, postgres: Postgres) -> None:
    config = configuration(fresh)
    tables = "select count(*) from pg_tables where tablename like 'shop_%'"
    command.upgrade(config, "head")
    for expected, left in (("0002", "2"), ("0001", "1"), ("", "0")):
        command.downgrade(config, "-1")
        assert version_of(postgres, fresh) == expected
        assert postgres.sql(tables, fresh.database) == left
    for expected in ("0001", "0002", "0003"):
        command.upgrade(config, "+1")
        assert version_of(postgres, fresh) == expected
    command.downgrade(config, "base")
    assert postgres.sql(tables, fresh.database) == "0"


def test_a_migration_that_fails_leaves_nothing(fresh: Target, postgres: Postgres, tmp_path: Path) -> None:
    (tmp_path / "failing.py").write_text(FAILING)
    with pytest.raises(sa.exc.DataError, match="division by zero"):
        command.upgrade(configuration(fresh, tmp_path), "head")
    assert version_of(postgres, fresh) == "0003"
    assert postgres.sql("select to_regclass('half_done') is null", fresh.database) == "t"


def test_stamp_current_and_the_sql_script(fresh: Target, postgres: Postgres) -> None:
    config = configuration(fresh)
    script = io.StringIO()
    config.output_buffer = script
    command.upgrade(config, "0002", sql=True)
    statements = script.getvalue()
    assert "CREATE TABLE shop_orders" in statements
    postgres.sql(statements, fresh.database)
    engine = sa.create_engine(fresh.dsn("postgresql+psycopg"))
    with engine.connect() as connection:
        assert MigrationContext.configure(connection).get_current_revision() == "0002"
    engine.dispose()
    command.stamp(config, "0001")
    assert version_of(postgres, fresh) == "0001"


def test_tls_and_scram(secure_target: Target, postgres: Postgres) -> None:
    command.upgrade(configuration(secure_target), "head")
    assert version_of(postgres, secure_target) == "0003"
    owner = "select distinct tableowner from pg_tables where schemaname = 'public'"
    assert postgres.sql(owner, secure_target.database) == secure_target.user
