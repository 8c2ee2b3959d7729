/* Between libFuzzer, which makes inputs from what code they reach, and a target in Python.
 *
 * The compiled parts are built with libFuzzer's instruments and loaded as ever; the target compares
 * what they do with what Python does. See __main__.py. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <stdint.h>
#include <stdlib.h>

static PyObject *target;

static void must(int well)
{
    if (well)
        return;
    PyErr_Print();
    abort(); /* libFuzzer keeps the input. */
}

int LLVMFuzzerInitialize(int *count, char ***arguments)
{
    PyConfig config;
    PyConfig_InitPythonConfig(&config);
    PyConfig_SetBytesString(&config, &config.program_name, getenv("ZKV_FUZZ_PYTHON"));
    must(!PyStatus_Exception(Py_InitializeFromConfig(&config)));
    PyConfig_Clear(&config);
    PyObject *targets = PyImport_ImportModule("tests.compiled.fuzz.targets");
    must(targets != NULL);
    target = PyObject_GetAttrString(targets, getenv("ZKV_FUZZ_TARGET"));
    must(target != NULL);
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    PyObject *nothing = PyObject_CallFunction(target, "y#", (const char *)data, (Py_ssize_t)size);
    must(nothing != NULL);
    Py_DECREF(nothing);
    return 0;
}
