/* Bytes of the entries under some prefixes: `count_bytes` in zkv/keyspace/table.py says which.
 *
 * Strategy: the prefixes are sorted, and each refers to the one around it. Those that a key begins
 * with are within each other, so a binary search finds the longest, and the references the others.
 * Each change of the table adds to their counts. What was there before is counted by a walk along
 * the index, one prefix at a time and in steps: a change behind the walk counts at once, and one
 * ahead of it when the walk comes there.
 *
 * Invariant: between two calls, `bytes` is the sum over the entries under a prefix that is
 * `complete`; of the prefix of the walk, over those before `reached`; of the others it is 0. */

#include "store.h"

#include <stdlib.h>

enum { AT_ONCE = 64 }; /* entries that are fetched together */

/* --- Finding ---------------------------------------------------------------------------------- */

static int begins_with(const unsigned char *key, size_t size, const counted *prefix)
{
    return size >= prefix->size && memcmp(key, prefix->at, prefix->size) == 0;
}

/* The last prefix that is not after a key; NULL if there is none. */
static counted *find_last(const counts *in, const unsigned char *key, size_t size)
{
    size_t low = 0, high = in->count;
    while (low < high) {
        size_t middle = (low + high) / 2;
        const counted *each = &in->prefixes[middle];
        if (compare_keys(each->at, each->size, key, size) <= 0)
            low = middle + 1;
        else
            high = middle;
    }
    return low == 0 ? NULL : &in->prefixes[low - 1];
}

/* Find a prefix itself. */
static counted *find_prefix(const counts *in, const unsigned char *prefix, size_t size)
{
    counted *last = find_last(in, prefix, size);
    return last != NULL && last->size == size && begins_with(prefix, size, last) ? last : NULL;
}

/* From a prefix outwards: the first that a key begins with; NULL if there is none. */
static counted *around(counted *from, const unsigned char *key, size_t size)
{
    while (from != NULL && !begins_with(key, size, from))
        from = from->around;
    return from;
}

/* --- Counting what changes -------------------------------------------------------------------- */

/* 1 if the count of a prefix includes this key of it. */
static int includes(const counts *in, const counted *prefix, const unsigned char *key, size_t size)
{
    return prefix->complete ||
           (prefix == &in->prefixes[in->walk] && in->reached_size > 0 &&
            compare_keys(key, size, in->reached, in->reached_size) < 0);
}

void counts_add(Table *self, const unsigned char *key, size_t size, size_t bytes)
{
    counts *in = &self->counts;
    for (counted *of = around(find_last(in, key, size), key, size); of != NULL; of = of->around)
        if (includes(in, of, key, size))
            of->bytes += bytes;
}

int64_t bytes_under(const Table *self, const unsigned char *prefix, size_t size)
{
    const counted *of = find_prefix(&self->counts, prefix, size);
    return of == NULL || !of->complete ? -1 : (int64_t)of->bytes;
}

PyObject *table_bytes_under(Table *self, PyObject *prefixes)
{
    int64_t bytes = 0;
    for (Py_ssize_t i = 0; i < PyTuple_Size(prefixes); i++) {
        Py_ssize_t size;
        const char *at = PyUnicode_AsUTF8AndSize(PyTuple_GetItem(prefixes, i), &size);
        if (at == NULL)
            return NULL;
        int64_t more = bytes_under(self, (const unsigned char *)at, (size_t)size);
        if (more < 0)
            Py_RETURN_NONE;
        bytes += more;
    }
    return PyErr_Occurred() ? NULL : PyLong_FromLongLong((long long)bytes);
}

/* --- The prefixes ----------------------------------------------------------------------------- */

void counts_end(counts *in)
{
    for (size_t i = 0; i < in->count; i++)
        free(in->prefixes[i].at);
    free(in->prefixes);
    free(in->reached);
}

/* Add a prefix behind the others, unless it is the last of them. 0, with an exception, if it is
 * not text, or if there is no memory. */
static int add_prefix(counts *to, PyObject *prefix)
{
    Py_ssize_t size;
    const char *text = PyUnicode_AsUTF8AndSize(prefix, &size);
    if (text == NULL)
        return 0;
    const unsigned char *at = (const unsigned char *)text;
    if (find_prefix(to, at, (size_t)size) != NULL)
        return 1;
    counted *last = to->count == 0 ? NULL : &to->prefixes[to->count - 1];
    counted new = {.at = malloc((size_t)size + 1), .size = (uint32_t)size};
    if (new.at == NULL)
        return PyErr_NoMemory(), 0;
    write_bytes(new.at, at, (size_t)size);
    new.around = around(last, at, (size_t)size);
    to->prefixes[to->count++] = new;
    return 1;
}

