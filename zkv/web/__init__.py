"""The console: a page in the browser, and a way in by HTTP, for the store of one server.

It is a process of its own, and an ordinary client of that server: it holds no data and decides no
rights. Each user has a client with the user's own key (`zkv.web.accounts`), so the server decides
what each may see and do. What stands between a browser and that client is in `zkv.web.gate`: who
asks, from which page, with which token.

    gate.py       Host, Origin, tokens, headers: each request passes it
    tokens.py     the file of tokens, and logins
    accounts.py   a client for each user, and what its tabs share
    answers.py    JSON or msgpack; failures as HTTP statuses
    api.py        the documented HTTP API
    page.py       what only the page asks for
    tree.py       one level of the tree of keys, by skipping
    sampler.py    the figures of the last hour
    recent.py     recent changes, for all tabs that show them
    transfer.py   export and import of a subtree
    static/       the page: modules without a build step

Invariants: no request to the server has more than `MOST` entries; a value passes through packed,
byte for byte, unless somebody edits it; the text of a value is that of `zkv.entries`.
"""

from __future__ import annotations

from typing import Final

MOST: Final = 200
"""Entries in one request to the server, and in one answer."""
