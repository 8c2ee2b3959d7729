/* A batch of requests and their replies: shared by the store, which defines the type (batch.c), and
 * by zkv/broker/_frames.c, which puts messages of libzmq into it and sends the replies.
 *
 * Each of the two modules has functions of its own, and both are built from this file. */

#ifndef ZKV_BATCH_H
#define ZKV_BATCH_H

#ifndef Py_LIMITED_API
#define Py_LIMITED_API 0x030B0000
#endif
#include <Python.h>

#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { ARENA_BYTES = 1 << 16 };

/* One request, and its reply. */
typedef struct {
    const unsigned char *body; /* NULL if the message has none, or is malformed */
    size_t size;
    PyObject *object;   /* what Python sees as the body; NULL = it is made from `body` */
    PyObject *envelope; /* the frames before the body, if Python added the request; else NULL */
    size_t first, end;  /* the message's frames in `Batch.frames`, if it came from libzmq */
    unsigned char *reply; /* NULL = there is none yet, or it has been sent */
    size_t reply_size;
    PyObject *reply_owner; /* the bytes object that holds the reply; else NULL */
    PyObject *subject;     /* for the request log, if the lane has answered; may be NULL */
    PyObject *trace;       /* likewise */
    size_t keys;           /* of a request that the lane has answered, if it has not just one */
    size_t trace_at, trace_size; /* then: where its trace is in the body; nowhere if it has none */
    int64_t reveals;       /* the newest revision that the lane's reply reveals */
    int op;                /* `enum op` in lane.h, if the lane has answered; else NONE */
    int timed;             /* the lane's reply is to say how long everything took */
    double arrived, waited; /* of a request that the front has left: see `stamp` */
    char *user_id;  /* what libzmq tells of the sender, if it is not in `frames`; NULL = nothing */
    PyObject *user; /* a `User` of zkv/users/rights.py; NULL = everybody may do everything */
    PyObject *overload; /* an `Overload`: the request must not run; NULL = it may */
    const char *user_name; /* of the user, if there is a limit for the replies that wait for it */
    size_t user_limit;     /* bytes; 0 = there is none */
    void *receipt; /* if its reply is counted already: see zkv/broker/in_flight.h */
} item;

/* What the front tells a worker of a request that it leaves to it. The User-Id follows, if users
 * are known. */
typedef struct {
    double arrived; /* when the front took it up: seconds, by the clock of `time.perf_counter` */
    double waited;  /* for how many seconds the front has waited for the lock since then */
} stamp;

typedef struct Batch Batch;

/* The functions of _frames.c for the frames of a batch, to which only they have access. */
typedef struct {
    void (*drop)(Batch *);
    int (*reserve)(Batch *, size_t more); /* 0 if there is no memory */
    void (*move)(Batch *from, Batch *to, item *); /* an item's; `to` has the capacity */
    void (*uncount)(item *); /* of an item with a receipt */
} frame_calls;

struct Batch {
    PyObject_HEAD
    PyObject *no_memory; /* what Python sees if there is no memory for a body */
    item *items;
    size_t count, room;
    double taken, waited; /* the same of the whole batch, in the thread that has received it */
    int timed;    /* an item may be `timed` */
    unsigned char *arena; /* of small replies, ARENA_BYTES; NULL until it is needed */
    size_t used;
    size_t replied; /* bytes of the lane's replies */
    void *frames;
    size_t frame_count, frame_room;
    const frame_calls *calls; /* NULL if there are no frames */
    int *waiting; /* how many fronts wait for Python's lock, in the whole process */
};

/* Seconds, by the clock of `time.perf_counter`. */
static inline double clock_now(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

/* When the front took up a request. */
static inline double arrival(const Batch *batch, const item *of)
{
    return of->arrived > 0 ? of->arrived : batch->taken;
}

/* 1 if this memory is part of the arena. A reply without owner is either there or from malloc. */
static inline int in_arena(const Batch *batch, const unsigned char *at)
{
    return batch->arena != NULL && at >= batch->arena && at < batch->arena + ARENA_BYTES;
}

/* Drop a reply that has been sent, or that another one replaces. */
static inline void drop_reply(const Batch *batch, item *of)
{
    if (of->reply_owner == NULL && !in_arena(batch, of->reply))
        free(of->reply);
    Py_CLEAR(of->reply_owner);
    of->reply = NULL;
}

static inline void clear_batch(Batch *batch)
{
    for (size_t i = 0; i < batch->count; i++) {
        item *of = &batch->items[i];
        drop_reply(batch, of);
        if (of->receipt != NULL)
            batch->calls->uncount(of);
        Py_XDECREF(of->object);
        Py_XDECREF(of->envelope);
        Py_XDECREF(of->subject);
        Py_XDECREF(of->trace);
        Py_XDECREF(of->user);
        Py_XDECREF(of->overload);
        free(of->user_id);
    }
    batch->count = batch->used = batch->replied = 0;
    batch->timed = 0;
    batch->waited = 0;
    if (batch->calls != NULL)
        batch->calls->drop(batch);
}

/* The capacity to which to grow: a batch that is split off takes no more than it needs. */
static inline size_t to_room(size_t room, size_t needed)
{
    return needed <= room ? room : needed > 2 * room ? needed : 2 * room;
}

/* Reserve memory for more items. 0 if there is none. */
static inline int reserve_items(Batch *batch, size_t more)
{
    size_t room = to_room(batch->room, batch->count + more);
    item *items = room == batch->room ? batch->items : realloc(batch->items, room * sizeof *items);
    if (items == NULL && room > 0)
        return 0;
    batch->items = items;
    batch->room = room;
    return 1;
}

/* Return the place for one more item, which does not count yet. NULL if there is no memory. */
static inline item *next_item(Batch *batch)
{
    if (!reserve_items(batch, 1))
        return NULL;
    return memset(&batch->items[batch->count], 0, sizeof(item));
}

#endif
