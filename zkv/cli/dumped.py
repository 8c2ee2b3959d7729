"""Lines of JSON for entries and commits, as ``zkv dump`` prints them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zkv.entries import value_writer
from zkv.entries.text import to_json, to_object
from zkv.keyspace.change import REMOVALS

if TYPE_CHECKING:
    from zkv.keyspace import Commit, KeyChange, StoredEntry


def entry_line(key: str, entry: StoredEntry) -> str:
    """Return the line of JSON for an entry."""
    value = value_writer.write(entry.value)
    fields = {"key": to_json(key), "value": value, "rev": to_json(entry.rev)}
    if entry.expires is not None:
        fields["expires"] = to_json(entry.expires)
    return to_object(fields)


def commit_line(commit: Commit) -> str:
    """Return the line of JSON for a commit."""
    changes = ", ".join(map(_change, commit.changes))
    fields = {"rev": to_json(commit.rev), "lsn": to_json(commit.lsn), "time": to_json(commit.time)}
    fields["changes"] = f"[{changes}]"
    if commit.once is not None:
        fields["session"] = to_json(commit.once.session)
        fields["seq"] = to_json(commit.once.seq)
        fields["reply"] = value_writer.write(commit.once.reply)
    if commit.begins is not None:
        fields["store"] = to_json(commit.begins.store)
        fields["term"] = to_json(commit.begins.term)
    return to_object(fields)


def _change(change: KeyChange) -> str:
    fields = {"op": to_json(change.op), "key": to_json(change.key)}
    if change.op not in REMOVALS:
        fields["value"] = value_writer.write(bytes(change.value))
    if change.expires is not None:
        fields["expires"] = to_json(change.expires)
    return to_object(fields)
