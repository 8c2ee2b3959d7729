/* States that the front looks at in each turn: see states.c. */

#ifndef ZKV_STATES_H
#define ZKV_STATES_H

#ifndef Py_LIMITED_API
#define Py_LIMITED_API 0x030B0000
#endif
#include <Python.h>

/* A `Stopping` (zkv/requests/stopping.py), a `Role` (zkv/replication/role.py), or an `Account`
 * (zkv/requests/account.py). */
typedef struct {
    PyObject_HEAD
    char on;
} Switch;

/* A `SlowLog` in zkv/requests/slow_log.py. */
typedef struct SlowLog {
    PyObject_HEAD
    double threshold, resumes;
} SlowLog;

/* A `Clock` in zkv/clock.py. */
typedef struct {
    PyObject_HEAD
    long long base;
} Clock;

extern PyType_Spec stopping_spec, role_spec, account_spec, slow_log_spec, clock_spec;
extern PyTypeObject *stopping_type, *role_type, *account_type, *slow_log_type, *clock_type;

#endif
