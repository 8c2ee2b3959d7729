/* A hash map from owners to the bytes that wait for them, under one lock. See in_flight.h.
 *
 * The lock is held for a look into one chain. The number of owners over their limits is read without
 * it: a thread may act on a number that has just changed, and treats one batch by the older state. */

#include "in_flight.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { CHAINS = 1024 };

typedef struct waiting {
    struct waiting *next;
    uint64_t hash;
    size_t bytes, limit;
    size_t replies;
    size_t size; /* of the name */
    char kind;
    char name[];
} waiting;

struct in_flight {
    pthread_mutex_t lock; /* Protects the references and the chains. */
    atomic_size_t over;
    size_t references;
    uint64_t seed; /* Clients choose names: they must not know which share a chain. */
    waiting *chains[CHAINS];
};

struct receipt {
    in_flight *in;
    size_t bytes, count;
    waiting *of[OWNERS];
};

in_flight *in_flight_new(void)
{
    struct timespec now;
    in_flight *in = calloc(1, sizeof *in);
    if (in == NULL || pthread_mutex_init(&in->lock, NULL) != 0)
        return free(in), NULL;
    clock_gettime(CLOCK_REALTIME, &now);
    in->seed = ((uint64_t)now.tv_nsec << 32 ^ (uint64_t)now.tv_sec ^ (uintptr_t)in) | 1;
    in->references = 1;
    return in;
}

/* Give a reference back, and the lock. */
static void leave(in_flight *in, size_t references)
{
    in->references -= references;
    int last = in->references == 0;
    pthread_mutex_unlock(&in->lock);
    if (last) {
        pthread_mutex_destroy(&in->lock);
        free(in);
    }
}

void in_flight_drop(in_flight *in)
{
    pthread_mutex_lock(&in->lock);
    leave(in, 1);
}

static uint64_t hash_of(const in_flight *in, const owner *of)
{
    const unsigned char *at = of->name;
    uint64_t hash = in->seed + (unsigned char)of->kind;
    for (size_t i = 0; i < of->size; i++) {
        hash = (hash ^ at[i]) * UINT64_C(0x9E3779B97F4A7C15);
        hash ^= hash >> 29;
    }
    return hash;
}

/* The place of an owner in its chain: what it points to is NULL if the owner is not known. */
static waiting **find(in_flight *in, const owner *of, uint64_t hash)
{
    waiting **at = &in->chains[hash % CHAINS];
    while (*at != NULL && ((*at)->hash != hash || (*at)->kind != of->kind ||
                           (*at)->size != of->size || memcmp((*at)->name, of->name, of->size) != 0))
        at = &(*at)->next;
    return at;
}

/* Find an owner, or add it. NULL if there is no memory. */
static waiting *find_or_add(in_flight *in, const owner *of)
{
    uint64_t hash = hash_of(in, of);
    waiting **at = find(in, of, hash);
    if (*at != NULL || (*at = calloc(1, sizeof **at + of->size)) == NULL)
        return *at;
    (*at)->hash = hash;
    (*at)->kind = of->kind;
    (*at)->size = of->size;
    memcpy((*at)->name, of->name, of->size);
    return *at;
}

/* One reply is never too much: libzmq gives it back only some time after it has written it. */
static size_t is_over(const waiting *of) { return of->replies > 1 && of->bytes > of->limit; }

/* Change what waits for an owner, and forget it if that is nothing. */
static void change(in_flight *in, waiting *of, size_t replies, size_t bytes, size_t limit)
{
    size_t was_over = is_over(of);
    of->replies = replies;
    of->bytes = bytes;
    of->limit = limit;
    atomic_fetch_add(&in->over, is_over(of) - was_over); /* Unsigned: it wraps to a subtraction. */
    if (replies > 0)
        return;
    waiting **at = &in->chains[of->hash % CHAINS];
    while (*at != of)
        at = &(*at)->next;
    *at = of->next;
    free(of);
}

receipt *in_flight_count(in_flight *in, const owner *owners, size_t count, size_t bytes)
{
    receipt *made = malloc(sizeof *made);
    if (made == NULL)
        return NULL;
    *made = (receipt){.in = in, .bytes = bytes};
    pthread_mutex_lock(&in->lock);
    in->references++;
    for (; made->count < count; made->count++) {
        waiting *of = find_or_add(in, &owners[made->count]);
        if (of == NULL)
            break;
        change(in, of, of->replies + 1, of->bytes + bytes, owners[made->count].limit);
        made->of[made->count] = of;
    }
    pthread_mutex_unlock(&in->lock);
    if (made->count < count)
        return in_flight_uncount(made), NULL;
    return made;
}

void in_flight_uncount(receipt *of)
{
    in_flight *in = of->in;
    pthread_mutex_lock(&in->lock);
    for (size_t i = 0; i < of->count; i++) {
        waiting *each = of->of[i];
        change(in, each, each->replies - 1, each->bytes - of->bytes, each->limit);
    }
    leave(in, 1);
    free(of);
}

int in_flight_any_over(const in_flight *in)
{
    return atomic_load_explicit(&in->over, memory_order_relaxed) > 0;
}

int in_flight_is_over(in_flight *in, const owner *of)
{
    pthread_mutex_lock(&in->lock);
    const waiting *found = *find(in, of, hash_of(in, of));
    int over = found != NULL && is_over(found);
    pthread_mutex_unlock(&in->lock);
    return over;
}
