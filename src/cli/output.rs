//! What the user reads.

use std::collections::BTreeMap;

use chrono::Utc;

use super::graph;
use super::logging;
use super::out::{self, outln};
use super::units::{duration, size};
use crate::checkpoint::Manifest;
use crate::checkpoint::store::Verified;
use crate::checkpoint::tree::{Node, RowItem, Tree, short};
use crate::config::{DiskConfig, NetConfig, VmConfig};
use crate::control::jobs::{JobInfo, JobList, JobState};
use crate::control::{
    CheckpointInfo, DeletedInfo, NetworkInfo, SandboxInfo, SharedInfo, SizeInfo, State, Traffic, TreeInfo,
    VmInfo,
};
use crate::folder::{CheckpointType, Ending, LastRun, Retention, Schedule, VerifyPlan, VmName};
use crate::moment::{shown, span};

/// One line on standard error.
pub fn complain(text: &str) {
    logging::fail(text);
}

fn disk(disk: &DiskConfig) -> String {
    let options =
        [(disk.readonly, ", readonly"), (disk.passthrough, ", passthrough"), (disk.overlay, ", overlay")];
    let options: String = options.iter().filter(|(on, _)| *on).map(|(_, text)| *text).collect();
    format!("{}: {} ({}{options})", disk.id, disk.path.display(), disk.format)
}

fn boots(config: &VmConfig) -> String {
    match (&config.kernel, &config.boot_disk) {
        (Some(kernel), _) => kernel.display().to_string(),
        (None, Some(disk)) => format!("the one on disk `{disk}`, read at each boot"),
        (None, None) => "the bundled guest".into(),
    }
}

/// A row of what `show` prints.
fn row(name: &str, value: impl std::fmt::Display) {
    outln!("{name:<11}  {value}");
}

/// How a run ended, and when.
fn ending(last: &LastRun) -> String {
    let at = last.ended.map_or(String::new(), |time| format!(" at {}", shown(&time)));
    match &last.how {
        Ending::Off => format!("shut down{at}"),
        Ending::Ended { by } => format!("stopped{at} by {by}"),
        Ending::Crashed { why } => format!("crashed{at}: {why}"),
        Ending::Killed => "interrupted: its process was killed, or the host went down".into(),
    }
}

pub fn show(info: &VmInfo) {
    let line = |name: &str, value: String| row(name, value);
    line("name", info.name.to_string());
    let pid = info.pid.map_or(String::new(), |pid| format!(" (process {pid})"));
    line("state", format!("{}{pid}", info.state));
    if let Some(last) = &info.last_run {
        line("last run", ending(last));
    }
    if let Some(reason) = &info.reason {
        line("reason", reason.clone());
    }
    for warning in &info.warnings {
        line("warning", warning.clone());
    }
    line("created", shown(&info.created));
    if let Some(started) = &info.started {
        line("started", shown(started));
    }
    line("cpus", info.config.cpus.to_string());
    let shared = if info.shares_memory == Some(true) { ", shared except what it has written" } else { "" };
    line("memory", format!("{}{shared}", size(info.config.memory)));
    line("kernel", boots(&info.config));
    if let Some(initrd) = &info.config.initrd {
        line("initrd", initrd.display().to_string());
    }
    if !info.config.cmdline.is_empty() {
        line("cmdline", info.config.cmdline.clone());
    }
    for config in &info.config.disks {
        line("disk", disk(config));
    }
    for (index, net) in info.config.nets.iter().enumerate() {
        line("network", network(net, info.networks.get(index)));
    }
    if info.config.vsock {
        line("vsock", info.folder.join("vsock.sock").display().to_string());
    }
    for forward in &info.forwards {
        line("forward", forward.to_string());
    }
    if let Some(connected) = info.agent_connected {
        line("agent", if connected { "connected" } else { "not connected" }.into());
    }
    if let Some(sandbox) = &info.sandbox {
        line("sandbox", confined(sandbox));
    }
    line("checkpoints", checkpoints(info));
    line("trash", trash(info));
    if !info.retention.is_none() {
        line("keep", rule(&info.retention));
    }
    if info.schedule.every_seconds > 0 {
        line("schedule", schedule(&info.schedule));
    }
    if info.verify.every_seconds > 0 {
        line("verify", verify(&info.verify));
    }
    line("folder", info.folder.display().to_string());
}

