/* Batches of messages off and onto a socket, compiled: the twin of `PythonFrames` in frames.py.
 *
 * Strategy: what costs a worker is each call on a socket and each turn of Python's lock. So waiting
 * for messages and taking a whole batch is one call without the lock, sending a batch of replies is
 * another, and Python objects are made and read before and after, with the lock held. Where there
 * are others behind, what they answer is passed on during the wait, and never becomes an object.
 *
 * Nothing is linked. The socket is pyzmq's own, so the functions of libzmq must be those of the
 * library that pyzmq has loaded; `attach` looks them up in it. What is assumed of libzmq is part of
 * its stable ABI since 4.1: the functions below, the numbers of options, and that a `zmq_msg_t` has
 * 64 bytes.
 *
 * Invariants: what `PythonFrames` does is the specification; tests run against both. An object is
 * used in one thread. Every zmq_msg_t that was initialised is closed, and every Python object that
 * is looked at without the lock is held by a reference of our own meanwhile.
 */

#define Py_LIMITED_API 0x030B0000 /* one binary for Python 3.11 and everything newer */
#include <Python.h>

#include <dlfcn.h>
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>

/* --- libzmq ---------------------------------------------------------------------------------- */

typedef union {
    unsigned char bytes[64];
    void *alignment;
} zmq_msg_t;

enum { DONTWAIT = 1, SNDMORE = 2 };           /* flags */
enum { OPTION_FD = 14, OPTION_EVENTS = 15 };  /* options */
enum { EVENT_IN = 1, EVENT_OUT = 2 };         /* what OPTION_EVENTS tells */

static struct {
    void (*version)(int *major, int *minor, int *patch);
    int (*last_error)(void);
    int (*getsockopt)(void *socket, int option, void *value, size_t *size);
    int (*send)(void *socket, const void *data, size_t size, int flags);
    int (*msg_init)(zmq_msg_t *);
    int (*msg_init_size)(zmq_msg_t *, size_t size);
    int (*msg_recv)(zmq_msg_t *, void *socket, int flags);
    int (*msg_send)(zmq_msg_t *, void *socket, int flags);
    int (*msg_move)(zmq_msg_t *to, zmq_msg_t *from);
    int (*msg_more)(const zmq_msg_t *);
    size_t (*msg_size)(const zmq_msg_t *);
    void *(*msg_data)(zmq_msg_t *);
    int (*msg_close)(zmq_msg_t *);
} zmq;

static const struct {
    const char *name;
    void *slot;
} functions[] = {
    {"zmq_version", &zmq.version},       {"zmq_errno", &zmq.last_error},
    {"zmq_getsockopt", &zmq.getsockopt}, {"zmq_send", &zmq.send},
    {"zmq_msg_init", &zmq.msg_init},     {"zmq_msg_recv", &zmq.msg_recv},
    {"zmq_msg_move", &zmq.msg_move},     {"zmq_msg_more", &zmq.msg_more},
    {"zmq_msg_size", &zmq.msg_size},     {"zmq_msg_data", &zmq.msg_data},
    {"zmq_msg_send", &zmq.msg_send},     {"zmq_msg_close", &zmq.msg_close},
    {"zmq_msg_init_size", &zmq.msg_init_size},
};

/* attach(path): find libzmq's functions in a loaded extension module of pyzmq, or in what it
 * depends on; returns the library's version. */
static PyObject *attach(PyObject *module, PyObject *arguments)
{
    PyObject *path;
    int major, minor, patch;
    if (!PyArg_ParseTuple(arguments, "O&", PyUnicode_FSConverter, &path))
        return NULL;
    void *library = dlopen(PyBytes_AsString(path), RTLD_LAZY | RTLD_NOLOAD); /* for good */
    Py_DECREF(path);
    if (library == NULL)
        return PyErr_Format(PyExc_ImportError, "this library is not loaded");
    for (size_t i = 0; i < sizeof functions / sizeof *functions; i++) {
        void *function = dlsym(library, functions[i].name);
        if (function == NULL)
            return PyErr_Format(PyExc_ImportError, "no %s in this library", functions[i].name);
        *(void **)functions[i].slot = function;
    }
    zmq.version(&major, &minor, &patch);
    return Py_BuildValue("(iii)", major, minor, patch);
}

