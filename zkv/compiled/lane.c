/* The fast lane: plain GET, PUT, MGET and MPUT, from the body of a request to that of its reply.
 *
 * Strategy: a body is read once, checked on the way, and carried out on the table at once. Anything
 * out of the ordinary (a further field, an absent key, a limit, a wrong type, text that came as bin,
 * a value that may be nested too deeply) is no error here: the request is left to Python, which is
 * the specification, before anything has been changed.
 *
 * Invariants: Python's lock and the keyspace's are held throughout. A request is carried out whole
 * or not at all. */

#include "store.h"

#include <stdlib.h>

enum op { NONE, GET, PUT, MGET, MPUT, OPS };
enum { LARGE_BODY = 1 << 20 }; /* bytes: Python lets go of its lock while it hashes as much */
enum { MOST_SESSION = 64 };               /* bytes */
static const uint64_t MOST_SEQ = 1ULL << 62;

typedef struct {
    span key, value;
    record *found;
    uint32_t hash;
} item;

/* What a request says. `items` are those of `keys` or `items`. */
typedef struct {
    enum op op;
    span id, key, value, session;
    uint64_t seq;
    int has_items, has_pairs;
    size_t count;
} request;

typedef struct {
    PyObject_HEAD
    Table *table;
    PyObject *commit_type;
    Py_ssize_t max_key, max_value, max_batch, max_reply, shallow;
    int durable;
    PyObject *add_key, *forget_deadline, *tell_watchers; /* callables: see store.py */
    PyObject *watchers;                                  /* a list */
    PyObject *may_run, *remember;                         /* callables, likewise */
    PyObject *names[OPS];
    item *items;
    size_t room;
} Lane;

/* A run in the making. What stands in capitals in its comments is Python's, and borrowed. */
typedef struct {
    int64_t rev, removed_rev, now;
    int writes;
    PyObject *replies, *told, *ops, *subjects;  /* LISTS; subjects may be None */
    PyObject *commits;                          /* a list */
    Replaced *replaced;
    size_t changes, bytes;
    int64_t newest; /* the newest revision that any reply tells of */
} run;

/* What is remembered of an exactly-once request; `session` is NULL where it is none. */
typedef struct {
    PyObject *session, *digest, *reply;
    uint64_t seq;
} once;

/* --- Reading a request --------------------------------------------------------------------------- */

static int is(const span *text, const char *what, size_t size)
{
    return text->size == size && memcmp(text->at, what, size) == 0;
}
#define IS(text, literal) is(text, literal, sizeof literal - 1)

static enum op to_op(const span *text)
{
    return IS(text, "GET") ? GET : IS(text, "PUT") ? PUT : IS(text, "MGET") ? MGET
         : IS(text, "MPUT") ? MPUT : NONE;
}

static int read_value(const Lane *self, reader *r, span *value)
{
    value->at = r->at;
    if (!skip_value(r))
        return 0;
    value->size = (size_t)(r->at - value->at);
    int first = *value->at;
    int nests = (first >= 0x80 && first <= 0x9f) || (first >= 0xdc && first <= 0xdf);
    size_t most = (size_t)(nests ? self->shallow : self->max_value);
    return value->size <= most && value->size <= (size_t)self->max_value;
}

static int read_key(const Lane *self, reader *r, span *key)
{
    return read_text(r, key) && key->size > 0 && key->at[0] != 0 &&
           key->size <= (size_t)self->max_key;
}

static int read_id(reader *r, span *id)
{
    span text;
    const unsigned char *from = r->at;
    if (from == r->end)
        return 0;
    int first = *from;
    int number = first < 0x80 || first >= 0xe0 || (first >= 0xcc && first <= 0xd3);
    if (number ? !skip_value(r) : !read_text(r, &text))
        return 0;
    *id = (span){from, (size_t)(r->at - from)};
    return 1;
}