/// What checkpoints are made of the VM, and where they are kept.
fn checkpoints(info: &VmInfo) -> String {
    let without_agent = match (info.checkpoint_type, info.agent_connected) {
        (CheckpointType::Production, Some(false)) => " (standard while no agent is connected)",
        _ => "",
    };
    let automatic = if info.auto_checkpoint { ", automatic at every start" } else { "" };
    let dir = info
        .checkpoint_dir
        .as_ref()
        .map_or(String::new(), |dir| format!(", in {}", dir.join(info.name.to_string()).display()));
    format!("{}{without_agent}{automatic}{dir}", info.checkpoint_type)
}

fn confined(sandbox: &SandboxInfo) -> String {
    let seccomp = if sandbox.seccomp { "seccomp" } else { "no seccomp" };
    match sandbox.landlock {
        Some(version) => format!("{seccomp}, Landlock ABI {version}"),
        None => format!("{seccomp}, no Landlock"),
    }
}

fn trash(info: &VmInfo) -> String {
    match info.trash_seconds {
        0 => "not kept".into(),
        seconds => format!("kept for {}: `piton undo {}` restores them", span(seconds), info.name),
    }
}

fn network(net: &NetConfig, now: Option<&NetworkInfo>) -> String {
    let mut text = format!("{}, MAC {}, MTU {}", net.backend, net.mac, net.mtu);
    if net.isolated {
        text += ", isolated";
    }
    let Some(now) = now else { return text };
    if !now.up {
        text += ", link down";
    }
    for address in &now.addresses {
        text += &format!(", address {address}");
    }
    let traffic = |traffic: Traffic| format!("{} in {} frames", size(traffic.bytes), traffic.frames);
    text + &format!(", received {}, sent {}", traffic(now.received), traffic(now.sent))
}

/// What `piton set` leaves.
pub fn settings(info: &VmInfo) {
    let kept = match info.trash_seconds {
        0 => "not kept".into(),
        seconds => format!("kept for {}", span(seconds)),
    };
    outln!("checkpoints of the VM `{}`: {}; deleted ones are {kept}", info.name, checkpoints(info));
    if !info.retention.is_none() {
        outln!("`piton checkpoint prune {}` keeps: {}", info.name, rule(&info.retention));
    }
    if info.schedule.every_seconds > 0 {
        outln!("while it runs, a checkpoint is created {}", schedule(&info.schedule));
    }
    if info.verify.every_seconds > 0 {
        outln!("`piton checkpoint verify-due` tries its newest checkpoint {}", verify(&info.verify));
    }
    for forward in &info.forwards {
        outln!("{forward} is forwarded to the VM `{}`", info.name);
    }
}

/// What a VM boots with from now on.
pub fn hardware(info: &VmInfo) {
    let VmConfig { cpus, memory, cmdline, .. } = &info.config;
    let cmdline = if cmdline.is_empty() { String::new() } else { format!(", command line `{cmdline}`") };
    let cpus = if *cpus == 1 { "1 CPU".into() } else { format!("{cpus} CPUs") };
    outln!(
        "the VM `{}` boots with {} of memory, {cpus}{cmdline} from now on; its checkpoints keep theirs",
        info.name,
        size(*memory)
    );
}

/// What going back to a checkpoint has brought back beside its disks and memory.
pub fn hardware_is_back(
    (before, sizes_before): (&VmConfig, &BTreeMap<String, u64>),
    (after, sizes): (&VmConfig, &BTreeMap<String, u64>),
) {
    let mut changes = Vec::new();
    if before.memory != after.memory {
        changes.push(format!("memory {} (was {})", size(after.memory), size(before.memory)));
    }
    if before.cpus != after.cpus {
        changes.push(format!("CPUs {} (was {})", after.cpus, before.cpus));
    }
    if before.cmdline != after.cmdline {
        changes.push(format!("command line `{}` (was `{}`)", after.cmdline, before.cmdline));
    }
    let ids = |config: &VmConfig| {
        let ids: Vec<&str> = config.disks.iter().map(|disk| disk.id.as_str()).collect();
        if ids.is_empty() { "none".to_owned() } else { ids.join(", ") }
    };
    if ids(before) != ids(after) {
        changes.push(format!("disks {} (was {})", ids(after), ids(before)));
    }
    for (id, now) in sizes {
        if let Some(then) = sizes_before.get(id).filter(|then| *then != now) {
            changes.push(format!("disk {id} {} (was {})", size(*now), size(*then)));
        }
    }
    if !changes.is_empty() {
        outln!("its configuration is the checkpoint's again: {}", changes.join(", "));
    }
}

