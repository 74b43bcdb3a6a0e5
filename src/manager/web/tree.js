// The tree of checkpoints. A line of descent goes straight down; where it branches, the branches are
// indented. Arrows move and fold; other keys are for whoever shows it.

import { h, setAttribute } from "./dom.js";
import { ago, clock, size } from "./text.js";

/// Not an id: the current state.
export const NOW = "now";

/// Rows in the order in which they are shown, each with what is drawn beside it.
export function layout(tree) {
  const known = new Set(tree.checkpoints.map((checkpoint) => checkpoint.id));
  const children = new Map([[null, []]]);
  const below = (id) => {
    if (!children.has(id)) children.set(id, []);
    return children.get(id);
  };
  for (const checkpoint of tree.checkpoints) {
    below(known.has(checkpoint.parent) ? checkpoint.parent : null).push(checkpoint);
  }
  below(known.has(tree.now) ? tree.now : null).push({ id: NOW });
  const rows = [];
  // By hand: a chain may be longer than the stack is deep.
  const stack = [];
  const push = (parent, level, indent, guides) => {
    const own = below(parent);
    const branches = own.length > 1 && parent !== null;
    for (let i = own.length - 1; i >= 0; i -= 1) {
      const last = i === own.length - 1;
      stack.push({
        checkpoint: own[i],
        parent,
        level,
        indent: branches ? indent + 1 : indent,
        guides: branches ? [...guides, last ? "elbow" : "tee"] : guides,
        up: !branches && parent !== null,
      });
    }
  };
  push(null, 1, 0, []);
  while (stack.length) {
    const row = stack.pop();
    const own = row.checkpoint.id === NOW ? [] : below(row.checkpoint.id);
    row.down = own.length > 0;
    row.children = own.length;
    rows.push(row);
    if (own.length) {
      const inherited = row.guides.map((guide) => (guide === "tee" || guide === "pass" ? "pass" : "none"));
      push(row.checkpoint.id, row.level + 1, row.indent, inherited);
    }
  }
  return rows;
}

const ICONS = { standard: "●", production: "◆", offline: "○" };
export const TYPES = { standard: "standard", production: "production", offline: "disks only" };

/// What keys mean for whoever shows the tree; of letters either case.
function meaning(event) {
  if (event.altKey || event.metaKey) return null;
  const letter = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (event.ctrlKey) return letter === "z" && !event.shiftKey ? "Undo" : null;
  return letter;
}

/// What it stores; of the current state that is not known.
function weight(checkpoint) {
  return size((checkpoint.memory_compressed ?? checkpoint.memory_stored ?? 0) + checkpoint.disk_bytes);
}

