"""The users file, in PgBouncer's form: one ``"user" "secret"`` per line.

A quote inside a value is doubled. A line may begin with ``;`` (a comment) or be empty, and a comment may follow the
secret. An empty secret names a user without a password, who cannot log in with one. Errors name the file and the
line, never a secret.
"""

from __future__ import annotations

from pathlib import Path

from proxy.auth.secrets import Secret, parse_secret

MAX_FILE_BYTES = 16 << 20
_BLANKS = " \t"


class UsersFileError(ValueError):
    """The users file cannot be used; the text says where and why."""


def read_users(path: Path) -> dict[str, Secret | None]:
    """User name -> secret (None: no password). UsersFileError when the file cannot be read or has a wrong line."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise UsersFileError(f"cannot read users_file {path}: {error.strerror or error}") from error
    if len(content) > MAX_FILE_BYTES:
        raise UsersFileError(f"users_file {path} is larger than {MAX_FILE_BYTES >> 20} MiB")
    # Names that are not UTF-8 stay comparable with those of start-up packets, which are decoded the same way.
    return parse_users(content.decode("utf-8", "surrogateescape"), str(path))


def is_readable_by_others(path: Path) -> bool:
    """Whether every user of this machine may read the file."""
    try:
        return bool(path.stat().st_mode & 0o004)
    except OSError:
        return False


def parse_users(text: str, name: str = "users_file") -> dict[str, Secret | None]:
    """As ``read_users``, from text; ``name`` stands in front of the line number in errors."""
    users: dict[str, Secret | None] = {}
    for number, line in enumerate(text.removeprefix("\ufeff").split("\n"), 1):
        try:
            entry = _parse_line(line.removesuffix("\r"))
            if entry is None:
                continue
            user, secret_text = entry
            if user in users:
                raise ValueError(f'user "{user}" is listed twice: keep one of the lines')
            users[user] = parse_secret(secret_text)
        except ValueError as error:
            raise UsersFileError(f"{name}, line {number}: {error}") from None
    return users


def _parse_line(line: str) -> tuple[str, str] | None:
    position = _skip_blanks(line, 0)
    if position == len(line) or line[position] == ";":
        return None
    user, position = _quoted(line, position, "the user")
    if not user or "\0" in user:
        raise ValueError("the user's name is empty or holds a zero byte")
    secret, position = _quoted(line, _skip_blanks(line, position), "the secret")
    position = _skip_blanks(line, position)
    if position < len(line) and line[position] != ";":
        raise ValueError('nothing but a comment (;) may follow "user" "secret"')
    return user, secret


def _skip_blanks(line: str, position: int) -> int:
    while position < len(line) and line[position] in _BLANKS:
        position += 1
    return position


def _quoted(line: str, position: int, what: str) -> tuple[str, int]:
    if position >= len(line) or line[position] != '"':
        raise ValueError(f'{what} must stand in double quotes: each line is "user" "secret"')
    start, parts = position + 1, []
    while True:
        end = line.find('"', start)
        if end < 0:
            raise ValueError(f"the double quote that opens {what} is not closed")
        if line[end + 1 : end + 2] != '"':
            parts.append(line[start:end])
            return "".join(parts), end + 1
        parts.append(line[start : end + 1])
        start = end + 2
