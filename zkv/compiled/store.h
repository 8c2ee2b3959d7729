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

/* The state of one key. Never changed, only replaced. */
typedef struct {
    int64_t rev;
    uint32_t value_size;
    /* At most three refer to it: the table, and of `replacement` one `now` and one `before`. */
    uint32_t key_size : 24, expiring : 1, refs : 7;
    unsigned char bytes[]; /* the key, the value, then, if `expiring`, when: an int64 */
} record;

static inline const unsigned char *record_value(const record *r) { return r->bytes + r->key_size; }

/* Unix time in ms; 0 = never. */
static inline int64_t record_expires(const record *r)
{
    int64_t expires = 0;
    if (r->expiring)
        memcpy(&expires, record_value(r) + r->value_size, sizeof expires);
    return expires;
}

/* Where the table keeps the record of a key. Its number stays the same until the key is removed:
 * chains and the ordered index use it instead of a pointer, of half the size, and a record is
 * replaced without changing them. */
typedef struct {
    record *at;    /* NULL = free */
    uint32_t next; /* in the chain of the bucket, or of the free slots; 0 = none */
    uint32_t hash;
} slot;

enum { SLOT_BITS = 12, SLOTS = 1 << SLOT_BITS }; /* slots are allocated so many at a time */

typedef struct {
    uint32_t *buckets; /* the first slot of each chain; 0 = none */
    size_t mask;       /* number of buckets, a power of two, minus 1 */
} array;

/* --- The ordered index of a table: index.c ---------------------------------------------------- */

enum { LEAF_SLOTS = 512 };

/* Some slots that follow each other in the order of their keys. */
typedef struct {
    uint32_t *slots;
    unsigned char *low; /* no key here is lower, and all before are; the first leaf has none */
    uint32_t low_size, count;
} leaf;

typedef struct {
    leaf *leaves;
    size_t count, room; /* 0 leaves = not built; none is empty unless it is the only one */
} ordered;

/* A key's place; that behind the last key is behind the last slot of the last leaf. */
typedef struct {
    size_t leaf;
    uint32_t place;
} position;

/* --- Bytes of the entries under some prefixes: counts.c --------------------------------------- */

/* A prefix, and the bytes of the keys and values of the entries whose keys begin with it. */
typedef struct counted {
    unsigned char *at;
    uint32_t size;
    int complete;           /* all of them are counted */
    struct counted *around; /* the longest other prefix that this one begins with */
    size_t bytes;
} counted;

typedef struct {
    counted *prefixes; /* in order */
    size_t count;
    size_t walk; /* the one whose entries are being counted; `count` = none */
    unsigned char *reached; /* its keys before this one are counted */
    size_t reached_size;    /* 0 = none is */
} counts;

/* The records that a run has replaced, in order to undo it. */
typedef struct {
    record *now, *before; /* the new record; the replaced one, NULL = none */
} replacement;

/* Replacements that need no undo any more, but of which the records are still to be released. */
typedef struct dropped {
    struct dropped *next;
    replacement *pairs;
    size_t count;
} dropped;

/* A hash table with chaining that grows in small steps, as in Redis. While it grows, the slots in
 * the buckets of `old` before `moved` have been moved to `now`, and each write moves some more. */
typedef struct {
    PyObject_HEAD
    array now, old;
    size_t moved;
    size_t count;
    size_t key_bytes, value_bytes; /* of all records that are in the table */
    counts counts;
    slot **chunks; /* behind the slots of each are, if `clocked`, as many clocks */
    uint32_t used, free; /* the first slot that was never used; the first free one, 0 = none */
    uint32_t time;       /* what clocks show: runs of lanes, and calls of Python; wraps around */
    int clocked;
    uint64_t chance; /* the state of random numbers */
    ordered index;
    uint64_t seed[2]; /* random, so that clients cannot choose keys that share a bucket */
    PyObject *entry_type;
    const struct run *long_run; /* one that lets others run between its slices: see long.c */
    dropped *dropped;
} Table;

/* What an entry takes beside its key and value, and a commit beside its payload: ENTRY_BYTES and
 * COMMIT_BYTES in zkv/keyspace. */
enum { ENTRY_BYTES = 56, COMMIT_BYTES = 48 };

static inline int64_t table_bytes(const Table *self)
{
    return (int64_t)(self->key_bytes + self->value_bytes + self->count * ENTRY_BYTES);
}

