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

#include "lane.h"

/* What a turn uses. */
enum use { KEYSPACE, LOG, ROLE, ACCOUNT, SLOW, STOPPING, ACQUIRE, RELEASE, NOW, FINISH, USES };

/* The attributes that it reads, and the methods that it calls. */
enum name {
    EPOCH, SAFE_REV, LAST_LSN, CONFIRMS_READS, LEADS, LOGS_REQUESTS, THRESHOLD, REV, REMOVED_REV,
    LIMIT, TAKES_RUNS, ROOM, ADD_RUN, COMMIT, EXPLAIN, NAMES
};

static const char *const texts[NAMES] = {
    [EPOCH] = "epoch",
    [SAFE_REV] = "safe_rev",
    [LAST_LSN] = "last_lsn",
    [CONFIRMS_READS] = "confirms_reads",
    [LEADS] = "leads",
    [LOGS_REQUESTS] = "logs_requests",
    [THRESHOLD] = "threshold",
    [REV] = "rev",
    [REMOVED_REV] = "removed_rev",
    [LIMIT] = "limit",
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
    int secures; /* commits are safe once they are written, for which the front does not wait */
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

/* --- A turn ----------------------------------------------------------------------------------- */

/* Leave the rest to Python. Takes the references to the run, NULL if nothing has run, and to what
 * `secure` returned, NULL if that was not called. */
static PyObject *finish(const Turn *self, PyObject *batch, PyObject *run, int64_t epoch,
                        PyObject *secured)
{
    PyObject *number = PyLong_FromLongLong(epoch), *result = NULL;
    if (number != NULL)
        result = PyObject_CallFunctionObjArgs(self->uses[FINISH], batch, run ? run : Py_None,
                                              number, secured ? secured : Py_None, NULL);
    Py_XDECREF(number);
    Py_XDECREF(run);
    Py_XDECREF(secured);
    return result;
}

/* Bytes that writes may add. -1, with an exception, if that fails. */
static int64_t read_room(const Turn *self)
{
    PyObject *keyspace = self->uses[KEYSPACE], *room = NULL;
    PyObject *limit = PyErr_Occurred() ? NULL : PyObject_GetAttr(keyspace, self->names[LIMIT]);
    int64_t bytes = UNLIMITED;
    if (limit != NULL && limit != Py_None) {
        room = PyObject_CallMethodObjArgs(keyspace, self->names[ROOM], limit, NULL);
        bytes = room == NULL ? -1 : PyLong_AsLongLong(room);
    }
    Py_XDECREF(room);
    Py_XDECREF(limit);
    return bytes;
}

/* Read what a run needs. 0, with an exception, if that fails. */
static int begin(const Turn *self, run *r)
{
    PyObject *now = PyObject_CallNoArgs(self->uses[NOW]);
    if (now == NULL)
        return 0;
    r->now = PyLong_AsLongLong(now);
    Py_DECREF(now);
    r->rev = read_number(self, KEYSPACE, REV);
    r->lsn = read_number(self, LOG, LAST_LSN);
    r->removed_rev = read_number(self, KEYSPACE, REMOVED_REV);
    r->takes_writes = read_flag(self, KEYSPACE, TAKES_RUNS);
    r->room = read_room(self);
    return !PyErr_Occurred();
}

/* Run a batch, and log its commits; the keyspace's lock is held. A Run; NULL if it wrote nothing;
 * sets `failed`, with an exception. */
static PyObject *run_locked(const Turn *self, run *r, int *failed)
{
    if ((*failed = !begin(self, r) || !run_requests(self->lane, r, 0, r->batch->count)))
        return NULL;
    if (PyList_Size(r->payloads) == 0)
        return NULL;
    PyObject *result = run_result(r);
    PyObject *done = PyObject_CallMethodObjArgs(self->uses[KEYSPACE], self->names[ADD_RUN], result,
                                                (PyObject *)r->replaced, NULL);
    *failed = done == NULL;
    Py_XDECREF(done);
    if (*failed)
        Py_CLEAR(result);
    return result;
}

/* Make what the run reveals safe, if that takes no waiting: True or False, or the exception that
 * `commit` of the log has raised. NULL if that was not called. */
static PyObject *secure(const Turn *self, const run *r)
{
    PyObject *type, *error, *traceback;
    if (!self->secures || r->newest <= read_number(self, LOG, SAFE_REV))
        return NULL;
    PyObject *log = self->uses[LOG], *done = NULL;
    PyObject *lsn = PyErr_Occurred() ? NULL : PyObject_GetAttr(log, self->names[LAST_LSN]);
    if (lsn == NULL)
        return NULL;
    done = PyObject_CallMethodObjArgs(log, self->names[COMMIT], lsn, Py_False, Py_False, NULL);
    Py_DECREF(lsn);
    if (done != NULL)
        return done;
    PyErr_Fetch(&type, &error, &traceback);
    PyErr_NormalizeException(&type, &error, &traceback);
    if (traceback != NULL)
        PyException_SetTraceback(error, traceback);
    Py_XDECREF(type);
    Py_XDECREF(traceback);
    return error;
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
    if (r->end < r->batch->count || r->logs || PyList_Size(r->left) > 0 ||
        r->newest > read_number(self, LOG, SAFE_REV) || epoch != read_number(self, LOG, EPOCH))
        return PyErr_Occurred() ? -1 : 0;
    int confirms = read_flag(self, LOG, CONFIRMS_READS);
    return confirms < 0 ? -1 : !confirms;
}

/* Count the answers of a batch that is done. 0, with an exception, if that fails. */
static int count_answers(const Turn *self, PyObject *batch)
{
    PyObject *slow = PyObject_GetAttr(self->uses[SLOW], self->names[THRESHOLD]);
    double threshold = slow == NULL ? 0 : PyFloat_AsDouble(slow);
    Py_XDECREF(slow);
    if (PyErr_Occurred())
        return 0;
    if (!count_latencies(self->latencies, (Batch *)batch, INT64_MAX, threshold))
        return 1;
    PyObject *all = PyLong_FromLongLong(INT64_MAX), *done = NULL;
    if (all != NULL)
        done = PyObject_CallMethodObjArgs(self->uses[ACCOUNT], self->names[EXPLAIN], batch, all,
                                          NULL);
    Py_XDECREF(all);
    Py_XDECREF(done);
    return done != NULL;
}

/* Go on after the run. Takes the reference to the Run; without one, the run has written nothing. */
static PyObject *go_on(const Turn *self, PyObject *batch, run *r, PyObject *result, int64_t epoch)
{
    PyObject *secured = secure(self, r);
    int done = PyErr_Occurred() ? -1 : is_done(self, r, epoch);
    if (done == 0)
        return finish(self, batch, result == NULL ? run_result(r) : result, epoch, secured);
    Py_XDECREF(secured);
    if (result == NULL)
        run_drop(r);
    else
        Py_DECREF(result);
    return done > 0 && count_answers(self, batch) ? Py_NewRef(Py_None) : NULL;
}

/* answer(batch): see `Handler` in zkv/broker/worker.py. */
static PyObject *turn_answer(Turn *self, PyObject *batch)
{
    run r = {0};
    int failed = 0;
    if (!PyObject_TypeCheck(batch, batch_type))
        return PyErr_Format(PyExc_TypeError, "this is not a batch");
    r.batch = (Batch *)batch;
    int64_t epoch = read_number(self, LOG, EPOCH);
    int stopping = call_flag(self, STOPPING, NULL), leads = read_flag(self, ROLE, LEADS);
    r.logs = read_flag(self, ACCOUNT, LOGS_REQUESTS);
    if (PyErr_Occurred())
        return NULL;
    if (stopping || !leads)
        return finish(self, batch, NULL, epoch, NULL);
    int locked = call_flag(self, ACQUIRE, Py_False);
    if (locked <= 0)
        return locked < 0 ? NULL : finish(self, batch, NULL, epoch, NULL);
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

static PyObject *turn_new(PyTypeObject *type, PyObject *arguments, PyObject *keywords)
{
    static char *names[] = {"lane", "latencies", "keyspace", "log", "role", "account", "slow",
                            "stopping", "acquire", "release", "now", "finish", "secures",
                            NULL};
    PyObject *lane, *latencies, *uses[USES];
    int secures;
    if (!PyArg_ParseTupleAndKeywords(
            arguments, keywords, "O!O!OOOOOOOOOOp", names, lane_type, &lane, latencies_type,
            &latencies, &uses[KEYSPACE], &uses[LOG], &uses[ROLE], &uses[ACCOUNT], &uses[SLOW],
            &uses[STOPPING], &uses[ACQUIRE], &uses[RELEASE], &uses[NOW], &uses[FINISH],
            &secures))
        return NULL;
    Turn *self = (Turn *)PyType_GenericAlloc(type, 0);
    if (self == NULL)
        return NULL;
    self->lane = (Lane *)Py_NewRef(lane);
    self->latencies = (Latencies *)Py_NewRef(latencies);
    self->secures = secures;
    for (int i = 0; i < USES; i++)
        self->uses[i] = Py_NewRef(uses[i]);
    for (int i = 0; i < NAMES; i++)
        if ((self->names[i] = PyUnicode_InternFromString(texts[i])) == NULL)
            return Py_DECREF(self), NULL;
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
