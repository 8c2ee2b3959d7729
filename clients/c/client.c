/* A client for a zkv server: copy this file into your program.
 *
 * A request is a msgpack map in one frame on a REQ socket, and so is its reply. A REQ socket that
 * is owed a reply refuses the next request for ever, so after a lost reply it is closed, and the
 * same bytes go out on a fresh one: a write carries a session and a number, and runs only once.
 * LINGER is 0, so nothing that was not sent holds up the end of the process.
 *
 * The endpoint may be a list with commas: those of the members of one store. A member that says
 * nothing, or that does not lead, is left for the next one. Before any of them gets a request, INFO
 * has to tell that it has no other store, and no older term of the store, than was seen before.
 *
 * To tcp:// endpoints it speaks CURVE if ZKV_SERVER_PUBLIC_KEY is set. A socket whose handshake is
 * refused stays silent for ever, so its monitor is asked why, until the handshake has succeeded.
 *
 * Functions return 0, or -1: then code, message, retry and applied of the zkv tell why. Objects
 * that they give live until the next call. A zkv is used by one thread at a time. */
#include <errno.h>
#include <fcntl.h>
#include <msgpack.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#include <zmq.h>

typedef struct {
    const char *name;
    msgpack_object value;
} zkv_field;

enum { KEY_SIZE = 40 }; /* of a key in Z85 */
typedef char zkv_key[KEY_SIZE + 1];

typedef struct {
    void *context, *socket;
    void *monitor; /* tells what becomes of the handshake; NULL once it has succeeded */
    uint64_t monitors;
    zkv_key public_key, secret_key, *server_keys; /* server_keys[server_key] is in use */
    size_t server_key, server_key_count;          /* 0 keys: no CURVE */
    char **endpoints; /* of one store; the first is in use */
    size_t endpoint_count;
    char store[128], session[33]; /* what INFO has told of the store, with its newest term; "" = nothing */
    int64_t term;
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

static const msgpack_object NIL = {MSGPACK_OBJECT_NIL, {0}};

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
    msgpack_object key = zkv_str(name);
    for (uint32_t i = 0; map.type == MSGPACK_OBJECT_MAP && i < map.via.map.size; i++)
        if (msgpack_object_equal(map.via.map.ptr[i].key, key)) return map.via.map.ptr[i].val;
    return NIL;
}

/* ---- reading msgpack: the library reads 32 levels of arrays and maps, this as many as a value may have ---- */

enum { MOST_LEVELS = 600 }; /* 500 of a value, and those of a reply around it */

typedef struct {
    const unsigned char *at, *end;
    msgpack_zone *zone;
    int levels;
} zkv_reader;

static bool read_uint(zkv_reader *r, size_t size, uint64_t *n) {
    if ((size_t)(r->end - r->at) < size) return false;
    for (*n = 0; size > 0; size--) *n = *n << 8 | *r->at++;
    return true;
}

static bool read_value(zkv_reader *r, msgpack_object *o);

static bool read_data(zkv_reader *r, msgpack_object_type type, uint64_t size, msgpack_object *o) {
    bool ext = type == MSGPACK_OBJECT_EXT;
    if ((uint64_t)(r->end - r->at) < size + ext) return false;
    o->type = type;
    if (ext) {
        o->via.ext.type = (int8_t)*r->at++;
        o->via.ext.ptr = (const char *)r->at, o->via.ext.size = (uint32_t)size;
    } else { /* bin is laid out like str */
        o->via.str.ptr = (const char *)r->at, o->via.str.size = (uint32_t)size;
    }
    r->at += size;
    return true;
}

