"""A histogram of latencies like HdrHistogram, with buckets 0.1% wide: mergeable, sparse, fast.

Below 2,048 ns every nanosecond has a bucket; above, each doubling has 1,024 buckets. So percentiles
are exact to three digits over any range. The package hdrhistogram needs a build tool at run time
and a call per value; the loop in `drive` does the same inline:

    counts[bucket(nanoseconds)] += 1
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Final

SUB_BITS: Final = 10
FIRST: Final = 2 << SUB_BITS
"""Each value below this has a bucket of its own."""

Counts = defaultdict[int, int]
"""The number of values in each bucket."""


def bucket(nanoseconds: int) -> int:
    """The bucket of a value, 0 or more."""
    shift = nanoseconds.bit_length() - SUB_BITS - 1
    return nanoseconds if shift <= 0 else (shift << SUB_BITS) + (nanoseconds >> shift)


def upper_end(number: int) -> int:
    """The largest value in a bucket, which a percentile reports."""
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
        """Add the counts of another histogram."""
        for number, count in counts.items():
            self.counts[number] += count

    def percentiles(self, shares: Iterable[float]) -> list[int]:
        """The percentiles, in nanoseconds, for ``shares`` from 0 to 1 in ascending order.

        0 if the histogram is empty.
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
        """The mean in nanoseconds; 0 if the histogram is empty."""
        total = sum(upper_end(number) * count for number, count in self.counts.items())
        return total / max(1, len(self))
