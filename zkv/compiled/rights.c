/* The prefixes of keys that a user may read and write: `PythonPrefixes` in zkv/users/rights.py
 * specifies the behaviour.
 *
 * Strategy: a user has few prefixes, so they are compared one after the other. They never change: a
 * reload makes new users. So the lane reads them without any lock. */

#include "lane.h"

#include <string.h>

/* One after the other, in `text` of `Prefixes`: those to write, then the others to read. */
typedef struct {
    size_t at, size;
} place;

struct Prefixes {
    PyObject_HEAD
    char *text;
    place *places;
    size_t writes, count;
    PyObject *scope;
    long long max_bytes;
};

static int any_fits(const Prefixes *self, size_t count, const unsigned char *at, size_t size)
{
    for (size_t i = 0; i < count; i++)
        if (self->places[i].size <= size &&
            memcmp(at, self->text + self->places[i].at, self->places[i].size) == 0)
            return 1;
    return 0;
}

int may_read(const Prefixes *self, span key)
{
    return any_fits(self, self->count, key.at, key.size);
}

int may_write(const Prefixes *self, span key)
{
    return any_fits(self, self->writes, key.at, key.size);
}

PyObject *scope_of(const Prefixes *self) { return self->scope; }

int64_t quota_of(const Prefixes *self) { return self->max_bytes; }

int64_t bytes_held(const Prefixes *self, const Table *in)
{
    int64_t held = 0;
    for (size_t i = 0; i < self->writes; i++) {
        const place *each = &self->places[i];
        int64_t more = bytes_under(in, (const unsigned char *)self->text + each->at, each->size);
        if (more < 0)
            return -1;
        held += more;
    }
    return held;
}

static PyObject *ask(Prefixes *self, PyObject *text, size_t count)
{
    Py_ssize_t size;
    const char *at = PyUnicode_AsUTF8AndSize(text, &size);
    if (at == NULL)
        return NULL;
    return PyBool_FromLong(any_fits(self, count, (const unsigned char *)at, (size_t)size));
}

static PyObject *prefixes_may_read(Prefixes *self, PyObject *text)
{
    return ask(self, text, self->count);
}

static PyObject *prefixes_may_write(Prefixes *self, PyObject *text)
{
    return ask(self, text, self->writes);
}

/* Add the texts of a tuple. 0, with an exception, if that fails. */
static int add_all(Prefixes *self, PyObject *tuple, size_t *used)
{
    for (Py_ssize_t i = 0; i < PyTuple_Size(tuple); i++) {
        Py_ssize_t size;
        const char *at = PyUnicode_AsUTF8AndSize(PyTuple_GetItem(tuple, i), &size);
        char *text = at == NULL ? NULL : realloc(self->text, *used + (size_t)size + 1);
        if (text == NULL)
            return at == NULL ? 0 : (PyErr_NoMemory(), 0);
        memcpy(text + *used, at, (size_t)size);
        self->text = text;
        self->places[self->count++] = (place){*used, (size_t)size};
        *used += (size_t)size;
    }
    return 1;
}

static PyObject *prefixes_new(PyTypeObject *type, PyObject *arguments, PyObject *keywords)
{
    PyObject *read, *write, *scope;
    size_t used = 0;
    long long max_bytes;
    static char *names[] = {"read", "write", "scope", "max_bytes", NULL};
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "O!O!UL", names, &PyTuple_Type, &read,
                                     &PyTuple_Type, &write, &scope, &max_bytes))
        return NULL;
    allocfunc alloc = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    Prefixes *self = (Prefixes *)alloc(type, 0);
    if (self == NULL)
        return NULL;
    self->scope = Py_NewRef(scope);
    self->max_bytes = max_bytes;
    size_t most = (size_t)(PyTuple_Size(read) + PyTuple_Size(write));
    self->places = calloc(most + 1, sizeof *self->places);
    if (self->places == NULL)
        PyErr_NoMemory();
    else if (add_all(self, write, &used)) {
        self->writes = self->count;
        if (add_all(self, read, &used))
            return (PyObject *)self;
    }
    Py_DECREF(self);
    return NULL;
}

static void prefixes_dealloc(Prefixes *self)
{
    PyTypeObject *type = Py_TYPE((PyObject *)self);
    free(self->text);
    free(self->places);
    Py_XDECREF(self->scope);
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(self); /* Python may have made a subclass. */
    Py_DECREF(type);
}

static PyObject *prefixes_scope(Prefixes *self, void *unused) { return Py_NewRef(self->scope); }

static PyObject *prefixes_max_bytes(Prefixes *self, void *unused)
{
    return PyLong_FromLongLong(self->max_bytes);
}

static PyMethodDef prefixes_methods[] = {
    {"may_read", (PyCFunction)prefixes_may_read, METH_O, NULL},
    {"may_write", (PyCFunction)prefixes_may_write, METH_O, NULL},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef prefixes_attributes[] = {
    {"scope", (getter)prefixes_scope, NULL, NULL, NULL},
    {"max_bytes", (getter)prefixes_max_bytes, NULL, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot prefixes_slots[] = {
    {Py_tp_doc, "See PythonPrefixes in zkv/users/rights.py."},
    {Py_tp_new, prefixes_new},
    {Py_tp_dealloc, prefixes_dealloc},
    {Py_tp_methods, prefixes_methods},
    {Py_tp_getset, prefixes_attributes},
    {0, NULL},
};

PyType_Spec prefixes_spec = {
    .name = "zkv.compiled._store.Prefixes",
    .basicsize = sizeof(Prefixes),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE,
    .slots = prefixes_slots,
};

PyTypeObject *prefixes_type;