/* A map is 2 * count values, its keys and values in turn. */
static bool read_items(zkv_reader *r, msgpack_object_type type, uint64_t count, msgpack_object *o) {
    uint64_t values = type == MSGPACK_OBJECT_MAP ? 2 * count : count;
    if ((uint64_t)(r->end - r->at) < values || r->levels == MOST_LEVELS) return false;
    msgpack_object *items = msgpack_zone_malloc(r->zone, (values + 1) * sizeof *items);
    if (!items) return false;
    r->levels++;
    for (uint64_t i = 0; i < values; i++)
        if (!read_value(r, &items[i])) return false;
    r->levels--;
    o->type = type;
    if (type == MSGPACK_OBJECT_MAP)
        o->via.map.ptr = (msgpack_object_kv *)items, o->via.map.size = (uint32_t)count;
    else
        o->via.array.ptr = items, o->via.array.size = (uint32_t)count;
    return true;
}

static bool read_float(zkv_reader *r, unsigned tag, msgpack_object *o) {
    uint64_t bits;
    uint32_t half;
    float single;
    if (!read_uint(r, tag == 0xca ? 4 : 8, &bits)) return false;
    o->type = tag == 0xca ? MSGPACK_OBJECT_FLOAT32 : MSGPACK_OBJECT_FLOAT64;
    if (tag == 0xca) {
        half = (uint32_t)bits, memcpy(&single, &half, sizeof single), o->via.f64 = single;
    } else {
        memcpy(&o->via.f64, &bits, sizeof bits);
    }
    return true;
}

static bool read_value(zkv_reader *r, msgpack_object *o) {
    uint64_t n, tag;
    if (!read_uint(r, 1, &tag)) return false;
    if (tag < 0x80) return *o = zkv_int((int64_t)tag), true;
    if (tag < 0x90) return read_items(r, MSGPACK_OBJECT_MAP, tag & 0x0f, o);
    if (tag < 0xa0) return read_items(r, MSGPACK_OBJECT_ARRAY, tag & 0x0f, o);
    if (tag < 0xc0) return read_data(r, MSGPACK_OBJECT_STR, tag & 0x1f, o);
    if (tag >= 0xe0) return *o = zkv_int((int64_t)tag - 0x100), true;
    if (tag == 0xc0) return o->type = MSGPACK_OBJECT_NIL, true;
    if (tag == 0xc1) return false;
    if (tag <= 0xc3) return o->type = MSGPACK_OBJECT_BOOLEAN, o->via.boolean = tag == 0xc3, true;
    if (tag == 0xca || tag == 0xcb) return read_float(r, (unsigned)tag, o);
    if (tag >= 0xd4 && tag <= 0xd8) return read_data(r, MSGPACK_OBJECT_EXT, 1u << (tag - 0xd4), o);
    /* The rest has a size, or a number, of 1, 2, 4 or 8 bytes. */
    unsigned first = tag <= 0xc6 ? 0xc4 : tag <= 0xc9 ? 0xc7 : tag <= 0xcf ? 0xcc : tag <= 0xd3 ? 0xd0
                     : tag <= 0xdb ? 0xd9 : tag <= 0xdd ? 0xdb : 0xdd;
    size_t size = (size_t)1 << (tag - first);
    if (!read_uint(r, size, &n)) return false;
    switch (first) {
    case 0xc4: return read_data(r, MSGPACK_OBJECT_BIN, n, o);
    case 0xc7: return read_data(r, MSGPACK_OBJECT_EXT, n, o);
    case 0xcc: return o->type = MSGPACK_OBJECT_POSITIVE_INTEGER, o->via.u64 = n, true;
    case 0xd0: return *o = zkv_int((int64_t)(n << (64 - 8 * size)) >> (64 - 8 * size)), true;
    case 0xd9: return read_data(r, MSGPACK_OBJECT_STR, n, o);
    }
    return read_items(r, first == 0xdb ? MSGPACK_OBJECT_ARRAY : MSGPACK_OBJECT_MAP, n, o);
}

