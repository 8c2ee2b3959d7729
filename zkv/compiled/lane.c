/* The lane: simple requests about entries, from the request's body to the reply's.
 *
 * Strategy: a body is read once (request.c), applied to the table at once, and answered
 * (reply.c). Anything unusual (a further field, an absent key, a limit, a wrong type, text
 * packed as bin, a value that nests too deeply) is not an error here: the request is left to
 * Python, which specifies the behaviour, and the table is as it was before.
 *
 * Invariants: Python's lock and the keyspace's are held throughout; long.c says where the lane of a
 * worker does without the first, and that of the front without the second. A request runs as a
 * whole or not at all: if it cannot be completed, the changes that it has made are undone. */

#include "writes.h"

#include <stdlib.h>
#include <string.h>

enum { NEAR_ENTRIES = 1 << 11 }; /* a table of so many may well be in the nearest caches */
enum { SMALL_BODY = 512, MOST_AHEAD = 64 }; /* bytes; requests */
enum { NEAR = 16, FAR = 32 }; /* steps ahead whose records, and whose buckets, are prefetched */
enum { HOOK_STEPS = 8 }; /* A call of Python takes as long as so many steps. */
enum { STATES = 8 }; /* arguments by name of `lane_run` */
enum { RELEASED_AT_ONCE = 16 }; /* records, by each run, of those that a long run has replaced */

/* The parts of an exactly-once request to remember; `session` is NULL if it is not one. */
typedef struct {
    PyObject *session, *digest, *reply;
    span name; /* of the session, with its scope */
    size_t reply_size;
    uint64_t seq;
    ClientSession *next; /* if it is the usual next request of this session */
} once;

static const span no_reply;

/* --- Reads. They return a reply; `no_reply` if the request is left to Python ------------------ */

static int is_live(const run *r, const record *found)
{
    return found != NULL && (!found->expiring || record_expires(found) > r->now);
}

static record *find(const Lane *self, const run *r, const step *of)
{
    record *found = table_use(self->table, of->hash, of->key.at, of->key.size);
    return r->past == NULL ? found : past_of(r, found);
}

static void reveal(run *r, int64_t *reveals, int64_t rev)
{
    if (rev > *reveals)
        *reveals = rev;
    if (rev > r->newest)
        r->newest = rev;
}

static span do_get(Lane *self, run *r, const request *from, int64_t *reveals)
{
    record *found = find(self, r, from->steps.at);
    if (!is_live(r, found))
        return no_reply;
    from->steps.at->there = found;
    reveal(r, reveals, found->rev);
    return to_reply(self, r, from, 0);
}

/* Prefetch what later steps need: in a large table each would wait for memory of its own. */
static void fetch_steps(const Lane *self, const step_list *steps, size_t at)
{
    if (self->table->count <= NEAR_ENTRIES)
        return;
    for (size_t i = 0; at == 0 && i < NEAR && i < steps->count; i++)
        table_fetch(self->table, steps->at[i].hash);
    if (at + FAR < steps->count)
        __builtin_prefetch(table_bucket(self->table, steps->at[at + FAR].hash));
    if (at + NEAR < steps->count)
        table_fetch(self->table, steps->at[at + NEAR].hash);
}

static span do_mget(Lane *self, run *r, const request *from, int64_t *reveals)
{
    size_t values = 0;
    int64_t newest = 0;
    for (size_t i = 0; i < from->steps.count; i++) {
        fetch_steps(self, &from->steps, i);
        record *found = find(self, r, &from->steps.at[i]);
        int live = is_live(r, found);
        int64_t rev = found == NULL ? 0 : found->rev;
        /* The absence of an expired entry depends on the write that set its expiry. */
        if (!live && rev < r->removed_rev)
            rev = r->removed_rev;
        newest = newest > rev ? newest : rev;
        values += live ? found->value_size : 1;
        from->steps.at[i].there = live ? found : NULL;
        pace(self, 1);
    }
    if (values > (size_t)self->max_reply)
        return no_reply;
    reveal(r, reveals, newest);
    return to_reply(self, r, from, 0);
}

/* --- Staging: changes are made in the table, and what they replace is kept -------------------- */

/* Put a record into the table; `replaced` has the capacity. NULL if there is no memory. */
static record *stage(Lane *self, run *r, const step *of, span value, int64_t expires)
{
    int64_t rev = r->rev + 1 + (int64_t)(r->replaced->count - r->first); /* See `rev_of`. */
    record *now = record_new(of->key.at, of->key.size, value.at, value.size, rev, expires);
    record *before;
    if (now == NULL || !table_put(self->table, of->hash, now, &before))
        return record_release(now), NULL;
    now->refs++; /* One for the table, one for `replaced`. */
    r->replaced->pairs[r->replaced->count++] = (replacement){now, before};
    return now;
}

