/* From the body of a request to what it asks for, or that it is none for the lane.
 *
 * Strategy: a body is read once, and checked on the way. A field that is unknown here, or there
 * twice, or has an odd type or size, ends that. */

#include "lane.h"

#include <stdlib.h>

enum { MOST_SESSION = 64 }; /* bytes */
static const uint64_t MOST_SEQ = 1ULL << 62;

enum field {
    OP = 1, KEY = 2, VALUE = 4, BY = 8, /* of a step */
    ID = 16, SESSION = 32, SEQ = 64, KEYS = 128, ITEMS = 256,
};
enum { OF_A_STEP = OP | KEY | VALUE | BY, ONCE = SESSION | SEQ };

#define NAME(text) text, sizeof text - 1

static const struct {
    const char *name;
    size_t size;
    enum field field;
} fields[] = {
    {NAME("op"), OP}, {NAME("key"), KEY}, {NAME("value"), VALUE}, {NAME("by"), BY},
    {NAME("id"), ID}, {NAME("session"), SESSION}, {NAME("seq"), SEQ}, {NAME("keys"), KEYS},
    {NAME("items"), ITEMS},
};

/* Each op, which fields it must have, and which it may have besides. */
static const struct {
    const char *name;
    size_t size;
    unsigned must, may;
} ops[OPS] = {
    [NONE] = {NAME(""), 0, 0},
    [GET] = {NAME("GET"), OP | KEY, ID},
    [PUT] = {NAME("PUT"), OP | KEY | VALUE, ID | ONCE},
    [INCR] = {NAME("INCR"), OP | KEY, BY | ID | ONCE},
    [MGET] = {NAME("MGET"), OP | KEYS, ID},
    [MPUT] = {NAME("MPUT"), OP | ITEMS, ID | ONCE},
};

const char *op_name(enum op op) { return ops[op].name; }

/* By size and first byte most are told apart without a call. */
static int is(const span *text, const char *what, size_t size)
{
    return text->size == size && *text->at == (unsigned char)*what &&
           memcmp(text->at, what, size) == 0;
}

static unsigned to_field(const span *name)
{
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++)
        if (is(name, fields[i].name, fields[i].size))
            return fields[i].field;
    return 0;
}

static enum op to_op(const span *name)
{
    for (int op = GET; op < OPS; op++)
        if (is(name, ops[op].name, ops[op].size))
            return (enum op)op;
    return NONE;
}

/* --- Fields. Whether there is a good one; so for all below ---------------------------------------- */

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
    __builtin_prefetch(table_bucket(self->table, to->hash));
    return 1;
}

static int read_value(const Lane *self, reader *r, span *value)
{
    value->at = r->at;
    if (!skip_value(r))
        return 0;
    value->size = (size_t)(r->at - value->at);
    int first = *value->at;
    int nests = (first >= 0x80 && first <= 0x9f) || (first >= 0xdc && first <= 0xdf);
    size_t most = (size_t)(nests ? self->shallow : self->max_value);
    return value->size <= most && value->size <= (size_t)self->max_value;
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
    return read_text(r, session) && session->size > 0 && session->size <= MOST_SESSION;
}

static int read_seq(reader *r, uint64_t *seq)
{
    return read_uint(r, seq) && *seq > 0 && *seq <= MOST_SEQ;
}

static int read_field_of_step(const Lane *self, reader *r, enum field field, step *to)
{
    return field == OP    ? read_op(r, &to->op)
           : field == KEY ? read_key(self, r, to)
           : field == BY  ? read_int(r, &to->by)
                          : read_value(self, r, &to->value);
}

/* --- Lists ---------------------------------------------------------------------------------------- */

static int reserve_steps(Lane *self, size_t count)
{
    if (count <= self->room)
        return 1;
    step *steps = realloc(self->steps, count * sizeof *steps);
    if (steps == NULL)
        return 0;
    self->steps = steps;
    self->room = count;
    return 1;
}

