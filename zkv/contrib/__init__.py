"""Adapters: zkv as the store, cache or result backend of frameworks that people already use.

- ``zkv.contrib.zarr``: zarr 3, and with it xarray: a store of arrays.
- ``zkv.contrib.django``: Django: a cache, and sessions in it.
- ``zkv.contrib.cachelib``: cachelib, and with it Flask-Caching and Flask-Session.
- ``zkv.contrib.dogpile``: dogpile.cache: a backend, with locks of all programs.
- ``zkv.contrib.limits``: limits, and with it Flask-Limiter and slowapi.
- ``zkv.contrib.celery``: Celery: a result backend.
- ``zkv.contrib.nested``: for any program: dicts of dicts and lists in which each change is stored.

Strategy: an adapter says in zkv's ops what its framework asks for, and no more. `_link` has what
they share: the way to the keys, in threads and forked processes. Each imports its framework, so
import an adapter only where that is installed. They are ordinary clients: nothing here knows the
server, and the server knows nothing of them.

Invariants:

- An adapter reads, changes and removes only keys under its prefix.
- An error of a request is never taken for an absent key. Where a framework has errors or results of
  its own for that, it gets these, else a `zkv.ClientError`.
- Only adapters whose framework stores any Python object use pickle, and they say so.
"""
