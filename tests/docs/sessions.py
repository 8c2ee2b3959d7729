"""Runs the sessions of a document, as its reader would. `test_docs` tells what they may have."""

from __future__ import annotations

import itertools
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Final, NamedTuple, Self

from tests.support import LIMIT, ROOT, environment, eventually, free_ports, read_line
from zkv.defaults import DEFAULT_ENDPOINT


def text_of(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


class Block(NamedTuple):
    """A fenced block, and what a `text` block right behind it says that it prints."""

    language: str
    text: str
    line: int
    output: str | None


FENCED: Final = re.compile(r"^```(\w*|\{[\w-]+\})\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks_of(document: str) -> list[Block]:
    text = text_of(document)
    found = list(FENCED.finditer(text))
    blocks = []
    for match, after in itertools.zip_longest(found, found[1:]):
        follows = after is not None and not text[match.end() : after.start()].strip()
        output = after[2] if after is not None and follows and after[1] == "text" else None
        line = text.count("\n", 0, match.start()) + 1
        blocks.append(Block(match[1], match[2], line, output))
    return blocks


SERVER: Final = re.compile(r"^(make run|zkv serve|zkv web|etcd|redis-server)\b")
DEFAULT_PORTS: Final = (5555, 5556, 5557, 5558, 2379, 8080, 6379)
"""Of requests, of the feed, of further members, of etcd, of the console, and of Redis."""


class Sandbox:
    """A directory in which the commands of a document work as they do beside it.

    ``.venv/bin`` holds the commands of the code under test, and ``make TARGET`` runs what the
    Makefile runs once everything is installed. Use as a context manager.
    """

    def __init__(self, directory: Path) -> None:
        self._ports = dict(zip(DEFAULT_PORTS, free_ports(len(DEFAULT_PORTS)), strict=True))
        self._directory = directory
        self._exports = ""
        self._servers: list[subprocess.Popen[bytes]] = []
        self._peer = f"http://127.0.0.1:{free_ports(1)[0]}"  # Where nodes of etcd find each other.
        self._log = directory / "server.log"
        python = shlex.quote(sys.executable)
        for name, module in (
            ("zkv", "zkv.cli.main"),
            ("zkv-cli", "zkv.cli.client"),
            ("zkv-bench", "zkv.bench.main"),
        ):
            self._install(f".venv/bin/{name}", f'exec {python} -m {module} "$@"')
        self._install(".venv/bin/python", f'exec {python} "$@"')
        what_make_runs = (
            f"{shutil.which('make')} --no-print-directory -n -C {shlex.quote(str(ROOT))}"
        )
        self._install("tools/make", f'eval "$({what_make_runs} "$@" | tail -1)"')
        directory.mkdir(exist_ok=True)
        (directory / "clients").symlink_to(ROOT / "clients")
        (directory / "config.toml").write_text(self.localise(text_of("config.toml")))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, failed: type[BaseException] | None, *_: object) -> None:
        while self._servers:  # What was started first ends last: members need etcd.
            self._servers[-1].send_signal(signal.SIGKILL if failed else signal.SIGTERM)
            self.wait_for_end(self._servers[-1], is_judged=not failed)

    def localise(self, text: str) -> str:
        """``text`` with free ports in the place of the default ones."""
        for default, port in self._ports.items():
            text = re.sub(rf"(127\.0\.0\.1:|-p |--port ){default}\b", rf"\g<1>{port}", text)
        return text

    def run(self, block: Block) -> str:
        """Run a block that ends by itself; what it printed."""
        text = self.localise(block.text)
        self._exports += "".join(
            line for line in text.splitlines(keepends=True) if line.startswith("export ")
        )
        command = [sys.executable, "-c", text]
        if block.language == "sh":
            command = ["bash", "-ec", self._exports + text]
        done = subprocess.run(
            command, cwd=self._directory, env=self._environment(), stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=3 * LIMIT,
            check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"line {block.line}: {done.stdout}"
        return done.stdout

    def start_server(self, block: Block) -> str:
        """Run a block that starts a server; what it printed up to READY."""
        with open(self._log, "ab") as log:
            server = subprocess.Popen(
                ["bash", "-ec", f"{self._exports}exec {self.localise(block.text)}"],
                cwd=self._directory, env=self._environment(), stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE, stderr=log,
            )  # fmt: skip
        self._servers.append(server)
        if block.text.startswith("etcd"):
            eventually(self._etcd_answers, "etcd answers")
            return ""
        if block.text.startswith("redis-server"):
            eventually(self._redis_listens, "Redis listens")
            return ""
        assert server.stdout is not None
        line = read_line(server.stdout).decode()
        assert line.startswith("READY "), self._log.read_text()
        return line

    def _etcd_answers(self) -> bool:
        from zkv.etcd.client import EtcdClient  # Late: it needs an extra.

        etcd = EtcdClient([self.localise("127.0.0.1:2379")])
        try:
            return etcd.status(1.0)[0].leader > 0
        finally:
            etcd.close()

    def _redis_listens(self) -> bool:
        host, port = self.localise("127.0.0.1:6379").split(":")
        try:
            socket.create_connection((host, int(port)), LIMIT).close()
        except ConnectionRefusedError:
            return False
        return True

    def wait_for_one_to_end(self) -> None:
        """Wait until one of the servers has ended, with exit status 0."""
        ended: list[subprocess.Popen[bytes]] = []

        def has_ended() -> bool:
            ended[:] = [server for server in self._servers if server.poll() is not None]
            return bool(ended)

        eventually(has_ended, "a server has ended")
        self.wait_for_end(ended[0])

    def wait_for_end(self, server: subprocess.Popen[bytes], is_judged: bool = True) -> None:
        """Wait until a server has ended, with the exit status of one that was to end."""
        self._servers.remove(server)
        expected = {0, -signal.SIGTERM}  # The latter is that of etcd.
        try:
            assert server.wait(LIMIT) in expected or not is_judged, self._log.read_text()
        finally:
            server.kill()
            server.wait()
            assert server.stdout is not None
            server.stdout.close()

    def _install(self, name: str, command: str) -> None:
        path = self._directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/usr/bin/env bash\n{command}\n")
        path.chmod(0o755)

    def _environment(self) -> dict[str, str]:
        variables = environment()
        for name in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS"):  # Of the `make test` that runs this.
            variables.pop(name, None)
        return variables | {
            "ETCD_LISTEN_PEER_URLS": self._peer,
            "ETCD_INITIAL_ADVERTISE_PEER_URLS": self._peer,
            "ETCD_INITIAL_CLUSTER": f"default={self._peer}",
            # The commands are there, as where zkv is installed.
            "PATH": ":".join(
                [f"{self._directory}/tools", f"{self._directory}/.venv/bin", os.environ["PATH"]]
            ),
            "ZKV_ENDPOINT": self.localise(DEFAULT_ENDPOINT),
        }


def matches(printed: str, shown: str) -> bool:
    """Whether ``printed`` is as shown, where ``...`` stands for anything."""
    pattern = ".*".join(re.escape(part) for part in shown.strip().split("..."))
    return re.fullmatch(pattern, printed.strip(), re.DOTALL) is not None


def run_sessions(document: str, directory: Path) -> None:
    """Run the blocks of a document in an empty directory. Fails if one prints something else."""
    with Sandbox(directory) as sandbox:
        for block in blocks_of(document):
            if block.language not in {"sh", "python"}:
                continue
            is_server = block.language == "sh" and SERVER.match(block.text)
            printed = sandbox.start_server(block) if is_server else sandbox.run(block)
            if re.search(r"zkv-cli( -e \S+)? end\b", block.text):
                sandbox.wait_for_one_to_end()
            shown = sandbox.localise(block.output or "")
            place = f"{document}, line {block.line}: {block.text}"
            assert block.output is None or matches(printed, shown), f"{place}prints:\n{printed}"
