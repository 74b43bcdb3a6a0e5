// The tree of checkpoints, and beside it what is selected and what can be done with it.

import { h, button, facts, setText } from "./dom.js";
import { state } from "./store.js";
import { TYPES, treeWidget } from "./tree.js";
import { ago, clock, pause, plural, size } from "./text.js";
import { compare } from "./compare.js";
import { lastEntry, undo } from "./trash.js";
import * as asking from "./apply.js";
import * as one from "./checkpoint.js";

const KEYS = "Keys: ↑ ↓ ← → move and fold, Enter applies, Insert creates, F2 renames, N note, P pins, C compares, "
  + "V verifies, Delete deletes, Shift+Delete with all below, Ctrl+Z undoes.";

export function checkpointsView(body, current) {
  const details = h("section", { class: "details", "aria-label": "Details" });
  const problems = h("div", { class: "problems" });
  const tree = () => (state.tree?.error ? null : state.tree);
  const find = (id) => tree()?.checkpoints.find((checkpoint) => checkpoint.id === id);
  const widget = treeWidget({
    onselect: showDetails,
    onkey(key, checkpoint, shift) {
      const vm = current();
      if (!vm || !tree()) return false;
      const always = {
        Insert: () => asking.createCheckpoint(vm),
        Undo: () => undo(vm),
      };
      const ofOne = {
        Enter: () => asking.applyCheckpoint(vm, tree(), checkpoint),
        Delete: () => asking.deleteCheckpoint(vm, checkpoint, shift),
        F2: () => one.renameCheckpoint(vm, checkpoint),
        n: () => one.editNote(vm, checkpoint),
        p: () => one.togglePin(vm, checkpoint),
        c: () => compare(vm, tree(), checkpoint),
        v: () => one.verifyCheckpoint(vm, checkpoint),
      };
      const wanted = always[key] ?? (checkpoint ? ofOne[key] : null);
      wanted?.();
      return Boolean(wanted);
    },
  });
  const create = button("Create checkpoint", () => asking.createCheckpoint(current()), { class: "primary" });
  const revert = button("Revert…", () => asking.revert(current(), tree()));
  const undoing = button("Undo…", () => undo(current()));
  const count = h("span", { class: "count" });
  body.replaceChildren(h("div", { class: "split" },
    h("section", { class: "treepane", "aria-label": "Checkpoint tree" },
      h("div", { class: "bar" }, h("h2", {}, "Checkpoints ", count), h("div", { class: "buttons" }, create, revert, undoing)),
      widget.element, problems, h("p", { class: "keys" }, KEYS)),
    details));
  let shown = "";

  function showDetails() {
    const vm = current();
    const id = widget.selected();
    const checkpoint = find(id);
    const check = checkpoint && lastCheck(vm, checkpoint);
    const key = JSON.stringify([id, checkpoint, vm?.state, vm?.agent_connected, tree()?.now, check?.id, check?.state]);
    if (key === shown || !vm || !tree()) return;
    shown = key;
    const focused = details.contains(document.activeElement) ? document.activeElement.textContent : null;
    details.replaceChildren(...(checkpoint ? ofCheckpoint(vm, tree(), checkpoint, check) : ofNow(vm, tree())));
    if (focused) [...details.querySelectorAll("button")].find((button) => button.textContent === focused)?.focus();
  }

  function showTree() {
    const now = state.tree;
    if (!now) return;
    if (now.error) {
      problems.replaceChildren(h("p", { class: "why" }, now.error));
      return;
    }
    setText(count, now.checkpoints.length ? String(now.checkpoints.length) : "");
    revert.disabled = !now.now;
    widget.show(now, current());
    const lines = now.damaged.map((text) => h("p", { class: "why" }, text));
    if (now.pending_merges > 0) {
      lines.push(h("p", { class: "line" }, `${plural(now.pending_merges, "merge")} of disk layers pending, which will free disk space.`));
    }
    problems.replaceChildren(...lines);
    shown = "";
    showDetails();
  }

  function showUndo() {
    const entry = lastEntry(state.trash);
    undoing.disabled = !entry;
    undoing.title = entry ? `Takes back: ${entry.why.replaceAll("`", "")}` : "There is nothing to undo";
  }

  showTree();
  showUndo();
  return {
    update(what) {
      if (what === "tree") showTree();
      else if (what === "trash") showUndo();
      else if (what === "vm" || what === "actions") {
        widget.refresh(current());
        showDetails();
      }
    },
    tick() {
      widget.refresh(current());
    },
    select(id) {
      widget.select(id);
    },
  };
}

/// The last time that it was checked against its checksums, as far as the manager knows.
function lastCheck(vm, checkpoint) {
  return state.actions.findLast((action) => action.do === "verify" && action.vm === vm?.name
    && action.checkpoint === checkpoint.id && action.state !== "cancelled");
}

