use std::io::{Read, Write};
use std::ops::Range;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use proptest::prelude::*;

use super::conversation::converse;
use super::export::Export;
use super::server::Server;
use super::wire::*;
use crate::disk::{Backing, DiskError};

const SIZE: u64 = 1 << 20;

/// Data in its second 64 KiB; an error in its last sector.
struct Disk;

impl Backing for Disk {
    fn len(&self) -> u64 {
        SIZE
    }
    fn read_at(&self, buf: &mut [u8], offset: u64) -> crate::disk::Result<()> {
        assert!(offset + buf.len() as u64 <= SIZE, "it is asked for what is not there");
        if offset + buf.len() as u64 > SIZE - 512 {
            return Err(DiskError::Broken);
        }
        for (byte, at) in buf.iter_mut().zip(offset..) {
            *byte = if (65536..131_072).contains(&at) { 7 } else { 0 };
        }
        Ok(())
    }
    fn next_data(&self, offset: u64) -> crate::disk::Result<Option<Range<u64>>> {
        Ok([65536..131_072, SIZE - 512..SIZE]
            .into_iter()
            .find(|data| offset < data.end)
            .map(|data| data.start.max(offset)..data.end))
    }
}

struct Client {
    stream: UnixStream,
    server: Option<std::thread::JoinHandle<Result<(), Broken>>>,
}

fn exports() -> Vec<Export> {
    ["root", "data"]
        .map(|name| Export { name: name.into(), description: "of a test".into(), disk: Arc::new(Disk) })
        .into()
}

impl Client {
    fn connect() -> Self {
        let (stream, mut theirs) = UnixStream::pair().unwrap();
        let server = std::thread::spawn(move || converse(&mut theirs, &exports(), |_| ()));
        Self { stream, server: Some(server) }
    }

    fn hello(flags: u32) -> Self {
        let mut client = Self::connect();
        assert_eq!(client.bytes(18)[..16], *b"NBDMAGICIHAVEOPT");
        client.send(&[&flags.to_be_bytes()]);
        client
    }

    fn send(&mut self, parts: &[&[u8]]) {
        self.stream.write_all(&parts.concat()).unwrap();
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.stream.read_exact(&mut bytes).unwrap();
        bytes
    }

    fn u32(&mut self) -> u32 {
        read_u32(&mut self.stream).unwrap()
    }

    fn u64(&mut self) -> u64 {
        read_u64(&mut self.stream).unwrap()
    }

    fn option(&mut self, option: u32, data: &[u8]) {
        let len = data.len() as u32;
        self.send(&[b"IHAVEOPT", &option.to_be_bytes(), &len.to_be_bytes(), data]);
    }

    /// The kind of the next reply to an option, and what it carries.
    fn reply(&mut self, option: u32) -> (u32, Vec<u8>) {
        assert_eq!((self.u64(), self.u32()), (OPTION_REPLY_MAGIC, option));
        let (kind, len) = (self.u32(), self.u32());
        (kind, self.bytes(len as usize))
    }

    fn request(&mut self, flags: u16, kind: u16, offset: u64, len: u32) {
        self.send(&[&REQUEST_MAGIC.to_be_bytes(), &flags.to_be_bytes(), &kind.to_be_bytes()]);
        self.send(&[&9u64.to_be_bytes(), &offset.to_be_bytes(), &len.to_be_bytes()]);
    }

    fn simple(&mut self) -> u32 {
        assert_eq!(self.u32(), SIMPLE_REPLY_MAGIC);
        let error = self.u32();
        assert_eq!(self.u64(), 9);
        error
    }

    /// Flags, kind and payload of a chunk.
    fn chunk(&mut self) -> (u16, u16, Vec<u8>) {
        assert_eq!(self.u32(), STRUCTURED_REPLY_MAGIC);
        let kinds = self.u32();
        assert_eq!(self.u64(), 9);
        let len = self.u32();
        ((kinds >> 16) as u16, kinds as u16, self.bytes(len as usize))
    }

    fn go(&mut self, name: &str) {
        let len = name.len() as u32;
        self.option(OPT_GO, &[&len.to_be_bytes(), name.as_bytes(), &[0, 0]].concat());
        assert_eq!(self.reply(OPT_GO).0, REP_INFO);
        assert_eq!(self.reply(OPT_GO).0, REP_ACK);
    }

