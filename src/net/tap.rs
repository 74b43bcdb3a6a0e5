//! A tap device: the guest is on whatever network of the host that is connected to.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use super::backend::{Backend, Incoming, Lost, MOST_FRAME};
use super::packet::HEADER;
use crate::config::NetConfig;

const DEVICE: &str = "/dev/net/tun";
/// A folder for each network interface.
const INTERFACES: &str = "/sys/class/net";

/// Requests of `linux/if_tun.h`.
const TUNSETIFF: libc::c_ulong = 0x4004_54ca;
const TUNSETOFFLOAD: libc::c_ulong = 0x4004_54d0;
const TUNSETVNETHDRSZ: libc::c_ulong = 0x4004_54d8;

/// What a driver takes (virtio 1.2, section 5.1.3), as the kernel is told it.
const OFFLOADS: [(u64, libc::c_uint); 4] = [(GUEST_CSUM, 1), (1 << 7, 2), (1 << 8, 4), (1 << 9, 8)];
const GUEST_CSUM: u64 = 1 << 1;

#[derive(Debug, thiserror::Error)]
pub enum TapError {
    #[error(
        "the tap device `{0}` does not exist, and only root can create it: run `ip tuntap add {0} mode \
         tap user $USER` as root"
    )]
    Missing(String),
    #[error("the tap device `{0}` is in use by another process: give this VM another one")]
    Taken(String),
    #[error(
        "no permission to use the tap device `{0}`: create it for your user with `ip tuntap add {0} mode \
         tap user $USER` as root"
    )]
    NotPermitted(String),
    #[error(
        "`{0}` is a network interface, but not a tap device: create one with `ip tuntap add NAME mode tap`"
    )]
    NoTap(String),
    #[error(
        "the tap device `{name}` has an MTU of {is}, and the guest would be told {told}: use `--net \
         tap={name},mtu={is}`, or raise it with `ip link set {name} mtu {told}`"
    )]
    Mtu { name: String, is: u16, told: u16 },
    #[error("cannot use tap devices: {DEVICE}: {0}")]
    Device(std::io::Error),
    #[error("cannot use the tap device `{name}`: {error}")]
    Other { name: String, error: std::io::Error },
}

/// `struct ifreq` with flags.
#[repr(C)]
struct Request {
    name: [u8; libc::IFNAMSIZ],
    flags: libc::c_short,
    rest: [u8; 22],
}

/// Takes the tap device `name`, which is made if there is none. Nobody else can until it is closed.
pub fn open(name: &str) -> Result<File, TapError> {
    let existed = Path::new(INTERFACES).join(name).exists();
    let file = File::options()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open(DEVICE)
        .map_err(TapError::Device)?;
    let flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as libc::c_short;
    let mut request = Request { name: [0; libc::IFNAMSIZ], flags, rest: [0; 22] };
    // The last byte stays zero: names are checked to be shorter.
    let (place, _) = request.name.split_at_mut(libc::IFNAMSIZ - 1);
    place.iter_mut().zip(name.bytes()).for_each(|(place, byte)| *place = byte);
    // SAFETY: the request is a whole `struct ifreq` that lives across the call.
    let done = unsafe { libc::ioctl(file.as_raw_fd(), TUNSETIFF, &raw mut request) };
    if done < 0 {
        let error = std::io::Error::last_os_error();
        let name = name.to_owned();
        return Err(match error.raw_os_error() {
            Some(libc::EBUSY) => TapError::Taken(name),
            Some(libc::EPERM) if existed => TapError::NotPermitted(name),
            Some(libc::EPERM) => TapError::Missing(name),
            Some(libc::EINVAL) if existed => TapError::NoTap(name),
            _ => TapError::Other { name, error },
        });
    }
    let size = HEADER as libc::c_int;
    // SAFETY: the request reads one int, which lives across the call.
    if unsafe { libc::ioctl(file.as_raw_fd(), TUNSETVNETHDRSZ, &raw const size) } < 0 {
        return Err(TapError::Other { name: name.to_owned(), error: std::io::Error::last_os_error() });
    }
    Ok(file)
}

/// Whether all tap devices of `nets` can be had.
pub fn check_taps(nets: &[NetConfig]) -> Result<(), TapError> {
    nets.iter().filter_map(NetConfig::tap).try_for_each(|name| open(name).map(drop))
}

