//! A depot that is open: its store, its keys, and what its `depot.json` says.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::keys::{Keys, Role, Secret};
use super::location::Title;
use super::manifest::Manifest;
use super::store::{Put, Store};
use super::{DepotError, Result};
use crate::id::Id;
use crate::storage::DOCUMENT_MAX;

/// Version of the format that this piton writes, and the one that it reads.
pub const FORMAT: u32 = 1;
const HEADER: &str = "depot.json";
const HEADER_MAX: u64 = 64 << 10;
const CIPHER: &str = "XChaCha20-Poly1305";
/// What the key is tried on.
const CHECK: &str = "depot.json";

pub const CHECKPOINTS: &str = "checkpoints";
pub const PACKS: &str = "packs";
pub const INDEX: &str = "index";
pub const CONDEMNED: &str = "condemned";
pub const CLOCK: &str = "clock";
/// All that there is below a depot.
pub const FOLDERS: [&str; 5] = [CHECKPOINTS, PACKS, INDEX, CONDEMNED, CLOCK];

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    format: u32,
    pub id: Id,
    pub created: DateTime<Utc>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encryption: Option<Encryption>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Encryption {
    pub cipher: String,
    /// By which a wrong key is noticed.
    check: String,
}

pub struct Depot {
    pub store: Arc<dyn Store>,
    pub keys: Keys,
    pub header: Header,
}

impl Depot {
    pub fn open(store: Arc<dyn Store>, secret: Option<&Secret>) -> Result<Self> {
        match store.get(HEADER, HEADER_MAX)? {
            Some(bytes) => Self::read(store, &bytes, secret),
            None => Err(DepotError::Refused(format!(
                "there is no depot at {}: `piton push` makes one",
                at(&*store)
            ))),
        }
    }

    /// Makes one where there is none; whether it did.
    pub fn open_or_create(store: Arc<dyn Store>, secret: Option<&Secret>) -> Result<(Self, bool)> {
        if let Some(bytes) = store.get(HEADER, HEADER_MAX)? {
            return Ok((Self::read(store, &bytes, secret)?, false));
        }
        let id = Id::random().map_err(DepotError::Random)?;
        let encryption = secret
            .map(|secret| Encryption { cipher: CIPHER.into(), check: Keys::new(secret, id).object(CHECK) });
        let header = Header { format: FORMAT, id, created: Utc::now(), encryption };
        let mut bytes = serde_json::to_vec_pretty(&header).map_err(|e| broken(&*store, e))?;
        bytes.push(b'\n');
        // What is there now is what counts, should somebody else have been first, or this one twice.
        store.put(HEADER, bytes.clone(), Put::New)?;
        match store.get(HEADER, HEADER_MAX)? {
            Some(found) => Ok((Self::read(store, &found, secret)?, found == bytes)),
            None => Err(DepotError::Store {
                doing: "read",
                object: store.shown(HEADER),
                why: "it is gone again".into(),
            }),
        }
    }

    fn read(store: Arc<dyn Store>, bytes: &[u8], secret: Option<&Secret>) -> Result<Self> {
        let value: serde_json::Value = serde_json::from_slice(bytes).map_err(|e| broken(&*store, e))?;
        let format = value.get("format").and_then(serde_json::Value::as_u64);
        let format = format.ok_or_else(|| broken(&*store, "it names no format version"))?;
        if format != u64::from(FORMAT) {
            return Err(DepotError::Refused(format!(
                "the depot at {} has format {format}, and this version of piton reads {FORMAT}: use a newer one",
                at(&*store)
            )));
        }
        let header: Header = serde_json::from_value(value).map_err(|e| broken(&*store, e))?;
        let keys = match (&header.encryption, secret) {
            (None, None) => Keys::PLAIN,
            (None, Some(_)) => {
                return Err(DepotError::Refused(format!(
                    "the depot at {} is not encrypted: remove --key-file, or use another depot",
                    at(&*store)
                )));
            }
            (Some(_), None) => {
                return Err(DepotError::Refused(format!(
                    "the depot at {} is encrypted: give its key with --key-file",
                    at(&*store)
                )));
            }
            (Some(encryption), Some(_)) if encryption.cipher != CIPHER => {
                return Err(DepotError::Refused(format!(
                    "the depot at {} is encrypted with `{}`, which this version of piton does not know",
                    at(&*store),
                    encryption.cipher.escape_debug()
                )));
            }
            (Some(encryption), Some(secret)) => {
                let keys = Keys::new(secret, header.id);
                if keys.object(CHECK) != encryption.check {
                    return Err(DepotError::Refused(format!(
                        "this is not the key of the depot at {}: give another --key-file",
                        at(&*store)
                    )));
                }
                keys
            }
        };
        Ok(Self { store, keys, header })
    }

