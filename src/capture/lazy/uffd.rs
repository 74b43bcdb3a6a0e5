//! As much of userfaultfd as a restore needs (Documentation/admin-guide/mm/userfaultfd.rst,
//! linux/userfaultfd.h): the kernel tells of the first touch of a page, and who touched it waits
//! until the page is put there.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use vmm_sys_util::eventfd::EventFd;

use crate::layout::PAGE_SIZE;

const API: u64 = 0xaa;
const UFFDIO_API: libc::c_ulong = 0xc018_aa3f;
const UFFDIO_REGISTER: libc::c_ulong = 0xc020_aa00;
const UFFDIO_UNREGISTER: libc::c_ulong = 0x8010_aa01;
const UFFDIO_WAKE: libc::c_ulong = 0x8010_aa02;
const UFFDIO_COPY: libc::c_ulong = 0xc028_aa03;
const UFFDIO_ZEROPAGE: libc::c_ulong = 0xc020_aa04;
const USERFAULTFD_IOC_NEW: libc::c_ulong = 0xaa00;
const MODE_MISSING: u64 = 1;
const EVENT_PAGEFAULT: u8 = 0x12;
/// Messages that are read at once.
const MESSAGES: usize = 16;

#[repr(C)]
struct Api {
    api: u64,
    features: u64,
    ioctls: u64,
}

#[repr(C)]
struct Register {
    start: u64,
    len: u64,
    mode: u64,
    ioctls: u64,
}

#[repr(C)]
struct Range {
    start: u64,
    len: u64,
}

#[repr(C)]
struct Copy {
    dst: u64,
    src: u64,
    len: u64,
    mode: u64,
    copied: i64,
}

#[repr(C)]
struct Zero {
    start: u64,
    len: u64,
    mode: u64,
    zeroed: i64,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Message {
    event: u8,
    reserved: [u8; 7],
    flags: u64,
    address: u64,
    thread: u64,
}

#[derive(Debug)]
pub struct Uffd {
    fd: OwnedFd,
}

/// What became of a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Put {
    Done,
    /// It is not watched any more, or was unmapped.
    Gone,
}

