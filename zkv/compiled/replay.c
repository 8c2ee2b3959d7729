/* Loading at the start: frames of the log, and entries of a snapshot, from bytes to the table.
 *
 * Strategy: both functions take what is usual, and stop before the first thing that is not: what
 * is damaged, incomplete, packed in another way than zkv packs it, or a commit without changes.
 * Python goes on from there, and judges: recovery.py and snapshot.py specify the behaviour.
 *
 * Invariants: a commit is applied as a whole, and only after all of it has been checked. Python's
 * lock is held, and nobody else has the table. */

#include "store.h"

enum { WIDE = 0xcf, NIL = 0xc0 };
enum { WIDE_BYTES = 9 };
enum { OLD = 0x93, OLD_ONCE = 0x97, NEW = 0x94, NEW_ONCE = 0x98 }; /* first bytes of payloads */
enum { MOST_WAITING = 64 };

/* --- The changes that wait until their memory has been fetched -------------------------------- */

typedef struct {
    span key, value;
    int64_t rev, expires;
    uint32_t hash;
    int removes;
} change;

typedef struct {
    Table *table;
    size_t count;
    change waiting[MOST_WAITING];
} loading;

/* 0, with an exception, if there is no memory. */
static int apply(Table *table, const change *c)
{
    record *before = NULL, *now;
    if (c->removes) {
        before = table_remove(table, c->hash, c->key.at, c->key.size);
    } else {
        now = record_new(c->key.at, c->key.size, c->value.at, c->value.size, c->rev, c->expires);
        if (now == NULL || !table_put(table, c->hash, now, &before)) {
            record_release(now);
            PyErr_NoMemory();
            return 0;
        }
    }
    record_release(before);
    return 1;
}

static int apply_waiting(loading *l)
{
    for (size_t i = 0; i < l->count; i++)
        table_fetch(l->table, l->waiting[i].hash);
    for (size_t i = 0; i < l->count; i++)
        if (!apply(l->table, &l->waiting[i]))
            return 0;
    l->count = 0;
    return 1;
}

static int load(loading *l, change c)
{
    c.hash = table_hash(l->table, c.key.at, c.key.size);
    __builtin_prefetch(table_bucket(l->table, c.hash));
    l->waiting[l->count++] = c;
    return l->count < MOST_WAITING || apply_waiting(l);
}

/* --- Reading. 0 if it is not as zkv packs it; the reader is then nowhere in particular -------- */

static int read_byte(reader *r, int byte) { return r->at < r->end && *r->at++ == byte; }

static int read_wide(reader *r, int64_t *number)
{
    if (r->end - r->at < WIDE_BYTES || *r->at != WIDE || r->at[1] >= 0x80)
        return 0;
    *number = (int64_t)big_endian(r->at + 1, 8);
    r->at += WIDE_BYTES;
    return 1;
}

static int read_number(reader *r, int64_t *number)
{
    uint64_t found;
    int good = read_uint(r, &found) && found <= INT64_MAX;
    *number = good ? (int64_t)found : 0;
    return good;
}

/* A deadline; nil, which becomes 0, means never. */
static int read_expires(reader *r, int64_t *expires)
{
    *expires = 0;
    if (r->at < r->end && *r->at == NIL)
        return r->at++, 1;
    return read_number(r, expires) && *expires > 0;
}

static int read_bin(reader *r, span *bytes)
{
    if (r->at == r->end || *r->at < 0xc4 || *r->at > 0xc6 || !read_any(r, bytes))
        return 0;
    int head = 1 + (1 << (*bytes->at - 0xc4));
    bytes->at += head;
    bytes->size -= (size_t)head;
    return 1;
}

/* An op of a change: does it remove the key? -1 if it is none. */
static int removes(const span *op)
{
    static const struct {
        const char *name;
        size_t size;
        int removes;
    } ops[] = {{"PUT", 3, 0}, {"TOUCH", 5, 0}, {"DELETE", 6, 1}, {"EXPIRE", 6, 1}};
    for (size_t i = 0; i < sizeof ops / sizeof *ops; i++)
        if (op->size == ops[i].size && memcmp(op->at, ops[i].name, op->size) == 0)
            return ops[i].removes;
    return -1;
}

static int read_change(reader *r, change *c)
{
    span op;
    return read_byte(r, 0x94) && read_text(r, &op) && (c->removes = removes(&op)) >= 0 &&
           read_text(r, &c->key) && read_any(r, &c->value) && read_expires(r, &c->expires);
}

/* --- The log ---------------------------------------------------------------------------------- */

typedef struct {
    const unsigned char *at;
    size_t size;
    uint64_t synced;
} frame;

/* A commit that has been checked. `session.at` is NULL if no reply is remembered with it. */
typedef struct {
    int64_t rev, time, lsn, seq;
    int old; /* of format 1, which has no log numbers */
    uint32_t count;
    reader changes;
    span session, digest, reply;
} commit;

/* What is done with the commits: see Replay in zkv/durability/recovery.py. */
typedef struct {
    loading into;
    PyObject *payloads, *once;
    int64_t lsn, oldest, next_rev, next_lsn, limit, time;
    uint64_t synced;
    size_t changes, bytes, applied;
} replay;

