/* A batch of requests and their replies, as `PythonBatch` in zkv/requests/batch.py is one.
 *
 * Strategy: between two calls of libzmq, a simple request is only bytes, from the message that
 * brought it to the reply. Objects of Python are made only if Python asks for them. Small replies
 * share one piece of memory, the arena.
 *
 * Invariants: one thread at a time uses a batch. A body is valid as long as the batch has the
 * request. A reply is sent from the batch's memory, so it stays there until it has been sent. */

#include "lane.h"

/* --- Replies ---------------------------------------------------------------------------------- */

unsigned char *batch_begin_reply(Batch *self, size_t most)
{
    if (self->arena == NULL && (self->arena = malloc(ARENA_BYTES)) == NULL)
        return NULL;
    return most < ARENA_BYTES - self->used ? self->arena + self->used : malloc(most);
}

void batch_drop_reply(Batch *self, unsigned char *reply)
{
    if (!in_arena(self, reply))
        free(reply);
}

void batch_answer(Batch *self, size_t place, span reply, int op, int64_t reveals)
{
    item *of = &self->items[place];
    of->reply = (unsigned char *)reply.at;
    of->reply_size = reply.size;
    of->op = op;
    of->reveals = reveals;
    self->replied += reply.size;
    if (in_arena(self, reply.at))
        self->used += reply.size;
}

/* --- Requests --------------------------------------------------------------------------------- */

/* add(envelope, body, arrived, waited, user, user_id): see PythonBatch; likewise below. */
static PyObject *batch_add(Batch *self, PyObject *arguments)
{
    PyObject *envelope, *body, *user = Py_None;
    char *bytes = NULL;
    Py_ssize_t size = 0;
    double arrived = 0, waited = 0;
    const char *user_id = NULL;
    if (!PyArg_ParseTuple(arguments, "OO|ddOs", &envelope, &body, &arrived, &waited, &user,
                          &user_id))
        return NULL;
    if (PyObject_TypeCheck(body, &PyBytes_Type) && PyBytes_AsStringAndSize(body, &bytes, &size) < 0)
        return NULL;
    item *of = next_item(self);
    if (of == NULL || (user_id != NULL && (of->user_id = strdup(user_id)) == NULL))
        return PyErr_NoMemory(); /* Without its User-Id it would count as the program's own. */
    of->envelope = Py_NewRef(envelope);
    of->object = Py_NewRef(body);
    of->body = (unsigned char *)bytes;
    of->size = (size_t)size;
    of->arrived = arrived;
    of->waited = waited;
    of->user = user == Py_None ? NULL : Py_NewRef(user);
    self->count++;
    Py_RETURN_NONE;
}

static Py_ssize_t batch_length(Batch *self) { return (Py_ssize_t)self->count; }

/* The item at a place that Python gives. NULL, with an exception, if there is none. */
static item *item_at(Batch *self, PyObject *place)
{
    Py_ssize_t at = PyLong_AsSsize_t(place);
    if (at >= 0 && (size_t)at < self->count)
        return &self->items[at];
    if (!PyErr_Occurred())
        PyErr_Format(PyExc_IndexError, "no request at %zd", at);
    return NULL;
}

static PyObject *body_of(const Batch *self, const item *of)
{
    if (of->object != NULL)
        return Py_NewRef(of->object);
    PyObject *body = PyBytes_FromStringAndSize((const char *)of->body, (Py_ssize_t)of->size);
    if (body != NULL)
        return body;
    PyErr_Clear();
    return Py_NewRef(self->no_memory);
}

static PyObject *batch_item(Batch *self, Py_ssize_t at)
{
    if (at < 0 || (size_t)at >= self->count)
        return PyErr_Format(PyExc_IndexError, "no request at %zd", at);
    return body_of(self, &self->items[at]);
}

static PyObject *batch_is_request(Batch *self, PyObject *place)
{
    const item *of = item_at(self, place);
    return of == NULL ? NULL : PyBool_FromLong(of->body != NULL);
}

static PyObject *batch_envelope(Batch *self, PyObject *place)
{
    const item *of = item_at(self, place);
    if (of == NULL)
        return NULL;
    return Py_NewRef(of->envelope == NULL ? Py_None : of->envelope);
}

static PyObject *batch_user(Batch *self, PyObject *place)
{
    const item *of = item_at(self, place);
    if (of == NULL)
        return NULL;
    return Py_NewRef(of->user == NULL ? Py_None : of->user);
}

