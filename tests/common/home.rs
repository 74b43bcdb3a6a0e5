//! A PITON_HOME of a test's own.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};

use super::{Finished, Response, Terminal, Vm, http};

pub struct Home {
    dir: tempfile::TempDir,
    /// PITON_TRASH.
    trash: &'static str,
}

impl Home {
    /// Right below /tmp or PITON_TEST_DIR, as the path of a socket has little room. PITON_HOME itself
    /// is not made.
    pub fn new() -> Self {
        let place = std::env::var_os("PITON_TEST_DIR").unwrap_or_else(|| "/tmp".into());
        let dir = tempfile::Builder::new().prefix("piton-").tempdir_in(place).unwrap();
        Self { dir, trash: "0" }
    }

    /// One whose VMs keep what is taken away, as users have it.
    pub fn with_trash() -> Self {
        let mut home = Self::new();
        home.trash = "24h";
        home
    }

    /// PITON_HOME.
    pub fn root(&self) -> PathBuf {
        self.dir.path().join("h")
    }

    pub fn vm(&self, name: &str) -> PathBuf {
        self.root().join(name)
    }

    pub fn console_log(&self, name: &str) -> String {
        let bytes = std::fs::read(self.vm(name).join("console.log")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// A path beside PITON_HOME.
    pub fn beside(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A file beside PITON_HOME; returns its path.
    pub fn file(&self, name: &str, content: &[u8]) -> String {
        let path = self.beside(name);
        std::fs::write(&path, content).unwrap();
        path.to_str().unwrap().to_owned()
    }

    /// An empty raw image beside PITON_HOME; returns its path.
    pub fn image(&self, name: &str, bytes: u64) -> String {
        let path = self.beside(name);
        std::fs::File::create(&path).unwrap().set_len(bytes).unwrap();
        path.to_str().unwrap().to_owned()
    }

    /// Asserts that no VM, nor a part of one, is there.
    #[track_caller]
    pub fn is_empty(&self) {
        let left: Vec<PathBuf> = match std::fs::read_dir(self.root()) {
            Ok(entries) => entries.map(|entry| entry.unwrap().path()).collect(),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            Err(e) => panic!("{e}"),
        };
        assert!(left.is_empty(), "left behind: {left:?}");
    }

    pub fn command<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_piton"));
        command.args(args);
        self.equip(&mut command);
        command
    }

    /// Gives any command this home and nothing to read.
    pub fn equip(&self, command: &mut Command) {
        command
            .env("PITON_HOME", self.root())
            .env("PITON_TRASH", self.trash)
            .env_remove("PITON_LOG")
            .stdin(Stdio::null());
    }

    /// Runs `piton` with these words.
    pub fn args<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Finished {
        Finished::run(self.command(args))
    }

    /// Runs `piton` with the words of `line`.
    pub fn piton(&self, line: &str) -> Finished {
        self.args(line.split_ascii_whitespace())
    }

    /// Starts `piton` with the words of `line` as a VM in the foreground.
    pub fn spawn(&self, line: &str) -> Vm {
        Vm::spawn(self.command(line.split_ascii_whitespace()))
    }

    /// As `spawn`, for words with spaces in them.
    pub fn args_vm(&self, args: &[&str]) -> Vm {
        Vm::spawn(self.command(args))
    }

    /// Boots the bundled guest in the foreground and waits until it takes commands.
    #[track_caller]
    pub fn boot(&self, line: &str) -> Vm {
        let mut vm = self.spawn(line);
        vm.ready();
        vm
    }

    pub fn socket(&self, name: &str) -> PathBuf {
        self.vm(name).join("control.sock")
    }

    /// Sends a request to a VM's control socket.
    pub fn http(&self, name: &str, method: &str, path: &str, body: &str) -> Response {
        http::request(&self.socket(name), method, path, body)
    }

    pub fn http_raw(&self, name: &str, request: &[u8]) -> Response {
        http::exchange(&self.socket(name), request)
    }

    /// The console of a running VM, through its control socket.
    pub fn attach(&self, name: &str) -> Terminal {
        http::attach(&self.socket(name))
    }

    /// The same, past all that was printed before: ready for commands.
    #[track_caller]
    pub fn console(&self, name: &str) -> Terminal {
        static MARK: AtomicU64 = AtomicU64::new(0);
        let mut console = self.attach(name);
        let mark = format!("mark-{}", MARK.fetch_add(1, Ordering::Relaxed));
        console.send(&format!("echo {mark}"));
        console.line(&[&format!("ok {mark}")]);
        console
    }

    /// The manifest of a checkpoint, as it lies in the VM's folder.
    #[track_caller]
    pub fn manifest(&self, vm: &str, checkpoint: &str) -> serde_json::Value {
        let shown = self.args(["checkpoint", "show", &format!("{vm}@{checkpoint}"), "--json"]).json();
        let folder = self.vm(vm).join("checkpoints").join(shown["id"].as_str().unwrap());
        serde_json::from_slice(&std::fs::read(folder.join("manifest.json")).unwrap()).unwrap()
    }

    /// Waits until nobody runs the VM.
    #[track_caller]
    pub fn ended(&self, name: &str) {
        super::until("the VM to end", || {
            (self.piton(&format!("show {name} --json")).json()["state"] == "stopped").then_some(())
        });
    }

    /// Processes that work in this home.
    pub fn processes(&self) -> Vec<i32> {
        let mark = [b"PITON_HOME=", self.root().as_os_str().as_bytes()].concat();
        let has_mark = |process: &Path| {
            std::fs::read(process.join("environ"))
                .is_ok_and(|all| all.split(|byte| *byte == 0).any(|variable| variable == mark))
        };
        let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
        let processes = entries.filter_map(|entry| {
            let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
            (pid != std::process::id() as i32 && has_mark(&entry.path())).then_some(pid)
        });
        processes.collect()
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        for pid in self.processes() {
            super::send_signal(pid, libc::SIGKILL);
        }
        if std::thread::panicking() {
            for entry in std::fs::read_dir(self.root()).into_iter().flatten().flatten() {
                for log in ["console.log", "piton.log"] {
                    if let Ok(bytes) = std::fs::read(entry.path().join(log)) {
                        let name = entry.path().join(log);
                        eprintln!("--- {}\n{}\n---", name.display(), String::from_utf8_lossy(&bytes));
                    }
                }
            }
        }
    }
}
