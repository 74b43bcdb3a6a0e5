// One VM: its checkpoints, its console, its settings.

import { h, button, facts, setText, setAttribute } from "./dom.js";
import { state, watchTree } from "./store.js";
import { ask } from "./dialogs.js";
import { perform } from "./actions.js";
import { consoleView } from "./console.js";
import { TYPES, treeWidget } from "./tree.js";
import { controls, headline, place } from "./vmbits.js";
import { ago, clock, pause, plural, size } from "./text.js";
import * as asking from "./apply.js";

const TABS = [["", "Checkpoints"], ["console", "Console"], ["settings", "Settings"]];

export function vmView(main, name, tab) {
  const current = () => state.vms.get(name);
  watchTree(name);
  const badge = h("span", { class: "state" });
  const line = h("p", { class: "line" });
  const where = h("p", { class: "line" });
  const why = h("p", { class: "why" });
  const buttons = controls(current);
  const tabs = h("nav", { class: "tabs", "aria-label": `Views of ${name}` }, ...TABS.map(([key, label]) =>
    h("a", { href: `#/vm/${name}${key ? `/${key}` : ""}`, "aria-current": key === tab ? "page" : null }, label)));
  const body = h("div", { class: "body" });
  const head = h("div", { class: "vmhead" },
    h("div", { class: "bar" }, h("h1", {}, name, " ", badge), buttons.element), line, where, why);
  main.replaceChildren(head, tabs, body);
  const inner = tab === "console" ? consoleView(body, name, current)
    : tab === "settings" ? settingsView(body, current)
      : checkpointsView(body, current);

  function update() {
    const vm = current();
    head.classList.toggle("lost", !vm);
    if (!vm) {
      if (state.ready) setText(why, `There is no VM “${name}” any more.`);
      why.hidden = !why.textContent;
      return;
    }
    setAttribute(badge, "data-state", vm.state);
    setText(badge, vm.busy ? `${vm.state}, busy` : vm.state);
    setText(line, headline(vm));
    setText(where, place(vm));
    where.hidden = !where.textContent;
    setText(why, [vm.error ?? vm.reason, ...(vm.warnings ?? [])].filter(Boolean).join(" "));
    why.hidden = !why.textContent;
    buttons.update(vm);
  }

  update();
  return {
    title: `${name} – piton`,
    crumbs: [[name, `#/vm/${name}`]],
    update(what, which) {
      if (what !== "tree" && what !== "ready" && which !== name) return;
      update();
      inner.update(what);
    },
    tick() {
      update();
      inner.tick?.();
    },
    leave() {
      inner.leave?.();
      watchTree(null);
    },
  };
}