function toldOf(check) {
  if (!check) return null;
  if (check.state === "running") return "being checked";
  return check.state === "done" ? `all as it was written (${ago(check.finished)})` : `failed: ${check.error}`;
}

function ofNow(vm, tree) {
  const parent = tree.checkpoints.find((checkpoint) => checkpoint.id === tree.now);
  return [
    h("h2", {}, "Now"),
    h("p", {}, parent ? `The current state, which descends from “${parent.name}”.`
      : "The current state. A checkpoint lets you come back to it."),
    h("div", { class: "buttons" },
      button("Create checkpoint", () => asking.createCheckpoint(vm), { class: "primary" }),
      parent ? button("Revert…", () => asking.revert(vm, tree)) : null,
      parent ? button("Compare with its parent…", () => compare(vm, tree, parent)) : null,
      button("Export…", () => one.exportState(vm, null, tree))),
    facts([
      ["State", vm.state],
      ["Since its checkpoint", parent ? ago(parent.created).replace(" ago", "") : null],
      ["Agent in the guest", vm.agent_connected === undefined ? null : vm.agent_connected ? "connected" : "not connected"],
      ["Memory", vm.shares_memory ? "shared with other VMs, but for what it wrote" : null],
    ]),
  ];
}

function stored(checkpoint) {
  if (checkpoint.memory_stored === undefined) return null;
  const bytes = checkpoint.memory_compressed ?? checkpoint.memory_stored;
  return `${size(bytes)}${checkpoint.memory_compressed === undefined ? "" : ", compressed,"} of ${size(checkpoint.memory)}`;
}

function origin(checkpoint) {
  if (checkpoint.scheduled) return ", by the schedule";
  return checkpoint.automatic ? ", made by a start" : "";
}

function ofCheckpoint(vm, tree, checkpoint, check) {
  const parent = tree.checkpoints.find((other) => other.id === checkpoint.parent);
  const own = tree.checkpoints.some((other) => other.parent === checkpoint.id);
  const group = (label, ...buttons) => h("div", { class: "buttons", role: "group", "aria-label": label }, ...buttons);
  return [
    h("h2", {}, checkpoint.name, ...one.tags(checkpoint)),
    checkpoint.note ? h("p", { class: "note" }, checkpoint.note) : null,
    group("Use it",
      button("Apply…", () => asking.applyCheckpoint(vm, tree, checkpoint), { class: "primary" }),
      button("Compare…", () => compare(vm, tree, checkpoint)),
      button("Clone…", () => one.cloneCheckpoint(vm, checkpoint)),
      button("Export…", () => one.exportState(vm, checkpoint, tree)),
      button("Verify", () => one.verifyCheckpoint(vm, checkpoint), { title: "Checks its data against its checksums" }),
      button("Try…", () => one.bootCheckpoint(vm, checkpoint), { title: "Boots or resumes a temporary clone" })),
    group("Change it",
      button("Rename…", () => one.renameCheckpoint(vm, checkpoint)),
      button("Note…", () => one.editNote(vm, checkpoint)),
      button(checkpoint.pinned ? "Unpin" : "Pin", () => one.togglePin(vm, checkpoint)),
      button("Delete…", () => asking.deleteCheckpoint(vm, checkpoint, false), { class: "danger", disabled: checkpoint.pinned }),
      own ? button("Delete with all below…", () => asking.deleteCheckpoint(vm, checkpoint, true), { class: "danger" }) : null),
    facts([
      ["Type", `${TYPES[checkpoint.type] ?? checkpoint.type}${origin(checkpoint)}`],
      ["Created", `${clock(checkpoint.created)} (${ago(checkpoint.created)})`],
      ["Parent", parent ? parent.name : "none"],
      ["Current state", checkpoint.id === tree.now ? "descends from it" : null],
      ["Memory stored", stored(checkpoint)],
      ["Disk changes", size(checkpoint.disk_bytes)],
      ["Guest paused for", checkpoint.pause_us === undefined ? null : pause(checkpoint.pause_us)],
      ["File systems frozen for", checkpoint.frozen_us === undefined ? null : pause(checkpoint.frozen_us)],
      ["After Apply", checkpoint.lands === "stopped" ? "the VM boots from its disks" : "programs go on"],
      ["Checked", toldOf(check)],
      ["Works", checkpoint.verified ? h("span", {}, one.cameBack(checkpoint), " ",
        button("Console…", () => one.showConsole(vm, checkpoint), { class: "plain" })) : null],
      ["Not part of it", checkpoint.left_out.map((left) => `${left.disk} (${left.why})`).join(", ")],
      ["Id", h("code", {}, checkpoint.id)],
    ]),
    checkpoint.fallback ? h("p", { class: "line" }, `Not a production checkpoint: ${checkpoint.fallback}`) : null,
    ...checkpoint.warnings.map((text) => h("p", { class: "why" }, text)),
  ].filter(Boolean);
}

