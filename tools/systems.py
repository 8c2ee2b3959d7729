"""Installs what `make dist` has made on other systems, and runs it there.

    python -m tools.systems DIST             # every system; as root, on Debian or Ubuntu
    python -m tools.systems DIST NAME...     # those whose names contain one of these

For each system and Python: an empty environment gets the file from DIST and what it depends on,
from the package index, as wheels only, but for the source distribution; then `tools.installed` runs
there. The table of results is printed, and kept beside DIST as ``build/systems.md``.

- Debian's systems are made by ``mmdebstrap`` in directories that are kept, and entered by
  ``chroot``. Those for arm64 need an emulator that the kernel knows (``qemu-user-static``, and
  ``binfmt_misc`` mounted).
- There is no Alpine here. For musl, Python is built from Debian's sources with ``musl-gcc`` and
  runs by musl's own loader; uv, which installs for it, finds the libc as pip does.
- Pythons of this machine are those on PATH, and those that PYTHONS names, parted by colons.

A system that cannot be had here is told as not run, with the reason. The exit status is 1 if
anything that ran failed.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple, TextIO

ROOT: Final = Path(__file__).parents[1]
KEPT: Final = ROOT / "build" / "systems"
"""Where systems are kept for the next run."""
REPORT: Final = ROOT / "build" / "systems.md"
PROBE: Final = ROOT / "tools" / "installed.py"
UV: Final = Path(sys.executable).parent / "uv"

MIRROR: Final = "http://deb.debian.org/debian"
MANYLINUX: Final = "manylinux*_x86_64.whl"
ARM: Final = "manylinux*_aarch64.whl"
MUSL: Final = "musllinux*.whl"
SOURCE: Final = ".tar.gz"
INSIDE: Final = "/zkv-check"
"""The working directory in a Debian system."""
INSTALLED: Final = "zkv-installed"
"""The file in a system that was made to its end."""
CERTIFICATES: Final = Path("/etc/ssl/certs/ca-certificates.crt")


class NotHereError(Exception):
    """A system cannot be had on this machine; the message says why."""


class System(NamedTuple):
    """A system with one Python.

    Attributes:
        name: as the table shows it.
        files: the pattern of what is installed there, in DIST.
        try_on: installs a file and runs the probe; returns what the probe has seen.
            Raises NotHereError, CalledProcessError.
        compiled: False: there is no compiler, and no wheel is used.
    """

    name: str
    files: str
    try_on: Callable[[Path], dict[str, Any]]
    compiled: bool = True


def systems() -> Iterator[System]:
    """All systems, in the order of the table."""
    for python in pythons():
        yield System(f"this machine, {python}", MANYLINUX, partial(on_python, python))
    yield System("this machine, uvx", MANYLINUX, by_uvx)
    for suite in ("bookworm", "trixie", "sid"):
        yield System(f"Debian {suite}", MANYLINUX, partial(on_debian, suite, ""))
    yield System("Debian trixie, no compiler", SOURCE, partial(on_debian, "trixie", ""), False)
    for suite in ("bookworm", "trixie"):
        yield System(
            f"Debian {suite} on arm64, emulated",
            ARM,
            partial(on_debian, suite, "arm64"),
        )
    yield System("musl, Python built for it", MUSL, on_musl)


def main() -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="tools.systems", description=__doc__.split("\n")[0])
    parser.add_argument("dist", type=Path, help="what `make dist` has made")
    parser.add_argument("names", nargs="*", metavar="NAME", help="part of a system's name")
    arguments = parser.parse_args()
    faults = 0
    REPORT.parent.mkdir(exist_ok=True)
    with REPORT.open("w", encoding="utf-8") as report:
        tell(HEAD, report)
        for each in systems():
            if not arguments.names or any(part in each.name for part in arguments.names):
                cells, is_fault = result_of(each, arguments.dist)
                tell(f"| {each.name} {cells}", report)
                faults += is_fault
    return 1 if faults else 0


HEAD: Final = """\
| system | file | Python | installed | compiled | served | restarted | |
|---|---|---|---|---|---|---|---|"""


def tell(line: str, report: TextIO) -> None:
    """Print a line of the table, and keep it."""
    print(line, flush=True)
    print(line, file=report, flush=True)


def result_of(system: System, dist: Path) -> tuple[str, bool]:
    """The cells of a system's row behind its name, and True if it failed."""
    files = sorted(dist.glob(f"zkv-*{system.files}"))
    if len(files) != 1:
        return f"| {system.files} | FAILED: {dist} has {len(files)} of these; make dist |||||", True
    try:
        seen = system.try_on(files[0].resolve())
    except NotHereError as error:
        return f"| {system.files} | not run: {error} |||||", False
    except (subprocess.SubprocessError, OSError) as error:
        said = getattr(error, "stderr", None) or str(error)
        print(said, file=sys.stderr)
        return f"| {system.files} | FAILED: {said.strip().splitlines()[-1]} |||||", True
    as_expected = seen["compiled"] == system.compiled
    cells = [
        seen["python"],
        "yes",
        word(seen["compiled"]),
        word(seen["served"]),
        word(seen["restarted"]),
    ]
    good = as_expected and seen["served"] and seen["restarted"]
    return (
        f"| {system.files} | {' | '.join([*cells, 'as it should' if good else 'FAULT'])} |",
        not good,
    )


