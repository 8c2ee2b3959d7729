"""Makes what is published: a source distribution, and a wheel for each platform.

    python -m tools.wheels DIRECTORY             # all of it, in place of what is there
    python -m tools.wheels DIRECTORY PLATFORM... # the wheels for some platforms alone

The files that git knows, as they are in the work tree, go into the source distribution, and
every wheel is built from it alone. So nothing that lies about gets into either, and the source
distribution is known to have all that a build needs.

- One wheel serves all Pythons from 3.11 on: both C parts use only Python's stable interface, which
  ``abi3audit`` checks.
- Zig brings a C compiler with the headers and the symbols of every libc. It builds for other
  processors, and against an old glibc, with no container. Python's own headers are those of the
  Python that runs this; what the stable interface takes from them is the same on all platforms
  with pointers of 64 bits.
- ``auditwheel`` reads from the binaries which platform tag they deserve, and gives it to the wheel.
- `check` refuses a wheel without its C parts. setuptools makes one if the compiler fails, as is
  right where a user installs from source (`zkv.cli.built`), and wrong here.

The same commit gives the same wheels, byte for byte: times of files are those of the commit.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from functools import cache
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Final, NamedTuple

from zkv.cli.built import EXTENSIONS, complaint

if TYPE_CHECKING:
    from collections.abc import Sequence

ROOT: Final = Path(__file__).parents[1]
BIN: Final = Path(sys.executable).parent
OLDEST: Final = "3.11"
"""The oldest Python whose stable interface the C parts use."""
CFLAGS: Final = "-O3 -g0"
"""Added to those of the Python that runs this. Names of sources would differ in each build."""


class CannotBuildError(Exception):
    """A source distribution or a wheel cannot be made, or is not as it must be."""


class Platform(NamedTuple):
    """A system that a wheel is for.

    Attributes:
        target: as Zig calls it, with the oldest glibc.
        machine: the processor, as Python calls it.
        tag: the platform tag of the wheel.
    """

    target: str
    machine: str
    tag: str


PLATFORMS: Final = (
    Platform("x86_64-linux-gnu.2.17", "x86_64", "manylinux2014_x86_64"),
    Platform("aarch64-linux-gnu.2.17", "aarch64", "manylinux2014_aarch64"),
    Platform("x86_64-linux-musl", "x86_64", "musllinux_1_2_x86_64"),
)


def main() -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="tools.wheels", description=__doc__.split("\n")[0])
    parser.add_argument("directory", type=Path, help="where the files are put")
    parser.add_argument("tags", nargs="*", metavar="PLATFORM", help="such as musllinux_1_2_x86_64")
    arguments = parser.parse_args()
    chosen = [each for each in PLATFORMS if not arguments.tags or each.tag in arguments.tags]
    if not chosen:
        parser.error(f"there is none of these; there are {', '.join(p.tag for p in PLATFORMS)}")
    try:
        make(arguments.directory, chosen)
    except CannotBuildError as error:
        print(f"tools.wheels: {error}", file=sys.stderr)
        return 1
    return 0


def make(directory: Path, platforms: Sequence[Platform] = PLATFORMS) -> list[Path]:
    """Make the source distribution and the wheels; returns their paths. Raises CannotBuildError."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    with tempfile.TemporaryDirectory(prefix="zkv-wheels-") as work:
        sdist = make_sdist(Path(work, "sdist"))
        made = [Path(shutil.copy(sdist, directory))]
        print(made[0], flush=True)
        for each in platforms:
            wheel = repaired(build(unpacked(sdist, Path(work, each.tag)), each), each)
            made.append(Path(shutil.copy(wheel, directory)))
            print(made[-1], flush=True)
    return made


def make_sdist(directory: Path) -> Path:
    """Make the source distribution in a new directory. Raises CannotBuildError."""
    source = directory / "source"
    for name in tracked():
        target = source / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, target)
        os.utime(target, (commit_time(), commit_time()))
    run("uv", "build", "--sdist", *UNISOLATED, "--out-dir", str(directory), str(source))
    (sdist,) = directory.glob("*.tar.gz")
    return sdist


def tracked() -> list[str]:
    """The files that git knows, relative to the repository. Raises CannotBuildError."""
    listed = run("git", "ls-files", "-z", "--cached").split("\0")
    return [name for name in listed if name and (ROOT / name).is_file()]


@cache
def commit_time() -> int:
    """The time of the newest commit, in seconds since 1970. Raises CannotBuildError."""
    return int(run("git", "log", "-1", "--format=%ct"))


def unpacked(sdist: Path, directory: Path) -> Path:
    """Unpack a source distribution in a new directory; returns its one folder."""
    with tarfile.open(sdist) as archive:
        archive.extractall(directory, filter="data")
    (source,) = directory.iterdir()
    return source


