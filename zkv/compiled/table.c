/* The table of entries: from key to record, and its interface in Python.
 *
 * Strategy: an entry is one piece of memory, found through one bucket and one slot. In Python, key,
 * value, revision and entry would be four objects; they are made only if Python code asks for an
 * entry. The keys' order is in index.c.
 *
 * Invariants: Python's lock is held throughout, and the keyspace's by the caller, unless it reads
 * aside (long.c). Entries change only by `table_put` and `table_remove`, which count their bytes. A
 * table holds a reference to each of its records; a write passes the replaced record's reference to
 * its caller. Slots are used again but not given back: after many removals a table keeps 24 bytes
 * for each key that it once had at a time. */

#include "store.h"

#include <stddef.h>
#include <stdlib.h>

enum { FIRST_BUCKETS = 64, MOVED_AT_ONCE = 16, CACHE_LINE = 64 };

/* --- Hashing ---------------------------------------------------------------------------------- */

uint32_t table_hash(const Table *self, const unsigned char *key, size_t size)
{
    uint64_t hash = siphash13(self->seed, key, size);
    return (uint32_t)(hash ^ hash >> 32);
}

/* --- Records ---------------------------------------------------------------------------------- */

static size_t record_size(size_t key_size, size_t value_size, int expiring)
{
    return offsetof(record, bytes) + key_size + value_size + (expiring ? sizeof(int64_t) : 0);
}

record *record_new(const unsigned char *key, size_t key_size, const unsigned char *value,
                   size_t value_size, int64_t rev, int64_t expires)
{
    if (key_size >= 1 << 24 || value_size > UINT32_MAX)
        return NULL;
    record *r = pool_take(record_size(key_size, value_size, expires != 0));
    if (r == NULL)
        return NULL;
    *r = (record){rev, (uint32_t)value_size, (uint32_t)key_size, expires != 0, 1};
    unsigned char *end = write_bytes(write_bytes(r->bytes, key, key_size), value, value_size);
    write_bytes(end, &expires, expires ? sizeof expires : 0);
    return r;
}

void record_release(record *r)
{
    if (r != NULL && --r->refs == 0)
        pool_give(r, record_size(r->key_size, r->value_size, r->expiring));
}

PyObject *record_entry(const Table *self, const record *r)
{
    if (r == NULL)
        return Py_NewRef(Py_None);
    const char *bytes = (const char *)record_value(r);
    PyObject *value = PyBytes_FromStringAndSize(bytes, (Py_ssize_t)r->value_size);
    PyObject *rev = PyLong_FromLongLong((long long)r->rev);
    PyObject *expires = r->expiring ? PyLong_FromLongLong((long long)record_expires(r)) : NULL;
    PyObject *entry = NULL;
    if (value != NULL && rev != NULL && (expires != NULL || !r->expiring)) /* NULL ends the list. */
        entry = PyObject_CallFunctionObjArgs(self->entry_type, value, rev, expires, NULL);
    Py_XDECREF(value);
    Py_XDECREF(rev);
    Py_XDECREF(expires);
    return entry;
}

/* --- The table -------------------------------------------------------------------------------- */

uint32_t *table_bucket(const Table *self, uint32_t hash)
{
    size_t place = hash & self->old.mask;
    if (self->old.buckets != NULL && place >= self->moved)
        return &self->old.buckets[place];
    return &self->now.buckets[hash & self->now.mask];
}

/* Find the link in the chain that refers to a key's slot, or the end of the chain. */
static uint32_t *find_link(const Table *self, uint32_t hash, const unsigned char *key, size_t size)
{
    uint32_t *link = table_bucket(self, hash);
    while (*link != 0) {
        slot *each = table_slot(self, *link);
        if (each->hash == hash && each->at->key_size == size &&
            memcmp(each->at->bytes, key, size) == 0)
            break;
        link = &each->next;
    }
    return link;
}

record *table_find(const Table *self, uint32_t hash, const unsigned char *key, size_t size)
{
    uint32_t number = *find_link(self, hash, key, size);
    return number == 0 ? NULL : table_slot(self, number)->at;
}

