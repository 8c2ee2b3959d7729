"""The package for Debian and the image, as operators use them: `make test-packages`.

A Debian is made, and booted with systemd in namespaces of its own; so this needs root.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, Self

import pytest

from tests.support import ROOT, children_of, eventually

LONG: Final = 300.0
"""Seconds after which a machine counts as hung."""
PIP_SETTINGS: Final = Path("/etc/pip.conf")
CERTIFICATES: Final = "/etc/ssl/certs"
IMAGE: Final = "localhost/zkv-test"
BASE: Final = "localhost/zkv-test-base"
STORAGE: Final = {"STORAGE_DRIVER": "vfs", "BUILDAH_ISOLATION": "chroot"}
"""For buildah where there is no other container."""
NEEDED: Final = ("buildah", "dh", "ip", "mmdebstrap", "systemd-nspawn")
MISSING: Final = [name for name in NEEDED if shutil.which(name) is None]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]
needs_tools = [
    pytest.mark.skipif(
        bool(MISSING), reason=f"NOT RUN: {MISSING} not installed here (make packages-deps)"
    ),
    pytest.mark.skipif(os.geteuid() != 0, reason="NOT RUN: it needs root"),
]


def run(*command: str, **variables: str) -> str:
    """Run a command, which must succeed; what it prints."""
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | variables, text=True, stdout=subprocess.PIPE, check=True
    )  # fmt: skip
    return done.stdout.strip()


def child_of(process: int) -> int:
    """The first child of a process; 0 if it has none yet."""
    return next(iter(children_of(process)), 0)


def build(*words: str) -> str:
    """What `tools/packages.py` prints last."""
    wheel = os.environ.get("WHEEL")
    command = [sys.executable, "-m", "tools.packages", *(["--wheel", wheel] if wheel else [])]
    return run(*command, *words, **STORAGE).splitlines()[-1]


@pytest.fixture(scope="module")
def debian(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Debian in an archive, with systemd and Python."""
    archive = tmp_path_factory.mktemp("debian") / "root.tar"
    packages = "systemd,systemd-sysv,python3,python3-venv,ca-certificates,debconf"
    run(
        "mmdebstrap",
        "--quiet",
        "--variant=minbase",
        f"--include={packages}",
        "bookworm",
        str(archive),
    )
    return archive


# --- Manifests -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["standby.yaml", "cluster.yaml"])
def test_kubernetes_takes_the_manifests(name: str) -> None:
    command = shutil.which("kubernetes-validate", path=str(Path(sys.executable).parent))
    assert command is not None, "make test-packages installs it"
    run(command, "--strict", str(ROOT / "contrib" / "kubernetes" / name))


def test_compose_takes_the_file() -> None:
    program = (
        "import compose_spec, sys, yaml\n"
        "file = yaml.safe_load(open(sys.argv[1]))\n"
        "compose_spec.ComposeSpecification.model_validate(file)\n"
    )
    run(sys.executable, "-c", program, str(ROOT / "contrib" / "container" / "compose.yaml"))


# --- Debian ----------------------------------------------------------------------------------


