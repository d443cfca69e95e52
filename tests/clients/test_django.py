"""Django: migrations, the ORM and the test runner, which creates, clones and drops databases of its own."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import django  # type: ignore[import-untyped]
import pytest

from tests.clients.target import Target
from tests.clients.tools import output, run
from tests.support.postgres import Postgres

pytestmark = pytest.mark.client("Django")

ROOT = Path(__file__).resolve().parents[2]
SITE = "tests.clients.django_site"
CASES = f"{SITE}.shop.cases"


@pytest.fixture(scope="session")
def client_version() -> str:
    return str(django.get_version())


def command(*arguments: str) -> list[str | Path]:
    return [sys.executable, "-W", "error", "-m", "django", *arguments, "--settings", f"{SITE}.settings"]


def manage(target: Target, *arguments: str, **environment: str) -> str:
    """Run a management command to its end; both outputs."""
    done = run(command(*arguments), target.environment(**environment), cwd=ROOT)
    assert done.returncode == 0, f"{arguments} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


def shell(target: Target, code: str, *, migrated: bool = True) -> str:
    """What ``code``, run with the models (and, by default, their tables) at hand, printed."""
    lines = [
        "import django",
        "from django.core.management import call_command",
        "django.setup()",
        f"from {SITE}.shop.models import Customer, Order",
        *(['call_command("migrate", verbosity=0)'] if migrated else []),
        code,
    ]
    settings = {"DJANGO_SETTINGS_MODULE": f"{SITE}.settings"}
    return output([sys.executable, "-W", "error", "-c", "\n".join(lines)], target.environment(**settings), cwd=ROOT)


def databases(postgres: Postgres, target: Target) -> list[str]:
    """The databases the test runner made beside the target's own."""
    query = f"select datname from pg_database where datname like 'test\\_{target.database}%' order by 1"
    return postgres.sql(query).split()


def test_migrations_forth_and_back(target: Target, postgres: Postgres) -> None:
    code = """
from django.db import connection
def tables():
    return sorted(name for name in connection.introspection.table_names() if name.startswith("shop_"))
call_command("migrate", verbosity=0)
print(tables())
call_command("makemigrations", "shop", check_changes=True, dry_run=True)
call_command("migrate", "shop", "zero", verbosity=0)
print(tables())
call_command("migrate")
"""
    printed = shell(target, code, migrated=False)
    assert printed.startswith("['shop_customer', 'shop_order']\nNo changes detected in app 'shop'\n[]\n")
    assert "Applying shop.first... OK" in printed
    applied = "select count(*) from django_migrations where app = 'shop' and name = 'first'"
    assert postgres.sql(applied, target.database) == "1"


def test_its_test_runner(target: Target, postgres: Postgres) -> None:
    printed = manage(target, "test", CASES, "-v", "2")
    assert "Ran 9 tests" in printed
    assert re.search(r"^OK$", printed, re.MULTILINE)
    assert f"Creating test database for alias 'default' ('test_{target.database}')" in printed
    assert databases(postgres, target) == []


def test_its_test_runner_in_parallel_with_clones(target: Target, postgres: Postgres) -> None:
    """CREATE DATABASE ... TEMPLATE fails while anybody, an idle backend of a pool too, is connected to the template."""
    printed = manage(target, "test", CASES, "--parallel", "2", "-v", "2")
    assert "Ran 9 tests" in printed
    assert f"Cloning test database for alias 'default' ('test_{target.database}')" in printed
    assert databases(postgres, target) == []


def test_its_test_runner_keeping_and_replacing_the_database(target: Target, postgres: Postgres) -> None:
    for _ in range(2):
        printed = manage(target, "test", f"{CASES}.Queries", "--keepdb")
        assert "Ran 6 tests" in printed
        assert databases(postgres, target) == [f"test_{target.database}"]
    printed = manage(target, "test", f"{CASES}.Queries", "--noinput")
    assert "Destroying old test database for alias 'default'" in printed
    assert databases(postgres, target) == []


@pytest.mark.parametrize("variant", ["SHOP_POOL", "SHOP_SERVER_SIDE_BINDING"])
def test_its_test_runner_with_options_of_the_backend(target: Target, postgres: Postgres, variant: str) -> None:
    printed = manage(target, "test", f"{CASES}.Queries", **{variant: "yes"})
    assert "Ran 6 tests" in printed
    assert databases(postgres, target) == []


def test_the_orm(target: Target) -> None:
    code = """
from django.db import connection, transaction
from django.db.models import Avg
from django.utils import timezone
ada = Customer.objects.create(name="Ada \\u00e4", tags=["x", "y"])
with transaction.atomic():
    for n in range(25):
        ada.orders.create(placed=timezone.now(), amount=n, details={"n": [n, None]})
print(Order.objects.filter(customer__name__startswith="Ada").aggregate(a=Avg("amount"))["a"])
again, made = Customer.objects.get_or_create(name="Ada \\u00e4")
print(made, again.tags, Order.objects.order_by("-amount").first().details)
print(sorted(o.amount for o in Order.objects.filter(amount__lt=3).select_related("customer")))
print(Customer.objects.update_or_create(name="Ada \\u00e4", defaults={"tags": []})[1], Customer.objects.get().tags)
with connection.cursor() as cursor:
    cursor.execute("show timezone")
    print(cursor.fetchone()[0])
print(Customer.objects.all().delete()[0])
"""
    assert shell(target, code).splitlines() == [
        "12.0000000000000000",
        "False ['x', 'y'] {'n': [24, None]}",
        "[Decimal('0.00'), Decimal('1.00'), Decimal('2.00')]",
        "False []",
        "UTC",
        "26",
    ]


def test_asynchronous_queries(target: Target) -> None:
    code = """
import asyncio
async def main():
    await asyncio.gather(*(Customer.objects.acreate(name=f"async {n}") for n in range(10)))
    print(await Customer.objects.filter(name__startswith="async").acount())
    print([c.name async for c in Customer.objects.filter(name__startswith="async").order_by("name")][:2])
asyncio.run(main())
"""
    assert shell(target, code) == "10\n['async 0', 'async 1']\n"


def test_dumpdata_flush_and_loaddata(target: Target, tmp_path: Path) -> None:
    code = f"""
fixture = {str(tmp_path / "customers.json")!r}
Customer.objects.bulk_create(Customer(name=f"dumped {{n}}", tags=[str(n)]) for n in range(10))
call_command("dumpdata", "shop.customer", output=fixture)
call_command("flush", interactive=False)
print(Customer.objects.count())
call_command("loaddata", fixture, verbosity=0)
print(Customer.objects.get(name="dumped 7").tags)
"""
    assert shell(target, code) == "0\n['7']\n"


def test_tls_and_scram(secure_target: Target, postgres: Postgres) -> None:
    postgres.sql(f"alter role {secure_target.user} createdb")
    printed = manage(secure_target, "test", f"{CASES}.Queries")
    assert "Ran 6 tests" in printed
    assert databases(postgres, secure_target) == []
