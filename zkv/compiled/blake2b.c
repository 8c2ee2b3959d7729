/* BLAKE2b without a key, as in RFC 7693. Tested with its vectors: tests/compiled/test_hashes.py. */

#include "store.h"

enum { BLOCK = 128 };

static const uint64_t initial[8] = {
    0x6a09e667f3bcc908, 0xbb67ae8584caa73b, 0x3c6ef372fe94f82b, 0xa54ff53a5f1d36f1,
    0x510e527fade682d1, 0x9b05688c2b3e6c1f, 0x1f83d9abfb41bd6b, 0x5be0cd19137e2179,
};

static const unsigned char sigma[10][16] = {
    {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15},
    {14, 10, 4, 8, 9, 15, 13, 6, 1, 12, 0, 2, 11, 7, 5, 3},
    {11, 8, 12, 0, 5, 2, 15, 13, 10, 14, 3, 6, 7, 1, 9, 4},
    {7, 9, 3, 1, 13, 12, 11, 14, 2, 6, 5, 10, 4, 0, 15, 8},
    {9, 0, 5, 7, 2, 4, 10, 15, 14, 1, 11, 12, 6, 8, 3, 13},
    {2, 12, 6, 10, 0, 11, 8, 3, 4, 13, 7, 5, 15, 14, 1, 9},
    {12, 5, 1, 15, 14, 13, 4, 10, 0, 7, 6, 3, 9, 2, 8, 11},
    {13, 11, 7, 14, 12, 1, 3, 9, 5, 0, 15, 4, 8, 6, 2, 10},
    {6, 15, 14, 9, 11, 3, 0, 8, 12, 2, 13, 7, 1, 4, 10, 5},
    {10, 2, 8, 4, 7, 6, 1, 5, 15, 11, 9, 14, 3, 12, 13, 0},
};

static uint64_t rotate(uint64_t number, int bits) { return number >> bits | number << (64 - bits); }

static inline void mix(uint64_t *v, int a, int b, int c, int d, uint64_t x, uint64_t y)
{
    v[a] += v[b] + x, v[d] = rotate(v[d] ^ v[a], 32);
    v[c] += v[d], v[b] = rotate(v[b] ^ v[c], 24);
    v[a] += v[b] + y, v[d] = rotate(v[d] ^ v[a], 16);
    v[c] += v[d], v[b] = rotate(v[b] ^ v[c], 63);
}

static void compress(hasher *self, int last)
{
    uint64_t v[16], m[16];
    for (int i = 0; i < 16; i++) {
        v[i] = i < 8 ? self->h[i] : initial[i - 8];
        m[i] = 0;
        for (int byte = 7; byte >= 0; byte--)
            m[i] = m[i] << 8 | self->block[8 * i + byte];
    }
    v[12] ^= self->total; /* the low word of the length; the high one is 0 */
    if (last)
        v[14] = ~v[14];
#pragma GCC unroll 12 /* The places in sigma are constants then: half the time. */
    for (int round = 0; round < 12; round++) {
        const unsigned char *s = sigma[round % 10];
        mix(v, 0, 4, 8, 12, m[s[0]], m[s[1]]);
        mix(v, 1, 5, 9, 13, m[s[2]], m[s[3]]);
        mix(v, 2, 6, 10, 14, m[s[4]], m[s[5]]);
        mix(v, 3, 7, 11, 15, m[s[6]], m[s[7]]);
        mix(v, 0, 5, 10, 15, m[s[8]], m[s[9]]);
        mix(v, 1, 6, 11, 12, m[s[10]], m[s[11]]);
        mix(v, 2, 7, 8, 13, m[s[12]], m[s[13]]);
        mix(v, 3, 4, 9, 14, m[s[14]], m[s[15]]);
    }
    for (int i = 0; i < 8; i++)
        self->h[i] ^= v[i] ^ v[i + 8];
}

void hash_begin(hasher *self, size_t digest_size)
{
    memcpy(self->h, initial, sizeof initial);
    self->h[0] ^= 0x01010000 ^ digest_size;
    self->total = self->held = 0;
}

void hash_add(hasher *self, const void *from, size_t size)
{
    const unsigned char *at = from;
    while (size) {
        if (self->held == BLOCK) { /* Only if more follows: the last block is marked. */
            compress(self, 0);
            self->held = 0;
        }
        size_t part = size < BLOCK - self->held ? size : BLOCK - self->held;
        memcpy(self->block + self->held, at, part);
        self->held += part;
        self->total += part;
        at += part;
        size -= part;
    }
}

uint64_t hash_end(hasher *self)
{
    memset(self->block + self->held, 0, BLOCK - self->held);
    compress(self, 1);
    return self->h[0]; /* little-endian */
}

/* --- Sums of digests -------------------------------------------------------------------------- */

#if defined(__x86_64__) && defined(__GNUC__)
#define HAS_LANES __builtin_cpu_supports("avx2")

typedef uint64_t lanes __attribute__((vector_size(8 * SIDE_BY_SIDE)));

