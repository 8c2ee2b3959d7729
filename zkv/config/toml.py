"""Writes settings as TOML."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from zkv.config.schema import ARRAYS, SETTINGS, TABLES, value_of

if TYPE_CHECKING:
    from zkv.config.layers import MergedSettings

_CONTROL = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")
WIDTH = 40
"""Columns of a setting, beside which its comment stands."""


def toml_value(value: Any) -> str:
    """Write the value of a setting: text, a number, true or false, a list of them, or an array."""
    if isinstance(value, list):
        return f"[{', '.join(map(toml_value, value))}]"
    if isinstance(value, dict):
        return f"{{ {', '.join(f'{name} = {toml_value(each)}' for name, each in value.items())} }}"
    if isinstance(value, str):  # JSON escapes as TOML does, except this character.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return json.dumps(value)


def toml_file(merged: MergedSettings) -> str:
    """Write all settings as a file, with a comment beside each that says where it comes from."""
    tables = []
    for table in TABLES:
        lines = [f"[{table}]"]
        for name, setting in SETTINGS.items():
            if setting.table == table:
                line = f"{setting.name} = {toml_value(value_of(merged.settings, name))}"
                lines.append(f"{line:<{WIDTH}}  # {_shown(merged.places[name])}")
        tables.append("\n".join(lines))
    for array in ARRAYS:
        for at, items in enumerate(value_of(merged.settings, array)):
            head = f"{f'[[{array}]]':<{WIDTH}}  # {_shown(merged.places[f'{array}[{at}]'])}"
            lines = [f"{name} = {toml_value(value)}" for name, value in items.items()]
            tables.append("\n".join([head, *lines]))
    return "\n\n".join(tables)


def _shown(place: str) -> str:
    """A place without the characters that a comment must not contain."""
    return _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", place)
