"""Why a client keeps its backend between transactions, and how the server is asked whether it still must.

A pin is set by what a statement's text or command tag says, which errs towards pinning; those that the server can be
asked about are checked at the end of the transaction that set them, and again when something may have freed them.
"""

from __future__ import annotations

from typing import Final

from proxy.wire.statements import ADVISORY, HOLD, TEMPORARY

# As bits; the names are the label values of the metric.
PIN_LISTEN: Final = 1
PIN_TEMPORARY: Final = 2
PIN_ADVISORY: Final = 4
PIN_HOLD: Final = 8
PIN_PREPARE: Final = 16
PIN_SETTINGS: Final = 32  # settings that the proxy cannot carry over
PIN_LARGE: Final = 64  # an unnamed statement too long to be kept, until the next one
PIN_MEMORY: Final = 128  # more prepared statements than are kept for one client
PIN_NAMES: Final = {
    PIN_LISTEN: "listen",
    PIN_TEMPORARY: "temporary",
    PIN_ADVISORY: "advisory_lock",
    PIN_HOLD: "hold_cursor",
    PIN_PREPARE: "prepare",
    PIN_SETTINGS: "settings",
    PIN_LARGE: "large_statement",
    PIN_MEMORY: "prepared_bytes",
}
PINS_OF_TEXT: Final = ((ADVISORY, PIN_ADVISORY), (TEMPORARY, PIN_TEMPORARY), (HOLD, PIN_HOLD))
PINS_OF_TAG: Final = {
    b"LISTEN": PIN_LISTEN,
    b"PREPARE": PIN_PREPARE,
    b"LOAD": PIN_SETTINGS,
}
# After these a pin may have lost its reason.
FREEING_TAGS: Final = frozenset(
    {b"UNLISTEN", b"CLOSE CURSOR", b"CLOSE CURSOR ALL", b"DEALLOCATE", b"DISCARD TEMP", b"DROP TABLE"}
)
# What counts the reasons that a pin still has. Every name and operator is qualified: the client's search_path must
# not reach this (CVE-2025-12819).
STILL_NEEDED: Final = {
    PIN_LISTEN: b"(SELECT pg_catalog.count(*) FROM pg_catalog.pg_listening_channels())",
    PIN_ADVISORY: (
        b"(SELECT pg_catalog.count(*) FROM pg_catalog.pg_locks WHERE locktype OPERATOR(pg_catalog.=) 'advisory'"
        b" AND pid OPERATOR(pg_catalog.=) pg_catalog.pg_backend_pid())"
    ),
    PIN_HOLD: b"(SELECT pg_catalog.count(*) FROM pg_catalog.pg_cursors WHERE is_holdable)",
    PIN_PREPARE: b"(SELECT pg_catalog.count(*) FROM pg_catalog.pg_prepared_statements WHERE from_sql)",
    PIN_TEMPORARY: (
        b"(SELECT pg_catalog.count(*) FROM pg_catalog.pg_class"
        b" WHERE relnamespace OPERATOR(pg_catalog.=) pg_catalog.pg_my_temp_schema())"
        b" OPERATOR(pg_catalog.+) (SELECT pg_catalog.count(*) FROM pg_catalog.pg_proc"
        b" WHERE pronamespace OPERATOR(pg_catalog.=) pg_catalog.pg_my_temp_schema())"
        b" OPERATOR(pg_catalog.+) (SELECT pg_catalog.count(*) FROM pg_catalog.pg_type"
        b" WHERE typnamespace OPERATOR(pg_catalog.=) pg_catalog.pg_my_temp_schema())"
    ),
}
FREEABLE: Final = PIN_LISTEN | PIN_ADVISORY | PIN_HOLD | PIN_PREPARE | PIN_TEMPORARY