/* Add the int in an entry to `sum`. 0 if it is not an int, or the sum overflows. */
static int add_to(const record *found, int64_t *sum)
{
    reader r = {record_value(found), record_value(found) + found->value_size};
    int64_t number;
    return read_int(&r, &number) && !__builtin_add_overflow(number, *sum, sum);
}

/* Stage an INCR, which keeps the expiry. NULL if it is left to Python. */
static record *increment(Lane *self, run *r, const step *of)
{
    unsigned char value[MOST_HEAD];
    int64_t sum = of->number;
    const record *found = find(self, r, of);
    int live = is_live(r, found);
    if (live && !add_to(found, &sum))
        return NULL;
    size_t size = (size_t)(write_int(value, sum) - value);
    return stage(self, r, of, (span){value, size}, live ? record_expires(found) : 0);
}

/* 1 if it replaced a record that this same request had staged. */
static int was_own(const run *r, const replacement *pair)
{
    return pair->before != NULL && pair->before->rev > r->rev;
}

static int holds(const Lane *self, const run *r, const step *condition)
{
    const record *found = find(self, r, condition);
    return condition->number == (is_live(r, found) ? found->rev : 0);
}

/* Stage an op of a TXN, which sees the ops before it. 0 if the request is left to Python. */
static int stage_step(Lane *self, run *r, step *of)
{
    switch (of->op) {
    case GET:
        of->there = find(self, r, of);
        if (!is_live(r, of->there))
            of->there = NULL;
        return 1;
    case INCR:
        return (of->there = increment(self, r, of)) != NULL;
    default:
        return (of->there = stage(self, r, of, of->value, 0)) != NULL;
    }
}

/* Stage the items of an MPUT; 0 if there is no memory. A key that occurs again keeps the place
 * of its first item and gets the value of its last, as in a dict. To find the first takes no
 * search: see `rev_of`. */
static int stage_items(Lane *self, run *r, request *from)
{
    step_list *items = &from->steps;
    replacement *pairs = r->replaced->pairs + r->first;
    size_t kept = 0;
    for (size_t i = 0; i < items->count; i++) {
        step *each = &items->at[i];
        fetch_steps(self, items, i);
        record *now = each->there = stage(self, r, each, each->value, 0);
        if (now == NULL)
            return 0;
        record *before = pairs[kept].before;
        if (was_own(r, &pairs[kept])) {
            size_t place = (size_t)(before->rev - r->rev - 1);
            now->rev = before->rev;
            record_release(before); /* The table's reference, and that of `replaced`. */
            record_release(before);
            pairs[place].now = now;
            items->at[place] = *each;
            r->replaced->count--;
        } else {
            items->at[kept++] = *each;
        }
        pace(self, 1);
    }
    items->count = kept;
    return 1;
}

/* Check the conditions and stage all steps. 0 if the request is left to Python. */
static int stage_all(Lane *self, run *r, request *from)
{
    size_t read = 0; /* bytes of values */
    if (from->op == MPUT)
        return stage_items(self, r, from);
    for (size_t i = 0; i < from->conditions.count; i++, pace(self, 1))
        if (!holds(self, r, &from->conditions.at[i]))
            return 0;
    for (size_t i = 0; i < from->steps.count; i++, pace(self, 1)) {
        step *each = &from->steps.at[i];
        if (from->op == TXN)
            fetch_steps(self, &from->steps, i);
        if (!stage_step(self, r, each))
            return 0;
        if (each->op == GET)
            read += each->there == NULL ? 1 : each->there->value_size;
    }
    return read <= (size_t)self->max_reply;
}

static void undo(Lane *self, run *r)
{
    Replaced *replaced = r->replaced;
    while (replaced->count > r->first) {
        replacement pair = replaced->pairs[--replaced->count];
        record *now = pair.now;
        uint32_t hash = table_hash(self->table, now->bytes, now->key_size);
        if (pair.before == NULL)
            table_remove(self->table, hash, now->bytes, now->key_size);
        else
            table_put(self->table, hash, pair.before, &now); /* Its key is there. */
        record_release(now); /* The table's reference, and that of `replaced`. */
        record_release(now);
        pace(self, 1);
    }
}

/* --- Quotas, and the memory limit: zkv/keyspace/room.py --------------------------------------- */

