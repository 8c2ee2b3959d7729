/* SipHash-1-3: Aumasson and Bernstein, "SipHash: a fast short-input PRF", INDOCRYPT 2012, with one
 * round for each word and three at the end, as Python hashes text.
 * Tested by published vectors: tests/compiled/test_hashes.py. */

#include "store.h"

static uint64_t rotate(uint64_t number, int bits) { return number << bits | number >> (64 - bits); }

static void sip_round(uint64_t v[4])
{
    v[0] += v[1], v[1] = rotate(v[1], 13) ^ v[0], v[0] = rotate(v[0], 32);
    v[2] += v[3], v[3] = rotate(v[3], 16) ^ v[2];
    v[0] += v[3], v[3] = rotate(v[3], 21) ^ v[0];
    v[2] += v[1], v[1] = rotate(v[1], 17) ^ v[2], v[2] = rotate(v[2], 32);
}

static void sip_word(uint64_t v[4], uint64_t word)
{
    v[3] ^= word;
    sip_round(v);
    v[0] ^= word;
}

uint64_t siphash13(const uint64_t seed[2], const unsigned char *from, size_t size)
{
    uint64_t k0 = seed[0], k1 = seed[1], word;
    uint64_t v[4] = {k0 ^ 0x736f6d6570736575, k1 ^ 0x646f72616e646f6d, k0 ^ 0x6c7967656e657261,
                     k1 ^ 0x7465646279746573};
    size_t i = 0;
    for (; i + 8 <= size; i += 8) {
        memcpy(&word, from + i, 8);
        sip_word(v, word);
    }
    word = 0;
    memcpy(&word, from + i, size - i);
    sip_word(v, word ^ (uint64_t)size << 56);
    v[2] ^= 0xff;
    for (int round = 0; round < 3; round++)
        sip_round(v);
    return v[0] ^ v[1] ^ v[2] ^ v[3];
}

/* siphash13(data, k0, k1). For tests. */
PyObject *py_siphash13(PyObject *module, PyObject *arguments)
{
    PyObject *data;
    uint64_t hash;
    unsigned long long k0, k1;
    if (!PyArg_ParseTuple(arguments, "SKK", &data, &k0, &k1))
        return NULL;
    const unsigned char *bytes = (const unsigned char *)PyBytes_AsString(data);
    hash = siphash13((uint64_t[]){k0, k1}, bytes, (size_t)PyBytes_Size(data));
    return PyLong_FromUnsignedLongLong(hash);
}
