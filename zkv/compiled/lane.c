/* The lane: simple requests about entries, from the request's body to the reply's.
 *
 * Strategy: a body is read once (request.c), applied to the table at once, and answered
 * (reply.c). Anything unusual (a further field, an absent key, a limit, a wrong type, text
 * packed as bin, a value that nests too deeply) is not an error here: the request is left to
 * Python, which specifies the behaviour, and the table is as it was before.
 *
 * Invariants: Python's lock and the keyspace's are held throughout. A request runs as a whole or
 * not at all: if it cannot be completed, the changes that it has made are undone. */

#include "lane.h"

#include <stdlib.h>

enum { LARGE_BODY = 1 << 20 }; /* bytes: Python releases its lock while it hashes so many */
enum { NEAR_ENTRIES = 1 << 16 }; /* a table of so many may well fit into the processor's caches */
enum { SMALL_BODY = 512, MOST_AHEAD = 64 }; /* bytes; requests */

/* The parts of an exactly-once request to remember; `session` is NULL if it is not one. */
typedef struct {
    PyObject *session, *digest, *reply;
    uint64_t seq;
} once;

/* --- Reads. They return a reply; NULL if the request is left to Python ------------------------ */

static int is_live(const run *r, const record *found)
{
    return found != NULL && (!found->expiring || record_expires(found) > r->now);
}

static record *find(const Lane *self, const step *of)
{
    return table_find(self->table, of->hash, of->key.at, of->key.size);
}

static void reveal(run *r, int64_t *reveals, int64_t rev)
{
    if (rev > *reveals)
        *reveals = rev;
    if (rev > r->newest)
        r->newest = rev;
}

static PyObject *do_get(Lane *self, run *r, const request *from, int64_t *reveals)
{
    record *found = find(self, from->steps.at);
    if (!is_live(r, found))
        return NULL;
    from->steps.at->there = found;
    reveal(r, reveals, found->rev);
    return to_reply(self, r, from, 0);
}

static PyObject *do_mget(Lane *self, run *r, const request *from, int64_t *reveals)
{
    size_t values = 0;
    int64_t newest = 0;
    for (size_t i = 0; i < from->steps.count; i++) {
        record *found = find(self, &from->steps.at[i]);
        int live = is_live(r, found);
        int64_t rev = found == NULL ? 0 : found->rev;
        /* The absence of an expired entry depends on the write that set its expiry. */
        if (!live && rev < r->removed_rev)
            rev = r->removed_rev;
        newest = newest > rev ? newest : rev;
        values += live ? found->value_size : 1;
        from->steps.at[i].there = live ? found : NULL;
    }
    if (values > (size_t)self->max_reply)
        return NULL;
    reveal(r, reveals, newest);
    return to_reply(self, r, from, 0);
}

/* --- Staging: changes are made in the table, and what they replace is kept -------------------- */

/* Put a record into the table; `replaced` has the capacity. NULL if there is no memory. */
static record *stage(Lane *self, run *r, const step *of, span value, int64_t expires)
{
    record *now = record_new(of->key.at, of->key.size, value.at, value.size, r->rev + 1, expires);
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
    const record *found = find(self, of);
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
    const record *found = find(self, condition);
    return condition->number == (is_live(r, found) ? found->rev : 0);
}

