"""Measures how deeply arrays and maps nest in a packed value, without unpacking it.

A recursive decoder has a depth limit that depends on the Python version: 1,000 levels, or 170,000.
So the protocol has a limit of its own (`zkv.defaults.MAX_LEVELS`), and what nests more deeply is
found here before any decoder sees it.
"""

from __future__ import annotations

from typing import Final

import msgpack

from zkv import compiled
from zkv.defaults import MAX_LEVELS

LEVELS_ABOVE: Final = {"items": 1, "ops": 2}
"""Levels that a field itself adds around the values in it."""
_MOST: Final = MAX_LEVELS + 1
"""Levels that a body without such a field may have: its own, and those of a value."""
_COUNTED: Final = 504
"""Levels that are counted at most: one more than any request may have."""

_FIXED: Final = {0xCA: 4, 0xCB: 8, **{0xCC + n: 1 << n % 4 for n in range(8)}} | {
    0xD4 + n: 1 + (1 << n) for n in range(5)
}
"""First byte -> number of bytes that follow, if any: numbers and ext of fixed size."""
_SIZED: Final = {
    **{0xC4 + n: (1 << n, 0) for n in range(3)},
    **{0xC7 + n: (1 << n, 1) for n in range(3)},
    **{0xD9 + n: (1 << n, 0) for n in range(3)},
}
"""First byte -> bytes of the size that follows, and bytes in addition: bin, ext, str."""
_COUNTING: Final = {0xDC: (2, 1), 0xDD: (4, 1), 0xDE: (2, 2), 0xDF: (4, 2)}
"""First byte -> bytes of the count that follows, and values per item: array, map."""


def may_be_deep(body: bytes) -> bool:
    """Return False if a body certainly has no more levels than `_MOST`."""
    if len(body) <= MAX_LEVELS:  # Each level takes a byte.
        return False
    if not compiled.COMPILED and _AROUND and _is_skipped(_AROUND + body):
        return False
    return measure(body, 0)[1] > _MOST


def _is_skipped(packed: bytes) -> bool:
    """Return True if msgpack's reader can skip a value. It is much faster than `_measure`."""
    reader = msgpack.Unpacker(max_buffer_size=len(packed))
    reader.feed(packed)
    try:
        reader.skip()
    except (ValueError, msgpack.UnpackException):
        return False
    return True


def _levels_around() -> bytes:
    """Return so many levels that a value which can be skipped inside them has at most `_MOST`.

    Empty if the reader's own limit is not the one that is known: it skips 1,024 levels, without
    counting the innermost if that is empty.
    """
    taken = 1_024
    knows = _is_skipped(b"\x91" * taken + b"\xc0")
    knows = knows and not _is_skipped(b"\x91" * (taken + 1) + b"\xc0")
    return b"\x91" * (taken + 1 - _MOST) if knows else b""


_AROUND: Final = _levels_around()


def measure(packed: bytes, at: int) -> tuple[int, int]:
    """Return the end of the value at ``at``, and the levels of arrays and maps in it.

    The end is -1 if the value is incomplete; the levels are then those before its end. More than
    504 levels count as 504.
    """
    if compiled.COMPILED:
        return compiled.store.measure(packed, at)
    return _measure(packed, at)


def _measure(packed: bytes, at: int) -> tuple[int, int]:
    above: list[int] = []  # Numbers of values still to come in the levels around this one.
    wanted, levels, end = 1, 0, len(packed)
    while True:
        while not wanted:
            if not above:
                return at, levels
            wanted = above.pop()
        wanted -= 1
        if at >= end:
            return -1, levels
        goes_down = is_container(packed[at]) and len(above) < _COUNTED
        at, inside = _skip_head(packed, at)
        if at < 0 or at > end:
            return -1, levels
        if goes_down:
            above.append(wanted)
            wanted = 0
            levels = max(levels, len(above))
        wanted += inside  # Below the last counted level, all values count as one level.


def parts(packed: bytes) -> list[bytes]:
    """Return the items of an array, each packed, at any depth. Raises ValueError.

    For data that was stored before there was a limit, or by a Python that decodes more levels.
    """
    reader = msgpack.Unpacker()
    reader.feed(packed[:5])
    count = reader.read_array_header()
    found, at = [], reader.tell()
    for _ in range(count):
        end, _ = measure(packed, at)
        if end < 0:
            raise ValueError("an incomplete array")
        found.append(packed[at:end])
        at = end
    return found


def is_container(first: int) -> bool:
    """Return True if an array or a map begins with this byte."""
    return 0x80 <= first <= 0x9F or 0xDC <= first <= 0xDF


def _skip_head(packed: bytes, at: int) -> tuple[int, int]:
    """Return the end of a head and its bytes, and the number of values inside; -1 if incomplete."""
    first = packed[at]
    at += 1
    if first < 0x80 or first >= 0xE0:
        return at, 0
    if first < 0xA0:
        return at, first - 0x90 if first >= 0x90 else 2 * (first - 0x80)
    if first < 0xC0:
        return at + first - 0xA0, 0
    if first in _FIXED:
        return at + _FIXED[first], 0
    width, more = _SIZED.get(first) or _COUNTING.get(first) or (0, 0)
    number = int.from_bytes(packed[at : at + width])
    if at + width > len(packed) or first == 0xC1:
        return -1, 0
    at += width
    return (at, more * number) if first in _COUNTING else (at + more + (number if width else 0), 0)
