"""The same bytes to a real server and to our exchange: the same SQLSTATE, words and detail must come back."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import struct

import pytest

from proxy.auth import scram
from proxy.auth.exchange import Md5Exchange, ScramExchange
from proxy.auth.secrets import Password
from tests.proxy.auth.dialogue import NONCE, Script, initial, ours, theirs, theirs_over
from tests.proxy.auth.servers import PASSWORD, AuthServer, Certificates, TlsServer

BARE = f"n=,r={NONCE}"
PLUS_HEADER = b"p=tls-server-end-point,,"


def first(text: str | bytes) -> bytes:
    return initial(text.encode() if isinstance(text, str) else text)


PLAIN = [
    Script("right password", password=PASSWORD),
    Script("wrong password"),
    Script("client could bind", first(f"y,,{BARE}"), password=PASSWORD, binding=b"y,,"),
    Script("name given", first(f"n,,n=someone,r={NONCE}"), bare=f"n=someone,r={NONCE}", password=PASSWORD),
    Script("extension at the end", first(f"n,,{BARE},x=1"), bare=f"{BARE},x=1", password=PASSWORD),
    Script("no mechanism end", b"SCRAM-SHA-256"),
    Script("unknown mechanism", initial(b"n,,", "SCRAM-SHA-1")),
    Script("plus without TLS", initial(PLUS_HEADER + BARE.encode(), "SCRAM-SHA-256-PLUS")),
    Script("no length", b"SCRAM-SHA-256\0\0\0"),
    Script("length too large", initial(b"n,,", length=4)),
    Script("length too small", initial(b"n,,n=", length=3)),
    Script("length negative", initial(b"n,,", length=-2)),
    Script("length says none", initial(b"n,,", length=-1)),
    Script("empty", initial(b"")),
    Script("too long", first("n,,n=,r=" + "x" * 1100)),
    Script("as long as may be", first("n,,n=,r=" + " " * (1020 - 8 - 18))),
    Script("one byte too long", first("n,,n=,r=" + " " * (1021 - 8 - 18))),
    Script("final too long", final=lambda honest: b"c=biws,r=" + b"x" * 1100),
    Script("zero byte", initial(b"n,,\0")),
    Script("unknown flag", first("z,,")),
    Script("unprintable flag", first(b"\x01,,")),
    Script("binding without plus", first(PLUS_HEADER + BARE.encode())),
    Script("no comma", first("nn,")),
    Script("flag alone", first("n")),
    Script("authorization identity", first(f"n,a=x,{BARE}")),
    Script("unexpected attribute", first(f"n,b=x,{BARE}")),
    Script("header alone", first("n,")),
    Script("nothing bare", first("n,,")),
    Script("mandatory extension", first(f"n,,m=x,{BARE}")),
    Script("no name", first(f"n,,r={NONCE}")),
    Script("no equals sign", first(f"n,,n,r={NONCE}")),
    Script("no nonce", first("n,,n=x")),
    Script("space in nonce", first("n,,n=,r=a b")),
    Script("odd attribute behind", first(f"n,,{BARE},1=x")),
    Script("attribute without equals sign", first(f"n,,{BARE},xy")),
    Script("final empty", final=lambda honest: b""),
    Script("final with zero byte", final=lambda honest: honest.encode() + b"\0"),
    Script("final with flag of another", binding=b"y,,"),
    Script("final with a bound channel", binding=PLUS_HEADER + bytes(32)),
    Script("final without binding", final=lambda honest: honest.partition(",")[2].encode()),
    Script("final with another nonce", final=lambda honest: honest.replace(NONCE, NONCE[::-1]).encode()),
    Script("final without proof", final=lambda honest: honest.rpartition(",")[0].encode()),
    Script("final with an empty proof", final=lambda honest: honest.rpartition("p=")[0].encode() + b"p="),
    Script("final with a short proof", final=lambda honest: honest[:-5].encode()),
    Script("final with a proof not in base64", final=lambda honest: honest[:-5].encode() + b"!!!!="),
    Script("final with garbage behind", password=PASSWORD, final=lambda honest: honest.encode() + b",x=y"),
    Script("final with an odd attribute", final=lambda honest: honest.replace(",p=", ",9=1,p=").encode()),
    Script("final with an attribute cut", final=lambda honest: honest.replace(",p=", ",x,p=").encode()),
    Script("extension that the proof does not cover", password=PASSWORD,
           final=lambda honest: honest.replace(",p=", ",x=1,p=").encode()),
]  # fmt: skip

BOUND = [
    Script("unbound", password=PASSWORD),
    Script("downgrade", first(f"y,,{BARE}"), binding=b"y,,"),
    Script("plus without data", initial(f"n,,{BARE}".encode(), "SCRAM-SHA-256-PLUS")),
    Script("plus with y", initial(f"y,,{BARE}".encode(), "SCRAM-SHA-256-PLUS")),
    Script("binding of another kind", initial(f"p=tls-unique,,{BARE}".encode(), "SCRAM-SHA-256-PLUS")),
    Script("binding of an odd kind", initial(f"p=tls \x01unique,,{BARE}".encode(), "SCRAM-SHA-256-PLUS")),
    Script("wrong binding", initial(PLUS_HEADER + BARE.encode(), "SCRAM-SHA-256-PLUS"), binding=PLUS_HEADER + b"x"),
    Script("no binding after all", initial(PLUS_HEADER + BARE.encode(), "SCRAM-SHA-256-PLUS")),
]


def our_exchange(binding: bytes | None = None) -> ScramExchange:
    verifier = scram.make_verifier(PASSWORD, b"0123456789abcdef")
    return ScramExchange("scram_user", verifier, channel_binding=binding)


@pytest.mark.parametrize("script", PLAIN, ids=lambda script: script.name)
async def test_in_clear(auth_server: AuthServer, script: Script) -> None:
    expected = await theirs(auth_server.host, auth_server.port, "scram_user", script)
    assert ours(our_exchange(), script) == expected


@pytest.mark.parametrize("body", [b"md5\0", b"\0", b"md5", b"", b"md5\0x", b"a\0b\0", b"x" * 1000])
async def test_md5(auth_server: AuthServer, body: bytes) -> None:
    script = Script("md5", body)
    expected = await theirs(auth_server.host, auth_server.port, "md5_user", script)
    assert ours(Md5Exchange("md5_user", Password(PASSWORD), ""), script) == expected


@pytest.mark.parametrize("script", BOUND, ids=lambda script: script.name)
async def test_over_tls(tls_server: TlsServer, certificates: Certificates, script: Script) -> None:
    reader, writer = await asyncio.open_connection(tls_server.host, tls_server.port)
    try:
        writer.write(struct.pack("!ii", 8, 80877103))
        assert await reader.readexactly(1) == b"S"
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        await writer.start_tls(context)
        expected = await theirs_over(reader, writer, "scram_user", script)
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
    assert ours(our_exchange(certificates.server_hash()), script) == expected


async def test_bound_login_itself(certificates: Certificates) -> None:
    binding = certificates.server_hash()
    script = Script(
        "bound",
        initial(PLUS_HEADER + BARE.encode(), "SCRAM-SHA-256-PLUS"),
        password=PASSWORD,
        binding=PLUS_HEADER + binding,
    )
    assert ours(our_exchange(binding), script) == {}


@pytest.mark.parametrize("user", ["no_such_user", "expired_user", "bare_user"])
async def test_users_who_cannot_log_in(auth_server: AuthServer, user: str) -> None:
    """With the right password even: the answer is that of a wrong one."""
    script = Script("any", password=PASSWORD)
    expected = await theirs(auth_server.host, auth_server.port, user, script)
    verifier = scram.make_verifier(PASSWORD, b"0123456789abcdef")
    assert ours(ScramExchange(user, verifier, doomed=True), script) == expected
    assert expected["C"] == "28P01"
