// What was taken away and can be taken back.

import { h, button } from "./dom.js";
import { state } from "./store.js";
import { ask, say } from "./dialogs.js";
import { perform } from "./actions.js";
import { ago, clock, duration, plural, size } from "./text.js";

/// What an undo takes back, if there is anything.
export const lastEntry = (trash) => trash?.entries?.find((entry) => !entry.by_undo) ?? null;

function names(entry) {
  return entry.checkpoints.map((one) => `“${one.name}”`).join(", ");
}

/// “revert to `clean`” in plain words.
const why = (entry) => entry.why.replaceAll("`", "");

function what(entry) {
  return entry.kind === "current-state"
    ? `Current state before the ${why(entry)}${entry.ran ? ", running" : ""}`
    : names(entry);
}

function effect(vm, entry) {
  if (entry.kind === "checkpoints") {
    return [entry.checkpoints.length === 1
      ? `Checkpoint ${names(entry)} comes back to its place in the tree.`
      : `These ${entry.checkpoints.length} checkpoints come back to their places in the tree: ${names(entry)}.`];
  }
  return [`The VM goes back to its state before the ${why(entry)} (${ago(entry.when)})${entry.ran ? ", and runs on from there" : ""}.`,
    h("p", { class: "stake" }, vm.trash_seconds > 0
      ? `What ${vm.name} is now goes to the trash.` : `What ${vm.name} is now is lost: the trash of this VM is off.`)];
}

export async function undo(vm) {
  const entry = lastEntry(state.trash);
  if (!entry) return say("There is nothing to undo.", true);
  const given = await ask({ title: "Undo", text: effect(vm, entry), confirm: "Undo" });
  if (given) await perform({ do: "undo", vm: vm.name }, "Undone.");
}

async function restore(vm, entry) {
  const given = await ask({ title: "Restore from the trash", text: effect(vm, entry), confirm: "Restore" });
  if (given) await perform({ do: "restore", vm: vm.name, entry: entry.id }, "Restored.");
}

async function empty(vm, entry, trash) {
  const given = await ask({
    title: entry ? "Delete this for good?" : "Empty the trash?",
    text: [entry ? `${what(entry)}.` : `${plural(trash.entries.length, "entry", "entries")} will be deleted.`,
      `That frees at least ${size(entry?.bytes ?? trash.bytes)}, and cannot be undone.`],
    confirm: entry ? "Delete for good" : "Empty the trash",
    danger: true,
  });
  if (!given) return;
  const deed = { do: "empty", vm: vm.name };
  if (entry) deed.entry = entry.id;
  await perform(deed, (done) => `${size(done.bytes)} were freed.`);
}

/// VMs that were removed; the element is empty where there are none.
export function removedVms() {
  const element = h("div", { class: "removed" });
  let shown = "";

  async function bring(vm) {
    const taken = state.vms.has(vm.name);
    const given = await ask({
      title: `Restore ${vm.name}`,
      text: [`The VM comes back, stopped, with its disks and checkpoints as they were ${ago(vm.when)}.`],
      fields: taken ? [{ name: "name", label: "Name", kind: "text", most: 64, required: true, hint: `There is another VM “${vm.name}” now.` }] : [],
      confirm: "Restore",
    });
    if (!given) return;
    const deed = { do: "restore", vm: vm.id };
    if (given.name) deed.name = given.name;
    await perform(deed, `${given.name ?? vm.name} is back.`);
  }

  async function drop(vm) {
    const given = await ask({
      title: `Delete ${vm.name} for good?`,
      text: [`That frees at least ${size(vm.bytes)}, and cannot be undone.`],
      confirm: "Delete for good",
      danger: true,
    });
    if (given) await perform({ do: "empty", vm: vm.id }, `${vm.name} was deleted.`);
  }

  return {
    element,
    update() {
      const removed = state.removed?.removed ?? [];
      const key = JSON.stringify(removed);
      if (key === shown) return;
      shown = key;
      element.replaceChildren(...(removed.length ? [h("section", { class: "panel", "aria-label": "Removed VMs" },
        h("h2", {}, "Removed ", h("span", { class: "count" }, String(removed.length))),
        h("ul", { class: "entries" }, ...removed.map((vm) => h("li", { class: "entry" },
          h("div", {}, h("strong", {}, vm.name),
            h("p", { class: "line" }, `Since ${clock(vm.when)}, until ${clock(vm.until)} · ${size(vm.bytes)}`)),
          h("div", { class: "buttons" },
            button("Restore…", () => bring(vm)),
            button("Delete for good…", () => drop(vm), { class: "danger" }))))))] : []));
    },
  };
}

export function trashView(body, current) {
  let shown = "";

  function show() {
    const [vm, trash] = [current(), state.trash];
    if (!vm || !trash) return;
    const key = JSON.stringify([trash, vm.trash_seconds]);
    if (key === shown) return;
    shown = key;
    if (trash.error) return body.replaceChildren(h("p", { class: "why" }, trash.error));
    const kept = vm.trash_seconds > 0
      ? `Deleted checkpoints and discarded states stay here for ${duration(vm.trash_seconds)}.`
      : "The trash of this VM is off: what is deleted or discarded is gone. It can be turned on in the settings.";
    const next = lastEntry(trash);
    body.replaceChildren(h("section", { class: "panel", "aria-label": "Trash" },
      h("div", { class: "bar" },
        h("h2", {}, "Trash ", h("span", { class: "count" }, trash.entries.length ? String(trash.entries.length) : "")),
        h("div", { class: "buttons" },
          button("Undo the last…", () => undo(current()), { class: "primary", disabled: !next }),
          button("Empty…", () => empty(current(), null, trash), { class: "danger", disabled: !trash.entries.length }))),
      h("p", { class: "line" }, kept, trash.entries.length ? ` Emptying it frees at least ${size(trash.bytes)}.` : ""),
      trash.entries.length
        ? h("ul", { class: "entries" }, ...trash.entries.map((entry) => row(current, entry, entry === next)))
        : h("p", {}, "It is empty.")));
  }

  show();
  return { update: show };
}

function row(current, entry, next) {
  return h("li", { class: "entry" },
    h("div", {}, h("strong", {}, what(entry)), next ? h("span", { class: "tag" }, "next to be undone") : null,
      entry.by_undo ? h("span", { class: "tag" }, "replaced by an undo") : null,
      h("p", { class: "line" }, `Since ${clock(entry.when)}, until ${clock(entry.until)} · ${size(entry.bytes)}`)),
    h("div", { class: "buttons" },
      button("Restore…", () => restore(current(), entry)),
      button("Delete for good…", () => empty(current(), entry, state.trash), { class: "danger" })));
}
