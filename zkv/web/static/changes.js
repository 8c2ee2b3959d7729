// Changes: where most was written lately and what has grown, and each change as it is made.

import { bytes, button, count, el, fill, table, time, visible } from "./dom.js";
import { ask } from "./net.js";
import { go, link, listen, state } from "./main.js";

const MOST = 500;

export function open(main, query) {
  let prefix = query.get("prefix") ?? "";
  let paused = false;
  let skipped = 0;
  const body = el("tbody", {});
  const note = el("p", { class: "dim", role: "status" });
  const sums = el("div", { class: "sums" });
  const filter = el("input", { id: "filter", value: prefix, placeholder: "all keys", spellcheck: "false", autocomplete: "off", "data-search": true });
  const pause = button("Pause", () => { paused = !paused; fill(pause, paused ? "Go on" : "Pause"); });

  const keyLink = (key) => el("a", { href: link("keys", { key }) }, visible(key));

  function row({ rev, op, key, time: at, size, type, preview }) {
    return el("tr", { class: op.toLowerCase() }, el("td", { class: "when" }, at ? time(at) : "earlier"), el("td", { class: "number" }, String(rev)),
      el("td", {}, el("span", { class: `op ${op.toLowerCase()}` }, op)), el("td", {}, keyLink(key)),
      el("td", { class: "number" }, size === undefined ? "" : bytes(size)), el("td", { class: "value" }, preview ? visible(preview) : el("span", { class: "dim" }, type ?? "")));
  }

  function received(name, fields) {
    if (name === "start") return summarise();
    if (name !== "changes" || paused) return undefined;
    if (fields.fresh) fill(body);
    if (fields.changes?.length) {
      body.prepend(...fields.changes.slice(-MOST).map(row).reverse());
      while (body.children.length > MOST) body.lastChild.remove();
    }
    skipped += fields.skipped ?? 0;
    tell(fields.trouble);
    return undefined;
  }

  function tell(trouble) {
    const parts = [trouble, skipped ? `${count(skipped)} changes are not shown: there are too many` : "", body.children.length ? "" : "No changes yet"];
    fill(note, parts.filter(Boolean).join(". "));
  }

  async function summarise() {
    try {
      const found = await ask("page/activity", { prefix });
      const since = found.from_time ? `since ${time(found.from_time)}` : `since revision ${count(found.from_rev)}`;
      const box = (title, headings, rows) => el("section", {}, el("h2", {}, title), rows.length ? table(headings, rows, [1, 2]) : el("p", { class: "dim" }, "none"));
      fill(sums, el("p", { class: "dim" }, `In the last ${count(found.changes)} changes, ${since}:`),
        box("Most written folders", ["folder", "changes"], found.folders.map(([name, number]) => [el("a", { href: link("keys", { prefix: name }) }, visible(name)), count(number)])),
        box("Most written keys", ["key", "changes", "size"], found.keys.map(([key, number, size]) => [keyLink(key), count(number), bytes(size)])),
        box("Keys that grew", ["key", "grew by", "size"], found.grown.map(([key, more, size]) => [keyLink(key), bytes(more), bytes(size)])));
    } catch (error) {
      fill(sums, el("p", { class: "bad", role: "alert" }, error.message));
    }
  }

  function moved(fields) {
    prefix = fields.get("prefix") ?? "";
    filter.value = prefix;
    skipped = 0;
    fill(body);
    tell("");
    listen(prefix);
    return true;
  }

  filter.addEventListener("change", () => go("changes", { prefix: filter.value || undefined }));
  fill(main, el("div", { class: "bar" }, el("h1", {}, "Changes"), el("label", { for: "filter" }, "Prefix"), filter, pause, button("Refresh the sums", summarise)),
    sums, el("h2", {}, "As they are made"), note,
    el("div", { class: "wide" }, el("table", { class: "changes" }, el("thead", {}, el("tr", {}, ...["time", "revision", "op", "key", "size", "value"].map((each) => el("th", { scope: "col", class: ["revision", "size"].includes(each) ? "number" : null }, each)))), body)),
    el("p", { class: "dim" }, "The server does not keep the time of a change: for those from before this page was opened it is right to about two seconds, as far as the console was running."));
  state.listeners.add(received);
  tell("");
  return { prefix, moved, pressed: (key) => key === "p" && (pause.click(), true) };
}
