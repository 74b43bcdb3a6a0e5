// The console: xterm.js, connected to the guest by a WebSocket.

import { h, button, setText } from "./dom.js";

let marked = false;

/// xterm.js makes style elements, which the page's policy wants marked as its own.
function markStyles() {
  if (marked) return;
  marked = true;
  const nonce = document.querySelector("meta[name=style-nonce]").content;
  const make = document.createElement.bind(document);
  document.createElement = (tag, options) => {
    const element = make(tag, options);
    if (String(tag).toLowerCase() === "style") element.nonce = nonce;
    return element;
  };
}

const THEMES = {
  dark: { background: "#10161a", foreground: "#d7e0e4", cursor: "#8fd3bf", selectionBackground: "#35505a" },
  light: { background: "#fbfcfc", foreground: "#1c2528", cursor: "#1f6f5c", cursorAccent: "#fff", selectionBackground: "#bcd8d0",
    black: "#1c2528", brightBlack: "#5b686d", white: "#5b686d", brightWhite: "#1c2528", yellow: "#7a5b00", brightYellow: "#7a5b00",
    green: "#1c6b3a", brightGreen: "#1c6b3a", cyan: "#0b6a77", brightCyan: "#0b6a77", red: "#a32a22", brightRed: "#a32a22",
    blue: "#22539a", brightBlue: "#22539a", magenta: "#7d3a86", brightMagenta: "#7d3a86" },
};

export function consoleView(body, current, name) {
  const status = h("span", { class: "line", role: "status" });
  const again = button("Connect", () => connect(), { hidden: true });
  const copy = button("Copy selection", () => navigator.clipboard?.writeText(terminal?.getSelection() ?? ""));
  const frame = h("div", { class: "screenbox" });
  body.replaceChildren(h("section", { class: "consolepane", "aria-label": "Console" },
    h("div", { class: "bar" }, status, h("div", { class: "buttons" }, again, copy)), frame,
    h("p", { class: "keys" }, "All keys go to the guest. Ctrl+Shift+C copies, Ctrl+Shift+V pastes, Shift+Tab leaves the console.")));
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const theme = () => (dark.matches ? THEMES.dark : THEMES.light);
  let terminal = null;
  let fit = null;
  let socket = null;
  let left = false;
  let wanted = true;

  async function open() {
    markStyles();
    const [{ Terminal }, { FitAddon }] = await Promise.all([
      import("/assets/xterm/xterm.mjs"),
      import("/assets/xterm/addon-fit.mjs"),
    ]);
    if (left) return;
    terminal = new Terminal({ convertEol: true, cursorBlink: false, fontSize: 14, scrollback: 5000, theme: theme(),
      fontFamily: "ui-monospace, 'DejaVu Sans Mono', Menlo, Consolas, monospace", screenReaderMode: true });
    fit = new FitAddon();
    terminal.loadAddon(fit);
    terminal.open(frame);
    fit.fit();
    terminal.onData((data) => send(data));
    terminal.attachCustomKeyEventHandler((event) => {
      const letter = event.ctrlKey && event.shiftKey ? event.code : "";
      if (letter === "KeyC" && event.type === "keydown") {
        event.preventDefault();
        navigator.clipboard?.writeText(terminal.getSelection());
        return false;
      }
      // The browser's own doing: it pastes, or moves on.
      return letter !== "KeyV" && letter !== "KeyC" && !(event.key === "Tab" && event.shiftKey);
    });
    connect();
  }

  function send(text) {
    if (socket?.readyState === WebSocket.OPEN) socket.send(new TextEncoder().encode(text));
  }

  function connect() {
    if (!terminal || left) return;
    wanted = true;
    socket?.close();
    const scheme = location.protocol === "https:" ? "wss" : "ws";
    const own = new WebSocket(`${scheme}://${location.host}/api/vms/${encodeURIComponent(name)}/console`);
    socket = own;
    own.binaryType = "arraybuffer";
    let first = true;
    setText(status, "connecting");
    own.onopen = () => {
      again.hidden = true;
      setText(status, "connected");
      terminal.focus();
    };
    own.onmessage = (message) => {
      // It begins with what was printed before.
      if (first) terminal.reset();
      first = false;
      terminal.write(new Uint8Array(message.data));
    };
    own.onclose = (event) => {
      if (own !== socket) return;
      socket = null;
      wanted = false;
      setText(status, event.reason || "the connection was lost");
      again.hidden = false;
    };
  }

  const resized = new ResizeObserver(() => fit?.fit());
  resized.observe(frame);
  const recolour = () => { if (terminal) terminal.options.theme = theme(); };
  dark.addEventListener("change", recolour);
  let before = current()?.state;
  open().catch((problem) => setText(status, `the console cannot be shown: ${problem.message}`));
  return {
    update() {
      const now = current()?.state;
      // A VM that was started, or went back, is attached to by itself.
      if (now !== before && (now === "running" || now === "paused") && !socket && !wanted) connect();
      before = now;
    },
    leave() {
      left = true;
      resized.disconnect();
      dark.removeEventListener("change", recolour);
      socket?.close();
      terminal?.dispose();
    },
  };
}
