"""SQLAlchemy 2 over psycopg: Core with raw SQL as a small service writes it (pool of 5, overflow 10), and the ORM."""

# Where an error comes up, at the statement or at the end of a block, is the driver's business: blocks may hold several.
# ruff: noqa: PT012

from __future__ import annotations

import datetime
import threading
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import exc, orm
from sqlalchemy.dialects import postgresql

from tests.clients.shop import Base, Customer, Order
from tests.clients.target import Target
from tests.support.postgres import Postgres

pytestmark = pytest.mark.client("SQLAlchemy")


@pytest.fixture(scope="session")
def client_version() -> str:
    return sa.__version__


def make_engine(target: Target, **options: Any) -> sa.Engine:
    url = target.dsn("postgresql+psycopg")
    return sa.create_engine(url, poolclass=sa.QueuePool, pool_size=5, max_overflow=10, **options)


@pytest.fixture
def engine(target: Target) -> Iterator[sa.Engine]:
    engine = make_engine(target)
    yield engine
    engine.dispose()


@pytest.fixture
def session(engine: sa.Engine) -> Iterator[orm.Session]:
    Base.metadata.drop_all(engine)
    Base.metadata.create_all(engine)
    with orm.Session(engine) as session:
        yield session


def test_raw_sql_through_a_pool_of_five_and_ten_more(engine: sa.Engine) -> None:
    """Thirty threads share fifteen connections; each transaction moves money, none is lost."""
    with engine.begin() as connection:
        connection.execute(sa.text("create table accounts (id int primary key, amount int not null)"))
        connection.execute(sa.text("insert into accounts select n, 100 from generate_series(1, 10) n"))
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for step in range(10):
                giver, taker = sorted(((number + step) % 10 + 1, (number * 3 + step) % 10 + 1))
                with engine.begin() as connection:
                    change = sa.text("update accounts set amount = amount + :change where id = :id returning amount")
                    for account, sign in ((giver, -1), (taker, 1)):
                        assert connection.execute(change, {"id": account, "change": sign}).scalar_one() is not None
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(30)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    with engine.connect() as connection:
        assert connection.execute(sa.text("select sum(amount), count(*) from accounts")).one() == (1000, 10)


def test_the_pool_refuses_the_sixteenth(target: Target) -> None:
    engine = make_engine(target, pool_timeout=0.1)
    opened = [engine.connect() for _ in range(15)]
    pids = {connection.execute(sa.text("select pg_backend_pid()")).scalar_one() for connection in opened}
    assert len(pids) == 15
    with pytest.raises(exc.TimeoutError, match="QueuePool limit of size 5 overflow 10 reached"):
        engine.connect()
    for connection in opened:
        connection.close()
    engine.dispose()


def test_a_dead_connection_is_noticed_by_pre_ping(target: Target, postgres: Postgres) -> None:
    engine = make_engine(target, pool_pre_ping=True)
    with engine.connect() as connection:
        connection.execute(sa.text("select 1"))
    # With a time limit the server waits until they are gone; without, one may still answer a ping.
    postgres.sql(f"select pg_terminate_backend(pid, 5000) from pg_stat_activity where datname = '{target.database}'")
    with engine.connect() as connection:
        assert connection.execute(sa.text("select 'alive'")).scalar_one() == "alive"
    engine.dispose()


