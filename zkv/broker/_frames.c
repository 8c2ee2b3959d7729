/* Receives and sends batches of messages in C, as `PythonFrames` in frames.py does in Python.
 *
 * Strategy: the cost of a thread is in socket calls and in switches of Python's lock. So waiting
 * for messages and receiving a whole batch is one call without the lock, and sending a batch of
 * replies is another. Python objects are made and read before and after that, with the lock
 * held. Replies of workers are sent on during the wait, and never become Python objects.
 *
 * Nothing is linked. The socket belongs to pyzmq, so libzmq's functions must be those of the
 * library that pyzmq has loaded; `attach` looks them up there. This file relies only on libzmq's
 * stable ABI since 4.1: the functions below, the numbers of options, and a `zmq_msg_t` of 64
 * bytes.
 *
 * Invariants: `PythonFrames` specifies the behaviour; tests run with both. An object is used in
 * one thread. Every zmq_msg_t that was initialised is closed. A Python object that is read
 * without the lock is kept alive by a reference. */

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
enum { EVENT_IN = 1, EVENT_OUT = 2 };         /* bits of OPTION_EVENTS */

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

/* attach(path): find libzmq's functions in a loaded extension module of pyzmq, or in a library that
 * it depends on; returns libzmq's version. */
static PyObject *attach(PyObject *module, PyObject *arguments)
{
    PyObject *path;
    int major, minor, patch;
    if (!PyArg_ParseTuple(arguments, "O&", PyUnicode_FSConverter, &path))
        return NULL;
    void *library = dlopen(PyBytes_AsString(path), RTLD_LAZY | RTLD_NOLOAD); /* never closed */
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

/* A received message: its envelope, and its body if it is complete, in `Frames.frames`. */
typedef struct {
    size_t first, end;
    enum kind kind;
} letter;

/* A socket of pyzmq. */
typedef struct {
    PyObject *owner;
    void *socket; /* libzmq's pointer to it; NULL if there is none, or it is closed */
    int signal;   /* becomes readable after something has changed since the last look */
} end;

typedef struct {
    PyObject_HEAD
    end front, behind;           /* behind: the workers' socket; may be absent */
    int waker;                   /* descriptor that ends a wait when it becomes readable */
    PyObject *stands_for[KINDS]; /* BadEnvelopes, in place of the body of a malformed message */
    PyObject *error;             /* makes an exception from an error number */
    unsigned long long unroutable;
    zmq_msg_t *frames;          /* of the current batch; each is initialised */
    size_t count, room;
    letter *letters;
    size_t taken;            /* letters that have not been returned yet */
    size_t most, most_bytes; /* of a batch */
} Frames;

enum { ROOM = 256, KEPT_ROOM = 4096 }; /* capacity in frames: at first, and kept between batches */

static int is_error(int number) { return number != 0 && number != EAGAIN; }

/* Add an initialised frame. NULL if there is no memory. Only libzmq may move a zmq_msg_t. */
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

/* Receive a frame. 0, or an error number. */
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

/* Receive the next frame into the batch. 0, or an error number. */
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

/* Receive and discard the rest of a message of which at least one frame has been received. */
static void skip_rest(Frames *self)
{
    zmq_msg_t frame;
    int more = 1;
    zmq.msg_init(&frame);
    while (more)
        more = !receive_frame(&frame, self->front.socket) && zmq.msg_more(&frame);
    zmq.msg_close(&frame);
}

/* Receive the next message. 0, or an error number; EAGAIN if there is none. A message without a
 * sender to reply to, or without memory, is counted as unroutable and leaves nothing in `to`. */
static int take_letter(Frames *self, letter *to, int *routable)
{
    size_t first = self->count;
    size_t delimiter = 0; /* its place; never the first frame, which is the sender's address */
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

/* Receive queued messages, up to `most`, and none after `most_bytes`. 0, or an error number; EAGAIN
 * if there is none. */
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

/* Send one message from the workers' socket on to the front's. 0, or an error number. */
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
            lost = number == EAGAIN; /* The receiver has gone. */
            number = lost ? 0 : number;
        }
    }
    self->unroutable += (unsigned)lost;
    zmq.msg_close(&frame);
    return number;
}

/* Send all replies of the workers on. 0, or an error number. */
static int pass_on(Frames *self)
{
    int number = 0;
    while (self->behind.socket != NULL && !number)
        number = pass_message(self);
    return number == EAGAIN ? 0 : number;
}

/* The arguments of `frames_receive`: see `Frames` in frames.py. */
typedef struct {
    int wait, take, capacity;
} wish;

