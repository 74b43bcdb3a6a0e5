// What a VM's checkpoints cost: how long the guest stood still for each, what each stores, and when.

import { h, svg, table } from "./dom.js";
import { state } from "./store.js";
import { TYPES } from "./tree.js";
import { clock, duration, pause, plural, size } from "./text.js";

const WIDTH = 960;
const LEFT = 74;
const RIGHT = 16;

const bytesOf = (one) => [one.memory_compressed ?? one.memory_stored ?? 0, one.disk_bytes];

/// A scale whose marks are powers: pauses and sizes span orders of magnitude.
function logScale(values, base, height) {
  const known = values.filter((value) => value > 0);
  const low = Math.floor(Math.log(Math.min(...known)) / Math.log(base));
  const high = Math.max(low + 1, Math.ceil(Math.log(Math.max(...known)) / Math.log(base)));
  const at = (value) => (value > 0 ? Math.max(2, height * (Math.log(value) / Math.log(base) - low + 0.15) / (high - low + 0.15)) : 0);
  const marks = [];
  const step = Math.max(1, Math.ceil((high - low) / 4));
  for (let power = low; power <= high; power += step) marks.push(base ** power);
  return { at, marks };
}

/// Bars beside each other, in the order in which the checkpoints were made.
function bars({ title, checkpoints, value, parts, base, label, describe }) {
  const height = 120;
  const [top, bottom] = [10, 24];
  const known = checkpoints.filter((one) => value(one) > 0);
  if (!known.length) return null;
  const { at, marks } = logScale(known.map(value), base, height);
  const each = Math.min(88, (WIDTH - LEFT - RIGHT) / checkpoints.length);
  const wide = Math.max(1, Math.min(46, each * 0.72));
  const drawing = [];
  for (const mark of marks) {
    const y = top + height - at(mark);
    drawing.push(svg("line", { x1: LEFT, x2: WIDTH - RIGHT, y1: y, y2: y, class: "grid" }),
      svg("text", { x: LEFT - 8, y: y + 4, class: "mark-left" }, label(mark)));
  }
  checkpoints.forEach((one, index) => {
    const x = LEFT + index * each + (each - wide) / 2;
    const whole = at(value(one));
    // Of a bar on such a scale, the parts are shown by their shares.
    let y = top + height;
    for (const [kind, share] of parts(one)) {
      const tall = whole * share;
      if (tall <= 0) continue;
      y -= tall;
      drawing.push(svg("rect", { x, y, width: wide, height: tall, class: kind }, svg("title", {}, `${one.name}: ${describe(one)}`)));
    }
    if (each > 30) {
      const room = Math.floor(each / 7.4);
      const short = one.name.length > room ? `${one.name.slice(0, room - 1)}…` : one.name;
      drawing.push(svg("text", { x: x + wide / 2, y: top + height + 16, class: "mark-below" }, short));
    }
  });
  return svg("svg", { viewBox: `0 0 ${WIDTH} ${top + height + bottom}`, role: "img", class: "plot",
    "aria-label": `${title}, ${plural(known.length, "checkpoint")}; the table below has all numbers` }, ...drawing);
}

function ticks(from, to) {
  const steps = [60, 300, 900, 3600, 3 * 3600, 6 * 3600, 12 * 3600, 86400, 2 * 86400, 7 * 86400, 30 * 86400, 91 * 86400, 365 * 86400];
  const step = (steps.find((one) => (to - from) / one / 1000 <= 7) ?? steps.at(-1)) * 1000;
  // Whole hours and days of whoever looks.
  const zone = new Date(from).getTimezoneOffset() * 60000;
  const marks = [];
  for (let at = Math.ceil((from - zone) / step) * step + zone; at <= to; at += step) marks.push(at);
  return marks.map((at) => [at, step >= 86400000 ? clock(at).slice(5, 10) : clock(at).slice(11, 16)]);
}

