/* The load of the benchmarks: one client for all servers, so that its cost is the same for all.
 *
 *     cc -O2 load.c -o load
 *     ./load PROTOCOL PORT PID CONNECTIONS IN_FLIGHT SECONDS OP[:N] KEYS VALUE_BYTES SEED
 *
 * One thread drives all connections to 127.0.0.1 under one epoll. It speaks zkv's ZMTP 3.0, RESP,
 * memcached's meta commands, NATS's client protocol with the subjects of a KV bucket, and gRPC over
 * HTTP/2 for etcd, each directly on sockets. All servers get the same keys and the same bytes as
 * values. Replies are parsed completely, and every failure and every absent value is counted. The
 * keys of one batch are all different, like those of a map.
 *
 * OP is one of these. The first quarter of a second, or of SECONDS if that is less, is not measured.
 * At least one reply is.
 *
 *     get, put, incr    one key, chosen by chance
 *     mix               half get, half put
 *     mget:N, mput:N    N keys in each request
 *     repeat:N          an mput of N keys whose last key is its first one
 *     fill, fill:N      writes every key once, N in each request, and ends
 *
 * SEED chooses the keys; fill goes through them in order if it is 0.
 *
 * A reply is assigned to the oldest request on its connection. If a server answers in another
 * order, two requests of a connection may exchange their latencies.
 *
 * Prints one JSON object: requests per second; p50 and p99 in us; CPU time of the server PID and of
 * this program per request, in us; the share of its time that this program was busy; the numbers of
 * failures and of missing values.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum op { FILL, GET, PUT, MIX, INCR, MGET, MPUT, REPEAT, OPS };
static const char *const OP_NAMES[OPS] = {"fill", "get",  "put",  "mix",
                                          "incr", "mget", "mput", "repeat"};

enum { KEY_BYTES = 8, BATCH_OF_FILL = 100, READ_BYTES = 1 << 18, EVENTS = 512 };
static const double WARM_UP = 0.25, STALLED = 30.0;

typedef struct {
    unsigned char *bytes;
    size_t begin, end, room;
} buffer;

typedef struct {
    int fd, number, writing;
    buffer in, out;
    double *sent_at; /* of the requests in flight, a ring */
    size_t sent, answered;
    uint32_t stream;       /* HTTP/2: the newest */
    uint32_t *filled;      /* HTTP/2: the streams on which a message has come, a ring */
    size_t received;       /* HTTP/2: since the window was last opened */
} connection;

/* A protocol. `reply` parses the next message of the server in `size` bytes; it returns the length
 * of that, or 0 if it is incomplete, and clears `is_reply` if the message is not a reply. */
typedef struct {
    const char *name;
    int batches;     /* 1 if it has requests for many keys */
    int value_bytes; /* the largest value that this program can send to it */
    void (*greet)(connection *);
    void (*request)(connection *, enum op, int count);
    size_t (*reply)(connection *, const unsigned char *, size_t size, int *is_reply);
} protocol;

static struct {
    const protocol *protocol;
    enum op op;
    int batch, keys, value_bytes, in_flight, connections;
    char *value;
} job;
static unsigned long failed, missing;

static void stop(const char *what)
{
    fprintf(stderr, "load: %s\n", what);
    exit(1);
}

static void stop_by_system(const char *what)
{
    perror(what);
    exit(1);
}

/* --- Time and numbers ------------------------------------------------------------------------ */

