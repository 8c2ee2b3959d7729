/* Memory for records: blocks of pieces of one size.
 *
 * Strategy: a record is replaced by each write, so its memory is given back and taken again all the
 * time. malloc keeps small freed pieces apart, and merges thousands of them, which takes ms, when
 * anybody needs a large one. Here both take a few ns, and a piece has no head of its own. A block
 * is given back to malloc once all its pieces are free. Larger records are malloc's.
 *
 * Invariant: Python's lock is held. */

#include "store.h"

#include <stdlib.h>

#ifndef LARGEST /* A build with a sanitizer sets 0, since that watches only what malloc gives. */
#define LARGEST 512 /* bytes of a piece */
#endif

enum {
    STEP = 8,          /* sizes of pieces are multiples of this */
    BLOCK = 1 << 15,   /* bytes of a block, which begins at a multiple of this, */
    USED = BLOCK - 64, /* and leaves room for malloc's head of the next one */
};

typedef struct piece {
    struct piece *next;
} piece;

/* A block with a free piece is in the list of its size. */
typedef struct block {
    struct block *next, *previous;
    piece *freed;
    uint32_t size, fresh, live; /* of a piece; where those begin that were never used; pieces */
} block;

static block *lists[LARGEST / STEP + 1];

static int is_full(const block *b) { return b->freed == NULL && b->fresh + b->size > USED; }

static void link_block(block *b)
{
    block **list = &lists[b->size / STEP];
    b->previous = NULL;
    b->next = *list;
    if (b->next != NULL)
        b->next->previous = b;
    *list = b;
}

static void unlink_block(block *b)
{
    if (b->previous != NULL)
        b->previous->next = b->next;
    else
        lists[b->size / STEP] = b->next;
    if (b->next != NULL)
        b->next->previous = b->previous;
}

static block *new_block(uint32_t size)
{
    void *memory;
    if (posix_memalign(&memory, BLOCK, USED) != 0)
        return NULL;
    block *b = memory;
    *b = (block){.size = size, .fresh = (sizeof(block) + STEP - 1) / STEP * STEP};
    link_block(b);
    return b;
}

void *pool_take(size_t size)
{
    if (size > LARGEST)
        return malloc(size);
    size_t step = (size + STEP - 1) / STEP;
    block *b = lists[step];
    if (b == NULL && (b = new_block((uint32_t)(step * STEP))) == NULL)
        return NULL;
    piece *taken = b->freed;
    if (taken != NULL) {
        b->freed = taken->next;
    } else {
        taken = (piece *)((char *)b + b->fresh);
        b->fresh += b->size;
    }
    b->live++;
    if (is_full(b))
        unlink_block(b);
    return taken;
}

void pool_give(void *memory, size_t size)
{
    if (size > LARGEST) {
        free(memory);
        return;
    }
    block *b = (block *)((uintptr_t)memory & ~(uintptr_t)(BLOCK - 1));
    if (is_full(b))
        link_block(b);
    ((piece *)memory)->next = b->freed;
    b->freed = memory;
    if (--b->live == 0 && (b->next != NULL || b->previous != NULL)) { /* One is kept. */
        unlink_block(b);
        free(b);
    }
}