/* Note that a key is used. */
static inline void use(const Table *self, uint32_t number)
{
    if (self->clocked)
        *table_clock(self, number) = self->time;
}

record *table_use(const Table *self, uint32_t hash, const unsigned char *key, size_t size)
{
    uint32_t number = *find_link(self, hash, key, size);
    if (number == 0)
        return NULL;
    use(self, number);
    return table_slot(self, number)->at;
}

static void fetch_record(const record *r)
{
    __builtin_prefetch(r);
    __builtin_prefetch((const char *)r + CACHE_LINE);
}

void table_fetch(const Table *self, uint32_t hash)
{
    uint32_t number = *table_bucket(self, hash);
    while (number != 0 && table_slot(self, number)->hash != hash)
        number = table_slot(self, number)->next;
    if (number == 0)
        return;
    fetch_record(table_slot(self, number)->at);
    if (self->clocked)
        __builtin_prefetch(table_clock(self, number));
}

/* Begin to grow. Without memory it tries again later: until then, chains are only longer. */
static void grow(Table *self)
{
    size_t count = 2 * (self->now.mask + 1);
    uint32_t *buckets = calloc(count, sizeof *buckets);
    if (buckets == NULL)
        return;
    self->old = self->now;
    self->now = (array){buckets, count - 1};
    self->moved = 0;
}

static void move_some(Table *self)
{
    for (int i = 0; i < MOVED_AT_ONCE && self->old.buckets != NULL; i++) {
        uint32_t number = self->old.buckets[self->moved], next;
        self->old.buckets[self->moved++] = 0;
        for (; number != 0; number = next) {
            slot *each = table_slot(self, number);
            uint32_t *bucket = &self->now.buckets[each->hash & self->now.mask];
            next = each->next;
            each->next = *bucket;
            *bucket = number;
        }
        if (self->moved > self->old.mask) {
            free(self->old.buckets);
            self->old = (array){NULL, 0};
        }
    }
}

/* Allocate the slots from number `used` on. 0 if there is no memory; likewise below. */
static int add_chunk(Table *self)
{
    size_t count = self->used >> SLOT_BITS;
    if ((count & (count - 1)) == 0) { /* There is room for as many chunks as a power of two. */
        slot **chunks = realloc(self->chunks, (count ? 2 * count : 1) * sizeof *chunks);
        if (chunks == NULL)
            return 0;
        self->chunks = chunks;
    }
    size_t size = sizeof(slot) + (self->clocked ? sizeof(uint32_t) : 0);
    return (self->chunks[count] = malloc(SLOTS * size)) != NULL;
}

/* Take a free slot for a record; returns its number. */
static uint32_t take_slot(Table *self, uint32_t hash, record *at)
{
    uint32_t number = self->free;
    if (number != 0) {
        self->free = table_slot(self, number)->next;
    } else {
        if (self->used == UINT32_MAX || (self->used % SLOTS == 0 && !add_chunk(self)))
            return 0;
        number = self->used++;
    }
    *table_slot(self, number) = (slot){at, 0, hash};
    use(self, number);
    return number;
}

static void free_slot(Table *self, uint32_t number)
{
    *table_slot(self, number) = (slot){NULL, self->free, 0};
    self->free = number;
}

/* Count the bytes of an entry that is put, replaced or removed; negative numbers have wrapped
 * around. */
static inline void count_bytes(Table *self, const record *of, size_t key_bytes, size_t value_bytes)
{
    self->key_bytes += key_bytes;
    self->value_bytes += value_bytes;
    if (self->counts.count > 0 && key_bytes + value_bytes != 0)
        counts_add(self, of->bytes, of->key_size, key_bytes + value_bytes);
}

/* Put a record under a new key. */
static int add(Table *self, uint32_t hash, record *now)
{
    uint32_t number = take_slot(self, hash, now);
    if (number == 0)
        return 0;
    if (self->index.count > 0 && !index_insert(self, number))
        return free_slot(self, number), 0;
    uint32_t *bucket = table_bucket(self, hash);
    table_slot(self, number)->next = *bucket;
    *bucket = number;
    count_bytes(self, now, now->key_size, now->value_size);
    if (++self->count > self->now.mask && self->old.buckets == NULL)
        grow(self);
    return 1;
}