static int read_items(Lane *self, reader *r, uint32_t count, int pairs)
{
    if (count == 0 || count > (size_t)self->max_batch)
        return 0;
    if (count > self->room) {
        item *items = realloc(self->items, count * sizeof *items);
        if (items == NULL)
            return 0;
        self->items = items;
        self->room = count;
    }
    for (uint32_t i = 0; i < count; i++) {
        item *to = &self->items[i];
        if (!read_key(self, r, &to->key) || (pairs && !read_value(self, r, &to->value)))
            return 0;
        to->hash = table_hash(self->table, to->key.at, to->key.size);
        __builtin_prefetch(table_bucket(self->table, to->hash));
    }
    return 1;
}

static int read_field(Lane *self, reader *r, request *to)
{
    span name, op;
    uint32_t count;
    if (!read_text(r, &name))
        return 0;
    if (IS(&name, "op"))
        return to->op == NONE && read_text(r, &op) && (to->op = to_op(&op)) != NONE;
    if (IS(&name, "key"))
        return to->key.at == NULL && read_key(self, r, &to->key);
    if (IS(&name, "value"))
        return to->value.at == NULL && read_value(self, r, &to->value);
    if (IS(&name, "id"))
        return to->id.at == NULL && read_id(r, &to->id);
    if (IS(&name, "session"))
        return to->session.at == NULL && read_text(r, &to->session) && to->session.size > 0 &&
               to->session.size <= MOST_SESSION;
    if (IS(&name, "seq"))
        return to->seq == 0 && read_uint(r, &to->seq) && to->seq > 0 && to->seq <= MOST_SEQ;
    to->has_pairs = IS(&name, "items");
    if (to->has_items || !(to->has_pairs || IS(&name, "keys")))
        return 0;
    if (!(to->has_pairs ? read_map(r, &count) : read_array(r, &count)))
        return 0;
    to->has_items = 1;
    to->count = count;
    return read_items(self, r, count, to->has_pairs);
}

/* Whether the body is a request for this lane. */
static int read_request(Lane *self, const unsigned char *body, size_t size, request *to)
{
    reader r = {body, body + size};
    uint32_t fields;
    if (!read_map(&r, &fields))
        return 0;
    while (fields--)
        if (!read_field(self, &r, to))
            return 0;
    int key = to->key.at != NULL, value = to->value.at != NULL;
    int wanted = to->op == GET    ? key && !value && !to->has_items
                 : to->op == PUT  ? key && value && !to->has_items
                 : to->op == MGET ? !key && !value && to->has_items && !to->has_pairs
                 : to->op == MPUT ? !key && !value && to->has_items && to->has_pairs
                                  : 0;
    int once = to->session.at != NULL, writes = to->op == PUT || to->op == MPUT;
    return wanted && once == (to->seq > 0) && (writes || !once) && r.at == r.end;
}

/* --- Replies ------------------------------------------------------------------------------------- */

/* {"ok": true, and the id, and as many more fields. */
static unsigned char *write_reply_head(unsigned char *to, const request *from, int more)
{
    *to++ = (unsigned char)(0x81 + more + (from->id.at != NULL));
    to = write_bytes(to, "\xa2ok\xc3", 4);
    if (from->id.at != NULL)
        to = write_bytes(write_bytes(to, "\xa2id", 3), from->id.at, from->id.size);
    return to;
}

static size_t head_size(const request *from) { return 8 + from->id.size; }

static PyObject *write_reply(const request *from, int64_t rev, int durable)
{
    unsigned char buffer[256], *start = buffer, *to;
    size_t most = head_size(from) + 32;
    if (most > sizeof buffer && (start = malloc(most)) == NULL)
        return NULL;
    to = write_reply_head(start, from, 2);
    to = write_uint(write_bytes(to, "\xa3rev", 4), (uint64_t)rev);
    to = write_bytes(to, durable ? "\xa7" "durable\xc3" : "\xa7" "durable\xc2", 9);
    PyObject *reply = PyBytes_FromStringAndSize((char *)start, to - start);
    if (start != buffer)
        free(start);
    return reply;
}

