"""What ``make test-contrib`` makes of the reports of pytest."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.contrib.__main__ import outcomes_in

NO_TEST = '<testsuites><testsuite name="pytest" errors="0" failures="0" tests="0"/></testsuites>'


@pytest.mark.parametrize("report", [None, NO_TEST])
def test_a_run_without_a_test_has_failed(report: str | None, tmp_path: Path) -> None:
    path = tmp_path / "report.xml"
    if report is not None:
        path.write_text(report)
    assert list(outcomes_in(path)) == [("pytest", "failed", "it has run no test")]
