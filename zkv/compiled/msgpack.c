/* The part of msgpack that simple requests and their replies need.
 *
 * For any bytes: reading never goes beyond the end, and never recurses. */

#include "store.h"

static size_t left(const reader *r) { return (size_t)(r->end - r->at); }

/* Read a head: one byte from `first` to `last`, which contains the number, or `wide` followed by a
 * number of 2 bytes, or `wide` + 1 followed by one of 4 bytes. */
static int read_head(reader *r, int first, int last, int wide, uint32_t *number)
{
    if (r->at == r->end)
        return 0;
    int byte = *r->at;
    int size = byte == wide ? 2 : byte == wide + 1 ? 4 : 0;
    if (byte >= first && byte <= last)
        *number = (uint32_t)(byte - first);
    else if (size && left(r) > (size_t)size)
        *number = (uint32_t)big_endian(r->at + 1, size);
    else
        return 0;
    r->at += 1 + size;
    return 1;
}

int read_map(reader *r, uint32_t *count) { return read_head(r, 0x80, 0x8f, 0xde, count); }

int read_array(reader *r, uint32_t *count) { return read_head(r, 0x90, 0x9f, 0xdc, count); }

/* 1 if the bytes are UTF-8 as Unicode defines it: shortest form, no surrogates. */
static int is_utf8(const unsigned char *at, size_t size)
{
    const unsigned char *end = at + size;
    while (at < end) {
        if (*at < 0x80) {
            at++;
            continue;
        }
        int more = *at >= 0xf0 ? 3 : *at >= 0xe0 ? 2 : 1;
        if (*at < 0xc2 || *at > 0xf4 || end - at <= more)
            return 0;
        if ((*at == 0xe0 && at[1] < 0xa0) || (*at == 0xed && at[1] > 0x9f) ||
            (*at == 0xf0 && at[1] < 0x90) || (*at == 0xf4 && at[1] > 0x8f))
            return 0;
        for (at++; more; more--, at++)
            if ((*at & 0xc0) != 0x80)
                return 0;
    }
    return 1;
}

int read_text(reader *r, span *text)
{
    uint32_t size;
    reader from = *r;
    if (from.at < from.end && *from.at == 0xd9 && left(&from) > 1) {
        size = from.at[1];
        from.at += 2;
    } else if (!read_head(&from, 0xa0, 0xbf, 0xda, &size)) {
        return 0;
    }
    if (left(&from) < size || !is_utf8(from.at, size))
        return 0;
    *text = (span){from.at, size};
    r->at = from.at + size;
    return 1;
}

int read_uint(reader *r, uint64_t *number)
{
    if (r->at == r->end)
        return 0;
    int byte = *r->at, size = byte >= 0xcc && byte <= 0xcf ? 1 << (byte - 0xcc) : 0;
    if (byte >= 0x80 && !size)
        return 0;
    if (left(r) <= (size_t)size)
        return 0;
    *number = size ? big_endian(r->at + 1, size) : (uint64_t)byte;
    r->at += 1 + size;
    return 1;
}

int read_int(reader *r, int64_t *number)
{
    uint64_t bits;
    if (r->at == r->end)
        return 0;
    int byte = *r->at, size = byte >= 0xd0 && byte <= 0xd3 ? 1 << (byte - 0xd0) : 0;
    if (byte >= 0xe0) {
        *number = byte - 0x100;
    } else if (!size) {
        if (!read_uint(r, &bits) || bits > INT64_MAX)
            return 0;
        *number = (int64_t)bits;
        return 1;
    } else {
        if (left(r) <= (size_t)size)
            return 0;
        int spare = 64 - 8 * size;
        *number = (int64_t)(big_endian(r->at + 1, size) << spare) >> spare;
    }
    r->at += 1 + size;
    return 1;
}

/* By first byte, from 0xc0: bytes of the number that follows, bytes in addition, and what the
 * number counts. */
enum { NOTHING, BYTES, ITEMS, PAIRS };
static const struct {
    unsigned char number, besides, counts, bad;
} kinds[32] = {
    {0, 0, 0, 0}, {0, 0, 0, 1}, {0, 0, 0, 0}, {0, 0, 0, 0},                 /* nil, -, bool */
    {1, 0, BYTES, 0}, {2, 0, BYTES, 0}, {4, 0, BYTES, 0},                   /* bin */
    {1, 1, BYTES, 0}, {2, 1, BYTES, 0}, {4, 1, BYTES, 0},                   /* ext */
    {0, 4, 0, 0}, {0, 8, 0, 0},                                             /* float */
    {0, 1, 0, 0}, {0, 2, 0, 0}, {0, 4, 0, 0}, {0, 8, 0, 0},                 /* uint */
    {0, 1, 0, 0}, {0, 2, 0, 0}, {0, 4, 0, 0}, {0, 8, 0, 0},                 /* int */
    {0, 2, 0, 0}, {0, 3, 0, 0}, {0, 5, 0, 0}, {0, 9, 0, 0}, {0, 17, 0, 0}, /* fixext */
    {1, 0, BYTES, 0}, {2, 0, BYTES, 0}, {4, 0, BYTES, 0},                   /* str */
    {2, 0, ITEMS, 0}, {4, 0, ITEMS, 0}, {2, 0, PAIRS, 0}, {4, 0, PAIRS, 0}, /* array, map */
};