static PyObject *get_reply(const run *r, const request *from, const record *found)
{
    unsigned char buffer[512], *start = buffer, *to;
    size_t most = head_size(from) + found->value_size + 48;
    if (most > sizeof buffer && (start = malloc(most)) == NULL)
        return NULL;
    to = write_reply_head(start, from, 2 + (found->expires != 0));
    to = write_bytes(write_bytes(to, "\xa5value", 6), record_value(found), found->value_size);
    to = write_uint(write_bytes(to, "\xa3rev", 4), (uint64_t)found->rev);
    if (found->expires) {
        double ttl = (double)(found->expires - r->now) / 1000;
        uint64_t bits;
        memcpy(&bits, &ttl, sizeof bits);
        to = write_bytes(to, "\xa3ttl\xcb", 5);
        for (int shift = 56; shift >= 0; shift -= 8)
            *to++ = (unsigned char)(bits >> shift);
    }
    PyObject *reply = PyBytes_FromStringAndSize((char *)start, to - start);
    if (start != buffer)
        free(start);
    return reply;
}

static PyObject *mget_reply(const request *from, const item *items, size_t values)
{
    size_t most = head_size(from) + values + 32 + 2 * MOST_HEAD + from->count * MOST_HEAD;
    unsigned char *start = malloc(most), *to = start;
    if (start == NULL)
        return NULL;
    to = write_reply_head(to, from, 2);
    to = write_array_head(write_bytes(to, "\xa6values", 7), from->count);
    for (size_t i = 0; i < from->count; i++) {
        const record *r = items[i].found;
        to = r == NULL ? (*to = 0xc0, to + 1) : write_bytes(to, record_value(r), r->value_size);
    }
    to = write_array_head(write_bytes(to, "\xa4revs", 5), from->count);
    for (size_t i = 0; i < from->count; i++)
        to = write_uint(to, items[i].found == NULL ? 0 : (uint64_t)items[i].found->rev);
    PyObject *reply = PyBytes_FromStringAndSize((char *)start, to - start);
    free(start);
    return reply;
}

/* --- Reading entries. A reply; NULL where the request is left to Python ---------------------------- */

static int is_live(const run *r, const record *found)
{
    return found != NULL && (!found->expires || found->expires > r->now);
}

static void tell(run *r, int64_t *told, int64_t rev)
{
    if (rev > *told)
        *told = rev;
    if (rev > r->newest)
        r->newest = rev;
}

static PyObject *do_get(Lane *self, run *r, const request *from, int64_t *told)
{
    uint32_t hash = table_hash(self->table, from->key.at, from->key.size);
    record *found = table_find(self->table, hash, from->key.at, from->key.size);
    if (!is_live(r, found))
        return NULL;
    tell(r, told, found->rev);
    return get_reply(r, from, found);
}

static PyObject *do_mget(Lane *self, run *r, const request *from, int64_t *told)
{
    size_t values = 0;
    int64_t newest = 0;
    for (size_t i = 0; i < from->count; i++) {
        item *each = &self->items[i];
        each->found = table_find(self->table, each->hash, each->key.at, each->key.size);
        /* That one has expired depends on the write that set its time. */
        int64_t rev = each->found == NULL ? r->removed_rev : each->found->rev;
        if (is_live(r, each->found)) {
            values += each->found->value_size;
        } else {
            each->found = NULL;
            values++;
            rev = rev > r->removed_rev ? rev : r->removed_rev;
        }
        newest = newest > rev ? newest : rev;
    }
    if (values > (size_t)self->max_reply)
        return NULL;
    tell(r, told, newest);
    return mget_reply(from, self->items, values);
}

/* --- Writing entries ------------------------------------------------------------------------------- */

static PyObject *to_str(const span *key)
{
    return PyUnicode_FromStringAndSize((const char *)key->at, (Py_ssize_t)key->size);
}

/* Call, and let go of the arguments, which may be NULL; whether that went well. What went wrong is
 * for Python's way to meet again, and to tell. */
static int call(PyObject *callable, PyObject *first, PyObject *second)
{
    PyObject *result = NULL;
    if (first != NULL && !PyErr_Occurred())
        result = PyObject_CallFunctionObjArgs(callable, first, second, NULL);
    Py_XDECREF(first);
    Py_XDECREF(second);
    Py_XDECREF(result);
    if (result == NULL)
        PyErr_Clear();
    return result != NULL;
}

