/* A client for a zkv server: copy this file into your program.
 *
 * A request is a msgpack map in one frame on a REQ socket, and so is its reply. A REQ socket that
 * is owed a reply refuses the next request for ever, so after a lost reply it is closed, and the
 * same bytes go out on a fresh one: a write carries a session and a number, and runs only once.
 * LINGER is 0, so nothing that was not sent holds up the end of the process.
 *
 * Functions return 0, or -1: then code, message, retry and applied of the zkv tell why. Objects
 * that they give live until the next call. A zkv is used by one thread at a time. */
#include <errno.h>
#include <msgpack.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>
#include <zmq.h>

typedef struct {
    const char *name;
    msgpack_object value;
} zkv_field;

typedef struct {
    void *context, *socket;
    char *endpoint, session[33];
    double timeout; /* seconds, for each attempt */
    uint64_t last_id, last_seq;
    zmq_msg_t frame;     /* the reply's bytes, which its objects point to */
    msgpack_zone *zone;
    msgpack_object reply; /* the server's whole answer; nil if there was none */
    char code[32], message[256];
    bool retry;           /* the same request may succeed later */
    bool applied_unknown; /* a write may have been applied, or may yet be; else it was not */
} zkv;

/* ---- values: objects that point to the caller's memory ---- */

msgpack_object zkv_int(int64_t n) {
    msgpack_object o = {MSGPACK_OBJECT_POSITIVE_INTEGER, {0}};
    if (n < 0) o.type = MSGPACK_OBJECT_NEGATIVE_INTEGER;
    return o.via.i64 = n, o;
}
msgpack_object zkv_data(msgpack_object_type str_or_bin, const char *data, size_t size) {
    msgpack_object o = {str_or_bin, {0}};
    return o.via.str.ptr = data, o.via.str.size = (uint32_t)size, o;
}
msgpack_object zkv_str(const char *text) { return zkv_data(MSGPACK_OBJECT_STR, text, strlen(text)); }
msgpack_object zkv_array(msgpack_object *items, size_t count) {
    msgpack_object o = {MSGPACK_OBJECT_ARRAY, {0}};
    return o.via.array.ptr = items, o.via.array.size = (uint32_t)count, o;
}
msgpack_object zkv_map(msgpack_object_kv *items, size_t count) {
    msgpack_object o = {MSGPACK_OBJECT_MAP, {0}};
    return o.via.map.ptr = items, o.via.map.size = (uint32_t)count, o;
}
msgpack_object zkv_find(msgpack_object map, const char *name) { /* nil if it is not there */
    msgpack_object nil = {MSGPACK_OBJECT_NIL, {0}}, key = zkv_str(name);
    for (uint32_t i = 0; map.type == MSGPACK_OBJECT_MAP && i < map.via.map.size; i++)
        if (msgpack_object_equal(map.via.map.ptr[i].key, key)) return map.via.map.ptr[i].val;
    return nil;
}

/* ---- the connection ---- */

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static int fail(zkv *z, const char *code, const char *message) {
    snprintf(z->code, sizeof z->code, "%s", code);
    snprintf(z->message, sizeof z->message, "%s", message);
    z->retry = strcmp(code, "NO_REPLY") == 0;
    z->applied_unknown = true;
    z->reply.type = MSGPACK_OBJECT_NIL;
    return -1;
}

static int open_socket(zkv *z) {
    int none = 0;
    if (z->socket) return 0;
    z->socket = zmq_socket(z->context, ZMQ_REQ);
    if (z->socket) zmq_setsockopt(z->socket, ZMQ_LINGER, &none, sizeof none);
    return z->socket && zmq_connect(z->socket, z->endpoint) == 0 ? 0 : -1;
}

static void close_socket(zkv *z) {
    if (z->socket) zmq_close(z->socket);
    z->socket = NULL;
}

void zkv_close(zkv *z) {
    close_socket(z);
    zmq_ctx_term(z->context);
    msgpack_zone_free(z->zone);
    zmq_msg_close(&z->frame);
    free(z->endpoint);
    free(z);
}

/* NULL with errno if the endpoint is malformed. The server need not be up. */
zkv *zkv_connect(const char *endpoint, double timeout) {
    unsigned char random[16];
    zkv *z = calloc(1, sizeof *z);
    if (!z || getrandom(random, sizeof random, 0) != sizeof random) return free(z), NULL;
    for (size_t i = 0; i < sizeof random; i++) sprintf(z->session + 2 * i, "%02x", random[i]);
    z->endpoint = strdup(endpoint);
    z->timeout = timeout;
    z->context = zmq_ctx_new();
    z->zone = msgpack_zone_new(MSGPACK_ZONE_CHUNK_SIZE);
    zmq_msg_init(&z->frame);
    if (open_socket(z) == 0) return z;
    int error = errno;
    zkv_close(z);
    return errno = error, NULL;
}