static double seconds_of(clockid_t clock)
{
    struct timespec now;
    clock_gettime(clock, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

/* Seconds of CPU that all threads of a process have used, by the scheduler's own count. */
static double cpu_of(int pid)
{
    char path[300];
    double total = 0;
    snprintf(path, sizeof path, "/proc/%d/task", pid);
    DIR *tasks = opendir(path);
    if (tasks == NULL)
        return 0;
    for (struct dirent *task; (task = readdir(tasks)) != NULL;) {
        double ns = 0;
        snprintf(path, sizeof path, "/proc/%d/task/%s/schedstat", pid, task->d_name);
        FILE *file = task->d_name[0] == '.' ? NULL : fopen(path, "r");
        if (file == NULL)
            continue;
        if (fscanf(file, "%lf", &ns) == 1)
            total += ns * 1e-9;
        fclose(file);
    }
    closedir(tasks);
    return total;
}

static uint64_t random_state;

/* splitmix64, by Sebastiano Vigna: https://prng.di.unimi.it/splitmix64.c */
static uint32_t random_number(void)
{
    uint64_t z = (random_state += 0x9e3779b97f4a7c15);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
    return (uint32_t)((z ^ (z >> 31)) >> 32);
}

static uint32_t greatest_divisor(uint32_t a, uint32_t b)
{
    while (b) {
        uint32_t rest = a % b;
        a = b, b = rest;
    }
    return a;
}

/* Keys: random ones for single requests; for others, a walk that visits each key once a round. */
static struct {
    uint32_t at, step, first, taken;
} walk;

static void begin_walk(void)
{
    uint32_t keys = (uint32_t)job.keys;
    walk.at = random_number() % keys;
    do
        walk.step = random_number() % keys;
    while (keys > 1 && greatest_divisor(walk.step, keys) != 1);
    walk.taken = 0;
}

static uint32_t next_key(int of_walk)
{
    uint32_t keys = (uint32_t)job.keys;
    if (!of_walk && job.op != FILL)
        return random_number() % keys;
    walk.at = (uint32_t)(((uint64_t)walk.at + walk.step) % keys);
    if (++walk.taken == 1)
        walk.first = walk.at;
    return job.op == REPEAT && walk.taken == (uint32_t)job.batch ? walk.first : walk.at;
}

/* Latencies: 32 steps for each power of two, in 1/16 us. */
static uint32_t latencies[64 * 32];
static uint64_t measured;

static void note_latency(double seconds)
{
    uint64_t value = (uint64_t)(seconds * 16e6);
    measured++;
    if (value < 32) {
        latencies[value]++;
        return;
    }
    int power = 63 - __builtin_clzll(value);
    latencies[(power - 4) * 32 + (int)((value >> (power - 5)) & 31)]++;
}

static double percentile(double share)
{
    uint64_t wanted = (uint64_t)(share * (double)measured), sum = 0;
    for (int i = 0; i < 64 * 32; i++) {
        sum += latencies[i];
        if (sum > wanted) {
            int power = i / 32, rest = i % 32;
            return (power ? (double)((uint64_t)(32 + rest) << (power - 1)) : i) / 16;
        }
    }
    return 0;
}

/* --- Buffers --------------------------------------------------------------------------------- */

static void make_room(buffer *b, size_t size)
{
    if (b->begin && b->end + size > b->room) {
        memmove(b->bytes, b->bytes + b->begin, b->end - b->begin);
        b->end -= b->begin;
        b->begin = 0;
    }
    if (b->end + size > b->room) {
        b->room = (b->end + size) * 2;
        b->bytes = realloc(b->bytes, b->room);
        if (b->bytes == NULL)
            stop("out of memory");
    }
}

static void put(buffer *b, const void *bytes, size_t size)
{
    make_room(b, size);
    memcpy(b->bytes + b->end, bytes, size);
    b->end += size;
}

#define PUT_TEXT(b, text) put(b, text, sizeof(text) - 1)

static void put_number(buffer *b, uint64_t number, int width)
{
    unsigned char bytes[8];
    for (int i = 0; i < width; i++)
        bytes[i] = (unsigned char)(number >> (8 * (width - 1 - i)));
    put(b, bytes, (size_t)width);
}

static void put_key(buffer *b, char kind, int of_batch)
{
    char key[KEY_BYTES] = {kind};
    uint32_t number = next_key(of_batch);
    for (int i = KEY_BYTES - 1; i > 0; i--, number /= 10)
        key[i] = (char)('0' + number % 10);
    put(b, key, KEY_BYTES);
}

static void put_value(buffer *b)
{
    put(b, job.value, (size_t)job.value_bytes);
}

static uint64_t read_number(const unsigned char *from, int width)
{
    uint64_t number = 0;
    for (int i = 0; i < width; i++)
        number = number << 8 | from[i];
    return number;
}

/* --- zkv: msgpack in ZMTP 3.0 (https://rfc.zeromq.org/spec/23/) ------------------------------- */

static void read_exactly(int fd, void *to, size_t size)
{
    for (size_t have = 0; have < size;) {
        ssize_t count = read(fd, (char *)to + have, size - have);
        if (count <= 0)
            stop("the server closed the connection during the handshake");
        have += (size_t)count;
    }
}

static void zkv_greet(connection *c)
{
    unsigned char greeting[64] = {0xff, 0, 0, 0, 0, 0, 0, 0, 0, 0x7f, 3, 0, 'N', 'U', 'L', 'L'};
    static const char ready[] = "\x04\x1c\x05READY\x0bSocket-Type\x00\x00\x00\x06" "DEALER";
    unsigned char theirs[64], head[2], rest[256];
    put(&c->out, greeting, sizeof greeting);
    put(&c->out, ready, sizeof ready - 1);
    if (write(c->fd, c->out.bytes, c->out.end) != (ssize_t)c->out.end)
        stop_by_system("handshake");
    c->out.end = 0;
    read_exactly(c->fd, theirs, sizeof theirs);
    read_exactly(c->fd, head, sizeof head); /* READY is a short command */
    read_exactly(c->fd, rest, head[1]);
}

static void put_bin(buffer *b)
{
    static buffer packed;
    unsigned size = (unsigned)job.value_bytes;
    int width = size < 1 << 8 ? 1 : size < 1 << 16 ? 2 : 4;
    if (packed.end == 0) {
        put_number(&packed, width == 1 ? 0xc4 : width == 2 ? 0xc5 : 0xc6, 1);
        put_number(&packed, size, width);
        put_value(&packed);
    }
    put(b, packed.bytes, packed.end);
}

static void zkv_body(buffer *b, enum op op, int count)
{
    int has_id = job.in_flight > 1;
    static uint32_t id;
    put_number(b, 0x80u | (unsigned)((op == PUT ? 3 : 2) + has_id), 1);
    switch (op) {
    case GET:
        PUT_TEXT(b, "\xa2op\xa3GET\xa3key\xa8"), put_key(b, 'k', 0);
        break;
    case PUT:
        PUT_TEXT(b, "\xa2op\xa3PUT\xa3key\xa8"), put_key(b, 'k', 0);
        PUT_TEXT(b, "\xa5value"), put_bin(b);
        break;
    case INCR:
        PUT_TEXT(b, "\xa2op\xa4INCR\xa3key\xa8"), put_key(b, 'c', 0);
        break;
    case MGET:
        PUT_TEXT(b, "\xa2op\xa4MGET\xa4keys\xdc"), put_number(b, (unsigned)count, 2);
        for (int i = 0; i < count; i++)
            PUT_TEXT(b, "\xa8"), put_key(b, 'k', 1);
        break;
    default:
        PUT_TEXT(b, "\xa2op\xa4MPUT\xa5items\xde"), put_number(b, (unsigned)count, 2);
        for (int i = 0; i < count; i++)
            PUT_TEXT(b, "\xa8"), put_key(b, 'k', 1), put_bin(b);
    }
    if (has_id)
        PUT_TEXT(b, "\xa2id\xce"), put_number(b, ++id, 4);
}

static void zkv_request(connection *c, enum op op, int count)
{
    buffer *b = &c->out;
    PUT_TEXT(b, "\x01\x00"); /* the delimiter, and more to come */
    size_t before = b->end - b->begin;
    PUT_TEXT(b, "\x02........");
    zkv_body(b, op, count);
    unsigned char *frame = b->bytes + b->begin + before;
    size_t size = b->end - b->begin - before - 9;
    if (size > 255) {
        for (int i = 0; i < 8; i++)
            frame[1 + i] = (unsigned char)((uint64_t)size >> (56 - 8 * i));
    } else {
        frame[0] = 0, frame[1] = (unsigned char)size;
        memmove(frame + 2, frame + 9, size);
        b->end -= 7;
    }
}

/* Walk one msgpack value, as a client that unpacks it would; count nils. */
static void walk_msgpack(const unsigned char *at, const unsigned char *end)
{
    uint64_t left = 1;
    while (left && at < end) {
        unsigned c = *at++;
        left--;
        if (c < 0x80 || c >= 0xe0 || c == 0xc2 || c == 0xc3)
            continue;
        if (c == 0xc0)
            missing++;
        else if (c < 0x90)
            left += 2 * (c & 15u);
        else if (c < 0xa0)
            left += c & 15u;
        else if (c < 0xc0)
            at += c & 31;
        else if (c == 0xc4 || c == 0xd9)
            at += 1 + read_number(at, 1);
        else if (c == 0xc5 || c == 0xda)
            at += 2 + read_number(at, 2);
        else if (c == 0xc6 || c == 0xdb)
            at += 4 + read_number(at, 4);
        else if (c >= 0xca && c <= 0xd3)
            at += c == 0xca ? 4 : c == 0xcb ? 8 : 1 << ((c - 0xcc) & 3);
        else if (c == 0xdc || c == 0xdd)
            left += read_number(at, c == 0xdc ? 2 : 4), at += c == 0xdc ? 2 : 4;
        else if (c == 0xde || c == 0xdf)
            left += 2 * read_number(at, c == 0xde ? 2 : 4), at += c == 0xde ? 2 : 4;
        else
            stop("the server answers with an ext");
    }
}

static void answer_ping(connection *c, const unsigned char *body, size_t size)
{
    if (size < 7 || memcmp(body, "\4PING", 5))
        return;
    put_number(&c->out, 4, 1);
    put_number(&c->out, size - 2, 1);
    PUT_TEXT(&c->out, "\4PONG");
    put(&c->out, body + 7, size - 7); /* all but its time to live */
}

static size_t zkv_reply(connection *c, const unsigned char *from, size_t size, int *is_reply)
{
    for (size_t at = 0; at + 2 <= size;) {
        unsigned flags = from[at];
        size_t head = flags & 2 ? 9 : 2;
        if (at + head > size)
            return 0;
        size_t length = read_number(from + at + 1, (int)head - 1);
        if (at + head + length > size)
            return 0;
        const unsigned char *body = from + at + head;
        at += head + length;
        if (flags & 4) {
            answer_ping(c, body, length);
            *is_reply = 0;
            return at;
        }
        if (!(flags & 1)) {
            if (length < 5 || memcmp(body + 1, "\xa2ok\xc3", 4))
                failed++;
            walk_msgpack(body, body + length);
            return at;
        }
    }
    return 0;
}

/* --- Redis, Valkey: RESP ---------------------------------------------------------------------- */

static void no_greeting(connection *c)
{
    (void)c;
}

static void put_text_number(buffer *b, const char *before, long number)
{
    char text[48];
    put(b, text, (size_t)snprintf(text, sizeof text, "%s%ld\r\n", before, number));
}

static void redis_key(buffer *b, char kind, int of_batch)
{
    PUT_TEXT(b, "$8\r\n"), put_key(b, kind, of_batch), PUT_TEXT(b, "\r\n");
}

static void redis_value(buffer *b)
{
    static buffer packed;
    if (packed.end == 0)
        put_text_number(&packed, "$", job.value_bytes), put_value(&packed),
            PUT_TEXT(&packed, "\r\n");
    put(b, packed.bytes, packed.end);
}

static void redis_request(connection *c, enum op op, int count)
{
    buffer *b = &c->out;
    switch (op) {
    case GET:
        PUT_TEXT(b, "*2\r\n$3\r\nGET\r\n"), redis_key(b, 'k', 0);
        break;
    case PUT:
        PUT_TEXT(b, "*3\r\n$3\r\nSET\r\n"), redis_key(b, 'k', 0), redis_value(b);
        break;
    case INCR:
        PUT_TEXT(b, "*2\r\n$4\r\nINCR\r\n"), redis_key(b, 'c', 0);
        break;
    case MGET:
        put_text_number(b, "*", count + 1), PUT_TEXT(b, "$4\r\nMGET\r\n");
        for (int i = 0; i < count; i++)
            redis_key(b, 'k', 1);
        break;
    default:
        put_text_number(b, "*", 2 * count + 1), PUT_TEXT(b, "$4\r\nMSET\r\n");
        for (int i = 0; i < count; i++)
            redis_key(b, 'k', 1), redis_value(b);
    }
}

/* The end of the line at `from`, after its newline; NULL if the line is incomplete. */
static const unsigned char *end_of_line(const unsigned char *from, const unsigned char *end)
{
    const unsigned char *newline = memchr(from, '\n', (size_t)(end - from));
    return newline == NULL ? NULL : newline + 1;
}

static size_t redis_reply(connection *c, const unsigned char *from, size_t size, int *is_reply)
{
    const unsigned char *at = from, *end = from + size;
    unsigned long wrong = 0, absent = 0;
    (void)c, (void)is_reply;
    for (long left = 1; left; left--) {
        unsigned char kind = at < end ? *at : 0;
        const unsigned char *line = at < end ? end_of_line(at, end) : NULL;
        if (line == NULL)
            return 0;
        long number = kind == '$' || kind == '*' ? strtol((const char *)at + 1, NULL, 10) : 0;
        wrong += kind == '-';
        absent += kind == '$' && number < 0;
        at = line;
        if (kind == '*')
            left += number;
        else if (kind == '$' && number >= 0)
            at += number + 2;
        if (at > end)
            return 0;
    }
    failed += wrong, missing += absent;
    return (size_t)(at - from);
}

/* --- memcached: meta commands ------------------------------------------------------------------ */

static void memcached_request(connection *c, enum op op, int count)
{
    buffer *b = &c->out;
    (void)count;
    if (op == GET) {
        PUT_TEXT(b, "mg "), put_key(b, 'k', 0), PUT_TEXT(b, " v\r\n");
        return;
    }
    PUT_TEXT(b, "ms "), put_key(b, 'k', 0);
    put_text_number(b, " ", job.value_bytes);
    put_value(b), PUT_TEXT(b, "\r\n");
}

static size_t memcached_reply(connection *c, const unsigned char *from, size_t size, int *is_reply)
{
    const unsigned char *line = end_of_line(from, from + size);
    (void)c, (void)is_reply;
    if (line == NULL)
        return 0;
    size_t whole = (size_t)(line - from);
    if (!memcmp(from, "VA ", 3))
        whole += strtoul((const char *)from + 3, NULL, 10) + 2;
    if (whole > size)
        return 0;
    missing += !memcmp(from, "EN", 2);
    failed += memcmp(from, "VA", 2) && memcmp(from, "HD", 2) && memcmp(from, "EN", 2);
    return whole;
}

/* --- NATS: a KV bucket, used like NATS's own clients do ----------------------------------------- */

static void nats_greet(connection *c)
{
    char text[200];
    int size = snprintf(text, sizeof text,
                        "CONNECT {\"verbose\":false,\"headers\":true,\"no_responders\":true}\r\n"
                        "SUB _INBOX.zkv.%d 1\r\n",
                        c->number);
    if (write(c->fd, text, (size_t)size) != size)
        stop_by_system("handshake");
}

static void nats_request(connection *c, enum op op, int count)
{
    buffer *b = &c->out;
    char inbox[60];
    (void)count;
    if (op == GET)
        PUT_TEXT(b, "PUB $JS.API.DIRECT.GET.KV_bench.$KV.bench.");
    else
        PUT_TEXT(b, "PUB $KV.bench.");
    put_key(b, 'k', 0);
    put(b, inbox, (size_t)snprintf(inbox, sizeof inbox, " _INBOX.zkv.%d", c->number));
    put_text_number(b, " ", op == GET ? 0 : job.value_bytes);
    if (op != GET)
        put_value(b);
    PUT_TEXT(b, "\r\n");
}

static size_t nats_reply(connection *c, const unsigned char *from, size_t size, int *is_reply)
{
    const unsigned char *line = end_of_line(from, from + size);
    if (line == NULL)
        return 0;
    size_t head = (size_t)(line - from);
    if (memcmp(from, "MSG", 3) && memcmp(from, "HMSG", 4)) {
        *is_reply = 0; /* INFO, PING or an error */
        if (!memcmp(from, "PING", 4))
            PUT_TEXT(&c->out, "PONG\r\n");
        else if (from[0] == '-')
            stop("nats refused a message");
        return head;
    }
    const unsigned char *word = line - 2; /* the last word is the length of the payload */
    while (word[-1] != ' ')
        word--;
    size_t length = strtoul((const char *)word, NULL, 10);
    if (head + length + 2 > size)
        return 0;
    if (from[0] == 'H') /* "NATS/1.0 404 ...": the key is absent */
        missing += length > 9 && !memcmp(line, "NATS/1.0 ", 9);
    else
        failed += memmem(line, length, "\"error\"", 7) != NULL;
    return head + length + 2;
}

/* --- etcd: unary gRPC calls over HTTP/2 (RFC 9113), headers as literals of HPACK (RFC 7541) ----- */

enum { DATA, HEADERS, RST_STREAM = 3, SETTINGS, PING_FRAME = 6, GOAWAY, WINDOW_UPDATE };
enum { END_STREAM = 1, ACK = 1, END_HEADERS = 4 };
static const uint32_t WINDOW = 0x7fff0000;
static const size_t RING = 1024; /* A reply may come this many streams later than it should. */

static void put_frame(buffer *b, int kind, int flags, uint32_t stream, const void *of, size_t size)
{
    put_number(b, size, 3), put_number(b, (unsigned)kind, 1), put_number(b, (unsigned)flags, 1);
    put_number(b, stream, 4);
    put(b, of, size);
}

static void put_header(buffer *b, const char *name, const char *value)
{
    put_number(b, 0, 1);
    put_number(b, strlen(name), 1), put(b, name, strlen(name));
    put_number(b, strlen(value), 1), put(b, value, strlen(value));
}

static void open_window(buffer *b, uint32_t by)
{
    buffer content = {0};
    put_number(&content, by, 4);
    put_frame(b, WINDOW_UPDATE, 0, 0, content.bytes, content.end);
    free(content.bytes);
}

static void etcd_greet(connection *c)
{
    buffer settings = {0};
    PUT_TEXT(&settings, "\0\x01\0\0\0\0\0\x02\0\0\0\0\0\x04"); /* no table, no push, a window of */
    put_number(&settings, WINDOW, 4);
    PUT_TEXT(&c->out, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
    put_frame(&c->out, SETTINGS, 0, 0, settings.bytes, settings.end);
    open_window(&c->out, WINDOW);
    free(settings.bytes);
    c->stream = (uint32_t)-1;
    c->filled = calloc(RING * (size_t)job.in_flight, sizeof *c->filled);
}

static void put_varint(buffer *b, size_t number)
{
    for (; number > 127; number >>= 7)
        put_number(b, (number & 127) | 128, 1);
    put_number(b, number, 1);
}

static void etcd_request(connection *c, enum op op, int count)
{
    static buffer headers, message, body;
    (void)count;
    headers.end = message.end = body.end = 0;
    c->stream += 2;
    PUT_TEXT(&headers, "\x83\x86"); /* :method POST and :scheme http, of the static table */
    put_header(&headers, ":path",
               op == GET ? "/etcdserverpb.KV/Range" : "/etcdserverpb.KV/Put");
    put_header(&headers, ":authority", "127.0.0.1");
    put_header(&headers, "content-type", "application/grpc");
    put_header(&headers, "te", "trailers");
    PUT_TEXT(&message, "\x0a\x08"), put_key(&message, 'k', 0);
    if (op != GET)
        PUT_TEXT(&message, "\x12"), put_varint(&message, (size_t)job.value_bytes),
            put_value(&message);
    PUT_TEXT(&body, "\0"), put_number(&body, message.end, 4);
    put(&body, message.bytes, message.end);
    put_frame(&c->out, HEADERS, END_HEADERS, c->stream, headers.bytes, headers.end);
    put_frame(&c->out, DATA, END_STREAM, c->stream, body.bytes, body.end);
}

static size_t etcd_reply(connection *c, const unsigned char *from, size_t size, int *is_reply)
{
    size_t length = size < 9 ? 0 : read_number(from, 3);
    if (size < 9 || 9 + length > size)
        return 0;
    int kind = from[3], flags = from[4];
    uint32_t stream = (uint32_t)read_number(from + 5, 4);
    uint32_t *filled = &c->filled[stream / 2 % (RING * (size_t)job.in_flight)];
    *is_reply = kind == HEADERS && (flags & END_STREAM);
    if (kind == DATA) {
        *filled = length > 0 ? stream : *filled;
        c->received += length;
    } else if ((kind == SETTINGS || kind == PING_FRAME) && !(flags & ACK)) {
        put_frame(&c->out, kind, ACK, 0, from + 9, kind == PING_FRAME ? length : 0);
    } else if (kind == GOAWAY || kind == RST_STREAM) {
        stop("etcd closed a stream");
    } else if (*is_reply) { /* A failed call has no message, only a status. */
        failed += *filled != stream;
    }
    if (c->received > WINDOW / 2) {
        open_window(&c->out, (uint32_t)c->received);
        c->received = 0;
    }
    return 9 + length;
}

static const protocol PROTOCOLS[] = {
    {"zkv", 1, 1 << 30, zkv_greet, zkv_request, zkv_reply},
    {"redis", 1, 1 << 29, no_greeting, redis_request, redis_reply},
    {"memcached", 0, 1 << 20, no_greeting, memcached_request, memcached_reply},
    {"nats", 0, 1 << 20, nats_greet, nats_request, nats_reply},
    {"etcd", 0, 16000, etcd_greet, etcd_request, etcd_reply},
};

/* --- The loop ---------------------------------------------------------------------------------- */

static void send_one(connection *c, double now)
{
    enum op op = job.op;
    int count = job.batch;
    if (op == MIX)
        op = random_number() & 1 ? GET : PUT;
    if (op == FILL)
        op = job.protocol->batches && count > 1 ? MPUT : PUT;
    if (job.op >= MGET)
        begin_walk();
    if (op == REPEAT)
        op = MPUT;
    job.protocol->request(c, op, count);
    c->sent_at[c->sent++ % (size_t)job.in_flight] = now;
}

static void flush(connection *c, int epoll)
{
    buffer *b = &c->out;
    while (b->begin < b->end) {
        ssize_t count = send(c->fd, b->bytes + b->begin, b->end - b->begin, MSG_NOSIGNAL);
        if (count < 0 && errno != EAGAIN)
            stop_by_system("send");
        if (count < 0)
            break;
        b->begin += (size_t)count;
    }
    int more = b->begin < b->end;
    if (!more)
        b->begin = b->end = 0;
    if (more != c->writing) {
        struct epoll_event event = {EPOLLIN | (more ? EPOLLOUT : 0u), {.ptr = c}};
        epoll_ctl(epoll, EPOLL_CTL_MOD, c->fd, &event);
        c->writing = more;
    }
}

static void open_connection(connection *c, int number, int port, int epoll)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port),
                                  .sin_addr = {htonl(INADDR_LOOPBACK)}};
    struct epoll_event event = {EPOLLIN, {.ptr = c}};
    int on = 1;
    c->number = number;
    c->fd = socket(AF_INET, SOCK_STREAM, 0);
    if (c->fd < 0 || connect(c->fd, (struct sockaddr *)&address, sizeof address))
        stop_by_system("connect");
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    c->sent_at = calloc((size_t)job.in_flight, sizeof *c->sent_at);
    job.protocol->greet(c);
    fcntl(c->fd, F_SETFL, O_NONBLOCK);
    epoll_ctl(epoll, EPOLL_CTL_ADD, c->fd, &event);
}

