/* Reads the body of a request, or finds that it is not one for the lane.
 *
 * Strategy: a body is read once, and checked on the way. A field that is unknown here, occurs
 * twice, or has an unusual type or size ends the reading. */

#include "lane.h"

#include <stdlib.h>

static const uint64_t MOST_SEQ = 1ULL << 62;

#define NUMBER_OF_FIELD(field, name) NUMBER_##field,
enum { LANE_FIELDS(NUMBER_OF_FIELD) };
#define BIT_OF_FIELD(field, name) field = 1 << NUMBER_##field,
enum field { LANE_FIELDS(BIT_OF_FIELD) };
enum {
    OF_A_STEP = FIELD_OP | FIELD_KEY | FIELD_VALUE | FIELD_BY,
    ONCE = FIELD_SESSION | FIELD_SEQ,
};

#define NAME(text) text, sizeof text - 1

/* The ops, and which fields each must have, and which it may have in addition. */
static const struct {
    const char *name;
    size_t size;
    unsigned must, may;
} ops[OPS] = {
    [NONE] = {NAME(""), 0, 0},
#define RULES_OF_OP(op, name, must, may) [op] = {NAME(name), must, may},
    LANE_OPS(RULES_OF_OP)
};

const char *op_name(enum op op) { return ops[op].name; }

static int is(const span *text, const char *what, size_t size)
{
    return text->size == size && memcmp(text->at, what, size) == 0;
}

/* A chain of comparisons, since memcmp with a constant size compiles to no call. */
static unsigned to_field(const span *name)
{
#define IF_FIELD(field, known) \
    if (is(name, NAME(known))) \
        return field;
    LANE_FIELDS(IF_FIELD)
    return 0;
}

static enum op to_op(const span *name)
{
    for (int op = GET; op < OPS; op++)
        if (is(name, ops[op].name, ops[op].size))
            return (enum op)op;
    return NONE;
}

/* --- Fields. 0 if the field is not one for the lane; likewise for all below ------------------- */

static int read_op(reader *r, enum op *op)
{
    span name;
    return read_text(r, &name) && (*op = to_op(&name)) != NONE;
}

static int read_key(const Lane *self, reader *r, step *to)
{
    span *key = &to->key;
    if (!read_text(r, key) || key->size == 0 || key->at[0] == 0 ||
        key->size > (size_t)self->max_key)
        return 0;
    to->hash = table_hash(self->table, key->at, key->size);
    if (self->rest == NULL) /* A worker reads without Python's lock, which the table needs. */
        __builtin_prefetch(table_bucket(self->table, to->hash));
    return 1;
}

/* 1 if a value does not nest too deeply. */
static int is_shallow(const Lane *self, const span *value)
{
    int levels;
    reader r = {value->at, value->at + value->size};
    if (value->size <= (size_t)self->max_levels || !nests(*value->at)) /* A level takes a byte. */
        return 1;
    return measure_value(&r, &levels) && levels <= self->max_levels;
}

static int read_value(const Lane *self, reader *r, span *value)
{
    return read_any(r, value) && value->size <= (size_t)self->max_value &&
           is_shallow(self, value);
}

static int read_id(reader *r, span *id)
{
    span text;
    const unsigned char *from = r->at;
    if (from == r->end)
        return 0;
    int first = *from;
    int number = first < 0x80 || first >= 0xe0 || (first >= 0xcc && first <= 0xd3);
    if (number ? !skip_value(r) : !read_text(r, &text))
        return 0;
    *id = (span){from, (size_t)(r->at - from)};
    return 1;
}

static int read_session(reader *r, span *session)
{
    return read_text(r, session) && session->size > 0 && session->size <= MAX_SESSION_BYTES;
}

static int read_trace(reader *r, span *trace)
{
    return read_text(r, trace) && trace->size > 0 && trace->size <= MAX_TRACE_BYTES;
}