/* 1 if all that the run has written so far, with what the request has staged, is certainly within
 * the memory limit. Otherwise Python may shorten the history, and knows what may go on. */
static int has_memory(const run *r, const Table *table)
{
    if (r->room == UNLIMITED)
        return 1;
    int64_t commits = r->payloads == NULL ? 0 : (int64_t)PyList_Size(r->payloads);
    int64_t more = table_bytes(table) - r->before;
    return more + (int64_t)r->bytes + commits * COMMIT_BYTES <= r->room;
}

static int64_t counted_bytes(const record *of)
{
    return of == NULL ? 0 : (int64_t)of->key_size + of->value_size;
}

/* 1 if what the request has staged adds to the bytes that there were. */
static int grows(const run *r)
{
    int64_t growth = 0;
    for (size_t i = r->first; i < r->replaced->count; i++)
        growth += counted_bytes(r->replaced->pairs[i].now) -
                  counted_bytes(r->replaced->pairs[i].before);
    return growth > 0;
}

/* 1 if what the request has staged is within the user's quota, or adds nothing. All of it counts,
 * since a user writes only what the quota is for. */
static int has_room(const Lane *self, const run *r, const request *from)
{
    int64_t most = from->user == NULL ? 0 : quota_of(from->user);
    return most == 0 || bytes_held(from->user, self->table) <= most || !grows(r);
}

/* --- Other parts of the keyspace that follow writes ------------------------------------------- */

static PyObject *to_str(const span *key)
{
    return PyUnicode_FromStringAndSize((const char *)key->at, (Py_ssize_t)key->size);
}

/* Call a hook and release the arguments, which may be NULL. 0 if it raised: the exception is
 * dropped, since the request is left to Python, which will meet it again and report it. */
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

/* Call the hooks for what the request has replaced: the watchers, and the deadlines that no longer
 * apply. They see no state from within a TXN. */
static int call_hooks(Lane *self, run *r)
{
    int watched = PyList_Size(self->watchers) > 0;
    for (size_t i = r->first; i < r->replaced->count; i++) {
        const replacement *pair = &r->replaced->pairs[i];
        span key = {pair->now->bytes, pair->now->key_size};
        int calls = watched || (pair->before != NULL && pair->before->expiring);
        if (watched && !was_own(r, pair) &&
            !call(self->notify_watchers, to_str(&key), record_entry(self->table, pair->before)))
            return 0;
        if (pair->before != NULL && pair->before->expiring && !pair->now->expiring &&
            !call(self->forget_deadline, PyLong_FromLongLong(record_expires(pair->before)),
                  to_str(&key)))
            return 0;
        pace(self, calls ? HOOK_STEPS : 0);
    }
    return 1;
}

/* --- Exactly-once requests -------------------------------------------------------------------- */

static PyObject *digest_bytes(uint64_t digest)
{
    char bytes[8];
    for (int i = 0; i < 8; i++)
        bytes[i] = (char)(digest >> 8 * i);
    return PyBytes_FromStringAndSize(bytes, sizeof bytes);
}

static Sessions *sessions_of(const Lane *self)
{
    return (Sessions *)self->keyspace->objects[OF_SESSIONS];
}

/* 1 if the request is certainly new to its session; otherwise it is left to Python. */
static int is_new(const Lane *self, const run *r, once *o)
{
    o->next = sessions_next(sessions_of(self), o->session, o->seq, o->reply_size, r->now);
    if (o->next != NULL)
        return 1;
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
    reply_of what = {o->digest, o->reply, r->rev + 1, r->lsn + 1, r->now};
    if (o->next != NULL)
        return sessions_remember(sessions_of(self), o->next, o->session, &what,
                                 self->keyspace->objects[OF_REMEMBERED]);
    PyObject *done = PyObject_CallFunction(self->remember, "OKOOLLL", o->session,
                                           (unsigned long long)o->seq, o->digest, o->reply,
                                           (long long)r->rev + 1, (long long)r->lsn + 1,
                                           (long long)r->now);
    Py_XDECREF(done);
    PyErr_Clear();
    return done != NULL;
}

static void release_once(once *o)
{
    Py_CLEAR(o->session);
    Py_CLEAR(o->digest);
    Py_CLEAR(o->reply);
}

static PyObject *remembered_reply(const Lane *self, const run *r, const request *from)
{
    span reply = to_reply(self, r, from, 1);
    if (reply.at == NULL)
        return NULL;
    PyObject *bytes = PyBytes_FromStringAndSize((const char *)reply.at, (Py_ssize_t)reply.size);
    batch_drop_reply(r->batch, (unsigned char *)reply.at);
    return bytes;
}

