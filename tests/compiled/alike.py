"""Whether two stores, one compiled and one in pure Python, answer alike."""

from __future__ import annotations

from typing import Any

from tests.requests.contract_stores import Worker
from tests.support import unpack


def told(worker: Worker, batch: list[bytes]) -> list[Any]:
    """The fields of the replies to one batch, in their order; msgpack may pack some otherwise."""
    answers = worker.send(*batch)
    worker.settle()
    return [_without_times(list(unpack(answer.body).items())) for answer in answers]


def _without_times(fields: list[tuple[str, Any]]) -> list[tuple[str, Any]]:
    """The same, without the times in `timing`, which are never the same."""
    return [(name, list(value) if name == "timing" else value) for name, value in fields]


def check_alike(fast: Worker, plain: Worker, batch: list[bytes]) -> None:
    """Run a batch on two stores, in the order in which it is run on the first; replies agree."""
    replies = told(fast, batch)
    order = sorted(range(len(batch)), key=lambda place: (place in fast.left, place))
    assert [replies[place] for place in order] == told(plain, [batch[place] for place in order])
