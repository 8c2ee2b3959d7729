#!/usr/bin/env php
<?php

/**
 * A client for a zkv server: classes to copy, with a command line at their end.
 *
 * One request is one msgpack map on a REQ socket, and so is the reply. Lost replies are no trouble:
 * every write carries a session and a number in it, so the same bytes may be sent again, and the
 * write still runs once. A REQ socket that is owed a reply takes no further request, so a lost reply
 * costs the socket, and the next attempt opens a fresh one. LINGER is 0, so that what a server never
 * took goes with its socket, instead of holding up the end of the script.
 *
 * The endpoint may be a list with commas: those of the members of one store. A member that says
 * nothing, or that does not lead, is left for the next one. Before any of them gets a request, INFO
 * has to tell that it has no other store, and no older term of the store, than was seen before.
 *
 * To tcp:// endpoints it speaks CURVE if ZKV_SERVER_PUBLIC_KEY is set. A socket whose handshake is
 * refused stays silent for ever, so its monitor is asked why, until the handshake has succeeded.
 *
 * It needs msgpack.php beside it, and the extension zmq.
 */

declare(strict_types=1);

namespace Zkv;

require_once __DIR__ . '/msgpack.php';

/** A request that was not answered with success. The client's own codes are NO_REPLY, BAD_REPLY and HANDSHAKE_FAILED. */
final class Error extends \RuntimeException
{
    public readonly string $reason; // the protocol's code; `code` is PHP's own, and an int
    public readonly bool $retry; // the same request may succeed later
    public readonly ?bool $applied; // false: nothing was changed; null: nobody knows

    public function __construct(public readonly \stdClass $reply)
    {
        $this->reason = (string) ($reply->code ?? '');
        $this->retry = ($reply->retry ?? null) === true;
        $this->applied = ($reply->applied ?? null) === false ? false : null;
        parent::__construct("$this->reason: " . ($reply->message ?? ''));
    }

    public static function own(string $code, string $message): self
    {
        return new self(self::reply($code, $message, retry: $code === 'NO_REPLY'));
    }

    /** A reply of the client's own. */
    public static function reply(string $code, string $message, bool $retry, ?bool $applied = null): \stdClass
    {
        return (object) ['ok' => false, 'code' => $code, 'message' => $message, 'retry' => $retry, 'applied' => $applied];
    }
}

/** Keys of CURVE for one client, each as 40 characters of Z85. */
final class Keys
{
    /** @param string[] $server one of them has to fit; the first is in use. None: there is no CURVE. */
    private function __construct(
        public array $server, private string $public = '', #[\SensitiveParameter] private string $secret = '',
    ) {
    }

    /** What var_dump shows: all but the secret. */
    public function __debugInfo(): array { return ['server' => $this->server, 'public' => $this->public]; }

    /** Those that the environment tells of. Without a file a pair is made. Throws InvalidArgumentException. */
    public static function of(array $endpoints): self
    {
        if (!array_filter($endpoints, fn (string $endpoint) => str_starts_with($endpoint, 'tcp://'))) {
            return new self([]);
        }
        $server = preg_split('/[,\s]+/', getenv('ZKV_SERVER_PUBLIC_KEY') ?: '', flags: PREG_SPLIT_NO_EMPTY);
        $file = getenv('ZKV_KEY_FILE') ?: '';
        if (array_filter($server, fn (string $key) => self::decode($key) === null)) {
            throw new \InvalidArgumentException('ZKV_SERVER_PUBLIC_KEY: not a key: expected 40 characters of Z85');
        }
        if (!$server && $file !== '') {
            throw new \InvalidArgumentException('ZKV_KEY_FILE is of no use without ZKV_SERVER_PUBLIC_KEY');
        }
        $secret = match (true) {
            !$server => '',
            $file !== '' => self::read($file),
            default => \ZMQ::z85encode(random_bytes(SODIUM_CRYPTO_SCALARMULT_SCALARBYTES)),
        };
        return new self($server, $server ? \ZMQ::z85encode(sodium_crypto_scalarmult_base(self::decode($secret))) : '', $secret);
    }

    /** Whether an endpoint needs them: then there is an answer only from who has the server's. */
    public function areFor(string $endpoint): bool
    {
        return $this->server && str_starts_with($endpoint, 'tcp://');
    }