function checkpointsView(body, current) {
  const details = h("section", { class: "details", "aria-label": "Details" });
  const problems = h("div", { class: "problems" });
  const tree = () => state.tree;
  const find = (id) => tree()?.checkpoints.find((checkpoint) => checkpoint.id === id);
  const widget = treeWidget({
    onselect: showDetails,
    onapply: (checkpoint) => asking.applyCheckpoint(current(), tree(), checkpoint),
    ondelete: (checkpoint, subtree) => asking.deleteCheckpoint(current(), checkpoint, subtree),
    onrename: (checkpoint) => asking.renameCheckpoint(current(), checkpoint),
  });
  const create = button("Create checkpoint", () => asking.createCheckpoint(current()), { class: "primary" });
  const revert = button("Revert", () => asking.revert(current(), tree()));
  const count = h("span", { class: "count" });
  body.replaceChildren(h("div", { class: "split" },
    h("section", { class: "treepane", "aria-label": "Checkpoint tree" },
      h("div", { class: "bar" }, h("h2", {}, "Checkpoints ", count), h("div", { class: "buttons" }, create, revert)),
      widget.element, problems,
      h("p", { class: "keys" }, "Keys: ↑ ↓ move, ← → fold, Enter applies, F2 renames, Delete deletes, Shift+Delete deletes all below, too.")),
    details));
  let shown = "";

  function showDetails() {
    const vm = current();
    const id = widget.selected();
    const checkpoint = find(id);
    const key = JSON.stringify([id, checkpoint, vm?.state, tree()?.now]);
    if (key === shown || !vm || !tree()) return;
    shown = key;
    const focused = details.contains(document.activeElement) ? document.activeElement.textContent : null;
    details.replaceChildren(...(checkpoint ? ofCheckpoint(vm, tree(), checkpoint) : ofNow(vm, tree())));
    if (focused) [...details.querySelectorAll("button")].find((one) => one.textContent === focused)?.focus();
  }

  function showTree() {
    const now = tree();
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

  showTree();
  return {
    update(what) {
      if (what === "tree") showTree();
      else if (what === "vm") {
        widget.refresh(current());
        showDetails();
      }
    },
    tick() {
      widget.refresh(current());
    },
  };
}

function ofNow(vm, tree) {
  const parent = tree.checkpoints.find((checkpoint) => checkpoint.id === tree.now);
  return [
    h("h2", {}, "Now"),
    h("p", {}, parent ? `The current state, which descends from “${parent.name}”.`
      : "The current state. A checkpoint lets you come back to it."),
    facts([
      ["State", vm.state],
      ["Since its checkpoint", parent ? ago(parent.created).replace(" ago", "") : null],
      ["Agent in the guest", vm.agent_connected === undefined ? null : vm.agent_connected ? "connected" : "not connected"],
    ]),
    h("div", { class: "buttons" },
      button("Create checkpoint", () => asking.createCheckpoint(vm), { class: "primary" }),
      parent ? button("Revert…", () => asking.revert(vm, tree)) : null),
  ];
}

function ofCheckpoint(vm, tree, checkpoint) {
  const parent = tree.checkpoints.find((one) => one.id === checkpoint.parent);
  const own = tree.checkpoints.some((one) => one.parent === checkpoint.id);
  const stored = checkpoint.memory_stored === undefined ? null
    : `${size(checkpoint.memory_compressed ?? checkpoint.memory_stored)}${checkpoint.memory_compressed === undefined ? "" : " compressed"} of ${size(checkpoint.memory)}`;
  return [
    h("h2", {}, checkpoint.name),
    checkpoint.note ? h("p", { class: "note" }, checkpoint.note) : null,
    h("div", { class: "buttons" },
      button("Apply…", () => asking.applyCheckpoint(vm, tree, checkpoint), { class: "primary" }),
      button("Rename…", () => asking.renameCheckpoint(vm, checkpoint)),
      button("Note…", () => asking.editNote(vm, checkpoint)),
      button("Clone…", () => asking.cloneCheckpoint(vm, checkpoint)),
      button("Export…", () => asking.exportCheckpoint(vm, checkpoint)),
      button("Verify", () => asking.verifyCheckpoint(vm, checkpoint)),
      button("Delete…", () => asking.deleteCheckpoint(vm, checkpoint, false), { class: "danger" }),
      own ? button("Delete with all below…", () => asking.deleteCheckpoint(vm, checkpoint, true), { class: "danger" }) : null),
    facts([
      ["Type", `${TYPES[checkpoint.type] ?? checkpoint.type}${checkpoint.automatic ? ", made by a start" : ""}`],
      ["Created", `${clock(checkpoint.created)} (${ago(checkpoint.created)})`],
      ["Parent", parent ? parent.name : "none"],
      ["Current state", checkpoint.id === tree.now ? "descends from it" : null],
      ["Memory stored", stored],
      ["Disk changes", size(checkpoint.disk_bytes)],
      ["Guest paused for", checkpoint.pause_us === undefined ? null : pause(checkpoint.pause_us)],
      ["File systems frozen for", checkpoint.frozen_us === undefined ? null : pause(checkpoint.frozen_us)],
      ["After Apply", checkpoint.lands === "stopped" ? "the VM boots from its disks" : "programs go on"],
      ["Not part of it", checkpoint.left_out.map((one) => `${one.disk} (${one.why})`).join(", ")],
      ["Id", h("code", {}, checkpoint.id)],
    ]),
    checkpoint.fallback ? h("p", { class: "line" }, `Not a production checkpoint: ${checkpoint.fallback}`) : null,
    ...checkpoint.warnings.map((text) => h("p", { class: "why" }, text)),
  ].filter(Boolean);
}

function settingsView(body, current) {
  let shown = "";

  async function change(vm) {
    const given = await ask({
      title: `Checkpoints of ${vm.name}`,
      fields: [
        { name: "type", label: "Type", kind: "choice", value: vm.checkpoint_type, choices: [
          ["production", "Production if the guest's agent is connected, else standard"],
          ["production-only", "Production only: without an agent there is no checkpoint"],
          ["standard", "Standard: memory and disks"],
          ["disabled", "None: this guest must not go back"],
        ] },
        { name: "automatic", label: "Create a checkpoint at every start if there is none, and delete it after a clean shutdown",
          kind: "check", value: vm.auto_checkpoint },
        { name: "dir", label: "Folder for checkpoints", kind: "text", value: vm.checkpoint_dir ?? "", placeholder: vm.folder,
          hint: "An absolute path; it can only be changed while there are no checkpoints." },
      ],
      confirm: "Save",
    });
    if (!given) return;
    const deed = { do: "set", vm: vm.name };
    if (given.type !== vm.checkpoint_type) deed.checkpoint_type = given.type;
    if (given.automatic !== vm.auto_checkpoint) deed.auto_checkpoint = given.automatic;
    if (given.dir && given.dir !== vm.checkpoint_dir) deed.checkpoint_dir = given.dir;
    if (Object.keys(deed).length > 2) await perform(deed, "The settings were changed.");
  }

  function show() {
    const vm = current();
    if (!vm?.config) return;
    const key = JSON.stringify([vm.config, vm.checkpoint_type, vm.auto_checkpoint, vm.checkpoint_dir, vm.forwards, vm.folder, vm.pid]);
    if (key === shown) return;
    shown = key;
    const config = vm.config;
    const disk = (one) => [one.format, one.overlay && "overlay", one.readonly && "read-only", one.passthrough && "passthrough"]
      .filter(Boolean).join(", ");
    body.replaceChildren(h("div", { class: "panels" },
      h("section", { class: "panel", "aria-label": "Settings of checkpoints" },
        h("div", { class: "bar" }, h("h2", {}, "Checkpoints"), button("Change…", () => change(current()))),
        facts([
          ["Type", vm.checkpoint_type],
          ["At every start", vm.auto_checkpoint ? "one is created, if there is none" : "none is created"],
          ["Folder", h("code", {}, vm.checkpoint_dir ?? vm.folder)],
        ])),
      h("section", { class: "panel", "aria-label": "Hardware" },
        h("h2", {}, "Hardware"),
        facts([
          ["CPUs", String(config.cpus)],
          ["Memory", size(config.memory)],
          ["Kernel", config.kernel ? h("code", {}, config.kernel) : "the bundled guest"],
          ["Initial RAM disk", config.initrd ? h("code", {}, config.initrd) : null],
          ["Command line", config.cmdline ? h("code", {}, config.cmdline) : null],
          ...config.disks.map((one) => [`Disk ${one.id}`, h("span", {}, h("code", {}, one.path), ` ${disk(one)}`)]),
          ["Networks", (config.nets ?? []).length ? String(config.nets.length) : null],
          ["Forwards", (vm.forwards ?? []).join(", ")],
        ])),
      h("section", { class: "panel", "aria-label": "Place" },
        h("h2", {}, "Place"),
        facts([["Folder", h("code", {}, vm.folder)], ["Created", clock(vm.created)], ["Process", vm.pid ? String(vm.pid) : null]]))));
  }

  show();
  return { update: show };
}
