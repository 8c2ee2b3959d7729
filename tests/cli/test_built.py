"""What `make` says, and does, where zkv is not compiled; and who else says so."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.forking import run_zkv
from tests.support import LIMIT, ROOT, ServerProcess, environment, eventually
from zkv import compiled
from zkv.cli import built


class Checkout:
    """A copy of the repository, and what `make` does in it.

    Its ``.venv`` is this one, but that pip installs elsewhere, and that nothing is downloaded.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        shutil.copytree(
            ROOT / "zkv", directory / "zkv", ignore=shutil.ignore_patterns("*.so", "__pycache__")
        )
        for name in ("Makefile", "pyproject.toml", "README.md", "LICENSE"):
            shutil.copy(ROOT / name, directory)
        (directory / "requirements").mkdir()
        (directory / "requirements" / "run.txt").touch()
        python = directory / ".venv" / "bin" / "python"
        python.parent.mkdir(parents=True)
        python.write_text(
            "#!/bin/sh\n"
            f"export PIP_PREFIX={shlex.quote(str(directory / 'prefix'))} PIP_IGNORE_INSTALLED=1\n"
            f'exec {shlex.quote(sys.executable)} "$@"\n'
        )
        python.chmod(0o755)
        (directory / ".venv" / "made.stamp").touch()

    def install(self, **variables: str) -> str:
        """`make run` up to where the server would start; what it said to whoever sits there."""
        inherited = {
            name: value
            for name, value in environment().items()
            if name not in {"CC", "MAKEFLAGS", "MAKELEVEL", "MFLAGS", "PYTHONPATH"}
        }
        done = subprocess.run(
            ["make", "--no-print-directory", ".venv/run.stamp"], cwd=self.directory,
            env=inherited | {"CFLAGS": "-O0"} | variables,
            capture_output=True, text=True, timeout=6 * LIMIT, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return "".join(
            line for line in done.stderr.splitlines(keepends=True) if line.startswith("zkv:")
        )

    @property
    def compiled(self) -> list[str]:
        """The parts that are."""
        return sorted(path.name.partition(".")[0] for path in self.directory.glob("zkv/*/*.so"))


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    (tmp_path / "a clone").mkdir()
    return Checkout(tmp_path / "a clone")


@pytest.mark.timeout(180)
def test_no_compiler_is_said_once(checkout: Checkout) -> None:
    said = checkout.install(CC="no-such-compiler")

    assert said.startswith("zkv: built without C, up to 7 times slower: there is no no-such-comp")
    assert "apt install gcc python3-dev, then make run" in said
    assert said.count("\n") == 1
    assert checkout.install(CC="no-such-compiler") == ""


@pytest.mark.timeout(300)
@pytest.mark.skipif(bool(built.what_is_lacking()), reason="no C compiler, or no Python.h")
def test_a_compiler_that_comes_later_and_a_build_that_fails_are_noticed(checkout: Checkout) -> None:
    (checkout.directory / ".venv" / "run.stamp").touch()  # All is installed, and not compiled.
    assert checkout.install() == ""
    assert checkout.compiled == ["_frames", "_store"]

    source = checkout.directory / "zkv" / "compiled" / "table.c"
    source.write_text("#error is made on purpose\n" + source.read_text())
    said = checkout.install()
    assert said.count("\n") == 1
    assert "zkv/compiled/table.c:1:2: error: #error is made on purpose" in said
    assert ".venv/build.log" in said
    assert checkout.compiled == ["_frames"]  # And not what was there before.
    assert checkout.install() == ""  # It would fail again.


def test_headers_that_are_missing_are_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CC", "sh -e")
    monkeypatch.setattr(sysconfig, "get_path", {"include": str(tmp_path)}.__getitem__)
    monkeypatch.setattr(built, "EXTENSIONS", ["zkv.no_such_module"])

    assert built.main(["no.log"]) == 0
    assert f"there is no {tmp_path}/Python.h; apt install python3-dev" in capsys.readouterr().err
    assert built.main(["--possible"]) == 1
    (tmp_path / "Python.h").touch()
    assert built.main(["--possible"]) == 0


# --- Who else says so ------------------------------------------------------------------------

PLAIN = """
import sys
sys.modules["zkv.broker._frames"] = sys.modules["zkv.compiled._store"] = None
from zkv.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


class PlainServer(ServerProcess):
    """A server as it is where there was no compiler."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        serve = self._command.index("serve")
        self._command = [sys.executable, "-c", PLAIN, *self._command[serve:]]


@pytest.fixture
def plain(tmp_path: Path) -> Iterator[ServerProcess]:
    with PlainServer(tmp_path / "plain") as server:
        yield server


def run(module: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", module, *arguments], cwd=cwd, env=environment(),
        capture_output=True, text=True, timeout=3 * LIMIT, check=True,
    )  # fmt: skip


SLOW = "without C (store, mailbox), up to 7 times slower"


def test_a_server_without_c_is_told_from_others(plain: ServerProcess, tmp_path: Path) -> None:
    said = f" built {SLOW}: {compiled.ADVICE}\n"
    eventually(lambda: said in plain.log(), "the log, which a thread writes, tells it")

    done = run_zkv("doctor", "--json", "-e", plain.endpoint, cwd=tmp_path)
    (found,) = (each for each in map(json.loads, done.stdout.splitlines()) if each["text"] == SLOW)
    assert found["level"] == "note"
    assert compiled.ADVICE in found["advice"]

    top = run("zkv.cli.client", "-e", plain.endpoint, "top", "--limit", "1", cwd=tmp_path)
    assert SLOW in top.stderr

    bench = run(
        "zkv.bench.main", "-e", plain.endpoint, "--operations", "1", "--keys", "1", "--clients",
        "1", "--ceiling", "0", cwd=tmp_path,
    )  # fmt: skip
    assert [line for line in bench.stdout.splitlines() if "server:" in line and SLOW in line]


@pytest.mark.skipif(not compiled.COMPILED, reason="zkv was installed without a C compiler")
def test_a_server_with_c_says_nothing_of_it(server_process: ServerProcess, tmp_path: Path) -> None:
    assert "slower" not in server_process.log()
    done = run_zkv("doctor", "-e", server_process.endpoint, cwd=tmp_path)
    assert "ok    build       store and mailbox are compiled" in done.stdout
    top = run("zkv.cli.client", "-e", server_process.endpoint, "top", "--limit", "1", cwd=tmp_path)
    assert top.stderr == ""
