// A folder: how many keys, export, import, and removal once its prefix has been typed.

import { button, count, el, fill, keysIn, visible } from "./dom.js";
import { ask, follow, path } from "./net.js";
import { link, prompt } from "./main.js";

export async function openFolder(panel, prefix, page) {
  delete panel.dataset.key; // An entry that is still being read must not take the place.
  const note = el("p", { role: "status" });
  const number = el("p", {}, "…");

  function refused(error, verb) {
    const done = error.stored ?? error.deleted;
    fill(note, el("span", { class: "bad" }, `${error.message}${done ? ` (${count(done)} ${verb} before that)` : ""}`));
  }

  async function recount() {
    try {
      const found = await ask("page/count", { prefix });
      fill(number, keysIn(found.count));
    } catch (error) {
      fill(number, el("span", { class: "bad", role: "alert" }, error.message));
    }
  }

  async function remove() {
    const typed = await prompt("Delete a subtree", "Type the prefix to confirm", { expected: prefix, action: "Delete all of it", danger: true, note: visible(`All keys that begin with ${prefix}`) });
    if (typed === null) return;
    try {
      const { deleted } = await follow("page/delete-subtree", { prefix, typed }, {}, (each) => fill(note, `${count(each.deleted)} deleted …`));
      fill(note, `${count(deleted)} deleted`);
    } catch (error) {
      refused(error, "deleted");
    }
    page.reload();
    recount();
  }

  async function take(file) {
    if (!file) return;
    fill(note, "Sending …");
    try {
      const format = file.name.endsWith(".msgpack") ? "msgpack" : "json";
      const { stored } = await follow("page/import", { prefix, format }, { body: file }, (each) => fill(note, `${count(each.stored)} stored …`));
      fill(note, `${count(stored)} stored`);
    } catch (error) {
      refused(error, "stored");
    }
    page.reload();
    recount();
  }

  const file = el("input", { type: "file", id: "import", accept: ".jsonl,.json,.msgpack", onchange: () => take(file.files[0]).then(() => { file.value = ""; }) });
  const save = (text, format) => el("a", { href: path("page/export", { prefix, format }), download: "" }, text);
  fill(panel, el("h2", {}, prefix ? visible(prefix) : "All keys"), number,
    el("p", {}, "Export: ", save("JSON lines", "json"), ", ", save("msgpack, byte for byte", "msgpack")),
    el("p", { class: "writes" }, el("label", { for: "import" }, "Import entries with this prefix: "), file),
    el("p", {}, el("a", { href: link("changes", { prefix: prefix || undefined }) }, "Recent changes here")),
    prefix ? el("div", { class: "actions writes" }, button("Delete the subtree …", remove, { class: "danger" })) : null, note);
  await recount();
}