/* --- Frames ---------------------------------------------------------------------------------- */

enum kind { COMPLETE, NO_DELIMITER, NO_BODY, TWO_BODIES, NO_MEMORY, KINDS };

/* One message received: its envelope, then its body if it is complete, in `Frames.frames`. */
typedef struct {
    size_t first, end;
    enum kind kind;
} letter;

/* A socket of pyzmq's. */
typedef struct {
    PyObject *owner;
    void *socket; /* the same to libzmq; NULL where there is none, or it is closed */
    int signal;   /* readable once there is something new since a call that found nothing */
} end;

typedef struct {
    PyObject_HEAD
    end front, behind;          /* behind: whom to hand over to; there may be none */
    int waker;                   /* the descriptor whose readability ends a wait */
    PyObject *stands_for[KINDS]; /* what is given in place of the body of a bad message */
    PyObject *error;            /* makes an exception from an error number */
    unsigned long long unroutable;
    zmq_msg_t *frames;          /* of the batch that is being received; each is initialised */
    size_t count, room;
    letter *letters;
    size_t taken;            /* of them, and not given away yet */
    size_t most, most_bytes; /* of a batch */
} Frames;

enum { ROOM = 256, KEPT_ROOM = 4096 }; /* frames: at first, and kept from one batch to the next */

static int is_error(int number) { return number != 0 && number != EAGAIN; }

/* A further frame, initialised; NULL where memory ends. libzmq must move messages itself. */
static zmq_msg_t *add_frame(Frames *self)
{
    if (self->count == self->room) {
        size_t room = self->room ? 2 * self->room : ROOM;
        zmq_msg_t *frames = malloc(room * sizeof *frames);
        if (frames == NULL)
            return NULL;
        for (size_t i = 0; i < self->count; i++) {
            zmq.msg_init(&frames[i]);
            zmq.msg_move(&frames[i], &self->frames[i]);
            zmq.msg_close(&self->frames[i]);
        }
        free(self->frames);
        self->frames = frames;
        self->room = room;
    }
    zmq_msg_t *frame = &self->frames[self->count++];
    zmq.msg_init(frame);
    return frame;
}

static void drop_frames(Frames *self, size_t keep)
{
    while (self->count > keep)
        zmq.msg_close(&self->frames[--self->count]);
}

/* 0, or an error number. */
static int receive_frame(zmq_msg_t *frame, void *socket)
{
    while (zmq.msg_recv(frame, socket, DONTWAIT) < 0)
        if (zmq.last_error() != EINTR)
            return zmq.last_error();
    return 0;
}

static int send_frame(zmq_msg_t *frame, void *socket, int more)
{
    while (zmq.msg_send(frame, socket, DONTWAIT | (more ? SNDMORE : 0)) < 0)
        if (zmq.last_error() != EINTR)
            return zmq.last_error();
    return 0;
}

/* The next frame, if there is one: 0, or an error number. */
static int take_frame(Frames *self)
{
    zmq_msg_t *frame = add_frame(self);
    if (frame == NULL)
        return ENOMEM;
    int number = receive_frame(frame, self->front.socket);
    if (number)
        drop_frames(self, self->count - 1);
    return number;
}

/* Take the frames that a message still has, of which no more than the first have been kept. */
static void skip_rest(Frames *self)
{
    zmq_msg_t frame;
    int more = 1;
    zmq.msg_init(&frame);
    while (more)
        more = !receive_frame(&frame, self->front.socket) && zmq.msg_more(&frame);
    zmq.msg_close(&frame);
}

/* The next message, if there is one: 0, or an error number; EAGAIN where there is none.
 * One that has nowhere to reply to is counted, and leaves nothing in `to`; so is one that there is
 * no memory for. */