/// From the first to now, in true distances.
function line(vm, checkpoints, trash) {
  const now = Date.now();
  const from = Math.min(Date.parse(vm.created), ...checkpoints.map((one) => Date.parse(one.created)));
  const to = Math.max(now, from + 60000, ...checkpoints.map((one) => Date.parse(one.created)));
  const x = (time) => LEFT + (WIDTH - LEFT - RIGHT) * (time - from) / (to - from);
  const drawing = [svg("line", { x1: LEFT, x2: WIDTH - RIGHT, y1: 40, y2: 40, class: "axis" })];
  for (const [at, text] of ticks(from, to)) {
    drawing.push(svg("line", { x1: x(at), x2: x(at), y1: 36, y2: 66, class: "grid" }), svg("text", { x: x(at), y: 80, class: "mark-below" }, text));
  }
  if (vm.started) {
    const begin = x(Math.max(from, Date.parse(vm.started)));
    drawing.push(svg("rect", { x: begin, y: 37, width: Math.max(2, x(now) - begin), height: 6, class: "runs" },
      svg("title", {}, `Running since ${clock(vm.started)}`)));
  }
  for (const entry of trash?.entries ?? []) {
    const at = x(Math.max(from, Date.parse(entry.when)));
    drawing.push(svg("path", { d: `M${at - 4} 54 l8 8 m0 -8 l-8 8`, class: "gone" }, svg("title", {}, `${entry.why.replaceAll("`", "")}, ${clock(entry.when)}`)));
  }
  for (const one of checkpoints) {
    const at = x(Date.parse(one.created));
    drawing.push(svg("circle", { cx: at, cy: 40, r: 6, class: `point ${one.type}` }, svg("title", {}, `${one.name}, ${clock(one.created)}`)));
  }
  // Names where there is room.
  let last = -Infinity;
  for (const one of checkpoints) {
    const at = x(Date.parse(one.created));
    const short = one.name.length > 14 ? `${one.name.slice(0, 13)}…` : one.name;
    const half = short.length * 3.6;
    if (at - half < last + 8 || at + half > WIDTH - 50) continue;
    last = at + half;
    drawing.push(svg("text", { x: Math.max(at, half), y: 22, class: "mark-below" }, short));
  }
  drawing.push(svg("text", { x: WIDTH - RIGHT, y: 22, class: "mark-now" }, "Now"));
  return svg("svg", { viewBox: `0 0 ${WIDTH} 88`, role: "img", class: "plot",
    "aria-label": `Time line: ${plural(checkpoints.length, "checkpoint")} in ${duration((to - from) / 1000)}` }, ...drawing);
}

function figure(title, drawing, caption) {
  return h("figure", { class: "panel" }, h("h2", {}, title), h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": title }, drawing),
    caption ? h("figcaption", { class: "line legend" }, ...caption) : null);
}

const swatch = (kind, text) => h("span", {}, h("i", { class: `swatch ${kind}` }), text);

export function timelineView(body, current) {
  let shown = "";

  function show() {
    const [vm, tree] = [current(), state.tree];
    if (!vm?.created || !tree || tree.error) return;
    const minute = Math.floor(Date.now() / 60000);
    const key = JSON.stringify([tree.checkpoints, state.trash, vm.started, minute]);
    if (key === shown) return;
    shown = key;
    const checkpoints = [...tree.checkpoints].sort((a, b) => Date.parse(a.created) - Date.parse(b.created));
    if (!checkpoints.length) {
      body.replaceChildren(h("section", { class: "panel" }, h("h2", {}, "Time line"), h("p", {}, "There are no checkpoints yet.")));
      return;
    }
    const pauses = bars({ title: "How long the guest was paused", checkpoints, value: (one) => one.pause_us ?? 0,
      parts: () => [["pause", 1]], base: 10, label: pause, describe: (one) => `paused for ${pause(one.pause_us)}` });
    const bytes = (one) => bytesOf(one)[0] + bytesOf(one)[1];
    const sizes = bars({ title: "Bytes stored", checkpoints, value: bytes,
      parts: (one) => [["disk", bytesOf(one)[1] / bytes(one)], ["memory", bytesOf(one)[0] / bytes(one)]],
      base: 4, label: size, describe: (one) => `${size(bytesOf(one)[0])} of memory, ${size(bytesOf(one)[1])} of disks` });
    const rows = [...checkpoints].reverse().map((one) => [one.name, clock(one.created), TYPES[one.type] ?? one.type,
      one.pause_us === undefined ? "–" : pause(one.pause_us), one.memory === undefined ? "–" : size(bytesOf(one)[0]), size(one.disk_bytes)]);
    body.replaceChildren(h("div", { class: "plots" },
      figure("Time line", line(vm, checkpoints, state.trash), [swatch("standard", "standard"), swatch("production", "production"),
        swatch("offline", "disks only"), swatch("runs", "running"), swatch("gone", "deleted or discarded, in the trash")]),
      pauses ? figure("Pause of the guest", pauses, null) : null,
      sizes ? figure("Bytes stored", sizes, [swatch("memory", "memory"), swatch("disk", "disks")]) : null,
      h("section", { class: "panel", "aria-label": "All checkpoints" }, h("h2", {}, "All checkpoints"),
        table("All checkpoints, the newest first", ["Checkpoint", "Created", "Type", "Pause", "Memory", "Disks"], rows))));
  }

  show();
  return { update: show, tick: show };
}
