"""What is public, what importing it costs, and that a built package works."""

from __future__ import annotations

import inspect
import re
import shutil
import subprocess
import sys
import sysconfig
from graphlib import TopologicalSorter
from pathlib import Path

import grimp
import pytest

import zkv
import zkv.client
from tests.support import LIMIT, ROOT, ServerProcess, environment

SERVER_SIDE = {
    "embed",
    "server",
    "broker",
    "commands",
    "engine",
    "durability",
    "keyspace",
    "config",
}


def modules_after(code: str) -> set[str]:
    return set(
        subprocess.check_output(
            [sys.executable, "-c", f"{code}; import sys; print(*sys.modules)"],
            env=environment(), cwd=ROOT, text=True,
        ).split()
    )  # fmt: skip


@pytest.mark.parametrize("package", [zkv, zkv.client], ids=["zkv", "zkv.client"])
def test_all_names_that_are_public_are_in_all(package: object) -> None:
    names = package.__all__  # type: ignore[attr-defined]

    assert names == sorted(names)
    assert all(getattr(package, name) is not None for name in names)
    assert not hasattr(package, "nothing_of_this_name")


def test_what_the_client_exports_is_exported_at_the_top() -> None:
    assert {*zkv.__all__} <= {*dir(zkv)}
    others = {"Server", "ServerFailedError", "ZkvError", "__version__"}
    assert set(zkv.__all__) == {*zkv.client.__all__, *others}
    assert all(getattr(zkv, name) is getattr(zkv.client, name) for name in zkv.client.__all__)
    assert not any(hasattr(zkv, module) for module in ("retry", "operations", "aio"))


def test_the_public_names_are_those_of_what_a_client_can_give() -> None:
    """Everything that programs may have to name: what the methods return, and what that returns."""
    named, todo = set[str](), {"Client", "AsyncClient"}
    while todo:
        name = todo.pop()
        named.add(name)
        for returned in map(returned_by, vars_of(getattr(zkv, name))):
            todo |= {each for each in re.findall(r"[A-Z]\w+", returned) if each not in named}
            todo -= NOT_OURS
    beside = {"Codec", "ValueType", "RetryPolicy"}  # What programs make, and give.
    errors = {name for name in zkv.client.__all__ if name.endswith("Error")}
    assert named | beside | errors == {*zkv.client.__all__}


NOT_OURS = {
    "Any", "AsyncIterator", "Callable", "Dictionary", "ItemsInOrder", "ItemsView", "Iterator",
    "KeysInOrder", "KeysView", "None", "ParamSpec", "Reply", "Self", "ValuesInOrder", "ValuesView",
    "ClientError",
}  # fmt: skip


def vars_of(cls: type) -> list[object]:
    return [value for name, value in inspect.getmembers(cls) if not name.startswith("_")] + [
        vars(cls).get("__call__")
    ]


def returned_by(method: object) -> str:
    """The annotation of what a method or a property returns."""
    function = method.fget if isinstance(method, property) else inspect.unwrap(method)  # type: ignore[arg-type]
    return str(getattr(function, "__annotations__", {}).get("return", ""))


def test_imports_go_in_no_circle_but_for_types() -> None:
    graph = grimp.build_graph("zkv", exclude_type_checking_imports=True, cache_dir=None)
    imported = {
        module: graph.find_modules_directly_imported_by(module) - {module}
        for module in graph.modules
    }
    assert "zkv.client.recipes.lock" in imported["zkv.client.namespace"]
    assert set(TopologicalSorter(imported).static_order()) == graph.modules


def test_every_error_is_public() -> None:
    errors = {
        name
        for name, value in vars(zkv.client.errors).items()
        if isinstance(value, type) and issubclass(value, zkv.ZkvError)
    }

    assert errors <= set(zkv.__all__)


def test_importing_zkv_imports_next_to_nothing() -> None:
    assert not modules_after("import zkv") & {"zmq", "msgpack", "asyncio", "zkv.client"}


def test_the_client_imports_nothing_of_the_server() -> None:
    modules = modules_after("from zkv import Client")

    assert "zkv.client.sync" in modules
    assert not modules & {"msgspec", "zkv.client.aio", "zkv.client.watch", "zkv.client.recipes"}
    assert not {
        name
        for name in modules
        if name.split(".")[1:2] and name.split(".")[1] in SERVER_SIDE and name.startswith("zkv.")
    }
    assert "zkv.client.aio" in modules_after("from zkv import AsyncClient")


def test_a_program_beside_the_clone_imports_the_package(tmp_path: Path) -> None:
    """There, the clone is itself something named `zkv`, and found first."""
    (tmp_path / "zkv").symlink_to(ROOT)
    (tmp_path / "mine.py").write_text("import zkv; print(zkv.Client.__module__)")
    variables = environment()
    del variables["PYTHONPATH"]  # As it is installed, and not as tests find it.
    for arguments in (["mine.py"], ["-c", "import zkv; print(zkv.Client.__module__)"]):
        done = subprocess.run(
            [sys.executable, *arguments], env=variables, cwd=tmp_path,
            capture_output=True, text=True, timeout=LIMIT, check=False,
        )  # fmt: skip
        assert (done.returncode, done.stdout) == (0, "zkv.client.sync\n"), done.stderr


USE = """
import sys
from pathlib import Path
import zkv
assert Path(zkv.__file__).is_relative_to(sys.prefix), zkv.__file__
with zkv.Client(sys.argv[1]) as kv:
    kv["built"] = zkv.__version__
    print(kv["built"])
"""


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("form", ["wheel", "sdist"])
def test_a_built_package_works_in_an_empty_environment(
    form: str, tmp_path: Path, server: ServerProcess
) -> None:
    source = tmp_path / "source"
    shutil.copytree(
        ROOT,
        source,
        ignore=shutil.ignore_patterns(".git", ".venv*", "var", "*.egg-info", ".*_cache"),
    )
    build(f"build_{form}", source, tmp_path / "dist")
    (built,) = (tmp_path / "dist").iterdir()
    python = empty_environment(tmp_path / "venv")
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-index"]
    run([*pip, "--no-deps", "--no-build-isolation", str(built)], tmp_path)

    assert run([str(python), "-c", USE, server.endpoint], tmp_path) == f"{zkv.__version__}\n"
    zkv_command = str(python.parent / "zkv-cli")
    assert run([zkv_command, "-e", server.endpoint, "get", "built"], tmp_path).strip()
    assert list((tmp_path / "venv").rglob("zkv/py.typed"))


def build(hook: str, source: Path, target: Path) -> None:
    """Call the build backend, which is installed beside the tests: nothing is downloaded."""
    target.mkdir()
    code = f"from setuptools import build_meta; build_meta.{hook}({str(target)!r})"
    run([sys.executable, "-c", code], source)


def empty_environment(directory: Path) -> Path:
    """A virtual environment with what zkv depends on, and without zkv; its Python."""
    run([sys.executable, "-m", "venv", "--without-pip", str(directory)], directory.parent)
    (site_packages,) = directory.glob("lib/python*/site-packages")
    # Paths in such a file are searched, but .pth files in them are not read: no zkv from there.
    (site_packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return directory / "bin" / "python"


def run(command: list[str], cwd: Path) -> str:
    done = subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, timeout=5 * LIMIT, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