def word(value: object) -> str:
    """How the table shows a truth."""
    return "yes" if value else "no"


def run(*command: str | Path, variables: dict[str, str] | None = None) -> str:
    """Run a command; returns what it prints. Raises CalledProcessError, whose stderr is text."""
    return subprocess.run(
        command, env=clean() | (variables or {}), check=True, capture_output=True, text=True
    ).stdout


def clean() -> dict[str, str]:
    """The environment without what leads to a Python or to a checkout."""
    left_out = ("PYTHON", "VIRTUAL_ENV", "MAKE", "ZKV_")
    return {name: value for name, value in os.environ.items() if not name.startswith(left_out)}


def seen_by(*python: str | Path) -> dict[str, Any]:
    """Run the probe by the command of an environment's Python, away from the checkout."""
    with tempfile.TemporaryDirectory(prefix="zkv-check-") as directory:
        probe = shutil.copy(PROBE, directory)
        told = run("env", "-C", directory, *python, probe, f"{directory}/data")
    seen: dict[str, Any] = json.loads(told)
    return seen


# --- This machine ----------------------------------------------------------------------------


def pythons() -> list[str]:
    """Those of this machine that zkv can use, one of each version."""
    found: dict[str, str] = {}
    named = [each for each in os.environ.get("PYTHONS", "").split(":") if each]
    for each in [*named, *(f"/usr/bin/python3.{minor}" for minor in range(11, 20))]:
        asked = [each, "-c", "import sys, ensurepip; print(*sys.version_info[:2])"]
        done = subprocess.run(asked, check=False, capture_output=True, text=True, env=clean()) \
            if Path(each).exists() else None  # fmt: skip
        if done is not None and done.returncode == 0:
            found.setdefault(done.stdout, each)
    return list(found.values())


def on_python(python: str, file: Path) -> dict[str, Any]:
    """Install with pip into an empty environment of a Python of this machine."""
    with tempfile.TemporaryDirectory(prefix="zkv-check-") as directory:
        run(python, "-m", "venv", directory)
        run(f"{directory}/bin/python", "-m", "pip", "install", "--only-binary=:all:", file)
        return seen_by(f"{directory}/bin/python")


def by_uvx(file: Path) -> dict[str, Any]:
    """Run as ``uvx --from FILE zkv serve`` does: in an environment that uv makes for it."""
    return seen_by(
        UV, "tool", "run", "--no-config", "--no-build", "--isolated",
        "--python", sys.executable, "--from", file, "python",
    )  # fmt: skip


# --- Debian ----------------------------------------------------------------------------------


