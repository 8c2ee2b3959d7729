"""zkv: a durable key-value store that speaks msgpack over ZeroMQ.

Every acknowledged write is on disk as its fsync policy says, every change has a revision, and all
changes can be followed as a feed. The parts, from the outside in:

- ``zkv.cli``: the commands ``zkv`` and ``zkv-cli``.
- ``zkv.client``: the client for Python. It imports nothing of the server.
- ``zkv.server``: builds a server from its configuration, starts it and stops it.
- ``zkv.broker``: the sockets, and the threads that serve them.
- ``zkv.protocol``: requests and replies, and how they become bytes.
- ``zkv.keyspace``: keys, values and revisions in memory, with no I/O.
- ``zkv.durability``: the write-ahead log, snapshots and recovery.

Which part may import which is written down in ``pyproject.toml`` and checked by ``make lint``.
"""

__version__ = "0.1.0"
