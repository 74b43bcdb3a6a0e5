// Which view is shown, and when it is told of changes.

import { h, setText } from "./dom.js";
import { state, subscribe, watchTree } from "./store.js";
import { startActivity } from "./actions.js";
import { listView } from "./list.js";
import { vmView } from "./vm.js";

const main = document.getElementById("main");
let view = null;

function route() {
  const [, kind, name, tab = ""] = location.hash.split("/");
  view?.leave?.();
  if (kind === "vm" && name) {
    view = vmView(main, decodeURIComponent(name), tab);
  } else {
    watchTree(null);
    view = listView(main);
  }
  document.title = view.title;
  const crumbs = document.getElementById("crumbs");
  crumbs.replaceChildren(...view.crumbs.flatMap(([label, href]) => [h("span", { "aria-hidden": "true" }, "/"), h("a", { href }, label)]));
}

subscribe((what, name) => {
  if (what === "online") {
    const link = document.getElementById("link");
    setText(link, state.online ? "" : "The manager is not responding: is it still running?");
    document.body.classList.toggle("offline", !state.online);
    return;
  }
  view?.update(what, name);
});

window.addEventListener("hashchange", () => {
  route();
  main.focus({ preventScroll: true });
});
// Times that are told as "3 min ago" go on.
setInterval(() => view?.tick?.(), 1000);
startActivity();
route();
