// What differs between two states: a map of each disk and of memory.

import { h, svg } from "./dom.js";
import { ask, show } from "./dialogs.js";
import { perform } from "./actions.js";
import { plural, size } from "./text.js";

const COLUMNS = 64;
const CELL = 10;

export async function compare(vm, tree, checkpoint) {
  const others = tree.checkpoints.filter((one) => one.id !== checkpoint.id).reverse();
  const live = vm.state !== "stopped";
  const given = await ask({
    title: `Compare “${checkpoint.name}”`,
    text: [live ? "To compare the current state of a VM that is running or paused, a temporary checkpoint is created and deleted." : null],
    fields: [{ name: "with", label: "With", kind: "select", value: "",
      choices: [["", "Now, the current state"], ...others.map((one) => [one.id, one.name])] },
    { name: "files", label: "List the files that differ", kind: "check", value: true,
      hint: "On ext4 file systems; this reads all their folders." }],
    confirm: "Compare",
  });
  if (!given) return;
  const other = others.find((one) => one.id === given.with);
  const deed = { do: "diff", vm: vm.name, checkpoint: checkpoint.id, files: given.files };
  if (other) deed.with = other.id;
  else deed.live = live;
  const found = await perform(deed);
  if (!found) return;
  const parts = found.files ? [files(found.files)] : [];
  parts.push(...Object.entries(found.disks ?? {}).map(([id, changes]) => part(`Disk ${id}`, changes)));
  if (found.memory) parts.push(part("Memory", found.memory));
  else parts.push(h("p", { class: "line" }, "Memory is not compared: not both have it, in the same size."));
  for (const id of found.incomparable ?? []) {
    parts.push(h("p", { class: "line" }, `Disk ${id} is not compared: not both have it.`));
  }
  await show(`From “${checkpoint.name}” to ${other ? `“${other.name}”` : "Now"}`, parts, true);
}

const SIGNS = { added: "+", removed: "−", changed: "~" };
/// Of files.
const SHOWN = 500;

function files({ changes, truncated, notes }) {
  const count = { added: 0, removed: 0, changed: 0 };
  for (const one of changes) count[one.change] += 1;
  const text = changes.length === 0 ? "no difference"
    : `${truncated ? "more than " : ""}${["added", "removed", "changed"].filter((kind) => count[kind] > 0)
      .map((kind) => `${count[kind]} ${kind}`).join(", ")}`;
  const several = new Set(changes.map((one) => `${one.disk} ${one.partition}`)).size > 1;
  const bytes = ({ before, after }) => (before === undefined && after === undefined ? ""
    : before !== undefined && after !== undefined && before !== after ? `${size(before)} → ${size(after)}` : size(after ?? before));
  const line = (one) => h("li", { class: `is-${one.change}` },
    h("span", { class: "sign", "aria-hidden": "true" }, SIGNS[one.change]), h("span", { class: "unseen" }, `${one.change}: `),
    h("code", {}, `${one.path}${one.type === "folder" && one.path !== "/" ? "/" : ""}`),
    h("span", { class: "count" }, ` ${bytes(one)}${several ? ` on disk ${one.disk}${one.partition ? `, partition ${one.partition}` : ""}` : ""}`));
  const more = changes.length - SHOWN;
  return h("section", { class: "compared", "aria-label": "Files" },
    h("h3", {}, "Files ", h("span", { class: "count" }, text)),
    changes.length ? h("ul", { class: "ranges files", tabindex: "0", "aria-label": "Files that differ" },
      ...changes.slice(0, SHOWN).map(line), more > 0 ? h("li", {}, `and ${more} more`) : null) : null,
    ...notes.map((note) => h("p", { class: "line" }, note.replaceAll("`", ""))));
}

function part(name, changes) {
  const end = changes.ranges.reduce((most, range) => Math.max(most, range.offset + range.length), changes.size ?? 0);
  const text = changes.bytes === 0
    ? "no difference"
    : `${size(changes.bytes)} of ${size(changes.size)} differ, in ${plural(changes.ranges.length, "range")}`;
  return h("section", { class: "compared", "aria-label": name },
    h("h3", {}, name, " ", h("span", { class: "count" }, text)),
    changes.bytes > 0 ? map(name, changes.ranges, end) : null,
    changes.bytes > 0 ? list(name, changes.ranges) : null);
}

/// How much of each cell differs, from 0 to 1.
export function shares(ranges, end, cells) {
  const each = end / cells;
  const filled = new Array(cells).fill(0);
  for (const { offset, length } of ranges) {
    const last = Math.min(cells - 1, Math.floor((offset + length - 1) / each));
    for (let cell = Math.floor(offset / each); cell <= last; cell += 1) {
      const from = Math.max(offset, cell * each);
      const to = Math.min(offset + length, (cell + 1) * each);
      filled[cell] += Math.max(0, to - from) / each;
    }
  }
  return filled.map((share) => Math.min(1, share));
}

function map(name, ranges, end) {
  // A cell is never smaller than a block.
  const blocks = Math.max(1, Math.ceil(end / 4096));
  const rows = Math.max(1, Math.min(12, Math.ceil(blocks / COLUMNS)));
  const filled = shares(ranges, end, COLUMNS * rows);
  const cells = filled.map((share, index) => svg("rect", {
    x: (index % COLUMNS) * CELL, y: Math.floor(index / COLUMNS) * CELL, width: CELL - 1, height: CELL - 1,
    class: share === 0 ? "same" : "differs", "fill-opacity": share === 0 ? null : (0.3 + 0.7 * share).toFixed(2),
  }, svg("title", {}, `${size(index * end / filled.length)}: ${Math.ceil(share * 100)} % differ`)));
  return h("figure", { class: "map" },
    svg("svg", { viewBox: `0 0 ${COLUMNS * CELL} ${rows * CELL}`, role: "img",
      "aria-label": `${name}: which parts differ; ${plural(filled.filter((share) => share > 0).length, "cell")} of ${filled.length}` }, ...cells),
    h("figcaption", { class: "line" }, `Each cell is ${size(Math.ceil(end / filled.length))}; the more of it differs, the darker it is.`));
}

function list(name, ranges) {
  const shown = ranges.slice(0, 200);
  return h("details", {}, h("summary", {}, "Ranges"),
    h("ul", { class: "ranges", tabindex: "0", "aria-label": `Ranges of ${name} that differ` },
      ...shown.map(({ offset, length }) => h("li", {}, h("code", {}, `0x${offset.toString(16).padStart(10, "0")}`), ` ${size(length)}`)),
      ranges.length > shown.length ? h("li", {}, `and ${ranges.length - shown.length} more`) : null));
}
