"""The schema of the settings: which there are, and the values that each may have.

The classes are the schema: one for each table of config.toml, which may be within another one.
`SETTINGS` is derived from them, and from it the names of variables, the checks, and what SIGHUP
applies. An array of tables, such as [[cache]], comes from a file or a program as a whole: see
`ARRAYS`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from operator import attrgetter
from types import UnionType
from typing import Annotated, Any, Final, Literal, NamedTuple, Union, get_args, get_origin

import msgspec
from msgspec import Meta, Struct, field

from zkv.defaults import DEFAULT_ENDPOINT
from zkv.endpoint import (
    check_to_bind,
    check_to_connect,
    is_any,
    is_wildcard,
    split_http,
    split_store_url,
)
from zkv.errors import suggest
from zkv.keys import check_public_key

Positive = Annotated[int, Meta(ge=1, le=2**62)]
Seconds = Annotated[float, Meta(gt=0, le=31_536_000)]
LIVE: Final = Meta(extra={"live": True})
"""Marks a setting that SIGHUP changes in a running server: `zkv.server.ServerCore.apply` or the log
takes it over. All others take effect at the start."""

REPLY_OVERHEAD = 1_024
"""Upper bound on the bytes of a reply besides the values in it."""
LEAST_MEMORY: Final = 1024 * 1024
"""Bytes of the smallest memory limit."""
MOST_MACHINES: Final = 32
"""Machines with one store that can be named."""
MOST_KEYS: Final = 2
"""Secret keys of a server, at most: the old and the new one."""
MOST_OF_QUOTA: Final = 2
"""The log that is kept in etcd may take one part in this many of etcd's quota: besides it etcd
holds what is not trimmed or not compacted yet."""
LONGEST_SHOWN: Final = 60
"""Characters of a wrong setting that an error message shows."""


class ServerSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where the server listens, and its number of threads."""

    endpoints: Annotated[list[str], Meta(min_length=1)] = field(
        default_factory=lambda: [DEFAULT_ENDPOINT]
    )
    feed: str = "tcp://127.0.0.1:5556"
    ipc_mode: str = ""
    workers: Annotated[int, Meta(ge=1, le=256)] = 2
    io_threads: Annotated[int, Meta(ge=1, le=64)] = 1


class SecuritySettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who may connect."""

    secret_key_file: str | list[str] = ""
    users: str = ""
    insecure: bool = False

    @property
    def key_files(self) -> list[str]:
        """The files of the server's secret keys."""
        listed = self.secret_key_file
        return listed if isinstance(listed, list) else [listed] if listed else []


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
    max_memory: Annotated[int, Meta(ge=-1, le=2**62)] = 0
    max_topics: Annotated[int, Meta(ge=2, le=1_000_000)] = 1_000
    max_in_flight: Annotated[int, Meta(ge=1, le=1_000_000)] = 256
    max_in_flight_bytes: Positive = 16 * 1024 * 1024
    session_window: Annotated[int, Meta(ge=1, le=65_536)] = 128
    session_ttl: Seconds = 3600.0
    max_sessions: Positive = 100_000
    session_bytes: Annotated[int, Meta(ge=2 * 1024 * 1024, le=2**62)] = 256 * 1024 * 1024
    history: Annotated[int, Meta(ge=0, le=2**62)] = 100_000
    history_bytes: Annotated[int, Meta(ge=0, le=2**62)] = 64 * 1024 * 1024


class ReplicationSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How this server and other machines with the same store know each other."""

    sync: Annotated[int, Meta(ge=0, le=16)] = 0
    machines: list[str] = field(default_factory=list)
    key_file: str = ""
    server_keys: list[str] = field(default_factory=list)
    advertise: list[str] = field(default_factory=list)
    advertise_feed: str = ""


class EtcdSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How this server and etcd know each other."""

    ca: str = ""
    cert: str = ""
    key: str = ""
    user: str = ""
    password_file: str = ""


class StoreSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A store whose log is in etcd, and this member of it."""

    url: str = ""
    member: str = ""
    lease: Annotated[float, Meta(ge=2, le=60)] = 5.0
    reads: Literal["lease", "confirm"] = "lease"
    log_bytes: Annotated[int, Meta(ge=0, le=2**62)] = 64 * 1024 * 1024
    compact: bool = True
    quota_bytes: Annotated[int, Meta(ge=1024 * 1024, le=2**62)] = 2 * 1024 * 1024 * 1024
    etcd: EtcdSettings = field(default_factory=EtcdSettings)


class CacheSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A prefix under which the server evicts entries, so that they fit into a bound."""

    prefix: Annotated[str, Meta(min_length=1)]
    max_bytes: Positive
    policy: Literal["lru", "ttl"] = "lru"


class MetricsSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How to look into the server."""

    endpoint: str = ""
    slow: Annotated[float, Meta(ge=0, le=31_536_000), LIVE] = 0.01


class LogSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The level, format and destination of the server's log."""

    level: Annotated[Literal["DEBUG", "INFO", "WARNING", "ERROR"], LIVE] = "INFO"
    format: Literal["text", "json"] = "text"
    requests: Annotated[bool, LIVE] = True
    file: str = ""

    @property
    def shows_requests(self) -> bool:
        """True if there is a line for each request. These lines have the level INFO."""
        return self.requests and self.level in {"DEBUG", "INFO"}


class Settings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All settings, one field for each outer table of config.toml, and for each array of tables."""

    server: ServerSettings = field(default_factory=ServerSettings)
    security: SecuritySettings = field(default_factory=SecuritySettings)
    durability: DurabilitySettings = field(default_factory=DurabilitySettings)
    limits: LimitSettings = field(default_factory=LimitSettings)
    replication: ReplicationSettings = field(default_factory=ReplicationSettings)
    store: StoreSettings = field(default_factory=StoreSettings)
    metrics: MetricsSettings = field(default_factory=MetricsSettings)
    log: LogSettings = field(default_factory=LogSettings)
    cache: list[CacheSettings] = field(default_factory=list)


class Setting(NamedTuple):
    """One setting."""

    table: str
    """The full name of its table, such as ``store.etcd``."""
    name: str
    kind: Any
    """Its type, as msgspec takes it."""
    default: Any
    live: bool
    """True if SIGHUP changes it in a running server."""

    @property
    def variable(self) -> str:
        """The environment variable that sets it."""
        return f"{PREFIX}{full_name(self.table, self.name).replace('.', '__').upper()}"


PREFIX: Final = "ZKV_CFG_"
"""The beginning of the names of all variables that are settings."""


def full_name(table: str, name: str) -> str:
    """Return the full name of what a table holds; ``table`` is "" for the file itself."""
    return f"{table}.{name}" if table else name


def _tables(outer: str, struct: type[Struct]) -> Iterator[tuple[str, type[Struct]]]:
    """Yield the tables within one, by full name, each before those within itself."""
    for each in msgspec.structs.fields(struct):
        if isinstance(each.type, type) and issubclass(each.type, Struct):
            name = full_name(outer, each.name)
            yield name, each.type
            yield from _tables(name, each.type)


TABLES: Final[dict[str, type[Struct]]] = dict(_tables("", Settings))
"""The tables of config.toml, by their full name, such as ``store.etcd``."""

ARRAYS: Final[dict[str, type[Struct]]] = {
    each.name: get_args(each.type)[0]
    for each in msgspec.structs.fields(Settings)
    if get_origin(each.type) is list
}
"""The arrays of tables, and the class of their tables. No variable sets them, nor does SIGHUP."""


def _settings() -> Iterator[Setting]:
    for table, struct in TABLES.items():
        for each in msgspec.structs.fields(struct):
            if full_name(table, each.name) in TABLES:
                continue
            default = getattr(struct(), each.name)
            live = LIVE in get_args(each.type)
            yield Setting(table, each.name, each.type, default, live)


SETTINGS: Final[dict[str, Setting]] = {
    full_name(each.table, each.name): each for each in _settings()
}
"""All settings by their full name, such as ``server.workers``, in the order of config.toml."""


def value_of(settings: Settings, name: str) -> Any:
    """Return the value of the setting with this full name, or of an array."""
    if name in ARRAYS:
        return msgspec.to_builtins(getattr(settings, name))
    return attrgetter(name)(settings)


def plain(kind: Any) -> tuple[Any, Meta]:
    """Return a type without None and annotations, and its bounds."""
    if get_origin(kind) is Union or isinstance(kind, UnionType):  # With None: not in a file.
        kind = get_args(kind)[0]
    return get_args(kind)[:2] if get_origin(kind) is Annotated else (kind, Meta())


# --- Faults


def fault_of_name(table: str, name: str) -> str | None:
    """Explain the fault of a name: there is no such setting or table here; None if there is.

    Args:
        table: the full name of the table that holds it; "" = the file itself.
        name: its own name, as it is written there.
    """
    names = (TABLES[table] if table else Settings).__struct_fields__
    if name in names:
        return None
    here = f"{table}: " if table else ""
    for home, struct in TABLES.items():
        if name in struct.__struct_fields__ and home.startswith(full_name(table, "")):
            return f"{here}unknown setting {name!r}: it belongs into the table [{home}]"
    return f"{here}{_unknown(name, list(names))}"


def fault_of_table(table: str, values: Any) -> str | None:
    """Explain the fault of a table or an array, apart from what it holds; None if it has none."""
    if table in ARRAYS:
        return _fault_of_array(table, values)
    if not isinstance(values, dict):
        expected = f"a table, that is, a line [{table}] with its settings below"
        return f"{table}: expected {expected}, got {_shown(values)}"
    return None


def _fault_of_array(array: str, values: Any) -> str | None:
    if isinstance(values, list) and all(isinstance(each, dict) for each in values):
        return None
    expected = f"tables, that is, a line [[{array}]] for each with its settings below"
    return f"{array}: expected {expected}, got {_shown(values)}"


def faults_of_item(array: str, place: int, values: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield each fault of a table of an array: the name of the place, and the explanation."""
    names = {each.name: each for each in msgspec.structs.fields(ARRAYS[array])}
    here = f"{array}[{place}]"
    for name, value in values.items():
        if name not in names:
            yield f"{here}.{name}", f"{here}: {_unknown(name, list(names))}"
            continue
        default = "" if names[name].required else names[name].default
        setting = Setting(array, name, names[name].type, default, False)
        if fault := _fault_of_type(f"{here}.{name}", setting, value):
            yield f"{here}.{name}", fault
    for name, each in names.items():
        if each.required and name not in values:
            yield here, f"{here}.{name} is missing: expected {_describe(each.type, '', None)}"