    fn structured(&mut self) {
        self.option(OPT_STRUCTURED_REPLY, &[]);
        assert_eq!(self.reply(OPT_STRUCTURED_REPLY).0, REP_ACK);
    }

    fn context(&mut self, option: u32, name: &str, query: &str) -> Vec<(u32, Vec<u8>)> {
        let (len, count, query_len) = (name.len() as u32, 1u32, query.len() as u32);
        let data = [
            &len.to_be_bytes(),
            name.as_bytes(),
            &count.to_be_bytes(),
            &query_len.to_be_bytes(),
            query.as_bytes(),
        ];
        self.option(option, &data.concat());
        let mut replies = Vec::new();
        loop {
            replies.push(self.reply(option));
            if replies.last().unwrap().0 != REP_META_CONTEXT {
                return replies;
            }
        }
    }

    /// How the server took it.
    fn end(mut self) -> Result<(), Broken> {
        let server = self.server.take().unwrap();
        let mut rest = Vec::new();
        self.stream.shutdown(std::net::Shutdown::Write).unwrap();
        // A server that went without reading all resets the connection.
        let _ = self.stream.read_to_end(&mut rest);
        server.join().expect("it does not panic")
    }
}

#[test]
fn an_old_client_gets_simple_replies() {
    let mut client = Client::hello(1);
    client.option(OPT_EXPORT_NAME, b"data");
    assert_eq!(client.u64(), SIZE);
    assert_eq!(client.bytes(2), (HAS_FLAGS | READ_ONLY | CAN_MULTI_CONN).to_be_bytes());
    assert_eq!(client.bytes(124), [0; 124]);
    client.request(0, CMD_READ, 65000, 1000);
    assert_eq!(client.simple(), 0);
    let bytes = client.bytes(1000);
    assert!(bytes[..536] == [0; 536] && bytes[536..] == [7; 464]);
    for (flags, kind, offset, len, error) in [
        (0, CMD_READ, SIZE - 512, 512, EIO),
        (0, CMD_READ, SIZE - 511, 512, EINVAL),
        (0, CMD_READ, u64::MAX, 2, EINVAL),
        (0, CMD_READ, 0, 0, EINVAL),
        (0, CMD_READ, 0, u32::MAX, EINVAL),
        (1 << 9, CMD_READ, 0, 512, EINVAL),
        (FLAG_DF, CMD_READ, 0, 512, EINVAL),
        (0, CMD_TRIM, 0, 512, EPERM),
        (0, CMD_WRITE_ZEROES, 0, 512, EPERM),
        (0, CMD_BLOCK_STATUS, 0, 512, EINVAL),
        (0, 99, 0, 512, EINVAL),
    ] {
        client.request(flags, kind, offset, len);
        assert_eq!(client.simple(), error, "{flags} {kind} {offset} {len}");
    }
    client.request(0, CMD_WRITE, 0, 512);
    client.send(&[&[1; 512]]);
    assert_eq!(client.simple(), EPERM);
    client.request(0, CMD_DISCONNECT, 0, 0);
    client.end().unwrap();
}

