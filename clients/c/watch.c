/* Prints every change of a zkv server's keys, as it happens: watch [ENDPOINT [PREFIX]]
 *
 * The change feed, a SUB socket, is used as a bell: its heartbeat comes after every burst of changes
 * and once a second, and tells the newest revision. The changes themselves are asked for with
 * CHANGES. So each is printed once and in order, whatever becomes of connections in between.
 *
 * Of several endpoints it follows the server that leads: one that another has superseded goes on to
 * beat. A server that was promoted goes on with the revisions, far above the last one. */
#include "client.c"

static const int SILENCE = 5000; /* ms without a heartbeat: the connection is taken to be dead */
static const double CHECK = 1;   /* seconds between two looks whether a server still leads */

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

static int complain(zkv *z) { return fprintf(stderr, "watch: %s: %s\n", z->code, z->message), -1; }

/* Prints what came after a revision, and moves it on as it does; -1 on a failure. */
static int print_changes(zkv *z, int64_t *since, const char *prefix) {
    for (;;) {
        zkv_field fields[] = {{"since", zkv_int(*since)}, {"prefix", zkv_str(prefix)}};
        if (!zkv_call(z, "CHANGES", fields, 2)) {
            msgpack_object_array changes = zkv_find(z->reply, "changes").via.array;
            for (uint32_t i = 0; i < changes.size; i++) print_change(changes.ptr[i].via.array.ptr);
            *since = zkv_find(z->reply, "next").via.i64;
            if (*since >= zkv_find(z->reply, "rev").via.i64) return 0;
        } else if (!strcmp(z->code, "COMPACTED")) {
            long long oldest = (long long)zkv_find(z->reply, "oldest").via.i64;
            fprintf(stderr, "changes from revision %lld to %lld are not known any more\n",
                    (long long)*since + 1, oldest - 1);
            *since = oldest - 1;
        } else {
            return -1;
        }
    }
}

typedef char place[256];
static const zkv_field NO_KEYS[] = {{"keys", {MSGPACK_OBJECT_ARRAY, {0}}}};

/* Where the server publishes; of several, the one that leads. -1 on a failure. */
static int find_feed(zkv *z, place feed) {
    if (z->endpoint_count > 1 && zkv_call(z, "MGET", NO_KEYS, 1)) return -1; /* only one that leads answers */
    if (zkv_call(z, "INFO", NULL, 0)) return -1;
    msgpack_object found = zkv_find(z->reply, "feed");
    if (found.type != MSGPACK_OBJECT_STR) return fail(z, "NO_FEED", "the server publishes nothing");
    return snprintf(feed, sizeof(place), "%.*s", (int)found.via.str.size, found.via.str.ptr), 0;
}

/* The same; waits until there is one that leads. */
static int find_next_feed(zkv *z, place feed) {
    struct timespec pause = {(time_t)CHECK, 0};
    while (find_feed(z, feed)) {
        if (!z->retry) return -1;
        nanosleep(&pause, NULL);
    }
    return 0;
}

/* Prints what a server that was superseded still has: the other one has it, too, but not as changes.
 * What one has that leads may be in no other history. */
static void print_rest(const char *endpoint, int64_t *seen, const char *prefix) {
    zkv *old = zkv_connect(endpoint, 1);
    if (!old) return;
    if (zkv_call(old, "MGET", NO_KEYS, 1) && !strcmp(old->code, "NOT_LEADER")) print_changes(old, seen, prefix);
    zkv_close(old);
}

int main(int argc, char **argv) {
    const char *endpoint = argc > 1 ? argv[1] : "tcp://127.0.0.1:5555", *prefix = argc > 2 ? argv[2] : "";
    zkv *z = zkv_connect(endpoint, 5);
    if (!z) return fprintf(stderr, "watch: %s\n", zkv_problem()), 2;
    place feed, found, followed;
    int64_t beat = -1, seen = -1, rev; /* beat: of the last heartbeat of this feed; CHANGES may be ahead of it */
    bool list = strchr(endpoint, ',') != NULL;
    if (find_feed(z, feed)) return complain(z), strcmp(z->code, "NO_FEED") ? 3 : 2;
    snprintf(followed, sizeof followed, "%s", z->endpoints[0]);
    void *socket = listen_to(z, feed);
    double checked = now();
    for (;;) {
        bool silent = (rev = heartbeat(socket)) < 0;
        if (silent && errno == EINTR) continue;
        strcpy(found, feed);
        if (list && (silent || now() >= checked + CHECK)) {
            if (find_next_feed(z, found)) return complain(z), 2;
            checked = now();
        }
        bool moves = strcmp(found, feed) != 0;
        if (silent || moves) {
            zmq_close(socket);
            if (silent) zkv_next_key(z); /* the server may have another one now */
            if (moves && seen >= 0) print_rest(followed, &seen, prefix);
            if (moves) beat = -1;
            snprintf(followed, sizeof followed, "%s", z->endpoints[0]);
            strcpy(feed, found);
            socket = listen_to(z, feed);
            continue;
        }
        if (beat < 0) fprintf(stderr, "following %s from revision %lld\n", feed, (long long)(seen < 0 ? rev : seen));
        if (rev < beat) fprintf(stderr, "the store went back to revision %lld\n", (long long)rev);
        if (seen < 0 || rev < beat) seen = rev;
        beat = rev;
        /* If the server is gone, the next silence tells. */
        if (rev > seen && print_changes(z, &seen, prefix) && !(list && z->retry)) return complain(z), 2;
    }
}
