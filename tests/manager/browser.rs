//! A real browser, driven by WebDriver: JSON over HTTP.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};

use crate::common::{self, http, patience};

const ELEMENT: &str = "element-6066-11e4-a52e-4f735466cecf";

/// chromedriver, and the browsers that it starts.
pub struct Driver {
    child: Child,
    port: u16,
    profiles: tempfile::TempDir,
}

impl Driver {
    /// None, with the reason told, where there is none.
    pub fn start() -> Option<Self> {
        let mut command = Command::new("chromedriver");
        command.arg("--port=0").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        // Its browsers belong to its group, so they can be ended together.
        command.process_group(0);
        let mut child = match command.spawn() {
            Ok(child) => child,
            Err(e) => {
                common::skip(&format!(
                    "chromedriver cannot be started ({e}): install chromium and chromium-driver"
                ));
                return None;
            }
        };
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let port = lines
            .by_ref()
            .map(Result::unwrap)
            .find_map(|line| line.rsplit_once("successfully on port ")?.1.trim_end_matches('.').parse().ok());
        let port = port.expect("chromedriver tells its port");
        // Read on, or it would stop at a full pipe.
        std::thread::spawn(move || lines.for_each(drop));
        Some(Self { child, port, profiles: tempfile::tempdir().unwrap() })
    }

    fn ask(&self, method: &str, path: &str, body: &Value) -> Value {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        stream.set_read_timeout(Some(patience())).unwrap();
        let body = if method == "POST" { body.to_string() } else { String::new() };
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{}\r\nConnection: close\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            self.port,
            body.len()
        );
        stream.write_all(request.as_bytes()).unwrap();
        // It leaves the connection open, whatever it is asked.
        let (status, head) = http::read_head(&mut stream);
        let fields = head.lines().filter_map(|line| line.split_once(':'));
        let mut lengths = fields.filter(|(name, _)| name.eq_ignore_ascii_case("content-length"));
        let length = lengths.next().and_then(|(_, value)| value.trim().parse().ok()).expect("a length");
        let mut bytes = vec![0; length];
        stream.read_exact(&mut bytes).unwrap();
        let mut answer: Value = serde_json::from_slice(&bytes).unwrap();
        assert_eq!(status, 200, "{method} {path} {body}: {answer:#}");
        answer["value"].take()
    }

    /// A browser of its own, with a profile of its own.
    pub fn browser(&self) -> Browser<'_> {
        let profile = tempfile::Builder::new().tempdir_in(self.profiles.path()).unwrap().keep();
        let options = json!({"args": [
            "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--disable-sync",
            "--force-color-profile=srgb", "--hide-scrollbars",
            format!("--user-data-dir={}", profile.display()),
        ]});
        let wanted = json!({"browserName": "chrome", "goog:chromeOptions": options,
            "goog:loggingPrefs": {"browser": "ALL"}});
        let session = self.ask("POST", "/session", &json!({"capabilities": {"alwaysMatch": wanted}}));
        Browser { driver: self, path: format!("/session/{}", session["sessionId"].as_str().unwrap()) }
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        // SAFETY: kill touches no memory of this process; the group is that of a child not waited for.
        unsafe { libc::kill(-(self.child.id() as i32), libc::SIGKILL) };
        let _ = self.child.wait();
    }
}

pub struct Browser<'a> {
    driver: &'a Driver,
    path: String,
}

