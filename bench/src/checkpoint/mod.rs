//! Checkpoints: what they cost the guest that runs, and going back to them.

mod cases;
mod clones;
mod create;
mod plot;
mod report;
mod restore;

use std::io;

use crate::results::Results;
use crate::setting::Setting;

pub use report::report;

pub fn run(setting: &Setting) -> io::Result<()> {
    std::fs::create_dir_all(&setting.piton.home)?;
    let mut results = Results::append_to(&setting.results)?;
    for round in 0..setting.rounds {
        create::round(setting, &mut results, round)?;
    }
    restore::all(setting, &mut results)?;
    clones::all(setting, &mut results)
}
