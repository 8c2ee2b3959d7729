/**
 * msgpack for JavaScript, with all that makes values safe among languages.
 *
 * The package @msgpack/msgpack packs large ints as floats, makes text of all keys of maps, and keeps the
 * last of two that are equal. This file knows nothing of zkv.
 *
 *   null, undefined            nil; read as null
 *   boolean, string            bool, str
 *   number, BigInt             int if it is whole, else float of 64 bits; ints beyond 2^53 are BigInts
 *   Buffer, Uint8Array         bin; read as a Buffer
 *   array                      array
 *   object                     map whose keys are all text
 *   Map                        any other map; in it an array, a Buffer or an Ext is a key by identity
 *   Pairs                      a map that a Map cannot hold, since two of its keys are the same in JavaScript
 *   Date                       timestamp of whole milliseconds
 *   Ext                        any other ext, and timestamps that a Date cannot hold
 *   RawString                  a str that is not UTF-8
 */

import { isUtf8 } from "node:buffer";

/** An ext value. */
export class Ext {
  constructor(type, data) { Object.assign(this, { type, data }); }
}

/** A map as a list of [key, value]. */
export class Pairs extends Array {}

/** The bytes of a str that is not UTF-8. */
export class RawString {
  constructor(bytes) { this.bytes = bytes; }
}

// ------------------------------------------------------------------------- packing

const TAGS = { str: [0xa0, 32, 0xdb], bin: [0, 0, 0xc6], array: [0x90, 16, 0xdd], map: [0x80, 16, 0xdf], ext: [0, 0, 0xc9] };

/** Packs a value. Throws TypeError or RangeError for what msgpack does not have. */
export function pack(value) {
  const parts = [];
  write(value, parts);
  return Buffer.concat(parts);
}

function write(value, out) {
  if (value === null || value === undefined) out.push(Buffer.of(0xc0));
  else if (typeof value === "boolean") out.push(Buffer.of(value ? 0xc3 : 0xc2));
  else if (typeof value === "number") writeNumber(value, out);
  else if (typeof value === "bigint") writeInt(value, out);
  else if (typeof value === "string") writeText(value, out);
  else if (value instanceof RawString) writeBytes("str", value.bytes, out);
  else if (value instanceof Uint8Array) writeBytes("bin", value, out);
  else if (value instanceof Date) writeBytes("ext", timestamp(value), out, -1);
  else if (value instanceof Ext) writeBytes("ext", value.data, out, value.type);
  else if (value instanceof Map || value instanceof Pairs) writeMap([...value], out);
  else if (Array.isArray(value)) writeArray(value, out);
  else if (typeof value === "object") writeMap(Object.entries(value), out);
  else throw new TypeError(`msgpack has no ${typeof value}`);
}

function writeNumber(number, out) {
  if (Number.isSafeInteger(number) && !Object.is(number, -0)) return writeInt(number, out);
  const bytes = Buffer.of(0xcb, 0, 0, 0, 0, 0, 0, 0, 0);
  bytes.writeDoubleBE(number, 1);
  out.push(bytes);
}

function writeInt(int, out) {
  if (int >= -32 && int < 128) return out.push(Buffer.of(Number(int) & 0xff));
  const bytes = Buffer.of(int < 0 ? 0xd3 : 0xcf, 0, 0, 0, 0, 0, 0, 0, 0);
  if (int < 0) bytes.writeBigInt64BE(BigInt(int), 1); // both throw RangeError beyond 64 bits
  else bytes.writeBigUInt64BE(BigInt(int), 1);
  out.push(bytes);
}

function writeText(text, out) {
  if (/\p{Surrogate}/u.test(text)) throw new TypeError("UTF-8 has no half of a surrogate pair");
  writeBytes("str", Buffer.from(text), out);
}

function writeHead(kind, size, out) {
  const [short, limit, long] = TAGS[kind];
  if (size < limit) return out.push(Buffer.of(short | size));
  const head = Buffer.of(long, 0, 0, 0, 0);
  head.writeUInt32BE(size, 1);
  out.push(head);
}

function writeBytes(kind, bytes, out, type) {
  writeHead(kind, bytes.length, out);
  if (type !== undefined) {
    const code = Buffer.alloc(1);
    code.writeInt8(type); // throws RangeError for what is no type
    out.push(code);
  }
  out.push(bytes);
}

function writeArray(items, out) {
  writeHead("array", items.length, out);
  for (const item of items) write(item, out);
}

function writeMap(entries, out) {
  writeHead("map", entries.length, out);
  for (const [key, value] of entries) {
    write(key, out);
    write(value, out);
  }
}