static PyObject *batch_user_id(Batch *self, PyObject *place)
{
    const item *of = item_at(self, place);
    if (of == NULL)
        return NULL;
    return PyUnicode_FromString(of->user_id == NULL ? "" : of->user_id);
}

static PyObject *batch_overload(Batch *self, PyObject *place)
{
    const item *of = item_at(self, place);
    if (of == NULL)
        return NULL;
    return Py_NewRef(of->overload == NULL ? Py_None : of->overload);
}

static PyObject *batch_refuse(Batch *self, PyObject *arguments)
{
    PyObject *place, *overload;
    if (!PyArg_ParseTuple(arguments, "OO", &place, &overload))
        return NULL;
    item *of = item_at(self, place);
    if (of == NULL)
        return NULL;
    Py_XDECREF(of->overload);
    of->overload = Py_NewRef(overload);
    Py_RETURN_NONE;
}

static PyObject *batch_arrived(Batch *self, PyObject *place)
{
    const item *of = item_at(self, place);
    return of == NULL ? NULL : PyFloat_FromDouble(arrival(self, of));
}

static PyObject *batch_lock_wait(Batch *self, PyObject *place)
{
    const item *of = item_at(self, place);
    return of == NULL ? NULL : PyFloat_FromDouble(of->waited);
}

static PyObject *batch_queued(Batch *self, PyObject *before)
{
    double seconds = 0;
    size_t end = PyLong_AsSize_t(before);
    if (PyErr_Occurred())
        return NULL;
    for (size_t i = 0; i < self->count && i < end; i++)
        seconds += self->taken - arrival(self, &self->items[i]) - self->items[i].waited;
    return PyFloat_FromDouble(seconds);
}

static PyObject *batch_replied(Batch *self, void *unused)
{
    return PyLong_FromSize_t(self->replied);
}

static int set_seconds(double *to, PyObject *seconds)
{
    *to = seconds == NULL ? 0 : PyFloat_AsDouble(seconds);
    return PyErr_Occurred() ? -1 : 0;
}

static PyObject *batch_taken(Batch *self, void *unused)
{
    return PyFloat_FromDouble(self->taken);
}

static int batch_set_taken(Batch *self, PyObject *seconds, void *unused)
{
    return set_seconds(&self->taken, seconds);
}

static PyObject *batch_waited(Batch *self, void *unused)
{
    return PyFloat_FromDouble(self->waited);
}

static int batch_set_waited(Batch *self, PyObject *seconds, void *unused)
{
    return set_seconds(&self->waited, seconds);
}

static PyObject *batch_reply(Batch *self, PyObject *place)
{
    const item *of = item_at(self, place);
    if (of == NULL)
        return NULL;
    if (of->reply == NULL)
        Py_RETURN_NONE;
    if (of->reply_owner != NULL)
        return Py_NewRef(of->reply_owner);
    return PyBytes_FromStringAndSize((const char *)of->reply, (Py_ssize_t)of->reply_size);
}

/* The item at a place, with another reply. Arguments: place, reply. NULL, with an exception, if
 * they are none. */
static item *replace_reply(Batch *self, PyObject *arguments)
{
    PyObject *place, *reply;
    char *bytes;
    Py_ssize_t size;
    if (!PyArg_ParseTuple(arguments, "OO", &place, &reply))
        return NULL;
    item *of = item_at(self, place);
    if (of == NULL || PyBytes_AsStringAndSize(reply, &bytes, &size) < 0)
        return NULL;
    drop_reply(self, of);
    of->reply_owner = Py_NewRef(reply);
    of->reply = (unsigned char *)bytes;
    of->reply_size = (size_t)size;
    return of;
}

static PyObject *batch_set_reply(Batch *self, PyObject *arguments)
{
    item *of = replace_reply(self, arguments);
    if (of == NULL)
        return NULL;
    of->reveals = 0;
    of->op = NONE;
    of->keys = 0;
    of->timed = 0;
    Py_RETURN_NONE;
}

static PyObject *batch_amend_reply(Batch *self, PyObject *arguments)
{
    return replace_reply(self, arguments) == NULL ? NULL : Py_NewRef(Py_None);
}

static PyObject *batch_sent(Batch *self, PyObject *place)
{
    item *of = item_at(self, place);
    if (of == NULL)
        return NULL;
    drop_reply(self, of);
    Py_RETURN_NONE;
}

static PyObject *batch_clear(Batch *self, PyObject *unused)
{
    clear_batch(self);
    Py_RETURN_NONE;
}