/* Put new records in place, and note what they replace; whether all went well. The caller takes
 * back what has been noted where it did not. */
static int put_all(Lane *self, run *r, item *items, size_t count)
{
    Replaced *replaced = r->replaced;
    for (size_t i = 0; i < count; i++) {
        item *each = &items[i];
        each->found = table_find(self->table, each->hash, each->key.at, each->key.size);
        if (each->found != NULL && each->found->rev > r->rev)
            return 0; /* A key that is there twice: the last one counts, and that is all. */
        record *now = record_new(each->hash, each->key.at, each->key.size, each->value.at,
                                 each->value.size, r->rev + 1);
        if (now == NULL)
            return 0;
        now->refs++; /* The table's, and that of `replaced`. */
        replaced->pairs[replaced->count++] = (replacement){now, table_put(self->table, now)};
    }
    return 1;
}

/* Tell the watchers what has been replaced since `first`, the ordered index what is new, and the
 * deadlines which are off. */
static int tell_others(const Lane *self, const run *r, size_t first)
{
    int watched = PyList_Size(self->watchers) > 0;
    for (size_t i = first; i < r->replaced->count; i++) {
        const replacement *pair = &r->replaced->pairs[i];
        span key = {pair->now->bytes, pair->now->key_size};
        if (watched &&
            !call(self->tell_watchers, to_str(&key), record_entry(self->table, pair->before)))
            return 0;
        if (pair->before == NULL && !call(self->add_key, to_str(&key), NULL))
            return 0;
        if (pair->before != NULL && pair->before->expires &&
            !call(self->forget_deadline, PyLong_FromLongLong(pair->before->expires), to_str(&key)))
            return 0;
    }
    return 1;
}

static void take_back(Lane *self, run *r, size_t first)
{
    Replaced *replaced = r->replaced;
    while (replaced->count > first) {
        replacement pair = replaced->pairs[--replaced->count];
        const record *now = pair.now;
        if (pair.before == NULL)
            record_release(table_remove(self->table, now->hash, now->bytes, now->key_size));
        else
            record_release(table_put(self->table, pair.before));
        record_release(pair.now);
    }
}

/* What tells the request from another one with its seq: `digest` in zkv/protocol/codec.py. */
static uint64_t to_digest(enum op op, const item *items, size_t count)
{
    uint64_t total = 0;
    unsigned char head[MOST_HEAD];
    hasher h;
    for (size_t i = 0; i < count; i++) {
        const item *each = &items[i];
        hash_begin(&h);
        hash_add(&h, op == PUT ? "PUT" : "MPUT", op == PUT ? 3 : 4);
        hash_add(&h, head, (size_t)(write_text_head(head, each->key.size) - head));
        hash_add(&h, each->key.at, each->key.size);
        hash_add(&h, each->value.at, each->value.size);
        total += hash_end(&h);
    }
    return total;
}

static PyObject *digest_bytes(uint64_t digest)
{
    char bytes[8];
    for (int i = 0; i < 8; i++)
        bytes[i] = (char)(digest >> 8 * i);
    return PyBytes_FromStringAndSize(bytes, sizeof bytes);
}

/* Whether the request is new to its session; if not, or not certainly, it is left to Python. */
static int is_new(const Lane *self, const run *r, const once *o)
{
    PyObject *answer = PyObject_CallFunction(self->may_run, "OKOnL", o->session,
                                             (unsigned long long)o->seq, o->digest,
                                             PyBytes_Size(o->reply), (long long)r->now);
    int is_new = answer == Py_True;
    Py_XDECREF(answer);
    PyErr_Clear();
    return is_new;
}

static int remember(const Lane *self, const run *r, const once *o)
{
    Py_ssize_t place = PyList_Size(r->commits);
    PyObject *done = PyObject_CallFunction(self->remember, "OKOOLnL", o->session,
                                           (unsigned long long)o->seq, o->digest, o->reply,
                                           (long long)r->rev + 1, place, (long long)r->now);
    Py_XDECREF(done);
    PyErr_Clear();
    return done != NULL;
}

