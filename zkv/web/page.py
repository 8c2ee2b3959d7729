"""The part of the console that only the page uses, below ``/page``: it may change with the page.

What takes long tells its progress in lines of JSON, and stops when the browser leaves.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator
from typing import Any, Final
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from zkv.client import ClientError
from zkv.entries.renaming import rename_fields
from zkv.entries.text import to_json
from zkv.entries.value_writer import encode, printable
from zkv.web import MOST
from zkv.web.accounts import WebAccount
from zkv.web.answers import JSON, HttpFailure, answer, answering, apart, failure_of, read_value
from zkv.web.api import account_of, is_wanted, require_writable, stream
from zkv.web.query import Query
from zkv.web.recent import summary
from zkv.web.sampler import COLUMNS, Row, Sampler
from zkv.web.transfer import Import, exported
from zkv.web.tree import level

LONGEST_SEPARATOR: Final = 8
LARGEST_FILE: Final = 1024 * 1024 * 1024
"""Bytes of a file to import."""
IN_MEMORY: Final = 8 * 1024 * 1024
LINES: Final = "application/x-ndjson"
SLOWEST_TAB: Final = 100
"""Messages that may wait for a tab that does not read them."""


def _separator(query: Query) -> str:
    separator = query.text("separator", "/")
    if len(separator) > LONGEST_SEPARATOR:
        raise HttpFailure("BAD_REQUEST", f"separator: at most {LONGEST_SEPARATOR} characters")
    return separator


async def session(request: Request) -> Response:
    """Tell the page that it is logged in."""
    return answer(request, {"read_only": request.app.state.read_only})


async def tree(request: Request) -> Response:
    """One level of the tree."""
    query = Query(request, ("prefix", "separator", "start", "limit"))
    found = await level(
        account_of(request).ask, query.text("prefix", ""), _separator(query), query.maybe("start"),
        query.limit(MOST),
    )  # fmt: skip
    return answer(request, found)


async def count(request: Request) -> Response:
    """How many keys there are with a prefix."""
    query = Query(request, ("prefix",))
    return answer(request, await account_of(request).ask("COUNT", prefix=query.text("prefix", "")))


async def rename(request: Request) -> Response:
    """Give an entry another key."""
    require_writable(request)
    query = Query(request, ("key", "to", "if_rev", "force"))
    key, new, ask = query.text("key"), query.text("to"), account_of(request).ask
    if key == new:
        raise HttpFailure("BAD_REQUEST", "to: it is the key that the entry has")
    found = await ask("GET", key=key)
    if_rev = query.integer("if_rev")
    if if_rev not in {None, found["rev"]}:
        text = f"{key!r} has revision {found['rev']}, not {if_rev}"
        raise HttpFailure("CONFLICT", text, key=key, rev=found["rev"])
    fields = rename_fields(found, key, new, query.flag("force"))
    return answer(request, await ask("TXN", **fields))


async def delete_subtree(request: Request) -> Response:
    """Delete all keys with a prefix, which has to be typed once more."""
    require_writable(request)
    query = Query(request, ("prefix", "typed"))
    prefix = query.text("prefix")
    if not prefix:
        raise HttpFailure("BAD_REQUEST", "prefix: it is empty; all keys are deleted with zkv-cli")
    if query.text("typed") != prefix:
        raise HttpFailure("BAD_REQUEST", "typed: it is not the prefix")
    return _progress(request, _delete(account_of(request).ask, prefix), "deleted")


async def _delete(ask: Any, prefix: str) -> AsyncIterator[int]:
    deleted, after = 0, None
    while True:
        page = await ask("SCAN", prefix=prefix, after=after, limit=MOST, values=False)
        if keys := [key for key, _, _ in page["items"]]:
            deleted += (await ask("MDELETE", keys=keys))["deleted"]
        after = page["next"]
        yield deleted
        if after is None:
            return


def _progress(request: Request, steps: AsyncIterator[int], name: str) -> Response:
    """Answer with a line for each step, and a last one with ``done`` or a failure."""

    async def lines() -> AsyncIterator[str]:
        number = 0
        try:
            async for number in steps:
                yield f'{{"{name}": {number}}}\n'
                if not is_wanted(request):
                    raise HttpFailure("SHUTTING_DOWN", "the console ends, or the login has ended")
            yield f'{{"{name}": {number}, "done": true}}\n'
        except (HttpFailure, ClientError, ValueError) as error:
            yield to_json({name: number, **failure_of(error).fields}) + "\n"

    return StreamingResponse(lines(), media_type=LINES)


async def export_subtree(request: Request) -> Response:
    """A subtree as a file to download."""
    query = Query(request, ("prefix", "format"))
    as_msgpack = _is_msgpack(query)
    prefix = query.text("prefix", "")
    pages = exported(account_of(request).ask, prefix, as_msgpack)
    first = await anext(pages)  # A refusal is told by the status.

    async def body() -> AsyncIterator[bytes]:
        yield first
        async for page in pages:
            yield page

    name = quote(f"{prefix.strip('/') or 'all'}.{'msgpack' if as_msgpack else 'jsonl'}", safe="")
    headers = {"Content-Disposition": f"attachment; filename*=UTF-8''{name}"}
    return StreamingResponse(body(), media_type="application/octet-stream", headers=headers)


def _is_msgpack(query: Query) -> bool:
    found = query.text("format", "json")
    if found not in {"json", "msgpack"}:
        raise HttpFailure("BAD_REQUEST", f"format: expected json or msgpack, not {found!r:.60}")
    return found == "msgpack"


async def import_subtree(request: Request) -> Response:
    """Store the entries of a file, which is the body."""
    require_writable(request)
    query = Query(request, ("prefix", "format"))
    as_msgpack, prefix = _is_msgpack(query), query.text("prefix", "")
    file = tempfile.SpooledTemporaryFile(IN_MEMORY)  # noqa: SIM115  it is closed with the answer
    try:
        size = 0
        async for part in request.stream():
            size += len(part)
            if size > LARGEST_FILE:
                raise HttpFailure("TOO_LARGE", f"the file has more than {LARGEST_FILE} bytes")
            await asyncio.to_thread(file.write, part)
        file.seek(0)
    except BaseException:
        file.close()
        raise

    async def steps() -> AsyncIterator[int]:
        with file:
            async for stored in Import(account_of(request).ask, file, as_msgpack, prefix).run():
                yield stored

    return _progress(request, steps(), "stored")


async def as_text(request: Request) -> Response:
    """The value in the body as JSON with tags."""
    value = await read_value(request)
    return Response(await apart(len(value), to_json, value), media_type=JSON)


async def slow(request: Request) -> Response:
    """The newest slow requests."""
    Query(request, ())
    return answer(request, await account_of(request).ask("SLOW", limit=MOST))


async def activity(request: Request) -> Response:
    """Where most was written lately, and what has grown."""
    query = Query(request, ("prefix", "separator"))
    account = account_of(request)
    found = await summary(
        account.ask, query.text("prefix", ""), _separator(query), account.sampler.time_of
    )
    return answer(request, found)


# --- Live


async def live(request: Request) -> Response:
    """Samples of the figures, and with ``prefix`` recent changes, as events."""
    query = Query(request, ("prefix",))
    return stream(request, _live(request, account_of(request), query.maybe("prefix")))


async def _live(request: Request, account: WebAccount, prefix: str | None) -> AsyncIterator[str]:
    """Yield the last hour, and then what is new."""
    sampler = account.sampler
    tab: asyncio.Queue[dict[str, Any]] = asyncio.Queue(SLOWEST_TAB)
    rows = list(sampler.rows)
    newest = rows[-1] if rows else None
    start = {"columns": COLUMNS, "rows": rows, "newest": sampler.newest}
    yield _event("start", start | {"read_only": request.app.state.read_only})
    recent = None if prefix is None else account.recents.get(prefix)
    if recent is not None:
        recent.join(tab)  # At once: one at which nobody looks may be ended.
    feeding = asyncio.create_task(_feed_samples(sampler, newest, tab))
    try:
        while is_wanted(request):
            try:
                message = await asyncio.wait_for(tab.get(), 1.0)
            except TimeoutError:
                continue
            yield _event("sample" if "row" in message else "changes", message)
        yield _event("end", {"login": not request.state.is_valid()})
    finally:
        feeding.cancel()
        if recent is not None:
            recent.leave(tab)


async def _feed_samples(
    sampler: Sampler, row: Row | None, tab: asyncio.Queue[dict[str, Any]]
) -> None:
    while True:
        row = await sampler.after(row)
        if not tab.full():
            tab.put_nowait({"row": row, "newest": sampler.newest})


def _event(name: str, fields: dict[str, Any]) -> str:
    return f"event: {name}\ndata: {printable(encode(fields))}\n\n"


ROUTES: Final = [
    Route("/page/session", answering(session), methods=["GET"]),
    Route("/page/tree", answering(tree), methods=["GET"]),
    Route("/page/count", answering(count), methods=["GET"]),
    Route("/page/rename", answering(rename), methods=["POST"]),
    Route("/page/delete-subtree", answering(delete_subtree), methods=["POST"]),
    Route("/page/export", answering(export_subtree), methods=["GET"]),
    Route("/page/import", answering(import_subtree), methods=["POST"]),
    Route("/page/text", answering(as_text), methods=["POST"]),
    Route("/page/slow", answering(slow), methods=["GET"]),
    Route("/page/activity", answering(activity), methods=["GET"]),
    Route("/page/live", answering(live), methods=["GET"]),
]