static int add_prefixes(counts *to, PyObject *sorted)
{
    Py_ssize_t count = PyList_Size(sorted);
    if ((to->prefixes = calloc((size_t)count + 1, sizeof *to->prefixes)) == NULL)
        return PyErr_NoMemory(), 0;
    for (Py_ssize_t i = 0; i < count; i++)
        if (!add_prefix(to, PyList_GetItem(sorted, i)))
            return 0;
    return 1;
}

/* Let the walk go on to the next prefix that is not complete. */
static void begin_walk(counts *in)
{
    in->reached_size = 0;
    while (in->walk < in->count && in->prefixes[in->walk].complete)
        in->walk++;
}

PyObject *table_count_bytes(Table *self, PyObject *prefixes)
{
    counts new = {0};
    PyObject *sorted = PySequence_List(prefixes);
    int good = sorted != NULL && PyList_Sort(sorted) == 0 && add_prefixes(&new, sorted);
    Py_XDECREF(sorted);
    if (!good)
        return counts_end(&new), NULL;
    for (size_t i = 0; i < new.count; i++) {
        counted *to = &new.prefixes[i];
        const counted *from = find_prefix(&self->counts, to->at, to->size);
        if (from != NULL && from->complete) {
            to->bytes = from->bytes;
            to->complete = 1;
        }
    }
    begin_walk(&new);
    counts_end(&self->counts);
    self->counts = new;
    Py_RETURN_NONE;
}

/* --- Counting what is there ------------------------------------------------------------------- */

/* The next entries under a prefix, from a position on, which moves behind them. */
static size_t next_entries(const Table *self, const counted *prefix, position *at,
                           const record *found[AT_ONCE], size_t most)
{
    uint32_t numbers[AT_ONCE];
    position end = index_last(self);
    size_t count = 0;
    for (; count < most && is_before(at, &end); count++)
        __builtin_prefetch(table_slot(self, numbers[count] = index_next(self, at)));
    for (size_t i = 0; i < count; i++)
        __builtin_prefetch(found[i] = table_slot(self, numbers[i])->at);
    for (size_t i = 0; i < count; i++)
        if (!begins_with(found[i]->bytes, found[i]->key_size, prefix))
            return i;
    return count;
}

/* Note that the walk has counted all up to this entry. 0 if there is no memory. */
static int reach(counts *in, const record *last)
{
    size_t size = (size_t)last->key_size + 1;
    unsigned char *reached = realloc(in->reached, size);
    if (reached == NULL)
        return 0;
    write_bytes(reached, last->bytes, last->key_size);
    reached[last->key_size] = 0; /* The first key that comes after it. */
    in->reached = reached;
    in->reached_size = size;
    return 1;
}

/* Count entries of the prefix of the walk: at most `left`, which this reduces. 0 if there is no
 * memory. */
static int walk_on(Table *self, size_t *left)
{
    counts *in = &self->counts;
    counted *of = &in->prefixes[in->walk];
    const record *found[AT_ONCE];
    position at = in->reached_size > 0 ? index_seek(self, in->reached, in->reached_size, 0)
                                       : index_seek(self, of->at, of->size, 0);
    while (*left > 0) {
        size_t most = *left < AT_ONCE ? *left : AT_ONCE;
        size_t count = next_entries(self, of, &at, found, most);
        if (count > 0 && !reach(in, found[count - 1]))
            return 0;
        for (size_t i = 0; i < count; i++)
            of->bytes += (size_t)found[i]->key_size + found[i]->value_size;
        *left -= count;
        if (count < most) {
            of->complete = 1;
            begin_walk(in);
            return --*left, 1; /* To look for its first entry took time, too. */
        }
    }
    return 1;
}

PyObject *table_count_more(Table *self, PyObject *most)
{
    size_t left = PyLong_AsSize_t(most);
    if (PyErr_Occurred())
        return NULL;
    if (!index_build(self))
        return PyErr_NoMemory();
    while (left > 0 && self->counts.walk < self->counts.count)
        if (!walk_on(self, &left))
            return PyErr_NoMemory();
    return PyBool_FromLong(self->counts.walk < self->counts.count);
}
