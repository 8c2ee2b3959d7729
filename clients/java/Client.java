import java.io.IOException;
import java.nio.ByteBuffer;
import java.security.SecureRandom;
import java.time.Instant;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.function.Consumer;
import org.msgpack.core.ExtensionTypeHeader;
import org.msgpack.core.MessageBufferPacker;
import org.msgpack.core.MessagePack;
import org.msgpack.core.MessagePackException;
import org.msgpack.core.MessageUnpacker;
import org.msgpack.value.Value;
import org.msgpack.value.ValueFactory;
import org.zeromq.ZMQ;

/**
 * A client for a zkv server: copy this file into your program. It needs JeroMQ and msgpack-core.
 *
 * <p>A request is a msgpack map in one frame on a REQ socket, and so is its reply. A REQ socket that is
 * owed a reply refuses the next request for ever, so after a lost reply it is closed, and the same
 * bytes go out on a fresh one: a write carries a session and a number, and runs only once. LINGER is
 * 0, so nothing that was not sent holds up the end of the program. (JeroMQ's REQ_RELAXED together
 * with REQ_CORRELATE would do likewise, but does not work.)
 *
 * <p>The endpoint may be a list with commas: those of the members of one store. A member that says
 * nothing, or that does not lead, is left for the next one. Before any of them gets a request, INFO has
 * to tell that it has no other store, and no older term of the store, than was seen before.
 *
 * <p>JeroMQ 0.3.6 has no CURVE: a server that asks for it is out of reach, and where a key is given, the
 * client refuses to send anything unprotected.
 *
 * <p>One connection, one request at a time: give each thread a client of its own.
 */
public final class Client implements AutoCloseable {
    private static final int ATTEMPTS = 3; // for each endpoint
    private static final long PAUSE_MS = 100;
    private static final Set<String> WRITES =
            Set.of("PUT", "DELETE", "TOUCH", "INCR", "MPUT", "MDELETE", "TXN");
    private static final Set<String> READS =
            Set.of("PING", "GET", "MGET", "SCAN", "COUNT", "CHANGES", "INFO");
    private static final Set<String> MOVES = Set.of("NO_REPLY", "NOT_LEADER"); // another endpoint may do better
    private static final ZMQ.Context CONTEXT = ZMQ.context(1);

    /** A request that was not answered with success. */
    public static final class Failure extends RuntimeException {
        private static final long serialVersionUID = 1;

        /** The server's whole answer; of NO_REPLY and BAD_REPLY, one that was made up here. */
        public final transient Map<String, Value> reply;

        Failure(Map<String, Value> reply) {
            super(reply.get("code") + ": " + reply.get("message"));
            this.reply = reply;
        }

        static Failure of(String code, String message, boolean retry, Value applied) {
            Map<String, Value> reply = new LinkedHashMap<>();
            reply.put("ok", ValueFactory.newBoolean(false));
            reply.put("code", ValueFactory.newString(code));
            reply.put("message", ValueFactory.newString(message));
            reply.put("retry", ValueFactory.newBoolean(retry));
            reply.put("applied", applied);
            return new Failure(reply);
        }

        public String code() {
            return String.valueOf(reply.get("code"));
        }

        /** Whether the same request may succeed later. */
        public boolean retry() {
            return ValueFactory.newBoolean(true).equals(reply.get("retry"));
        }

        /** Whether nothing was changed for certain. If not, nobody knows. */
        public boolean notApplied() {
            return ValueFactory.newBoolean(false).equals(reply.get("applied"));
        }
    }

    /** A key with its value and the revision of its last write. */
    public static final class Entry {
        public final String key;
        public final Value value;
        public final long rev;

        Entry(List<Value> parts) {
            key = parts.get(0).asStringValue().asString();
            value = parts.get(1);
            rev = parts.get(2).asIntegerValue().asLong();
        }
    }

    private final List<String> endpoints = new ArrayList<>(); // of one store; the first is in use
    private String store = ""; // what INFO has told of it, with the newest term; "" = nothing
    private long term;
    private final int timeoutMs;
    private final String session;
    private ZMQ.Socket socket;
    private long lastId;
    private long lastSeq;

