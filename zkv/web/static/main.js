// The frame of the page: login, navigation, one stream of events, the keyboard.
//
// The place is in the fragment of the URL (#keys?prefix=jobs/), so every view can be bookmarked, and
// the server of the page never sees it. One stream brings figures and changes; a tab that nobody
// looks at has none, since browsers allow six connections to a host.

import { button, el, fill } from "./dom.js";
import { ask, onLoggedOut, path, send } from "./net.js";

const PAGES = {
  overview: { title: "Overview", key: "1" },
  keys: { title: "Keys", key: "2" },
  changes: { title: "Changes", key: "3" },
  slow: { title: "Slow requests", key: "4" },
};
const SHORTCUTS = [
  ["1 2 3 4", "the pages"], ["/", "search or filter"], ["↑ ↓ ← →", "move in the tree of keys"],
  ["Enter", "open"], ["r", "read again"], ["p", "pause the changes, or go on"], ["n", "a new key"],
  ["e", "edit the value"], ["Ctrl+Enter", "save"], ["Esc", "cancel"], ["t", "dark or light"], ["?", "this list"],
];
const byId = (name) => document.getElementById(name);

/** What the pages share. */
export const state = {
  readOnly: false, columns: [], rows: [], newest: {},
  listeners: new Set(), // Called with each event of the stream: name and fields.
};
let stream = null;
let streamed; // The prefix of the changes in the stream; undefined = none.
let current = null;

// --- Where we are

/** The page and the fields in the fragment of the URL. */
function place() {
  const [name, query] = location.hash.slice(1).split(/\?(.*)/s);
  return { name: Object.hasOwn(PAGES, name) ? name : "overview", query: new URLSearchParams(query ?? "") };
}

/** The fragment for a page. */
export function link(name, query = {}) {
  return path(`#${name}`, query);
}

/** Go to a page; `quietly` changes only the URL. */
export function go(name, query = {}, quietly = false) {
  if (quietly) history.replaceState(null, "", link(name, query));
  else location.hash = link(name, query);
}

async function show() {
  const { name, query } = place();
  document.title = `${PAGES[name].title} – zkv`;
  for (const anchor of byId("pages").children) {
    if (anchor.dataset.page === name) anchor.setAttribute("aria-current", "page");
    else anchor.removeAttribute("aria-current");
  }
  if (current?.name === name && current.moved?.(query)) return;
  current?.close?.();
  state.listeners.clear();
  const page = await import(`./${name}.js`);
  if (place().name !== name) return;
  const main = fill(byId("main"));
  current = { name, ...page.open(main, query) };
  listen(current.prefix);
}

// --- The stream

/** Open the stream; with a prefix it also brings changes. */
export function listen(prefix) {
  streamed = prefix;
  stream?.close();
  stream = null;
  if (document.hidden || byId("header").hidden) return;
  stream = new EventSource(path("page/live", { prefix }));
  for (const name of ["start", "sample", "changes", "end"]) {
    stream.addEventListener(name, (event) => received(name, JSON.parse(event.data)));
  }
  stream.onerror = () => {
    banner("The console does not answer; trying again.");
    // A login that has ended gives 401, after which the browser does not try again by itself.
    if (stream.readyState === EventSource.CLOSED) setTimeout(() => ask("page/session").then(() => listen(streamed), () => {}), 1000);
  };
}

function received(name, fields) {
  if (name === "start") {
    Object.assign(state, { columns: fields.columns, rows: fields.rows, newest: fields.newest, readOnly: fields.read_only });
    document.body.classList.toggle("read-only", state.readOnly);
  } else if (name === "sample") {
    state.rows.push(fields.row);
    if (state.rows.length > 1800) state.rows.shift();
    state.newest = fields.newest;
  } else if (name === "end") {
    listen(streamed);
  }
  if (name === "start" || name === "sample") showServer();
  for (const listener of state.listeners) listener(name, fields);
}

function showServer() {
  const { server, trouble, hidden } = state.newest;
  const facts = server ? [server.endpoint, server.role && `role ${server.role}`, server.user && `user ${server.user}`, state.readOnly && "read-only console"] : [];
  fill(byId("server"), facts.filter(Boolean).join(" · "));
  const refused = server?.read_only ? `The server refuses writes: ${server.read_only}` : "";
  banner(trouble ? `No answer from the server: ${trouble}; trying again.` : refused);
  byId("server").title = hidden ?? "";
}