int table_put(Table *self, uint32_t hash, record *now, record **before)
{
    move_some(self);
    uint32_t number = *find_link(self, hash, now->bytes, now->key_size);
    if (number == 0)
        return *before = NULL, add(self, hash, now);
    slot *there = table_slot(self, number);
    use(self, number);
    *before = there->at;
    there->at = now;
    count_bytes(self, now, 0, (size_t)now->value_size - (*before)->value_size);
    return 1;
}

record *table_remove(Table *self, uint32_t hash, const unsigned char *key, size_t size)
{
    move_some(self);
    uint32_t *link = find_link(self, hash, key, size), number = *link;
    if (number == 0)
        return NULL;
    record *before = table_slot(self, number)->at;
    if (self->index.count > 0)
        index_remove(self, key, size);
    *link = table_slot(self, number)->next;
    free_slot(self, number);
    self->count--;
    count_bytes(self, before, 0 - (size_t)before->key_size, 0 - (size_t)before->value_size);
    return before;
}

/* --- Its interface in Python: a mapping from str to StoredEntry ------------------------------- */

typedef struct {
    uint32_t hash;
    const unsigned char *at;
    size_t size;
} name;

/* Read a str as a key; valid while the str lives. 0, with an exception, if it is not one. */
static int to_name(const Table *self, PyObject *key, name *to)
{
    Py_ssize_t size;
    to->at = (const unsigned char *)PyUnicode_AsUTF8AndSize(key, &size);
    if (to->at == NULL)
        return 0;
    to->size = (size_t)size;
    to->hash = table_hash(self, to->at, to->size);
    return 1;
}

static PyObject *table_subscript(Table *self, PyObject *key)
{
    name n;
    if (!to_name(self, key, &n))
        return NULL;
    record *r = table_find(self, n.hash, n.at, n.size);
    if (r == NULL)
        return PyErr_SetObject(PyExc_KeyError, key), NULL;
    return record_entry(self, r);
}

static PyObject *table_get(Table *self, PyObject *arguments)
{
    PyObject *key, *otherwise = Py_None;
    name n;
    if (!PyArg_UnpackTuple(arguments, "get", 1, 2, &key, &otherwise) || !to_name(self, key, &n))
        return NULL;
    self->time++;
    record *r = table_use(self, n.hash, n.at, n.size);
    return r == NULL ? Py_NewRef(otherwise) : record_entry(self, r);
}

/* NULL, with an exception, if memory runs out. Likewise below. */
PyObject *record_key(const record *r)
{
    return PyUnicode_FromStringAndSize((const char *)r->bytes, (Py_ssize_t)r->key_size);
}

static PyObject *to_pair(const Table *self, const record *r)
{
    PyObject *key = record_key(r), *entry = record_entry(self, r);
    PyObject *pair = key == NULL || entry == NULL ? NULL : PyTuple_Pack(2, key, entry);
    Py_XDECREF(key);
    Py_XDECREF(entry);
    return pair;
}

int list_append(PyObject *list, PyObject *item)
{
    int well = item != NULL && PyList_Append(list, item) == 0;
    Py_XDECREF(item);
    return well;
}

/* Make a list of the pairs in these slots. All are prefetched together: with a large table, most
 * of the time of a page is spent waiting for memory. */
static PyObject *to_pairs(const Table *self, const uint32_t *numbers, size_t count)
{
    PyObject *pairs = PyList_New(0);
    for (size_t i = 0; i < count; i++)
        __builtin_prefetch(table_slot(self, numbers[i]));
    for (size_t i = 0; i < count; i++)
        fetch_record(table_slot(self, numbers[i])->at);
    for (size_t i = 0; pairs != NULL && i < count; i++)
        if (!list_append(pairs, to_pair(self, table_slot(self, numbers[i])->at)))
            Py_CLEAR(pairs);
    return pairs;
}

