//! The manifest of a checkpoint in a depot, as a type and as bytes; no store here.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::keys::CHUNK_MAX;
use super::location::Title;
use super::name::Name;
use crate::checkpoint::manifest::{CaptureInfo, LeftOut, crc_of};
use crate::checkpoint::{CheckpointName, Kind};
use crate::config::VmConfig;
use crate::folder::{CheckpointType, VmName};
use crate::id::Id;

const FORMAT: u32 = 1;
/// Bytes of a chunk of a disk or file, and of memory.
pub const DISK_CHUNK: u32 = 128 << 10;
pub const MEMORY_CHUNK: u32 = 256 << 10;
/// Names in one part of a stream's map, which is a chunk itself.
pub const MAP: usize = DISK_CHUNK as usize / Name::LEN;
/// Most bytes of a stream: what a disk may have, and more.
const STREAM_MAX: u64 = 1 << 50;
pub const STATE_MAX: u64 = 256 << 20;

/// Bytes, cut into chunks. Their names lie in the parts of the map, which are chunks, too.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stream {
    pub bytes: u64,
    /// Bytes of a chunk; the last one may have less.
    pub chunk: u32,
    pub map: Vec<Name>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    /// Start and length, as they follow each other in the stream.
    pub ranges: Vec<(u64, u64)>,
    pub compressed: bool,
    pub stream: Stream,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Which depot it belongs to.
    pub depot: Id,
    /// What it is called there; the checkpoint itself may have another name.
    pub title_vm: VmName,
    pub title: CheckpointName,
    pub pushed: DateTime<Utc>,
    /// Of the checkpoint.
    pub id: Id,
    pub name: CheckpointName,
    #[serde(default)]
    pub note: String,
    pub kind: Kind,
    pub created: DateTime<Utc>,
    pub vm: String,
    pub config: VmConfig,
    pub checkpoint_type: CheckpointType,
    #[serde(default)]
    pub auto_checkpoint: bool,
    #[serde(default)]
    pub left_out: Vec<LeftOut>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pause_us: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capture: Option<CaptureInfo>,
    #[serde(default)]
    pub warnings: Vec<String>,
    pub piton: String,
    pub disks: BTreeMap<String, Stream>,
    /// Read-only disks of the VM's own.
    #[serde(default)]
    pub own: BTreeMap<String, Stream>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<Memory>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<Stream>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel: Option<Stream>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initrd: Option<Stream>,
}

#[derive(Serialize)]
struct Stored<'a> {
    format: u32,
    #[serde(flatten)]
    manifest: &'a Manifest,
    #[serde(skip_serializing_if = "Option::is_none")]
    crc: Option<u32>,
}

/// Why bytes are no manifest.
#[derive(Debug, PartialEq, Eq)]
pub enum Unread {
    Newer(String),
    Damaged(String),
}

impl Stream {
    pub fn chunks(&self) -> u64 {
        self.bytes.div_ceil(self.chunk.into())
    }

    /// Bytes of a chunk by its number.
    pub fn len_of(&self, chunk: u64) -> usize {
        let at = chunk * u64::from(self.chunk);
        self.bytes.saturating_sub(at).min(self.chunk.into()) as usize
    }

    /// Names in a part of the map, by its number.
    pub fn names_in(&self, part: usize) -> usize {
        self.chunks().saturating_sub((part * MAP) as u64).min(MAP as u64) as usize
    }

    fn check(&self, most: u64) -> std::result::Result<(), String> {
        if self.bytes == 0 || self.bytes > most || self.chunk as usize > CHUNK_MAX || self.chunk < 4096 {
            return Err("the lengths of a stream are impossible".into());
        }
        if self.map.len() as u64 != self.chunks().div_ceil(MAP as u64) {
            return Err("the map of a stream does not fit its length".into());
        }
        Ok(())
    }
}

impl Manifest {
    pub fn title(&self) -> Title {
        Title { vm: self.title_vm.clone(), checkpoint: self.title.clone() }
    }

    /// Every stream, with words for it.
    pub fn streams(&self) -> Vec<(String, &Stream)> {
        let disks = self.disks.iter().map(|(id, stream)| (format!("disk `{id}`"), stream));
        let own = self.own.iter().map(|(id, stream)| (format!("disk `{id}`"), stream));
        let memory = self.memory.iter().map(|memory| ("memory".to_owned(), &memory.stream));
        let files =
            [("the saved state", &self.state), ("the kernel", &self.kernel), ("the initrd", &self.initrd)];
        let files = files.into_iter().filter_map(|(what, stream)| Some((what.to_owned(), stream.as_ref()?)));
        disks.chain(own).chain(memory).chain(files).collect()
    }

    pub fn encode(&self) -> std::result::Result<Vec<u8>, serde_json::Error> {
        let mut stored = Stored { format: FORMAT, manifest: self, crc: None };
        stored.crc = Some(crc_of(serde_json::to_value(&stored)?));
        let mut bytes = serde_json::to_vec(&stored)?;
        bytes.push(b'\n');
        Ok(bytes)
    }

