"""Fuzz the compiled parts against Python: ``python -m tests.compiled.fuzz lane``.

The targets are ``lane``, ``slices``, ``writes``, ``mailbox``, ``values``, ``log`` and ``snapshot``.
It needs clang with libFuzzer, and Python as a shared library. Arguments behind the target are
libFuzzer's. Inputs that reached something new are kept in ``build/fuzz``, and gone on with; one
that fails is written there, too: name it as an argument to repeat it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from random import Random

import msgspec

from tests.compiled.fuzz.targets import APART, BETWEEN
from tests.compiled.lane_requests import items_twice, nested
from tests.compiled.loading import commits
from tests.support import ROOT

DIRECTORY = ROOT / "build" / "fuzz"
PARTS = ("zkv/compiled/_store", "zkv/broker/_frames")
SECONDS = 60
LONGEST = 4_096


def build(clang: str) -> Path:
    """Build everything into a directory of its own; the program to run."""
    copy = DIRECTORY / "tree"
    shutil.rmtree(copy, ignore_errors=True)
    for name in ("zkv", "tests"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("*.so"))
    include = ["-I", sysconfig.get_path("include")]
    for part in PARTS:
        sources = sorted(map(str, (copy / part).parent.glob("*.c")))
        watched = ["-g", "-O1", "-fPIC", "-shared", "-fsanitize=fuzzer-no-link,address,undefined"]
        watched.append("-DLARGEST=0")  # See zkv/compiled/pool.c.
        command = [clang, *watched, *include, *sources, "-o", f"{copy / part}.abi3.so"]
        subprocess.run(command, check=True)
    program = DIRECTORY / "fuzz"
    libraries = sysconfig.get_config_var("LIBDIR")
    link = ["-L", libraries, f"-Wl,-rpath,{libraries}", f"-lpython{sysconfig.get_python_version()}"]
    source = str(copy / "tests/compiled/fuzz/fuzz.c")
    instruments = ["-g", "-rdynamic", "-fsanitize=fuzzer,address,undefined"]
    subprocess.run([clang, *instruments, *include, source, *link, "-o", str(program)], check=True)
    return program


def seeds(target: str) -> list[bytes]:
    """What to begin with: one good input of each kind."""
    encode = msgspec.msgpack.encode
    if target == "mailbox":
        return [BETWEEN.join([b"id", b"", b"body"]), APART.join([b"a", b"b"])]
    if target == "log":
        return [BETWEEN.join(commits(chance, 3)) for chance in map(Random, range(40))]
    if target == "snapshot":
        some: list[tuple[object, ...]] = [("a", 1, 2), ("b", [{}], 3, 4), ("ü", b"1", 2**40, None)]
        return [encode(some), BETWEEN.join([encode(some[:1]), encode(some[1:])])]
    if target == "values":
        return [encode(each) for each in ([1, "a", b"b", None, {"k": [1.5, -1]}], nested(64))]
    requests = [
        {"op": "GET", "key": "a", "timing": True, "trace": "t"},
        {"op": "PUT", "key": "a", "value": 1, "id": 7},
        {"op": "MGET", "keys": ["a", "b", "none"]},
        {"op": "MPUT", "items": {"a": 1, "b": [1, {}]}},
        {"op": "MPUT", "items": items_twice("a", "b", "a")},
        {"op": "PUT", "key": "a", "value": nested(501)},
        {"op": "INCR", "key": "a", "by": 2},
        {"op": "PUT", "key": "a", "value": b"1", "session": "s", "seq": 1},
        {"op": "TXN", "ops": [{"op": "INCR", "key": "n"}, {"op": "GET", "key": "a"}]},
    ]
    bodies = [encode(request) for request in requests]
    return [*bodies, BETWEEN.join(bodies), APART.join(bodies)]


def main() -> int:
    target, *arguments = sys.argv[1:]
    clang = shutil.which("clang")
    if clang is None:
        print("needs clang", file=sys.stderr)
        return 1
    program = build(clang)
    corpus = DIRECTORY / target
    corpus.mkdir(exist_ok=True)
    for number, seed in enumerate(seeds(target)):
        (corpus / f"seed-{number}").write_bytes(seed)
    environment = os.environ | {
        "ZKV_FUZZ_PYTHON": sys.executable,
        "ZKV_FUZZ_TARGET": target,
        "PYTHONPATH": str(DIRECTORY / "tree"),
        "PYTHONMALLOC": "malloc",  # So that AddressSanitizer sees every object.
        "ASAN_OPTIONS": "detect_leaks=0",
    }
    limits = [f"-max_total_time={SECONDS}", f"-max_len={LONGEST}", f"-artifact_prefix={corpus}-"]
    if any(not argument.startswith("-") for argument in arguments):
        corpora: list[str] = []  # Inputs to repeat.
    else:
        corpora = [str(corpus)]
    return subprocess.run(
        [str(program), *limits, *arguments, *corpora], env=environment, check=False
    ).returncode


if __name__ == "__main__":
    sys.exit(main())
