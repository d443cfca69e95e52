"""Every setting is documented, bounded and consistent with the others, and secrets stay out of sight."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import ValidationError

from proxy.options import choices, option_doc, parse_duration, parse_size
from proxy.settings import ProxySettings, apply_reload, changes_on_reload, docs

UPSTREAM = "postgresql://app@127.0.0.1:5432/shop"
WITH_PASSWORD = "postgresql://app:geheim@127.0.0.1:5432/shop"


def build(**values: Any) -> ProxySettings:
    return ProxySettings.model_validate({"upstream": WITH_PASSWORD, **values})


def refusal(**values: Any) -> str:
    with pytest.raises(ValidationError) as caught:
        build(**values)
    assert "geheim" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", ProxySettings.model_fields)
def test_each_setting_is_documented(name: str) -> None:
    field = ProxySettings.model_fields[name]
    doc = option_doc(field)
    for text in (field.description, doc.default, doc.unit, doc.reason, doc.warning, doc.group):
        assert text
        assert text.strip() == text
    for sentence in (field.description, doc.reason, doc.warning):
        assert str(sentence).endswith((".", "$1.")), f"{name}: {sentence!r} is not a sentence"
    numeric = field.annotation in (int, float)
    bounds = {type(item).__name__.lower() for item in field.metadata}
    assert not numeric or (bounds & {"ge", "gt"} and "le" in bounds), f"{name} has no bounds"


def test_groups_are_contiguous() -> None:
    groups = [doc.group for doc in docs().values()]
    assert len(set(groups)) == sum(a != b for a, b in zip([None, *groups], groups, strict=False))


def test_the_password_leaves_the_dsn() -> None:
    settings = build()
    assert settings.upstream == UPSTREAM
    assert settings.password == "geheim"
    assert "geheim" not in repr(settings) + str(settings) + settings.model_dump_json()


def test_a_password_apart_wins_over_the_one_in_the_dsn() -> None:
    assert build(upstream_password="other").password == "other"
    assert build(upstream_password="").password == "geheim"
    assert build(upstream=UPSTREAM, upstream_password="").password is None


def test_wire_form_round_trips_with_secrets() -> None:
    settings = build(
        upstream="postgresql://app:geheim@a,[::1]:9/shop?sslmode=require&application_name=x",
        listeners=[{"address": "127.0.0.1:7000", "read_only": True}],
        read_only_users=["ann"],
        max_prepared_bytes="2MB",
    )
    again = ProxySettings.from_wire(settings.to_wire())
    assert again == settings
    assert again.password == "geheim"
    assert json.loads(settings.to_wire())["upstream_password"] == "geheim"
    plain = build(upstream=UPSTREAM)
    assert ProxySettings.from_wire(plain.to_wire()) == plain


def test_libpq_options_of_the_dsn_become_settings() -> None:
    settings = build(
        upstream="postgresql://app@db/shop?sslmode=verify-full&sslrootcert=/ca&target_session_attrs=read-write"
        "&connect_timeout=3"
    )
    assert settings.server_tls_mode == "verify-full"
    assert settings.server_tls_ca == "/ca"
    assert settings.target_session_attrs == "read-write"
    assert settings.connect_timeout == 3
    assert build(upstream=UPSTREAM + "?sslmode=require", server_tls_mode="disable").server_tls_mode == "disable"
    assert "connect_timeout" in refusal(upstream=UPSTREAM + "?connect_timeout=soon")


def test_default_auth_follows_from_the_secrets_and_listeners() -> None:
    assert build().auth == "scram-sha-256"
    assert build(users_file="/users", upstream=UPSTREAM).auth_method == "scram-sha-256"
    assert build(upstream=UPSTREAM).auth == "trust"
    assert build(upstream=UPSTREAM, listen=["/tmp/s", "[::1]:1", "localhost:2"]).auth == "trust"
    assert "no password is known" in refusal(upstream=UPSTREAM, listen=["127.0.0.1:1", "0.0.0.0:2"])
    assert "no password is known" in refusal(upstream=UPSTREAM, listeners=[{"address": "*:2"}])


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"auth": "trust", "listen": ["*:6432"]}, "loopback"),
        ({"auth": "md5", "upstream": UPSTREAM}, "no secret to check against"),
        ({"auth": "scram-sha-256", "upstream": UPSTREAM}, "no secret to check against"),
        ({"auth": "cert"}, "client_tls_ca"),
        ({"auth_query_user": "reader"}, "auth_query is not"),
        ({"auth_query": "SELECT 1"}, "$1"),
        ({"client_tls_cert": "/c"}, "client_tls_key"),
        ({"client_tls_key": "/k"}, "client_tls_cert"),
        ({"client_tls_mode": "require"}, "client_tls_cert"),
        ({"client_tls_mode": "verify-ca", "client_tls_cert": "/c", "client_tls_key": "/k"}, "client_tls_ca"),
        ({"server_tls_mode": "verify-full"}, "server_tls_ca"),
        ({"server_tls_ca": "system"}, "verify-full"),
        ({"server_tls_cert": "/c"}, "server_tls_key"),
        ({"pool_min": 5, "pool_size": 4}, "pool_min"),
        ({"max_prepared_bytes": "2GB"}, "max_prepared_bytes"),
        ({"max_prepared_bytes": "32MB"}, "max_prepared_bytes_backend"),
        ({"listen": []}, "no listener"),
        ({"listen": ["127.0.0.1:1", "127.0.0.1:1"]}, "given twice"),
        ({"listen": ["127.0.0.1:9432"]}, "given twice"),
        ({"listen": ["nowhere"]}, 'listen "nowhere"'),
        ({"admin": "nowhere"}, 'admin "nowhere"'),
        ({"listeners": [{"address": "x"}]}, 'listeners "x"'),
        ({"listeners": "no json"}, "JSON list"),
        ({"listeners": "{}"}, "JSON list"),
        ({"control_socket": "relative"}, "absolute"),
        ({"control_socket": "/" + "x" * 107}, "107 bytes"),
        ({"log_debug_wire": True}, "log_level"),
        ({"workers": 0}, "workers"),
        ({"pool_size": 10001}, "pool_size"),
        ({"queue_timeout": 0}, "queue_timeout"),
        ({"queue_timeout": "ever"}, "30s"),
        ({"queue_timeout": True}, "30s"),
        ({"max_prepared_bytes": "1 parsec"}, "64kB"),
        ({"pool_mode": "statement"}, "'session' or 'transaction'"),
        ({"no_such": 1}, "no_such"),
    ],
)
def test_refuses_what_cannot_work(values: dict[str, Any], words: str) -> None:
    assert words in refusal(**values)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"upstream": UPSTREAM}, "auth is trust"),
        ({"auth": "md5"}, "scram-sha-256 is safer"),
        ({"auth": "relay"}, "pg_hba.conf"),
        ({"auth": "relay", "pool_mode": "transaction"}, "pool_mode has no effect"),
        ({"listen": ["*:1"]}, "in clear"),
        ({"admin": "*:1"}, "asks for no password"),
        ({"session_reuse": True}, "survive DISCARD ALL"),
        ({"session_reuse": True, "pool_mode": "transaction"}, "no effect"),
        ({"upstream": "postgresql://u:p@db/x"}, "read along"),
        ({"upstream": "postgresql://u:p@127.0.0.1,localhost/x"}, "read-write"),
        (
            {"upstream": "postgresql://u:p@a,b/x", "auth": "relay", "target_session_attrs": "primary"},
            "whatever target_session_attrs says",
        ),
        ({"upstream": UPSTREAM + "?gssencmode=disable"}, "gssencmode"),
        ({"read_only": True}, "SELECT only"),
        ({"log_literals": True}, "log_literals"),
        ({"log_debug_wire": True, "log_level": "debug"}, "log_debug_wire"),
    ],
)
def test_warns_of_risks(values: dict[str, Any], words: str) -> None:
    assert any(words in sentence for sentence in build(**values).warnings())


def test_a_careful_configuration_has_no_warning() -> None:
    assert build().warnings() == []
    tls = {"client_tls_mode": "require", "client_tls_cert": "/c", "client_tls_key": "/k"}
    assert build(listen=["*:1"], **tls).warnings() == []


def test_listeners_have_options_of_their_own() -> None:
    settings = build(listeners=[{"address": "127.0.0.1:7000", "read_only": True}, {"address": "127.0.0.1:7001"}])
    assert [(str(a), a.read_only) for a in settings.addresses] == [("127.0.0.1:7000", True), ("127.0.0.1:7001", False)]
    both = build(listen="127.0.0.1:1,/tmp/s", listeners='[{"address": "127.0.0.1:2"}]', read_only=True)
    assert [(str(a), a.read_only) for a in both.addresses] == [
        ("127.0.0.1:1", True),
        ("/tmp/s", True),
        ("127.0.0.1:2", True),
    ]


def test_admin_can_be_switched_off() -> None:
    assert build(admin="off").admin_address is None
    assert str(build().admin_address) == "127.0.0.1:9432"


def test_client_tls_is_offered_once_there_is_a_certificate() -> None:
    assert build().client_tls_mode == "disable"
    assert build(client_tls_cert="/c", client_tls_key="/k").client_tls_mode == "prefer"
    assert build(client_tls_cert="/c", client_tls_key="/k", client_tls_mode="disable").client_tls_mode == "disable"


def test_quantities_have_units() -> None:
    assert [parse_duration(text) for text in ("250ms", "30 s", "5min", "1h", "2d", "7")] == [
        0.25,
        30.0,
        300.0,
        3600.0,
        172800.0,
        7.0,
    ]
    assert [parse_size(text) for text in ("64kB", "1 MB", "2GiB", "17", "1.5kB")] == [65536, 1 << 20, 2 << 30, 17, 1536]
    assert parse_duration(3) == 3


def test_settings_are_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        build().workers = 2


def test_choices_sees_through_optional_types() -> None:
    assert "relay" in choices(ProxySettings.model_fields["auth"].annotation)
    assert choices(int) == []


def test_reload_tells_what_applies_from_what_needs_a_restart() -> None:
    old = build()
    new = build(upstream="postgresql://app:neu@db2/shop", workers=4, pool_size=5, pool_mode="transaction")
    applicable, restart = changes_on_reload(old, new)
    assert applicable == ["upstream", "upstream_password", "pool_size"]
    assert restart == ["workers", "pool_mode"]
    mixed = apply_reload(old, new)
    assert (mixed.workers, mixed.pool_mode, mixed.pool_size, mixed.password) == (1, "session", 5, "neu")
    assert mixed.upstream == "postgresql://app@db2:5432/shop"
    assert apply_reload(old, old) is old


def test_reload_refuses_a_mix_that_cannot_work() -> None:
    running = build(listen=["*:6432"])
    reread = build(listen=["127.0.0.1:6432"], auth="trust")
    with pytest.raises(ValueError, match="loopback"):
        apply_reload(running, reread)


def test_secrets_that_stay_are_no_change() -> None:
    """What was put together for a reload, or by SET, is compared at the next one."""
    old = build(admin_token="token", store="postgresql://s:geheim@db/store")
    held = apply_reload(old, old.model_copy(update={"workers": old.workers + 1}))
    assert changes_on_reload(held, old) == ([], [])
    assert held.admin_token is not None
    assert held.admin_token.get_secret_value() == "token"