    public function secure(\ZMQSocket $socket, string $endpoint): void
    {
        if ($this->areFor($endpoint)) {
            $socket->setSockOpt(\ZMQ::SOCKOPT_CURVE_SERVERKEY, $this->server[0]);
            $socket->setSockOpt(\ZMQ::SOCKOPT_CURVE_PUBLICKEY, $this->public);
            $socket->setSockOpt(\ZMQ::SOCKOPT_CURVE_SECRETKEY, $this->secret);
        }
    }

    /** Has the next socket use the next one of the server's keys. */
    public function next(): void
    {
        $this->server[] = array_shift($this->server);
    }

    private static function decode(#[\SensitiveParameter] string $key): ?string
    {
        return preg_match('/^[0-9a-zA-Z.:+=^!\/*?&<>()[\]{}@%$#-]{40}$/D', $key) ? (\ZMQ::z85decode($key) ?: null) : null;
    }

    private static function read(string $path): string
    {
        $file = @fopen($path, 'r') ?: throw new \InvalidArgumentException("$path: it is not there, or may not be read");
        $mode = fstat($file)['mode'] & 07777;
        if ($mode & 077) {
            throw new \InvalidArgumentException(sprintf('%s: others may read it (mode %04o): chmod 600 %s', $path, $mode, $path));
        }
        $secret = trim((string) fread($file, 128));
        if (self::decode($secret) === null) {
            throw new \InvalidArgumentException("$path: not a key file: expected one line of 40 characters of Z85");
        }
        return $secret;
    }
}

/**
 * One connection, one request at a time. The endpoint may be those of one store with commas between them. The timeout
 * is in seconds, for each attempt; all calls throw Error.
 */
final class Client
{
    public const DEFAULT_ENDPOINT = 'tcp://127.0.0.1:5555';
    private const WRITES = ['PUT', 'DELETE', 'TOUCH', 'INCR', 'MPUT', 'MDELETE', 'TXN'];
    private const READS = ['PING', 'GET', 'MGET', 'SCAN', 'COUNT', 'CHANGES', 'INFO'];
    private const MOVES = ['NO_REPLY', 'HANDSHAKE_FAILED', 'NOT_LEADER']; // another endpoint may do better
    private const ATTEMPTS = 3; // for each endpoint
    private const PAUSE = 100_000; // microseconds before what was refused for now is sent again
    private const TRIES = 10; // while its key is changed, a server takes each connection with one key or the other
    private const SHORT_PAUSE = 30_000; // microseconds between them

    private const CUT = 0x0800; // events of handshakes
    private const SUCCEEDED = 0x1000;
    private const PROTOCOL = 0x2000;
    private const AUTH = 0x4000;
    private static int $monitors = 0; // how many there have been: each has a name of its own

    private ?\ZMQSocket $socket = null;
    private ?\ZMQSocket $monitor = null; // tells what becomes of the socket's handshake, until it has succeeded
    private Keys $keys;
    private array $endpoints; // the first is in use
    private ?\stdClass $seen = null; // INFO's `replication`: the store, and the newest term that was seen
    private readonly string $session;
    private int $lastId = 0;
    private int $lastSeq = 0;

    /** Throws ZMQSocketException for a malformed endpoint, InvalidArgumentException for a key. The server need not be up. */
    public function __construct(string $endpoint = self::DEFAULT_ENDPOINT, private float $timeout = 5.0)
    {
        $this->session = bin2hex(random_bytes(16));
        $this->endpoints = array_map('trim', explode(',', $endpoint));
        $this->keys = Keys::of($this->endpoints);
        foreach ($this->endpoints as $_) {
            $this->open();
            $this->moveOn([]);
        }
    }

    public function get(string $key): mixed { return $this->call('GET', ['key' => $key])->value; }

    /** Options: ttl (seconds), if_rev, durable. */
    public function put(string $key, mixed $value, mixed ...$options): int
    {
        return $this->call('PUT', ['key' => $key, 'value' => $value] + $options)->rev;
    }

    public function delete(string $key): int { return $this->call('DELETE', ['key' => $key])->rev; }

    public function mget(array $keys): array { return $this->call('MGET', ['keys' => array_values($keys)])->values; }

    public function mput(array $items): int { return $this->call('MPUT', ['items' => (object) $items])->rev; }

    public function incr(string $key, int $by = 1): int { return $this->call('INCR', ['key' => $key, 'by' => $by])->value; }

