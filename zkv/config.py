"""Settings: what config.toml may hold, checked as a whole before anything is touched.

The classes are the schema: a key that they do not have, a wrong type or a value out of range is a
`ConfigError` that names file and key. Command line flags override the file by `override`.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct, field

from zkv.defaults import DEFAULT_ENDPOINT
from zkv.errors import ConfigError

Positive = Annotated[int, Meta(ge=1, le=2**62)]
Seconds = Annotated[float, Meta(gt=0, le=31_536_000)]

REPLY_OVERHEAD = 1_024
"""More than a reply takes beside the values in it."""
TRANSPORTS = ("tcp://", "ipc://", "inproc://")


class ServerSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where the server listens and how many threads work."""

    endpoints: Annotated[list[str], Meta(min_length=1)] = field(
        default_factory=lambda: [DEFAULT_ENDPOINT]
    )
    feed: str = "tcp://127.0.0.1:5556"
    workers: Annotated[int, Meta(ge=1, le=256)] = 2


class DurabilitySettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where data is kept and how often it is saved."""

    data_dir: Annotated[str, Meta(min_length=1)] | None = "var"
    """None, which a file cannot say: nothing is kept on disk."""
    fsync: Literal["always", "interval", "never"] = "always"
    fsync_interval: Seconds = 1.0
    segment_bytes: Annotated[int, Meta(ge=1_024, le=2**62)] = 64 * 1024 * 1024
    snapshot_interval: Seconds = 5.0


class LimitSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one request may cost."""

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
    """What is logged, how, and where."""

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
        ConfigError: the file cannot be read, is no TOML, or holds a bad setting.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not TOML: {error}") from error
    return build(table, source=str(path))


def build(table: dict[str, Any], source: str = "settings") -> Settings:
    """Settings from nested tables; what is absent takes its default.

    Raises:
        ConfigError: a key is unknown, of the wrong type or out of range.
    """
    try:
        settings = msgspec.convert(table, Settings)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{source}: {_explain(error)}") from None
    _check(settings, source)
    return settings


def override(settings: Settings, **tables: dict[str, Any]) -> Settings:
    """``settings`` with some keys replaced: ``override(s, server={"workers": 4})``.

    Raises:
        ConfigError: as `build` does.
    """
    table: dict[str, Any] = msgspec.to_builtins(settings)
    for name, values in tables.items():
        table[name] |= values
    return build(table, source="command line")


def _check(settings: Settings, source: str) -> None:
    """Rules that tie one key to another, or that a type cannot say."""
    for name, text in (
        *(("server.endpoints", endpoint) for endpoint in settings.server.endpoints),
        ("server.feed", settings.server.feed),
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
    for endpoint in settings.server.endpoints:
        _check_endpoint(endpoint, f"{source}: server.endpoints")
    if settings.server.feed:
        _check_endpoint(settings.server.feed, f"{source}: server.feed")
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


def _check_endpoint(endpoint: str, where: str) -> None:
    address = endpoint.partition("://")[2]
    if not endpoint.startswith(TRANSPORTS) or not address:
        raise ConfigError(
            f"{where}: {endpoint!r} is no endpoint; expected tcp://HOST:PORT, ipc://PATH or "
            f"inproc://NAME"
        )
    if endpoint.startswith("tcp://"):
        host, _, port = address.rpartition(":")
        if not host or not (port == "*" or (port.isascii() and port.isdigit())):
            raise ConfigError(
                f"{where}: {endpoint!r} needs a host and a port (or * for a free one)"
            )
        if port != "*" and int(port) > 65_535:
            raise ConfigError(f"{where}: the port in {endpoint!r} is over 65535")


def _explain(error: msgspec.ValidationError) -> str:
    """msgspec's message, with the key in front."""
    text, _, place = str(error).partition(" - at `")
    path = place.rstrip("`").removeprefix("$").removeprefix(".")
    text = text.replace("Object contains unknown field", "unknown setting")
    return f"{path}: {text}" if path else text
