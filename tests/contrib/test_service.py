"""`contrib/systemd`, `contrib/kubernetes`, `contrib/container`: what operators copy is right.

What takes longer, the package and the image themselves, is in `test_packages.py`.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest
import yaml

from tests.conftest import Connect
from tests.etcd.nodes import EtcdCluster
from tests.support import (
    ROOT,
    ServerProcess,
    curve_options,
    environment,
    eventually,
    free_ports,
    zkv_command,
)
from zkv import config
from zkv.keys import make_key_file, read_key_file

UNIT: Final = ROOT / "contrib" / "systemd" / "zkv.service"
MANIFESTS: Final = ROOT / "contrib" / "kubernetes"
CONTAINER: Final = ROOT / "contrib" / "container"
MOST_EXPOSED: Final = 1.5

needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None,
    reason="NOT RUN: systemd is not installed here (apt install systemd)",
)


# --- systemd ---------------------------------------------------------------------------------


def analyze(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["systemd-analyze", *words], capture_output=True, text=True, check=False
    )  # fmt: skip


@needs_systemd
def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    unit = tmp_path / UNIT.name
    text = UNIT.read_text(encoding="utf-8").replace("/usr/bin/zkv ", f"{sys.executable} ")
    unit.write_text(text, encoding="utf-8")
    done = analyze("verify", "--man=no", str(unit))
    assert (done.returncode, done.stderr) == (0, "")


@needs_systemd
def test_the_service_can_do_little_else() -> None:
    done = analyze("security", "--offline=true", "--no-pager", str(UNIT))
    found = re.search(r"Overall exposure level for zkv.service: ([\d.]+)", done.stdout)
    assert found is not None, done.stdout + done.stderr
    assert float(found[1]) <= MOST_EXPOSED


# --- Settings --------------------------------------------------------------------------------


def test_the_settings_in_the_image() -> None:
    table = tomllib.loads((CONTAINER / "zkv.toml").read_text(encoding="utf-8"))
    settings = config.build(table)
    assert settings.durability.data_dir == "/var/lib/zkv"
    assert settings.limits.max_memory == -1
    assert not settings.security.insecure


class Pod(NamedTuple):
    """What a manifest says of a pod."""

    name: str
    args: list[str]
    env: dict[str, str]
    probes: dict[str, str]


class Manifest:
    """A manifest, with places on this machine for those in a cluster."""

    def __init__(self, name: str, directory: Path) -> None:
        text = (MANIFESTS / name).read_text(encoding="utf-8")
        self.directory = directory
        self.public = make_key_file(directory / "server.key")
        operator = make_key_file(directory / "operator.key")
        text = text.replace("SERVER_PUBLIC_KEY", self.public)
        text = text.replace("OPERATOR_PUBLIC_KEY", operator)
        self._objects: list[dict[str, Any]] = list(yaml.safe_load_all(text))
        (self._files,) = (each["data"] for each in self.of_kind("ConfigMap"))
        self.ports: dict[str, list[int]] = {}

    def of_kind(self, kind: str) -> list[dict[str, Any]]:
        return [each for each in self._objects if each["kind"] == kind]

    def pods(self) -> Iterator[Pod]:
        """The pods of its sets."""
        for each in self.of_kind("StatefulSet"):
            (container,) = each["spec"]["template"]["spec"]["containers"]
            for number in range(each["spec"]["replicas"]):
                name = f"{each['metadata']['name']}-{number}"
                env = {
                    it["name"]: it["value"].replace("$(POD_NAME)", name)
                    for it in container["env"]
                    if "value" in it
                }
                probes = {
                    kind: container[f"{kind}Probe"]["httpGet"]["path"]
                    for kind in ("startup", "readiness", "liveness")
                }
                self.ports[name] = free_ports(3)
                yield Pod(name, container["args"], env, probes)

    def here(self, text: str, pod: Pod) -> str:
        """A text for a pod, with what it has here."""
        for name, ports in self.ports.items():
            text = text.replace(f"tcp://{name}.zkv:5555", f"tcp://127.0.0.1:{ports[0]}")
            text = text.replace(f"tcp://{name}.zkv:5556", f"tcp://127.0.0.1:{ports[1]}")
        own = self.ports[pod.name]
        for port, here in zip(("*:5555", "*:5556", "0.0.0.0:9555"), own, strict=True):
            text = text.replace(port, f"127.0.0.1:{here}")
        place = self.directory / pod.name
        return text.replace("/run/keys", str(self.directory)).replace(
            "/etc/zkv", str(place)
        ).replace("/var/lib/zkv", str(place / "data"))  # fmt: skip


class PodServer(ServerProcess):
    """The server that a pod runs."""

    def __init__(self, manifest: Manifest, pod: Pod, url: str = "") -> None:
        place = manifest.directory / pod.name
        env = {name: manifest.here(value, pod) for name, value in pod.env.items()}
        super().__init__(place, env=env)
        for name, text in manifest._files.items():
            here = re.sub(r'url = ".*"', f'url = "{url}"', manifest.here(text, pod))
            (place / name).write_text(here, encoding="utf-8")
        self._command = zkv_command(*(manifest.here(word, pod) for word in pod.args))
        self._probe = f"http://127.0.0.1:{manifest.ports[pod.name][2]}"

    def probe(self, path: str) -> int:
        """The status of a probe; 0 if nobody answers."""
        try:
            with urllib.request.urlopen(self._probe + path, timeout=10) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            return 0


def roles_of(manifest: Manifest, servers: list[PodServer], connect: Connect) -> list[str]:
    operator = read_key_file(manifest.directory / "operator.key")
    options = curve_options(manifest.public, operator)
    return [
        connect(each.endpoint, options=options).ok(op="INFO")["replication"]["role"]
        for each in servers
    ]


def test_a_server_and_its_standby(tmp_path: Path, connect: Connect) -> None:
    manifest = Manifest("standby.yaml", tmp_path)
    first, second = list(manifest.pods())
    with PodServer(manifest, first) as primary, PodServer(manifest, second) as standby:
        assert roles_of(manifest, [primary, standby], connect) == ["primary", "standby"]
        for server, pod in ((primary, first), (standby, second)):
            assert {server.probe(path) for path in pod.probes.values()} == {200}


def test_members_are_ready_before_one_leads(
    tmp_path: Path, node: EtcdCluster, connect: Connect
) -> None:
    """Else a set would start the first one, and wait for ever until it leads."""
    manifest = Manifest("cluster.yaml", tmp_path)
    (stateful,) = manifest.of_kind("StatefulSet")
    assert stateful["spec"]["podManagementPolicy"] == "Parallel"
    (service,) = manifest.of_kind("Service")
    assert service["spec"]["publishNotReadyAddresses"] is True
    url = f"etcd://{node.endpoints[0].removeprefix('http://')}/{tmp_path.name}"
    pods = list(manifest.pods())
    assert len(pods) == 3
    done = subprocess.run(zkv_command("store", "found", url), env=environment(), check=False)
    assert done.returncode == 0
    with PodServer(manifest, pods[0], url) as once:
        assert once.stop() == 0
    nobody = f"etcd://127.0.0.1:{free_ports(1)[0]}/{tmp_path.name}"
    with PodServer(manifest, pods[0], nobody) as member:
        assert {member.probe(path) for path in pods[0].probes.values()} == {200}
        assert member.probe("/readyz?for=write") == 503
        assert roles_of(manifest, [member], connect) == ["follower"]
    with PodServer(manifest, pods[0], url) as one, PodServer(manifest, pods[1], url) as two:
        eventually(
            lambda: sorted(roles_of(manifest, [one, two], connect)) == ["follower", "leader"],
            "one of them leads",
        )
