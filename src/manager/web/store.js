// What is known of the VMs, kept up to date by server-sent events, and asking for changes.

export const state = { vms: new Map(), actions: [], tree: null, trash: null, removed: null, treeOf: null, ready: false, online: true };

const listeners = new Set();
const waiting = new Map();
let source = null;
let watched = null;

/// `listener(what, name)` is told of each change; returns how to stop it.
export function subscribe(listener) {
  listeners.add(listener);
  return () => listeners.delete(listener);
}

function tell(what, name) {
  for (const listener of [...listeners]) listener(what, name);
}

/// The tree of this VM is wanted, too; null: of none.
export function watchTree(vm) {
  if (vm === watched && source) return;
  watched = vm;
  state.tree = null;
  state.trash = null;
  state.treeOf = vm;
  connect();
}

function connect() {
  source?.close();
  source = null;
  // A browser has few connections to a server; pages that nobody sees leave them to others.
  if (document.hidden) return;
  source = new EventSource(watched ? `/api/events?vm=${encodeURIComponent(watched)}` : "/api/events");
  const fresh = new Set();
  const on = (event, handle) => source.addEventListener(event, (message) => handle(JSON.parse(message.data)));
  source.onopen = () => {
    fresh.clear();
    state.online = true;
    tell("online");
  };
  source.onerror = () => {
    state.online = false;
    tell("online");
    // One that the server refused is not tried again by the browser.
    if (source?.readyState === EventSource.CLOSED) setTimeout(connect, 2000);
  };
  on("vm", (vm) => {
    fresh.add(vm.name);
    state.vms.set(vm.name, vm);
    tell("vm", vm.name);
  });
  on("gone", (name) => {
    state.vms.delete(name);
    tell("gone", name);
  });
  on("tree", (tree) => {
    state.tree = tree;
    tell("tree");
  });
  on("trash", (trash) => {
    state.trash = trash;
    tell("trash");
  });
  on("removed", (removed) => {
    state.removed = removed;
    tell("removed");
  });
  on("actions", (actions) => {
    state.actions = actions;
    for (const action of actions) settle(action);
    tell("actions");
  });
  on("ready", () => {
    // Those that went while nobody listened.
    for (const name of state.vms.keys()) {
      if (fresh.has(name)) continue;
      state.vms.delete(name);
      tell("gone", name);
    }
    state.ready = true;
    tell("ready");
  });
}

document.addEventListener("visibilitychange", connect);

function settle(action) {
  const wait = waiting.get(action.id);
  if (!wait || action.state === "running") return;
  waiting.delete(action.id);
  wait(action);
}

async function request(method, path, body) {
  const answer = await fetch(path, {
    method,
    headers: body === undefined ? {} : { "Content-Type": "application/json" },
    body: body === undefined ? undefined : JSON.stringify(body),
  });
  const told = await answer.json().catch(() => ({ error: `the manager answered with ${answer.status}` }));
  if (!answer.ok) throw new Error(told.error ?? `the manager answered with ${answer.status}`);
  return told;
}

export const get = (path) => request("GET", path);

/// Does a deed and waits for its end: the action, which may have failed.
export async function act(deed) {
  const begun = await request("POST", "/api/actions", deed);
  const ended = await new Promise((resolve) => {
    waiting.set(begun.id, resolve);
    // It may have ended before this came.
    for (const known of state.actions) settle(known);
  });
  // Results are not told to everybody.
  return ended.state === "done" ? get(`/api/actions/${ended.id}`).catch(() => ended) : ended;
}

export const cancelAction = (id) => request("DELETE", `/api/actions/${id}`);
export const cancelJob = (vm, job) => request("DELETE", `/api/vms/${encodeURIComponent(vm)}/jobs/${job}`);