    /**
     * Makes a client, for one endpoint, or for those of one store with commas between them. The server
     * need not be up; a malformed endpoint, or a key for it, is an IllegalArgumentException.
     *
     * @param timeoutMs how long to wait for each of three attempts
     */
    public Client(String endpoint, int timeoutMs) {
        for (String variable : List.of("ZKV_SERVER_PUBLIC_KEY", "ZKV_KEY_FILE")) {
            if (endpoint.contains("tcp://") && !System.getenv().getOrDefault(variable, "").isEmpty()) {
                throw new IllegalArgumentException("JeroMQ 0.3.6 has no CURVE, as " + variable + " asks for");
            }
        }
        for (String item : endpoint.split(",", -1)) {
            endpoints.add(item.trim());
        }
        this.timeoutMs = timeoutMs;
        byte[] random = new byte[16];
        new SecureRandom().nextBytes(random);
        StringBuilder hex = new StringBuilder();
        for (byte each : random) {
            hex.append(String.format("%02x", each));
        }
        session = hex.toString();
        for (int left = endpoints.size(); left > 0; left--) {
            open();
            moveOn(null);
        }
    }

    /** Drops the socket and whatever it owes; the next request opens a fresh one. */
    @Override
    public void close() {
        if (socket != null) {
            socket.close();
            socket = null;
        }
    }

    /** Sends any op with its fields and returns the reply. */
    public Map<String, Value> call(String op, Map<String, Value> fields) {
        Map<String, Value> request = new LinkedHashMap<>();
        request.put("op", ValueFactory.newString(op));
        request.putAll(fields);
        if (!request.containsKey("id") || request.get("id").isNilValue()) {
            request.put("id", ValueFactory.newInteger(++lastId));
        }
        boolean write = WRITES.contains(op);
        if (write && !request.containsKey("session")) {
            request.put("session", ValueFactory.newString(session));
            request.put("seq", ValueFactory.newInteger(++lastSeq));
        }
        byte[] body = pack(request);
        // Elsewhere, too, though it may have been applied. Other ops, such as END, concern one server.
        boolean repeatable = READS.contains(op) || (write && !request.get("session").isNilValue());
        int laps = repeatable ? endpoints.size() : 1;
        boolean inDoubt = false; // an attempt may have been applied
        for (int left = op.equals("END") ? 1 : ATTEMPTS * laps;; left--) {
            try {
                return ask(body, request.get("id"));
            } catch (Failure failure) {
                // Refused now; but what became of an attempt before?
                if (!failure.retry() && !(inDoubt && failure.code().equals("DEADLINE"))) {
                    throw failure;
                }
                inDoubt |= !failure.notApplied();
                if (MOVES.contains(failure.code()) && (repeatable || (write && !inDoubt))) {
                    // One lap follows hints, lest it is sent in circles; the others try all.
                    moveOn(left > (ATTEMPTS - 1) * laps ? failure.reply.get("leader") : null);
                }
                if (left == 1) {
                    throw inDoubt && failure.notApplied() ? noReply() : failure;
                }
                if (!failure.code().equals("NO_REPLY")) {
                    pause();
                }
            }
        }
    }

    private Failure noReply() {
        String message = "none from " + String.join(", ", endpoints) + "; a write may have been applied";
        return Failure.of("NO_REPLY", message, true, ValueFactory.newNil());
    }

    /** Goes to the server that is said to lead, if it is in the list; else to the next one. */
    private void moveOn(Value leader) {
        if (endpoints.size() == 1) {
            return;
        }
        close();
        String left = endpoints.remove(0);
        if (leader != null && leader.isArrayValue()) {
            for (Value hint : leader.asArrayValue()) {
                if (endpoints.remove(hint.toString())) {
                    endpoints.add(0, hint.toString());
                    break;
                }
            }
        }
        endpoints.add(left);
    }

    /** One attempt. Of several servers, one is first asked whose it is. */
    private Map<String, Value> ask(byte[] body, Value id) {
        if (socket == null && endpoints.size() > 1) {
            try {
                check();
            } catch (Failure failure) {
                close();
                throw failure;
            }
        }
        byte[] answer = exchange(body);
        if (answer == null) {
            throw noReply();
        }
        return judge(answer, id);
    }

