// Amounts and times as people read them.

export function size(bytes) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (bytes >= 1024 && unit < units.length - 1) {
    bytes /= 1024;
    unit += 1;
  }
  const digits = bytes % 1 < 0.05 || bytes >= 100 ? 0 : 1;
  return `${bytes.toFixed(digits)} ${units[unit]}`;
}

export function plural(count, one, many = `${one}s`) {
  return `${count} ${count === 1 ? one : many}`;
}

/// Seconds as "3 min" or "2 h 5 min".
export function duration(seconds) {
  if (seconds < 60) return `${Math.max(0, Math.floor(seconds))} s`;
  const minutes = Math.floor(seconds / 60);
  if (minutes < 60) return `${minutes} min`;
  const hours = Math.floor(minutes / 60);
  if (hours < 24) return minutes % 60 ? `${hours} h ${minutes % 60} min` : `${hours} h`;
  const days = Math.floor(hours / 24);
  return hours % 24 && days < 10 ? `${plural(days, "day")} ${hours % 24} h` : plural(days, "day");
}

export function since(time, now = Date.now()) {
  return Math.max(0, (now - Date.parse(time)) / 1000);
}

export function ago(time) {
  const seconds = since(time);
  return seconds < 5 ? "just now" : `${duration(seconds)} ago`;
}

/// As commands read times: 90m, 24h, 3d, 2w; none where it is no time.
export function parseSpan(text) {
  if (text === "" || text === "0") return 0;
  if (!/^(\d+[smhdw])+$/.test(text)) return null;
  const each = { s: 1, m: 60, h: 3600, d: 86400, w: 604800 };
  return [...text.matchAll(/(\d+)([smhdw])/g)].reduce((sum, [, count, unit]) => sum + Number(count) * each[unit], 0);
}

export function span(seconds) {
  const units = [["d", 86400], ["h", 3600], ["m", 60], ["s", 1]];
  const unit = units.find(([, each]) => seconds > 0 && seconds % each === 0);
  return unit ? `${seconds / unit[1]}${unit[0]}` : "0";
}

/// 500M, 20G; none where it is no size.
export function parseSize(text) {
  if (text === "" || text === "0") return 0;
  const found = /^(\d+(?:\.\d+)?) ?([MGT])(iB)?$/i.exec(text);
  if (!found) return null;
  return Math.ceil(Number(found[1]) * 1024 ** { M: 2, G: 3, T: 4 }[found[2].toUpperCase()]);
}

/// As it is typed.
export function shortSize(bytes) {
  if (!bytes) return "0";
  const [letter, each] = bytes % 1024 ** 3 === 0 ? ["G", 1024 ** 3] : ["M", 1024 ** 2];
  return `${Math.ceil(bytes / each)}${letter}`;
}

/// Which checkpoints a rule keeps, as people say it.
export const RULES = ["last", "hourly", "daily", "weekly", "monthly", "yearly"];

export function keeps(retention) {
  if (!retention) return "all";
  const parts = RULES.filter((rule) => retention.keep[rule] > 0).map((rule) => `${rule} ${retention.keep[rule]}`);
  if (retention.within_seconds > 0) parts.push(`not older than ${duration(retention.within_seconds)}`);
  if (retention.max_bytes > 0) parts.push(`${size(retention.max_bytes)} at most`);
  return parts.length ? parts.join(", ") : "all";
}

/// In the viewer's own time zone, as "2026-11-27 06:20:17".
export function clock(time) {
  const at = new Date(time);
  const two = (number) => String(number).padStart(2, "0");
  const day = `${at.getFullYear()}-${two(at.getMonth() + 1)}-${two(at.getDate())}`;
  return `${day} ${two(at.getHours())}:${two(at.getMinutes())}:${two(at.getSeconds())}`;
}

export function pause(microseconds) {
  if (microseconds < 1000) return `${microseconds} µs`;
  if (microseconds < 1e6) return `${(microseconds / 1000).toFixed(1)} ms`;
  return `${(microseconds / 1e6).toFixed(1)} s`;
}

export function lastRun(last) {
  if (!last) return "";
  const when = last.ended ? ` ${ago(last.ended)}` : "";
  switch (last.how) {
    case "off": return `The guest shut down${when}.`;
    case "ended": return `It was ended${when} by ${last.by}.`;
    case "crashed": return `It crashed${when}: ${last.why}`;
    case "killed": return "Its process was killed.";
    default: return "";
  }
}

/// What an action is, as a word for a button's effect.
export const DOING = {
  run: "Creating the VM", start: "Starting", stop: "Stopping", pause: "Pausing", resume: "Resuming",
  kill: "Turning off", "rename-vm": "Renaming the VM", remove: "Removing", set: "Changing settings", create: "Creating a checkpoint", apply: "Going back",
  revert: "Reverting", delete: "Deleting", rename: "Renaming", note: "Changing a note", verify: "Checking", "verify-boot": "Trying",
  pin: "Pinning", unpin: "Unpinning", undo: "Undoing", restore: "Restoring", empty: "Emptying the trash", prune: "Pruning",
  diff: "Comparing", clone: "Cloning", export: "Exporting", merge: "Merging disk layers", seal: "Taking checksums",
};
