"""Bugs that tests must catch: each a replacement of one place in the code, and the tests.

A line of the table says what the bug does. `old` stands in its file exactly once, and is code: a
comment may be worded anew at any time. `tests` are arguments of pytest, of which one test at least
must fail.

A change that nothing can tell from the code as it is does not belong here.
"""

from __future__ import annotations

from typing import Final, NamedTuple


class Mutant(NamedTuple):
    """One bug.

    Args:
        name: what it does wrong.
        path: of the file, from the root of the repository.
        old: what stands there.
        new: what takes its place.
        tests: arguments of pytest: files, and what chooses some of their tests.
    """

    name: str
    path: str
    old: str
    new: str
    tests: tuple[str, ...]


FOLLOWER: Final = ("tests/client/test_follower.py",)
TRACING: Final = ("tests/client/test_tracing.py", "-k")
PURE: Final = ("tests/client/test_pure.py", "-k", "not pipeline")

LANE: Final = "zkv/compiled/lane.c"
LONG: Final = "zkv/compiled/long.c"
REQUEST: Final = "zkv/compiled/request.c"
CODEC: Final = "zkv/protocol/codec.py"
WAL: Final = "zkv/durability/wal.py"
WAL_C: Final = "zkv/compiled/wal.c"
TEST_WAL_C: Final = "tests/compiled/test_wal.py"
SEGMENT: Final = "zkv/durability/segment.py"
TURN: Final = "zkv/compiled/turn.c"
STORE: Final = "zkv/keyspace/store.py"
TABLE: Final = "zkv/compiled/table.c"
INDEX: Final = "zkv/compiled/index.c"
COUNTS: Final = "zkv/compiled/counts.c"
EVICT: Final = "zkv/compiled/evict.c"
EVICTION: Final = "zkv/keyspace/eviction.py"
REPLAY: Final = "zkv/compiled/replay.c"
RECOVERY: Final = "zkv/durability/recovery.py"
HANDSHAKES: Final = "zkv/broker/handshakes.py"
PEERS: Final = "zkv/broker/peers.py"
IN_SETTINGS: Final = ("tests/config/test_settings.py",)
LOADED: Final = ("tests/compiled/test_replay.py",)
IN_ORDER: Final = ("tests/keyspace/test_table.py", "-k", "in_order")

IN_C: Final = [
    Mutant(
        "an entry is there in the millisecond in which it expires",
        LANE,
        "(!found->expiring || record_expires(found) > r->now)",
        "(!found->expiring || record_expires(found) >= r->now)",
        ("tests/requests/test_ttl.py", "-k", "very_millisecond"),
    ),
    Mutant(
        "an absence in an MGET does not wait for the removal",
        LANE,
        "if (!live && rev < r->removed_rev)",
        "if (0)",
        ("tests/requests/test_safe_replies.py", "-k", "crash_could_take_back"),
    ),
    Mutant(
        "INCR makes an entry stay for ever",
        LANE,
        "return stage(self, r, of, (span){value, size}, live ? record_expires(found) : 0);",
        "return stage(self, r, of, (span){value, size}, 0);",
        ("tests/requests/test_incr.py", "-k", "time_to_live"),
    ),
    Mutant(
        "a server that has ended is kept by its lane",
        LANE,
        "    Py_VISIT(self->forget_deadline);\n",
        "",
        ("tests/test_collector.py", "-k", "has_ended"),
    ),
    Mutant(
        "INCR wraps around",
        LANE,
        "return read_int(&r, &number) && !__builtin_add_overflow(number, *sum, sum);",
        "return read_int(&r, &number) && (__builtin_add_overflow(number, *sum, sum), 1);",
        ("tests/requests/test_incr.py", "-k", "past_the_range"),
    ),
    Mutant(
        "a condition holds for an entry that has expired",
        LANE,
        "return condition->number == (is_live(r, found) ? found->rev : 0);",
        "return condition->number == (found != NULL ? found->rev : 0);",
        ("tests/requests/test_ttl.py", "-k", "every_op_sees"),
    ),
    Mutant(
        "the conditions of a TXN are not looked at",
        LANE,
        "if (!holds(self, r, &from->conditions.at[i]))",
        "if (0)",
        ("tests/requests/test_txn.py", "-k", "before_the_ops"),
    ),
    Mutant(
        "an item of an MPUT that is there twice is logged twice",
        LANE,
        "    items->count = kept;\n",
        "",
        ("tests/compiled/test_compiled.py", "-k", "items_that_are_there_twice"),
    ),
    Mutant(
        "what a TXN did first stays where the rest fails",
        LANE,
        "while (replaced->count > r->first) {",
        "while (replaced->count > r->first + 1) {",
        ("tests/requests/test_txn.py", "-k", "last_one_fails"),
    ),
    Mutant(
        "a new key is missing in scans",
        TABLE,
        "if (self->index.count > 0 && !index_insert(self, number))",
        "if (0)",
        ("tests/requests/test_batches.py", "-k", "one_revision"),
    ),
    Mutant(
        "a count forgets the keys in the first part of the index",
        INDEX,
        "    for (size_t i = 0; i < at->leaf; i++)",
        "    for (size_t i = 1; i < at->leaf; i++)",
        IN_ORDER,
    ),
    Mutant(
        "the keys of a start are taken to be in order",
        INDEX,
        "sorted = sorted && (count == 0",
        "sorted = sorted || (count == 0",
        IN_ORDER,
    ),
    Mutant(
        "the slot of a removed key is not used again",
        TABLE,
        "    self->free = number;\n",
        "",
        ("tests/keyspace/test_table.py", "-k", "used_again"),
    ),
    Mutant(
        "a deadline outlives the entry that had it",
        LANE,
        "if (pair->before != NULL && pair->before->expiring && !pair->now->expiring &&",
        "if (0 &&",
        ("tests/requests/test_ttl.py", "-k", "let_a_key_stay or old_ones"),
    ),
    Mutant(
        "a snapshot is not told of what is replaced while it is written",
        LANE,
        "int watched = PyList_Size(self->watchers) > 0;",
        "int watched = 0;",
        ("tests/compiled/test_compiled.py", "-k", "does_what_the_commands_do"),
    ),
    Mutant(
        "a repeat runs again",
        LANE,
        "o->reply_size <= MAX_REMEMBERED_REPLY && is_new(self, r, o);",
        "o->reply_size <= MAX_REMEMBERED_REPLY;",
        ("tests/requests/test_sessions.py", "-k", "repeat_is_answered"),
    ),
    Mutant(
        "a reply is remembered with the revision before",
        LANE,
        "(long long)r->rev + 1, (long long)r->lsn + 1,",
        "(long long)r->rev, (long long)r->lsn + 1,",
        ("tests/compiled/test_compiled.py", "-k", "does_what_the_commands_do"),
    ),
    Mutant(
        "a TXN that reads is durable whatever the policy",
        LANE,
        "return self->durable && !is_once(from) ? to_reply(self, r, from, 0) : no_reply;",
        "return !is_once(from) ? to_reply(self, r, from, 0) : no_reply;",
        ("tests/compiled/test_compiled.py", "-k", "knows_what_is_durable"),
    ),
    Mutant(
        "a store that stops takes writes",
        LANE,
        "if (!r->takes_writes ||",
        "if (",
        ("tests/compiled/test_compiled.py", "-k", "sealed"),
    ),
    Mutant(
        "the values of an MGET have no bound together",
        LANE,
        "if (values > (size_t)self->max_reply)",
        "if (0)",
        ("tests/requests/test_limits.py", "-k", "reply_that_is_too_large"),
    ),
    Mutant(
        "the front sees half of a long write",
        LONG,
        "    while (found != NULL && found->rev > past->rev)",
        "    while (0)",
        ("tests/compiled/test_long.py", "-k", "beside_a_long_request"),
    ),
    Mutant(
        "the front sees what an earlier step of a long TXN has written",
        LONG,
        "    while (found != NULL && found->rev > past->rev)",
        "    if (found != NULL && found->rev > past->rev)",
        ("tests/compiled/test_long.py", "-k", "beside_a_long_request or half"),
    ),
    Mutant(
        "an absence beside a long write does not wait for the removal",
        LONG,
        "    r->removed_rev = r->past->removed_rev;\n",
        "    r->removed_rev = 0;\n",
        ("tests/compiled/test_long.py", "-k", "expired_entries"),
    ),
    Mutant(
        "entries of a long write keep the revisions that encode their places",
        LANE,
        "            r->replaced->pairs[i].now->rev = r->rev + 1;\n",
        "            ;\n",
        ("tests/compiled/test_compiled.py", "-k", "items_that_are_there_twice_are_put"),
    ),
    Mutant(
        "what a write has replaced is never released",
        "zkv/compiled/table.c",
        "    record_release(pair->before);\n",
        "",
        ("tests/compiled/test_long.py", "-k", "given_back"),
    ),
    Mutant(
        "the front runs long requests",
        "zkv/requests/lane.py",
        "    most = min(limits.max_batch, LONG_STEPS)\n",
        "    most = limits.max_batch\n",
        ("tests/compiled/test_long.py", "-k", "left_to_a_worker"),
    ),
    Mutant(
        "a parked reply loses its bytes",
        "zkv/compiled/batch.c",
        "        to->used += moved->reply_size;\n",
        "",
        ("tests/requests", "-x", "-k", "model or safe_replies"),
    ),
    Mutant(
        "an answer that another one replaces is counted",
        "zkv/compiled/batch.c",
        "    of->op = NONE;\n",
        "",
        ("tests/compiled/test_compiled.py", "-k", "another_one_replaces"),
    ),
    Mutant(
        "only the first batch of checksums is folded",
        "zkv/compiled/crc32.c",
        "        lanes[i] = fold(lanes[i - 1], by_16, lanes[i]);\n",
        "        lanes[i] = fold(lanes[0], by_16, lanes[i]);\n",
        ("tests/compiled/test_hashes.py", "-k", "every_length"),
    ),
    Mutant(
        "a session without a number is taken",
        REQUEST,
        "(once == 0 || once == ONCE);",
        "1;",
        ("tests/requests/test_sessions.py", "-k", "half_a_session"),
    ),
    Mutant(
        "another value under a remembered number is taken for a repeat",
        REQUEST,
        "{head, head_size}, each->key, each->value},\n                4);",
        "{head, head_size}, each->key, each->value},\n                3);",
        ("tests/requests/test_sessions.py", "-k", "other_content"),
    ),
    Mutant(
        "the checksum of a frame does not depend on its segment",
        "zkv/compiled/frames.c",
        "crc32(salt, checked, sizeof checked)",
        "crc32(0, checked, sizeof checked)",
        ("tests/compiled/test_compiled.py", "-k", "frames_are_packed_alike"),
    ),
]

