"""Points Celery's own integration tests to zkv for results, and to a Redis for messages."""

from __future__ import annotations

import os
import re
from typing import Any

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


class Address(str):
    """A backend's address that a test takes for one of Redis.

    Tests that ask for Redis as the backend need one to talk to, which the broker is.
    """

    __slots__ = ()

    def startswith(self, prefix: Any, *place: Any) -> bool:
        return prefix == "redis" or super().startswith(prefix, *place)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    (settings,) = (
        each for each in config.pluginmanager.get_plugins() if hasattr(each, "TEST_BACKEND")
    )
    settings.TEST_BACKEND = Address(settings.TEST_BACKEND)
    for item in items:
        for name, reason in SKIPPED.items():
            if re.search(rf"{name}\b", item.nodeid):
                item.add_marker(pytest.mark.skip(reason=reason))
