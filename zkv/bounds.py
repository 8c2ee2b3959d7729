"""Ranges of keys. str is ordered by code point, which is the order of the keys' UTF-8 bytes."""

from __future__ import annotations

from typing import NamedTuple

_LAST = 0x10FFFF
_BEFORE_SURROGATES = 0xD7FF
_AFTER_SURROGATES = 0xE000


class Range(NamedTuple):
    """The keys between ``low`` and ``high``.

    Args:
        low: the lower bound.
        high: the upper bound, which is not included; None = no bound.
        low_included: whether ``low`` itself belongs to the range.
    """

    low: str
    high: str | None
    low_included: bool = True

    @property
    def empty(self) -> bool:
        """True if no key can be in the range."""
        return self.high is not None and self.low >= self.high

    def beyond(self, key: str, reverse: bool) -> Range:
        """Return what is left of the range after ``key``; if ``reverse``, before it."""
        return self._replace(high=key) if reverse else self._replace(low=key, low_included=False)

    def holds(self, key: str) -> bool:
        """Return True if ``key`` is in the range."""
        above = key >= self.low if self.low_included else key > self.low
        return above and (self.high is None or key < self.high)


def after_prefix(prefix: str) -> str | None:
    """Return the first string after all that begin with ``prefix``; None if there is none."""
    for index in range(len(prefix) - 1, -1, -1):
        code = ord(prefix[index])
        if code < _LAST:
            following = _AFTER_SURROGATES if code == _BEFORE_SURROGATES else code + 1
            return prefix[:index] + chr(following)
    return None


def key_range(
    prefix: str = "",
    start: str | None = None,
    end: str | None = None,
    after: str | None = None,
    reverse: bool = False,
) -> Range:
    """Return the range of a SCAN; ``after`` is exclusive, in the direction of the scan."""
    low, included = max(prefix, start or ""), True
    highs = [bound for bound in (after_prefix(prefix), end) if bound is not None]
    if after is not None and reverse:
        highs.append(after)
    elif after is not None and after >= low:
        low, included = after, False
    return Range(low, min(highs, default=None), included)
