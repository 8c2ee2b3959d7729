/* The module zkv.compiled._store: see zkv/compiled/__init__.py. */

#include "store.h"

static int add_type(PyObject *module, const char *name, PyType_Spec *spec, PyTypeObject **keep)
{
    PyObject *type = PyType_FromSpec(spec);
    if (type == NULL || PyModule_AddObjectRef(module, name, type) < 0)
        return 0;
    if (keep != NULL)
        *keep = (PyTypeObject *)type; /* for good, and with our reference */
    else
        Py_DECREF(type);
    return 1;
}

static int execute(PyObject *module)
{
    int well = add_type(module, "Table", &table_spec, NULL) &&
               add_type(module, "Replaced", &replaced_spec, &replaced_type) &&
               add_type(module, "Lane", &lane_spec, NULL);
    return well ? 0 : -1;
}

static PyMethodDef functions[] = {
    {"measure", measure, METH_VARARGS, "See zkv/protocol/nesting.py."},
    {"pack_frames", pack_frames, METH_VARARGS, "See zkv/durability/segment.py."},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef_Slot slots[] = {{Py_mod_exec, execute}, {0, NULL}};

static PyModuleDef definition = {
    .m_base = PyModuleDef_HEAD_INIT,
    .m_name = "_store",
    .m_methods = functions,
    .m_slots = slots,
};

PyMODINIT_FUNC PyInit__store(void) { return PyModuleDef_Init(&definition); }
