//! What came of a request, as events tell it: of a VM that runs and of one that is off alike.

use super::trash::EmptiedInfo;
use super::upkeep::PrunedInfo;
use super::{CheckpointInfo, DeletedInfo, Reply, Request, RequestError, UndoneInfo};
use crate::checkpoint::CheckpointName;
use crate::folder::{Happened, What};
use crate::id::Id;

pub fn created(info: &CheckpointInfo) -> Happened {
    let by = if info.scheduled { "by the schedule" } else { "on request" };
    let text = format!("{} checkpoint `{}` was created {by}", info.kind, info.name);
    Happened::now(What::CheckpointCreated, text).of(info.id)
}

pub fn went_to(id: Id, name: &CheckpointName) -> Happened {
    Happened::now(What::CheckpointApplied, format!("went to checkpoint `{name}`")).of(id)
}

pub fn changed(info: &CheckpointInfo) -> Happened {
    let text = format!("name, note or pin of checkpoint `{}` was changed", info.name);
    Happened::now(What::CheckpointChanged, text).of(info.id)
}

pub fn deleted(info: &DeletedInfo) -> Vec<Happened> {
    if info.dry_run {
        return Vec::new();
    }
    let how = if info.trash.is_some() { "moved to the trash" } else { "deleted" };
    let event = |id: Id, text: String| Happened::now(What::CheckpointDeleted, text).of(id);
    let known = info.deleted.iter().map(|one| event(one.id, format!("checkpoint `{}` was {how}", one.name)));
    let damaged = info.damaged.map(|id| event(id, format!("a damaged checkpoint was {how}")));
    known.chain(damaged).collect()
}

/// None: nothing went.
pub fn pruned(info: &PrunedInfo) -> Option<Happened> {
    let went = info.checkpoints.iter().filter(|one| !one.stays);
    let names: Vec<String> = went.map(|one| format!("`{}`", one.checkpoint.name)).collect();
    let text = || format!("deleted by the rules: {}", names.join(", "));
    (!info.dry_run && !names.is_empty()).then(|| Happened::now(What::Pruned, text()))
}

pub fn undone(info: &UndoneInfo) -> Happened {
    Happened::now(What::Undone, format!("undone: {}", info.entry.why))
}

/// None: the trash was empty.
pub fn emptied(info: &EmptiedInfo) -> Option<Happened> {
    let count = info.entries.len();
    let text = || format!("{count} entries of the trash were deleted, {} bytes", info.bytes);
    (count > 0).then(|| Happened::now(What::TrashEmptied, text()))
}

pub fn set() -> Happened {
    Happened::now(What::SettingsChanged, "settings were changed")
}

/// What is told of a request; to be made before it is answered. None: it only looks, or the owner has
/// more to say of it than the answer.
pub fn of(request: &Request) -> Option<Asked> {
    let what = match request {
        Request::CreateCheckpoint(body) => match &body.name {
            Some(name) => format!("creation of checkpoint `{name}`"),
            None => "creation of a checkpoint".into(),
        },
        Request::ApplyCheckpoint(reference, _) => format!("apply of `{reference}`"),
        Request::Revert(_) => "revert".into(),
        Request::DeleteCheckpoint(reference, body) if !body.dry_run => format!("deletion of `{reference}`"),
        Request::ChangeCheckpoint(reference, _) => format!("change of `{reference}`"),
        Request::CloneCheckpoint(reference, _) => format!("cloning of `{reference}`"),
        Request::Undo(_) | Request::RestoreTrash(..) => "undo".into(),
        Request::EmptyTrash(_) => "emptying the trash".into(),
        Request::Prune(body) if !body.dry_run => "prune".into(),
        Request::Set(_) => "change of settings".into(),
        Request::Pause => "pause".into(),
        Request::Resume => "resume".into(),
        _ => return None,
    };
    let done = match request {
        Request::ChangeCheckpoint(..) => Done::Changed,
        Request::Set(_) => Done::Event(set()),
        Request::CloneCheckpoint(reference, body) => {
            let names: Vec<String> = body.names.iter().map(ToString::to_string).collect();
            let text = format!("`{reference}` was cloned to {}", names.join(", "));
            Done::Event(Happened::now(What::Cloned, text))
        }
        _ => Done::Told,
    };
    Some(Asked { what, done })
}

/// What is told of a request that was done.
enum Done {
    /// What the answer says, if it says something.
    Told,
    /// The checkpoint of the answer is not a new one.
    Changed,
    Event(Happened),
}

/// A request in words.
pub struct Asked {
    what: String,
    done: Done,
}

impl Asked {
    pub fn answered(self, answer: &Result<Reply, RequestError>) -> Vec<Happened> {
        let Self { what, done } = self;
        match (answer, done) {
            // Nothing was tried.
            (Err(RequestError::Refused(_) | RequestError::Missing(_)), _) => Vec::new(),
            (Err(RequestError::Failed(why)), _) => {
                vec![Happened::now(What::JobFailed, format!("{what} failed: {why}"))]
            }
            (Err(RequestError::Cancelled(_)), _) => {
                vec![Happened::now(What::JobCancelled, format!("{what} was cancelled"))]
            }
            (_, Done::Event(event)) => vec![event],
            (Ok(Reply::Checkpoint(info)), Done::Changed) => vec![changed(info)],
            (Ok(Reply::Checkpoint(info)), _) => vec![created(info)],
            (Ok(Reply::Deleted(info)), _) => deleted(info),
            (Ok(Reply::Undone(info)), _) => vec![undone(info)],
            (Ok(Reply::Emptied(info)), _) => emptied(info).into_iter().collect(),
            (Ok(Reply::Pruned(info)), _) => pruned(info).into_iter().collect(),
            (Ok(_), _) => Vec::new(),
        }
    }
}