static inline slot *table_slot(const Table *self, uint32_t number)
{
    return &self->chunks[number >> SLOT_BITS][number & (SLOTS - 1)];
}

/* When the key of a slot was last used. Only if the table is `clocked`. */
static inline uint32_t *table_clock(const Table *self, uint32_t number)
{
    return (uint32_t *)(self->chunks[number >> SLOT_BITS] + SLOTS) + (number & (SLOTS - 1));
}

extern PyType_Spec table_spec;

uint32_t table_hash(const Table *, const unsigned char *key, size_t size);
uint32_t *table_bucket(const Table *, uint32_t hash);
record *table_find(const Table *, uint32_t hash, const unsigned char *key, size_t size);
/* The same for who uses the entry: its clock shows that. */
record *table_use(const Table *, uint32_t hash, const unsigned char *key, size_t size);
void table_fetch(const Table *, uint32_t hash); /* prefetch its memory */
/* Takes the reference, and passes on that of the replaced record, or NULL. 0 if there is no memory
 * for a new key; then nothing has changed. */
int table_put(Table *, uint32_t hash, record *, record **before);
record *table_remove(Table *, uint32_t hash, const unsigned char *key, size_t size);
record *record_new(const unsigned char *key, size_t key_size, const unsigned char *value,
                   size_t value_size, int64_t rev, int64_t expires);
void record_release(record *);
PyObject *record_entry(const Table *, const record *); /* as a StoredEntry; None for NULL */
PyObject *record_key(const record *);                  /* as a str */
/* Read the arguments `low, high, low_included` of a Range: the positions of its first key and
 * behind its last. 0 with an exception. */
int table_range(Table *, PyObject *range, position *first, position *end);

/* Build the index, unless it is there. All below needs it. 0 if there is no memory. */
int index_build(Table *);
void index_end(ordered *);
int index_insert(Table *, uint32_t number); /* a slot with a new key; 0 likewise */
void index_remove(Table *, const unsigned char *key, size_t size);
/* The first position of a key that is not lower; if `after`, of one that is higher. */
position index_seek(const Table *, const unsigned char *key, size_t size, int after);
position index_last(const Table *);                      /* behind the last key */
uint32_t index_next(const Table *, position *);          /* the slot there; then steps on */
uint32_t index_previous(const Table *, position *);      /* steps back; the slot there */
size_t index_rank(const Table *, const position *);      /* the number of keys before */
int is_before(const position *, const position *);
/* Less than 0, 0 or more, as the first key is before the second, equal to it, or after it. */
int compare_keys(const unsigned char *first, size_t first_size, const unsigned char *second,
                 size_t second_size);

/* Count that a key has so many bytes more; a negative number has wrapped around. */
void counts_add(Table *, const unsigned char *key, size_t size, size_t bytes);
void counts_end(counts *);
/* The bytes under a prefix; -1 if they are not counted, or not all yet. */
int64_t bytes_under(const Table *, const unsigned char *prefix, size_t size);
PyObject *table_count_bytes(Table *, PyObject *prefixes);
PyObject *table_count_more(Table *, PyObject *most);
PyObject *table_bytes_under(Table *, PyObject *prefixes);

/* --- Which entries to evict: evict.c ---------------------------------------------------------- */

PyObject *table_keep_clocks(Table *, PyObject *unused);
PyObject *table_pick(Table *, PyObject *arguments);

typedef struct {
    PyObject_HEAD
    Table *table;
    replacement *pairs;
    size_t count, room;
    int of_long_run;
} Replaced;

extern PyType_Spec replaced_spec;
extern PyTypeObject *replaced_type;

Replaced *replaced_new(Table *);
int replaced_reserve(Replaced *, size_t more); /* 0 if there is no memory */
int release_dropped(Table *, size_t most); /* at most so many; 0 if none is left */

/* Append an object to a list; releases it. 0, with an exception, if it is NULL or memory ends. */
int list_append(PyObject *list, PyObject *item);

/* --- Memory for records: pool.c --------------------------------------------------------------- */

void *pool_take(size_t size); /* NULL if there is no memory */
void pool_give(void *, size_t size); /* the size with which it was taken */

/* --- msgpack: msgpack.c ----------------------------------------------------------------------- */