    /** Stores only if the entry has this revision; 0 = only if there is none. */
    public function cas(string $key, mixed $value, int $rev): int { return $this->put($key, $value, if_rev: $rev); }

    /** Yields [key, value, revision] of every key that begins with the prefix. */
    public function scan(string $prefix = ''): \Generator
    {
        $after = null;
        do {
            $page = $this->call('SCAN', ['prefix' => $prefix, 'after' => $after]);
            foreach ($page->items as $item) {
                yield $item; // not `yield from`, which would count anew for each page
            }
        } while (($after = $page->next) !== null);
    }

    public function end(): int { return $this->call('END')->rev; }

    /** Sends any op with its fields and returns the reply. */
    public function call(string $op, array|\stdClass $fields = []): \stdClass
    {
        $request = ['op' => $op] + (array) $fields;
        $request['id'] ??= ++$this->lastId;
        if (in_array($op, self::WRITES, true) && !isset($request['session'])) {
            $request = ['session' => $this->session, 'seq' => ++$this->lastSeq] + $request;
        }
        $body = Msgpack::pack((object) $request);
        // What is neither, such as END, concerns one server.
        $elsewhere = in_array($op, self::READS, true) || in_array($op, self::WRITES, true);
        $laps = $elsewhere ? count($this->endpoints) : 1;
        $inDoubt = false; // an attempt may have been applied
        for ($left = $op === 'END' ? 1 : self::ATTEMPTS * $laps; $left > 0; $left--) {
            $reply = $this->ask($body, $request['id']);
            if ($reply?->ok) {
                return $reply;
            }
            $code = $reply ? $reply->code ?? null : 'NO_REPLY';
            $refused = $reply && ($reply->retry ?? null) !== true; // now; but what became of an attempt before?
            if ($refused && !($inDoubt && in_array($code, ['DEADLINE', 'HANDSHAKE_FAILED'], true))) {
                throw new Error($reply);
            }
            $inDoubt = $inDoubt || !isset($reply->applied) && $code !== 'HANDSHAKE_FAILED';
            if ($elsewhere && in_array($code, self::MOVES, true)) {
                // One lap follows hints, lest it is sent in circles; the others try all.
                $this->moveOn($left > (self::ATTEMPTS - 1) * $laps ? $reply->leader ?? [] : []);
            }
            usleep($reply && $left > 1 ? self::PAUSE : 0);
        }
        if ($reply && !($inDoubt && isset($reply->applied))) {
            throw new Error($reply);
        }
        throw Error::own('NO_REPLY', 'none from ' . implode(', ', $this->endpoints) . " within $this->timeout s");
    }

    public function close(): void
    {
        $this->stopMonitor();
        $this->socket?->disconnect($this->endpoints[0]);
        $this->socket = null; // PHP closes it with its last reference
    }

    public function __destruct()
    {
        $this->stopMonitor();
    }

    /** Goes to the server that is said to lead, if it is in the list or has to prove its key; else to the next one. */
    private function moveOn(array $leader): void
    {
        $others = array_slice($this->endpoints, 1);
        foreach (array_filter($leader, 'is_string') as $hint) {
            if ($hint !== $this->endpoints[0] && (in_array($hint, $others, true) || $this->keys->areFor($hint))) {
                $others = [$hint, ...array_diff($others, [$hint])];
                break;
            }
        }
        if ($others) {
            $this->close();
            $this->endpoints = [...array_values($others), $this->endpoints[0]];
        }
    }

    /** The reply, or null if none comes in time. With several endpoints, a server is first asked whose it is. */
    private function ask(string $body, mixed $id): ?\stdClass
    {
        if (!$this->socket && count($this->endpoints) > 1 && ($refusal = $this->check())) {
            $this->close();
            return $refusal;
        }
        return $this->exchange($body, $id);
    }

    /** Why this server is not to get a request, as a reply; null if it is. */
    private function check(): ?\stdClass
    {
        $id = ++$this->lastId;
        $info = $this->exchange(Msgpack::pack((object) ['op' => 'INFO', 'id' => $id]), $id);
        if (!$info?->ok) {
            return $info ?? Error::reply('NO_REPLY', "{$this->endpoints[0]}: none to INFO", retry: true, applied: false);
        }
        $found = $info->replication ?? null;
        [$store, $term] = [$found->store ?? null, $found->term ?? null];
        if ($this->seen && ($store !== $this->seen->store || $term < $this->seen->term)) {
            $why = "{$this->endpoints[0]}: it has another store, or an older term of it";
            return Error::reply('NOT_LEADER', $why, retry: true, applied: false);
        }
        $this->seen = $store ? $found : null;
        return null;
    }