def on_debian(suite: str, architecture: str, file: Path) -> dict[str, Any]:
    """Install with Debian's Python and pip in a system of its own."""
    root = debian(suite, architecture)
    inside = Path(f"{root}{INSIDE}")
    shutil.rmtree(inside, ignore_errors=True)
    inside.mkdir()
    shutil.copy(file, inside)
    shutil.copy(PROBE, inside)
    for shared in (Path("/etc/resolv.conf"), CERTIFICATES):  # A mirror may have its own authority.
        shutil.copy(shared, f"{root}{shared}")
    only = "" if file.name.endswith(SOURCE) else "--only-binary=:all:"
    enter(
        root,
        f"python3 -m venv env && env/bin/pip install --quiet {only} ./{shlex.quote(file.name)}",
    )
    seen: dict[str, Any] = json.loads(enter(root, "env/bin/python installed.py data"))
    return seen


def debian(suite: str, architecture: str) -> Path:
    """The root directory of a Debian system with Python, which is made if it is not there.

    Raises NotHereError, CalledProcessError.
    """
    root = KEPT / f"{suite}-{architecture or 'native'}"
    if os.geteuid() != 0:
        raise NotHereError("only root can enter another system")
    if architecture and not Path("/proc/sys/fs/binfmt_misc/qemu-aarch64").exists():
        raise NotHereError(
            "the kernel knows no emulator: apt install qemu-user-static, and mount binfmt_misc"
        )
    if (root / INSTALLED).exists():
        return root
    needs("mmdebstrap", "mmdebstrap")
    KEPT.mkdir(parents=True, exist_ok=True)
    run("rm", "-rf", "--one-file-system", root)
    run(
        # What is mounted there meanwhile is not to be seen here, nor left behind.
        "unshare", "--mount", "--propagation", "private",
        "mmdebstrap", "--variant=minbase", "--include=python3,python3-venv,ca-certificates",
        # A mirror may be some weeks behind; what it has is still signed.
        "--aptopt=Acquire::Check-Valid-Until false",
        *([f"--architectures={architecture}"] if architecture else []), suite, root, MIRROR,
    )  # fmt: skip
    (root / INSTALLED).touch()
    return root


def enter(root: Path, command: str) -> str:
    """Run a shell command in another system; returns what it prints. Mounts end with it."""
    variables = " ".join(
        f"{name}={shlex.quote(value)}"
        for name, value in os.environ.items()
        if name in {"PIP_INDEX_URL", "PIP_DEFAULT_TIMEOUT"} or name.lower().endswith("_proxy")
    )
    script = (
        f"mount -t proc proc {root}/proc && mount --rbind /dev {root}/dev && "
        f"exec chroot {root} env -i PATH=/usr/bin:/bin HOME=/root LC_ALL=C.UTF-8 "
        f"PIP_CERT={CERTIFICATES} {variables} "
        f"sh -c {shlex.quote(f'cd {INSIDE} && {command}')}"
    )
    return run("unshare", "--mount", "--propagation", "private", "sh", "-c", script)


def needs(program: str, package: str) -> None:
    """Raise NotHereError, which names Debian's package, if a program is not here."""
    if shutil.which(program) is None:
        raise NotHereError(f"{program} is not installed here: apt install {package}")


# --- Musl ------------------------------------------------------------------------------------


def on_musl(file: Path) -> dict[str, Any]:
    """Install with uv for a Python that musl's loader runs."""
    python = musl_python()
    with tempfile.TemporaryDirectory(prefix="zkv-check-") as directory:
        environment = f"{directory}/env"
        run(UV, "--no-config", "venv", "--quiet", "--python", python, environment)
        run(
            UV, "--no-config", "pip", "install", "--quiet", "--no-build",
            "--python", f"{environment}/bin/python", file,
        )  # fmt: skip
        return seen_by(f"{environment}/bin/python")


