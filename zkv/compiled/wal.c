/* The write-ahead log, as far as each write needs it: zkv/durability/wal.py specifies all of it.
 *
 * Strategy: the numbers of a log are here, so that the usual commit takes a system call or two and
 * hardly anything else. It is that of a log in whose file there is room, which takes commits, and
 * whose lock is free. Everything else is left to Python before anything was done. Large payloads
 * are written from their place, and not copied.
 *
 * Invariants: Python's lock is held, except during a system call and long checksums. What has left
 * the queue is written, or `_fail_write` rolls it back. The order of locks is that of wal.py. */

#include "writes.h"
#include "batch.h"

#include <errno.h>
#include <limits.h>
#include <structmember.h>
#include <sys/uio.h>
#include <unistd.h>

enum { LOOK_BYTES = 512 * 1024 };   /* as in wal.py */
enum { TOLD_BYTES = 32 * 1024 };    /* of commits for which nobody waits, before `on_safe` */
enum { LARGE_PAYLOAD = 16 * 1024 }; /* bytes from which on it is not copied */
enum { MOST_LARGE = 16 };           /* such payloads in one write; others are copied */
enum { MOST_PIECES = 2 * MOST_LARGE + 1 };

PyTypeObject *wal_type;

/* --- Frames: zkv/durability/segment.py -------------------------------------------------------- */

/* What is written: copied bytes, and large payloads in between. */
typedef struct {
    unsigned char *copied; /* from PyMem_Malloc */
    struct iovec pieces[MOST_PIECES];
    int count;
    size_t total;
} output;

static int is_large(PyObject *payload, int *large)
{
    return PyBytes_Size(payload) >= LARGE_PAYLOAD && ++*large <= MOST_LARGE;
}

/* Add bytes, which may follow those of the last piece. */
static void add_piece(output *out, unsigned char *at, size_t size)
{
    struct iovec *last = out->count ? &out->pieces[out->count - 1] : NULL;
    if (last != NULL && (unsigned char *)last->iov_base + last->iov_len == at)
        last->iov_len += size;
    else
        out->pieces[out->count++] = (struct iovec){at, size};
    out->total += size;
}

/* Pack the frames of payloads, which must stay. 0, with an exception, if there is no memory. */
static int pack(const Wal *self, PyObject *payloads, output *out)
{
    Py_ssize_t count = PyList_Size(payloads);
    size_t copied = 0;
    int large = 0;
    for (Py_ssize_t i = 0; i < count; i++) {
        PyObject *payload = PyList_GetItem(payloads, i);
        copied += FRAME_HEAD + (is_large(payload, &large) ? 0 : (size_t)PyBytes_Size(payload));
    }
    unsigned char *to = out->copied = PyMem_Malloc(copied);
    if (to == NULL)
        return PyErr_NoMemory(), 0;
    large = 0;
    for (Py_ssize_t i = 0; i < count; i++) {
        PyObject *payload = PyList_GetItem(payloads, i);
        unsigned char *bytes = (unsigned char *)PyBytes_AsString(payload);
        size_t size = (size_t)PyBytes_Size(payload);
        write_frame_head(to, payload, (uint64_t)self->synced, (uint32_t)self->salt);
        add_piece(out, to, FRAME_HEAD);
        to += FRAME_HEAD;
        if (is_large(payload, &large)) {
            add_piece(out, bytes, size);
        } else {
            add_piece(out, memcpy(to, bytes, size), size);
            to += size;
        }
    }
    return 1;
}

/* --- System calls. 0, with an exception, if they fail ------------------------------------------ */

/* Write the pieces from `first` on at the file's position; returns the bytes, -1 if it fails. */
static ssize_t write_some(int file, output *out, int first)
{
    ssize_t written;
    do {
        PyThreadState *left = PyEval_SaveThread();
        written = writev(file, out->pieces + first, out->count - first);
        PyEval_RestoreThread(left);
    } while (written < 0 && errno == EINTR && PyErr_CheckSignals() == 0);
    if (written < 0 && !PyErr_Occurred())
        PyErr_SetFromErrno(PyExc_OSError);
    return written;
}

