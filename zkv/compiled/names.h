/* Made by tools/mirror.py from zkv/protocol/requests.py and replies.py: `make generate`.
 *
 * Fields that a request of the lane may have, and its ops with what each must and may have. */

#ifndef ZKV_NAMES_H
#define ZKV_NAMES_H

#define LANE_FIELDS(X) \
    X(FIELD_OP, "op") \
    X(FIELD_KEY, "key") \
    X(FIELD_ID, "id") \
    X(FIELD_TIMING, "timing") \
    X(FIELD_TRACE, "trace") \
    X(FIELD_VALUE, "value") \
    X(FIELD_SESSION, "session") \
    X(FIELD_SEQ, "seq") \
    X(FIELD_BY, "by") \
    X(FIELD_KEYS, "keys") \
    X(FIELD_ITEMS, "items") \
    X(FIELD_OPS, "ops") \
    X(FIELD_IF, "if") \

#define LANE_OPS(X) \
    X(GET, "GET", FIELD_OP | FIELD_KEY, FIELD_ID | FIELD_TIMING | FIELD_TRACE) \
    X(PUT, "PUT", FIELD_OP | FIELD_KEY | FIELD_VALUE, FIELD_ID | FIELD_SESSION | FIELD_SEQ | FIELD_TIMING | FIELD_TRACE) \
    X(INCR, "INCR", FIELD_OP | FIELD_KEY, FIELD_ID | FIELD_SESSION | FIELD_SEQ | FIELD_TIMING | FIELD_TRACE | FIELD_BY) \
    X(MGET, "MGET", FIELD_OP | FIELD_KEYS, FIELD_ID | FIELD_TIMING | FIELD_TRACE) \
    X(MPUT, "MPUT", FIELD_OP | FIELD_ITEMS, FIELD_ID | FIELD_SESSION | FIELD_SEQ | FIELD_TIMING | FIELD_TRACE) \
    X(TXN, "TXN", FIELD_OP | FIELD_OPS, FIELD_ID | FIELD_SESSION | FIELD_SEQ | FIELD_TIMING | FIELD_TRACE | FIELD_IF) \

/* Names as msgpack packs them. */
#define PACKED_BY "\xa2" "by"
#define PACKED_DURABLE "\xa7" "durable"
#define PACKED_ID "\xa2" "id"
#define PACKED_IF "\xa2" "if"
#define PACKED_ITEMS "\xa5" "items"
#define PACKED_KEY "\xa3" "key"
#define PACKED_KEYS "\xa4" "keys"
#define PACKED_OK "\xa2" "ok"
#define PACKED_OP "\xa2" "op"
#define PACKED_OPS "\xa3" "ops"
#define PACKED_PREV "\xa4" "prev"
#define PACKED_PREV_REV "\xa8" "prev_rev"
#define PACKED_RESULTS "\xa7" "results"
#define PACKED_REV "\xa3" "rev"
#define PACKED_REVS "\xa4" "revs"
#define PACKED_SEQ "\xa3" "seq"
#define PACKED_SESSION "\xa7" "session"
#define PACKED_TIMING "\xa6" "timing"
#define PACKED_TRACE "\xa5" "trace"
#define PACKED_TTL "\xa3" "ttl"
#define PACKED_VALUE "\xa5" "value"
#define PACKED_VALUES "\xa6" "values"

#define MAX_SESSION_BYTES 64
#define MAX_TRACE_BYTES 64
#define MAX_REMEMBERED_REPLY 1048576

#endif
