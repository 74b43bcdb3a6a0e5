//! `net get URL`: what comes is counted and summed up, not kept.

use crate::cpu::tsc;
use crate::guest::Guest;
use crate::net::connect::{SILENCE_US, client, connect, need_address, read, resolve};
use crate::net::error::Error;
use crate::outcome::Fail;
use crate::text::Text;
use crate::{hash, say, time};
use core::fmt::Write;
use core::net::SocketAddr;

const HEAD: usize = 4096;
/// A body up to this long is shown.
const SHOWN: usize = 1024;

struct Answer {
    head: [u8; HEAD],
    head_len: usize,
    /// Where the body begins is known.
    in_body: bool,
    bytes: u64,
    sum: u64,
    shown: [u8; SHOWN],
}

impl Answer {
    fn take(&mut self, bytes: &[u8]) {
        let mut bytes = bytes;
        while !self.in_body
            && let Some((&byte, rest)) = bytes.split_first()
            && self.head_len < HEAD
        {
            self.head[self.head_len] = byte;
            self.head_len += 1;
            self.in_body = self.head[..self.head_len].ends_with(b"\r\n\r\n");
            bytes = rest;
        }
        for &byte in bytes {
            if let Some(place) = self.shown.get_mut(self.bytes as usize) {
                *place = byte;
            }
            self.bytes += 1;
        }
        self.sum = hash::fnv(self.sum, bytes);
    }

    fn head(&self) -> &str {
        core::str::from_utf8(&self.head[..self.head_len]).unwrap_or("")
    }

    fn status(&self) -> Option<u16> {
        let (version, rest) = self.head().split_once(' ')?;
        version.starts_with("HTTP/").then(|| rest.get(..3)?.parse().ok())?
    }

    fn length(&self) -> Option<u64> {
        self.head().lines().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse().ok())?
        })
    }

    fn is_whole(&self) -> bool {
        self.in_body && self.length().is_some_and(|length| self.bytes >= length)
    }

    fn show(&self) {
        let body = self.shown.get(..self.bytes as usize).unwrap_or(&[]);
        let is_text = |byte: &u8| byte.is_ascii_graphic() || b" \n\r\t".contains(byte);
        if body.iter().all(is_text) {
            let lines = core::str::from_utf8(body).unwrap_or("").lines();
            lines.for_each(|line| say!("evt body {line}"));
        }
    }
}

/// Host, port and path. An IPv6 address is in brackets.
fn parse(url: &str) -> Option<(&str, u16, &str)> {
    let rest = url.strip_prefix("http://").unwrap_or(url);
    let (place, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    if let Some((host, rest)) = place.strip_prefix('[').and_then(|place| place.split_once(']')) {
        let port = if rest.is_empty() { 80 } else { rest.strip_prefix(':')?.parse().ok()? };
        return Some((host, port, if path.is_empty() { "/" } else { path }));
    }
    let (host, port) = match place.split_once(':') {
        Some((host, port)) => (host, port.parse().ok()?),
        None => (place, 80),
    };
    (!host.is_empty()).then_some((host, port, if path.is_empty() { "/" } else { path }))
}

pub fn get(g: &mut Guest, n: usize, url: &str) -> Result<(), Fail> {
    let (host, port, path) =
        parse(url).ok_or(Fail::Usage("net [N] get http://HOST[:PORT]/PATH"))?;
    need_address(g, n)?;
    let peer = SocketAddr::new(resolve(g, n, host)?, port);
    let started = tsc();
    connect(g, n, peer)?;
    let mut request = Text::<768>::new();
    let text =
        write!(request, "GET {path} HTTP/1.0\r\nHost: {host}:{port}\r\nConnection: close\r\n\r\n");
    text.map_err(|_| Fail::Text("the URL is too long"))?;
    client(g, n)?.send_slice(request.as_bytes()).map_err(|_| Error::Reset)?;

    let mut answer = Answer {
        head: [0; HEAD],
        head_len: 0,
        in_body: false,
        bytes: 0,
        sum: hash::FNV_START,
        shown: [0; SHOWN],
    };
    let (mut last, mut longest) = (tsc(), 0);
    let ended = loop {
        let step = g.until(SILENCE_US, |g| match client(g, n) {
            Ok(socket) => read(socket, |bytes| answer.take(bytes)).transpose(),
            Err(e) => Some(Err(e)),
        });
        let now = tsc();
        longest = longest.max(time::us(now.wrapping_sub(last)));
        last = now;
        match step {
            Some(Ok(true)) if !answer.is_whole() => {}
            Some(Ok(_)) => break Ok(()),
            Some(Err(_)) if answer.is_whole() => break Ok(()),
            // It gave up by itself.
            Some(Err(_)) if longest >= SILENCE_US / 10 * 9 => break Err(Error::Silence),
            Some(Err(e)) => break Err(e),
            None => break Err(Error::Silence),
        }
    };
    if let Ok(socket) = client(g, n) {
        socket.close();
    }
    let us = time::us_since(started).max(1);
    let complete = ended.and(match answer.status() {
        None if answer.bytes == 0 && !answer.in_body => Err(Error::Short),
        None => Err(Error::NotHttp),
        Some(_) if answer.length().is_some_and(|length| answer.bytes < length) => Err(Error::Short),
        Some(status) => Ok(status),
    });
    let Answer { bytes, sum, .. } = answer;
    let status = complete.map_err(|e| Fail::NetAfter(e, bytes))?;
    if bytes <= SHOWN as u64 {
        answer.show();
    }
    let mb_s = bytes / us;
    say!(
        "ok get status={status} bytes={bytes} fnv={sum:016x} ms={} mb_s={mb_s} gap_us={longest}",
        us / 1000
    );
    Ok(())
}
