//! What `export.json` says, as a type and as bytes; no files here.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Result, TransferError};
use crate::checkpoint::manifest::{CaptureInfo, LeftOut, crc_of};
use crate::checkpoint::{CheckpointName, Kind};
use crate::config::VmConfig;
use crate::folder::CheckpointType;
pub use crate::history::whole::arrival::{INITRD, KERNEL};
use crate::id::Id;

/// Version of export.json that this piton writes; it reads this and older ones.
const FORMAT: u32 = 1;
pub const INDEX: &str = "export.json";

/// How a disk's contents lie in a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum FileFormat {
    /// The bytes of the disk
    #[default]
    Raw,
    /// QEMU's format, without a backing file
    Qcow2,
    /// A piton delta layer over zeros, or over the previous export's disk
    Piton,
}

impl std::fmt::Display for FileFormat {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
            Self::Piton => "piton",
        })
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Export {
    /// Of the checkpoint.
    pub id: Id,
    pub name: CheckpointName,
    #[serde(default)]
    pub note: String,
    pub kind: Kind,
    /// When the checkpoint was made, and when it was exported.
    pub created: DateTime<Utc>,
    pub exported: DateTime<Utc>,
    pub vm: String,
    /// Paths of what is in the folder are relative to it.
    pub config: VmConfig,
    /// The VM's settings about checkpoints.
    pub checkpoint_type: CheckpointType,
    #[serde(default)]
    pub auto_checkpoint: bool,
    /// The export that this one says the changes to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Since>,
    pub disks: BTreeMap<String, DiskFile>,
    #[serde(default)]
    pub left_out: Vec<LeftOut>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<MemoryFile>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<StateFile>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pause_us: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capture: Option<CaptureInfo>,
    /// Every file of the folder but export.json itself.
    pub files: BTreeMap<String, FileSum>,
    /// Version of the piton that wrote it.
    pub piton: String,
    #[serde(default)]
    pub warnings: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Since {
    pub id: Id,
    pub name: CheckpointName,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskFile {
    pub file: String,
    pub format: FileFormat,
    /// Bytes of the disk.
    pub size: u64,
    /// Of the delta layer, which has it in its header.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layer: Option<Id>,
    /// Only the blocks that differ from the export before.
    #[serde(default)]
    pub changes: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryFile {
    pub file: String,
    pub guest_bytes: u64,
    pub stored_bytes: u64,
    /// Of the image's last page, which it is opened with.
    pub crc: u32,
    /// Only the pages that differ from the export before.
    #[serde(default)]
    pub changes: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateFile {
    pub file: String,
    pub bytes: u64,
    pub crc: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileSum {
    pub bytes: u64,
    /// CRC-32 of the whole file, its holes among it.
    pub crc: u32,
}

#[derive(Serialize)]
struct OnDisk<'a> {
    format: u32,
    #[serde(flatten)]
    export: &'a Export,
    #[serde(skip_serializing_if = "Option::is_none")]
    crc: Option<u32>,
}

impl Export {
    pub fn encode(&self, path: &Path) -> Result<Vec<u8>> {
        let failed = |e: serde_json::Error| damaged(path, format!("cannot be written: {e}"));
        let mut on_disk = OnDisk { format: FORMAT, export: self, crc: None };
        on_disk.crc = Some(crc_of(serde_json::to_value(&on_disk).map_err(failed)?));
        let mut bytes = serde_json::to_vec_pretty(&on_disk).map_err(failed)?;
        bytes.push(b'\n');
        Ok(bytes)
    }

    /// `path` is for the errors.
    pub fn decode(bytes: &[u8], path: &Path) -> Result<Self> {
        let wrong = |what: &str| damaged(path, format!("is damaged: {what}"));
        let mut value: Value = serde_json::from_slice(bytes).map_err(|e| wrong(&e.to_string()))?;
        let format = value.get("format").and_then(Value::as_u64);
        let found = format.ok_or_else(|| wrong("it names no format version"))?;
        if found > FORMAT.into() || found == 0 {
            return Err(TransferError::Refused(format!(
                "{} was written by a newer version of piton (format {found}, this version supports up to {FORMAT}): use that version",
                path.display()
            )));
        }
        let recorded = value.as_object_mut().and_then(|fields| fields.remove("crc"));
        let recorded = recorded.and_then(|crc| crc.as_u64()).ok_or_else(|| wrong("it has no checksum"))?;
        let found = crc_of(value.clone());
        if u64::from(found) != recorded {
            return Err(wrong(&format!("its checksum is {found:08x}, but it says {recorded:08x}")));
        }
        let export: Self = serde_json::from_value(value).map_err(|e| wrong(&e.to_string()))?;
        export.validate().map_err(|what| damaged(path, format!("is inconsistent: {what}")))?;
        Ok(export)
    }

    fn validate(&self) -> std::result::Result<(), String> {
        self.config.validate().map_err(|e| e.to_string())?;
        let mut named: Vec<&str> = self.disks.values().map(|disk| disk.file.as_str()).collect();
        named.extend(self.memory.as_ref().map(|memory| memory.file.as_str()));
        named.extend(self.state.as_ref().map(|state| state.file.as_str()));
        named.extend(
            self.boot_files()
                .map(|(_, path)| path)
                .filter(|path| path.is_relative())
                .filter_map(|path| path.to_str()),
        );
        for file in named.iter().copied().chain(self.files.keys().map(String::as_str)) {
            if !is_inside(file) {
                return Err(format!("`{}` is not the name of a file in the folder", file.escape_debug()));
            }
            if !self.files.contains_key(file) {
                return Err(format!("it has no checksum for `{file}`"));
            }
        }
        for disk in &self.config.disks {
            let left_out = self.left_out.iter().any(|left| left.disk == disk.id);
            if self.disks.contains_key(&disk.id) == left_out {
                return Err(format!("it does not say whether it contains disk `{}`", disk.id));
            }
        }
        if let Some(id) = self.disks.keys().find(|id| !self.config.disks.iter().any(|disk| disk.id == **id)) {
            return Err(format!("it contains a disk `{id}` that its VM does not have"));
        }
        for (id, disk) in &self.disks {
            let is_layer = disk.format == FileFormat::Piton;
            if is_layer != disk.layer.is_some() || (disk.changes && !is_layer) {
                return Err(format!("the layer of disk `{id}`"));
            }
        }
        let changes = self.disks.values().any(|disk| disk.changes)
            || self.memory.as_ref().is_some_and(|memory| memory.changes);
        if changes && self.since.is_none() {
            return Err("it contains changes but does not say since which checkpoint".into());
        }
        let standard = self.kind == Kind::Standard;
        if self.memory.is_some() != standard || self.state.is_some() != standard {
            return Err(format!("its memory and state do not match a {} checkpoint", self.kind));
        }
        match &self.memory {
            Some(memory) if memory.guest_bytes != self.config.memory => Err("the size of memory".into()),
            _ => Ok(()),
        }
    }

    /// Whether a disk that the checkpoint left out is there all the same.
    pub fn brings(&self, disk: &str) -> bool {
        self.files.contains_key(&own_disk(disk))
    }

    /// What the VM boots from: its name in the folder to come, and its path.
    pub fn boot_files(&self) -> impl Iterator<Item = (&'static str, &PathBuf)> {
        let kernel = self.config.kernel.iter().map(|path| (KERNEL, path));
        kernel.chain(self.config.initrd.iter().map(|path| (INITRD, path)))
    }
}

/// Where a read-only disk of the VM's own is.
pub fn own_disk(id: &str) -> String {
    format!("disks/{id}.own.raw")
}

/// A relative path that leads to nowhere but into the folder.
fn is_inside(file: &str) -> bool {
    let path = Path::new(file);
    !file.is_empty() && file != INDEX && path.components().all(|part| matches!(part, Component::Normal(_)))
}

pub fn damaged(path: &Path, what: impl Into<String>) -> TransferError {
    TransferError::Damaged { path: path.to_owned(), what: what.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Export {
        Export {
            id: Id::from_bytes([1; 16]),
            name: "one".parse().unwrap(),
            note: String::new(),
            kind: Kind::Offline,
            created: Utc::now(),
            exported: Utc::now(),
            vm: "demo".into(),
            config: VmConfig {
                cpus: 1,
                memory: 64 << 20,
                kernel: Some("kernel".into()),
                initrd: None,
                cmdline: String::new(),
                disks: vec![],
                nets: Vec::new(),
                vsock: false,
                boot_disk: None,
            },
            checkpoint_type: CheckpointType::Standard,
            auto_checkpoint: false,
            since: None,
            disks: BTreeMap::new(),
            left_out: vec![],
            memory: None,
            state: None,
            pause_us: None,
            capture: None,
            files: [("kernel".to_owned(), FileSum { bytes: 1, crc: 2 })].into(),
            piton: "0".into(),
            warnings: vec![],
        }
    }

    #[test]
    fn it_survives_its_bytes_and_damage_is_noticed() {
        let path = Path::new("x/export.json");
        let bytes = sample().encode(path).unwrap();
        assert_eq!(Export::decode(&bytes, path).unwrap(), sample_like(&bytes));
        let text = String::from_utf8(bytes).unwrap();
        let error = |text: &str| Export::decode(text.as_bytes(), path).unwrap_err().to_string();
        assert!(error(&text.replace("demo", "dome")).contains("checksum"));
        assert!(error(&text.replace("\"format\": 1", "\"format\": 2")).contains("newer"));
        assert!(error("{}").contains("x/export.json"));
        assert!(error("[").contains("damaged"));
    }

    fn sample_like(bytes: &[u8]) -> Export {
        let value: Value = serde_json::from_slice(bytes).unwrap();
        let time = |name: &str| value[name].as_str().unwrap().parse().unwrap();
        Export { created: time("created"), exported: time("exported"), ..sample() }
    }

    #[test]
    fn what_leads_out_of_the_folder_is_refused() {
        for bad in ["../kernel", "/etc/passwd", "a/../../b", ".", "", "./kernel", "export.json"] {
            let mut export = sample();
            export.files.insert(bad.into(), FileSum { bytes: 0, crc: 0 });
            assert!(export.validate().is_err(), "{bad}");
        }
        let mut export = sample();
        export.files.clear();
        assert!(export.validate().unwrap_err().contains("checksum"));
        let mut export = sample();
        export.kind = Kind::Standard;
        assert!(export.validate().is_err());
        assert_eq!(sample().validate(), Ok(()));
    }
}