/* Build the index if it is not there. 0, with an exception, if memory ends. */
static int is_ordered(Table *self) { return index_build(self) || (PyErr_NoMemory(), 0); }

int table_range(Table *self, PyObject *range, position *first, position *end)
{
    PyObject *low, *high;
    int included;
    Py_ssize_t size;
    const char *key;
    if (!is_ordered(self) || !PyArg_ParseTuple(range, "OOp", &low, &high, &included) ||
        (key = PyUnicode_AsUTF8AndSize(low, &size)) == NULL)
        return 0;
    *first = index_seek(self, (const unsigned char *)key, (size_t)size, !included);
    if (high == Py_None)
        return *end = index_last(self), 1;
    if ((key = PyUnicode_AsUTF8AndSize(high, &size)) == NULL)
        return 0;
    *end = index_seek(self, (const unsigned char *)key, (size_t)size, 0);
    return 1;
}

/* pairs(range, most, reverse): see zkv/keyspace/table.py, and for all with this interface. */
static PyObject *table_pairs(Table *self, PyObject *arguments)
{
    PyObject *range;
    Py_ssize_t most;
    int reverse = 0;
    position first, end;
    if (!PyArg_ParseTuple(arguments, "On|p", &range, &most, &reverse) ||
        !table_range(self, range, &first, &end))
        return NULL;
    size_t room = most < 0 ? 0 : (size_t)most < self->count ? (size_t)most : self->count, count = 0;
    uint32_t *numbers = PyMem_Calloc(room + 1, sizeof *numbers);
    if (numbers == NULL)
        return PyErr_NoMemory();
    while (count < room && is_before(&first, &end))
        numbers[count++] = reverse ? index_previous(self, &end) : index_next(self, &first);
    PyObject *pairs = to_pairs(self, numbers, count);
    PyMem_Free(numbers);
    return pairs;
}

/* count(range) */
static PyObject *table_count(Table *self, PyObject *range)
{
    position first, end;
    if (!table_range(self, range, &first, &end))
        return NULL;
    size_t low = index_rank(self, &first), high = index_rank(self, &end);
    return PyLong_FromSize_t(high > low ? high - low : 0);
}

/* deadlines() */
static PyObject *table_deadlines(Table *self, PyObject *unused)
{
    PyObject *deadlines = PyList_New(0);
    for (uint32_t i = 1; deadlines != NULL && i < self->used; i++) {
        const record *r = table_slot(self, i)->at;
        if (r != NULL && r->expiring &&
            !list_append(deadlines, Py_BuildValue("(LN)", (long long)record_expires(r), record_key(r))))
            Py_CLEAR(deadlines);
    }
    return deadlines;
}

/* sizes() */
static PyObject *table_sizes(Table *self, PyObject *unused)
{
    return Py_BuildValue("(nn)", (Py_ssize_t)self->key_bytes, (Py_ssize_t)self->value_bytes);
}

/* Read an attribute of an entry that is an int, or None, which counts as 0. 0 with an exception. */
static int to_number(PyObject *entry, const char *attribute, int64_t *number)
{
    PyObject *value = PyObject_GetAttrString(entry, attribute);
    *number = value == NULL || value == Py_None ? 0 : PyLong_AsLongLong(value);
    Py_XDECREF(value);
    return !PyErr_Occurred();
}

static const char WITHOUT_MEMORY[] = "zkv: out of memory in the middle of a commit";

/* Make a record of an entry. NULL, with an exception, if it is not one.
 *
 * The caller is applying or undoing a commit, which cannot stop half-way if memory runs out: log
 * and table would differ for good. A restart recovers from the log. */
static record *to_record(const name *key, PyObject *entry)
{
    PyObject *value = PyObject_GetAttrString(entry, "value");
    char *bytes;
    Py_ssize_t size;
    int64_t rev, expires;
    record *r = NULL;
    if (value != NULL && PyBytes_AsStringAndSize(value, &bytes, &size) == 0 &&
        to_number(entry, "rev", &rev) && to_number(entry, "expires", &expires)) {
        r = record_new(key->at, key->size, (unsigned char *)bytes, (size_t)size, rev, expires);
        if (r == NULL)
            Py_FatalError(WITHOUT_MEMORY);
    }
    Py_XDECREF(value);
    return r;
}

