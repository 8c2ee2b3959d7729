"""Points Celery's own integration tests to zkv for results, and to a Redis for messages."""

from __future__ import annotations

import os

redis = f"redis://127.0.0.1:{os.environ['REDIS_PORT']}/0"
os.environ |= {
    "TEST_BROKER": redis,
    "TEST_BACKEND": os.environ["ZKV_ENDPOINT"].replace("tcp", "zkv") + "/celery-tests/",
    "REDIS_HOST": "127.0.0.1",
    "C_FORCE_ROOT": "1",
}