static struct {
    uint64_t sent, answered, most; /* requests; `most` is the limit of `sent` */
    double began, server_cpu, own_cpu;
    int measuring;
} run;

/* Read from a connection, and send a request for each reply. */
static void take(connection *c, double now)
{
    int is_reply;
    for (;;) {
        is_reply = 1;
        buffer *in = &c->in;
        size_t size = job.protocol->reply(c, in->bytes + in->begin, in->end - in->begin, &is_reply);
        if (!size)
            break;
        in->begin += size;
        if (!is_reply)
            continue;
        run.answered++;
        note_latency(now - c->sent_at[c->answered++ % (size_t)job.in_flight]);
        if (run.sent < run.most) {
            send_one(c, now);
            run.sent++;
        }
    }
    if (c->in.begin == c->in.end)
        c->in.begin = c->in.end = 0;
}

static void receive(connection *c)
{
    make_room(&c->in, READ_BYTES);
    ssize_t count = recv(c->fd, c->in.bytes + c->in.end, READ_BYTES, 0);
    if (count == 0 || (count < 0 && errno != EAGAIN))
        stop("the server closed a connection");
    if (count > 0)
        c->in.end += (size_t)count;
    take(c, seconds_of(CLOCK_MONOTONIC));
}

static void begin_to_measure(int pid, double now)
{
    run.measuring = 1;
    run.answered = measured = failed = missing = 0;
    memset(latencies, 0, sizeof latencies);
    run.server_cpu = cpu_of(pid);
    run.own_cpu = seconds_of(CLOCK_PROCESS_CPUTIME_ID);
    run.began = now;
}

