"""The clients in other languages: what they need, how they are built, and how they are driven.

Each directory in clients/ with a ``client.toml`` is a language; clients/README.md says what is in
it. Nothing is installed here. What has to be built is built once for each state of the sources,
into ``.cache/clients``.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any, Final, Self

from tests.support import LIMIT, ROOT, read_line

CLIENTS: Final = ROOT / "clients"
CACHE: Final = ROOT / ".cache" / "clients"
LACKS: Final = frozenset(
    {
        "bin", "utf8", "int64", "uint64", "float32", "whole_float", "nan", "nil", "empty_map",
        "map_keys", "array_keys", "map_in_key", "duplicate_keys", "ext", "reserved_ext",
        "timestamp", "bad_timestamp", "deep", "large",
    }
)  # fmt: skip
"""What the msgpack library of a language may not be capable of: see clients/README.md."""
NO_VARIABLES: Final[Mapping[str, str]] = MappingProxyType({})
BUILD_LIMIT: Final = 600.0
"""Seconds that a compiler may take."""


class BuildError(Exception):
    """A client could not be built; the message is what the compiler said."""


class Language:
    """A client in some language.

    Args:
        directory: in clients/.
    """

    def __init__(self, directory: Path) -> None:
        with open(directory / "client.toml", "rb") as file:
            settings: dict[str, Any] = tomllib.load(file)
        self.directory = directory
        self.name: str = settings.pop("language")
        self.packages: list[str] = settings.pop("packages")
        self.install: str = settings.pop("install", "")
        self.lacks = frozenset(settings.pop("lacks"))
        self.watch: str = settings.pop("watch", "")
        self.curve: bool = settings.pop("curve", True)
        self.lists: bool = settings.pop("lists", False)
        self._present: str = settings.pop("present")
        self._build: str = settings.pop("build", "")
        self._run: str = settings.pop("run")
        self.unknown = sorted(settings)

    def __repr__(self) -> str:
        return self.name

    @cached_property
    def is_present(self) -> bool:
        """Whether all that it needs is installed on this machine."""
        return self.shell(self._present, check=False).returncode == 0

    @property
    def sources(self) -> list[Path]:
        """Its files, but for what packages bring."""
        files = (path for path in self.directory.rglob("*") if path.is_file())
        return sorted(
            path for path in files
            if not {"node_modules", "__pycache__"}.intersection(path.parts)
        )  # fmt: skip

    @cached_property
    def out(self) -> Path:
        """What was built; builds it if that has not been done. Raises BuildError."""
        digest = hashlib.sha256()
        for path in self.sources:
            if path.suffix != ".md":
                digest.update(path.name.encode() + b"\0" + path.read_bytes())
        out = CACHE / f"{self.directory.name}-{digest.hexdigest()[:16]}"
        if self._build and not out.exists():
            CACHE.mkdir(parents=True, exist_ok=True)
            for old in CACHE.glob(f"{self.directory.name}-*"):
                shutil.rmtree(old, ignore_errors=True)
            with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
                done = self.shell(self._build, out=Path(scratch, "out"), check=False)
                if done.returncode:
                    raise BuildError(f"{self._build}:\n{done.stdout}")
                with contextlib.suppress(OSError):  # another process has built it meanwhile
                    os.replace(Path(scratch, "out"), out)
        return out

    def build(self) -> None:
        """Build it now, if need be: before anything is started that would have to wait."""
        assert self.out.name

    def environment(self, out: Path | None = None) -> dict[str, str]:
        """What its commands may use beside what every program has."""
        utf8 = {"LC_ALL": "C.UTF-8"}  # Java, for one, reads its command line by the locale.
        return os.environ | utf8 | {"OUT": str(out or self.out), "PYTHON": sys.executable}

    def shell(
        self, command: str, *, out: Path | None = None, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run a command of client.toml other than ``run``, in the client's directory."""
        out = out or Path(os.devnull)
        if out.name == "out":
            out.mkdir()
        return subprocess.run(
            ["sh", "-c", command], cwd=self.directory, env=self.environment(out), check=check,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=BUILD_LIMIT,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip

    def command(self, *arguments: str, program: str = "") -> list[str]:
        """The command line of its program with these arguments, to be run in its directory."""
        return ["sh", "-c", f'exec {program or self._run} "$@"', "client", *arguments]

    def run(
        self,
        endpoint: str,
        *arguments: str,
        stdin: bytes = b"",
        timeout: float = LIMIT,
        env: Mapping[str, str] = NO_VARIABLES,
    ) -> subprocess.CompletedProcess[bytes]:
        """Run its program to the end, with these variables beside its usual ones."""
        return subprocess.run(
            self.command("-e", endpoint, "--timeout", f"{timeout:g}", *arguments),
            cwd=self.directory, env=self.environment() | dict(env), input=stdin,
            capture_output=True,
            timeout=LIMIT * 3, check=False,
        )  # fmt: skip


@contextlib.contextmanager
def watching(
    language: Language, endpoint: str, prefix: str, env: Mapping[str, str] = NO_VARIABLES
) -> Iterator[IO[bytes]]:
    """The standard output of a client's watcher, once that follows a prefix; see `watcher`."""
    with watcher(language, endpoint, prefix, env) as process:
        assert process.stdout is not None
        yield process.stdout


@contextlib.contextmanager
def watcher(
    language: Language, endpoint: str, prefix: str, env: Mapping[str, str] = NO_VARIABLES
) -> Iterator[subprocess.Popen[bytes]]:
    """A client's watcher, once that follows a prefix.

    Args:
        language: the client's.
        endpoint: of the server.
        prefix: of the keys.
        env: variables beside its usual ones.
    """
    with subprocess.Popen(
        language.command(endpoint, prefix, program=language.watch),
        cwd=language.directory, env=language.environment() | dict(env),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        assert process.stderr is not None
        try:
            assert read_line(process.stderr).startswith(b"following ")
            yield process
        finally:
            process.kill()


def languages() -> list[Language]:
    """All that there are."""
    return [Language(path.parent) for path in sorted(CLIENTS.glob("*/client.toml"))]


class Driver:
    """A client's program that does what it is told: its command ``call``. A context manager.

    Args:
        language: the client.
        endpoint: of the server.
        timeout: seconds that the client waits for each reply.
        env: variables beside its usual ones.
    """

    def __init__(
        self,
        language: Language,
        endpoint: str,
        timeout: float = LIMIT,
        env: Mapping[str, str] = NO_VARIABLES,
    ) -> None:
        self.language = language
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  closed with the rest
        self._process = subprocess.Popen(
            language.command("-e", endpoint, "--timeout", f"{timeout:g}", "call"),
            cwd=language.directory, env=language.environment() | dict(env),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors,
        )  # fmt: skip
        self._buffer = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, failed: type[BaseException] | None, *_: object) -> None:
        self._stdin.close()
        try:
            status = self._process.wait(LIMIT)
        except subprocess.TimeoutExpired:
            self._process.kill()
            status = self._process.wait()
        errors = self.errors()
        self._stdout.close()
        self._errors.close()
        assert failed or status == 0, f"{self.language}: exit status {status}: {errors}"

    def errors(self) -> str:
        """What it has written to standard error."""
        self._errors.seek(0)
        return self._errors.read().decode(errors="replace")[-2000:]

    def exchange(self, body: bytes) -> bytes:
        """Have it send a request, and give the reply that it tells of."""
        self.send(body)
        return self.receive()

    def send(self, body: bytes) -> None:
        """Hand it a request."""
        try:
            self._stdin.write(body.hex().encode() + b"\n")
            self._stdin.flush()
        except BrokenPipeError:
            raise AssertionError(f"{self.language} has ended: {self.errors()}") from None

    def receive(self, limit: float = LIMIT * 3) -> bytes:
        """The next reply that it tells of."""
        deadline = time.monotonic() + limit
        pieces = [self._buffer]
        while b"\n" not in pieces[-1]:
            left = deadline - time.monotonic()
            ready, _, _ = select.select([self._stdout], [], [], max(0.0, left))
            piece = os.read(self._stdout.fileno(), 1 << 20) if ready else b""
            if not piece:
                what = "has ended" if ready else f"says nothing for {limit:g} s"
                raise AssertionError(f"{self.language} {what}: {self.errors()}")
            pieces.append(piece)
        line, _, self._buffer = b"".join(pieces).partition(b"\n")
        return bytes.fromhex(line.decode())

    @property
    def _stdin(self) -> IO[bytes]:
        assert self._process.stdin is not None
        return self._process.stdin

    @property
    def _stdout(self) -> IO[bytes]:
        assert self._process.stdout is not None
        return self._process.stdout
