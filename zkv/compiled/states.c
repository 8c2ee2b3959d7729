/* States that the front looks at in each turn, and their types: the bases of classes in Python, which
 * set the attributes and say what they mean. Read as attributes of Python, they would take a tenth
 * of the front's time for a GET: it has just waited, so each step of Python is a slow one.
 *
 * And the lock of the keyspace: zkv/keyspace/lock.py.
 *
 * Invariant: Python's lock is held, but while a thread waits for the keyspace's. */

#include "states.h"

#include <structmember.h>

/* A type with one attribute, a number. */
#define NUMBER(prefix, type_name, attribute, struct_name, member, kind)                            \
    static PyMemberDef prefix##_members[] = {                                                      \
        {attribute, kind, offsetof(struct_name, member), 0, NULL},                                 \
        {NULL, 0, 0, 0, NULL},                                                                     \
    };                                                                                             \
    static PyType_Slot prefix##_slots[] = {{Py_tp_members, prefix##_members}, {0, NULL}};          \
    PyType_Spec prefix##_spec = {                                                                  \
        .name = "zkv.compiled._store." type_name,                                                  \
        .basicsize = sizeof(struct_name),                                                          \
        .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE,                                         \
        .slots = prefix##_slots,                                                                   \
    };                                                                                             \
    PyTypeObject *prefix##_type

NUMBER(stopping, "StoppingBase", "begun", Switch, on, T_BOOL);
NUMBER(role, "RoleBase", "leads", Switch, on, T_BOOL);
NUMBER(account, "AccountBase", "logs_requests", Switch, on, T_BOOL);
NUMBER(slow_log, "SlowLogBase", "threshold", SlowLog, threshold, T_DOUBLE);
NUMBER(clock, "ClockBase", "base", Clock, base, T_LONGLONG);
