"""Latencies in buckets of about 0.1%, as HdrHistogram has them: mergeable, sparse, cheap to fill.

Below 2,048 ns every nanosecond has a bucket; above, each doubling is cut into 1,024. So three
digits of any percentile are right, whatever the range. A package for it exists (hdrhistogram), but
brings a build tool along at run time, and a call per value; here the loop that records does it in
line:

    counts[bucket(nanoseconds)] += 1
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Final

SUB_BITS: Final = 10
FIRST: Final = 2 << SUB_BITS
"""Values below are buckets of their own."""

Counts = defaultdict[int, int]
"""How many values fell into each bucket."""


def bucket(nanoseconds: int) -> int:
    """The bucket of a value, 0 or more."""
    shift = nanoseconds.bit_length() - SUB_BITS - 1
    return nanoseconds if shift <= 0 else (shift << SUB_BITS) + (nanoseconds >> shift)


def upper_end(number: int) -> int:
    """The largest value that falls into a bucket: what a percentile reports."""
    if number < FIRST:
        return number
    shift = (number >> SUB_BITS) - 1
    mantissa = (number & ((1 << SUB_BITS) - 1)) + (1 << SUB_BITS)
    return ((mantissa + 1) << shift) - 1


class Histogram:
    """A distribution of nanoseconds. Starts empty, or with ``counts``."""

    def __init__(self, counts: Mapping[int, int] | None = None) -> None:
        self.counts: Counts = defaultdict(int, counts or {})

    def __len__(self) -> int:
        return sum(self.counts.values())

    def add(self, nanoseconds: int) -> None:
        """Count a value; one below 0 counts as 0."""
        self.counts[bucket(max(0, nanoseconds))] += 1

    def merge(self, counts: Mapping[int, int]) -> None:
        """Count all that another has counted."""
        for number, count in counts.items():
            self.counts[number] += count

    def percentiles(self, shares: Iterable[float]) -> list[int]:
        """For each share from 0 to 1, in ascending order: what so many values do not exceed.

        Nanoseconds; 0 where nothing was counted.
        """
        total = len(self)
        numbers = sorted(self.counts)
        found: list[int] = []
        seen = at = 0
        for share in shares:
            while at < len(numbers) and (seen == 0 or seen < share * total):
                seen += self.counts[numbers[at]]
                at += 1
            found.append(upper_end(numbers[at - 1]) if at else 0)
        return found

    def mean(self) -> float:
        """Nanoseconds; 0 where nothing was counted."""
        total = sum(upper_end(number) * count for number, count in self.counts.items())
        return total / max(1, len(self))
