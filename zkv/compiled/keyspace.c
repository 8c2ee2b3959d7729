/* What each run needs of the keyspace: zkv/keyspace/store.py specifies all of it.
 *
 * Invariants: Python's lock and the keyspace's are held. */

#include "writes.h"

#include <structmember.h>

PyTypeObject *keyspace_type;

/* --- Commits, as `Keyspace.add_run` logs and remembers them ----------------------------------- */

/* Make the undo information of a run. NULL, with an exception, if there is no memory. */
static PyObject *to_undo(Keyspace *self, const Wal *wal, const run *r, PyObject *undo)
{
    PyObject *remembered = self->objects[OF_REMEMBERED];
    PyObject *lsn = PyLong_FromLongLong(wal->last_lsn), *rev = PyLong_FromLongLong(self->rev);
    PyObject *made = NULL, *fresh = NULL;
    int has_once = PyList_Size(remembered) > 0;
    if (lsn != NULL && rev != NULL && (!has_once || (fresh = PyList_New(0)) != NULL))
        made = PyObject_CallFunctionObjArgs(undo, lsn, rev, (PyObject *)r->replaced,
                                            has_once ? remembered : NULL, NULL);
    if (fresh != NULL) {
        self->objects[OF_REMEMBERED] = fresh;
        Py_DECREF(remembered);
    }
    Py_XDECREF(lsn);
    Py_XDECREF(rev);
    return made;
}

/* Drop the undo information of commits that are safe now: the newest is not. 0, with an exception,
 * if that fails. */
static int drop_undo(PyObject *undos, const Wal *wal)
{
    while (PyObject_Size(undos) > 1) {
        PyObject *oldest = PySequence_GetItem(undos, 0), *lsn = NULL;
        if (oldest != NULL)
            lsn = PyObject_GetAttr(oldest, known_names[NAME_LSN]);
        int is_safe = lsn != NULL && PyLong_AsLongLong(lsn) <= wal->safe_lsn;
        Py_XDECREF(oldest);
        Py_XDECREF(lsn);
        PyObject *dropped = NULL;
        if (is_safe)
            dropped = PyObject_CallMethodObjArgs(undos, known_names[NAME_POPLEFT], NULL);
        Py_XDECREF(dropped);
        if (dropped == NULL)
            break;
    }
    return !PyErr_Occurred();
}

static int keep_undo(Keyspace *self, const Wal *wal, const run *r, PyObject *type)
{
    PyObject *undos = self->objects[OF_UNDOS], *undo = to_undo(self, wal, r, type), *kept = NULL;
    if (undo != NULL)
        kept = PyObject_CallMethodObjArgs(undos, known_names[NAME_APPEND], undo, NULL);
    Py_XDECREF(undo);
    Py_XDECREF(kept);
    return kept != NULL && drop_undo(undos, wal);
}

void keyspace_add_run(Keyspace *self, Wal *wal, const run *r, PyObject *undo)
{
    History *history = (History *)self->objects[OF_HISTORY];
    if (!wal_extend(wal, r->payloads, r->bytes) || !keep_undo(self, wal, r, undo) ||
        !history_extend(history, r->payloads, r->rev, r->changes, r->bytes, wal->safe_rev))
        Py_FatalError("zkv: out of memory after a commit"); /* as in `commit` of lane.c */
    self->rev = r->rev;
}

/* --- The type ---------------------------------------------------------------------------------- */

KEEPS_OBJECTS(keyspace, Keyspace)

#define OBJECT(name, index)                                                                        \
    {name, T_OBJECT_EX, offsetof(Keyspace, objects) + (index) * sizeof(PyObject *), 0, NULL}

static PyMemberDef keyspace_members[] = {
    {"rev", T_LONGLONG, offsetof(Keyspace, rev), 0, NULL},
    {"removed_rev", T_LONGLONG, offsetof(Keyspace, removed_rev), 0, NULL},
    OBJECT("limit", OF_LIMIT),
    OBJECT("_evictor", OF_EVICTOR),
    OBJECT("_sealed", OF_SEALED),
    OBJECT("_remembered_in_run", OF_REMEMBERED),
    OBJECT("_undo", OF_UNDOS),
    OBJECT("history", OF_HISTORY),
    OBJECT("sessions", OF_SESSIONS), /* The lane trusts that it stays. */
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot keyspace_slots[] = {
    {Py_tp_doc, "See zkv/keyspace/store.py, which sets all of its attributes."},
    {Py_tp_dealloc, keyspace_dealloc},
    {Py_tp_traverse, keyspace_traverse},
    {Py_tp_clear, keyspace_clear},
    {Py_tp_members, keyspace_members},
    {0, NULL},
};

PyType_Spec keyspace_spec = {
    .name = "zkv.compiled._store.KeyspaceBase",
    .basicsize = sizeof(Keyspace),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_BASETYPE,
    .slots = keyspace_slots,
};