AT_THE_START: Final = [
    Mutant(
        "a start takes frames whose checksum does not match",
        REPLAY,
        "f->size) == big_endian(head + 4, 4);",
        "f->size) != 0;",
        (*LOADED, "-k", "damaged"),
    ),
    Mutant(
        "a start takes any revision for the next one",
        REPLAY,
        "c.rev == p->next_rev &&",
        "",
        (*LOADED, "-k", "each_bad_commit"),
    ),
    Mutant(
        "a start takes any log number for the next one",
        REPLAY,
        "c.lsn == p->next_lsn &&",
        "",
        (*LOADED, "-k", "each_bad_commit"),
    ),
    Mutant(
        "payloads of format 1 stay as they are in the history",
        REPLAY,
        "c->old ? renewed(f) : to_bytes(f->at, f->size)",
        "to_bytes(f->at, f->size)",
        (*LOADED, "-k", "earlier_versions"),
    ),
    Mutant(
        "a time decides what a snapshot covers",
        "zkv/durability/snapshot.py",
        "if self.numbered or commit.changes or commit.rev != self.rev:",
        "if commit.changes or commit.rev != self.rev:",
        ("tests/durability/test_log_numbers.py", "-k", "clock_was_set_back"),
    ),
    Mutant(
        "a snapshot has refusals that came after it",
        "zkv/keyspace/sessions.py",
        "if known.lsn <= lsn",
        "if known.rev <= lsn",
        ("tests/durability/test_log_numbers.py", "-k", "came_during_it"),
    ),
    Mutant(
        "log numbers of what was rolled back are not given again",
        WAL,
        "            self.last_lsn = self.kept_lsn\n",
        "",
        ("tests/durability/test_log_numbers.py",),
    ),
    Mutant(
        "the commits of a run have one log number",
        LANE,
        "        r->lsn++;\n",
        "",
        ("tests/compiled/test_compiled.py",),
    ),
    Mutant(
        "a directory is upgraded before it is kept",
        "zkv/durability/upgrade.py",
        "        files.sync_directory(target)\n    files.sync_directory(copy.directory)\n",
        "",
        ("tests/durability/test_upgrade.py", "-k", "any_moment"),
    ),
    Mutant(
        "a newer file counts as damaged",
        "zkv/durability/formats.py",
        "if version > CURRENT:",
        "if version > CURRENT + 1:",
        ("tests/durability/test_upgrade.py", "-k", "newer"),
    ),
    Mutant(
        "a start applies what the next segment replaces",
        REPLAY,
        "c.rev < p->limit) {",
        "1) {",
        (*LOADED, "-k", "directories_are_loaded"),
    ),
    Mutant(
        "a commit that is not one is applied up to where it fails",
        REPLAY,
        "return c->count > 0 && (!once || read_once(&r, c)) && r.at == r.end;",
        "return c->count > 0 && (!once || read_once(&r, c));",
        (*LOADED, "-k", "each_bad_commit"),
    ),
    Mutant(
        "the last changes of some frames are never applied",
        REPLAY,
        "return apply_waiting(&p->into) ? end : NULL;",
        "return end;",
        (*LOADED, "-k", "no_object"),
    ),
    Mutant(
        "refusals after the snapshot are forgotten if no history is kept",
        RECOVERY,
        "self.oldest = newest - max(kept, 1) + 1",
        "self.oldest = newest - kept + 1",
        ("tests/durability/test_recovery.py",),
    ),
    Mutant(
        "a start reads log that nothing needs",
        RECOVERY,
        "elif successor.rev > self.oldest or self._may_have_replies(successor):",
        "else:",
        ("tests/durability/test_recovery.py",),
    ),
]

CODEC_AND_EXACTLY_ONCE: Final = [
    Mutant(
        "a session's name is measured in characters",
        CODEC,
        "if len(request.session.encode()) > MAX_SESSION_BYTES:",
        "if len(request.session) > MAX_SESSION_BYTES:",
        ("tests/requests/test_sessions.py", "-k", "half_a_session"),
    ),
    Mutant(
        "a key is measured in characters",
        CODEC,
        "size = len(key.encode())",
        "size = len(key)",
        ("tests/requests/test_limits.py", "-k", "utf8"),
    ),
    Mutant(
        "one level less may be nested",
        CODEC,
        "if levels > MAX_LEVELS + LEVELS_ABOVE.get(name, 0):",
        "if levels >= MAX_LEVELS + LEVELS_ABOVE.get(name, 0):",
        ("tests/protocol/test_protocol.py", "-k", "levels"),
    ),
    Mutant(
        "a large map is taken for none",
        CODEC,
        "return 0x80 <= first <= 0x8F or first in {0xDE, 0xDF}",
        "return 0x80 <= first <= 0x8F or first in {0xDE}",
        ("tests/protocol/test_protocol.py", "-k", "levels or second_look or both_looks"),
    ),
    Mutant(
        "an array of 16 values has a short head",
        CODEC,
        "if size < 16:",
        "if size < 17:",
        ("tests/protocol/test_protocol.py", "-k", "array_of_packed"),
    ),
    Mutant(
        "two puts with other keys have one digest",
        CODEC,
        'packed = b"".join((op, _encoder.encode(key), value))',
        'packed = b"".join((op, value))',
        ("tests/requests/test_sessions.py", "-k", "other_content"),
    ),
    Mutant(
        "a deadline is part of what tells two requests apart",
        CODEC,
        "                deadline=None,\n",
        "",
        ("tests/requests/test_sessions.py", "-k", "other_content"),
    ),
    Mutant(
        "another request under a remembered number is answered",
        "zkv/keyspace/sessions.py",
        "if known.digest != digest:",
        "if False:",
        ("tests/requests/test_sessions.py", "-k", "other_content"),
    ),
    Mutant(
        "the window has one number more",
        "zkv/keyspace/sessions.py",
        "            if seq <= session.newest - self._window:\n",
        "            if seq < session.newest - self._window:\n",
        ("tests/requests/test_sessions.py", "-k", "window_ends or set_of_the_newest"),
    ),
    Mutant(
        "a rollback leaves the window where it was moved to",
        "zkv/keyspace/sessions.py",
        "        session.newest = window.newest\n",
        "",
        ("tests/requests/test_refused_writes.py", "-k", "move_the_window"),
    ),
    Mutant(
        "a repeat is no sign of life",
        "zkv/keyspace/sessions.py",
        "        session.used = now\n"
        "        self._sessions.move_to_end(name)\n"
        "        return self._in(session, name, seq, digest)\n\n    def knows",
        "        self._sessions.move_to_end(name)\n"
        "        return self._in(session, name, seq, digest)\n\n    def knows",
        ("tests/requests/test_sessions.py", "-k", "repeats_is_not_forgotten"),
    ),
    Mutant(
        "large replies take the room of small ones",
        "zkv/keyspace/sessions.py",
        "self._most_bytes if small else self._most_bytes - self._most_bytes // KEPT_SHARE",
        "self._most_bytes",
        ("tests/requests/test_sessions.py", "-k", "small_replies or remembered_may_take"),
    ),
]

EXPIRY: Final = [
    Mutant(
        "an entry is there in the millisecond in which it expires",
        STORE,
        "return entry.expires is not None and entry.expires <= self.now()",
        "return entry.expires is not None and entry.expires < self.now()",
        ("tests/requests/test_ttl.py", "-k", "very_millisecond"),
    ),
    Mutant(
        "a removal is told as a DELETE",
        STORE,
        "transaction.remove(key, EXPIRE)",
        "transaction.remove(key)",
        ("tests/requests/test_ttl.py", "-k", "revision_of_its_own"),
    ),
    Mutant(
        "an earlier deadline does not wake the expiry thread",
        STORE,
        "if self._deadlines[0] == deadline:",
        "if False:",
        ("tests/broker/test_feed.py", "-k", "every_op_makes"),
    ),
    Mutant(
        "a count forgets what is replaced where it has not been",
        "zkv/keyspace/tally.py",
        "if (old.expires, key) > self.reached and self._keys.holds(key):",
        "if False:",
        ("tests/keyspace/test_keyspace.py", "-k", "count"),
    ),
    Mutant(
        "an absence does not wait for the write that set the deadline",
        STORE,
        "return self.removed_rev if entry is None else max(self.removed_rev, entry.rev)",
        "return self.removed_rev",
        ("tests/requests/test_safe_replies.py", "-k", "expiry_that_a_crash"),
    ),
    Mutant(
        "a removed entry stays where it has no successor",
        STORE,
        "                del entries[key]\n",
        "                pass\n",
        ("tests/requests/test_ttl.py", "-k", "every_op_sees"),
    ),
]

LOG: Final = [
    Mutant(
        "what is written is safe",
        WAL,
        "self.kept_rev = self.safe_rev = self.durable_rev",
        "self.kept_rev = self.safe_rev = self.written_rev",
        ("tests/requests/test_safe_replies.py", "-k", "only_written"),
    ),
    Mutant(
        "half a frame stays after a failed write",
        WAL,
        "            self._files.truncate(self._file, self._offset)\n",
        "",
        ("tests/durability/crash/test_full_disk.py", "-k", "what_fits_is_taken"),
    ),
    Mutant(
        "what was written and is rolled back stays in the file",
        WAL,
        "self._offset = self._synced if self._sync_each else self._offset",
        "pass",
        ("tests/requests/test_refused_writes.py", "-k", "leaves_the_log"),
    ),
    Mutant(
        "a segment is followed by another one before it is on disk",
        WAL,
        "        self._sync()\n        old, path, size = self._file, self._path, self._offset\n",
        "        old, path, size = self._file, self._path, self._offset\n",
        (
            "tests/durability/crash/test_nth_call.py",
            "tests/durability/crash/test_reordered_writes.py",
        ),
    ),
    Mutant(
        "what is queued when the log fails is written later",
        WAL,
        "            self._queue.clear()\n",
        "",
        ("tests/requests/test_refused_writes.py", "-k", "not_written_later"),
    ),
    Mutant(
        "the name of a segment is not on disk",
        WAL,
        "            self._files.rename(beside, path)\n"
        "            self._files.sync_directory(self._directory)\n",
        "            self._files.rename(beside, path)\n",
        ("tests/durability/crash/test_reordered_writes.py",),
    ),
    Mutant(
        "after a failed sync the log asks again",
        WAL,
        "    def _sync_failed(self, error: Exception) -> ReadOnly:\n        self._broken = True\n",
        "    def _sync_failed(self, error: Exception) -> ReadOnly:\n",
        ("tests/durability/crash/test_full_disk.py", "-k", "failed_sync_acknowledges"),
    ),
    Mutant(
        "who waits for a number finds no commit behind it",
        WAL,
        "        self._queue.append((lsn, payloads, self.appended_bytes))\n"
        "        self.last_lsn = lsn\n",
        "        self.last_lsn = lsn\n"
        "        self._queue.append((lsn, payloads, self.appended_bytes))\n",
        ("tests/requests/test_safe_replies.py", "-k", "finds_it_queued"),
    ),
    Mutant(
        "every segment has the same salt",
        SEGMENT,
        "return secrets.randbits(32)",
        "return 0",
        ("tests/durability/test_offline.py", "tests/durability/crash/test_every_byte.py"),
    ),
    Mutant(
        "damage is taken for a torn tail",
        SEGMENT,
        "return self.fault is not None and self.vouched > self.end",
        "return False",
        ("tests/durability/crash/test_every_byte.py", "-k", "missing_files or one_bit"),
    ),
    Mutant(
        "a good frame may stand where another one should be",
        SEGMENT,
        "self.fault = misplacement(commit, self.next_rev - 1, last_lsn)",
        "self.fault = None",
        ("tests/durability/crash/test_every_byte.py", "-k", "missing_whole"),
    ),
    Mutant(
        "a good frame where another one should be proves nothing",
        SEGMENT,
        "if offset < self.end:",
        "if offset <= self.end:",
        ("tests/durability/crash/test_every_byte.py", "-k", "missing_whole"),
    ),
    Mutant(
        "a frame vouches for nothing",
        SEGMENT,
        "crc = _checksum(length, synced, payload, salt)",
        "synced, crc = 0, _checksum(length, 0, payload, salt)",
        ("tests/compiled/test_compiled.py", "-k", "frames_are_packed_alike"),
    ),
    Mutant(
        "an older segment may end too early",
        "zkv/durability/recovery.py",
        "if not successor.follows(scan):",
        "if False:",
        ("tests/durability/crash/test_every_byte.py", "-k", "older_segments"),
    ),
    Mutant(
        "the newest segment may end before the snapshot",
        "zkv/durability/recovery.py",
        "if scan.next_lsn <= self._start.lsn:",
        "if False:",
        ("tests/durability/crash/test_every_byte.py", "-k", "ends_before_the_snapshot"),
    ),
    Mutant(
        "what is replayed expires never",
        "zkv/keyspace/change.py",
        "return StoredEntry(bytes(change.value), rev, change.expires)",
        "return StoredEntry(bytes(change.value), rev, None)",
        ("tests/requests/test_ttl.py", "-k", "very_millisecond"),
    ),
]

