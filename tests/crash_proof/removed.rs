//! A VM that is removed: it is there, whole in the trash, or gone; and comes back as it was.

use piton::folder::VmLock;
use piton::history::disks::OpenDisks;
use piton::history::removed;
use piton::storage::sim::Sim;

use crate::check;
use crate::lab::{Lab, Result};
use crate::model::Place;
use crate::scenarios::{family, memory};

/// The lock of another VM, of which nobody knows: one whose VM is not there has none.
fn stand_in() -> VmLock {
    let sim = Sim::default();
    sim.storage().create_dir(check::HOME.as_ref()).unwrap();
    check::folder(&sim).create().unwrap()
}

impl Lab {
    fn moving(&mut self, from: Place, to: Place, act: impl FnOnce(&mut Self) -> Result<()>) -> Result<()> {
        self.step(format!("from {from:?} to {to:?}"), act, |_, during, after, _| {
            during.places = vec![from, to];
            after.places = vec![to];
        })
    }

    fn remove(&mut self, no_undo: bool) -> Result<()> {
        self.flush()?;
        let to = if no_undo { Place::Nowhere } else { Place::Trash };
        self.moving(Place::There, to, |lab| {
            lab.disks = OpenDisks::default();
            removed::remove(&lab.folder, &lab.lock, no_undo)?;
            lab.lock = stand_in();
            Ok(())
        })
    }

    fn bring_back(&mut self) -> Result<()> {
        self.moving(Place::Trash, Place::There, |lab| {
            let found = removed::find(&lab.folder.home(), check::VM)?.expect("it is in the trash");
            lab.folder = removed::restore(&found, found.name())?;
            lab.lock = lab.folder.lock()?;
            lab.definition = lab.folder.load()?;
            lab.open()
        })
    }

    fn purge(&mut self) -> Result<()> {
        self.moving(Place::Trash, Place::Nowhere, |lab| {
            let mut found = removed::find(&lab.folder.home(), check::VM)?.expect("it is in the trash");
            removed::purge(&mut found).map(|gone| assert!(gone))
        })
    }
}

pub fn and_back(lab: &mut Lab) -> Result<()> {
    family(lab)?;
    lab.remove(false)?;
    lab.bring_back()?;
    lab.scribble(3)?;
    lab.create("back")?;
    lab.remove(false)?;
    lab.bring_back()?;
    lab.flush()
}

pub fn for_good(lab: &mut Lab, at_once: bool) -> Result<()> {
    family(lab)?;
    if at_once {
        return lab.remove(true);
    }
    lab.remove(false)?;
    lab.purge()
}

pub fn elsewhere(lab: &mut Lab) -> Result<()> {
    lab.checkpoint_dir("/ext")?;
    lab.scribble(2)?;
    lab.create("a")?;
    lab.scribble(2)?;
    lab.standard("b", memory(1))?;
    lab.begin();
    lab.remove(false)?;
    lab.bring_back()?;
    lab.scribble(2)?;
    lab.remove(false)?;
    lab.purge()
}
