/* The latencies of the lane's answers, by op: histograms as those of `Buckets` in zkv/figures.py.
 *
 * Strategy: each batch counts as a whole, in one call. As objects of Python, the histograms would
 * cost a batch as much as a simple request.
 *
 * Invariant: Python's lock is held throughout, so any thread may report. */

#include "lane.h"
#include "states.h"

struct Latencies {
    PyObject_HEAD
    uint64_t counts[OPS][STEPS];
    double totals[OPS]; /* seconds */
};

PyTypeObject *latencies_type;

int count_latencies(Latencies *self, const Batch *batch, int64_t up_to, const SlowLog *slow)
{
    double now = clock_now(), took = now - batch->taken;
    int step = step_of(took);
    for (size_t i = 0; i < batch->count; i++) {
        const item *each = &batch->items[i];
        if (each->op == NONE || each->reveals > up_to)
            continue;
        self->counts[each->op][step]++;
        self->totals[each->op] += took;
    }
    return batch->timed || (batch->count && now >= slow->resumes &&
                            now - arrival(batch, batch->items) >= slow->threshold);
}

/* add(batch, up_to, slow): count the answers that reveal no later revision than `up_to`. True if
 * the batch is to be explained: a reply is to say how long everything took, or the oldest request
 * is one for the slow log. */
static PyObject *latencies_add(Latencies *self, PyObject *const *arguments, Py_ssize_t count)
{
    if (count != 3 || !PyObject_TypeCheck(arguments[0], batch_type) ||
        !PyObject_TypeCheck(arguments[2], slow_log_type))
        return PyErr_Format(PyExc_TypeError, "expected a batch, a revision, and a slow log");
    const Batch *batch = (Batch *)arguments[0];
    int64_t up_to = PyLong_AsLongLong(arguments[1]);
    if (PyErr_Occurred())
        return NULL;
    return PyBool_FromLong(count_latencies(self, batch, up_to, (SlowLog *)arguments[2]));
}

static PyObject *list_of(const uint64_t *counts)
{
    PyObject *list = PyList_New(0);
    for (int i = 0; list != NULL && i < STEPS; i++)
        if (!list_append(list, PyLong_FromUnsignedLongLong(counts[i])))
            Py_CLEAR(list);
    return list;
}

/* report(): op -> (the counts of its buckets, seconds in all), for each op that occurred. */
static PyObject *latencies_report(Latencies *self, PyObject *unused)
{
    PyObject *report = PyDict_New();
    for (int op = NONE + 1; report != NULL && op < OPS; op++) {
        int occurred = 0;
        for (int i = 0; i < STEPS; i++)
            occurred |= self->counts[op][i] > 0;
        if (!occurred)
            continue;
        PyObject *of = Py_BuildValue("(Nd)", list_of(self->counts[op]), self->totals[op]);
        if (of == NULL || PyDict_SetItemString(report, op_name(op), of) < 0)
            Py_CLEAR(report);
        Py_XDECREF(of);
    }
    return report;
}

static void latencies_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_Free(self);
    Py_DECREF(type);
}

static PyMethodDef latencies_methods[] = {
    {"add", (PyCFunction)(void *)latencies_add, METH_FASTCALL, NULL},
    {"report", (PyCFunction)latencies_report, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot latencies_slots[] = {
    {Py_tp_doc, "See `Account` in zkv/requests/account.py."},
    {Py_tp_dealloc, latencies_dealloc},
    {Py_tp_methods, latencies_methods},
    {0, NULL},
};

PyType_Spec latencies_spec = {
    .name = "zkv.compiled._store.Latencies",
    .basicsize = sizeof(Latencies),
    .flags = Py_TPFLAGS_DEFAULT,
    .slots = latencies_slots,
};
