/* Receives and sends batches of messages in C, as `PythonFrames` in frames.py does in Python; and
 * publishes messages, as `PythonPublisher` in publisher.py does.
 *
 * Strategy: the cost of a thread is in socket calls and in switches of Python's lock. So waiting
 * for messages and receiving a whole batch is one step without the lock, and sending a batch of
 * replies is another; the front, whose batches are answered within `receive`, makes both in one. A
 * message stays in the `Batch` as libzmq brought it. Replies of workers are sent on during the wait,
 * and never become Python objects.
 *
 * The front sends the replies of a batch in the order of their connections. libzmq's I/O thread
 * writes what is there for a connection with one system call, and is woken once for it.
 *
 * Nothing is linked. The socket belongs to pyzmq, so libzmq's functions must be those of the
 * library that pyzmq has loaded; `attach` looks them up there. This file relies only on libzmq's
 * stable ABI since 4.1: the functions below, the numbers of options, and a `zmq_msg_t` of 64
 * bytes.
 *
 * Invariants: `PythonFrames` specifies the behaviour; tests run with both. An object is used in
 * one thread. Every zmq_msg_t that was initialised is closed. A Python object that is read
 * without the lock is kept alive by a reference in the batch. */

#include "../compiled/batch.h"
#include "in_flight.h"

#include <dlfcn.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <stdint.h>
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
enum { SOURCE_DESCRIPTOR = 2 };               /* property of a frame */

static struct {
    void (*version)(int *major, int *minor, int *patch);
    int (*last_error)(void);
    int (*getsockopt)(void *socket, int option, void *value, size_t *size);
    int (*msg_init)(zmq_msg_t *);
    int (*msg_init_size)(zmq_msg_t *, size_t size);
    int (*msg_init_data)(zmq_msg_t *, void *data, size_t size, void (*drop)(void *, void *),
                         void *hint);
    int (*msg_recv)(zmq_msg_t *, void *socket, int flags);
    int (*msg_send)(zmq_msg_t *, void *socket, int flags);
    int (*msg_move)(zmq_msg_t *to, zmq_msg_t *from);
    int (*msg_more)(const zmq_msg_t *);
    size_t (*msg_size)(const zmq_msg_t *);
    void *(*msg_data)(zmq_msg_t *);
    int (*msg_close)(zmq_msg_t *);
    const char *(*msg_gets)(const zmq_msg_t *, const char *property);
    int (*msg_get)(const zmq_msg_t *, int property);
} zmq;

static const struct {
    const char *name;
    void *slot;
} functions[] = {
    {"zmq_version", &zmq.version},       {"zmq_errno", &zmq.last_error},
    {"zmq_getsockopt", &zmq.getsockopt}, {"zmq_msg_init", &zmq.msg_init},
    {"zmq_msg_recv", &zmq.msg_recv},     {"zmq_msg_move", &zmq.msg_move},
    {"zmq_msg_more", &zmq.msg_more},     {"zmq_msg_size", &zmq.msg_size},
    {"zmq_msg_data", &zmq.msg_data},     {"zmq_msg_send", &zmq.msg_send},
    {"zmq_msg_close", &zmq.msg_close},   {"zmq_msg_init_size", &zmq.msg_init_size},
    {"zmq_msg_init_data", &zmq.msg_init_data}, {"zmq_msg_gets", &zmq.msg_gets},
    {"zmq_msg_get", &zmq.msg_get},
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

/* --- The frames of a batch -------------------------------------------------------------------- */

enum { KEPT_FRAMES = 4096 }; /* capacity that is kept between batches */

static zmq_msg_t *frame_at(const Batch *of, size_t place)
{
    return (zmq_msg_t *)of->frames + place;
}

/* Reserve capacity for more frames. 0 if there is no memory. Only libzmq may move a zmq_msg_t. */
static int reserve_frames(Batch *to, size_t more)
{
    size_t room = to_room(to->frame_room, to->frame_count + more);
    if (room == to->frame_room)
        return 1;
    zmq_msg_t *frames = malloc(room * sizeof *frames);
    if (frames == NULL)
        return 0;
    for (size_t i = 0; i < to->frame_count; i++) {
        zmq.msg_init(&frames[i]);
        zmq.msg_move(&frames[i], frame_at(to, i));
        zmq.msg_close(frame_at(to, i));
    }
    free(to->frames);
    to->frames = frames;
    to->frame_room = room;
    return 1;
}

/* Add an initialised frame. NULL if there is no memory. */
static zmq_msg_t *add_frame(Batch *to)
{
    if (to->frame_count == to->frame_room && !reserve_frames(to, 1))
        return NULL;
    zmq_msg_t *frame = frame_at(to, to->frame_count++);
    zmq.msg_init(frame);
    return frame;
}

static void drop_frames(Batch *of, size_t keep)
{
    while (of->frame_count > keep)
        zmq.msg_close(frame_at(of, --of->frame_count));
}

static void drop_all_frames(Batch *of)
{
    drop_frames(of, 0);
    if (of->frame_room > KEPT_FRAMES) {
        free(of->frames);
        of->frames = NULL;
        of->frame_room = 0;
    }
}

/* Let the item's body point to its last frame. Frames must not move afterwards: libzmq keeps a
 * small body in the zmq_msg_t itself. */
static void find_body(Batch *in, item *of)
{
    of->body = zmq.msg_data(frame_at(in, of->end - 1));
    of->size = zmq.msg_size(frame_at(in, of->end - 1));
}

/* Move the frames of an item that has been moved from one batch to another. */
static void move_frames(Batch *from, Batch *to, item *of)
{
    size_t first = to->frame_count;
    for (size_t i = of->first; i < of->end; i++)
        zmq.msg_move(add_frame(to), frame_at(from, i));
    to->calls = from->calls;
    of->first = first;
    of->end = to->frame_count;
    if (of->body != NULL)
        find_body(to, of);
}

static void uncount_reply(item *of)
{
    in_flight_uncount(of->receipt);
    of->receipt = NULL;
}

static const frame_calls calls = {drop_all_frames, reserve_frames, move_frames, uncount_reply};

/* --- Replies that wait ------------------------------------------------------------------------ */

enum { CONNECTION = 'c', USER = 'u' }; /* kinds of owners */

/* `PythonInFlight` in in_flight.py, in C. */
typedef struct {
    PyObject_HEAD
    in_flight *counts;
    size_t limit;       /* bytes that may wait for one connection */
    size_t least;       /* bytes of the smallest reply that is counted */
    PyObject *overload; /* of a request of a connection that is over the limit */
    PyObject *user_overload; /* of a request of a user who is over the own limit */
} InFlight;

/* The connection that a message came by. */
static owner connection_of(const InFlight *self, const Batch *batch, const item *of)
{
    zmq_msg_t *address = frame_at(batch, of->first);
    return (owner){CONNECTION, zmq.msg_data(address), zmq.msg_size(address), self->limit};
}

/* The user whose message it is. One without limit is never over it. */
static owner user_of(const item *of)
{
    size_t size = of->user_name == NULL ? 0 : strlen(of->user_name);
    return (owner){USER, of->user_name, size, of->user_limit};
}

/* Count a reply, if it is large and not counted yet. 0 if there is no memory. */
static int count_reply(const InFlight *self, const Batch *batch, item *of, size_t size)
{
    if (self == NULL || size < self->least || of->receipt != NULL || of->first == of->end)
        return 1;
    owner owners[OWNERS] = {connection_of(self, batch, of), user_of(of)};
    of->receipt = in_flight_count(self->counts, owners, of->user_limit > 0 ? 2 : 1, size);
    return of->receipt != NULL;
}

/* Refuse the requests of connections that are over the limit. With Python's lock. */
static void refuse_overload(const InFlight *self, const Batch *batch)
{
    if (self == NULL || !in_flight_any_over(self->counts))
        return;
    for (size_t i = 0; i < batch->count; i++) {
        item *of = &batch->items[i];
        if (of->body == NULL || of->overload != NULL || of->first == of->end)
            continue;
        owner connection = connection_of(self, batch, of), user = user_of(of);
        if (in_flight_is_over(self->counts, &connection))
            of->overload = Py_NewRef(self->overload);
        else if (of->user_limit > 0 && in_flight_is_over(self->counts, &user))
            of->overload = Py_NewRef(self->user_overload);
    }
}

static PyObject *in_flight_of_type(PyTypeObject *type, PyObject *arguments, PyObject *keywords)
{
    static char *names[] = {"limit", "least", "overload", "user_overload", NULL};
    Py_ssize_t limit, least;
    PyObject *overload, *user_overload;
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "nnOO", names, &limit, &least, &overload,
                                     &user_overload))
        return NULL;
    InFlight *self = (InFlight *)PyType_GenericAlloc(type, 0);
    if (self == NULL)
        return NULL;
    self->limit = (size_t)limit;
    self->least = (size_t)least;
    self->overload = Py_NewRef(overload);
    self->user_overload = Py_NewRef(user_overload);
    if ((self->counts = in_flight_new()) == NULL && PyErr_NoMemory() == NULL)
        Py_CLEAR(self);
    return (PyObject *)self;
}

