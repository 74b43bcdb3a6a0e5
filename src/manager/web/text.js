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
  remove: "Removing", set: "Changing settings", create: "Creating a checkpoint", apply: "Going back",
  revert: "Reverting", delete: "Deleting", rename: "Renaming", note: "Changing a note", verify: "Checking",
  clone: "Cloning", export: "Exporting", merge: "Merging disk layers", seal: "Taking checksums",
};