class Machine:
    """A Debian that runs, without any network. Use as a context manager."""

    def __init__(self, directory: Path, archive: Path) -> None:
        self.root = directory / "root"
        self.root.mkdir()
        run("tar", "--directory", str(self.root), "--extract", "--file", str(archive))
        self._log = directory / "console.txt"
        self._process: subprocess.Popen[bytes]
        self._leader = 0

    def __enter__(self) -> Self:
        with open(self._log, "wb") as log:
            self._process = subprocess.Popen(
                [
                    "systemd-nspawn", "--quiet", "--register=no", "--keep-unit", "--boot",
                    "--private-network", "--console=pipe", "--directory", str(self.root),
                ],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        eventually(self._has_booted, "the machine runs", LONG)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(LONG)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _has_booted(self) -> bool:
        assert self._process.poll() is None, self._log.read_text(encoding="utf-8")
        self._leader = child_of(self._process.pid)
        return bool(self._leader) and self.answer("systemctl", "is-system-running") in (
            "running", "degraded",
        )  # fmt: skip

    def _enter(self, *command: str) -> list[str]:
        return ["nsenter", "--target", str(self._leader), "--all", "--", *command]

    def run(self, *command: str, **variables: str) -> str:
        """Run a command, which must succeed; what it prints."""
        return run(*self._enter(*command), **variables)

    def answer(self, *command: str) -> str:
        """What a command prints, which may fail."""
        done = subprocess.run(
            self._enter(*command), capture_output=True, text=True, check=False
        )  # fmt: skip
        return done.stdout.strip()

    def add(self, package: Path) -> None:
        """Install or upgrade."""
        shutil.copy(package, self.root / "opt")
        self.run("dpkg", "--install", f"/opt/{package.name}", DEBIAN_FRONTEND="noninteractive")

    def property(self, name: str) -> str:
        """What systemd says of the service."""
        return self.run("systemctl", "show", "--value", "--property", name, "zkv")

    def await_service(self, other_than: str = "0") -> str:
        """Wait until the service runs in another process than that; return its number."""
        eventually(
            lambda: (
                self.property("ActiveState") == "active" and self.property("MainPID") != other_than
            ),
            "the service runs",
            LONG,
        )
        return self.property("MainPID")

    def configure(self, **settings: str) -> None:
        """Replace what the unit says, and start the service again."""
        folder = self.root / "etc" / "systemd" / "system" / "zkv.service.d"
        folder.mkdir(parents=True, exist_ok=True)
        lines = [f"{name}={value}" for name, value in settings.items()]
        (folder / "test.conf").write_text("\n".join(["[Service]", *lines, ""]), encoding="utf-8")
        self.run("systemctl", "daemon-reload")
        self.run("systemctl", "restart", "zkv")


@pytest.fixture(scope="module")
def package() -> Path:
    return ROOT / build("deb")


@pytest.fixture
def newer(package: Path, tmp_path: Path) -> Path:
    """The same package, with a higher version."""
    files = tmp_path / "newer"
    run("dpkg-deb", "--raw-extract", str(package), str(files))
    control = files / "DEBIAN" / "control"
    text = control.read_text(encoding="utf-8")
    (version,) = (line for line in text.splitlines() if line.startswith("Version: "))
    control.write_text(text.replace(version, f"{version}+newer"), encoding="utf-8")
    run(
        "dpkg-deb",
        "-Znone",
        "--root-owner-group",
        "--build",
        str(files),
        str(tmp_path / "newer.deb"),
    )
    return tmp_path / "newer.deb"


class TestDebian:
    pytestmark = needs_tools

    def test_the_service_from_its_installation_to_its_end(
        self, debian: Path, package: Path, newer: Path, tmp_path: Path
    ) -> None:
        with Machine(tmp_path, debian) as machine:
            machine.add(package)
            process = machine.await_service()
            assert machine.property("StatusText") == "serving at tcp://127.0.0.1:5555"
            machine.run("zkv-cli", "put", "greeting", "hello")

            settings = machine.root / "etc" / "zkv" / "zkv.toml"
            text = settings.read_text(encoding="utf-8")
            settings.write_text(text.replace("\nrequests = true", "\nrequests = false"))
            machine.run("systemctl", "reload", "zkv")
            eventually(
                lambda: (
                    "log.requests changed from true to false"
                    in machine.run("journalctl", "--unit", "zkv")
                ),
                "the settings are read",
            )

            # It ends by itself, and begins again by itself.
            os.kill(machine_process(machine, process), signal.SIGKILL)
            process = machine.await_service(process)
            assert machine.run("zkv-cli", "get", "greeting") == "hello"

            # A secret of root's, for a user that exists only while the service runs.
            machine.run("zkv", "keygen", "/etc/zkv/server.key")
            machine.configure(
                LoadCredential="server.key:/etc/zkv/server.key",
                Environment="ZKV_CFG_SECURITY__SECRET_KEY_FILE=%d/server.key",
            )
            assert machine.property("ActiveState") == "active"

            # It hangs, and is started again.
            machine.configure(WatchdogSec="4", TimeoutAbortSec="2")
            process = machine.await_service()
            os.kill(machine_process(machine, process), signal.SIGSTOP)
            process = machine.await_service(process)
            assert machine.run("zkv-cli", "get", "greeting") == "hello"

            machine.add(newer)
            process = machine.await_service(process)
            assert machine.run("zkv-cli", "get", "greeting") == "hello"

            data = machine.root / "var" / "lib" / "private" / "zkv" / "snapshot"
            machine.run("dpkg", "--remove", "zkv")
            assert machine.answer("systemctl", "is-active", "zkv") == "inactive"
            assert list(data.iterdir())
            assert settings.exists()
            machine.add(package)
            machine.await_service()
            assert machine.run("zkv-cli", "get", "greeting") == "hello"

            # Only who says so loses the data.
            machine.run("dpkg", "--purge", "zkv", DEBIAN_FRONTEND="noninteractive")
            assert list(data.iterdir())
            assert not settings.exists()
            machine.add(package)
            machine.await_service()
            assert machine.run("zkv-cli", "get", "greeting") == "hello"
            machine.run(
                "sh", "-c", "echo zkv zkv/remove_data boolean true | debconf-set-selections"
            )
            machine.run("dpkg", "--purge", "zkv", DEBIAN_FRONTEND="noninteractive")
            assert not data.parent.exists()
            assert not (machine.root / "usr" / "lib" / "zkv").exists()


def machine_process(machine: Machine, number: str) -> int:
    """The number that a process of a machine has here."""
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            lines = status.read_text(encoding="utf-8").splitlines()
        except OSError:
            continue
        (numbers,) = (line.split()[1:] for line in lines if line.startswith("NSpid:"))
        if len(numbers) > 1 and numbers[-1] == number and "zkv" in lines[0]:
            return int(numbers[0])
    raise AssertionError(f"there is no process {number}")


# --- The image -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def image(debian: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The files of the image, and its settings."""
    base = run("buildah", "from", "scratch", **STORAGE)
    run("buildah", "add", base, str(debian), "/", **STORAGE)
    run("buildah", "commit", "--rm", base, BASE, **STORAGE)
    here = ["--volume", f"{CERTIFICATES}:{CERTIFICATES}:ro"]  # As this machine reaches PyPI.
    if PIP_SETTINGS.exists():
        here += ["--secret", f"id=pip,src={PIP_SETTINGS}"]
    build("image", "--base", BASE, "--tag", IMAGE, "--", *here)
    container = run("buildah", "from", IMAGE, **STORAGE)
    facts = json.loads(run("buildah", "inspect", "--type", "image", IMAGE, **STORAGE))
    yield Path(run("buildah", "mount", container, **STORAGE)), facts["Docker"]["config"]
    run("buildah", "rm", container, **STORAGE)
    run("buildah", "rmi", "--force", IMAGE, BASE, **STORAGE)


INSIDE: Final = """
set -e
root=$1 data=$2; shift 2
ip link set lo up
mount --make-rprivate /
mount --bind "$root" "$root"
mount --bind "$data" "$root/var/lib/zkv"
mount -t proc proc "$root/proc"
mount -o remount,ro,bind "$root"
exec chroot --userspec=10001:10001 "$root" env -i "$@"
"""
"""What a container runtime does: a root that cannot be written, one volume, no other process."""


class Container:
    """A container of the image. Use as a context manager."""

    def __init__(self, image: tuple[Path, dict[str, Any]], data: Path, *settings: str) -> None:
        root, facts = image
        self._facts = facts
        words = [*facts["Env"], *settings, *facts["Entrypoint"], *facts["Cmd"]]
        self._command = [
            "unshare", "--pid", "--fork", "--kill-child", "--mount", "--net",
            "sh", "-c", INSIDE, "sh", str(root), str(data), *words,
        ]  # fmt: skip
        self.process: subprocess.Popen[str]

    def __enter__(self) -> Self:
        self.process = subprocess.Popen(
            self._command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()

    @property
    def first(self) -> int:
        """The number that its first process has here."""
        return child_of(self.process.pid)

    def await_ready(self) -> None:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line.startswith("READY"), line or self.process.communicate()[1]

    def run(self, *command: str, user: int = 10001) -> subprocess.CompletedProcess[str]:
        """Run a command beside the server, as ``exec`` of a runtime does."""
        first = str(self.first)
        return subprocess.run(
            [
                "nsenter", "--target", first, "--pid", "--mount", "--net", "--root", "--wdns=/",
                f"--setuid={user}", f"--setgid={user}",
                "env", "-i", *self._facts["Env"], *command,
            ],
            capture_output=True, text=True, check=False,
        )  # fmt: skip

    def stop(self) -> int:
        """Stop it as a runtime does; the exit status."""
        os.kill(self.first, getattr(signal, self._facts["StopSignal"]))
        return self.process.wait(LONG)


class TestImage:
    pytestmark = needs_tools

    @pytest.fixture
    def data(self, tmp_path: Path) -> Path:
        volume = tmp_path / "volume"
        volume.mkdir(0o700)
        os.chown(volume, 10001, 10001)
        return volume

    def test_it_says_what_it_is(self, image: tuple[Path, dict[str, Any]]) -> None:
        root, facts = image
        assert facts["User"] == "10001:10001"
        assert list(facts["Volumes"]) == ["/var/lib/zkv"]
        assert facts["StopSignal"] == "SIGTERM"
        assert not list(root.glob("tmp/*"))
        assert not list(root.glob("opt/zkv/lib/python3*/site-packages/pip"))

    def test_without_keys_it_does_not_start(
        self, image: tuple[Path, dict[str, Any]], data: Path
    ) -> None:
        with Container(image, data) as container:
            _, said = container.process.communicate(timeout=LONG)
            assert container.process.returncode == 2
            assert "security.secret_key_file" in said

    def test_a_server_of_one_container_and_the_next(
        self, image: tuple[Path, dict[str, Any]], data: Path
    ) -> None:
        insecure = "ZKV_CFG_SECURITY__INSECURE=true"
        for number in range(2):
            with Container(image, data, insecure) as container:
                container.await_ready()
                status = Path(f"/proc/{container.first}/status").read_text(encoding="utf-8")
                assert "\nUid:\t10001\t10001\t10001\t10001\n" in status
                kind, *check = container._facts["Healthcheck"]["Test"]
                assert kind == "CMD"
                assert container.run(*check).returncode == 0
                if number:
                    assert container.run("zkv-cli", "get", "k").stdout == "v\n"
                else:
                    assert container.run("zkv-cli", "put", "k", "v").returncode == 0
                assert "Read-only file system" in container.run("touch", "/x", user=0).stderr
                assert container.stop() == 0
        assert sorted(os.listdir(data)) == ["LOCK", "snapshot", "wal"]
