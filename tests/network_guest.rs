//! What a guest with a network sees of checkpoints and of going back.

mod ckpt_common;
mod common;
mod net_common;

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::sync::mpsc::{Receiver, Sender, channel};

use ckpt_common::Lab;
use common::{field, has_word, patience, until};
use net_common::{Host, fetch, free_port, has_passt, start};

/// Bytes of a download in `parts`, and their FNV-1a sum as the guest prints it.
fn content(length: usize) -> (Vec<u8>, String) {
    let bytes: Vec<u8> = (0..length as u64).map(|n| (n.wrapping_mul(0x9e37_79b9) >> 13) as u8).collect();
    let sum = bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325_u64, |sum, &byte| (sum ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    (bytes, format!("fnv={sum:016x}"))
}

/// Serves one download, a part of it for each word to go on.
fn serve_in_parts(bytes: Vec<u8>, parts: usize, go_on: Receiver<()>, sent: Sender<()>) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let request = BufReader::new(stream.try_clone().unwrap());
        for _ in request.lines().map_while(Result::ok).take_while(|line| !line.is_empty()) {}
        write!(stream, "HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n", bytes.len()).unwrap();
        for part in bytes.chunks(bytes.len().div_ceil(parts)) {
            stream.write_all(part).unwrap();
            sent.send(()).unwrap();
            go_on.recv().unwrap();
        }
    });
    port
}

#[test]
fn ten_checkpoints_lose_no_byte_of_a_download() {
    if !has_passt() {
        return;
    }
    const CHECKPOINTS: usize = 10;
    let lab = Lab::new();
    let mut guest = start(&lab, "demo", "--net user");
    let (bytes, sum) = content(20 << 20);
    let length = bytes.len() as u64;
    let ((go, go_on), (sent, was_sent)) = (channel(), channel());
    let port = serve_in_parts(bytes, CHECKPOINTS, go_on, sent);
    let gateway = guest.gateway();
    guest.send(&format!("net get http://{gateway}:{port}/"));
    for n in 0..CHECKPOINTS {
        was_sent.recv_timeout(patience()).unwrap();
        // The next part is on its way while the checkpoint is made.
        go.send(()).unwrap();
        let mode = if n % 2 == 0 { "live" } else { "stop" };
        lab.piton(&format!("checkpoint create demo c{n} --type standard --mode {mode}")).ok();
    }
    let line = guest.line(&["ok get", "err"]);
    assert_eq!((field(&line, "status"), field(&line, "bytes")), (200, length), "{line}");
    assert!(has_word(&line, &sum), "{line}, and not {sum}");
}

#[test]
fn a_client_sees_the_machine_go_back() {
    if !has_passt() {
        return;
    }
    let (lab, port) = (Lab::new(), free_port());
    let mut guest = start(&lab, "demo", &format!("--net user --forward 127.0.0.1:{port}:80"));
    guest.ok("net serve 80");
    let ask = || until("the guest to answer", || fetch(port, "/").ok().filter(|text| text.contains("seq=")));
    let word = |text: &str, name: &str| {
        let found = text.split_whitespace().find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
        found.unwrap_or_else(|| panic!("{name}: {text}")).to_owned()
    };
    let first = ask();
    lab.create("here");
    let second = ask();
    lab.apply("here", "--run");
    let again = ask();
    let [a, b, c] = [&first, &second, &again].map(|text| field(text, "seq"));
    // It was asked once before the checkpoint; what it was asked after it, it does not know.
    assert_eq!((a, b), (1, 2));
    assert!((2..10).contains(&c), "{again}");
    assert_eq!(word(&first, "boot"), word(&again, "boot"));
    assert_eq!(word(&first, "generation"), word(&second, "generation"));
    assert_ne!(word(&first, "generation"), word(&again, "generation"));
    guest.line(&["evt net=0 announced="]);
    assert!(has_word(&guest.ok("net"), "link=up"));
    // A new boot is another one.
    guest.ok("net serve off");
    guest.send("reboot");
    guest.ready();
    guest.line(&["evt net=0 address="]);
    guest.ok("net serve 80");
    let fresh = ask();
    assert_ne!(word(&first, "boot"), word(&fresh, "boot"));
}

#[test]
fn clones_and_imports_are_told_that_their_connections_are_over() {
    if !has_passt() {
        return;
    }
    let (lab, host) = (Lab::new(), Host::new());
    let mut guest = start(&lab, "demo", "--net user");
    let hang = host.url(&guest.gateway(), "/hang");
    guest.send(&format!("net get {hang}"));
    host.wait_for_hanging();
    lab.create("busy");
    lab.piton("clone demo@busy web --count 2 --run").ok();
    let dir = lab.home.beside("export").display().to_string();
    lab.piton(&format!("checkpoint export demo@busy {dir}")).ok();
    lab.piton(&format!("import {dir} --name copy")).ok();
    lab.piton("checkpoint revert copy --yes --run").ok();
    for vm in ["web-1", "web-2", "copy"] {
        let mut console = lab.attach(vm);
        let line = console.line(&["ok net get", "ok get", "err"]);
        assert!(line.contains("reason=reset"), "{vm}: {line}");
        // And what it asks for next, it gets.
        let hello = hang.replace("/hang", "/hello");
        let got = console.ok(&format!("net get {hello}"));
        assert_eq!(field(&got, "status"), 200, "{vm}: {got}");
    }
    // Where it came from it goes on.
    assert!(!guest.text().contains("reason="), "{}", guest.text());
}