#define ROTATE(x, bits) ((x) >> (bits) | (x) << (64 - (bits)))
#define MIX(a, b, c, d, x, y)                                                                      \
    (v[a] += v[b] + m[x], v[d] = ROTATE(v[d] ^ v[a], 32), v[c] += v[d],                            \
     v[b] = ROTATE(v[b] ^ v[c], 24), v[a] += v[b] + m[y], v[d] = ROTATE(v[d] ^ v[a], 16),          \
     v[c] += v[d], v[b] = ROTATE(v[b] ^ v[c], 63))

/* The sum of the digests of SIDE_BY_SIDE messages of at most a block, which are computed side by side:
 * less than half the time. */
__attribute__((target("avx2"))) static uint64_t digest_lanes(const sum *of)
{
    lanes v[16], m[16];
    for (int i = 0; i < 16; i++) {
        v[i] = (lanes){0} + initial[i % 8];
        for (int lane = 0; lane < SIDE_BY_SIDE; lane++)
            m[i][lane] = of->words[lane][i];
    }
    lanes h = v[0] ^= 0x01010000 ^ DIGEST_BYTES;
    for (int lane = 0; lane < SIDE_BY_SIDE; lane++)
        v[12][lane] ^= of->sizes[lane];
    v[14] = ~v[14];
#pragma GCC unroll 12
    for (int round = 0; round < 12; round++) {
        const unsigned char *s = sigma[round % 10];
        MIX(0, 4, 8, 12, s[0], s[1]);
        MIX(1, 5, 9, 13, s[2], s[3]);
        MIX(2, 6, 10, 14, s[4], s[5]);
        MIX(3, 7, 11, 15, s[6], s[7]);
        MIX(0, 5, 10, 15, s[8], s[9]);
        MIX(1, 6, 11, 12, s[10], s[11]);
        MIX(2, 7, 8, 13, s[12], s[13]);
        MIX(3, 4, 9, 14, s[14], s[15]);
    }
    h ^= v[0] ^ v[8];
    return h[0] + h[1] + h[2] + h[3];
}
#else
#define HAS_LANES 0
static uint64_t digest_lanes(const sum *of) { return of->total; } /* never called */
#endif

void sum_add(sum *self, const span *parts, int count)
{
    hasher h;
    size_t size = 0;
    for (int i = 0; i < count; i++)
        size += parts[i].size;
    if (size > BLOCK || !HAS_LANES) {
        hash_begin(&h, DIGEST_BYTES);
        for (int i = 0; i < count; i++)
            hash_add(&h, parts[i].at, parts[i].size);
        self->total += hash_end(&h);
        return;
    }
    unsigned char *to = (unsigned char *)self->words[self->count];
    for (int i = 0; i < count; to += parts[i++].size)
        memcpy(to, parts[i].at, parts[i].size);
    memset(to, 0, BLOCK - size);
    self->sizes[self->count++] = size;
    if (self->count == SIDE_BY_SIDE) {
        self->total += digest_lanes(self);
        self->count = 0;
    }
}

uint64_t sum_end(const sum *self)
{
    uint64_t total = self->total;
    hasher h;
    for (size_t i = 0; i < self->count; i++) {
        hash_begin(&h, DIGEST_BYTES);
        hash_add(&h, self->words[i], self->sizes[i]);
        total += hash_end(&h);
    }
    return total;
}

/* blake2b(data, size): a digest of at most 64 bytes. For tests. */
PyObject *py_blake2b(PyObject *module, PyObject *arguments)
{
    PyObject *data;
    int size;
    unsigned char digest[64];
    hasher h;
    if (!PyArg_ParseTuple(arguments, "Si", &data, &size))
        return NULL;
    if (size < 1 || size > 64)
        return PyErr_Format(PyExc_ValueError, "a digest has 1 to 64 bytes");
    hash_begin(&h, (size_t)size);
    hash_add(&h, PyBytes_AsString(data), (size_t)PyBytes_Size(data));
    hash_end(&h);
    for (int i = 0; i < size; i++)
        digest[i] = (unsigned char)(h.h[i / 8] >> 8 * (i % 8));
    return PyBytes_FromStringAndSize((char *)digest, size);
}

/* blake2b_sum(messages): the sum of their digests of 8 bytes, modulo 2^64. For tests. */
PyObject *py_blake2b_sum(PyObject *module, PyObject *messages)
{
    sum of = {.total = 0};
    Py_ssize_t count = PyList_Size(messages), size;
    for (Py_ssize_t i = 0; i < count; i++) {
        char *at;
        if (PyBytes_AsStringAndSize(PyList_GetItem(messages, i), &at, &size) < 0)
            return NULL;
        span half = {(unsigned char *)at, (size_t)size / 2};
        sum_add(&of, (span[]){half, {half.at + half.size, (size_t)size - half.size}}, 2);
    }
    return count < 0 ? NULL : PyLong_FromUnsignedLongLong(sum_end(&of));
}