#[test]
fn a_new_client_gets_holes_and_block_status() {
    let mut client = Client::hello(3);
    client.option(OPT_LIST, &[]);
    assert_eq!(client.reply(OPT_LIST), (REP_SERVER, b"\0\0\0\x04root".to_vec()));
    assert_eq!(client.reply(OPT_LIST), (REP_SERVER, b"\0\0\0\x04data".to_vec()));
    assert_eq!(client.reply(OPT_LIST).0, REP_ACK);
    assert_eq!(client.context(OPT_SET_META_CONTEXT, "root", BASE_ALLOCATION)[0].0, REP_ERR_INVALID);
    client.structured();
    assert_eq!(client.context(OPT_LIST_META_CONTEXT, "", "base:")[0].1[4..], *BASE_ALLOCATION.as_bytes());
    assert_eq!(client.context(OPT_SET_META_CONTEXT, "root", "qemu:dirty-bitmap:x")[0].0, REP_ACK);
    assert_eq!(client.context(OPT_SET_META_CONTEXT, "none", BASE_ALLOCATION)[0].0, REP_ERR_UNKNOWN);
    assert_eq!(client.context(OPT_SET_META_CONTEXT, "", BASE_ALLOCATION).len(), 2);
    client.option(77, b"what");
    assert_eq!(client.reply(77).0, REP_ERR_UNSUPPORTED);
    client.option(OPT_INFO, &[&[0, 0, 0, 4][..], b"root", &[0, 3], &[0, 1], &[0, 2], &[0, 3]].concat());
    let said: Vec<_> = (0..5).map(|_| client.reply(OPT_INFO)).collect();
    assert_eq!(said[0].1[2..10], SIZE.to_be_bytes());
    assert_eq!(said[1].1[2..], *b"root");
    assert_eq!(said[4].0, REP_ACK);
    client.go("root");

    client.request(0, CMD_READ, 65000, 1000);
    let (flags, kind, hole) = client.chunk();
    assert_eq!((flags, kind, &hole[8..]), (0, CHUNK_HOLE, &536u32.to_be_bytes()[..]));
    let (_, kind, data) = client.chunk();
    assert_eq!((kind, &data[..8]), (CHUNK_DATA, &65536u64.to_be_bytes()[..]));
    assert_eq!(data[8..], [7; 464]);
    assert_eq!(client.chunk(), (CHUNK_DONE, CHUNK_NONE, Vec::new()));
    client.request(FLAG_DF, CMD_READ, 65000, 1000);
    let (flags, kind, data) = client.chunk();
    assert_eq!((flags, kind, data.len()), (CHUNK_DONE, CHUNK_DATA, 1008));
    client.request(0, CMD_READ, SIZE - 1024, 1024);
    assert_eq!(client.chunk().1, CHUNK_HOLE);
    let (flags, kind, error) = client.chunk();
    assert_eq!((flags, kind, &error[..4]), (CHUNK_DONE, CHUNK_ERROR, &EIO.to_be_bytes()[..]));

    let extents = |payload: &[u8]| -> Vec<u32> {
        payload[4..].chunks(4).map(|word| u32::from_be_bytes(word.try_into().unwrap())).collect()
    };
    client.request(0, CMD_BLOCK_STATUS, 512, SIZE as u32 - 512);
    let (flags, kind, status) = client.chunk();
    assert_eq!((flags, kind), (CHUNK_DONE, CHUNK_STATUS));
    assert_eq!(extents(&status), [65024, 3, 65536, 0, SIZE as u32 - 131_072 - 512, 3, 512, 0]);
    client.request(FLAG_REQ_ONE, CMD_BLOCK_STATUS, 65536, SIZE as u32 - 65536);
    assert_eq!(extents(&client.chunk().2), [65536, 0]);
    client.request(0, CMD_BLOCK_STATUS, 0, u32::MAX);
    assert_eq!(client.chunk().1, CHUNK_ERROR);
    client.end().unwrap_err();
}

#[test]
fn block_status_is_of_the_export_that_it_was_chosen_for() {
    let mut client = Client::hello(3);
    client.structured();
    assert_eq!(client.context(OPT_SET_META_CONTEXT, "data", BASE_ALLOCATION).len(), 2);
    client.go("root");
    client.request(0, CMD_BLOCK_STATUS, 0, 512);
    assert_eq!(client.chunk().1, CHUNK_ERROR);
}

#[test]
fn who_breaks_the_protocol_is_left() {
    let mut no_flags = Client::connect();
    no_flags.bytes(18);
    no_flags.send(&[&[0; 4]]);
    assert!(matches!(no_flags.end(), Err(Broken::Protocol("flags"))));
    let mut unknown = Client::hello(3);
    unknown.option(OPT_EXPORT_NAME, b"nobody");
    assert!(matches!(unknown.end(), Err(Broken::Protocol(_))));
    let mut long = Client::hello(3);
    long.send(&[b"IHAVEOPT", &OPT_GO.to_be_bytes(), &u32::MAX.to_be_bytes()]);
    assert!(matches!(long.end(), Err(Broken::Protocol(_))));
    let mut write = Client::hello(3);
    write.go("");
    write.request(0, CMD_WRITE, 0, u32::MAX);
    assert!(matches!(write.end(), Err(Broken::Protocol(_))));
    let mut magic = Client::hello(3);
    magic.go("");
    magic.send(&[&[0xff; 28]]);
    assert!(matches!(magic.end(), Err(Broken::Protocol(_))));
    let mut abort = Client::hello(3);
    abort.option(OPT_ABORT, &[]);
    assert_eq!(abort.reply(OPT_ABORT).0, REP_ACK);
    abort.end().unwrap();
}

