/* The table of entries: from key to record, and its interface in Python.
 *
 * Strategy: an entry is one piece of memory, found through one bucket. In Python, key, value,
 * revision and entry would be four objects; they are made only if Python code asks for an entry.
 *
 * Invariants: Python's lock is held throughout, and the keyspace's by the caller, unless it reads
 * aside (long.c). A table holds a reference to each of its records; a write passes the replaced
 * record's reference to its caller. */

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

record *record_new(uint32_t hash, const unsigned char *key, size_t key_size,
                   const unsigned char *value, size_t value_size, int64_t rev)
{
    if (key_size > UINT32_MAX || value_size > UINT32_MAX)
        return NULL;
    record *r = pool_take(offsetof(record, bytes) + key_size + value_size);
    if (r == NULL)
        return NULL;
    *r = (record){NULL, rev, 0, hash, 1, (uint32_t)key_size, (uint32_t)value_size};
    write_bytes(write_bytes(r->bytes, key, key_size), value, value_size);
    return r;
}

void record_release(record *r)
{
    if (r != NULL && --r->refs == 0)
        pool_give(r, offsetof(record, bytes) + r->key_size + (size_t)r->value_size);
}

PyObject *record_entry(const Table *self, const record *r)
{
    if (r == NULL)
        return Py_NewRef(Py_None);
    const char *bytes = (const char *)record_value(r);
    PyObject *value = PyBytes_FromStringAndSize(bytes, (Py_ssize_t)r->value_size);
    PyObject *rev = PyLong_FromLongLong((long long)r->rev);
    PyObject *expires = r->expires ? PyLong_FromLongLong((long long)r->expires) : NULL;
    PyObject *entry = NULL;
    if (value != NULL && rev != NULL && (expires != NULL || !r->expires)) /* NULL ends the list. */
        entry = PyObject_CallFunctionObjArgs(self->entry_type, value, rev, expires, NULL);
    Py_XDECREF(value);
    Py_XDECREF(rev);
    Py_XDECREF(expires);
    return entry;
}

/* --- The table -------------------------------------------------------------------------------- */

record **table_bucket(const Table *self, uint32_t hash)
{
    size_t place = hash & self->old.mask;
    if (self->old.buckets != NULL && place >= self->moved)
        return &self->old.buckets[place];
    return &self->now.buckets[hash & self->now.mask];
}

/* Find the link in the chain that refers to a key's record, or the end of the chain. */
static record **find_link(const Table *self, uint32_t hash, const unsigned char *key, size_t size)
{
    record **link = table_bucket(self, hash);
    for (; *link != NULL; link = &(*link)->next) {
        record *r = *link;
        if (r->hash == hash && r->key_size == size && memcmp(r->bytes, key, size) == 0)
            break;
    }
    return link;
}

record *table_find(const Table *self, uint32_t hash, const unsigned char *key, size_t size)
{
    return *find_link(self, hash, key, size);
}

void table_fetch(const Table *self, uint32_t hash)
{
    const record *r = *table_bucket(self, hash);
    if (r != NULL) {
        __builtin_prefetch(r);
        __builtin_prefetch((const char *)r + CACHE_LINE);
    }
}

/* Begin to grow. Without memory it tries again later: until then, chains are only longer. */
static void grow(Table *self)
{
    size_t count = 2 * (self->now.mask + 1);
    record **buckets = calloc(count, sizeof *buckets);
    if (buckets == NULL)
        return;
    self->old = self->now;
    self->now = (array){buckets, count - 1};
    self->moved = 0;
}

static void move_some(Table *self)
{
    for (int i = 0; i < MOVED_AT_ONCE && self->old.buckets != NULL; i++) {
        record *r = self->old.buckets[self->moved], *next;
        self->old.buckets[self->moved++] = NULL;
        for (; r != NULL; r = next) {
            record **bucket = &self->now.buckets[r->hash & self->now.mask];
            next = r->next;
            r->next = *bucket;
            *bucket = r;
        }
        if (self->moved > self->old.mask) {
            free(self->old.buckets);
            self->old = (array){NULL, 0};
        }
    }
}

record *table_put(Table *self, record *now)
{
    move_some(self);
    record **link = find_link(self, now->hash, now->bytes, now->key_size), *before = *link;
    now->next = before == NULL ? NULL : before->next;
    *link = now;
    if (before == NULL && ++self->count > self->now.mask && self->old.buckets == NULL)
        grow(self);
    return before;
}

record *table_remove(Table *self, uint32_t hash, const unsigned char *key, size_t size)
{
    move_some(self);
    record **link = find_link(self, hash, key, size), *r = *link;
    if (r != NULL) {
        *link = r->next;
        self->count--;
    }
    return r;
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
    record *r = table_find(self, n.hash, n.at, n.size);
    return r == NULL ? Py_NewRef(otherwise) : record_entry(self, r);
}

/* Prefetch the records of all names: with a large table, most of the time of a page is spent
 * waiting for memory. */
