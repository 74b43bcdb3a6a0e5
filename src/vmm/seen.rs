//! The VM as others see it while its owner is busy making a checkpoint, which may wait long for a
//! guest's agent and does not change what they see.

use std::sync::{Arc, Mutex, PoisonError};

use crate::control::server::Asked;
use crate::control::{Request, VmInfo};

#[derive(Clone, Default)]
pub struct Seen(Arc<Mutex<Option<VmInfo>>>);

impl Seen {
    /// None: the owner answers itself.
    pub fn set(&self, info: Option<VmInfo>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = info;
    }

    /// Answers if it can; what it cannot is handed back for the owner.
    pub fn answer(&self, asked: Asked) -> Option<Asked> {
        let info = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        match info {
            Some(info) if asked.request == Request::Show => {
                if let Some(reply) = asked.reply {
                    // Who asked may be gone by now.
                    let _ = reply.send(Ok(info.into()));
                }
                None
            }
            _ => Some(asked),
        }
    }
}