WAITING: Final = [
    Mutant(
        "who asks for the disk is answered without",
        "zkv/durability/committer.py",
        "any(group.durable for group in current)",
        "False",
        ("tests/requests/test_safe_replies.py", "-k", "durable_asks"),
    ),
    Mutant(
        "what was rolled back before its turn is answered as done",
        "zkv/durability/committer.py",
        "group.complete(error if group.epoch == epoch else _unknown())",
        "group.complete(error)",
        ("tests/requests/test_refused_writes.py", "-k", "undone_together"),
    ),
    Mutant(
        "what was rolled back while it waited for the log is answered as done",
        "zkv/durability/committer.py",
        "error = None if log.epoch == epoch else _unknown()",
        "error = None",
        ("tests/requests/test_safe_replies.py", "-k", "passed_its_number"),
    ),
    Mutant(
        "what another epoch made safe is told",
        "zkv/broker/waiting.py",
        "return safe if confirmed and engine.epoch == epoch else NOTHING_SAFE",
        "return safe",
        ("tests/requests/test_safe_replies.py", "-k", "another_one_with_its_revision"),
    ),
    Mutant(
        "in C, the client loses keys of a map that are equal in Python",
        "zkv/compiled/values.c",
        "if (dict != NULL && PyDict_Size(dict) != (Py_ssize_t)count)",
        "if (0)",
        ("tests/client/test_values.py", "tests/compiled/test_plain.py"),
    ),
    Mutant(
        "in C, the client takes bytes behind a reply for nothing",
        "zkv/compiled/values.c",
        "if (value != NULL && r.at == r.end)",
        "if (value != NULL)",
        ("tests/compiled/test_plain.py",),
    ),
    Mutant(
        "a digest of short items has what was there before behind it",
        "zkv/compiled/blake2b.c",
        "memset(to, 0, BLOCK - size);",
        ";",
        ("tests/compiled/test_hashes.py",),
    ),
    Mutant(
        "a turn sends what another epoch made safe",
        TURN,
        " || epoch != read_epoch(self))",
        ")",
        ("tests/compiled/test_turn.py", "tests/requests/test_safe_replies.py"),
    ),
    Mutant(
        "a turn sends what is not safe",
        TURN,
        "r->newest > read_safe_rev(self) || ",
        "",
        ("tests/requests/test_safe_replies.py",),
    ),
    Mutant(
        "a turn sends reads that nobody has confirmed",
        TURN,
        "return confirms < 0 ? -1 : !confirms;",
        "return confirms < 0 ? -1 : 1;",
        ("tests/compiled/test_turn.py",),
    ),
    Mutant(
        "a turn runs requests while the server stops",
        TURN,
        "if (self->stopping->on || !leads)",
        "if (!leads)",
        ("tests/compiled/test_turn.py",),
    ),
    Mutant(
        "no read is confirmed",
        "zkv/broker/waiting.py",
        "confirmed = epoch < 0 or not engine.log.confirms_reads",
        "confirmed = True",
        ("tests/cluster/test_reads.py", "-k", "stands_still"),
    ),
    Mutant(
        "the front answers reads before they are confirmed",
        "zkv/broker/front.py",
        "or log.epoch != epoch or log.confirms_reads:",
        "or log.epoch != epoch:",
        ("tests/cluster/test_reads.py", "-k", "stands_still"),
    ),
    Mutant(
        "a read that was not confirmed is answered by the lease",
        "zkv/requests/call.py",
        "if self.engine.log.confirms_reads and needs_leader(call.request):",
        "if False:",
        ("tests/cluster/test_reads.py", "-k", "stands_still"),
    ),
    Mutant(
        "a remembered refusal does not wait for its frame",
        "zkv/broker/waiting.py",
        "return call.rev <= self.rev and call.lsn <= self.lsn",
        "return call.rev <= self.rev",
        ("tests/requests/test_safe_replies.py", "-k", "not_before"),
    ),
    Mutant(
        "a durable write that may be lost is answered as done",
        "zkv/broker/waiting.py",
        "if caller.must_sync(call):",
        "if False:",
        ("tests/requests/test_refused_writes.py", "-k", "what_is_written"),
    ),
    Mutant(
        "what is on disk is refused for what could not follow",
        "zkv/broker/waiting.py",
        "batch.places(survived_rev)",
        "batch.places(-1)",
        ("tests/requests/test_refused_writes.py", "-k", "what_is_on_disk"),
    ),
    Mutant(
        "what was rolled back is answered as done",
        "zkv/broker/waiting.py",
        "batch.places(survived_rev)",
        "[]",
        ("tests/requests/test_refused_writes.py", "-k", "undone_together"),
    ),
]

SLOW_LOG: Final = ("tests/server/test_slow_log.py",)
IN_SLOW_LOG: Final = [
    Mutant(
        "the wait for the disk counts as running",
        "zkv/requests/slow_log.py",
        "self.executed - self.started - self.waited,",
        "finished - self.started - self.waited,",
        (*SLOW_LOG, "-k", "slow_disk"),
    ),
    Mutant(
        "the front's wait for the lock counts as the queue",
        "zkv/requests/slow_log.py",
        "self.started - self.arrived - self.lock_wait,",
        "self.started - self.arrived,",
        (*SLOW_LOG, "-k", "held_lock"),
    ),
    Mutant(
        "a parked reply of the lane says nothing of the disk",
        "zkv/broker/waiting.py",
        "self._account.add_run(batch, ALL, self._executed)",
        "self._account.add_run(batch, ALL)",
        (*SLOW_LOG, "-k", "slow_disk"),
    ),
    Mutant(
        "a request arrives when a worker takes it up",
        "zkv/broker/worker.py",
        "return self._caller.run(body, batch.arrived(place), batch.lock_wait(place), user)",
        "return self._caller.run(body, batch.taken, batch.lock_wait(place), user)",
        (*SLOW_LOG, "-k", "busy_worker"),
    ),
    Mutant(
        "a repeat must have the same trace",
        "zkv/protocol/codec.py",
        "                trace=None,\n",
        "",
        (*SLOW_LOG, "-k", "remembered"),
    ),
    Mutant(
        "a request is beside itself",
        "zkv/activity.py",
        "own.overlaps(began, ended, before=started)",
        "own.overlaps(began, ended)",
        (*SLOW_LOG, "-k", "busy_worker"),
    ),
]

IN_FEED: Final = [
    Mutant(
        "a heartbeat tells what is not published",
        "zkv/broker/feed.py",
        "encode(Heartbeat(self._rev, *identity))",
        "encode(Heartbeat(self._keyspace.rev, *identity))",
        ("tests/broker/test_feed.py", "-k", "tells_no_more"),
    ),
    Mutant(
        "nothing is kept for a new follower",
        "zkv/broker/feed.py",
        "        self._keyspace.hold_for(self._cursor)\n",
        "        pass\n",
        ("tests/broker/test_feed.py", "-k", "until_the_feed_has_read or late_joiner"),
    ),
    Mutant(
        "the parts of a revision are counted from 0",
        "zkv/broker/feed.py",
        "for part, change in enumerate(commit.changes, 1):",
        "for part, change in enumerate(commit.changes):",
        ("tests/broker/test_feed.py", "-k", "its_place"),
    ),
    Mutant(
        "what is lost is not noticed",
        "zkv/broker/feed.py",
        "            self._dropped += 1\n",
        "",
        ("tests/broker/test_feed.py", "-k", "does_not_read"),
    ),
    Mutant(
        "a follower whose queue is full keeps out all others",
        "zkv/broker/feed.py",
        "            socket.xpub_nodrop = False\n",
        "",
        ("tests/broker/test_feed.py", "-k", "does_not_read"),
    ),
    Mutant(
        "a change is published before it is safe",
        STORE,
        "return self.history.read(cursor, most, self._safe_rev())",
        "return self.history.read(cursor, most, self._rev)",
        ("tests/broker/test_feed.py", "-k", "before_it_is_on_disk"),
    ),
    Mutant(
        "the history lets go of what the feed has not read",
        "zkv/keyspace/history.py",
        "last, self._unread_changes, self._unread_bytes",
        "last, self._most_changes, self._most_bytes",
        ("tests/keyspace/test_keyspace.py", "-k", "cursor"),
    ),
]

