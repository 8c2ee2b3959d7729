"""The HTTP API: one key, scan, txn, and changes as server-sent events.

docs/console.md describes it. A request becomes one request of the protocol, by the client of its
user, with the names of the protocol. A key is in the query and not in the path: browsers, clients
and proxies change paths that hold ``..``, ``//`` or ``%2F``.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Final

import msgspec
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from zkv.client import RefusedError
from zkv.client.async_watch import AsyncWatch
from zkv.client.codec import Packed
from zkv.entries.text import to_json, type_name
from zkv.entries.value_writer import head_at
from zkv.web import MOST
from zkv.web.accounts import WebAccount
from zkv.web.answers import (
    JSON,
    MSGPACK,
    HttpFailure,
    answer,
    answer_values,
    answering,
    apart,
    failure_of,
    packed,
    read_fields,
    read_value,
    wants_msgpack,
    weight,
)
from zkv.web.query import MOST_FIELDS, Query, whole_number

MOST_STREAMS: Final = 64
"""Open answers without an end of one user."""
LOOK: Final = 1.0
"""Seconds between two looks at whether a stream is still wanted."""
KEEP_ALIVE: Final = 15
"""Looks without an event after which a comment keeps the connection open."""
EVENT_STREAM: Final = "text/event-stream"
NEVER: Final = 2**62
"""A revision that no store has."""
TXN_FIELDS: Final = frozenset({"ops", "if", "deadline", "durable"})


def account_of(request: Request) -> WebAccount:
    """Return the account whose request it is."""
    account: WebAccount = request.state.account
    return account


def require_writable(request: Request) -> None:
    """Raise HttpFailure if the console is started with ``--read-only``."""
    if request.app.state.read_only:
        raise HttpFailure("DENIED", "this console is read-only: it was started with --read-only")


# --- One key


async def get_entry(request: Request) -> Response:
    """``GET /api/entry?key=KEY``; with ``raw`` the value alone."""
    query = Query(request, ("key", "raw"))
    key = query.text("key")
    reply = await account_of(request).ask("GET", key=key)
    value = reply["value"]
    if query.flag("raw"):
        return await apart(len(value), _raw, request, reply)
    fields = {"key": key, "value": value, "type": type_name(value), "rev": reply["rev"]}
    if "ttl" in reply:
        fields["ttl"] = reply["ttl"]
    return await answer_values(request, fields)


def _raw(request: Request, reply: dict[str, Any]) -> Response:
    """Return the value alone; what else there is to say is in headers."""
    value, as_msgpack = reply["value"], wants_msgpack(request)
    headers = {"Zkv-Rev": str(reply["rev"]), "Zkv-Type": type_name(value)}
    if "ttl" in reply:
        headers["Zkv-Ttl"] = str(reply["ttl"])
    body = bytes(value) if as_msgpack else to_json(value).encode()
    return Response(body, headers=headers, media_type=MSGPACK if as_msgpack else JSON)


async def put_entry(request: Request) -> Response:
    """``PUT /api/entry?key=KEY``, with the value as the body."""
    require_writable(request)
    query = Query(request, ("key", "ttl", "if_rev", "deadline", "durable"))
    fields = {
        "key": query.text("key"), "ttl": query.seconds("ttl"), "if_rev": query.integer("if_rev"),
        "deadline": query.integer("deadline"), "durable": query.flag("durable") or None,
    }  # fmt: skip
    value = await read_value(request)
    return answer(request, await account_of(request).ask("PUT", value=value, **fields))


async def delete_entry(request: Request) -> Response:
    """``DELETE /api/entry?key=KEY``."""
    require_writable(request)
    query = Query(request, ("key", "if_rev", "deadline", "durable"))
    reply = await account_of(request).ask(
        "DELETE",
        key=query.text("key"),
        if_rev=query.integer("if_rev"),
        deadline=query.integer("deadline"),
        durable=query.flag("durable") or None,
    )
    return answer(request, reply)


# --- Many


async def scan(request: Request) -> Response:
    """``GET /api/scan``: a page of entries in the order of their keys."""
    query = Query(
        request, ("prefix", "start", "end", "after", "limit", "values", "reverse", "deadline")
    )
    values = query.flag("values", default=True)
    reply = await account_of(request).ask(
        "SCAN",
        prefix=query.maybe("prefix"),
        start=query.maybe("start"),
        end=query.maybe("end"),
        after=query.maybe("after"),
        limit=query.limit(),
        values=values,
        reverse=query.flag("reverse"),
        deadline=query.integer("deadline"),
    )
    items = [
        {"key": key, "value": value, "rev": rev} if values else {"key": key, "rev": rev}
        for key, value, rev in reply["items"]
    ]
    return await answer_values(
        request, {"items": items, "next": reply["next"], "rev": reply["rev"]}
    )


async def txn(request: Request) -> Response:
    """``POST /api/txn``: the fields of a TXN as the body."""
    fields = await read_fields(request, TXN_FIELDS)
    ops = _ops(fields.get("ops", b"\x90"))
    if any(op.get("op") != _GET for op in ops):
        require_writable(request)
    steps = [{name: Packed(field) for name, field in op.items()} for op in ops]
    reply = await account_of(request).ask("TXN", **{**fields, "ops": steps})
    return await answer_values(request, reply)


def _ops(packed: bytes) -> list[dict[str, msgspec.Raw]]:
    """Read the ops of a TXN; none is decoded before it is known that there are few."""
    kind, _, number = head_at(packed, 0)
    if kind == "array" and number > MOST:
        raise HttpFailure("TOO_LARGE", f"ops: there are {number}; the maximum is {MOST}")
    try:
        ops = _decode_array(packed)
        heads = [head_at(bytes(op), 0) for op in ops]
        if any(head.kind == "map" and head.size > 2 * MOST_FIELDS for head in heads):
            raise HttpFailure("TOO_LARGE", f"ops: one has over {MOST_FIELDS} fields")
        return [_decode_op(op) for op in ops]
    except (msgspec.MsgspecError, ValueError):
        raise HttpFailure("BAD_REQUEST", "ops: expected an array of maps") from None


_decode_array: Final = msgspec.msgpack.Decoder(list[msgspec.Raw]).decode
_decode_op: Final = msgspec.msgpack.Decoder(dict[str, msgspec.Raw]).decode
_GET: Final = msgspec.Raw(packed("GET"))


# --- Events


async def events(request: Request) -> Response:
    """``GET /api/events``: each change as it is made."""
    query = Query(request, ("prefix", "since"))
    account, prefix = account_of(request), query.text("prefix", "")
    since = _last_event(request)
    if since is None:
        since = query.integer("since")
    await account.ask("CHANGES", since=NEVER, prefix=prefix, limit=1)  # DENIED is told at once.
    watch = account.client.watch(prefix, since=since)
    await watch.__aenter__()
    return stream(request, _events(request, watch))


def _last_event(request: Request) -> int | None:
    """Return the revision from which a client that was cut off goes on."""
    return whole_number(request.headers.get("last-event-id", ""))


async def _events(request: Request, watch: AsyncWatch) -> AsyncIterator[str]:
    """Yield the lines of each event; its id is the revision from which to go on."""
    quiet = 0
    try:
        yield f'retry: 1000\nid: {watch.rev}\nevent: BEGIN\ndata: {{"rev": {watch.rev}}}\n\n'
        while is_wanted(request):
            change = await watch.next(LOOK)
            if change is None:
                quiet += 1
                if quiet % KEEP_ALIVE == 0:
                    yield ": no changes\n\n"
                continue
            quiet = 0
            fields = {"rev": change.rev, "op": change.op, "key": change.key}
            if isinstance(change.value, Packed):
                fields["value"] = change.value
            data = await apart(weight(fields), to_json, fields)
            yield f"id: {watch.rev}\nevent: {change.op}\ndata: {data}\n\n"
    except RefusedError as error:
        yield f"event: FAILURE\ndata: {to_json(failure_of(error).fields)}\n\n"
    finally:
        await watch.aclose()


def is_wanted(request: Request) -> bool:
    """True while a stream may go on: the console runs, and the user is still logged in."""
    return not request.app.state.closing.is_set() and bool(request.state.is_valid())


def stream(request: Request, lines: AsyncIterator[str]) -> Response:
    """Answer with a stream of events. Raises HttpFailure if the user has too many."""
    account = account_of(request)
    if account.streams >= MOST_STREAMS:
        raise HttpFailure("BUSY", f"{MOST_STREAMS} streams of this user are open", retry=True)
    account.streams += 1

    async def counted() -> AsyncIterator[str]:
        try:
            async for each in lines:
                yield each
        finally:
            account.streams -= 1

    return StreamingResponse(
        counted(), media_type=EVENT_STREAM, headers={"X-Accel-Buffering": "no"}
    )


ROUTES: Final = [
    Route("/api/entry", answering(get_entry), methods=["GET"]),
    Route("/api/entry", answering(put_entry), methods=["PUT"]),
    Route("/api/entry", answering(delete_entry), methods=["DELETE"]),
    Route("/api/scan", answering(scan), methods=["GET"]),
    Route("/api/txn", answering(txn), methods=["POST"]),
    Route("/api/events", answering(events), methods=["GET"]),
]
