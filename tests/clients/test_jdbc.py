"""The JDBC driver of Debian; each check is a method of java/Checks.java, compiled once from source."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock

from tests.clients.target import Target
from tests.clients.tools import need, output

pytestmark = pytest.mark.client("JDBC")

SOURCE = Path(__file__).parent / "java" / "Checks.java"
CACHE = Path(__file__).resolve().parents[2] / ".pilotwire" / "jdbc"
DRIVER = Path("/usr/share/java/postgresql.jar")
JVM = ("-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Xshare:auto", "-Xmx256m")

Check = Callable[[str], list[str]]


@pytest.fixture(scope="session")
def classes() -> Path:
    """The folder of the compiled program; one per version of its source."""
    assert DRIVER.exists(), f"The client tests need {DRIVER}: install the Debian package libpostgresql-jdbc-java."
    folder = CACHE / hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:16]
    CACHE.mkdir(parents=True, exist_ok=True)
    with FileLock(CACHE / "lock", timeout=100):
        if not (folder / "Checks.class").exists():
            compiler = need("javac", "default-jdk-headless")
            output([compiler, "-encoding", "UTF-8", "-cp", DRIVER, "-d", folder, SOURCE], Target.outside())
    return folder


@pytest.fixture(scope="session")
def client_version(classes: Path) -> str:
    return run_check("version", classes, Target.outside())[0]


def run_check(name: str, classes: Path, environment: dict[str, str]) -> list[str]:
    java = need("java", "default-jre-headless")
    return output([java, *JVM, "-cp", f"{classes}:{DRIVER}", "Checks", name], environment).splitlines()


@pytest.fixture
def check(classes: Path, target: Target) -> Check:
    """``check(name)`` runs that method against the target and returns the lines it printed."""
    url = f"jdbc:postgresql://{target.host}:{target.port}/{target.database}"
    return lambda name: run_check(name, classes, target.environment(JDBC_URL=url))


def test_values_come_back_as_text_and_binary(check: Check) -> None:
    """The driver changes to binary results and named statements at the fifth execution."""
    assert check("values") == [f"{n} \u00e4\u4e16 12345.6700 true [0, -1] [1, null, 3] true" for n in range(8)]


def test_statements_crossing_the_prepare_threshold(check: Check) -> None:
    assert check("threshold") == ["0 true"]


def test_statements_evicted_from_its_cache(check: Check, mode: str) -> None:
    """At most two more than the cache holds live; in transaction mode the view tells what a shared backend holds."""
    wrong, alive = check("eviction")[0].split()
    assert wrong == "0"
    assert mode == "transaction" or int(alive) <= 7


def test_batches(check: Check) -> None:
    assert check("batch") == ["1000 1000 1000", "23505", "1000"] * 2


def test_a_cursor_by_fetch_size(check: Check) -> None:
    assert check("cursor") == [str(1050 * 1051 // 2)] * 7 + ["alive"]


def test_the_copy_manager(check: Check) -> None:
    assert check("copy") == ["20000", "20000", "true", "22P02", "20000"]


def test_notifications(check: Check) -> None:
    assert check("listen") == ["abc"]


def test_cancel_and_query_timeout(check: Check) -> None:
    assert check("cancel") == ["57014", "alive", "57014", "alive"]


def test_transactions(check: Check) -> None:
    assert check("transactions") == ["23505", "25P02", "serializable", "25006", "1,2"]


def test_a_plan_that_no_longer_fits(check: Check) -> None:
    assert check("replan") == ["1", "1", "1", "2", "2"]


def test_metadata_and_settings_of_the_start(check: Check) -> None:
    assert check("metadata") == ["id int4 10", "name varchar 9", "described_pkey", "matrix pg_catalog pg_catalog"]


def test_query_modes(check: Check) -> None:
    modes = ("simple", "extended", "extendedForPrepared", "extendedCacheEverything")
    assert check("modes") == [f"{mode} 2 {sum(range(2, 10))}" for mode in modes]


def test_tls_and_scram(classes: Path, secure_target: Target) -> None:
    authority = secure_target.certificate_authority
    url = f"jdbc:postgresql://{secure_target.host}:{secure_target.port}/{secure_target.database}"
    options = f"?sslmode=verify-full&sslrootcert={authority}"
    found = run_check("secure", classes, secure_target.environment(JDBC_URL=url + options))
    assert found == [secure_target.user, "2000000", "28P01", "28000"]
