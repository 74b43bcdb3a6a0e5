//! What the user reads.

use std::io::{IsTerminal, Write};

use crate::config::{DiskConfig, VmConfig};
use crate::control::{State, VmInfo};

/// One line on standard error. A raw terminal needs the carriage return, any other ignores it.
pub fn complain(text: &str) {
    let end = if std::io::stderr().is_terminal() { "\r\n" } else { "\n" };
    // Without a standard error there is nobody to tell.
    let _ = write!(std::io::stderr(), "piton: {text}{end}");
}

struct Logger;

impl log::Log for Logger {
    fn enabled(&self, metadata: &log::Metadata) -> bool {
        metadata.target().starts_with("piton")
    }

    fn log(&self, record: &log::Record) {
        if self.enabled(record.metadata()) {
            complain(&format!("{}: {}", record.level().to_string().to_lowercase(), record.args()));
        }
    }

    fn flush(&self) {}
}

/// Warnings and errors go to standard error; `PITON_LOG` (error, warn, info, debug) asks for more or less.
pub fn start_logging() {
    let level = std::env::var("PITON_LOG").ok().and_then(|level| level.parse().ok());
    if log::set_logger(&Logger).is_ok() {
        log::set_max_level(level.unwrap_or(log::LevelFilter::Warn));
    }
}

pub fn size(bytes: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let unit = (bytes.max(1).ilog2() / 10).min(4) as usize;
    let value = bytes as f64 / (1u64 << (10 * unit)) as f64;
    if value.fract() < 0.05 {
        format!("{value:.0} {}", units[unit])
    } else {
        format!("{value:.1} {}", units[unit])
    }
}

fn disk(disk: &DiskConfig) -> String {
    let options =
        [(disk.readonly, ", readonly"), (disk.passthrough, ", passthrough"), (disk.overlay, ", overlay")];
    let options: String = options.iter().filter(|(on, _)| *on).map(|(_, text)| *text).collect();
    format!("{}: {} ({}{options})", disk.id, disk.path.display(), disk.format)
}

fn boots(config: &VmConfig) -> String {
    match &config.kernel {
        Some(kernel) => kernel.display().to_string(),
        None => "the bundled guest".into(),
    }
}

pub fn show(info: &VmInfo) {
    let line = |name: &str, value: String| println!("{name:<9} {value}");
    line("name", info.name.to_string());
    let pid = info.pid.map_or(String::new(), |pid| format!(" (process {pid})"));
    line("state", format!("{}{pid}", info.state));
    line("created", info.created.with_timezone(&chrono::Local).format("%Y-%m-%d %H:%M:%S").to_string());
    line("cpus", info.config.cpus.to_string());
    line("memory", size(info.config.memory));
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
    line("folder", info.folder.display().to_string());
}

/// A VM in a list: what is known of it, or why nothing is.
pub enum Listed {
    Known(Box<VmInfo>),
    Broken { name: String, error: String },
}

pub fn list(vms: &[Listed]) {
    let width = vms.iter().map(|vm| name_of(vm).len()).max().unwrap_or(0).max(4);
    println!("{:<width$}  {:<8} {:>4}  {:>8}  {:>5}  CREATED", "NAME", "STATE", "CPUS", "MEMORY", "DISKS");
    for vm in vms {
        match vm {
            Listed::Known(info) => println!(
                "{:<width$}  {:<8} {:>4}  {:>8}  {:>5}  {}",
                name_of(vm),
                info.state,
                info.config.cpus,
                size(info.config.memory),
                info.config.disks.len(),
                info.created.with_timezone(&chrono::Local).format("%Y-%m-%d %H:%M:%S"),
            ),
            Listed::Broken { error, .. } => println!("{:<width$}  {:<8} {error}", name_of(vm), "broken"),
        }
    }
}

fn name_of(vm: &Listed) -> String {
    match vm {
        Listed::Known(info) => info.name.to_string(),
        Listed::Broken { name, .. } => name.clone(),
    }
}

pub fn list_json(vms: &[Listed]) -> serde_json::Value {
    vms.iter()
        .map(|vm| match vm {
            Listed::Known(info) => serde_json::json!(info),
            Listed::Broken { name, error } => serde_json::json!({ "name": name, "error": error }),
        })
        .collect()
}

/// What a finished command says of its VM.
pub fn done(info: &VmInfo, json: bool) {
    if json {
        println!("{}", serde_json::json!(info));
    } else {
        let state = match info.state {
            State::Running => "runs",
            State::Paused => "is paused",
            State::Stopped => "is stopped",
        };
        println!("the VM `{}` {state}", info.name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_well() {
        assert_eq!(size(0), "0 B");
        assert_eq!(size(512 << 20), "512 MiB");
        assert_eq!(size(1536 << 20), "1.5 GiB");
        assert_eq!(size(1023), "1023 B");
    }
}
