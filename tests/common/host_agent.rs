//! An agent that is a program of this host: the bundled guest hands its port on to it (`agent relay`),
//! so that what a host asks of a guest is done by real programs on real files, beside the test.
//!
//! It is written after QEMU's docs/interop/qemu-ga-ref, and does what a stock qemu-ga 7.2 does; with
//! one (`PITON_QEMU_GA`, or in the PATH), the same tests run on that, too.

use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use piton::qga::{decode, encode};
use serde_json::{Value, json};

use super::{Home, Terminal, Vm, until};

const PORT: u32 = 5000;
/// What a room has of its own.
const ROOM: [&str; 4] = ["etc", "run", "sys", "var"];

pub enum HostAgent {
    /// What it was asked, and its last connection.
    Ours(Arc<Mutex<Vec<String>>>, Arc<Mutex<Option<UnixStream>>>),
    Stock(Child),
}

impl HostAgent {
    /// The agent of the VM `demo`, which was started with `--vsock`.
    pub fn start(home: &Home, vm: &mut Vm) -> Self {
        Self::start_in(home, "demo", vm, State::default())
    }

    /// The agent of any VM, whose commands see what lies in `room` in place of this host's `etc`, `run`,
    /// `sys` and `var`, programs in its `bin` before all others, and have a host name of their own. Needs
    /// root.
    pub fn start_in_room(home: &Home, name: &str, vm: &mut Terminal, room: &Path) -> Self {
        for place in ROOM {
            std::fs::create_dir_all(room.join(place)).unwrap();
        }
        let search = path_with(&room.join("bin"));
        Self::start_in(home, name, vm, State { search, room: Some(room.to_owned()), ..State::default() })
    }

    /// With programs of this folder before all others.
    pub fn start_with_path(home: &Home, vm: &mut Vm, bin: &Path) -> Self {
        Self::start_in(home, "demo", vm, State { search: path_with(bin), ..State::default() })
    }

    fn start_in(home: &Home, name: &str, vm: &mut Terminal, mut state: State) -> Self {
        let path = home.vm(name).join(format!("vsock.sock_{PORT}"));
        let _ = std::fs::remove_file(&path);
        let (asked, line) = (Arc::default(), Arc::default());
        state.tmp = format!("{}/", home.beside("").display());
        serve(UnixListener::bind(&path).unwrap(), state, Arc::clone(&asked), Arc::clone(&line));
        let agent = Self::Ours(asked, line);
        vm.ok(&format!("agent relay {PORT}"));
        agent
    }

    /// The same with a stock qemu-ga; none if there is none here.
    pub fn start_stock(home: &Home, vm: &mut Vm) -> Option<Self> {
        let program = stock()?;
        let path = home.vm("demo").join(format!("vsock.sock_{PORT}"));
        let state = home.beside("qga");
        std::fs::create_dir_all(&state).unwrap();
        let child = Command::new(program)
            .args(["-m", "unix-listen", "-p", path.to_str().unwrap(), "-t", state.to_str().unwrap()])
            .args(["-f", state.join("pid").to_str().unwrap(), "-l", state.join("log").to_str().unwrap()])
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let agent = Self::Stock(child);
        until("qemu-ga to listen", || path.exists().then_some(()));
        vm.ok(&format!("agent relay {PORT}"));
        Some(agent)
    }

    /// Its process ends.
    pub fn die(&mut self) {
        match self {
            Self::Ours(_, line) => {
                if let Some(line) = line.lock().unwrap().take() {
                    let _ = line.shutdown(std::net::Shutdown::Both);
                }
            }
            Self::Stock(child) => {
                let _ = child.kill();
                let _ = child.wait();
            }
        }
    }

    /// How often it was asked for this.
    pub fn asked(&self, call: &str) -> usize {
        match self {
            Self::Ours(asked, _) => asked.lock().unwrap().iter().filter(|one| *one == call).count(),
            Self::Stock(_) => panic!("a stock agent does not tell"),
        }
    }
}

impl Drop for HostAgent {
    fn drop(&mut self) {
        self.die();
    }
}

fn path_with(bin: &Path) -> Option<String> {
    Some(format!("{}:{}", bin.display(), std::env::var("PATH").unwrap_or_default()))
}