/* Wait. 0, or an error number; sets `told` if the caller must return, even without a message. */
static int wait_for_signal(Frames *self, const wish *w, int *told)
{
    int events = 0;
    size_t size = sizeof events;
    if (w->capacity) { /* Read the events last, since any other call may reset the signal. */
        if (zmq.getsockopt(self->behind.socket, OPTION_EVENTS, &events, &size) < 0)
            return zmq.last_error();
        *told = (events & EVENT_OUT) != 0;
        if (events) /* Also if replies have come: reading the events has reset their signal. */
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

/* Return the letters left over from the last call, or receive a batch; if none is queued and the
 * caller wants to wait, wait and try again. Sends the workers' replies on. Runs without Python's
 * lock. EINTR if a signal has arrived. */
static int take_or_wait(Frames *self, const wish *w, size_t *taken)
{
    int number, told = !w->wait;
    for (;;) {
        number = pass_on(self);
        if (!number && !*taken)
            number = w->take ? take_batch(self, taken) : EAGAIN;
        if (number != EAGAIN || told)
            return number;
        number = wait_for_signal(self, w, &told);
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

/* Append a new reference, which may be NULL, and release it. 0 if that failed. */
static int append(PyObject *list, PyObject *item)
{
    int well = item != NULL && PyList_Append(list, item) == 0;
    Py_XDECREF(item);
    return well;
}

/* Make a list of bytes from the envelope of a letter. */
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

/* Make (envelopes, bodies) from the received letters, which are kept if there is no memory. The
 * lists are appended to: one with gaps would be visible through the garbage collector. */
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

/* Release the letters that have been returned. */
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
    wish w = {-1, 1, 0};
    int number;
    for (Py_ssize_t i = 0; names != NULL && i < PyTuple_Size(names); i++)
        if (!read_wish(&w, PyTuple_GetItem(names, i), arguments[count + i]))
            return NULL;
    if (count != 0 || w.wait < 0)
        return PyErr_Format(PyExc_TypeError, "receive() takes arguments by name: `wait`, ...");
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

/* --- Sending --------------------------------------------------------------------------------- */

/* A frame to send; `data` is valid as long as there is a reference to `object`. */
typedef struct {
    PyObject *object;
    const char *data;
    size_t size;
    int more;
} outgoing;

/* Count the frames of all envelopes and bodies. -1, with an exception, if the lists do not
 * match. */
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

/* Take a reference to one frame. 0, with an exception, if it is not bytes. */
static int take_reference(outgoing *to, PyObject *frame, int more)
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

/* Take references to all frames of the messages with a body; return their number, or -1. */
static Py_ssize_t take_references(PyObject *envelopes, PyObject *bodies, outgoing **held)
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
            if (!take_reference(&(*held)[count++], PyList_GetItem(envelope, j), 1))
                return -1;
        if (body != Py_None && !take_reference(&(*held)[count++], body, 0))
            return -1;
    }
    return count;
}

static void release(outgoing *held)
{
    for (outgoing *frame = held; frame != NULL && frame->object != NULL; frame++)
        Py_DECREF(frame->object);
    PyMem_Free(held);
}

/* Send all frames of a message except the last. 0, or an error number. */
static int send_envelope(void *socket, const outgoing *frame)
{
    for (; frame->more; frame++)
        while (zmq.send(socket, frame->data, frame->size, DONTWAIT | SNDMORE) < 0)
            if (zmq.last_error() != EINTR)
                return zmq.last_error();
    return 0;
}

/* Send a message. 0, or an error number; EAGAIN if there is no receiver, or it has no capacity. The
 * last frame is made first: if memory ran out after the others were sent, the next message would
 * become part of this one. */
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

/* Send all messages, without Python's lock. A message without a receiver is skipped and counted or,
 * if not `skip`, ends the call with EAGAIN. One without memory is skipped, and the result is ENOMEM
 * or, if not `skip`, ends the call with ENOMEM. 0, or an error number. */
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

/* Send messages, given as lists of envelopes and of bodies; return how many were sent, or -1. */
static Py_ssize_t send_lists(Frames *self, PyObject *arguments, void *socket, int skip)
{
    PyObject *envelopes, *bodies;
    outgoing *held = NULL;
    int number = 0;
    Py_ssize_t sent = 0;
    if (!PyArg_ParseTuple(arguments, "OO", &envelopes, &bodies) || is_closed(self))
        return -1;
    Py_ssize_t count = take_references(envelopes, bodies, &held);
    if (count >= 0) {
        Py_BEGIN_ALLOW_THREADS
        number = send_all(self, socket, skip, held, held + count, &sent);
        Py_END_ALLOW_THREADS
    }
    release(held);
    if (number == ENOMEM && sent > 0 && !skip)
        number = EAGAIN; /* There may be memory for the rest next time. */
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

/* --- Other methods --------------------------------------------------------------------------- */

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

/* Take over a socket of pyzmq; None = there is none. 0, with an exception, if that failed. */
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
