#!/usr/bin/env node

/**
 * A client for a zkv server: a module to copy, with a command line at its end.
 *
 * One request is one msgpack map on a REQ socket, and so is the reply. Lost replies are no trouble:
 * every write carries a session and a number in it, so the same bytes may be sent again, and the
 * write still runs once. A REQ socket that is owed a reply takes no further request, so a lost reply
 * costs the socket, and the next attempt opens a fresh one. Linger is 0, so that what a server never
 * took goes with its socket, instead of holding up the end of the process.
 *
 * The endpoint may be a list with commas: those of the members of one store. A member that says
 * nothing, or that does not lead, is left for the next one. Before any of them gets a request, INFO
 * has to tell that it has no other store, and no older term of the store, than was seen before.
 *
 * To tcp:// endpoints it speaks CURVE if ZKV_SERVER_PUBLIC_KEY is set. A socket whose handshake is
 * refused stays silent for ever. So another one goes first, whose events tell what becomes of the
 * handshake. (The package cannot end the events of a socket that lives on, and if nobody reads them,
 * they stop all sockets.)
 *
 * It needs msgpack.js beside it, and the package zeromq.
 */

import { createPrivateKey, createPublicKey, randomBytes } from "node:crypto";
import { closeSync, fstatSync, openSync, readSync, realpathSync } from "node:fs";
import { createInterface } from "node:readline";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { curveKeyPair, Request } from "zeromq";
import { pack, RawString, toJson, unpack } from "./msgpack.js";

export const DEFAULT_ENDPOINT = "tcp://127.0.0.1:5555";
const WRITES = new Set(["PUT", "DELETE", "TOUCH", "INCR", "MPUT", "MDELETE", "TXN"]);
const READS = new Set(["PING", "GET", "MGET", "SCAN", "COUNT", "CHANGES", "INFO"]);
const MOVES = new Set(["NO_REPLY", "HANDSHAKE_FAILED", "NOT_LEADER"]); // another endpoint may do better
const ATTEMPTS = 3; // for each endpoint
const PAUSE = 100; // milliseconds before a request that was refused for now is sent again
const TRIES = 10; // while its key is changed, a server takes each connection with one key or the other
const SHORT_PAUSE = 30; // milliseconds between them

/** A request that was not answered with success; NO_REPLY, BAD_REPLY and HANDSHAKE_FAILED are the client's own codes. */
export class ZkvError extends Error {
  /** @param {object} reply the server's whole answer */
  constructor(reply) {
    super(`${reply.code}: ${reply.message}`);
    this.name = "ZkvError";
    this.code = reply.code;
    this.retry = reply.retry === true; // the same request may succeed later
    this.applied = reply.applied === false ? false : null; // false: nothing was changed; null: nobody knows
    this.reply = reply;
  }
}

// ------------------------------------------------------------------------- keys of CURVE

const Z85 = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#";
const X25519 = Buffer.from("302e020100300506032b656e04220420", "hex"); // before a secret key, in PKCS #8

/** The 32 bytes of a key of 40 characters; null if it is none. */
function decodeKey(text) {
  const numbers = text.match(/^.{40}$/) ? text.match(/.{5}/g).map((five) => {
    const digits = Array.from(five, (char) => Z85.indexOf(char));
    return digits.includes(-1) ? Infinity : digits.reduce((sum, digit) => sum * 85 + digit, 0);
  }) : [Infinity];
  if (numbers.some((number) => number >= 2 ** 32)) return null;
  return Buffer.concat(numbers.map((number) => Buffer.from(number.toString(16).padStart(8, "0"), "hex")));
}

function encodeKey(bytes) {
  const digits = (number) => [85 ** 4, 85 ** 3, 85 ** 2, 85, 1].map((unit) => Z85[Math.floor(number / unit) % 85]);
  return [0, 4, 8, 12, 16, 20, 24, 28].flatMap((at) => digits(bytes.readUInt32BE(at))).join("");
}

function publicKeyOf(secretKey) {
  const der = Buffer.concat([X25519, decodeKey(secretKey)]);
  const key = createPublicKey(createPrivateKey({ key: der, format: "der", type: "pkcs8" }));
  return encodeKey(key.export({ format: "der", type: "spki" }).subarray(-32));
}

function readKeyFile(path) {
  const file = openSync(path, "r");
  try {
    const mode = fstatSync(file).mode & 0o7777;
    if (mode & 0o077) throw new Error(`${path}: others may read it (mode 0${mode.toString(8)}): chmod 600 ${path}`);
    const bytes = Buffer.alloc(128);
    const secretKey = bytes.toString("latin1", 0, readSync(file, bytes)).trim();
    if (decodeKey(secretKey)) return secretKey;
  } finally {
    closeSync(file);
  }
  throw new Error(`${path}: not a key file: expected one line of 40 characters of Z85`);
}