fn stock() -> Option<PathBuf> {
    if let Some(program) = std::env::var_os("PITON_QEMU_GA") {
        return Some(program.into());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let places = std::env::split_paths(&path).chain([PathBuf::from("/usr/sbin")]);
    places.map(|place| place.join("qemu-ga")).find(|program| program.exists())
}

/// What runs, and what has ended and was not yet told: the process, then its two outputs.
type Programs = HashMap<i64, (Child, [Arc<Mutex<Option<Vec<u8>>>>; 2])>;

#[derive(Default)]
struct State {
    /// In place of /tmp/ for what piton puts there, so that a test's end takes it away.
    tmp: String,
    /// PATH of what it runs.
    search: Option<String>,
    room: Option<PathBuf>,
    files: HashMap<i64, std::fs::File>,
    programs: Programs,
    last: i64,
}

fn serve(
    listener: UnixListener,
    mut state: State,
    asked: Arc<Mutex<Vec<String>>>,
    line: Arc<Mutex<Option<UnixStream>>>,
) {
    std::thread::spawn(move || {
        while let Ok((stream, _)) = listener.accept() {
            *line.lock().unwrap() = Some(stream.try_clone().unwrap());
            let mut to = stream.try_clone().unwrap();
            for request in BufReader::new(stream).split(b'\n') {
                let Ok(mut request) = request else { break };
                request.retain(|byte| *byte != 0xff);
                let Ok(request) = serde_json::from_slice::<Value>(&request) else { continue };
                let call = request["execute"].as_str().unwrap_or_default();
                asked.lock().unwrap().push(call.to_owned());
                let mut answer = match state.answer(call, &request["arguments"]) {
                    Ok(value) => json!({ "return": value }),
                    Err((class, desc)) => json!({ "error": { "class": class, "desc": desc } }),
                };
                answer["id"] = request["id"].clone();
                let reset: &[u8] = if call == "guest-sync-delimited" { b"\xff" } else { b"" };
                if to.write_all(&[reset, format!("{answer}\n").as_bytes()].concat()).is_err() {
                    break;
                }
            }
        }
    });
}

type Refusal = (&'static str, String);

fn failed(text: impl ToString) -> Refusal {
    ("GenericError", text.to_string())
}

impl State {
    fn answer(&mut self, call: &str, arguments: &Value) -> Result<Value, Refusal> {
        let text = |name: &str| arguments[name].as_str().unwrap_or_default().to_owned();
        match call {
            "guest-sync-delimited" => Ok(arguments["id"].clone()),
            "guest-info" => {
                let names = [
                    "exec",
                    "exec-status",
                    "file-open",
                    "file-read",
                    "file-write",
                    "file-seek",
                    "file-close",
                ];
                let commands: Vec<Value> = names
                    .iter()
                    .map(|name| json!({"name": format!("guest-{name}"), "enabled": true}))
                    .collect();
                Ok(json!({ "version": "test", "supported_commands": commands }))
            }
            "guest-exec" => self.exec(arguments),
            "guest-exec-status" => self.status(arguments["pid"].as_i64().unwrap_or(0)),
            "guest-file-open" => {
                let (path, mode) = (self.here(text("path")), text("mode"));
                let mut options = std::fs::OpenOptions::new();
                match mode.as_str() {
                    "r" => options.read(true),
                    "w" => options.write(true).create(true).truncate(true),
                    "a" => options.append(true).create(true),
                    _ => options.read(true).write(true),
                };
                let told = |e: std::io::Error| {
                    let e = e.to_string();
                    let e = e.split(" (os error").next().unwrap().to_owned();
                    failed(format!("failed to open file '{path}' (mode: '{mode}'): {e}"))
                };
                let file = options.open(&path).map_err(told)?;
                self.last += 1;
                self.files.insert(self.last, file);
                Ok(json!(self.last))
            }
            "guest-file-close" => {
                self.file(arguments)?;
                self.files.remove(&arguments["handle"].as_i64().unwrap_or(0));
                Ok(json!({}))
            }
            "guest-file-read" => {
                let count = arguments["count"].as_u64().unwrap_or(4096);
                let mut bytes = Vec::new();
                self.file(arguments)?.take(count).read_to_end(&mut bytes).map_err(failed)?;
                let eof = (bytes.len() as u64) < count;
                Ok(json!({ "count": bytes.len(), "buf-b64": encode(&bytes), "eof": eof }))
            }
            "guest-file-write" => {
                let bytes = decode(&text("buf-b64")).ok_or_else(|| failed("no base64"))?;
                let told = |e: std::io::Error| failed(format!("failed to write to file: {e}"));
                self.file(arguments)?.write_all(&bytes).map_err(told)?;
                Ok(json!({ "count": bytes.len(), "eof": false }))
            }
            "guest-file-seek" => {
                let offset = arguments["offset"].as_i64().unwrap_or(0);
                let to = match text("whence").as_str() {
                    "set" => SeekFrom::Start(offset as u64),
                    "cur" => SeekFrom::Current(offset),
                    _ => SeekFrom::End(offset),
                };
                let position = self.file(arguments)?.seek(to).map_err(failed)?;
                Ok(json!({ "position": position, "eof": false }))
            }
            _ => Err(("CommandNotFound", format!("The command {call} has not been found"))),
        }
    }

    fn here(&self, path: String) -> String {
        match path.strip_prefix("/tmp/.piton-") {
            Some(rest) => format!("{}.piton-{rest}", self.tmp),
            None => path,
        }
    }

    fn file(&mut self, arguments: &Value) -> Result<&mut std::fs::File, Refusal> {
        let handle = arguments["handle"].as_i64().unwrap_or(0);
        self.files.get_mut(&handle).ok_or_else(|| failed(format!("handle '{handle}' has not been found")))
    }

    fn exec(&mut self, arguments: &Value) -> Result<Value, Refusal> {
        let words = |name: &str| {
            let all = arguments[name].as_array().cloned().unwrap_or_default();
            all.iter().map(|word| self.here(word.as_str().unwrap_or_default().into())).collect::<Vec<_>>()
        };
        let path = arguments["path"].as_str().unwrap_or_default();
        let mut command = Command::new(path);
        command.args(words("arg")).env_remove("HOME");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        if let Some(search) = &self.search {
            command.env("PATH", search);
        }
        let text = |path: &Path| CString::new(path.as_os_str().as_bytes()).unwrap();
        let places: Vec<_> = self
            .room
            .iter()
            .flat_map(|room| ROOM.map(|place| (text(&room.join(place)), text(&Path::new("/").join(place)))))
            .collect();
        // SAFETY: the calls are async-signal-safe, and all that they are given was made before.
        unsafe {
            command.pre_exec(move || {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                if places.is_empty() {
                    return Ok(());
                }
                let mount = |from: &CStr, to: &CStr, flags| {
                    libc::mount(from.as_ptr(), to.as_ptr(), std::ptr::null(), flags, std::ptr::null()) == 0
                };
                let alone = libc::unshare(libc::CLONE_NEWNS | libc::CLONE_NEWUTS) == 0
                    && mount(c"none", c"/", libc::MS_REC | libc::MS_PRIVATE)
                    && places.iter().all(|(from, to)| mount(from, to, libc::MS_BIND));
                if alone { Ok(()) } else { Err(std::io::Error::last_os_error()) }
            });
        }
        let mut child = command
            .spawn()
            .map_err(|e| failed(format!("Failed to execute child process \u{201c}{path}\u{201d} ({e})")))?;
        let input = arguments["input-data"].as_str().and_then(decode).unwrap_or_default();
        let mut stdin = child.stdin.take().unwrap();
        std::thread::spawn(move || stdin.write_all(&input));
        let outputs = [keep(child.stdout.take().unwrap()), keep(child.stderr.take().unwrap())];
        let pid = i64::from(child.id());
        self.programs.insert(pid, (child, outputs));
        Ok(json!({ "pid": pid }))
    }

    fn status(&mut self, pid: i64) -> Result<Value, Refusal> {
        let Some((child, outputs)) = self.programs.get_mut(&pid) else {
            return Err(failed("Invalid parameter 'pid'"));
        };
        let Some(status) = child.try_wait().unwrap() else { return Ok(json!({ "exited": false })) };
        let kept = outputs.each_ref().map(|output| output.lock().unwrap().clone());
        let [Some(out), Some(err)] = kept else { return Ok(json!({ "exited": false })) };
        self.programs.remove(&pid);
        let mut answer = json!({ "exited": true, "out-data": encode(&out), "err-data": encode(&err) });
        if let Some(code) = status.code() {
            answer["exitcode"] = json!(code);
        }
        if let Some(signal) = status.signal() {
            answer["signal"] = json!(signal);
        }
        Ok(answer)
    }
}

fn keep(mut stream: impl Read + Send + 'static) -> Arc<Mutex<Option<Vec<u8>>>> {
    let kept: Arc<Mutex<Option<Vec<u8>>>> = Arc::default();
    let place = kept.clone();
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = stream.read_to_end(&mut bytes);
        *place.lock().unwrap() = Some(bytes);
    });
    kept
}

/// Folders of commands in the test's place for them.
pub fn left_in_tmp(home: &Home) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(home.beside("")).unwrap().map(|entry| entry.unwrap().path());
    entries.filter(|path| path.file_name().unwrap().to_string_lossy().starts_with(".piton-")).collect()
}
