"""Draws keys from the distributions of YCSB's core workloads, reproducibly from a seed.

Zipfian: the probability of rank r is proportional to 1 / r**0.99. The method is that of Gray et
al., "Quickly generating billion-record synthetic databases" (SIGMOD 1994), which YCSB also uses. A
hash then scatters the ranks over the keys, so that hot keys are not neighbours.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Final

THETA: Final = 0.99
DISTRIBUTIONS: Final = ("uniform", "zipfian", "latest", "sequential")
Draw = Callable[[], int]

_EXACT: Final = 100_000
"""The number of terms of the zeta sum that are added; an integral approximates the rest."""


class Zipf:
    """Draws ranks from 0 (the most frequent) to ``count`` - 1."""

    def __init__(self, count: int, random_: random.Random) -> None:
        self._random = random_.random
        self._count = count
        self._zeta = _zeta(count)
        self._alpha = 1 / (1 - THETA)
        self._second = 1 + 0.5**THETA
        self._eta = 0.0
        if count > 2:
            self._eta = (1 - (2 / count) ** (1 - THETA)) / (1 - _zeta(2) / self._zeta)

    def __call__(self) -> int:
        """Draw a rank."""
        drawn = self._random()
        scaled = drawn * self._zeta
        if scaled < 1 or self._count == 1:
            return 0
        if scaled < self._second:
            return 1
        rank = int(self._count * (self._eta * drawn - self._eta + 1) ** self._alpha)
        return min(rank, self._count - 1)


def scatter(number: int) -> int:
    """A 64-bit hash of a number below 2**64 (the finaliser of splitmix64)."""
    number = (number + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
    number = ((number ^ (number >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
    number = ((number ^ (number >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
    return number ^ (number >> 31)


class Keys:
    """Draws numbers of keys: from the ``count`` loaded ones, and those that this process inserts.

    The numbers after the loaded ones are divided among the ``processes``, in turn. A process reads
    only the inserted keys that it has inserted itself.

    Args:
        distribution: one of `DISTRIBUTIONS`.
        count: the number of loaded keys, at least 1.
        random_: the random generator.
        process: the number of this process, from 0.
        processes: the number of processes.
    """

    def __init__(
        self, distribution: str, count: int, random_: random.Random, process: int, processes: int
    ) -> None:
        self._count = count
        self._process = process
        self._processes = processes
        self._inserting = 0
        self._inserted = 0  # This many inserted keys are confirmed without a gap,
        self._ahead: set[int] = set()  # and these after a gap.
        zipf: Draw = Zipf(count, random_) if distribution in {"zipfian", "latest"} else lambda: 0
        self.draw: Draw = {
            "uniform": lambda: int(random_.random() * count),
            "zipfian": lambda: scatter(zipf()) % count,
            "latest": lambda: self._latest(zipf()),
            "sequential": self._sequence(process * count // processes),
        }[distribution]

    def insert(self) -> int:
        """A new number. It can be drawn once it is confirmed (`confirm`)."""
        self._inserting += 1
        return self._own(self._inserting - 1)

    def confirm(self, number: int) -> None:
        """Note that an inserted key is stored."""
        self._ahead.add((number - self._count) // self._processes)
        while self._inserted in self._ahead:
            self._ahead.remove(self._inserted)
            self._inserted += 1

    def _own(self, number: int) -> int:
        return self._count + number * self._processes + self._process

    def _latest(self, back: int) -> int:
        """The key that was inserted ``back`` keys before the newest."""
        if back < self._inserted:
            return self._own(self._inserted - 1 - back)
        return max(0, self._count - 1 - (back - self._inserted))

    def _sequence(self, first: int) -> Draw:
        following = first - 1

        def draw() -> int:
            nonlocal following
            following = (following + 1) % self._count
            return following

        return draw


def _zeta(count: int) -> float:
    """The sum of 1 / r**THETA for r from 1 to ``count``."""
    exact = math.fsum(rank**-THETA for rank in range(1, min(count, _EXACT) + 1))
    if count <= _EXACT:
        return exact
    integral = (math.pow(count + 0.5, 1 - THETA) - math.pow(_EXACT + 0.5, 1 - THETA)) / (1 - THETA)
    return exact + integral