static int read_steps(Lane *self, reader *r, enum field field, request *to)
{
    uint32_t count;
    if (!(field == ITEMS ? read_map(r, &count) : read_array(r, &count)) || count == 0 ||
        count > (size_t)self->max_batch || !reserve_steps(self, count))
        return 0;
    to->steps = self->steps;
    to->count = count;
    for (uint32_t i = 0; i < count; i++) {
        step *each = &to->steps[i];
        *each = (step){.op = field == KEYS ? GET : PUT};
        if (!read_key(self, r, each) || (field == ITEMS && !read_value(self, r, &each->value)))
            return 0;
    }
    return 1;
}

/* --- Requests ------------------------------------------------------------------------------------- */

static int read_field(Lane *self, reader *r, enum field field, request *to)
{
    return field & OF_A_STEP  ? read_field_of_step(self, r, field, &to->one)
           : field == ID      ? read_id(r, &to->id)
           : field == SESSION ? read_session(r, &to->session)
           : field == SEQ     ? read_seq(r, &to->seq)
                              : read_steps(self, r, field, to);
}

/* Whether an op has what it must have, and nothing else than what it may have. */
static int fits(enum op op, unsigned seen)
{
    unsigned once = seen & ONCE;
    return (seen & ops[op].must) == ops[op].must && !(seen & ~(ops[op].must | ops[op].may)) &&
           (once == 0 || once == ONCE);
}

int read_request(Lane *self, const unsigned char *body, size_t size, request *to)
{
    reader r = {body, body + size};
    uint32_t count;
    unsigned seen = 0;
    *to = (request){.steps = &to->one, .count = 1, .one = {.by = 1}};
    if (!read_map(&r, &count))
        return 0;
    while (count--) {
        span name;
        unsigned field = read_text(&r, &name) ? to_field(&name) : 0;
        if (!field || seen & field || !read_field(self, &r, (enum field)field, to))
            return 0;
        seen |= field;
    }
    to->op = to->one.op;
    return to->op != NONE && fits(to->op, seen) && r.at == r.end;
}

/* --- What tells two requests of one session apart: `digest` in zkv/protocol/codec.py --------------- */

static void hash_text(hasher *h, const span *text)
{
    unsigned char head[MOST_HEAD];
    hash_add(h, head, (size_t)(write_text_head(head, text->size) - head));
    hash_add(h, text->at, text->size);
}

/* What comes of a field that was left out. */
#define LEFT_OUT                                                                                    \
    "\xa2id\xc0\xa7session\xc0\xa3seq\xc0\xa8" "deadline\xc0\xa7" "durable\xc2"

#define HASH(h, literal) hash_add(h, literal, sizeof literal - 1)

/* A step as msgspec packs it, with all fields that there are. */
static void hash_step(hasher *h, const step *of)
{
    unsigned char by[MOST_HEAD];
    HASH(h, "\x88\xa2op\xa4INCR" LEFT_OUT "\xa3key");
    hash_text(h, &of->key);
    HASH(h, "\xa2" "by");
    hash_add(h, by, (size_t)(write_int(by, of->by) - by));
}

static uint64_t packed_digest(const request *from)
{
    hasher h;
    hash_begin(&h);
    hash_step(&h, from->steps);
    return hash_end(&h);
}

/* The order of an MPUT's items is no part of it. */
static uint64_t puts_digest(const request *from)
{
    uint64_t total = 0;
    hasher h;
    for (size_t i = 0; i < from->count; i++) {
        const step *each = &from->steps[i];
        hash_begin(&h);
        hash_add(&h, ops[from->op].name, ops[from->op].size);
        hash_text(&h, &each->key);
        hash_add(&h, each->value.at, each->value.size);
        total += hash_end(&h);
    }
    return total;
}

uint64_t to_digest(const request *from)
{
    return from->op == PUT || from->op == MPUT ? puts_digest(from) : packed_digest(from);
}