/* The frame at a place. 0 if it is not complete, or not good. */
static int read_frame(reader *r, uint32_t salt, frame *f)
{
    if (r->end - r->at < FRAME_HEAD)
        return 0;
    const unsigned char *head = r->at;
    f->size = (size_t)big_endian(head, 4);
    f->synced = big_endian(head + 8, 8);
    f->at = head + FRAME_HEAD;
    if ((size_t)(r->end - f->at) < f->size)
        return 0;
    unsigned char checked[12];
    write_bytes(write_bytes(checked, head, 4), head + 8, 8);
    r->at = f->at + f->size;
    return crc32(crc32(salt, checked, sizeof checked), f->at, f->size) == big_endian(head + 4, 4);
}

static int read_once(reader *r, commit *c)
{
    return read_text(r, &c->session) && read_number(r, &c->seq) && read_bin(r, &c->digest) &&
           read_bin(r, &c->reply);
}

static int read_commit(const frame *f, commit *c)
{
    reader r = {f->at, f->at + f->size};
    change each;
    *c = (commit){0};
    if (f->size == 0)
        return 0;
    int mark = *r.at++, once = mark == OLD_ONCE || mark == NEW_ONCE;
    c->old = mark == OLD || mark == OLD_ONCE;
    if (!(once || c->old || mark == NEW) || !read_wide(&r, &c->rev) || !read_wide(&r, &c->time) ||
        !(c->old ? (c->lsn = c->rev, 1) : read_wide(&r, &c->lsn)) || !read_array(&r, &c->count))
        return 0;
    c->changes = r;
    for (uint32_t i = 0; i < c->count; i++)
        if (!read_change(&r, &each))
            return 0;
    return c->count > 0 && (!once || read_once(&r, c)) && r.at == r.end;
}

static PyObject *to_bytes(const unsigned char *at, size_t size)
{
    return PyBytes_FromStringAndSize((const char *)at, (Py_ssize_t)size);
}

/* A payload of format 1 as it is today: its revision, packed, becomes its log number, too. */
static PyObject *renewed(const frame *f)
{
    PyObject *made = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)f->size + WIDE_BYTES);
    if (made == NULL)
        return NULL;
    const unsigned char *rev = f->at + 1, *rest = rev + 2 * WIDE_BYTES;
    unsigned char *to = (unsigned char *)PyBytes_AsString(made);
    *to++ = (unsigned char)(*f->at + 1);
    to = write_bytes(write_bytes(to, rev, 2 * WIDE_BYTES), rev, WIDE_BYTES);
    write_bytes(to, rest, (size_t)(f->at + f->size - rest));
    return made;
}

static int keep_commit(replay *p, const frame *f, const commit *c)
{
    p->changes += c->count;
    p->bytes += f->size + (c->old ? WIDE_BYTES : 0);
    return list_append(p->payloads, c->old ? renewed(f) : to_bytes(f->at, f->size));
}

static int keep_once(replay *p, const commit *c)
{
    const char *name = (const char *)c->session.at;
    PyObject *made =
        Py_BuildValue("NLNNLL", PyUnicode_FromStringAndSize(name, (Py_ssize_t)c->session.size),
                      (long long)c->seq, to_bytes(c->digest.at, c->digest.size),
                      to_bytes(c->reply.at, c->reply.size), (long long)c->rev, (long long)c->time);
    return list_append(p->once, made);
}

static int apply_commit(replay *p, const commit *c)
{
    reader r = c->changes;
    change each;
    for (uint32_t i = 0; i < c->count; i++) {
        read_change(&r, &each);
        each.rev = c->rev;
        if (!load(&p->into, each))
            return 0;
    }
    p->applied++;
    return c->session.at == NULL || keep_once(p, c);
}

/* Take the frames from a place on; return where it stopped. NULL, with an exception. */
static const unsigned char *take_frames(replay *p, reader r, uint32_t salt)
{
    frame f;
    commit c;
    const unsigned char *end = r.at;
    while (read_frame(&r, salt, &f) && read_commit(&f, &c) && c.rev == p->next_rev &&
           c.lsn == p->next_lsn && c.rev < p->limit) {
        if ((c.rev >= p->oldest && !keep_commit(p, &f, &c)) ||
            (c.lsn > p->lsn && !apply_commit(p, &c)))
            return NULL;
        p->next_rev = c.rev + 1;
        p->next_lsn = c.lsn + 1;
        p->time = c.time > p->time ? c.time : p->time;
        p->synced = f.synced > p->synced ? f.synced : p->synced;
        end = r.at;
    }
    return apply_waiting(&p->into) ? end : NULL;
}

/* replay(table, frames, at, salt, next_rev, next_lsn, limit, lsn, oldest): see _Replayed in
 * recovery.py. */