static int table_ass_subscript(Table *self, PyObject *key, PyObject *entry)
{
    name n;
    if (!to_name(self, key, &n))
        return -1;
    record *before;
    self->time++;
    if (entry == NULL) {
        before = table_remove(self, n.hash, n.at, n.size);
        if (before == NULL)
            return PyErr_SetObject(PyExc_KeyError, key), -1;
    } else {
        record *now = to_record(&n, entry);
        if (now == NULL)
            return -1;
        if (!table_put(self, n.hash, now, &before))
            Py_FatalError(WITHOUT_MEMORY);
    }
    record_release(before);
    return 0;
}

static int table_contains(Table *self, PyObject *key)
{
    name n;
    if (!to_name(self, key, &n))
        return -1;
    return table_find(self, n.hash, n.at, n.size) != NULL;
}

static Py_ssize_t table_length(Table *self) { return (Py_ssize_t)self->count; }

/* Return an iterator over the present keys, in order. */
static PyObject *table_iter(Table *self)
{
    if (!is_ordered(self))
        return NULL;
    position at = {0, 0}, end = index_last(self);
    PyObject *keys = PyList_New(0), *iterator = NULL;
    int well = keys != NULL;
    while (well && is_before(&at, &end))
        well = list_append(keys, record_key(table_slot(self, index_next(self, &at))->at));
    if (well)
        iterator = PyObject_GetIter(keys);
    Py_XDECREF(keys);
    return iterator;
}

static PyObject *table_new(PyTypeObject *type, PyObject *arguments, PyObject *keywords)
{
    PyObject *entry_type, *seed;
    if (!PyArg_ParseTuple(arguments, "OS", &entry_type, &seed))
        return NULL;
    Table *self = (Table *)PyType_GenericAlloc(type, 0);
    if (self == NULL)
        return NULL;
    self->entry_type = Py_NewRef(entry_type);
    self->used = 1; /* 0 is none */
    self->now = (array){calloc(FIRST_BUCKETS, sizeof(uint32_t)), FIRST_BUCKETS - 1};
    if (self->now.buckets == NULL || !add_chunk(self) ||
        PyBytes_Size(seed) != sizeof self->seed) {
        Py_DECREF(self);
        return PyErr_Format(PyExc_ValueError, "needs a seed of 16 bytes, and memory");
    }
    memcpy(self->seed, PyBytes_AsString(seed), sizeof self->seed);
    self->chance = self->seed[0];
    return (PyObject *)self;
}

static void release_slots(Table *self)
{
    for (uint32_t i = 1; i < self->used; i++)
        record_release(table_slot(self, i)->at);
    for (size_t i = 0; self->chunks != NULL && i << SLOT_BITS < self->used; i++)
        free(self->chunks[i]);
    free(self->chunks);
}

static void table_dealloc(Table *self)
{
    PyTypeObject *type = Py_TYPE((PyObject *)self);
    release_dropped(self, SIZE_MAX);
    release_slots(self);
    index_end(&self->index);
    counts_end(&self->counts);
    free(self->old.buckets);
    free(self->now.buckets);
    Py_XDECREF(self->entry_type);
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(self);
    Py_DECREF(type);
}