COMMITS_IN_C: Final = [
    Mutant(
        "what was written half is taken for whole",
        WAL_C,
        "        if (written < 0)\n            return 0;\n",
        "        if (written < 0)\n            return 0;\n        return 1;\n",
        (TEST_WAL_C,),
    ),
    Mutant(
        "a write that failed is not rolled back",
        WAL_C,
        "        fail(self, NAME_FAIL_WRITE);",
        "        ;",
        (TEST_WAL_C,),
    ),
    Mutant(
        "a sync that failed is not told",
        WAL_C,
        "        return fail(self, NAME_FAIL_SYNC);",
        "        return PyErr_Clear(), 1;",
        (TEST_WAL_C,),
    ),
    Mutant(
        "a full segment grows",
        WAL_C,
        "(!is_full && PyObject_Size",
        "(PyObject_Size",
        ("tests/durability/test_data_directory.py",),
    ),
    Mutant(
        "a payload is written in the place of another",
        WAL_C,
        "add_piece(out, memcpy(to, bytes, size), size);",
        "add_piece(out, to, size);",
        (TEST_WAL_C,),
    ),
    Mutant(
        "nobody hears of safe commits",
        WAL_C,
        "!told && i < PyTuple_Size(listeners)",
        "0 && i < PyTuple_Size(listeners)",
        (TEST_WAL_C,),
    ),
    Mutant(
        "the front waits for a slow disk",
        WAL_C,
        "(!durable || self->sync_seconds < self->quick_sync_seconds)",
        "(1 || durable)",
        ("tests/compiled/test_turn.py",),
    ),
    Mutant(
        "the front syncs while a snapshot is written",
        TURN,
        "return self->writing == NULL || !self->writing->on;",
        "return 1;",
        ("tests/compiled/test_turn.py",),
    ),
    Mutant(
        "the front syncs while others wait",
        TURN,
        "if (r->batch->items[i].reveals <= self->wal->safe_rev)",
        "if (0)",
        ("tests/compiled/test_turn.py",),
    ),
    Mutant(
        "undo information is dropped before its commit is safe",
        "zkv/compiled/keyspace.c",
        "<= wal->safe_lsn",
        "<= wal->last_lsn",
        (TEST_WAL_C, "tests/requests/test_refused_writes.py"),
    ),
    Mutant(
        "a rollback does not know what a run remembered",
        "zkv/compiled/keyspace.c",
        "has_once ? remembered : NULL, NULL);",
        "NULL, NULL);",
        (TEST_WAL_C, "tests/requests/test_refused_writes.py"),
    ),
    Mutant(
        "the history in C lets go of what the feed has not read",
        "zkv/compiled/history.c",
        "least(last, PyLong_AsLongLong(rev))",
        "last",
        (TEST_WAL_C,),
    ),
    Mutant(
        "the history in C drops what is not safe",
        "zkv/compiled/history.c",
        "trim(self, least(safe_rev, rev - 1))",
        "trim(self, rev - 1)",
        (TEST_WAL_C,),
    ),
    Mutant(
        "all of a large file is left for the sync at its end",
        "zkv/durability/files.py",
        "if self._unsynced >= SYNC_BYTES:",
        "if False:",
        ("tests/durability/test_large_files.py",),
    ),
    Mutant(
        "the slow log takes up all of a flood",
        "zkv/requests/slow_log.py",
        "self.resumes = self._paid_until - (KEPT_AT_ONCE - 1) / KEPT_A_SECOND",
        "self.resumes = 0.0",
        ("tests/server/test_slow_log.py",),
    ),
    Mutant(
        "the slow log takes up nothing after a flood",
        "zkv/requests/slow_log.py",
        "max(self._paid_until, now) + entries / KEPT_A_SECOND",
        "max(self._paid_until, now) + entries",
        ("tests/server/test_slow_log.py",),
    ),
    Mutant(
        "the log is written back by the thread that writes",
        "zkv/engine.py",
        "lambda: self.committer.call(self.wal.write_back)",
        "self.wal.write_back",
        ("tests/durability/test_write_back.py",),
    ),
    Mutant(
        "all of an interval is left for the sync",
        "zkv/durability/committer.py",
        "self._wal.write_back()",
        "pass",
        ("tests/durability/test_write_back.py",),
    ),
    Mutant(
        "the log is written back where each commit is synced",
        "zkv/durability/wal.py",
        "if not self._sync_each:\n            self._files.write_back",
        "if True:\n            self._files.write_back",
        ("tests/durability/test_write_back.py",),
    ),
    Mutant(
        "a request that is not the next of its session runs, as if it were new",
        "zkv/compiled/sessions.c",
        "seq == session->newest + 1 && session->share",
        "session->share",
        ("tests/requests/test_sessions.py",),
    ),
    Mutant(
        "a session is gone on with that would have been forgotten",
        "zkv/compiled/sessions.c",
        "now < self->look_at && size",
        "size",
        ("tests/requests/test_sessions.py",),
    ),
    Mutant(
        "the next request of a session needs no capacity",
        "zkv/compiled/sessions.c",
        "size <= SMALL_REPLY &&\n"
        "                self->bytes + SMALL_REPLY + REPLY_OVERHEAD <= self->most_bytes",
        "1",
        ("tests/requests/test_sessions.py",),
    ),
    Mutant(
        "a reply that has left its window stays",
        "zkv/compiled/sessions.c",
        "return gone->known == NULL || PyDict_DelItem(session->replies, gone->seq) == 0;",
        "return 1;",
        ("tests/requests/test_sessions.py",),
    ),
    Mutant(
        "a rollback does not bring back what had left the window",
        "zkv/compiled/sessions.c",
        "gone->known == NULL ? PyTuple_New(0) :",
        "1 ? PyTuple_New(0) :",
        (TEST_WAL_C, "-k", "rollback_leaves_the_sessions"),
    ),
]

IN_BOUNDS: Final = [
    Mutant(
        "the lane does not know the memory limit",
        LANE,
        "<= r->room;",
        "<= r->room || 1;",
        ("tests/server/test_full_store.py", "-k", "full_server"),
    ),
    Mutant(
        "the history does not shrink before a write is refused",
        "zkv/keyspace/store.py",
        "if missing > 0:",
        "if missing > 2**60:",
        ("tests/requests/test_memory_limit.py",),
    ),
    Mutant(
        "a full store cannot be emptied",
        "zkv/keyspace/store.py",
        "if missing > beyond and growth >= 0:",
        "if missing > beyond:",
        ("tests/requests/test_memory_limit.py",),
    ),
    Mutant(
        "a new entry counts without what it takes beside its bytes",
        "zkv/keyspace/room.py",
        "            growth += ENTRY_BYTES + (DEADLINE_BYTES if entry.expires else 0)",
        "            growth += 0",
        ("tests/requests/test_memory_limit.py",),
    ),
    Mutant(
        "the front takes up requests however much waits for the disk",
        "zkv/broker/mailbox.py",
        "must_wait = self.must_wait()",
        "must_wait = False",
        ("tests/server/test_disk_backlog.py",),
    ),
    Mutant(
        "the rest of a batch is passed over after others have waited for workers",
        "zkv/broker/mailbox.py",
        "            if self._rest is not None and not self._left:\n",
        "            elif self._rest is not None:\n",
        ("tests/broker/test_mailbox.py", "-k", "rest_of_a_batch"),
    ),
    Mutant(
        "requests that wait for workers are bounded by their number alone",
        "zkv/broker/mailbox.py",
        "- (self._frames.bytes_forwarded - self.taken())",
        "",
        ("tests/server/test_disk_backlog.py",),
    ),
    Mutant(
        "the history is trimmed by the next commit alone",
        "zkv/engine.py",
        "        self.keyspace.forget_safe()",
        "        pass",
        ("tests/server/test_disk_backlog.py",),
    ),
    Mutant(
        "a follower that takes a message now and then keeps the feed at its pace",
        "zkv/broker/backlog.py",
        "MOST_BYTES if self._paused_at is None else MOST_BYTES // 2",
        "MOST_BYTES",
        ("tests/broker/test_feed_bounds.py", "-k", "now_and_then"),
    ),
    Mutant(
        "those who do not read are not cut off",
        "zkv/broker/backlog.py",
        "                    cut_off(connection)\n",
        "",
        ("tests/broker/test_feed_bounds.py", "-k", "not_read and 160"),
    ),
    Mutant(
        "what was read before a pause is passed over",
        "zkv/broker/feed.py",
        "                    self._keyspace.put_back(self._cursor, self._rev)\n",
        "",
        ("tests/broker/test_feed_bounds.py", "-k", "goes_on_where_it_was"),
    ),
    Mutant(
        "topics have no bound",
        "zkv/broker/subscriptions.py",
        "return None if len(follower.topics) < self._bounds.topics else _TOO_MANY",
        "return None",
        ("tests/broker/test_feed_bounds.py", "-k", "topics_at_a_time"),
    ),
    Mutant(
        "the end of what was never subscribed to counts",
        "zkv/broker/subscriptions.py",
        "self._applied -= min(applied, 1)",
        "self._applied -= 1",
        ("tests/broker/test_feed_bounds.py", "-k", "end_what_others_follow"),
    ),
    Mutant(
        "messages that are no subscriptions do no harm",
        "zkv/broker/subscriptions.py",
        "if confused and self._users is not None:",
        "if False:",
        ("tests/broker/test_feed_bounds.py", "-k", "gives_nobody"),
    ),
]

IN_HANDSHAKES: Final = [
    Mutant(
        "a success that was reported meanwhile does not count",
        "zkv/broker/connections.py",
        "        if suspects and not _take_all(source, connections):\n            return False\n",
        "",
        ("tests/broker/test_handshake.py", "-k", "while_the_server_looks"),
    ),
    Mutant(
        "what libzmq has not read yet counts, too",
        PEERS,
        "return Traffic(received, received - queued(socket, termios.FIONREAD), acked)",
        "return Traffic(received, received, acked)",
        ("tests/broker/test_handshake.py", "-k", "large_requests"),
    ),
    Mutant(
        "one who completes a handshake covers all others",
        "zkv/broker/connections.py",
        "if not self._is_curve:",
        "if True:",
        ("tests/broker/test_handshake.py", "-k", "do_not_help"),
    ),
    Mutant(
        "who has completed a message is taken for endless",
        "zkv/broker/unfinished.py",
        "has_sent = self._arrivals.has_sent(descriptor)",
        "has_sent = False",
        ("tests/broker/test_unfinished.py", "-k", "slow_upload"),
    ),
    Mutant(
        "what waits for the server is taken for endless",
        "zkv/broker/unfinished.py",
        "is_answered = self._question > 0 and self._arrivals.has_answered(self._question)",
        "is_answered = self._question > 0",
        ("tests/broker/test_unfinished.py", "-k", "held_up"),
    ),
    Mutant(
        "a follower may send without end if its messages end",
        "zkv/broker/unfinished.py",
        "self.waiting and now.taken - connection.known > self.most",
        "False",
        ("tests/broker/test_unfinished.py", "-k", "follower_that"),
    ),
    Mutant(
        "connections have all descriptors",
        "zkv/broker/room.py",
        "return descriptor < room",
        "return True",
        ("tests/broker/test_room.py", "-k", "idle or half"),
    ),
    Mutant(
        "what libzmq has read at once draws no attention",
        PEERS,
        "select.EPOLLIN | select.EPOLLOUT | select.EPOLLET",
        "select.EPOLLIN | select.EPOLLET",
        ("tests/broker/test_handshake.py", "-k", "a_little_too_much"),
    ),
    Mutant(
        "a server without descriptors cuts off nobody",
        PEERS,
        "os.dup2(descriptor, self._copied.fileno(), inheritable=False)",
        "os.dup2(os.dup(descriptor), self._copied.fileno(), inheritable=False)",
        ("tests/broker/test_handshake.py", "-k", "without_descriptors"),
    ),
    Mutant(
        "a peer that is cut off does not hear of it",
        "zkv/broker/sockets.py",
        "connection.setsockopt(posix.SOL_SOCKET, posix.SO_LINGER, _RESET)",
        "pass",
        ("tests/broker/test_handshake.py", "-k", "huge_commands"),
    ),
]