enum outcome { NONE, BROKEN, REPLY };

/* Sends a body, and unpacks the reply if one comes in time. */
static enum outcome exchange(zkv *z, const msgpack_sbuffer *body) {
    double end = now() + z->timeout, left;
    size_t offset = 0;
    int ready = 0;
    if (open_socket(z)) return NONE;
    if (zmq_send(z->socket, body->data, body->size, ZMQ_DONTWAIT) < 0) return NONE;
    while (ready <= 0 && (left = end - now()) > 0) { /* signals interrupt zmq_poll: EINTR */
        zmq_pollitem_t item = {z->socket, 0, ZMQ_POLLIN, 0};
        ready = zmq_poll(&item, 1, (long)(left * 1000) + 1);
    }
    if (ready <= 0 || zmq_msg_recv(&z->frame, z->socket, ZMQ_DONTWAIT) < 0) return NONE;
    msgpack_zone_clear(z->zone);
    z->reply.type = MSGPACK_OBJECT_NIL;
    int status = msgpack_unpack(zmq_msg_data(&z->frame), zmq_msg_size(&z->frame), &offset, z->zone,
                                &z->reply);
    bool sound = status == MSGPACK_UNPACK_SUCCESS && !zmq_msg_more(&z->frame);
    return sound && zkv_find(z->reply, "ok").type == MSGPACK_OBJECT_BOOLEAN ? REPLY : BROKEN;
}

static int refused(zkv *z) {
    msgpack_object code = zkv_find(z->reply, "code"), message = zkv_find(z->reply, "message");
    snprintf(z->code, sizeof z->code, "%.*s", (int)code.via.str.size, code.via.str.ptr);
    snprintf(z->message, sizeof z->message, "%.*s", (int)message.via.str.size, message.via.str.ptr);
    z->retry = zkv_find(z->reply, "retry").via.boolean;
    z->applied_unknown = zkv_find(z->reply, "applied").type == MSGPACK_OBJECT_NIL;
    return -1;
}

static bool among(const char *op, const char *const *ops) {
    while (*ops && strcmp(op, *ops)) ops++;
    return *ops != NULL;
}

/* Any op with its fields. The reply is in z->reply. */
int zkv_call(zkv *z, const char *op, const zkv_field *fields, size_t count) {
    static const char *const writes[] = {"PUT",  "DELETE",  "TOUCH", "INCR",
                                         "MPUT", "MDELETE", "TXN",   NULL};
    msgpack_object id = {MSGPACK_OBJECT_NIL, {0}}, echo;
    bool session = !among(op, writes), lost = false, ok, again;
    msgpack_sbuffer body;
    msgpack_packer packer;
    struct timespec pause = {0, 100000000};
    for (size_t i = 0; i < count; i++) {
        if (!strcmp(fields[i].name, "id")) id = fields[i].value;
        if (!strcmp(fields[i].name, "session")) session = true;
    }
    size_t added = session ? 2 : 4, ids = 0;
    if (id.type == MSGPACK_OBJECT_NIL) id = zkv_int((int64_t)++z->last_id);
    if (!session) z->last_seq++;
    zkv_field more[] = {{"op", zkv_str(op)},
                        {"id", id},
                        {"session", zkv_str(z->session)},
                        {"seq", zkv_int((int64_t)z->last_seq)}};
    msgpack_sbuffer_init(&body);
    msgpack_packer_init(&packer, &body, msgpack_sbuffer_write);
    for (size_t i = 0; i < count; i++) ids += !strcmp(fields[i].name, "id");
    msgpack_pack_map(&packer, added + count - ids);
    for (size_t i = 0; i < added + count; i++) {
        const zkv_field *field = i < added ? &more[i] : &fields[i - added];
        if (i >= added && !strcmp(field->name, "id")) continue; /* it is in `more` */
        msgpack_pack_object(&packer, zkv_str(field->name));
        msgpack_pack_object(&packer, field->value);
    }
    fail(z, "NO_REPLY", "none in time");
    for (int attempt = strcmp(op, "END") ? 0 : 2; attempt < 3; attempt++) {
        enum outcome outcome = exchange(z, &body);
        echo = zkv_find(z->reply, "id");
        if (outcome != REPLY) close_socket(z);
        if (outcome == NONE) {
            lost = true;
            continue;
        }
        ok = outcome == REPLY && zkv_find(z->reply, "ok").via.boolean;
        bool ours = msgpack_object_equal(echo, id) || (!ok && echo.type == MSGPACK_OBJECT_NIL);
        if (outcome == BROKEN || !ours) {
            close_socket(z);
            msgpack_sbuffer_destroy(&body);
            return fail(z, "BAD_REPLY", "it is no map, or has no ok, or another id");
        }
        if (!ok) refused(z);
        again = !ok && (z->retry || (lost && !strcmp(z->code, "DEADLINE")));
        if (!again) {
            msgpack_sbuffer_destroy(&body);
            return ok ? 0 : -1;
        }
        nanosleep(&pause, NULL);
    }
    msgpack_sbuffer_destroy(&body);
    return lost ? fail(z, "NO_REPLY", "none in time") : -1;
}

