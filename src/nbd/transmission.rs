//! Requests and their answers.

use std::io::{self, Read, Write};

use super::handshake::{Agreed, CONTEXT, REQUEST_MAX};
use super::wire::*;

/// Most extents in one answer; a client asks again for the rest.
const EXTENTS_MAX: usize = 1024;
/// Data of one chunk at most, where a read may come in pieces.
const CHUNK: u64 = 1 << 20;

pub struct Request {
    flags: u16,
    kind: u16,
    cookie: u64,
    offset: u64,
    len: u32,
}

/// Why a request is not done; the connection goes on.
struct Failure(u32, String);

fn invalid(why: &str) -> Failure {
    Failure(EINVAL, why.to_owned())
}

impl Request {
    /// None: the client wants no more.
    pub fn read(stream: &mut impl Read) -> Result<Option<Self>, Broken> {
        if read_u32(stream)? != REQUEST_MAGIC {
            return Err(Broken::Protocol("no magic before a request"));
        }
        let request = Self {
            flags: u16::from_be_bytes(read_array(stream)?),
            kind: u16::from_be_bytes(read_array(stream)?),
            cookie: read_u64(stream)?,
            offset: read_u64(stream)?,
            len: read_u32(stream)?,
        };
        if request.kind == CMD_DISCONNECT {
            return Ok(None);
        }
        if request.kind == CMD_WRITE {
            if request.len > REQUEST_MAX {
                return Err(Broken::Protocol("a write that is too long"));
            }
            // What is to be written has to be taken off the line to get at the next request.
            io::copy(&mut stream.take(request.len.into()), &mut io::sink())?;
        }
        Ok(Some(request))
    }
}

pub fn answer(stream: &mut impl Write, agreed: &Agreed, request: &Request) -> Result<(), Broken> {
    let done = match request.kind {
        CMD_READ => read(stream, agreed, request)?,
        CMD_BLOCK_STATUS => block_status(stream, agreed, request)?,
        CMD_WRITE | CMD_TRIM | CMD_WRITE_ZEROES => Err(Failure(EPERM, "the disk is read-only".into())),
        _ => Err(invalid("unknown request")),
    };
    match done {
        Ok(()) => Ok(()),
        Err(Failure(error, why)) => fail(stream, agreed, request, error, &why),
    }
}

/// What is not done is told by the inner error.
type Done = Result<Result<(), Failure>, Broken>;

/// The end of the range that a request is about.
fn check(agreed: &Agreed, request: &Request, flags: u16) -> Result<u64, Failure> {
    if request.flags & !flags != 0 {
        return Err(invalid("the request has unknown flags"));
    }
    if request.len == 0 {
        return Err(invalid("the request has length zero"));
    }
    match request.offset.checked_add(request.len.into()) {
        Some(end) if end <= agreed.export.disk.len() => Ok(end),
        _ => Err(invalid("the request extends beyond the end of the disk")),
    }
}

fn chunk(
    stream: &mut impl Write,
    request: &Request,
    flags: u16,
    kind: u16,
    parts: &[&[u8]],
) -> Result<(), Broken> {
    let len = parts.iter().map(|part| part.len()).sum::<usize>() as u32;
    let head = [
        &STRUCTURED_REPLY_MAGIC.to_be_bytes()[..],
        &flags.to_be_bytes(),
        &kind.to_be_bytes(),
        &request.cookie.to_be_bytes(),
        &len.to_be_bytes(),
    ];
    send(stream, &head)?;
    for part in parts {
        stream.write_all(part)?;
    }
    Ok(())
}

fn simple(stream: &mut impl Write, request: &Request, error: u32) -> Result<(), Broken> {
    let head = [SIMPLE_REPLY_MAGIC.to_be_bytes(), error.to_be_bytes()].concat();
    Ok(send(stream, &[&head, &request.cookie.to_be_bytes()])?)
}

fn fail(
    stream: &mut impl Write,
    agreed: &Agreed,
    request: &Request,
    error: u32,
    why: &str,
) -> Result<(), Broken> {
    if !agreed.structured {
        return simple(stream, request, error);
    }
    let why = &why.as_bytes()[..why.len().min(usize::from(u16::MAX) >> 4)];
    let len = why.len() as u16;
    chunk(stream, request, CHUNK_DONE, CHUNK_ERROR, &[&error.to_be_bytes(), &len.to_be_bytes(), why])
}

