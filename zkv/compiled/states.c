/* States that the front looks at in each turn, and their types: the bases of classes in Python, which
 * set the attributes and say what they mean. Read as attributes of Python, they would take a tenth
 * of the front's time for a GET: it has just waited, so each step of Python is a slow one.
 *
 * And the lock of the keyspace: zkv/keyspace/lock.py.
 *
 * Invariant: Python's lock is held, but while a thread waits for the keyspace's. */

#include "states.h"

#include <structmember.h>

/* A type with attributes that are numbers. */
#define ATTRIBUTE(attribute, struct_name, member, kind)                                            \
    {attribute, kind, offsetof(struct_name, member), 0, NULL}
#define NUMBERS(prefix, type_name, struct_name, ...)                                               \
    static PyMemberDef prefix##_members[] = {__VA_ARGS__, {NULL, 0, 0, 0, NULL}};                  \
    static PyType_Slot prefix##_slots[] = {{Py_tp_members, prefix##_members}, {0, NULL}};          \
    PyType_Spec prefix##_spec = {                                                                  \
        .name = "zkv.compiled._store." type_name,                                                  \
        .basicsize = sizeof(struct_name),                                                          \
        .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE,                                         \
        .slots = prefix##_slots,                                                                   \
    };                                                                                             \
    PyTypeObject *prefix##_type

NUMBERS(stopping, "StoppingBase", Switch, ATTRIBUTE("begun", Switch, on, T_BOOL));
NUMBERS(role, "RoleBase", Switch, ATTRIBUTE("leads", Switch, on, T_BOOL));
NUMBERS(account, "AccountBase", Switch, ATTRIBUTE("logs_requests", Switch, on, T_BOOL));
NUMBERS(slow_log, "SlowLogBase", SlowLog, ATTRIBUTE("threshold", SlowLog, threshold, T_DOUBLE),
        ATTRIBUTE("resumes", SlowLog, resumes, T_DOUBLE));
NUMBERS(clock, "ClockBase", Clock, ATTRIBUTE("base", Clock, base, T_LONGLONG));
