// What is asked before something is done with one checkpoint that changes no state of the VM.

import { h } from "./dom.js";
import { ask, say, show } from "./dialogs.js";
import { perform } from "./actions.js";
import { ago, plural, size } from "./text.js";

export async function renameCheckpoint(vm, checkpoint) {
  const given = await ask({
    title: `Rename “${checkpoint.name}”`,
    fields: [{ name: "name", label: "Name", kind: "text", most: 64, value: checkpoint.name, required: true }],
    confirm: "Rename",
  });
  if (!given || given.name === checkpoint.name) return;
  await perform({ do: "rename", vm: vm.name, checkpoint: checkpoint.id, name: given.name });
}

export async function editNote(vm, checkpoint) {
  const given = await ask({
    title: `Note of “${checkpoint.name}”`,
    fields: [{ name: "note", label: "Note", kind: "textarea", value: checkpoint.note }],
    confirm: "Save",
  });
  if (!given || given.note === checkpoint.note) return;
  await perform({ do: "note", vm: vm.name, checkpoint: checkpoint.id, note: given.note });
}

export const togglePin = (vm, checkpoint) =>
  perform({ do: checkpoint.pinned ? "unpin" : "pin", vm: vm.name, checkpoint: checkpoint.id },
    checkpoint.pinned ? `“${checkpoint.name}” can be deleted again.` : `“${checkpoint.name}” is pinned: it cannot be deleted.`);

export async function cloneCheckpoint(vm, checkpoint) {
  const memory = checkpoint.lands !== "stopped";
  const given = await ask({
    title: `Clone from “${checkpoint.name}”`,
    text: [memory
      ? "A new VM begins at this checkpoint and shares its data; both then go their own ways."
      : "A new VM begins at this checkpoint’s disks and shares their data. The checkpoint has no memory, so start the clone afterwards."],
    fields: [
      { name: "new", label: "Name of the new VM", kind: "text", most: 60, value: `${vm.name}-clone`, required: true },
      { name: "count", label: "How many", kind: "number", value: "1", min: 1, max: 1000,
        hint: "More than one are named NAME-1, NAME-2 and so on." },
      memory ? { name: "run", label: "Run at once, instead of leaving them paused", kind: "check", value: false } : null,
    ].filter(Boolean),
    check: (values) => (/^[1-9]\d{0,3}$/.test(values.count) && Number(values.count) <= 1000 ? "" : "How many: a number from 1 to 1000."),
    confirm: "Clone",
  });
  if (!given) return;
  const count = Number(given.count);
  const deed = { do: "clone", vm: vm.name, checkpoint: checkpoint.id, new: given.new, run: Boolean(given.run) };
  if (count > 1) deed.count = count;
  await perform(deed, count > 1 ? `${count} VMs were created.` : `The VM “${given.new}” was created.`);
}

/// Of a checkpoint, or of the VM as it is.
export async function exportState(vm, checkpoint, tree) {
  const live = !checkpoint && vm.state !== "stopped";
  const others = (tree?.checkpoints ?? []).filter((one) => one.id !== checkpoint?.id);
  const given = await ask({
    title: checkpoint ? `Export “${checkpoint.name}”` : `Export the current state of ${vm.name}`,
    text: ["A self-contained copy in a folder: a backup, or something to import on another host with “piton import”.",
      live ? "The VM keeps running; the copy is made through a temporary checkpoint." : null],
    fields: [
      { name: "dir", label: "Folder to create on the manager’s host", kind: "text", required: true,
        placeholder: "/home/you/backup", hint: "An absolute path; the folder must not exist yet." },
      others.length ? { name: "since", label: "What to export", kind: "select", value: "", choices: [
        ["", "Everything"], ...others.map((one) => [one.id, `Only what changed since “${one.name}”`])] } : null,
    ].filter(Boolean),
    check: (values) => (values.dir.startsWith("/") ? "" : "Folder: use an absolute path, beginning with “/”."),
    confirm: "Export",
  });
  if (!given) return;
  const deed = { do: "export", vm: vm.name, dir: given.dir, live };
  if (checkpoint) deed.checkpoint = checkpoint.id;
  if (given.since) deed.since = given.since;
  await perform(deed, `Exported to ${given.dir}.`);
}

export async function verifyCheckpoint(vm, checkpoint) {
  await perform({ do: "verify", vm: vm.name, checkpoint: checkpoint.id },
    (done) => `“${checkpoint.name}” is as it was written: ${size(done.bytes)} read and checked`
      + (done.unchecked?.length ? `; ${plural(done.unchecked.length, "base image")} without checksums.` : "."));
}

/// Tries it in a temporary clone; what came of it is kept with the checkpoint.
export async function bootCheckpoint(vm, checkpoint) {
  const begins = checkpoint.lands === "stopped" ? "boots from this checkpoint’s disks" : "resumes from this checkpoint";
  const given = await ask({
    title: `Try “${checkpoint.name}”`,
    text: [`A temporary clone without a network ${begins}, and is watched until its guest works. `
      + "The VM and the checkpoint stay as they are."],
    fields: [
      { name: "until", label: "It works if", kind: "choice", value: "lives", choices: [
        ["lives", "it runs for 10 seconds"],
        ["prints", "its console matches a regular expression"],
        ["exec", "a shell command succeeds in it; needs qemu-guest-agent"],
        ["agent", "its guest agent answers"],
      ] },
      { name: "regex", label: "Regular expression", kind: "text", placeholder: "login:", required: true,
        when: (values) => values.until === "prints" },
      { name: "exec", label: "Shell command", kind: "text", placeholder: "systemctl is-active nginx", required: true,
        when: (values) => values.until === "exec" },
      { name: "timeout", label: "Seconds that it has for it", kind: "number", value: "120", min: 1 },
    ],
    check: (values) => (/^[1-9]\d{0,5}$/.test(values.timeout) ? "" : "Seconds: use a number."),
    confirm: "Try it",
  });
  if (!given) return;
  const deed = { do: "verify-boot", vm: vm.name, checkpoint: checkpoint.id, timeout: Number(given.timeout) };
  if (given.until === "prints") deed.wait_for = given.regex;
  if (given.until === "exec") deed.exec = given.exec;
  if (given.until === "agent") deed.agent = true;
  await perform(deed, `“${checkpoint.name}” works.`);
}

/// What came of trying it, in a sentence.
export function cameBack({ verified }) {
  if (!verified) return null;
  const told = verified.passed ? `yes: it was ${verified.began}, and ${verified.until}` : `no: it was ${verified.began}, but ${verified.why}`;
  return `${told.replaceAll("`", "")} (${ago(verified.when)}, in ${(verified.took_ms / 1000).toFixed(1)} s)`;
}

/// What the guest printed when it was tried.
export async function showConsole(vm, checkpoint) {
  const answer = await fetch(`/api/vms/${encodeURIComponent(vm.name)}/checkpoints/${checkpoint.id}`);
  const told = await answer.json();
  if (!answer.ok) return say(told.error, true);
  await show(`Console of “${checkpoint.name}” when it was tried`,
    [h("pre", { class: "printed", tabindex: "0" }, told.verified?.console ?? "It printed nothing.")], true);
}

export const tags = (checkpoint) => [
  checkpoint.pinned ? h("span", { class: "tag" }, "pinned") : null,
  checkpoint.verified ? h("span", { class: checkpoint.verified.passed ? "tag good" : "tag bad" },
    checkpoint.verified.passed ? "verified" : "failed") : null,
];
