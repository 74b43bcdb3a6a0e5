//! What can go wrong with a network.

use core::fmt;

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Error {
    NoDevice,
    NoAddress,
    /// No such name, or nobody who knows.
    Unresolved,
    Refused,
    Reset,
    /// Nothing came for so long.
    Silence,
    /// The other side ended it too early.
    Short,
    NotHttp,
    Busy,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoDevice => "reason=device there is no such network device",
            Self::NoAddress => "reason=address the device has no address yet",
            Self::Unresolved => "reason=name the name is not known",
            Self::Refused => "reason=refused nobody listens there",
            Self::Reset => "reason=reset the connection was reset",
            Self::Silence => "reason=timeout nothing came for too long",
            Self::Short => "reason=short the connection ended before all had come",
            Self::NotHttp => "reason=http the answer is not of HTTP",
            Self::Busy => "reason=busy the device does not take what is sent",
        })
    }
}
