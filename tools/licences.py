"""Lists the licences of what zkv depends on, in docs/licences.md.

    python tools/licences.py            # writes the page
    python tools/licences.py --check    # exit status 1 if the page is outdated

The versions are those that requirements/dev.txt locks, and the licences are what the installed
packages say of themselves. A dependency that is not installed here, such as one for other systems
only, keeps what the page says; a new one of these is an error.
"""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).parents[1]
PAGE: Final = ROOT / "docs" / "licences.md"
LOCKED: Final = ROOT / "requirements" / "dev.txt"
FOR_DEVELOPERS: Final = "dev"
"""The extra that nobody else installs."""
LONGEST: Final = 60
"""Characters; a longer field is the text of a licence, not its name."""

HEAD: Final = """\
# Licences

<!-- Made by tools/licences.py: make generate -->

zkv has the [MIT license](../LICENSE). What is installed with it, and with its extras, has the
licences below, as the packages say themselves.

The wheels of pyzmq bring libzmq (MPL-2.0) and libsodium (ISC) with them, those of matplotlib what
their own page lists.

| package | version | licence | needed by |
|---|---|---|---|
"""


def page() -> str:
    """The page as it should be. Raises SystemExit if a licence is not known."""
    known = dict(re.findall(r"^\| (\S+) \| \S+ \| (.+?) \| .*\|$", PAGE.read_text("utf-8"), re.M)) \
        if PAGE.exists() else {}  # fmt: skip
    versions = dict(re.findall(r"^([a-z0-9-]+)==(\S+)", LOCKED.read_text("utf-8"), re.M))
    rows = []
    for name, needed_by in sorted(dependencies().items()):
        licence = licence_of(name, versions[name]) or known.get(name)
        if not licence:
            raise SystemExit(f"{name} is not installed here, and its licence is not known")
        rows.append(f"| {name} | {versions[name]} | {licence} | {', '.join(needed_by)} |\n")
    return HEAD + "".join(rows)


def dependencies() -> dict[str, list[str]]:
    """Everything that zkv and its extras need, directly or not: by name, with who needs it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    found: dict[str, list[str]] = {}
    for name in with_all(project["dependencies"]):
        found[name] = ["zkv"]
    for extra, requirements in project["optional-dependencies"].items():
        for name in with_all(requirements if extra != FOR_DEVELOPERS else ()):
            if "zkv" not in found.setdefault(name, []):
                found[name].append(f"zkv[{extra}]")
    return found


def with_all(requirements: Iterable[str]) -> set[str]:
    """The names of the packages that these lines ask for, and of those that they need in turn."""
    found: set[str] = set()
    left = [name_in(each) for each in requirements]
    while left:
        name = left.pop()
        if name not in found:
            found.add(name)
            left += [name_in(each) for each in needs(name)]
    return found


def needs(name: str) -> list[str]:
    """The requirements of an installed package on any system, without those of its extras."""
    try:
        lines = metadata.requires(name) or []
    except metadata.PackageNotFoundError:
        return []
    return [each for each in lines if ";" not in each]


def name_in(requirement: str) -> str:
    """The normal form of the name in a requirement."""
    found = re.match(r"[\w.-]+", requirement)
    return re.sub(r"[-_.]+", "-", found[0] if found else "").lower()


def licence_of(name: str, version: str) -> str:
    """The licence that a package names; empty if it names none, or is not installed as locked."""
    try:
        told: Any = metadata.metadata(name)
    except metadata.PackageNotFoundError:
        return ""
    if told["Version"] != version:
        return ""  # Another Python has another one.
    classified = [each.rpartition(" :: ")[2] for each in told.get_all("Classifier") or ()
                  if each.startswith("License :: ")]  # fmt: skip
    field = told.get("License") or ""
    short = field if "\n" not in field and len(field) <= LONGEST else ""
    return told.get("License-Expression") or short or ", ".join(classified)


if __name__ == "__main__":
    expected = page()
    if "--check" not in sys.argv[1:]:
        PAGE.write_text(expected, encoding="utf-8")
    elif not PAGE.exists() or PAGE.read_text("utf-8") != expected:
        sys.exit(f"{PAGE.relative_to(ROOT)} is outdated: make generate")