    /// For messages.
    pub fn at(&self) -> String {
        at(&*self.store)
    }

    pub fn manifest_key(&self, title: &Title) -> String {
        self.key_of(&self.keys.object(&title.to_string()))
    }

    fn key_of(&self, object: &str) -> String {
        format!("{CHECKPOINTS}/{object}")
    }

    pub fn manifest(&self, title: &Title) -> Result<Manifest> {
        let object = self.keys.object(&title.to_string());
        match self.read_manifest(&object)? {
            Some(manifest) if manifest.title() == *title => Ok(manifest),
            Some(_) => Err(DepotError::damaged(
                self.store.shown(&self.key_of(&object)),
                "it is the manifest of another checkpoint",
            )),
            None => Err(DepotError::Refused(format!(
                "there is no checkpoint `{title}` in the depot at {0}: `piton depot list {0}` shows those that are",
                self.at()
            ))),
        }
    }

    /// By the object's name; none if it is gone.
    pub fn read_manifest(&self, object: &str) -> Result<Option<Manifest>> {
        let key = self.key_of(object);
        let Some(bytes) = self.store.get(&key, DOCUMENT_MAX)? else { return Ok(None) };
        let wrong = |what: String| DepotError::damaged(self.store.shown(&key), what);
        let json = self.keys.open(Role::Manifest(object), &bytes).map_err(|e| wrong(e.into()))?;
        let manifest = Manifest::decode(&json).map_err(|e| match e {
            super::manifest::Unread::Newer(text) => {
                DepotError::Refused(format!("{} {text}", self.store.shown(&key)))
            }
            super::manifest::Unread::Damaged(what) => wrong(what),
        })?;
        if manifest.depot != self.header.id {
            return Err(wrong("it belongs to another depot".into()));
        }
        if self.keys.object(&manifest.title().to_string()) != object {
            return Err(wrong("it is the manifest of another checkpoint".into()));
        }
        Ok(Some(manifest))
    }

    /// The manifest comes last: from here on the checkpoint is there. `false`: another one has its name.
    pub fn publish(&self, manifest: &Manifest) -> Result<bool> {
        let title = manifest.title().to_string();
        let object = self.keys.object(&title);
        let key = self.key_of(&object);
        let json = manifest.encode().map_err(|e| broken(&*self.store, e))?;
        let bytes = self.keys.seal(Role::Manifest(&object), json)?;
        if self.store.put(&key, bytes.clone(), Put::New)? {
            return Ok(true);
        }
        // An answer that was lost made the store try once more.
        Ok(self.store.get(&key, DOCUMENT_MAX)?.is_some_and(|found| found == bytes))
    }

    /// Names of the manifests' objects, sorted.
    pub fn manifests(&self) -> Result<Vec<String>> {
        let is_name = |object: &super::store::Object| object.name.parse::<super::name::Name>().is_ok();
        let mut names: Vec<String> =
            self.store.list(CHECKPOINTS)?.into_iter().filter(is_name).map(|object| object.name).collect();
        names.sort();
        Ok(names)
    }
}

fn at(store: &dyn Store) -> String {
    let shown = store.shown("");
    shown.trim_end_matches('/').to_owned()
}

fn broken(store: &dyn Store, what: impl ToString) -> DepotError {
    DepotError::damaged(store.shown(HEADER), what.to_string())
}