/* Whether the bytes are one value, which then points to them and to the zone. */
bool zkv_unpack(const void *data, size_t size, msgpack_zone *zone, msgpack_object *value) {
    zkv_reader r = {data, (const unsigned char *)data + size, zone, 0};
    return read_value(&r, value) && r.at == r.end;
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

/* ---- keys ---- */

static _Thread_local char problem[512];

/* Why zkv_connect has returned NULL. */
const char *zkv_problem(void) { return problem; }

static bool has_keys(const char *endpoint) { return strncmp(endpoint, "tcp://", 6) == 0; }

/* Makes room[KEY_SIZE + 1] the key that a text begins with. False: it is none. */
static bool take_key(const char *text, size_t size, char *room) {
    uint8_t bytes[KEY_SIZE / 5 * 4];
    if (size != KEY_SIZE) return false;
    memcpy(room, text, KEY_SIZE), room[KEY_SIZE] = 0;
    return zmq_z85_decode(bytes, room) != NULL;
}

static int read_key_file(zkv *z, const char *path) {
    char text[128];
    struct stat info;
    int file = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t size = -1;
    if (file >= 0 && fstat(file, &info) == 0)
        size = info.st_mode & 077 ? 0 : read(file, text, sizeof text);
    if (size < 0)
        snprintf(problem, sizeof problem, "%s: %s", path, strerror(errno));
    else if (info.st_mode & 077)
        snprintf(problem, sizeof problem, "%s: others may read it (mode %04o): chmod 600 %s", path,
                 (unsigned)info.st_mode & 07777, path);
    if (file >= 0) close(file);
    if (size < 0 || info.st_mode & 077) return -1;
    while (size > 0 && strchr(" \t\r\n", text[size - 1])) size--;
    if (take_key(text, (size_t)size, z->secret_key) && !zmq_curve_public(z->public_key, z->secret_key))
        return 0;
    snprintf(problem, sizeof problem, "%s: not a key file: expected one line of 40 characters of Z85", path);
    return -1;
}

/* Keys for tcp:// endpoints: the server's, of which one has to fit, and the client's own pair, which
 * is made for this client alone where there is no file. */
static int take_keys(zkv *z) {
    const char *at = getenv("ZKV_SERVER_PUBLIC_KEY"), *file = getenv("ZKV_KEY_FILE");
    bool has_file = file && *file;
    z->server_keys = calloc(at ? strlen(at) / KEY_SIZE + 1 : 1, sizeof *z->server_keys);
    for (size_t size; at && *at; at += size) {
        size = strcspn(at, ", ");
        if (size > 0 && !take_key(at, size, z->server_keys[z->server_key_count++]))
            return strcpy(problem, "ZKV_SERVER_PUBLIC_KEY: not a key: expected 40 characters of Z85"), -1;
        size += strspn(at + size, ", ");
    }
    if (z->server_key_count == 0 && has_file)
        return strcpy(problem, "ZKV_KEY_FILE is of no use without ZKV_SERVER_PUBLIC_KEY"), -1;
    if (z->server_key_count == 0 || has_file) return has_file ? read_key_file(z, file) : 0;
    if (zmq_curve_keypair(z->public_key, z->secret_key) == 0) return 0;
    return strcpy(problem, "libzmq was built without CURVE"), -1;
}

/* Gives a socket the keys that this endpoint needs, if any. */
int zkv_secure(zkv *z, void *socket, const char *endpoint) {
    if (!has_keys(endpoint)) return 0;
    if (!z->server_keys && take_keys(z)) return -1;
    if (z->server_key_count == 0) return 0;
    const char *keys[] = {z->server_keys[z->server_key], z->public_key, z->secret_key};
    int options[] = {ZMQ_CURVE_SERVERKEY, ZMQ_CURVE_PUBLICKEY, ZMQ_CURVE_SECRETKEY};
    for (int i = 0; i < 3; i++)
        if (zmq_setsockopt(socket, options[i], keys[i], KEY_SIZE + 1))
            return strcpy(problem, "libzmq was built without CURVE"), -1;
    return 0;
}

/* Has the next socket use the next one of the server's keys. */
void zkv_next_key(zkv *z) {
    if (z->server_key_count) z->server_key = (z->server_key + 1) % z->server_key_count;
}

/* ---- the connection ---- */

static const int HANDSHAKE = ZMQ_EVENT_HANDSHAKE_SUCCEEDED | ZMQ_EVENT_HANDSHAKE_FAILED_AUTH |
                             ZMQ_EVENT_HANDSHAKE_FAILED_PROTOCOL | ZMQ_EVENT_HANDSHAKE_FAILED_NO_DETAIL;

static int open_monitor(zkv *z) {
    char name[64];
    int no_limit = 0;
    snprintf(name, sizeof name, "inproc://zkv-handshake-%llu", (unsigned long long)z->monitors++);
    if (zmq_socket_monitor(z->socket, name, HANDSHAKE)) return -1;
    z->monitor = zmq_socket(z->context, ZMQ_PAIR);
    if (!z->monitor) return -1;
    zmq_setsockopt(z->monitor, ZMQ_RCVHWM, &no_limit, sizeof no_limit); /* else ZeroMQ might wait for us */
    return zmq_connect(z->monitor, name);
}

static void close_monitor(zkv *z) {
    if (z->socket) zmq_socket_monitor(z->socket, NULL, 0); /* first: nobody would read what it tells */
    if (z->monitor) zmq_close(z->monitor);
    z->monitor = NULL;
}

static int open_socket(zkv *z) {
    int none = 0;
    if (z->socket) return 0;
    z->socket = zmq_socket(z->context, ZMQ_REQ);
    if (!z->socket) return snprintf(problem, sizeof problem, "%s", zmq_strerror(errno)), -1;
    zmq_setsockopt(z->socket, ZMQ_LINGER, &none, sizeof none);
    if (zkv_secure(z, z->socket, z->endpoints[0])) return -1;
    if (open_monitor(z) == 0 && zmq_connect(z->socket, z->endpoints[0]) == 0) return 0;
    return snprintf(problem, sizeof problem, "%s: %s", z->endpoints[0], zmq_strerror(errno)), -1;
}

static void close_socket(zkv *z) {
    if (z->monitor) close_monitor(z);
    if (z->socket) zmq_close(z->socket);
    z->socket = NULL;
}

static bool uses_keys(const zkv *z, const char *endpoint) {
    return z->server_key_count > 0 && has_keys(endpoint);
}

/* Whether the handshake has failed, so that nothing was sent: then code and message tell why. */
static bool handshake_failed(zkv *z) {
    uint16_t event = 0;
    unsigned char frame[6];
    while (z->monitor && zmq_recv(z->monitor, frame, sizeof frame, ZMQ_DONTWAIT) >= 0) {
        memcpy(&event, frame, sizeof event);
        zmq_recv(z->monitor, frame, sizeof frame, ZMQ_DONTWAIT); /* the endpoint */
        if (event == ZMQ_EVENT_HANDSHAKE_SUCCEEDED) return close_monitor(z), false;
    }
    bool keys = uses_keys(z, z->endpoints[0]);
    const char *why = NULL;
    if (event == ZMQ_EVENT_HANDSHAKE_FAILED_AUTH)
        why = "the server does not know this client: its key or, on ipc, its system user";
    else if (event == ZMQ_EVENT_HANDSHAKE_FAILED_PROTOCOL)
        why = keys ? "the server does not speak CURVE" : "the server asks for CURVE: set ZKV_SERVER_PUBLIC_KEY";
    else if (event == ZMQ_EVENT_HANDSHAKE_FAILED_NO_DETAIL && keys) /* else it may be about to start */
        why = "the handshake was cut: the server has another key than ZKV_SERVER_PUBLIC_KEY says, or no CURVE";
    if (!why) return false;
    fail(z, "HANDSHAKE_FAILED", why);
    z->retry = z->applied_unknown = event == ZMQ_EVENT_HANDSHAKE_FAILED_NO_DETAIL; /* ZeroMQ goes on trying */
    return true;
}

static bool add_endpoint(zkv *z, const char *text, size_t size) {
    char **room = realloc(z->endpoints, (z->endpoint_count + 1) * sizeof *room), *copy = strndup(text, size);
    if (room) z->endpoints = room;
    if (room && copy) return room[z->endpoint_count++] = copy, true;
    return free(copy), false;
}

/* Goes to the server that is said to lead, if it is in the list or has to prove its key; else to the
 * next one. */
static void move_on(zkv *z, msgpack_object leader) {
    size_t last = z->endpoint_count - 1, at;
    char *left = z->endpoints[0];
    memmove(z->endpoints, z->endpoints + 1, last * sizeof left);
    z->endpoints[last] = left;
    for (uint32_t i = 0; leader.type == MSGPACK_OBJECT_ARRAY && i < leader.via.array.size; i++) {
        msgpack_object hint = leader.via.array.ptr[i];
        for (at = 0; at <= last && !msgpack_object_equal(hint, zkv_str(z->endpoints[at])); at++) {}
        bool added = at > last && hint.type == MSGPACK_OBJECT_STR &&
                     add_endpoint(z, hint.via.str.ptr, hint.via.str.size);
        if (added && !uses_keys(z, z->endpoints[at])) free(z->endpoints[--z->endpoint_count]);
        if (at == last || at == z->endpoint_count) continue;
        char *next = z->endpoints[at];
        memmove(z->endpoints + 1, z->endpoints, at * sizeof next);
        z->endpoints[0] = next;
        break;
    }
    if (z->endpoint_count > 1) close_socket(z);
}

void zkv_close(zkv *z) {
    close_socket(z);
    zmq_ctx_term(z->context);
    msgpack_zone_free(z->zone);
    zmq_msg_close(&z->frame);
    free(z->server_keys);
    for (size_t i = 0; i < z->endpoint_count; i++) free(z->endpoints[i]);
    free(z->endpoints);
    free(z);
}

/* For one endpoint, or for those of one store with commas between them. NULL if one of them or a key is
 * malformed: zkv_problem() tells. The server need not be up. */
zkv *zkv_connect(const char *endpoint, double timeout) {
    unsigned char random[16];
    zkv *z = calloc(1, sizeof *z);
    if (!z || getrandom(random, sizeof random, 0) != sizeof random) return free(z), NULL;
    for (size_t i = 0; i < sizeof random; i++) sprintf(z->session + 2 * i, "%02x", random[i]);
    z->timeout = timeout;
    z->context = zmq_ctx_new();
    z->zone = msgpack_zone_new(MSGPACK_ZONE_CHUNK_SIZE);
    zmq_msg_init(&z->frame);
    for (size_t size, more = 1; more; endpoint += size + 1) {
        endpoint += strspn(endpoint, " ");
        size_t used = size = strcspn(endpoint, ",");
        more = endpoint[size] == ',';
        while (used > 0 && endpoint[used - 1] == ' ') used--;
        if (!add_endpoint(z, endpoint, used)) return zkv_close(z), NULL;
    }
    for (size_t i = 0; i < z->endpoint_count; i++) {
        if (open_socket(z)) return zkv_close(z), NULL;
        move_on(z, NIL);
    }
    return z;
}

enum outcome { NONE, SHUT_OUT, BROKEN, REPLY };

/* Sends a body, and unpacks the reply if one comes in time. */
static enum outcome exchange(zkv *z, const msgpack_sbuffer *body) {
    double end = now() + z->timeout, left;
    if (open_socket(z)) return NONE;
    bool sent = zmq_send(z->socket, body->data, body->size, ZMQ_DONTWAIT) >= 0;
    for (bool ready = false; !ready;) { /* signals interrupt zmq_poll: EINTR */
        if (handshake_failed(z)) return SHUT_OUT;
        if (!sent || (left = end - now()) <= 0) return NONE;
        zmq_pollitem_t items[] = {{z->socket, 0, ZMQ_POLLIN, 0}, {z->monitor, 0, ZMQ_POLLIN, 0}};
        ready = zmq_poll(items, z->monitor ? 2 : 1, (long)(left * 1000) + 1) > 0 && items[0].revents;
    }
    if (zmq_msg_recv(&z->frame, z->socket, ZMQ_DONTWAIT) < 0) return NONE;
    msgpack_zone_clear(z->zone);
    z->reply.type = MSGPACK_OBJECT_NIL;
    bool sound = !zmq_msg_more(&z->frame) &&
                 zkv_unpack(zmq_msg_data(&z->frame), zmq_msg_size(&z->frame), z->zone, &z->reply);
    if (!sound) z->reply.type = MSGPACK_OBJECT_NIL;
    return sound && zkv_find(z->reply, "ok").type == MSGPACK_OBJECT_BOOLEAN ? REPLY : BROKEN;
}

enum { TRIES = 10 }; /* while its key is changed, a server takes each connection with one key or the other */

/* The same, with one of the server's keys after the other until one fits. */
static enum outcome exchange_with_keys(zkv *z, const msgpack_sbuffer *body) {
    struct timespec pause = {0, 30000000};
    for (int left = TRIES;; left--) {
        enum outcome outcome = exchange(z, body);
        if (outcome != REPLY) close_socket(z);
        if (outcome != SHUT_OUT || !z->retry || left == 1) return outcome;
        zkv_next_key(z);
        nanosleep(&pause, NULL);
    }
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

/* One attempt: the reply is ok, or code and message tell why not. */
static int ask(zkv *z, const msgpack_sbuffer *body, msgpack_object id) {
    enum outcome outcome = exchange_with_keys(z, body);
    if (outcome == SHUT_OUT) return -1;
    if (outcome == NONE) return fail(z, "NO_REPLY", "none in time");
    msgpack_object echo = zkv_find(z->reply, "id");
    bool ok = outcome == REPLY && zkv_find(z->reply, "ok").via.boolean;
    bool ours = msgpack_object_equal(echo, id) || (!ok && echo.type == MSGPACK_OBJECT_NIL);
    if (outcome == REPLY && ours) return ok ? 0 : refused(z);
    close_socket(z);
    return fail(z, "BAD_REPLY", "it is no map, or has no ok, or another id");
}

/* Asks one of several servers whose it is. Fails if it is not to get a request. */
static int check(zkv *z) {
    msgpack_object id = zkv_int((int64_t)++z->last_id);
    msgpack_object_kv fields[] = {{zkv_str("op"), zkv_str("INFO")}, {zkv_str("id"), id}};
    msgpack_sbuffer body;
    msgpack_packer packer;
    msgpack_sbuffer_init(&body);
    msgpack_packer_init(&packer, &body, msgpack_sbuffer_write);
    msgpack_pack_object(&packer, zkv_map(fields, 2));
    int status = ask(z, &body, id);
    msgpack_sbuffer_destroy(&body);
    if (status) {
        if (!strcmp(z->code, "NO_REPLY")) z->applied_unknown = false; /* only INFO was sent */
        return -1;
    }
    char name[sizeof z->store] = "";
    msgpack_object replication = zkv_find(z->reply, "replication"), store = zkv_find(replication, "store");
    int64_t term = zkv_find(replication, "term").via.i64;
    if (store.type == MSGPACK_OBJECT_STR)
        snprintf(name, sizeof name, "%.*s", (int)store.via.str.size, store.via.str.ptr);
    if (*z->store && (strcmp(name, z->store) || term < z->term)) {
        fail(z, "NOT_LEADER", "the server has another store, or an older term of it");
        z->retry = true, z->applied_unknown = false;
        return -1;
    }
    strcpy(z->store, name), z->term = term;
    return 0;
}

/* One attempt, at a server that has the right store. */
static int ask_member(zkv *z, const msgpack_sbuffer *body, msgpack_object id) {
    if (!z->socket && z->endpoint_count > 1 && check(z)) return close_socket(z), -1;
    return ask(z, body, id);
}

enum { ATTEMPTS = 3 }; /* for each endpoint */

/* Any op with its fields. The reply is in z->reply. */
int zkv_call(zkv *z, const char *op, const zkv_field *fields, size_t count) {
    static const char *const writes[] = {"PUT", "DELETE", "TOUCH", "INCR", "MPUT", "MDELETE", "TXN", NULL};
    static const char *const reads[] = {"PING", "GET", "MGET", "SCAN", "COUNT", "CHANGES", "INFO", NULL};
    static const char *const moves[] = {"NO_REPLY", "HANDSHAKE_FAILED", "NOT_LEADER", NULL};
    static const char *const says_little[] = {"DEADLINE", "HANDSHAKE_FAILED", NULL};
    msgpack_object id = NIL;
    bool write = among(op, writes), session = !write, repeatable = write || among(op, reads);
    msgpack_sbuffer body;
    msgpack_packer packer;
    struct timespec pause = {0, 100000000};
    for (size_t i = 0; i < count; i++) {
        if (!strcmp(fields[i].name, "id")) id = fields[i].value;
        if (strcmp(fields[i].name, "session")) continue;
        session = true;
        if (write) repeatable = fields[i].value.type != MSGPACK_OBJECT_NIL;
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
    /* What is not repeatable, such as END, concerns one server; or it may be applied twice elsewhere. */
    size_t laps = repeatable ? z->endpoint_count : 1, attempts = strcmp(op, "END") ? ATTEMPTS * laps : 1;
    bool in_doubt = false, again = true; /* in doubt: an attempt may have been applied */
    int status = -1;
    for (size_t attempt = 0; attempt < attempts; attempt++) {
        status = ask_member(z, &body, id);
        again = status && (z->retry || (in_doubt && among(z->code, says_little)));
        if (!again) break;
        in_doubt |= z->applied_unknown && strcmp(z->code, "HANDSHAKE_FAILED");
        if (strcmp(z->code, "NO_REPLY")) nanosleep(&pause, NULL);
        /* One lap follows hints, lest it is sent in circles; the others try all. */
        if (among(z->code, moves) && (repeatable || (write && !in_doubt)))
            move_on(z, attempt < laps ? zkv_find(z->reply, "leader") : NIL);
    }
    msgpack_sbuffer_destroy(&body);
    if (again && in_doubt && !z->applied_unknown) return fail(z, "NO_REPLY", "none in time");
    return status;
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
    char after[65536] = ""; /* the longest key that a server can be set to take */
    zkv_field fields[] = {{"prefix", zkv_str(prefix)}, {"after", NIL}};
    for (;;) {
        if (zkv_call(z, "SCAN", fields, 2)) return -1;
        msgpack_object next = zkv_find(z->reply, "next");
        msgpack_object_array items = zkv_find(z->reply, "items").via.array;
        if (next.type == MSGPACK_OBJECT_STR) {
            if (next.via.str.size > sizeof after)
                return fail(z, "BAD_REPLY", "its next is longer than any key");
            memcpy(after, next.via.str.ptr, next.via.str.size);
        }
        for (uint32_t i = 0; i < items.size; i++) each(context, items.ptr[i].via.array.ptr);
        if (next.type != MSGPACK_OBJECT_STR) return 0;
        fields[1].value = zkv_data(MSGPACK_OBJECT_STR, after, next.via.str.size);
    }
}
int zkv_end(zkv *z, int64_t *rev) { return finish(z, zkv_call(z, "END", NULL, 0), "rev", rev); }