    private function exchange(string $body, mixed $id): ?\stdClass
    {
        $answer = $this->exchangeWithKeys($body);
        return is_array($answer) ? $this->judge($answer, $id) : $answer;
    }

    /** The frames of the reply, null if none came in time, or why the handshake fails with one key after the other. */
    private function exchangeWithKeys(string $body): array|\stdClass|null
    {
        for ($left = self::TRIES;; $left--) {
            $answer = $this->exchangeOnce($body);
            if (!$answer instanceof \stdClass || !$answer->retry || $left === 1) {
                return $answer;
            }
            $this->keys->next();
            usleep(self::SHORT_PAUSE);
        }
    }

    private function exchangeOnce(string $body): array|\stdClass|null
    {
        $answer = null;
        try {
            try {
                $socket = $this->open();
            } catch (\ZMQSocketException) { // no endpoint: a server that does not lead has told of it
                return null;
            }
            $sent = $socket->send($body, \ZMQ::MODE_DONTWAIT);
            return $answer = $this->wait($sent !== false);
        } finally {
            is_array($answer) ?: $this->close(); // it is owed a reply, and would take no further request
        }
    }

    private function judge(array $frames, mixed $id): \stdClass
    {
        try {
            $reply = Msgpack::unpack(implode($frames));
            $ok = $reply instanceof \stdClass ? $reply->ok ?? null : null;
            // == because Bin equals the same string. A refusal has no id where the server could not read it.
            if (is_bool($ok) && (isset($reply->id) ? $reply->id == $id : !$ok)) {
                return $reply;
            }
            $message = "to id $id: " . json_encode($reply);
        } catch (\UnexpectedValueException $error) {
            $message = $error->getMessage();
        }
        $this->close();
        throw Error::own('BAD_REPLY', substr($message, 0, 100));
    }

    /** Waits for a reply. A signal cuts a poll short, so it goes on for the rest of the time. */
    private function wait(bool $sent): array|\stdClass|null
    {
        for ($end = hrtime(true) + $this->timeout * 1e9; ($left = $end - hrtime(true)) > 0;) {
            if (($failure = $this->failedHandshake()) || !$sent) {
                return $failure;
            }
            $poll = new \ZMQPoll();
            $poll->add($this->socket, \ZMQ::POLL_IN);
            $this->monitor && $poll->add($this->monitor, \ZMQ::POLL_IN);
            $readable = $writable = [];
            try {
                if ($poll->poll($readable, $writable, (int) ceil($left / 1e6)) && in_array($this->socket, $readable, true)) {
                    return $this->socket->recvMulti(\ZMQ::MODE_DONTWAIT);
                }
            } catch (\ZMQPollException $error) {
                $error->getCode() === 4 /* EINTR */ ?: throw $error;
            }
        }
        return null;
    }

    /** Why nothing was sent, as a reply; null if the handshake has not failed. */
    private function failedHandshake(): ?\stdClass
    {
        $event = 0;
        $curve = $this->keys->areFor($this->endpoints[0]);
        while ($this->monitor && ($frames = $this->monitor->recvMulti(\ZMQ::MODE_DONTWAIT))) {
            $event = unpack('S', $frames[0])[1];
            if ($event === self::SUCCEEDED) {
                $this->stopMonitor();
            }
        }
        [$why, $cut] = match (true) {
            $event === self::AUTH => ['the server does not know this client: its key or, on ipc, its system user', false],
            $event === self::PROTOCOL && $curve => ['the server does not speak CURVE', false],
            $event === self::PROTOCOL => ['the server asks for CURVE: set ZKV_SERVER_PUBLIC_KEY', false],
            // ZeroMQ tries again, and without keys that may help.
            $event === self::CUT && $curve =>
                ['the handshake was cut: the server has another key than ZKV_SERVER_PUBLIC_KEY says, or no CURVE', true],
            default => [null, false],
        };
        return $why === null ? null : Error::reply('HANDSHAKE_FAILED', $why, retry: $cut, applied: $cut ? null : false);
    }

