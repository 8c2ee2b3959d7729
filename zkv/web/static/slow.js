// The slow log: the newest requests that took long, and where their time went.

import { bytes, button, el, fill, table, time, visible } from "./dom.js";
import { ask } from "./net.js";
import { link } from "./main.js";

const ms = (micros) => (micros / 1000).toFixed(1);

export function open(main) {
  const list = el("div", {});

  function what({ op, key, keys }) {
    if (key !== undefined && key !== null) return el("a", { href: link("keys", { key }) }, visible(key));
    return keys ? `${keys} keys` : "";
  }

  async function load() {
    try {
      const { entries } = await ask("page/slow");
      if (!entries.length) return fill(list, el("p", {}, "No request has taken long enough (the setting metrics.slow) since the server started."));
      const rows = entries.map((entry) => [time(entry.time / 1000), entry.user ?? "–", entry.op, what(entry), ms(entry.timing.total), ms(entry.timing.queue), ms(entry.timing.lock), ms(entry.timing.execute), ms(entry.timing.sync), bytes(entry.bytes), (entry.beside ?? []).join(", ")]);
      return fill(list, table(["time", "user", "op", "key", "total ms", "queue", "lock", "execute", "sync", "bytes", "beside"], rows, [4, 5, 6, 7, 8, 9]));
    } catch (error) {
      return fill(list, el("p", { class: "bad", role: "alert" }, error.message));
    }
  }

  fill(main, el("div", { class: "bar" }, el("h1", {}, "Slow requests"), button("Refresh", load)),
    el("p", { class: "dim" }, "Milliseconds in which a request waited for a thread (queue), waited for the lock of the store (lock), ran (execute), and waited for the disk (sync). The newest first, at most 200; zkv doctor --latency draws conclusions."), list);
  load();
  return { pressed: (key) => key === "r" && (load(), true) };
}