static void in_flight_dealloc(InFlight *self)
{
    PyTypeObject *type = Py_TYPE((PyObject *)self);
    if (self->counts != NULL)
        in_flight_drop(self->counts);
    Py_XDECREF(self->overload);
    Py_XDECREF(self->user_overload);
    PyObject_Free(self);
    Py_DECREF(type);
}

static PyType_Slot in_flight_slots[] = {
    {Py_tp_doc, "See PythonInFlight in in_flight.py."},
    {Py_tp_new, in_flight_of_type},
    {Py_tp_dealloc, in_flight_dealloc},
    {0, NULL},
};

static PyType_Spec in_flight_spec = {
    .name = "zkv.broker._frames.InFlight",
    .basicsize = sizeof(InFlight),
    .flags = Py_TPFLAGS_DEFAULT,
    .slots = in_flight_slots,
};

static PyTypeObject *in_flight_type;

/* --- Frames ---------------------------------------------------------------------------------- */

enum kind { COMPLETE, NO_DELIMITER, NO_BODY, TWO_BODIES, KINDS };

/* A socket of pyzmq. */
typedef struct {
    PyObject *owner;
    void *socket; /* libzmq's pointer to it; NULL if there is none, or it is closed */
    int signal;   /* becomes readable after something has changed since the last look */
} end;

typedef struct {
    PyObject_HEAD
    PyTypeObject *batch_type;
    end front, behind;           /* behind: the workers' socket; may be absent */
    int waker;                   /* descriptor that ends a wait when it becomes readable */
    Py_buffer woken;             /* one byte: not 0 while the waker is awake */
    PyObject *stands_for[KINDS]; /* BadEnvelopes, in place of the body of a malformed message */
    PyObject *error;             /* makes an exception from an error number */
    PyObject *users;             /* `Users` in zkv/users/registry.py; NULL = not known */
    InFlight *in_flight;         /* NULL = replies are not counted */
    unsigned long long unroutable, dropped, bytes_in, bytes_out; /* see PassedMessages */
    unsigned long long bytes_forwarded;
    size_t outstanding; /* requests that were forwarded, and of which no reply has been passed on */
    int forwarded; /* The workers' socket has been used: its signal may have been reset. */
    int alone; /* The last batch had one message. */
    int stamped;   /* each message begins with a frame of the front: when it was taken up */
    Py_buffer question;      /* see `Arrivals` in arrivals.py; no memory = nobody asks */
    Py_buffer senders;
    uint64_t heard, since;   /* the newest question, and the number of messages since then */
    size_t most, most_bytes; /* of a batch */
    size_t *order;           /* of sending: `most` places */
} Frames;

/* The newest question of `Arrivals`; 0 if there is none. */
static uint64_t asked(const Frames *self)
{
    const uint64_t *words = self->question.buf;
    return words == NULL ? 0 : __atomic_load_n(words, __ATOMIC_SEQ_CST);
}

/* Note who has sent a frame, after it has been received: see `Arrivals.note`. */
static void note_sender(const Frames *self, const zmq_msg_t *frame)
{
    int descriptor = zmq.msg_get(frame, SOURCE_DESCRIPTOR);
    if (descriptor >= 0) /* Else it came by inproc. */
        ((unsigned char *)self->senders.buf)[descriptor % self->senders.len] = 1;
}

/* See `Arrivals.heard`. */
static void hear(Frames *self, uint64_t question, size_t received, int nothing_left)
{
    if (question != self->heard) {
        self->heard = question;
        self->since = 0;
    }
    self->since += received;
    uint64_t *words = self->question.buf;
    if (nothing_left || self->since > words[2])
        __atomic_store_n(words + 1, question, __ATOMIC_SEQ_CST);
}

static int is_error(int number) { return number != 0 && number != EAGAIN; }

