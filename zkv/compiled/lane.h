/* What the parts of the lane share: a request as it is read, and the run that carries it out. */

#ifndef ZKV_LANE_H
#define ZKV_LANE_H

#include "names.h"
#include "store.h"

#define NAME_OF_OP(op, ...) op,
enum op { NONE, LANE_OPS(NAME_OF_OP) OPS };

/* What a request asks for of one key: all of it, or one of its keys, items, ops or conditions. */
typedef struct {
    enum op op; /* GET, PUT or INCR; NONE = a condition */
    span key, value;
    int64_t number; /* what an INCR adds; the revision that a condition wants */
    uint32_t hash;
    record *there; /* what it has found, or has put there; NULL = nothing */
} step;

typedef struct {
    step *at;
    size_t count;
} step_list;

typedef struct {
    enum op op;
    span id, session; /* packed; text. `at` is NULL where it has none */
    uint64_t seq;
    step one;                    /* its own fields */
    step_list steps, conditions; /* that one; one of the lane's, until it reads another request */
} request;

/* The lists of an `Answers` in zkv/requests/lane.py. */
enum { REPLIES, REVEALS, OP_NAMES, SUBJECTS, LISTS };

typedef struct {
    PyObject_HEAD
    Table *table;
    PyObject *commit_type;
    Py_ssize_t max_key, max_value, max_batch, max_reply, max_levels;
    int durable;
    /* The fields of `WriteHooks` in zkv/keyspace/store.py: `watchers` is a list, the others are
     * callables. */
    PyObject *add_key, *forget_deadline, *notify_watchers, *watchers, *may_run, *remember;
    PyObject *names[OPS], *list_names[LISTS]; /* interned strings */
    step_list steps, conditions; /* room for so many */
} Lane;

/* A run in the making. What stands in capitals in its comments is Python's, and borrowed. */
typedef struct {
    int64_t rev, removed_rev, now, takes_writes;
    PyObject *replies, *reveals, *ops, *subjects;  /* LISTS; subjects may be None */
    PyObject *commits;                          /* a list */
    Replaced *replaced;
    size_t changes, bytes;
    int64_t newest; /* the newest revision that any reply tells of */
} run;

/* --- From a body to a request: request.c ------------------------------------------------------ */

int read_request(Lane *, const unsigned char *body, size_t size, request *); /* whether it is one */
uint64_t to_digest(const request *); /* what tells it from another one with its seq */
const char *op_name(enum op);

static inline int is_once(const request *r) { return r->session.at != NULL; }

/* --- From what came of it to a reply: reply.c ------------------------------------------------- */

/* Bytes in the making; most are few enough for no memory of their own. */
typedef struct {
    unsigned char *start, few[1024];
} draft;

unsigned char *draft_begin(draft *, size_t most);       /* NULL where memory ends */
PyObject *draft_end(draft *, const unsigned char *end); /* as bytes; likewise */

/* As it is sent, or as it is remembered: without an id, and on no disk yet. NULL as above. */
PyObject *to_reply(const Lane *, const run *, const request *, int remembered);

#endif
