/* Packs replies. Their fields have the order of the classes in zkv/protocol/replies.py. */

#include "lane.h"

#define WRITE(to, literal) write_bytes(to, literal, sizeof(literal) - 1)

enum { MOST_ANSWER = 64 }; /* bytes of the reply to one step, without id and value */

/* --- Fields. The buffer must have the capacity; each function returns the end ----------------- */

/* {"ok": true and the id, in a map with as many more fields. */
static unsigned char *write_head(unsigned char *to, const span *id, int more)
{
    *to++ = (unsigned char)(0x81 + more + (id->at != NULL));
    to = WRITE(to, PACKED_OK "\xc3");
    if (id->at != NULL)
        to = write_bytes(WRITE(to, PACKED_ID), id->at, id->size);
    return to;
}

static unsigned char *write_rev(unsigned char *to, int64_t rev)
{
    return write_uint(WRITE(to, PACKED_REV), (uint64_t)rev);
}

static unsigned char *write_value(unsigned char *to, const record *there)
{
    return write_bytes(WRITE(to, PACKED_VALUE), record_value(there), there->value_size);
}

static unsigned char *write_ttl(unsigned char *to, int64_t ms)
{
    double ttl = (double)ms / 1000;
    uint64_t bits;
    memcpy(&bits, &ttl, sizeof bits);
    return write_fixed(WRITE(to, PACKED_TTL "\xcb"), bits, 8);
}

/* --- Replies ---------------------------------------------------------------------------------- */

static unsigned char *write_got(unsigned char *to, const run *r, const record *there,
                                const span *id)
{
    if (there == NULL)
        return WRITE(write_head(to, id, 2), PACKED_VALUE "\xc0" PACKED_REV "\x00");
    to = write_head(to, id, 2 + (there->expires != 0));
    to = write_rev(write_value(to, there), there->rev);
    return there->expires ? write_ttl(to, there->expires - r->now) : to;
}

/* The reply to a write, in a map with as many more fields. */
static unsigned char *write_written(unsigned char *to, int64_t rev, int more, const span *id,
                                    int durable)
{
    to = write_rev(write_head(to, id, 2 + more), rev);
    return durable ? WRITE(to, PACKED_DURABLE "\xc3") : WRITE(to, PACKED_DURABLE "\xc2");
}

/* The reply to one step. That to any step of an MPUT is the reply to all of it. */
static unsigned char *write_answer(unsigned char *to, const run *r, const step *of, const span *id,
                                   int durable)
{
    switch (of->op) {
    case GET:
        return write_got(to, r, of->there, id);
    case INCR:
        return write_value(write_written(to, of->there->rev, 1, id, durable), of->there);
    default:
        return write_written(to, of->there->rev, 0, id, durable);
    }
}

/* The reply from `start`, in memory of `batch_begin_reply`, to `end`. */
static span written(const unsigned char *start, const unsigned char *end)
{
    return (span){start, (size_t)(end - start)};
}

static span mget_reply(const run *r, const request *from)
{
    size_t most = MOST_ANSWER + from->id.size;
    for (size_t i = 0; i < from->steps.count; i++) {
        const record *there = from->steps.at[i].there;
        most += MOST_HEAD + (there == NULL ? 1 : there->value_size);
    }
    unsigned char *start = batch_begin_reply(r->batch, most), *to = start;
    if (to == NULL)
        return (span){NULL, 0};
    to = write_head(to, &from->id, 2);
    to = write_array_head(WRITE(to, PACKED_VALUES), from->steps.count);
    for (size_t i = 0; i < from->steps.count; i++) {
        const record *there = from->steps.at[i].there;
        to = there == NULL ? (*to = 0xc0, to + 1)
                           : write_bytes(to, record_value(there), there->value_size);
    }
    to = write_array_head(WRITE(to, PACKED_REVS), from->steps.count);
    for (size_t i = 0; i < from->steps.count; i++) {
        const record *there = from->steps.at[i].there;
        to = write_uint(to, there == NULL ? 0 : (uint64_t)there->rev);
    }
    return written(start, to);
}

static size_t answer_size(const step *of)
{
    return MOST_ANSWER + (of->op == GET && of->there != NULL ? of->there->value_size : 0);
}

static span txn_reply(const run *r, const request *from, const span *id, int durable)
{
    static const span no_id;
    int64_t rev = r->rev; /* if it changes nothing */
    size_t most = MOST_ANSWER + MOST_HEAD + id->size;
    for (size_t i = 0; i < from->steps.count; i++) {
        const step *each = &from->steps.at[i];
        most += answer_size(each);
        rev = each->op == GET ? rev : each->there->rev;
    }
    unsigned char *start = batch_begin_reply(r->batch, most), *to = start;
    if (to == NULL)
        return (span){NULL, 0};
    to = WRITE(write_written(to, rev, 1, id, durable), PACKED_RESULTS);
    to = write_array_head(to, from->steps.count);
    for (size_t i = 0; i < from->steps.count; i++)
        to = write_answer(to, r, &from->steps.at[i], &no_id, durable);
    return written(start, to);
}

span to_reply(const Lane *self, const run *r, const request *from, int remembered)
{
    static const span no_id;
    const span *id = remembered ? &no_id : &from->id;
    int durable = self->durable && !remembered;
    if (from->op == MGET)
        return mget_reply(r, from);
    if (from->op == TXN)
        return txn_reply(r, from, id, durable);
    unsigned char *start =
        batch_begin_reply(r->batch, answer_size(from->steps.at) + id->size);
    if (start == NULL)
        return (span){NULL, 0};
    return written(start, write_answer(start, r, from->steps.at, id, durable));
}
