// Reads msgpack into a tree for the eye. Nothing is converted: each node knows its bytes.

const UTF8 = new TextDecoder("utf-8", { fatal: true });
const MOST_NODES = 5000;

/** Text of bytes; null if they are not UTF-8. */
export function utf8(data) {
  try {
    return UTF8.decode(data);
  } catch {
    return null;
  }
}

class Reader {
  constructor(data) {
    this.data = data;
    this.view = new DataView(data.buffer, data.byteOffset, data.byteLength);
    this.at = 0;
    this.nodes = 0;
  }

  size(width) {
    const at = this.at;
    this.at += width;
    if (width === 1) return this.view.getUint8(at);
    return width === 2 ? this.view.getUint16(at) : this.view.getUint32(at);
  }

  bytes(size) {
    if (this.at + size > this.data.length) throw new RangeError("it is cut off");
    const begin = this.at;
    this.at += size;
    return this.data.subarray(begin, this.at);
  }

  node() {
    if ((this.nodes += 1) > MOST_NODES) throw new RangeError(`more than ${MOST_NODES} parts`);
    const first = this.size(1);
    if (first < 0x80) return { type: "int", text: String(first) };
    if (first < 0x90) return this.map(first & 0x0f);
    if (first < 0xa0) return this.array(first & 0x0f);
    if (first < 0xc0) return this.str(first & 0x1f);
    if (first >= 0xe0) return { type: "int", text: String(first - 0x100) };
    return this.long(first);
  }

  long(first) {
    const { view } = this;
    const scalar = (type, width, read) => {
      const at = this.at;
      this.bytes(width);
      return { type, text: String(read.call(view, at)) };
    };
    switch (first) {
      case 0xc0: return { type: "nil", text: "nil" };
      case 0xc2: return { type: "bool", text: "false" };
      case 0xc3: return { type: "bool", text: "true" };
      case 0xc4: case 0xc5: case 0xc6: return this.bin(this.size(1 << (first - 0xc4)));
      case 0xc7: case 0xc8: case 0xc9: return this.ext(this.size(1 << (first - 0xc7)));
      case 0xca: return scalar("float 32", 4, view.getFloat32);
      case 0xcb: return scalar("float", 8, view.getFloat64);
      case 0xcc: return scalar("int", 1, view.getUint8);
      case 0xcd: return scalar("int", 2, view.getUint16);
      case 0xce: return scalar("int", 4, view.getUint32);
      case 0xcf: return scalar("int", 8, view.getBigUint64);
      case 0xd0: return scalar("int", 1, view.getInt8);
      case 0xd1: return scalar("int", 2, view.getInt16);
      case 0xd2: return scalar("int", 4, view.getInt32);
      case 0xd3: return scalar("int", 8, view.getBigInt64);
      case 0xd4: case 0xd5: case 0xd6: case 0xd7: case 0xd8: return this.ext(1 << (first - 0xd4));
      case 0xd9: case 0xda: case 0xdb: return this.str(this.size(1 << (first - 0xd9)));
      case 0xdc: case 0xdd: return this.array(this.size(2 << (first - 0xdc)));
      case 0xde: case 0xdf: return this.map(this.size(2 << (first - 0xde)));
      default: throw new RangeError("no value begins with this byte");
    }
  }

  str(size) {
    const data = this.bytes(size);
    const text = utf8(data);
    return text === null ? { type: "str, not UTF-8", text: hex(data) } : { type: "str", text: JSON.stringify(text), content: text };
  }

  bin(size) {
    const data = this.bytes(size);
    return { type: `bin, ${size} bytes`, text: hex(data), data };
  }

  ext(size) {
    const code = this.view.getInt8(this.at);
    this.at += 1;
    return { type: code === -1 ? "timestamp" : `ext ${code}`, text: hex(this.bytes(size)) };
  }

  array(size) {
    const children = [];
    for (let at = 0; at < size; at += 1) children.push([String(at), this.node()]);
    return { type: `array of ${size}`, children };
  }

  map(size) {
    const children = [];
    for (let at = 0; at < size; at += 1) {
      const key = this.node();
      children.push([key.text ?? key.type, this.node()]);
    }
    return { type: `map of ${size}`, children };
  }
}

/** The first bytes of data in hex. */
export function hex(data, most = 32) {
  const shown = Array.from(data.subarray(0, most), (byte) => byte.toString(16).padStart(2, "0")).join(" ");
  return data.length > most ? `${shown} …` : shown;
}

/** Read one value. Throws RangeError if it cannot be shown. */
export function read(data) {
  return new Reader(data).node();
}

/** Bytes as in a hex editor. */
export function dump(data, most = 16384) {
  const lines = [];
  for (let at = 0; at < Math.min(data.length, most); at += 16) {
    const line = data.subarray(at, Math.min(at + 16, most));
    const text = Array.from(line, (byte) => (byte >= 0x20 && byte < 0x7f ? String.fromCharCode(byte) : ".")).join("");
    lines.push(`${at.toString(16).padStart(8, "0")}  ${hex(line).padEnd(47)}  ${text}`);
  }
  return lines.join("\n");
}
