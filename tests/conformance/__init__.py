"""Conformance: public test suites run straight at PostgreSQL and through the proxy, and their outputs compared.

Nothing here knows what an output should look like. The server alone says so, twice: what differs between two runs
straight at it proves nothing about a proxy and is listed apart; all else must come out of the proxy byte for byte.

``sources`` and ``programs`` bring the suites, ``stage`` a fresh server and the proxy in front of it, ``suites/`` run
them, ``verdict`` compares, ``ledger`` holds the differences known and why, and ``runner`` puts it together for the
command (``python -m tests.conformance``) and for pytest.
"""