static int take_letter(Frames *self, letter *to, int *routable)
{
    size_t first = self->count;
    size_t delimiter = 0; /* its place; never that of the first frame, which is the sender's id */
    int more = 1;
    while (more) {
        int number = take_frame(self);
        if (number) {
            if (number == ENOMEM && self->count > first)
                skip_rest(self), self->unroutable++;
            drop_frames(self, first);
            return number;
        }
        zmq_msg_t *frame = &self->frames[self->count - 1];
        more = zmq.msg_more(frame);
        if (delimiter && self->count > delimiter + 2)
            drop_frames(self, self->count - 1), to->kind = TWO_BODIES;
        else if (delimiter)
            to->kind = COMPLETE;
        else if (self->count - 1 > first && zmq.msg_size(frame) == 0)
            delimiter = self->count - 1, to->kind = NO_BODY;
    }
    *routable = self->count - first > 1;
    if (!delimiter) {
        to->kind = NO_DELIMITER;
        drop_frames(self, *routable ? first + 1 : first);
    } else if (to->kind == TWO_BODIES) {
        drop_frames(self, delimiter + 1);
    }
    self->unroutable += !*routable;
    to->first = first;
    to->end = self->count;
    return 0;
}

/* Whatever is there, up to `most` letters, and none more where they have `most_bytes`. 0, or an error
 * number; EAGAIN where there is nothing. */
static int take_batch(Frames *self, size_t *taken)
{
    int number = EAGAIN, routable, any = 0;
    size_t bytes = 0, counted = self->count;
    while (*taken < self->most && bytes < self->most_bytes) {
        number = take_letter(self, &self->letters[*taken], &routable);
        if (number)
            break;
        any = 1;
        *taken += routable;
        for (; counted < self->count; counted++)
            bytes += zmq.msg_size(&self->frames[counted]);
    }
    return any ? 0 : number;
}

/* One message from behind to the front, if there is one: 0, or an error number. */
static int pass_message(Frames *self)
{
    zmq_msg_t frame;
    int number = 0, more = 1, lost = 0;
    zmq.msg_init(&frame);
    while (more && !number) {
        number = receive_frame(&frame, self->behind.socket);
        more = !number && zmq.msg_more(&frame);
        if (!number && !lost) {
            number = send_frame(&frame, self->front.socket, more);
            lost = number == EAGAIN; /* Nobody is there to take it. */
            number = lost ? 0 : number;
        }
    }
    self->unroutable += (unsigned)lost;
    zmq.msg_close(&frame);
    return number;
}

/* All that those behind have answered: 0, or an error number. */
static int pass_on(Frames *self)
{
    int number = 0;
    while (self->behind.socket != NULL && !number)
        number = pass_message(self);
    return number == EAGAIN ? 0 : number;
}

/* What a receive is to do: see `Frames` in frames.py. */
typedef struct {
    int wait, take, capacity;
} wish;

/* Wait for any news. 0, or an error number; `told` is set where the caller has to look at it. */
static int wait_for_news(Frames *self, const wish *w, int *told)
{
    int events = 0;
    size_t size = sizeof events;
    if (w->capacity) { /* To look at this comes last: any call may use up the signal of it. */
        if (zmq.getsockopt(self->behind.socket, OPTION_EVENTS, &events, &size) < 0)
            return zmq.last_error();
        *told = (events & EVENT_OUT) != 0;
        if (events) /* Of what is to be passed on, too: that look has used up its signal. */
            return 0;
    }
    struct pollfd any[] = {
        {self->waker, POLLIN, 0},
        {w->take ? self->front.signal : -1, POLLIN, 0},
        {self->behind.socket != NULL ? self->behind.signal : -1, POLLIN, 0},
    };
    if (poll(any, 3, -1) < 0)
        return errno;
    *told = any[0].revents != 0;
    return 0;
}

/* `take_batch`, unless something is there from last time; where there is nothing, and that is wished, again after news. What comes from behind
 * is passed on. Without Python's lock. EINTR where a signal has come meanwhile. */
static int take_or_wait(Frames *self, const wish *w, size_t *taken)
{
    int number, told = !w->wait;
    for (;;) {
        number = pass_on(self);
        if (!number && !*taken)
            number = w->take ? take_batch(self, taken) : EAGAIN;
        if (number != EAGAIN || told)
            return number;
        number = wait_for_news(self, w, &told);
        if (number)
            return number;
    }
}