/* --- Splitting -------------------------------------------------------------------------------- */

/* Reserve in `to` what moving these requests there takes. 0, with an exception, if there is no
 * memory, or no such request. */
static int reserve(Batch *self, Batch *to, PyObject *places)
{
    size_t frames = 0, count = (size_t)PyList_Size(places);
    int replies = 0;
    for (size_t i = 0; i < count; i++) {
        const item *of = item_at(self, PyList_GetItem(places, (Py_ssize_t)i));
        if (of == NULL)
            return 0;
        frames += of->end - of->first;
        replies = replies || in_arena(self, of->reply);
    }
    if ((replies && (to->arena = malloc(ARENA_BYTES)) == NULL) || !reserve_items(to, count) ||
        (self->calls != NULL && !self->calls->reserve(to, frames)))
        return PyErr_NoMemory(), 0;
    return 1;
}

/* Move a request to the end of another batch, which has the capacity. */
static void move_item(Batch *self, item *of, Batch *to)
{
    item *moved = &to->items[to->count++];
    *moved = *of;
    *of = (item){0};
    if (moved->reply != NULL && in_arena(self, moved->reply)) {
        moved->reply = memcpy(to->arena + to->used, moved->reply, moved->reply_size);
        to->used += moved->reply_size;
    }
    if (self->calls != NULL)
        self->calls->move(self, to, moved);
}

/* Move everything into an empty batch. */
static void move_all(Batch *self, Batch *to)
{
    Batch moved = *self;
    to->taken = moved.taken;
    to->waited = moved.waited;
    to->timed = moved.timed;
    to->replied = moved.replied;
    self->timed = 0;
    self->items = NULL, self->arena = NULL, self->frames = NULL, self->calls = NULL;
    self->count = self->room = self->used = self->frame_count = self->frame_room = 0;
    to->items = moved.items, to->count = moved.count, to->room = moved.room;
    to->arena = moved.arena, to->used = moved.used, to->calls = moved.calls;
    to->frames = moved.frames;
    to->frame_count = moved.frame_count, to->frame_room = moved.frame_room;
}

int waiting_for_python;

/* An empty batch. */
static Batch *make_batch(PyTypeObject *type, PyObject *no_memory)
{
    Batch *self = (Batch *)PyType_GenericAlloc(type, 0);
    if (self != NULL) {
        self->no_memory = Py_NewRef(no_memory);
        self->waiting = &waiting_for_python;
    }
    return self;
}

static PyObject *batch_split(Batch *self, PyObject *places)
{
    Py_ssize_t count = PyList_Size(places);
    Batch *to = count < 0 ? NULL : make_batch(Py_TYPE((PyObject *)self), self->no_memory);
    if (to == NULL)
        return NULL;
    if ((size_t)count == self->count)
        return move_all(self, to), (PyObject *)to;
    if (!reserve(self, to, places))
        return Py_DECREF(to), NULL;
    to->taken = self->taken;
    to->waited = self->waited;
    to->timed = self->timed;
    for (Py_ssize_t i = 0; i < count; i++)
        move_item(self, item_at(self, PyList_GetItem(places, i)), to);
    return (PyObject *)to;
}

/* --- The lane's answers ----------------------------------------------------------------------- */

static PyObject *batch_places(Batch *self, PyObject *revision)
{
    int64_t after = PyLong_AsLongLong(revision);
    if (PyErr_Occurred())
        return NULL;
    PyObject *places = PyList_New(0);
    for (size_t i = 0; places != NULL && i < self->count; i++)
        if (self->items[i].op != NONE && self->items[i].reveals > after &&
            !list_append(places, PyLong_FromSize_t(i)))
            Py_CLEAR(places);
    return places;
}

static PyObject *batch_timed_places(Batch *self, PyObject *revision)
{
    int64_t up_to = PyLong_AsLongLong(revision);
    if (PyErr_Occurred())
        return NULL;
    PyObject *places = PyList_New(0);
    for (size_t i = 0; places != NULL && self->timed && i < self->count; i++)
        if (self->items[i].timed && self->items[i].reveals <= up_to &&
            !list_append(places, PyLong_FromSize_t(i)))
            Py_CLEAR(places);
    return places;
}