static int write_all(int file, output *out)
{
    for (int first = 0; first < out->count;) {
        ssize_t written = write_some(file, out, first);
        if (written < 0)
            return 0;
        for (; first < out->count && (size_t)written >= out->pieces[first].iov_len; first++)
            written -= (ssize_t)out->pieces[first].iov_len;
        if (first < out->count) {
            struct iovec *next = &out->pieces[first];
            next->iov_base = (unsigned char *)next->iov_base + written;
            next->iov_len -= (size_t)written;
        }
    }
    return 1;
}

static int sync_file(int file)
{
    int failed;
    do {
        PyThreadState *left = PyEval_SaveThread();
        failed = fdatasync(file);
        PyEval_RestoreThread(left);
    } while (failed && errno == EINTR && PyErr_CheckSignals() == 0);
    if (failed && !PyErr_Occurred())
        PyErr_SetFromErrno(PyExc_OSError);
    return !failed;
}

/* --- Python's objects ---------------------------------------------------------------------------- */

PyObject *known_names[KNOWN_NAMES];

int begin_names(void)
{
    static const char *const texts[KNOWN_NAMES] = {
        [NAME_END] = "end",
        [NAME_ACQUIRE] = "acquire",
        [NAME_RELEASE] = "release",
        [NAME_FAIL_WRITE] = "_fail_write",
        [NAME_FAIL_SYNC] = "_fail_sync",
        [NAME_WRITE] = "write",
        [NAME_SYNC] = "sync",
        [NAME_APPEND] = "append",
        [NAME_POPLEFT] = "popleft",
        [NAME_LSN] = "lsn",
        [NAME_LISTENERS] = "listeners",
        [NAME_REPLY] = "reply",
        [NAME_MOVE_TO_END] = "move_to_end",
    };
    for (int i = 0; i < KNOWN_NAMES; i++)
        if (known_names[i] == NULL &&
            (known_names[i] = PyUnicode_InternFromString(texts[i])) == NULL)
            return 0;
    return 1;
}

/* Call a method with an argument, or without one if it is NULL. 0, with an exception, if it fails. */
static int call(PyObject *of, enum known_name name, PyObject *argument)
{
    PyObject *result = PyObject_CallMethodObjArgs(of, known_names[name], argument, NULL);
    Py_XDECREF(result);
    return result != NULL;
}

/* --- A commit. `_io` is held ------------------------------------------------------------------- */

static void note_safe(Wal *self)
{
    int each = self->sync_each;
    self->kept_lsn = self->safe_lsn = each ? self->durable_lsn : self->written_lsn;
    self->kept_rev = self->safe_rev = each ? self->durable_rev : self->written_rev;
    self->kept_bytes = self->safe_bytes = each ? self->durable_bytes : self->written_bytes;
}

/* Add a run to what was taken before it. A list of one run stays its own. 0, with an exception, if
 * there is no memory. */
static int add_taken(PyObject **payloads, PyObject *before, PyObject *run)
{
    PyObject *more = PyTuple_GetItem(run, 1);
    if (*payloads == NULL) {
        *payloads = Py_NewRef(more);
        return 1;
    }
    if (*payloads == PyTuple_GetItem(before, 1)) { /* The second one. */
        PyObject *all = PyList_GetSlice(*payloads, 0, PyList_Size(*payloads));
        Py_DECREF(*payloads);
        if ((*payloads = all) == NULL)
            return 0;
    }
    Py_ssize_t end = PyList_Size(*payloads);
    return PyList_SetSlice(*payloads, end, end, more) == 0;
}

/* Take all runs from the queue: their payloads in one list, and the last one. 0, with an exception,
 * if there is no memory. */
static int take_queued(Wal *self, PyObject **payloads, PyObject **last)
{
    PyObject *queue = self->objects[QUEUE];
    while (PyObject_Size(queue) > 0) {
        PyObject *run = PyObject_CallMethodObjArgs(queue, known_names[NAME_POPLEFT], NULL);
        if (run == NULL)
            return 0;
        int well = add_taken(payloads, *last, run);
        Py_XDECREF(*last);
        *last = run;
        if (!well)
            return 0;
    }
    long long lsn = PyLong_AsLongLong(PyTuple_GetItem(*last, 0)) - PyList_Size(*payloads);
    if (lsn != self->written_lsn)
        Py_FatalError("zkv: a gap in the log"); /* Recovery would stop there. */
    return 1;
}

