#!/usr/bin/env node

/**
 * Prints every change of a zkv server's keys, as it happens: watch.js [ENDPOINT [PREFIX]]
 *
 * The change feed, a SUB socket, is used as a bell: its heartbeat comes after every burst of changes
 * and once a second, and tells the newest revision. The changes themselves are asked for with
 * CHANGES. So each is printed once and in order, whatever becomes of connections in between.
 *
 * Of several endpoints it follows the server that leads: one that another has superseded goes on to
 * beat. A server that was promoted goes on with the revisions, far above the last one.
 */

import { setTimeout as sleep } from "node:timers/promises";
import { Subscriber } from "zeromq";
import { Client } from "./client.js";
import { toJson, unpack } from "./msgpack.js";

const SILENCE = 5; // seconds without a heartbeat after which the connection is taken to be dead
const CHECK = 1; // seconds between two looks whether a server still leads
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

const [endpoint, prefix = ""] = process.argv.slice(2);
const isList = endpoint?.includes(",") ?? false;
const client = new Client(endpoint);
let seen = null; // the last revision of which all changes are printed

/** Where the server publishes; of several, the one that leads. */
async function findFeed() {
  if (isList) await client.call("MGET", { keys: [] }); // only a server that leads answers that
  const { feed } = await client.call("INFO");
  if (feed === null) throw new Error("the server publishes nothing");
  return feed;
}

/** The same; waits until there is one that leads. */
async function findNextFeed() {
  for (;;) {
    try {
      return await findFeed();
    } catch (error) {
      if (!error.retry) throw error;
      await sleep(CHECK * 1000);
    }
  }
}

async function printChanges(from) {
  for (;;) {
    const page = await changes(from, seen, prefix);
    for (const [rev, op, key, value] of page.changes) {
      const gone = op === "DELETE" || op === "EXPIRE";
      console.log([rev, op, key, ...(gone ? [] : [toJson(value)])].join("\t"));
    }
    seen = page.next;
    if (seen >= page.rev) return;
  }
}

/** Prints what a server that was superseded still has: the other one has it, too, but not as changes. */
async function printRest(place) {
  const old = new Client(place, { timeout: 1 });
  try {
    await old.call("MGET", { keys: [] }); // it leads: what it has may be in no other history
  } catch (error) {
    if (error.code === "NOT_LEADER") await printChanges(old).catch(() => {});
  } finally {
    old.close();
  }
}

let feed = await findFeed();
let followed = client.endpoint;
let socket = listen(client, feed);
let beat = null; // the revision of the last heartbeat of this feed: CHANGES may be ahead of it
let checked = Date.now();
for (;;) {
  let body = null;
  try {
    [, body] = await socket.receive();
  } catch (error) {
    if (error.code !== "EAGAIN") throw error;
  }
  if (body === null || (isList && Date.now() >= checked + CHECK * 1000)) {
    const found = isList ? await findNextFeed() : feed;
    checked = Date.now();
    if (body === null || found !== feed) {
      socket.close();
      if (body === null) client.nextKey(); // the server may have another one now
      if (found !== feed) {
        if (seen !== null) await printRest(followed);
        beat = null;
      }
      followed = client.endpoint;
      feed = found;
      socket = listen(client, feed);
      continue;
    }
  }
  const { rev } = unpack(body);
  if (beat === null) console.error(`following ${feed} from revision ${seen ?? rev}`);
  if (beat !== null && rev < beat) console.error(`the store went back to revision ${rev}`);
  if (seen === null || (beat !== null && rev < beat)) seen = rev;
  beat = rev;
  try {
    if (rev > seen) await printChanges(client);
  } catch (error) {
    if (!isList || !error.retry) throw error; // else the server is gone, which the next silence tells
  }
}
