"""`contrib/prometheus`: each query of the dashboard and of the alerts finds what it asks for.

A real Prometheus watches real servers. Both the dashboard and the rules are what users copy.
"""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from tests.cluster.shown import Members
from tests.support import (
    FREE_PORT,
    LIMIT,
    ROOT,
    Load,
    Raw,
    ServerInProcess,
    eventually,
    free_ports,
)
from zkv.figures import FIGURES

FOLDER: Final = ROOT / "contrib" / "prometheus"
DASHBOARD: Final = json.loads((FOLDER / "grafana.json").read_text(encoding="utf-8"))
RULES: Final = (FOLDER / "alerts.yml").read_text(encoding="utf-8")
VARIABLES: Final = {"$__rate_interval": "10s", "$job": ".+", "$instance": ".+"}
"""What Grafana puts in their place."""


def queries() -> list[str]:
    """All of them. A comparison of an alert tells whether it holds, instead of finding nothing."""
    found = [target["expr"] for panel in DASHBOARD["panels"] for target in panel.get("targets", [])]
    for name, value in VARIABLES.items():
        found = [query.replace(name, value) for query in found]
    alerts = re.findall(r"^ +expr: (.+)$", RULES, re.M)
    return found + [re.sub(r" (==|>) ", r" \1 bool ", alert) for alert in alerts]


def ask(client: Raw) -> None:
    """Send requests of many kinds."""
    client.ok(op="PUT", key="k", value=1)
    client.ok(op="COUNT")
    client.call(op="GET", key="nobody")
    busy = client.call(op="PUT", key="k", value=1, session="second", seq=1)
    assert busy["code"] == "BUSY"


def write(client: Raw) -> None:
    """Send what is appended to etcd."""
    client.ok(op="PUT", key="k", value=1)


class Prometheus:
    """A real one, that looks at servers several times a second. Use as a context manager."""

    def __init__(self, program: str, directory: Path, *targets: str) -> None:
        shutil.copytree(FOLDER, directory)
        config = (FOLDER / "prometheus.yml").read_text(encoding="utf-8")
        config = config.replace("15s", "200ms").replace("127.0.0.1:9555", '", "'.join(targets))
        (directory / "prometheus.yml").write_text(config, encoding="utf-8")
        (port,) = free_ports(1)
        self._url = f"http://127.0.0.1:{port}"
        self._log = directory / "log.txt"
        with open(self._log, "wb") as log:
            self._process = subprocess.Popen(
                [
                    program, f"--config.file={directory / 'prometheus.yml'}",
                    f"--storage.tsdb.path={directory / 'data'}",
                    f"--web.listen-address=127.0.0.1:{port}",
                ],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=directory,
            )  # fmt: skip

    def __enter__(self) -> Prometheus:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()

    def ask(self, path: str, **fields: str) -> Any:
        """What its API answers; None while it is starting."""
        assert self._process.poll() is None, self._log.read_text()
        url = f"{self._url}/api/v1/{path}?{urllib.parse.urlencode(fields)}"
        try:
            with urllib.request.urlopen(url, timeout=LIMIT) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            if error.code == 503:
                return None
            raise AssertionError(f"{fields}: {error.read().decode()}") from error
        except OSError:
            return None

    def rules(self, health: str, state: str = "") -> list[str]:
        """The names of the rules of this health and, if one is given, this state."""
        groups = self.ask("rules")["groups"]
        return [
            rule["name"]
            for group in groups
            for rule in group["rules"]
            if rule["health"] == health and state in ("", rule["state"])
        ]

    def finds(self, query: str) -> bool:
        """Whether a query gives at least one number."""
        data = self.ask("query", query=query)
        return data is not None and any(
            not math.isnan(float(series["value"][1])) for series in data["result"]
        )


@pytest.fixture
def prometheus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Prometheus]:
    """It sees a server alone, and a member of a store."""
    if (program := shutil.which("prometheus")) is None:
        pytest.skip("NOT RUN: prometheus is not installed here (make monitor-deps)")
    metrics = {"endpoint": "http://127.0.0.1:*"}
    with (
        ServerInProcess(
            tmp_path / "data", server={"feed": FREE_PORT}, limits={"max_sessions": 1},
            metrics=metrics,
        ) as server,
        Members(tmp_path, monkeypatch).member("a", metrics=metrics) as member,
    ):  # fmt: skip
        targets = [each.server.metrics.removeprefix("http://") for each in (server, member)]
        eventually(lambda: member.server.role.leads, "it leads")
        with Raw(server.endpoint) as client:
            client.ok(op="PUT", key="k", value=1, session="first", seq=1)
            client.ok(op="SNAPSHOT")
        with (
            Load(server.endpoint, ask, pause=0.01),
            Load(member.endpoint, write, pause=0.01),
            Prometheus(program, tmp_path / "prometheus", *targets) as prometheus,
        ):
            yield prometheus


@pytest.mark.timeout(120)
def test_each_query_finds_something(prometheus: Prometheus) -> None:
    eventually(lambda: prometheus.finds("sum(up) == 2"), "it has seen the servers")
    for query in queries():
        eventually(lambda query=query: prometheus.finds(query), query)  # type: ignore[misc]
    eventually(lambda: len(prometheus.rules("ok")) == RULES.count("- alert:"), "each rule is well")
    eventually(
        lambda: set(prometheus.rules("ok", "pending")) == {"ZkvBusy", "ZkvSessionsNearlyFull"},
        "the two alerts that the load raises, and no other",
    )


@pytest.mark.parametrize("words", [["rules", "alerts.yml"], ["config", "prometheus.yml"]])
def test_promtool_finds_no_fault(words: list[str]) -> None:
    if (promtool := shutil.which("promtool")) is None:
        pytest.skip("NOT RUN: promtool is not installed here (make monitor-deps)")
    done = subprocess.run(
        [promtool, "check", *words], cwd=FOLDER, capture_output=True, text=True, timeout=LIMIT,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_queries_name_metrics_that_exist() -> None:
    known = {figure.name for figure in FIGURES} | {"up"}
    for query in queries():
        found = re.findall(r"\b((?:zkv|process)_\w+|up)\b", query)
        assert found, query
        for name in found:
            assert name in known or re.sub("_(bucket|sum|count)$", "", name) in known, name


def test_panels_do_not_overlap() -> None:
    places = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        for x in range(at["x"], at["x"] + at["w"]):
            for y in range(at["y"], at["y"] + at["h"]):
                assert (x, y) not in places, panel["title"]
                places.add((x, y))
    numbers = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(numbers) == len(set(numbers))
