/* The newest commits, as far as each write needs them: zkv/keyspace/history.py specifies all of it.
 *
 * Strategy: at its bounds, the history drops a commit for each that comes. Here that costs no step
 * of Python.
 *
 * Invariants: Python's lock and the keyspace's are held. */

#include "writes.h"

#include <structmember.h>

enum { SURPLUS_CHANGES = 1000, SURPLUS_BYTES = 1024 * 1024 }; /* as in history.py, likewise below */
enum { AT_ONCE = 5000, TRIM = 1024 };
enum { ARRAY16 = 0xdc };

PyTypeObject *history_type;

/* The number of changes in a payload. */
static long long count_in(PyObject *payload)
{
    const unsigned char *at = (const unsigned char *)PyBytes_AsString(payload) + CHANGES_AT;
    if (*at < ARRAY16)
        return *at & 0x0f;
    return (long long)big_endian(at + 1, *at == ARRAY16 ? 2 : 4);
}

static long long least(long long one, long long other) { return one < other ? one : other; }

/* Drop the oldest commits, up to revision `last`, until both bounds are met. */
static void drop(History *self, PyObject *nothing, long long last, long long changes,
                 long long bytes)
{
    long long kept = PyList_Size(self->payloads), oldest = self->rev - (kept - self->begin) + 1;
    long long end = least(least(kept, self->begin + last + 1 - oldest), self->begin + AT_ONCE);
    while (self->begin < end && (self->changes > changes || self->bytes > bytes)) {
        PyObject *payload = PyList_GetItem(self->payloads, self->begin);
        self->changes -= count_in(payload);
        self->bytes -= PyBytes_Size(payload);
        PyList_SetItem(self->payloads, self->begin, Py_NewRef(nothing));
        self->begin++;
    }
}

/* Remove the unused places at the start of the list, if there are many. 0, with an exception, if
 * there is no memory. */
static int compact(History *self)
{
    if (self->begin < TRIM + PyList_Size(self->payloads) / 2)
        return 1;
    int well = PyList_SetSlice(self->payloads, 0, self->begin, NULL) == 0;
    self->begin = well ? 0 : self->begin;
    return well;
}

/* See `History._trim`. 0, with an exception, if there is no memory. */
static int trim(History *self, long long last)
{
    long long read = last, changes = self->most_changes, bytes = self->most_bytes;
    PyObject *nothing = PyBytes_FromStringAndSize(NULL, 0);
    if (nothing != NULL && self->cursor != NULL && self->cursor != Py_None) {
        PyObject *rev = PyObject_GetAttrString(self->cursor, "rev");
        read = rev == NULL ? -1 : least(last, PyLong_AsLongLong(rev));
        Py_XDECREF(rev);
        changes = self->unread_changes, bytes = self->unread_bytes;
    }
    if (nothing == NULL || PyErr_Occurred()) {
        Py_XDECREF(nothing);
        return 0;
    }
    drop(self, nothing, read, self->most_changes, self->most_bytes);
    drop(self, nothing, last, self->unread_changes, self->unread_bytes);
    Py_DECREF(nothing);
    self->has_surplus =
        self->changes > changes + SURPLUS_CHANGES || self->bytes > bytes + SURPLUS_BYTES;
    return compact(self);
}

int history_extend(History *self, PyObject *payloads, int64_t rev, size_t changes, size_t size,
                   int64_t safe_rev)
{
    Py_ssize_t end = PyList_Size(self->payloads);
    if (PyList_SetSlice(self->payloads, end, end, payloads) < 0)
        return 0;
    self->rev = rev;
    self->changes += (long long)changes;
    self->bytes += (long long)size;
    if (self->changes <= self->most_changes && self->bytes <= self->most_bytes)
        return 1;
    return trim(self, least(safe_rev, rev - 1));
}

/* --- The type ---------------------------------------------------------------------------------- */

static int history_traverse(History *self, visitproc visit, void *arg) /* as Py_VISIT names them */
{
    Py_VISIT(Py_TYPE((PyObject *)self));
    Py_VISIT(self->payloads);
    Py_VISIT(self->cursor);
    return 0;
}

static int history_clear(History *self)
{
    Py_CLEAR(self->payloads);
    Py_CLEAR(self->cursor);
    return 0;
}

static void history_dealloc(History *self)
{
    PyTypeObject *type = Py_TYPE((PyObject *)self);
    PyObject_GC_UnTrack(self);
    history_clear(self);
    PyObject_GC_Del(self);
    Py_DECREF(type);
}

#define NUMBER(name, member) {name, T_LONGLONG, offsetof(History, member), 0, NULL}

static PyMemberDef history_members[] = {
    {"_payloads", T_OBJECT_EX, offsetof(History, payloads), 0, NULL},
    {"_cursor", T_OBJECT, offsetof(History, cursor), 0, NULL},
    NUMBER("_begin", begin),
    NUMBER("_changes", changes),
    NUMBER("_bytes", bytes),
    NUMBER("_rev", rev),
    NUMBER("_most_changes", most_changes),
    NUMBER("_most_bytes", most_bytes),
    NUMBER("_unread_changes", unread_changes),
    NUMBER("_unread_bytes", unread_bytes),
    {"has_surplus", T_BOOL, offsetof(History, has_surplus), 0, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot history_slots[] = {
    {Py_tp_doc, "See zkv/keyspace/history.py, which sets all of its attributes."},
    {Py_tp_dealloc, history_dealloc},
    {Py_tp_traverse, history_traverse},
    {Py_tp_clear, history_clear},
    {Py_tp_members, history_members},
    {0, NULL},
};

PyType_Spec history_spec = {
    .name = "zkv.compiled._store.HistoryBase",
    .basicsize = sizeof(History),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_BASETYPE,
    .slots = history_slots,
};