/* See `Wal._require_memory`. 0, with an exception, if there is none. */
static int require_memory(Wal *self)
{
    long long size = self->appended_bytes - self->written_bytes;
    if (size <= LOOK_BYTES)
        return 1;
    PyObject *done = PyObject_CallMethod((PyObject *)self, "_require_memory", "L", size);
    Py_XDECREF(done);
    return done != NULL;
}

/* What is to be written, in one piece. NULL, with an exception, if there is no memory. */
static PyObject *join(const output *out)
{
    PyObject *data = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)out->total);
    unsigned char *to = data == NULL ? NULL : (unsigned char *)PyBytes_AsString(data);
    for (int i = 0; to != NULL && i < out->count; i++)
        to = write_bytes(to, out->pieces[i].iov_base, out->pieces[i].iov_len);
    return data;
}

/* Have `Files` write `out` or, if it is NULL, sync. 0, with an exception, if it fails. */
static int call_files(Wal *self, const output *out)
{
    PyObject *files = self->objects[FILES], *file = self->objects[FILE_], *done = NULL;
    PyObject *data = out == NULL ? NULL : join(out);
    if (out == NULL)
        done = PyObject_CallMethodObjArgs(files, known_names[NAME_SYNC], file, NULL);
    else if (data != NULL)
        done = PyObject_CallMethodObjArgs(files, known_names[NAME_WRITE], file, data, NULL);
    Py_XDECREF(data);
    Py_XDECREF(done);
    return done != NULL;
}

/* The same without Python. */
static int call_system(Wal *self, output *out)
{
    int file = PyObject_AsFileDescriptor(self->objects[FILE_]);
    return file >= 0 && (out != NULL ? write_all(file, out) : sync_file(file));
}

/* Do one thing with the disk: write `out` or, if it is NULL, sync. Returns the seconds; -1, with an
 * exception, if it fails. */
static double use_disk(Wal *self, output *out)
{
    PyObject *type, *error, *trace;
    Activity *activity = (Activity *)self->objects[ON_DISK];
    double began = clock_now();
    activity_begin(activity, began);
    int well = self->direct ? call_system(self, out) : call_files(self, out);
    double ended = clock_now();
    PyErr_Fetch(&type, &error, &trace);
    if (!activity_end(activity, ended))
        PyErr_Clear(); /* There is no memory to note how long it took. */
    PyErr_Restore(type, error, trace);
    return well ? ended - began : -1;
}

PyObject *take_exception(void)
{
    PyObject *type, *error, *traceback;
    PyErr_Fetch(&type, &error, &traceback);
    PyErr_NormalizeException(&type, &error, &traceback);
    if (traceback != NULL)
        PyException_SetTraceback(error, traceback);
    Py_XDECREF(type);
    Py_XDECREF(traceback);
    return error;
}

/* Have Python roll back after a failure of which there is an exception, and raise its error. That
 * needs memory; without any, nobody knows how far the rollback has come. */
static int fail(Wal *self, enum known_name method)
{
    if (!PyErr_ExceptionMatches(PyExc_Exception))
        return 0; /* The process is about to end. */
    PyObject *error = take_exception();
    PyObject *result =
        PyObject_CallMethodObjArgs((PyObject *)self, known_names[method], error, NULL);
    if (result != NULL || PyErr_ExceptionMatches(PyExc_MemoryError))
        Py_FatalError("zkv: out of memory in the middle of a rollback");
    Py_DECREF(error);
    return 0;
}

static void note_written(Wal *self, PyObject *payloads, PyObject *last, size_t size)
{
    PyObject *newest = PyList_GetItem(payloads, PyList_Size(payloads) - 1);
    const unsigned char *bytes = (const unsigned char *)PyBytes_AsString(newest);
    self->offset += (long long)size;
    self->bytes_written += (long long)size;
    self->written_lsn = PyLong_AsLongLong(PyTuple_GetItem(last, 0));
    self->written_bytes = PyLong_AsLongLong(PyTuple_GetItem(last, 2));
    self->written_rev = (long long)big_endian(bytes + REVISION_AT, 8);
    note_safe(self);
    self->unlooked += (long long)size;
}