def faults_of_whole(array: str, values: list[dict[str, Any]]) -> Iterator[tuple[str, str]]:
    """Yield each fault in how the tables of an array relate, likewise. Each by itself is good."""
    prefixes = [each["prefix"] for each in values]
    for place, prefix in enumerate(prefixes):
        for other, outer in enumerate(prefixes):
            if other != place and prefix.startswith(outer) and (prefix != outer or other < place):
                name = f"{array}[{place}].prefix"
                yield (
                    name,
                    f"{name}: {prefix!r} begins with {outer!r}, which is {array}[{other}].prefix: "
                    f"an entry can be in one only",
                )


def fault_of(name: str, value: Any) -> str | None:
    """Explain the fault of a setting; None if it has none.

    Args:
        name: its full name.
        value: its value, as TOML has it.
    """
    if fault := _fault_of_type(name, SETTINGS[name], value):
        return fault
    fault = _RULES[name](value) if name in _RULES else None
    return None if fault is None else f"{name}: {fault}"


def _fault_of_type(name: str, setting: Setting, value: Any) -> str | None:
    try:
        msgspec.convert(value, setting.kind)
    except msgspec.ValidationError as error:
        return _explain(name, setting, value, str(error))
    return None


def contradictions(settings: Settings) -> Iterator[tuple[list[str], str]]:
    """Yield each fault in how settings relate: their full names, and the explanation."""
    server, limits = settings.server, settings.limits
    if server.feed in server.endpoints and not is_any(server.feed):
        yield (
            ["server.feed", "server.endpoints"],
            f"server.feed: {server.feed!r} is one of server.endpoints, too",
        )
    if settings.replication.sync and settings.durability.fsync != "always":
        yield (
            ["replication.sync", "durability.fsync"],
            'replication.sync needs durability.fsync = "always": what standbys confirm has to be '
            "on this server's disk first",
        )
    yield from _contradictions_of_machines(settings)
    if limits.max_message_bytes < limits.max_value_bytes + limits.max_key_bytes:
        yield (
            ["limits.max_message_bytes", "limits.max_value_bytes", "limits.max_key_bytes"],
            f"limits.max_message_bytes ({limits.max_message_bytes}) is smaller than "
            "limits.max_value_bytes plus limits.max_key_bytes: such a value could never arrive",
        )
    if limits.max_reply_bytes < limits.max_value_bytes + REPLY_OVERHEAD:
        yield (
            ["limits.max_reply_bytes", "limits.max_value_bytes"],
            f"limits.max_reply_bytes ({limits.max_reply_bytes}) is smaller than "
            f"limits.max_value_bytes plus {REPLY_OVERHEAD}: such a value could never be read",
        )
    if settings.store.url:
        yield from _contradictions_of_member(settings)
    yield from _contradictions_of_store(settings.store)
    yield from _contradictions_of_etcd(settings.store.etcd)