static PyMethodDef table_methods[] = {
    {"get", (PyCFunction)table_get, METH_VARARGS, NULL},
    {"pairs", (PyCFunction)table_pairs, METH_VARARGS, NULL},
    {"count", (PyCFunction)table_count, METH_O, NULL},
    {"deadlines", (PyCFunction)table_deadlines, METH_NOARGS, NULL},
    {"sizes", (PyCFunction)table_sizes, METH_NOARGS, NULL},
    {"count_bytes", (PyCFunction)table_count_bytes, METH_O, NULL},
    {"count_more", (PyCFunction)table_count_more, METH_O, NULL},
    {"bytes_under", (PyCFunction)table_bytes_under, METH_O, NULL},
    {"keep_clocks", (PyCFunction)table_keep_clocks, METH_NOARGS, NULL},
    {"pick", (PyCFunction)table_pick, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot table_slots[] = {
    {Py_tp_doc, "See zkv/keyspace/table.py."},
    {Py_tp_new, table_new},
    {Py_tp_dealloc, table_dealloc},
    {Py_tp_methods, table_methods},
    {Py_tp_iter, table_iter},
    {Py_mp_subscript, table_subscript},
    {Py_mp_ass_subscript, table_ass_subscript},
    {Py_mp_length, table_length},
    {Py_sq_contains, table_contains},
    {0, NULL},
};

PyType_Spec table_spec = {
    .name = "zkv.compiled._store.Table",
    .basicsize = sizeof(Table),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE,
    .slots = table_slots,
};

/* --- Replaced records ------------------------------------------------------------------------- */

PyTypeObject *replaced_type;

Replaced *replaced_new(Table *table)
{
    Replaced *self = (Replaced *)PyType_GenericAlloc(replaced_type, 0);
    if (self != NULL) {
        Py_INCREF((PyObject *)table);
        self->table = table;
    }
    return self;
}

int replaced_reserve(Replaced *self, size_t more)
{
    if (self->count + more <= self->room)
        return 1;
    size_t room = self->count + more + self->room;
    replacement *pairs = realloc(self->pairs, room * sizeof *pairs);
    if (pairs == NULL)
        return 0;
    self->pairs = pairs;
    self->room = room;
    return 1;
}

/* entries(): a dict of the entry that each key had before its first change in the run, or None.
 * It is used to undo the run, which, like a commit, cannot stop half-way: a restart recovers. */
static PyObject *replaced_entries(Replaced *self, PyObject *unused)
{
    PyObject *entries = PyDict_New();
    for (size_t i = self->count; entries != NULL && i > 0; i--) {
        const replacement *pair = &self->pairs[i - 1];
        PyObject *key = record_key(pair->now);
        PyObject *entry = record_entry(self->table, pair->before);
        if (key == NULL || entry == NULL || PyDict_SetItem(entries, key, entry) < 0)
            Py_CLEAR(entries);
        Py_XDECREF(key);
        Py_XDECREF(entry);
    }
    if (entries == NULL)
        Py_FatalError("zkv: out of memory in the middle of a rollback");
    return entries;
}

/* Leave the records of a long run for later, since any thread may drop this, and to release 10,000
 * takes a while. 0 if they are not left. */
static int drop(Replaced *self)
{
    dropped *last = self->of_long_run ? malloc(sizeof *last) : NULL;
    if (last == NULL)
        return 0;
    *last = (dropped){self->table->dropped, self->pairs, self->count};
    self->table->dropped = last;
    return 1;
}

static void release_pair(const replacement *pair)
{
    record_release(pair->now);
    record_release(pair->before);
}

int release_dropped(Table *self, size_t most)
{
    while (self->dropped != NULL && most > 0) {
        dropped *each = self->dropped;
        for (; each->count > 0 && most > 0; most--)
            release_pair(&each->pairs[--each->count]);
        if (each->count == 0) {
            self->dropped = each->next;
            free(each->pairs);
            free(each);
        }
    }
    return self->dropped != NULL;
}

static void replaced_dealloc(Replaced *self)
{
    PyTypeObject *type = Py_TYPE((PyObject *)self);
    if (!drop(self)) {
        for (size_t i = 0; i < self->count; i++)
            release_pair(&self->pairs[i]);
        free(self->pairs);
    }
    Py_XDECREF((PyObject *)self->table);
    PyObject_Free(self);
    Py_DECREF(type);
}

static PyMethodDef replaced_methods[] = {
    {"entries", (PyCFunction)replaced_entries, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot replaced_slots[] = {
    {Py_tp_dealloc, replaced_dealloc},
    {Py_tp_methods, replaced_methods},
    {0, NULL},
};

PyType_Spec replaced_spec = {
    .name = "zkv.compiled._store.Replaced",
    .basicsize = sizeof(Replaced),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = replaced_slots,
};
