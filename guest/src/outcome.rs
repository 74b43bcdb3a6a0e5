//! How a command ended, if it failed: what its `err` line says.

use crate::disk;
use crate::net::error as net;
use core::fmt;

pub enum Fail {
    Usage(&'static str),
    Text(&'static str),
    Disk(disk::Error),
    DiskAt(disk::Error, u64),
    Net(net::Error),
    /// After so many bytes.
    NetAfter(net::Error, u64),
}

pub type Outcome = Result<(), Fail>;

impl From<disk::Error> for Fail {
    fn from(e: disk::Error) -> Self {
        Self::Disk(e)
    }
}

impl From<net::Error> for Fail {
    fn from(e: net::Error) -> Self {
        Self::Net(e)
    }
}

impl fmt::Display for Fail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Usage(text) => write!(f, "usage: {text}"),
            Self::Text(text) => f.write_str(text),
            Self::Disk(e) => write!(f, "{e}"),
            Self::DiskAt(e, at) => write!(f, "offset={at} {e}"),
            Self::Net(e) => write!(f, "{e}"),
            Self::NetAfter(e, bytes) => write!(f, "bytes={bytes} {e}"),
        }
    }
}