fn rule(rule: &Retention) -> String {
    let mut parts = Vec::new();
    if rule.has_rule() {
        parts.push(rule.keep.to_string());
    }
    if rule.within_seconds > 0 {
        parts.push(format!("all within {}", span(rule.within_seconds)));
    }
    if rule.max_bytes > 0 {
        parts.push(format!("{} at most", size(rule.max_bytes)));
    }
    let whose = if rule.all { "all checkpoints" } else { "scheduled checkpoints only" };
    format!("{} ({whose})", parts.join(", "))
}

fn schedule(schedule: &Schedule) -> String {
    let kind = schedule.kind.map_or(String::new(), |kind| format!(", {kind}"));
    let changed = if schedule.only_if_changed { ", if the guest has changed anything" } else { "" };
    format!("every {}{kind}{changed}", span(schedule.every_seconds))
}

fn verify(plan: &VerifyPlan) -> String {
    let what = match (&plan.wait_for, &plan.exec) {
        (Some(regex), _) => format!(", until its console matches `{regex}`"),
        (_, Some(command)) => format!(", until `{command}` succeeds in it"),
        _ if plan.agent => ", until its guest agent answers".into(),
        _ => String::new(),
    };
    format!("every {}{what}", span(plan.every_seconds))
}

/// What no checksums vouch for.
pub fn unchecked(what: &[String]) {
    for one in what {
        outln!("not checked (no checksums): {one}");
    }
}

/// A VM in a list: what is known of it, or why nothing is.
pub enum Listed {
    Known(Box<VmInfo>),
    Broken {
        name: String,
        error: String,
    },
    /// It belongs to another user.
    Foreign {
        name: String,
        why: String,
    },
}

pub fn list(vms: &[Listed]) {
    let mut rows =
        vec![["NAME", "STATE", "UPTIME", "CPUS", "MEMORY", "CHECKPOINTS", "ADDRESS"].map(String::from)];
    let mut remarks = vec![String::new()];
    for vm in vms {
        let (row, remark) = match vm {
            Listed::Known(info) => (known(info), info.reason.clone().or(info.last_run.as_ref().map(ending))),
            Listed::Broken { error, .. } => (unknown(vm, "broken"), Some(error.clone())),
            Listed::Foreign { why, .. } => (unknown(vm, "foreign"), Some(why.clone())),
        };
        rows.push(row);
        remarks.push(remark.unwrap_or_default());
    }
    for (line, remark) in lined_up(&rows).zip(remarks) {
        outln!("{}", format!("{line}{remark}").trim_end());
    }
}

/// A line for each row, its columns as wide as their longest text, with room behind the last one.
pub fn lined_up<const N: usize>(rows: &[[String; N]]) -> impl Iterator<Item = String> {
    let widths: [usize; N] =
        std::array::from_fn(|at| rows.iter().map(|row| row[at].chars().count()).max().unwrap_or(0));
    rows.iter()
        .map(move |row| row.iter().zip(widths).map(|(text, width)| format!("{text:<width$}  ")).collect())
}

fn known(info: &VmInfo) -> [String; 7] {
    let up = info
        .started
        .map_or("-".into(), |started| duration((Utc::now() - started).to_std().unwrap_or_default()));
    let address = info.networks.iter().flat_map(|net| &net.addresses).next();
    [
        info.name.to_string(),
        info.state.to_string(),
        up,
        info.config.cpus.to_string(),
        size(info.config.memory),
        info.checkpoints.to_string(),
        address.map_or("-".into(), ToString::to_string),
    ]
}

fn unknown(vm: &Listed, state: &str) -> [String; 7] {
    let [a, b, c, d, e] = ["-"; 5].map(String::from);
    [name_of(vm), state.into(), a, b, c, d, e]
}

pub fn name_of(vm: &Listed) -> String {
    match vm {
        Listed::Known(info) => info.name.to_string(),
        Listed::Broken { name, .. } | Listed::Foreign { name, .. } => name.clone(),
    }
}

pub fn list_json(vms: &[Listed]) -> serde_json::Value {
    vms.iter()
        .map(|vm| match vm {
            Listed::Known(info) => serde_json::json!(info),
            Listed::Broken { name, error } => serde_json::json!({ "name": name, "error": error }),
            Listed::Foreign { name, why } => serde_json::json!({ "name": name, "error": why }),
        })
        .collect()
}