CLIENT: Final = [
    Mutant(
        "a gap in the feed is passed over",
        "zkv/client/follower.py",
        'if rev > self.rev + 1 or message.get("part") != len(self._parts) + 1:',
        'if message.get("part") != len(self._parts) + 1:',
        FOLLOWER,
    ),
    Mutant(
        "a lost part is passed over",
        "zkv/client/follower.py",
        'if rev > self.rev + 1 or message.get("part") != len(self._parts) + 1:',
        "if rev > self.rev + 1:",
        FOLLOWER,
    ),
    Mutant(
        "an older store is followed as if it were the same",
        "zkv/client/follower.py",
        "        if rev < self.rev:\n",
        "        if False:\n",
        FOLLOWER,
    ),
    Mutant(
        "what a scan has shown is told once more",
        "zkv/client/follower.py",
        "if change.rev > scanned.get(change.key, 0)]",
        "]",
        FOLLOWER,
    ),
    Mutant(
        "a heartbeat further on is no reason to ask",
        "zkv/client/follower.py",
        "if rev == self.rev and not self._asking:",
        "if rev >= self.rev and not self._asking:",
        FOLLOWER,
    ),
    Mutant(
        "an old heartbeat is taken for an older store",
        "zkv/client/follower.py",
        "        elif math.isinf(self._check):\n",
        "        elif rev < self.rev:\n            self._begin_scan()\n"
        "        elif math.isinf(self._check):\n",
        FOLLOWER,
    ),
    Mutant(
        "a page without keys is the last one",
        "zkv/client/operations.py",
        "self._done = following is None or self._left == 0",
        "self._done = following is None or not page or self._left == 0",
        ("tests/client/test_contract.py", "-k", "expired_keys"),
    ),
    Mutant(
        "a scan may go round in a circle",
        "zkv/client/operations.py",
        "if following is not None and not self._is_further_on(following):",
        "if following is not None and not isinstance(following, str):",
        ("tests/client/test_contract.py", "-k", "does_not_advance"),
    ),
    Mutant(
        "handshakes that fail in different ways count as one wrong key",
        "zkv/client/retry.py",
        "if absence is None or failure not in {0, absence.failure}:",
        "if absence is None:",
        PURE,
    ),
    Mutant(
        "a refused key is forgotten for the next key of the server",
        "zkv/client/connection.py",
        "return self.address.is_last or self.failure == REFUSED",
        "return self.address.is_last",
        ("tests/client/test_curve.py", "-k", "does_not_know_the_key"),
    ),
    Mutant(
        "a service is told a mechanism before it has told its own",
        "zkv/client/trouble.py",
        "        peer.sendall(GREETING[:VERSION])\n        received",
        "        peer.sendall(GREETING)\n        received",
        ("tests/client/test_curve.py", "-k", "another_key or wants_curve"),
    ),
    Mutant(
        "a follower waits for a server that refuses its user",
        "zkv/client/watch.py",
        "except AuthenticationError:  # Waiting does not help.",
        "except ZeroDivisionError:",
        ("tests/client/test_curve.py", "-k", "comes_back_without_its_user and sync"),
    ),
    Mutant(
        "a follower tries one key of the feed for ever",
        "zkv/client/watch.py",
        "self._turn += not self._connection.connected",
        "pass",
        ("tests/client/test_curve.py", "-k", "feed_may_need_keys and sync"),
    ),
    Mutant(
        "a doubt ends with the next attempt",
        "zkv/client/retry.py",
        "self._in_doubt |= connected",
        "self._in_doubt = connected",
        PURE,
    ),
    Mutant(
        "a refusal speaks for the attempts before",
        "zkv/client/retry.py",
        "if self._in_doubt and error.code not in DEFINITE:",
        "if False:",
        PURE,
    ),
    Mutant(
        "a write is repeated when its session is forgotten",
        "zkv/client/retry.py",
        "return self._policy.now() - self._began < self._policy.repeat_for",
        "return True",
        PURE,
    ),
    Mutant(
        "a write in flight falls out of its window",
        "zkv/client/session.py",
        "self._newest + 1 - oldest < WINDOW",
        "self._newest + 1 - oldest <= WINDOW",
        PURE,
    ),
    Mutant(
        "a trace is sent to a server that does not list it",
        "zkv/client/aio.py",
        "return field in self._features[1]",
        "return True",
        (*TRACING, "not_told and asyncio"),
    ),
    Mutant(
        "the server behind a new connection is not asked if it takes a trace",
        "zkv/client/endpoints.py",
        'loss of a connection."""\n        self.era = object()',
        'loss of a connection."""',
        (*TRACING, "takes_its_place"),
    ),
    Mutant(
        "a trace that is refused is sent again",
        "zkv/client/aio.py",
        "                fields = plain\n",
        "",
        (*TRACING, "refuses_it and asyncio"),
    ),
    Mutant(
        "each task asks if the server takes a trace",
        "zkv/client/aio.py",
        "if self._asking is None or self._asking.done():",
        "if True:",
        (*TRACING, "each_task"),
    ),
    Mutant(
        "a child by fork ends the span of its parent",
        "zkv/client/tracing.py",
        "if is_foreign(self._made_in):",
        "if False:",
        (*TRACING, "fork"),
    ),
    Mutant(
        "a mirror shows a store half read",
        "zkv/client/mirror_view.py",
        "            if self._follower.settling:\n",
        "            if False:\n",
        ("tests/client/test_pure.py", "-k", "half_read"),
    ),
    Mutant(
        "a callback is not told what has changed while it was away",
        "zkv/client/mirror_view.py",
        "if self.revs.get(key) != at:",
        "if key not in self.revs:",
        ("tests/client/test_watch.py", "-k", "differences"),
    ),
    Mutant(
        "a lock whose holder has died is waited for",
        "zkv/client/recipes/async_lock.py",
        'GONE: Final = frozenset({"DELETE", "EXPIRE"})',
        'GONE: Final = frozenset({"DELETE"})',
        ("tests/client/test_recipes.py", "-k", "holder_that_dies and asyncio"),
    ),
    Mutant(
        "a lock does not guard what its former holder writes",
        "zkv/client/recipes/async_lock.py",
        'message.fields["if"] = [(key, rev), *conditions]',
        'message.fields["if"] = [*conditions]',
        ("tests/client/test_recipes.py", "-k", "lost_is_told and asyncio"),
    ),
    Mutant(
        "a renewal whose reply is lost loses the lock",
        "zkv/client/recipes/async_lock.py",
        "hold.lease_rev = await self._current_rev(hold)",
        "raise self._lost()",
        ("tests/client/test_recipes.py", "-k", "reply_is_lost and asyncio"),
    ),
    Mutant(
        "a limiter allows one less",
        "zkv/client/recipes/async_limiter.py",
        "allowed = used <= self._limit",
        "allowed = used < self._limit",
        ("tests/client/test_recipes.py", "-k", "in_a_period and asyncio"),
    ),
    Mutant(
        "a value is computed by everybody who waited for the lock",
        "zkv/client/recipes/async_cache.py",
        "if kept is _MISSING:\n                    kept = await",
        "if True:\n                    kept = await",
        ("tests/client/test_recipes.py", "-k", "computed_once and asyncio"),
    ),
    Mutant(
        "a job is done although others have it",
        "zkv/client/recipes/async_queue.py",
        "txn = self._lock.txn()",
        "txn = self._lock._keyspace.txn()",
        ("tests/client/test_recipes.py", "-k", "thought_dead and asyncio"),
    ),
]

IN_METRICS: Final = [
    Mutant(
        "a disk that has space again is not noticed before somebody writes",
        "zkv/durability/snapshotter.py",
        "self._wal.try_again()",
        "pass",
        ("tests/metrics/test_endpoint.py", "-k", "until_it_has_space"),
    ),
    Mutant(
        "metrics reveal a revision that may be rolled back",
        "zkv/server.py",
        'min(reply["rev"], self._engine.safe_rev)',
        'reply["rev"]',
        ("tests/metrics/test_endpoint.py", "-k", "rolled_back"),
    ),
    Mutant(
        "who is silent keeps others from the metrics",
        "zkv/metrics/endpoint.py",
        "            _end(oldest)",
        "            pass",
        ("tests/metrics/test_endpoint.py", "-k", "silent"),
    ),
    Mutant(
        "a value that is replaced still counts as memory",
        TABLE,
        "count_bytes(self, now, 0, (size_t)now->value_size - (*before)->value_size);",
        "count_bytes(self, now, 0, now->value_size);",
        ("tests/test_figures.py", "-k", "memory_follows"),
    ),
]

SETTINGS: Final = [
    Mutant(
        "the file overrides the environment",
        "zkv/cli/settings.py",
        "config.merge(file, environment, flags)",
        "config.merge(environment, file, flags)",
        (*IN_SETTINGS, "-k", "flags_override"),
    ),
    Mutant(
        "a bad setting passes where a later source replaces it",
        "zkv/config/layers.py",
        "    for layer in layers:\n        if layer.faults:\n",
        "    for layer in layers[-1:]:\n        if layer.faults:\n",
        (*IN_SETTINGS, "-k", "even_if_another_source"),
    ),
    Mutant(
        "a variable sets more than one thing",
        "zkv/config/layers.py",
        'return table["value"] if len(table) == 1 else text',
        'return table["value"]',
        (*IN_SETTINGS, "-k", "bad_variable"),
    ),
    Mutant(
        "a statement of several lines is told from its last line",
        "zkv/config/layers.py",
        "lines.setdefault(name, begin)",
        "lines.setdefault(name, number)",
        (*IN_SETTINGS, "-k", "line_of_each"),
    ),
    Mutant(
        "SIGHUP takes over what needs a restart",
        "zkv/config/layers.py",
        "for name, setting in SETTINGS.items() if setting.live}",
        "for name in SETTINGS}",
        (*IN_SETTINGS, "-k", "needs_a_restart"),
    ),
    Mutant(
        "a key in quotes is taken for a table in a table",
        "zkv/config/schema.py",
        "    if name in names:\n        return None\n",
        "    if name in names or full_name(table, name) in TABLES:\n        return None\n",
        (*IN_SETTINGS, "-k", "fault_in_a_table_in_a_table"),
    ),
    Mutant(
        "the feed of a member may be where nobody can connect to",
        "zkv/config/schema.py",
        '("server.feed", [server.feed], replication.advertise_feed',
        '("server.feed", [], replication.advertise_feed',
        (*IN_SETTINGS, "-k", "store_in_etcd_does_not_allow"),
    ),
    Mutant(
        "the workers do not notice that the request log is switched",
        "zkv/broker/broker.py",
        "for account in self._accounts:\n            account.logs",
        "for account in self._accounts[:1]:\n            account.logs",
        (*IN_SETTINGS, "-k", "switches_the_request_log"),
    ),
]

