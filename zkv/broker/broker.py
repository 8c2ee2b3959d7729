"""The broker: a front and a pool of workers, started and stopped in order.

Start: endpoints are bound, then workers connect; requests that arrive in between wait.
Stop: arrived requests are answered, the last replies are sent, threads joined, sockets closed.

Only sockets of the same ZeroMQ context can reach an inproc endpoint. So a broker with such an
endpoint uses the process's shared context, as the clients there do. Any other broker has a context
of its own and terminates it at the end, which waits until the last replies have been sent.
"""

from __future__ import annotations

import itertools
import threading
from collections import Counter, defaultdict
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING

import zmq

from zkv.broker.connections import Monitor
from zkv.broker.doors import Doors, Guard
from zkv.broker.feed import Feed, FeedPlace
from zkv.broker.frames import FRAMES, PythonFrames
from zkv.broker.front import Front
from zkv.broker.mailbox import WORKERS_BATCH, Mailbox, connect_worker
from zkv.broker.refusals import RefusalLog
from zkv.broker.sockets import INPROC
from zkv.broker.worker import Worker
from zkv.figures import Buckets, rounded, trimmed

if TYPE_CHECKING:
    from collections.abc import Callable

    from zkv.broker.connections import ConnectionCounter
    from zkv.broker.front import ConnectionLimits, FrontHandler
    from zkv.broker.subscriptions import Subscriptions
    from zkv.broker.worker import WorkerHandler
    from zkv.keyspace import Keyspace
    from zkv.requests.account import Account

_numbers = itertools.count()