/* The name under which a session is kept. NULL, with an exception, if there is no memory. */
static PyObject *to_session(const request *from)
{
    PyObject *name = to_str(&from->session), *scoped;
    if (from->user == NULL || name == NULL)
        return name;
    scoped = PyUnicode_Concat(scope_of(from->user), name);
    Py_DECREF(name);
    return scoped;
}

/* The bytes of a str, which stay there as long as it does. `at` is NULL if there are none. */
static span to_text(PyObject *str)
{
    Py_ssize_t size = 0;
    const char *at = str == NULL ? NULL : PyUnicode_AsUTF8AndSize(str, &size);
    return (span){(const unsigned char *)at, (size_t)size};
}

/* Prepare what is remembered of an exactly-once request. 0 if the request is left to Python. */
static int begin_once(const Lane *self, const run *r, const request *from, once *o)
{
    PyThreadState *left = leave_python(self);
    uint64_t digest = to_digest(from);
    return_to_python(left);
    o->seq = from->seq;
    o->session = to_session(from);
    o->name = to_text(o->session);
    o->digest = digest_bytes(digest);
    o->reply = remembered_reply(self, r, from);
    o->reply_size = o->reply == NULL ? 0 : (size_t)PyBytes_Size(o->reply);
    return o->name.at != NULL && o->digest != NULL && o->reply != NULL &&
           o->reply_size <= MAX_REMEMBERED_REPLY && is_new(self, r, o);
}

/* --- The commit: zkv/keyspace/change.py ------------------------------------------------------- */

static unsigned char *write_once(unsigned char *to, const once *o)
{
    to = write_bytes(write_text_head(to, o->name.size), o->name.at, o->name.size);
    to = write_bin_head(write_uint(to, o->seq), 8);
    to = write_bytes(to, PyBytes_AsString(o->digest), 8);
    to = write_bin_head(to, o->reply_size);
    return write_bytes(to, PyBytes_AsString(o->reply), o->reply_size);
}

static unsigned char *write_wide(unsigned char *to, uint64_t number)
{
    *to++ = 0xcf;
    return write_fixed(to, number, 8);
}

static unsigned char *write_change(unsigned char *to, const record *now)
{
    to = write_text_head(write_bytes(to, "\x94\xa3PUT", 5), now->key_size);
    to = write_bytes(to, now->bytes, now->key_size + now->value_size);
    return now->expiring ? write_uint(to, (uint64_t)record_expires(now)) : (*to = 0xc0, to + 1);
}

/* The exact size of a payload: a large one is packed in its place, and not copied. */
static size_t payload_size(const run *r, const once *o)
{
    unsigned char head[MOST_HEAD];
    size_t size = 1 + 3 * 9; /* the array, three wide numbers */
    size += (size_t)(write_array_head(head, r->replaced->count - r->first) - head);
    for (size_t i = r->first; i < r->replaced->count; i++) {
        const record *now = r->replaced->pairs[i].now;
        size += 5 + (size_t)(write_text_head(head, now->key_size) - head);
        size += (size_t)now->key_size + now->value_size;
        if (now->expiring)
            size += (size_t)(write_uint(head, (uint64_t)record_expires(now)) - head);
        else
            size++;
    }
    if (o->session == NULL)
        return size;
    size_t reply = (size_t)PyBytes_Size(o->reply);
    size += (size_t)(write_text_head(head, o->name.size) - head) + o->name.size;
    size += (size_t)(write_uint(head, o->seq) - head) + 2 + 8;
    return size + (size_t)(write_bin_head(head, reply) - head) + reply;
}

/* Pack all but the exactly-once request. */
static unsigned char *write_changes(unsigned char *to, const run *r, const once *o)
{
    *to++ = o->session == NULL ? 0x94 : 0x98;
    to = write_wide(write_wide(to, (uint64_t)r->rev + 1), (uint64_t)r->now);
    to = write_wide(to, (uint64_t)r->lsn + 1);
    to = write_array_head(to, r->replaced->count - r->first);
    for (size_t i = r->first; i < r->replaced->count; i++)
        to = write_change(to, r->replaced->pairs[i].now);
    return to;
}

/* Pack a commit of what the request has staged. NULL if there is no memory, or if it would exceed
 * the largest commit. */