RIGHTS: Final = ("tests/users/test_model.py",)
DOORS: Final = ("tests/users/test_doors.py",)
IN_USERS: Final = [
    Mutant(
        "the lane looks at no rights",
        "zkv/compiled/lane.c",
        "!is_permitted(user, from))",
        "0)",
        (*RIGHTS, "-k", "as_written"),
    ),
    Mutant(
        "the lane takes the conditions of a TXN for nothing",
        "zkv/compiled/lane.c",
        "        if (!may_read(user, from->conditions.at[i].key))\n            return 0;\n",
        "        ;\n",
        (*RIGHTS, "-k", "as_written"),
    ),
    Mutant(
        "the lane lets those write who may read",
        "zkv/compiled/lane.c",
        "!may_write(user, each->key))",
        "!may_read(user, each->key))",
        (*RIGHTS, "-k", "as_written"),
    ),
    Mutant(
        "a condition of a TXN is no read",
        "zkv/requests/permission.py",
        '        _require_key(user, False, key, field="if", index=index)\n',
        "        pass\n",
        (*RIGHTS, "-k", "as_written"),
    ),
    Mutant(
        "a prefix that is allowed in part is enough",
        "zkv/requests/permission.py",
        "    if not user.may_read(request.prefix):\n",
        "    if not user.may_read(request.prefix + 'a'):\n",
        (*RIGHTS, "-k", "as_written"),
    ),
    Mutant(
        "a follower gets what it asks for",
        "zkv/broker/subscriptions.py",
        '        return user.may_read(topic.decode(errors="ignore"))',
        "        return True",
        (*RIGHTS, "-k", "feed"),
    ),
    Mutant(
        "a subscription outlives the right to it",
        "zkv/broker/feed.py",
        "        if not self._reopening:\n",
        "        if True:\n",
        (*RIGHTS, "-k", "feed"),
    ),
    Mutant(
        "users are those of the start",
        "zkv/users/registry.py",
        "        before = self._entries\n        self._take(entries)\n",
        "        before, self._entries = self._entries, entries\n",
        (*DOORS, "-k", "removed_key"),
    ),
    Mutant(
        "without the guard everybody gets in",
        "zkv/broker/doors.py",
        "            socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)\n",
        "            pass\n",
        (*DOORS, "-k", "without_the_guard"),
    ),
    Mutant(
        "anonymous comes by ipc, too",
        "zkv/broker/doors.py",
        "        if address.startswith(_IPC):\n",
        "        if False:\n",
        (*DOORS, "-k", "system_user"),
    ),
    Mutant(
        "sessions are of everybody",
        "zkv/users/rights.py",
        'f"{name}{SCOPE_END}", max_bytes)',
        "SCOPE_END, max_bytes)",
        (*DOORS, "-k", "belongs_to_its_user"),
    ),
    Mutant(
        "a session from before users is forgotten",
        "zkv/keyspace/sessions.py",
        "        if self._has_users and (session is None or seq not in session.replies):\n",
        "        if False:\n",
        (*DOORS, "-k", "before_users"),
    ),
    Mutant(
        "one user may take all sessions",
        "zkv/keyspace/sessions.py",
        "            if mine >= self._most - len(self._sessions):\n",
        "            if mine >= self._most:\n",
        (*DOORS, "-k", "leaves_sessions"),
    ),
    Mutant(
        "an ipc socket has the mode of the umask for a moment",
        "zkv/broker/doors.py",
        "            os.chmod(bound.removeprefix",
        "            print(bound.removeprefix",
        (*DOORS, "-k", "mode_of_an_ipc"),
    ),
]

IN_TOOLS_OF_USERS: Final = [
    Mutant(
        "two users may have one key",
        "zkv/users/file.py",
        "    _check_credentials(entries)\n",
        "",
        ("tests/users/test_file.py", "-k", "faults"),
    ),
    Mutant(
        "an edit of the users file takes a comment for the end of a list",
        "zkv/cli/users_text.py",
        "            if parse_toml(candidate) == {field: value}:\n",
        "            if field in parse_toml(candidate):\n",
        ("tests/cli/test_users.py", "-k", "comments_and_order or loses_no_comment"),
    ),
    Mutant(
        "a comment goes with the user before it",
        "zkv/cli/users_text.py",
        "        if parse_toml(part):\n            end = number + 1\n",
        "        end = number + 1\n",
        ("tests/cli/test_users.py", "-k", "comments_of_others"),
    ),
    Mutant(
        "an edit may leave no user",
        "zkv/cli/users.py",
        "        if len(users) == 1:\n",
        "        if len(users) == 0:\n",
        ("tests/cli/test_users.py", "-k", "what_is_refused"),
    ),
    Mutant(
        "a new users file is for the group to write",
        "zkv/cli/users.py",
        "mode & ~(stat.S_IWGRP | stat.S_IWOTH)",
        "mode & ~stat.S_IWOTH",
        ("tests/cli/test_users.py", "-k", "first_user"),
    ),
    Mutant(
        "a public key may begin with a dash",
        "zkv/keys.py",
        "    while not public[:1].isalnum():",
        "    while not public:",
        ("tests/test_keys.py", "-k", "follow_an_option"),
    ),
    Mutant(
        "statistics that are hidden count as absent",
        "zkv/figures.py",
        '    if "stats" in info or "user" not in info:\n',
        "    if True:\n",
        ("tests/cli/test_rights.py", "tests/cli/test_metrics.py"),
    ),
    Mutant(
        "the doctor takes every listener for one without keys",
        "zkv/client/trouble.py",
        'greeting = _receive(peer, _is_greeting) or b""\n',
        "greeting = GREETING\n",
        ("tests/cli/test_doctor.py", "-k", "asks_of_other_machines"),
    ),
]

QUOTAS: Final = ("tests/requests/test_quotas.py",)
COUNTED: Final = ("tests/keyspace/test_table.py", "-k", "bytes")
CACHES: Final = ("tests/keyspace/test_eviction.py",)

IN_CACHES: Final = [
    Mutant(
        "any entry is evicted",
        EVICT,
        "enum { SAMPLES = 10 };",
        "enum { SAMPLES = 1 };",
        (*CACHES, "-k", "exact_lru"),
    ),
    Mutant(
        "an eviction takes entries after the prefix",
        EVICT,
        "    if (at.place >= self->index.leaves[at.leaf].count || is_before(&at, first) ||\n"
        "        !is_before(&at, end))",
        "    if (at.place >= self->index.leaves[at.leaf].count || is_before(&at, first))",
        ("tests/keyspace/test_table.py", "-k", "in_the_range_and_there_once"),
    ),
    Mutant(
        "what was read last goes first",
        EVICT,
        "return UINT32_MAX - (self->time - *table_clock(self, of->number));",
        "return self->time - *table_clock(self, of->number);",
        (*CACHES, "-k", "used_for_longest"),
    ),
    Mutant(
        "what a lane reads is not used",
        LANE,
        "record *found = table_use(",
        "record *found = table_find(",
        ("tests/compiled/test_compiled.py", "-k", "uses_what_it_reads"),
    ),
    Mutant(
        "an entry is picked twice",
        EVICT,
        "        if (found[i].number == last)\n            continue;\n",
        "",
        ("tests/keyspace/test_table.py", "-k", "in_the_range_and_there_once"),
    ),
    Mutant(
        "a cache of which nothing is evicted in time takes more",
        EVICTION,
        "if excess > cache.slack and growth_under(table, transaction.staged, cache.prefix) > 0:",
        "if False:",
        (*CACHES, "-k", "far_beyond"),
    ),
    Mutant(
        "the lane goes on writing to a cache far beyond its bound",
        STORE,
        "and (self._evictor is None or not self._evictor.behind)",
        "",
        ("tests/compiled/test_compiled.py", "-k", "far_beyond"),
    ),
    Mutant(
        "a long write evicts all at once",
        EVICTION,
        "left = self.make_room(min(most, MOST_AT_ONCE))",
        "left = self.make_room(most)",
        (*CACHES, "-k", "in_steps"),
    ),
    Mutant(
        "the feed does not say that an entry was evicted",
        STORE,
        "        if transaction.evicts:\n            payload = EvictionPayload(payload)\n",
        "",
        ("tests/server/test_caches.py", "-k", "says_why"),
    ),
    Mutant(
        "new quotas end the counting for caches",
        STORE,
        "self._quota_prefixes | self._cache_prefixes",
        "self._quota_prefixes or self._cache_prefixes",
        (*CACHES, "-k", "quotas_come_and_go"),
    ),
    Mutant(
        "a cached function fails if its lock was evicted",
        "zkv/client/recipes/cache.py",
        "            if kept is _MISSING:\n                raise\n",
        "            raise\n",
        ("tests/server/test_caches.py", "-k", "cached_results"),
    ),
]

IN_QUOTAS: Final = [
    Mutant(
        "the lane knows no quotas",
        LANE,
        "return most == 0 || bytes_held",
        "return 1 || bytes_held",
        (*QUOTAS, "-k", "beyond_the_quota"),
    ),
    Mutant(
        "the lane leaves what does not grow",
        LANE,
        "    return growth > 0;\n",
        "    return 1;\n",
        ("tests/compiled/test_compiled.py", "-k", "beyond_a_quota"),
    ),
    Mutant(
        "beyond a quota nothing is written any more",
        "zkv/keyspace/room.py",
        "if growth > 0 and held",
        "if held",
        (*QUOTAS, "-k", "does_not_grow"),
    ),
    Mutant(
        "a refusal for a quota is told though what it tells may be lost",
        "zkv/keyspace/room.py",
        "            seen_rev=transaction.rev - 1,\n",
        "",
        (*QUOTAS, "-k", "can_be_lost"),
    ),
    Mutant(
        "an entry under two prefixes of a quota counts twice",
        "zkv/users/quota.py",
        "if not outer or not prefix.startswith(outer[-1]):",
        "if True:",
        (*QUOTAS, "-k", "by_their_prefixes"),
    ),
    Mutant(
        "new quotas count from nothing",
        STORE,
        "                more = entries.count_more(COUNTED_ENTRIES)\n",
        "                more = False\n",
        ("tests/keyspace/test_keyspace.py", "-k", "quotas"),
    ),
    Mutant(
        "a prefix around another one is not counted",
        COUNTS,
        "of != NULL; of = of->around)",
        "of != NULL; of = NULL)",
        COUNTED,
    ),
    Mutant(
        "what is written ahead of the walk counts twice",
        COUNTS,
        "compare_keys(key, size, in->reached, in->reached_size) < 0);",
        "1);",
        COUNTED,
    ),
    Mutant(
        "a value that grows is not counted",
        TABLE,
        "count_bytes(self, now, 0, (size_t)now->value_size - (*before)->value_size);",
        "self->value_bytes += (size_t)now->value_size - (*before)->value_size;",
        COUNTED,
    ),
    Mutant(
        "a new prefix takes the count of another",
        COUNTS,
        "last != NULL && last->size == size && begins_with",
        "last != NULL && begins_with",
        COUNTED,
    ),
    Mutant(
        "a new quota counts nothing",
        "zkv/server.py",
        "            self._engine.keyspace.set_quotas(users.quotas)\n",
        "            pass\n",
        ("tests/users/test_quotas.py", "-k", "users_file"),
    ),
    Mutant(
        "quotas count only what is written after the start",
        "zkv/server.py",
        "            engine.keyspace.set_quotas(self._doors.users.quotas)\n",
        "",
        ("tests/users/test_quotas.py", "-k", "at_the_start"),
    ),
]

SYNC: Final = ("tests/replication/test_sync.py", "-k")
QUORUM: Final = "zkv/durability/quorum.py"
STANDBYS: Final = "tests/replication/test_standby.py"
PROMOTIONS: Final = "tests/replication/test_promotion.py"
VOTES: Final = "tests/replication/test_vote.py"

SLOW_LINK: Final = "tests/replication/test_slow_link.py"
POWER_CUTS: Final = "tests/replication/test_power_cut.py"
LOSSES: Final = "tests/replication/test_losses.py"

