// What both views show of a VM.

import { h, button } from "./dom.js";
import { ask } from "./dialogs.js";
import { perform } from "./actions.js";
import { duration, lastRun, plural, since, size } from "./text.js";

export function headline(vm) {
  if (!vm.config) return "";
  const parts = [plural(vm.config.cpus, "CPU"), `${size(vm.config.memory)} memory`];
  if (vm.checkpoints > 0) parts.push(plural(vm.checkpoints, "checkpoint"));
  if (vm.started) parts.push(`up ${duration(since(vm.started))}`);
  if (vm.load) {
    parts.push(`${vm.load.cpu_percent} % CPU`);
    if (vm.load.read + vm.load.written > 0) parts.push(`disk ${size(vm.load.read + vm.load.written)}/s`);
    if (vm.load.network > 0) parts.push(`network ${size(vm.load.network)}/s`);
  }
  return parts.join(" · ");
}

/// Where it can be reached; of one that is off, how it ended.
export function place(vm) {
  if (vm.state === "stopped") return lastRun(vm.last_run);
  const addresses = (vm.networks ?? []).flatMap((network) => network.addresses);
  const forwards = (vm.forwards ?? []).map((forward) => `host ${forward}`);
  return [...addresses, ...forwards].join(" · ");
}

/// The buttons that change its state, of which those are there that make sense.
export function controls(current) {
  const make = (label, deed, states, props) => ({
    states,
    element: button(label, () => perform({ do: deed, vm: current().name }), props),
  });
  const all = [
    make("Start", "start", ["stopped"], { class: "primary" }),
    make("Resume", "resume", ["paused"], { class: "primary" }),
    make("Pause", "pause", ["running"]),
    make("Stop", "stop", ["running"]),
    { states: ["running", "paused", "unresponsive"], element: button("Turn off", () => turnOff(current()), { class: "danger" }) },
    { states: ["stopped", "broken"], element: button("Remove", () => remove(current()), { class: "danger" }) },
  ];
  const element = h("div", { class: "buttons", role: "group", "aria-label": "Change its state" }, ...all.map((one) => one.element));
  return {
    element,
    update(vm) {
      for (const one of all) one.element.hidden = !one.states.includes(vm.state);
    },
  };
}

async function turnOff(vm) {
  const sure = await ask({
    title: `Turn off ${vm.name}?`,
    text: ["This cuts its power: what the guest has not written to its disks is lost. “Stop” lets it shut down instead."],
    confirm: "Turn off",
    danger: true,
  });
  if (sure) await perform({ do: "kill", vm: vm.name });
}

async function remove(vm) {
  const sure = await ask({
    title: `Remove ${vm.name}?`,
    text: [vm.trash_seconds
      ? `It goes to the trash with its own disks and all its checkpoints. For ${duration(vm.trash_seconds)}, it can be restored below the list of VMs. Disk images that you brought stay.`
      : "Its definition, its own disks and all its checkpoints will be deleted for good. Disk images that you brought stay."],
    fields: vm.trash_seconds ? [] : [{ name: "name", label: `Type ${vm.name} to confirm`, kind: "text" }],
    check: (values) => (vm.trash_seconds || values.name === vm.name ? "" : `Type ${vm.name} to confirm.`),
    confirm: "Remove",
    danger: true,
  });
  if (sure && await perform({ do: "remove", vm: vm.name }, `${vm.name} was removed.`)) location.hash = "#/";
}