/** The server's keys, of which one has to fit, and an own pair, as the environment says; else null. */
function readKeys() {
  const { ZKV_SERVER_PUBLIC_KEY = "", ZKV_KEY_FILE: file } = process.env;
  const server = ZKV_SERVER_PUBLIC_KEY.split(",").map((key) => key.trim()).filter((key) => key !== "");
  if (!server.every(decodeKey)) throw new Error("ZKV_SERVER_PUBLIC_KEY: not a key: expected 40 characters of Z85");
  if (server.length === 0 && file) throw new Error("ZKV_KEY_FILE is of no use without ZKV_SERVER_PUBLIC_KEY");
  if (server.length === 0) return null;
  if (!file) return { server, ...curveKeyPair() };
  const secretKey = readKeyFile(file);
  return { server, secretKey, publicKey: publicKeyOf(secretKey) };
}

// ------------------------------------------------------------------------- client

/** One connection. Requests that are made while another one runs wait for it. All throw ZkvError. */
export class Client {
  #endpoints; // of one store; the first is in use
  #timeout;
  #socket = null;
  #seen = null; // INFO's `replication`: the store, and the newest term that was seen
  #keys; // the first one of the server's is in use; null: none are needed; undefined: not read yet
  #busy = Promise.resolve();
  #session = randomBytes(16).toString("hex");
  #lastId = 0;
  #lastSeq = 0;

