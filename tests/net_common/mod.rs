//! Guests with a network, and who they talk to.

#![allow(dead_code, unused_imports, reason = "each test binary uses a part of this")]

mod island;
mod names;

use std::io::{BufRead, BufReader, Error, Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::ops::{Deref, DerefMut};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

pub use island::{ask, ip, on_an_island, powerless, taken};
pub use names::Names;

use crate::ckpt_common::Lab;
use crate::common::{Terminal, is_root, skip, until};

pub fn has_passt() -> bool {
    let found = std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default())
        .any(|dir| dir.join("passt").exists());
    if !found {
        skip("the network `user` needs passt");
    }
    found
}

pub fn has_ipv6() -> bool {
    let has = TcpListener::bind("[::1]:0").is_ok();
    if !has {
        skip("this host has no IPv6");
    }
    has
}

pub fn may_make_taps() -> bool {
    let may = is_root() && Path::new("/dev/net/tun").exists();
    if !may {
        skip("tap devices need root and /dev/net/tun");
    }
    may
}

/// One that nobody has.
pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// passt processes of this home.
pub fn passts(lab: &Lab) -> Vec<i32> {
    let is_passt = |pid: &i32| {
        std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.starts_with("passt"))
    };
    lab.home.processes().into_iter().filter(is_passt).collect()
}

/// The console of a guest with an address.
pub struct Guest {
    console: Terminal,
    answer: String,
}

impl Guest {
    /// Waits for its address.
    pub fn new(mut console: Terminal) -> Self {
        let answer = until("the guest's address", || {
            let answer = console.ok("net");
            (!answer.contains("address=none")).then_some(answer)
        });
        Self { console, answer }
    }

    fn word(&self, name: &str) -> String {
        let found = self.answer.split_whitespace().find_map(|word| word.strip_prefix(&format!("{name}=")));
        found.unwrap_or_else(|| panic!("{name}: {}", self.answer)).to_owned()
    }

    pub fn gateway(&self) -> String {
        self.word("gateway")
    }

    pub fn address(&self) -> String {
        self.word("address").split('/').next().unwrap().to_owned()
    }
}

impl Deref for Guest {
    type Target = Terminal;
    fn deref(&self) -> &Terminal {
        &self.console
    }
}

impl DerefMut for Guest {
    fn deref_mut(&mut self) -> &mut Terminal {
        &mut self.console
    }
}

/// Boots a VM and waits until its guest has an address.
pub fn start(lab: &Lab, name: &str, options: &str) -> Guest {
    lab.piton(&format!("run {name} --detach --memory 64M {options}")).ok();
    let mut console = lab.attach(name);
    console.ready();
    Guest::new(console)
}

/// Asks 127.0.0.1:`port`; what comes back as text, with its headers.
pub fn fetch(port: u16, path: &str) -> Result<String, Error> {
    fetch_at("127.0.0.1", port, path)
}

pub fn fetch_at(address: &str, port: u16, path: &str) -> Result<String, Error> {
    Ok(String::from_utf8_lossy(&bytes_at(address, port, path)?).into_owned())
}

pub fn fetch_bytes(port: u16, path: &str) -> Result<Vec<u8>, Error> {
    bytes_at("127.0.0.1", port, path)
}

fn bytes_at(address: &str, port: u16, path: &str) -> Result<Vec<u8>, Error> {
    let mut stream = TcpStream::connect((address, port))?;
    stream.set_read_timeout(Some(std::time::Duration::from_secs(30)))?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    Ok(answer)
}

/// Waits until the guest behind 127.0.0.1:`port` answers, and asserts that it is its answer of this
/// number. What it says too early, before it listens, is not counted.
#[track_caller]
pub fn served(port: u16, number: u64) {
    let answer = until("the forward to lead to the guest", || {
        fetch(port, "/").ok().filter(|text| text.contains("seq="))
    });
    assert!(answer.contains(&format!("seq={number} ")), "{answer}");
}

/// A web server, on the loopback of this host unless said otherwise. `/hang` is never answered.
pub struct Host {
    port: u16,
    hanging: Arc<AtomicUsize>,
}

impl Host {
    pub fn new() -> Self {
        Self::at("127.0.0.1")
    }

    /// On another address of this host.
    pub fn at(address: &str) -> Self {
        let listener = TcpListener::bind((address, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let hanging = Arc::new(AtomicUsize::new(0));
        let count = hanging.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let count = count.clone();
                std::thread::spawn(move || answer(stream, &count));
            }
        });
        Self { port, hanging }
    }

    /// As the guest sees it: its gateway is this host's loopback.
    pub fn url(&self, gateway: &str, path: &str) -> String {
        format!("http://{gateway}:{}{path}", self.port)
    }

    /// Sends datagrams back; returns where the guest finds it.
    pub fn echo(&self, gateway: &str) -> String {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let port = socket.local_addr().unwrap().port();
        std::thread::spawn(move || {
            let mut buffer = [0; 2048];
            while let Ok((count, from)) = socket.recv_from(&mut buffer) {
                let _ = socket.send_to(&buffer[..count], from);
            }
        });
        format!("{gateway}:{port}")
    }

    pub fn wait_for_hanging(&self) {
        until("the guest's request", || (self.hanging.load(Ordering::SeqCst) > 0).then_some(()));
    }
}

fn answer(mut stream: TcpStream, hanging: &AtomicUsize) {
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
    let hangs = lines.next().is_some_and(|line| line.contains("/hang"));
    for _ in lines.by_ref().take_while(|line| !line.is_empty()) {}
    if hangs {
        hanging.fetch_add(1, Ordering::SeqCst);
        // Until the other side ends it.
        let _ = lines.next();
        return;
    }
    let _ = write!(stream, "HTTP/1.0 200 OK\r\nContent-Length: 6\r\nConnection: close\r\n\r\nhello\n");
}