static PyObject *fail(Frames *self, int number)
{
    if (number == ENOMEM)
        return PyErr_NoMemory();
    PyObject *error = PyObject_CallFunction(self->error, "i", number);
    if (error != NULL) {
        PyErr_SetObject((PyObject *)Py_TYPE(error), error);
        Py_DECREF(error);
    }
    return NULL;
}

static int is_closed(Frames *self)
{
    if (self->front.socket == NULL)
        fail(self, ENOTSOCK);
    return self->front.socket == NULL;
}

static PyObject *to_bytes(zmq_msg_t *frame)
{
    return PyBytes_FromStringAndSize(zmq.msg_data(frame), (Py_ssize_t)zmq.msg_size(frame));
}

/* Append a new reference, which may be NULL, and let go of it; whether that went well. */
static int append(PyObject *list, PyObject *item)
{
    int well = item != NULL && PyList_Append(list, item) == 0;
    Py_XDECREF(item);
    return well;
}

/* The envelope of a letter, as a list of bytes. */
static PyObject *to_envelope(Frames *self, const letter *from)
{
    size_t end = from->end - (from->kind == COMPLETE);
    PyObject *envelope = PyList_New(0);
    for (size_t i = from->first; envelope != NULL && i < end; i++)
        if (!append(envelope, to_bytes(&self->frames[i])))
            Py_CLEAR(envelope);
    if (envelope != NULL && from->kind == NO_DELIMITER)
        if (!append(envelope, PyBytes_FromStringAndSize(NULL, 0)))
            Py_CLEAR(envelope);
    return envelope;
}

static PyObject *to_body(Frames *self, const letter *from)
{
    PyObject *body = NULL;
    if (from->kind == COMPLETE) {
        body = to_bytes(&self->frames[from->end - 1]);
        if (body == NULL)
            PyErr_Clear();
    }
    enum kind kind = from->kind == COMPLETE ? NO_MEMORY : from->kind;
    return body != NULL ? body : Py_NewRef(self->stands_for[kind]);
}

/* (envelopes, bodies) of the letters that were taken; without memory they stay. Lists are made by appending: one with gaps
 * could be seen by whoever looks through the garbage collector's objects. */
static PyObject *to_lists(Frames *self)
{
    PyObject *envelopes = PyList_New(0), *bodies = PyList_New(0), *lists = NULL;
    int well = envelopes != NULL && bodies != NULL;
    for (size_t i = 0; well && i < self->taken; i++)
        well = append(envelopes, to_envelope(self, &self->letters[i])) &&
               append(bodies, to_body(self, &self->letters[i]));
    if (well)
        lists = PyTuple_Pack(2, envelopes, bodies);
    Py_XDECREF(envelopes);
    Py_XDECREF(bodies);
    return lists;
}

/* Let go of what has been given away. */
static void drop_letters(Frames *self)
{
    self->taken = 0;
    drop_frames(self, 0);
    if (self->room > KEPT_ROOM) {
        free(self->frames);
        self->frames = NULL;
        self->room = 0;
    }
}

/* Read one keyword argument of `frames_receive`. 0, with an exception, if it has none so named. */
static int read_wish(wish *w, PyObject *name, PyObject *value)
{
    static const char *const names[] = {"wait", "take", "capacity"};
    int *const flags[] = {&w->wait, &w->take, &w->capacity};
    for (size_t i = 0; i < sizeof flags / sizeof *flags; i++)
        if (PyUnicode_CompareWithASCIIString(name, names[i]) == 0)
            return (*flags[i] = PyObject_IsTrue(value)) >= 0;
    return PyErr_Format(PyExc_TypeError, "receive() has no argument %R", name), 0;
}

/* receive(*, wait, take=True, capacity=False): see _frames.pyi. The arguments are read here:
 * PyArg_ParseTupleAndKeywords takes longer than all the rest if nothing is queued. */