typedef struct {
    const unsigned char *at, *end;
} reader;

typedef struct {
    const unsigned char *at;
    size_t size;
} span;

/* A number of so many bytes without a head. */
static inline uint64_t big_endian(const unsigned char *from, int size)
{
    uint64_t number = 0;
    for (int i = 0; i < size; i++)
        number = number << 8 | from[i];
    return number;
}

int read_map(reader *, uint32_t *count);   /* 0 if there is none; likewise below */
int read_array(reader *, uint32_t *count);
int read_text(reader *, span *);           /* a str that is UTF-8 */
int skip_value(reader *);                  /* one value of any type */
int read_any(reader *, span *);            /* likewise, with its head */
int measure_value(reader *, int *levels);  /* likewise; counts its levels up to MOST_COUNTED */
int read_uint(reader *, uint64_t *number); /* an int >= 0 */
int read_int(reader *, int64_t *number);   /* an int64 */

unsigned char *write_uint(unsigned char *to, uint64_t number); /* returns the end; likewise below */
unsigned char *write_int(unsigned char *to, int64_t number);
unsigned char *write_text_head(unsigned char *to, size_t size);
unsigned char *write_array_head(unsigned char *to, size_t count);
unsigned char *write_map_head(unsigned char *to, size_t count);
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

/* The sum of the digests of some messages. Begins with zeros. Short ones wait until there are
 * enough of them. */
enum { DIGEST_BYTES = 8, SIDE_BY_SIDE = 4 };
typedef struct {
    uint64_t total, words[SIDE_BY_SIDE][16];
    size_t count, sizes[SIDE_BY_SIDE];
} sum;

void sum_add(sum *, const span *parts, int count); /* a message, in parts */
uint64_t sum_end(const sum *);

PyObject *py_siphash13(PyObject *module, PyObject *arguments);
PyObject *py_crc32(PyObject *module, PyObject *arguments);
PyObject *py_blake2b(PyObject *module, PyObject *arguments);
PyObject *py_blake2b_sum(PyObject *module, PyObject *messages);

/* --- Histograms: zkv/figures.py ---------------------------------------------------------------- */

enum { STEPS = 64 };

static inline int bits_of(uint64_t number) { return number ? 64 - __builtin_clzll(number) : 0; }

/* The bucket of a time in seconds: the number of bits of its microseconds. */
static inline int step_of(double seconds)
{
    return bits_of(seconds > 0 ? (uint64_t)(seconds * 1e6) : 0);
}

/* --- The log's frames: frames.c --------------------------------------------------------------- */

enum { FRAME_HEAD = 16 }; /* bytes: size, checksum, and the place up to which the file is on disk */

/* The head of a payload's frame; returns its end. Others must keep the payload meanwhile. */
unsigned char *write_frame_head(unsigned char *to, PyObject *payload, uint64_t synced,
                                uint32_t salt);
PyObject *pack_frames(PyObject *module, PyObject *arguments);

/* --- Reading files: replay.c ------------------------------------------------------------------ */

PyObject *unpack_frames(PyObject *module, PyObject *arguments);
PyObject *py_replay(PyObject *module, PyObject *arguments);
PyObject *load_entries(PyObject *module, PyObject *arguments);

/* --- The client's values: values.c ------------------------------------------------------------ */

PyObject *pack_plain(PyObject *module, PyObject *const *arguments, Py_ssize_t count);
PyObject *unpack_plain(PyObject *module, PyObject *body);
PyObject *are_texts(PyObject *module, PyObject *list);

/* The state of the module: short texts that were keys of maps, by their bytes, since the same few
 * come again and again. */
enum { KNOWN_KEYS = 256, LONGEST_KEY = 24 };
typedef struct {
    PyObject *text;
    unsigned char size, bytes[LONGEST_KEY];
} known_key;
typedef struct {
    known_key keys[KNOWN_KEYS];
} known_keys;

void known_keys_end(void *module);

/* --- Requests: lane.c, and see lane.h --------------------------------------------------------- */

extern PyType_Spec lane_spec, batch_spec, latencies_spec, prefixes_spec, turn_spec;
extern PyTypeObject *batch_type, *prefixes_type, *lane_type, *latencies_type;
extern PyTypeObject *run_type; /* of the results of Lane.run */
PyTypeObject *new_run_type(void);

#endif
