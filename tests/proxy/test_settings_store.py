"""Where the store is: defaults, the password kept apart, and what is refused."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from planner.memory.store import Retention, locate
from proxy.settings import ProxySettings
from proxy.settings_store import default_store, holds_password

UPSTREAM = "postgresql://app@127.0.0.1:5432/shop"


def build(**values: Any) -> ProxySettings:
    return ProxySettings.model_validate({"upstream": UPSTREAM, **values})


def test_the_default_is_a_file_in_the_state_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PILOTWIRE_STATE_DIR", str(tmp_path))
    assert build().store == build().store_url == f"sqlite:///{tmp_path}/store.db"
    assert default_store({"XDG_STATE_HOME": "/x"}) == (
        "sqlite:////var/lib/pilotwire/store.db" if os.geteuid() == 0 else "sqlite:////x/pilotwire/store.db"
    )
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert default_store({"XDG_STATE_HOME": "/x"}) == "sqlite:////x/pilotwire/store.db"
    assert default_store({}) == f"sqlite:///{Path.home()}/.local/state/pilotwire/store.db"


@pytest.mark.parametrize("text", ["none", "off", "None"])
def test_it_can_be_switched_off(text: str) -> None:
    assert (build(store=text).store, build(store=text).store_url) == ("none", None)


@pytest.mark.parametrize("text", ["/x/y.db", "sqlite:////x/y.db"])
def test_a_path_is_a_file(text: str) -> None:
    assert build(store=text).store_url == "sqlite:////x/y.db"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://pw:geh%2Feim@h:5433/pilot?sslmode=require", "postgresql://pw@h:5433/pilot?sslmode=require"),
        ("postgresql://pw@h1:1,h2:2/pilot?password=geh/eim", "postgresql://pw@h1:1,h2:2/pilot"),
        ("postgresql:///pilot?host=/run/pg&user=pw&password=geh/eim", "postgresql:///pilot?host=/run/pg&user=pw"),
    ],
)
def test_the_password_leaves_the_url(url: str, shown: str) -> None:
    settings = build(store=url)
    assert settings.store_password is not None
    assert settings.store_password.get_secret_value() == "geh/eim"
    assert settings.store.replace("pw@/", "/") == shown
    assert "eim" not in repr(settings) + settings.model_dump_json()
    again = ProxySettings.from_wire(settings.to_wire())
    assert again.store_url == settings.store_url
    import psycopg

    found = psycopg.conninfo.conninfo_to_dict(settings.store_url or "")
    assert (found["user"], found["password"], found["dbname"]) == ("pw", "geh/eim", "pilot")
    assert "eim" not in locate(settings.store_url or "").shown
    assert holds_password(url)
    assert not holds_password(shown)


def test_a_password_apart_wins() -> None:
    settings = build(store="postgresql://pw:a@h/pilot", store_password="b:c")
    assert settings.store_url == "postgresql://pw:b%3Ac@h/pilot"


@pytest.mark.parametrize(
    "text", ["store.db", "mysql://root:geheim@h/d", "sqlite:///relative.db", "postgresql://[::1/d"]
)
def test_what_names_no_store_is_refused_without_being_quoted(text: str) -> None:
    with pytest.raises(ValidationError) as caught:
        build(store=text)
    assert "or none" in str(caught.value)
    assert "geheim" not in str(caught.value)


def test_retention_is_handed_on_in_order() -> None:
    kept = build(store_keep_ledger="1d", store_keep_samples="2h", store_keep_history=3, store_keep_memory="4min")
    assert Retention(*kept.store_retention) == Retention(ledger=86400, executions=7200, history=3, queries=240)
