"""Settings: the schema of config.toml, checked as a whole before anything is touched.

The classes are the schema: an unknown key, a wrong type or a value out of range is a `ConfigError`
that names the file and the key. Command line options override the file by `override`.
"""

from __future__ import annotations

import json
import re
import tomllib
from difflib import get_close_matches
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin

import msgspec
from msgspec import Meta, Struct, field

from zkv.defaults import DEFAULT_ENDPOINT
from zkv.endpoint import check_to_bind, is_any
from zkv.errors import ConfigError
from zkv.reading import BadTextError, decode, read_file

Positive = Annotated[int, Meta(ge=1, le=2**62)]
Seconds = Annotated[float, Meta(gt=0, le=31_536_000)]

REPLY_OVERHEAD = 1_024
"""Upper bound on the bytes of a reply besides the values in it."""
LONGEST_SHOWN: Final = 60
"""Characters of a wrong setting that an error message shows."""


class ServerSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where the server listens, and its number of threads."""

    endpoints: Annotated[list[str], Meta(min_length=1)] = field(
        default_factory=lambda: [DEFAULT_ENDPOINT]
    )
    feed: str = "tcp://127.0.0.1:5556"
    workers: Annotated[int, Meta(ge=1, le=256)] = 2
    io_threads: Annotated[int, Meta(ge=1, le=64)] = 1


class DurabilitySettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where data is kept and how often it is saved."""

    data_dir: Annotated[str, Meta(min_length=1)] | None = "var"
    """None: data is only in memory. A file cannot set this."""
    fsync: Literal["always", "interval", "never"] = "always"
    fsync_interval: Seconds = 1.0
    segment_bytes: Annotated[int, Meta(ge=1_024, le=2**62)] = 64 * 1024 * 1024
    snapshot_interval: Seconds = 5.0


class LimitSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Limits of requests, sessions and history."""

    max_key_bytes: Annotated[int, Meta(ge=1, le=65_536)] = 1_024
    max_value_bytes: Positive = 16 * 1024 * 1024
    max_batch: Positive = 10_000
    max_reply_bytes: Positive = 64 * 1024 * 1024
    max_message_bytes: Annotated[int, Meta(ge=1_024, le=2**62)] = 64 * 1024 * 1024
    session_window: Annotated[int, Meta(ge=1, le=65_536)] = 128
    session_ttl: Seconds = 3600.0
    max_sessions: Positive = 100_000
    session_bytes: Annotated[int, Meta(ge=2 * 1024 * 1024, le=2**62)] = 256 * 1024 * 1024
    history: Annotated[int, Meta(ge=0, le=2**62)] = 100_000
    history_bytes: Annotated[int, Meta(ge=0, le=2**62)] = 64 * 1024 * 1024


class LogSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The level, format and destination of the server's log."""

    level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    format: Literal["text", "json"] = "text"
    requests: bool = True
    file: str = ""