/* Write all that is queued, which is something. 0, with an exception, if it has been rolled back. */
static int write_queued(Wal *self)
{
    PyObject *payloads = NULL, *last = NULL;
    output out = {0};
    int well = require_memory(self) && take_queued(self, &payloads, &last) &&
               pack(self, payloads, &out) && use_disk(self, &out) >= 0;
    if (well)
        note_written(self, payloads, last, out.total);
    else
        fail(self, NAME_FAIL_WRITE);
    Py_XDECREF(payloads);
    Py_XDECREF(last);
    PyMem_Free(out.copied);
    if (!well || self->unlooked < LOOK_BYTES)
        return well;
    PyObject *looked = PyObject_CallMethod((PyObject *)self, "_look_around", NULL);
    Py_XDECREF(looked);
    return looked != NULL;
}

/* Sync what is written. 0, with an exception, if it has been rolled back. */
static int sync_written(Wal *self)
{
    long long lsn = self->written_lsn, rev = self->written_rev, bytes = self->written_bytes;
    long long offset = self->offset, commits = lsn - self->durable_lsn;
    double took = use_disk(self, NULL);
    if (took < 0)
        return fail(self, NAME_FAIL_SYNC);
    self->sync_seconds = took > 0.9 * self->sync_seconds ? took : 0.9 * self->sync_seconds;
    self->syncs++;
    self->synced = offset;
    self->durable_rev = rev;
    self->durable_lsn = lsn;
    self->durable_bytes = bytes;
    note_safe(self);
    buckets_add((Buckets *)self->objects[SYNC_TIMES], step_of(took), took);
    buckets_add((Buckets *)self->objects[COMMITS_PER_SYNC], bits_of((uint64_t)commits),
                (double)commits);
    return 1;
}

/* 1 if what is counted with each commit is in C. */
static int counts_in_c(const Wal *self)
{
    return PyObject_TypeCheck(self->objects[ON_DISK], activity_type) &&
           PyObject_TypeCheck(self->objects[SYNC_TIMES], buckets_type) &&
           PyObject_TypeCheck(self->objects[COMMITS_PER_SYNC], buckets_type);
}

/* 1 if a commit is usual: see the top. */
static int is_usual(const Wal *self, int durable)
{
    int is_full = self->offset >= self->segment_bytes && self->written_rev >= self->first_rev;
    int writes = self->last_lsn > self->written_lsn;
    return self->usual && self->takes_commits && counts_in_c(self) &&
           (!durable || self->sync_seconds < self->quick_sync_seconds) &&
           (!writes || (!is_full && PyObject_Size(self->objects[QUEUE]) > 0));
}

/* Write and sync, as far as that is still to be done. */
static int commit_locked(Wal *self, int durable)
{
    if (!is_usual(self, durable))
        return 0;
    if (self->last_lsn > self->written_lsn && !write_queued(self))
        return -1;
    return !durable || self->written_lsn <= self->durable_lsn || sync_written(self) ? 1 : -1;
}

/* --- For turn.c -------------------------------------------------------------------------------- */

int wal_extend(Wal *self, PyObject *payloads, size_t size)
{
    long long lsn = self->last_lsn + PyList_Size(payloads);
    long long bytes = self->appended_bytes + (long long)size;
    PyObject *run = Py_BuildValue("(LOL)", lsn, payloads, bytes);
    int well = run != NULL && call(self->objects[QUEUE], NAME_APPEND, run);
    Py_XDECREF(run);
    if (well) {
        self->appended_bytes = bytes;
        self->last_lsn = lsn;
    }
    return well;
}

/* Call `on_safe`, unless nobody listens. 0, with an exception, if that fails. */
static int tell(Wal *self)
{
    PyObject *listeners = PyObject_GetAttr((PyObject *)self, known_names[NAME_LISTENERS]);
    if (listeners == NULL)
        return 0;
    int told = self->safe_bytes - self->told_bytes > TOLD_BYTES;
    for (Py_ssize_t i = 0; !told && i < PyTuple_Size(listeners); i++)
        told = PyObject_IsTrue(PyTuple_GetItem(listeners, i));
    Py_DECREF(listeners);
    if (told <= 0)
        return told == 0;
    self->told_bytes = self->safe_bytes;
    PyObject *result = PyObject_CallMethod((PyObject *)self, "on_safe", NULL);
    Py_XDECREF(result);
    return result != NULL;
}