IN_REPLICATION: Final = [
    Mutant(
        "all standbys have to confirm, however many are asked for",
        QUORUM,
        "newest = numbers[self.needed - 1] if len(numbers) >= self.needed else 0",
        "newest = numbers[-1] if len(numbers) >= self.needed else 0",
        (LOSSES, "-k", "one_of_two"),
    ),
    Mutant(
        "what a standby was only sent counts as confirmed",
        "zkv/replication/source.py",
        "self._engine.confirm(request.member, request.durable)",
        "self._engine.confirm(request.member, 2**62)",
        (LOSSES, "-k", "is_behind and not asynchronous"),
    ),
    Mutant(
        "the old history may be gone before what only it had is kept",
        "zkv/replication/incoming.py",
        "        keep(fetched)\n        decide(True)\n",
        "        decide(True)\n        keep(fetched)\n",
        (POWER_CUTS, "-k", "exchange"),
    ),
    Mutant(
        "an exchange is not on disk before it counts as done",
        "zkv/replication/incoming.py",
        "                files.rename(new, old)\n"
        "                files.sync_directory(self.layout.directory)\n",
        "                files.rename(new, old)\n",
        (POWER_CUTS, "-k", "exchange"),
    ),
    Mutant(
        "what is diverged is not on disk when it has its name",
        "zkv/replication/incoming.py",
        "        files.sync(file)\n    files.rename(beside, path)\n",
        "    files.rename(beside, path)\n",
        (POWER_CUTS, "-k", "exchange"),
    ),
    Mutant(
        "a server leads before its term is on disk",
        "zkv/replication/standby.py",
        "            engine.log.commit(lsn, durable=True)\n            self._lead()\n",
        "            self._lead()\n            engine.log.commit(lsn, durable=True)\n",
        (POWER_CUTS, "-k", "a_promotion"),
    ),
    Mutant(
        "a promoted server may be a standby again after a power cut",
        "zkv/replication/place.py",
        "        files.remove(path)\n    files.sync_directory(directory)\n",
        "        files.remove(path)\n",
        (POWER_CUTS, "-k", "a_promotion"),
    ),
    Mutant(
        "a hand-over is answered before it is on disk",
        "zkv/replication/handover.py",
        "            self._file.write(record)\n        return record\n",
        "            self._file.record = record\n        return record\n",
        (POWER_CUTS, "-k", "hand_over"),
    ),
    Mutant(
        "a promotion that the disk refuses makes two primaries after a restart",
        "zkv/replication/place.py",
        "                    write_role(self._files, self.directory, self.record)\n",
        "                    pass\n",
        (POWER_CUTS, "-k", "refuses"),
    ),
    Mutant(
        "a slow answer is taken for a dead connection",
        "zkv/broker/upstream.py",
        "        socket.heartbeat_timeout = NO_TIMEOUT\n",
        "",
        (SLOW_LINK, "-k", "a_copy"),
    ),
    Mutant(
        "a large commit is never waited for longer",
        "zkv/replication/stream.py",
        "self._seconds = min(2 * self._seconds, MOST_REPLY_SECONDS)",
        "pass",
        (SLOW_LINK, "-k", "large_commit"),
    ),
    Mutant(
        "a server that is gone is waited for as one on a slow link",
        "zkv/replication/stream.py",
        "            if self._in_doubt:\n",
        "            if False:\n",
        (SLOW_LINK, "-k", "not_there"),
    ),
    Mutant(
        "a position is a revision: who has the newest one gets nothing",
        "zkv/replication/source.py",
        "if self._engine.durable_lsn <= request.after:",
        "if self._engine.durable_rev <= request.durable_rev:",
        (STANDBYS, "-k", "refusal_between"),
    ),
    Mutant(
        "a position is a log number alone, whatever its term",
        "zkv/replication/source.py",
        'if after <= durable and asked == ((0, "") if here is None else (here.number, here.tag)):',
        "if after <= durable:",
        (PROMOTIONS, "-k", "three_machines"),
    ),
    Mutant(
        "two standbys may take over from one primary",
        "zkv/replication/handover.py",
        "held is not None and held.member == member and held.attempt <= attempt",
        "held is not None",
        (PROMOTIONS, "-k", "one_of_two or arrives_late"),
    ),
    Mutant(
        "a failed attempt that arrives late stops the primary",
        "zkv/replication/handover.py",
        "if attempt <= self._failed.get(member, 0):",
        "if False:",
        (PROMOTIONS, "-k", "arrives_late"),
    ),
    Mutant(
        "a promotion that fails is not undone",
        "zkv/replication/standby.py",
        '                self._give_back(source, f"{error}{refusal}")\n',
        "                pass\n",
        (PROMOTIONS, "-k", "is_undone"),
    ),
    Mutant(
        "two standbys that follow each other do not look for the primary",
        "zkv/replication/standby.py",
        "if self.age() > STALE_SECONDS:",
        "if False:",
        (STANDBYS, "-k", "follow_each_other"),
    ),
    Mutant(
        "a standby begins anew from whichever server answers first",
        "zkv/cli/follow.py",
        "None if anew is None else _refusal(source, record, anew)",
        "anew",
        (STANDBYS, "-k", "has_less"),
    ),
    Mutant(
        "a standby that begins anew goes on to remove its log",
        "zkv/replication/standby.py",
        "        self._engine.keep_log()  # What it gives up is read from there.\n",
        "",
        (PROMOTIONS, "-k", "all_is_kept"),
    ),
    Mutant(
        "a planned promotion asks only the server that the standby follows",
        "zkv/replication/standby.py",
        'if error.code != "NOT_LEADER":\n                    raise',
        "if error:\n                    raise",
        (PROMOTIONS, "-k", "that_it_knows"),
    ),
    Mutant(
        "a promoted server that is started as a standby again gives up its term",
        "zkv/cli/follow.py",
        "if written is not None and written.number > term:",
        "if False:",
        (PROMOTIONS, "-k", "started_as_it_used_to_be"),
    ),
    Mutant(
        "a standby begins anew from another one that is behind",
        "zkv/replication/source.py",
        "if shared is not None and shared == lineage.terms[-1] and not self._role.leads:",
        "if False:",
        (PROMOTIONS, "-k", "that_is_ahead"),
    ),
    Mutant(
        "a standby stays with a primary that leads no more",
        "zkv/replication/handover.py",
        "if held is not None and held.member != member:",
        "if False:",
        (PROMOTIONS, "-k", "list_of_endpoints_leads"),
    ),
    Mutant(
        "the clock of a standby is its machine's",
        "zkv/engine.py",
        "Clock(recovered.time, follows=not self._leads)",
        "Clock(recovered.time)",
        (PROMOTIONS, "-k", "hour_off"),
    ),
    Mutant(
        "a long read outlasts the lead of its server",
        "zkv/broker/worker.py",
        "return rev if self._role.leads or lane.wrote else None",
        "return rev",
        ("tests/replication/test_roles.py", "-k", "outlast"),
    ),
    Mutant(
        "a rollback undoes what standbys may have",
        WAL,
        "self._roll_back(self.kept_lsn)",
        "self._roll_back(self.safe_lsn)",
        (*SYNC, "rollback"),
    ),
    Mutant(
        "who only copies confirms",
        "zkv/replication/source.py",
        "if request.sync and request.snapshot is None:",
        "if request.snapshot is None:",
        (*SYNC, "does_not_count"),
    ),
    Mutant(
        "without standbys a server becomes asynchronous",
        QUORUM,
        "if not quorum.is_met:",
        "if False:",
        (*SYNC, "without_a_standby"),
    ),
    Mutant(
        "a promise is not on disk",
        "zkv/replication/promises.py",
        "self._file.write(msgspec.structs.replace(record, promises=promises))",
        "self._file.record = msgspec.structs.replace(record, promises=promises)",
        (VOTES, "-k", "outlasts"),
    ),
    Mutant(
        "who has promised a term confirms to a lower one",
        "zkv/replication/standby.py",
        "pull(self._asker, self._member, after, on_disk, wait, confirms, most)",
        "pull(self._asker, self._member, after, on_disk, wait, most=most)",
        (VOTES, "-k", "outlasts"),
    ),
    Mutant(
        "a term is promised to two",
        "zkv/replication/promises.py",
        "if asked.term <= max(self.highest, self._engine.keyspace.lineage.term):",
        "if asked.term < max(self.highest, self._engine.keyspace.lineage.term):",
        (VOTES, "-k", "promised_once"),
    ),
    Mutant(
        "the longest log is that with the most commits",
        "zkv/replication/stream.py",
        "return self.term, self.lsn",
        "return 0, self.lsn",
        (VOTES, "-k", "highest_term"),
    ),
    Mutant(
        "the beginning of a term counts as a commit of it",
        "zkv/keyspace/lineage.py",
        "while term is not None and term.first_lsn == lsn:",
        "while False:",
        (VOTES, "-k", "only_the_beginning"),
    ),
    Mutant(
        "after a restart all counts as confirmed",
        QUORUM,
        "self.safe_lsn = self.safe_rev = 0",
        "pass",
        (*SYNC, "after_a_restart"),
    ),
]

IN_HTTP2: Final = ("tests/etcd/test_http2.py",)
IN_ETCD: Final = [
    Mutant(
        "an answer of etcd that nobody knows counts as not executed",
        "zkv/etcd/errors.py",
        "if pattern.search(details)), UnknownOutcomeError)",
        "if pattern.search(details)), EtcdError)",
        ("tests/etcd/test_package.py", "-k", "errors"),
    ),
    Mutant(
        "a certificate that is refused counts as a node that does not answer",
        "zkv/etcd/channel.py",
        'code = "UNAUTHENTICATED" if isinstance(error, TlsError) else "UNAVAILABLE"',
        'code = "UNAVAILABLE"',
        ("tests/etcd/test_client.py", "-k", "tls"),
    ),
    Mutant(
        "a call that may have been executed is sent once more",
        "zkv/etcd/channel.py",
        "                if not error.is_unexecuted:\n                    raise\n",
        "                pass\n",
        IN_HTTP2,
    ),
    Mutant(
        "nobody sees if anything of a request has been sent",
        "zkv/etcd/http2.py",
        "error.is_unsent = self.link.sent == before",
        "pass",
        IN_HTTP2,
    ),
    Mutant(
        "a request is refused by its node for one that came before the last it has seen",
        "zkv/etcd/http2.py",
        "if each.number > last]",
        "if each.number >= last]",
        IN_HTTP2,
    ),
    Mutant(
        "headers mean what they meant before the table changed",
        "zkv/etcd/http2.py",
        "            self._known.clear()  # The table may have changed.\n",
        "            pass\n",
        IN_HTTP2,
    ),
    Mutant(
        "a request may exceed what the node takes for all requests together",
        "zkv/etcd/http2.py",
        "room = min(len(body) - at, self._frame_bytes, self._window, stream.window)",
        "room = min(len(body) - at, self._frame_bytes, stream.window)",
        IN_HTTP2,
    ),
    Mutant(
        "a ping is a sign of life of the watch",
        "zkv/etcd/watching.py",
        "                if self._asked.has_ended:",
        "                if True:",
        IN_HTTP2,
    ),
]

SHARED_LOG: Final = "zkv/cluster/shared_log.py"
MEMBER_WAL: Final = "zkv/cluster/wal.py"
MEMBERSHIP: Final = "zkv/cluster/membership.py"
LEASE: Final = "zkv/cluster/lease.py"
IN_SHARED_LOG: Final = ("tests/cluster/test_shared_log.py",)
IN_MEMBER_WAL: Final = ("tests/cluster/test_wal.py",)
IN_LEADERSHIP: Final = ("tests/cluster/test_leadership.py",)
IN_TAKE_OVER: Final = ("tests/cluster/test_take_over.py", "-k")