/* Skip a head and its bytes, and return how many values are inside. 0 if it is incomplete. */
static inline int skip_head(reader *r, uint64_t *inside)
{
    *inside = 0;
    if (r->at == r->end)
        return 0;
    int byte = *r->at++;
    if (byte < 0x80 || byte >= 0xe0)
        return 1;
    size_t bytes = 0;
    if (byte < 0x90) {
        *inside = 2 * (uint64_t)(byte - 0x80);
    } else if (byte < 0xa0) {
        *inside = (uint64_t)(byte - 0x90);
    } else if (byte < 0xc0) {
        bytes = (size_t)(byte - 0xa0);
    } else {
        int kind = byte - 0xc0, size = kinds[kind].number;
        if (kinds[kind].bad || left(r) < (size_t)size)
            return 0;
        uint64_t number = big_endian(r->at, size);
        r->at += size;
        bytes = kinds[kind].besides;
        if (kinds[kind].counts == BYTES)
            bytes += (size_t)number;
        else
            *inside = kinds[kind].counts == PAIRS ? 2 * number : number;
    }
    if (left(r) < bytes)
        return 0;
    r->at += bytes;
    return 1;
}

int skip_value(reader *r)
{
    uint64_t inside, wanted = 1; /* values; each takes at least a byte: no overflow */
    while (wanted--) {
        if (!skip_head(r, &inside))
            return 0;
        wanted += inside;
    }
    return 1;
}

int read_any(reader *r, span *value)
{
    value->at = r->at;
    int well = skip_value(r);
    value->size = (size_t)(r->at - value->at);
    return well;
}

int nests(int byte) { return (byte >= 0x80 && byte <= 0x9f) || (byte >= 0xdc && byte <= 0xdf); }

int measure_value(reader *r, int *levels)
{
    uint64_t above[MOST_COUNTED], inside, wanted = 1;
    int level = 0;
    *levels = 0;
    for (;;) {
        for (; wanted == 0; wanted = above[--level])
            if (level == 0)
                return 1;
        wanted--;
        int goes_down = r->at < r->end && nests(*r->at) && level < MOST_COUNTED;
        if (!skip_head(r, &inside))
            return 0;
        if (goes_down) {
            above[level++] = wanted;
            wanted = 0;
            *levels = level > *levels ? level : *levels;
        }
        wanted += inside; /* Below the last counted level, all values count as one level. */
    }
}

/* measure(packed, at) -> (end, levels): see zkv/nesting.py. */
PyObject *measure(PyObject *module, PyObject *arguments)
{
    Py_buffer packed;
    Py_ssize_t at;
    if (!PyArg_ParseTuple(arguments, "y*n", &packed, &at))
        return NULL;
    const unsigned char *begin = packed.buf;
    if (at < 0 || at > packed.len) {
        PyBuffer_Release(&packed);
        return PyErr_Format(PyExc_ValueError, "the place is outside of the bytes");
    }
    reader r = {begin + at, begin + packed.len};
    int levels;
    Py_ssize_t end = measure_value(&r, &levels) ? r.at - begin : -1;
    PyBuffer_Release(&packed);
    return Py_BuildValue("(ni)", end, levels);
}

/* --- Writing. The buffer must have the capacity ----------------------------------------------- */

unsigned char *write_fixed(unsigned char *to, uint64_t number, int size)
{
    for (int i = size - 1; i >= 0; i--)
        *to++ = (unsigned char)(number >> 8 * i);
    return to;
}

unsigned char *write_uint(unsigned char *to, uint64_t number)
{
    if (number < 0x80)
        return *to = (unsigned char)number, to + 1;
    int power = number <= 0xff ? 0 : number <= 0xffff ? 1 : number <= 0xffffffff ? 2 : 3;
    *to = (unsigned char)(0xcc + power);
    return write_fixed(to + 1, number, 1 << power);
}

unsigned char *write_int(unsigned char *to, int64_t number)
{
    if (number >= 0)
        return write_uint(to, (uint64_t)number);
    if (number >= -32)
        return *to = (unsigned char)number, to + 1;
    int power = number >= INT8_MIN ? 0 : number >= INT16_MIN ? 1 : number >= INT32_MIN ? 2 : 3;
    *to = (unsigned char)(0xd0 + power);
    return write_fixed(to + 1, (uint64_t)number, 1 << power);
}

unsigned char *write_text_head(unsigned char *to, size_t size)
{
    if (size < 32)
        return *to = (unsigned char)(0xa0 + size), to + 1;
    int power = size <= 0xff ? 0 : size <= 0xffff ? 1 : 2;
    *to = (unsigned char)(0xd9 + power);
    return write_fixed(to + 1, size, 1 << power);
}

static unsigned char *write_count(unsigned char *to, size_t count, int small, int wide)
{
    if (count < 16)
        return *to = (unsigned char)(small + count), to + 1;
    int wider = count > 0xffff;
    *to = (unsigned char)(wide + wider);
    return write_fixed(to + 1, count, wider ? 4 : 2);
}

unsigned char *write_array_head(unsigned char *to, size_t count)
{
    return write_count(to, count, 0x90, 0xdc);
}

unsigned char *write_map_head(unsigned char *to, size_t count)
{
    return write_count(to, count, 0x80, 0xde);
}

unsigned char *write_bin_head(unsigned char *to, size_t size)
{
    int power = size <= 0xff ? 0 : size <= 0xffff ? 1 : 2;
    *to = (unsigned char)(0xc4 + power);
    return write_fixed(to + 1, size, 1 << power);
}

unsigned char *write_bytes(unsigned char *to, const void *from, size_t size)
{
    memcpy(to, from, size);
    return to + size;
}