static void fetch_ahead(const Table *self, const name *names, Py_ssize_t count)
{
    for (Py_ssize_t i = 0; i < count; i++)
        __builtin_prefetch(table_bucket(self, names[i].hash));
    for (Py_ssize_t i = 0; i < count; i++)
        table_fetch(self, names[i].hash);
}

static PyObject *to_pair(const Table *self, PyObject *key, const name *n)
{
    record *r = table_find(self, n->hash, n->at, n->size);
    if (r == NULL)
        return PyErr_SetObject(PyExc_KeyError, key), NULL;
    PyObject *entry = record_entry(self, r);
    PyObject *pair = entry == NULL ? NULL : PyTuple_Pack(2, key, entry);
    Py_XDECREF(entry);
    return pair;
}

/* pairs(keys): a list of tuples of key and entry, for a list of keys. */
static PyObject *table_pairs(Table *self, PyObject *keys)
{
    Py_ssize_t count = PyList_Size(keys);
    if (count < 0)
        return NULL;
    name *names = PyMem_Calloc((size_t)count + 1, sizeof *names);
    PyObject *pairs = names == NULL ? PyErr_NoMemory() : PyList_New(0);
    for (Py_ssize_t i = 0; pairs != NULL && i < count; i++)
        if (!to_name(self, PyList_GetItem(keys, i), &names[i]))
            Py_CLEAR(pairs);
    if (pairs != NULL)
        fetch_ahead(self, names, count);
    for (Py_ssize_t i = 0; pairs != NULL && i < count; i++) {
        PyObject *pair = to_pair(self, PyList_GetItem(keys, i), &names[i]);
        if (pair == NULL || PyList_Append(pairs, pair) < 0)
            Py_CLEAR(pairs);
        Py_XDECREF(pair);
    }
    PyMem_Free(names);
    return pairs;
}

/* Read an attribute of an entry that is an int, or None, which counts as 0. 0 with an exception. */
static int to_number(PyObject *entry, const char *attribute, int64_t *number)
{
    PyObject *value = PyObject_GetAttrString(entry, attribute);
    *number = value == NULL || value == Py_None ? 0 : PyLong_AsLongLong(value);
    Py_XDECREF(value);
    return !PyErr_Occurred();
}

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
        r = record_new(key->hash, key->at, key->size, (unsigned char *)bytes, (size_t)size, rev);
        if (r == NULL)
            Py_FatalError("zkv: out of memory in the middle of a commit");
        r->expires = expires;
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
    if (entry == NULL) {
        before = table_remove(self, n.hash, n.at, n.size);
        if (before == NULL)
            return PyErr_SetObject(PyExc_KeyError, key), -1;
    } else {
        record *now = to_record(&n, entry);
        if (now == NULL)
            return -1;
        before = table_put(self, now);
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

static int append_keys(PyObject *keys, const array *from)
{
    for (size_t i = 0; from->buckets != NULL && i <= from->mask; i++)
        for (record *r = from->buckets[i]; r != NULL; r = r->next) {
            PyObject *key =
                PyUnicode_FromStringAndSize((const char *)r->bytes, (Py_ssize_t)r->key_size);
            int failed = key == NULL || PyList_Append(keys, key) < 0;
            Py_XDECREF(key);
            if (failed)
                return 0;
        }
    return 1;
}

/* Return an iterator over the present keys. */
static PyObject *table_iter(Table *self)
{
    PyObject *keys = PyList_New(0), *iterator = NULL;
    if (keys != NULL && append_keys(keys, &self->old) && append_keys(keys, &self->now))
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
    self->now = (array){calloc(FIRST_BUCKETS, sizeof(record *)), FIRST_BUCKETS - 1};
    if (self->now.buckets == NULL || PyBytes_Size(seed) != sizeof self->seed) {
        Py_DECREF(self);
        return PyErr_Format(PyExc_ValueError, "needs a seed of 16 bytes, and memory");
    }
    memcpy(self->seed, PyBytes_AsString(seed), sizeof self->seed);
    return (PyObject *)self;
}

static void release_all(array *from)
{
    for (size_t i = 0; from->buckets != NULL && i <= from->mask; i++)
        for (record *r = from->buckets[i], *next; r != NULL; r = next) {
            next = r->next;
            record_release(r);
        }
    free(from->buckets);
}

static void table_dealloc(Table *self)
{
    PyTypeObject *type = Py_TYPE((PyObject *)self);
    release_dropped(self, SIZE_MAX);
    release_all(&self->old);
    release_all(&self->now);
    Py_XDECREF(self->entry_type);
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(self);
    Py_DECREF(type);
}

static PyMethodDef table_methods[] = {
    {"get", (PyCFunction)table_get, METH_VARARGS, NULL},
    {"pairs", (PyCFunction)table_pairs, METH_O, NULL},
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
        PyObject *key = PyUnicode_FromStringAndSize((const char *)pair->now->bytes,
                                                    (Py_ssize_t)pair->now->key_size);
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