IN_CLUSTER: Final = [
    Mutant(
        "an append waits for nobody",
        MEMBER_WAL,
        "            self._gather()\n",
        "",
        IN_MEMBER_WAL,
    ),
    Mutant(
        "an append waits for more than there were",
        MEMBER_WAL,
        "while 0 < queued < self._expected and",
        "while 0 < queued and",
        IN_MEMBER_WAL,
    ),
    Mutant(
        "a member goes on with a format that it does not know",
        "zkv/cluster/records.py",
        "if found > FORMAT:",
        "if False:",
        ("tests/cluster/test_versions.py",),
    ),
    Mutant(
        "a further field in a record is an error",
        "zkv/cluster/records.py",
        "class LeaderRecord(Struct, frozen=True, kw_only=True):",
        "class LeaderRecord(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):",
        ("tests/cluster/test_versions.py", "-k", "further or two_versions"),
    ),
    Mutant(
        "the fence is taken out",
        SHARED_LOG,
        'self._fence = Compare(log.keys.fence, "value", "=", pack(seen.fence))',
        'self._fence = Compare(log.keys.fence, "version", "!=", 0)',
        IN_SHARED_LOG,
    ),
    Mutant(
        "appends are not fenced",
        SHARED_LOG,
        "compares = [self._fence, _unchanged(keys.head, self._head_revision)]\n        there = ",
        "compares = [_unchanged(keys.head, self._head_revision)]\n        there = ",
        IN_SHARED_LOG,
    ),
    Mutant(
        "appends do not look at the head",
        SHARED_LOG,
        "compares = [self._fence, _unchanged(keys.head, self._head_revision)]\n        there = ",
        "compares = [self._fence]\n        there = ",
        IN_SHARED_LOG,
    ),
    Mutant(
        "a clearance may come at any time",
        SHARED_LOG,
        "compares = [self._fence, _unchanged(keys.head, self._head_revision)]\n"
        "            result = ",
        "compares = [self._fence]\n            result = ",
        IN_SHARED_LOG,
    ),
    Mutant(
        "a leader does not clear what others have left",
        SHARED_LOG,
        "[leftovers, PutOp(keys.head, pack(self.head))]",
        "[PutOp(keys.head, pack(self.head))]",
        IN_SHARED_LOG,
    ),
    Mutant(
        "an incomplete batch of the own term counts as appended",
        SHARED_LOG,
        "if not any(each.number == each.parts - 1 for each in mine):",
        "if not mine:",
        IN_SHARED_LOG,
    ),
    Mutant(
        "a batch of another term counts as the own one",
        SHARED_LOG,
        "mine = [each for each in places if each.term == self.term]",
        "mine = places",
        IN_SHARED_LOG,
    ),
    Mutant(
        "a take-over does not look at the leader's record",
        SHARED_LOG,
        "_unchanged(keys.leader, seen.leader_revision),",
        "",
        IN_SHARED_LOG,
    ),
    Mutant(
        "a leader never demotes itself",
        LEASE,
        "return None if self.clock() < state.end else state.lapses",
        "return None if state.end else state.lapses",
        (*IN_LEADERSHIP, "-k", "under_way_at_the_end"),
    ),
    Mutant(
        "there is no margin for clocks of different rates",
        LEASE,
        "self.margin = max(LEAST_MARGIN, seconds / 10)",
        "self.margin = 0.0",
        (*IN_TAKE_OVER, "rates"),
    ),
    Mutant(
        "a renewal that was under way holds a lease that was given up",
        LEASE,
        "if not self._state.given_up:",
        "if True:",
        IN_MEMBER_WAL,
    ),
    Mutant(
        "the numbers of lapses are used again",
        LEASE,
        "lapses = state.lapses + (self.clock() >= state.end)",
        "lapses = state.lapses",
        IN_MEMBER_WAL,
    ),
    Mutant(
        "the end of the lease is not the end of an epoch",
        MEMBER_WAL,
        "if self._tenure is not None and (lapse := self._lease.lapse) is not None:",
        "if self._tenure is not None and (lapse := self._lease.lapse) is not None and lapse < 0:",
        (*IN_LEADERSHIP, "-k", "under_way_at_the_end"),
    ),
    Mutant(
        "reads survive a deposition",
        MEMBER_WAL,
        '"""Return `NOTHING`: see above."""\n        return NOTHING',
        '"""Return `NOTHING`: see above."""\n        return self.safe_rev, self.safe_lsn',
        (*IN_LEADERSHIP, "-k", "found_out"),
    ),
    Mutant(
        "a deposed leader has the old epoch for a moment",
        MEMBER_WAL,
        "self._rolled_back, self._was_deposed, self._sending = True, False, None\n",
        "self._rolled_back, self._was_deposed, self._sending = True, False, None\n"
        "        self._tenure = None\n",
        (*IN_LEADERSHIP, "-k", "rolls_back"),
    ),
    Mutant(
        "a leader that has rolled back takes commits before it follows",
        MEMBER_WAL,
        "if self._sending is not None or self._rolled_back or self._is_held:",
        "if self._sending is not None or self._is_held:",
        IN_MEMBER_WAL,
    ),
    Mutant(
        "a batch under way outlasts a rollback",
        MEMBER_WAL,
        "self._rolled_back, self._was_deposed, self._sending = True, False, None",
        "self._rolled_back, self._was_deposed = True, False",
        IN_MEMBER_WAL,
    ),
    Mutant(
        "a leader whose disk fails leads on",
        MEMBER_WAL,
        "        if self._tenure is None:\n            return super()._refuse(",
        "        if True:\n            return super()._refuse(",
        IN_MEMBER_WAL,
    ),
    Mutant(
        "a member whose disk is full takes over again",
        MEMBER_WAL,
        "if self._was_deposed:",
        "if True:",
        IN_MEMBER_WAL,
    ),
    Mutant(
        "commits are written here before etcd has them",
        MEMBER_WAL,
        "self._send(self._tenure, self._sending)\n",
        "pass\n",
        IN_MEMBER_WAL,
    ),
    Mutant(
        "a server that stops waits for etcd once it leads",
        MEMBER_WAL,
        "if not self._stopping:\n                self._woken.clear()",
        "self._woken.clear()",
        (*IN_MEMBER_WAL, "--timeout", "20"),
    ),
    Mutant(
        "members go by revisions instead of log numbers",
        MEMBERSHIP,
        "while engine.last_lsn < head:",
        "while engine.keyspace.rev < self._shared.look().head.rev:",
        (*IN_TAKE_OVER, "refusal"),
    ),
    Mutant(
        "the time of a new leader is that of its system",
        MEMBERSHIP,
        "engine.clock.follow(seen.leader.time + round(lease.seconds * 1000))",
        'engine.clock.follow(__import__("time").time_ns() // 1_000_000)',
        (*IN_TAKE_OVER, "hour_ahead"),
    ),
    Mutant(
        "each attempt to take over moves the time on",
        MEMBERSHIP,
        "engine.clock.follow(seen.leader.time + round(lease.seconds * 1000))",
        "engine.clock.follow(engine.clock() + round(lease.seconds * 1000))",
        (*IN_TAKE_OVER, "moves_the_time"),
    ),
    Mutant(
        "only the last attempt to take over is known",
        MEMBERSHIP,
        "sent_at = self._attempts[fence.nonce] = lease.clock()",
        "self._attempts.clear(); sent_at = self._attempts[fence.nonce] = lease.clock()",
        (*IN_TAKE_OVER, "behind_another"),
    ),
    Mutant(
        "a leader whose disk fails keeps its record",
        MEMBERSHIP,
        "if not self._wal.takes_commits:  # Its disk fails, so nobody else has taken over.",
        "if False:",
        (*IN_LEADERSHIP, "-k", "disk_is_full"),
    ),
]

TRIMMING: Final = "tests/cluster/test_trimming.py"

POWER_CUT: Final = ("tests/cluster/test_power_cut.py", "-k")

IN_TRIMMING: Final = [
    Mutant(
        "a member claims on while it begins anew",
        "zkv/cluster/joining.py",
        "            self._claim_nothing()\n",
        "            pass\n",
        (*POWER_CUT, "all_that_is_claimed"),
    ),
    Mutant(
        "a snapshot may be claimed before its name is on disk",
        "zkv/durability/snapshot.py",
        "        self._files.sync_directory(self._directory)\n",
        "        pass\n",
        (*POWER_CUT, "all_that_is_claimed"),
    ),
    Mutant(
        "names that an earlier process has given are not synced at a start",
        "zkv/durability/storage.py",
        "self._remove_unfinished(inner)\n                files.sync_directory(inner)\n",
        "self._remove_unfinished(inner)\n",
        (*POWER_CUT, "start_after_it and one"),
    ),
    Mutant(
        "an exchange of histories begins before its decision is on disk",
        "zkv/durability/record_file.py",
        "    files.sync_directory(path.parent)\n",
        "    pass\n",
        (*POWER_CUT, "all_that_is_claimed"),
    ),
    Mutant(
        "a claim that has changed since does not keep the log from being trimmed",
        SHARED_LOG,
        "each.revision) for each in claims]",
        "each.revision) for each in claims[:0]]",
        (TRIMMING, "-k", "lost_its_snapshot"),
    ),
    Mutant(
        "a pin that is placed just before does not count",
        SHARED_LOG,
        "[PutOp(keys.pin(pin.member), pack(pin)), PutOp(keys.first, pack(seen.first))]",
        "[PutOp(keys.pin(pin.member), pack(pin))]",
        (TRIMMING, "-k", "placed_just_before"),
    ),
    Mutant(
        "a claim of a former term counts",
        "zkv/cluster/trimming.py",
        "and each.revision > tenure.revision",
        "",
        (TRIMMING, "-k", "former_term"),
    ),
    Mutant(
        "what a killed leader has left before the beginning of the log stays",
        "zkv/cluster/trimming.py",
        "            first = seen.first\n",
        "            return 0\n",
        (TRIMMING, "-k", "amid_trimming"),
    ),
    Mutant(
        "a snapshot is claimed without being read back",
        "zkv/durability/snapshot.py",
        "        for _ in reader.frames():\n            pass\n"
        "        return Verified(head.rev, head.lsn, reader.check_frames(head.rev).crc)",
        "        return Verified(head.rev, head.lsn, 0)",
        ("tests/cluster/test_claims.py", "-k", "damaged"),
    ),
]

MUTANTS: Final = [
    *IN_TRIMMING,
    *IN_C, *AT_THE_START, *CODEC_AND_EXACTLY_ONCE, *EXPIRY, *LOG, *WAITING, *IN_SLOW_LOG, *IN_FEED,
    *IN_BOUNDS, *IN_HANDSHAKES, *COMMITS_IN_C,
    *CLIENT, *IN_METRICS, *SETTINGS, *IN_USERS, *IN_TOOLS_OF_USERS, *IN_QUOTAS,
    *IN_CACHES, *IN_REPLICATION, *IN_ETCD, *IN_CLUSTER,
]  # fmt: skip
