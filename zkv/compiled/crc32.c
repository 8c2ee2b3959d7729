/* CRC-32 as in zlib, sixteen bytes at a time: M. E. Kounavis and F. L. Berry, "Novel Table
 * Lookup-Based Algorithms for High-Performance CRC Generation", IEEE Trans. Computers, 2008.
 * Tested by its published check value: tests/compiled/test_hashes.py. */

#include "store.h"

enum { SLICES = 16 }; /* with 8 it takes 1.7 times as long */

static uint32_t crcs[SLICES][256];

static void make_crcs(void)
{
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t crc = i;
        for (int bit = 0; bit < 8; bit++)
            crc = crc >> 1 ^ (crc & 1 ? 0xedb88320u : 0);
        crcs[0][i] = crc;
    }
    for (int level = 1; level < SLICES; level++)
        for (int i = 0; i < 256; i++)
            crcs[level][i] = crcs[level - 1][i] >> 8 ^ crcs[0][crcs[level - 1][i] & 0xff];
}

uint32_t crc32(uint32_t crc, const unsigned char *at, size_t size)
{
    if (!crcs[0][1])
        make_crcs();
    crc = ~crc;
    for (; size >= SLICES; size -= SLICES, at += SLICES) {
        uint32_t next = 0;
        for (int i = 0; i < SLICES; i++)
            next ^= crcs[SLICES - 1 - i][at[i] ^ (i < 4 ? crc >> 8 * i & 0xff : 0)];
        crc = next;
    }
    while (size--)
        crc = crc >> 8 ^ crcs[0][(crc ^ *at++) & 0xff];
    return ~crc;
}

/* crc32(data, crc): as in zlib. For tests. */
PyObject *py_crc32(PyObject *module, PyObject *arguments)
{
    PyObject *data;
    unsigned int crc;
    if (!PyArg_ParseTuple(arguments, "SI", &data, &crc))
        return NULL;
    const unsigned char *bytes = (const unsigned char *)PyBytes_AsString(data);
    return PyLong_FromUnsignedLong(crc32(crc, bytes, (size_t)PyBytes_Size(data)));
}
