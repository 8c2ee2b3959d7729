"""The documents say what is so: their sessions run, their examples are real, their links lead on.

Sessions. Blocks of these languages are run in a directory of their own, in the order in which they
stand in a document; a ``text`` block that follows with nothing in between is what they print, with
``...`` in the place of what may differ.

- ``sh``: run by a shell. A block that begins with ``make run``, ``zkv serve``, ``zkv web``,
  ``etcd`` or ``redis-server`` is a terminal of its own: what it starts goes on in the background,
  until a later block ends it. Documents with an etcd or a Redis are not run where there is none.
- ``python``: run as a program.

The documents show the default ports; here, free ones take their place in what is run and printed.

Examples. What stands in PROTOCOL.md, docs/terminal.md and docs/settings.md between a line
``<!-- generated: NAME -->`` and the next ``<!-- end -->`` is rendered from a run, or from the code.
``ZKV_UPDATE_DOCS=1`` writes it anew.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import socket
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec
import pytest
import zmq

from tests.conftest import Connect
from tests.docs.sessions import FENCED, blocks_of, run_sessions, text_of
from tests.etcd.nodes import needs_etcd
from tests.protocol import protocol_examples
from tests.support import (
    LIMIT,
    ROOT,
    Raw,
    ServerProcess,
    environment,
    pack,
    unpack,
)
from zkv import __version__, config, errors
from zkv.figures import FIGURES, Figure
from zkv.protocol.requests import REQUEST_TYPES
from zkv.users.file import UserEntry, check_users
from zkv.users.rights import ADMIN_RIGHTS

DOCUMENTS: Final = sorted(
    path.relative_to(ROOT).as_posix() for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]
)
WITH_SESSIONS: Final = (
    "README.md", "PROTOCOL.md", "DURABILITY.md",
    "docs/tutorial.md", "docs/howto.md", "docs/python.md", "docs/terminal.md",
    "docs/settings.md", "docs/sizing.md", "docs/security.md", "docs/benchmarking.md",
    "docs/nested.md", "docs/testing.md",
)  # fmt: skip
WITH_ETCD: Final = ("docs/cluster.md",)
WITH_PEERS: Final = ("docs/importing.md",)
needs_peers: Final = pytest.mark.skipif(
    not all(map(shutil.which, ("etcd", "etcdctl", "redis-server", "redis-cli"))),
    reason="NOT RUN: etcd, etcdctl, Redis or redis-cli is not installed here (make peers)",
)
WITH_CURL: Final = ("docs/console.md",)
needs_curl: Final = pytest.mark.skipif(
    shutil.which("curl") is None, reason="NOT RUN: curl is not installed here (apt install curl)"
)
WITH_FRAMEWORK: Final = {
    "docs/zarr.md": "zarr",
    "docs/django.md": "django",
    "docs/cachelib.md": "cachelib",
    "docs/dogpile.md": "dogpile",
    "docs/limits.md": "limits",
    "docs/celery.md": "celery",
}
"""Run only where the framework is installed; `make test-contrib` does so."""
UPDATING: Final = bool(os.environ.get("ZKV_UPDATE_DOCS"))


# --- Blocks and sections ---------------------------------------------------------------------


LANGUAGES: Final = {"sh", "python", "toml", "text"}
DIRECTIVES: Final = {"{toctree}", "{eval-rst}"}
"""For the generator of the guide."""


def section(document: str, heading: str) -> str:
    """What stands below a heading, up to the next one of its level or above."""
    level = heading.partition(" ")[0]
    found = re.search(
        rf"^{re.escape(heading)}$(.*?)(?=^#{{1,{len(level)}}} |\Z)",
        text_of(document),
        re.MULTILINE | re.DOTALL,
    )
    assert found is not None, f"{document} has no heading `{heading}`"
    return found[1]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_blocks_are_of_a_known_kind(document: str) -> None:
    assert {block.language for block in blocks_of(document)} <= LANGUAGES | DIRECTIVES
    assert len(re.findall(r"^```", text_of(document), re.MULTILINE)) == 2 * len(blocks_of(document))


# --- Sessions --------------------------------------------------------------------------------


def needs(module: str) -> pytest.MarkDecorator:
    reason = f"NOT RUN: {module} is not installed here (make test-contrib)"
    return pytest.mark.skipif(importlib.util.find_spec(module) is None, reason=reason)


@pytest.mark.timeout(180)
@pytest.mark.parametrize(
    "document",
    [
        *WITH_SESSIONS,
        *(pytest.param(name, marks=needs_etcd) for name in WITH_ETCD),
        *(pytest.param(name, marks=needs_peers) for name in WITH_PEERS),
        *(pytest.param(name, marks=needs_curl) for name in WITH_CURL),
        *(pytest.param(name, marks=needs(module)) for name, module in WITH_FRAMEWORK.items()),
    ],
)
def test_sessions_run_as_shown(document: str, tmp_path: Path) -> None:
    run_sessions(document, tmp_path)


def test_the_guide_is_built_without_a_warning(tmp_path: Path) -> None:
    built = subprocess.run(
        ["make", "--no-print-directory", "docs", f"DOCS={tmp_path}"],
        cwd=ROOT, capture_output=True, text=True, timeout=LIMIT * 4, check=False,
    )  # fmt: skip
    assert built.returncode == 0, built.stderr
    assert 'url=docs/index.html"' in (tmp_path / "index.html").read_text()
    page = (tmp_path / "docs" / "tutorial.html").read_text()
    assert "output.css" in page  # Tells what is printed from what is typed.
    assert "copybutton.js" in page


# --- What is generated from a run ------------------------------------------------------------

GENERATED: Final = re.compile(
    r"(?P<begin><!-- generated: (?P<name>[\w -]+) -->\n)(?P<text>.*?)(?P<end><!-- end -->)",
    re.DOTALL,
)


def check_generated(document: str, rendered: dict[str, str]) -> None:
    """Compare the generated blocks of a document with ``rendered``; write them when updating."""
    text = text_of(document)
    shown = {match["name"]: match["text"] for match in GENERATED.finditer(text)}
    missing = [f"<!-- generated: {name} -->\n<!-- end -->" for name in rendered.keys() - shown]
    assert not missing, "\n".join([f"{document} needs a place for these:", *missing])
    assert not shown.keys() - rendered, f"{document}: nobody renders {shown.keys() - rendered}"
    if UPDATING:
        text = GENERATED.sub(
            lambda match: f"{match['begin']}\n{rendered[match['name']]}\n\n{match['end']}", text
        )
        (ROOT / document).write_text(text, encoding="utf-8")
        return
    stale = [name for name in rendered if shown[name].strip() != rendered[name].strip()]
    assert not stale, f"{document} is stale; write it anew with ZKV_UPDATE_DOCS=1: {stale}"


@pytest.fixture
def fresh_server(tmp_path: Path) -> Iterator[ServerProcess]:
    """A server with the settings of config.toml, but for its port."""
    with ServerProcess(tmp_path / "server", config=text_of("config.toml")) as server:
        yield server


def test_the_examples_of_the_protocol_are_real(
    fresh_server: ServerProcess, connect: Connect
) -> None:
    rendered = {
        block: protocol_examples.render_examples(exchanges)
        for block, exchanges in protocol_examples.run(connect(fresh_server.endpoint)).items()
    }
    assert fresh_server.wait() == 0
    fresh_server.start()
    rendered["frames"] = render_frames(connect(fresh_server.endpoint, zmq.DEALER))
    rendered["feed"] = render_feed(connect(fresh_server.endpoint))
    rendered["wire"] = render_wire(fresh_server.endpoint)
    rendered["ops"] = protocol_examples.render_ops()
    check_generated("PROTOCOL.md", rendered)


def render_frames(client: Raw) -> str:
    request = [b"", pack({"op": "PUT", "key": "answer", "value": 42, "id": 1})]
    client.send_frames(request)
    return protocol_examples.render_frames(request=request, reply=client.receive_frames())


def render_feed(client: Raw) -> str:
    """What a follower gets of one write: the change, and the heartbeat behind it."""
    with zmq.Context() as context, context.socket(zmq.SUB) as follower:
        follower.linger = 0
        follower.rcvtimeo = round(LIMIT * 1000)
        for prefix in (b"vis", b"\0"):
            follower.subscribe(prefix)
        follower.connect(client.ok(op="INFO")["feed"])
        follower.recv_multipart()  # A heartbeat: it has joined.
        client.ok(op="INCR", key="visits")
        change = follower.recv_multipart()
        while change[0] == b"\0":  # Heartbeats also come by the clock.
            change = follower.recv_multipart()
        topic, body = follower.recv_multipart()
        store = protocol_examples.PINNED_TERM["store"]  # It is made at random.
        heartbeat = [topic, pack(unpack(body) | {"store": store})]
        return protocol_examples.render_feed(change=change, heartbeat=heartbeat)


def render_wire(endpoint: str) -> str:
    """What goes over TCP when a client without a ZeroMQ library asks for a key."""
    host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
    body = pack({"op": "GET", "key": "a"})
    with socket.create_connection((host, int(port)), timeout=LIMIT) as connection:
        stream = connection.makefile("rb")

        def frame() -> list[tuple[str, bytes, str]]:
            head = stream.read(2)
            kind = {0: "the last frame", 1: "a frame, and more to come", 4: "a command"}[head[0]]
            meaning = f"{kind}, of {head[1]} byte{'' if head[1] == 1 else 's'}"
            return [("server", head, meaning), ("", stream.read(head[1]), "")]

        greeting = b"\xff" + bytes(8) + b"\x7f\x03\0NULL" + bytes(48)
        ready = b"\x05READY\x0bSocket-Type\0\0\0\x03REQ"
        connection.sendall(greeting)
        rows = greeting_rows("client", greeting) + greeting_rows("server", stream.read(64))
        connection.sendall(bytes([4, len(ready)]) + ready)
        rows += [("client", bytes([4, len(ready)]), f"a command, of {len(ready)} bytes")]
        rows += [("", ready[:6], '"READY"'), ("", ready[6:], 'the property "Socket-Type": "REQ"')]
        rows += frame()
        connection.sendall(b"\x01\0\0" + bytes([len(body)]) + body)
        rows += [
            ("client", b"\x01\0", "a frame, and more to come, of 0 bytes: the delimiter"),
            ("client", bytes([0, len(body)]), f"the last frame, of {len(body)} bytes: the body"),
            ("", body, ""),
            *frame()[:1], *frame(),
        ]  # fmt: skip
    return "\n".join(["```text", *wire_lines(rows), "```"])


def greeting_rows(who: str, greeting: bytes) -> list[tuple[str, bytes, str]]:
    return [
        (who, greeting[:10], "the signature"),
        ("", greeting[10:12], f"the version, {greeting[10]}.{greeting[11]}"),
        ("", greeting[12:32], 'the mechanism, "NULL"'),
        ("", greeting[32:], "zeros: no server of a mechanism, and filler"),
    ]


def wire_lines(rows: list[tuple[str, bytes, str]]) -> Iterator[str]:
    """Who sends which bytes, 16 in a line."""
    for who, data, meaning in rows:
        for at in range(0, len(data), 16):
            part = data[at : at + 16].hex(" ")
            head, tail = ("", "") if at else (who, meaning)
            yield f"{head:<8}{part:<48} {tail}".rstrip()


def test_every_op_is_documented_with_an_example() -> None:
    assert set(protocol_examples.EXAMPLES) - protocol_examples.NO_OPS == set(REQUEST_TYPES)
    for op in REQUEST_TYPES:
        assert f"<!-- generated: {op} -->" in section("PROTOCOL.md", f"### {op}")


@pytest.mark.parametrize("op", REQUEST_TYPES)
def test_every_field_of_a_request_is_explained(op: str) -> None:
    explained = prose("PROTOCOL.md", f"### {op}") + prose("PROTOCOL.md", "## Requests")
    for name in protocol_examples.inspected(REQUEST_TYPES[op]):
        assert f"`{name}`" in explained, f"{op}: {name}"


def test_every_field_of_a_reply_is_explained(fresh_server: ServerProcess, connect: Connect) -> None:
    everywhere = prose("PROTOCOL.md", "## Replies") + prose("PROTOCOL.md", "## Failures")
    for block, exchanges in protocol_examples.run(connect(fresh_server.endpoint)).items():
        for exchange in exchanges:
            op, explained = exchange.example.fields.get("op", block), everywhere
            if op in REQUEST_TYPES:
                explained += prose("PROTOCOL.md", f"### {op}")
            for name in unpack(exchange.reply):
                assert f"`{name}`" in explained, f"{block}: {name}"


def prose(document: str, heading: str) -> str:
    """What stands below a heading, without what is generated."""
    return GENERATED.sub("", section(document, heading))


def test_every_code_is_documented() -> None:
    table = re.findall(
        r"^\| `(\w+)` \|.*\| (true|false) \|$", section("PROTOCOL.md", "## Failures"), re.M
    )
    raised = {cls.code: cls.retry for cls in leaves(errors.RequestError)}
    assert {code: retry == "true" for code, retry in table} == raised


def leaves(cls: type[errors.RequestError]) -> Iterator[type[errors.RequestError]]:
    for subclass in cls.__subclasses__():
        yield subclass
        yield from leaves(subclass)


def test_the_commands_of_zkv_cli_are_listed() -> None:
    printed = run_module("zkv.cli.client", "--help")
    commands = printed.partition("commands, each with an example:\n")[2].partition("\n\n")[0]
    lines = [line[2:].rstrip() for line in commands.splitlines() if "$ zkv-cli" not in line]
    assert lines, printed
    check_generated("docs/terminal.md", {"zkv-cli": "\n".join(["```text", *lines, "```"])})


def test_the_figures_are_listed() -> None:
    lines = [
        f"| `{figure.name}` | {figure.kind} | {places(figure)} | {figure.unit} | {figure.help} |"
        for figure in FIGURES
    ]
    head = ["| metric | kind | INFO | unit | meaning |", "|---|---|---|---|---|"]
    check_generated("docs/monitoring.md", {"figures": "\n".join([*head, *lines])})


def places(figure: Figure) -> str:
    return ", ".join(f"`{path}`" for path in figure.paths)


@pytest.mark.parametrize("figure", FIGURES, ids=lambda figure: figure.name)
def test_every_figure_of_info_is_explained(figure: Figure) -> None:
    explained = prose("PROTOCOL.md", "### INFO")
    for name in [*figure.paths, *figure.members]:
        assert f"`{name.rpartition('.')[2]}`" in explained or name.startswith("limits."), name


def run_module(*arguments: str) -> str:
    return subprocess.run(
        [sys.executable, "-m", *arguments], env=environment() | {"COLUMNS": "100"}, cwd=ROOT,
        capture_output=True, text=True, timeout=LIMIT, check=True,
    ).stdout  # fmt: skip


# --- config.toml -----------------------------------------------------------------------------


def test_config_holds_every_setting_with_its_default() -> None:
    defaults = msgspec.to_builtins(config.Settings())
    tables = {name: table for name, table in defaults.items() if name not in config.ARRAYS}
    assert tomllib.loads(text_of("config.toml")) == tables


def test_config_has_an_example_of_each_array() -> None:
    """In a comment, since there is none by default."""
    shown = re.findall(r"^# (\[\[\w+\]\]|\w+ = .+)$", text_of("config.toml"), re.MULTILINE)
    examples = tomllib.loads("\n".join(shown))
    assert examples.keys() == config.ARRAYS.keys()
    for name, (example,) in examples.items():
        assert example == msgspec.to_builtins(getattr(config.build(examples), name)[0])
        assert example.keys() == set(config.ARRAYS[name].__struct_fields__)


def test_config_loads() -> None:
    assert config.merge(config.from_file(ROOT / "config.toml")).settings == config.Settings()


def test_config_explains_every_setting() -> None:
    lines = text_of("config.toml").splitlines()
    for number, line in enumerate(lines):
        if re.match(r"\w+ = ", line):
            assert lines[number - 1].startswith("# "), line


def test_config_tells_which_settings_sighup_changes() -> None:
    explained = re.findall(r"((?:^#.*\n)+)(\w+) = ", text_of("config.toml"), re.MULTILINE)
    changed = {name for comment, name in explained if "SIGHUP changes it." in comment}
    assert changed == {setting.name for setting in config.SETTINGS.values() if setting.live}


def test_the_settings_are_listed() -> None:
    lines = ["| setting | variable | default | after a change |", "|---|---|---|---|"]
    for name, setting in config.SETTINGS.items():
        default = config.toml_value(setting.default)
        when = "SIGHUP" if setting.live else "restart"
        lines.append(f"| `{name}` | `{setting.variable}` | `{default}` | {when} |")
    check_generated("docs/settings.md", {"settings": "\n".join(lines)})


def test_settings_in_documents_load() -> None:
    for document in DOCUMENTS:
        for block in blocks_of(document):
            if block.language == "toml":
                table = tomllib.loads(block.text)
                if "users" in table:
                    check_users(table)
                else:
                    config.build(table, source=f"{document}, line {block.line}")


def test_the_guide_explains_every_field_and_right_of_a_user() -> None:
    explained = re.findall(r"^\| `(\w+)` \|", section("docs/security.md", "### The file"), re.M)
    assert explained == [*UserEntry.__struct_fields__, *ADMIN_RIGHTS]


# --- The packages in ARCHITECTURE.md ---------------------------------------------------------


def test_packages_stand_in_the_order_of_the_import_contract() -> None:
    contracts = tomllib.loads(text_of("pyproject.toml"))["tool"]["importlinter"]["contracts"]
    names = [name for layer in contracts[0]["layers"] for name in re.findall(r"\w+", layer)]
    built = [
        name for name in names if any(ROOT.glob(f"zkv/{name}/")) or any(ROOT.glob(f"zkv/{name}.py"))
    ]
    table = re.findall(r"^\| `(\w+)` \|", section("ARCHITECTURE.md", "## Packages"), re.M)
    assert table == built


# --- Length ----------------------------------------------------------------------------------


def test_pages_that_are_read_first_stay_short() -> None:
    assert len(text_of("README.md").splitlines()) <= 150
    assert len(text_of("ARCHITECTURE.md").encode()) <= 16 * 1024


# --- Links and names -------------------------------------------------------------------------

LINK: Final = re.compile(r"\[[^\]]+\]\(([^)\s]+)\)")


def anchors(path: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", FENCED.sub("", path.read_text(encoding="utf-8")), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


WITH_LINKS: Final = [
    *DOCUMENTS,
    *sorted(
        path.relative_to(ROOT).as_posix()
        for pattern in ("clients/README.md", "clients/*/README.md", "tests/*/README.md")
        for path in ROOT.glob(pattern)
    ),
]


@pytest.mark.parametrize("document", WITH_LINKS)
def test_links_lead_somewhere(document: str) -> None:
    path = ROOT / document
    for link in LINK.findall(FENCED.sub("", text_of(document))):
        if link.startswith("https://"):
            continue
        name, _, anchor = link.partition("#")
        target = path.parent / name if name else path
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("document", DOCUMENTS)
def test_files_that_are_named_exist(document: str) -> None:
    text = FENCED.sub("", text_of(document))
    for name in re.findall(r"`((?:zkv|tests|clients|requirements)/[\w./*-]*)`", text):
        assert list(ROOT.glob(name.rstrip("/"))), name


@pytest.mark.parametrize("document", DOCUMENTS)
def test_targets_of_make_that_are_named_exist(document: str) -> None:
    targets = set(re.findall(r"^([a-z-]+):", text_of("Makefile"), re.M))
    assert set(re.findall(r"[`\n]make ([a-z-]+)", text_of(document))) <= targets


def test_changelog_knows_this_version() -> None:
    versions = re.findall(r"^## \[([^\]]+)\]", text_of("CHANGELOG.md"), re.M)
    assert "Unreleased" in versions or __version__ in versions