/** Show a line above the page; empty = none. */
function banner(text) {
  byId("banner").hidden = !text;
  fill(byId("banner"), text);
}

// --- Login

function askForToken(message = "") {
  stream?.close();
  current?.close?.();
  current = null;
  byId("header").hidden = true;
  banner("");
  const token = el("input", { type: "password", id: "token", autocomplete: "current-password", required: true, autofocus: true });
  const problem = el("p", { role: "alert", class: "bad" }, message);
  const form = el("form", { class: "login", onsubmit: async (event) => {
    event.preventDefault();
    try {
      await send("login", {}, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ token: token.value.trim() }) });
      begin();
    } catch (error) {
      fill(problem, error.message);
      token.select();
    }
  } }, el("h1", {}, "zkv"), el("label", { for: "token" }, "Token"), token, el("button", { type: "submit", class: "main" }, "Log in"), problem,
  el("p", { class: "dim" }, "The token was printed on the terminal where zkv web was started, or an administrator gave it to you."));
  fill(byId("main"), form);
  token.focus();
}

// --- Theme, help, keyboard

function setTheme(name) {
  document.documentElement.dataset.theme = name;
  localStorage.setItem("zkv-theme", name);
  for (const listener of state.listeners) listener("theme", {});
}

function toggleTheme() {
  const dark = matchMedia("(prefers-color-scheme: dark)").matches;
  setTheme((document.documentElement.dataset.theme ?? (dark ? "dark" : "light")) === "dark" ? "light" : "dark");
}

function showHelp() {
  const dialog = byId("dialog");
  fill(dialog, el("h2", {}, "Keys of the keyboard"),
    el("dl", { class: "keys" }, ...SHORTCUTS.flatMap(([key, what]) => [el("dt", {}, el("kbd", {}, key)), el("dd", {}, what)])),
    button("Close", () => dialog.close(), { autofocus: true }));
  dialog.showModal();
}

/** Ask for a text before something happens; returns null if it is cancelled. */
export function prompt(title, label, { value = "", expected = null, action = "OK", danger = false, note = "" } = {}) {
  return new Promise((resolve) => {
    const dialog = byId("dialog");
    const input = el("input", { id: "asked", value, spellcheck: "false", autocomplete: "off" });
    const ok = el("button", { type: "submit", class: danger ? "danger" : "main", disabled: expected !== null }, action);
    input.addEventListener("input", () => { ok.disabled = expected !== null && input.value !== expected; });
    const done = (result) => { dialog.onclose = null; dialog.close(); resolve(result); };
    fill(dialog, el("form", { onsubmit: (event) => { event.preventDefault(); done(input.value); } },
      el("h2", {}, title), el("p", {}, note), el("label", { for: "asked" }, label), input,
      el("div", { class: "actions" }, ok, button("Cancel", () => done(null)))));
    dialog.onclose = () => resolve(null);
    dialog.showModal();
    input.focus();
    input.select();
  });
}

function pressed(event) {
  const typing = event.target.matches("input, textarea, select");
  if (typing || event.ctrlKey || event.metaKey || event.altKey || byId("dialog").open || byId("header").hidden) return;
  const page = Object.keys(PAGES).find((name) => PAGES[name].key === event.key);
  if (page) go(page);
  else if (event.key === "?") showHelp();
  else if (event.key === "t") toggleTheme();
  else if (event.key === "/") document.querySelector("[data-search]")?.focus();
  else if (!current?.pressed?.(event.key)) return;
  event.preventDefault();
}

// --- Begin

async function begin() {
  byId("header").hidden = false;
  fill(byId("main"));
  await show();
}

function frame() {
  const theme = localStorage.getItem("zkv-theme");
  if (theme) document.documentElement.dataset.theme = theme;
  fill(byId("pages"), ...Object.entries(PAGES).map(([name, page]) => el("a", { href: `#${name}`, "data-page": name, title: `${page.title} (${page.key})` }, page.title)));
  byId("theme").onclick = toggleTheme;
  byId("help").onclick = showHelp;
  byId("logout").onclick = () => send("logout", {}, { method: "POST" }).catch(() => {}).then(() => askForToken());
  addEventListener("hashchange", show);
  addEventListener("keydown", pressed);
  document.addEventListener("visibilitychange", () => listen(streamed));
  onLoggedOut(() => askForToken());
}

frame();
ask("page/session").then(begin, (error) => { if (error.code !== "LOGIN") begin(); });
