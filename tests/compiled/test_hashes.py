"""Hashes and checksums in C, by published vectors and beside those of Python's own library."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import zlib

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from zkv import compiled

pytestmark = pytest.mark.skipif(
    not compiled.COMPILED, reason="zkv was installed without a C compiler"
)

LENGTHS = [*range(20), 63, 64, 65, 127, 128, 129, 255, 256, 1_000]


def some_bytes(size: int) -> bytes:
    return bytes(number * 7 % 256 for number in range(size))


def test_crc32_has_its_published_check_value() -> None:
    """Of "CRC-32/ISO-HDLC" in the catalogue of parametrised CRC algorithms, by Greg Cook."""
    assert compiled.store.crc32(b"123456789", 0) == 0xCBF43926


@given(data=st.binary(max_size=100), crc=st.integers(0, 2**32 - 1))
def test_crc32_is_that_of_zlib(data: bytes, crc: int) -> None:
    assert compiled.store.crc32(data, crc) == zlib.crc32(data, crc)


def test_crc32_of_every_length_is_that_of_zlib() -> None:
    """Long inputs are folded, 64 bytes at a time, and begin anywhere in memory."""
    data = some_bytes(70_000)
    for size in [*range(700), 65_535, 65_536, 69_000]:
        for crc in (0, 0xFFFFFFFF, 0x12345678):
            part = data[size % 16 : size % 16 + size]
            assert compiled.store.crc32(part, crc) == zlib.crc32(part, crc)


def test_blake2b_has_the_digest_that_its_rfc_shows() -> None:
    """RFC 7693, appendix A."""
    assert compiled.store.blake2b(b"abc", 64).hex() == (
        "ba80a53f981c4d0d6a2797b69f12f6e94c212f14685ac4b74b12bb6fdbffa2d1"
        "7d87c5392aab792dc252d5de4533cc9518d38aa8dbf1925ab92386edd4009923"
    )


@given(sizes=st.lists(st.sampled_from(LENGTHS), max_size=13))
@example(sizes=[1, 2, 3, 4, 5, 6, 7, 128])
@example(sizes=[1, 129, 2, 0, 127])
def test_a_sum_of_digests_is_that_of_hashlib(sizes: list[int]) -> None:
    """Short messages are hashed four at a time, where the processor can."""
    messages = [some_bytes(size) for size in sizes]
    digests = [hashlib.blake2b(message, digest_size=8).digest() for message in messages]
    expected = sum(int.from_bytes(digest, "little") for digest in digests) % 2**64
    assert compiled.store.blake2b_sum(messages) == expected


@pytest.mark.parametrize("size", [8, 32, 64])
def test_blake2b_is_that_of_hashlib(size: int) -> None:
    for length in LENGTHS:
        data = some_bytes(length)
        assert (
            compiled.store.blake2b(data, size) == hashlib.blake2b(data, digest_size=size).digest()
        )


def test_siphash_is_that_of_python() -> None:
    """Which hashes bytes by SipHash-1-3, with a key of zeros where PYTHONHASHSEED is 0."""
    if sys.hash_info.algorithm != "siphash13":
        pytest.skip(f"this Python hashes by {sys.hash_info.algorithm}")
    program = (
        "import json; print(json.dumps([hash(bytes(n * 7 % 256 for n in range(size)))"
        f" % 2**64 for size in {LENGTHS}]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env=os.environ | {"PYTHONHASHSEED": "0"},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    ours = [compiled.store.siphash13(some_bytes(length), 0, 0) for length in LENGTHS]
    # Python hashes what is empty to 0, without asking SipHash.
    assert ours[1:] == json.loads(done.stdout)[1:]


SIPHASH_13 = ["abac0158050fc4dc", "c9f49bf37d57ca93", "82cb9b024dc7d44d", "8bf80ab8e7ddf7fb"]
"""Of the bytes 0, 1, 2 ..., none to three of them, under the key 0, 1, 2 ... 15. As they stand
in the tests of Rust's standard library (library/coretests/tests/hash/sip.rs)."""


def test_siphash_has_its_published_values() -> None:
    k0, k1 = (int.from_bytes(bytes(range(first, first + 8)), "little") for first in (0, 8))
    for length, expected in enumerate(SIPHASH_13):
        hashed = compiled.store.siphash13(bytes(range(length)), k0, k1)
        assert f"{hashed:016x}" == expected
