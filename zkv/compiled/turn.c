/* A turn of the front: what becomes of one batch, as `FrontHandler` in zkv/broker/front.py says.
 *
 * Strategy: most batches have only requests that the lane answers, and reveal only what is safe. For
 * these the steps of `FrontHandler` are made here: with one small request in a batch, Python would
 * take several times as long for them as for the request. Whatever else comes up (a lock that is not
 * free, requests that are left, commits that are not safe yet, lines for the request log) is handed
 * to `finish`, with the results of the run as far as there are any.
 *
 * Invariants: Python's lock is held throughout, and the keyspace's during the run. What the store
 * and the log know stays in their objects, and is read from there in each turn. The order of the
 * steps is that of zkv/broker/waiting.py. */

#include "states.h"
#include "writes.h"

#include <time.h>

/* What a turn uses. */
enum use {
    KEYSPACE, LOG, STOPPING, ROLE, ACCOUNT, SLOW, ACQUIRE, RELEASE, NOW, FINISH, UNDO, WRITING,
    USES
};

/* The attributes that it reads, and the methods that it calls. */
enum name {
    EPOCH, SAFE_REV, LAST_LSN, CONFIRMS_READS, LEADS, TAKES_RUNS, ROOM, ADD_RUN, COMMIT, EXPLAIN,
    NAMES
};

static const char *const texts[NAMES] = {
    [EPOCH] = "epoch",
    [SAFE_REV] = "safe_rev",
    [LAST_LSN] = "last_lsn",
    [CONFIRMS_READS] = "confirms_reads",
    [LEADS] = "leads",
    [TAKES_RUNS] = "takes_runs",
    [ROOM] = "room",
    [ADD_RUN] = "add_run",
    [COMMIT] = "commit",
    [EXPLAIN] = "explain",
};

typedef struct {
    PyObject_HEAD
    Lane *lane;
    Latencies *latencies;
    PyObject *uses[USES], *names[NAMES];
    Keyspace *keyspace;
    Wal *wal;     /* the log, if it is one of files; else NULL */
    const Switch *stopping, *account;
    const Switch *role; /* NULL if it has to be asked whether it leads */
    const SlowLog *slow;
    const Activity *writing; /* NULL if no snapshot is ever written */
    const Clock *clock; /* NULL if it is another one than that of zkv/clock.py */
    int secures;  /* commits are safe once they are written, for which the front does not wait */
} Turn;

/* --- Reading: -1, with an exception, if that or what was read before fails ---------------------- */

static int64_t read_number(const Turn *self, enum use of, enum name name)
{
    PyObject *value =
        PyErr_Occurred() ? NULL : PyObject_GetAttr(self->uses[of], self->names[name]);
    int64_t number = value == NULL ? -1 : PyLong_AsLongLong(value);
    Py_XDECREF(value);
    return number;
}

static int read_flag(const Turn *self, enum use of, enum name name)
{
    PyObject *value =
        PyErr_Occurred() ? NULL : PyObject_GetAttr(self->uses[of], self->names[name]);
    int flag = value == NULL ? -1 : PyObject_IsTrue(value);
    Py_XDECREF(value);
    return flag;
}

static int call_flag(const Turn *self, enum use of, PyObject *argument)
{
    PyObject *value =
        PyErr_Occurred() ? NULL : PyObject_CallFunctionObjArgs(self->uses[of], argument, NULL);
    int flag = value == NULL ? -1 : PyObject_IsTrue(value);
    Py_XDECREF(value);
    return flag;
}

static int64_t read_safe_rev(const Turn *self)
{
    return self->wal != NULL ? self->wal->safe_rev : read_number(self, LOG, SAFE_REV);
}

/* The epoch of the log. */
static int64_t read_epoch(const Turn *self)
{
    int own = self->wal != NULL && self->wal->usual;
    return own ? self->wal->epoch : read_number(self, LOG, EPOCH);
}

/* See `Keyspace.takes_runs`. */
static int read_takes_runs(const Turn *self)
{
    if (self->wal == NULL || self->keyspace->objects[OF_EVICTOR] != Py_None)
        return read_flag(self, KEYSPACE, TAKES_RUNS);
    return self->wal->takes_commits && self->keyspace->objects[OF_SEALED] == Py_None;
}