static PyObject *to_payload(const Lane *self, const run *r, const once *o)
{
    PyThreadState *left = leave_python(self);
    size_t size = payload_size(r, o);
    return_to_python(left);
    PyObject *payload =
        size > UINT32_MAX ? NULL : PyBytes_FromStringAndSize(NULL, (Py_ssize_t)size);
    if (payload == NULL)
        return NULL;
    unsigned char *to = (unsigned char *)PyBytes_AsString(payload);
    left = leave_python(self);
    to = write_changes(to, r, o);
    return_to_python(left);
    if (o->session != NULL)
        write_once(to, o);
    return payload;
}

/* Commit what the request has staged. Returns a reply; `no_reply` if it must be undone. */
static span commit(Lane *self, run *r, const request *from)
{
    once o = {0};
    size_t changes = r->replaced->count - r->first;
    PyObject *payload = NULL;
    span reply = no_reply;
    /* Steps that may fail come first, and those that cannot be undone last. */
    if ((!is_once(from) || begin_once(self, r, from, &o)) &&
        (reply = to_reply(self, r, from, 0)).at != NULL &&
        (payload = to_payload(self, r, &o)) != NULL &&
        (!is_once(from) || remember(self, r, &o))) {
        /* Half a commit cannot be undone, but no reply has revealed it: a restart recovers. */
        if (PyList_Append(r->payloads, payload) < 0 || !call_hooks(self, r))
            Py_FatalError("zkv: out of memory in the middle of a commit");
        pace(self, self->slice); /* The rest is the last slice. */
        for (size_t i = r->first; i < r->replaced->count; i++)
            r->replaced->pairs[i].now->rev = r->rev + 1;
        r->rev++;
        r->lsn++;
        r->changes += changes;
        r->bytes += (size_t)PyBytes_Size(payload);
    } else if (reply.at != NULL) {
        batch_drop_reply(r->batch, (unsigned char *)reply.at);
        reply = no_reply;
    }
    Py_XDECREF(payload);
    release_once(&o);
    return reply;
}

/* --- Requests. They return a reply; `no_reply` if the request is left to Python --------------- */

/* Answer a TXN that only reads. Its reply has `durable`, which is certain only if safe means on
 * disk. An exactly-once one must be remembered without a commit, which is left to Python. */
static span do_reads(Lane *self, run *r, const request *from)
{
    return self->durable && !is_once(from) ? to_reply(self, r, from, 0) : no_reply;
}

/* Make what a run needs to write. 0 if there is no memory. */
static int begin_writes(const Lane *self, run *r)
{
    if (r->replaced == NULL && (r->replaced = replaced_new(self->table)) == NULL)
        return 0;
    return r->payloads != NULL || (r->payloads = PyList_New(0)) != NULL;
}

static span do_write(Lane *self, run *r, request *from, int64_t *reveals)
{
    if (!r->takes_writes || !begin_writes(self, r) ||
        !replaced_reserve(r->replaced, from->steps.count))
        return no_reply;
    r->first = r->replaced->count;
    r->replaced->of_long_run = self->rest != NULL;
    span reply = no_reply;
    if (stage_all(self, r, from) && has_room(self, r, from) && has_memory(r, self->table))
        reply = r->replaced->count > r->first ? commit(self, r, from) : do_reads(self, r, from);
    if (reply.at == NULL)
        undo(self, r);
    else
        reveal(r, reveals, r->rev);
    return reply;
}

static span do_request(Lane *self, run *r, request *from, int64_t *reveals)
{
    if (r->aside && !look_aside(self, r))
        return no_reply;
    switch (from->op) {
    case GET:
        return do_get(self, r, from, reveals);
    case MGET:
        return do_mget(self, r, from, reveals);
    default:
        return do_write(self, r, from, reveals);
    }
}

/* --- A run ------------------------------------------------------------------------------------ */

/* Make the subject of a request for the request log. NULL if there is no memory for it. */
static PyObject *to_subject(const request *from)
{
    int single = from->steps.at == &from->one;
    PyObject *subject = single ? to_str(&from->one.key) : PyLong_FromSize_t(from->steps.count);
    if (subject == NULL)
        PyErr_Clear();
    return subject;
}

/* Read a body of at most `most` bytes. 0 if it is not a request for the lane. */
static int read_body(Lane *self, const item *of, size_t most, request *to)
{
    return of->body != NULL && of->size <= most && read_request(self, of->body, of->size, to);
}

/* Prefetch the entries of a run, if the table is large. Reading small requests twice takes less
 * time than waiting for the entries one after the other: with 4,000,000 entries, each of 64 GETs
 * takes 0.5 us instead of 1.2. */
