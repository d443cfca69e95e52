"""Where settings come from: precedence, origins, secrets, and one clear sentence for whatever is wrong."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from pilotwire.config import LISTS, SECRETS, Loaded, SettingsError, load
from pilotwire.config_reference import reference
from proxy.settings import docs

ROOT = Path(__file__).parents[2]
UPSTREAM = "postgresql://app@127.0.0.1:5432/shop"


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.upper().startswith("PILOTWIRE_"):
            monkeypatch.delenv(name)


def write(path: Path, text: str, mode: int = 0o600) -> Path:
    path.write_text(text)
    path.chmod(mode)
    return path


def refusal(config: Path | None = None, **overrides: Any) -> str:
    with pytest.raises(SettingsError) as caught:
        load(config, overrides)
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert "geheim" not in sentence
    return sentence


def test_command_line_over_environment_over_file_over_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = write(tmp_path / "p.toml", f'upstream = "{UPSTREAM}"\npool_size = 1\npool_overflow = 1\nqueue_limit = 1\n')
    monkeypatch.setenv("PILOTWIRE_POOL_SIZE", "2")
    monkeypatch.setenv("PILOTWIRE_POOL_OVERFLOW", "2")
    loaded = load(config, {"pool_size": "3", "workers": None})
    settings, origins = loaded.settings, loaded.origins
    assert (settings.pool_size, settings.pool_overflow, settings.queue_limit, settings.workers) == (3, 2, 1, 1)
    assert [origins[name] for name in ("pool_size", "pool_overflow", "queue_limit", "workers", "auth")] == [
        "command line",
        "environment",
        str(config),
        "default",
        "worked out from other settings",
    ]


# A value unlike the default for each setting, as TOML; texts of the environment follow from it.
EXAMPLES: dict[str, Any] = {
    "upstream": UPSTREAM,
    "upstream_password": "x",
    "admin_token": "x",
    "upstream_passfile": "FILE",
    "target_session_attrs": "read-write",
    "connect_timeout": 3.5,
    "listen": ["127.0.0.1:7001", "/tmp/x.sock"],
    "listeners": [{"address": "127.0.0.1:7002", "read_only": True}],
    "listen_backlog": 7,
    "workers": 7,
    "admin": "127.0.0.1:7003",
    "control_socket": "/tmp/control.sock",
    "max_clients": 7,
    "auth": "trust",
    "users_file": "FILE",
    "auth_query": "SELECT $1",
    "auth_query_user": "reader",
    "login_timeout": 7.0,
    "client_tls_mode": "allow",
    "client_tls_cert": "FILE",
    "client_tls_key": "FILE",
    "client_tls_ca": "FILE",
    "server_tls_mode": "require",
    "server_tls_ca": "FILE",
    "server_tls_cert": "FILE",
    "server_tls_key": "FILE",
    "mode": "shadow",
    "planner_socket": "/tmp/planner.sock",
    "steer_deadline_ms": 7.0,
    "steer_min_joins": 7,
    "steer_cache_entries": 107,
    "steer_cache_bytes": 2097152,
    "models": "FOLDER",
    "model_batch_ms": 7.0,
    "model_predict_ms": 7.0,
    "planner_memory": 200 << 20,
    "planner_databases": 7,
    "catalog_refresh": 7.0,
    "sample_rows": 7,
    "steer_min_ms": 7.0,
    "steer_off_users": ["ann", "bob"],
    "steer_off_databases": ["ann", "bob"],
    "steer_off_applications": ["ann", "bob"],
    "steer_off_fingerprints": ["ann", "bob"],
    "evidence": "none",
    "steer_modes": ["user=batch:off", "*:canary"],
    "canary_share": 0.7,
    "control_share": 0.07,
    "steer_min_calls": 7,
    "steer_min_total_ms": 7.0,
    "min_gain": 1.7,
    "min_gain_ms": 7.0,
    "template_gain": 7.0,
    "regret_budget": 7.0,
    "trial_share": 0.07,
    "evidence_max_age": 70.0,
    "store": "none",
    "store_password": "x",
    "explore": True,
    "explore_share": 0.5,
    "explore_most_active": 7,
    "explore_limit": 70.0,
    "explore_interval": 70.0,
    "explore_host": "replica:6543",
    "store_literals": True,
    "admin_database": "console",
    "admin_users": ["ann", "bob"],
    "stats_users": ["ann", "bob"],
    "otel_endpoint": "http://127.0.0.1:4318/v1/traces",
    "otel_share": 0.7,
    "accuracy_samples": 12.0,
    "accuracy_limit": 2.0,
    "history_interval": 7.0,
    "latency_good_ms": 7.0,
    "latency_warning_ms": 700.0,
    "store_keep_ledger": 7.0,
    "store_keep_samples": 7.0,
    "store_keep_history": 7.0,
    "store_keep_memory": 7.0,
    "pool_mode": "transaction",
    "session_reuse": True,
    "pool_size": 7,
    "pool_overflow": 7,
    "pool_min": 7,
    "queue_limit": 7,
    "queue_timeout": 7.0,
    "server_idle_timeout": 7.0,
    "server_lifetime": 7.0,
    "server_check_delay": 7.0,
    "max_prepared_bytes": 65537,
    "max_prepared_bytes_backend": 2097152,
    "drain_timeout": 7.0,
    "read_only": True,
    "read_only_users": ["ann", "bob"],
    "log_format": "json",
    "log_level": "debug",
    "log_connections": False,
    "log_slow_ms": 7,
    "log_literals": True,
    "log_debug_wire": True,
}
# What some settings cannot do without.
COMPANIONS = {
    "auth_query_user": {"auth_query": "SELECT $1"},
    "client_tls_mode": {"client_tls_cert": "FILE", "client_tls_key": "FILE"},
    "client_tls_cert": {"client_tls_key": "FILE"},
    "client_tls_key": {"client_tls_cert": "FILE"},
    "server_tls_cert": {"server_tls_key": "FILE"},
    "server_tls_key": {"server_tls_cert": "FILE"},
    "log_debug_wire": {"log_level": "debug"},
}


@pytest.mark.parametrize("name", docs())
def test_each_setting_from_every_source(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path / "file", "*:*:*:*:x\n")
    value = {"FILE": str(file), "FOLDER": str(tmp_path)}.get(str(EXAMPLES[name]), EXAMPLES[name])
    base = {"upstream": UPSTREAM} | {k: str(file) if v == "FILE" else v for k, v in COMPANIONS.get(name, {}).items()}
    base.pop(name, None)
    listeners = '[{address = "127.0.0.1:7002", read_only = true}]'
    # JSON's texts, numbers, booleans and arrays are TOML's too.
    written = listeners if name == "listeners" else json.dumps(value)
    config = write(tmp_path / "p.toml", f"{name} = {written}\n")
    text = ",".join(value) if name in LISTS else value if isinstance(value, str) else json.dumps(value)

    def seen(loaded: Loaded) -> tuple[Any, str]:
        shown = loaded.settings.model_dump()[name]
        return shown.get_secret_value() if isinstance(shown, SecretStr) else shown, loaded.origins[name]

    assert seen(load(config, base)) == (value, str(config))
    monkeypatch.setenv(f"PILOTWIRE_{name.upper()}", text)
    assert seen(load(None, base)) == (value, "environment")
    monkeypatch.delenv(f"PILOTWIRE_{name.upper()}")
    if name not in SECRETS:
        assert seen(load(None, base | {name: text})) == (value, "command line")


def test_the_file_can_be_named_by_a_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = write(tmp_path / "p.toml", f'upstream = "{UPSTREAM}"\nworkers = 3\n')
    monkeypatch.setenv("PILOTWIRE_CONFIG", str(config))
    assert load().settings.workers == 3


def test_lists_and_quantities_from_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PILOTWIRE_UPSTREAM", UPSTREAM)
    monkeypatch.setenv("PILOTWIRE_LISTENERS", '[{"address": "127.0.0.1:7", "read_only": true}]')
    monkeypatch.setenv("PILOTWIRE_READ_ONLY_USERS", "ann, bob")
    monkeypatch.setenv("PILOTWIRE_QUEUE_TIMEOUT", "1min")
    monkeypatch.setenv("PILOTWIRE_LOG_LITERALS", "yes")
    monkeypatch.setenv("PILOTWIRE_ADMIN", "")
    settings = load(None, {"listen": ["127.0.0.1:1,[::1]:2", "/tmp/s"]}).settings
    assert [str(address) for address in settings.addresses] == ["127.0.0.1:1", "[::1]:2", "/tmp/s", "127.0.0.1:7"]
    assert settings.read_only_users == ["ann", "bob"]
    assert (settings.queue_timeout, settings.log_literals, settings.admin) == (60.0, True, "127.0.0.1:9432")


def test_listener_tables(tmp_path: Path) -> None:
    text = f'upstream = "{UPSTREAM}"\n[[listeners]]\naddress = "127.0.0.1:7"\nread_only = true\n'
    config = write(tmp_path / "p.toml", text)
    assert [(str(a), a.read_only) for a in load(config).settings.addresses] == [("127.0.0.1:7", True)]
    config.write_text(text.replace("read_only", "readonly"))
    assert 'unknown key "readonly"; did you mean "read_only"?' in refusal(config)
    config.write_text(text.replace("address", "# address"))
    assert "listeners.0.address is missing" in refusal(config)


def test_paths_in_a_file_are_relative_to_it(tmp_path: Path) -> None:
    write(tmp_path / "users.txt", '"app" "x"\n')
    config = write(tmp_path / "p.toml", f'upstream = "{UPSTREAM}"\nusers_file = "users.txt"\n')
    assert load(config).settings.users_file == str(tmp_path / "users.txt")


class TestWrong:
    def test_no_upstream(self) -> None:
        assert "--upstream" in refusal()

    def test_unknown_key(self, tmp_path: Path) -> None:
        config = write(tmp_path / "p.toml", "pool-sise = 3\n")
        assert refusal(config) == f'unknown setting "pool-sise" in {config}; did you mean "pool_size"?'
        config.write_text("zzz = 3\n")
        assert refusal(config) == f'unknown setting "zzz" in {config}'

    def test_no_toml(self, tmp_path: Path) -> None:
        config = write(tmp_path / "p.toml", 'upstream = "postgresql://app:geheim@h/d\n')
        assert "not valid TOML" in refusal(config)

    def test_missing_file(self, tmp_path: Path) -> None:
        assert "No such file" in refusal(tmp_path / "none.toml")
        assert "Is a directory" in refusal(tmp_path)

    def test_no_text(self, tmp_path: Path) -> None:
        config = tmp_path / "p.toml"
        config.write_bytes(b"\xff\xfe")
        assert "not valid TOML" in refusal(config)

    def test_each_bad_value_with_its_origin(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PILOTWIRE_POOL_SIZE", "many")
        sentence = refusal(None, upstream=UPSTREAM, workers="0")
        assert "pool_size 'many' (environment)" in sentence
        assert "workers '0' (command line)" in sentence

    def test_dsn_with_its_origin(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PILOTWIRE_UPSTREAM", "postgresql://app:geheim@h:x/d")
        assert refusal().startswith("upstream (environment): a port")
        assert refusal(None, upstream="x").startswith("--upstream: ")

    def test_unreadable_file(self, tmp_path: Path) -> None:
        assert "users_file: cannot read" in refusal(None, upstream=UPSTREAM, users_file=str(tmp_path / "none"))

    def test_misspelt_variable_is_pointed_at(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PILOTWIRE_POOL_SISE", "3")
        monkeypatch.setenv("PILOTWIRE_SERVICE_HOST", "10.0.0.1")
        warnings = load(None, {"upstream": UPSTREAM}).warnings
        assert [line for line in warnings if "variable" in line] == [
            "the variable PILOTWIRE_POOL_SISE is not a setting; did you mean PILOTWIRE_POOL_SIZE?"
        ]


class TestSecrets:
    @pytest.mark.parametrize(
        "overrides",
        [
            {"upstream": "postgresql://app:geheim@h/d"},
            {"upstream": "postgresql://app@h/d?password=geheim"},
            {"upstream": "host=h password=geheim"},
            {"upstream": UPSTREAM, "upstream_password": "geheim"},
        ],
    )
    def test_refused_on_the_command_line(self, overrides: dict[str, str]) -> None:
        sentence = refusal(None, **overrides)
        assert "PILOTWIRE_UPSTREAM" in sentence
        assert "passfile" in sentence
        assert "0600" in sentence

    @pytest.mark.parametrize("overrides", [{"store": "postgresql://pilot:geheim@h/d"}, {"store_password": "geheim"}])
    def test_the_stores_password_too(self, overrides: dict[str, str]) -> None:
        assert "PILOTWIRE_STORE or a TOML file" in refusal(None, upstream=UPSTREAM, **overrides)

    def test_taken_from_the_environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PILOTWIRE_UPSTREAM", "postgresql://app:geheim@h/d")
        loaded = load()
        assert loaded.settings.password == "geheim"
        assert loaded.origins["upstream_password"] == "environment, in upstream"
        assert "geheim" not in repr(loaded)
        monkeypatch.setenv("PILOTWIRE_UPSTREAM_PASSWORD", "other")
        assert load().settings.password == "other"

    @pytest.mark.parametrize("text", ['upstream = "postgresql://app:geheim@h/d"', 'upstream_password = "geheim"'])
    def test_a_file_that_others_can_read_is_warned_of(self, tmp_path: Path, text: str) -> None:
        config = write(tmp_path / "p.toml", text + "\n", 0o644)
        overrides = {} if text.startswith("upstream =") else {"upstream": UPSTREAM}
        assert any("chmod 0600" in sentence for sentence in load(config, overrides).warnings)
        config.chmod(0o600)
        assert not any("chmod 0600" in sentence for sentence in load(config, overrides).warnings)

    def test_a_key_that_everybody_can_read_is_warned_of(self, tmp_path: Path) -> None:
        users = write(tmp_path / "users.txt", "", 0o644)
        assert any(
            "users_file" in line for line in load(None, {"upstream": UPSTREAM, "users_file": str(users)}).warnings
        )

    def test_an_overruled_dsn_leaves_nothing_behind(self, tmp_path: Path) -> None:
        config = write(tmp_path / "p.toml", 'upstream = "postgresql://app:geheim@prod/d?sslmode=require"\n')
        loaded = load(config, {"upstream": "postgresql://me@127.0.0.1/test"})
        assert loaded.settings.password is None
        assert loaded.settings.auth == "trust"
        assert loaded.settings.server_tls_mode == "prefer"

    def test_options_of_the_dsn_rank_with_it(self, tmp_path: Path) -> None:
        config = write(tmp_path / "p.toml", 'server_tls_mode = "disable"\n')
        loaded = load(config, {"upstream": UPSTREAM + "?sslmode=require"})
        assert loaded.settings.server_tls_mode == "require"
        assert loaded.origins["server_tls_mode"] == "command line, in upstream"


class TestPassfile:
    def load(self, tmp_path: Path, lines: str, upstream: str = UPSTREAM) -> Loaded:
        path = write(tmp_path / "pgpass", lines)
        return load(None, {"upstream": upstream, "upstream_passfile": str(path)})

    def test_first_line_that_fits(self, tmp_path: Path) -> None:
        lines = "# prod\nother:5432:shop:app:no\n127.0.0.1:*:shop:app:ge\\:h\\\\eim:x\n*:*:*:*:last\n"
        loaded = self.load(tmp_path, lines)
        assert loaded.settings.password == "ge:h\\eim:x"
        assert loaded.origins["upstream_password"].startswith("passfile ")
        assert loaded.settings.auth == "scram-sha-256"

    def test_ipv6_and_sockets(self, tmp_path: Path) -> None:
        assert self.load(tmp_path, "\\:\\:1:5432:d:u:a\n", "postgresql://u@[::1]/d").settings.password == "a"
        assert self.load(tmp_path, "localhost:5432:d:u:b\n", "postgresql://u@/d?host=/tmp").settings.password == "b"
        assert self.load(tmp_path, "/tmp:5432:d:u:c\n", "postgresql://u@/d?host=/tmp").settings.password == "c"

    def test_named_in_the_dsn(self, tmp_path: Path) -> None:
        path = write(tmp_path / "pgpass", "*:*:*:app:x\n")
        assert load(None, {"upstream": f"{UPSTREAM}?passfile={path}"}).settings.password == "x"

    def test_no_line_fits(self, tmp_path: Path) -> None:
        with pytest.raises(SettingsError, match="no line for user app"):
            self.load(tmp_path, "127.0.0.1:5432:shop:other:geheim\nincomplete:line\n\n")

    def test_others_can_read_it(self, tmp_path: Path) -> None:
        path = write(tmp_path / "pgpass", "*:*:*:*:geheim\n", 0o640)
        assert "chmod 0600" in refusal(None, upstream=UPSTREAM, upstream_passfile=str(path))

    def test_one_of_systemds_credentials(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The access list that systemd gives it shows as the group's right to read."""
        folder = tmp_path / "credentials"
        folder.mkdir()
        path = write(folder / "pgpass", "*:*:*:app:geheim\n", 0o440)
        outside = write(tmp_path / "pgpass", "*:*:*:app:geheim\n", 0o440)
        monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(folder))
        assert load(None, {"upstream": UPSTREAM, "upstream_passfile": str(path)}).settings.password == "geheim"
        for wrong in (outside, folder / ".." / "pgpass"):
            assert "chmod 0600" in refusal(None, upstream=UPSTREAM, upstream_passfile=str(wrong))
        path.chmod(0o444)
        assert "chmod 0600" in refusal(None, upstream=UPSTREAM, upstream_passfile=str(path))

    def test_cannot_be_read(self, tmp_path: Path) -> None:
        assert "cannot read" in refusal(None, upstream=UPSTREAM, upstream_passfile=str(tmp_path / "none"))
        path = write(tmp_path / "pgpass", "")
        path.write_bytes(b"\xff")
        assert "not UTF-8" in refusal(None, upstream=UPSTREAM, upstream_passfile=str(path))


def test_the_reference_is_up_to_date() -> None:
    written = (ROOT / "docs" / "configuration.md").read_text()
    assert written == reference(), "run: pilotwire config-reference > docs/configuration.md"


def test_the_reference_documents_each_setting_once() -> None:
    lines = reference().splitlines()
    for name, doc in docs().items():
        assert lines.count(f"### `{name}`") == 1
        for text in (f"- Default: {doc.default}", f"- Why: {doc.reason}", f"- Careful: {doc.warning}"):
            assert text in lines
