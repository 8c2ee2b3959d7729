"""A copy of the checkout, into which bugs are planted."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from tests.mutants.table import Mutant
from tests.support import ROOT

COPIED: Final = (
    "zkv", "tests", "tools", "docs", "clients", "benchmarks", "pyproject.toml", "config.toml",
    "README.md", "PROTOCOL.md", "DURABILITY.md",
)  # fmt: skip


class NotAppliedError(Exception):
    """The place of a bug is not there any more, or more than once."""


class Checkout:
    """The copy.

    Args:
        directory: an empty one, made if it is not there.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir(exist_ok=True)
        for name in COPIED:
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, directory / name)
            else:
                shutil.copy(ROOT / name, directory)

    @contextlib.contextmanager
    def planted(self, mutant: Mutant) -> Iterator[None]:
        """Have a bug in it. Raises NotAppliedError."""
        path = self.directory / mutant.path
        good = path.read_text(encoding="utf-8")
        if good.count(mutant.old) != 1:
            raise NotAppliedError(mutant.name)
        path.write_text(good.replace(mutant.old, mutant.new), encoding="utf-8")
        try:
            yield
        finally:
            path.write_text(good, encoding="utf-8")

    def run_command(
        self, command: Sequence[str], seconds: float, env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a command there, with these variables. Raises subprocess.TimeoutExpired."""
        # No byte code: two bugs of one size within a second would be taken for one.
        code = {"PYTHONPATH": str(self.directory), "PYTHONDONTWRITEBYTECODE": "1"}
        return subprocess.run(
            command, cwd=self.directory, env=os.environ | code | dict(env or {}),
            capture_output=True, text=True, timeout=seconds, check=False,
        )  # fmt: skip