static PyObject *frames_receive(Frames *self, PyObject *const *arguments, Py_ssize_t count,
                                PyObject *names)
{
    wish w = {0, 1, 0};
    int number;
    if (count != 0 || names == NULL)
        return PyErr_Format(PyExc_TypeError, "receive() takes its arguments by name"), NULL;
    for (Py_ssize_t i = 0; i < PyTuple_Size(names); i++)
        if (!read_wish(&w, PyTuple_GetItem(names, i), arguments[i]))
            return NULL;
    if (is_closed(self))
        return NULL;
    w.capacity = w.capacity && self->behind.socket != NULL;
    do {
        Py_BEGIN_ALLOW_THREADS
        number = take_or_wait(self, &w, &self->taken);
        Py_END_ALLOW_THREADS
        if (number == EINTR && PyErr_CheckSignals() < 0)
            return NULL;
    } while (number == EINTR);
    PyObject *lists = is_error(number) ? fail(self, number) : to_lists(self);
    if (lists != NULL)
        drop_letters(self);
    return lists;
}

/* --- Sending */

/* One frame of a message to be sent; `data` stays as it is as long as `object` is held. */
typedef struct {
    PyObject *object;
    const char *data;
    size_t size;
    int more;
} outgoing;

/* How many frames there are in a list of envelopes, with a body for each; -1 with an exception. */
static Py_ssize_t count_frames(PyObject *envelopes, PyObject *bodies)
{
    Py_ssize_t total = 0, size = PyList_Size(envelopes), others = PyList_Size(bodies);
    if (size < 0 || others < 0)
        return -1;
    if (size != others)
        return PyErr_Format(PyExc_ValueError, "%zd bodies for %zd envelopes", others, size), -1;
    for (Py_ssize_t i = 0; i < size; i++) {
        Py_ssize_t frames = PyList_Size(PyList_GetItem(envelopes, i));
        if (frames < 0)
            return -1;
        total += frames + 1;
    }
    return total;
}

/* Hold one frame; whether it is bytes. */
static int hold(outgoing *to, PyObject *frame, int more)
{
    Py_ssize_t size;
    char *data;
    to->object = Py_NewRef(frame);
    if (PyBytes_AsStringAndSize(frame, &data, &size) < 0)
        return 0;
    to->data = data;
    to->size = (size_t)size;
    to->more = more;
    return 1;
}

/* Hold every frame of every message that has a body; how many there are, or -1. */
static Py_ssize_t hold_all(PyObject *envelopes, PyObject *bodies, outgoing **held)
{
    Py_ssize_t count = 0, total = count_frames(envelopes, bodies), size = PyList_Size(envelopes);
    if (total < 0)
        return -1;
    *held = PyMem_Calloc((size_t)total + 1, sizeof **held);
    if (*held == NULL)
        return PyErr_NoMemory(), -1;
    for (Py_ssize_t i = 0; i < size; i++) {
        PyObject *envelope = PyList_GetItem(envelopes, i), *body = PyList_GetItem(bodies, i);
        Py_ssize_t frames = body == Py_None ? 0 : PyList_Size(envelope);
        for (Py_ssize_t j = 0; j < frames; j++)
            if (!hold(&(*held)[count++], PyList_GetItem(envelope, j), 1))
                return -1;
        if (body != Py_None && !hold(&(*held)[count++], body, 0))
            return -1;
    }
    return count;
}

static void let_go(outgoing *held)
{
    for (outgoing *frame = held; frame != NULL && frame->object != NULL; frame++)
        Py_DECREF(frame->object);
    PyMem_Free(held);
}

/* Send all frames of a message but the last one. 0, or an error number. */
static int send_envelope(void *socket, const outgoing *frame)
{
    for (; frame->more; frame++)
        while (zmq.send(socket, frame->data, frame->size, DONTWAIT | SNDMORE) < 0)
            if (zmq.last_error() != EINTR)
                return zmq.last_error();
    return 0;
}

/* Send a message. 0, or an error number; EAGAIN where nobody is there to take it. The last frame is
 * made first: where memory ended behind the others, what is sent next would go on with this one, and
 * so to its receiver. */
static int send_message(void *socket, const outgoing *frame)
{
    const outgoing *last = frame;
    zmq_msg_t body;
    int number;
    while (last->more)
        last++;
    if (zmq.msg_init_size(&body, last->size) < 0)
        return zmq.last_error();
    memcpy(zmq.msg_data(&body), last->data, last->size);
    number = send_envelope(socket, frame);
    if (!number)
        number = send_frame(&body, socket, 0);
    zmq.msg_close(&body);
    return number;
}