/* The time in ms: see zkv/clock.py. */
static int64_t read_now(const Turn *self)
{
    if (self->clock == NULL) {
        PyObject *now = PyObject_CallNoArgs(self->uses[NOW]);
        int64_t number = now == NULL ? -1 : PyLong_AsLongLong(now);
        Py_XDECREF(now);
        return number;
    }
#ifdef CLOCK_BOOTTIME
    const clockid_t uptime = CLOCK_BOOTTIME;
#else
    const clockid_t uptime = CLOCK_MONOTONIC;
#endif
    struct timespec up;
    clock_gettime(uptime, &up);
    return self->clock->base + (int64_t)up.tv_sec * 1000 + up.tv_nsec / 1000000;
}

/* --- A turn ----------------------------------------------------------------------------------- */

/* Leave the rest to Python. Takes the references to the run, NULL if nothing has run, and to what
 * `secure` returned, NULL if that was not called. `executed`: when it had run. */
static PyObject *finish(const Turn *self, PyObject *batch, PyObject *run, int64_t epoch,
                        double executed, PyObject *secured)
{
    PyObject *number = PyLong_FromLongLong(epoch), *when = PyFloat_FromDouble(executed);
    PyObject *result = NULL;
    if (number != NULL && when != NULL)
        result = PyObject_CallFunctionObjArgs(self->uses[FINISH], batch, run ? run : Py_None,
                                              number, when, secured ? secured : Py_None, NULL);
    Py_XDECREF(number);
    Py_XDECREF(when);
    Py_XDECREF(run);
    Py_XDECREF(secured);
    return result;
}

/* Bytes that writes may add. -1, with an exception, if that fails. */
static int64_t read_room(const Turn *self)
{
    PyObject *limit = self->keyspace->objects[OF_LIMIT];
    if (limit == Py_None || PyErr_Occurred())
        return UNLIMITED;
    PyObject *room =
        PyObject_CallMethodObjArgs(self->uses[KEYSPACE], self->names[ROOM], limit, NULL);
    int64_t bytes = room == NULL ? -1 : PyLong_AsLongLong(room);
    Py_XDECREF(room);
    return bytes;
}

/* Read what a run needs. 0, with an exception, if that fails. */
static int begin(const Turn *self, run *r)
{
    r->now = read_now(self);
    r->rev = self->keyspace->rev;
    r->lsn = self->wal != NULL ? self->wal->last_lsn : read_number(self, LOG, LAST_LSN);
    r->removed_rev = self->keyspace->removed_rev;
    r->takes_writes = read_takes_runs(self);
    r->room = read_room(self);
    return !PyErr_Occurred();
}

/* Run a batch, and log its commits; the keyspace's lock is held. A Run if Python had to log them;
 * else NULL. Sets `failed`, with an exception. */
static PyObject *run_locked(const Turn *self, run *r, int *failed)
{
    if ((*failed = !begin(self, r) || !run_requests(self->lane, r, 0, r->batch->count)))
        return NULL;
    if (r->changes == 0)
        return NULL;
    if (self->wal != NULL && self->keyspace->objects[OF_EVICTOR] == Py_None)
        return keyspace_add_run(self->keyspace, self->wal, r, self->uses[UNDO]), NULL;
    PyObject *result = run_result(r);
    PyObject *done = PyObject_CallMethodObjArgs(self->uses[KEYSPACE], self->names[ADD_RUN], result,
                                                (PyObject *)r->replaced, NULL);
    *failed = done == NULL;
    Py_XDECREF(done);
    if (*failed)
        Py_CLEAR(result);
    return result;
}

/* 1 if the front may wait for the disk: all replies need it, and no snapshot is being written. See
 * `FrontHandler._sync`. */
static int may_sync(const Turn *self, const run *r)
{
    for (size_t i = 0; i < r->batch->count; i++)
        if (r->batch->items[i].reveals <= self->wal->safe_rev)
            return 0; /* Without an answer it reveals nothing. */
    return self->writing == NULL || !self->writing->on;
}

/* Have the log in Python commit, without waiting. */
static PyObject *commit(const Turn *self)
{
    PyObject *log = self->uses[LOG], *done = NULL;
    PyObject *lsn = PyErr_Occurred() ? NULL : PyObject_GetAttr(log, self->names[LAST_LSN]);
    if (lsn == NULL)
        return NULL;
    done = PyObject_CallMethodObjArgs(log, self->names[COMMIT], lsn, Py_False, Py_False, NULL);
    Py_DECREF(lsn);
    return done != NULL ? done : take_exception();
}

/* Make what the run reveals safe, if that takes no waiting but for a quick disk: True or False, or
 * the exception that came of it. NULL if that was not tried. */
