"""An archiver that follows a server: as a process, or as a thread of the tests."""

from __future__ import annotations

import subprocess
import threading
from pathlib import Path
from typing import IO, Any, Self

from tests.support import LIMIT, environment, eventually, read_line, zkv_command
from zkv.broker.upstream import Upstream
from zkv.durability import archive, moments
from zkv.durability.archive import Archive
from zkv.durability.files import Files
from zkv.durability.frozen_view import FrozenView
from zkv.durability.moments import Span
from zkv.replication.archiver import Archiver


def parts(directory: Path) -> list[Path]:
    """The parts of an archive."""
    return [directory / name for name in archive.part_names(Files(), directory)]


def reasons(directory: Path) -> list[str]:
    """Why each part was begun."""
    return [archive.read_part(Files(), part).why for part in parts(directory)]


def spans(directory: Path) -> list[Span]:
    """The moments that each part has."""
    found = []
    for part in parts(directory):
        with FrozenView(Files(), part) as view:
            found.append(moments.span(view, archive.read_part(Files(), part).until))
    return found


def newest(directory: Path) -> Path:
    """The newest part."""
    return parts(directory)[-1]


def await_revision(directory: Path, rev: int) -> None:
    """Wait until an archive has a revision."""
    eventually(
        lambda: (
            (directory / archive.FILE).exists()
            and parts(directory)
            and spans(directory)[-1].last_rev >= rev
        ),
        f"{directory} has revision {rev}",
    )


class ArchiverProcess:
    """A real ``zkv archive``. Use as a context manager.

    Args:
        endpoint: of the server.
        directory: the archive.
        *flags: further ones.
    """

    def __init__(self, endpoint: str, directory: Path, *flags: str) -> None:
        self.directory = directory
        self._log_path = directory.with_suffix(".log")
        self._command = zkv_command("archive", "--from", endpoint, *flags, str(directory))
        self.process: subprocess.Popen[bytes]

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def start(self, ready: bool = True) -> None:
        """Start the process; wait for its READY line, if it is to be ready."""
        with open(self._log_path, "ab") as log:
            self.process = subprocess.Popen(
                self._command, env=environment(), stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE, stderr=log,
            )  # fmt: skip
        if ready:
            line = read_line(self._stdout)
            assert line.startswith(b"READY "), f"{line!r}; log:\n{self.log()[-2000:]}"

    def log(self) -> str:
        """What it has written to standard error, in all its starts."""
        return self._log_path.read_text(encoding="utf-8")

    def stop(self) -> int:
        """End it in order; its exit status."""
        self.process.terminate()
        return self.wait()

    def wait(self) -> int:
        """Wait for its end; its exit status."""
        try:
            return self.process.wait(LIMIT)
        finally:
            self._stdout.close()

    def kill(self) -> None:
        """End it at once. Harmless when it has ended."""
        self.process.kill()
        self.process.wait()
        self._stdout.close()

    @property
    def _stdout(self) -> IO[bytes]:
        assert self.process.stdout is not None
        return self.process.stdout


class ArchiverThread:
    """An archiver in this process. Use as a context manager.

    Args:
        endpoint: of the server.
        directory: the archive.
        files: its disk.
        keep: ms to keep; None = all.
        **options: of `Archiver`.
    """

    def __init__(
        self,
        endpoint: str,
        directory: Path,
        files: Files | None = None,
        keep: int | None = None,
        **options: Any,
    ) -> None:
        files = files or Files()
        self._ready = threading.Event()
        self._source = Upstream([endpoint])
        self._archive = Archive(files, directory, "archiver")
        self.archiver = Archiver(
            files, self._archive, self._source, keep, self._ready.set, **options
        )
        self._thread = threading.Thread(target=self.archiver.run)

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(LIMIT)
        return self

    def __exit__(self, *_: object) -> None:
        self.archiver.stop()
        self._thread.join(LIMIT)
        assert not self._thread.is_alive()
        self._archive.close()
        self._source.close()
