// All VMs at a glance.

import { h, button, setText, setAttribute } from "./dom.js";
import { state } from "./store.js";
import { ask } from "./dialogs.js";
import { perform } from "./actions.js";
import { controls, headline, place } from "./vmbits.js";

export function listView(main) {
  const grid = h("ul", { class: "cards", "aria-label": "Virtual machines" });
  const nothing = h("div", { class: "nothing" },
    h("h2", {}, "There are no VMs yet"),
    h("p", {}, "The bundled guest needs no image: it boots in an instant, and shows what checkpoints do."),
    button("Create a VM", newVm, { class: "primary" }));
  const count = h("span", { class: "count" });
  main.replaceChildren(
    h("div", { class: "bar" }, h("h1", {}, "Virtual machines ", count), button("New VM", newVm, { class: "primary" })),
    grid, nothing);
  const cards = new Map();

  function update(name) {
    const vm = state.vms.get(name);
    if (!vm) {
      cards.get(name)?.element.remove();
      cards.delete(name);
      return;
    }
    if (!cards.has(name)) {
      const card = makeCard(name);
      cards.set(name, card);
      const after = [...cards.keys()].filter((other) => other > name).sort()[0];
      grid.insertBefore(card.element, after ? cards.get(after).element : null);
    }
    cards.get(name).update(vm);
  }

  function summary() {
    setText(count, state.vms.size ? String(state.vms.size) : "");
    nothing.hidden = state.vms.size > 0 || !state.ready;
    grid.hidden = state.vms.size === 0;
  }

  for (const name of [...state.vms.keys()].sort()) update(name);
  summary();
  return {
    title: "piton",
    crumbs: [],
    update(what, name) {
      if (what === "vm" || what === "gone") update(name);
      if (what === "vm" || what === "gone" || what === "ready") summary();
    },
    tick() {
      for (const [name, card] of cards) if (state.vms.has(name)) card.update(state.vms.get(name));
    },
  };
}

function makeCard(name) {
  const link = h("a", { href: `#/vm/${name}` }, name);
  const badge = h("span", { class: "state" });
  const facts = h("p", { class: "line" });
  const where = h("p", { class: "line" });
  const why = h("p", { class: "why" });
  const screen = h("pre", { class: "screen", "aria-hidden": "true" });
  const buttons = controls(() => state.vms.get(name));
  const element = h("li", { class: "card", "data-vm": name },
    h("div", { class: "head" }, h("h2", {}, link), badge), facts, where, why, screen, buttons.element);
  return {
    element,
    update(vm) {
      setAttribute(badge, "data-state", vm.state);
      setText(badge, vm.busy ? `${vm.state}, busy` : vm.state);
      setText(facts, headline(vm));
      setText(where, place(vm));
      where.hidden = !where.textContent;
      setText(why, vm.error ?? vm.reason ?? "");
      why.hidden = !why.textContent;
      setText(screen, (vm.console ?? []).join("\n"));
      setAttribute(screen, "data-empty", vm.console?.length ? null : "");
      buttons.update(vm);
    },
  };
}

export async function newVm() {
  const given = await ask({
    title: "New VM",
    fields: [
      { name: "vm", label: "Name", kind: "text", most: 64, required: true, placeholder: "demo",
        hint: "Letters, digits, “-”, “_” and “.”" },
      { name: "guest", label: "What it boots", kind: "choice", value: "bundled", choices: [
        ["bundled", "The bundled guest, to try things out"],
        ["kernel", "A kernel, with disks"],
      ] },
      { name: "kernel", label: "Kernel", kind: "text", placeholder: "/path/to/vmlinuz", hint: "ELF (vmlinux) or bzImage (vmlinuz)",
        when: (values) => values.guest === "kernel" },
      { name: "initrd", label: "Initial RAM disk (optional)", kind: "text", placeholder: "/path/to/initrd",
        when: (values) => values.guest === "kernel" },
      { name: "cmdline", label: "Kernel command line (optional)", kind: "text", placeholder: "console=ttyS0 root=/dev/vda",
        when: (values) => values.guest === "kernel" },
      { name: "disk", label: "Disk image (optional)", kind: "text", placeholder: "/path/to/disk.raw",
        hint: "Raw or qcow2" },
      { name: "overlay", label: "Never write to that image: keep changes in the VM's folder", kind: "check", value: true,
        when: (values) => Boolean(values.disk) },
      { name: "cpus", label: "CPUs", kind: "number", value: "1", min: 1 },
      { name: "memory", label: "Memory in MiB", kind: "number", value: "512", min: 16 },
      { name: "network", label: "Connect it to this host's network (needs passt)", kind: "check", value: false },
    ],
    confirm: "Create and boot",
    check: (values) => (values.guest === "kernel" && !values.kernel ? "Kernel is missing." : ""),
  });
  if (!given) return;
  const deed = { do: "run", vm: given.vm, cpus: Number(given.cpus), memory: Number(given.memory) * 1024 * 1024,
    network: given.network };
  if (given.guest === "kernel") {
    deed.kernel = given.kernel;
    if (given.initrd) deed.initrd = given.initrd;
    if (given.cmdline) deed.cmdline = given.cmdline;
  }
  if (given.disk) deed.disks = [{ path: given.disk, overlay: given.overlay }];
  if (await perform(deed, `The VM “${given.vm}” is running.`)) location.hash = `#/vm/${given.vm}`;
}