    pub fn decode(bytes: &[u8]) -> std::result::Result<Self, Unread> {
        let damaged = |what: String| Unread::Damaged(what);
        let mut value: Value = serde_json::from_slice(bytes).map_err(|e| damaged(e.to_string()))?;
        let format = value.get("format").and_then(Value::as_u64);
        let format = format.ok_or_else(|| damaged("it names no format version".into()))?;
        if format != u64::from(FORMAT) {
            return Err(Unread::Newer(format!(
                "has format {format}, and this version of piton reads {FORMAT}: use a newer one"
            )));
        }
        let recorded = value.as_object_mut().and_then(|fields| fields.remove("crc"));
        let recorded = recorded.and_then(|crc| crc.as_u64());
        let recorded = recorded.ok_or_else(|| damaged("it has no checksum".into()))?;
        if recorded != u64::from(crc_of(value.clone())) {
            return Err(damaged("its checksum does not match".into()));
        }
        let manifest: Self = serde_json::from_value(value).map_err(|e| damaged(e.to_string()))?;
        manifest.validate().map_err(damaged)?;
        Ok(manifest)
    }

    fn validate(&self) -> std::result::Result<(), String> {
        self.config.validate().map_err(|e| e.to_string())?;
        for (what, stream) in self.streams() {
            stream.check(STREAM_MAX).map_err(|e| format!("{what}: {e}"))?;
        }
        for disk in &self.config.disks {
            let left_out = self.left_out.iter().any(|left| left.disk == disk.id);
            if self.disks.contains_key(&disk.id) == left_out {
                return Err(format!("it does not say whether it contains disk `{}`", disk.id));
            }
        }
        let of_config = |id: &String| self.config.disks.iter().find(|disk| disk.id == *id);
        if let Some(id) = self.disks.keys().chain(self.own.keys()).find(|id| of_config(id).is_none()) {
            return Err(format!("it contains a disk `{id}` that its VM does not have"));
        }
        if let Some(id) = self.own.keys().find(|id| self.disks.contains_key(*id)) {
            return Err(format!("it contains disk `{id}` twice"));
        }
        if let Some((id, _)) = self.disks.iter().find(|(_, disk)| disk.bytes % 512 != 0) {
            return Err(format!("the size of disk `{id}`"));
        }
        let standard = self.kind == Kind::Standard;
        if self.memory.is_some() != standard || self.state.is_some() != standard {
            return Err(format!("its memory and state do not match a {} checkpoint", self.kind));
        }
        if self.state.as_ref().is_some_and(|state| state.bytes > STATE_MAX) {
            return Err("its state is too long".into());
        }
        let expected: Vec<(u64, u64)> =
            crate::memory::ranges(self.config.memory).iter().map(|(at, len)| (at.0, *len)).collect();
        match &self.memory {
            Some(memory) if memory.ranges != expected || memory.stream.bytes != self.config.memory => {
                Err("the size of memory".into())
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    pub fn sample() -> Manifest {
        let stream = Stream { bytes: 3, chunk: DISK_CHUNK, map: vec![Name([1; 32])] };
        Manifest {
            depot: Id::from_bytes([2; 16]),
            title_vm: "demo".parse().unwrap(),
            title: "one".parse().unwrap(),
            pushed: Utc::now(),
            id: Id::from_bytes([1; 16]),
            name: "one".parse().unwrap(),
            note: String::new(),
            kind: Kind::Offline,
            created: Utc::now(),
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
            left_out: vec![],
            pause_us: None,
            capture: None,
            warnings: vec![],
            piton: "0".into(),
            disks: BTreeMap::new(),
            own: BTreeMap::new(),
            memory: None,
            state: None,
            kernel: Some(stream),
            initrd: None,
        }
    }

    #[test]
    fn it_survives_its_bytes_and_damage_is_noticed() {
        let manifest = sample();
        let bytes = manifest.encode().unwrap();
        assert_eq!(Manifest::decode(&bytes).as_ref(), Ok(&manifest));
        let text = String::from_utf8(bytes).unwrap();
        let read = |text: &str| Manifest::decode(text.as_bytes()).unwrap_err();
        assert!(
            matches!(read(&text.replace("demo", "dome")), Unread::Damaged(what) if what.contains("checksum"))
        );
        assert!(matches!(read(&text.replace("\"format\":1", "\"format\":2")), Unread::Newer(_)));
        assert!(matches!(read("{}"), Unread::Damaged(_)));
    }

    #[test]
    fn impossible_lengths_are_refused() {
        let wrong: [fn(&mut Stream); 6] = [
            |s| s.bytes = 0,
            |s| s.bytes = u64::MAX,
            |s| s.chunk = 0,
            |s| s.chunk = u32::MAX,
            |s| s.map.clear(),
            |s| s.map.push(Name::ZEROS),
        ];
        for change in wrong {
            let mut manifest = sample();
            change(manifest.kernel.as_mut().unwrap());
            let bytes = manifest.encode().unwrap();
            assert!(matches!(Manifest::decode(&bytes), Err(Unread::Damaged(_))));
        }
    }
}