def build(source: Path, target: Platform) -> Path:
    """Build a wheel that has both C parts; returns its path. Raises CannotBuildError."""
    compiler = compiler_for(target)
    variables = {
        "CC": compiler,
        "LDSHARED": f"{compiler} -shared -s",
        "CFLAGS": f"{CFLAGS} {os.environ.get('CFLAGS', '')}",
        "_PYTHON_HOST_PLATFORM": target.tag,
    }
    log = source.parent / "build.log"
    out = source.parent / "built"
    arguments = ("build", "--wheel", *UNISOLATED, "--verbose", "--out-dir", str(out), str(source))
    log.write_text(run("uv", *arguments, variables=variables), encoding="utf-8")
    (wheel,) = out.glob("*.whl")
    if missing := missing_parts(wheel):
        raise CannotBuildError(f"{target.tag}: no {' and no '.join(missing)}: {complaint(log)}")
    return wheel


def compiler_for(target: Platform) -> str:
    """The command of the compiler, for a shell."""
    return shlex.join([sys.executable, "-m", "ziglang", "cc", "-target", target.target])


def repaired(wheel: Path, target: Platform) -> Path:
    """Give a wheel its platform tag, and check it; returns the new one. Raises CannotBuildError."""
    if "musl" in target.tag:
        name_libc_as_alpine_does(wheel, target)
    out, empty = wheel.parent / "repaired", wheel.parent / "empty"
    empty.mkdir()
    # It looks for libraries in an empty directory: those of this machine belong in no wheel.
    run("auditwheel", "repair", "--ldpaths", str(empty), "-w", str(out), str(wheel))
    (new,) = out.glob("*.whl")
    check(new, target)
    return new


def name_libc_as_alpine_does(wheel: Path, target: Platform) -> None:
    """Have the C parts ask for the libc by the name that auditwheel knows. Raises CannotBuildError.

    Zig calls it ``libc.so``. Musl's loader takes either name for itself.
    """
    from auditwheel.wheeltools import InWheelCtx

    with InWheelCtx(wheel, wheel) as content:
        for part in content.path.rglob("*.so"):
            run(
                "patchelf",
                "--replace-needed",
                "libc.so",
                f"libc.musl-{target.machine}.so.1",
                str(part),
            )


def check(wheel: Path, target: Platform) -> None:
    """Check that a wheel is complete, and what it claims to be. Raises CannotBuildError."""
    _, _, python, abi, tags = wheel.stem.split("-")
    if (python, abi) != ("cp311", "abi3") or target.tag not in tags.split("."):
        raise CannotBuildError(f"{wheel.name} is not for {target.tag} and Python {OLDEST} or newer")
    require_parts(wheel)
    with zipfile.ZipFile(wheel) as archive:
        places = {PurePosixPath(name).parts[0] for name in archive.namelist()}
    if strange := {place for place in places if place != "zkv" and ".dist-info" not in place}:
        raise CannotBuildError(f"{wheel.name}: {', '.join(sorted(strange))} should not be in it")
    run("abi3audit", "--strict", "--assume-minimum-abi3", OLDEST, str(wheel))


def require_parts(wheel: Path) -> None:
    """Raise CannotBuildError if a wheel lacks a C part."""
    if missing := missing_parts(wheel):
        raise CannotBuildError(f"{wheel.name}: no {' and no '.join(missing)}")


def missing_parts(wheel: Path) -> list[str]:
    """The C parts that a wheel does not have, such as ``zkv/broker/_frames*.so``."""
    with zipfile.ZipFile(wheel) as archive:
        names = [PurePosixPath(name) for name in archive.namelist()]
    patterns = [f"{name.replace('.', '/')}*.so" for name in EXTENSIONS]
    return [each for each in patterns if not any(name.match(each) for name in names)]


UNISOLATED: Final = ("--no-build-isolation", "--no-config", "--offline", "--python", sys.executable)
"""Arguments of uv: setuptools is the one that requirements/*.txt lock."""


def run(command: str, *arguments: str, variables: dict[str, str] | None = None) -> str:
    """Run a command of this environment, or of the system; returns all that it prints but errors.

    Raises CannotBuildError.
    """
    program = str(BIN / command) if (BIN / command).exists() else command
    environment = os.environ | {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}
    if command != "git":
        environment |= {"SOURCE_DATE_EPOCH": str(commit_time())}
    done = subprocess.run(
        [program, *arguments], cwd=ROOT, env=environment | (variables or {}), check=False,
        capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode != 0:
        raise CannotBuildError(f"{shlex.join([command, *arguments])}: {done.stderr.strip()}")
    return done.stdout if command == "git" else done.stdout + done.stderr


if __name__ == "__main__":
    sys.exit(main())