static void drive(connection *connections, int epoll, int pid, double seconds)
{
    static struct epoll_event events[EVENTS];
    double started = seconds_of(CLOCK_MONOTONIC);
    double warm = job.op == FILL ? 0 : WARM_UP * (seconds < 1 ? seconds : 1);
    for (int i = 0; i < job.connections; i++) {
        for (int j = 0; j < job.in_flight && run.sent < run.most; j++, run.sent++)
            send_one(&connections[i], started);
        flush(&connections[i], epoll);
    }
    for (;;) {
        double now = seconds_of(CLOCK_MONOTONIC);
        if (!run.measuring && now - started >= warm)
            begin_to_measure(pid, now);
        int over = job.op == FILL ? run.answered >= run.most
                                  : now - run.began >= seconds && run.answered > 0;
        if (run.measuring && over)
            return;
        int count = epoll_wait(epoll, events, EVENTS, (int)(STALLED * 1000));
        if (count == 0)
            stop("the server no longer answers");
        for (int i = 0; i < count; i++) {
            connection *c = events[i].data.ptr;
            if (events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR))
                receive(c);
            flush(c, epoll);
        }
    }
}

static void tell(int pid)
{
    double wall = seconds_of(CLOCK_MONOTONIC) - run.began;
    double own = seconds_of(CLOCK_PROCESS_CPUTIME_ID) - run.own_cpu;
    double each = 1e6 / (double)(run.answered ? run.answered : 1);
    printf("{\"rate\": %.1f, \"p50\": %.2f, \"p99\": %.2f, \"server_cpu\": %.4f, "
           "\"client_cpu\": %.4f, \"busy\": %.3f, \"failed\": %lu, \"missing\": %lu}\n",
           (double)run.answered / wall, percentile(0.5), percentile(0.99),
           (cpu_of(pid) - run.server_cpu) * each, own * each, own / wall, failed, missing);
}

