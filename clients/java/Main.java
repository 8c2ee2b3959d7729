import java.io.BufferedReader;
import java.io.IOException;
import java.io.InputStreamReader;
import java.io.PrintStream;
import java.nio.ByteBuffer;
import java.nio.charset.CharacterCodingException;
import java.nio.charset.StandardCharsets;
import java.util.Map;
import org.msgpack.value.Value;
import org.msgpack.value.ValueFactory;

/**
 * The command line of Client.java: put, get, delete, incr, end; and call, by which tests drive it.
 * Exit status: 0 done, 1 NOT_FOUND or CONFLICT, 2 usage or any other failure, 3 no answer in time.
 */
public final class Main {
    private static final PrintStream OUT = new PrintStream(System.out, false, StandardCharsets.UTF_8);
    private static final String USAGE = "put KEY VALUE, get KEY, delete KEY, incr KEY [BY], end, call";

    private Main() {}

    private static Value readValue(String word) throws IOException {
        if (!word.equals("-")) {
            return ValueFactory.newString(word);
        }
        byte[] data = System.in.readAllBytes();
        try {
            String text = StandardCharsets.UTF_8.newDecoder().decode(ByteBuffer.wrap(data)).toString();
            return ValueFactory.newString(text);
        } catch (CharacterCodingException error) {
            return ValueFactory.newBinary(data);
        }
    }

    private static void printValue(Value value) throws IOException {
        if (value.isRawValue()) {
            OUT.write(value.asRawValue().asByteArray());
        } else {
            OUT.print(value.toJson());
        }
        OUT.print('\n');
    }

    private static void done(long rev) {
        System.err.println("OK, revision " + rev);
    }

    private static void callEach(Client client) throws IOException {
        BufferedReader lines = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.US_ASCII));
        for (String line = lines.readLine(); line != null; line = lines.readLine()) {
            Map<String, Value> request = Client.unpack(fromHex(line));
            String op = request.remove("op").asStringValue().asString();
            Map<String, Value> reply;
            try {
                reply = client.call(op, request);
            } catch (Client.Failure failure) {
                reply = failure.reply;
            }
            OUT.print(toHex(Client.pack(reply)) + "\n");
            OUT.flush();
        }
    }

    private static byte[] fromHex(String line) {
        byte[] bytes = new byte[line.length() / 2];
        for (int at = 0; at < bytes.length; at++) {
            int high = Character.digit(line.charAt(2 * at), 16);
            bytes[at] = (byte) (high << 4 | Character.digit(line.charAt(2 * at + 1), 16));
        }
        return bytes;
    }

    private static String toHex(byte[] bytes) {
        StringBuilder hex = new StringBuilder(2 * bytes.length);
        for (byte each : bytes) {
            hex.append(Character.forDigit(each >> 4 & 15, 16)).append(Character.forDigit(each & 15, 16));
        }
        return hex.toString();
    }

    private static void run(Client client, String[] words, int at) throws IOException {
        int count = words.length - at;
        String command = count > 0 ? words[at].toLowerCase() : "";
        if (command.equals("put") && count == 3) {
            done(client.put(words[at + 1], readValue(words[at + 2])));
        } else if (command.equals("get") && count == 2) {
            printValue(client.get(words[at + 1]));
        } else if (command.equals("delete") && count == 2) {
            done(client.delete(words[at + 1]));
        } else if (command.equals("incr") && (count == 2 || count == 3)) {
            OUT.print(client.incr(words[at + 1], count == 3 ? Long.parseLong(words[at + 2]) : 1) + "\n");
        } else if (command.equals("end") && count == 1) {
            done(client.end());
        } else if (command.equals("call") && count == 1) {
            callEach(client);
        } else {
            throw new IllegalArgumentException(USAGE);
        }
    }

    private static int begin(String[] words) throws IOException {
        String endpoint = System.getenv("ZKV_ENDPOINT");
        if (endpoint == null || endpoint.isEmpty()) {
            endpoint = "tcp://127.0.0.1:5555";
        }
        double timeout = 5;
        int at = 0;
        for (; at + 1 < words.length && words[at].startsWith("-"); at += 2) {
            if (words[at].equals("-e")) {
                endpoint = words[at + 1];
            } else if (words[at].equals("--timeout")) {
                timeout = Double.parseDouble(words[at + 1]);
            } else {
                throw new IllegalArgumentException(USAGE);
            }
        }
        try (Client client = new Client(endpoint, (int) Math.ceil(timeout * 1000))) {
            run(client, words, at);
            return 0;
        } catch (Client.Failure failure) {
            System.err.println("client: " + failure.getMessage());
            switch (failure.code()) {
                case "NO_REPLY":
                    return 3;
                case "NOT_FOUND":
                case "CONFLICT":
                    return 1;
                default:
                    return 2;
            }
        }
    }

    public static void main(String[] words) {
        int status = 2;
        try {
            status = begin(words);
        } catch (IOException | IllegalArgumentException error) {
            System.err.println("client: " + error.getMessage());
        }
        OUT.flush();
        System.exit(status);
    }
}
