/* The log's frames, as zkv/durability/segment.py specifies them. */

#include "store.h"

enum { MANY_BYTES = 1 << 16 }; /* of a payload: they are packed without Python's lock */

unsigned char *write_frame_head(unsigned char *to, PyObject *payload, uint64_t synced,
                                uint32_t salt)
{
    unsigned char checked[12];
    const unsigned char *bytes = (const unsigned char *)PyBytes_AsString(payload);
    size_t size = (size_t)PyBytes_Size(payload);
    write_fixed(write_fixed(checked, size, 4), synced, 8);
    uint32_t crc = crc32(salt, checked, sizeof checked);
    PyThreadState *left = size > MANY_BYTES ? PyEval_SaveThread() : NULL;
    crc = crc32(crc, bytes, size);
    if (left != NULL)
        PyEval_RestoreThread(left);
    return write_fixed(write_fixed(write_fixed(to, size, 4), crc, 4), synced, 8);
}

/* The payload must be referred to by others, who keep it. */
static unsigned char *write_frame(unsigned char *to, PyObject *payload, uint64_t synced,
                                  uint32_t salt)
{
    size_t size = (size_t)PyBytes_Size(payload);
    to = write_frame_head(to, payload, synced, salt);
    PyThreadState *left = size > MANY_BYTES ? PyEval_SaveThread() : NULL;
    to = write_bytes(to, PyBytes_AsString(payload), size);
    if (left != NULL)
        PyEval_RestoreThread(left);
    return to;
}

/* pack_frames(payloads, synced, salt): see the function of that name in segment.py. */
PyObject *pack_frames(PyObject *module, PyObject *arguments)
{
    PyObject *payloads;
    unsigned long long synced;
    unsigned int salt;
    if (!PyArg_ParseTuple(arguments, "OKI", &payloads, &synced, &salt))
        return NULL;
    Py_ssize_t count = PyList_Size(payloads), total = 0;
    for (Py_ssize_t i = 0; i < count; i++) {
        Py_ssize_t size = PyBytes_Size(PyList_GetItem(payloads, i));
        if (size < 0)
            return NULL;
        if (size > UINT32_MAX)
            return PyErr_Format(PyExc_OverflowError, "a commit of %zd bytes", size);
        total += FRAME_HEAD + size;
    }
    PyObject *frames = count < 0 ? NULL : PyBytes_FromStringAndSize(NULL, total);
    if (frames == NULL)
        return NULL;
    unsigned char *to = (unsigned char *)PyBytes_AsString(frames);
    for (Py_ssize_t i = 0; i < count; i++)
        to = write_frame(to, PyList_GetItem(payloads, i), synced, salt);
    return frames;
}
