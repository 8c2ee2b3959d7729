"""Settings that are changed while a server runs: what ``zkv serve`` does on SIGHUP."""

from __future__ import annotations

import logging
from collections.abc import Callable

from zkv import config
from zkv.errors import ConfigError

_log = logging.getLogger("zkv.config")


class Reloader:
    """Reads the settings of a server again, and applies those that are live.

    Args:
        settings: those that are in force.
        read: reads the settings; raises ConfigError.
        apply: takes over all settings, of which only live ones differ from the present ones.
    """

    def __init__(
        self,
        settings: config.Settings,
        read: Callable[[], config.Settings],
        apply: Callable[[config.Settings], None],
    ) -> None:
        self._settings = settings
        self._read = read
        self._apply = apply

    def reload(self) -> None:
        """Apply what has changed. Bad settings are refused as a whole; the log says why."""
        old = self._settings
        try:
            wanted = self._read()
            new = config.with_live(old, wanted)
        except ConfigError as error:
            _log.error("%s; all settings stay as they are", error)
            return
        self._apply(new)
        self._settings = new
        changes = config.changes(old, wanted)
        for name in changes:
            _log_change(name, old, wanted)
        if not changes:
            _log.info("the settings have been read again; none has changed")


def _log_change(name: str, old: config.Settings, new: config.Settings) -> None:
    before = config.toml_value(config.value_of(old, name))
    after = config.toml_value(config.value_of(new, name))
    if name in config.SETTINGS and config.SETTINGS[name].live:
        _log.info("%s changed from %s to %s", name, before, after)
    else:
        _log.warning(
            "%s changed from %s to %s, takes effect at the next start", name, before, after
        )
