// The tree of keys, beside the folder or the entry that is chosen.
//
// A level is read when it is opened, 200 items at a time, so a folder may have any number of keys.
// What is closed leaves the document: only what one sees is in it.

import { button, count, el, fill, keysIn, visible } from "./dom.js";
import { ask } from "./net.js";
import { go, state } from "./main.js";
import { createEntry, openEntry } from "./entry.js";
import { openFolder } from "./folder.js";

const PAGE = 200;

/** One level of the tree, below an element. */
class Level {
  constructor(page, prefix, depth) {
    this.page = page;
    this.prefix = prefix;
    this.depth = depth;
    this.list = el("ul", { role: depth === 1 ? "tree" : "group", "aria-label": depth === 1 ? "Keys" : null });
    this.more = null;
  }

  /** Read the next items. */
  async load(start) {
    this.more?.remove();
    this.more = el("li", { class: "dim" }, "Reading …");
    this.list.append(this.more);
    const { separator } = this.page;
    try {
      const found = await ask("page/tree", { prefix: this.prefix, separator, start, limit: PAGE });
      this.more.remove();
      const items = [...found.folders.map((each) => ({ ...each, folder: true })), ...found.keys];
      // Code points, as the server orders, and not the halves of a pair.
      items.sort((one, other) => compare(one.name, other.name));
      this.list.append(...items.map((each) => (each.folder ? this.folder(each) : this.key(each))));
      this.more = found.next === null ? null : el("li", {}, button(`Show ${PAGE} more`, () => this.load(found.next)));
      if (this.more) this.list.append(this.more);
      else if (!this.list.children.length) this.list.append(el("li", { class: "dim" }, "No keys here."));
    } catch (error) {
      this.more.remove();
      this.more = el("li", { class: "bad", role: "alert" }, `${error.message} `, error.code === "DENIED" ? "Type a prefix that you may read above." : "", button("Try again", () => this.load(start)));
      this.list.append(this.more);
    }
  }

  row(name, attributes, mark, number) {
    return el("div", { class: "item", role: "treeitem", tabindex: "-1", "aria-level": String(this.depth), "aria-selected": "false", ...attributes },
      el("span", { class: "mark", "aria-hidden": "true" }, mark), visible(name.slice(this.prefix.length) || name), number === undefined ? null : el("span", { class: "number" }, count(number)));
  }

  key({ name }) {
    const item = this.row(name, { onclick: () => this.page.choose({ key: name }, item) }, "");
    return el("li", { role: "none" }, item);
  }

  folder({ name, count: number }) {
    const mark = () => item.firstChild;
    const line = el("li", { role: "none" });
    const item = this.row(name, { "aria-expanded": "false", onclick: () => { toggle(); this.page.choose({ prefix: name }, item); } }, "▸", number);
    const toggle = (open = item.getAttribute("aria-expanded") === "false") => {
      if (open === (item.getAttribute("aria-expanded") === "true")) return;
      item.setAttribute("aria-expanded", String(open));
      fill(mark(), open ? "▾" : "▸");
      line.querySelector(":scope > ul")?.remove();
      if (!open) return;
      const level = new Level(this.page, name, this.depth + 1);
      line.append(level.list);
      level.load();
    };
    item.toggle = toggle;
    line.append(item);
    return line;
  }
}

function compare(one, other) {
  const [left, right] = [[...one], [...other]];
  const at = left.findIndex((character, index) => character !== right[index]);
  if (at < 0) return left.length - right.length;
  return at < right.length ? left[at].codePointAt(0) - right[at].codePointAt(0) : 1;
}