static PyObject *secure(const Turn *self, const run *r)
{
    if (r->newest <= read_safe_rev(self))
        return NULL;
    if (self->wal != NULL && (self->secures || may_sync(self, r) == 1)) {
        int done = wal_commit(self->wal, !self->secures);
        if (done != 0)
            return done > 0 ? Py_NewRef(Py_True) : take_exception();
    }
    return self->secures ? commit(self) : NULL;
}

/* Release the keyspace's lock, also if there is an exception. 0, with an exception, if that fails. */
static int release(const Turn *self)
{
    PyObject *type, *error, *traceback;
    PyErr_Fetch(&type, &error, &traceback);
    PyObject *released = PyObject_CallNoArgs(self->uses[RELEASE]);
    Py_XDECREF(released);
    if (type != NULL)
        PyErr_Restore(type, error, traceback);
    return released != NULL;
}

/* 1 if all has been answered, and may be sent. -1, with an exception, if that cannot be found out. */
static int is_done(const Turn *self, const run *r, int64_t epoch)
{
    if (r->end < r->batch->count || r->logs || r->left != NULL ||
        r->newest > read_safe_rev(self) || epoch != read_epoch(self))
        return PyErr_Occurred() ? -1 : 0;
    if (self->wal != NULL && self->wal->usual)
        return 1; /* It asks nobody. */
    int confirms = read_flag(self, LOG, CONFIRMS_READS);
    return confirms < 0 ? -1 : !confirms;
}

/* Count the answers of a batch that is done, and had run at a time. 0, with an exception, if that
 * fails. */
static int count_answers(const Turn *self, PyObject *batch, double executed)
{
    if (!count_latencies(self->latencies, (Batch *)batch, INT64_MAX, self->slow))
        return 1;
    PyObject *all = PyLong_FromLongLong(INT64_MAX), *when = PyFloat_FromDouble(executed);
    PyObject *done = NULL;
    if (all != NULL && when != NULL)
        done = PyObject_CallMethodObjArgs(self->uses[ACCOUNT], self->names[EXPLAIN], batch, all,
                                          when, NULL);
    Py_XDECREF(all);
    Py_XDECREF(when);
    Py_XDECREF(done);
    return done != NULL;
}

/* Go on after the run. Takes the reference to the Run, if there is one. */
static PyObject *go_on(const Turn *self, PyObject *batch, run *r, PyObject *result, int64_t epoch)
{
    double executed = clock_now();
    PyObject *secured = secure(self, r);
    int done = PyErr_Occurred() ? -1 : is_done(self, r, epoch);
    if (done == 0)
        return finish(self, batch, result == NULL ? run_result(r) : result, epoch, executed,
                      secured);
    Py_XDECREF(secured);
    if (result == NULL)
        run_drop(r);
    else
        Py_DECREF(result);
    return done > 0 && count_answers(self, batch, executed) ? Py_NewRef(Py_None) : NULL;
}

/* answer(batch): see `Handler` in zkv/broker/worker.py. */
static PyObject *turn_answer(Turn *self, PyObject *batch)
{
    run r = {0};
    int failed = 0;
    if (!PyObject_TypeCheck(batch, batch_type))
        return PyErr_Format(PyExc_TypeError, "this is not a batch");
    r.batch = (Batch *)batch;
    int64_t epoch = read_epoch(self);
    r.logs = self->account->on;
    int leads = self->role != NULL ? self->role->on : read_flag(self, ROLE, LEADS);
    if (PyErr_Occurred())
        return NULL;
    if (self->stopping->on || !leads)
        return finish(self, batch, NULL, epoch, 0, NULL);
    int locked = call_flag(self, ACQUIRE, Py_False);
    if (locked <= 0)
        return locked < 0 ? NULL : finish(self, batch, NULL, epoch, 0, NULL);
    PyObject *result = run_locked(self, &r, &failed);
    if (!release(self) || failed)
        return NULL;
    return go_on(self, batch, &r, result, epoch);
}

/* --- The type --------------------------------------------------------------------------------- */

static int turn_traverse(Turn *self, visitproc visit, void *arg) /* as Py_VISIT names them */
{
    Py_VISIT(Py_TYPE((PyObject *)self));
    Py_VISIT((PyObject *)self->lane);
    for (int i = 0; i < USES; i++)
        Py_VISIT(self->uses[i]);
    return 0;
}

static int turn_clear(Turn *self)
{
    for (int i = 0; i < USES; i++)
        Py_CLEAR(self->uses[i]);
    return 0;
}

