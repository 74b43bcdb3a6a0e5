//! Programs of the guest and of the host talk to each other, over going back and clones too.

mod common;

use std::io::{BufReader, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::thread::JoinHandle;

use common::{Finished, Home, field, patience, until};

const RUN: &str = "run demo --memory 64M --vsock";

fn path(home: &Home, vm: &str) -> PathBuf {
    home.vm(vm).join("vsock.sock")
}

/// A stream to what listens in the guest, with what the VMM said to `CONNECT`.
fn call(home: &Home, vm: &str, port: u32) -> (UnixStream, String) {
    let mut stream = UnixStream::connect(path(home, vm)).unwrap();
    stream.set_read_timeout(Some(patience())).unwrap();
    stream.write_all(format!("CONNECT {port}\n").as_bytes()).unwrap();
    let mut line = String::new();
    // Byte by byte, as what follows is not the line's.
    let mut byte = [0];
    while stream.read(&mut byte).unwrap() == 1 && byte != *b"\n" {
        line.push(byte[0].into());
    }
    (stream, line)
}

fn connect(home: &Home, vm: &str, port: u32) -> UnixStream {
    let (stream, line) = call(home, vm, port);
    assert!(line.starts_with("OK "), "{line:?}");
    stream
}

fn host_port(line: &str) -> u64 {
    line.strip_prefix("OK ").unwrap().parse().unwrap()
}

fn echoes(stream: &mut UnixStream, text: &str) {
    stream.write_all(text.as_bytes()).unwrap();
    let mut back = vec![0; text.len()];
    stream.read_exact(&mut back).unwrap();
    assert_eq!(String::from_utf8_lossy(&back), text);
}

/// What the guest hears of one call to `port`.
fn answer(
    home: &Home,
    vm: &str,
    port: u32,
    serve: impl FnOnce(UnixStream) + Send + 'static,
) -> JoinHandle<()> {
    let listener = UnixListener::bind(home.vm(vm).join(format!("vsock.sock_{port}"))).unwrap();
    std::thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(patience())).unwrap();
        serve(stream);
    })
}