/* Stage an op of a TXN, which sees the ops before it. 0 if the request is left to Python. */
static int stage_step(Lane *self, run *r, step *of)
{
    switch (of->op) {
    case GET:
        of->there = find(self, of);
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
 * search: until all are staged, a record's revision encodes its place. */
static int stage_items(Lane *self, run *r, request *from)
{
    step_list *items = &from->steps;
    replacement *pairs = r->replaced->pairs + r->replaced->count;
    size_t kept = 0;
    for (size_t i = 0; i < items->count; i++) {
        step *each = &items->at[i];
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
            now->rev += (int64_t)kept;
            items->at[kept++] = *each;
        }
    }
    items->count = kept;
    for (size_t i = 0; i < kept; i++)
        pairs[i].now->rev = r->rev + 1;
    return 1;
}

/* Check the conditions and stage all steps. 0 if the request is left to Python. */
static int stage_all(Lane *self, run *r, request *from)
{
    size_t read = 0; /* bytes of values */
    /* Prefetch all together: in a large table each change would wait for memory of its own. */
    for (size_t i = 0; self->table->count > NEAR_ENTRIES && i < from->steps.count; i++)
        table_fetch(self->table, from->steps.at[i].hash);
    if (from->op == MPUT)
        return stage_items(self, r, from);
    for (size_t i = 0; i < from->conditions.count; i++)
        if (!holds(self, r, &from->conditions.at[i]))
            return 0;
    for (size_t i = 0; i < from->steps.count; i++) {
        step *each = &from->steps.at[i];
        if (!stage_step(self, r, each))
            return 0;
        if (each->op == GET)
            read += each->there == NULL ? 1 : each->there->value_size;
    }
    return read <= (size_t)self->max_reply;
}

static void undo(Lane *self, run *r, size_t first)
{
    Replaced *replaced = r->replaced;
    while (replaced->count > first) {
        replacement pair = replaced->pairs[--replaced->count];
        record *now = pair.now;
        uint32_t hash = table_hash(self->table, now->bytes, now->key_size);
        if (pair.before == NULL)
            table_remove(self->table, hash, now->bytes, now->key_size);
        else
            table_put(self->table, hash, pair.before, &now); /* Its key is there. */
        record_release(now); /* The table's reference, and that of `replaced`. */
        record_release(now);
    }
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

/* Call the hooks for what has been replaced since `first`: the watchers, and the deadlines that no
 * longer apply. They see no state from within a TXN. */
static int call_hooks(const Lane *self, const run *r, size_t first)
{
    int watched = PyList_Size(self->watchers) > 0;
    for (size_t i = first; i < r->replaced->count; i++) {
        const replacement *pair = &r->replaced->pairs[i];
        span key = {pair->now->bytes, pair->now->key_size};
        if (watched && !was_own(r, pair) &&
            !call(self->notify_watchers, to_str(&key), record_entry(self->table, pair->before)))
            return 0;
        if (pair->before != NULL && pair->before->expiring && !pair->now->expiring &&
            !call(self->forget_deadline, PyLong_FromLongLong(record_expires(pair->before)),
                  to_str(&key)))
            return 0;
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

/* 1 if the request is certainly new to its session; otherwise it is left to Python. */
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

static void release_once(once *o)
{
    Py_CLEAR(o->session);
    Py_CLEAR(o->digest);
    Py_CLEAR(o->reply);
}

/* Prepare what is remembered of an exactly-once request. 0 if the request is left to Python. */
static int begin_once(const Lane *self, const run *r, const request *from, once *o)
{
    o->seq = from->seq;
    o->session = to_str(&from->session);
    o->digest = digest_bytes(to_digest(from));
    o->reply = to_reply(self, r, from, 1);
    return o->session != NULL && o->digest != NULL && o->reply != NULL &&
           PyBytes_Size(o->reply) <= MAX_REMEMBERED_REPLY && is_new(self, r, o);
}

/* --- The commit: zkv/keyspace/change.py ------------------------------------------------------- */

static unsigned char *write_once(unsigned char *to, const request *from, const once *o)
{
    to = write_bytes(write_text_head(to, from->session.size), from->session.at, from->session.size);
    to = write_bin_head(write_uint(to, o->seq), 8);
    to = write_bytes(to, PyBytes_AsString(o->digest), 8);
    size_t size = (size_t)PyBytes_Size(o->reply);
    return write_bytes(write_bin_head(to, size), PyBytes_AsString(o->reply), size);
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

static size_t payload_size(const run *r, size_t first, const request *from, const once *o)
{
    size_t size = 4 * MOST_HEAD;
    if (o->session != NULL)
        size += from->session.size + 8 + (size_t)PyBytes_Size(o->reply) + 4 * MOST_HEAD;
    for (size_t i = first; i < r->replaced->count; i++) {
        const record *now = r->replaced->pairs[i].now;
        size += 5 + MOST_HEAD + now->key_size + now->value_size + MOST_HEAD;
    }
    return size;
}

/* Pack a commit of the changes staged since `first`. NULL if there is no memory, or if it might
 * exceed the largest commit. */
static PyObject *to_payload(const run *r, size_t first, const request *from, const once *o)
{
    size_t size = payload_size(r, first, from, o);
    draft d;
    unsigned char *to;
    if (size > UINT32_MAX || (to = draft_begin(&d, size)) == NULL)
        return NULL;
    *to++ = o->session == NULL ? 0x93 : 0x97;
    to = write_wide(write_wide(to, (uint64_t)r->rev + 1), (uint64_t)r->now);
    to = write_array_head(to, r->replaced->count - first);
    for (size_t i = first; i < r->replaced->count; i++)
        to = write_change(to, r->replaced->pairs[i].now);
    if (o->session != NULL)
        to = write_once(to, from, o);
    return draft_end(&d, to);
}

static PyObject *to_commit(const Lane *self, const run *r, size_t changes, PyObject *payload)
{
    PyObject *rev = PyLong_FromLongLong(r->rev + 1), *count = PyLong_FromSize_t(changes);
    PyObject *commit = NULL;
    if (rev != NULL && count != NULL)
        commit = PyObject_CallFunctionObjArgs(self->commit_type, rev, count, payload, NULL);
    Py_XDECREF(rev);
    Py_XDECREF(count);
    return commit;
}

/* Commit the changes staged since `first`. Returns a reply; NULL if they must be undone. */
static PyObject *commit(Lane *self, run *r, size_t first, const request *from)
{
    once o = {0};
    size_t changes = r->replaced->count - first;
    PyObject *reply = NULL, *payload = NULL, *commit = NULL;
    /* Steps that may fail come first, and those that cannot be undone last. */
    if ((!is_once(from) || begin_once(self, r, from, &o)) &&
        (reply = to_reply(self, r, from, 0)) != NULL &&
        (payload = to_payload(r, first, from, &o)) != NULL &&
        (commit = to_commit(self, r, changes, payload)) != NULL &&
        (!is_once(from) || remember(self, r, &o))) {
        /* Half a commit cannot be undone, but no reply has revealed it: a restart recovers. */
        if (PyList_Append(r->commits, commit) < 0 || !call_hooks(self, r, first))
            Py_FatalError("zkv: out of memory in the middle of a commit");
        r->rev++;
        r->changes += changes;
        r->bytes += (size_t)PyBytes_Size(payload);
    } else {
        Py_CLEAR(reply);
    }
    Py_XDECREF(commit);
    Py_XDECREF(payload);
    release_once(&o);
    return reply;
}

/* --- Requests. They return a reply; NULL if the request is left to Python --------------------- */

/* Answer a TXN that only reads. Its reply has `durable`, which is certain only if safe means on
 * disk. An exactly-once one must be remembered without a commit, which is left to Python. */
static PyObject *do_reads(Lane *self, run *r, const request *from)
{
    return self->durable && !is_once(from) ? to_reply(self, r, from, 0) : NULL;
}

static PyObject *do_write(Lane *self, run *r, request *from, int64_t *reveals)
{
    if (!r->takes_writes ||
        (r->replaced == NULL && (r->replaced = replaced_new(self->table)) == NULL) ||
        !replaced_reserve(r->replaced, from->steps.count))
        return NULL;
    size_t first = r->replaced->count;
    PyObject *reply = NULL;
    if (stage_all(self, r, from))
        reply = r->replaced->count > first ? commit(self, r, first, from) : do_reads(self, r, from);
    if (reply == NULL)
        undo(self, r, first);
    else
        reveal(r, reveals, r->rev);
    return reply;
}

static PyObject *do_request(Lane *self, run *r, request *from, int64_t *reveals)
{
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

static int append(PyObject *list, PyObject *item)
{
    int well = item != NULL && PyList_Append(list, item) == 0;
    Py_XDECREF(item);
    return well;
}

/* Add the subject of a request for the request log, if requests are logged. */
static int add_subject(const run *r, const request *from, Py_ssize_t size, PyObject *reply)
{
    if (r->subjects == Py_None)
        return 1;
    int single = from->steps.at == &from->one;
    PyObject *subject = single ? to_str(&from->one.key) : PyLong_FromSize_t(from->steps.count);
    if (subject == NULL)
        return 0;
    return append(r->subjects, Py_BuildValue("(Nnn)", subject, size, PyBytes_Size(reply)));
}

/* Read a body of at most `most` bytes. 0 if it is not a request for the lane. */
static int read_body(Lane *self, PyObject *body, Py_ssize_t most, request *to, Py_ssize_t *size)
{
    char *bytes;
    return PyObject_TypeCheck(body, &PyBytes_Type) &&
           PyBytes_AsStringAndSize(body, &bytes, size) == 0 && *size <= most &&
           read_request(self, (unsigned char *)bytes, (size_t)*size, to);
}

/* Prefetch the entries of a run, if the table is large. Reading small requests twice takes less
 * time than waiting for the entries one after the other: with 4,000,000 entries, each of 64 GETs
 * takes 0.5 us instead of 1.2. */
static void fetch_ahead(Lane *self, PyObject *bodies, Py_ssize_t first)
{
    uint32_t hashes[MOST_AHEAD];
    Py_ssize_t size, ahead = 0, count = PyList_Size(bodies);
    request from;
    if (self->table->count <= NEAR_ENTRIES || count - first < 2)
        return;
    for (Py_ssize_t i = first; i < count && ahead < MOST_AHEAD; i++)
        if (read_body(self, PyList_GetItem(bodies, i), SMALL_BODY, &from, &size) &&
            from.steps.at == &from.one)
            hashes[ahead++] = from.one.hash;
    for (Py_ssize_t i = 0; i < ahead; i++)
        table_fetch(self->table, hashes[i]);
}

/* Run one request: 1; 0 if it is left to Python; -1, with an exception, if memory ran out. */
static int take(Lane *self, run *r, PyObject *body)
{
    Py_ssize_t size;
    request from;
    int64_t reveals = 0;
    if (!read_body(self, body, LARGE_BODY, &from, &size))
        return 0;
    PyObject *reply = do_request(self, r, &from, &reveals);
    if (reply == NULL)
        return PyErr_Clear(), 0;
    int well = add_subject(r, &from, size, reply) && append(r->replies, reply) &&
               append(r->reveals, PyLong_FromLongLong(reveals)) &&
               PyList_Append(r->ops, self->names[from.op]) == 0;
    return well ? 1 : -1;
}

/* The fields of zkv.compiled._store.Run, in their order: the result of Lane.run. */
enum { TAKEN, NEWEST, REV, COMMITS, CHANGES, BYTES, REPLACED, RUN_FIELDS };

static PyStructSequence_Field run_fields[] = {
    [TAKEN] = {"taken", "number of requests answered"},
    [NEWEST] = {"newest", "newest revision that a reply reveals"},
    [REV] = {"rev", "revision of the store after the run"},
    [COMMITS] = {"commits", "list of commits, in order"},
    [CHANGES] = {"changes", "number of changes in the commits"},
    [BYTES] = {"bytes", "size of the commits' payloads"},
    [REPLACED] = {"replaced", "undo information; None if the run wrote nothing"},
    [RUN_FIELDS] = {NULL, NULL},
};

static PyStructSequence_Desc run_description = {
    .name = "zkv.compiled._store.Run",
    .fields = run_fields,
    .n_in_sequence = RUN_FIELDS,
};

PyTypeObject *run_type;

PyTypeObject *new_run_type(void) { return PyStructSequence_NewType(&run_description); }

/* Move the results of a run into a Run. NULL, with an exception, if memory runs out. */
static PyObject *to_result(const run *r, Py_ssize_t taken)
{
    PyObject *result = PyStructSequence_New(run_type);
    PyObject *fields[RUN_FIELDS] = {
        [TAKEN] = PyLong_FromSsize_t(taken),
        [NEWEST] = PyLong_FromLongLong(r->newest),
        [REV] = PyLong_FromLongLong(r->rev),
        [COMMITS] = r->commits,
        [CHANGES] = PyLong_FromSize_t(r->changes),
        [BYTES] = PyLong_FromSize_t(r->bytes),
        [REPLACED] = r->replaced == NULL ? Py_NewRef(Py_None) : (PyObject *)r->replaced,
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
        Py_CLEAR(result);
    return result;
}

/* Get the lists of an `Answers`, which the caller releases. 0, with an exception, if one is
 * missing. */
static int get_lists(const Lane *self, PyObject *answers, run *r)
{
    return (r->replies = PyObject_GetAttr(answers, self->list_names[REPLIES])) != NULL &&
           (r->reveals = PyObject_GetAttr(answers, self->list_names[REVEALS])) != NULL &&
           (r->ops = PyObject_GetAttr(answers, self->list_names[OP_NAMES])) != NULL &&
           (r->subjects = PyObject_GetAttr(answers, self->list_names[SUBJECTS])) != NULL;
}

static void release_lists(run *r)
{
    Py_XDECREF(r->replies);
    Py_XDECREF(r->reveals);
    Py_XDECREF(r->ops);
    Py_XDECREF(r->subjects);
}

/* Run the requests in `bodies` from `first` on, up to the first that is left to Python. */
static PyObject *run_bodies(Lane *self, run *r, PyObject *bodies)
{
    int result = 1;
    Py_ssize_t first = PyList_Size(r->replies), count = PyList_Size(bodies), next;
    if (first < 0 || count < 0 || (r->commits = PyList_New(0)) == NULL)
        return NULL;
    fetch_ahead(self, bodies, first);
    for (next = first; next < count; next++)
        if ((result = take(self, r, PyList_GetItem(bodies, next))) <= 0)
            break;
    PyObject *results = result < 0 ? NULL : to_result(r, next - first);
    if (results == NULL)
        Py_FatalError("zkv: out of memory after a commit"); /* as in `commit` */
    return results;
}

/* Read one keyword argument of `lane_run`. 0, with an exception, if it has none of that name. */
static int read_state(run *r, PyObject *name, PyObject *value)
{
    static const char *const names[] = {"rev", "removed_rev", "now", "takes_writes"};
    int64_t *const fields[] = {&r->rev, &r->removed_rev, &r->now, &r->takes_writes};
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++)
        if (PyUnicode_CompareWithASCIIString(name, names[i]) == 0) {
            *fields[i] = PyLong_AsLongLong(value);
            return !PyErr_Occurred();
        }
    return PyErr_Format(PyExc_TypeError, "run() has no argument %R", name), 0;
}

/* run(bodies, answers, *, rev, removed_rev, now, takes_writes) -> Run: see _store.pyi. The
 * arguments are read here: PyArg_ParseTupleAndKeywords takes as long as half of a GET. */
static PyObject *lane_run(Lane *self, PyObject *const *arguments, Py_ssize_t count, PyObject *names)
{
    run r = {0};
    if (count != 2 || names == NULL || PyTuple_Size(names) != 4)
        return PyErr_Format(PyExc_TypeError, "run() takes 2 arguments, and 4 by name"), NULL;
    for (Py_ssize_t i = 0; i < 4; i++)
        if (!read_state(&r, PyTuple_GetItem(names, i), arguments[count + i]))
            return NULL;
    PyObject *result = NULL;
    if (get_lists(self, arguments[1], &r))
        result = run_bodies(self, &r, arguments[0]);
    release_lists(&r);
    return result;
}

/* Intern the strings that a lane uses again and again. 0, with an exception, if memory runs out. */
static int intern_names(Lane *self)
{
    static const char *const lists[] = {
        [REPLIES] = "replies", [REVEALS] = "reveals", [OP_NAMES] = "ops", [SUBJECTS] = "subjects"};
    for (int list = 0; list < LISTS; list++)
        if ((self->list_names[list] = PyUnicode_InternFromString(lists[list])) == NULL)
            return 0;
    for (int op = 0; op < OPS; op++)
        if ((self->names[op] = PyUnicode_InternFromString(op_name((enum op)op))) == NULL)
            return 0;
    return 1;
}

static PyObject *lane_new(PyTypeObject *type, PyObject *arguments, PyObject *keywords)
{
    static char *names[] = {
        "table", "commit_type", "max_key_bytes", "max_value_bytes", "max_batch", "max_reply_bytes",
        "max_levels", "durable", "forget_deadline", "notify_watchers", "watchers", "may_run",
        "remember", NULL};
    PyObject *table, *commit_type, *forget_deadline, *notify_watchers, *watchers;
    PyObject *may_run, *remember;
    Py_ssize_t max_key, max_value, max_batch, max_reply, max_levels;
    int durable;
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "OOnnnnnpOOOOO", names, &table,
                                     &commit_type, &max_key, &max_value, &max_batch, &max_reply,
                                     &max_levels, &durable, &forget_deadline, &notify_watchers,
                                     &watchers, &may_run, &remember))
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
    self->max_levels = max_levels;
    self->durable = durable;
    self->forget_deadline = Py_NewRef(forget_deadline);
    self->notify_watchers = Py_NewRef(notify_watchers);
    self->watchers = Py_NewRef(watchers);
    self->may_run = Py_NewRef(may_run);
    self->remember = Py_NewRef(remember);
    /* From now on new keys enter the index one by one: no client waits until all are sorted. */
    if (!intern_names(self) || (!index_build(self->table) && PyErr_NoMemory() == NULL))
        Py_CLEAR(self);
    return (PyObject *)self;
}

static void lane_dealloc(Lane *self)
{
    PyTypeObject *type = Py_TYPE((PyObject *)self);
    free(self->steps.at);
    free(self->conditions.at);
    for (int op = 0; op < OPS; op++)
        Py_XDECREF(self->names[op]);
    for (int list = 0; list < LISTS; list++)
        Py_XDECREF(self->list_names[list]);
    Py_XDECREF(self->forget_deadline);
    Py_XDECREF(self->notify_watchers);
    Py_XDECREF(self->watchers);
    Py_XDECREF(self->may_run);
    Py_XDECREF(self->remember);
    Py_XDECREF(self->commit_type);
    Py_XDECREF((PyObject *)self->table);
    PyObject_Free(self);
    Py_DECREF(type);
}

static PyMethodDef lane_methods[] = {
    {"run", (PyCFunction)(void (*)(void))lane_run, METH_FASTCALL | METH_KEYWORDS, NULL},
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
