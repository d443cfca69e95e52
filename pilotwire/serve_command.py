"""``pilotwire serve``: loads the settings, warns of risks, hands over to the supervisor."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import typer

from pilotwire.config import Loaded, SettingsError, load
from pilotwire.setting_options import CONFIG_OPTION, with_settings
from proxy.logs import Log
from proxy.settings import ProxySettings


@with_settings
def serve(
    config: Path | None = CONFIG_OPTION,
    takeover: bool = typer.Option(
        False,
        "--takeover",
        help="Take the listening sockets over from the running instance with the same control_socket; that one drains.",
    ),
    **settings: Any,
) -> int:
    """Blocks until the proxy has ended; returns its exit code."""
    from pilotwire.cli import fail

    try:
        loaded = load(config, settings)
        if takeover and not loaded.settings.control_socket:
            raise SettingsError("--takeover needs control_socket, the path that the running instance was started with")
    except SettingsError as error:
        return fail(str(error), 2)
    _warn(loaded)

    # What is imported lives as long as the process: the collector is kept off it, now and later.
    gc.disable()
    from pilotwire import supervisor

    gc.freeze()
    gc.enable()

    def reread() -> ProxySettings:
        again = load(config, settings)
        _warn(again)
        return again.settings

    return supervisor.serve(loaded.settings, reread, takeover)


def _warn(loaded: Loaded) -> None:
    """Each risk as one line of the log, in the form that the log has."""
    log = Log("supervisor", loaded.settings.log_format, loaded.settings.log_level)
    for sentence in loaded.warnings:
        log.event("settings warning", level="warning", detail=sentence)
    log.close()
