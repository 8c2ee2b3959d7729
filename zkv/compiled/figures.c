/* What each write and sync of the log counts: `Buckets` in zkv/figures.py, and `Activity` in
 * zkv/activity.py. As attributes of Python, they took a tenth of the front's time for a synced PUT.
 *
 * Invariant: Python's lock is held throughout. */

#include "writes.h"

#include <structmember.h>

PyTypeObject *buckets_type, *activity_type;

/* --- Histograms -------------------------------------------------------------------------------- */

void buckets_add(Buckets *self, int step, double value)
{
    self->counts[step < STEPS ? step : STEPS - 1]++;
    self->total += value;
}

/* add(step, value, count=1): see `PythonBuckets`. */
static PyObject *buckets_add_many(Buckets *self, PyObject *arguments)
{
    int step;
    double value;
    long long count = 1;
    if (!PyArg_ParseTuple(arguments, "id|L", &step, &value, &count))
        return NULL;
    if (step < 0 || step >= STEPS)
        return PyErr_Format(PyExc_IndexError, "no bucket %d", step);
    self->counts[step] += count;
    self->total += value * (double)count;
    Py_RETURN_NONE;
}

static PyObject *buckets_counts(Buckets *self, void *unused)
{
    PyObject *list = PyList_New(0);
    for (int i = 0; list != NULL && i < STEPS; i++)
        if (!list_append(list, PyLong_FromLongLong(self->counts[i])))
            Py_CLEAR(list);
    return list;
}

static int buckets_set_counts(Buckets *self, PyObject *list, void *unused)
{
    long long counts[STEPS];
    if (list == NULL || !PyObject_TypeCheck(list, &PyList_Type) || PyList_Size(list) != STEPS)
        return PyErr_Format(PyExc_ValueError, "not a list of %d numbers", STEPS), -1;
    for (int i = 0; i < STEPS; i++)
        if ((counts[i] = PyLong_AsLongLong(PyList_GetItem(list, i))) == -1 && PyErr_Occurred())
            return -1;
    memcpy(self->counts, counts, sizeof counts);
    return 0;
}

static PyMemberDef buckets_members[] = {
    {"total", T_DOUBLE, offsetof(Buckets, total), 0, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyGetSetDef buckets_attributes[] = {
    {"counts", (getter)buckets_counts, (setter)buckets_set_counts, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyMethodDef buckets_methods[] = {
    {"add", (PyCFunction)buckets_add_many, METH_VARARGS, "See `PythonBuckets`."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot buckets_slots[] = {
    {Py_tp_members, buckets_members},
    {Py_tp_getset, buckets_attributes},
    {Py_tp_methods, buckets_methods},
    {0, NULL},
};

PyType_Spec buckets_spec = {
    .name = "zkv.compiled._store.BucketsBase",
    .basicsize = sizeof(Buckets),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE,
    .slots = buckets_slots,
};

/* --- Activities -------------------------------------------------------------------------------- */

void activity_begin(Activity *self, double now)
{
    self->since = now;
    self->on = 1;
}

int activity_end(Activity *self, double now)
{
    if (now - self->since < self->least)
        return self->on = 0, 1;
    PyObject *time = PyFloat_FromDouble(now), *done = NULL;
    if (time != NULL)
        done = PyObject_CallMethodObjArgs((PyObject *)self, known_names[NAME_END], time, NULL);
    Py_XDECREF(time);
    Py_XDECREF(done);
    if (done == NULL)
        self->on = 0;
    return done != NULL;
}

static PyObject *activity_since(Activity *self, void *unused)
{
    return self->on ? PyFloat_FromDouble(self->since) : Py_NewRef(Py_None);
}

static int activity_set_since(Activity *self, PyObject *time, void *unused)
{
    double since = time == NULL || time == Py_None ? 0 : PyFloat_AsDouble(time);
    if (PyErr_Occurred())
        return -1;
    self->on = time != NULL && time != Py_None;
    self->since = since;
    return 0;
}

static PyMemberDef activity_members[] = {
    {"_least", T_DOUBLE, offsetof(Activity, least), 0, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyGetSetDef activity_attributes[] = {
    {"since", (getter)activity_since, (setter)activity_set_since, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot activity_slots[] = {
    {Py_tp_members, activity_members},
    {Py_tp_getset, activity_attributes},
    {0, NULL},
};

PyType_Spec activity_spec = {
    .name = "zkv.compiled._store.ActivityBase",
    .basicsize = sizeof(Activity),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE,
    .slots = activity_slots,
};
