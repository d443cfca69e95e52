"""Whether a client's statement may be planned or run over a connection of ours.

Planning alone already runs immutable functions with constant arguments, and a run calls all the others, with the rights
of the user we connect as. A client with fewer rights could lay a function of its own under a statement, by name or by
the search_path, and have it called with ours; READ ONLY does not stop what such a function may do. So a statement is
left alone that names anything with code in it (a function, an operator, a domain, a view) which belongs to somebody who
is neither a superuser nor the user we are, in whatever schema that lies; and every statement where such a function
serves as a cast, since casts are not named.

The names are those of PostgreSQL's own scanner, in lower case: more is refused than need be, nothing less.
"""

from __future__ import annotations

from typing import Final

from planner.explore.server import Connection, NotExplorableError
from planner.memory.comments import tokens

OTHERS: Final = "others_code"
"""The reason that a statement is left alone for."""
_OPERATOR_CHARACTERS: Final = frozenset("+-*/<>=~!@#%^&|`?")
# Operators that are written as words: LIKE and its kin, BETWEEN, IN.
_SPOKEN: Final = frozenset({"=", "<>", "<", "<=", ">", ">=", "~~", "!~~", "~~*", "!~~*"})
_CODE_OF_OTHERS: Final = """
    SELECT EXISTS (
        SELECT FROM (
            SELECT proowner AS owner FROM pg_proc WHERE lower(proname) = ANY ($1::text[])
            UNION ALL SELECT oprowner FROM pg_operator WHERE oprname = ANY ($2::text[])
            UNION ALL SELECT typowner FROM pg_type WHERE typtype = 'd' AND lower(typname) = ANY ($1::text[])
            UNION ALL SELECT relowner FROM pg_class WHERE relkind = 'v' AND lower(relname) = ANY ($1::text[])
            UNION ALL SELECT proowner FROM pg_cast JOIN pg_proc ON pg_proc.oid = castfunc
        ) AS named JOIN pg_roles ON pg_roles.oid = owner
        WHERE NOT rolsuper AND rolname <> current_user
    )
"""


async def check_trusted(connection: Connection, sql: str) -> None:
    """Raises NotExplorableError when the statement is not to be run with our rights; asyncpg's errors pass through.
    One look at the catalogs, a millisecond or two."""
    names, operators = named(sql)
    async with connection.transaction(readonly=True):
        # Before anything else is named: a client's schema might be in front.
        await connection.execute("SET LOCAL search_path = pg_catalog, pg_temp")
        if await connection.fetchval(_CODE_OF_OTHERS, names, operators):
            raise NotExplorableError("it names code of another user, which would run with our rights")


def named(sql: str) -> tuple[list[str], list[str]]:
    """All names and all operators in a text. Raises NotExplorableError for one that cannot be read."""
    found = tokens(sql)
    if found is None:
        raise NotExplorableError("PostgreSQL's scanner does not take it")
    names: set[str] = set()
    operators: set[str] = set()
    for token in found:
        word = sql[token.start : token.end + 1]
        if word[:3].lower() == 'u&"':
            raise NotExplorableError("it has names with escapes in them")
        if word[0] == '"':
            names.add(word[1:-1].replace('""', '"').lower())
        elif set(word) <= _OPERATOR_CHARACTERS:
            operators.add(word)
        elif word[0].isalpha() or word[0] == "_":
            names.add(word.lower())
    return sorted(names), sorted(operators | _SPOKEN)
