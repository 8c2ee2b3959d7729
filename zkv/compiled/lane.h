/* Declarations that the files of the lane share: a request after reading it, and a run. */

#ifndef ZKV_LANE_H
#define ZKV_LANE_H

#include "batch.h"
#include "names.h"
#include "store.h"

#define NAME_OF_OP(op, ...) op,
enum op { NONE, LANE_OPS(NAME_OF_OP) OPS };

typedef struct Prefixes Prefixes; /* what a user may do: rights.c */

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
    int timing;                  /* the reply is to say how long everything took */
    span trace;                  /* text, for the logs; `at` is NULL if there is none */
    const Prefixes *user;        /* NULL = everybody may do everything */
    step one;                    /* the request's own fields */
    step_list steps, conditions; /* `one`, or the lane's list, which the next request reuses */
} request;

typedef struct {
    PyObject_HEAD
    Table *table;
    Py_ssize_t max_key, max_value, max_batch, max_reply, max_levels;
    int durable;
    struct Keyspace *keyspace;
    /* The fields of `WriteHooks` in zkv/keyspace/store.py: `watchers` is a list, the others are
     * callables. */
    PyObject *forget_deadline, *notify_watchers, *watchers, *may_run, *remember;
    step_list steps, conditions; /* their counts are capacities */
    Py_ssize_t max_body;
    Py_ssize_t enough; /* bytes of replies in a batch after which no further request of it is run */
    /* Only of the lane of a worker: see long.c. `rest` is NULL if it is the front's. */
    PyObject *rest;
    Py_ssize_t slice; /* steps between two calls of `rest` */
    Py_ssize_t taken; /* steps since the last one */
    Py_ssize_t looked; /* those of them after which it looked whether the front waits */
    const unsigned char *body; /* the body that `ahead` was read from; NULL = none */
    request ahead;
} Lane;

#define UNLIMITED ((int64_t)1 << 62) /* the `room` of a run where there is no memory limit */

/* A run in progress. */
typedef struct run {
    int64_t rev, lsn, removed_rev, now, room, takes_writes, aside, logs;
    int64_t before; /* bytes that the table had when it began, as the memory limit counts them */
    Batch *batch;
    PyObject *left, *payloads; /* lists; NULL = empty */
    Replaced *replaced;
    size_t first; /* where the changes of the current request begin in `replaced` */
    size_t changes, bytes;
    size_t end; /* the place of the first request that is still to run */
    int64_t newest; /* the newest revision that a reply reveals */
    const struct run *past; /* of a run aside: the long run whose changes it does not see */
} run;

/* The revision of a record. Until it is committed, that of one which the current request has put
 * encodes its place in `replaced`: the first has the next revision, the second the one after. */
static inline int64_t rev_of(const run *r, const record *there)
{
    return there->rev > r->rev ? r->rev + 1 : there->rev;
}

/* --- Runs: lane.c ----------------------------------------------------------------------------- */

/* Run the requests of `r->batch` from `first` on and before `end`, until there are enough bytes of
 * replies. 0, with an exception, if there is no memory; then nothing was written, and there is
 * nothing to drop. Else exactly one of the two below must be called afterwards. */
int run_requests(Lane *, run *, size_t first, size_t end);
PyObject *run_result(const run *); /* as a Run */
void run_drop(run *);

/* --- Latencies: latencies.c ------------------------------------------------------------------- */

typedef struct Latencies Latencies;
struct SlowLog; /* states.h */

/* Count the answers that reveal no later revision than `up_to`. 1 if the batch is to be explained:
 * see latencies.c. */
int count_latencies(Latencies *, const Batch *, int64_t up_to, const struct SlowLog *);

/* --- Batches: batch.c ------------------------------------------------------------------------- */

extern int waiting_for_python; /* see `Batch` */

/* Memory for a reply of at most so many bytes. It is the same memory until `batch_answer` or
 * `batch_drop_reply` has been called. NULL if there is none. */
unsigned char *batch_begin_reply(Batch *, size_t most);
void batch_drop_reply(Batch *, unsigned char *);
void batch_answer(Batch *, size_t place, span reply, int op, int64_t reveals);

/* --- Rights: rights.c ------------------------------------------------------------------------- */

int may_read(const Prefixes *, span key);
int may_write(const Prefixes *, span key);
PyObject *scope_of(const Prefixes *); /* comes before the names of the user's sessions */
int64_t quota_of(const Prefixes *);   /* bytes that the entries it may write may take; 0 = any */
int64_t bytes_held(const Prefixes *, const Table *); /* that they take; -1 = not counted yet */

/* --- From a body to a request: request.c ------------------------------------------------------ */

/* 0 if the body is not a request for the lane. */
int read_request(Lane *, const unsigned char *body, size_t size, request *);
uint64_t to_digest(const request *); /* see zkv/keyspace/change.py */
const char *op_name(enum op);

static inline int is_once(const request *r) { return r->session.at != NULL; }

/* --- Long runs, and reads beside them: long.c ------------------------------------------------- */

int begin_long_runs(void); /* once; 0, with an exception, if there is no memory */

PyObject *lane_read(Lane *, PyObject *arguments);
int look_aside(const Lane *, run *); /* 0 if there is no long run */
record *past_of(const run *, record *);
void pace(Lane *, Py_ssize_t steps); /* call it after so many steps */
PyThreadState *leave_python(const Lane *); /* NULL in the front */
void return_to_python(PyThreadState *);

/* --- From the results to a reply: reply.c ----------------------------------------------------- */

/* The reply to send, or the one to remember: that has no id, and is not durable. In memory of
 * `batch_begin_reply`; `at` is NULL if there is none. */
span to_reply(const Lane *, const run *, const request *, int remembered);

#endif
