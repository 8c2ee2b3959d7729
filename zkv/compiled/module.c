/* The module zkv.compiled._store: see zkv/compiled/__init__.py. */

#include "states.h"
#include "writes.h"

/* Add a type, of which this consumes the reference: `keep`, if not NULL, holds it for good. */
static int add_type(PyObject *module, const char *name, PyObject *type, PyTypeObject **keep)
{
    if (type == NULL || PyModule_AddObjectRef(module, name, type) < 0)
        return 0;
    if (keep != NULL)
        *keep = (PyTypeObject *)type;
    else
        Py_DECREF(type);
    return 1;
}

static int execute(PyObject *module)
{
    int complete =
        begin_names() && begin_long_runs() &&
        add_type(module, "WalBase", PyType_FromSpec(&wal_spec), &wal_type) &&
        add_type(module, "KeyspaceBase", PyType_FromSpec(&keyspace_spec), &keyspace_type) &&
        add_type(module, "HistoryBase", PyType_FromSpec(&history_spec), &history_type) &&
        add_type(module, "BucketsBase", PyType_FromSpec(&buckets_spec), &buckets_type) &&
        add_type(module, "ActivityBase", PyType_FromSpec(&activity_spec), &activity_type) &&
        add_type(module, "StoppingBase", PyType_FromSpec(&stopping_spec), &stopping_type) &&
        add_type(module, "RoleBase", PyType_FromSpec(&role_spec), &role_type) &&
        add_type(module, "AccountBase", PyType_FromSpec(&account_spec), &account_type) &&
        add_type(module, "SlowLogBase", PyType_FromSpec(&slow_log_spec), &slow_log_type) &&
        add_type(module, "ClockBase", PyType_FromSpec(&clock_spec), &clock_type) &&
        add_type(module, "SessionsBase", PyType_FromSpec(&sessions_spec), &sessions_type) &&
        add_type(module, "ClientSession", PyType_FromSpec(&session_spec), NULL) &&
        add_type(module, "Table", PyType_FromSpec(&table_spec), NULL) &&
        add_type(module, "Replaced", PyType_FromSpec(&replaced_spec), &replaced_type) &&
        add_type(module, "Batch", PyType_FromSpec(&batch_spec), &batch_type) &&
        add_type(module, "Prefixes", PyType_FromSpec(&prefixes_spec), &prefixes_type) &&
        add_type(module, "Latencies", PyType_FromSpec(&latencies_spec), &latencies_type) &&
        add_type(module, "Lane", PyType_FromSpec(&lane_spec), &lane_type) &&
        add_type(module, "Turn", PyType_FromSpec(&turn_spec), NULL) &&
        add_type(module, "Run", (PyObject *)new_run_type(), &run_type);
    return complete ? 0 : -1;
}

static PyMethodDef functions[] = {
    {"measure", measure, METH_VARARGS, "See zkv/nesting.py."},
    {"pack_frames", pack_frames, METH_VARARGS, "See zkv/durability/segment.py."},
    {"unpack_frames", unpack_frames, METH_VARARGS, "See zkv/durability/segment.py."},
    {"replay", py_replay, METH_VARARGS, "See zkv/durability/recovery.py."},
    {"load_entries", load_entries, METH_VARARGS, "See zkv/durability/snapshot.py."},
    {"pack_plain", (PyCFunction)(void *)pack_plain, METH_FASTCALL, "See zkv/client/plain.py."},
    {"unpack_plain", unpack_plain, METH_O, "See zkv/client/plain.py."},
    {"are_texts", are_texts, METH_O, "See zkv/checks.py."},
    {"siphash13", py_siphash13, METH_VARARGS, "For tests."},
    {"crc32", py_crc32, METH_VARARGS, "For tests."},
    {"blake2b", py_blake2b, METH_VARARGS, "For tests."},
    {"blake2b_sum", py_blake2b_sum, METH_O, "For tests."},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef_Slot slots[] = {{Py_mod_exec, execute}, {0, NULL}};

static PyModuleDef definition = {
    .m_base = PyModuleDef_HEAD_INIT,
    .m_name = "_store",
    .m_size = sizeof(known_keys),
    .m_methods = functions,
    .m_slots = slots,
    .m_free = known_keys_end,
};

PyMODINIT_FUNC PyInit__store(void) { return PyModuleDef_Init(&definition); }