static PyObject *batch_answered(Batch *self, PyObject *revision)
{
    int64_t up_to = PyLong_AsLongLong(revision);
    if (PyErr_Occurred())
        return NULL;
    PyObject *answered = PyList_New(0);
    for (size_t i = 0; answered != NULL && i < self->count; i++) {
        const item *of = &self->items[i];
        if (of->op != NONE && of->reveals <= up_to && of->subject != NULL &&
            !list_append(answered, Py_BuildValue("(sOnnOO)", op_name(of->op), of->subject,
                                            (Py_ssize_t)of->size, (Py_ssize_t)of->reply_size,
                                            of->trace == NULL ? Py_None : of->trace,
                                            of->user == NULL ? Py_None : of->user)))
            Py_CLEAR(answered);
    }
    return answered;
}

static PyObject *batch_summary(Batch *self, PyObject *place)
{
    const item *of = item_at(self, place);
    if (of == NULL)
        return NULL;
    if (of->keys == 0)
        Py_RETURN_NONE;
    PyObject *trace =
        of->trace_size == 0
            ? Py_NewRef(Py_None)
            : PyUnicode_FromStringAndSize((const char *)of->body + of->trace_at,
                                          (Py_ssize_t)of->trace_size);
    return trace == NULL ? NULL
                         : Py_BuildValue("(snNn)", op_name(of->op), (Py_ssize_t)of->keys, trace,
                                         (Py_ssize_t)of->size);
}

/* --- The type --------------------------------------------------------------------------------- */

static PyObject *batch_new(PyTypeObject *type, PyObject *arguments, PyObject *keywords)
{
    PyObject *no_memory;
    static char *names[] = {"no_memory", NULL};
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "O", names, &no_memory))
        return NULL;
    return (PyObject *)make_batch(type, no_memory);
}

static void batch_dealloc(Batch *self)
{
    PyTypeObject *type = Py_TYPE((PyObject *)self);
    clear_batch(self);
    free(self->items);
    free(self->arena);
    free(self->frames);
    Py_XDECREF(self->no_memory);
    PyObject_Free(self);
    Py_DECREF(type);
}

static PyMethodDef batch_methods[] = {
    {"add", (PyCFunction)batch_add, METH_VARARGS, NULL},
    {"is_request", (PyCFunction)batch_is_request, METH_O, NULL},
    {"envelope", (PyCFunction)batch_envelope, METH_O, NULL},
    {"reply", (PyCFunction)batch_reply, METH_O, NULL},
    {"set_reply", (PyCFunction)batch_set_reply, METH_VARARGS, NULL},
    {"sent", (PyCFunction)batch_sent, METH_O, NULL},
    {"clear", (PyCFunction)batch_clear, METH_NOARGS, NULL},
    {"split", (PyCFunction)batch_split, METH_O, NULL},
    {"places", (PyCFunction)batch_places, METH_O, NULL},
    {"answered", (PyCFunction)batch_answered, METH_O, NULL},
    {"summary", (PyCFunction)batch_summary, METH_O, NULL},
    {"timed_places", (PyCFunction)batch_timed_places, METH_O, NULL},
    {"amend_reply", (PyCFunction)batch_amend_reply, METH_VARARGS, NULL},
    {"user", (PyCFunction)batch_user, METH_O, NULL},
    {"user_id", (PyCFunction)batch_user_id, METH_O, NULL},
    {"overload", (PyCFunction)batch_overload, METH_O, NULL},
    {"refuse", (PyCFunction)batch_refuse, METH_VARARGS, NULL},
    {"queued", (PyCFunction)batch_queued, METH_O, NULL},
    {"arrived", (PyCFunction)batch_arrived, METH_O, NULL},
    {"lock_wait", (PyCFunction)batch_lock_wait, METH_O, NULL},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef batch_attributes[] = {
    {"replied", (getter)batch_replied, NULL, NULL, NULL},
    {"taken", (getter)batch_taken, (setter)batch_set_taken, NULL, NULL},
    {"waited", (getter)batch_waited, (setter)batch_set_waited, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot batch_slots[] = {
    {Py_tp_doc, "See PythonBatch in zkv/requests/batch.py."},
    {Py_tp_new, batch_new},
    {Py_tp_dealloc, batch_dealloc},
    {Py_tp_methods, batch_methods},
    {Py_tp_getset, batch_attributes},
    {Py_sq_length, batch_length},
    {Py_sq_item, batch_item},
    {0, NULL},
};

PyType_Spec batch_spec = {
    .name = "zkv.compiled._store.Batch",
    .basicsize = sizeof(Batch),
    .flags = Py_TPFLAGS_DEFAULT,
    .slots = batch_slots,
};

PyTypeObject *batch_type;
