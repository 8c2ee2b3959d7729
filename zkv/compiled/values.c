/* Requests and replies of the client: see zkv/client/plain.py.
 *
 * Strategy: what is of the usual types is packed and unpacked here, in one pass and without loss.
 * At anything else the whole is given up, by None, and Python does it, which knows all cases and
 * words all errors. So nothing here raises an error because of a value. A dict has as many keys as
 * its map, or it is given up, too.
 *
 * Reading never goes beyond the end, and neither direction recurses deeper than DEEPEST. */

#include "names.h"
#include "store.h"

#include <stdlib.h>

enum { DEEPEST = 64 };

/* --- Packing ---------------------------------------------------------------------------------- */

/* Bytes that grow; `at` is NULL once there was no memory. */
typedef struct {
    unsigned char *at, first[1024];
    size_t used, room;
} buffer;

/* The place of `more` bytes at the end, which then count. NULL if there is no memory. */
static unsigned char *extend(buffer *to, size_t more)
{
    if (more > to->room - to->used) {
        size_t room = 2 * (to->used + more);
        unsigned char *old = to->at == to->first ? NULL : to->at, *at = realloc(old, room);
        if (at == NULL)
            return NULL;
        if (old == NULL)
            memcpy(at, to->first, to->used);
        to->at = at;
        to->room = room;
    }
    unsigned char *place = to->at + to->used;
    to->used += more;
    return place;
}

/* Give back what a head has not taken of MOST_HEAD bytes. */
static int shorten(buffer *to, const unsigned char *end)
{
    to->used = (size_t)(end - to->at);
    return 1;
}

static int put_head(buffer *to, unsigned char *(*write)(unsigned char *, size_t), size_t number)
{
    unsigned char *place = number > UINT32_MAX ? NULL : extend(to, MOST_HEAD);
    return place != NULL && shorten(to, write(place, number));
}

static int put_bytes(buffer *to, const void *from, size_t size)
{
    unsigned char *place = extend(to, size);
    return place != NULL && (memcpy(place, from, size), 1);
}

static int put_text(buffer *to, PyObject *text)
{
    Py_ssize_t size;
    const char *utf8 = PyUnicode_AsUTF8AndSize(text, &size); /* NULL for surrogates */
    return utf8 != NULL && put_head(to, write_text_head, (size_t)size) &&
           put_bytes(to, utf8, (size_t)size);
}

static int put_int(buffer *to, PyObject *number)
{
    int beyond;
    long long small = PyLong_AsLongLongAndOverflow(number, &beyond);
    unsigned char *place = extend(to, MOST_HEAD);
    if (place == NULL || beyond < 0)
        return 0;
    if (!beyond)
        return shorten(to, write_int(place, small));
    unsigned long long large = PyLong_AsUnsignedLongLong(number);
    return !PyErr_Occurred() && shorten(to, write_uint(place, large));
}

static int put_float(buffer *to, PyObject *number)
{
    double value = PyFloat_AsDouble(number);
    uint64_t bits;
    unsigned char *place = extend(to, 9);
    if (place == NULL)
        return 0;
    memcpy(&bits, &value, sizeof bits);
    *place = 0xcb;
    write_fixed(place + 1, bits, 8);
    return 1;
}

/* Pack a value that contains no others. 0 if it is not of such a type. */
static int put_flat(buffer *to, PyObject *value)
{
    PyTypeObject *type = Py_TYPE(value);
    if (type == &PyUnicode_Type)
        return put_text(to, value);
    if (type == &PyBytes_Type)
        return put_head(to, write_bin_head, (size_t)PyBytes_Size(value)) &&
               put_bytes(to, PyBytes_AsString(value), (size_t)PyBytes_Size(value));
    if (type == &PyLong_Type)
        return put_int(to, value);
    if (type == &PyFloat_Type)
        return put_float(to, value);
    if (value == Py_None || type == &PyBool_Type)
        return put_bytes(to, value == Py_None ? "\xc0" : value == Py_True ? "\xc3" : "\xc2", 1);
    return 0;
}

static int put_any(buffer *to, PyObject *value, int level);

static int put_items(buffer *to, PyObject *dict, int level)
{
    Py_ssize_t at = 0;
    PyObject *key, *value;
    while (PyDict_Next(dict, &at, &key, &value)) /* Nothing here runs Python, so it stays. */
        if (!put_flat(to, key) || !put_any(to, value, level))
            return 0;
    return 1;
}

