//! Taking checksums of base images while the guest runs. A thread reads one base after the other;
//! the file with the checksums appears whole or not at all, so it may end anywhere.

use super::Vmm;
use super::sealer::{Sealing, Tell, joined};
use crate::control::jobs::JobKind;
use crate::control::{Reply, RequestError};
use crate::history::seal;

impl Vmm {
    /// Begins with the next base that is to get checksums.
    pub(super) fn seal_bases(&mut self) {
        if self.sealing.is_some() {
            return;
        }
        let disk = match seal::wanted(&self.folder, &self.definition) {
            Ok(wanted) => wanted.into_iter().next(),
            Err(e) => return log::warn!("cannot compute checksums of base images: {e}"),
        };
        let Some(disk) = disk else {
            if let Err(e) = seal::forget(&self.folder, &self.lock, &mut self.definition) {
                log::warn!("{e}");
            }
            return;
        };
        let Ok(job) = self.jobs.add(None, JobKind::Seal, disk.id.clone()) else { return };
        let (folder, definition) = (self.folder.clone(), self.definition.clone());
        let (progress, tell) = (job.progress().clone(), Tell(self.sender.clone()));
        let id = disk.id.clone();
        let thread = std::thread::Builder::new().name("seal".into()).spawn(move || {
            let _tell = tell;
            seal::seal(&folder, &definition, &disk, &progress)
        });
        match thread {
            Ok(thread) => {
                job.begin();
                self.sealing = Some(Sealing { job, disk: id, thread });
            }
            Err(e) => log::warn!("cannot compute checksums of base images: {e}"),
        }
    }

    /// The thread has come to its end.
    pub(super) fn sealed(&mut self) {
        let Some(Sealing { job, disk, thread }) = self.sealing.take() else { return };
        match joined(thread) {
            Ok(()) => {
                // A disk that is only read uses them when it is opened next.
                let attached =
                    self.disks.live.get(&disk).map(|live| {
                        live.attach_base_sums(self.folder.storage(), &self.folder.base_sums(&disk))
                    });
                if let Some(Err(e)) = attached {
                    log::warn!("{e}");
                }
                job.finish(&Ok(Reply::Done {}));
                self.seal_bases();
            }
            Err(e) if e.is_cancelled() => {
                job.finish(&Err(RequestError::Cancelled(
                    "cancelled: the next start of the VM begins again".into(),
                )));
            }
            Err(e) => {
                let why = format!("cannot compute checksums of the base image of disk `{disk}`: {e}");
                log::warn!("{why}");
                job.finish(&Err(RequestError::Failed(why)));
            }
        }
    }

    /// The VM ends; the next start begins again.
    pub(super) fn end_sealing(&mut self) {
        let Some(Sealing { job, thread, .. }) = self.sealing.take() else { return };
        job.progress().cancel();
        if let Err(e) = joined(thread)
            && !e.is_cancelled()
        {
            log::warn!("{e}");
        }
    }
}