/// What a finished command says of its VM.
pub fn state(info: &VmInfo) {
    let state = match info.state {
        State::Running => "is running",
        State::Paused => "is paused",
        State::Stopped => "is stopped",
        State::Unresponsive => "is not responding",
    };
    outln!("the VM `{}` {state}", info.name);
}

/// What a checkpoint cost; with `explain` also why it is not of the type that the VM is set to.
pub fn created(vm: &VmName, info: &CheckpointInfo, explain: bool) {
    let pause = info.pause_us.map_or(String::new(), |us| format!("paused {:.1} ms, ", us as f64 / 1000.0));
    let disk = size(info.disk_bytes);
    let frozen = info.frozen_us.map_or(String::new(), |us| format!("frozen {:.1} ms, ", us as f64 / 1000.0));
    outln!(
        "checkpoint \"{}\" created ({}): {frozen}{pause}{}disk {disk}",
        info.name,
        info.kind,
        memory(info)
    );
    if let Some(why) = info.fallback.as_ref().filter(|_| explain) {
        outln!(
            "not a production checkpoint: {why} (`piton set {vm} --checkpoint-type standard` makes \
            standard the default)"
        );
    }
    for left in &info.left_out {
        outln!("disk `{}` is not included: it is {}", left.disk, left.why);
    }
    for warning in &info.warnings {
        complain(&format!("warning: {warning}"));
    }
}

pub fn deleted(info: &DeletedInfo) {
    let what = if info.dry_run { "would be deleted" } else { "has been deleted" };
    for checkpoint in &info.deleted {
        outln!("checkpoint `{}` {what}", checkpoint.name);
    }
    if let Some(id) = info.damaged {
        outln!("the damaged checkpoint {id} {what}");
    }
    if let Some(bytes) = info.bytes {
        let merges = match info.merges {
            None | Some(0) => String::new(),
            Some(1) => ", and 1 pair of layers merged".into(),
            Some(count) => format!(", and {count} pairs of layers merged"),
        };
        outln!("{} would be freed{merges}, once they are permanently deleted", size(bytes));
    }
}

/// What becomes of the disk space; `merged` is the job that was waited for.
pub fn merges(vm: &VmName, runs: bool, merged: Option<&JobInfo>) {
    match merged {
        Some(JobInfo { state: JobState::Done, .. }) => outln!("their layers have been merged"),
        Some(JobInfo { state: JobState::Cancelled, .. }) => {
            outln!("their layers will be merged when the VM stops");
        }
        Some(JobInfo { error: Some(why), .. }) => complain(&format!("warning: {why}")),
        _ if runs => {
            outln!("their layers are being merged; `piton checkpoint jobs {vm}` shows the progress");
        }
        _ => outln!("their layers have not been merged yet: `piton doctor --repair {vm}` merges them"),
    }
}

/// A job that is not waited for.
pub fn job(job: &JobInfo, json: bool) {
    if json {
        out::json_line(&serde_json::json!(job));
    } else {
        outln!("{}", job.id);
    }
}

pub fn jobs(vm: &VmName, list: &JobList) {
    if list.jobs.is_empty() {
        outln!("the VM `{vm}` has no jobs");
        return;
    }
    outln!("{:<8}  {:<6}  {:<9}  {:<20}  SUBJECT", "JOB", "KIND", "STATE", "ASKED");
    for job in &list.jobs {
        let about = match (&job.error, job.state) {
            (Some(error), _) => format!("  {error}"),
            (None, JobState::Running) => {
                format!("  {}", super::work::line(&job.phase, job.done, job.total, job.rate, job.cancelling))
            }
            _ => String::new(),
        };
        let id = short(job.id);
        outln!("{id}  {:<6}  {:<9}  {}  {}{about}", job.kind, job.state, shown(&job.asked), job.subject);
    }
}

fn memory(info: &CheckpointInfo) -> String {
    match (info.memory_stored, info.memory) {
        (Some(stored), Some(all)) => {
            format!("memory {} of {}, ", stored_memory(stored, info.memory_compressed), size(all))
        }
        _ => String::new(),
    }
}

fn stored_memory(stored: u64, compressed: Option<u64>) -> String {
    match compressed {
        Some(compressed) => format!("{} (compressed to {})", size(stored), size(compressed)),
        None => size(stored),
    }
}

