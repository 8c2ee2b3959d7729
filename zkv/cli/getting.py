"""``zkv-cli get``: prints a value, its type or its metadata, or follows its changes."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from zkv.cli import fields, text
from zkv.cli.asking import CommandSession, reading
from zkv.cli.output import FAILED, CommandError, is_terminal, note, print_result
from zkv.cli.text import Reply
from zkv.entries.text import to_json, type_name

if TYPE_CHECKING:
    from zkv.client import Client


def run(session: CommandSession, options: argparse.Namespace) -> int:
    """Print the value, or what the options ask for."""
    if options.type + options.meta + options.watch > 1:
        raise CommandError(FAILED, "give only one of --type, --meta and --watch")
    client = session.client(options)
    if options.watch:
        return _watch(client, options)
    reply = client.call("GET", **fields.read("key")(options))
    with reading("GET"):
        print_result(_answer(reply, options))
    return 0


def _answer(reply: Reply, options: argparse.Namespace) -> str | bytes:
    if options.type:
        name = type_name(reply["value"])
        return to_json(name) if options.json else name
    if options.meta:
        facts = {
            "value": reply["value"], "type": type_name(reply["value"]), "rev": reply["rev"],
            "ttl": reply.get("ttl"),
        }  # fmt: skip
        return to_json(facts) if options.json else text.meta(facts)
    if options.json:
        return to_json(reply["value"])
    return text.value_shown(reply) if is_terminal(sys.stdout) else text.value(reply)


def _watch(client: Client, options: argparse.Namespace) -> int:
    """Print the present value, and each new one, for ever."""
    from zkv.client import RefusedError

    key = options.key
    with reading("INFO"):
        since: int = client.call("INFO")["rev"]
    try:
        reply = client.call("GET", **fields.read("key")(options))
    except RefusedError as error:
        if error.code != "NOT_FOUND":
            raise
        note(f"{text.word(key)} does not exist yet; waiting for it")
    else:
        with reading("GET"):
            # Any change of this key after this reply has a higher revision than both.
            since = max(since, reply["rev"])
            print_result(_answer(reply, options))
    with client.watch(key, since=since) as watch:
        for change in watch:
            if change.op == "RESET":
                note("the server no longer keeps some changes; continuing with the present value")
            elif change.key == key and change.op in text.GONE:
                note(f"{text.word(key)} is gone: {change.op}, revision {change.rev}")
            elif change.key == key and change.op == "PUT":
                print_result(_answer({"value": change.value}, options))
    return 0