  /**
   * Takes one endpoint, or those of one store with commas between them. The timeout is in seconds, for each attempt.
   * The server need not be up; a malformed endpoint, or key, throws.
   */
  constructor(endpoint = DEFAULT_ENDPOINT, { timeout = 5 } = {}) {
    this.#endpoints = endpoint.split(",").map((item) => item.trim());
    this.#timeout = timeout;
    for (const item of this.#endpoints) this.#connect(this.#newSocket(item), item).close();
  }

  async get(key) { return (await this.call("GET", { key })).value; }

  /** Options: ttl (seconds), if_rev, durable. */
  async put(key, value, options = {}) { return (await this.call("PUT", { key, value, ...options })).rev; }

  async delete(key, options = {}) { return (await this.call("DELETE", { key, ...options })).rev; }

  async mget(keys) { return (await this.call("MGET", { keys })).values; }

  /** Takes an object or a Map. */
  async mput(items) { return (await this.call("MPUT", { items })).rev; }

  async incr(key, by = 1) { return (await this.call("INCR", { key, by })).value; }

  /** Stores only if the entry has this revision; 0 = only if there is none. */
  async cas(key, value, rev) { return this.put(key, value, { if_rev: rev }); }

  /** Yields [key, value, revision] of every key that begins with the prefix. */
  async *scan(prefix = "") {
    let after = null;
    do {
      const page = await this.call("SCAN", { prefix, after });
      yield* page.items;
      after = page.next;
    } while (after !== null);
  }

  async end() { return (await this.call("END")).rev; }

  /** Sends any op with its fields and returns the reply, an object. */
  async call(op, fields = {}) {
    const request = { op, ...fields };
    request.id ??= ++this.#lastId;
    if (WRITES.has(op) && request.session == null) {
      Object.assign(request, { session: this.#session, seq: ++this.#lastSeq });
    }
    const body = pack(request);
    const turn = this.#busy.then(() => this.#sendUntilAnswered(request, body));
    this.#busy = turn.catch(() => {});
    return turn;
  }

  close() {
    this.#socket?.close();
    this.#socket = null;
  }

  /** The endpoint that is in use. */
  get endpoint() { return this.#endpoints[0]; }

  /** The options of a socket for this endpoint that have to do with keys. */
  keysFor(endpoint) {
    if (!endpoint.startsWith("tcp://")) return {};
    this.#keys ??= readKeys();
    if (!this.#keys) return {};
    const { server, publicKey, secretKey } = this.#keys;
    return { curveServerKey: server[0], curvePublicKey: publicKey, curveSecretKey: secretKey };
  }

  /** Has the next socket use the next one of the server's keys. */
  nextKey() {
    this.#keys?.server.push(this.#keys.server.shift());
  }

  async #sendUntilAnswered({ op, id }, body) {
    const elsewhere = READS.has(op) || WRITES.has(op); // the rest, such as END, concerns one server
    const laps = elsewhere ? this.#endpoints.length : 1;
    let inDoubt = false; // an attempt may have been applied
    let reply = null;
    for (let left = op === "END" ? 1 : ATTEMPTS * laps; left > 0; left--) {
      if (reply) await sleep(PAUSE);
      reply = await this.#ask(id, body);
      if (reply?.ok) return reply;
      const refused = reply && reply.retry !== true; // now; but what became of an attempt before?
      if (refused && !(inDoubt && ["DEADLINE", "HANDSHAKE_FAILED"].includes(reply.code))) throw new ZkvError(reply);
      inDoubt ||= !reply || (reply.applied == null && reply.code !== "HANDSHAKE_FAILED");
      // One lap follows hints, the others try all: servers that know no better may send it in circles.
      if (elsewhere && (!reply || MOVES.has(reply.code))) this.#moveOn(left > 2 * laps ? reply?.leader : null);
    }
    if (reply && !(inDoubt && reply.applied === false)) throw new ZkvError(reply);
    throw ownError("NO_REPLY", `none from ${this.#endpoints} within ${this.#timeout} s`, true);
  }

  /** Goes to the server that is said to lead, if it is in the list or has to prove its key; else to the next one. */
  #moveOn(hints) {
    const [left, ...others] = this.#endpoints;
    const known = (hint) => others.includes(hint) || (hint !== left && "curveServerKey" in this.keysFor(`${hint}`));
    const next = hints?.find(known) ?? others[0];
    if (next === undefined) return;
    this.close();
    this.#endpoints = [next, ...others.filter((item) => item !== next), left];
  }

  /** The reply, or null if none comes in time. With several endpoints, a server is first asked whose it is. */
  async #ask(id, body) {
    if (this.#socket || this.#endpoints.length === 1) return this.#exchange(id, body);
    const ask = ++this.#lastId;
    const info = await this.#exchange(ask, pack({ op: "INFO", id: ask }));
    const { store, term } = info?.replication ?? {};
    const fits = !this.#seen || (store === this.#seen.store && term >= this.#seen.term);
    if (info?.ok && fits) {
      if (store) this.#seen = { store, term };
      return this.#exchange(id, body);
    }
    this.close();
    if (info && !info.ok) return info;
    const [code, why] = info ? ["NOT_LEADER", "it has another store, or an older term of it"] : ["NO_REPLY", "none to INFO"];
    return ownReply(code, `${this.#endpoints[0]}: ${why}`, true, false);
  }

  async #exchange(id, body) {
    const answer = await this.#exchangeWithKeys(body);
    return Array.isArray(answer) ? this.#judge(answer, id) : answer;
  }

  /** The frames of the reply, or null if none came in time, or why the handshake fails with one key after the other. */
  async #exchangeWithKeys(body) {
    for (let left = TRIES; ; left--) {
      const answer = await this.#exchangeOnce(body);
      if (!answer?.retry || left === 1) return answer;
      this.nextKey();
      await sleep(SHORT_PAUSE);
    }
  }

  async #exchangeOnce(body) {
    const [endpoint] = this.#endpoints;
    if (!this.#socket) {
      const failure = await this.#handshake(endpoint);
      if (failure !== undefined) return failure;
    }
    this.#socket ??= this.#connect(this.#newSocket(endpoint), endpoint);
    try {
      await this.#socket.send(body);
      return await this.#socket.receive();
    } catch (error) {
      this.close(); // it is owed a reply, and would take no further request
      if (error.code === "EAGAIN") return null;
      throw error;
    }
  }

  /** Connects once: undefined if the handshake succeeds, else why not, as a reply; null if nothing comes in time. */
  async #handshake(endpoint) {
    const keys = "curveServerKey" in this.keysFor(endpoint);
    const socket = this.#newSocket(endpoint);
    let timer;
    try {
      return await new Promise((resolve) => {
        const fail = (...reason) => resolve(ownReply("HANDSHAKE_FAILED", ...reason));
        socket.events.on("handshake", () => resolve(undefined));
        socket.events.on("handshake:error:auth", () =>
          fail("the server does not know this client: its key or, on ipc, its system user", false, false));
        socket.events.on("handshake:error:protocol", () =>
          fail(keys ? "the server does not speak CURVE" : "the server asks for CURVE: set ZKV_SERVER_PUBLIC_KEY", false, false));
        socket.events.on("handshake:error:other", () => { // ZeroMQ tries again, and without keys that may help
          if (keys) fail("the handshake was cut: the server has another key than ZKV_SERVER_PUBLIC_KEY says, or no CURVE", true);
        });
        timer = setTimeout(() => resolve(null), this.#timeout * 1000);
        try {
          this.#connect(socket, endpoint);
        } catch { // no endpoint: a server that does not lead has told of it
          resolve(null);
        }
      });
    } finally {
      clearTimeout(timer);
      socket.close();
    }
  }