impl Browser<'_> {
    fn ask(&self, method: &str, path: &str, body: &Value) -> Value {
        self.driver.ask(method, &format!("{}{path}", self.path), body)
    }

    pub fn open(&self, url: &str) {
        self.ask("POST", "/url", &json!({"url": url}));
    }

    /// The value of an expression of JavaScript, with `args`.
    pub fn js(&self, expression: &str, args: &[Value]) -> Value {
        self.ask("POST", "/execute/sync", &json!({"script": format!("return {expression}"), "args": args}))
    }

    /// Waits until an expression is true, or something.
    #[track_caller]
    pub fn until(&self, expression: &str) -> Value {
        let deadline = std::time::Instant::now() + patience();
        loop {
            let value = self.js(expression, &[]);
            if !value.is_null() && value != json!(false) {
                return value;
            }
            if std::time::Instant::now() >= deadline {
                self.shot("waited-in-vain");
                panic!("waited in vain for {expression}\n{}\n{}", self.text(), self.log());
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
    }

    pub fn text(&self) -> String {
        self.js("document.body.innerText", &[]).as_str().unwrap_or_default().to_owned()
    }

    /// What the browser complains of.
    pub fn log(&self) -> Value {
        self.ask("POST", "/se/log", &json!({"type": "browser"}))
    }

    /// Waits for an element, and clicks on it as a user would.
    #[track_caller]
    pub fn click(&self, find: &str) {
        let element = self.until(find);
        let id = element[ELEMENT].as_str().expect("an element").to_owned();
        self.ask("POST", &format!("/element/{id}/click"), &json!({}));
    }

    /// A button that can be seen, in the dialog if there is one.
    #[track_caller]
    pub fn press(&self, label: &str) {
        self.click(&format!(
            "[...(document.querySelector('dialog') ?? document).querySelectorAll('button')]\
             .find((one) => one.textContent === {label:?} && one.checkVisibility())"
        ));
    }

    /// Types into what has the focus. Keys have characters of their own in WebDriver.
    pub fn keys(&self, keys: &str) {
        let press =
            |key: char| [json!({"type": "keyDown", "value": key}), json!({"type": "keyUp", "value": key})];
        let actions: Vec<Value> = keys.chars().flat_map(press).collect();
        self.ask(
            "POST",
            "/actions",
            &json!({"actions": [{"type": "key", "id": "keys", "actions": actions}]}),
        );
    }

    fn devtools(&self, command: &str, params: &Value) -> Value {
        self.ask("POST", "/goog/cdp/execute", &json!({"cmd": command, "params": params}))
    }

    pub fn scheme(&self, scheme: &str) {
        let features = json!([{"name": "prefers-color-scheme", "value": scheme}]);
        self.devtools("Emulation.setEmulatedMedia", &json!({"features": features}));
    }

    pub fn size(&self, width: u32, height: u32) {
        self.devtools(
            "Emulation.setDeviceMetricsOverride",
            &json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": false}),
        );
    }

    /// The same of all of it, and not only of what fits the window.
    pub fn whole_shot(&self, name: &str) {
        let how = json!({"format": "png", "captureBeyondViewport": true});
        let picture = self.devtools("Page.captureScreenshot", &how);
        std::fs::write(pictures().join(format!("{name}.png")), base64(picture["data"].as_str().unwrap()))
            .unwrap();
    }

    /// A picture of the page for a person to look at.
    pub fn shot(&self, name: &str) {
        let dir = pictures();
        let picture = self.ask("GET", "/screenshot", &Value::Null);
        std::fs::write(dir.join(format!("{name}.png")), base64(picture.as_str().unwrap())).unwrap();
    }
}

impl Drop for Browser<'_> {
    fn drop(&mut self) {
        // Otherwise the driver's end is its end, too.
        if !std::thread::panicking() {
            self.ask("DELETE", "", &Value::Null);
        }
    }
}

fn pictures() -> PathBuf {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/test-logs/manager");
    std::fs::create_dir_all(&dir).unwrap();
    dir
}

fn base64(text: &str) -> Vec<u8> {
    let value = |byte: u8| match byte {
        b'A'..=b'Z' => Some(byte - b'A'),
        b'a'..=b'z' => Some(byte - b'a' + 26),
        b'0'..=b'9' => Some(byte - b'0' + 52),
        b'+' => Some(62),
        b'/' => Some(63),
        _ => None,
    };
    let (mut bytes, mut bits, mut count) = (Vec::new(), 0u32, 0);
    for six in text.bytes().filter_map(value) {
        bits = bits << 6 | u32::from(six);
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count) as u8);
        }
    }
    bytes
}