    /** Fails if this server is not to get a request. */
    private void check() {
        Value id = ValueFactory.newInteger(++lastId);
        byte[] answer = exchange(pack(Map.of("op", text("INFO"), "id", id)));
        if (answer == null) {
            throw unfit("NO_REPLY", "none to INFO");
        }
        Map<String, Value> found = new HashMap<>();
        Value replication = judge(answer, id).get("replication");
        if (replication != null && replication.isMapValue()) {
            replication.asMapValue().map().forEach((name, value) -> found.put(name.toString(), value));
        }
        Value name = found.getOrDefault("store", text(""));
        String foundStore = name.isStringValue() ? name.toString() : "";
        long foundTerm = foundStore.isEmpty() ? 0 : found.get("term").asIntegerValue().asLong();
        if (!store.isEmpty() && (!foundStore.equals(store) || foundTerm < term)) {
            throw unfit("NOT_LEADER", "it has another store, or an older term of it");
        }
        store = foundStore;
        term = foundTerm;
    }

    private Failure unfit(String code, String why) {
        return Failure.of(code, endpoints.get(0) + ": " + why, true, ValueFactory.newBoolean(false));
    }

    public Value get(String key) {
        return call("GET", Map.of("key", text(key))).get("value");
    }

    /** Stores a value and returns its revision. */
    public long put(String key, Value value) {
        return number("rev", "PUT", Map.of("key", text(key), "value", value));
    }

    public long put(String key, String value) {
        return put(key, text(value));
    }

    /** Stores a value only if the key has this revision; 0 = only if it is absent. */
    public long cas(String key, Value value, long rev) {
        Value ifRev = ValueFactory.newInteger(rev);
        return number("rev", "PUT", Map.of("key", text(key), "value", value, "if_rev", ifRev));
    }

    public long delete(String key) {
        return number("rev", "DELETE", Map.of("key", text(key)));
    }

    /** Adds to an int and returns the sum. */
    public long incr(String key, long by) {
        return number("value", "INCR", Map.of("key", text(key), "by", ValueFactory.newInteger(by)));
    }

    /** The values of many keys, nil where there is none. */
    public List<Value> mget(List<String> keys) {
        List<Value> texts = new ArrayList<>();
        keys.forEach(key -> texts.add(text(key)));
        return call("MGET", Map.of("keys", ValueFactory.newArray(texts))).get("values").asArrayValue().list();
    }

    /** Stores many values, all or nothing. */
    public long mput(Map<String, Value> items) {
        Map<Value, Value> packed = new HashMap<>();
        items.forEach((key, value) -> packed.put(text(key), value));
        return number("rev", "MPUT", Map.of("items", ValueFactory.newMap(packed)));
    }

    /** Gives every key that begins with the prefix to {@code each}, in order. */
    public void scan(String prefix, Consumer<Entry> each) {
        Value after = ValueFactory.newNil();
        do {
            Map<String, Value> page = call("SCAN", Map.of("prefix", text(prefix), "after", after));
            for (Value item : page.get("items").asArrayValue()) {
                each.accept(new Entry(item.asArrayValue().list()));
            }
            after = page.get("next");
        } while (!after.isNilValue());
    }

    /** Has everything saved and the server ended. */
    public long end() {
        return number("rev", "END", Map.of());
    }

    private long number(String name, String op, Map<String, Value> fields) {
        return call(op, fields).get(name).asIntegerValue().asLong();
    }

    private static Value text(String text) {
        return ValueFactory.newString(text);
    }

    private ZMQ.Socket open() {
        if (socket == null) {
            ZMQ.Socket fresh = CONTEXT.socket(ZMQ.REQ);
            fresh.setLinger(0);
            fresh.setReceiveTimeOut(timeoutMs);
            fresh.setSendTimeOut(0);
            try {
                fresh.connect(endpoints.get(0));
            } catch (RuntimeException error) {
                fresh.close();
                String which = "endpoint " + endpoints.get(0) + ": ";
                throw new IllegalArgumentException(which + error.getMessage(), error);
            }
            socket = fresh;
        }
        return socket;
    }

