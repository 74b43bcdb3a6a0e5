// One VM: its checkpoints, its console, its settings.

import { h, setText, setAttribute } from "./dom.js";
import { state, watchTree } from "./store.js";
import { checkpointsView } from "./checkpoints.js";
import { consoleView } from "./console.js";
import { settingsView } from "./settings.js";
import { timelineView } from "./timeline.js";
import { trashView } from "./trash.js";
import { controls, headline, place } from "./vmbits.js";

const TABS = [["", "Checkpoints"], ["console", "Console"], ["timeline", "Time line"], ["trash", "Trash"], ["settings", "Settings"]];
const VIEWS = { console: consoleView, timeline: timelineView, trash: trashView, settings: settingsView };

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
  const inner = (VIEWS[tab] ?? checkpointsView)(body, current, name);

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
      if (!["tree", "trash", "actions", "ready"].includes(what) && which !== name) return;
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