static void let_go(once *o)
{
    Py_CLEAR(o->session);
    Py_CLEAR(o->digest);
    Py_CLEAR(o->reply);
}

/* What is to be remembered of an exactly-once request; whether it is to run. */
static int begin_once(const Lane *self, const run *r, const request *from, const item *items,
                      size_t count, once *o)
{
    static const request no_id;
    o->seq = from->seq;
    o->session = to_str(&from->session);
    o->digest = digest_bytes(to_digest(from->op, items, count));
    o->reply = write_reply(&no_id, r->rev + 1, 0);
    return o->session != NULL && o->digest != NULL && o->reply != NULL && is_new(self, r, o);
}

static unsigned char *write_once(unsigned char *to, const request *from, const once *o)
{
    to = write_bytes(write_text_head(to, from->session.size), from->session.at, from->session.size);
    to = write_bin_head(write_uint(to, o->seq), 8);
    to = write_bytes(to, PyBytes_AsString(o->digest), 8);
    size_t size = (size_t)PyBytes_Size(o->reply);
    return write_bytes(write_bin_head(to, size), PyBytes_AsString(o->reply), size);
}

/* The payload of a commit that puts these: see zkv/keyspace/change.py. NULL as below. */
static PyObject *to_payload(const run *r, const item *items, size_t count, const request *from,
                            const once *o)
{
    size_t size = 1 + 2 * 9 + MOST_HEAD;
    if (o->session != NULL)
        size += from->session.size + 8 + (size_t)PyBytes_Size(o->reply) + 4 * MOST_HEAD;
    for (size_t i = 0; i < count; i++)
        size += 1 + 4 + MOST_HEAD + items[i].key.size + items[i].value.size + 1;
    if (size > UINT32_MAX) /* More than the log takes, or nearly. */
        return NULL;
    unsigned char buffer[1024], *start = buffer, *to;
    if (size > sizeof buffer && (start = malloc(size)) == NULL)
        return NULL;
    to = write_bytes(start, o->session == NULL ? "\x93\xcf" : "\x97\xcf", 2);
    for (int shift = 56; shift >= 0; shift -= 8)
        *to++ = (unsigned char)((uint64_t)(r->rev + 1) >> shift);
    *to++ = 0xcf;
    for (int shift = 56; shift >= 0; shift -= 8)
        *to++ = (unsigned char)((uint64_t)r->now >> shift);
    to = write_array_head(to, count);
    for (size_t i = 0; i < count; i++) {
        const item *each = &items[i];
        to = write_text_head(write_bytes(to, "\x94\xa3PUT", 5), each->key.size);
        to = write_bytes(to, each->key.at, each->key.size);
        to = write_bytes(to, each->value.at, each->value.size);
        *to++ = 0xc0;
    }
    if (o->session != NULL)
        to = write_once(to, from, o);
    PyObject *payload = PyBytes_FromStringAndSize((char *)start, to - start);
    if (start != buffer)
        free(start);
    return payload;
}

/* The commit that puts these; NULL where memory ends, or it is too large. */
static PyObject *to_commit(const Lane *self, run *r, const item *items, size_t count,
                           const request *from, const once *o)
{
    PyObject *payload = to_payload(r, items, count, from, o);
    PyObject *rev = PyLong_FromLongLong(r->rev + 1), *changes = PyLong_FromSize_t(count);
    PyObject *commit = NULL;
    if (payload != NULL && rev != NULL && changes != NULL)
        commit = PyObject_CallFunctionObjArgs(self->commit_type, rev, changes, payload, NULL);
    if (commit != NULL)
        r->bytes += (size_t)PyBytes_Size(payload);
    Py_XDECREF(payload);
    Py_XDECREF(rev);
    Py_XDECREF(changes);
    return commit;
}

