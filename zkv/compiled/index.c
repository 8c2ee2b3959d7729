/* The ordered index of a table: the slots of its keys, in the order of the keys' bytes.
 *
 * Strategy: a sorted list in two levels. Slots are in leaves of up to 512; an array has the leaves,
 * each with a lower bound of its keys. To find a key takes one binary search in the array and one
 * in a leaf. A leaf that is full is split; one that has become small is merged with its neighbour.
 * A key behind all others is appended, and fills the leaves completely: it costs one comparison.
 * The keys that a table gets before the first use of its order are sorted together.
 *
 * Invariants: once it is built, the index has the same keys as the table. It holds numbers of
 * slots, not records, so it changes only with the set of keys. The lower bounds are copies, and
 * stay true whichever keys are removed. */

#include "store.h"

#include <stdlib.h>

enum { SMALL_LEAF = LEAF_SLOTS / 4, PROBES = 7 };

/* --- Searching -------------------------------------------------------------------------------- */

int compare_keys(const unsigned char *first, size_t first_size, const unsigned char *second,
                 size_t second_size)
{
    int order = memcmp(first, second, first_size < second_size ? first_size : second_size);
    return order ? order : (first_size > second_size) - (first_size < second_size);
}

static const record *record_at(const Table *self, uint32_t number)
{
    return table_slot(self, number)->at;
}

static size_t find_leaf(const ordered *index, const unsigned char *key, size_t size)
{
    size_t low = 1, high = index->count;
    while (low < high) {
        size_t middle = (low + high) / 2;
        const leaf *each = &index->leaves[middle];
        if (compare_keys(each->low, each->low_size, key, size) <= 0)
            low = middle + 1;
        else
            high = middle;
    }
    return low - 1;
}

/* Find a place in a leaf. In a large table nearly each comparison waits for memory, so seven keys
 * that divide the leaf are fetched at once: that is three waits instead of nine. */
static uint32_t find_place(const Table *self, const leaf *in, const unsigned char *key, size_t size,
                           int after)
{
    uint32_t low = 0, high = in->count, probes[PROBES];
    while (low < high) {
        for (uint32_t i = 0; i < PROBES; i++) {
            probes[i] = low + (high - low) * (i + 1) / (PROBES + 1);
            __builtin_prefetch(table_slot(self, in->slots[probes[i]]));
        }
        for (uint32_t i = 0; i < PROBES; i++)
            __builtin_prefetch(record_at(self, in->slots[probes[i]]));
        for (uint32_t i = 0; i < PROBES && probes[i] < high; i++) {
            const record *each = record_at(self, in->slots[probes[i]]);
            if (compare_keys(each->bytes, each->key_size, key, size) < after)
                low = probes[i] + 1;
            else
                high = probes[i];
        }
    }
    return low;
}

static position find(const Table *self, const unsigned char *key, size_t size, int after)
{
    size_t leaf = find_leaf(&self->index, key, size);
    return (position){leaf, find_place(self, &self->index.leaves[leaf], key, size, after)};
}

position index_last(const Table *self)
{
    size_t last = self->index.count - 1;
    return (position){last, self->index.leaves[last].count};
}

/* Let a position behind a leaf be that before the next leaf, if there is one. */
static position normal(const ordered *index, position at)
{
    if (at.place == index->leaves[at.leaf].count && at.leaf + 1 < index->count)
        return (position){at.leaf + 1, 0};
    return at;
}

position index_seek(const Table *self, const unsigned char *key, size_t size, int after)
{
    return normal(&self->index, find(self, key, size, after));
}

uint32_t index_next(const Table *self, position *at)
{
    uint32_t number = self->index.leaves[at->leaf].slots[at->place++];
    *at = normal(&self->index, *at);
    return number;
}

uint32_t index_previous(const Table *self, position *at)
{
    if (at->place == 0)
        at->place = self->index.leaves[--at->leaf].count;
    return self->index.leaves[at->leaf].slots[--at->place];
}

size_t index_rank(const Table *self, const position *at)
{
    size_t rank = at->place;
    for (size_t i = 0; i < at->leaf; i++)
        rank += self->index.leaves[i].count;
    return rank;
}

int is_before(const position *first, const position *second)
{
    return first->leaf != second->leaf ? first->leaf < second->leaf : first->place < second->place;
}

/* --- Changing --------------------------------------------------------------------------------- */

/* Add an empty leaf at a place in the array, with a key as its lower bound. */
static int add_leaf(ordered *index, size_t place, const record *low)
{
    uint32_t *slots = malloc(LEAF_SLOTS * sizeof *slots);
    unsigned char *bytes = low == NULL ? NULL : malloc(low->key_size + 1);
    leaf *leaves = index->leaves;
    size_t room = index->room;
    if (index->count == room)
        leaves = realloc(leaves, (room = 2 * room + 1) * sizeof *leaves);
    if (leaves != NULL) {
        index->leaves = leaves;
        index->room = room;
    }
    if (slots == NULL || (bytes == NULL && low != NULL) || leaves == NULL)
        return free(slots), free(bytes), 0;
    memmove(&leaves[place + 1], &leaves[place], (index->count - place) * sizeof *leaves);
    leaves[place] = (leaf){slots, bytes, 0, 0};
    if (low != NULL) {
        memcpy(bytes, low->bytes, low->key_size);
        leaves[place].low_size = low->key_size;
    }
    index->count++;
    return 1;
}

static void remove_leaf(ordered *index, size_t place)
{
    leaf *gone = &index->leaves[place];
    free(gone->slots);
    free(gone->low);
    memmove(gone, gone + 1, (--index->count - place) * sizeof *gone);
}

