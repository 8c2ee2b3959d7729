/* The usual exactly-once request: zkv/keyspace/sessions.py specifies all of it.
 *
 * Strategy: it is the next one of a session, for whose reply there is certainly capacity. The lane
 * finds that out, and remembers the reply, without a step of Python. Everything else (a new session,
 * a repeat, a session of a user, a large reply, too little capacity, silent sessions to forget) is
 * left to the hooks of the keyspace before anything was done.
 *
 * Invariants: Python's lock and the keyspace's are held; so a session that was found stays. If there
 * was no memory for a reply, at most the order of the sessions has changed, as by any request that
 * Python looks up. */

#include "writes.h"

#include <structmember.h>

PyTypeObject *sessions_type;

/* `counted_size` in sessions.py. */
enum { REPLY_OVERHEAD = 256, REPLY_STEP = 64, SMALL_REPLY = 1024 };

static long long counted_size(size_t size)
{
    return REPLY_OVERHEAD + (long long)((size + REPLY_STEP - 1) / REPLY_STEP * REPLY_STEP);
}

ClientSession *sessions_next(const Sessions *self, PyObject *name, uint64_t seq, size_t size,
                             int64_t now)
{
    PyObject *found = PyDict_GetItemWithError(self->objects[OF_NAMES], name);
    if (found == NULL)
        return PyErr_Clear(), NULL;
    ClientSession *session = (ClientSession *)found;
    int usual = seq == session->newest + 1 && session->share == Py_None &&
                now - session->used < self->ttl && now < self->look_at && size <= SMALL_REPLY &&
                self->bytes + SMALL_REPLY + REPLY_OVERHEAD <= self->most_bytes;
    return usual ? session : NULL;
}

/* A reply that leaves the window as another one comes; NULL if none does. */
typedef struct {
    PyObject *seq, *known;
    long long size;
} leaving;

/* Find it; `known` is borrowed. 0, with an exception, if there is no memory. */
static int find_leaving(const Sessions *self, const ClientSession *session, uint64_t seq,
                        leaving *found)
{
    if (seq <= (uint64_t)self->window)
        return 1;
    found->seq = PyLong_FromUnsignedLongLong(seq - (uint64_t)self->window);
    if (found->seq == NULL)
        return 0;
    found->known = PyDict_GetItemWithError(session->replies, found->seq);
    if (found->known == NULL)
        return !PyErr_Occurred();
    PyObject *reply = PyObject_GetAttr(found->known, known_names[NAME_REPLY]);
    found->size = reply == NULL ? 0 : counted_size((size_t)PyBytes_Size(reply));
    Py_XDECREF(reply);
    return reply != NULL;
}

/* What the window was before. NULL, with an exception, if there is no memory. */
static PyObject *to_window(const Sessions *self, const ClientSession *session, PyObject *name,
                           PyObject *seq, const leaving *gone)
{
    PyObject *dropped =
        gone->known == NULL ? PyTuple_New(0) : Py_BuildValue("((OO))", gone->seq, gone->known);
    if (dropped == NULL)
        return NULL;
    return PyObject_CallFunction(self->objects[OF_WINDOW_TYPE], "OOKN", name, seq, session->newest,
                                 dropped);
}

/* Move a session to the end of those in order of their last use. 0, with an exception, if there is
 * no memory. */
static int move_to_end(const Sessions *self, PyObject *name)
{
    PyObject *done = PyObject_CallMethodObjArgs(self->objects[OF_NAMES],
                                                known_names[NAME_MOVE_TO_END], name, NULL);
    Py_XDECREF(done);
    return done != NULL;
}

/* Put a reply in place of the one that leaves the window, and how to undo that into a list. 0, with
 * an exception, if there is no memory. */
static int put(const ClientSession *session, PyObject *seq, PyObject *known, const leaving *gone,
               PyObject *windows, PyObject *window)
{
    if (PyList_Append(windows, window) < 0)
        return 0;
    if (PyDict_SetItem(session->replies, seq, known) == 0)
        return gone->known == NULL || PyDict_DelItem(session->replies, gone->seq) == 0;
    PyObject *type, *error, *trace;
    PyErr_Fetch(&type, &error, &trace);
    Py_ssize_t last = PyList_Size(windows) - 1;
    PyList_SetSlice(windows, last, last + 1, NULL);
    PyErr_Restore(type, error, trace);
    return 0;
}

