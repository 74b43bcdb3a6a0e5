//! One command on several VMs.

use anyhow::Result;
use serde::Serialize;

use super::error::{Told, exit_code_of, sentence};
use super::named::{home, must_exist};
use super::{out, output};
use crate::folder::{VmFolder, VmName};

/// Does something to each VM, to all at once, and says what came of it in their order. A name that is
/// wrong changes nothing; otherwise each VM succeeds or fails by itself.
pub fn each<T: Serialize + Send>(
    names: &[VmName],
    json: bool,
    act: impl Fn(&VmFolder) -> Result<T> + Sync,
    say: impl Fn(&T),
) -> Result<()> {
    let folders = folders(names)?;
    let results = std::thread::scope(|scope| {
        let threads: Vec<_> = folders.iter().map(|folder| scope.spawn(|| act(folder))).collect();
        let joined = threads.into_iter().map(|thread| thread.join());
        joined.map(|done| done.unwrap_or_else(|panic| std::panic::resume_unwind(panic))).collect::<Vec<_>>()
    });
    tell(folders.iter().zip(results), json, false, say)
}

/// The same, one VM after another.
pub fn in_turn<T: Serialize>(
    names: &[VmName],
    json: bool,
    act: impl Fn(&VmFolder) -> Result<T>,
    say: impl Fn(&T),
) -> Result<()> {
    let folders = folders(names)?;
    tell(folders.iter().map(|folder| (folder, act(folder))), json, false, say)
}

fn folders(names: &[VmName]) -> Result<Vec<VmFolder>> {
    let home = home()?;
    let mut folders: Vec<VmFolder> = Vec::new();
    for name in names {
        let folder = home.folder(name);
        must_exist(&folder)?;
        if !folders.iter().any(|known| known.name() == name) {
            folders.push(folder);
        }
    }
    Ok(folders)
}

/// Says what came of each. With `json` one VM is an object unless `listed`, several are an array.
pub fn tell<'a, T: Serialize>(
    results: impl ExactSizeIterator<Item = (&'a VmFolder, Result<T>)>,
    json: bool,
    listed: bool,
    say: impl Fn(&T),
) -> Result<()> {
    let alone = results.len() == 1;
    let listed = listed || !alone;
    let mut all = Vec::new();
    // A failure weighs more than a refusal.
    let mut code: Option<u8> = None;
    for (folder, result) in results {
        match result {
            Ok(value) if json && !listed => out::json_line(&serde_json::json!(value)),
            Ok(value) if json => all.push(serde_json::json!(value)),
            Ok(value) => say(&value),
            Err(e) if alone => return Err(e),
            Err(e) => {
                let text = sentence(&e);
                let failed = exit_code_of(&e);
                code = Some(code.map_or(failed, |code| code.min(failed)));
                if json {
                    all.push(serde_json::json!({ "name": folder.name(), "error": text }));
                }
                output::complain(&format!("{}: {text}", folder.name()));
            }
        }
    }
    if json && listed {
        out::json(&serde_json::json!(all));
    }
    code.map_or(Ok(()), |code| Err(Told { code }.into()))
}
