// All VMs at a glance.

import { h, button, setText, setAttribute } from "./dom.js";
import { state } from "./store.js";
import { newVm } from "./newvm.js";
import { removedVms } from "./trash.js";
import { controls, headline, place } from "./vmbits.js";

export function listView(main) {
  const grid = h("ul", { class: "cards", "aria-label": "Virtual machines" });
  const nothing = h("div", { class: "nothing" },
    h("h2", {}, "There are no VMs yet"),
    h("p", {}, "The bundled guest needs no image: it boots in an instant, and shows what checkpoints do."),
    button("Create a VM", newVm, { class: "primary" }));
  const removed = removedVms();
  const count = h("span", { class: "count" });
  main.replaceChildren(
    h("div", { class: "bar" }, h("h1", {}, "Virtual machines ", count), button("New VM", newVm, { class: "primary" })),
    grid, nothing, removed.element);
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
  removed.update();
  return {
    title: "piton",
    crumbs: [],
    update(what, name) {
      if (what === "removed") removed.update();
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
