/* Which entries of a cache to evict: `pick` in zkv/keyspace/table.py says which.
 *
 * Strategy: exact LRU would need a list through all entries, which each read would change. Here a
 * key has only a clock of four bytes, beside its slot, and the worst of a random sample are evicted.
 * With ten for each eviction a cache has more than 0.99 of the hits of exact LRU. Nobody pays for
 * clocks before they are asked for.
 *
 * A clock shows the run of a lane, or the call of Python, in which its key was last used. A key that
 * nobody has used for 2^32 of these looks newer than it is, once.
 *
 * Invariant: what is picked is in the range that was asked for. */

#include "store.h"

#include <stdlib.h>

enum { SAMPLES = 10 }; /* entries that are looked at for each one that is picked */

/* An entry that may be picked: the lowest rank goes first, then what was written first. */
typedef struct {
    uint64_t rank;
    int64_t rev;
    uint32_t number;
} candidate;

/* Add clocks behind the slots. All show 0, which is long ago. */
PyObject *table_keep_clocks(Table *self, PyObject *unused)
{
    for (uint32_t first = 0; !self->clocked && first < self->used; first += SLOTS) {
        slot **chunk = &self->chunks[first >> SLOT_BITS];
        slot *larger = realloc(*chunk, SLOTS * (sizeof(slot) + sizeof(uint32_t)));
        if (larger == NULL)
            return PyErr_NoMemory();
        *chunk = larger;
        memset(larger + SLOTS, 0, SLOTS * sizeof(uint32_t));
        if (UINT32_MAX - first < SLOTS)
            break;
    }
    self->clocked = 1;
    Py_RETURN_NONE;
}

/* --- Sampling --------------------------------------------------------------------------------- */

static uint64_t random_number(Table *self)
{
    uint64_t number = self->chance += 0x9e3779b97f4a7c15; /* SplitMix64 */
    number = (number ^ number >> 30) * 0xbf58476d1ce4e5b9;
    number = (number ^ number >> 27) * 0x94d049bb133111eb;
    return number ^ number >> 31;
}

/* The number of keys between two positions; if there are more than `most`, some larger number. */
static size_t count_between(const Table *self, const position *first, const position *end,
                            size_t most)
{
    size_t count = 0;
    for (size_t i = first->leaf; i < end->leaf && count <= most + first->place; i++)
        count += self->index.leaves[i].count;
    return count + end->place - first->place;
}

/* The slot at a random position between two: each is as likely as any other. 0 if there is none. */
static uint32_t draw(Table *self, const position *first, const position *end)
{
    uint64_t number = random_number(self);
    position at = {first->leaf + (number >> 32) % (end->leaf - first->leaf + 1),
                   (uint32_t)number % LEAF_SLOTS};
    if (at.place >= self->index.leaves[at.leaf].count || is_before(&at, first) ||
        !is_before(&at, end))
        return 0;
    return self->index.leaves[at.leaf].slots[at.place];
}

/* Find candidates between two positions: all if there are at most so many, else a sample, in which
 * some may be twice. */
static size_t find_candidates(Table *self, position first, position end, candidate *to, size_t most)
{
    size_t count = 0;
    if (!is_before(&first, &end))
        return 0;
    if (count_between(self, &first, &end, most) <= most) {
        while (is_before(&first, &end))
            to[count++].number = index_next(self, &first);
        return count;
    }
    while (count < most)
        if ((to[count].number = draw(self, &first, &end)) != 0)
            __builtin_prefetch(table_slot(self, to[count++].number));
    return count;
}

/* --- Choosing --------------------------------------------------------------------------------- */

static uint64_t rank_of(const Table *self, const candidate *of, const record *at, int by_expiry)
{
    if (by_expiry)
        return at->expiring ? (uint64_t)record_expires(at) : UINT64_MAX;
    return UINT32_MAX - (self->time - *table_clock(self, of->number));
}

static int compare(const void *first, const void *second)
{
    const candidate *a = first, *b = second;
    if (a->rank != b->rank)
        return a->rank < b->rank ? -1 : 1;
    if (a->rev != b->rev)
        return a->rev < b->rev ? -1 : 1;
    return (a->number > b->number) - (a->number < b->number);
}

static void sort(const Table *self, candidate *found, size_t count, int by_expiry)
{
    for (size_t i = 0; i < count; i++)
        __builtin_prefetch(table_slot(self, found[i].number)->at);
    for (size_t i = 0; i < count; i++) {
        const record *at = table_slot(self, found[i].number)->at;
        found[i].rank = rank_of(self, &found[i], at, by_expiry);
        found[i].rev = at->rev;
    }
    qsort(found, count, sizeof *found, compare);
}

/* The first candidates, as pairs of a key and its bytes. NULL, with an exception, if there is no
 * memory. */
static PyObject *to_picked(const Table *self, const candidate *found, size_t count, size_t most)
{
    PyObject *picked = PyList_New(0);
    uint32_t last = 0;
    for (size_t i = 0; picked != NULL && i < count && most > 0; i++) {
        const record *at = table_slot(self, found[i].number)->at;
        if (found[i].number == last)
            continue;
        last = found[i].number;
        most--;
        Py_ssize_t bytes = (Py_ssize_t)at->key_size + (Py_ssize_t)at->value_size;
        if (!list_append(picked, Py_BuildValue("(Nn)", record_key(at), bytes)))
            Py_CLEAR(picked);
    }
    return picked;
}

/* pick(keys, most, by_expiry) */
PyObject *table_pick(Table *self, PyObject *arguments)
{
    PyObject *range;
    Py_ssize_t most;
    int by_expiry;
    position first, end;
    if (!PyArg_ParseTuple(arguments, "Onp", &range, &most, &by_expiry) ||
        !table_range(self, range, &first, &end))
        return NULL;
    if (most < 0 || most > UINT32_MAX || (!by_expiry && !self->clocked))
        return PyErr_Format(PyExc_ValueError, "pick() needs a number, and clocks");
    candidate *found = malloc(((size_t)most * SAMPLES + 1) * sizeof *found);
    if (found == NULL)
        return PyErr_NoMemory();
    size_t count = find_candidates(self, first, end, found, (size_t)most * SAMPLES);
    sort(self, found, count, by_expiry);
    PyObject *picked = to_picked(self, found, count, (size_t)most);
    free(found);
    return picked;
}