/* 1 if a message has no receiver, or that has no capacity: see `PythonFrames`. It is counted. */
static int is_lost(Frames *self, int number)
{
    if (number == EHOSTUNREACH || (number == EAGAIN && self->behind.socket == NULL))
        self->unroutable++;
    else if (number == EAGAIN)
        self->dropped++;
    else
        return 0;
    return 1;
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
static int take_frame(Frames *self, Batch *to)
{
    zmq_msg_t *frame = add_frame(to);
    if (frame == NULL)
        return ENOMEM;
    int number = receive_frame(frame, self->front.socket);
    if (number)
        drop_frames(to, to->frame_count - 1);
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

/* Receive the frames of the next message into the batch, and find out of which kind it is; of a
 * malformed message only the envelope is kept. 0, or an error number; then nothing is kept. */
static int take_frames(Frames *self, Batch *to, enum kind *kind)
{
    size_t first = to->frame_count;
    size_t delimiter = 0; /* its place; never the first frame, which is the sender's address */
    int more = 1;
    *kind = NO_DELIMITER;
    while (more) {
        int number = take_frame(self, to);
        if (number) {
            if (number == ENOMEM && to->frame_count > first)
                skip_rest(self), self->unroutable++;
            drop_frames(to, first);
            return number;
        }
        size_t last = to->frame_count - 1;
        if (last == first && asked(self))
            note_sender(self, frame_at(to, last));
        more = zmq.msg_more(frame_at(to, last));
        if (delimiter && last > delimiter + 1)
            drop_frames(to, last), *kind = TWO_BODIES;
        else if (delimiter)
            *kind = COMPLETE;
        else if (last > first && zmq.msg_size(frame_at(to, last)) == 0)
            delimiter = last, *kind = NO_BODY;
    }
    if (*kind == NO_DELIMITER)
        drop_frames(to, to->frame_count - first > 1 ? first + 1 : first);
    else if (*kind == TWO_BODIES)
        drop_frames(to, delimiter + 1);
    return 0;
}

/* Receive the first frame of a stamped message, and move to the text in it, if users are known, the
 * User-Id. 0, or an error number. */
static int take_stamp(Frames *self, stamp *to, char **user_id)
{
    zmq_msg_t frame;
    *to = (stamp){0, 0};
    *user_id = NULL;
    if (!self->stamped)
        return 0;
    zmq.msg_init(&frame);
    int number = receive_frame(&frame, self->front.socket);
    size_t size = number ? 0 : zmq.msg_size(&frame);
    if (size >= sizeof *to) {
        const char *at = zmq.msg_data(&frame);
        memcpy(to, at, sizeof *to);
        if (self->users != NULL && (*user_id = malloc(size - sizeof *to + 1)) != NULL) {
            memcpy(*user_id, at + sizeof *to, size - sizeof *to);
            (*user_id)[size - sizeof *to] = 0;
        }
    }
    zmq.msg_close(&frame);
    return number;
}

/* What libzmq tells of the sender of a message, as far as it has been authenticated: of those that
 * come by inproc nothing. */
static const char *user_id_of(const Batch *batch, const item *of)
{
    const char *id = zmq.msg_gets(frame_at(batch, of->end - 1), "User-Id");
    return id == NULL ? "" : id;
}

/* Send a stamp in front of a message that is forwarded. 0, or an error number. */
static int send_stamp(Frames *self, const Batch *batch, const item *about)
{
    zmq_msg_t frame;
    stamp of = {batch->taken, batch->waited};
    const char *user_id = self->users == NULL ? "" : user_id_of(batch, about);
    if (zmq.msg_init_size(&frame, sizeof of + strlen(user_id)) < 0)
        return zmq.last_error();
    memcpy(zmq.msg_data(&frame), &of, sizeof of);
    memcpy((char *)zmq.msg_data(&frame) + sizeof of, user_id, strlen(user_id));
    int number = send_frame(&frame, self->behind.socket, 1);
    zmq.msg_close(&frame);
    return number;
}

/* Receive the next message into the batch. 0, or an error number; EAGAIN if there is none. One
 * without a sender to reply to, or without memory, is counted as unroutable and not added. */
static int take_message(Frames *self, Batch *to)
{
    enum kind kind;
    size_t first = to->frame_count;
    stamp from;
    item *next = next_item(to);
    char *user_id = NULL;
    int number = next == NULL ? ENOMEM : take_stamp(self, &from, &user_id);
    if (!number)
        number = take_frames(self, to, &kind);
    if (number || to->frame_count == first) {
        self->unroutable += !number;
        free(user_id);
        return number;
    }
    next->user_id = user_id;
    next->first = first;
    next->end = to->frame_count;
    next->arrived = from.arrived;
    next->waited = from.waited;
    if (kind != COMPLETE)
        next->object = self->stands_for[kind]; /* The reference follows with Python's lock. */
    to->count++;
    return 0;
}

/* Receive queued messages, up to `most`, and none after `most_bytes`. 0, or an error number; EAGAIN
 * if there is none. */
static int take_batch(Frames *self, Batch *to, size_t most)
{
    int number = EAGAIN, any = 0;
    size_t bytes = 0, counted = 0;
    uint64_t question = asked(self);
    to->calls = &calls;
    while (to->count < most && bytes < self->most_bytes) {
        number = take_message(self, to);
        if (number)
            break;
        any = 1;
        for (; counted < to->frame_count; counted++)
            bytes += zmq.msg_size(frame_at(to, counted));
    }
    if (question)
        hear(self, question, to->count, number == EAGAIN);
    if (any)
        to->taken = clock_now();
    self->alone = to->count == 1;
    return any ? 0 : number;
}

/* Find the user of a request. 0, with an exception, if that fails. */
static int find_user(Frames *self, PyObject *by_id, const Batch *batch, item *of)
{
    const char *id = of->user_id;
    if (id == NULL) /* Of a stamped message there is one, unless there was no memory for it. */
        id = self->stamped ? "?" : user_id_of(batch, of);
    PyObject *key = PyUnicode_DecodeUTF8(id, (Py_ssize_t)strlen(id), "replace");
    PyObject *user = key == NULL ? NULL : PyDict_GetItemWithError(by_id, key);
    Py_XDECREF(key);
    if (user != NULL)
        of->user = Py_NewRef(user);
    else if (!PyErr_Occurred())
        of->user = PyObject_GetAttrString(self->users, "nobody");
    free(of->user_id);
    of->user_id = NULL;
    return of->user != NULL;
}

/* Find the users of all requests. 0, with an exception, if that fails. They are looked up for each
 * message, so that a reload of the users counts at once. */
static int find_users(Frames *self, Batch *of)
{
    PyObject *by_id = PyObject_GetAttrString(self->users, "by_id");
    int well = by_id != NULL;
    for (size_t i = 0; well && i < of->count; i++)
        well = find_user(self, by_id, of, &of->items[i]);
    Py_XDECREF(by_id);
    return well;
}

/* Take over a user's limit of the replies that wait. 0, with an exception, if that fails. */
static int take_limit(item *of)
{
    PyObject *limit = PyObject_GetAttrString(of->user, "max_in_flight_bytes");
    of->user_limit = limit == NULL ? 0 : PyLong_AsSize_t(limit);
    Py_XDECREF(limit);
    if (PyErr_Occurred() || of->user_limit == 0)
        return !PyErr_Occurred();
    PyObject *name = PyObject_GetAttrString(of->user, "name");
    of->user_name = name == NULL ? NULL : PyUnicode_AsUTF8AndSize(name, NULL);
    Py_XDECREF(name); /* The user keeps it. */
    return of->user_name != NULL;
}

/* Take over the limits of all users, if any has one. 0, with an exception, if that fails. */
static int take_limits(PyObject *users, Batch *of, int *limited)
{
    PyObject *flag = PyObject_GetAttrString(users, "limited");
    *limited = flag == NULL ? -1 : PyObject_IsTrue(flag);
    int well = *limited >= 0;
    Py_XDECREF(flag);
    for (size_t i = 0; well && *limited && i < of->count; i++)
        well = take_limit(&of->items[i]);
    return well;
}

/* Refuse a request if its user sends too many. 0, with an exception, if that fails. */
static int limit_rate(item *of)
{
    PyObject *meter = PyObject_GetAttrString(of->user, "meter");
    if (meter != NULL && meter != Py_None && of->overload == NULL) {
        of->overload = PyObject_CallMethod(meter, "take", NULL);
        if (of->overload == Py_None)
            Py_CLEAR(of->overload);
    }
    Py_XDECREF(meter);
    return !PyErr_Occurred();
}

/* Complete the items of a batch that has been received. */
static void complete(Frames *self, Batch *of)
{
    for (size_t i = 0; i < of->count; i++) {
        item *each = &of->items[i];
        if (each->object == NULL)
            find_body(of, each);
        else
            Py_INCREF(each->object);
        self->bytes_in += each->size;
    }
}

/* Send one message from the workers' socket on to the front's. 0, or an error number. */
static int pass_message(Frames *self)
{
    zmq_msg_t frame;
    int number = 0, more = 1, lost = 0;
    size_t size = 0; /* of the body, the last frame */
    zmq.msg_init(&frame);
    while (more && !number) {
        number = receive_frame(&frame, self->behind.socket);
        more = !number && zmq.msg_more(&frame);
        size = more || number ? 0 : zmq.msg_size(&frame);
        if (!number && !lost) {
            number = send_frame(&frame, self->front.socket, more);
            lost = is_lost(self, number);
            number = lost ? 0 : number;
        }
    }
    if (!number && !lost)
        self->bytes_out += size;
    if (!number && self->outstanding)
        self->outstanding--;
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
    PyObject *answer; /* NULL = nobody answers */
} wish;

/* Wait. 0, or an error number; sets `told` if the caller must return, even without a message, and
 * `replies` if the workers may have sent some. */
static int wait_for_signal(Frames *self, const wish *w, int *told, int *replies)
{
    int events = 0;
    size_t size = sizeof events;
    *replies = w->capacity;
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
    *replies |= any[2].revents != 0;
    *told = any[0].revents != 0;
    return 0;
}

/* Receive a batch; if no message is queued and the caller wants to wait, wait and try again. Sends
 * the workers' replies on. Runs without Python's lock. EINTR if a signal has arrived.
 *
 * A look at a socket that has no message takes a system call. While nobody uses the workers' socket,
 * its signal tells of replies, and the wait looks at that anyway. So it is looked at once in each
 * call, and only while the workers have requests. Passing replies on uses the front's socket, and
 * may reset its signal: messages are looked for after that, or else the wait might not end.
 *
 * Where one client waits for each reply, the message that ends a wait is the only one: as long as
 * the last batch was of one message, nobody looks for a second one. */
static int take_or_wait(Frames *self, const wish *w, Batch *to)
{
    int told = !w->wait, passed = 0, replies, number;
    if (self->forwarded)
        passed = pass_on(self);
    self->forwarded = 0;
    number = w->take ? take_batch(self, to, self->most) : EAGAIN;
    if (!passed && (told || (number != EAGAIN && self->outstanding)))
        passed = pass_on(self);
    while (!passed && number == EAGAIN && !told) {
        passed = wait_for_signal(self, w, &told, &replies);
        if (!passed && replies)
            passed = pass_on(self);
        if (!passed && w->take)
            number = take_batch(self, to, self->alone && !asked(self) ? 1 : self->most);
    }
    return passed ? passed : number;
}

/* Raise the exception of an error number, which `make` makes. */
static PyObject *raise_error(PyObject *make, int number)
{
    if (number == ENOMEM)
        return PyErr_NoMemory();
    PyObject *error = PyObject_CallFunction(make, "i", number);
    if (error != NULL) {
        PyErr_SetObject((PyObject *)Py_TYPE(error), error);
        Py_DECREF(error);
    }
    return NULL;
}

static PyObject *fail(Frames *self, int number) { return raise_error(self->error, number); }

static int is_closed(Frames *self)
{
    if (self->front.socket == NULL)
        fail(self, ENOTSOCK);
    return self->front.socket == NULL;
}

/* Read one keyword argument of `frames_receive`. 0, with an exception, if it has none so named. */
static int read_wish(wish *w, PyObject *name, PyObject *value)
{
    static const char *const names[] = {"wait", "take", "capacity"};
    int *const flags[] = {&w->wait, &w->take, &w->capacity};
    for (size_t i = 0; i < sizeof flags / sizeof *flags; i++)
        if (PyUnicode_CompareWithASCIIString(name, names[i]) == 0)
            return (*flags[i] = PyObject_IsTrue(value)) >= 0;
    if (PyUnicode_CompareWithASCIIString(name, "answer") == 0)
        return w->answer = value == Py_None ? NULL : value, 1;
    return PyErr_Format(PyExc_TypeError, "receive() has no argument %R", name), 0;
}

/* The batch that is the first argument of a method. NULL, with an exception, if it is none, or if
 * the sockets are closed. */
static Batch *to_batch(Frames *self, PyObject *argument)
{
    if (!PyObject_TypeCheck(argument, self->batch_type))
        return PyErr_Format(PyExc_TypeError, "this is not a batch"), NULL;
    return is_closed(self) ? NULL : (Batch *)argument;
}

/* --- Sending --------------------------------------------------------------------------------- */

/* Send all frames of a message but the last. 0, or an error number. */
static int send_envelope(void *socket, const Batch *batch, const item *of, size_t end)
{
    int number = 0;
    for (size_t i = of->first; i < end && !number; i++)
        number = send_frame(frame_at(batch, i), socket, 1);
    return number;
}

/* Free a reply of libzmq's, which has written or dropped it. In any thread. */
static void drop_data(void *data, void *counted)
{
    free(data);
    if (counted != NULL)
        in_flight_uncount(counted);
}

/* Make the frame of a small reply, with a copy of it. 0, or an error number. */
static int to_small_frame(const item *of, zmq_msg_t *frame)
{
    if (zmq.msg_init_size(frame, of->reply_size) < 0)
        return zmq.last_error();
    memcpy(zmq.msg_data(frame), of->reply, of->reply_size);
    return 0;
}

/* Make the frame of a reply. A large one that belongs to no other object is not copied. 0, or an
 * error number. */
static int to_frame(Frames *self, const Batch *batch, item *of, zmq_msg_t *frame)
{
    int own = of->reply_owner == NULL && !in_arena(batch, of->reply);
    if (!count_reply(self->in_flight, batch, of, of->reply_size))
        return ENOMEM;
    if (!own && of->receipt == NULL)
        return to_small_frame(of, frame);
    unsigned char *data = own ? of->reply : malloc(of->reply_size);
    if (data == NULL)
        return ENOMEM;
    if (!own)
        memcpy(data, of->reply, of->reply_size);
    if (zmq.msg_init_data(frame, data, of->reply_size, drop_data, of->receipt) < 0) {
        if (!own)
            free(data);
        return zmq.last_error();
    }
    of->receipt = NULL; /* Both are libzmq's. */
    if (own)
        of->reply = NULL;
    return 0;
}

/* Send a reply. 0, or an error number. The last frame is made first: if memory ran out after the
 * others were sent, the next message would become part of this one. */
static int send_reply(Frames *self, Batch *batch, item *of)
{
    zmq_msg_t body, delimiter;
    size_t end = of->end - (of->body != NULL);
    int number = to_frame(self, batch, of, &body);
    if (number)
        return number;
    number = send_envelope(self->front.socket, batch, of, end);
    if (!number && end - of->first == 1) { /* A message that had no delimiter. */
        zmq.msg_init(&delimiter);
        number = send_frame(&delimiter, self->front.socket, 1);
        zmq.msg_close(&delimiter);
    }
    if (!number)
        number = send_frame(&body, self->front.socket, 0);
    if (!number)
        self->bytes_out += of->reply_size;
    zmq.msg_close(&body);
    return number;
}

/* The last byte of the address of the connection; 0 if there is nothing to send. */
static unsigned last_byte(const Batch *batch, const item *of)
{
    if (of->reply == NULL)
        return 0;
    zmq_msg_t *address = frame_at(batch, of->first);
    size_t size = zmq.msg_size(address);
    return size ? ((unsigned char *)zmq.msg_data(address))[size - 1] : 0;
}

/* Find the order in which to send: by the last byte of the connections' addresses, and otherwise
 * that of the batch. */
static void sort_by_connection(Frames *self, const Batch *batch)
{
    size_t starts[257];
    if (batch->count == 1) {
        self->order[0] = 0;
        return;
    }
    memset(starts, 0, sizeof starts);
    for (size_t i = 0; i < batch->count; i++)
        starts[1 + last_byte(batch, &batch->items[i])]++;
    for (size_t i = 1; i < 257; i++)
        starts[i] += starts[i - 1];
    for (size_t i = 0; i < batch->count; i++)
        self->order[starts[last_byte(batch, &batch->items[i])]++] = i;
}

/* Send all replies, without Python's lock. One without a receiver is skipped and counted, one
 * without memory is skipped, and the result is ENOMEM. 0, or an error number. */
static int send_all(Frames *self, Batch *batch)
{
    int failed = 0, sorted = self->behind.socket != NULL && batch->count <= self->most;
    if (sorted)
        sort_by_connection(self, batch);
    for (size_t i = 0; i < batch->count; i++) {
        item *of = &batch->items[sorted ? self->order[i] : i];
        int number = of->reply == NULL ? 0 : send_reply(self, batch, of);
        if (number == ENOMEM)
            failed = ENOMEM;
        else if (number && !is_lost(self, number))
            return number;
    }
    return failed;
}

/* Take Python's lock back. A long run that has it sees that the front waits: see
 * zkv/compiled/long.c. */
static void take_python(const Frames *self, const Batch *batch, PyThreadState *left)
{
    int is_front = self->behind.socket != NULL;
    if (is_front)
        __atomic_add_fetch(batch->waiting, 1, __ATOMIC_SEQ_CST);
    PyEval_RestoreThread(left);
    if (is_front)
        __atomic_sub_fetch(batch->waiting, 1, __ATOMIC_SEQ_CST);
}

static PyObject *frames_send(Frames *self, PyObject *argument)
{
    int number;
    Batch *batch = to_batch(self, argument);
    if (batch == NULL)
        return NULL;
    PyThreadState *left = PyEval_SaveThread();
    number = send_all(self, batch);
    take_python(self, batch, left);
    for (size_t i = 0; i < batch->count; i++)
        drop_reply(batch, &batch->items[i]);
    return number ? fail(self, number) : Py_NewRef(Py_None);
}

/* --- Receiving and answering ------------------------------------------------------------------ */

/* 1 if emptying the batch takes no lock: it has no objects of Python. */
static int is_plain(const Batch *batch)
{
    for (size_t i = 0; i < batch->count; i++) {
        const item *of = &batch->items[i];
        if (of->object != NULL || of->envelope != NULL || of->reply_owner != NULL ||
            of->subject != NULL || of->trace != NULL || of->user != NULL || of->overload != NULL)
            return 0;
    }
    return 1;
}

/* Send the replies of a batch, if it has been answered, empty it, and receive the next one. 0, or
 * an error number; EINTR if a signal has arrived. Python's lock is let go of once, if that will do:
 * to get it back takes as long as half of a GET. */
static int next_batch(Frames *self, const wish *w, Batch *batch, int answered)
{
    int number = 0, plain = is_plain(batch);
    PyThreadState *left = PyEval_SaveThread();
    if (answered)
        number = send_all(self, batch);
    if (plain) {
        clear_batch(batch);
        number = number ? number : take_or_wait(self, w, batch);
    }
    take_python(self, batch, left);
    if (plain)
        return number;
    clear_batch(batch);
    if (number)
        return number;
    left = PyEval_SaveThread();
    number = take_or_wait(self, w, batch);
    take_python(self, batch, left);
    return number;
}

/* Complete a batch that has been received: find its users, and refuse what must not run. 0, with an
 * exception, if that fails. */
static int prepare(Frames *self, Batch *batch)
{
    int limited = 0;
    complete(self, batch);
    if (self->users != NULL &&
        (!find_users(self, batch) || !take_limits(self->users, batch, &limited)))
        return 0;
    refuse_overload(self->in_flight, batch);
    for (size_t i = 0; limited && !self->stamped && i < batch->count; i++)
        if (!limit_rate(&batch->items[i]))
            return 0;
    return 1;
}

/* 1 if somebody has woken the thread. */
static int is_woken(const Frames *self)
{
    return __atomic_load_n((unsigned char *)self->woken.buf, __ATOMIC_ACQUIRE) != 0;
}

/* Have a batch answered. 1 if the next one is to be received; otherwise sets what to return, which
 * is NULL with an exception. */
static int have_answered(const wish *w, Batch *batch, PyObject **result)
{
    *result = Py_None;
    if (w->answer == NULL || batch->count == 0)
        return Py_INCREF(Py_None), 0;
    *result = PyObject_CallFunctionObjArgs(w->answer, batch, NULL);
    if (*result != Py_None)
        return 0;
    Py_DECREF(Py_None);
    return 1;
}

/* receive(batch, *, wait, take=True, capacity=False, answer=None): see _frames.pyi. The arguments
 * are read here: PyArg_ParseTupleAndKeywords takes longer than all the rest if nothing is queued. */
static PyObject *frames_receive(Frames *self, PyObject *const *arguments, Py_ssize_t count,
                                PyObject *names)
{
    wish w = {-1, 1, 0, NULL};
    const wish enough = {0, 0, 0, NULL};
    PyObject *result;
    for (Py_ssize_t i = 0; names != NULL && i < PyTuple_Size(names); i++)
        if (!read_wish(&w, PyTuple_GetItem(names, i), arguments[count + i]))
            return NULL;
    if (count != 1 || w.wait < 0)
        return PyErr_Format(PyExc_TypeError, "receive() takes a batch, and `wait` by name");
    Batch *batch = to_batch(self, arguments[0]);
    if (batch == NULL)
        return NULL;
    w.capacity = w.capacity && self->behind.socket != NULL;
    for (int answered = 0;; answered = 1) {
        const wish *now = answered && is_woken(self) ? &enough : &w;
        int number = next_batch(self, now, batch, answered);
        while (number == EINTR) {
            if (PyErr_CheckSignals() < 0)
                return NULL;
            number = next_batch(self, now, batch, 0);
        }
        if (is_error(number) || !prepare(self, batch))
            return is_error(number) ? fail(self, number) : NULL;
        if (!have_answered(&w, batch, &result))
            return result;
    }
}

/* --- Forwarding ------------------------------------------------------------------------------ */

/* Forward one message. 0, or an error number; EAGAIN if the workers have no capacity. */
static int forward_message(Frames *self, Batch *batch, item *of)
{
    int number = send_stamp(self, batch, of);
    size_t size = of->size;
    for (size_t i = of->first; i < of->end && !number; i++)
        number = send_frame(frame_at(batch, i), self->behind.socket, i + 1 < of->end);
    if (!number) {
        of->first = of->end; /* They are empty now. */
        of->body = NULL;
        self->bytes_forwarded += size;
        self->outstanding++;
    }
    return number;
}

/* Forward messages as long as the workers have capacity, and room is left. 0, or an error number. */
static int forward_all(Frames *self, Batch *batch, PyObject *places, long long room,
                       Py_ssize_t *sent)
{
    unsigned long long begin = self->bytes_forwarded;
    for (; *sent < PyList_Size(places); ++*sent) {
        if ((long long)(self->bytes_forwarded - begin) >= room)
            return 0;
        size_t place = PyLong_AsSize_t(PyList_GetItem(places, *sent));
        int number = EINVAL;
        if (place < batch->count)
            number = forward_message(self, batch, &batch->items[place]);
        if (number)
            return number == EAGAIN ? 0 : number;
    }
    return 0;
}

static PyObject *frames_forward(Frames *self, PyObject *arguments)
{
    PyObject *batch, *places;
    Py_ssize_t sent = 0;
    long long room;
    if (!PyArg_ParseTuple(arguments, "OOL", &batch, &places, &room) ||
        to_batch(self, batch) == NULL)
        return NULL;
    int number = forward_all(self, (Batch *)batch, places, room, &sent);
    self->forwarded = 1;
    return number ? fail(self, number) : PyLong_FromSsize_t(sent);
}

/* --- Other methods --------------------------------------------------------------------------- */

static PyObject *frames_look_again(Frames *self, PyObject *argument)
{
    Batch *batch = to_batch(self, argument);
    if (batch == NULL)
        return NULL;
    refuse_overload(self->in_flight, batch);
    Py_RETURN_NONE;
}

/* If there is no memory to count a reply, it is counted when it is sent. */
static PyObject *frames_park(Frames *self, PyObject *arguments)
{
    PyObject *argument, *sizes;
    if (!PyArg_ParseTuple(arguments, "OO!", &argument, &PyList_Type, &sizes))
        return NULL;
    Batch *batch = to_batch(self, argument);
    if (batch == NULL)
        return NULL;
    for (size_t i = 0; i < batch->count; i++) {
        item *of = &batch->items[i];
        size_t size = of->reply == NULL ? 0 : of->reply_size;
        if (of->reply == NULL && i < (size_t)PyList_Size(sizes))
            size = PyLong_AsSize_t(PyList_GetItem(sizes, (Py_ssize_t)i));
        if (PyErr_Occurred())
            return NULL;
        count_reply(self->in_flight, batch, of, size);
    }
    Py_RETURN_NONE;
}

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

static PyObject *frames_passed(Frames *self, void *unused)
{
    return Py_BuildValue("(KKKK)", self->unroutable, self->dropped, self->bytes_in,
                         self->bytes_out);
}

static PyObject *frames_bytes_forwarded(Frames *self, void *unused)
{
    return PyLong_FromUnsignedLongLong(self->bytes_forwarded);
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

/* Take over the memory of `Arrivals`, unless it is None. 0, with an exception, if that failed. */
static int open_notes(Frames *self, PyObject *question, PyObject *senders)
{
    if (question == Py_None || senders == Py_None)
        return 1;
    if (PyObject_GetBuffer(senders, &self->senders, PyBUF_WRITABLE) < 0)
        return 0;
    if (PyObject_GetBuffer(question, &self->question, PyBUF_WRITABLE) < 0)
        return 0;
    if (self->question.len == 3 * sizeof(uint64_t) && self->senders.len > 0)
        return 1;
    return PyErr_Format(PyExc_ValueError, "these are no notes"), 0;
}

/* 1 if objects of this type have the memory that batch.h declares. */
static int is_batch_type(PyObject *type)
{
    PyObject *size = PyObject_GetAttrString(type, "__basicsize__");
    int matches = size != NULL && PyLong_AsSize_t(size) == sizeof(Batch);
    Py_XDECREF(size);
    PyErr_Clear();
    return matches;
}

static PyObject *frames_new(PyTypeObject *type, PyObject *arguments, PyObject *keywords)
{
    PyObject *front, *batch_type, *no_delimiter, *no_body, *two_bodies, *error, *behind = Py_None;
    PyObject *users = Py_None, *question = Py_None, *senders = Py_None;
    PyObject *in_flight = Py_None, *woken;
    int stamped = 0;
    static char *names[] = {"socket", "waker", "woken", "batch_type", "most", "most_bytes", "no_delimiter",
                            "no_body", "two_bodies", "error", "behind", "stamped", "users",
                            "question", "senders", "in_flight", NULL};
    int waker;
    Py_ssize_t most, most_bytes;
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "OiOOnnOOOO|OpOOOO", names, &front,
                                     &waker, &woken, &batch_type, &most, &most_bytes, &no_delimiter,
                                     &no_body, &two_bodies, &error, &behind, &stamped, &users,
                                     &question, &senders, &in_flight))
        return NULL;
    if (zmq.version == NULL || most < 1 || most_bytes < 1)
        return PyErr_Format(PyExc_ValueError, "attach to libzmq first; bounds must be positive");
    if (!is_batch_type(batch_type))
        return PyErr_Format(PyExc_TypeError, "this is no type of batches");
    if (in_flight != Py_None && !PyObject_TypeCheck(in_flight, in_flight_type))
        return PyErr_Format(PyExc_TypeError, "this does not count replies in C");
    Frames *self = (Frames *)PyType_GenericAlloc(type, 0);
    if (self == NULL)
        return NULL;
    self->waker = waker;
    self->stamped = stamped;
    self->users = users == Py_None ? NULL : Py_NewRef(users);
    self->in_flight = in_flight == Py_None ? NULL : (InFlight *)Py_NewRef(in_flight);
    self->stands_for[NO_DELIMITER] = Py_NewRef(no_delimiter);
    self->stands_for[NO_BODY] = Py_NewRef(no_body);
    self->stands_for[TWO_BODIES] = Py_NewRef(two_bodies);
    self->error = Py_NewRef(error);
    self->most = (size_t)most;
    self->most_bytes = (size_t)most_bytes;
    self->batch_type = (PyTypeObject *)Py_NewRef(batch_type);
    self->order = calloc(self->most, sizeof *self->order);
    if (self->order == NULL)
        PyErr_NoMemory();
    else if (PyObject_GetBuffer(woken, &self->woken, PyBUF_SIMPLE) < 0 ||
             !open_notes(self, question, senders))
        ; /* There is an exception. */
    else if (open_end(&self->front, front) && open_end(&self->behind, behind))
        return (PyObject *)self;
    Py_DECREF(self);
    return NULL;
}

static void frames_dealloc(Frames *self)
{
    PyTypeObject *type = Py_TYPE((PyObject *)self);
    free(self->order);
    PyBuffer_Release(&self->woken); /* Does nothing if there is none. */
    PyBuffer_Release(&self->question);
    PyBuffer_Release(&self->senders);
    Py_XDECREF((PyObject *)self->batch_type);
    for (int kind = 0; kind < KINDS; kind++)
        Py_XDECREF(self->stands_for[kind]);
    Py_XDECREF(self->error);
    Py_XDECREF(self->users);
    Py_XDECREF((PyObject *)self->in_flight);
    Py_XDECREF(self->front.owner);
    Py_XDECREF(self->behind.owner);
    PyObject_Free(self);
    Py_DECREF(type);
}

static PyMethodDef frames_methods[] = {
    {"receive", (PyCFunction)(void (*)(void))frames_receive, METH_FASTCALL | METH_KEYWORDS, NULL},
    {"send", (PyCFunction)frames_send, METH_O, NULL},
    {"forward", (PyCFunction)frames_forward, METH_VARARGS, NULL},
    {"readable", (PyCFunction)frames_readable, METH_NOARGS, NULL},
    {"look_again", (PyCFunction)frames_look_again, METH_O, NULL},
    {"park", (PyCFunction)frames_park, METH_VARARGS, NULL},
    {"close", (PyCFunction)frames_close, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef frames_attributes[] = {
    {"passed", (getter)frames_passed, NULL, NULL, NULL},
    {"bytes_forwarded", (getter)frames_bytes_forwarded, NULL, NULL, NULL},
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

/* --- Publisher ------------------------------------------------------------------------------- */

/* The messages that not all followers have got. libzmq's threads count down. It is freed with the
 * last of its references: one for each message, and one for the publisher. */
typedef struct {
    size_t references, messages, bytes;
} Waiting;

/* A body that libzmq holds until it has been sent to all followers; the bytes follow. */
typedef struct {
    Waiting *counted_in;
    size_t size;
} parcel;

typedef struct {
    PyObject_HEAD
    end feed;
    PyObject *error; /* makes an exception from an error number */
    Waiting *waiting;
} Publisher;

static size_t add_to(size_t *number, size_t value)
{
    return __atomic_add_fetch(number, value, __ATOMIC_ACQ_REL);
}

static size_t take_from(size_t *number, size_t value)
{
    return __atomic_sub_fetch(number, value, __ATOMIC_ACQ_REL);
}

static void drop_waiting(Waiting *waiting)
{
    if (waiting != NULL && take_from(&waiting->references, 1) == 0)
        free(waiting);
}

static void drop_parcel(void *data, void *hint)
{
    parcel *dropped = hint;
    Waiting *waiting = dropped->counted_in;
    take_from(&waiting->messages, 1);
    take_from(&waiting->bytes, dropped->size);
    drop_waiting(waiting);
    free(dropped);
}

/* Make the frame of a body, and count it with its topic. 0, or an error number. */
static int to_parcel(Waiting *waiting, const char *body, size_t size, size_t counted,
                     zmq_msg_t *frame)
{
    parcel *made = malloc(sizeof *made + size);
    if (made == NULL)
        return ENOMEM;
    *made = (parcel){waiting, counted};
    memcpy(made + 1, body, size);
    if (zmq.msg_init_data(frame, made + 1, size, drop_parcel, made) < 0) {
        free(made);
        return zmq.last_error();
    }
    add_to(&waiting->references, 1);
    add_to(&waiting->messages, 1);
    add_to(&waiting->bytes, counted);
    return 0;
}

/* Send a message of two frames, which are made before the first one is sent. 0, or an error
 * number. */
static int publish(Publisher *self, const char *topic, size_t topic_size, const char *body,
                   size_t size)
{
    zmq_msg_t frames[2];
    int number = to_parcel(self->waiting, body, size, topic_size + size, &frames[1]);
    if (number)
        return number;
    if (zmq.msg_init_size(&frames[0], topic_size) < 0) {
        number = zmq.last_error();
    } else {
        memcpy(zmq.msg_data(&frames[0]), topic, topic_size);
        number = send_frame(&frames[0], self->feed.socket, 1);
        if (!number)
            number = send_frame(&frames[1], self->feed.socket, 0);
        zmq.msg_close(&frames[0]);
    }
    zmq.msg_close(&frames[1]);
    return number;
}

static PyObject *publisher_send(Publisher *self, PyObject *arguments)
{
    PyObject *topic, *body;
    char *topic_at, *body_at;
    Py_ssize_t topic_size, size;
    int number;
    if (!PyArg_ParseTuple(arguments, "SS", &topic, &body) ||
        PyBytes_AsStringAndSize(topic, &topic_at, &topic_size) < 0 ||
        PyBytes_AsStringAndSize(body, &body_at, &size) < 0)
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    number = publish(self, topic_at, (size_t)topic_size, body_at, (size_t)size);
    Py_END_ALLOW_THREADS
    if (number == 0 || number == EAGAIN)
        return PyBool_FromLong(number == 0);
    return raise_error(self->error, number);
}

static PyObject *publisher_waiting(Publisher *self, void *unused)
{
    return Py_BuildValue("(nn)",
                         (Py_ssize_t)__atomic_load_n(&self->waiting->messages, __ATOMIC_ACQUIRE),
                         (Py_ssize_t)__atomic_load_n(&self->waiting->bytes, __ATOMIC_ACQUIRE));
}

static PyObject *publisher_new(PyTypeObject *type, PyObject *arguments, PyObject *keywords)
{
    static char *names[] = {"socket", "error", NULL};
    PyObject *socket, *error;
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "OO", names, &socket, &error))
        return NULL;
    if (zmq.version == NULL)
        return PyErr_Format(PyExc_ValueError, "attach to libzmq first");
    Publisher *self = (Publisher *)PyType_GenericAlloc(type, 0);
    if (self == NULL)
        return NULL;
    self->error = Py_NewRef(error);
    self->waiting = calloc(1, sizeof *self->waiting);
    if (self->waiting == NULL) {
        PyErr_NoMemory();
    } else {
        self->waiting->references = 1;
        if (open_end(&self->feed, socket))
            return (PyObject *)self;
    }
    Py_DECREF(self);
    return NULL;
}

static void publisher_dealloc(Publisher *self)
{
    PyTypeObject *type = Py_TYPE((PyObject *)self);
    drop_waiting(self->waiting);
    Py_XDECREF(self->error);
    Py_XDECREF(self->feed.owner);
    PyObject_Free(self);
    Py_DECREF(type);
}

static PyMethodDef publisher_methods[] = {
    {"send", (PyCFunction)publisher_send, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef publisher_attributes[] = {
    {"waiting", (getter)publisher_waiting, NULL, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot publisher_slots[] = {
    {Py_tp_doc, "See PythonPublisher in publisher.py."},
    {Py_tp_new, publisher_new},
    {Py_tp_dealloc, publisher_dealloc},
    {Py_tp_methods, publisher_methods},
    {Py_tp_getset, publisher_attributes},
    {0, NULL},
};

static PyType_Spec publisher_spec = {
    .name = "zkv.broker._frames.Publisher",
    .basicsize = sizeof(Publisher),
    .flags = Py_TPFLAGS_DEFAULT,
    .slots = publisher_slots,
};

/* --- The module ------------------------------------------------------------------------------ */

/* --- What has arrived on connections ---------------------------------------------------------- */

enum { BYTES_RECEIVED = 128 }; /* the place of tcpi_bytes_received in the system's tcp_info */

/* received(descriptors): see peers.py. */
static PyObject *received(PyObject *module, PyObject *descriptors)
{
    unsigned char info[BYTES_RECEIVED + sizeof(uint64_t)];
    PyObject *counts = PyList_New(0);
    Py_ssize_t count = PySequence_Size(descriptors);
    for (Py_ssize_t i = 0; counts != NULL && i < count; i++) {
        PyObject *each = PySequence_GetItem(descriptors, i);
        int descriptor = each == NULL ? -1 : (int)PyLong_AsLong(each);
        socklen_t size = sizeof info;
        uint64_t bytes = 0;
        if (getsockopt(descriptor, IPPROTO_TCP, TCP_INFO, info, &size) == 0 && size == sizeof info)
            memcpy(&bytes, info + BYTES_RECEIVED, sizeof bytes);
        Py_XDECREF(each);
        PyObject *number = PyErr_Occurred() ? NULL : PyLong_FromUnsignedLongLong(bytes);
        if (number == NULL || PyList_Append(counts, number) < 0)
            Py_CLEAR(counts);
        Py_XDECREF(number);
    }
    return counts;
}

static PyMethodDef functions_of_module[] = {
    {"received", received, METH_O, "The bytes that have arrived on each tcp connection."},
    {"attach", attach, METH_VARARGS, "Find libzmq in a loaded extension module of pyzmq."},
    {NULL, NULL, 0, NULL},
};

/* 0, with an exception, if that failed. */
static int add_type(PyObject *module, const char *name, PyType_Spec *spec)
{
    PyObject *type = PyType_FromSpec(spec);
    int failed = type == NULL || PyModule_AddObjectRef(module, name, type) < 0;
    Py_XDECREF(type);
    return !failed;
}

static int execute(PyObject *module)
{
    in_flight_type = (PyTypeObject *)PyType_FromSpec(&in_flight_spec);
    if (in_flight_type == NULL ||
        PyModule_AddObjectRef(module, "InFlight", (PyObject *)in_flight_type) < 0)
        return -1;
    return add_type(module, "Frames", &frames_spec) && add_type(module, "Publisher", &publisher_spec)
               ? 0
               : -1;
}

static PyModuleDef_Slot slots_of_module[] = {{Py_mod_exec, execute}, {0, NULL}};

static PyModuleDef definition = {
    .m_base = PyModuleDef_HEAD_INIT,
    .m_name = "_frames",
    .m_methods = functions_of_module,
    .m_slots = slots_of_module,
};

PyMODINIT_FUNC PyInit__frames(void) { return PyModuleDef_Init(&definition); }