int sessions_remember(Sessions *self, ClientSession *session, PyObject *name, const reply_of *what,
                      PyObject *windows)
{
    uint64_t number = session->newest + 1;
    leaving gone = {0};
    PyObject *window = NULL, *known = NULL, *seq = PyLong_FromUnsignedLongLong(number);
    int well = seq != NULL && find_leaving(self, session, number, &gone) &&
               (window = to_window(self, session, name, seq, &gone)) != NULL &&
               (known = PyObject_CallFunction(self->objects[OF_REMEMBERED_TYPE], "OOLL",
                                              what->digest, what->reply, (long long)what->rev,
                                              (long long)what->lsn)) != NULL &&
               move_to_end(self, name) && put(session, seq, known, &gone, windows, window);
    if (well) {
        session->newest++;
        session->used = what->now; /* as `recall` sets it */
        self->replies += gone.known == NULL;
        self->bytes += counted_size((size_t)PyBytes_Size(what->reply)) - gone.size;
    }
    Py_XDECREF(seq);
    Py_XDECREF(gone.seq);
    Py_XDECREF(window);
    Py_XDECREF(known);
    return well;
}

/* --- The types --------------------------------------------------------------------------------- */

static PyObject *session_new(PyTypeObject *type, PyObject *arguments, PyObject *keywords)
{
    static char *names[] = {"used", NULL};
    long long used;
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "L", names, &used))
        return NULL;
    ClientSession *self = (ClientSession *)PyType_GenericAlloc(type, 0);
    if (self == NULL)
        return NULL;
    self->used = used;
    self->share = Py_NewRef(Py_None);
    if ((self->replies = PyDict_New()) == NULL)
        Py_CLEAR(self);
    return (PyObject *)self;
}

static void session_dealloc(ClientSession *self)
{
    PyTypeObject *type = Py_TYPE((PyObject *)self);
    Py_XDECREF(self->replies);
    Py_XDECREF(self->share);
    PyObject_Free(self);
    Py_DECREF(type);
}

static PyMemberDef session_members[] = {
    {"used", T_LONGLONG, offsetof(ClientSession, used), 0, NULL},
    {"newest", T_ULONGLONG, offsetof(ClientSession, newest), 0, NULL},
    {"replies", T_OBJECT_EX, offsetof(ClientSession, replies), READONLY, NULL},
    {"share", T_OBJECT_EX, offsetof(ClientSession, share), 0, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot session_slots[] = {
    {Py_tp_doc, "See `PythonSession` in zkv/keyspace/sessions.py."},
    {Py_tp_new, session_new},
    {Py_tp_dealloc, session_dealloc},
    {Py_tp_members, session_members},
    {0, NULL},
};

PyType_Spec session_spec = {
    .name = "zkv.compiled._store.ClientSession",
    .basicsize = sizeof(ClientSession),
    .flags = Py_TPFLAGS_DEFAULT,
    .slots = session_slots,
};

KEEPS_OBJECTS(sessions, Sessions)

#define NUMBER(name, member) {name, T_LONGLONG, offsetof(Sessions, member), 0, NULL}
#define OBJECT(name, index)                                                                        \
    {name, T_OBJECT_EX, offsetof(Sessions, objects) + (index) * sizeof(PyObject *), 0, NULL}

static PyMemberDef sessions_members[] = {
    NUMBER("_window", window),
    NUMBER("_ttl", ttl),
    NUMBER("_most_bytes", most_bytes),
    NUMBER("_replies", replies),
    NUMBER("_bytes", bytes),
    NUMBER("_look_at", look_at),
    OBJECT("_sessions", OF_NAMES),
    OBJECT("_remembered_type", OF_REMEMBERED_TYPE),
    OBJECT("_window_type", OF_WINDOW_TYPE),
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot sessions_slots[] = {
    {Py_tp_doc, "See zkv/keyspace/sessions.py, which sets all of its attributes."},
    {Py_tp_dealloc, sessions_dealloc},
    {Py_tp_traverse, sessions_traverse},
    {Py_tp_clear, sessions_clear},
    {Py_tp_members, sessions_members},
    {0, NULL},
};

PyType_Spec sessions_spec = {
    .name = "zkv.compiled._store.SessionsBase",
    .basicsize = sizeof(Sessions),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_BASETYPE,
    .slots = sessions_slots,
};