export function treeWidget({ onselect, onkey }) {
  const element = h("div", { role: "tree", "aria-label": "Checkpoints", class: "tree" });
  let rows = [];
  let now = null;
  let vm = null;
  let selected = NOW;
  const collapsed = new Set();

  function hidden() {
    const gone = new Set();
    for (const row of rows) {
      if (row.parent !== null && (collapsed.has(row.parent) || gone.has(row.parent))) gone.add(row.checkpoint.id);
    }
    return gone;
  }

  function below(id) {
    const ids = new Set([id]);
    for (const row of rows) if (ids.has(row.parent)) ids.add(row.checkpoint.id);
    return ids.size - 1;
  }

  function makeRow(row) {
    const { checkpoint } = row;
    const isNow = checkpoint.id === NOW;
    const folded = collapsed.has(checkpoint.id);
    const name = isNow ? "Now" : checkpoint.name;
    const guides = row.guides.map((guide) => h("span", { class: `guide ${guide}` }));
    const dot = h("span", { class: `dot${row.up ? " up" : ""}${row.down && !folded ? (row.children > 1 ? " fork" : " down") : ""}` },
      h("span", { class: `mark ${isNow ? "now" : checkpoint.type}` }, isNow ? "▶" : ICONS[checkpoint.type] ?? "●"));
    const fold = row.children > 0
      ? h("button", { type: "button", class: "fold", tabindex: "-1", "aria-hidden": "true",
        onclick: (event) => { event.stopPropagation(); toggle(checkpoint.id); } }, folded ? "▸" : "▾")
      : null;
    const extra = isNow ? vm?.state ?? "" : ago(checkpoint.created);
    const item = h("div", {
      role: "treeitem",
      id: `node-${checkpoint.id}`,
      "data-id": checkpoint.id,
      "aria-level": row.level,
      "aria-selected": "false",
      "aria-expanded": row.children > 0 ? String(!folded) : null,
      class: `node${isNow ? " now" : ""}${row.children > 1 ? " branch" : ""}${folded ? " folded" : ""}`,
      tabindex: "-1",
      title: isNow ? null : clock(checkpoint.created),
      onclick: () => choose(checkpoint.id, true),
      ondblclick: () => { if (!isNow) onkey("Enter", checkpoint, false); },
    }, h("span", { class: "guides", "aria-hidden": "true" }, ...guides, dot),
    h("span", { class: "name" }, name),
    !isNow && checkpoint.pinned ? h("span", { class: "tag", "aria-hidden": "true" }, "pinned") : null,
    checkpoint.verified && !checkpoint.verified.passed ? h("span", { class: "tag bad", "aria-hidden": "true" }, "failed") : null,
    h("span", { class: "unseen" }, isNow ? ", the current state, " : `, ${spoken(checkpoint)}, `),
    checkpoint.note ? h("span", { class: "hint" }, checkpoint.note) : null,
    fold, folded ? h("span", { class: "more" }, `${below(checkpoint.id)} more`) : null,
    isNow ? null : h("span", { class: "weight" }, weight(checkpoint)),
    h("span", { class: "when" }, extra));
    return item;
  }

  function spoken(checkpoint) {
    return [TYPES[checkpoint.type] ?? checkpoint.type, checkpoint.pinned && "pinned",
      checkpoint.verified && (checkpoint.verified.passed ? "verified" : "failed verification"), checkpoint.id === now && "parent of Now"]
      .filter(Boolean).join(", ");
  }

  function draw() {
    const focused = element.contains(document.activeElement);
    const gone = hidden();
    // What is selected stays in sight.
    while (gone.has(selected)) selected = rows.find((row) => row.checkpoint.id === selected).parent;
    const shown = rows.filter((row) => !gone.has(row.checkpoint.id));
    if (!shown.some((row) => row.checkpoint.id === selected)) selected = NOW;
    element.replaceChildren(...shown.map(makeRow));
    mark(focused);
  }

  function mark(focus) {
    for (const item of element.children) {
      const is = item.dataset.id === selected;
      setAttribute(item, "aria-selected", String(is));
      setAttribute(item, "tabindex", is ? "0" : "-1");
      if (is && focus) {
        item.focus({ preventScroll: true });
        item.scrollIntoView({ block: "nearest" });
      }
    }
  }

  function choose(id, focus) {
    selected = id;
    mark(focus);
    onselect(id);
  }

  function toggle(id) {
    if (!collapsed.delete(id)) collapsed.add(id);
    draw();
    onselect(selected);
  }

  element.addEventListener("keydown", (event) => {
    const key = meaning(event);
    if (!key) return;
    const items = [...element.children].map((item) => item.dataset.id);
    const at = items.indexOf(selected);
    const row = rows.find((one) => one.checkpoint.id === selected);
    if (!row) return;
    const { checkpoint } = row;
    const isNow = checkpoint.id === NOW;
    const go = (index) => choose(items[Math.max(0, Math.min(items.length - 1, index))], true);
    const keys = {
      ArrowDown: () => go(at + 1),
      ArrowUp: () => go(at - 1),
      Home: () => go(0),
      End: () => go(items.length - 1),
      PageDown: () => go(at + 10),
      PageUp: () => go(at - 10),
      ArrowLeft: () => {
        if (row.children > 0 && !collapsed.has(selected)) toggle(selected);
        else if (row.parent !== null) choose(row.parent, true);
      },
      ArrowRight: () => {
        if (collapsed.has(selected)) toggle(selected);
        else if (row.children > 0) go(at + 1);
      },
    };
    if (keys[key]) keys[key]();
    else if (!onkey(key, isNow ? null : checkpoint, event.shiftKey)) return;
    event.preventDefault();
  });

  return {
    element,
    selected: () => selected,
    show(tree, machine) {
      rows = layout(tree);
      now = tree.now;
      vm = machine;
      draw();
    },
    /// The state of the VM, and times, change while the tree does not.
    refresh(machine) {
      vm = machine;
      for (const item of element.children) {
        const row = rows.find((one) => one.checkpoint.id === item.dataset.id);
        const when = item.querySelector(".when");
        const text = item.dataset.id === NOW ? vm?.state ?? "" : row ? ago(row.checkpoint.created) : "";
        if (when.textContent !== text) when.textContent = text;
      }
    },
  };
}
