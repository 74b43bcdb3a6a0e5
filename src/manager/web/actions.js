// What is under way: the manager's own actions and the jobs of the VMs, with progress and cancel.

import { h, button, setText } from "./dom.js";
import { act, cancelAction, cancelJob, state, subscribe } from "./store.js";
import { say } from "./dialogs.js";
import { DOING, size } from "./text.js";

/// Does a deed and says how it ended; resolves to its result, or to null.
export async function perform(deed, success) {
  try {
    const action = await act(deed);
    if (action.state === "done") {
      if (success) say(typeof success === "function" ? success(action.result) : success);
      for (const note of action.notes ?? []) say(note);
      return action.result ?? {};
    }
    if (action.state === "cancelled") say(`${DOING[deed.do]} was cancelled.`);
    else say(action.error, true);
  } catch (problem) {
    say(problem.message, true);
  }
  return null;
}

/// What a deed would do, as its dry run says; null, and said why, if that cannot be told.
export async function plan(deed) {
  try {
    const planned = await act({ ...deed, dry_run: true });
    if (planned.state === "done") return planned.result;
    say(planned.error, true);
  } catch (problem) {
    say(problem.message, true);
  }
  return null;
}

/// Where its own word says too little.
const PHASES = { agent: "waiting for the guest’s agent" };

/// Quick ones flash by unseen.
const QUIET = 600;

function running() {
  const jobs = [...state.vms.values()].flatMap((vm) => (vm.jobs ?? [])
    .filter((job) => job.state === "running" || job.state === "queued")
    .map((job) => ({
      key: `job ${job.id}`,
      vm: vm.name,
      what: DOING[job.kind] ?? job.kind,
      subject: job.subject,
      began: Date.parse(job.started ?? job.asked),
      phase: job.state === "queued" ? "waiting" : job.phase,
      ...job,
      cancel: () => cancelJob(vm.name, job.id),
    })));
  const withJob = new Set(jobs.map((job) => `${job.vm} ${job.kind}`));
  const actions = state.actions
    .filter((action) => action.state === "running" && !withJob.has(`${action.vm} ${action.do}`))
    .map((action) => ({
      key: `action ${action.id}`,
      vm: action.vm,
      what: DOING[action.do] ?? action.do,
      subject: nameOf(action),
      began: Date.parse(action.began),
      ...action,
      ...action.progress,
      cancel: () => cancelAction(action.id),
    }));
  return [...jobs, ...actions];
}

/// A page names checkpoints by id.
function nameOf(action) {
  const known = state.treeOf === action.vm ? state.tree?.checkpoints : null;
  return known?.find((one) => one.id === action.checkpoint)?.name;
}

const rows = new Map();

function row(item) {
  const title = h("span", { class: "what" });
  const progress = h("progress", { max: 1, "aria-label": "Progress" });
  const detail = h("span", { class: "detail" });
  const cancel = button("Cancel", () => rows.get(item.key)?.cancel().catch((problem) => say(problem.message, true)));
  const element = h("div", { class: "job" }, title, progress, detail, cancel);
  return { element, title, progress, detail, cancelButton: cancel };
}

function render() {
  const panel = document.getElementById("activity");
  const now = running().filter((item) => Date.now() - item.began > QUIET || rows.has(item.key));
  for (const [key, { element }] of rows) {
    if (now.some((item) => item.key === key)) continue;
    element.remove();
    rows.delete(key);
  }
  for (const item of now) {
    if (!rows.has(item.key)) {
      rows.set(item.key, row(item));
      panel.append(rows.get(item.key).element);
    }
    const shown = rows.get(item.key);
    shown.cancel = item.cancel;
    setText(shown.title, `${item.vm}: ${item.what}${item.subject ? ` “${item.subject}”` : ""}`);
    if (item.total > 0) shown.progress.value = Math.min(1, item.done / item.total);
    else shown.progress.removeAttribute("value");
    const amount = item.total > 0 ? `${size(item.done)} of ${size(item.total)}` : "";
    const rate = item.rate > 0 ? `${size(item.rate)}/s` : "";
    const phase = item.cancelling ? "being cancelled" : PHASES[item.phase] ?? item.phase ?? "";
    setText(shown.detail, [phase, amount, rate].filter(Boolean).join(", "));
    shown.cancelButton.disabled = Boolean(item.cancelling);
  }
  panel.hidden = now.length === 0;
}

export function startActivity() {
  subscribe((what) => { if (what === "vm" || what === "gone" || what === "actions") render(); });
  setInterval(render, 300);
}