static int put_list(buffer *to, PyObject *list, int level)
{
    Py_ssize_t count = PyList_Size(list);
    if (!put_head(to, write_array_head, (size_t)count))
        return 0;
    for (Py_ssize_t i = 0; i < count; i++)
        if (!put_any(to, PyList_GetItem(list, i), level))
            return 0;
    return 1;
}

static int put_any(buffer *to, PyObject *value, int level)
{
    PyTypeObject *type = Py_TYPE(value);
    if (type != &PyDict_Type && type != &PyList_Type)
        return put_flat(to, value);
    if (level == DEEPEST)
        return 0;
    if (type == &PyList_Type)
        return put_list(to, value, level + 1);
    return put_head(to, write_map_head, (size_t)PyDict_Size(value)) &&
           put_items(to, value, level + 1);
}

/* pack_plain(op, request_id, fields) */
PyObject *pack_plain(PyObject *module, PyObject *const *arguments, Py_ssize_t count)
{
    buffer to = {.at = to.first, .room = sizeof to.first};
    PyObject *packed = NULL;
    if (count != 3 || Py_TYPE(arguments[2]) != &PyDict_Type)
        return PyErr_Format(PyExc_TypeError, "pack_plain(op, request_id, fields)");
    if (put_head(&to, write_map_head, 2 + (size_t)PyDict_Size(arguments[2])) &&
        put_bytes(&to, PACKED_OP, sizeof PACKED_OP - 1) && put_flat(&to, arguments[0]) &&
        put_bytes(&to, PACKED_ID, sizeof PACKED_ID - 1) && put_flat(&to, arguments[1]) &&
        put_items(&to, arguments[2], 1))
        packed = PyBytes_FromStringAndSize((char *)to.at, (Py_ssize_t)to.used);
    if (to.at != to.first)
        free(to.at);
    if (packed != NULL)
        return packed;
    PyErr_Clear();
    Py_RETURN_NONE;
}

/* are_texts(list): True if each is exactly a str. */
PyObject *are_texts(PyObject *module, PyObject *list)
{
    Py_ssize_t count = PyList_Size(list);
    if (count < 0)
        return NULL;
    for (Py_ssize_t i = 0; i < count; i++)
        if (Py_TYPE(PyList_GetItem(list, i)) != &PyUnicode_Type)
            Py_RETURN_FALSE;
    Py_RETURN_TRUE;
}

/* --- Unpacking -------------------------------------------------------------------------------- */

static PyObject *take_text(reader *r, size_t size)
{
    const char *at = (const char *)r->at;
    if ((size_t)(r->end - r->at) < size)
        return NULL;
    r->at += size;
    return PyUnicode_DecodeUTF8(at, (Py_ssize_t)size, NULL);
}

static PyObject *take_bytes(reader *r, size_t size)
{
    const char *at = (const char *)r->at;
    if ((size_t)(r->end - r->at) < size)
        return NULL;
    r->at += size;
    return PyBytes_FromStringAndSize(at, (Py_ssize_t)size);
}

static PyObject *take_float(reader *r, int size)
{
    double value;
    float single;
    if (r->end - r->at < size)
        return NULL;
    uint64_t bits = big_endian(r->at, size);
    uint32_t single_bits = (uint32_t)bits;
    r->at += size;
    if (size == 8) {
        memcpy(&value, &bits, sizeof value);
        return PyFloat_FromDouble(value);
    }
    memcpy(&single, &single_bits, sizeof single);
    return PyFloat_FromDouble(single);
}

static PyObject *take_int(reader *r)
{
    int64_t number;
    uint64_t large;
    reader from = *r;
    if (read_int(r, &number))
        return PyLong_FromLongLong(number);
    *r = from; /* It is above 63 bits, or incomplete. */
    return read_uint(r, &large) ? PyLong_FromUnsignedLongLong(large) : NULL;
}

/* A key of a map; only a value without others may be one. */
static PyObject *take_key(known_keys *known, reader *r);
static PyObject *take_any(known_keys *known, reader *r, int level);

static PyObject *take_list(known_keys *known, reader *r, uint32_t count, int level)
{
    if (level == DEEPEST || (size_t)(r->end - r->at) < count) /* Each takes at least a byte. */
        return NULL;
    PyObject *list = PyList_New((Py_ssize_t)count);
    for (uint32_t i = 0; list != NULL && i < count; i++) {
        PyObject *value = take_any(known, r, level + 1);
        if (value == NULL)
            Py_CLEAR(list);
        else
            PyList_SetItem(list, (Py_ssize_t)i, value);
    }
    return list;
}

