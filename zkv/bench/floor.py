"""The floor in Python, for machines without a C compiler; it does the same as ``floor.c``.

It is a program: ``python -m zkv.bench.floor ENDPOINT``.
"""

from __future__ import annotations

import os
import sys
import threading
from typing import Final

import zmq

CONSTANT: Final = b"\x82\xa2ok\xc3\xa3rev\x01"
ID: Final = b"\xa2id\xce"


def main(endpoint: str) -> None:
    """Serve until standard input ends."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    front, back, worker = (context.socket(kind) for kind in (zmq.ROUTER, zmq.DEALER, zmq.REP))
    for each in (front, back):
        each.sndhwm = each.rcvhwm = 0
    front.bind(endpoint)
    back.bind("inproc://workers")
    worker.connect("inproc://workers")
    threading.Thread(target=zmq.proxy, args=(front, back), daemon=True).start()
    threading.Thread(target=_end_with_input, daemon=True).start()
    bound = front.getsockopt_string(zmq.LAST_ENDPOINT)
    print("READY", bound.rstrip("\0"), flush=True)
    receive, send = worker.recv, worker.send
    while True:
        request = receive()
        if request[-8:-4] == ID:
            send(b"\x83\xa2ok\xc3\xa2id\xce%b\xa3rev\x01" % request[-4:])
        else:
            send(CONSTANT)


def _end_with_input() -> None:
    while os.read(0, 1):
        pass
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1])
