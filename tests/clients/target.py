"""Where a client is pointed at, in the forms the clients want it: a DSN, libpq's environment, a JDBC URL."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote


@dataclass(frozen=True)
class Target:
    """One address to connect to, through the proxy (mode session or transaction) or straight at the server (direct)."""

    mode: str
    host: str
    port: int
    user: str
    database: str
    password: str = ""
    certificate_authority: Path | None = None

    def dsn(self, scheme: str = "postgresql", **options: str) -> str:
        """``scheme://user:password@host:port/database?options``; with a certificate, TLS and its full verification."""
        secret = f":{quote(self.password, safe='')}" if self.password else ""
        if self.certificate_authority is not None:
            options = {"sslmode": "verify-full", "sslrootcert": str(self.certificate_authority)} | options
        query = "&".join(f"{name}={quote(value, safe='')}" for name, value in options.items())
        return f"{scheme}://{self.user}{secret}@{self.host}:{self.port}/{self.database}" + (
            f"?{query}" if query else ""
        )

    def environment(self, **more: str) -> dict[str, str]:
        """The process's environment with libpq's variables, which node-postgres reads too, pointing here."""
        here = {"PGHOST": self.host, "PGPORT": str(self.port), "PGUSER": self.user, "PGDATABASE": self.database}
        if self.password:
            here["PGPASSWORD"] = self.password
        if self.certificate_authority is not None:
            here |= {"PGSSLMODE": "verify-full", "PGSSLROOTCERT": str(self.certificate_authority)}
        return self.outside() | here | more

    @staticmethod
    def outside() -> dict[str, str]:
        """The process's environment without libpq's variables, which point anywhere."""
        return {name: value for name, value in os.environ.items() if not name.startswith("PG")}
