/* Long runs: requests of many steps, which must not hold up others.
 *
 * Strategy: the front leaves such requests to the lane of a worker. That reads the body without
 * Python's lock. Then it runs in slices, and between them it rests, so that other threads get
 * Python's lock; the front, if it waits for that, has it sooner. It holds the keyspace's lock from
 * the first slice to the last, so nobody else writes, and nobody sees half of it. But the front need
 * not wait: it reads *aside*, without the keyspace's lock, what the entries were before the long run.
 * It leaves all other requests to the workers, which wait for the lock. Packing and hashing, which
 * touch no shared state, take place without Python's lock.
 *
 * Invariants: Python's lock is held while the table or `replaced` is read or changed by one who
 * does not also hold the keyspace's lock. As long as `long_run` of the table is set, that run holds
 * the keyspace's lock, and every record that it has put has a later revision than the run's `rev`,
 * which encodes the place of the record before it. The revisions become final in the last slice,
 * after which it does not rest. */

#include "lane.h"

#include <pthread.h>
#include <sched.h>

enum {
    RELEASED_AT_ONCE = 16,
    LOOK_STEPS = 100,  /* between two looks whether the front waits: some 0.1 ms if all is cold */
    MOST_YIELDS = 1000 /* to it, before it is taken for one that does not get to run */
};

/* read(batch, place): see _store.pyi. */
PyObject *lane_read(Lane *self, PyObject *arguments)
{
    PyObject *batch;
    Py_ssize_t place;
    int well = 0;
    if (!PyArg_ParseTuple(arguments, "On", &batch, &place))
        return NULL;
    if (!PyObject_TypeCheck(batch, batch_type) || place < 0 ||
        (size_t)place >= ((Batch *)batch)->count)
        return PyErr_Format(PyExc_TypeError, "read() takes a batch and a place in it");
    const item *of = &((Batch *)batch)->items[place];
    self->body = NULL;
    while (release_dropped(self->table, RELEASED_AT_ONCE))
        pace(self, RELEASED_AT_ONCE);
    if (of->body != NULL && of->size <= (size_t)self->max_body) {
        Py_BEGIN_ALLOW_THREADS
        well = read_request(self, of->body, of->size, &self->ahead);
        Py_END_ALLOW_THREADS
    }
    self->body = well ? of->body : NULL;
    return PyBool_FromLong(well);
}

int look_aside(const Lane *self, run *r)
{
    r->past = self->table->long_run;
    if (r->past == NULL)
        return 0;
    r->rev = r->past->rev;
    r->removed_rev = r->past->removed_rev;
    return 1;
}

/* What was there before the long run, given what is there now. */
record *past_of(const run *r, record *found)
{
    const run *past = r->past;
    while (found != NULL && found->rev > past->rev)
        found = past->replaced->pairs[found->rev - past->rev - 1].before;
    return found;
}

static void forget_fronts(void)
{
    waiting_for_python = 0;
}

int begin_long_runs(void)
{
    /* A forked child has no front that waits, though the parent may have had one. */
    return pthread_atfork(NULL, NULL, forget_fronts) == 0 || PyErr_NoMemory() != NULL;
}

/* Let the front have Python's lock. To let go of it is not enough: this thread would have it again
 * before the front has woken up. */
static void hand_over(void)
{
    PyThreadState *left = PyEval_SaveThread();
    for (int i = 0; i < MOST_YIELDS && __atomic_load_n(&waiting_for_python, __ATOMIC_SEQ_CST); i++)
        sched_yield();
    PyEval_RestoreThread(left);
}

void pace(Lane *self, Py_ssize_t steps)
{
    if (self->rest == NULL)
        return;
    self->taken += steps;
    if (self->taken >= self->slice) {
        PyErr_Clear(); /* Of a failure because of which the request is being left to Python. */
        Py_XDECREF(PyObject_CallNoArgs(self->rest));
        PyErr_Clear();
        self->taken = self->looked = 0;
    } else if (self->taken - self->looked >= LOOK_STEPS) {
        self->looked = self->taken;
        if (__atomic_load_n(&waiting_for_python, __ATOMIC_SEQ_CST))
            hand_over();
    }
}

PyThreadState *leave_python(const Lane *self)
{
    return self->rest != NULL ? PyEval_SaveThread() : NULL;
}

void return_to_python(PyThreadState *left)
{
    if (left != NULL)
        PyEval_RestoreThread(left);
}
