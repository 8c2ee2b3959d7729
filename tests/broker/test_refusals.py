"""The log of failed handshakes: few lines, whoever fails and how often."""

from __future__ import annotations

import logging

import pytest

from zkv.broker.refusals import AUTH, LINES, OTHER, PERIOD_SECONDS, Refusal, RefusalLog

WRONG_KEY = Refusal(AUTH, "had a wrong key")
LEFT = Refusal(OTHER, "was left alone", logging.INFO)


class Clock:
    """Stands still unless it is moved."""

    now = 1_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def refusals(clock: Clock, caplog: pytest.LogCaptureFixture) -> RefusalLog:
    caplog.set_level(logging.INFO)
    return RefusalLog(clock)


def test_an_address_is_logged_once_a_minute_for_each_reason(
    refusals: RefusalLog, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(3):
        refusals.note("10.0.0.7", WRONG_KEY, detail=": abc")
    refusals.note("10.0.0.7", LEFT)
    refusals.note("10.0.0.8", WRONG_KEY)
    assert caplog.record_tuples == [
        ("zkv.broker", 30, "the handshake with 10.0.0.7 failed: it had a wrong key: abc"),
        ("zkv.broker", 20, "the handshake with 10.0.0.7 failed: it was left alone"),
        ("zkv.broker", 30, "the handshake with 10.0.0.8 failed: it had a wrong key"),
    ]
    caplog.clear()
    clock.now += PERIOD_SECONDS
    refusals.note("10.0.0.7", WRONG_KEY)
    assert caplog.messages == [
        "2 more connections failed or were cut off in the last minute",
        "the handshake with 10.0.0.7 failed: it had a wrong key",
    ]


def test_the_rest_is_told_when_the_minute_is_over(
    refusals: RefusalLog, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    refusals.note("10.0.0.7", WRONG_KEY)
    assert refusals.seconds_left() is None
    clock.now += 20
    refusals.note("10.0.0.7", WRONG_KEY)
    caplog.clear()
    assert refusals.seconds_left() == PERIOD_SECONDS - 20
    refusals.tell()
    assert not caplog.messages
    clock.now += PERIOD_SECONDS - 20
    assert refusals.seconds_left() == 0
    refusals.tell()
    refusals.tell()
    assert caplog.messages == ["1 more connections failed or were cut off in the last minute"]
    assert refusals.seconds_left() is None


def test_many_addresses_are_as_few_lines(
    refusals: RefusalLog, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(LINES + 50):
        refusals.note(f"10.0.0.{number}", WRONG_KEY)
    assert len(caplog.messages) == LINES
    caplog.clear()
    clock.now += PERIOD_SECONDS
    refusals.tell()
    assert caplog.messages == ["50 more connections failed or were cut off in the last minute"]
