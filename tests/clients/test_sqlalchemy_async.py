"""SQLAlchemy 2 over asyncpg: its prepared-statement cache, concurrent sessions, streams."""

# Where an error comes up, at the statement or at the end of a block, is the driver's business: blocks may hold several.
# ruff: noqa: PT012

from __future__ import annotations

import asyncio
import datetime
import ssl
from collections.abc import AsyncIterator
from decimal import Decimal

import pytest
import sqlalchemy as sa
from sqlalchemy import exc, orm
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine

from tests.clients.shop import Base, Customer, Order
from tests.clients.target import Target

pytestmark = pytest.mark.client("SQLAlchemy")


@pytest.fixture(scope="session")
def client_version() -> str:
    return sa.__version__


@pytest.fixture
async def engine(target: Target) -> AsyncIterator[AsyncEngine]:
    engine = create_async_engine(target.dsn("postgresql+asyncpg"), pool_size=5, max_overflow=10)
    yield engine
    await engine.dispose()


@pytest.fixture
async def tables(engine: AsyncEngine) -> None:
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.drop_all)
        await connection.run_sync(Base.metadata.create_all)


async def test_raw_sql_of_many_tasks(engine: AsyncEngine) -> None:
    async with engine.begin() as connection:
        await connection.execute(sa.text("create table counted (a int, b text)"))

    async def work(number: int) -> None:
        for step in range(5):
            async with engine.begin() as connection:
                await connection.execute(sa.text("insert into counted values (:a, :b)"), {"a": number, "b": f"{step}"})
                found = await connection.execute(sa.text("select count(*) from counted where a = :a"), {"a": number})
                assert found.scalar_one() == step + 1

    await asyncio.gather(*(work(number) for number in range(40)))
    async with engine.connect() as connection:
        row = (await connection.execute(sa.text("select count(*), count(distinct a), max(b) from counted"))).one()
    assert row == (200, 40, "4")


@pytest.mark.usefixtures("tables")
async def test_orm(engine: AsyncEngine) -> None:
    moment = datetime.datetime(2024, 2, 29, 12, tzinfo=datetime.UTC)
    async with AsyncSession(engine) as session:
        for name in ("Ada", "Grace"):
            orders = [Order(placed=moment, amount=Decimal(n), details={"n": n}) for n in range(30)]
            session.add(Customer(name=name, orders=orders))
        await session.commit()
    async with AsyncSession(engine) as session:
        query = sa.select(Customer).options(orm.selectinload(Customer.orders)).order_by(Customer.name)
        customers = (await session.scalars(query)).all()
        assert [(customer.name, len(customer.orders)) for customer in customers] == [("Ada", 30), ("Grace", 30)]
        assert customers[0].orders[7].details == {"n": 7}
        customers[0].name = "Grace"
        with pytest.raises(exc.IntegrityError, match="shop_customers_name_key"):
            await session.commit()
        await session.rollback()
        total = await session.scalar(sa.select(sa.func.sum(Order.amount)))
        assert total == 2 * sum(range(30))


@pytest.mark.usefixtures("tables")
async def test_savepoints_and_rollback(engine: AsyncEngine) -> None:
    async with AsyncSession(engine) as session:
        session.add(Customer(name="kept"))
        await session.flush()
        with pytest.raises(exc.IntegrityError):
            async with session.begin_nested():
                session.add(Customer(name="kept"))
                await session.flush()
        await session.commit()
        session.add(Customer(name="lost"))
        await session.flush()
        await session.rollback()
        assert (await session.scalars(sa.select(Customer.name))).all() == ["kept"]


async def test_a_streamed_result(engine: AsyncEngine) -> None:
    async with engine.connect() as connection:
        result = await connection.stream(sa.text("select n from generate_series(1, 5000) n"))
        total = 0
        async for row in result:
            total += row.n
        assert total == 5000 * 5001 // 2


async def test_a_table_that_changes_under_prepared_statements(engine: AsyncEngine) -> None:
    """SQLAlchemy drops its caches on the error and the application's next try works, as it does without a proxy."""
    async with engine.begin() as connection:
        await connection.execute(sa.text("create table changing as select 1 as a"))
    for _ in range(3):
        async with engine.connect() as connection:
            assert (await connection.execute(sa.text("select * from changing"))).all() == [(1,)]
    async with engine.begin() as connection:
        await connection.execute(sa.text("alter table changing add column b int default 2"))
    with pytest.raises(exc.NotSupportedError, match="cached statement plan is invalid"):
        async with engine.connect() as connection:
            await connection.execute(sa.text("select * from changing"))
    for _ in range(3):
        async with engine.connect() as connection:
            assert (await connection.execute(sa.text("select * from changing"))).all() == [(1, 2)]


async def test_isolation_levels(engine: AsyncEngine) -> None:
    for level in ("SERIALIZABLE", "AUTOCOMMIT", "READ COMMITTED"):
        async with engine.connect() as plain:
            connection = await plain.execution_options(isolation_level=level)
            found = (await connection.execute(sa.text("show transaction_isolation"))).scalar_one()
            assert found == ("serializable" if level == "SERIALIZABLE" else "read committed")


async def test_tls_and_scram(secure_target: Target) -> None:
    context = ssl.create_default_context(cafile=str(secure_target.certificate_authority))
    url = sa.URL.create(
        "postgresql+asyncpg",
        secure_target.user,
        secure_target.password,
        secure_target.host,
        secure_target.port,
        secure_target.database,
    )
    engine = create_async_engine(url, connect_args={"ssl": context})
    async with engine.connect() as connection:
        assert (await connection.execute(sa.text("select current_user"))).scalar_one() == secure_target.user
    await engine.dispose()
