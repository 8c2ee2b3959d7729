/* The log's frames, as zkv/durability/segment.py specifies them. */

#include "store.h"

enum { FRAME_HEAD = 16 };

/* CRC-32 as in zlib, eight bytes at a time: M. E. Kounavis and F. L. Berry, "Novel Table
 * Lookup-Based Algorithms for High-Performance CRC Generation", IEEE Trans. Computers, 2008. */
static uint32_t crcs[8][256];

static void make_crcs(void)
{
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t crc = i;
        for (int bit = 0; bit < 8; bit++)
            crc = crc >> 1 ^ (crc & 1 ? 0xedb88320u : 0);
        crcs[0][i] = crc;
    }
    for (int level = 1; level < 8; level++)
        for (int i = 0; i < 256; i++)
            crcs[level][i] = crcs[level - 1][i] >> 8 ^ crcs[0][crcs[level - 1][i] & 0xff];
}

static uint32_t crc32(uint32_t crc, const unsigned char *at, size_t size)
{
    crc = ~crc;
    for (; size >= 8; size -= 8, at += 8) {
        uint32_t low = crc ^ (at[0] | (uint32_t)at[1] << 8 | (uint32_t)at[2] << 16 |
                              (uint32_t)at[3] << 24);
        crc = crcs[7][low & 0xff] ^ crcs[6][low >> 8 & 0xff] ^ crcs[5][low >> 16 & 0xff] ^
              crcs[4][low >> 24] ^ crcs[3][at[4]] ^ crcs[2][at[5]] ^ crcs[1][at[6]] ^
              crcs[0][at[7]];
    }
    while (size--)
        crc = crc >> 8 ^ crcs[0][(crc ^ *at++) & 0xff];
    return ~crc;
}

static unsigned char *write_frame(unsigned char *to, PyObject *payload, uint64_t synced,
                                  uint32_t salt)
{
    unsigned char checked[12];
    const unsigned char *bytes = (const unsigned char *)PyBytes_AsString(payload);
    size_t size = (size_t)PyBytes_Size(payload);
    write_fixed(write_fixed(checked, size, 4), synced, 8);
    uint32_t crc = crc32(crc32(salt, checked, sizeof checked), bytes, size);
    to = write_fixed(write_fixed(write_fixed(to, size, 4), crc, 4), synced, 8);
    return write_bytes(to, bytes, size);
}

/* pack_frames(payloads, synced, salt): see the function of that name in segment.py. */
PyObject *pack_frames(PyObject *module, PyObject *arguments)
{
    PyObject *payloads;
    unsigned long long synced;
    unsigned int salt;
    if (!PyArg_ParseTuple(arguments, "OKI", &payloads, &synced, &salt))
        return NULL;
    if (!crcs[0][1])
        make_crcs();
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
