#!/usr/bin/env python3
"""Builds what operators install: a package for Debian, and an image for containers.

Both have a wheel of zkv and what requirements/service.txt locks. The wheel is built from this
checkout unless one is given.

Exit status: 0 if it is built, 1 if not.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tomllib
from email.utils import formatdate
from pathlib import Path
from typing import Final

from tools.wheels import CannotBuildError, require_parts
from zkv import __version__

ROOT: Final = Path(__file__).resolve().parent.parent
BUILD: Final = ROOT / "build"
LOCKED: Final = ROOT / "requirements" / "service.txt"
LAUNCHER: Final = """\
#!/usr/bin/python3 -I
import sys

sys.path.insert(0, "/usr/lib/zkv")
from {module} import {function}

sys.exit({function}())
"""


def main() -> int:
    """Build what the command line names; return the exit status."""
    parser = argparse.ArgumentParser(description="Build a package or an image.")
    parser.add_argument("--wheel", type=Path, help="the wheel of zkv; else one is built")
    kinds = parser.add_subparsers(required=True)
    kinds.add_parser("deb").set_defaults(build=build_deb)
    image = kinds.add_parser("image")
    image.add_argument("--base", help="the image to begin with, if not that in the Containerfile")
    image.add_argument("--tag", default="localhost/zkv", help="the name of the image")
    image.add_argument("more", nargs="*", help="after --: further arguments of buildah build")
    image.set_defaults(build=build_image)
    options = parser.parse_args()
    try:
        wheel = options.wheel or build_wheel()
        require_parts(wheel)
        options.build(wheel, options)
    except (subprocess.CalledProcessError, FileNotFoundError, CannotBuildError) as error:
        print(f"packages: {error}", file=sys.stderr)
        return 1
    return 0


def build_wheel() -> Path:
    """Build a wheel of this checkout; return its path."""
    place = _empty(BUILD / "wheel")
    _run(*_pip("wheel"), "--no-deps", "--no-build-isolation", "--wheel-dir", str(place), str(ROOT))
    (wheel,) = place.glob("zkv-*.whl")
    return wheel


# --- Debian ----------------------------------------------------------------------------------


def build_deb(wheel: Path, _options: argparse.Namespace) -> None:
    """Build the package for Debian with debhelper, and print its path.

    It fits the version of Python that runs this: the packages that it brings are compiled for that.
    """
    place = _empty(BUILD / "deb")
    source = place / "zkv"
    shutil.copytree(ROOT / "contrib" / "debian", source / "debian")
    shutil.copy(ROOT / "contrib" / "systemd" / "zkv.service", source / "debian" / "zkv.service")
    version = debian_version(__version__)
    changed = (ROOT / "CHANGELOG.md").stat().st_mtime
    (source / "debian" / "changelog").write_text(
        f"zkv ({version}) unstable; urgency=medium\n\n  * See CHANGELOG.md.\n\n"
        f" -- zkv contributors <zkv@localhost>  {formatdate(changed)}\n",
        encoding="utf-8",
    )
    _fill(source / "tree", wheel)
    major, minor = sys.version_info[:2]
    needs = f"python3 (>= {major}.{minor}~), python3 (<< {major}.{minor + 1}~)"
    _run(
        "dpkg-buildpackage", "--build=binary", "--unsigned-changes", "--unsigned-buildinfo",
        "--no-check-builddeps", cwd=source, env=os.environ | {"PYTHON_DEPENDS": needs},
    )  # fmt: skip
    (package,) = place.glob("zkv_*.deb")
    print(package.relative_to(ROOT))


def debian_version(version: str) -> str:
    """Return a version as Debian orders it: what comes before a release has a tilde."""
    return re.sub(r"\.?(dev|a|b|rc)(\d+)", r"~\1\2", version)


def _fill(tree: Path, wheel: Path) -> None:
    """Collect the files of the package."""
    library = tree / "usr" / "lib" / "zkv"
    install = *_pip("install"), "--target", str(library), "--no-compile"
    _run(*install, "--require-hashes", "--only-binary", ":all:", "-r", str(LOCKED))
    _run(*install, "--no-deps", "--upgrade", str(wheel))
    shutil.rmtree(library / "bin", ignore_errors=True)
    # The user of the service cannot write there.
    _run(
        sys.executable, "-m", "compileall", "-q", "--invalidation-mode", "unchecked-hash",
        "-s", str(tree), "-p", "/", str(library),
    )  # fmt: skip
    commands = tree / "usr" / "bin"
    commands.mkdir(parents=True)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for name, place in project["scripts"].items():
        module, _, function = place.partition(":")
        launcher = commands / name
        text = LAUNCHER.format(module=module, function=function)
        launcher.write_text(text, encoding="utf-8")
        launcher.chmod(0o755)
    settings = tree / "etc" / "zkv" / "zkv.toml"
    settings.parent.mkdir(parents=True)
    text = (ROOT / "config.toml").read_text(encoding="utf-8")
    settings.write_text(
        text.replace('\ndata_dir = "var"\n', '\ndata_dir = "/var/lib/zkv"\n'), encoding="utf-8"
    )
    documents = tree / "usr" / "share" / "doc" / "zkv"
    documents.mkdir(parents=True)
    for name in ("README.md", "CHANGELOG.md"):
        shutil.copy(ROOT / name, documents)


# --- Containers ------------------------------------------------------------------------------


def build_image(wheel: Path, options: argparse.Namespace) -> None:
    """Build the image with buildah, which needs no daemon."""
    place = _empty(BUILD / "image")
    container = ROOT / "contrib" / "container"
    for file in (wheel, LOCKED, container / "zkv.toml"):
        shutil.copy(file, place)
    base = [] if options.base is None else ["--build-arg", f"BASE={options.base}"]
    _run(
        # In the format of Docker, as that of OCI has no HEALTHCHECK.
        "buildah", "build", "--format", "docker", *base, "--tag", options.tag, *options.more,
        "--file", str(container / "Containerfile"), str(place),
    )  # fmt: skip


# --- Helpers ---------------------------------------------------------------------------------


def _empty(place: Path) -> Path:
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    return place


def _pip(command: str) -> tuple[str, ...]:
    return (
        sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "--no-input", command
    )  # fmt: skip


def _run(*command: str, cwd: Path = ROOT, env: dict[str, str] | None = None) -> None:
    subprocess.run(command, cwd=cwd, env=env, check=True)


if __name__ == "__main__":
    sys.exit(main())