  #judge(frames, id) {
    let reply;
    try {
      reply = unpack(Buffer.concat(frames));
    } catch (error) {
      this.close();
      throw ownError("BAD_REPLY", error.message, false);
    }
    // A refusal has no id where the server could not read it.
    if (reply?.ok === true ? reply.id === id : reply?.ok === false && (reply.id ?? id) === id) return reply;
    this.close();
    throw ownError("BAD_REPLY", `ok ${reply?.ok}, id ${reply?.id} where ${id} was sent`, false);
  }

  #newSocket(endpoint) {
    const receiveTimeout = Math.ceil(this.#timeout * 1000);
    return new Request({ linger: 0, sendTimeout: 0, receiveTimeout, ...this.keysFor(endpoint) });
  }

  #connect(socket, endpoint) {
    try {
      socket.connect(endpoint);
    } catch (error) {
      throw new Error(`not an endpoint: ${endpoint}`, { cause: error });
    }
    return socket;
  }
}

const ownReply = (code, message, retry, applied = null) => ({ ok: false, code, message, retry, applied });
const ownError = (code, message, retry) => new ZkvError(ownReply(code, message, retry));

// ------------------------------------------------------------------------- command line

const USAGE = "Usage: client.js [-e ENDPOINT] [--timeout S] put KEY VALUE | get KEY | delete KEY | incr KEY [BY] | end | call";

class UsageError extends Error {}

async function run(client, command, words) {
  const done = (rev) => console.error(`OK, revision ${rev}`);
  const [key, word] = words;
  switch (`${command.toLowerCase()} ${words.length}`) {
    case "put 2": return done(await client.put(key, word === "-" ? await readInput() : word));
    case "get 1": return show(await client.get(key));
    case "delete 1": return done(await client.delete(key));
    case "incr 1": return show(await client.incr(key));
    case "incr 2": return show(await client.incr(key, readInt(word)));
    case "end 0": return done(await client.end());
    case "call 0": return drive(client);
    default: throw new UsageError(USAGE);
  }
}

/** Standard input: text if it is UTF-8, else bytes. */
async function readInput() {
  const bytes = Buffer.concat(await process.stdin.toArray());
  const text = bytes.toString();
  return Buffer.from(text).equals(bytes) ? text : bytes;
}

function readInt(word) {
  if (!/^[-+]?\d+$/.test(word)) throw new UsageError(`'${word}' is no int`);
  return Number.isSafeInteger(Number(word)) ? Number(word) : BigInt(word);
}

function show(value) {
  const text = value instanceof RawString ? value.bytes : value;
  process.stdout.write(typeof text === "string" || text instanceof Uint8Array ? text : toJson(value));
  process.stdout.write("\n");
}

/** For tests: each line of input is a request in hex, each line of output a reply. */
async function drive(client) {
  for await (const line of createInterface({ input: process.stdin })) {
    const { op, ...fields } = unpack(Buffer.from(line, "hex"));
    const reply = await client.call(op, fields).catch((error) => error.reply ?? Promise.reject(error));
    process.stdout.write(`${Buffer.from(pack(reply)).toString("hex")}\n`);
  }
}

async function main(words) {
  let endpoint = process.env.ZKV_ENDPOINT || DEFAULT_ENDPOINT;
  let timeout = 5;
  for (; ["-e", "--endpoint", "--timeout"].includes(words[0]); words.splice(0, 2)) {
    if (words[0] === "--timeout") timeout = Number(words[1]);
    else endpoint = words[1] ?? "";
  }
  let client;
  try {
    if (!(timeout > 0)) throw new UsageError("the timeout is no number above 0");
    client = new Client(endpoint, { timeout });
    await run(client, words[0] ?? "", words.slice(1));
  } catch (error) {
    console.error(`client.js: ${error.message}`);
    return { NOT_FOUND: 1, CONFLICT: 1, NO_REPLY: 3 }[error.code] ?? 2;
  } finally {
    client?.close();
  }
  return 0;
}

if (process.argv[1] && realpathSync(process.argv[1]) === fileURLToPath(import.meta.url)) {
  process.exit(await main(process.argv.slice(2))); // does not wait for the end of standard input
}