/* Append the last slots of one leaf, from `first` on, to another. */
static void move(leaf *from, uint32_t first, leaf *to)
{
    memcpy(&to->slots[to->count], &from->slots[first], (from->count - first) * sizeof *to->slots);
    to->count += from->count - first;
    from->count = first;
}

/* Split a full leaf in which a key belongs at `at`; returns the key's place by `at`. */
static int split(Table *self, position *at, const record *key)
{
    ordered *index = &self->index;
    if (at->place == LEAF_SLOTS && at->leaf + 1 == index->count) {
        if (!add_leaf(index, index->count, key))
            return 0;
        *at = (position){at->leaf + 1, 0};
        return 1;
    }
    enum { HALF = LEAF_SLOTS / 2 };
    uint32_t middle = index->leaves[at->leaf].slots[HALF];
    if (!add_leaf(index, at->leaf + 1, record_at(self, middle)))
        return 0;
    move(&index->leaves[at->leaf], HALF, &index->leaves[at->leaf + 1]);
    if (at->place > HALF)
        *at = (position){at->leaf + 1, at->place - HALF};
    return 1;
}

/* 1 if a key is behind all others. */
static int is_last(const Table *self, const record *key)
{
    position end = index_last(self);
    if (end.place == 0)
        return 1;
    const record *last = record_at(self, index_previous(self, &end));
    return compare_keys(last->bytes, last->key_size, key->bytes, key->key_size) < 0;
}

int index_insert(Table *self, uint32_t number)
{
    const record *key = record_at(self, number);
    position at = is_last(self, key) ? index_last(self) : find(self, key->bytes, key->key_size, 0);
    if (self->index.leaves[at.leaf].count == LEAF_SLOTS && !split(self, &at, key))
        return 0;
    leaf *to = &self->index.leaves[at.leaf];
    uint32_t *place = &to->slots[at.place];
    memmove(place + 1, place, (to->count++ - at.place) * sizeof *place);
    *place = number;
    return 1;
}

/* Merge a leaf with the next one if one of them is small. */
static void merge(ordered *index, size_t first)
{
    leaf *one = &index->leaves[first], *other = one + 1;
    int small = one->count < SMALL_LEAF || other->count < SMALL_LEAF;
    if (small && one->count + other->count <= LEAF_SLOTS) {
        move(other, 0, one);
        remove_leaf(index, first + 1);
    }
}

void index_remove(Table *self, const unsigned char *key, size_t size)
{
    ordered *index = &self->index;
    position at = find(self, key, size, 0);
    leaf *from = &index->leaves[at.leaf];
    uint32_t *place = &from->slots[at.place];
    memmove(place, place + 1, (--from->count - at.place) * sizeof *place);
    if (at.leaf + 1 < index->count)
        merge(index, at.leaf);
    if (at.leaf > 0 && at.leaf < index->count)
        merge(index, at.leaf - 1);
}

/* --- Building --------------------------------------------------------------------------------- */

/* A key to sort: most comparisons look only at the first bytes in which keys differ. */
typedef struct {
    uint64_t head;
    const record *key;
    uint32_t number;
} sortable;

static int compare_sortable(const void *first, const void *second)
{
    const sortable *a = first, *b = second;
    if (a->head != b->head)
        return a->head < b->head ? -1 : 1;
    return compare_keys(a->key->bytes, a->key->key_size, b->key->bytes, b->key->key_size);
}

static size_t common_size(const record *a, const record *b, size_t most)
{
    size_t size = 0;
    most = most < a->key_size ? most : a->key_size;
    most = most < b->key_size ? most : b->key_size;
    while (size < most && a->bytes[size] == b->bytes[size])
        size++;
    return size;
}

/* The eight bytes of a key after the first `skipped`, as a number; zeros follow its end. */
static uint64_t to_head(const record *key, size_t skipped)
{
    uint64_t head = 0;
    for (size_t i = skipped; i < skipped + 8; i++)
        head = head << 8 | (i < key->key_size ? key->bytes[i] : 0);
    return head;
}

/* List the keys of a table in order. Those of a snapshot have been put in order. */
static void list_keys(const Table *self, sortable *to)
{
    size_t count = 0, common = SIZE_MAX;
    int sorted = 1;
    for (uint32_t number = 1; number < self->used; number++) {
        const record *key = record_at(self, number);
        if (key == NULL)
            continue;
        to[count] = (sortable){0, key, number};
        common = common_size(to->key, key, common);
        sorted = sorted && (count == 0 || compare_sortable(&to[count - 1], &to[count]) < 0);
        count++;
    }
    for (size_t i = 0; i < count && !sorted; i++)
        to[i].head = to_head(to[i].key, common);
    if (!sorted)
        qsort(to, count, sizeof *to, compare_sortable);
}

static int append(ordered *index, const sortable *key)
{
    if (index->leaves[index->count - 1].count == LEAF_SLOTS &&
        !add_leaf(index, index->count, key->key))
        return 0;
    leaf *last = &index->leaves[index->count - 1];
    last->slots[last->count++] = key->number;
    return 1;
}

int index_build(Table *self)
{
    ordered *index = &self->index;
    if (index->count > 0)
        return 1;
    sortable *keys = malloc((self->count + 1) * sizeof *keys);
    int well = keys != NULL && add_leaf(index, 0, NULL);
    if (well)
        list_keys(self, keys);
    for (size_t i = 0; well && i < self->count; i++)
        well = append(index, &keys[i]);
    free(keys);
    if (!well)
        index_end(index);
    return well;
}

void index_end(ordered *index)
{
    while (index->count > 0)
        remove_leaf(index, index->count - 1);
    free(index->leaves);
    *index = (ordered){0};
}