class Broker:
    """Serves requests at endpoints with a front and a pool of worker threads.

    Args:
        endpoints: endpoints to bind.
        feed: where to publish changes, with bounds on followers; None = nowhere.
        io_threads: libzmq's threads for the connections.
        limits: of each connection.
        doors: opens the endpoints.
        worker_died: called in the thread of a worker that dies, so it must return at once.
        front_died: called in the thread of the front if that dies, likewise.
        new_account: makes the account of a thread.
    """

    def __init__(
        self,
        endpoints: list[str],
        feed: FeedPlace | None,
        io_threads: int,
        limits: ConnectionLimits,
        doors: Doors,
        worker_died: Callable[[], None],
        front_died: Callable[[], None],
        new_account: Callable[[], Account],
    ) -> None:
        self._shares_context = any(
            name.startswith(INPROC) for name in (*endpoints, "" if feed is None else feed.endpoint)
        )
        self._context: zmq.Context[zmq.Socket[bytes]] = (
            zmq.Context.instance() if self._shares_context else zmq.Context(io_threads)
        )
        self._backend = f"inproc://zkv-workers-{next(_numbers)}"
        self._accounts = [new_account()]
        """The front's and each worker's; the replacement of a dead worker continues its account."""
        self._telling = threading.Lock()  # Protects what is below.
        self._succeeded: Counter[str] = Counter()
        refusals = RefusalLog()
        self._monitor = Monitor(self._context, doors.have_curve, refusals)
        self._front = Front(
            self._context,
            endpoints,
            self._backend,
            limits,
            self._monitor,
            doors,
            self._accounts[0],
            front_died,
        )
        self._feed = None if feed is None else Feed(self._context, feed, self._monitor, doors)
        self._users = doors.users
        self._guard = None if doors.users is None else Guard(self._context, doors.users, refusals)
        self._make_handler: Callable[[Account], WorkerHandler]
        self._new_account = new_account
        self._worker_died = worker_died
        self._names = (f"zkv-worker-{number}" for number in itertools.count(1))
        self._lock = threading.Lock()  # Protects the three below.
        self._workers: list[Worker] = []
        self._retired: list[Worker] = []  # Dead, and not yet replaced.
        self._taken_by_dead = 0  # Bytes of requests that went to workers which were replaced.
        self.endpoints: list[str] = []
        self.feed: str | None = None

    def bind(self) -> None:
        """Bind all endpoints. Raises EndpointError; then no thread is left running."""
        with ExitStack() as undo:
            undo.callback(self._term_context)
            undo.callback(self._monitor.close)
            if self._guard is not None:
                undo.callback(self._guard.close)
                self._guard.start()
            if self._feed is not None:
                undo.callback(self._feed.close)
                self.feed = self._feed.start()
            self.endpoints = self._front.start()
            self._monitor.start()
            undo.pop_all()

    def publish(self, keyspace: Keyspace) -> None:
        """Publish the changes of ``keyspace``. Call this before the first write."""
        if self._feed is not None:
            self._feed.follow(keyspace)

    def serve(
        self,
        workers: int,
        make_handler: Callable[[Account], WorkerHandler],
        make_front_handler: Callable[[Account], FrontHandler],
    ) -> None:
        """Start the workers, and let the front receive requests.

        Args:
            workers: number of worker threads.
            make_handler: makes a worker's handler, given its account.
            make_front_handler: makes the front's handler, likewise.
        """
        self._make_handler = make_handler
        self._accounts += [self._new_account() for _ in range(workers)]
        front, *others = self._accounts
        for account in others:
            self._add_worker(account)
        self._front.serve(make_front_handler(front), self._bytes_taken)

    def front_has_turned(self) -> bool:
        """See `Front.has_turned`."""
        return self._front.has_turned()

    def log_requests(self, on: bool) -> None:
        """Log requests from now on, or no longer. Call this after `serve`."""
        for account in self._accounts:
            account.logs_requests = on

    def replace_dead_workers(self) -> None:
        """Replace each worker that has died; the new one continues its account.

        Raises any error that prevents this, such as MemoryError; it may then be called again.
        """
        for _ in range(len(self._retired)):
            self._add_worker(self._retired[0].account)
            with self._lock:
                worker = self._retired.pop(0)
                self._workers.remove(worker)
                worker.account.unroutable += worker.unroutable
                # What was in its pipe is lost, so all count as taken: else there would be less
                # room for ever.
                taken = sum([each.bytes_taken for each in self._workers])
                self._taken_by_dead = self._front.bytes_forwarded - taken
            worker.join()

    def stop(self) -> None:
        """Answer the requests that have arrived, then close everything."""
        with self._lock:
            workers = [worker for worker in self._workers if worker.is_alive()]
        self._front.drain(lambda: any(worker.is_alive() for worker in workers))
        for worker in workers:
            worker.stop()
        for worker in workers:
            worker.join()
        self._front.stop()
        if self._feed is not None:
            self._feed.close()
        if self._guard is not None:
            self._guard.close()
        self._monitor.close()
        self._term_context()

    def users_changed(self) -> None:
        """Have followers subscribe again, since some may follow other keys now. Any thread."""
        if self._feed is not None:
            self._feed.reopen()

    @property
    def listeners(self) -> list[Subscriptions]:
        """Whom `commits_are_safe` tells something while they are true, beside the front."""
        return [] if self._feed is None else [self._feed.subscriptions]

    def commits_are_safe(self) -> None:
        """Tell the front that less waits, and the feed that there may be changes. Any thread."""
        self._front.may_go_on()
        if self._feed is not None:
            self._feed.wake()

    def statistics(self) -> dict[str, object]:
        """Return INFO's fields about requests, connections, the feed and workers since the start.

        A latency includes the time for which the reply waited for the disk: see `Account`.
        """
        with self._lock:
            unroutable = self._front.passed.unroutable + sum(
                each.unroutable for each in self._workers
            )
            unroutable += sum(account.unroutable for account in self._accounts)
        with self._telling:
            requests = self._requests()
        return requests | {
            "unroutable": unroutable,
            "replies_dropped": self._front.passed.dropped,
            "bytes_in": self._front.passed.bytes_in,
            "bytes_out": self._front.passed.bytes_out,
            "connections": self._front.connections.open,
            "followers": 0 if self._feed is None else self._feed.connections.open,
            "handshakes_failed": self._sum(lambda each: each.failed),
            "connections_cut": self._sum(lambda each: each.cut),
            "workers_replaced": sum(account.deaths for account in self._accounts),
            "mailbox": "plain" if FRAMES is PythonFrames else "compiled",
            "feed": {} if self._feed is None else self._feed.statistics(),
        }

    def _bytes_taken(self) -> int:
        """Return how many bytes of requests workers have received."""
        with self._lock:
            return self._taken_by_dead + sum([each.bytes_taken for each in self._workers])

    def _requests(self) -> dict[str, object]:
        """Return INFO's fields about requests."""
        latencies: defaultdict[str, Buckets] = defaultdict(Buckets)
        failures: Counter[str] = Counter()
        by_op: dict[str, dict[str, int]] = {}
        for account in self._accounts:
            for op, times in account.latencies().items():
                latencies[op].merge(times)
            for (op, code), count in dict(account.failures).items():
                failures[code] += count
                of_op = by_op.setdefault(op, {})
                of_op[code] = of_op.get(code, 0) + count
        requests = {op: sum(times.counts) for op, times in latencies.items()}
        for op, count in requests.items():
            succeeded = count - sum(by_op.get(op, {}).values())
            # A failure that is being counted may seem to be a success. It must not decrease.
            self._succeeded[op] = max(self._succeeded[op], succeeded)
        return {
            "requests": requests,
            "latencies": {op: trimmed(times.counts) for op, times in latencies.items()},
            "seconds": {op: rounded(times.total) for op, times in latencies.items()},
            "queue_wait": {
                "count": sum(account.taken for account in self._accounts),
                "sum": rounded(sum(account.queued for account in self._accounts)),
            },
            "succeeded": {op: count for op, count in self._succeeded.items() if count},
            "failures": dict(failures),
            "failures_by_op": by_op,
        }

    def _sum(self, counts: Callable[[ConnectionCounter], dict[str, int]]) -> dict[str, int]:
        """Return counts of clients' and followers' connections, by reason."""
        total = Counter(counts(self._front.connections))
        if self._feed is not None:
            total.update(counts(self._feed.connections))
        return dict(total)

    def _term_context(self) -> None:
        """Wait until the last messages have been sent, unless the context is shared."""
        if not self._shares_context:
            self._context.term()

    def _add_worker(self, account: Account) -> None:
        handler = self._make_handler(account)
        worker = Worker(next(self._names), handler, account, self._open_mailbox, self._died)
        worker.start()
        with self._lock:
            self._workers.append(worker)

    def _open_mailbox(self) -> Mailbox:
        socket = connect_worker(self._context, self._backend)
        return Mailbox(
            partial(
                FRAMES,
                socket,
                bounds=WORKERS_BATCH,
                stamped=True,
                users=self._users,
                in_flight=self._front.in_flight,
            ),
            self._front.may_go_on,
        )

    def _died(self, worker: Worker) -> None:
        worker.account.deaths += 1
        with self._lock:
            self._retired.append(worker)
        if worker.served:  # Otherwise a replacement would fail at once, too.
            self._worker_died()
