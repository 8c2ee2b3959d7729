"""Runs tests with compiled parts that are watched at each access to memory."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Final

import pytest

from tests.support import ROOT

PARTS: Final = ("zkv/compiled/_store", "zkv/broker/_frames")
"""The second is not used without the first."""
COMPILER: Final = shutil.which((sysconfig.get_config_var("CC") or "cc").split()[0])


def compile_part(part: Path, *flags: str) -> None:
    """Compile a part anew, of all C sources beside it. Needs `COMPILER`."""
    assert COMPILER is not None
    build = [
        COMPILER, "-O1", "-fPIC", "-shared", *flags, "-I", sysconfig.get_path("include"),
        *map(str, part.parent.glob("*.c")), "-o", str(part),
    ]  # fmt: skip
    subprocess.run(build, check=True)


def run_under_address_sanitizer(directory: Path, *arguments: str) -> str:
    """What pytest prints, which must succeed.

    Args:
        directory: an empty one, for a copy of all with both parts built anew.
        arguments: of pytest.
    """
    if COMPILER is None:
        pytest.skip("needs a C compiler")
    find = [COMPILER, "-print-file-name=libasan.so"]
    library = subprocess.run(find, capture_output=True, text=True, check=True).stdout.strip()
    if not os.path.isabs(library):
        pytest.skip("needs the compiler's AddressSanitizer")
    for name in ("zkv", "tests"):
        shutil.copytree(ROOT / name, directory / name, ignore=shutil.ignore_patterns("*.so"))
    shutil.copy(ROOT / "pyproject.toml", directory)
    watch = ["-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    watch.append("-DLARGEST=0")  # See zkv/compiled/pool.c.
    for part in PARTS:
        compile_part(directory / f"{part}.abi3.so", *watch)
    watched = os.environ | {
        "LD_PRELOAD": library,
        # Python leaves much behind at its end; what is freed is to be given back soon, since
        # some of the tests look at memory.
        "ASAN_OPTIONS": "detect_leaks=0:quarantine_size_mb=1:thread_local_quarantine_size_kb=64",
        "PYTHONMALLOC": "malloc",
        "PYTHONPATH": str(directory),
    }
    run = [sys.executable, "-m", "pytest", "--timeout", "300", *arguments]
    outcome = subprocess.run(
        run, cwd=directory, env=watched, capture_output=True, text=True, check=False
    )
    assert outcome.returncode == 0, outcome.stdout[-5_000:] + outcome.stderr[-5_000:]
    return outcome.stdout
