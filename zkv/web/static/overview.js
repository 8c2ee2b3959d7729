// The overview: the figures that people ask for first, the last hour as plots, then all figures.

import uPlot from "./uplot/uPlot.js";
import { button, bytes, count, duration, el, fill, table, time } from "./dom.js";
import { link, state } from "./main.js";

const CARDS = [
  ["Keys", "keys", count], ["Revision", "revision", count],
  ["Requests/s", "requests/s", count], ["Writes/s", "writes/s", count], ["p99", "p99 ms", (ms) => duration(ms / 1000)],
  ["Memory", "memory", bytes], ["Log", "log bytes", bytes], ["Snapshot age", "snapshot age", duration],
  ["Connections", "connections", count], ["Followers", "followers", count], ["Sessions", "sessions", count],
  ["Lag", "lag s", duration],
];
const PLOTS = [
  { title: "Requests per second", series: ["reads/s", "writes/s", "failures/s"], unit: count },
  { title: "Latency of all requests", series: ["p50 ms", "p99 ms"], unit: (ms) => duration(ms / 1000) },
  { title: "Memory by part", series: ["memory keys", "memory values", "memory index", "memory history", "memory sessions"], unit: bytes },
  { title: "Keys", series: ["keys"], unit: count },
  { title: "Log written, MiB per second", series: ["log MiB/s"], unit: (value) => value.toFixed(2) },
  { title: "Processor of the server, % of a core", series: ["cpu %"], unit: count },
];
const RANGES = [["5 min", 300], ["15 min", 900], ["1 hour", 3600]];

export function open(main) {
  const hidden = el("p", { class: "bad" });
  const cards = el("div", { class: "cards" });
  const plots = el("div", { class: "plots" });
  const figures = el("div", {});
  const ranges = el("div", { class: "ranges", role: "group", "aria-label": "Time shown" });
  let seconds = Number(localStorage.getItem("zkv-range")) || 900;
  let drawn = [];

  function column(name) {
    const at = state.columns.indexOf(name);
    return state.rows.map((row) => row[at]);
  }

  function latest(name) {
    if (!state.rows.length) return null;
    if (name === "memory") {
      const parts = state.columns.map((each, at) => (each.startsWith("memory ") ? state.rows.at(-1)[at] : null)).filter((each) => each !== null);
      return parts.length ? parts.reduce((sum, each) => sum + each, 0) : null;
    }
    return state.rows.at(-1)[state.columns.indexOf(name)] ?? null;
  }

  /** What the legend says: the value below the pointer, else the newest one. */
  function said(value, name, unit) {
    const shown = value ?? latest(name);
    return shown === null ? "–" : unit(shown);
  }

  // A console that has just started would show an empty hour, so a plot begins with what there is.
  function range() {
    const now = Date.now() / 1000;
    return [Math.max(now - seconds, Math.min(state.rows[0]?.[0] ?? now, now - 10)), now];
  }

  function draw() {
    for (const plot of drawn) plot.destroy();
    drawn = [];
    fill(plots);
    if (!state.columns.length) return;
    const style = getComputedStyle(document.documentElement);
    for (const { title, series, unit } of PLOTS) {
      const box = el("figure", {}, el("figcaption", {}, title));
      plots.append(box);
      const axis = { stroke: style.getPropertyValue("--dim"), grid: { stroke: style.getPropertyValue("--line"), width: 1 }, ticks: { show: false } };
      drawn.push(new uPlot({
        width: box.clientWidth - 2, height: 180, cursor: { drag: { x: false, y: false } },
        scales: { x: { range: () => range() }, y: { range: (_, __, most) => [0, most > 0 ? most * 1.1 : 1] } },
        axes: [{ ...axis, values: (_, values) => values.map((value) => time(value)) }, { ...axis, size: 70, values: (_, values) => values.map(unit) }],
        series: [{ label: "time", value: (_, value) => said(value, "time", time) }, ...series.map((label, at) => ({
          label: label.replace("memory ", ""), stroke: style.getPropertyValue(`--plot-${at + 1}`), width: 1.5, points: { show: false },
          value: (_, value) => said(value, label, unit),
        }))],
      }, data(series), box));
    }
  }

  const data = (series) => [column("time"), ...series.map(column)];

  function update() {
    const { ops = [], failures = [], groups = {}, hidden: why = "" } = state.newest;
    fill(hidden, why);
    fill(cards, ...CARDS.filter(([, name]) => latest(name) !== null).map(([title, name, unit]) => el("div", {}, el("span", {}, title), el("b", {}, unit(latest(name))))));
    PLOTS.forEach(({ series }, at) => drawn[at]?.setData(data(series)));
    const rows = ops.map(([op, rate, ...times]) => [op, rate, ...[0, 1, 2].map((each) => times[each] ?? "–")]);
    const members = state.newest.server?.members;
    fill(figures,
      rows.length ? el("h2", {}, "By op, now") : null, rows.length ? table(["op", "per second", "p50", "p99", "p99.9"], rows, [1, 2, 3, 4]) : null,
      failures.length ? table(["failure", "per second"], failures, [1]) : null,
      members?.length ? el("h2", {}, "Members") : null, members?.length ? table(["name", "role", "log number", "seconds ago"], members.map((each) => [each.name, each.role ?? "copies", String(each.applied ?? each.durable ?? ""), each.seconds === null ? "never" : String(Math.round(each.seconds))]), [2, 3]) : null,
      Object.keys(groups).length ? el("h2", {}, "All figures") : null,
      el("div", { class: "groups" }, ...Object.entries(groups).map(([heading, facts]) => el("section", {}, el("h3", {}, heading),
        el("dl", {}, ...Object.entries(facts).flatMap(([name, fact]) => [el("dt", {}, name), el("dd", {}, fact)]))))));
  }

  function choose(chosen) {
    seconds = chosen;
    localStorage.setItem("zkv-range", String(chosen));
    fill(ranges, ...RANGES.map(([text, each]) => button(text, () => choose(each), { "aria-pressed": String(each === seconds) })));
    draw();
  }

  const hint = el("p", { class: "dim" }, "Which keys are written most, which have grown, and what has just changed: ", el("a", { href: link("changes") }, "Changes"), ". Which requests took long, and whose they were: ", el("a", { href: link("slow") }, "Slow requests"), ".");
  fill(main, hidden, cards, hint, ranges, plots, figures);
  choose(seconds);
  update();
  state.listeners.add((name) => {
    if (name === "start" || name === "theme") draw();
    if (name === "start" || name === "sample") update();
  });
  const resized = new ResizeObserver(() => drawn.forEach((plot) => plot.setSize({ width: plot.root.parentElement.clientWidth - 2, height: 180 })));
  resized.observe(main);
  return { close: () => { resized.disconnect(); drawn.forEach((plot) => plot.destroy()); } };
}
