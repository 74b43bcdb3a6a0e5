// What can be set of a VM.

import { h, button, facts } from "./dom.js";
import { ask } from "./dialogs.js";
import { perform } from "./actions.js";
import { prune } from "./prune.js";
import { RULES, clock, duration, keeps, parseSize, parseSpan, shortSize, size, span } from "./text.js";

const TIME = "Such as 30m, 24h, 3d or 2w";

/// Sends what differs; nothing if nothing does.
async function set(vm, changes) {
  const given = Object.entries(changes).filter(([, value]) => value !== undefined);
  if (given.length) await perform({ do: "set", vm: vm.name, ...Object.fromEntries(given) }, "The settings were changed.");
}

const changed = (before, after) => (before === after ? undefined : after);

async function changeCheckpoints(vm) {
  const given = await ask({
    title: `Checkpoints of ${vm.name}`,
    fields: [
      { name: "type", label: "Type", kind: "choice", value: vm.checkpoint_type, choices: [
        ["production", "Production if the guest’s agent is connected, else standard"],
        ["production-only", "Production only: without an agent there is no checkpoint"],
        ["standard", "Standard: memory and disks"],
        ["disabled", "None: this guest must not go back"],
      ] },
      { name: "automatic", label: "Create a checkpoint at every start if there is none, and delete it after a clean shutdown",
        kind: "check", value: vm.auto_checkpoint },
      { name: "dir", label: "Folder for checkpoints", kind: "text", value: vm.checkpoint_dir ?? "", placeholder: vm.folder,
        hint: "An absolute path; it can only be changed while there are no checkpoints." },
    ],
    check: (values) => (!values.dir || values.dir.startsWith("/") ? "" : "Folder: use an absolute path, beginning with “/”."),
    confirm: "Save",
  });
  if (!given) return;
  await set(vm, {
    checkpoint_type: changed(vm.checkpoint_type, given.type),
    auto_checkpoint: changed(vm.auto_checkpoint, given.automatic),
    checkpoint_dir: given.dir ? changed(vm.checkpoint_dir, given.dir) : undefined,
  });
}

async function changeSchedule(vm) {
  const before = vm.schedule ?? { every_seconds: 0, only_if_changed: false };
  const given = await ask({
    title: `Schedule of ${vm.name}`,
    fields: [
      { name: "every", label: "While it runs, create a checkpoint every", kind: "text", value: span(before.every_seconds),
        hint: `${TIME}; 0: never` },
      { name: "type", label: "Type", kind: "select", value: before.type ?? "", choices: [
        ...(before.type ? [] : [["", `As set for this VM (${vm.checkpoint_type})`]]),
        ["standard", "Standard"], ["production", "Production, else standard"], ["production-only", "Production only"]] },
      { name: "changed", label: "Skip it if the guest has changed nothing since the last checkpoint", kind: "check", value: before.only_if_changed,
        hint: "No disk has been written to and, for a standard one, the guest has written to at most 1/64 of its memory." },
    ],
    check: (values) => (parseSpan(values.every) === null ? `“${values.every}” is not a time: write it as 30m, 24h or 3d.` : ""),
    confirm: "Save",
  });
  if (!given) return;
  const schedule = {};
  const every = parseSpan(given.every);
  if (every !== before.every_seconds) schedule.every_seconds = every;
  if (given.type && given.type !== before.type) schedule.type = given.type;
  if (given.changed !== before.only_if_changed) schedule.only_if_changed = given.changed;
  await set(vm, { schedule: Object.keys(schedule).length ? schedule : undefined });
}

async function changeRules(vm) {
  const before = vm.retention ?? { keep: {}, within_seconds: 0, max_bytes: 0, all: false };
  const count = (rule) => String(before.keep[rule] ?? 0);
  const labels = { last: "Newest", hourly: "Hourly", daily: "Daily", weekly: "Weekly", monthly: "Monthly", yearly: "Yearly" };
  const given = await ask({
    title: `Which checkpoints of ${vm.name} to keep`,
    text: ["After each scheduled checkpoint, those that no rule keeps are deleted for good. The parent of the current state, "
      + "and pinned checkpoints, always stay. With zeros everywhere, all stay."],
    fields: [
      ...RULES.map((rule) => ({ name: rule, label: labels[rule], kind: "number", value: count(rule), min: 0, short: true })),
      { name: "within", label: "Also all that are not older than", kind: "text", value: span(before.within_seconds), hint: `${TIME}; 0: does not count` },
      { name: "max", label: "Delete the oldest while all of them take more than", kind: "text", value: shortSize(before.max_bytes), hint: "Such as 500M or 20G; 0: no limit" },
      { name: "all", label: "Also apply this to checkpoints that a user made", kind: "check", value: before.all },
    ],
    check: (values) => {
      const wrong = RULES.find((rule) => !/^\d{0,9}$/.test(values[rule]));
      if (wrong) return `${labels[wrong]}: use a number.`;
      if (parseSpan(values.within) === null) return `“${values.within}” is not a time: write it as 24h or 3d.`;
      return parseSize(values.max) === null ? `“${values.max}” is not a size: write it as 500M or 20G.` : "";
    },
    confirm: "Save",
  });
  if (!given) return;
  const keep = Object.fromEntries(RULES.map((rule) => [rule, Number(given[rule])]));
  const retention = {};
  if (RULES.some((rule) => keep[rule] !== (before.keep[rule] ?? 0))) retention.keep = keep;
  const [within, most] = [parseSpan(given.within), parseSize(given.max)];
  if (within !== before.within_seconds) retention.within_seconds = within;
  if (most !== before.max_bytes) retention.max_bytes = most;
  if (given.all !== before.all) retention.all = given.all;
  await set(vm, { retention: Object.keys(retention).length ? retention : undefined });
}

