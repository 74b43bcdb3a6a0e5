//! What must hold: which checkpoints there are, and what everything reads as.

use std::collections::BTreeMap;
use std::rc::Rc;

use piton::disk::Backing;
use piton::id::Id;

pub const SECTOR: usize = 512;

/// A stamp for each sector of a disk.
pub type Sectors = Vec<u32>;
/// For each sector the stamps that it may read as.
pub type Allowed = Vec<Vec<u32>>;

/// Guest memory, by guest-physical address of a page the byte that fills it, and the state.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    pub pages: BTreeMap<u64, u8>,
    pub state: String,
}

#[derive(Clone, Debug)]
pub struct NodeModel {
    pub names: Vec<String>,
    pub notes: Vec<String>,
    pub parents: Vec<Option<Id>>,
    pub disks: Rc<BTreeMap<String, Sectors>>,
    pub memory: Option<Rc<Memory>>,
    /// Whether it is in the trash.
    pub trash: Vec<bool>,
}

/// One thing that Now may be.
#[derive(Clone, Debug)]
pub struct NowModel {
    pub parents: Vec<Option<Id>>,
    pub disks: BTreeMap<String, Allowed>,
}

/// Where the VM may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    There,
    Trash,
    Nowhere,
}

/// What must hold after a crash, from one moment of a scenario to the next.
#[derive(Clone, Debug, Default)]
pub struct Expect {
    /// What is going on, for a failure to tell.
    pub doing: String,
    pub must: BTreeMap<Id, NodeModel>,
    /// Being made or deleted: there and whole, or not there.
    pub may: BTreeMap<Id, NodeModel>,
    pub now: Vec<NowModel>,
    /// None: [`Place::There`].
    pub places: Vec<Place>,
}

impl Expect {
    pub fn may_be(&self, place: Place) -> bool {
        self.places.contains(&place) || self.places.is_empty() && place == Place::There
    }

    /// Where somebody may have brought it back.
    pub fn brought_back(&self) -> Self {
        let mut next = self.clone();
        if !next.places.is_empty() {
            next.places.push(Place::There);
        }
        next
    }

    pub fn node(&self, id: Id) -> Option<&NodeModel> {
        self.must.get(&id).or_else(|| self.may.get(&id))
    }

    /// Whoever was seen once has to stay, and who was not does not come back.
    pub fn narrowed(&self, seen: &[Id]) -> Self {
        let mut next = self.clone();
        let may = std::mem::take(&mut next.may);
        next.must.extend(may.into_iter().filter(|(id, _)| seen.contains(id)));
        next
    }
}

pub fn exactly(sectors: &Sectors) -> Allowed {
    sectors.iter().map(|stamp| vec![*stamp]).collect()
}

pub fn fill(stamp: u32, sectors: usize) -> Vec<u8> {
    stamp.to_le_bytes().repeat(sectors * SECTOR / 4)
}

/// Every sector whole, or an error.
pub fn stamps(disk: &dyn Backing) -> Result<Sectors, String> {
    let mut bytes = vec![0; disk.len() as usize];
    disk.read_at(&mut bytes, 0).map_err(|e| e.to_string())?;
    let stamp = |(at, sector): (usize, &[u8])| {
        if sector[4..] != sector[..SECTOR - 4] {
            return Err(format!("{}: sector {at} is torn", crate::check::OTHERWISE));
        }
        Ok(u32::from_le_bytes([sector[0], sector[1], sector[2], sector[3]]))
    };
    bytes.chunks_exact(SECTOR).enumerate().map(stamp).collect()
}