/* Put, and commit that. A reply; NULL where nothing has been done. */
static PyObject *put_and_commit(Lane *self, run *r, const request *from, item *items,
                                size_t count, const once *o)
{
    size_t first = r->replaced->count;
    PyObject *reply = NULL, *commit = NULL;
    /* What may fail comes first, and what cannot be taken back last. */
    if (put_all(self, r, items, count) &&
        (reply = write_reply(from, r->rev + 1, self->durable)) != NULL &&
        (commit = to_commit(self, r, items, count, from, o)) != NULL &&
        (o->session == NULL || remember(self, r, o))) {
        /* A restart is right again: nobody has been told of this yet. */
        if (PyList_Append(r->commits, commit) < 0 || !tell_others(self, r, first))
            Py_FatalError("zkv: out of memory in the middle of a commit");
        r->rev++;
        r->changes += count;
    } else {
        Py_CLEAR(reply);
        take_back(self, r, first);
    }
    Py_XDECREF(commit);
    return reply;
}

static PyObject *do_put(Lane *self, run *r, const request *from, item *items, size_t count,
                        int64_t *told)
{
    once o = {0};
    PyObject *reply = NULL;
    if (!r->writes || (r->replaced == NULL && (r->replaced = replaced_new(self->table)) == NULL) ||
        !replaced_reserve(r->replaced, count))
        return NULL;
    if (from->session.at == NULL || begin_once(self, r, from, items, count, &o))
        reply = put_and_commit(self, r, from, items, count, &o);
    let_go(&o);
    if (reply != NULL)
        tell(r, told, r->rev);
    return reply;
}

static PyObject *do_request(Lane *self, run *r, const request *from, int64_t *told)
{
    switch (from->op) {
    case GET:
        return do_get(self, r, from, told);
    case MGET:
        return do_mget(self, r, from, told);
    case MPUT:
        return do_put(self, r, from, self->items, from->count, told);
    case PUT: {
        item one = {from->key, from->value, NULL,
                    table_hash(self->table, from->key.at, from->key.size)};
        return do_put(self, r, from, &one, 1, told);
    }
    default:
        return NULL;
    }
}

/* --- A run ------------------------------------------------------------------------------------- */

static int append(PyObject *list, PyObject *item)
{
    int well = item != NULL && PyList_Append(list, item) == 0;
    Py_XDECREF(item);
    return well;
}

/* What the request log says of a request, if it is asked. */
static int add_subject(const run *r, const request *from, Py_ssize_t size,
                      PyObject *reply)
{
    if (r->subjects == Py_None)
        return 1;
    PyObject *subject = from->has_items ? PyLong_FromSize_t(from->count) : to_str(&from->key);
    if (subject == NULL)
        return 0;
    return append(r->subjects, Py_BuildValue("(Nnn)", subject, size, PyBytes_Size(reply)));
}

/* Carry out one body: 1, or 0 where it is left to Python, or -1 with an exception. */
static int take(Lane *self, run *r, PyObject *body)
{
    char *bytes;
    Py_ssize_t size;
    request from = {NONE};
    int64_t told = 0;
    if (!PyObject_TypeCheck(body, &PyBytes_Type) ||
        PyBytes_AsStringAndSize(body, &bytes, &size) < 0 || size > LARGE_BODY ||
        !read_request(self, (unsigned char *)bytes, (size_t)size, &from))
        return 0;
    PyObject *reply = do_request(self, r, &from, &told);
    if (reply == NULL)
        return PyErr_Clear(), 0;
    int well = add_subject(r, &from, size, reply) && append(r->replies, reply) &&
               append(r->told, PyLong_FromLongLong(told)) &&
               PyList_Append(r->ops, self->names[from.op]) == 0;
    return well ? 1 : -1;
}

/* run(bodies, first, rev, removed_rev, now, writes, replies, told, ops, subjects)
 *     -> (taken, newest, rev, commits, changes, bytes, replaced)
 * See zkv/keyspace/lane.py. */
