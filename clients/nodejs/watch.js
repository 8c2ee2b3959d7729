#!/usr/bin/env node

/**
 * Prints every change of a zkv server's keys, as it happens: watch.js [ENDPOINT [PREFIX]]
 *
 * The change feed, a SUB socket, is used as a bell: its heartbeat comes after every burst of changes
 * and once a second, and tells the newest revision. The changes themselves are asked for with
 * CHANGES. So each is printed once and in order, whatever becomes of connections in between.
 */

import { Subscriber } from "zeromq";
import { Client } from "./client.js";
import { toJson, unpack } from "./msgpack.js";

const SILENCE = 5; // seconds without a heartbeat after which the connection is taken to be dead
const HEARTBEAT = "\0";

function listen(client, feed) {
  const socket = new Subscriber({ linger: 0, receiveTimeout: SILENCE * 1000, ...client.keysFor(feed) });
  socket.subscribe(HEARTBEAT);
  socket.connect(feed);
  return socket;
}

async function changes(client, since, prefix) {
  try {
    return await client.call("CHANGES", { since, prefix });
  } catch (error) {
    if (error.code !== "COMPACTED") throw error;
    const { oldest } = error.reply;
    console.error(`changes from revision ${since + 1} to ${oldest - 1} are not known any more`);
    return changes(client, oldest - 1, prefix);
  }
}

async function printChanges(client, since, prefix) {
  for (;;) {
    const page = await changes(client, since, prefix);
    for (const [rev, op, key, value] of page.changes) {
      const gone = op === "DELETE" || op === "EXPIRE";
      console.log([rev, op, key, ...(gone ? [] : [toJson(value)])].join("\t"));
    }
    since = page.next;
    if (since >= page.rev) return since;
  }
}

const [endpoint, prefix = ""] = process.argv.slice(2);
const client = new Client(endpoint);
const { feed } = await client.call("INFO");
if (feed === null) throw new Error("the server publishes nothing");
let socket = listen(client, feed);
let beat = null; // the revision of the last heartbeat: CHANGES may be ahead of it
let seen = null;
for (;;) {
  let body;
  try {
    [, body] = await socket.receive();
  } catch (error) {
    if (error.code !== "EAGAIN") throw error;
    socket.close();
    client.nextKey(); // the server may have another one now
    socket = listen(client, feed);
    continue;
  }
  const { rev } = unpack(body);
  if (beat === null || rev < beat) {
    console.error(beat === null ? `following ${feed} from revision ${rev}` : `the store went back to revision ${rev}`);
    seen = rev;
  }
  beat = rev;
  if (rev > seen) seen = await printChanges(client, seen, prefix);
}
