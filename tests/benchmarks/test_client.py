"""The benchmark's own protocol client, its SCRAM against the example of RFC 7677, and a real server."""

from __future__ import annotations

from benchmarks.client import error_text, execute_messages, message, parse_message, scram_proof, startup


def test_messages_carry_their_length() -> None:
    assert message(b"Q", b"SELECT 1\0") == b"Q\0\0\0\x0dSELECT 1\0"
    assert int.from_bytes(startup("u", "d")[:4], "big") == len(startup("u", "d"))
    assert parse_message("one", "SELECT 1") == b"P\0\0\0\x13one\0SELECT 1\0\0\0"
    assert execute_messages("one") == b"B\0\0\0\x0f\0one\0\0\0\0\0\0\0E\0\0\0\x09\0\0\0\0\0S\0\0\0\x04"


def test_scram_proof_of_rfc_7677() -> None:
    proof = scram_proof(
        "pencil",
        "n=user,r=rOprNGfwEbeRWgbNEkqO",
        "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096",
    )
    assert proof == (
        "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="
    )


def test_the_message_in_an_error() -> None:
    assert error_text(b"E\0\0\0\0SERROR\0C42601\0Msyntax error\0\0") == "syntax error"
    assert error_text(b"E\0\0\0\0\0") == "no message"