static int read_bool(reader *r, int *to)
{
    if (r->at == r->end || (*r->at & 0xfe) != 0xc2)
        return 0;
    *to = *r->at++ & 1;
    return 1;
}

static int read_seq(reader *r, uint64_t *seq)
{
    return read_uint(r, seq) && *seq > 0 && *seq <= MOST_SEQ;
}

static int read_field_of_step(const Lane *self, reader *r, enum field field, step *to)
{
    return field == FIELD_OP    ? read_op(r, &to->op)
           : field == FIELD_KEY ? read_key(self, r, to)
           : field == FIELD_BY  ? read_int(r, &to->number)
                          : read_value(self, r, &to->value);
}

/* --- Requests, and the ops of a TXN ----------------------------------------------------------- */

/* 1 if an op has all fields that it must have, and no others than it may have. */
static int fits(enum op op, unsigned seen)
{
    unsigned once = seen & ONCE;
    return (seen & ops[op].must) == ops[op].must && !(seen & ~(ops[op].must | ops[op].may)) &&
           (once == 0 || once == ONCE);
}

static int read_field_of_request(Lane *, reader *, enum field, request *);

/* Read the fields of a request, or, if `whole` is NULL, those of an op in a TXN. */
static int read_fields(Lane *self, reader *r, step *to, request *whole)
{
    uint32_t count;
    unsigned seen = 0;
    if (!read_map(r, &count))
        return 0;
    while (count--) {
        span name;
        unsigned field = read_text(r, &name) ? to_field(&name) : 0;
        if (!field || seen & field)
            return 0;
        seen |= field;
        if (field & OF_A_STEP ? !read_field_of_step(self, r, (enum field)field, to)
                              : whole == NULL ||
                                    !read_field_of_request(self, r, (enum field)field, whole))
            return 0;
    }
    return to->op != NONE && fits(to->op, seen);
}

static int read_condition(const Lane *self, reader *r, step *to)
{
    uint32_t size;
    return read_array(r, &size) && size == 2 && read_key(self, r, to) &&
           read_int(r, &to->number) && to->number >= 0;
}

static int read_step(Lane *self, reader *r, enum field list, step *to)
{
    to->op = list == FIELD_KEYS ? GET : list == FIELD_ITEMS ? PUT : NONE;
    to->number = 1; /* The default of `by`. */
    switch (list) {
    case FIELD_KEYS:
        return read_key(self, r, to);
    case FIELD_ITEMS:
        return read_key(self, r, to) && read_value(self, r, &to->value);
    case FIELD_IF:
        return read_condition(self, r, to);
    default:
        return read_fields(self, r, to, NULL);
    }
}

static int reserve(step_list *self, size_t count)
{
    if (count <= self->count)
        return 1;
    step *at = realloc(self->at, count * sizeof *at);
    if (at == NULL)
        return 0;
    *self = (step_list){at, count};
    return 1;
}

static int read_list(Lane *self, reader *r, enum field list, step_list *room, step_list *to)
{
    uint32_t count;
    if (!(list == FIELD_ITEMS ? read_map(r, &count) : read_array(r, &count)) ||
        (count == 0 && list != FIELD_IF) || count > (size_t)self->max_batch ||
        !reserve(room, count))
        return 0;
    *to = (step_list){room->at, count};
    for (uint32_t i = 0; i < count; i++)
        if (!read_step(self, r, list, &to->at[i]))
            return 0;
    return 1;
}

static int read_field_of_request(Lane *self, reader *r, enum field field, request *to)
{
    return field == FIELD_ID        ? read_id(r, &to->id)
           : field == FIELD_SESSION ? read_session(r, &to->session)
           : field == FIELD_SEQ     ? read_seq(r, &to->seq)
           : field == FIELD_TIMING  ? read_bool(r, &to->timing)
           : field == FIELD_TRACE   ? read_trace(r, &to->trace)
           : field == FIELD_IF      ? read_list(self, r, field, &self->conditions, &to->conditions)
                              : read_list(self, r, field, &self->steps, &to->steps);
}

