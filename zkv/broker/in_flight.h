/* Counts the bytes of large replies that wait: in the server, and in libzmq until its I/O thread has
 * written them. See zkv/broker/in_flight.py.
 *
 * An owner is a connection or a user. Small replies are not counted: `max_in_flight` bounds their
 * number. So they cost nothing. A thread that receives requests looks owners up only while at least
 * one is over its limit.
 *
 * Invariants: each function may be called in any thread, without Python's lock. An owner is known
 * as long as one of its replies waits. */

#ifndef ZKV_IN_FLIGHT_H
#define ZKV_IN_FLIGHT_H

#include <stddef.h>

typedef struct in_flight in_flight;

/* One counted reply. */
typedef struct receipt receipt;

enum { OWNERS = 2 }; /* of one reply, at most */

/* A connection or a user: a kind, a name among those of that kind, and the bytes that may wait. */
typedef struct {
    char kind;
    const void *name;
    size_t size;
    size_t limit;
} owner;

/* NULL if there is no memory. */
in_flight *in_flight_new(void);

/* Let go of it. It is freed once no counted reply waits any more. */
void in_flight_drop(in_flight *);

/* Count a reply. NULL if there is no memory. */
receipt *in_flight_count(in_flight *, const owner *owners, size_t count, size_t bytes);

/* Count a reply no longer: it has been written, or is dropped. */
void in_flight_uncount(receipt *);

/* 1 if at least one owner is over its limit. */
int in_flight_any_over(const in_flight *);

/* 1 if this owner is over its limit. Its `limit` is ignored. */
int in_flight_is_over(in_flight *, const owner *);

#endif
