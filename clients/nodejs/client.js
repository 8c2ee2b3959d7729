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
 * It needs msgpack.js beside it, and the package zeromq.
 */

import { randomBytes } from "node:crypto";
import { realpathSync } from "node:fs";
import { createInterface } from "node:readline";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { Request } from "zeromq";
import { pack, RawString, toJson, unpack } from "./msgpack.js";

export const DEFAULT_ENDPOINT = "tcp://127.0.0.1:5555";
const WRITES = new Set(["PUT", "DELETE", "TOUCH", "INCR", "MPUT", "MDELETE", "TXN"]);
const ATTEMPTS = 3;
const PAUSE = 100; // milliseconds before a request that was refused for now is sent again

/** A request that was not answered with success; the codes NO_REPLY and BAD_REPLY are the client's own. */
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

// ------------------------------------------------------------------------- client

/** One connection. Requests that are made while another one runs wait for it. All throw ZkvError. */
export class Client {
  #endpoint;
  #timeout;
  #socket = null;
  #busy = Promise.resolve();
  #session = randomBytes(16).toString("hex");
  #lastId = 0;
  #lastSeq = 0;

  /** The timeout is in seconds, for each attempt. The server need not be up; a malformed endpoint throws. */
  constructor(endpoint = DEFAULT_ENDPOINT, { timeout = 5 } = {}) {
    this.#endpoint = endpoint;
    this.#timeout = timeout;
    this.#open();
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
    const turn = this.#busy.then(() => this.#sendUntilAnswered(op, request.id, body));
    this.#busy = turn.catch(() => {});
    return turn;
  }

  close() {
    this.#socket?.close();
    this.#socket = null;
  }

  async #sendUntilAnswered(op, id, body) {
    let lost = false;
    let reply = null;
    for (let left = op === "END" ? 1 : ATTEMPTS; left > 0; left--) {
      if (reply) await sleep(PAUSE);
      const frames = await this.#exchange(body);
      reply = frames && this.#judge(frames, id);
      if (reply?.ok) return reply;
      lost ||= !reply;
      if (reply && reply.retry !== true && !(lost && reply.code === "DEADLINE")) throw new ZkvError(reply);
    }
    if (!lost) throw new ZkvError(reply);
    throw ownError("NO_REPLY", `none from ${this.#endpoint} within ${this.#timeout} s`, true);
  }

  /** The frames of the reply, or null if none came in time. */
  async #exchange(body) {
    const socket = this.#open();
    try {
      await socket.send(body);
      return await socket.receive();
    } catch (error) {
      this.close(); // it is owed a reply, and would take no further request
      if (error.code === "EAGAIN") return null;
      throw error;
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

  #open() {
    if (!this.#socket) {
      const options = { linger: 0, sendTimeout: 0, receiveTimeout: Math.ceil(this.#timeout * 1000) };
      const socket = new Request(options);
      try {
        socket.connect(this.#endpoint);
      } catch (error) {
        throw new Error(`not an endpoint: ${this.#endpoint}`, { cause: error });
      }
      this.#socket = socket;
    }
    return this.#socket;
  }
}

const ownError = (code, message, retry) => new ZkvError({ ok: false, code, message, retry, applied: null });

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