@pytest.mark.parametrize("level", ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE", "AUTOCOMMIT"])
def test_isolation_levels(engine: sa.Engine, level: Any) -> None:
    with engine.connect().execution_options(isolation_level=level) as connection:
        expected = "read committed" if level == "AUTOCOMMIT" else level.lower()
        assert connection.execute(sa.text("show transaction_isolation")).scalar_one() == expected
        assert connection.execute(sa.text("select 1")).scalar_one() == 1
    with engine.connect() as connection:
        assert connection.execute(sa.text("show transaction_isolation")).scalar_one() == "read committed"


def test_insert_of_many_values(engine: sa.Engine) -> None:
    table = sa.Table(
        "inserted", sa.MetaData(), sa.Column("id", sa.Integer, primary_key=True), sa.Column("name", sa.Text)
    )
    table.create(engine)
    with engine.begin() as connection:
        rows = [{"name": f"n{number}"} for number in range(3000)]
        inserted = connection.execute(sa.insert(table).returning(table.c.id, sort_by_parameter_order=True), rows)
        assert inserted.scalars().all() == list(range(1, 3001))
        upsert = postgresql.insert(table).values(id=1, name="other")
        connection.execute(upsert.on_conflict_do_update(index_elements=["id"], set_={"name": upsert.excluded.name}))
        assert connection.execute(sa.select(table.c.name).where(table.c.id == 1)).scalar_one() == "other"


def test_a_result_by_a_server_side_cursor(engine: sa.Engine) -> None:
    with engine.connect() as connection:
        streaming = connection.execution_options(yield_per=100)
        result = streaming.execute(sa.text("select n from generate_series(1, 2500) n"))
        sizes = [len(part) for part in result.partitions(100)]
    assert sizes == [100] * 25


def test_reflection(engine: sa.Engine, session: orm.Session) -> None:
    inspector = sa.inspect(engine)
    assert {"shop_customers", "shop_orders"} <= set(inspector.get_table_names())
    columns = {column["name"]: str(column["type"]) for column in inspector.get_columns("shop_orders")}
    assert columns == {
        "id": "INTEGER",
        "customer_id": "INTEGER",
        "placed": "TIMESTAMP",
        "amount": "NUMERIC(12, 2)",
        "details": "JSONB",
    }
    keys = inspector.get_foreign_keys("shop_orders")
    assert [(key["constrained_columns"], key["referred_table"]) for key in keys] == [
        (["customer_id"], "shop_customers")
    ]
    reflected = sa.Table("shop_orders", sa.MetaData(), autoload_with=engine)
    assert [index.name for index in reflected.indexes] == ["ix_shop_orders_placed"]


def test_orm_round_trip(session: orm.Session) -> None:
    moment = datetime.datetime(2024, 2, 29, 12, tzinfo=datetime.UTC)
    for name in ("Ada", "Bj\u00f6rn"):
        orders = [Order(placed=moment, amount=Decimal(n) / 2, details={"n": n, "tags": ["a", None]}) for n in range(40)]
        session.add(Customer(name=name, orders=orders))
    session.commit()
    session.expire_all()
    query = sa.select(Customer).options(orm.selectinload(Customer.orders)).order_by(Customer.name)
    customers = session.scalars(query).all()
    assert [(customer.name, len(customer.orders)) for customer in customers] == [("Ada", 40), ("Bj\u00f6rn", 40)]
    order = customers[1].orders[3]
    assert (order.amount, order.placed, order.details) == (Decimal("1.50"), moment, {"n": 3, "tags": ["a", None]})


def test_orm_joins_and_aggregates(session: orm.Session) -> None:
    for number in range(10):
        orders = [
            Order(placed=datetime.datetime.now(datetime.UTC), amount=Decimal(number), details={}) for _ in range(number)
        ]
        session.add(Customer(name=f"c{number}", orders=orders))
    session.flush()
    total = sa.func.coalesce(sa.func.sum(Order.amount), 0).label("total")
    query = sa.select(Customer.name, total).outerjoin(Customer.orders).group_by(Customer.name).order_by(Customer.name)
    assert [(name, int(value)) for name, value in session.execute(query)] == [(f"c{n}", n * n) for n in range(10)]
    ranked = sa.select(Order.id, sa.func.rank().over(order_by=Order.amount.desc()).label("place")).cte("ranked")
    assert session.scalar(sa.select(sa.func.count()).select_from(ranked).where(ranked.c.place == 1)) == 9


def test_orm_changes_deletes_and_rolls_back(session: orm.Session) -> None:
    customer = Customer(name="Ada", orders=[Order(placed=datetime.datetime.now(datetime.UTC), amount=1, details={})])
    session.add(customer)
    session.commit()
    customer.name = "Grace"
    with pytest.raises(exc.IntegrityError, match="shop_customers_name_key"), session.begin_nested():
        session.add(Customer(name="Grace"))
        session.flush()
    session.commit()
    session.execute(sa.update(Order).values(amount=Order.amount + 41))
    assert session.scalars(sa.select(Order.amount)).one() == 42
    session.rollback()
    assert session.scalars(sa.select(Order.amount)).one() == 1
    session.delete(customer)
    session.commit()
    assert session.scalar(sa.select(sa.func.count()).select_from(Order)) == 0


def test_two_phase_sessions(engine: sa.Engine, target: Target) -> None:
    with engine.begin() as connection:
        connection.execute(sa.text("create table phased (a int)"))
    with engine.connect() as connection:
        transaction = connection.begin_twophase(f"{target.database}-one")
        connection.execute(sa.text("insert into phased values (1)"))
        transaction.prepare()
        transaction.commit()
        second = connection.begin_twophase(f"{target.database}-two")
        connection.execute(sa.text("insert into phased values (2)"))
        second.prepare()
        second.rollback()
        assert connection.execute(sa.text("select a from phased")).scalars().all() == [1]


def test_tls_and_scram(secure_target: Target) -> None:
    engine = make_engine(secure_target)
    with engine.begin() as connection:
        assert connection.execute(sa.text("select current_user")).scalar_one() == secure_target.user
        connection.execute(sa.text("create table owned (a int)"))
    assert "owned" in sa.inspect(engine).get_table_names()
    engine.dispose()
