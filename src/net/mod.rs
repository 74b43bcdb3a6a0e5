//! The host's side of a network, as `disk/` is of a disk: what is at the other end of a guest's
//! network card. Back-ends are behind one trait; what one has sent and received lies in bounded
//! buffers, and a frame is passed on whole or not at all.

mod backend;
mod flows;
mod frames;
mod keeper;
mod link;
mod packet;
mod ports;
mod supervisor;
mod tap;
mod user;

pub use backend::{Backend, Incoming, Lost, MOST_FRAME};
pub use flows::SavedFlow;
pub use keeper::run as keep;
pub use link::{Change, Link, LinkInfo};
pub use packet::HEADER;
pub use ports::{PortError, check_free};
pub use supervisor::{Network, News, SetupError};
pub use tap::{TapError, bridge_of, check_mtus, check_taps, is_used};
pub use user::{User, UserError};

#[cfg(test)]
mod tests;
