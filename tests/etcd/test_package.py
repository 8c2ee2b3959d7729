"""What is said where a package is missing, how errors come about, and what is imported."""

from __future__ import annotations

import subprocess
import sys
from typing import Final

import pytest

from tests.support import LIMIT, environment
from zkv.etcd import (
    AccessError,
    CompactedRevisionError,
    EtcdBusyError,
    EtcdError,
    FutureRevisionError,
    InvalidCallError,
    NoSpaceError,
    RequestTooLargeError,
    UnknownOutcomeError,
)
from zkv.etcd.errors import error_of, has_stale_token


def python(program: str) -> subprocess.CompletedProcess[str]:
    """Run a program in an interpreter of its own."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", program], env=environment(), check=True,
        capture_output=True, text=True, timeout=LIMIT,
    )  # fmt: skip


@pytest.mark.parametrize("missing", ["hpack", "google.protobuf", "google"])
def test_a_missing_package_is_named_with_its_remedy(missing: str) -> None:
    said = python(
        "import sys\n"
        f"sys.modules[{missing!r}] = None\n"
        "from zkv.errors import ConfigError\n"
        "import zkv.etcd\n"
        "try:\n"
        "    zkv.etcd.connect(['127.0.0.1:1'])\n"
        "except ConfigError as error:\n"
        "    print(error)\n"
    )
    assert "pip install 'zkv[etcd]'" in said.stdout


def test_only_a_client_imports_what_the_extra_brings() -> None:
    said = python(
        "import sys, zkv, zkv.etcd, zkv.server, zkv.cli.main\n"
        "print([name for name in sys.modules if name.partition('.')[0] in ('hpack', 'google')])\n"
    )
    assert said.stdout == "[]\n"


ANSWERS: Final = [
    ("DEADLINE_EXCEEDED", "Deadline Exceeded", UnknownOutcomeError),
    ("CANCELLED", "Channel closed!", UnknownOutcomeError),
    ("INTERNAL", "Received RST_STREAM with error code 2", UnknownOutcomeError),
    ("UNKNOWN", "raft proposal dropped", UnknownOutcomeError),
    ("UNAVAILABLE", "etcdserver: request timed out", UnknownOutcomeError),
    ("UNAVAILABLE", "etcdserver: leader changed", UnknownOutcomeError),
    ("UNAVAILABLE", "etcdserver: no leader", UnknownOutcomeError),
    ("UNAVAILABLE", "cannot connect: Connection refused", UnknownOutcomeError),
    ("RESOURCE_EXHAUSTED", "something new", UnknownOutcomeError),
    ("ABORTED", "", UnknownOutcomeError),
    ("RESOURCE_EXHAUSTED", "etcdserver: mvcc: database space exceeded", NoSpaceError),
    ("RESOURCE_EXHAUSTED", "etcdserver: too many requests", EtcdBusyError),
    (
        "RESOURCE_EXHAUSTED",
        "grpc: received message larger than max (3 vs. 2)",
        RequestTooLargeError,
    ),
    ("INVALID_ARGUMENT", "etcdserver: request is too large", RequestTooLargeError),
    ("INVALID_ARGUMENT", "etcdserver: duplicate key given in txn request", InvalidCallError),
    (
        "INVALID_ARGUMENT",
        "etcdserver: authentication failed, invalid user ID or password",
        AccessError,
    ),
    ("INVALID_ARGUMENT", "etcdserver: revision of auth store is old", AccessError),
    ("UNAUTHENTICATED", "etcdserver: invalid auth token", AccessError),
    ("PERMISSION_DENIED", "etcdserver: permission denied", AccessError),
    ("UNIMPLEMENTED", "unknown service", InvalidCallError),
    ("FAILED_PRECONDITION", "etcdserver: authentication is not enabled", EtcdError),
    ("DATA_LOSS", "etcdserver: corrupt cluster", EtcdError),
    (
        "OUT_OF_RANGE",
        "etcdserver: mvcc: required revision has been compacted",
        CompactedRevisionError,
    ),
    (
        "OUT_OF_RANGE",
        "etcdserver: mvcc: required revision is a future revision",
        FutureRevisionError,
    ),
    ("UNAUTHENTICATED", "cannot connect: CERTIFICATE_VERIFY_FAILED", AccessError),
    ("UNAVAILABLE", "[SSL: DECRYPTION_FAILED_OR_BAD_RECORD_MAC]", UnknownOutcomeError),
]


@pytest.mark.parametrize(("code", "details", "kind"), ANSWERS)
def test_errors(code: str, details: str, kind: type[EtcdError]) -> None:
    error = error_of(code, details, "host:2379")
    assert type(error) is kind
    assert error.endpoint == "host:2379"
    assert str(error).startswith("etcd at host:2379: ")


def test_tokens_that_another_one_may_replace() -> None:
    for details in (
        "etcdserver: invalid auth token",
        "etcdserver: revision of auth store is old",
        "etcdserver: user name is empty",
    ):
        assert has_stale_token(details)
    for details in ("etcdserver: permission denied", "etcdserver: request timed out"):
        assert not has_stale_token(details)