static void read_arguments(char **arguments)
{
    size_t count = sizeof PROTOCOLS / sizeof *PROTOCOLS;
    for (size_t i = 0; i < count; i++)
        if (!strcmp(arguments[1], PROTOCOLS[i].name))
            job.protocol = &PROTOCOLS[i];
    char *colon = strchr(arguments[7], ':');
    job.batch = colon ? atoi(colon + 1) : 1;
    size_t length = colon ? (size_t)(colon - arguments[7]) : strlen(arguments[7]);
    job.op = OPS;
    for (int i = 0; i < OPS; i++)
        if (strlen(OP_NAMES[i]) == length && !memcmp(OP_NAMES[i], arguments[7], length))
            job.op = (enum op)i;
    job.connections = atoi(arguments[4]), job.in_flight = atoi(arguments[5]);
    job.keys = atoi(arguments[8]), job.value_bytes = atoi(arguments[9]);
    random_state = strtoull(arguments[10], NULL, 10);
    if (job.protocol == NULL || job.op == OPS)
        stop("unknown protocol or op");
    if (job.connections < 1 || job.in_flight < 1 || job.keys < 1 || job.value_bytes < 1)
        stop("numbers must be above 0");
    if (job.keys > 10000000)
        stop("a key has seven digits");
    if (job.value_bytes > job.protocol->value_bytes)
        stop("a value does not fit into one message, or frame, of this protocol");
    if (job.batch < 1 || job.batch > job.keys || job.batch > 65535)
        stop("a batch must have at least one key, and no key twice");
    if (job.op >= INCR && !job.protocol->batches)
        stop("this server does not have this op");
    if (job.op == FILL && !colon) /* Larger values would make larger messages than allowed. */
        job.batch = job.value_bytes <= 65536 && job.keys >= BATCH_OF_FILL ? BATCH_OF_FILL : 1;
    if (!job.protocol->batches)
        job.batch = 1;
}

int main(int count, char **arguments)
{
    if (count != 11) {
        fprintf(stderr, "load: PROTOCOL PORT PID CONNECTIONS IN_FLIGHT SECONDS OP[:N] KEYS "
                        "VALUE_BYTES SEED\n");
        return 2;
    }
    read_arguments(arguments);
    int pid = atoi(arguments[3]), epoll = epoll_create1(0);
    job.value = malloc((size_t)job.value_bytes);
    memset(job.value, 'x', (size_t)job.value_bytes);
    run.most = ~0ull;
    if (job.op == FILL) {
        run.most = (uint64_t)((job.keys + job.batch - 1) / job.batch);
        walk.at = (uint32_t)job.keys - 1, walk.step = 1; /* in order */
        if (random_state != 0)
            begin_walk();
    }
    connection *connections = calloc((size_t)job.connections, sizeof *connections);
    for (int i = 0; i < job.connections; i++)
        open_connection(&connections[i], i, atoi(arguments[2]), epoll);
    drive(connections, epoll, pid, atof(arguments[6]));
    tell(pid);
    return 0;
}
