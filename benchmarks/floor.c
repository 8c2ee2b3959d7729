/* The floors: a single ROUTER that answers every request with a constant, without reading it.
 *
 * This is the lowest cost that libzmq allows for a server in one thread. With a second argument, a
 * file, it also keeps each request as a store must keep a PUT: a copy in memory, and one in this
 * log, which is written once for a batch and before the replies are sent. With a third argument,
 * "sync", the log is then on disk, too. It has no keys, no checksums and no limits.
 *
 * If a request ends in an `id` of four bytes, as the load sends it with several in flight, the
 * reply contains it. Like zkv, the program takes several requests before it answers. It prints
 * "READY ENDPOINT" when it serves, and ends when its standard input ends, so that it never outlives
 * its parent.
 *
 *     cc -O2 floor.c -o floor -lzmq -lpthread && ./floor 'tcp://127.0.0.1:*' [LOG [sync]]
 */
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* The required parts of <zmq.h>: pyzmq's wheel has the library, but no headers. */
typedef struct {
    _Alignas(8) unsigned char bytes[64];
} zmq_msg_t;
extern void *zmq_ctx_new(void);
extern int zmq_ctx_set(void *context, int option, int value);
extern void *zmq_socket(void *context, int kind);
extern int zmq_setsockopt(void *socket, int option, const void *value, size_t size);
extern int zmq_getsockopt(void *socket, int option, void *value, size_t *size);
extern int zmq_bind(void *socket, const char *endpoint);
extern int zmq_msg_init(zmq_msg_t *message);
extern int zmq_msg_recv(zmq_msg_t *message, void *socket, int flags);
extern int zmq_msg_send(zmq_msg_t *message, void *socket, int flags);
extern int zmq_msg_close(zmq_msg_t *message);
extern void *zmq_msg_data(zmq_msg_t *message);
extern size_t zmq_msg_size(const zmq_msg_t *message);
extern int zmq_send(void *socket, const void *bytes, size_t size, int flags);
enum { ROUTER = 6, DONTWAIT = 1, SNDMORE = 2 };
enum { BACKLOG = 19, SNDHWM = 23, RCVHWM = 24, LAST_ENDPOINT = 32 };
enum { MAX_SOCKETS = 2, BATCH = 64, BATCH_BYTES = 1 << 18, KEPT = 1024 };

typedef struct {
    zmq_msg_t address, delimiter, body;
} request;

static int take(void *router, request *to, int flags)
{
    zmq_msg_init(&to->address), zmq_msg_init(&to->delimiter), zmq_msg_init(&to->body);
    return zmq_msg_recv(&to->address, router, flags) >= 0 &&
           zmq_msg_recv(&to->delimiter, router, 0) >= 0 && zmq_msg_recv(&to->body, router, 0) >= 0;
}

static void answer(void *router, request *from)
{
    static const char constant[] = "\x82\xa2ok\xc3\xa3rev\x01";
    char with_id[] = "\x83\xa2ok\xc3\xa2id\xce....\xa3rev\x01";
    const char *body = zmq_msg_data(&from->body);
    size_t size = zmq_msg_size(&from->body);
    zmq_msg_send(&from->address, router, SNDMORE);
    zmq_msg_send(&from->delimiter, router, SNDMORE);
    if (size > 8 && !memcmp(body + size - 8, "\xa2id\xce", 4)) {
        memcpy(with_id + 9, body + size - 4, 4);
        zmq_send(router, with_id, sizeof with_id - 1, 0);
    } else {
        zmq_send(router, constant, sizeof constant - 1, 0);
    }
    zmq_msg_close(&from->body);
}

/* Copy a request into memory in place of an older one, and into the log. The size of the log. */
static size_t keep(request *from, char *log, size_t used)
{
    static struct {
        char *at;
        size_t size;
    } kept[KEPT], *to;
    static unsigned next;
    size_t size = zmq_msg_size(&from->body);
    to = &kept[next++ % KEPT];
    if (to->size != size) {
        free(to->at);
        to->at = malloc(size);
        to->size = size;
    }
    memcpy(to->at, zmq_msg_data(&from->body), size);
    memcpy(log + used, zmq_msg_data(&from->body), size);
    return used + size;
}

static void keep_all(request *batch, int count, size_t bytes, int file, int syncs)
{
    static char *log;
    static size_t room;
    size_t used = 0;
    if (room < bytes)
        log = realloc(log, room = bytes);
    for (int i = 0; i < count; i++)
        used = keep(&batch[i], log, used);
    if (write(file, log, used) != (ssize_t)used || (syncs && fdatasync(file) < 0))
        exit(1);
}

static void *wait_for_end(void *unused)
{
    char byte;
    while (read(0, &byte, 1) > 0)
        continue;
    _exit(0);
    return unused;
}

int main(int count, char **arguments)
{
    static request batch[BATCH];
    char endpoint[256];
    size_t size = sizeof endpoint;
    int unlimited = 0, backlog = 4096; /* so that thousands may connect at once, as to zkv */
    pthread_t thread;
    if (count < 2 || count > 4)
        return 2;
    int file = count > 2 ? open(arguments[2], O_CREAT | O_WRONLY | O_APPEND, 0600) : -1;
    void *context = zmq_ctx_new();
    zmq_ctx_set(context, MAX_SOCKETS, 20000);
    void *router = zmq_socket(context, ROUTER);
    zmq_setsockopt(router, SNDHWM, &unlimited, sizeof unlimited);
    zmq_setsockopt(router, RCVHWM, &unlimited, sizeof unlimited);
    zmq_setsockopt(router, BACKLOG, &backlog, sizeof backlog);
    if (zmq_bind(router, arguments[1])) {
        fprintf(stderr, "floor: %s cannot be bound\n", arguments[1]);
        return 1;
    }
    zmq_getsockopt(router, LAST_ENDPOINT, endpoint, &size);
    pthread_create(&thread, NULL, wait_for_end, NULL);
    printf("READY %s\n", endpoint);
    fflush(stdout);
    for (;;) {
        int taken = 0;
        size_t bytes = 0;
        while (taken < BATCH && bytes < BATCH_BYTES &&
               take(router, &batch[taken], taken ? DONTWAIT : 0))
            bytes += zmq_msg_size(&batch[taken++].body);
        if (count > 2)
            keep_all(batch, taken, bytes, file, count > 3);
        for (int i = 0; i < taken; i++)
            answer(router, &batch[i]);
    }
}
