// Deleting what the rules of a VM do not keep: first it is said of each why.

import { h, table } from "./dom.js";
import { ask, show } from "./dialogs.js";
import { perform, plan } from "./actions.js";
import { plural, size } from "./text.js";

export async function prune(vm) {
  const deed = { do: "prune", vm: vm.name };
  const planned = await plan(deed);
  if (!planned) return;
  const { checkpoints, bytes } = planned;
  const going = checkpoints.filter((one) => !one.stays);
  const verdicts = table("What goes, what stays, and why", ["", "Checkpoint", "Why"],
    checkpoints.map((one) => [h("span", { class: one.stays ? "stays" : "goes" }, one.stays ? "stays" : "goes"), one.checkpoint.name, one.why]));
  if (!going.length) {
    return show(`Prune ${vm.name}`, ["The rules keep all checkpoints: there is nothing to delete.", checkpoints.length ? verdicts : null], true);
  }
  const given = await ask({
    title: `Prune ${vm.name}`,
    text: [verdicts, h("p", { class: "stake" },
      `${plural(going.length, "checkpoint")} will be deleted for good, not into the trash; that frees at least ${size(bytes)}.`)],
    confirm: `Delete ${going.length}`,
    danger: true,
    wide: true,
  });
  if (given) await perform(deed, (done) => `${plural(done.checkpoints.filter((one) => !one.stays).length, "checkpoint")} deleted.`);
}
