// Questions. Nothing is done that was not confirmed here.

import { h, button, uniqueId } from "./dom.js";

/// Shows a form; resolves to its values by name, or to null if it was left.
/// A field: {name, label, kind: "text"|"textarea"|"check"|"choice"|"select"|"number", value, hint, choices, required, when}
export function ask({ title, text = [], fields = [], confirm, danger = false, check, wide = false }) {
  return new Promise((resolve) => {
    const heading = uniqueId("title");
    const problem = h("p", { class: "problem", role: "alert" });
    const controls = fields.map((field) => ({ field, ...build(field) }));
    const values = () => Object.fromEntries(controls.map(({ field, read }) => [field.name, read()]));
    const refresh = () => {
      for (const { field, row } of controls) {
        if (field.when) row.hidden = !field.when(values());
      }
    };
    const form = h("form", { novalidate: true, onsubmit: (event) => {
      event.preventDefault();
      const given = values();
      const missing = controls.find(({ field }) => field.required && !given[field.name]
        && (!field.when || field.when(given)));
      const wrong = missing ? `${missing.field.label} is missing.` : check?.(given);
      if (wrong) {
        problem.textContent = wrong;
        missing?.focus();
        return;
      }
      done(given);
    }, onchange: refresh, oninput: refresh },
      h("h2", { id: heading }, title),
      ...text.filter(Boolean).map((line) => (typeof line === "string" ? h("p", {}, line) : line)),
      ...controls.map(({ row }) => row),
      problem,
      h("div", { class: "buttons" },
        button(confirm ? "Cancel" : "Close", () => done(null)),
        confirm ? h("button", { type: "submit", class: danger ? "danger" : "primary" }, confirm) : null));
    const dialog = h("dialog", { "aria-labelledby": heading, class: wide ? "wide" : null }, form);
    dialog.addEventListener("cancel", (event) => {
      event.preventDefault();
      done(null);
    });
    const before = document.activeElement;
    const done = (result) => {
      dialog.close();
      dialog.remove();
      focusAgain(before);
      resolve(result);
    };
    document.body.append(dialog);
    refresh();
    dialog.showModal();
    const first = controls.find(({ row }) => !row.hidden);
    if (first && !danger) first.focus();
    else form.querySelector(".buttons button").focus();
  });
}

/// Where the focus was; what was drawn anew meanwhile is found by its id.
function focusAgain(before) {
  const element = before?.isConnected ? before : before?.id ? document.getElementById(before.id) : null;
  if (element instanceof HTMLElement && element !== document.body) element.focus({ preventScroll: true });
}

/// Shows something; resolves once it was closed.
export const show = (title, content, wide = false) => ask({ title, text: content, wide });

function build(field) {
  const id = uniqueId("field");
  const hint = field.hint ? h("small", { id: `${id}-hint` }, field.hint) : null;
  const described = hint ? `${id}-hint` : null;
  if (field.kind === "check") {
    const input = h("input", { type: "checkbox", id, checked: Boolean(field.value), "aria-describedby": described });
    const row = h("div", { class: "field check" }, h("label", { for: id }, input, " ", field.label), hint);
    return { row, read: () => input.checked, focus: () => input.focus() };
  }
  if (field.kind === "choice") {
    const inputs = field.choices.map(([value, label]) => ({
      label,
      input: h("input", { type: "radio", name: id, value, checked: value === field.value }),
    }));
    const row = h("fieldset", { class: "field" }, h("legend", {}, field.label),
      ...inputs.map(({ input, label }) => h("label", { class: "radio" }, input, " ", label)), hint);
    const chosen = () => inputs.find(({ input }) => input.checked)?.input;
    return { row, read: () => chosen()?.value ?? "", focus: () => (chosen() ?? inputs[0].input).focus() };
  }
  if (field.kind === "select") {
    const select = h("select", { id, "aria-describedby": described },
      ...field.choices.map(([value, label]) => h("option", { value, selected: value === field.value }, label)));
    const row = h("div", { class: "field" }, h("label", { for: id }, field.label), select, hint);
    return { row, read: () => select.value, focus: () => select.focus() };
  }
  const input = h(field.kind === "textarea" ? "textarea" : "input", {
    id,
    type: field.kind === "textarea" ? null : field.kind === "number" ? "number" : "text",
    rows: field.kind === "textarea" ? 3 : null,
    value: field.value ?? "",
    placeholder: field.placeholder,
    maxlength: field.most,
    min: field.min,
    max: field.max,
    autocomplete: "off",
    spellcheck: field.kind === "textarea" ? null : "false",
    "aria-describedby": described,
    "aria-required": field.required ? "true" : null,
  });
  const row = h("div", { class: field.short ? "field short" : "field" }, h("label", { for: id }, field.label), input, hint);
  return { row, read: () => input.value.trim(), focus: () => { input.focus(); input.select(); } };
}

/// A line at the edge of the page that goes by itself unless it is bad news.
export function say(text, bad = false) {
  const line = h("div", { class: bad ? "message bad" : "message" }, h("span", {}, text),
    button("×", () => line.remove(), { "aria-label": "Dismiss", class: "plain" }));
  const messages = document.getElementById("messages");
  messages.append(line);
  // Said once is enough, and what is said must not cover the page.
  for (const other of [...messages.children]) if (other !== line && other.firstChild.textContent === text) other.remove();
  while (messages.children.length > 3) messages.firstChild.remove();
  if (!bad) setTimeout(() => line.remove(), 6000);
}