static PyObject *lane_run(Lane *self, PyObject *arguments)
{
    PyObject *bodies;
    Py_ssize_t first, taken;
    long long rev, removed_rev, now;
    run r = {0};
    if (!PyArg_ParseTuple(arguments, "OnLLLpOOOO", &bodies, &first, &rev, &removed_rev, &now,
                          &r.writes, &r.replies, &r.told, &r.ops, &r.subjects))
        return NULL;
    r.rev = rev;
    r.removed_rev = removed_rev;
    r.now = now;
    r.commits = PyList_New(0);
    if (r.commits == NULL)
        return NULL;
    int well = 1;
    Py_ssize_t count = PyList_Size(bodies);
    for (taken = first; taken < count; taken++)
        if ((well = take(self, &r, PyList_GetItem(bodies, taken))) <= 0)
            break;
    if (well < 0)
        Py_FatalError("zkv: out of memory behind a commit"); /* as in `do_put` */
    PyObject *replaced = r.replaced == NULL ? Py_NewRef(Py_None) : (PyObject *)r.replaced;
    return Py_BuildValue("(nLLNnnN)", taken - first, (long long)r.newest, (long long)r.rev,
                         r.commits, (Py_ssize_t)r.changes, (Py_ssize_t)r.bytes, replaced);
}

static PyObject *lane_new(PyTypeObject *type, PyObject *arguments, PyObject *keywords)
{
    static const char *const names[OPS] = {"", "GET", "PUT", "MGET", "MPUT"};
    PyObject *table, *commit_type, *add_key, *forget_deadline, *tell_watchers, *watchers;
    PyObject *may_run, *remember;
    Py_ssize_t max_key, max_value, max_batch, max_reply, shallow;
    int durable;
    if (!PyArg_ParseTuple(arguments, "OOnnnnnpOOOOOO", &table, &commit_type, &max_key, &max_value,
                          &max_batch, &max_reply, &shallow, &durable, &add_key, &forget_deadline,
                          &tell_watchers, &watchers, &may_run, &remember))
        return NULL;
    Lane *self = (Lane *)PyType_GenericAlloc(type, 0);
    if (self == NULL)
        return NULL;
    self->table = (Table *)Py_NewRef(table);
    self->commit_type = Py_NewRef(commit_type);
    self->max_key = max_key;
    self->max_value = max_value;
    self->max_batch = max_batch;
    self->max_reply = max_reply;
    self->shallow = shallow;
    self->durable = durable;
    self->add_key = Py_NewRef(add_key);
    self->forget_deadline = Py_NewRef(forget_deadline);
    self->tell_watchers = Py_NewRef(tell_watchers);
    self->watchers = Py_NewRef(watchers);
    self->may_run = Py_NewRef(may_run);
    self->remember = Py_NewRef(remember);
    for (int op = 0; op < OPS; op++)
        if ((self->names[op] = PyUnicode_InternFromString(names[op])) == NULL) {
            Py_DECREF(self);
            return NULL;
        }
    return (PyObject *)self;
}

static void lane_dealloc(Lane *self)
{
    PyTypeObject *type = Py_TYPE((PyObject *)self);
    free(self->items);
    for (int op = 0; op < OPS; op++)
        Py_XDECREF(self->names[op]);
    Py_XDECREF(self->add_key);
    Py_XDECREF(self->forget_deadline);
    Py_XDECREF(self->tell_watchers);
    Py_XDECREF(self->watchers);
    Py_XDECREF(self->may_run);
    Py_XDECREF(self->remember);
    Py_XDECREF(self->commit_type);
    Py_XDECREF((PyObject *)self->table);
    PyObject_Free(self);
    Py_DECREF(type);
}

static PyMethodDef lane_methods[] = {
    {"run", (PyCFunction)lane_run, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot lane_slots[] = {
    {Py_tp_new, lane_new},
    {Py_tp_dealloc, lane_dealloc},
    {Py_tp_methods, lane_methods},
    {0, NULL},
};

PyType_Spec lane_spec = {
    .name = "zkv.compiled._store.Lane",
    .basicsize = sizeof(Lane),
    .flags = Py_TPFLAGS_DEFAULT,
    .slots = lane_slots,
};
