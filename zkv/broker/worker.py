"""A worker thread: a loop over batches from its mailbox.

A command that fails is answered by the service and harms nobody. What gets past that kills the
service: `INTERNAL` is answered to the batch that it had taken, or to those whose pending replies it
could not make, the log says so with a traceback, and a new service takes its place at the same
mailbox, where nothing that waits is lost. So it is where memory ends while requests are received.
If the mailbox itself fails, the thread ends, and the broker puts another worker in its place.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from functools import partial
from typing import TYPE_CHECKING, Final

import zmq

from zkv.broker.mailbox import ReplyFailedError
from zkv.broker.service import request_in

if TYPE_CHECKING:
    from collections.abc import Callable

    from zkv.broker.frames import BadEnvelope
    from zkv.broker.mailbox import Mailbox
    from zkv.broker.service import Service

_log = logging.getLogger("zkv.broker")

MOST_IN_VAIN: Final = 100
"""After so many failures to receive in a row the mailbox itself counts as failed."""
PAUSE_SECONDS: Final = 0.01
"""After each: where memory ends, it may be there again a moment later."""


class Worker:
    """One worker thread, with a service and a mailbox of its own.

    Args:
        name: of the thread.
        make_service: makes what answers the requests.
        open_mailbox: makes the mailbox; called in the thread.
        died: told, in the thread, when the worker ends without having been asked to.
    """

    def __init__(
        self,
        name: str,
        make_service: Callable[[], Service],
        open_mailbox: Callable[[], Mailbox],
        died: Callable[[Worker], None],
    ) -> None:
        self._make_service = make_service
        self.services = [make_service()]
        """Every service that it has had; the last one is at work."""
        self._open_mailbox = open_mailbox
        self._died = died
        self._mailbox: Mailbox | None = None
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name)

    @property
    def name(self) -> str:
        """The thread's name."""
        return self._thread.name

    @property
    def served(self) -> bool:
        """Whether it has ever been able to receive."""
        return self._mailbox is not None

    @property
    def unroutable(self) -> int:
        """Messages that had nowhere to reply to."""
        return 0 if self._mailbox is None else self._mailbox.unroutable

    def start(self) -> None:
        """Start the thread and wait until it can receive."""
        self._thread.start()
        self._ready.wait()

    def stop(self) -> None:
        """Have the worker end once it has answered all that is queued."""
        if self._mailbox is not None:
            self._mailbox.stop()

    def join(self) -> None:
        """Wait until the thread has ended."""
        self._thread.join()

    def is_alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def _run(self) -> None:
        try:
            self._mailbox = mailbox = self._open_mailbox()
            self._ready.set()
            try:
                serve(mailbox, self.services, self._make_service, self.name)
            finally:
                mailbox.close()
        except BaseException:
            _log.critical("%s ended; another takes its place", self.name, exc_info=True)
            self._died(self)
        finally:
            self._ready.set()


def serve(
    mailbox: Mailbox, services: list[Service], make_service: Callable[[], Service], name: str
) -> None:
    """Answer batches until the mailbox has no more.

    Args:
        mailbox: where they come from.
        services: the last one is at work; where it dies another one is appended.
        make_service: makes that.
        name: of the thread, for the log.
    """
    in_vain = 0
    while True:
        service = services[-1]
        bodies = None
        try:
            bodies = mailbox.receive()
            if not bodies:
                return
            in_vain = 0
            _answer(mailbox, service, bodies)
            continue
        except ReplyFailedError as failure:
            _log.critical("%s died; another takes its place", name, exc_info=failure.__cause__)
        except BaseException as error:
            if bodies is None:
                in_vain += 1
                if isinstance(error, zmq.ZMQError) or in_vain == MOST_IN_VAIN:
                    raise
                time.sleep(PAUSE_SECONDS)
            _log.critical("%s died; another takes its place", name, exc_info=True)
            if mailbox.unanswered:
                with contextlib.suppress(MemoryError):  # Then not even that can be said.
                    mailbox.give_up(partial(_give_up, service, error))
        services.append(make_service())


def _answer(mailbox: Mailbox, service: Service, bodies: list[bytes | BadEnvelope]) -> None:
    try:
        mailbox.reply(*service.answer(bodies))
    finally:  # Whatever could not be sent: what waits for the disk waits for this.
        service.commit(mailbox.is_idle)


def _give_up(service: Service, error: BaseException, body: bytes | BadEnvelope) -> bytes:
    return service.give_up(request_in(body), error)