PyObject *py_replay(PyObject *module, PyObject *arguments)
{
    PyObject *table, *frames;
    Py_ssize_t at;
    unsigned int salt;
    long long next_rev, next_lsn, limit, lsn, oldest;
    replay p = {0};
    if (!PyArg_ParseTuple(arguments, "OSnILLLLL", &table, &frames, &at, &salt, &next_rev,
                          &next_lsn, &limit, &lsn, &oldest))
        return NULL;
    const unsigned char *begin = (const unsigned char *)PyBytes_AsString(frames);
    p.into.table = (Table *)table;
    p.next_rev = next_rev;
    p.next_lsn = next_lsn;
    p.limit = limit;
    p.lsn = lsn;
    p.oldest = oldest;
    p.payloads = PyList_New(0);
    p.once = PyList_New(0);
    const unsigned char *end = NULL;
    if (p.payloads != NULL && p.once != NULL)
        end = take_frames(&p, (reader){begin + at, begin + PyBytes_Size(frames)}, salt);
    if (end == NULL) {
        Py_XDECREF(p.payloads);
        Py_XDECREF(p.once);
        return NULL;
    }
    return Py_BuildValue("nLLKLnNnnN", (Py_ssize_t)(end - begin), (long long)p.next_rev,
                         (long long)p.next_lsn, (unsigned long long)p.synced, (long long)p.time,
                         (Py_ssize_t)p.applied, p.payloads, (Py_ssize_t)p.changes,
                         (Py_ssize_t)p.bytes, p.once);
}

/* --- Commits for another server --------------------------------------------------------------- */

enum { NUMBER_AT = 19 }; /* in a payload: the log number, in its widest form */

/* Pass over the frame of a commit that is not asked for, unchecked. */
static int skip_frame(reader *r)
{
    if (r->end - r->at < FRAME_HEAD)
        return 0;
    size_t size = FRAME_HEAD + (size_t)big_endian(r->at, 4);
    if ((size_t)(r->end - r->at) < size)
        return 0;
    r->at += size;
    return 1;
}

static int has_number(const frame *f, int64_t lsn)
{
    int64_t found;
    reader r = {f->at + NUMBER_AT, f->at + f->size};
    return f->size > NUMBER_AT && read_wide(&r, &found) && found == lsn;
}

/* unpack_frames(frames, at, salt, next_lsn, first, last, most): see segment.py. */
PyObject *unpack_frames(PyObject *module, PyObject *arguments)
{
    PyObject *frames;
    Py_ssize_t at, most;
    unsigned int salt;
    long long next_lsn, first, last;
    if (!PyArg_ParseTuple(arguments, "SnILLLn", &frames, &at, &salt, &next_lsn, &first, &last,
                          &most))
        return NULL;
    const unsigned char *begin = (const unsigned char *)PyBytes_AsString(frames);
    reader r = {begin + at, begin + PyBytes_Size(frames)};
    PyObject *payloads = PyList_New(0);
    if (payloads == NULL)
        return NULL;
    while (next_lsn < first && next_lsn <= last && skip_frame(&r))
        next_lsn++;
    const unsigned char *end = r.at;
    frame f;
    while (next_lsn >= first && next_lsn <= last && read_frame(&r, salt, &f) &&
           has_number(&f, next_lsn)) {
        Py_ssize_t size = (Py_ssize_t)f.size;
        if (size > most && PyList_Size(payloads) > 0)
            break;
        PyObject *payload = PyBytes_FromStringAndSize((const char *)f.at, size);
        int failed = payload == NULL || PyList_Append(payloads, payload) < 0;
        Py_XDECREF(payload);
        if (failed) {
            Py_DECREF(payloads);
            return NULL;
        }
        most -= size;
        next_lsn++;
        end = r.at;
    }
    return Py_BuildValue("NnL", payloads, (Py_ssize_t)(end - begin), next_lsn);
}

/* --- Snapshots -------------------------------------------------------------------------------- */

static int read_entry(reader *r, change *c)
{
    if (r->at == r->end || (*r->at != 0x93 && *r->at != 0x94))
        return 0;
    int expires = *r->at++ == 0x94;
    *c = (change){0};
    return read_text(r, &c->key) && read_any(r, &c->value) && read_number(r, &c->rev) &&
           (!expires || read_expires(r, &c->expires));
}

/* load_entries(table, payload): see snapshot.py. */
PyObject *load_entries(PyObject *module, PyObject *arguments)
{
    PyObject *table, *payload;
    uint32_t count;
    change each;
    if (!PyArg_ParseTuple(arguments, "OS", &table, &payload))
        return NULL;
    const unsigned char *begin = (const unsigned char *)PyBytes_AsString(payload);
    loading into;
    into.table = (Table *)table;
    into.count = 0;
    reader r = {begin, begin + PyBytes_Size(payload)};
    if (!read_array(&r, &count))
        return Py_NewRef(Py_None);
    reader entries = r;
    for (uint32_t i = 0; i < count; i++)
        if (!read_entry(&r, &each))
            return Py_NewRef(Py_None);
    if (r.at != r.end)
        return Py_NewRef(Py_None);
    for (uint32_t i = 0; i < count; i++)
        if (!read_entry(&entries, &each) || !load(&into, each))
            return NULL;
    return apply_waiting(&into) ? PyLong_FromUnsignedLong(count) : NULL;
}
