"""Points Celery's own integration tests to zkv for results, and to a Redis for messages."""

from __future__ import annotations

import os
import re

import pytest

ALSO_WITH_REDIS = "fails here also with Redis as the result backend"
SKIPPED = {
    "test_error_propagates_from_chord": ALSO_WITH_REDIS,
    "test_revoked_by_headers_complex_canvas": ALSO_WITH_REDIS,
    "test_trace_log_arguments": ALSO_WITH_REDIS,
}

redis = f"redis://127.0.0.1:{os.environ['REDIS_PORT']}/0"
os.environ |= {
    "TEST_BROKER": redis,
    "TEST_BACKEND": os.environ["ZKV_ENDPOINT"].replace("tcp", "zkv") + "/celery-tests/",
    "REDIS_HOST": "127.0.0.1",
    "C_FORCE_ROOT": "1",
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for name, reason in SKIPPED.items():
            if re.search(rf"{name}\b", item.nodeid):
                item.add_marker(pytest.mark.skip(reason=reason))
