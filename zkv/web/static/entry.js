// An entry: its value in four views, and everything that changes it.
//
// The value comes as msgpack, byte for byte; the console turns it into text (JSON with tags), and
// text into msgpack. JavaScript never parses that text: it would change large numbers. Only what has
// been edited is stored, and only if nobody else has changed it meanwhile.

import { bytes, button, duration, el, fill, visible } from "./dom.js";
import { MSGPACK, send } from "./net.js";
import { dump, read, utf8 } from "./msgpack.js";
import { prompt } from "./main.js";

const LARGEST = 256 * 1024; // Bytes of a value that is read as a whole.
const BEGINNING = 64 * 1024; // Bytes that are shown of a larger one.
const DEEPEST = 40; // Levels that are indented: with more, blanks would be most of the text.
const JSON_TYPE = { "Content-Type": "application/json" };
const VIEWS = { json: "JSON", parts: "Tree", text: "Text", hex: "Hex" };

/** Read an entry: value, type, revision, time to live, size. A large value only in part. */
async function fetchEntry(key) {
  const answer = await send("api/entry", { key, raw: true }, { headers: { Accept: MSGPACK } });
  const size = Number(answer.headers.get("Content-Length"));
  const whole = size <= LARGEST;
  const ttl = answer.headers.get("Zkv-Ttl");
  return {
    key, size, whole, type: answer.headers.get("Zkv-Type"), rev: Number(answer.headers.get("Zkv-Rev")),
    expires: ttl === null ? null : Date.now() + Number(ttl) * 1000,
    data: whole ? new Uint8Array(await answer.arrayBuffer()) : await beginning(answer.body.getReader()),
  };
}

async function beginning(reader) {
  const data = new Uint8Array(BEGINNING);
  let at = 0;
  while (at < BEGINNING) {
    const { value, done } = await reader.read();
    if (done) break;
    const part = value.subarray(0, BEGINNING - at);
    data.set(part, at);
    at += part.length;
  }
  reader.cancel();
  return data.subarray(0, at);
}

const asText = async (data) => (await send("page/text", {}, { method: "POST", headers: { "Content-Type": MSGPACK }, body: data })).text();

/** JSON with line breaks, by its punctuation alone: numbers and strings stay as they are. */
export function indented(text) {
  const out = [];
  let depth = 0;
  let opened = false; // The last token has opened a list or an object, which may be empty.
  const line = () => `\n${"  ".repeat(Math.min(depth, DEEPEST))}`;
  for (const [token] of text.matchAll(/"(?:[^"\\]|\\.)*"|[[\]{}:,]|[^\s"[\]{}:,]+/g)) {
    const closes = token === "}" || token === "]";
    if (closes) depth -= 1;
    if (opened !== closes) out.push(line());
    opened = token === "{" || token === "[";
    if (opened) depth += 1;
    out.push(token === ":" ? ": " : token);
    if (token === ",") out.push(line());
  }
  return out.join("");
}

/** The time to live that is left, in seconds; null = none. */
const left = (entry) => (entry.expires === null ? null : Math.max(0.001, (entry.expires - Date.now()) / 1000));

/** The content of an entry that is text; null for other types. */
function textOf(entry) {
  try {
    return entry.type === "str" ? (read(entry.data).content ?? null) : null;
  } catch {
    return null;
  }
}

// --- Views

function part(name, node) {
  const label = [name === null ? "" : el("span", { class: "dim" }, visible(name), ": ")];
  const kind = el("span", { class: "kind" }, ` ${node.type}`);
  if (!node.children) return el("div", { class: "part" }, ...label, visible(node.text), kind);
  return el("details", { open: true }, el("summary", {}, ...label, kind), ...node.children.map(([each, child]) => part(each, child)));
}

async function view(entry, name) {
  if (name === "hex") return el("pre", { class: "hex" }, dump(entry.data));
  if (!entry.whole) return el("p", {}, `The value has ${bytes(entry.size)}: only its beginning is shown, in hex. Download it to see all of it.`);
  if (name === "json") return el("pre", {}, visible(indented(await asText(entry.data)), true));
  if (name === "parts") {
    try {
      return el("div", { class: "parts" }, part(null, read(entry.data)));
    } catch (error) {
      return el("p", {}, `It cannot be shown as a tree: ${error.message}.`);
    }
  }
  const node = ["str", "bin"].includes(entry.type) ? read(entry.data) : null;
  const text = node?.content ?? (node?.data ? utf8(node.data) : null);
  return text === null ? el("p", {}, `A ${entry.type} is no text.`) : el("pre", {}, visible(text, true));
}