    private function open(): \ZMQSocket
    {
        if (!$this->socket) {
            $context = new \ZMQContext();
            $socket = new \ZMQSocket($context, \ZMQ::SOCKET_REQ);
            $socket->setSockOpt(\ZMQ::SOCKOPT_LINGER, 0);
            $this->keys->secure($socket, $this->endpoints[0]);
            $name = 'inproc://zkv-handshake-' . ++self::$monitors;
            $socket->monitor($name, self::CUT | self::SUCCEEDED | self::PROTOCOL | self::AUTH);
            $this->monitor = new \ZMQSocket($context, \ZMQ::SOCKET_PAIR);
            $this->monitor->setSockOpt(\ZMQ::SOCKOPT_RCVHWM, 0); // no limit: else ZeroMQ might wait for us
            $this->monitor->connect($name);
            $this->socket = $socket->connect($this->endpoints[0]);
        }
        return $this->socket;
    }

    /** Ends the monitor before nobody reads what it tells: another one without events replaces it. */
    private function stopMonitor(): void
    {
        $this->monitor && $this->socket?->monitor('inproc://zkv-handshake-' . ++self::$monitors, 0);
        $this->monitor = null;
    }
}

// ------------------------------------------------------------------------- command line

if (realpath($_SERVER['SCRIPT_FILENAME'] ?? '') === __FILE__) {
    exit((function (array $words): int {
        $usage = 'Usage: client.php [-e ENDPOINT] [--timeout S] put KEY VALUE | get KEY | delete KEY | incr KEY [BY] | end | call';
        $endpoint = getenv('ZKV_ENDPOINT') ?: Client::DEFAULT_ENDPOINT;
        $timeout = '5';
        $input = fn (string $word) => $word === '-' ? stream_get_contents(STDIN) : $word;
        $show = fn (mixed $value) => is_string($value) || $value instanceof Bin ? $value : json_encode($value,
            JSON_UNESCAPED_UNICODE | JSON_UNESCAPED_SLASHES | JSON_PRESERVE_ZERO_FRACTION
                | JSON_PARTIAL_OUTPUT_ON_ERROR | JSON_INVALID_UTF8_SUBSTITUTE);
        $done = fn (int $rev) => fwrite(STDERR, "OK, revision $rev\n");
        try {
            for (; in_array($words[0] ?? '', ['-e', '--endpoint', '--timeout'], true); array_splice($words, 0, 2)) {
                $words[0] === '--timeout' ? $timeout = $words[1] ?? '' : $endpoint = $words[1] ?? '';
            }
            if (!is_numeric($timeout) || $timeout <= 0) {
                throw new \InvalidArgumentException("timeout '$timeout'");
            }
            $client = new Client($endpoint, (float) $timeout);
            $words[0] = strtolower($words[0] ?? '');
            match (true) {
                $words[0] === 'put' && count($words) === 3 => $done($client->put($words[1], $input($words[2]))),
                $words[0] === 'get' && count($words) === 2 => print $show($client->get($words[1])) . "\n",
                $words[0] === 'delete' && count($words) === 2 => $done($client->delete($words[1])),
                $words[0] === 'incr' && preg_match('/^[^\0]+(\0[+-]?\d+)?$/D', implode("\0", array_slice($words, 1))) =>
                    print $client->incr($words[1], (int) ($words[2] ?? 1)) . "\n",
                $words === ['end'] => $done($client->end()),
                $words === ['call'] => drive($client),
                default => throw new \InvalidArgumentException($usage),
            };
            return 0;
        } catch (Error $error) {
            fwrite(STDERR, "client.php: {$error->getMessage()}\n");
            return ['NOT_FOUND' => 1, 'CONFLICT' => 1, 'NO_REPLY' => 3][$error->reason] ?? 2;
        } catch (\InvalidArgumentException | \ZMQException $error) {
            fwrite(STDERR, "client.php: {$error->getMessage()}\n");
            return 2;
        }
    })(array_slice($argv, 1)));
}

/** For tests: each line of input is a request in hex, each line of output a reply. */
function drive(Client $client): void
{
    while (($line = fgets(STDIN)) !== false) {
        $request = (array) Msgpack::unpack(hex2bin(trim($line)));
        try {
            $reply = $client->call((string) $request['op'], $request);
        } catch (Error $error) {
            $reply = $error->reply;
        }
        print bin2hex(Msgpack::pack($reply)) . "\n";
    }
}