async function changeTrash(vm) {
  const given = await ask({
    title: `Trash of ${vm.name}`,
    text: [h("p", { class: "stake" }, "What is deleted or discarded stays in the trash for this long. 0 turns the trash off, and deletes what is in it for good.")],
    fields: [{ name: "span", label: "Keep for", kind: "text", value: span(vm.trash_seconds), hint: `${TIME}; 0: off` }],
    check: (values) => (parseSpan(values.span) === null ? `“${values.span}” is not a time: write it as 24h or 3d.` : ""),
    confirm: "Save",
  });
  if (given) await set(vm, { trash_seconds: changed(vm.trash_seconds, parseSpan(given.span)) });
}

async function changeHardware(vm) {
  const { cpus, memory, cmdline = "" } = vm.config;
  const mebibytes = memory / 1024 / 1024;
  const given = await ask({
    title: `Hardware of ${vm.name}`,
    text: ["Checkpoints keep the hardware that they were made with."],
    fields: [
      { name: "cpus", label: "CPUs", kind: "number", value: String(cpus), min: 1 },
      { name: "memory", label: "Memory in MiB", kind: "number", value: String(mebibytes), min: 16 },
      { name: "cmdline", label: "Kernel command line", kind: "text", value: cmdline },
    ],
    confirm: "Save",
  });
  if (!given) return;
  await set(vm, {
    cpus: changed(cpus, Number(given.cpus)),
    memory: changed(memory, Number(given.memory) * 1024 * 1024),
    cmdline: changed(cmdline, given.cmdline),
  });
}

async function renameVm(vm) {
  const given = await ask({
    title: `Rename ${vm.name}`,
    fields: [{ name: "name", label: "Name", kind: "text", most: 64, value: vm.name, required: true }],
    confirm: "Rename",
  });
  if (!given || given.name === vm.name) return;
  if (await perform({ do: "rename-vm", vm: vm.name, name: given.name }, `It is now called ${given.name}.`)) {
    location.hash = `#/vm/${given.name}/settings`;
  }
}

function panel(title, buttons, ...content) {
  return h("section", { class: "panel", "aria-label": title },
    h("div", { class: "bar" }, h("h2", {}, title), h("div", { class: "buttons" }, ...buttons)), ...content);
}

export function settingsView(body, current) {
  let shown = "";
  const change = (label, how, props) => button("Change…", () => how(current()), { "aria-label": `Change ${label}…`, ...props });

  function show() {
    const vm = current();
    if (!vm?.config) return;
    const key = JSON.stringify([vm.config, vm.checkpoint_type, vm.auto_checkpoint, vm.checkpoint_dir, vm.trash_seconds, vm.retention,
      vm.schedule, vm.forwards, vm.folder, vm.pid, vm.state]);
    if (key === shown) return;
    shown = key;
    const config = vm.config;
    const off = vm.state === "stopped";
    const disk = (one) => [one.format, one.overlay && "overlay", one.readonly && "read-only", one.passthrough && "passthrough"]
      .filter(Boolean).join(", ");
    const every = vm.schedule?.every_seconds ?? 0;
    body.replaceChildren(h("div", { class: "panels" },
      panel("Checkpoints", [change("checkpoints", changeCheckpoints)],
        facts([
          ["Type", vm.checkpoint_type],
          ["At every start", vm.auto_checkpoint ? "one is created, if there is none" : "none is created"],
          ["Folder", h("code", {}, vm.checkpoint_dir ?? vm.folder)],
        ])),
      panel("Schedule", [change("the schedule", changeSchedule)],
        facts([
          ["While it runs", every > 0 ? `a checkpoint every ${duration(every)}` : "no checkpoints by itself"],
          ["Type", every > 0 ? vm.schedule.type ?? "as set for this VM" : null],
          ["If nothing has changed", every > 0 ? (vm.schedule.only_if_changed ? "skipped" : "created all the same") : null],
        ])),
      panel("Rules", [change("rules", changeRules), button("Prune…", () => prune(current()), { disabled: !vm.retention })],
        facts([
          ["Keep", keeps(vm.retention)],
          ["Applies to", vm.retention ? (vm.retention.all ? "all checkpoints" : "checkpoints that the VM made itself") : null],
        ])),
      panel("Trash", [change("the trash", changeTrash)],
        facts([["Keep for", vm.trash_seconds > 0 ? duration(vm.trash_seconds) : "off"]])),
      panel("Hardware", [change("hardware", changeHardware, { disabled: !off, title: off ? null : "Only while the VM is off" })],
        facts([
          ["CPUs", String(config.cpus)],
          ["Memory", size(config.memory)],
          ["Boots", config.image ? "the kernel of its first disk" : config.kernel ? h("code", {}, config.kernel) : "the bundled guest"],
          ["Initial RAM disk", config.initrd ? h("code", {}, config.initrd) : null],
          ["Command line", config.cmdline ? h("code", {}, config.cmdline) : null],
          ...config.disks.map((one) => [`Disk ${one.id}`, h("span", {}, h("code", {}, one.path), ` ${disk(one)}`)]),
          ["Networks", (config.nets ?? []).length ? String(config.nets.length) : null],
          ["Forwards", (vm.forwards ?? []).join(", ")],
        ])),
      panel("Place", [button("Rename…", () => renameVm(current()), { disabled: !off, title: off ? null : "Only while the VM is off" })],
        facts([["Folder", h("code", {}, vm.folder)], ["Created", clock(vm.created)], ["Process", vm.pid ? String(vm.pid) : null]]))));
  }

  show();
  return { update: show };
}
