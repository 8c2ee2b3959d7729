/* The command line of client.c: put, get, delete, incr, end; and call, by which tests drive it.
 *
 * Exit status: 0 done, 1 NOT_FOUND or CONFLICT, 2 usage or any other failure, 3 no answer in time. */
#include <locale.h>
#include <strings.h>
#include <wchar.h>

#include "client.c"

static bool is_utf8(const char *text, size_t size) {
    mbstate_t state = {0};
    for (size_t used; size > 0; text += used, size -= used) {
        used = mbrtowc(NULL, text, size, &state);
        if (used == 0) used = 1; /* NUL */
        if (used > size) return false;
    }
    return true;
}

static msgpack_object value_of(const char *word) {
    static msgpack_sbuffer in;
    size_t got;
    char buffer[65536];
    if (strcmp(word, "-")) return zkv_str(word);
    while ((got = fread(buffer, 1, sizeof buffer, stdin)) > 0) msgpack_sbuffer_write(&in, buffer, got);
    bool text = is_utf8(in.data, in.size);
    return zkv_data(text ? MSGPACK_OBJECT_STR : MSGPACK_OBJECT_BIN, in.data, in.size);
}

static void print_value(msgpack_object value) {
    if (value.type == MSGPACK_OBJECT_STR || value.type == MSGPACK_OBJECT_BIN)
        fwrite(value.via.str.ptr, 1, value.via.str.size, stdout);
    else
        msgpack_object_print(stdout, value);
    putchar('\n');
}

static size_t from_hex(char *line) { /* in place; how many bytes */
    size_t size = 0;
    for (char pair[3] = ""; line[2 * size] > ' '; size++) {
        memcpy(pair, line + 2 * size, 2);
        line[size] = (char)strtol(pair, NULL, 16);
    }
    return size;
}

static void pack_error(zkv *z, msgpack_packer *packer) { /* where the server has said nothing */
    msgpack_object unknown = {MSGPACK_OBJECT_NIL, {0}}, no = {MSGPACK_OBJECT_BOOLEAN, {0}}, retry = no;
    retry.via.boolean = z->retry;
    msgpack_object_kv fields[] = {
        {zkv_str("ok"), no},
        {zkv_str("code"), zkv_str(z->code)},
        {zkv_str("message"), zkv_str(z->message)},
        {zkv_str("retry"), retry},
        {zkv_str("applied"), z->applied_unknown ? unknown : no},
    };
    msgpack_pack_object(packer, zkv_map(fields, 5));
}

static void copy_text(msgpack_object text, char *to, size_t room) {
    snprintf(to, room, "%.*s", (int)text.via.str.size, text.via.str.ptr);
}

static int call_each(zkv *z) {
    char *line = NULL, names[32][32], op[64];
    size_t room = 0;
    while (getline(&line, &room, stdin) > 0) {
        msgpack_zone *zone = msgpack_zone_new(MSGPACK_ZONE_CHUNK_SIZE);
        msgpack_object request;
        msgpack_sbuffer out;
        msgpack_packer packer;
        zkv_field fields[32];
        size_t count = 0, size = from_hex(line);
        if (!zone || !zkv_unpack(line, size, zone, &request) || request.type != MSGPACK_OBJECT_MAP)
            return fail(z, "USAGE", "a line is no msgpack in hex");
        for (uint32_t i = 0; i < request.via.map.size && count < 32; i++) {
            msgpack_object_kv pair = request.via.map.ptr[i];
            copy_text(pair.key, names[count], sizeof names[count]);
            if (!strcmp(names[count], "op")) {
                copy_text(pair.val, op, sizeof op);
            } else {
                fields[count] = (zkv_field){names[count], pair.val};
                count++;
            }
        }
        int status = zkv_call(z, op, fields, count);
        msgpack_sbuffer_init(&out);
        msgpack_packer_init(&packer, &out, msgpack_sbuffer_write);
        if (status && z->reply.type == MSGPACK_OBJECT_NIL) pack_error(z, &packer);
        else msgpack_pack_object(&packer, z->reply);
        for (size_t i = 0; i < out.size; i++) {
            putchar("0123456789abcdef"[(unsigned char)out.data[i] >> 4]);
            putchar("0123456789abcdef"[out.data[i] & 15]);
        }
        putchar('\n');
        fflush(stdout);
        msgpack_sbuffer_destroy(&out);
        msgpack_zone_free(zone);
    }
    free(line);
    return 0;
}

static int run(zkv *z, int count, char **words) {
    const char *command = words[0];
    int64_t rev = -1, sum;
    int status;
    if (!strcasecmp(command, "put") && count == 3) {
        status = zkv_put(z, words[1], value_of(words[2]), &rev);
    } else if (!strcasecmp(command, "get") && count == 2) {
        msgpack_object value;
        if ((status = zkv_get(z, words[1], &value)) == 0) print_value(value);
    } else if (!strcasecmp(command, "delete") && count == 2) {
        status = zkv_delete(z, words[1], &rev);
    } else if (!strcasecmp(command, "incr") && (count == 2 || count == 3)) {
        status = zkv_incr(z, words[1], count == 3 ? strtoll(words[2], NULL, 10) : 1, &sum);
        if (!status) printf("%lld\n", (long long)sum);
    } else if (!strcasecmp(command, "end") && count == 1) {
        status = zkv_end(z, &rev);
    } else if (!strcasecmp(command, "call") && count == 1) {
        status = call_each(z);
    } else {
        return fail(z, "USAGE", "put KEY VALUE, get KEY, delete KEY, incr KEY [BY], end, call");
    }
    if (!status && rev >= 0) fprintf(stderr, "OK, revision %lld\n", (long long)rev);
    return status;
}

int main(int argc, char **argv) {
    const char *endpoint = getenv("ZKV_ENDPOINT");
    double timeout = 5;
    int i = 1, status = 0;
    for (; i + 1 < argc && argv[i][0] == '-'; i += 2) {
        if (!strcmp(argv[i], "--timeout"))
            timeout = atof(argv[i + 1]);
        else if (!strcmp(argv[i], "-e"))
            endpoint = argv[i + 1];
        else
            break;
    }
    if (i >= argc || timeout <= 0) {
        fprintf(stderr, "client [-e ENDPOINT] [--timeout S] COMMAND ...\n");
        return 2;
    }
    setlocale(LC_CTYPE, "C.UTF-8");
    if (!endpoint || !*endpoint) endpoint = "tcp://127.0.0.1:5555";
    zkv *z = zkv_connect(endpoint, timeout);
    if (!z) {
        fprintf(stderr, "client: %s\n", zkv_problem());
        return 2;
    }
    if (run(z, argc - i, argv + i)) {
        bool negative = !strcmp(z->code, "NOT_FOUND") || !strcmp(z->code, "CONFLICT");
        fprintf(stderr, "client: %s: %s\n", z->code, z->message);
        status = !strcmp(z->code, "NO_REPLY") ? 3 : negative ? 1 : 2;
    }
    zkv_close(z);
    return status;
}