class Settings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All settings, one field for each table of config.toml."""

    server: ServerSettings = field(default_factory=ServerSettings)
    durability: DurabilitySettings = field(default_factory=DurabilitySettings)
    limits: LimitSettings = field(default_factory=LimitSettings)
    log: LogSettings = field(default_factory=LogSettings)


def load(path: Path) -> Settings:
    """Read settings from a TOML file.

    Raises:
        ConfigError: the file cannot be read, is not TOML, or has a bad setting.
    """
    try:
        table = tomllib.loads(decode(read_file(path)))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from error
    except (tomllib.TOMLDecodeError, BadTextError) as error:
        raise ConfigError(f"{path}: not TOML: {error}") from error
    except RecursionError:
        raise ConfigError(f"{path}: not TOML: it is nested too deeply") from None
    except ValueError:  # A number with thousands of digits, which Python refuses to convert.
        raise ConfigError(f"{path}: not TOML: an int has more than 64 bits") from None
    return build(table, source=str(path))


def build(table: dict[str, Any], source: str = "settings") -> Settings:
    """Make settings from nested tables; missing keys get their defaults.

    Raises:
        ConfigError: a key is unknown, of the wrong type or out of range.
    """
    try:
        settings = msgspec.convert(table, Settings)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{source}: {_explain(error, table)}") from None
    _check(settings, source)
    return settings


def override(settings: Settings, **tables: dict[str, Any]) -> Settings:
    """Return ``settings`` with some keys replaced: ``override(s, server={"workers": 4})``.

    Raises:
        ConfigError: as `build` does.
    """
    table: dict[str, Any] = msgspec.to_builtins(settings)
    for name, values in tables.items():
        table[name] |= values
    return build(table, source="command line")


def _check(settings: Settings, source: str) -> None:
    """Check rules that relate several keys, or that a type cannot express."""
    for name, text in (
        ("durability.data_dir", settings.durability.data_dir or ""),
        ("log.file", settings.log.file),
    ):
        if "\0" in text:
            raise ConfigError(f"{source}: {name}: {text!r} holds a NUL character")
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise ConfigError(f"{source}: {name}: {text!r} is not UTF-8")
    directory = settings.durability.data_dir
    if directory is not None and directory.startswith("~"):
        raise ConfigError(
            f"{source}: durability.data_dir: {directory!r} begins with ~, which is not expanded: "
            "write the whole path"
        )
    _check_endpoints(settings.server, source)
    limits = settings.limits
    if limits.max_message_bytes < limits.max_value_bytes + limits.max_key_bytes:
        raise ConfigError(
            f"{source}: limits.max_message_bytes ({limits.max_message_bytes}) is smaller than "
            f"limits.max_value_bytes plus limits.max_key_bytes: such a value could never arrive"
        )
    if limits.max_reply_bytes < limits.max_value_bytes + REPLY_OVERHEAD:
        raise ConfigError(
            f"{source}: limits.max_reply_bytes ({limits.max_reply_bytes}) is smaller than "
            f"limits.max_value_bytes plus {REPLY_OVERHEAD}: such a value could never be read"
        )


def _check_endpoints(server: ServerSettings, source: str) -> None:
    """Check that every endpoint can be bound, and that none occurs twice."""
    places: dict[str, str] = {}
    for name, endpoint in (
        *(("server.endpoints", endpoint) for endpoint in server.endpoints),
        *([("server.feed", server.feed)] if server.feed else []),
    ):
        try:
            check_to_bind(endpoint)
        except ValueError as error:
            raise ConfigError(f"{source}: {name}: {error}") from None
        # Otherwise the system would report that it is in use, as if by another program.
        if endpoint in places and not is_any(endpoint):
            where = "there twice" if places[endpoint] == name else f"one of {places[endpoint]}, too"
            raise ConfigError(f"{source}: {name}: {endpoint!r} is {where}")
        places[endpoint] = name


def _explain(error: msgspec.ValidationError, table: dict[str, Any]) -> str:
    """Explain an error: the setting, what it may be, and what it is."""
    text, _, place = str(error).partition(" - at `")
    path = re.findall(r"\w+|\[\d+\]", place.rstrip("`").removeprefix("$"))
    name = "".join(f".{part}" if part[0] != "[" else part for part in path).removeprefix(".")
    kind: Any = Settings
    found: Any = table
    default: Any = None
    for part in path:
        if part.startswith("["):
            kind, found, default = str, found[int(part[1:-1])], DEFAULT_ENDPOINT
            continue
        setting = next(each for each in msgspec.structs.fields(kind) if each.name == part)
        kind, found, default = setting.type, found[part], setting.default
    unknown = re.fullmatch("Object contains unknown field `(.*)`", text, re.DOTALL)
    if unknown is not None:
        return _explain_unknown(f"{name}: " if name else "", unknown[1], kind)
    got = json.dumps(found, ensure_ascii=False, default=str)
    got = got if len(got) <= LONGEST_SHOWN else f"{got[:LONGEST_SHOWN]}..."
    return f"{name}: expected {_describe(kind, name, default)}, got {got}"


def _explain_unknown(where: str, name: str, table: type[Struct]) -> str:
    names = list(table.__struct_fields__)
    if table is Settings:
        for each in msgspec.structs.fields(Settings):
            if name in each.type.__struct_fields__:
                return f"unknown setting {name!r}: it belongs into the table [{each.name}]"
    near = get_close_matches(name, names, 1)
    advice = f"did you mean {near[0]}?" if near else f"there are {', '.join(names)}"
    return f"{where}unknown setting {name!r}; {advice}"


def _describe(kind: Any, name: str, default: Any) -> str:
    """Describe the values that a setting may have, with an example where that helps."""
    if isinstance(kind, type) and issubclass(kind, Struct):
        return f"a table, that is, a line [{name}] with its settings below"
    if get_origin(kind) is Union or isinstance(kind, UnionType):  # With None: not in a file.
        kind = get_args(kind)[0]
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(map(json.dumps, get_args(kind)))
    base, meta = get_args(kind) if get_origin(kind) is Annotated else (kind, Meta())
    if get_origin(base) is list:
        return f'a list with at least one text, such as ["{DEFAULT_ENDPOINT}"]'
    if base is str:
        what = "text in quotes" if meta.min_length is None else "text in quotes, and not empty"
        return f"{what}, such as {json.dumps(default)}" if default else what
    if base is bool:
        return "true or false"
    noun = "a whole number" if base is int else "a number of seconds"
    low = f"above {meta.gt}" if meta.ge is None else f"from {meta.ge}"
    return (
        f"{noun} {low} to {meta.le}" if meta.ge is not None else f"{noun} {low}, {meta.le} at most"
    )