static void turn_dealloc(Turn *self)
{
    PyTypeObject *type = Py_TYPE((PyObject *)self);
    PyObject_GC_UnTrack(self);
    turn_clear(self);
    for (int i = 0; i < NAMES; i++)
        Py_XDECREF(self->names[i]);
    Py_XDECREF((PyObject *)self->lane);
    Py_XDECREF((PyObject *)self->latencies);
    PyObject_GC_Del(self);
    Py_DECREF(type);
}

/* 1 if an object has an attribute where its base in C has it: its class has no property for it. */
static int keeps(PyObject *object, PyTypeObject *base, const char *name)
{
    if (!PyObject_TypeCheck(object, base))
        return 0;
    PyObject *one = PyObject_GetAttrString((PyObject *)Py_TYPE(object), name);
    PyObject *other = one == NULL ? NULL : PyObject_GetAttrString((PyObject *)base, name);
    int keeps = one != NULL && one == other;
    Py_XDECREF(one);
    Py_XDECREF(other);
    PyErr_Clear();
    return keeps;
}

/* 1 if all that a turn reads in C is there. */
static int are_in_c(PyObject *const *uses)
{
    PyObject *history = ((Keyspace *)uses[KEYSPACE])->objects[OF_HISTORY];
    return history != NULL && PyObject_TypeCheck(history, history_type) &&
           keeps(uses[STOPPING], stopping_type, "begun") &&
           keeps(uses[ACCOUNT], account_type, "logs_requests") &&
           keeps(uses[SLOW], slow_log_type, "threshold") &&
           keeps(uses[SLOW], slow_log_type, "resumes") &&
           (uses[WRITING] == Py_None || keeps(uses[WRITING], activity_type, "since"));
}

static PyObject *turn_new(PyTypeObject *type, PyObject *arguments, PyObject *keywords)
{
    static char *names[] = {"lane", "latencies", "log", "stopping", "role", "account", "slow",
                            "acquire", "release", "now", "finish", "undo", "writing", "secures",
                            NULL};
    PyObject *lane, *latencies, *uses[USES];
    int secures;
    if (!PyArg_ParseTupleAndKeywords(
            arguments, keywords, "O!O!OOOOOOOOOOOp", names, lane_type, &lane, latencies_type,
            &latencies, &uses[LOG], &uses[STOPPING], &uses[ROLE], &uses[ACCOUNT], &uses[SLOW],
            &uses[ACQUIRE], &uses[RELEASE], &uses[NOW], &uses[FINISH], &uses[UNDO], &uses[WRITING],
            &secures))
        return NULL;
    uses[KEYSPACE] = (PyObject *)((Lane *)lane)->keyspace;
    if (!are_in_c(uses))
        return PyErr_Format(PyExc_TypeError, "something that a turn reads is not in C");
    Turn *self = (Turn *)PyType_GenericAlloc(type, 0);
    if (self == NULL)
        return NULL;
    self->lane = (Lane *)Py_NewRef(lane);
    self->latencies = (Latencies *)Py_NewRef(latencies);
    self->secures = secures;
    self->keyspace = (Keyspace *)uses[KEYSPACE];
    self->wal = PyObject_TypeCheck(uses[LOG], wal_type) ? (Wal *)uses[LOG] : NULL;
    for (int i = 0; i < NAMES; i++)
        if ((self->names[i] = PyUnicode_InternFromString(texts[i])) == NULL)
            return Py_DECREF(self), NULL;
    self->stopping = (Switch *)uses[STOPPING];
    self->role = keeps(uses[ROLE], role_type, "leads") ? (Switch *)uses[ROLE] : NULL;
    self->account = (Switch *)uses[ACCOUNT];
    self->slow = (SlowLog *)uses[SLOW];
    self->writing = uses[WRITING] == Py_None ? NULL : (Activity *)uses[WRITING];
    self->clock = keeps(uses[NOW], clock_type, "base") ? (Clock *)uses[NOW] : NULL;
    for (int i = 0; i < USES; i++)
        self->uses[i] = Py_NewRef(uses[i]);
    return (PyObject *)self;
}

static PyMethodDef turn_methods[] = {
    {"answer", (PyCFunction)turn_answer, METH_O, NULL},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot turn_slots[] = {
    {Py_tp_doc, "See `FrontHandler` in zkv/broker/front.py."},
    {Py_tp_new, turn_new},
    {Py_tp_dealloc, turn_dealloc},
    {Py_tp_traverse, turn_traverse},
    {Py_tp_clear, turn_clear},
    {Py_tp_methods, turn_methods},
    {0, NULL},
};

PyType_Spec turn_spec = {
    .name = "zkv.compiled._store.Turn",
    .basicsize = sizeof(Turn),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
    .slots = turn_slots,
};