/// `length` bytes, and their FNV-1a sum as the guest prints it.
fn bytes(length: usize) -> (Vec<u8>, String) {
    let bytes: Vec<u8> = (0..length as u64).map(|n| (n.wrapping_mul(0x9e37_79b9) >> 11) as u8).collect();
    let sum = bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325_u64, |sum, &byte| (sum ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    (bytes, format!("fnv={sum:016x}"))
}

#[test]
fn the_host_calls_the_guest() {
    let home = Home::new();
    let mut vm = home.boot(RUN);
    vm.ok("vsock echo 1024");
    let show = home.piton("show demo").ok();
    assert!(show.contains("vsock.sock"), "{show}");

    let (mut first, line) = call(&home, "demo", 1024);
    let (mut second, other) = call(&home, "demo", 1024);
    assert_ne!(host_port(&line), host_port(&other));
    echoes(&mut first, "hello");
    echoes(&mut second, "and another");
    echoes(&mut first, "again");

    // All that was said comes back after the host has said that this was all.
    let (sent, _) = bytes(300_000);
    let mut writer = first.try_clone().unwrap();
    let wanted = sent.clone();
    let writing = std::thread::spawn(move || {
        writer.write_all(&sent).unwrap();
        writer.shutdown(Shutdown::Write).unwrap();
    });
    let mut back = Vec::new();
    first.read_to_end(&mut back).unwrap();
    writing.join().unwrap();
    assert!(back == wanted, "{} of {} bytes came back, or others", back.len(), wanted.len());
    echoes(&mut second, "still there");

    // Nobody listens there.
    let (_, line) = call(&home, "demo", 1025);
    assert_eq!(line, "");
    vm.power_off();
    assert!(!path(&home, "demo").exists(), "the socket is left behind");
}

#[test]
fn the_guest_calls_the_host() {
    let home = Home::new();
    let mut vm = home.boot(RUN);
    let refused = vm.err("vsock call 9 hello");
    assert!(refused.contains("reason=refused"), "{refused}");

    let served = answer(&home, "demo", 9, |stream| {
        let mut lines = BufReader::new(&stream);
        let mut heard = String::new();
        lines.read_to_string(&mut heard).unwrap();
        assert_eq!(heard, "how are you");
        (&stream).write_all(b"fine, thanks").unwrap();
    });
    let answer_of_host = vm.ok("vsock call 9 how are you");
    assert_eq!((field(&answer_of_host, "sent"), field(&answer_of_host, "received")), (11, 12));
    assert!(vm.text().contains("evt body fine, thanks"));
    served.join().unwrap();

    // Far more than there is room for on the way, in both directions at once.
    let (large, sum) = bytes(3_000_000);
    let served = answer(&home, "demo", 10, move |stream| {
        let mut reader = stream.try_clone().unwrap();
        let reading = std::thread::spawn(move || {
            let mut heard = Vec::new();
            reader.read_to_end(&mut heard).unwrap();
            heard.len()
        });
        (&stream).write_all(&large).unwrap();
        assert_eq!(reading.join().unwrap(), 2_000_000);
    });
    let told = vm.ok("vsock call 10 bytes 2000000");
    assert_eq!(field(&told, "received"), 3_000_000);
    assert!(told.contains(&sum), "{told}, and not {sum}");
    served.join().unwrap();
    vm.power_off();
}

#[test]
fn a_program_of_the_host_that_does_not_read_holds_up_nobody() {
    let home = Home::new();
    let mut vm = home.boot(RUN);
    vm.ok("vsock echo 1024");
    let mut slow = connect(&home, "demo", 1024);
    // Until neither the guest nor anybody on the way takes more.
    slow.set_nonblocking(true).unwrap();
    let mut stuffed = 0;
    until("the way to be full", || match slow.write(&[7; 4096]) {
        Ok(count) => {
            stuffed += count;
            None
        }
        Err(e) => {
            assert_eq!(e.kind(), ErrorKind::WouldBlock);
            // What still moves makes room within less than this.
            std::thread::sleep(std::time::Duration::from_millis(100));
            slow.write(&[7]).map_or(Some(()), |count| {
                stuffed += count;
                None
            })
        }
    });
    // Who says nothing at all.
    let silent = UnixStream::connect(path(&home, "demo")).unwrap();
    for n in 0..5 {
        echoes(&mut connect(&home, "demo", 1024), &format!("call {n}"));
    }
    vm.ok("blk 0 flush");
    slow.set_nonblocking(false).unwrap();
    slow.shutdown(Shutdown::Write).unwrap();
    slow.set_read_timeout(Some(patience())).unwrap();
    let mut back = Vec::new();
    slow.read_to_end(&mut back).unwrap();
    assert_eq!(back.len(), stuffed);
    drop(silent);
    vm.power_off();
}

#[test]
fn nonsense_is_not_passed_on() {
    let home = Home::new();
    let mut vm = home.boot(RUN);
    vm.ok("vsock echo 1024");
    for nonsense in ["GET / HTTP/1.0\r\n\r\n", "CONNECT\n", "CONNECT 99999999999\n", "\n"] {
        let mut stream = UnixStream::connect(path(&home, "demo")).unwrap();
        stream.set_read_timeout(Some(patience())).unwrap();
        stream.write_all(nonsense.as_bytes()).unwrap();
        let mut answer = Vec::new();
        // Closed with something unread, the socket may say so.
        let _ = stream.read_to_end(&mut answer);
        assert!(answer.is_empty(), "{nonsense:?}: {answer:?}");
    }
    echoes(&mut connect(&home, "demo", 1024), "here");
    vm.power_off();
}

#[test]
fn checkpoints_disturb_no_connection() {
    let home = Home::new();
    let mut vm = home.boot(RUN);
    vm.ok("vsock echo 1024");
    let mut stream = connect(&home, "demo", 1024);
    for n in 0..5 {
        let mode = if n % 2 == 0 { "live" } else { "stop" };
        home.piton(&format!("checkpoint create demo cp{n} --mode {mode}")).ok();
        echoes(&mut stream, &format!("after checkpoint {n}"));
    }
    home.piton("pause demo").ok();
    stream.write_all(b"meanwhile").unwrap();
    home.piton("resume demo").ok();
    let mut back = [0; 9];
    stream.read_exact(&mut back).unwrap();
    assert_eq!(&back, b"meanwhile");
    assert_eq!(field(&vm.ok("vsock"), "resets"), 0);
    vm.power_off();
}

#[test]
fn after_going_back_old_connections_end_and_new_ones_begin() {
    let home = Home::new();
    let mut vm = home.boot(RUN);
    vm.ok("vsock echo 1024");
    let (mut before, line) = call(&home, "demo", 1024);
    echoes(&mut before, "before");
    home.piton("checkpoint create demo clean").ok();
    let (mut after, later) = call(&home, "demo", 1024);
    echoes(&mut after, "after");
    let first = host_port(&line);
    for round in 1..=3 {
        home.piton("checkpoint apply demo@clean --discard-current --run").ok();
        for stream in [&mut before, &mut after] {
            assert_eq!(stream.read(&mut [0]).unwrap(), 0, "it goes on");
        }
        // At once: it does not get there before the guest has forgotten the old ones.
        let (mut fresh, line) = call(&home, "demo", 1024);
        echoes(&mut fresh, "fresh");
        assert!(host_port(&line) > first, "the port of before is used again");
        assert_eq!(field(&vm.ok("vsock"), "resets"), 1, "in round {round}");
    }
    assert_ne!(host_port(&later), first);
    vm.power_off();
}

#[test]
fn a_call_of_the_guest_ends_when_it_goes_back() {
    let home = Home::new();
    let mut vm = home.boot(RUN);
    let (said, heard) = std::sync::mpsc::channel();
    let (release, released) = std::sync::mpsc::channel();
    let served = answer(&home, "demo", 7, move |mut stream| {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        said.send(()).unwrap();
        // It never answers.
        assert_eq!(stream.read(&mut byte).unwrap(), 0);
        said.send(()).unwrap();
        released.recv_timeout(patience()).unwrap();
    });
    vm.send("vsock call 7 x");
    heard.recv_timeout(patience()).unwrap();
    heard.recv_timeout(patience()).unwrap();
    home.piton("checkpoint create demo waiting").ok();
    home.piton("checkpoint apply demo@waiting --discard-current --run").ok();
    let answer = vm.line(&["ok", "err"]);
    assert!(answer.contains("reason=reset"), "{answer}");
    release.send(()).unwrap();
    served.join().unwrap();
    vm.power_off();
}

#[test]
fn every_clone_has_its_own() {
    let home = Home::new();
    let mut vm = home.boot(RUN);
    vm.ok("vsock echo 1024");
    home.piton("checkpoint create demo warm").ok();
    home.piton("clone demo@warm web --count 3 --run").ok();
    for name in ["demo", "web-1", "web-2", "web-3"] {
        echoes(&mut connect(&home, name, 1024), name);
    }
    let mut clone = home.console("web-2");
    assert_eq!(field(&clone.ok("vsock"), "resets"), 1);
    for name in ["web-1", "web-2", "web-3"] {
        home.piton(&format!("stop --force {name}")).ok();
        assert!(!path(&home, name).exists());
    }
    vm.power_off();
}

#[test]
fn a_vm_that_was_killed_starts_again() {
    let home = Home::new();
    let mut vm = home.boot(RUN);
    vm.signal(libc::SIGKILL);
    vm.exit();
    assert!(path(&home, "demo").exists());
    let mut vm = home.boot("start demo --attach");
    vm.ok("vsock echo 1024");
    echoes(&mut connect(&home, "demo", 1024), "again");
    vm.power_off();
}

#[test]
fn what_cannot_be_is_said() {
    let home = Home::new();
    // Short enough for the socket of commands, and too long with the port of a guest's call.
    let rest = home.root().as_os_str().len() + "//demo/control.sock".len();
    let longer = home.root().join("x".repeat(107 - rest));
    let mut run = home.command(["run", "demo", "--memory", "32M", "--vsock", "--detach"]);
    run.env("PITON_HOME", &longer);
    let said = Finished::run(run);
    assert_eq!(said.code, Some(3), "{said}");
    assert!(said.stderr.contains("too long for a socket's path"), "{said}");
    assert!(!longer.exists() || std::fs::read_dir(&longer).unwrap().next().is_none());

    let mut vm = home.boot("run demo --memory 32M");
    let answer = vm.err("vsock echo 1");
    assert!(answer.contains("reason=device"), "{answer}");
    assert!(!path(&home, "demo").exists());
    vm.power_off();
}