impl Uffd {
    /// One that also serves touches by the kernel, such as KVM's. Not everybody may have that: the
    /// system call needs a privilege or vm.unprivileged_userfaultfd, the device permission.
    pub fn new() -> io::Result<Self> {
        let flags = libc::O_CLOEXEC | libc::O_NONBLOCK;
        // SAFETY: the call takes flags only.
        let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, flags) };
        let fd = match RawFd::try_from(fd) {
            Ok(fd @ 0..) => fd,
            _ => {
                let refused = io::Error::last_os_error();
                let device = OpenOptions::new().read(true).write(true).open("/dev/userfaultfd");
                let device = device.map_err(|_| refused)?;
                // SAFETY: the descriptor is open; the request takes flags only.
                let fd = unsafe { libc::ioctl(device.as_raw_fd(), USERFAULTFD_IOC_NEW, flags) };
                if fd < 0 {
                    return Err(io::Error::last_os_error());
                }
                fd
            }
        };
        // SAFETY: the kernel has just given this descriptor to us alone.
        let uffd = Self { fd: unsafe { OwnedFd::from_raw_fd(fd) } };
        uffd.ioctl(UFFDIO_API, &mut Api { api: API, features: 0, ioctls: 0 })?;
        Ok(uffd)
    }

    /// `T` has to be what `request` takes.
    fn ioctl<T>(&self, request: libc::c_ulong, argument: &mut T) -> io::Result<()> {
        // SAFETY: the descriptor is open, and `argument` is valid for reads and writes of the
        // structure that the request takes: every caller in this file pairs them as the header
        // does. Memory that the structure points to is spoken of there.
        match unsafe { libc::ioctl(self.fd.as_raw_fd(), request, argument) } {
            0.. => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// From here on a touch of a page that is not there waits for [`Uffd::copy`] or
    /// [`Uffd::zero`].
    pub fn watch(&self, start: u64, len: u64) -> io::Result<()> {
        self.ioctl(UFFDIO_REGISTER, &mut Register { start, len, mode: MODE_MISSING, ioctls: 0 })
    }

    /// Pages that are not there are zeros from here on; whoever waits goes on.
    pub fn release(&self, start: u64, len: u64) -> io::Result<()> {
        self.ioctl(UFFDIO_UNREGISTER, &mut Range { start, len })
    }

    fn wake(&self, start: u64, len: u64) -> io::Result<()> {
        self.ioctl(UFFDIO_WAKE, &mut Range { start, len })
    }

    /// Puts whole pages where there are none; one that is there stays as it is.
    pub fn copy(&self, start: u64, pages: &[u8]) -> io::Result<Put> {
        self.put(start, pages.len() as u64, |at, len| {
            // The kernel reads `len` bytes from `src`, all of them within `pages`; it writes to
            // memory that it has under watch for us and nowhere else.
            let src = pages.as_ptr() as u64 + (at - start);
            let mut copy = Copy { dst: at, src, len, mode: 0, copied: 0 };
            (self.ioctl(UFFDIO_COPY, &mut copy), copy.copied)
        })
    }

    /// [`Uffd::copy`] of zeros.
    pub fn zero(&self, start: u64, len: u64) -> io::Result<Put> {
        self.put(start, len, |at, len| {
            let mut zero = Zero { start: at, len, mode: 0, zeroed: 0 };
            (self.ioctl(UFFDIO_ZEROPAGE, &mut zero), zero.zeroed)
        })
    }

    fn put(
        &self,
        start: u64,
        len: u64,
        mut try_put: impl FnMut(u64, u64) -> (io::Result<()>, i64),
    ) -> io::Result<Put> {
        let (mut at, end) = (start, start + len);
        let mut was_there = false;
        while at < end {
            let (result, done) = try_put(at, end - at);
            let Err(error) = result else { break };
            if let Ok(done @ 1..) = u64::try_from(done) {
                at += done;
                continue;
            }
            match error.raw_os_error() {
                Some(libc::EEXIST) => {
                    was_there = true;
                    at += PAGE_SIZE;
                }
                // The address space is just changing; EINTR cannot be, and would be the same.
                Some(libc::EAGAIN | libc::EINTR) => {}
                Some(libc::ENOENT | libc::ESRCH) => return Ok(Put::Gone),
                _ => return Err(error),
            }
        }
        if was_there {
            // Who put those pages there woke whoever waited then; this is for one that came since.
            let _ = self.wake(start, len);
        }
        Ok(Put::Done)
    }

    /// Addresses that somebody waits for; none when `stop` is signalled.
    pub fn wait(&self, stop: &EventFd) -> io::Result<Vec<u64>> {
        loop {
            let watch = |fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
            let mut polled = [watch(stop.as_raw_fd()), watch(self.fd.as_raw_fd())];
            // SAFETY: `polled` is valid for reads and writes of its two elements.
            let ready = unsafe { libc::poll(polled.as_mut_ptr(), 2, -1) };
            if ready < 0 {
                let error = io::Error::last_os_error();
                if error.kind() == io::ErrorKind::Interrupted {
                    continue;
                }
                return Err(error);
            }
            if polled[0].revents != 0 {
                return Ok(Vec::new());
            }
            let addresses = self.read()?;
            if !addresses.is_empty() {
                return Ok(addresses);
            }
        }
    }

    fn read(&self) -> io::Result<Vec<u64>> {
        let mut messages = [Message::default(); MESSAGES];
        let len = std::mem::size_of_val(&messages);
        // SAFETY: `messages` is valid for writes of `len` bytes, and any bytes are a Message.
        let got = unsafe { libc::read(self.fd.as_raw_fd(), messages.as_mut_ptr().cast(), len) };
        let Ok(got) = usize::try_from(got) else {
            let error = io::Error::last_os_error();
            return match error.kind() {
                // Who waited gave up: a signal came.
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Ok(Vec::new()),
                _ => Err(error),
            };
        };
        let messages = &messages[..got / size_of::<Message>()];
        Ok(messages.iter().filter(|m| m.event == EVENT_PAGEFAULT).map(|m| m.address).collect())
    }
}
