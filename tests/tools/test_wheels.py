"""What `make dist` makes: all files of the repository, and no wheel without its C parts."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path
from typing import Final

import pytest

from tests.support import LIMIT, ROOT
from tools import packages, wheels
from tools.wheels import PLATFORMS, CannotBuildError
from zkv.cli.built import what_is_lacking

pytestmark = [
    pytest.mark.timeout(4 * LIMIT),
    pytest.mark.skipif(
        not (ROOT / ".git").exists(), reason="NOT RUN: it takes the files that git knows"
    ),
]
MADE: Final = {"PKG-INFO", "setup.cfg"}


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return wheels.make_sdist(tmp_path_factory.mktemp("made") / "sdist")


def test_a_source_distribution_has_every_file_of_the_repository(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        members = [each for each in archive.getmembers() if not each.isdir()]
    names = {each.name.partition("/")[2] for each in members}

    assert {name for name in names - MADE if not name.startswith("zkv.egg-info/")} == set(
        wheels.tracked()
    )
    assert {each.name for each in members if each.mode & 0o111} >= {
        f"{members[0].name.partition('/')[0]}/.ci/run"
    }, "what is run can be run"


def build(sdist: Path, directory: Path, monkeypatch: pytest.MonkeyPatch, compiler: str) -> Path:
    monkeypatch.setattr(wheels, "compiler_for", lambda _: compiler)
    monkeypatch.setenv("CFLAGS", "-O0 -fno-lto")
    return wheels.build(wheels.unpacked(sdist, directory / "source"), PLATFORMS[0])


def test_a_build_that_fails_makes_no_wheel(
    sdist: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(CannotBuildError) as refused:
        build(sdist, tmp_path, monkeypatch, "false")

    said = str(refused.value)
    assert "no zkv/broker/_frames*.so and no zkv/compiled/_store*.so" in said
    assert 'building extension "zkv.broker._frames" failed: ' in said, "the reason"


@pytest.mark.skipif(bool(what_is_lacking()), reason=f"NOT RUN: {what_is_lacking()}")
def test_a_wheel_has_both_c_parts_for_every_python(
    sdist: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = str(sysconfig.get_config_var("CC"))

    wheel = build(sdist, tmp_path, monkeypatch, compiler)

    assert "-cp311-abi3-" in wheel.name
    assert wheels.missing_parts(wheel) == []


def test_no_package_is_made_of_a_wheel_without_its_c_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As pip makes one, without a word, where the compiler fails."""
    wheel = tmp_path / "zkv-0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("zkv/__init__.py", "")
    monkeypatch.setattr(sys, "argv", ["packages", "--wheel", str(wheel), "deb"])

    assert packages.main() == 1
    assert "no zkv/broker/_frames*.so and no zkv/compiled/_store*.so" in capsys.readouterr().err


def test_the_licences_are_those_of_the_locked_packages() -> None:
    command = [sys.executable, str(ROOT / "tools" / "licences.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, check=False)

    assert done.stderr == ""
