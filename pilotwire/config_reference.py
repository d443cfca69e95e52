"""docs/configuration.md, made from the settings' own declarations."""

from __future__ import annotations

from proxy.options import OptionDoc, choices
from proxy.settings import ProxySettings, docs

_HEAD = """\
# Settings

<!-- Written by `pilotwire config-reference > docs/configuration.md`; change proxy/settings.py instead. -->

Every setting can be given in three ways; the first one found counts:

1. on the command line: `pilotwire serve --pool-size 30`
2. in the environment: `PILOTWIRE_POOL_SIZE=30` (an empty variable counts as not set)
3. in a TOML file named by `--config` or `PILOTWIRE_CONFIG`: `pool_size = 30`

`pilotwire check` takes the same options, shows the value of each setting and where it came from, and names the risks.

Secrets are never taken from the command line. A file that holds one should have mode 0600. Paths in a TOML file are
relative to that file. Durations are seconds or have a unit (`250ms`, `30s`, `5min`, `1h`, `2d`); sizes are bytes or
have one (`64kB`, `1MB`, `2GB`, in powers of 1024). Lists are TOML arrays, or separated by commas elsewhere.

What a DSN's options say (`sslmode`, `sslrootcert`, `sslcert`, `sslkey`, `target_session_attrs`, `connect_timeout`,
`passfile`) counts as if the setting had been given in the same place as the DSN.

On SIGHUP pilotwire reads the file, the passfile, the users file and certificates again, applies what it can while
running, and says which changes need a restart. Settings that are wrong, and a users file that is, are refused and
change nothing; a certificate that is broken leaves the old one in force. Mend such a file soon: while it is broken a
worker process that died cannot be started again, which is tried every few seconds (`worker_not_started` in the log says
why), and `/readyz` fails when none is left. `pilotwire serve --takeover` restarts without refusing a connection.
"""


def reference() -> str:
    """The whole document."""
    parts = [_HEAD]
    group = ""
    for name, doc in docs().items():
        if doc.group != group:
            group = doc.group
            parts.append(f"## {group}\n")
        parts.append(_section(name, doc))
    return "\n".join(parts)


def _section(name: str, doc: OptionDoc) -> str:
    field = ProxySettings.model_fields[name]
    names = choices(field.annotation)
    bounds = {type(item).__name__.lower(): item for item in field.metadata}
    rows = [
        f"### `{name}`\n",
        f"{field.description}\n",
        f"- Default: {doc.default}",
        f"- Unit: {doc.unit}" + (f" ({', '.join(names)})" if names else "") + _range(bounds),
        f"- Why: {doc.reason}",
        f"- Careful: {doc.warning}",
        f"- Changes on SIGHUP: {'yes' if doc.reload else 'no, at a restart'}",
        "",
    ]
    return "\n".join(rows)


def _range(bounds: dict[str, object]) -> str:
    words = (("ge", "at least"), ("gt", "above"), ("le", "at most"))
    found = [f"{word} {getattr(bounds[key], key)}" for key, word in words if key in bounds]
    return f" ({', '.join(found)})" if found else ""


def config_reference() -> None:
    """Print the document."""
    print(reference(), end="")
