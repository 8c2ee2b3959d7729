"""Where settings come from: a file, the environment and flags, each a layer over the one before.

A layer remembers for each of its settings where that was given, so that messages and `zkv config`
can tell. Each layer is checked by itself, also where a later one replaces a setting; how settings
relate is checked in the merged whole.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple, get_args, get_origin

import msgspec

from zkv.config.schema import (
    ARRAYS,
    PREFIX,
    SETTINGS,
    Setting,
    Settings,
    contradictions,
    fault_of,
    fault_of_name,
    fault_of_table,
    faults_of_item,
    faults_of_whole,
    full_name,
    plain,
    value_of,
)
from zkv.errors import ConfigError
from zkv.reading import BadTextError, decode, parse_toml, read_file, statements

DEFAULT: Final = "default"
"""The place of a setting that is given nowhere."""

_VARIABLES: Final = {setting.variable: name for name, setting in SETTINGS.items()}
_LEVELS: Final = 1 + max(name.count(".") for name in SETTINGS)
"""Parts of the longest name of a setting."""


class Given(NamedTuple):
    """The value of a setting, and where it was given."""

    value: Any
    place: str
    """As messages show it: ``config.toml:12``, the name of a variable, or a flag."""


class Layer:
    """The settings of one source.

    Attributes:
        given: the good ones, by full name.
        arrays: the tables of each array that it has.
        faults: an explanation of each bad one, beginning with its place.
    """

    def __init__(self) -> None:
        self.given: dict[str, Given] = {}
        self.arrays: dict[str, list[Given]] = {}
        self.faults: list[str] = []

    def add(self, name: str, value: Any, place: str) -> None:
        """Check a setting, and add it or its fault."""
        fault = fault_of(name, value)
        if fault is None:
            self.given[name] = Given(value, place)
        else:
            self.faults.append(f"{place}: {fault}")

    def add_array(
        self, array: str, tables: list[dict[str, Any]], place: Callable[[str], str]
    ) -> None:
        """Check the tables of an array, and add them, or their faults.

        Args:
            array: its name.
            tables: its tables.
            place: returns the place of one of them, such as ``cache[0]``, or of a setting in it.
        """
        each = [
            fault for at, table in enumerate(tables) for fault in faults_of_item(array, at, table)
        ]
        faults = each or list(faults_of_whole(array, tables))
        self.faults += [f"{place(name)}: {fault}" for name, fault in faults]
        self.arrays[array] = [
            Given(table, place(f"{array}[{at}]")) for at, table in enumerate(tables)
        ]


class MergedSettings(NamedTuple):
    """Settings, and where they come from: by full name, and tables of arrays as ``cache[0]``."""

    settings: Settings
    places: dict[str, str]


def merge(*layers: Layer) -> MergedSettings:
    """Merge layers: each overrides those before it. The defaults are below all of them.

    Raises:
        ConfigError: a layer has a fault, or settings contradict each other.
    """
    for layer in layers:
        if layer.faults:
            raise ConfigError(layer.faults[0])
    given = {name: each for layer in layers for name, each in layer.given.items()}
    arrays = {array: each for layer in layers for array, each in layer.arrays.items()}
    tables = _nested({name: each.value for name, each in given.items()})
    for array, items in arrays.items():
        tables[array] = [item.value for item in items]
    settings = msgspec.convert(tables, Settings)
    for names, fault in contradictions(settings):
        places = dict.fromkeys(given[name].place for name in names if name in given)
        raise ConfigError(f"{', '.join(places)}: {fault}")
    places_of = {name: given[name].place if name in given else DEFAULT for name in SETTINGS}
    for array, items in arrays.items():
        places_of |= {f"{array}[{at}]": item.place for at, item in enumerate(items)}
    return MergedSettings(settings, places_of)


def from_file(path: Path) -> Layer:
    """Read a TOML file.

    Raises:
        ConfigError: it cannot be read, or is not TOML.
    """
    try:
        text = decode(read_file(path))
        table = parse_toml(text)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from error
    except BadTextError as error:
        raise ConfigError(f"{path}: not TOML: {error}") from error
    lines = _lines(text)

    def place(name: str) -> str:
        line = lines.get(name) or lines.get(name.partition("[")[0])
        return str(path) if line is None else f"{path}:{line}"

    return _from_table(table, place)


def from_environment(variables: Mapping[str, str]) -> Layer:
    """Take the variables ``ZKV_CFG_SECTION__NAME``, whose values are as `_parse` takes them."""
    layer = Layer()
    for variable, text in variables.items():
        if variable in _VARIABLES:
            name = _VARIABLES[variable]
            layer.add(name, _parse(text, SETTINGS[name]), variable)
        elif variable.startswith(PREFIX):
            layer.faults.append(f"{variable}: {_advice(variable)}")
    return layer


def build(table: dict[str, Any], source: str = "settings") -> Settings:
    """Make settings from nested tables; missing keys get their defaults.

    Raises:
        ConfigError: a key is unknown, of the wrong type or out of range.
    """
    return merge(_from_table(table, lambda _: source)).settings


def override(settings: Settings, **tables: dict[str, Any]) -> Settings:
    """Return ``settings`` with some keys replaced: ``override(s, server={"workers": 4})``.

    Raises:
        ConfigError: as `build` does.
    """
    table: dict[str, Any] = msgspec.to_builtins(settings)
    _replace(table, tables)
    return build(table)


def _replace(table: dict[str, Any], values: Mapping[str, Any]) -> None:
    """Replace what nested tables have of ``values``; the rest of each stays."""
    for name, value in values.items():
        if isinstance(value, dict) and isinstance(table.get(name), dict):
            _replace(table[name], value)
        else:
            table[name] = value


def _nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested tables with the values of settings, which are given by full name."""
    tables: dict[str, Any] = {}
    for name, value in values.items():
        *outer, own = name.split(".")
        table = tables
        for each in outer:
            table = table.setdefault(each, {})
        table[own] = value
    return tables


