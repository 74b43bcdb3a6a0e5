// What is asked for a new VM.

import { ask } from "./dialogs.js";
import { perform } from "./actions.js";

const is = (guest) => (values) => values.guest === guest;
const PATHS = [["kernel", "Kernel"], ["initrd", "Initial RAM disk"], ["image", "Disk image with a system"], ["key", "Public SSH key"], ["disk", "Disk image"]];

export async function newVm() {
  const given = await ask({
    title: "New VM",
    fields: [
      { name: "vm", label: "Name", kind: "text", most: 64, required: true, placeholder: "demo",
        hint: "Letters, digits, “-”, “_” and “.”" },
      { name: "guest", label: "What it boots", kind: "choice", value: "bundled", choices: [
        ["bundled", "The bundled guest, to try things out"],
        ["image", "A disk image with a system, such as a cloud image"],
        ["kernel", "A kernel, with disks"],
      ] },
      { name: "image", label: "Disk image with a system", kind: "text", placeholder: "/path/to/debian.qcow2", when: is("image"),
        hint: "Raw or qcow2. It is never written to: changes go to the VM’s folder." },
      { name: "key", label: "Public SSH key to log in with (optional)", kind: "text", placeholder: "/home/you/.ssh/id_ed25519.pub",
        when: is("image"), hint: "For images with cloud-init" },
      { name: "kernel", label: "Kernel", kind: "text", placeholder: "/path/to/vmlinuz", hint: "ELF (vmlinux) or bzImage (vmlinuz)",
        when: is("kernel") },
      { name: "initrd", label: "Initial RAM disk (optional)", kind: "text", placeholder: "/path/to/initrd", when: is("kernel") },
      { name: "cmdline", label: "Kernel command line (optional)", kind: "text", placeholder: "console=ttyS0 root=/dev/vda",
        when: is("kernel") },
      { name: "disk", label: "Disk image (optional)", kind: "text", placeholder: "/path/to/disk.raw", hint: "Raw or qcow2",
        when: (values) => values.guest !== "image" },
      { name: "overlay", label: "Never write to that image: keep changes in the VM’s folder", kind: "check", value: true,
        when: (values) => values.guest !== "image" && Boolean(values.disk) },
      { name: "cpus", label: "CPUs", kind: "number", value: "1", min: 1 },
      { name: "memory", label: "Memory in MiB", kind: "number", value: "512", min: 16 },
      { name: "network", label: "Connect it to this host’s network (needs passt)", kind: "check", value: false },
      { name: "forward", label: "Forward a port of this host (optional)", kind: "text", placeholder: "2222:22",
        hint: "PORT:GUESTPORT", when: (values) => values.network },
    ],
    confirm: "Create and boot",
    check: wrong,
  });
  if (!given) return;
  const deed = { do: "run", vm: given.vm, cpus: Number(given.cpus), memory: Number(given.memory) * 1024 * 1024,
    network: given.network };
  if (given.guest === "image") {
    deed.image = given.image;
    if (given.key) deed.ssh_keys = [given.key];
  }
  if (given.guest === "kernel") {
    deed.kernel = given.kernel;
    if (given.initrd) deed.initrd = given.initrd;
    if (given.cmdline) deed.cmdline = given.cmdline;
  }
  if (given.guest !== "image" && given.disk) deed.disks = [{ path: given.disk, overlay: given.overlay }];
  if (given.network && given.forward) deed.forwards = [given.forward];
  if (await perform(deed, `The VM “${given.vm}” is running.`)) location.hash = `#/vm/${given.vm}`;
}

function wrong(values) {
  if (values.guest === "kernel" && !values.kernel) return "Kernel is missing.";
  if (values.guest === "image" && !values.image) return "Disk image with a system is missing.";
  const used = PATHS.filter(([name]) => values[name] && (name === "disk" ? values.guest !== "image"
    : values.guest === (name === "image" || name === "key" ? "image" : "kernel")));
  const relative = used.find(([name]) => !values[name].startsWith("/"));
  return relative ? `${relative[1]}: use an absolute path, beginning with “/”.` : "";
}