/* Read a key and its value into a dict. 0 if that is impossible. */
static int take_pair(known_keys *known, reader *r, PyObject *dict, int level)
{
    PyObject *key = take_key(known, r), *value = NULL;
    int well = key != NULL && (value = take_any(known, r, level + 1)) != NULL &&
               PyDict_SetItem(dict, key, value) == 0;
    Py_XDECREF(key);
    Py_XDECREF(value);
    return well;
}

static PyObject *take_dict(known_keys *known, reader *r, uint32_t count, int level)
{
    if (level == DEEPEST)
        return NULL;
    PyObject *dict = PyDict_New();
    for (uint32_t i = 0; dict != NULL && i < count; i++)
        if (!take_pair(known, r, dict, level))
            Py_CLEAR(dict);
    if (dict != NULL && PyDict_Size(dict) != (Py_ssize_t)count) /* Two keys are equal in Python. */
        Py_CLEAR(dict);
    return dict;
}

static PyObject *take_flat(reader *r)
{
    int byte = *r->at, power;
    if (byte >= 0xa0 && byte <= 0xbf)
        return r->at++, take_text(r, (size_t)(byte - 0xa0));
    if (byte < 0x80 || byte >= 0xe0 || (byte >= 0xcc && byte <= 0xd3))
        return take_int(r);
    r->at++;
    switch (byte) {
    case 0xc0:
        return Py_NewRef(Py_None);
    case 0xc2:
        return Py_NewRef(Py_False);
    case 0xc3:
        return Py_NewRef(Py_True);
    case 0xca:
    case 0xcb:
        return take_float(r, byte == 0xca ? 4 : 8);
    }
    int is_bin = byte >= 0xc4 && byte <= 0xc6;
    if (!is_bin && !(byte >= 0xd9 && byte <= 0xdb))
        return NULL; /* An ext, or 0xc1. */
    power = byte - (is_bin ? 0xc4 : 0xd9);
    if (r->end - r->at < 1 << power)
        return NULL;
    size_t size = (size_t)big_endian(r->at, 1 << power);
    r->at += 1 << power;
    return is_bin ? take_bytes(r, size) : take_text(r, size);
}

static PyObject *take_any(known_keys *known, reader *r, int level)
{
    uint32_t count;
    if (r->at == r->end)
        return NULL;
    if (!nests(*r->at))
        return take_flat(r);
    if (read_map(r, &count))
        return take_dict(known, r, count, level);
    return read_array(r, &count) ? take_list(known, r, count, level) : NULL;
}

static PyObject *take_key(known_keys *known, reader *r)
{
    if (r->at == r->end || nests(*r->at))
        return NULL;
    size_t size = (size_t)*r->at - 0xa0;
    if (size > LONGEST_KEY || size == 0 || (size_t)(r->end - r->at) <= size)
        return take_flat(r);
    const unsigned char *at = r->at + 1;
    known_key *place = &known->keys[(31 * at[0] + 7 * at[size - 1] + at[size / 2] + size) % KNOWN_KEYS];
    if (place->text != NULL && place->size == size && memcmp(place->bytes, at, size) == 0) {
        r->at += 1 + size;
        return Py_NewRef(place->text);
    }
    PyObject *text = take_flat(r);
    if (text == NULL)
        return NULL;
    PyObject *before = place->text;
    place->text = Py_NewRef(text);
    place->size = (unsigned char)size;
    memcpy(place->bytes, at, size);
    Py_XDECREF(before);
    return text;
}

/* unpack_plain(body) */
PyObject *unpack_plain(PyObject *module, PyObject *body)
{
    char *at;
    Py_ssize_t size;
    if (PyBytes_AsStringAndSize(body, &at, &size) < 0)
        return NULL;
    reader r = {(unsigned char *)at, (unsigned char *)at + size};
    PyObject *value = take_any(PyModule_GetState(module), &r, 0);
    if (value != NULL && r.at == r.end)
        return value;
    Py_XDECREF(value);
    PyErr_Clear();
    Py_RETURN_NONE;
}

void known_keys_end(void *module)
{
    known_keys *known = PyModule_GetState(module);
    for (int i = 0; known != NULL && i < KNOWN_KEYS; i++)
        Py_CLEAR(known->keys[i].text);
}