def _contradictions_of_member(settings: Settings) -> Iterator[tuple[list[str], str]]:
    """Yield what stands against a store in etcd."""
    if settings.durability.data_dir is None:
        yield (
            ["store.url", "durability.data_dir"],
            "store.url needs durability.data_dir: a member keeps its name and a copy there",
        )
    if settings.replication.sync:
        yield (
            ["store.url", "replication.sync"],
            "replication.sync is for a store in a data directory: with store.url a majority of "
            "etcd has a write before it is answered",
        )
    for name, fault in unadvertised(settings):
        yield [name, "store.url"], fault


def _contradictions_of_store(store: StoreSettings) -> Iterator[tuple[list[str], str]]:
    most = store.quota_bytes // MOST_OF_QUOTA
    if store.log_bytes > most:
        yield (
            ["store.log_bytes", "store.quota_bytes"],
            f"store.log_bytes ({store.log_bytes}) is above half of store.quota_bytes ({most}): "
            "etcd would have no room for more",
        )


def _contradictions_of_etcd(etcd: EtcdSettings) -> Iterator[tuple[list[str], str]]:
    """Yield each setting that means nothing without another one."""
    for name, needed, why in (
        ("cert", "key", "they are a pair"),
        ("key", "cert", "they are a pair"),
        ("cert", "ca", "without it connections to etcd are not encrypted"),
        ("user", "password_file", "etcd asks for both"),
        ("password_file", "user", "etcd asks for both"),
    ):
        if getattr(etcd, name) and not getattr(etcd, needed):
            yield [f"store.etcd.{name}"], f"store.etcd.{name} needs store.etcd.{needed}: {why}"


def unadvertised(settings: Settings) -> Iterator[tuple[str, str]]:
    """Yield each setting that keeps clients on other machines from finding this server.

    It concerns a server to which they are sent: a standby, or a member of a store in etcd.

    Returns:
        The full name of the setting, and an explanation.
    """
    server, replication = settings.server, settings.replication
    for name, endpoints, advertised, missing in (
        ("server.endpoints", server.endpoints, replication.advertise, "advertise"),
        ("server.feed", [server.feed], replication.advertise_feed, "advertise_feed"),
    ):
        wild = next(filter(is_wildcard, endpoints), None)
        if wild is not None and not advertised:
            yield (
                name,
                f"{name}: {wild} is no place to which clients can be sent once this server leads: "
                f"set replication.{missing}",
            )


def _contradictions_of_machines(settings: Settings) -> Iterator[tuple[list[str], str]]:
    replication = settings.replication
    machines, sync = replication.machines, replication.sync
    if not machines:
        return
    own = {*settings.server.endpoints, *replication.advertise}
    if len(own.intersection(machines)) != 1:
        yield (
            ["replication.machines", "replication.advertise", "server.endpoints"],
            "replication.machines has to name this server once, by one of server.endpoints or "
            "replication.advertise",
        )
    if sync >= len(machines):
        yield (
            ["replication.sync", "replication.machines"],
            f"replication.sync ({sync}) is more than the standbys among {len(machines)} machines",
        )


def _fault_of_path(text: str | None) -> str | None:
    text = text or ""
    if "\0" in text:
        return f"{text!r} holds a NUL character"
    if any("\ud800" <= character <= "\udfff" for character in text):
        return f"{text!r} is not UTF-8"
    return None


def _fault_of_mode(text: str) -> str | None:
    if text and not re.fullmatch("0?[0-7]{3}", text):
        return f'{text!r} is no mode of a file: expected octal digits, such as "0660"'
    return None


def _fault_of_key_files(files: str | list[str]) -> str | None:
    listed = files if isinstance(files, list) else [files]
    if len(listed) > MOST_KEYS or (isinstance(files, list) and "" in listed) or not listed:
        return f"{_shown(files)}: expected the path of a key file, or two while keys are changed"
    return next(filter(None, map(_fault_of_directory, listed)), None)


def _fault_of_memory(most: int) -> str | None:
    if 0 < most < LEAST_MEMORY:
        return f"{most} bytes are too few: expected {LEAST_MEMORY} or more, 0 or -1"
    return None


def _fault_of_directory(text: str | None) -> str | None:
    if text is not None and text.startswith("~"):
        return f"{text!r} begins with ~, which is not expanded: write the whole path"
    return _fault_of_path(text)


def _fault_of_member(name: str) -> str | None:
    if name and not re.fullmatch("[A-Za-z0-9._-]{1,64}", name):
        return f"{_shown(name)} is no name: expected 1 to 64 letters, digits, -, . and _"
    return None