export function open(main, query) {
  const search = el("input", { id: "search", placeholder: "all keys", spellcheck: "false", autocomplete: "off", "data-search": true, "aria-keyshortcuts": "/" });
  const separator = el("input", { id: "separator", class: "short", maxlength: "8", value: localStorage.getItem("zkv-separator") ?? "/" });
  const tree = el("div", { class: "tree" });
  const panel = el("section", { class: "entry", "aria-label": "Chosen" });
  const total = el("span", { class: "dim" });
  let root = "";
  let chosen = null;

  const page = {
    get separator() { return separator.value; },
    /** Show a key ({ key }) or a folder ({ prefix }). */
    choose(what, item = null) {
      mark(item);
      chosen = what;
      go("keys", { root: root || undefined, ...what }, true);
      show();
    },
    /** Read the tree again, after something was written. */
    reload() { load(); },
  };

  function mark(item) {
    tree.querySelector('[aria-selected="true"]')?.setAttribute("aria-selected", "false");
    item?.setAttribute("aria-selected", "true");
    reachable(item);
  }

  /** Make an item the one that Tab leads to. */
  function reachable(item) {
    tree.querySelector('[tabindex="0"]')?.setAttribute("tabindex", "-1");
    item?.setAttribute("tabindex", "0");
  }

  function show() {
    if (chosen?.key !== undefined) openEntry(panel, chosen.key, page);
    else openFolder(panel, chosen?.prefix ?? root, page);
  }

  async function load() {
    const level = new Level(page, root, 1);
    fill(tree, level.list);
    ask("page/count", { prefix: root }).then((found) => fill(total, keysIn(found.count)), () => fill(total));
    await level.load();
    reachable(level.list.querySelector(".item"));
  }

  function moved(fields) {
    root = fields.get("root") ?? "";
    search.value = root;
    chosen = fields.has("key") ? { key: fields.get("key") } : fields.has("prefix") ? { prefix: fields.get("prefix") } : null;
    if (!root && chosen?.prefix) search.value = root = chosen.prefix;
    load();
    show();
    return true;
  }

  // Arrows move among what is shown, whichever level it is on, as trees do everywhere.
  function step(item, forward) {
    const walker = document.createTreeWalker(tree, NodeFilter.SHOW_ELEMENT, (node) => (node.matches(".item, button") ? NodeFilter.FILTER_ACCEPT : NodeFilter.FILTER_SKIP));
    walker.currentNode = item;
    return forward ? walker.nextNode() : walker.previousNode();
  }

  tree.addEventListener("keydown", (event) => {
    const item = event.target.closest(".item, button");
    if (!item) return;
    let next = null;
    if (event.key === "ArrowDown") next = step(item, true);
    else if (event.key === "ArrowUp") next = step(item, false);
    else if (event.key === "ArrowRight" && item.toggle) item.getAttribute("aria-expanded") === "true" ? (next = step(item, true)) : item.toggle(true);
    else if (event.key === "ArrowLeft") item.getAttribute("aria-expanded") === "true" ? item.toggle(false) : (next = item.closest("ul").parentElement.querySelector(":scope > .item"));
    else if (event.key === "Enter" && item.matches(".item")) item.click();
    else return;
    event.preventDefault();
    if (next) {
      if (next.matches(".item")) reachable(next);
      next.focus();
    }
  });

  search.addEventListener("keydown", (event) => { if (event.key === "Enter") { chosen = null; go("keys", { root: search.value || undefined }); if (root === search.value) load(); } });
  search.addEventListener("change", () => go("keys", { root: search.value || undefined }));
  separator.addEventListener("change", () => { localStorage.setItem("zkv-separator", separator.value); load(); });
  fill(main, el("form", { class: "bar", role: "search", onsubmit: (event) => event.preventDefault() }, el("label", { for: "search" }, "Prefix"), search,
    el("label", { for: "separator" }, "Separator"), separator, button("Refresh", load), button("New key", () => createEntry(panel, chosen?.prefix ?? root, page), { class: "writes" }), total),
  el("div", { class: "keys-page" }, tree, panel));
  moved(query);
  return {
    moved,
    pressed(key) {
      if (key === "n" && !state.readOnly) return createEntry(panel, chosen?.prefix ?? root, page), true;
      if (key === "e") return panel.querySelector("[data-edit]")?.click(), true;
      if (key === "r") return load(), true;
      if (key === "ArrowDown") return tree.querySelector('[tabindex="0"]')?.focus(), true;
      return false;
    },
  };
}


