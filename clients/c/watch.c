/* Prints every change of a zkv server's keys, as it happens: watch [ENDPOINT [PREFIX]]
 *
 * The change feed, a SUB socket, is used as a bell: its heartbeat comes after every burst of changes
 * and once a second, and tells the newest revision. The changes themselves are asked for with
 * CHANGES. So each is printed once and in order, whatever becomes of connections in between. */
#include "client.c"

static const int SILENCE = 5000; /* ms without a heartbeat: the connection is taken to be dead */

static void *listen_to(zkv *z, const char *feed) {
    void *socket = zmq_socket(z->context, ZMQ_SUB);
    int none = 0;
    zmq_setsockopt(socket, ZMQ_LINGER, &none, sizeof none);
    zmq_setsockopt(socket, ZMQ_SUBSCRIBE, "\0", 1); /* the topic of heartbeats */
    zmq_setsockopt(socket, ZMQ_RCVTIMEO, &SILENCE, sizeof SILENCE);
    if (zkv_secure(z, socket, feed)) fprintf(stderr, "watch: %s\n", zkv_problem()), exit(2);
    zmq_connect(socket, feed);
    return socket;
}

/* The revision in the next heartbeat; -1 if none comes. */
static int64_t heartbeat(void *socket) {
    char topic[1], body[64];
    size_t offset = 0;
    int size = zmq_recv(socket, topic, sizeof topic, 0);
    if (size >= 0) size = zmq_recv(socket, body, sizeof body, 0);
    if (size < 0 || size > (int)sizeof body) return -1;
    msgpack_unpacked beat;
    msgpack_unpacked_init(&beat);
    msgpack_unpack_next(&beat, body, (size_t)size, &offset);
    int64_t rev = zkv_find(beat.data, "rev").via.i64;
    msgpack_unpacked_destroy(&beat);
    return rev;
}

static void print_change(const msgpack_object *change) { /* [rev, op, key, value] */
    msgpack_object_str op = change[1].via.str, key = change[2].via.str;
    printf("%lld\t%.*s\t%.*s", (long long)change[0].via.i64, op.size, op.ptr, key.size, key.ptr);
    if (*op.ptr == 'P' || *op.ptr == 'T') { /* PUT, TOUCH; else it is gone */
        putchar('\t');
        msgpack_object_print(stdout, change[3]);
    }
    putchar('\n');
    fflush(stdout);
}

/* Prints what came after a revision, and gives the revision up to which it did; -1 on a failure. */
static int64_t print_changes(zkv *z, int64_t since, const char *prefix) {
    for (;;) {
        zkv_field fields[] = {{"since", zkv_int(since)}, {"prefix", zkv_str(prefix)}};
        if (!zkv_call(z, "CHANGES", fields, 2)) {
            msgpack_object_array changes = zkv_find(z->reply, "changes").via.array;
            for (uint32_t i = 0; i < changes.size; i++) print_change(changes.ptr[i].via.array.ptr);
            since = zkv_find(z->reply, "next").via.i64;
            if (since >= zkv_find(z->reply, "rev").via.i64) return since;
        } else if (!strcmp(z->code, "COMPACTED")) {
            long long oldest = (long long)zkv_find(z->reply, "oldest").via.i64;
            fprintf(stderr, "changes from revision %lld to %lld are not known any more\n",
                    (long long)since + 1, oldest - 1);
            since = oldest - 1;
        } else {
            fprintf(stderr, "watch: %s: %s\n", z->code, z->message);
            return -1;
        }
    }
}

int main(int argc, char **argv) {
    const char *endpoint = argc > 1 ? argv[1] : "tcp://127.0.0.1:5555", *prefix = argc > 2 ? argv[2] : "";
    zkv *z = zkv_connect(endpoint, 5);
    if (!z) return fprintf(stderr, "watch: %s\n", zkv_problem()), 2;
    char feed[256];
    int64_t beat = -1, seen = -1, rev; /* beat: the last heartbeat's; CHANGES may be ahead of it */
    if (zkv_call(z, "INFO", NULL, 0)) return fprintf(stderr, "watch: %s: %s\n", z->code, z->message), 3;
    msgpack_object found = zkv_find(z->reply, "feed");
    if (found.type != MSGPACK_OBJECT_STR) return fprintf(stderr, "watch: it publishes nothing\n"), 2;
    snprintf(feed, sizeof feed, "%.*s", (int)found.via.str.size, found.via.str.ptr);
    void *socket = listen_to(z, feed);
    for (;;) {
        if ((rev = heartbeat(socket)) < 0) {
            if (errno == EINTR) continue;
            zmq_close(socket);
            zkv_next_key(z); /* the server may have another one now */
            socket = listen_to(z, feed);
            continue;
        }
        if (beat < 0) fprintf(stderr, "following %s from revision %lld\n", feed, (long long)rev);
        if (rev < beat) fprintf(stderr, "the store went back to revision %lld\n", (long long)rev);
        if (beat < 0 || rev < beat) seen = rev;
        beat = rev;
        if (rev > seen && (seen = print_changes(z, seen, prefix)) < 0) return 2;
    }
}