fn read(stream: &mut impl Write, agreed: &Agreed, request: &Request) -> Done {
    let end = match check(agreed, request, if agreed.structured { FLAG_DF } else { 0 }) {
        Ok(end) => end,
        Err(failure) => return Ok(Err(failure)),
    };
    if request.len > REQUEST_MAX {
        return Ok(Err(invalid("the request is too long to be read at once")));
    }
    let disk = &agreed.export.disk;
    let bytes = |from: u64, to: u64| {
        let mut bytes = vec![0; (to - from) as usize];
        let read = disk.read_at(&mut bytes, from);
        read.map(|()| bytes).map_err(|e| {
            log::warn!("disk {}: {e}", agreed.export.name);
            Failure(EIO, e.to_string())
        })
    };
    if !agreed.structured || request.flags & FLAG_DF != 0 {
        let bytes = match bytes(request.offset, end) {
            Ok(bytes) => bytes,
            Err(failure) => return Ok(Err(failure)),
        };
        if agreed.structured {
            let offset = request.offset.to_be_bytes();
            chunk(stream, request, CHUNK_DONE, CHUNK_DATA, &[&offset, &bytes])?;
        } else {
            simple(stream, request, 0)?;
            stream.write_all(&bytes)?;
        }
        return Ok(Ok(()));
    }
    let mut at = request.offset;
    while at < end {
        let (data, upto) = match extent(agreed, at, end) {
            Ok(extent) => extent,
            Err(failure) => return Ok(Err(failure)),
        };
        let offset = at.to_be_bytes();
        if data {
            let upto = upto.min(at + CHUNK);
            let bytes = match bytes(at, upto) {
                Ok(bytes) => bytes,
                Err(failure) => return Ok(Err(failure)),
            };
            chunk(stream, request, 0, CHUNK_DATA, &[&offset, &bytes])?;
            at = upto;
        } else {
            let len = ((upto - at) as u32).to_be_bytes();
            chunk(stream, request, 0, CHUNK_HOLE, &[&offset, &len])?;
            at = upto;
        }
    }
    chunk(stream, request, CHUNK_DONE, CHUNK_NONE, &[])?;
    Ok(Ok(()))
}

/// Whether there is data at `at`, and up to where that holds, `end` at most.
fn extent(agreed: &Agreed, at: u64, end: u64) -> Result<(bool, u64), Failure> {
    let found = agreed.export.disk.next_data(at).map_err(|e| Failure(EIO, e.to_string()))?;
    Ok(match found {
        Some(data) if data.start <= at => (true, data.end.clamp(at + 1, end)),
        Some(data) => (false, data.start.min(end)),
        None => (false, end),
    })
}

fn block_status(stream: &mut impl Write, agreed: &Agreed, request: &Request) -> Done {
    let end = match check(agreed, request, FLAG_REQ_ONE) {
        Ok(end) => end,
        Err(failure) => return Ok(Err(failure)),
    };
    if !agreed.status {
        return Ok(Err(invalid("no metadata context was negotiated for block status")));
    }
    let most = if request.flags & FLAG_REQ_ONE != 0 { 1 } else { EXTENTS_MAX };
    let mut extents: Vec<(u32, u32)> = Vec::new();
    let mut at = request.offset;
    while at < end {
        let (data, upto) = match extent(agreed, at, end) {
            Ok(extent) => extent,
            Err(failure) => return Ok(Err(failure)),
        };
        let (len, status) = ((upto - at) as u32, if data { 0 } else { HOLE_AND_ZERO });
        let full = extents.len() == most;
        match extents.last_mut() {
            Some((last, same)) if *same == status => *last += len,
            _ if full => break,
            _ => extents.push((len, status)),
        }
        at = upto;
    }
    let mut payload = CONTEXT.to_be_bytes().to_vec();
    for (len, status) in extents {
        payload.extend([len.to_be_bytes(), status.to_be_bytes()].concat());
    }
    chunk(stream, request, CHUNK_DONE, CHUNK_STATUS, &[&payload])?;
    Ok(Ok(()))
}
