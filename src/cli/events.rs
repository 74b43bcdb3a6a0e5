//! `piton events`.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use super::args::EventsArgs;
use super::named::{self, must_exist};
use super::out::{self, outln};
use crate::folder::{Happened, Home, VmFolder, VmName};
use crate::moment::shown;

/// Between two looks at what happened since.
const LOOK: Duration = Duration::from_millis(200);
/// Most bytes of one file that are taken at one look.
const PIECE: u64 = 4 << 20;

/// Prints what happened to VMs; with `follow`, goes on until it is interrupted.
pub fn run(args: &EventsArgs, json: bool) -> anyhow::Result<()> {
    let home = named::home()?;
    for name in &args.names {
        must_exist(&home.folder(name))?;
    }
    let mut readers: BTreeMap<VmName, Reader> = BTreeMap::new();
    let mut first = true;
    loop {
        let mut news: Vec<(VmName, Happened)> = Vec::new();
        let folders = folders(&home, &args.names)?;
        let (mut gone, there) =
            readers.into_iter().partition(|(name, _)| !folders.iter().any(|folder| folder.name() == name));
        readers = there;
        for folder in folders {
            let name = folder.name().clone();
            let reader = readers.entry(name.clone()).or_insert_with(|| Reader::of(folder, &mut gone));
            news.extend(reader.news()?.into_iter().map(|event| (name.clone(), event)));
        }
        news.sort_by_key(|(_, event)| event.time);
        if std::mem::take(&mut first)
            && let Some(tail) = args.tail
        {
            news.drain(..news.len().saturating_sub(tail));
        }
        for (name, event) in &news {
            tell(name, event, json);
        }
        if !args.follow || out::is_closed() {
            return Ok(());
        }
        std::thread::sleep(LOOK);
    }
}

fn folders(home: &Home, names: &[VmName]) -> anyhow::Result<Vec<VmFolder>> {
    Ok(match names {
        [] => home.all()?,
        names => names.iter().map(|name| home.folder(name)).collect(),
    })
}

fn tell(vm: &VmName, event: &Happened, json: bool) {
    if !json {
        return outln!("{}  {vm}  {:<18}  {}", shown(&event.time), event.event, event.text);
    }
    let mut line = serde_json::json!(event);
    line["vm"] = vm.to_string().into();
    out::json_line(&line);
}

/// Reads the events of one VM as they come.
struct Reader {
    folder: VmFolder,
    /// Of the file that is written to: what was read of it, and where that was.
    now: Option<(File, Vec<u8>)>,
}

impl Reader {
    /// Goes on where the one of a VM that was renamed to this one came to.
    fn of(folder: VmFolder, gone: &mut BTreeMap<VmName, Self>) -> Self {
        let [_, path] = folder.event_files();
        let ino = std::fs::metadata(path).map(|found| found.ino()).ok();
        let was_it = |reader: &Self| {
            let read = reader.now.as_ref().and_then(|(file, _)| Some(file.metadata().ok()?.ino()));
            read.is_some() && read == ino
        };
        let former = gone.iter().find(|(_, reader)| was_it(reader)).map(|(name, _)| name.clone());
        let now = former.and_then(|name| gone.remove(&name)?.now);
        Self { folder, now }
    }

    fn news(&mut self) -> anyhow::Result<Vec<Happened>> {
        let [former, now] = self.folder.event_files();
        let mut events = Vec::new();
        if self.now.is_none()
            && let Some(file) = open(&former)?
        {
            read(&file, &mut Vec::new(), &mut events)?;
        }
        let there = open(&now)?;
        let is_other = match (&self.now, &there) {
            (Some((file, _)), Some(there)) => file.metadata()?.ino() != there.metadata()?.ino(),
            _ => true,
        };
        if let Some((file, rest)) = &mut self.now {
            // To its end, if it was renamed.
            read(file, rest, &mut events)?;
        }
        if is_other && let Some(file) = there {
            let mut rest = Vec::new();
            read(&file, &mut rest, &mut events)?;
            self.now = Some((file, rest));
        }
        Ok(events)
    }
}

fn open(path: &std::path::Path) -> anyhow::Result<Option<File>> {
    match File::open(path) {
        Ok(file) => Ok(Some(file)),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(anyhow::Error::new(e).context(format!("cannot read {}", path.display()))),
    }
}

/// Takes all whole lines that there are; `rest` is the beginning of the next one.
fn read(file: &File, rest: &mut Vec<u8>, events: &mut Vec<Happened>) -> anyhow::Result<()> {
    file.take(PIECE).read_to_end(rest)?;
    while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
        events.extend(Happened::decode(&rest[..end]));
        rest.drain(..=end);
    }
    if rest.len() as u64 > PIECE {
        // No event is so long.
        rest.clear();
    }
    Ok(())
}