/// Whether what guests are told that they may send goes through the tap devices that exist. One that
/// continues elsewhere keeps what it was told.
pub fn check_mtus(nets: &[NetConfig]) -> Result<(), TapError> {
    for net in nets {
        let Some(name) = net.tap() else { continue };
        let path = Path::new(INTERFACES).join(name).join("mtu");
        let mtu = std::fs::read_to_string(path).ok().and_then(|text| text.trim().parse().ok());
        if let Some(is) = mtu.filter(|is| *is < net.mtu) {
            return Err(TapError::Mtu { name: name.to_owned(), is, told: net.mtu });
        }
    }
    Ok(())
}

/// The bridge that a network interface is a port of.
pub fn bridge_of(name: &str) -> Option<String> {
    let master = std::fs::read_link(Path::new(INTERFACES).join(name).join("master")).ok()?;
    Some(master.file_name()?.to_str()?.to_owned())
}

/// Whether a process has the tap device open, and it is up.
pub fn is_used(name: &str) -> bool {
    let carrier = std::fs::read_to_string(Path::new(INTERFACES).join(name).join("carrier"));
    carrier.is_ok_and(|carrier| carrier.trim() == "1")
}

pub struct Tap {
    file: File,
    /// A packet that came in, if its length is not zero.
    packet: Box<[u8]>,
    length: usize,
    /// A packet that could not be sent yet.
    waiting: Vec<u8>,
}

impl Tap {
    pub fn new(file: File) -> Self {
        Self { file, packet: vec![0; HEADER + MOST_FRAME].into(), length: 0, waiting: Vec::new() }
    }

    /// Whether it was taken.
    fn write(file: &mut File, packet: &[u8]) -> Result<bool, Lost> {
        match file.write(packet) {
            Ok(_) => Ok(true),
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(false),
            Err(e) if e.raw_os_error() == Some(libc::EBADFD) => {
                Err(Lost::io("the tap device has been removed")(e))
            }
            // What the guest says of the packet makes no sense, or nobody is at the other end.
            Err(_) => Ok(true),
        }
    }
}

/// What the kernel may leave to a driver with these features. It refuses any without the checksum, and the
/// device would be given up over what a guest chose.
fn offloads(features: u64) -> libc::c_uint {
    if features & GUEST_CSUM == 0 {
        return 0;
    }
    let takes = OFFLOADS.iter().filter(|(feature, _)| features & feature != 0);
    takes.fold(0, |all, (_, offload)| all | offload)
}

impl Backend for Tap {
    fn fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    fn peek(&mut self) -> Result<Option<Incoming<'_>>, Lost> {
        if self.length == 0 {
            match self.file.read(&mut self.packet) {
                Ok(count) => self.length = count,
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
                Err(e) => return Err(Lost::io("reading from the tap device failed")(e)),
            }
        }
        let packet = self.packet.get(..self.length).unwrap_or_default();
        Ok(packet.split_first_chunk().map(|(header, frame)| Incoming { header: *header, frame }))
    }

    fn drop_frame(&mut self) {
        self.length = 0;
    }

    fn has_frame(&self) -> bool {
        self.length != 0
    }

    fn is_blocked(&self) -> bool {
        !self.waiting.is_empty()
    }

    fn send(&mut self, packet: &mut [u8]) -> Result<(), Lost> {
        if !Self::write(&mut self.file, packet)? {
            self.waiting.extend_from_slice(packet);
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Lost> {
        if !self.waiting.is_empty() && Self::write(&mut self.file, &self.waiting)? {
            self.waiting.clear();
        }
        Ok(())
    }

    fn set_offloads(&mut self, features: u64) -> Result<(), Lost> {
        let offloads = offloads(features);
        // SAFETY: the request takes a number.
        match unsafe { libc::ioctl(self.file.as_raw_fd(), TUNSETOFFLOAD, libc::c_ulong::from(offloads)) } {
            0.. => Ok(()),
            _ => Err(Lost::io("cannot set up the tap device")(std::io::Error::last_os_error())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_driver_that_takes_no_checksums_takes_nothing() {
        assert_eq!(offloads(u64::MAX), 1 | 2 | 4 | 8);
        assert_eq!(offloads(GUEST_CSUM | 1 << 7), 1 | 2);
        assert_eq!(offloads(!GUEST_CSUM), 0);
    }
}
