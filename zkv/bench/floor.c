/* The floor: the cost of libzmq alone, in a server with the structure of zkv.
 *
 * It has a ROUTER, libzmq's own proxy, a DEALER inside, and one worker that answers every request
 * with a constant. If a request ends in an id of four bytes, as zkv-bench sends it with several
 * requests in flight, the reply contains it. The program prints "READY ENDPOINT" when it serves,
 * and ends when its standard input ends, so that it never outlives its parent.
 *
 *     cc -O2 floor.c -o floor -lzmq -lpthread && ./floor 'tcp://127.0.0.1:*'
 */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <zmq.h>

static void *context;

static void *work(void *unused) {
    static const char constant[] = "\x82\xa2ok\xc3\xa3rev\x01";
    static const char with_id[] = "\x83\xa2ok\xc3\xa2id\xce....\xa3rev\x01";
    char reply[sizeof with_id - 1];
    void *worker = zmq_socket(context, ZMQ_REP);
    (void)unused;
    memcpy(reply, with_id, sizeof reply);
    if (zmq_connect(worker, "inproc://workers"))
        exit(1);
    for (;;) {
        zmq_msg_t request;
        zmq_msg_init(&request);
        if (zmq_msg_recv(&request, worker, 0) < 0)
            exit(1);
        const char *body = zmq_msg_data(&request);
        size_t size = zmq_msg_size(&request);
        if (size > 8 && !memcmp(body + size - 8, "\xa2id\xce", 4)) {
            memcpy(reply + 9, body + size - 4, 4);
            zmq_send(worker, reply, sizeof reply, 0);
        } else {
            zmq_send(worker, constant, sizeof constant - 1, 0);
        }
        zmq_msg_close(&request);
    }
    return NULL;
}

static void *wait_for_end(void *unused) {
    char byte;
    (void)unused;
    while (read(0, &byte, 1) > 0) {
    }
    _exit(0);
}

int main(int count, char **arguments) {
    char endpoint[256];
    size_t size = sizeof endpoint;
    int unlimited = 0;
    pthread_t thread;
    if (count != 2)
        return 2;
    context = zmq_ctx_new();
    zmq_ctx_set(context, ZMQ_MAX_SOCKETS, 20000);
    void *front = zmq_socket(context, ZMQ_ROUTER), *back = zmq_socket(context, ZMQ_DEALER);
    zmq_setsockopt(front, ZMQ_SNDHWM, &unlimited, sizeof unlimited);
    zmq_setsockopt(front, ZMQ_RCVHWM, &unlimited, sizeof unlimited);
    zmq_setsockopt(back, ZMQ_SNDHWM, &unlimited, sizeof unlimited);
    zmq_setsockopt(back, ZMQ_RCVHWM, &unlimited, sizeof unlimited);
    if (zmq_bind(front, arguments[1]) || zmq_bind(back, "inproc://workers")) {
        fprintf(stderr, "%s: %s\n", arguments[1], zmq_strerror(zmq_errno()));
        return 1;
    }
    zmq_getsockopt(front, ZMQ_LAST_ENDPOINT, endpoint, &size);
    pthread_create(&thread, NULL, work, NULL);
    pthread_create(&thread, NULL, wait_for_end, NULL);
    printf("READY %s\n", endpoint);
    fflush(stdout);
    zmq_proxy(front, back, NULL);
    return 0;
}