function timestamp(date) {
  const milliseconds = date.getTime();
  if (Number.isNaN(milliseconds)) throw new RangeError("an invalid Date");
  const seconds = Math.floor(milliseconds / 1e3);
  const nanoseconds = (milliseconds - seconds * 1e3) * 1e6;
  const data = Buffer.alloc(12);
  data.writeUInt32BE(nanoseconds);
  data.writeBigInt64BE(BigInt(seconds), 4);
  if (seconds < 0 || seconds >= 2 ** 34) return data;
  data.writeBigUInt64BE((BigInt(nanoseconds) << 34n) | BigInt(seconds), 4);
  return nanoseconds === 0 && seconds < 2 ** 32 ? data.subarray(8) : data.subarray(4);
}

// ------------------------------------------------------------------------- unpacking

/** The one value that the bytes hold. Throws RangeError where they hold none, or more. */
export function unpack(bytes) {
  const reader = new Reader(Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength));
  const value = reader.next();
  if (reader.at !== bytes.byteLength) throw new RangeError("there is more than one value");
  return value;
}

class Reader {
  constructor(bytes) { Object.assign(this, { bytes, at: 0 }); }

  take(size) {
    if (this.at + size > this.bytes.length) throw new RangeError("it ends too early");
    this.at += size;
    return this.bytes.subarray(this.at - size, this.at);
  }

  uint(size) { return this.take(size).readUIntBE(0, size); }

  next() {
    const tag = this.uint(1);
    if (tag < 0x80) return tag;
    if (tag < 0x90) return this.map(tag & 0x0f);
    if (tag < 0xa0) return this.array(tag & 0x0f);
    if (tag < 0xc0) return this.text(tag & 0x1f);
    if (tag >= 0xe0) return tag - 0x100;
    if (tag === 0xc0) return null;
    if (tag === 0xc1) throw new RangeError("no msgpack");
    if (tag <= 0xc3) return tag === 0xc3;
    if (tag <= 0xc6) return this.take(this.uint(1 << (tag - 0xc4)));
    if (tag <= 0xc9) return this.ext(this.uint(1 << (tag - 0xc7)));
    if (tag === 0xca) return this.take(4).readFloatBE();
    if (tag === 0xcb) return this.take(8).readDoubleBE();
    if (tag === 0xcf) return small(this.take(8).readBigUInt64BE());
    if (tag < 0xcf) return this.uint(1 << (tag - 0xcc));
    if (tag === 0xd3) return small(this.take(8).readBigInt64BE());
    if (tag < 0xd3) return this.take(1 << (tag - 0xd0)).readIntBE(0, 1 << (tag - 0xd0));
    if (tag <= 0xd8) return this.ext(1 << (tag - 0xd4));
    if (tag <= 0xdb) return this.text(this.uint(1 << (tag - 0xd9)));
    if (tag <= 0xdd) return this.array(this.uint(2 << (tag - 0xdc)));
    return this.map(this.uint(2 << (tag - 0xde)));
  }

  text(size) {
    const bytes = this.take(size);
    return isUtf8(bytes) ? bytes.toString() : new RawString(bytes);
  }

  array(size) {
    const items = [];
    for (let left = size; left > 0; left--) items.push(this.next());
    return items;
  }

  /** The first of object, Map and Pairs that holds the map as it is. */
  map(size) {
    const pairs = new Pairs();
    for (let left = size; left > 0; left--) pairs.push([this.next(), this.next()]);
    const map = new Map(pairs);
    if (map.size < size) return pairs;
    // Who copies an object with the key __proto__ may set its prototype.
    const isText = pairs.every(([key]) => typeof key === "string" && key !== "__proto__");
    return isText ? Object.fromEntries(pairs) : map;
  }

  ext(size) {
    const [type, data] = [this.take(1).readInt8(), this.take(size)];
    return (type === -1 && readDate(data)) || new Ext(type, data);
  }
}

const small = (int) => (Number.isSafeInteger(Number(int)) ? Number(int) : int);

/** A timestamp as a Date, or null if that cannot hold it. */
function readDate(data) {
  const size = data.length;
  if (size !== 4 && size !== 8 && size !== 12) return null;
  const both = size === 8 ? data.readBigUInt64BE() : 0n;
  const seconds = size === 4 ? data.readUInt32BE() : size === 8 ? both & 0x3ffffffffn : data.readBigInt64BE(4);
  const nanoseconds = size === 4 ? 0 : size === 8 ? Number(both >> 34n) : data.readUInt32BE();
  const date = new Date(Number(seconds) * 1e3 + nanoseconds / 1e6);
  const holds = nanoseconds < 1e9 && nanoseconds % 1e6 === 0 && !Number.isNaN(date.getTime());
  return holds ? date : null;
}

// ------------------------------------------------------------------------- showing

/** A value as JSON: a map whose keys are no text as pairs, and a BigInt as a string. */
export const toJson = (value) => JSON.stringify(value, (_, item) => {
  if (typeof item === "bigint") return `${item}`;
  return item instanceof Map ? [...item] : item;
});
