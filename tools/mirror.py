"""Generates `zkv/compiled/names.h` from the classes of requests and replies.

    python tools/mirror.py            # writes the file
    python tools/mirror.py --check    # exit status 1 if the file is outdated

The header has the facts that C and Python share, which are defined in Python: the ops of the lane
with their required and optional fields, the field names as msgpack packs them, and limits.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from zkv.protocol import replies, requests
from zkv.protocol.codec import MAX_SESSION_BYTES, MAX_TRACE_BYTES
from zkv.requests.commands import MAX_REMEMBERED_REPLY

TARGET: Final = Path(__file__).parents[1] / "zkv/compiled/names.h"
OPS: Final = (
    requests.Get, requests.Put, requests.Incr, requests.MGet, requests.MPut, requests.Txn,
)  # fmt: skip
"""The requests that the lane runs."""
OPTIONAL: Final = ("by", "id", "session", "seq", "if", "timing", "trace")
"""The optional fields that the lane handles; it leaves a request with any other to the commands."""
REPLIES: Final = (
    replies.GetReply, replies.WriteReply, replies.IncrReply, replies.MGetReply, replies.TxnReply,
)  # fmt: skip

HEAD: Final = """\
/* Made by tools/mirror.py from zkv/protocol/requests.py and replies.py: `make generate`.
 *
 * Fields that a request of the lane may have, and its ops with what each must and may have. */

#ifndef ZKV_NAMES_H
#define ZKV_NAMES_H

"""


def fields_of(request: type[Struct]) -> tuple[list[str], list[str]]:
    """The fields that a request of the lane must have, and those that it may have."""
    must, may = ["op"], []
    for each in msgspec.structs.fields(request):
        if each.required:
            must.append(each.encode_name)
        elif each.encode_name in OPTIONAL:
            may.append(each.encode_name)
    if not request.writes:  # type: ignore[attr-defined]
        may = [name for name in may if name not in {"session", "seq"}]
    return must, may


def packed(name: str) -> str:
    """The C string literal for a name as msgpack packs it."""
    return f'"\\x{0xA0 + len(name):x}" "{name}"'


def bits(names: list[str]) -> str:
    """The C expression for a set of fields."""
    return " | ".join(f"FIELD_{name.upper()}" for name in names) or "0"


def render() -> str:
    """The text of the header."""
    known = {request: fields_of(request) for request in OPS}
    fields = list(dict.fromkeys(name for must, may in known.values() for name in (*must, *may)))
    answered = {each.encode_name for reply in REPLIES for each in msgspec.structs.fields(reply)}
    names = sorted({*fields, *answered, "ok"})
    lines = ["#define LANE_FIELDS(X) \\"]
    lines += [f'    X(FIELD_{name.upper()}, "{name}") \\' for name in fields]
    lines += ["", "#define LANE_OPS(X) \\"]
    for request, (must, may) in known.items():
        op = requests.OP_NAMES[request]
        lines.append(f'    X({op}, "{op}", {bits(must)}, {bits(may)}) \\')
    lines += ["", "/* Names as msgpack packs them. */"]
    lines += [f"#define PACKED_{name.upper()} {packed(name)}" for name in names]
    lines += [
        "",
        f"#define MAX_SESSION_BYTES {MAX_SESSION_BYTES}",
        f"#define MAX_TRACE_BYTES {MAX_TRACE_BYTES}",
        f"#define MAX_REMEMBERED_REPLY {MAX_REMEMBERED_REPLY}",
        "",
        "#endif",
    ]
    return HEAD + "\n".join(lines) + "\n"


def main(words: list[str]) -> int:
    """Run the command line; returns the exit status."""
    text = render()
    if words != ["--check"]:
        TARGET.write_text(text, encoding="utf-8")
    elif TARGET.read_text(encoding="utf-8") != text:
        print(f"{TARGET} is outdated: run make generate", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