/// One line about a checkpoint, behind its name.
fn about(info: &CheckpointInfo) -> String {
    let automatic = match (info.automatic, info.scheduled) {
        (true, _) => ", automatic",
        (false, true) => ", scheduled",
        (false, false) => "",
    };
    let pinned = if info.pinned { ", pinned" } else { "" };
    let verified = match &info.verified {
        None => "",
        Some(Verified { passed: true, .. }) => ", verified",
        Some(_) => ", failed to come back",
    };
    let frees = info.size.as_ref().map_or(String::new(), |bytes| format!(", frees {}", size(bytes.freed)));
    let note = info.note.lines().next().map_or(String::new(), |note| format!("  \"{note}\""));
    format!(
        "{}{automatic}{pinned}{verified}  {}  {}disk {}{frees}{note}",
        info.kind,
        shown(&info.created),
        memory(info),
        size(info.disk_bytes)
    )
}

pub fn flat(tree: &TreeInfo) {
    let mut by_age: Vec<_> = tree.checkpoints.iter().collect();
    by_age.sort_by_key(|info| info.created);
    let width = by_age.iter().map(|info| info.name.as_str().chars().count()).max().unwrap_or(0);
    for info in by_age {
        outln!("{}  {:<width$}  {}", short(info.id), info.name.as_str(), about(info));
    }
}

/// The tree with its lines, Now in its place.
pub fn tree(vm: &VmName, info: &TreeInfo, state: State) {
    let nodes = info.checkpoints.iter().map(|info| Node {
        id: info.id,
        name: info.name.to_string(),
        parent: info.parent,
        created: info.created,
    });
    outln!("{vm}");
    for (lines, what) in graph::of(&Tree::new(nodes, info.now)) {
        match what {
            RowItem::Now => outln!("{lines}  Now ({state})"),
            RowItem::Checkpoint(id) => {
                let Some(info) = info.checkpoints.iter().find(|info| info.id == id) else { continue };
                outln!("{lines}  {}  {}", info.name, about(info));
            }
        }
    }
}

/// What a checkpoint takes on disk.
fn takes(bytes: &SizeInfo) {
    row("held", format!("{} in all files that it is read from, without base images", size(bytes.held)));
    row("freed", format!("{} at least, if it is permanently deleted", size(bytes.freed)));
    let abroad = [("the current state", bytes.shared_with_now), ("other VMs", bytes.shared_with_vms)];
    for (with, shared) in abroad.into_iter().filter(|(_, shared)| *shared > 0) {
        row("shared", format!("{} with {with}", size(shared)));
    }
    for SharedInfo { name, bytes, in_trash, .. } in &bytes.shared {
        let place = if *in_trash { " in the trash" } else { "" };
        row("shared", format!("{} with `{name}`{place}", size(*bytes)));
    }
}

pub fn show_checkpoint(manifest: &Manifest, info: &CheckpointInfo) {
    let line = |name: &str, value: String| row(name, value);
    line("name", manifest.name.to_string());
    line("id", manifest.id.to_string());
    line("vm", manifest.vm.clone());
    line("type", manifest.kind.to_string());
    if let Some(why) = &manifest.fallback {
        line("because", why.clone());
    }
    line("created", shown(&manifest.created));
    if manifest.automatic {
        line("created by", "a start of the VM (automatic); deleted after a clean shutdown".into());
    }
    if manifest.keeping.pinned {
        line("pinned", "it cannot be deleted".into());
    }
    if !manifest.note.is_empty() {
        line("note", manifest.note.clone());
    }
    line("parent", manifest.parent.map_or("none".into(), |id| id.to_string()));
    if let Some(us) = manifest.frozen_us {
        line("frozen", format!("{:.1} ms", us as f64 / 1000.0));
    }
    if let Some(us) = manifest.pause_us {
        line("pause", format!("{:.1} ms", us as f64 / 1000.0));
    }
    if let Some(memory) = &manifest.memory {
        let stored = stored_memory(memory.stored_bytes, memory.compressed_bytes);
        line("memory", format!("{stored} of {}", size(memory.guest_bytes)));
        if let Some(flat) = &memory.flat {
            line("for clones", format!("{} more, a copy that they share", size(flat.stored_bytes)));
        }
    }
    line("disk", size(manifest.disk_bytes));
    if let Some(bytes) = &info.size {
        takes(bytes);
    }
    if let Some(verified) = &info.verified {
        line("verified", format!("{}, {verified}", shown(&verified.when)));
    }
    line("cpus", manifest.config.cpus.to_string());
    line("kernel", boots(&manifest.config));
    for left in &manifest.left_out {
        line("without", format!("disk `{}` ({})", left.disk, left.why));
    }
    for warning in &info.warnings {
        line("warning", warning.clone());
    }
}
