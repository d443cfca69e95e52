from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.auth import users
from proxy.auth.secrets import Password
from proxy.auth.users import UsersFileError, is_readable_by_others, parse_users, read_users


def test_pgbouncers_form() -> None:
    text = (
        "; the users\r\n"
        '"alice" "wonder;land"\r\n'
        "\n"
        '  "bo""b"\t"say ""hi"""   ; a comment\n'
        '"empty" ""\n'
        '"hash" "md5000102030405060708090a0b0c0d0e0f"'
    )
    found = parse_users(text)
    assert list(found) == ["alice", 'bo"b', "empty", "hash"]
    assert found["alice"] == Password("wonder;land")
    assert found['bo"b'] == Password('say "hi"')
    assert found["empty"] is None


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("alice secret", "the user must stand in double quotes"),
        ('"alice" hush', "the secret must stand in double quotes"),
        ('"alice"', "the secret must stand in double quotes"),
        ('"alice" "hush', "that opens the secret is not closed"),
        ('"alice', "that opens the user is not closed"),
        ('"alice" "hush" "more"', "nothing but a comment"),
        ('"" "hush"', "the user's name is empty"),
        ('"first" "hush"', "listed twice"),
        ('"alice" "SCRAM-SHA-256$hush"', "begins like a SCRAM verifier"),
    ],
)
def test_errors_name_the_line_and_no_secret(line: str, says: str) -> None:
    with pytest.raises(UsersFileError, match=says) as caught:
        parse_users(f'"first" "one"\n; comment\n{line}\n', "users.txt")
    assert str(caught.value).startswith("users.txt, line 3: ")
    assert "hush" not in str(caught.value)


def test_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "users.txt"
    with pytest.raises(UsersFileError, match=r"cannot read users_file .*: No such file"):
        read_users(path)
    assert not is_readable_by_others(path)
    path.write_bytes('\ufeff"Jos\u00e9" "x"\n'.encode() + b'"latin\xe9" "y"\n')
    path.chmod(0o644)
    assert is_readable_by_others(path)
    path.chmod(0o640)
    assert not is_readable_by_others(path)
    assert list(read_users(path)) == ["José", "latin\udce9"]
    monkeypatch.setattr(users, "MAX_FILE_BYTES", 10)
    with pytest.raises(UsersFileError, match="larger than"):
        read_users(path)


_PRINTED = st.text(st.characters(exclude_characters="\0\n\r"), max_size=30)


@given(st.dictionaries(_PRINTED.filter(bool), _PRINTED.filter(lambda text: not text.startswith("SCRAM-")), max_size=8))
def test_what_is_written_is_read(entries: dict[str, str]) -> None:
    def quoted(text: str) -> str:
        return '"' + text.replace('"', '""') + '"'

    text = "\n".join(f"{quoted(user)} {quoted(secret)} ; note" for user, secret in entries.items())
    assert list(parse_users(text)) == list(entries)


@given(st.text(st.sampled_from('ab" \t;\n\r\\$\0')))
def test_any_text_is_read_or_refused(text: str) -> None:
    with contextlib.suppress(UsersFileError):
        assert all(parse_users(text))