/* Send all messages that are held, without Python's lock. Where nobody is there to take one: pass it
 * over and count it, or, if not `skip`, end with EAGAIN. Where there is no memory for one: likewise,
 * with ENOMEM in the end. 0, or an error number. */
static int send_all(Frames *self, void *socket, int skip, const outgoing *frame,
                    const outgoing *end, Py_ssize_t *sent)
{
    int failed = 0;
    for (; frame < end; frame++) {
        int number = send_message(socket, frame), lost = number == EAGAIN && skip;
        if (number == ENOMEM && skip)
            failed = ENOMEM;
        else if (number && !lost)
            return number;
        self->unroutable += (unsigned)lost;
        *sent += !number;
        while (frame->more)
            frame++;
    }
    return failed;
}

/* Send messages, given as lists of envelopes and of bodies; how many, or -1. */
static Py_ssize_t send_lists(Frames *self, PyObject *arguments, void *socket, int skip)
{
    PyObject *envelopes, *bodies;
    outgoing *held = NULL;
    int number = 0;
    Py_ssize_t sent = 0;
    if (!PyArg_ParseTuple(arguments, "OO", &envelopes, &bodies) || is_closed(self))
        return -1;
    Py_ssize_t count = hold_all(envelopes, bodies, &held);
    if (count >= 0) {
        Py_BEGIN_ALLOW_THREADS
        number = send_all(self, socket, skip, held, held + count, &sent);
        Py_END_ALLOW_THREADS
    }
    let_go(held);
    if (number == ENOMEM && sent > 0 && !skip)
        number = EAGAIN; /* For the rest there may be memory next time. */
    if (is_error(number))
        fail(self, number);
    return count < 0 || is_error(number) ? -1 : sent;
}

static PyObject *frames_send(Frames *self, PyObject *arguments)
{
    return send_lists(self, arguments, self->front.socket, 1) < 0 ? NULL : Py_NewRef(Py_None);
}

static PyObject *frames_forward(Frames *self, PyObject *arguments)
{
    Py_ssize_t sent = send_lists(self, arguments, self->behind.socket, 0);
    return sent < 0 ? NULL : PyLong_FromSsize_t(sent);
}

/* --- The rest */

static PyObject *frames_readable(Frames *self, PyObject *unused)
{
    int events = 0;
    size_t size = sizeof events;
    if (is_closed(self))
        return NULL;
    while (zmq.getsockopt(self->front.socket, OPTION_EVENTS, &events, &size) < 0)
        if (zmq.last_error() != EINTR)
            return fail(self, zmq.last_error());
    return PyBool_FromLong(events & EVENT_IN);
}

static int close_end(end *of)
{
    PyObject *closed = NULL;
    if (of->owner == NULL)
        return 1;
    of->socket = NULL;
    closed = PyObject_CallMethod(of->owner, "close", NULL);
    Py_XDECREF(closed);
    return closed != NULL;
}

static PyObject *frames_close(Frames *self, PyObject *unused)
{
    return close_end(&self->front) && close_end(&self->behind) ? Py_NewRef(Py_None) : NULL;
}

static PyObject *frames_unroutable(Frames *self, void *unused)
{
    return PyLong_FromUnsignedLongLong(self->unroutable);
}

/* Take over a socket of pyzmq's; None is none. Whether that went well. */
static int open_end(end *to, PyObject *owner)
{
    size_t size = sizeof to->signal;
    if (owner == Py_None)
        return 1;
    PyObject *address = PyObject_GetAttrString(owner, "underlying");
    void *socket = address == NULL ? NULL : PyLong_AsVoidPtr(address);
    Py_XDECREF(address);
    if (socket == NULL && PyErr_Occurred())
        return 0;
    if (zmq.getsockopt(socket, OPTION_FD, &to->signal, &size) < 0)
        return PyErr_Format(PyExc_ValueError, "libzmq: error %d", zmq.last_error()), 0;
    *to = (end){Py_NewRef(owner), socket, to->signal};
    return 1;
}

