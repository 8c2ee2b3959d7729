"""Hints for command lines that are invalid: "did you mean ...?".

Users know the commands of Redis, etcd, memcached and Unix. If a word is one of those, the hint
names the command of zkv-cli that does the same. For a misspelt word it names the most similar one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from difflib import get_close_matches
from shlex import join
from typing import Final

from zkv.cli.ops import Command

COMMON: Final = frozenset({
    "-e", "--endpoint", "--timeout", "--server-key", "--key-file", "-o", "--output", "--json", "-"
})  # fmt: skip
_SAME_AS: Final = {
    "put KEY VALUE": "set write store add replace",
    "put KEY VALUE --ttl TIME": "setex psetex",
    "put KEY VALUE --if-rev 0": "setnx create",
    "put KEY VALUE --if-rev N": "cas",
    "put KEY VALUE --prev": "getset",
    "get KEY": "read cat show exists strlen",
    "get KEY --type": "type",
    "get KEY --meta": "ttl pttl gets object stat",
    "get KEY --watch": "follow",
    "delete KEY": "del rm unlink remove unset drop",
    "delete KEY --prev": "getdel",
    "delete --prefix PREFIX": "delprefix rmdir",
    "delete --prefix '' --yes": "flushall flushdb flush_all clear",
    "mput KEY VALUE KEY VALUE": "mset",
    "scan PREFIX": "ls list find grep range",
    "scan PREFIX --keys-only": "keys",
    "count": "dbsize size len",
    "touch KEY TIME": "expire pexpire gat getex",
    "touch KEY none": "persist",
    "incr KEY N": "incrby",
    "incr KEY -1": "decr decrement",
    "incr KEY -N": "decrby",
    "rename OLD NEW": "mv move renamenx",
    "watch PREFIX": "subscribe psubscribe monitor tail listen",
    "history KEY": "log versions",
    "changes SINCE": "diff",
    "txn FILE": "multi exec eval transaction",
    "info": "stats status endpoint client memory",
    "slow": "slowlog latency commandlog",
    "snapshot": "save bgsave bgrewriteaof sync",
    "end": "shutdown stop",
    "ping": "echo hello health time",
    "--version": "version",
}
"""Command line of zkv-cli -> commands of other tools that do the same."""
_MAP: Final = 'a value may be a map or a list: zkv-cli put KEY --json \'{"name": "Ada"}\''
_KEYS: Final = "zkv has keys, not passwords: --server-key KEY --key-file FILE"
_OTHERWISE: Final = {
    "that is a command of zkv: zkv {} --help": "serve config doctor check repair dump backup "
    "restore",
    "that is another program: zkv-bench --help": "bench benchmark",
    "that is another program: zkv serve --help": "server start run",
    "one key at a time: zkv-cli rename OLD NEW, or zkv-cli get OLD | zkv-cli put NEW -": "cp copy",
    _MAP: "hset hget hgetall hmset hmget hdel hincrby lpush rpush lpop rpop lrange llen "
    "sadd srem smembers zadd zrange zscore json.set json.get",
    "values are stored whole: get it, change it, and put it with --if-rev": "append prepend "
    "incrbyfloat setrange getrange setbit",
    "there is one keyspace; use a prefix instead of a database: zkv-cli scan 1/": "select",
    f"{_KEYS}; a server has its users in a file": "auth user role acl",
}
"""Hint, in which {} stands for the word -> commands of other tools."""

_OPTIONS: Final = {
    "-e tcp://HOST:PORT gives the server": "-p --port --host -u --uri --url "
    "--endpoints -s --socket",
    "there is one keyspace; use a prefix instead of a database": "-n --db",
    _KEYS: "-a --pass --user --password --auth --askpass",
    "- instead of VALUE reads it from standard input": "-x --stdin",
    "-o json prints answers as JSON": "-w --write-out --format",
    "--ttl TIME lets the key expire": "--ex --px --expire --expires --expiry --lease -t",
    "--if-rev 0 stores the key only if it does not exist": "--nx --if-absent",
    "zkv-cli scan PREFIX prints the keys with a prefix": "--scan --pattern --match --from-key -r",
    "get prints only the value": "--print-value-only --value-only --raw --no-raw",
    "--yes does not ask": "-y --force -f",
    "--version prints the version": "-v -V",
}
"""Hint -> options of other tools."""


def find(message: str, typed: list[str], commands: Mapping[str, Command]) -> str:
    """A hint for an invalid command line; empty if there is none.

    Args:
        message: the error message of argparse or `zkv.cli.arguments`.
        typed: the whole command line.
        commands: all commands by name.
    """
    if message.startswith("no such command: "):
        return _command(message.partition("'")[2].rstrip("'"), commands)
    if message.startswith("-h ") or re.search(r"arguments: (-h|--host|-p|--port)\b", message):
        return _address(typed)
    name = next((word.lower() for word in typed if word.lower() in commands), "")
    leftover = message.removeprefix("unrecognized arguments: ")
    if message.endswith("VALUE") and (dashed := _dashed(typed, commands.get(name))):
        return f"if {dashed} is the VALUE, put -- before it"
    if leftover == message:
        return ""
    first = leftover.split(" ", 1)[0]
    if first.startswith("-"):
        return _option(first.partition("=")[0], commands.get(name))
    return _too_much(name, typed, leftover)


def _command(word: str, commands: Mapping[str, Command]) -> str:
    word = word.lower()
    others = {other: line for line, words in _SAME_AS.items() for other in words.split()}
    if word in others:
        return f"did you mean: zkv-cli {others[word]}?"
    for advice, words in _OTHERWISE.items():
        if word in words.split():
            return advice.replace("{}", word)
    for near in get_close_matches(word, [*commands, *others], 1, 0.75):
        line = others[near] if near in others else commands[near].synopsis
        return f"did you mean: zkv-cli {line}?"
    return ""


def _address(typed: list[str]) -> str:
    """The same command line, with host and port as an endpoint."""
    found = {"h": "127.0.0.1", "p": "5555"}
    rest: list[str] = []
    words = iter(typed)
    for word in words:
        option = {"--host": "h", "--port": "p", "-h": "h", "-p": "p"}.get(word.partition("=")[0])
        if option is None:
            rest.append(word)
        else:
            found[option] = word.partition("=")[2] or next(words, found[option])
    line = join(["zkv-cli", "-e", f"tcp://{found['h']}:{found['p']}", *rest])
    return f"did you mean: {line}?"


def _dashed(typed: list[str], command: Command | None) -> str:
    """The first word that looks like an option, but is not one of the command's."""
    own = () if command is None else command.arguments
    known = {name for each in own for name in each.names} | COMMON
    return next((word for word in typed if word[0:1] == "-" and word not in known), "")