static void fetch_ahead(Lane *self, const run *r, size_t first, size_t end)
{
    uint32_t hashes[MOST_AHEAD];
    size_t ahead = 0;
    request from;
    if (self->table->count <= NEAR_ENTRIES || end - first < 2)
        return;
    if (end - first > MOST_AHEAD)
        end = first + MOST_AHEAD;
    for (size_t i = first; i < end; i++)
        if (read_body(self, &r->batch->items[i], SMALL_BODY, &from) &&
            from.steps.at == &from.one)
            hashes[ahead++] = from.one.hash;
    for (size_t i = 0; i < ahead; i++)
        table_fetch(self->table, hashes[i]);
}

/* 1 if a user may do all of what a request asks for; see zkv/requests/permission.py. */
static int is_permitted(const Prefixes *user, const request *from)
{
    for (size_t i = 0; i < from->conditions.count; i++)
        if (!may_read(user, from->conditions.at[i].key))
            return 0;
    for (size_t i = 0; i < from->steps.count; i++) {
        const step *each = &from->steps.at[i];
        if (each->op == GET ? !may_read(user, each->key) : !may_write(user, each->key))
            return 0;
    }
    return 1;
}

/* Note what the slow log tells of a request with many keys: to read it again would take long. */
static void note(item *of, const request *from)
{
    if (from->steps.at == &from->one)
        return;
    of->keys = from->steps.count;
    if (from->trace.at != NULL) {
        of->trace_at = (size_t)(from->trace.at - of->body);
        of->trace_size = from->trace.size;
    }
}

/* Run the request at a place. 0 if it is left to Python. */
static int take(Lane *self, run *r, size_t place)
{
    item *of = &r->batch->items[place];
    request own, *from = &own;
    int64_t reveals = 0;
    if (of->overload != NULL)
        return 0;
    if (self->body != NULL && of->body == self->body)
        from = &self->ahead;
    else if (!read_body(self, of, (size_t)self->max_body, &own))
        return 0;
    from->user = NULL;
    if (of->user != NULL) {
        const Prefixes *user = (const Prefixes *)of->user;
        if (!PyObject_TypeCheck(of->user, prefixes_type) || !is_permitted(user, from))
            return 0;
        from->user = user;
        /* It would look like the end of a scope: Python refuses it. */
        if (is_once(from) && memchr(from->session.at, 0, from->session.size) != NULL)
            return 0;
    }
    span reply = do_request(self, r, from, &reveals);
    if (reply.at == NULL)
        return PyErr_Clear(), 0;
    batch_answer(r->batch, place, reply, from->op, reveals);
    note(of, from);
    of->timed = from->timing;
    r->batch->timed |= from->timing;
    if (r->logs) {
        of->subject = to_subject(from);
        of->trace = from->trace.at == NULL ? NULL : to_str(&from->trace);
        PyErr_Clear();
    }
    return 1;
}

/* The fields of zkv.compiled._store.Run, in their order: the result of Lane.run. */
enum { LEFT, NEWEST, REV, PAYLOADS, CHANGES, BYTES, REPLACED, END, RUN_FIELDS };

static PyStructSequence_Field run_fields[] = {
    [LEFT] = {"left", "list of the places of the requests that have not been answered"},
    [NEWEST] = {"newest", "newest revision that a reply reveals"},
    [REV] = {"rev", "revision of the store after the run"},
    [PAYLOADS] = {"payloads", "list of packed commits, in order"},
    [CHANGES] = {"changes", "number of changes in the commits"},
    [BYTES] = {"bytes", "size of the commits' payloads"},
    [REPLACED] = {"replaced", "undo information; None if the run wrote nothing"},
    [END] = {"end", "place before which it has ended: the requests from there on are still to run"},
    [RUN_FIELDS] = {NULL, NULL},
};

static PyStructSequence_Desc run_description = {
    .name = "zkv.compiled._store.Run",
    .fields = run_fields,
    .n_in_sequence = RUN_FIELDS,
};

PyTypeObject *run_type, *lane_type;

PyTypeObject *new_run_type(void) { return PyStructSequence_NewType(&run_description); }