static PyObject *frames_new(PyTypeObject *type, PyObject *arguments, PyObject *keywords)
{
    PyObject *front, *no_delimiter, *no_body, *two_bodies, *no_memory, *error, *behind = Py_None;
    static char *names[] = {"socket", "waker", "most", "most_bytes", "no_delimiter", "no_body",
                            "two_bodies", "no_memory", "error", "behind", NULL};
    int waker;
    Py_ssize_t most, most_bytes;
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "OinnOOOOO|O", names, &front, &waker,
                                     &most, &most_bytes, &no_delimiter, &no_body, &two_bodies,
                                     &no_memory, &error, &behind))
        return NULL;
    if (zmq.version == NULL || most < 1 || most_bytes < 1)
        return PyErr_Format(PyExc_ValueError, "attach to libzmq first; bounds must be positive");
    Frames *self = (Frames *)PyType_GenericAlloc(type, 0);
    if (self == NULL)
        return NULL;
    self->waker = waker;
    self->stands_for[NO_DELIMITER] = Py_NewRef(no_delimiter);
    self->stands_for[NO_BODY] = Py_NewRef(no_body);
    self->stands_for[TWO_BODIES] = Py_NewRef(two_bodies);
    self->stands_for[NO_MEMORY] = Py_NewRef(no_memory);
    self->error = Py_NewRef(error);
    self->most = (size_t)most;
    self->most_bytes = (size_t)most_bytes;
    self->letters = calloc(self->most, sizeof *self->letters);
    if (self->letters == NULL)
        PyErr_NoMemory();
    else if (open_end(&self->front, front) && open_end(&self->behind, behind))
        return (PyObject *)self;
    Py_DECREF(self);
    return NULL;
}

static void frames_dealloc(Frames *self)
{
    PyTypeObject *type = Py_TYPE((PyObject *)self);
    drop_frames(self, 0);
    free(self->frames);
    free(self->letters);
    for (int kind = 0; kind < KINDS; kind++)
        Py_XDECREF(self->stands_for[kind]);
    Py_XDECREF(self->error);
    Py_XDECREF(self->front.owner);
    Py_XDECREF(self->behind.owner);
    PyObject_Free(self);
    Py_DECREF(type);
}

static PyMethodDef frames_methods[] = {
    {"receive", (PyCFunction)(void (*)(void))frames_receive, METH_FASTCALL | METH_KEYWORDS, NULL},
    {"send", (PyCFunction)frames_send, METH_VARARGS, NULL},
    {"forward", (PyCFunction)frames_forward, METH_VARARGS, NULL},
    {"readable", (PyCFunction)frames_readable, METH_NOARGS, NULL},
    {"close", (PyCFunction)frames_close, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef frames_attributes[] = {
    {"unroutable", (getter)frames_unroutable, NULL, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot frames_slots[] = {
    {Py_tp_doc, "See PythonFrames in frames.py."},
    {Py_tp_new, frames_new},
    {Py_tp_dealloc, frames_dealloc},
    {Py_tp_methods, frames_methods},
    {Py_tp_getset, frames_attributes},
    {0, NULL},
};

static PyType_Spec frames_spec = {
    .name = "zkv.broker._frames.Frames",
    .basicsize = sizeof(Frames),
    .flags = Py_TPFLAGS_DEFAULT,
    .slots = frames_slots,
};

static PyMethodDef functions_of_module[] = {
    {"attach", attach, METH_VARARGS, "Find libzmq in a loaded extension module of pyzmq."},
    {NULL, NULL, 0, NULL},
};

static int execute(PyObject *module)
{
    PyObject *type = PyType_FromSpec(&frames_spec);
    int failed = type == NULL || PyModule_AddObjectRef(module, "Frames", type) < 0;
    Py_XDECREF(type);
    return failed ? -1 : 0;
}

static PyModuleDef_Slot slots_of_module[] = {{Py_mod_exec, execute}, {0, NULL}};

static PyModuleDef definition = {
    .m_base = PyModuleDef_HEAD_INIT,
    .m_name = "_frames",
    .m_methods = functions_of_module,
    .m_slots = slots_of_module,
};

PyMODINIT_FUNC PyInit__frames(void) { return PyModuleDef_Init(&definition); }