// --- The panel

export async function openEntry(panel, key, page) {
  panel.dataset.key = key;
  fill(panel, el("h2", {}, visible(key)), el("p", { class: "dim" }, "Reading …"));
  try {
    const entry = await fetchEntry(key);
    if (panel.dataset.key === key) showEntry(panel, entry, page);
  } catch (error) {
    if (panel.dataset.key === key) fill(panel, el("h2", {}, visible(key)), el("p", { class: "bad", role: "alert" }, error.message), button("Try again", () => openEntry(panel, key, page)));
  }
}

function facts(entry) {
  return el("p", { class: "dim facts" }, `${entry.type}, ${bytes(entry.size)}, revision ${entry.rev}, ${entry.expires === null ? "does not expire" : `expires in ${duration(left(entry))}`}`);
}

function showEntry(panel, entry, page, message = "") {
  const { key } = entry;
  const shown = el("div", {});
  const tabs = el("div", { class: "actions", role: "tablist", "aria-label": "View" });
  const note = el("p", { role: "status" }, message);
  const again = () => openEntry(panel, key, page);

  let chosen;

  /** Show a view. What takes longer than the next choice comes too late. */
  async function choose(name) {
    chosen = name;
    for (const tab of tabs.children) tab.setAttribute("aria-selected", String(tab.dataset.view === name));
    let made;
    try {
      made = await view(entry, name);
    } catch (error) {
      made = el("p", { class: "bad" }, error.message);
    }
    if (chosen === name) fill(shown, made);
  }

  /** Do something that writes; say what came of it. */
  async function write(doing, done) {
    try {
      await doing();
      done();
    } catch (error) {
      if (error.code === "CONFLICT") fill(note, el("span", { class: "bad" }, `${error.message}. `), button("Show what is stored now", again));
      else fill(note, el("span", { class: "bad" }, error.message));
    }
  }

  const operate = (ops) => send("api/txn", {}, { method: "POST", headers: JSON_TYPE, body: JSON.stringify({ if: [[key, entry.rev]], ops }) });

  async function setTtl() {
    const typed = await prompt("Time to live", "Seconds from now; empty = it does not expire", { value: entry.expires === null ? "" : String(Math.round(left(entry))) });
    if (typed === null) return;
    const ttl = typed.trim() === "" ? null : Number(typed);
    if (ttl !== null && !(ttl > 0)) return void fill(note, el("span", { class: "bad" }, "The time to live is a number of seconds above 0."));
    await write(() => operate([{ op: "TOUCH", key, ttl }]), again);
  }

  async function rename() {
    const to = await prompt("Rename", "New key", { value: key, action: "Rename" });
    if (to === null || to === key) return;
    await write(() => send("page/rename", { key, to, if_rev: entry.rev }, { method: "POST" }), () => { page.reload(); page.choose({ key: to }); });
  }

  async function remove() {
    const typed = await prompt("Delete", "Type delete to confirm", { expected: "delete", action: "Delete", danger: true, note: visible(key) });
    if (typed === null) return;
    await write(() => send("api/entry", { key, if_rev: entry.rev }, { method: "DELETE" }), () => { page.reload(); delete panel.dataset.key; fill(panel, el("h2", {}, visible(key)), el("p", { role: "status" }, "Deleted.")); });
  }

  async function download() {
    const answer = await send("api/entry", { key, raw: true }, { headers: { Accept: MSGPACK } });
    const url = URL.createObjectURL(await answer.blob());
    el("a", { href: url, download: "value.msgpack" }).click();
    setTimeout(() => URL.revokeObjectURL(url), 10000);
  }

  for (const [name, title] of Object.entries(VIEWS)) tabs.append(button(title, () => choose(name), { role: "tab", "data-view": name }));
  fill(panel, el("h2", {}, visible(key)), facts(entry),
    el("div", { class: "actions" },
      button("Edit", () => edit(panel, entry, page), { class: "writes main", "data-edit": true, disabled: !entry.whole, title: entry.whole ? "e" : "Too large to edit here" }),
      button("Time to live …", setTtl, { class: "writes" }), button("Rename …", rename, { class: "writes" }), button("Delete …", remove, { class: "writes danger" }),
      button("Refresh", again), button("Download", () => download().catch((error) => fill(note, error.message)))),
    note, tabs, shown);
  choose(entry.whole ? (textOf(entry) === null ? "json" : "text") : "hex");
}

// --- Editing