/* Move the results of a run into a Run, once. There must be memory, as in `commit`. */
PyObject *run_result(const run *r)
{
    PyObject *result = PyStructSequence_New(run_type);
    PyObject *fields[RUN_FIELDS] = {
        [LEFT] = r->left == NULL ? PyList_New(0) : r->left,
        [NEWEST] = PyLong_FromLongLong(r->newest),
        [REV] = PyLong_FromLongLong(r->rev),
        [PAYLOADS] = r->payloads == NULL ? PyList_New(0) : r->payloads,
        [CHANGES] = PyLong_FromSize_t(r->changes),
        [BYTES] = PyLong_FromSize_t(r->bytes),
        [REPLACED] = r->replaced == NULL ? Py_NewRef(Py_None) : (PyObject *)r->replaced,
        [END] = PyLong_FromSize_t(r->end),
    };
    int complete = result != NULL;
    for (int field = 0; field < RUN_FIELDS; field++) {
        complete = complete && fields[field] != NULL;
        if (result != NULL)
            PyStructSequence_SetItem(result, field, fields[field]); /* takes the reference */
        else
            Py_XDECREF(fields[field]);
    }
    if (!complete)
        Py_FatalError("zkv: out of memory after a commit");
    return result;
}

void run_drop(run *r)
{
    Py_XDECREF(r->left);
    Py_XDECREF(r->payloads);
    Py_XDECREF((PyObject *)r->replaced);
}

/* Leave a request to Python. 0, with an exception, if there is no memory. */
static int leave(run *r, size_t place)
{
    if (r->left == NULL && (r->left = PyList_New(0)) == NULL)
        return 0;
    return list_append(r->left, PyLong_FromSize_t(place));
}

/* Run the requests from `first` on and before `end`, until there are enough bytes of replies. 0, with
 * an exception, if there is no memory; then nothing was written. */
static int run_batch(Lane *self, run *r, size_t first, size_t end)
{
    int well = 1;
    size_t i = first;
    for (; well && i < end && r->batch->replied < (size_t)self->enough; i++) {
        if ((i - first) % MOST_AHEAD == 0)
            fetch_ahead(self, r, i, end);
        if (!take(self, r, i))
            well = leave(r, i);
    }
    r->end = i;
    if (!well && r->changes > 0)
        Py_FatalError("zkv: out of memory after a commit"); /* as in `commit` */
    if (!well)
        run_drop(r);
    return well;
}

int run_requests(Lane *self, run *r, size_t first, size_t end)
{
    self->table->time++;
    r->before = table_bytes(self->table);
    if (self->rest != NULL)
        self->table->long_run = r;
    int well = run_batch(self, r, first, end);
    if (self->rest != NULL)
        self->table->long_run = NULL;
    release_dropped(self->table, RELEASED_AT_ONCE);
    self->body = NULL;
    return well;
}

/* Read one keyword argument of `lane_run`. 0, with an exception, if it has none of that name. `at`:
 * its place. They come in the order below, so the first comparison is usually the last. */
static int read_state(run *r, size_t at, PyObject *name, PyObject *value)
{
    static const char *const names[] = {"rev",  "lsn",          "removed_rev", "now",
                                        "room", "takes_writes", "aside",       "logs"};
    int64_t *const fields[] = {&r->rev,  &r->lsn,          &r->removed_rev, &r->now,
                               &r->room, &r->takes_writes, &r->aside,       &r->logs};
    for (size_t i = 0; i < STATES; i++, at = (at + 1) % STATES)
        if (PyUnicode_CompareWithASCIIString(name, names[at]) == 0) {
            *fields[at] = PyLong_AsLongLong(value);
            return !PyErr_Occurred();
        }
    return PyErr_Format(PyExc_TypeError, "run() has no argument %R", name), 0;
}

/* run(batch, first, end, *, rev, lsn, removed_rev, now, room, takes_writes, aside, logs) -> Run:
 * see _store.pyi. The arguments are read here: PyArg_ParseTupleAndKeywords takes as long as half of a
 * GET. */
static PyObject *lane_run(Lane *self, PyObject *const *arguments, Py_ssize_t count, PyObject *names)
{
    run r = {0};
    if (count != 3 || names == NULL || PyTuple_Size(names) != STATES ||
        !PyObject_TypeCheck(arguments[0], batch_type))
        return PyErr_Format(PyExc_TypeError, "run() takes a batch, two places, and 8 by name");
    r.batch = (Batch *)arguments[0];
    size_t first = PyLong_AsSize_t(arguments[1]), end = PyLong_AsSize_t(arguments[2]);
    if (first > end || end > r.batch->count)
        return PyErr_Format(PyExc_IndexError, "there are %zd requests", (Py_ssize_t)r.batch->count);
    for (Py_ssize_t i = 0; i < STATES; i++)
        if (!read_state(&r, (size_t)i, PyTuple_GetItem(names, i), arguments[count + i]))
            return NULL;
    return run_requests(self, &r, first, end) ? run_result(&r) : NULL;
}

