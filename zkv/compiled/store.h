/* Declarations that all files of the compiled store share: records, their table, msgpack.
 *
 * zkv/compiled/__init__.py says what it is for, and how it is tested and measured. */

#ifndef ZKV_STORE_H
#define ZKV_STORE_H

/* One binary for Python 3.11 and all newer versions, whichever of them builds it. Formats of
 * PyArg_ParseTuple must not contain '#': if headers from 3.13 on were used, older Pythons refuse
 * it. */
#define Py_LIMITED_API 0x030B0000
#include <Python.h>

#include <stdint.h>
#include <string.h>

/* --- Records and their table: table.c --------------------------------------------------------- */

/* The state of one key. Never changed, only replaced, except for `next`, which the table uses. */
typedef struct record {
    struct record *next; /* in the chain of the bucket */
    int64_t rev;
    int64_t expires; /* Unix time in ms; 0 = never */
    uint32_t hash, refs;
    uint32_t key_size, value_size;
    unsigned char bytes[]; /* the key, then the value */
} record;

static inline const unsigned char *record_value(const record *r) { return r->bytes + r->key_size; }

typedef struct {
    record **buckets;
    size_t mask; /* number of buckets, a power of two, minus 1 */
} array;

/* A hash table with chaining that grows in small steps, as in Redis. While it grows, the records in
 * the buckets of `old` before `moved` have been moved to `now`, and each write moves some more. */
typedef struct {
    PyObject_HEAD
    array now, old;
    size_t moved;
    size_t count;
    uint64_t seed[2]; /* random, so that clients cannot choose keys that share a bucket */
    PyObject *entry_type;
} Table;

extern PyType_Spec table_spec;

uint32_t table_hash(const Table *, const unsigned char *key, size_t size);
record **table_bucket(const Table *, uint32_t hash);
record *table_find(const Table *, uint32_t hash, const unsigned char *key, size_t size);
void table_fetch(const Table *, uint32_t hash); /* prefetch its memory */
record *table_put(Table *, record *); /* takes the reference; returns the replaced record's */
record *table_remove(Table *, uint32_t hash, const unsigned char *key, size_t size);
record *record_new(uint32_t hash, const unsigned char *key, size_t key_size,
                   const unsigned char *value, size_t value_size, int64_t rev);
void record_release(record *);
PyObject *record_entry(const Table *, const record *); /* as a StoredEntry; None for NULL */

/* The records that a run has replaced, in order to undo it. */
typedef struct {
    record *now, *before; /* the new record; the replaced one, NULL = none */
} replacement;

typedef struct {
    PyObject_HEAD
    Table *table;
    replacement *pairs;
    size_t count, room;
} Replaced;

extern PyType_Spec replaced_spec;
extern PyTypeObject *replaced_type;

Replaced *replaced_new(Table *);
int replaced_reserve(Replaced *, size_t more); /* 0 if there is no memory */

/* --- msgpack: msgpack.c ----------------------------------------------------------------------- */

typedef struct {
    const unsigned char *at, *end;
} reader;

typedef struct {
    const unsigned char *at;
    size_t size;
} span;

int read_map(reader *, uint32_t *count);   /* 0 if there is none; likewise below */
int read_array(reader *, uint32_t *count);
int read_text(reader *, span *);           /* a str that is UTF-8 */
int skip_value(reader *);                  /* one value of any type */
int measure_value(reader *, int *levels);  /* likewise; counts its levels up to MOST_COUNTED */
int read_uint(reader *, uint64_t *number); /* an int >= 0 */
int read_int(reader *, int64_t *number);   /* an int64 */

unsigned char *write_uint(unsigned char *to, uint64_t number); /* returns the end; likewise below */
unsigned char *write_int(unsigned char *to, int64_t number);
unsigned char *write_text_head(unsigned char *to, size_t size);
unsigned char *write_array_head(unsigned char *to, size_t count);
unsigned char *write_bin_head(unsigned char *to, size_t size);
unsigned char *write_bytes(unsigned char *to, const void *from, size_t size);
unsigned char *write_fixed(unsigned char *to, uint64_t number, int size); /* big-endian, no head */

enum { MOST_HEAD = 9 }; /* bytes of the largest head or int */
enum { MOST_COUNTED = 504 }; /* levels: one more than any request may have */

int nests(int byte); /* 1 if an array or a map begins with it */
PyObject *measure(PyObject *module, PyObject *arguments);

/* --- Hashes and checksums, each in the file of its name, and their functions for tests -------- */

uint64_t siphash13(const uint64_t seed[2], const unsigned char *from, size_t size);
uint32_t crc32(uint32_t crc, const unsigned char *from, size_t size); /* as in zlib */

/* BLAKE2b, incrementally. */
typedef struct {
    uint64_t h[8], total;
    size_t held;
    unsigned char block[128];
} hasher;

void hash_begin(hasher *, size_t digest_size);
void hash_add(hasher *, const void *from, size_t size);
uint64_t hash_end(hasher *); /* the first 8 bytes of the digest, little-endian */

PyObject *py_siphash13(PyObject *module, PyObject *arguments);
PyObject *py_crc32(PyObject *module, PyObject *arguments);
PyObject *py_blake2b(PyObject *module, PyObject *arguments);

/* --- The log's frames: frames.c --------------------------------------------------------------- */

PyObject *pack_frames(PyObject *module, PyObject *arguments);

/* --- Requests: lane.c, and see lane.h --------------------------------------------------------- */

extern PyType_Spec lane_spec, batch_spec;
extern PyTypeObject *batch_type;
extern PyTypeObject *run_type; /* of the results of Lane.run */
PyTypeObject *new_run_type(void);

#endif