BUILD: Final = """
set -e
keys=/usr/share/keyrings/debian-archive-keyring.gpg
cat > sources <<END
deb-src [signed-by=$keys] {mirror} bookworm main
deb [signed-by=$keys] {mirror} trixie main
END
mkdir -p lists/partial cache/archives/partial python zlib ffi loader
apt="-o Dir::Etc::SourceList=$PWD/sources -o Dir::Etc::SourceParts=/dev/null
     -o Dir::State::Lists=$PWD/lists -o Dir::Cache=$PWD/cache -o Acquire::Check-Valid-Until=false"
apt-get $apt update
apt-get $apt source --download-only python3.11 zlib libffi
apt-get $apt download musl/trixie
dpkg-deb -x musl_*.deb loader
tar xf python3.11_*.orig.tar.* -C python --strip-components=1
tar xf zlib_*.orig.tar.* -C zlib --strip-components=1
tar xf libffi_*.orig.tar.* -C ffi --strip-components=1
top=$PWD
export CC=musl-gcc AR=ar RANLIB=ranlib READELF=/usr/bin/readelf
cross="--build=$(gcc -dumpmachine) --host=x86_64-linux-musl"
(cd zlib && CFLAGS="-O1 -fPIC" ./configure --static && make libz.a)
(cd ffi && CFLAGS="-O1 -fPIC" ./configure $cross --prefix="$top/libffi" --disable-shared \\
    --disable-docs --disable-multi-os-directory --disable-exec-static-tramp && make install)
cd python
OPT="-O1 -DNDEBUG" ./configure $cross --prefix="$PREFIX" --with-build-python=/usr/bin/python3.11 \\
    --without-ensurepip --disable-test-modules ac_cv_buggy_getaddrinfo=no \\
    ac_cv_file__dev_ptmx=yes ac_cv_file__dev_ptc=no \\
    ZLIB_CFLAGS="-I$top/zlib" ZLIB_LIBS="-L$top/zlib -lz"
left_out='_lzma|_bz2|_uuid|nis|spwd|xxlimited|xxlimited_35|xxsubtype|_crypt|_dbm|_gdbm|readline'
sed -E -e "/^($left_out|_curses|_ctypes|_test[a-z]*) /d" -e 's/^[*]shared[*]/*static*/' \\
    Modules/Setup.stdlib > Modules/Setup.local
echo "_ctypes _ctypes/_ctypes.c _ctypes/callbacks.c _ctypes/callproc.c _ctypes/stgdict.c" \\
    "_ctypes/cfield.c -DHAVE_FFI_PREP_CIF_VAR -DHAVE_FFI_PREP_CLOSURE_LOC" \\
    "-DHAVE_FFI_CLOSURE_ALLOC -I$top/libffi/include -L$top/libffi/lib -lffi" >> Modules/Setup.local
make Makefile || true  # It tells that the rules have changed.
soabi=cpython-311-x86_64-linux-musl
make -j2 SOABI=$soabi EXT_SUFFIX=.$soabi.so python
./python -E -S -m sysconfig --generate-posix-vars
make -i bininstall libinstall
mkdir -p "$PREFIX/lib/python3.11/lib-dynload"
cp build/lib.*/_sysconfigdata*.py "$PREFIX/lib/python3.11"
cp "$top/loader/usr/lib/ld-musl-x86_64.so.1" "$PREFIX/lib"
cp python "$PREFIX/bin/python3.11"
patchelf --set-interpreter "$PREFIX/lib/ld-musl-x86_64.so.1" "$PREFIX/bin/python3.11"
ln -sf python3.11 "$PREFIX/bin/python3"
"""
"""A cross build, since configure must not take what it finds on this machine; it wants the same
version of Python here. The modules go into the program, since the build of shared ones takes the
headers of glibc. Optimised little: it is used once. The loader is that of Debian 13 (1.2.5), as
pyzmq's wheel has relocations (DT_RELR) that musl applies from 1.2.4 on, and else crashes."""


def musl_python() -> Path:
    """Python for musl, built if it is not there. Raises NotHereError, CalledProcessError."""
    python = KEPT / "musl" / "bin" / "python3"
    if python.exists():
        return python
    needs("musl-gcc", "musl-tools")
    needs("gcc", "gcc")
    if not Path("/usr/bin/python3.11").exists():
        raise NotHereError("Python 3.11 of Debian, with which it is built, is not installed here")
    KEPT.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="zkv-musl-") as directory:
        script = BUILD.format(mirror=MIRROR)
        variables = {"PREFIX": str(KEPT / "musl"), "PATH": f"{UV.parent}:{os.environ['PATH']}"}
        run("env", "-C", directory, "sh", "-c", script, variables=variables)
    return python


if __name__ == "__main__":
    sys.exit(main())