def changes(old: Settings, new: Settings) -> list[str]:
    """Return the full names of the settings and arrays that differ."""
    return [name for name in [*SETTINGS, *ARRAYS] if value_of(old, name) != value_of(new, name)]


def with_live(old: Settings, new: Settings) -> Settings:
    """Return ``old`` with the values that ``new`` has for the live settings.

    Raises:
        ConfigError: the two cannot be combined.
    """
    live = {name: value_of(new, name) for name, setting in SETTINGS.items() if setting.live}
    return override(old, **_nested(live))


def _from_table(table: dict[str, Any], place: Callable[[str], str]) -> Layer:
    """Make a layer of nested tables.

    Args:
        table: as a TOML file has it.
        place: returns the place of a table, or of a setting by its full name.
    """
    layer = Layer()
    _add_table(layer, "", table, place)
    return layer


def _add_table(
    layer: Layer, table: str, values: dict[str, Any], place: Callable[[str], str]
) -> None:
    """Add what a table holds, or its faults; ``table`` is "" for the file itself."""
    for own, value in values.items():
        name = full_name(table, own)
        if fault := fault_of_name(table, own):
            layer.faults.append(f"{place(name)}: {fault}")
        elif name in SETTINGS:
            layer.add(name, value, place(name))
        elif fault := fault_of_table(name, value):
            layer.faults.append(f"{place(name)}: {fault}")
        elif name in ARRAYS:
            layer.add_array(name, value, place)
        else:
            _add_table(layer, name, value, place)


def _lines(text: str) -> dict[str, int]:
    """Return the number of the line in which each table and setting of a valid TOML file begins.

    The tables of an array are numbered, as in ``cache[0].prefix``.
    """
    lines: dict[str, int] = {}
    counts: Counter[str] = Counter()
    header, begin = "", 1
    for statement, table in statements(text):
        names = list(_names(table))
        if statement.lstrip().startswith("["):
            header = names[-1] if names else ""
            if statement.lstrip().startswith("[["):
                counts[header] += 1
                header = f"{header}[{counts[header] - 1}]"
                names.append(header)
        else:
            names = [full_name(header, name) for name in names]
        for name in names:
            lines.setdefault(name, begin)
        begin += statement.count("\n")
    return lines


def _names(table: dict[str, Any], outer: str = "", levels: int = _LEVELS) -> Iterator[str]:
    """Yield the dotted names in what one statement of TOML gives, to the level of settings."""
    for own, value in table.items():
        name = full_name(outer, own)
        yield name
        inner = value[0] if isinstance(value, list) and value else value  # [[name]]
        if isinstance(inner, dict) and levels > 1:
            yield from _names(inner, name, levels - 1)


def _parse(text: str, setting: Setting) -> Any:
    """Return the value that a variable stands for; the text itself if it is no such value.

    Text is taken as it is, without quotes. The items of a list have commas between them. Anything
    else is written as in TOML.
    """
    base, _ = plain(setting.kind)
    may_be_list = list[str] in get_args(setting.kind) and "," in text
    if get_origin(base) is list or may_be_list:
        return [item.strip() for item in text.split(",")] if text else []
    if base not in {bool, int, float}:
        return text
    import tomllib

    try:
        table = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):
        return text
    return table["value"] if len(table) == 1 else text


def _advice(variable: str) -> str:
    """Explain the fault of a variable that is no setting."""
    from difflib import get_close_matches

    known = [name.removeprefix(PREFIX) for name in _VARIABLES]
    near = get_close_matches(variable.removeprefix(PREFIX).upper(), known, 1)
    if near:
        return f"unknown setting; did you mean {PREFIX}{near[0]}?"
    return f"unknown setting; the names are {PREFIX}SECTION__NAME, as in config.toml"