/* ---- the ops that are used most; what they give is not set where they fail, and may be NULL ---- */

static int finish(zkv *z, int status, const char *name, int64_t *number) {
    if (!status && number) *number = zkv_find(z->reply, name).via.i64;
    return status;
}
int zkv_get(zkv *z, const char *key, msgpack_object *value) {
    zkv_field fields[] = {{"key", zkv_str(key)}};
    int status = zkv_call(z, "GET", fields, 1);
    if (!status) *value = zkv_find(z->reply, "value");
    return status;
}
int zkv_put(zkv *z, const char *key, msgpack_object value, int64_t *rev) {
    zkv_field fields[] = {{"key", zkv_str(key)}, {"value", value}};
    return finish(z, zkv_call(z, "PUT", fields, 2), "rev", rev);
}
int zkv_cas(zkv *z, const char *key, msgpack_object value, int64_t if_rev, int64_t *rev) {
    zkv_field fields[] = {{"key", zkv_str(key)}, {"value", value}, {"if_rev", zkv_int(if_rev)}};
    return finish(z, zkv_call(z, "PUT", fields, 3), "rev", rev);
}
int zkv_delete(zkv *z, const char *key, int64_t *rev) {
    zkv_field fields[] = {{"key", zkv_str(key)}};
    return finish(z, zkv_call(z, "DELETE", fields, 1), "rev", rev);
}
int zkv_incr(zkv *z, const char *key, int64_t by, int64_t *sum) {
    zkv_field fields[] = {{"key", zkv_str(key)}, {"by", zkv_int(by)}};
    return finish(z, zkv_call(z, "INCR", fields, 2), "value", sum);
}
int zkv_mget(zkv *z, msgpack_object *keys, size_t count, msgpack_object_array *values) {
    zkv_field fields[] = {{"keys", zkv_array(keys, count)}};
    int status = zkv_call(z, "MGET", fields, 1);
    if (!status) *values = zkv_find(z->reply, "values").via.array;
    return status;
}
int zkv_mput(zkv *z, msgpack_object_kv *items, size_t count, int64_t *rev) {
    zkv_field fields[] = {{"items", zkv_map(items, count)}};
    return finish(z, zkv_call(z, "MPUT", fields, 1), "rev", rev);
}
/* Calls each(context, [key, value, revision]) for all keys that begin with the prefix. */
int zkv_scan(zkv *z, const char *prefix, void (*each)(void *, const msgpack_object *),
             void *context) {
    char after[4096] = "";
    zkv_field fields[] = {{"prefix", zkv_str(prefix)}, {"after", {MSGPACK_OBJECT_NIL, {0}}}};
    for (;;) {
        if (zkv_call(z, "SCAN", fields, 2)) return -1;
        msgpack_object next = zkv_find(z->reply, "next");
        msgpack_object_array items = zkv_find(z->reply, "items").via.array;
        if (next.type == MSGPACK_OBJECT_STR && next.via.str.size <= sizeof after)
            memcpy(after, next.via.str.ptr, next.via.str.size);
        for (uint32_t i = 0; i < items.size; i++) each(context, items.ptr[i].via.array.ptr);
        if (next.type != MSGPACK_OBJECT_STR) return 0;
        fields[1].value = zkv_data(MSGPACK_OBJECT_STR, after, next.via.str.size);
    }
}
int zkv_end(zkv *z, int64_t *rev) { return finish(z, zkv_call(z, "END", NULL, 0), "rev", rev); }

