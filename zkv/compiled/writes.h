/* What becomes of commits after a run: the log that writes them, and the history that keeps them. */

#ifndef ZKV_WRITES_H
#define ZKV_WRITES_H

#include "lane.h"

/* The names of attributes and methods, as interned texts. */
enum known_name {
    NAME_END, NAME_ACQUIRE, NAME_RELEASE,
    NAME_WRITE, NAME_SYNC, NAME_FAIL_WRITE, NAME_FAIL_SYNC, NAME_APPEND, NAME_POPLEFT, NAME_LSN,
    NAME_LISTENERS, NAME_REPLY, NAME_MOVE_TO_END, KNOWN_NAMES
};
extern PyObject *known_names[KNOWN_NAMES];

int begin_names(void); /* once, before all below; 0, with an exception, if there is no memory */

PyObject *take_exception(void); /* the one that there is, as an object */

/* The functions that a type with an array `objects` of references needs: `prefix`_traverse, _clear and
 * _dealloc. */
#define KEEPS_OBJECTS(prefix, Struct)                                                              \
    static int prefix##_traverse(Struct *self, visitproc visit, void *arg) /* for Py_VISIT */      \
    {                                                                                              \
        Py_VISIT(Py_TYPE((PyObject *)self));                                                       \
        for (size_t i = 0; i < sizeof self->objects / sizeof *self->objects; i++)                  \
            Py_VISIT(self->objects[i]);                                                            \
        return 0;                                                                                  \
    }                                                                                              \
                                                                                                   \
    static int prefix##_clear(Struct *self)                                                        \
    {                                                                                              \
        for (size_t i = 0; i < sizeof self->objects / sizeof *self->objects; i++)                  \
            Py_CLEAR(self->objects[i]);                                                            \
        return 0;                                                                                  \
    }                                                                                              \
                                                                                                   \
    static void prefix##_dealloc(Struct *self)                                                     \
    {                                                                                              \
        PyTypeObject *type = Py_TYPE((PyObject *)self);                                            \
        PyObject_GC_UnTrack(self);                                                                 \
        prefix##_clear(self);                                                                      \
        PyObject_GC_Del(self);                                                                     \
        Py_DECREF(type);                                                                           \
    }

/* --- What is counted: figures.c ---------------------------------------------------------------- */

/* See zkv/figures.py. */
typedef struct {
    PyObject_HEAD
    long long counts[STEPS];
    double total;
} Buckets;

/* See zkv/activity.py. */
typedef struct {
    PyObject_HEAD
    double since, least;
    char on; /* else `since` is None */
} Activity;

extern PyType_Spec buckets_spec, activity_spec;
extern PyTypeObject *buckets_type, *activity_type;

void buckets_add(Buckets *, int step, double value);
void activity_begin(Activity *, double now);
int activity_end(Activity *, double now); /* 0, with an exception, if there is no memory */

/* --- The write-ahead log: wal.c --------------------------------------------------------------- */

enum wal_object { QUEUE, IO, FILES, FILE_, ON_DISK, SYNC_TIMES, COMMITS_PER_SYNC, WAL_OBJECTS };

/* The numbers of a `Wal` in zkv/durability/wal.py, which says what each means. */
typedef struct {
    PyObject_HEAD
    long long last_lsn, appended_bytes;
    long long written_lsn, written_rev, written_bytes;
    long long durable_lsn, durable_rev, durable_bytes;
    long long kept_lsn, kept_rev, kept_bytes;
    long long safe_lsn, safe_rev, safe_bytes;
    long long offset, synced, salt, first_rev, segment_bytes;
    long long bytes_written, unlooked, syncs, epoch;
    long long told_bytes; /* `safe_bytes` when `on_safe` was called from here */
    double sync_seconds, quick_sync_seconds;
    char takes_commits, sync_each;
    char usual;  /* it alone decides what is safe, and when */
    char direct; /* its files are those of the system: see `Files` in zkv/durability/files.py */
    PyObject *objects[WAL_OBJECTS];
} Wal;

extern PyType_Spec wal_spec;
extern PyTypeObject *wal_type;

/* See `Wal.extend`. 0, with an exception, if there is no memory; then nothing was queued. */
int wal_extend(Wal *, PyObject *payloads, size_t size);
/* See `Wal.commit`: of all that is queued, and not patient. 1 if it is done, 0 if nothing was, which
 * leaves it to Python; -1, with an exception, if it failed. */
int wal_commit(Wal *, int durable);

/* --- The history: history.c ------------------------------------------------------------------- */

/* The numbers of a `History` in zkv/keyspace/history.py. */
typedef struct {
    PyObject_HEAD
    PyObject *payloads, *cursor;
    long long begin, changes, bytes, rev;
    long long most_changes, most_bytes, unread_changes, unread_bytes;
    char has_surplus;
} History;

extern PyType_Spec history_spec;
extern PyTypeObject *history_type;

/* See `History.extend`. 0, with an exception, if there is no memory. */
int history_extend(History *, PyObject *payloads, int64_t rev, size_t changes, size_t size,
                   int64_t safe_rev);

/* --- Sessions: sessions.c ---------------------------------------------------------------------- */

/* See zkv/keyspace/sessions.py. */
typedef struct {
    PyObject_HEAD
    long long used;
    unsigned long long newest;
    PyObject *replies, *share;
} ClientSession;

enum sessions_object { OF_NAMES, OF_REMEMBERED_TYPE, OF_WINDOW_TYPE, SESSIONS_OBJECTS };

/* What usual requests need of a `Sessions`. */
typedef struct {
    PyObject_HEAD
    long long window, ttl, most_bytes, replies, bytes, look_at;
    PyObject *objects[SESSIONS_OBJECTS];
} Sessions;

extern PyType_Spec session_spec, sessions_spec;
extern PyTypeObject *sessions_type;

/* The fields of a `Remembered`, and the time of its request. */
typedef struct {
    PyObject *digest, *reply;
    int64_t rev, lsn, now;
} reply_of;

/* The session of this name, if a request is its next one and there is certainly capacity for a reply
 * of `size` bytes: then `Sessions.recall` would return None, and `require_capacity` nothing. Borrowed;
 * else NULL, without an exception. */
ClientSession *sessions_next(const Sessions *, PyObject *name, uint64_t seq, size_t size,
                             int64_t now);
/* See `Sessions.remember`: of the next request of a session. The window goes into `windows`, a list.
 * 0, with an exception, if there is no memory; then nothing was remembered. */
int sessions_remember(Sessions *, ClientSession *, PyObject *name, const reply_of *,
                      PyObject *windows);

/* --- The keyspace: keyspace.c ----------------------------------------------------------------- */

enum keyspace_object {
    OF_LIMIT, OF_EVICTOR, OF_SEALED, OF_REMEMBERED, OF_UNDOS, OF_HISTORY, OF_SESSIONS, KEYSPACE_OBJECTS
};

/* What each run needs of a `Keyspace` in zkv/keyspace/store.py. */
typedef struct Keyspace {
    PyObject_HEAD
    long long rev, removed_rev;
    PyObject *objects[KEYSPACE_OBJECTS];
} Keyspace;

extern PyType_Spec keyspace_spec;
extern PyTypeObject *keyspace_type;

/* Log and remember the commits of a run, of which nothing is evicted: see `Keyspace.add_run`.
 * `undo`: the class `Undo`. */
void keyspace_add_run(Keyspace *, Wal *, const run *, PyObject *undo);

/* The places in a payload: see zkv/keyspace/change.py. */
enum { REVISION_AT = 2, CHANGES_AT = 28 };

#endif