/// Reads what is given to it; what is written is lost.
struct Script<'a>(&'a [u8]);

impl Read for Script<'_> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        self.0.read(buf)
    }
}

impl Write for Script<'_> {
    fn write(&mut self, buf: &[u8]) -> std::io::Result<usize> {
        Ok(buf.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn option() -> impl Strategy<Value = Vec<u8>> {
    (0u32..12, prop::collection::vec(0u8..5, 0..40)).prop_map(|(option, data)| {
        [b"IHAVEOPT", &option.to_be_bytes()[..], &(data.len() as u32).to_be_bytes(), &data].concat()
    })
}

fn request() -> impl Strategy<Value = Vec<u8>> {
    let offset = prop_oneof![0..SIZE + 10, Just(u64::MAX)];
    let len = prop_oneof![0..2000u32, 0..(2 * SIZE) as u32, Just(u32::MAX)];
    (0u16..20, 0u16..9, offset, len).prop_map(|(flags, kind, offset, len)| {
        let head = [&REQUEST_MAGIC.to_be_bytes()[..], &flags.to_be_bytes(), &kind.to_be_bytes()].concat();
        [&head[..], &[1; 8], &offset.to_be_bytes(), &len.to_be_bytes()].concat()
    })
}

proptest! {
    /// Nothing makes it panic, or read where no disk is: the disk would notice.
    #[test]
    fn nothing_that_is_sent_brings_it_down(
        options in prop::collection::vec(option(), 0..6),
        go: bool,
        requests in prop::collection::vec(request(), 0..12),
        rest: Vec<u8>,
    ) {
        let mut sent = 3u32.to_be_bytes().to_vec();
        sent.extend([b"IHAVEOPT", &OPT_STRUCTURED_REPLY.to_be_bytes()[..], &[0; 4]].concat());
        sent.extend(options.concat());
        if go {
            sent.extend([b"IHAVEOPT", &OPT_GO.to_be_bytes()[..], &[0, 0, 0, 6], &[0; 6]].concat());
        }
        sent.extend(requests.concat());
        sent.extend(rest);
        let _ = converse(&mut Script(&sent), &exports(), |_| ());
    }
}

/// More than there are places for, silent in every state: before a word, in the middle of the
/// handshake, in the middle of a request, and between two requests.
#[test]
fn silent_clients_lock_nobody_out() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("nbd.sock");
    let mut server = Server::bind(&path).unwrap();
    server.serve(exports()).unwrap();
    let connect = || Client { stream: UnixStream::connect(&path).unwrap(), server: None };
    let negotiated = || {
        let mut client = connect();
        client.bytes(18);
        client.send(&[&3u32.to_be_bytes()]);
        client.send(&[&OPTION_MAGIC.to_be_bytes(), &OPT_EXPORT_NAME.to_be_bytes(), &0u32.to_be_bytes()]);
        assert_eq!(client.u64(), SIZE);
        client.bytes(2);
        client
    };
    let silent: Vec<Client> = (0..40)
        .map(|index| match index % 4 {
            0 => connect(),
            1 => {
                let mut client = connect();
                client.bytes(18);
                client.send(&[&[0; 2]]);
                client
            }
            2 => {
                let mut client = negotiated();
                client.send(&[&REQUEST_MAGIC.to_be_bytes()]);
                client
            }
            _ => negotiated(),
        })
        .collect();
    let mut client = negotiated();
    client.send(&[
        &REQUEST_MAGIC.to_be_bytes(),
        &0u16.to_be_bytes(),
        &CMD_READ.to_be_bytes(),
        &1u64.to_be_bytes(),
        &65536u64.to_be_bytes(),
        &512u32.to_be_bytes(),
    ]);
    assert_eq!(client.u32(), SIMPLE_REPLY_MAGIC);
    assert_eq!((client.u32(), client.u64()), (0, 1));
    assert_eq!(client.bytes(512), [7; 512]);
    drop(silent);
}