static PyObject *lane_new(PyTypeObject *type, PyObject *arguments, PyObject *keywords)
{
    static char *names[] = {
        "table", "keyspace", "max_key_bytes", "max_value_bytes", "max_batch", "max_reply_bytes",
        "max_levels", "max_body_bytes", "enough_bytes", "durable", "rest", "slice_steps",
        "forget_deadline", "notify_watchers", "watchers", "may_run", "remember", NULL};
    PyObject *table, *keyspace, *rest;
    PyObject *forget_deadline, *notify_watchers, *watchers, *may_run, *remember;
    Py_ssize_t max_key, max_value, max_batch, max_reply, max_levels, max_body, enough, slice;
    int durable;
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "OO!nnnnnnnpOnOOOOO", names, &table,
                                     keyspace_type, &keyspace, &max_key, &max_value,
                                     &max_batch, &max_reply, &max_levels, &max_body,
                                     &enough, &durable, &rest, &slice,
                                     &forget_deadline, &notify_watchers, &watchers, &may_run,
                                     &remember))
        return NULL;
    PyObject *sessions = ((Keyspace *)keyspace)->objects[OF_SESSIONS];
    if (sessions == NULL || !PyObject_TypeCheck(sessions, sessions_type))
        return PyErr_Format(PyExc_TypeError, "the keyspace's sessions are none in C");
    Lane *self = (Lane *)PyType_GenericAlloc(type, 0);
    if (self == NULL)
        return NULL;
    self->table = (Table *)Py_NewRef(table);
    self->keyspace = (Keyspace *)Py_NewRef(keyspace);
    self->max_key = max_key;
    self->max_value = max_value;
    self->max_batch = max_batch;
    self->max_reply = max_reply;
    self->max_levels = max_levels;
    self->max_body = max_body;
    self->enough = enough;
    self->durable = durable;
    self->rest = rest == Py_None ? NULL : Py_NewRef(rest);
    self->slice = slice;
    self->forget_deadline = Py_NewRef(forget_deadline);
    self->notify_watchers = Py_NewRef(notify_watchers);
    self->watchers = Py_NewRef(watchers);
    self->may_run = Py_NewRef(may_run);
    self->remember = Py_NewRef(remember);
    /* From now on new keys enter the index one by one: no client waits until all are sorted. */
    if (!index_build(self->table) && PyErr_NoMemory() == NULL)
        Py_CLEAR(self);
    return (PyObject *)self;
}

/* The hooks lead back to the lane: they are methods of the keyspace, which knows the server. */
static int lane_traverse(Lane *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE((PyObject *)self));
    Py_VISIT(self->rest);
    Py_VISIT(self->forget_deadline);
    Py_VISIT(self->notify_watchers);
    Py_VISIT(self->watchers);
    Py_VISIT(self->may_run);
    Py_VISIT(self->remember);
    Py_VISIT((PyObject *)self->keyspace);
    Py_VISIT((PyObject *)self->table);
    return 0;
}

static void lane_dealloc(Lane *self)
{
    PyTypeObject *type = Py_TYPE((PyObject *)self);
    PyObject_GC_UnTrack(self);
    free(self->steps.at);
    free(self->conditions.at);
    Py_XDECREF(self->rest);
    Py_XDECREF(self->forget_deadline);
    Py_XDECREF(self->notify_watchers);
    Py_XDECREF(self->watchers);
    Py_XDECREF(self->may_run);
    Py_XDECREF(self->remember);
    Py_XDECREF((PyObject *)self->keyspace);
    Py_XDECREF((PyObject *)self->table);
    PyObject_GC_Del(self);
    Py_DECREF(type);
}

static PyObject *lane_beside_long_run(Lane *self, void *unused)
{
    return PyBool_FromLong(self->table->long_run != NULL);
}

static PyGetSetDef lane_attributes[] = {
    {"beside_long_run", (getter)lane_beside_long_run, NULL, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyMethodDef lane_methods[] = {
    {"read", (PyCFunction)lane_read, METH_VARARGS, NULL},
    {"run", (PyCFunction)(void (*)(void))lane_run, METH_FASTCALL | METH_KEYWORDS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot lane_slots[] = {
    {Py_tp_new, lane_new},
    {Py_tp_traverse, lane_traverse},
    {Py_tp_dealloc, lane_dealloc},
    {Py_tp_methods, lane_methods},
    {Py_tp_getset, lane_attributes},
    {0, NULL},
};

PyType_Spec lane_spec = {
    .name = "zkv.compiled._store.Lane",
    .basicsize = sizeof(Lane),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
    .slots = lane_slots,
};