int read_request(Lane *self, const unsigned char *body, size_t size, request *to)
{
    reader r = {body, body + size};
    *to = (request){.steps = {&to->one, 1}, .one = {.number = 1}};
    if (!read_fields(self, &r, &to->one, to) || r.at < r.end)
        return 0;
    to->op = to->one.op;
    return 1;
}

/* --- The digest of a request: see zkv/keyspace/change.py -------------------------------------- */

static void hash_text(hasher *h, const span *text)
{
    unsigned char head[MOST_HEAD];
    hash_add(h, head, (size_t)(write_text_head(head, text->size) - head));
    hash_add(h, text->at, text->size);
}

#define HASH(h, literal) hash_add(h, literal, sizeof literal - 1)

static void hash_int(hasher *h, int64_t number)
{
    unsigned char packed[MOST_HEAD];
    hash_add(h, packed, (size_t)(write_int(packed, number) - packed));
}

static void hash_array_head(hasher *h, size_t count)
{
    unsigned char head[MOST_HEAD];
    hash_add(h, head, (size_t)(write_array_head(head, count) - head));
}

/* Hash a step as msgspec packs it: without fields that have their default value. */
static void hash_step(hasher *h, const step *of)
{
    switch (of->op) {
    case GET:
        HASH(h, "\x82" PACKED_OP "\xa3GET" PACKED_KEY);
        hash_text(h, &of->key);
        break;
    case PUT:
        HASH(h, "\x83" PACKED_OP "\xa3PUT" PACKED_KEY);
        hash_text(h, &of->key);
        HASH(h, PACKED_VALUE);
        hash_add(h, of->value.at, of->value.size);
        break;
    default:
        hash_add(h, of->number == 1 ? "\x82" : "\x83", 1);
        HASH(h, PACKED_OP "\xa4INCR" PACKED_KEY);
        hash_text(h, &of->key);
        if (of->number != 1) {
            HASH(h, PACKED_BY);
            hash_int(h, of->number);
        }
    }
}

static void hash_conditions(hasher *h, const step_list *conditions)
{
    HASH(h, PACKED_IF);
    hash_array_head(h, conditions->count);
    for (size_t i = 0; i < conditions->count; i++) {
        HASH(h, "\x92");
        hash_text(h, &conditions->at[i].key);
        hash_int(h, conditions->at[i].number);
    }
}

static void hash_txn(hasher *h, const request *from)
{
    hash_add(h, from->conditions.count ? "\x83" : "\x82", 1);
    HASH(h, PACKED_OP "\xa3TXN");
    if (from->conditions.count)
        hash_conditions(h, &from->conditions);
    HASH(h, PACKED_OPS);
    hash_array_head(h, from->steps.count);
    for (size_t i = 0; i < from->steps.count; i++)
        hash_step(h, &from->steps.at[i]);
}

static uint64_t packed_digest(const request *from)
{
    hasher h;
    hash_begin(&h, DIGEST_BYTES);
    if (from->op == TXN)
        hash_txn(&h, from);
    else
        hash_step(&h, from->steps.at);
    return hash_end(&h);
}

/* The digest of a PUT or an MPUT. It does not depend on the order of the items. */
static uint64_t puts_digest(const request *from)
{
    sum of = {.total = 0};
    for (size_t i = 0; i < from->steps.count; i++) {
        const step *each = &from->steps.at[i];
        unsigned char head[MOST_HEAD];
        size_t head_size = (size_t)(write_text_head(head, each->key.size) - head);
        sum_add(&of,
                (span[]){{(const unsigned char *)ops[from->op].name, ops[from->op].size},
                         {head, head_size}, each->key, each->value},
                4);
    }
    return sum_end(&of);
}

uint64_t to_digest(const request *from)
{
    return from->op == PUT || from->op == MPUT ? puts_digest(from) : packed_digest(from);
}
