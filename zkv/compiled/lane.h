/* Declarations that the files of the lane share: a request after reading it, and a run. */

#ifndef ZKV_LANE_H
#define ZKV_LANE_H

#include "batch.h"
#include "names.h"
#include "store.h"

#define NAME_OF_OP(op, ...) op,
enum op { NONE, LANE_OPS(NAME_OF_OP) OPS };

/* What a request does with one key: the request itself, or one of its keys, items, ops,
 * conditions. */
typedef struct {
    enum op op; /* GET, PUT or INCR; NONE = a condition */
    span key, value;
    int64_t number; /* of an INCR: what to add; of a condition: the revision */
    uint32_t hash;
    record *there; /* the record that it has found or staged; NULL = none */
} step;

typedef struct {
    step *at;
    size_t count;
} step_list;

typedef struct {
    enum op op;
    span id, session; /* packed; text. `at` is NULL if the request has none */
    uint64_t seq;
    step one;                    /* the request's own fields */
    step_list steps, conditions; /* `one`, or the lane's list, which the next request reuses */
} request;

typedef struct {
    PyObject_HEAD
    Table *table;
    Py_ssize_t max_key, max_value, max_batch, max_reply, max_levels;
    int durable;
    /* The fields of `WriteHooks` in zkv/keyspace/store.py: `watchers` is a list, the others are
     * callables. */
    PyObject *add_key, *forget_deadline, *notify_watchers, *watchers, *may_run, *remember;
    step_list steps, conditions; /* their counts are capacities */
} Lane;

/* A run in progress. */
typedef struct {
    int64_t rev, removed_rev, now, takes_writes, logs;
    Batch *batch;
    PyObject *left, *payloads; /* lists */
    Replaced *replaced;
    size_t changes, bytes;
    int64_t newest; /* the newest revision that a reply reveals */
} run;

int append(PyObject *list, PyObject *item); /* takes the reference, which may be NULL; 0 = failed */

/* --- Batches: batch.c ------------------------------------------------------------------------- */

/* Memory for a reply of at most so many bytes. It is the same memory until `batch_answer` or
 * `batch_drop_reply` has been called. NULL if there is none. */
unsigned char *batch_begin_reply(Batch *, size_t most);
void batch_drop_reply(Batch *, unsigned char *);
void batch_answer(Batch *, size_t place, span reply, int op, int64_t reveals);

/* --- From a body to a request: request.c ------------------------------------------------------ */

/* 0 if the body is not a request for the lane. */
int read_request(Lane *, const unsigned char *body, size_t size, request *);
uint64_t to_digest(const request *); /* see zkv/keyspace/change.py */
const char *op_name(enum op);

static inline int is_once(const request *r) { return r->session.at != NULL; }

/* --- From the results to a reply: reply.c ----------------------------------------------------- */

/* The reply to send, or the one to remember: that has no id, and is not durable. In memory of
 * `batch_begin_reply`; `at` is NULL if there is none. */
span to_reply(const Lane *, const run *, const request *, int remembered);

#endif
