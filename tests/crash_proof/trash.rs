//! The trash: what is in it is whole, whenever the power goes, and is there or back.

use piton::checkpoint::Trashed;
use piton::control::DeleteBody;
use piton::history::create::Origin;
use piton::history::trash;
use piton::id::Id;

use crate::lab::{Lab, Result};
use crate::scenarios::{Family, family, memory};

impl Lab {
    /// Deletes one, or it and these that descend from it, into the trash.
    fn throw_away(&mut self, id: Id, with: &[Id]) -> Result<()> {
        let body = DeleteBody { subtree: !with.is_empty(), ..DeleteBody::default() };
        let act = |lab: &mut Self| {
            let Self { folder, lock, definition, .. } = lab;
            trash::delete(folder, lock, definition, id, body).map(drop)
        };
        self.marking(&[&[id], with].concat(), true, act)
    }

    fn undo(&mut self, back: &[Id]) -> Result<()> {
        let act = |lab: &mut Self| {
            let entry = trash::last(&lab.catalog(), &lab.definition)?;
            trash::restore(&lab.folder, &lab.definition, &entry)
        };
        self.marking(back, false, act)
    }

    fn marking(&mut self, ids: &[Id], to: bool, act: impl FnOnce(&mut Self) -> Result<()>) -> Result<()> {
        let ids = ids.to_vec();
        self.step(format!("trash: {to}"), act, |_, during, after, _| {
            for id in &ids {
                during.must.get_mut(id).unwrap().trash = vec![false, true];
                after.must.get_mut(id).unwrap().trash = vec![to];
            }
        })
    }

    /// The current state as it goes to the trash before something takes its place.
    fn keep_now(&mut self, name: &str) -> Result<Id> {
        let how = trash::next(&self.catalog(), format!("apply of `{name}`"))?;
        let origin = Origin { trash: Some(Trashed { was_now: true, ..how }), ..Origin::default() };
        self.create_as(name, origin)
    }

    /// What Now goes on from leaves the trash.
    fn consume(&mut self, id: Id) -> Result<()> {
        self.deleting(&[id], |lab| {
            let Self { folder, lock, definition, .. } = lab;
            trash::consume(folder, lock, definition).map(|done| assert!(done))
        })
    }

    /// All entries go for good, one after another.
    fn empty(&mut self, ids: &[Id]) -> Result<()> {
        for id in ids {
            let entry = self.catalog().store.load(*id)?.keeping.trash.map(|how| how.entry.to_string());
            self.deleting(&[*id], |lab| {
                let Self { folder, lock, definition, .. } = lab;
                trash::empty(folder, lock, definition, entry.as_deref()).map(drop)
            })?;
        }
        Ok(())
    }
}

pub fn deleted(lab: &mut Lab) -> Result<()> {
    let Family { r, a, b, c, d } = family(lab)?;
    lab.throw_away(d, &[])?;
    lab.scribble(2)?;
    lab.throw_away(a, &[b, c])?;
    // Below one that is not seen.
    let e = lab.standard("e", memory(5))?;
    lab.scribble(2)?;
    lab.undo(&[a, b, c])?;
    lab.throw_away(r, &[])?;
    lab.settle()?;
    lab.empty(&[d, r])?;
    lab.settle()?;
    lab.throw_away(e, &[])?;
    lab.empty(&[e])?;
    lab.flush()
}

pub fn discarded(lab: &mut Lab) -> Result<()> {
    lab.scribble(3)?;
    let a = lab.create("a")?;
    lab.scribble(3)?;
    lab.begin();
    let first = lab.keep_now("first")?;
    lab.apply(a)?;
    lab.scribble(3)?;
    // Undone: what it took the place of comes back, and goes on from there.
    let second = lab.keep_now("second")?;
    lab.apply(first)?;
    lab.consume(first)?;
    lab.scribble(3)?;
    lab.flush()?;
    // An apply that came to nothing.
    let third = lab.keep_now("third")?;
    lab.consume(third)?;
    lab.settle()?;
    lab.empty(&[second])?;
    lab.settle()
}
