// What is asked before checkpoints are made, gone back to, or deleted; in plain words.

import { h } from "./dom.js";
import { ask, say } from "./dialogs.js";
import { perform, plan } from "./actions.js";
import { state } from "./store.js";
import { ago, duration, plural, size } from "./text.js";

export async function createCheckpoint(vm) {
  const running = vm.state !== "stopped";
  const given = await ask({
    title: `Create a checkpoint of ${vm.name}`,
    text: [running
      ? "The VM keeps running. You can come back to exactly this moment at any time."
      : "The VM is stopped, so the checkpoint holds its disks and settings."],
    fields: [
      { name: "name", label: "Name", kind: "text", most: 64, placeholder: "the time" },
      { name: "note", label: "Note", kind: "textarea" },
      ...(running ? [{ name: "type", label: "Type", kind: "choice", value: "", choices: [
        ["", `As set for this VM (${vm.checkpoint_type})`],
        ["standard", "Standard: memory and disks; going back resumes the running programs"],
        ["production", "Production: disks only, with the guest's file systems flushed; needs qemu-guest-agent"],
      ] }] : []),
    ],
    confirm: "Create",
  });
  if (!given) return;
  const deed = { do: "create", vm: vm.name, note: given.note };
  if (given.name) deed.name = given.name;
  if (given.type) deed.type = given.type;
  await perform(deed, (made) => `Checkpoint “${made.name}” was created.`);
}

/// How what is taken away can be brought back, if it can.
function back(vm, many = false) {
  return vm.trash_seconds > 0
    ? `For ${duration(vm.trash_seconds)}, “Undo” brings ${many ? "them" : "it"} back.`
    : `${many ? "They" : "It"} cannot be brought back: the trash of this VM is off.`;
}

function lost(vm) {
  return vm.trash_seconds > 0 ? "if you do not save it, it goes to the trash." : "if you do not save it, it is lost.";
}

/// What would be lost of the current state, in a sentence.
function atStake(vm, tree) {
  const parent = tree.checkpoints.find((checkpoint) => checkpoint.id === tree.now);
  return parent
    ? `What ${vm.name} has done since checkpoint “${parent.name}” (${ago(parent.created)}) is only in its current state: ${lost(vm)}`
    : `What ${vm.name} has done so far is only in its current state: ${lost(vm)}`;
}

function landing(checkpoint, vm) {
  if (checkpoint.lands === "stopped") {
    return vm.state === "stopped"
      ? "This checkpoint holds disks without memory, so the VM will boot from them."
      : "This checkpoint holds disks without memory, so the VM stops, and then boots from them.";
  }
  return "The VM goes back to the instant at which this checkpoint was created, with all programs that ran then.";
}

/// Memory may be what hangs.
function without(checkpoint) {
  return checkpoint.lands === "stopped" ? [] : [{ name: "cold", kind: "check", value: false,
    label: "Leave out its memory: the guest boots from the checkpoint’s disks, as after a power cut" }];
}

export async function applyCheckpoint(vm, tree, checkpoint) {
  const given = await ask({
    title: `Apply checkpoint “${checkpoint.name}”`,
    text: [landing(checkpoint, vm), h("p", { class: "stake" }, atStake(vm, tree))],
    fields: [
      { name: "current", label: "The current state", kind: "choice", value: "save", choices: [
        ["save", "Save it first, as another checkpoint"],
        ["discard", `Discard it. ${back(vm)}`],
      ] },
      { name: "name", label: "Name of the saved state", kind: "text", most: 64, placeholder: "the time",
        when: (values) => values.current === "save" },
      ...without(checkpoint),
      { name: "run", label: checkpoint.lands === "stopped" ? "Boot it at once" : "Let it run at once", kind: "check",
        value: vm.state === "running" },
    ],
    confirm: "Apply",
  });
  if (!given) return;
  const deed = { do: "apply", vm: vm.name, checkpoint: checkpoint.id, current: given.current, run: given.run,
    cold: Boolean(given.cold) };
  if (given.current === "save" && given.name) deed.name = given.name;
  await perform(deed, `${vm.name} is at checkpoint “${checkpoint.name}”.`);
}

export async function revert(vm, tree) {
  const parent = tree.checkpoints.find((checkpoint) => checkpoint.id === tree.now);
  if (!parent) return say("There is no checkpoint to revert to.", true);
  const given = await ask({
    title: `Revert ${vm.name} to “${parent.name}”`,
    text: [landing(parent, vm), h("p", { class: "stake" },
      `What the VM did since then (${ago(parent.created)}) is discarded. ${back(vm)} To keep it, apply the checkpoint instead and save the current state.`)],
    fields: [...without(parent), { name: "run", label: parent.lands === "stopped" ? "Boot it at once" : "Let it run at once",
      kind: "check", value: vm.state === "running" }],
    confirm: "Revert",
    danger: true,
  });
  if (!given) return;
  await perform({ do: "revert", vm: vm.name, run: given.run, cold: Boolean(given.cold) }, `${vm.name} is back at “${parent.name}”.`);
}

function held(checkpoints) {
  const memory = checkpoints.reduce((sum, one) => sum + (one.memory_compressed ?? one.memory_stored ?? 0), 0);
  const disk = checkpoints.reduce((sum, one) => sum + one.disk_bytes, 0);
  return `${size(memory)} of memory and ${size(disk)} of disk changes`;
}

export async function deleteCheckpoint(vm, checkpoint, subtree) {
  const deed = { do: "delete", vm: vm.name, checkpoint: checkpoint.id, subtree };
  // What would go is piton's to say.
  const planned = await plan(deed);
  if (!planned) return;
  const { deleted: going, bytes = 0, merges = 0 } = planned;
  // As they stand in the tree.
  const place = new Map(state.tree?.checkpoints?.map((one, index) => [one.id, index]));
  going.sort((a, b) => (place.get(a.id) ?? 0) - (place.get(b.id) ?? 0));
  const names = going.slice(0, 12).map((one) => h("li", {}, one.name));
  if (going.length > names.length) names.push(h("li", {}, `and ${going.length - names.length} more`));
  const later = vm.trash_seconds > 0;
  const merging = merges > 0 ? `, and ${plural(merges, "pair")} of disk layers will be merged` : "";
  const given = await ask({
    title: subtree && going.length > 1
      ? `Delete “${checkpoint.name}” and all below it?`
      : `Delete checkpoint “${checkpoint.name}”?`,
    text: [
      going.length > 1 ? h("ul", { class: "going" }, ...names) : null,
      `${going.length > 1 ? `These ${plural(going.length, "checkpoint")} hold` : "It holds"} ${held(going)}. `
        + "The VM and all other checkpoints stay as they are.",
      `${later ? `Once gone from the trash, at least ${size(bytes)} will be free` : `At least ${size(bytes)} will be free`}${merging}.`,
      back(vm, going.length > 1),
    ],
    confirm: going.length > 1 ? `Delete ${going.length}` : "Delete",
    danger: true,
  });
  if (!given) return;
  await perform(deed, (done) => `${plural(done.deleted.length, "checkpoint")} deleted`
    + (done.merge_later ? "; disk layers are being merged." : "."));
}
