from __future__ import annotations

from pathlib import Path

import pytest

from proxy.auth.upstream_secret import dsn_user, find_password, password_in
from proxy.dsn import parse_dsn

DSN = parse_dsn("postgresql://bob@one:5433,two/shop")


def test_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    passfile = tmp_path / "passfile"
    passfile.write_text("one:5433:shop:bob:from-file\n")
    passfile.chmod(0o600)
    given = ("given", str(passfile), {"PGPASSWORD": "from-environment"})
    assert find_password(DSN, "bob", *given) == "given"
    assert find_password(DSN, "bob", None, *given[1:]) == "from-environment"
    assert find_password(DSN, "bob", None, str(passfile), {}) == "from-file"
    assert find_password(DSN, "bob", None, "", {"PGPASSFILE": str(passfile)}) == "from-file"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert find_password(DSN, "bob", None, "", {}) is None
    passfile.rename(tmp_path / ".pgpass")
    assert find_password(DSN, "bob", None, "", {}) == "from-file"
    (tmp_path / ".pgpass").chmod(0o640)
    assert find_password(DSN, "bob", None, "", {}) is None


def test_a_file_that_was_asked_for_must_be_private(tmp_path: Path) -> None:
    passfile = tmp_path / "passfile"
    assert find_password(DSN, "bob", None, str(passfile), {}) is None
    passfile.write_text("*:*:*:*:hush\n")
    passfile.chmod(0o644)
    with pytest.raises(ValueError, match="chmod 0600") as caught:
        find_password(DSN, "bob", None, str(passfile), {})
    assert "hush" not in str(caught.value)
    with pytest.raises(ValueError, match="not a plain file"):
        find_password(DSN, "bob", None, str(tmp_path), {})


@pytest.mark.parametrize(
    ("text", "password"),
    [
        ("two:5432:shop:bob:p", "p"),
        ("two:5433:shop:bob:p", None),
        ("*:*:*:*:p:with:colons", "p:with:colons"),
        (r"*:*:*:*:back\\slash\:colon", r"back\slash:colon"),
        ("# one:5433:shop:bob:p\n\nnonsense\none:*:*:bob:q", "q"),
        ("*:*:other:bob:p\n*:*:shop:alice:p", None),
        ("*:*:*:*:", None),
    ],
)
def test_lines(text: str, password: str | None) -> None:
    assert password_in(text, DSN, "bob") == password


def test_unix_socket_is_localhost() -> None:
    dsn = parse_dsn("postgresql://bob@%2Frun%2Fpostgresql/")
    assert password_in("localhost:5432:bob:bob:p", dsn, "bob") == "p"


def test_user() -> None:
    assert dsn_user(DSN, {"PGUSER": "other"}) == "bob"
    assert dsn_user(parse_dsn("postgresql://host"), {"PGUSER": "other"}) == "other"
    assert dsn_user(parse_dsn("postgresql://host"), {})
