// Makes elements. All text comes in as text nodes, never as HTML: a key or a value may hold any
// characters, also those that look like tags.

/** Make an element; `attributes` whose names begin with "on" are listeners. */
export function el(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

// Controls, marks that turn the direction of text around, and invisible characters: a key that
// holds them must not look like another one.
const HIDDEN = /[\u0000-\u001f\u007f-\u00a0\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180e\u2000-\u200f\u2028-\u202f\u205f-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\uffff\ud800-\udfff]/u;

/** Text as it is, with what one cannot see as its code; `lines` keeps breaks of lines, too. */
export function visible(text, lines = false) {
  const element = el("bdi", { dir: "ltr" });
  let plain = "";
  for (const character of text) {
    if (!HIDDEN.test(character) || (lines && (character === "\n" || character === "\t"))) {
      plain += character;
      continue;
    }
    const code = character.codePointAt(0).toString(16).toUpperCase().padStart(4, "0");
    element.append(plain, el("span", { class: "code", title: `U+${code}` }, `U+${code}`));
    plain = "";
  }
  element.append(plain);
  return element;
}

/** Replace the children of an element. */
export function fill(element, ...children) {
  element.replaceChildren(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

export function button(text, onclick, attributes = {}) {
  return el("button", { type: "button", onclick, ...attributes }, text);
}

/** A table; `rows` are arrays of texts or elements, `numbers` the columns that are aligned right. */
export function table(headings, rows, numbers = []) {
  const cells = (tag, row) => row.map((cell, at) =>
    el(tag, { class: numbers.includes(at) ? "number" : null, scope: tag === "th" ? "col" : null }, cell));
  return el("div", { class: "wide" }, el("table", {},
    el("thead", {}, el("tr", {}, ...cells("th", headings))),
    el("tbody", {}, ...rows.map((row) => el("tr", {}, ...cells("td", row))))));
}

export function bytes(number) {
  if (number < 1024) return `${number} B`;
  for (const unit of ["KiB", "MiB", "GiB"]) {
    number /= 1024;
    if (number < 1024) return `${number.toFixed(1)} ${unit}`;
  }
  return `${(number / 1024).toFixed(1)} TiB`;
}

export function duration(seconds) {
  if (seconds < 1) return `${Math.round(seconds * 1000)} ms`;
  if (seconds < 120) return `${seconds < 10 ? seconds.toFixed(1) : Math.round(seconds)} s`;
  if (seconds < 7200) return `${Math.floor(seconds / 60)} min`;
  const hours = Math.floor(seconds / 3600);
  return hours < 48 ? `${hours} h ${Math.floor(seconds / 60) % 60} min` : `${Math.floor(hours / 24)} d ${hours % 24} h`;
}

export function time(seconds) {
  return new Date(seconds * 1000).toLocaleTimeString([], { hour12: false });
}

export const count = (number) => number.toLocaleString("en");

export const keysIn = (number) => `${count(number)} ${number === 1 ? "key" : "keys"}`;