def _fault_of_endpoints(endpoints: list[str]) -> str | None:
    for place, endpoint in enumerate(endpoints):
        try:
            check_to_bind(endpoint)
        except ValueError as error:
            return str(error)
        # Otherwise the system would report that it is in use, as if by another program.
        if endpoint in endpoints[:place] and not is_any(endpoint):
            return f"{endpoint!r} is there twice"
    return None


def _fault_of_advertised(endpoints: list[str]) -> str | None:
    for endpoint in endpoints:
        try:
            check_to_connect(endpoint)
        except ValueError as error:
            return str(error)
    return None


def _fault_of_machines(endpoints: list[str]) -> str | None:
    for place, endpoint in enumerate(endpoints):
        if endpoint in endpoints[:place]:
            return f"{endpoint!r} is there twice"
    if len(endpoints) > MOST_MACHINES:
        return f"there are {len(endpoints)}: expected at most {MOST_MACHINES}"
    return _fault_of_advertised(endpoints)


def _fault_of_keys(keys: list[str]) -> str | None:
    for place, key in enumerate(keys):
        try:
            check_public_key(key)
        except ValueError as error:
            return f"number {place + 1} is {error}"
    return None


def _empty_or(check: Callable[[str], object]) -> Callable[[str], str | None]:
    """Return a rule: a text is empty, or a check takes it, which otherwise raises ValueError."""

    def rule(text: str) -> str | None:
        try:
            if text:
                check(text)
        except ValueError as error:
            return str(error)
        return None

    return rule


_RULES: Final[dict[str, Callable[[Any], str | None]]] = {
    "server.endpoints": _fault_of_endpoints,
    "server.feed": lambda feed: _fault_of_endpoints([feed] if feed else []),
    "server.ipc_mode": _fault_of_mode,
    "security.secret_key_file": _fault_of_key_files,
    "security.users": _fault_of_directory,
    "durability.data_dir": _fault_of_directory,
    "limits.max_memory": _fault_of_memory,
    "replication.key_file": _fault_of_directory,
    "replication.server_keys": _fault_of_keys,
    "replication.machines": _fault_of_machines,
    "replication.advertise": _fault_of_advertised,
    "replication.advertise_feed": _empty_or(check_to_connect),
    "store.url": _empty_or(split_store_url),
    "store.member": _fault_of_member,
    "store.etcd.ca": _fault_of_directory,
    "store.etcd.cert": _fault_of_directory,
    "store.etcd.key": _fault_of_directory,
    "store.etcd.user": _fault_of_path,
    "store.etcd.password_file": _fault_of_directory,
    "metrics.endpoint": _empty_or(split_http),
    "log.file": _fault_of_path,
}
"""Rules that a type cannot express."""


def _explain(name: str, setting: Setting, value: Any, error: str) -> str:
    """Explain an error of msgspec: the setting, what it may be, and what it is."""
    found = re.search(r"\$\[(\d+)\]", error)
    if found is None:
        expected = _describe(setting.kind, setting.default, value)
        return f"{name}: expected {expected}, got {_shown(value)}"
    item = value[int(found[1])]
    expected = _describe(str, DEFAULT_ENDPOINT, item)
    return f"{name}[{found[1]}]: expected {expected}, got {_shown(item)}"


def _unknown(name: str, names: list[str]) -> str:
    return f"unknown setting {name!r}; {suggest(name, names)}"


def _shown(value: Any) -> str:
    try:
        text = json.dumps(value, ensure_ascii=False, default=str)
    except RecursionError:  # Dotted keys nest as deeply as they are long.
        text = "what is nested too deeply"
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}..."


def _describe(kind: Any, default: Any, value: Any) -> str:
    """Describe the values that a setting may have, with an example where that helps."""
    base, meta = plain(kind)
    if get_origin(base) is Literal:
        return "one of " + ", ".join(map(json.dumps, get_args(base)))
    if get_origin(base) is list:
        least = "a list with at least one text" if meta.min_length else "a list of texts"
        return f'{least}, such as ["{DEFAULT_ENDPOINT}"]'
    if base is str:
        what = "text that is not empty" if isinstance(value, str) else "text in quotes"
        return f"{what}, such as {json.dumps(default)}" if default else what
    if base is bool:
        return "true or false"
    noun = "a whole number" if base is int else "a number of seconds"
    low = f"above {meta.gt}" if meta.ge is None else f"from {meta.ge}"
    return (
        f"{noun} {low} to {meta.le}" if meta.ge is not None else f"{noun} {low}, {meta.le} at most"
    )