/** An editor for a value; calls `save` with the body of the request, JSON with tags. */
function editor(initial, save, cancel) {
  const area = el("textarea", { spellcheck: "false", "aria-label": "Value" });
  area.value = initial.text;
  const kind = el("select", { "aria-label": "Kind" }, el("option", { value: "text" }, "Text"), el("option", { value: "json" }, "JSON with tags"));
  kind.value = initial.kind;
  const body = () => (kind.value === "text" ? JSON.stringify(area.value) : area.value);
  const submit = () => save(body(), area.value !== initial.text || kind.value !== initial.kind);
  area.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && event.ctrlKey) submit();
    else if (event.key === "Escape") cancel();
    else return;
    event.preventDefault();
  });
  return { area, body, element: el("div", {}, kind, area, el("div", { class: "actions" }, button("Save", submit, { class: "main", "data-save": true }), button("Cancel", cancel)),
    el("p", { class: "dim" }, 'What JSON lacks is tagged: {"$bin": "<base64>"}, {"$ext": [<type>, "<base64>"]}, {"$time": "<UTC>"}, {"$float": "NaN"}.')) };
}

async function edit(panel, entry, page) {
  const text = textOf(entry);
  const note = el("div", { role: "alert" });
  let rev = entry.rev;
  const cancel = () => showEntry(panel, entry, page);

  async function save(body, changed) {
    if (!changed) return void showEntry(panel, entry, page, "Nothing was changed, so nothing was stored.");
    try {
      await send("api/entry", { key: entry.key, if_rev: rev, ttl: left(entry) }, { method: "PUT", headers: JSON_TYPE, body });
      const stored = await fetchEntry(entry.key);
      showEntry(panel, stored, page, "Stored.");
    } catch (error) {
      if (error.code === "CONFLICT") await conflict(error, body);
      else fill(note, el("p", { class: "bad" }, error.message));
    }
    return undefined;
  }

  /** Show both: what was to be stored, and what somebody else has stored meanwhile. */
  async function conflict(error, body) {
    const title = el("p", { class: "bad" }, `Somebody else has changed it: ${error.message}. Nothing was stored.`);
    try {
      const theirs = await fetchEntry(entry.key);
      const other = theirs.whole ? indented(await asText(theirs.data)) : `${bytes(theirs.size)}, too large to show`;
      fill(note, title, el("div", { class: "both" },
        el("section", {}, el("h3", {}, "Yours, not stored"), el("pre", {}, visible(indented(body), true))),
        el("section", {}, el("h3", {}, `Stored, revision ${theirs.rev}`), el("pre", {}, visible(other, true)))),
      el("div", { class: "actions" }, button("Store mine over it", () => { rev = theirs.rev; entry.expires = theirs.expires; save(made.body(), true); }, { class: "danger" }),
        button("Take what is stored", () => showEntry(panel, theirs, page))));
    } catch (found) {
      fill(note, title, el("p", {}, found.code === "NOT_FOUND" ? "It has been deleted." : found.message),
        el("div", { class: "actions" }, button("Store mine again", () => { rev = 0; save(made.body(), true); }, { class: "danger" }), button("Leave it", () => openEntry(panel, entry.key, page))));
    }
  }

  const made = editor(text === null ? { kind: "json", text: indented(await asText(entry.data)) } : { kind: "text", text }, save, cancel);
  fill(panel, el("h2", {}, visible(entry.key)), facts(entry), note, made.element);
  made.area.focus();
}

/** A form for a new key. */
export function createEntry(panel, prefix, page) {
  delete panel.dataset.key;
  const key = el("input", { id: "new-key", value: prefix, spellcheck: "false", autocomplete: "off" });
  const ttl = el("input", { id: "new-ttl", inputmode: "decimal", placeholder: "does not expire" });
  const note = el("p", { role: "alert" });

  async function save(body) {
    const seconds = ttl.value.trim();
    try {
      await send("api/entry", { key: key.value, if_rev: 0, ttl: seconds || undefined }, { method: "PUT", headers: JSON_TYPE, body });
      page.reload();
      page.choose({ key: key.value });
    } catch (error) {
      fill(note, el("span", { class: "bad" }, error.code === "CONFLICT" ? "This key exists already; nothing was stored." : error.message));
    }
  }

  const made = editor({ kind: "text", text: "" }, save, () => page.choose(prefix ? { prefix } : {}));
  fill(panel, el("h2", {}, "New key"), el("label", { for: "new-key" }, "Key "), key, el("p", {}, el("label", { for: "new-ttl" }, "Time to live in seconds "), ttl), note, made.element);
  key.focus();
}