    /** The reply's body; null if none comes in time. */
    private byte[] exchange(byte[] body) {
        ZMQ.Socket open = open();
        byte[] answer = open.send(body, 0) ? open.recv(0) : null;
        if (answer == null) {
            close();
        }
        return answer;
    }

    /** The reply in an answer; a Failure if it is one, or none to the request with this id. */
    private Map<String, Value> judge(byte[] answer, Value id) {
        try {
            Map<String, Value> reply = unpack(answer);
            Value ok = reply.get("ok");
            Value echo = reply.get("id");
            boolean unread = echo == null && ok != null && !ok.asBooleanValue().getBoolean();
            if (ok == null || !ok.isBooleanValue() || socket.hasReceiveMore() || !(id.equals(echo) || unread)) {
                throw new IOException("it has no ok, another id, or many frames");
            }
            if (ok.asBooleanValue().getBoolean()) {
                return reply;
            }
            throw new Failure(reply);
        } catch (IOException | MessagePackException error) {
            close();
            throw Failure.of("BAD_REPLY", error.getMessage(), false, ValueFactory.newNil());
        }
    }

    private static void pause() {
        try {
            Thread.sleep(PAUSE_MS);
        } catch (InterruptedException error) {
            Thread.currentThread().interrupt();
        }
    }

    static byte[] pack(Map<String, Value> fields) {
        try (MessageBufferPacker packer = MessagePack.newDefaultBufferPacker()) {
            packer.packMapHeader(fields.size());
            for (Map.Entry<String, Value> field : fields.entrySet()) {
                packer.packString(field.getKey());
                packer.packValue(field.getValue());
            }
            return packer.toByteArray();
        } catch (IOException error) {
            throw new IllegalStateException("a buffer takes whatever is written", error);
        }
    }

    static Map<String, Value> unpack(byte[] body) throws IOException {
        try (MessageUnpacker unpacker = MessagePack.newDefaultUnpacker(body)) {
            Value value = read(unpacker);
            if (!value.isMapValue() || unpacker.hasNext()) {
                throw new IOException("it is no map, or something stands behind it");
            }
            Map<String, Value> fields = new LinkedHashMap<>();
            value.asMapValue().map().forEach((name, field) -> fields.put(name.toString(), field));
            return fields;
        }
    }

    /** Like unpackValue(), which takes for a timestamp what is none, or fails on it. */
    private static Value read(MessageUnpacker unpacker) throws IOException {
        switch (unpacker.getNextFormat().getValueType()) {
            case ARRAY:
                return ValueFactory.newArray(read(unpacker, unpacker.unpackArrayHeader()), true);
            case MAP:
                return ValueFactory.newMap(read(unpacker, 2 * unpacker.unpackMapHeader()), true);
            case EXTENSION:
                ExtensionTypeHeader header = unpacker.unpackExtensionTypeHeader();
                return extension(header.getType(), unpacker.readPayload(header.getLength()));
            default:
                return unpacker.unpackValue();
        }
    }

    private static Value[] read(MessageUnpacker unpacker, int count) throws IOException {
        Value[] values = new Value[count];
        for (int at = 0; at < count; at++) {
            values[at] = read(unpacker);
        }
        return values;
    }

    private static Value extension(byte type, byte[] data) {
        ByteBuffer buffer = ByteBuffer.wrap(data);
        long seconds;
        long nanos = 0;
        if (type == -1 && data.length == 4) {
            seconds = buffer.getInt() & 0xffffffffL;
        } else if (type == -1 && data.length == 8) {
            seconds = buffer.getLong(0) & 0x3ffffffffL;
            nanos = buffer.getLong(0) >>> 34;
        } else if (type == -1 && data.length == 12) {
            nanos = buffer.getInt() & 0xffffffffL;
            seconds = buffer.getLong();
        } else {
            return ValueFactory.newExtension(type, data);
        }
        boolean early = seconds < Instant.MIN.getEpochSecond();
        boolean holds = nanos < 1_000_000_000 && !early && seconds <= Instant.MAX.getEpochSecond();
        return holds ? ValueFactory.newTimestamp(seconds, (int) nanos) : ValueFactory.newExtension(type, data);
    }
}