int wal_commit(Wal *self, int durable)
{
    if (!is_usual(self, durable))
        return 0;
    if (self->last_lsn <= (durable ? self->durable_lsn : self->written_lsn))
        return 1;
    PyObject *io = self->objects[IO];
    PyObject *free = PyObject_CallMethodObjArgs(io, known_names[NAME_ACQUIRE], Py_False, NULL);
    int locked = free == NULL ? -1 : free == Py_True;
    Py_XDECREF(free);
    if (locked <= 0)
        return locked;
    int done = commit_locked(self, durable);
    PyObject *type, *error, *trace;
    PyErr_Fetch(&type, &error, &trace);
    if (!call(io, NAME_RELEASE, NULL))
        Py_FatalError("zkv: the log's lock cannot be released");
    if (type != NULL)
        PyErr_Restore(type, error, trace);
    return done == 1 && !tell(self) ? -1 : done;
}

/* --- The type ---------------------------------------------------------------------------------- */

KEEPS_OBJECTS(wal, Wal)

#define NUMBER(name, member) {name, T_LONGLONG, offsetof(Wal, member), 0, NULL}
#define OBJECT(name, index)                                                                        \
    {name, T_OBJECT_EX, offsetof(Wal, objects) + (index) * sizeof(PyObject *), 0, NULL}

static PyMemberDef wal_members[] = {
    NUMBER("last_lsn", last_lsn),
    NUMBER("appended_bytes", appended_bytes),
    NUMBER("written_lsn", written_lsn),
    NUMBER("written_rev", written_rev),
    NUMBER("_written_bytes", written_bytes),
    NUMBER("durable_lsn", durable_lsn),
    NUMBER("durable_rev", durable_rev),
    NUMBER("_durable_bytes", durable_bytes),
    NUMBER("kept_lsn", kept_lsn),
    NUMBER("kept_rev", kept_rev),
    NUMBER("kept_bytes", kept_bytes),
    NUMBER("safe_lsn", safe_lsn),
    NUMBER("safe_rev", safe_rev),
    NUMBER("safe_bytes", safe_bytes),
    NUMBER("_offset", offset),
    NUMBER("_synced", synced),
    NUMBER("_salt", salt),
    NUMBER("_first_rev", first_rev),
    NUMBER("_segment_bytes", segment_bytes),
    NUMBER("bytes_written", bytes_written),
    NUMBER("_unlooked", unlooked),
    NUMBER("syncs", syncs),
    NUMBER("epoch", epoch),
    {"_sync_seconds", T_DOUBLE, offsetof(Wal, sync_seconds), 0, NULL},
    {"quick_sync_seconds", T_DOUBLE, offsetof(Wal, quick_sync_seconds), 0, NULL},
    {"takes_commits", T_BOOL, offsetof(Wal, takes_commits), 0, NULL},
    {"_sync_each", T_BOOL, offsetof(Wal, sync_each), 0, NULL},
    {"_is_usual", T_BOOL, offsetof(Wal, usual), 0, NULL},
    {"_is_direct", T_BOOL, offsetof(Wal, direct), 0, NULL},
    OBJECT("_queue", QUEUE),
    OBJECT("_io", IO),
    OBJECT("_files", FILES),
    OBJECT("_file", FILE_),
    OBJECT("on_disk", ON_DISK),
    OBJECT("sync_times", SYNC_TIMES),
    OBJECT("commits_per_sync", COMMITS_PER_SYNC),
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot wal_slots[] = {
    {Py_tp_doc, "See zkv/durability/wal.py, which sets all of its attributes."},
    {Py_tp_dealloc, wal_dealloc},
    {Py_tp_traverse, wal_traverse},
    {Py_tp_clear, wal_clear},
    {Py_tp_members, wal_members},
    {0, NULL},
};

PyType_Spec wal_spec = {
    .name = "zkv.compiled._store.WalBase",
    .basicsize = sizeof(Wal),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_BASETYPE,
    .slots = wal_slots,
};
