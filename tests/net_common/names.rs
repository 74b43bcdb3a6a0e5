//! A server for names, which this host's resolver is told of.

use std::io::Write;
use std::net::{IpAddr, UdpSocket};
use std::process::Command;

/// Gone at its end, with the file that tells of it.
pub struct Names {
    _file: tempfile::NamedTempFile,
}

/// Types of records (RFC 1035 and 3596).
const A: u16 = 1;
const AAAA: u16 = 28;
const NO_SUCH_NAME: u8 = 3;

impl Names {
    /// On an island only: port 53 and /etc/resolv.conf are this thread's own there.
    pub fn serve<const N: usize>(names: [(&'static str, &'static str); N]) -> Self {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        writeln!(file, "nameserver 127.0.0.1").unwrap();
        // passt reads it as another user.
        let mut readable = file.as_file().metadata().unwrap().permissions();
        std::os::unix::fs::PermissionsExt::set_mode(&mut readable, 0o644);
        file.as_file().set_permissions(readable).unwrap();
        let bound = Command::new("mount").arg("--bind").arg(file.path()).arg("/etc/resolv.conf").status();
        assert!(bound.unwrap().success());
        let socket = UdpSocket::bind("127.0.0.1:53").unwrap();
        std::thread::spawn(move || {
            let mut buffer = [0; 512];
            while let Ok((count, from)) = socket.recv_from(&mut buffer) {
                if let Some(reply) = answer(&buffer[..count], &names) {
                    let _ = socket.send_to(&reply, from);
                }
            }
        });
        Self { _file: file }
    }
}

/// One question, and at most one answer to it.
fn answer(query: &[u8], names: &[(&str, &str)]) -> Option<Vec<u8>> {
    let (mut at, mut labels) = (12, Vec::new());
    loop {
        let length = usize::from(*query.get(at)?);
        at += 1;
        if length == 0 {
            break;
        }
        labels.push(std::str::from_utf8(query.get(at..at + length)?).ok()?);
        at += length;
    }
    let name = labels.join(".");
    let kind = u16::from_be_bytes(*query.get(at..)?.first_chunk()?);
    let found = names.iter().find(|(known, _)| *known == name);
    let address = found.map(|(_, address)| address.parse::<IpAddr>().unwrap());
    let data = match (kind, address) {
        (A, Some(IpAddr::V4(address))) => address.octets().to_vec(),
        (AAAA, Some(IpAddr::V6(address))) => address.octets().to_vec(),
        _ => Vec::new(),
    };
    let count = u8::from(!data.is_empty());
    let code = if address.is_some() { 0 } else { NO_SUCH_NAME };
    let mut reply = query.get(..at + 4)?.to_vec();
    reply[2..12].copy_from_slice(&[0x81, 0x80 | code, 0, 1, 0, count, 0, 0, 0, 0]);
    if count == 1 {
        // The name is that of the question.
        reply.extend_from_slice(&[0xc0, 12]);
        reply.extend_from_slice(&kind.to_be_bytes());
        reply.extend_from_slice(&[0, 1, 0, 0, 0, 60, 0, data.len() as u8]);
        reply.extend_from_slice(&data);
    }
    Some(reply)
}