def _option(option: str, command: Command | None) -> str:
    if command is not None:
        if option == "--prefix":
            return (
                f"did you mean: zkv-cli {'scan' if command.name == 'get' else command.name} PREFIX?"
            )
        own = [name for each in command.arguments if each.is_option for name in each.names]
        if option in own:
            return f"it goes after the command: zkv-cli {command.name} {option}"
        if near := get_close_matches(option, own, 1):
            return f"did you mean {near[0]}?"
    return next((text for text, names in _OPTIONS.items() if option in names.split()), "")


_MANY_KEYS: Final = {"get": "mget", "delete": "mdelete"}
"""Command that takes one key -> the one that takes many."""
_UNITS: Final = {"ex": "s", "px": "ms"}


def _too_much(name: str, typed: list[str], leftover: str) -> str:
    """The hint for words that a command does not take."""
    if name == "put":
        return _behind_value(leftover.lower().split())
    if name in _MANY_KEYS:
        line = [_MANY_KEYS[name] if word.lower() == name else word for word in typed]
        return f"did you mean: {join(['zkv-cli', *line])}? Quote a KEY that contains spaces"
    return {
        "scan": "did you mean: zkv-cli scan PREFIX --limit N?",
        "info": "info prints everything: zkv-cli info | grep WORD",
    }.get(name, "")


def _behind_value(words: list[str]) -> str:
    """The hint for words after a VALUE, where Redis takes options."""
    if len(words) == 2 and words[0] in _UNITS:
        return f"did you mean --ttl {words[1]}{_UNITS[words[0]]}?"
    if words[:1] == ["nx"]:
        return "did you mean --if-rev 0?"
    return "quote a VALUE that contains spaces; for many keys: zkv-cli mput KEY VALUE KEY VALUE"
