//! The pages as a user sees them.

use piton::checkpoint::{Kind, Manifest};
use piton::folder::Home as VmHome;
use piton::history::Catalog;
use piton::id::Id;
use piton::storage::Storage;

use crate::browser::{Browser, Driver};
use crate::client::Manager;
use crate::common::{Home, send_signal};

const AXE: &str = include_str!("axe.min.js");
/// Keys of WebDriver.
const ENTER: &str = "\u{e007}";
const ESCAPE: &str = "\u{e00c}";
const DELETE: &str = "\u{e017}";
const UP: &str = "\u{e013}";
const HOME: &str = "\u{e011}";
const END: &str = "\u{e010}";
const LEFT: &str = "\u{e012}";
const F2: &str = "\u{e032}";

/// Names of the tree's rows with how deep they are.
const ROWS: &str = "[...document.querySelectorAll('[role=treeitem]')]\
    .map((row) => `${row.getAttribute('aria-level')} ${row.querySelector('.name').textContent}`).join(', ')";

fn row(name: &str) -> String {
    format!(
        "[...document.querySelectorAll('[role=treeitem] .name')].find((one) => one.textContent === {name:?})"
    )
}

#[track_caller]
fn shows(browser: &Browser, rows: &str) {
    browser.until(&format!("{ROWS} === {rows:?}"));
}

/// Nothing that keeps people out, and nothing that the browser refused.
#[track_caller]
fn is_accessible(browser: &Browser) {
    browser.js(&format!("void (() => {{ {AXE} }})() ?? true"), &[]);
    let found = browser.js(
        "axe.run(document, {resultTypes: ['violations']}).then((all) => all.violations\
         .filter((one) => ['serious', 'critical'].includes(one.impact))\
         .map((one) => `${one.id}: ${one.nodes.slice(0, 4).map((node) => node.html).join(' ')}`))",
        &[],
    );
    assert_eq!(found, serde_json::json!([]), "{found:#}");
}

#[track_caller]
fn has_no_complaints(browser: &Browser) {
    let log = browser.log();
    assert_eq!(log, serde_json::json!([]), "{log:#}");
    let wide = browser.js("document.documentElement.scrollWidth > document.documentElement.clientWidth", &[]);
    assert_eq!(wide, false, "the page is wider than its window");
}

#[test]
fn in_a_browser() {
    let Some(driver) = Driver::start() else { return };
    let home = Home::new();
    let mut manager = Manager::start(&home);
    let browser = driver.browser();
    browser.size(1280, 800);
    browser.scheme("light");
    browser.open(&manager.link);
    browser.until("location.search === '' && document.querySelector('.nothing')?.checkVisibility()");
    assert_eq!(browser.js("document.cookie", &[]), "", "no script has the cookie");
    is_accessible(&browser);

    // A VM, made here.
    browser.press("Create a VM");
    browser.keys("demo");
    is_accessible(&browser);
    browser.press("Create and boot");
    shows(&browser, "1 Now");
    browser.until("document.querySelector('.vmhead .state').textContent === 'running'");

    // A console to type into.
    browser.click("[...document.querySelectorAll('.tabs a')].find((one) => one.textContent === 'Console')");
    let screen = "document.querySelector('.xterm-accessibility-tree')?.innerText.replaceAll('\\u00a0', ' ')";
    browser.until(&format!("{screen}?.includes('type help')"));
    browser.keys(&format!("fill 8 7{ENTER}"));
    browser.until(&format!("{screen}.includes('ok filled=8')"));
    browser.scheme("dark");
    browser.shot("console-dark");
    browser.scheme("light");
    is_accessible(&browser);
    has_no_complaints(&browser);

    // A checkpoint whose note would like to be more than text.
    browser
        .click("[...document.querySelectorAll('.tabs a')].find((one) => one.textContent === 'Checkpoints')");
    browser.press("Create checkpoint");
    browser.keys("clean");
    browser.js("document.querySelector('dialog textarea').focus()", &[]);
    browser.keys("<img src=x onerror=document.title='owned'>");
    browser.shot("create-light");
    browser.press("Create");
    shows(&browser, "1 clean, 2 Now");
    browser.click(&row("clean"));
    browser.until("document.querySelector('.details .note')?.textContent.startsWith('<img')");
    assert_eq!(browser.js("document.querySelectorAll('main img').length", &[]), 0);
    assert_eq!(browser.js("document.title", &[]), "demo – piton");

    // It breaks, and goes back, with what was broken kept.
    let mut console = home.attach("demo");
    let before = console.ask("sum");
    console.ok("fill 8 9");
    drop(console);
    browser.press("Apply…");
    browser.until("document.querySelector('dialog')?.textContent.includes('since checkpoint “clean”')");
    browser.js("document.querySelector('dialog input[type=text]').focus()", &[]);
    browser.keys("broken");
    browser.shot("apply-light");
    browser.press("Apply");
    shows(&browser, "1 clean, 2 broken, 2 Now");
    let mut console = home.attach("demo");
    assert_eq!(console.ask("sum"), before);
    drop(console);

    // Two browsers see the same, whoever changes it.
    let second = driver.browser();
    second.size(360, 740);
    second.scheme("dark");
    second.open(&manager.next_link());
    second.click("document.querySelector('[data-vm=demo] h2 a')");
    shows(&second, "1 clean, 2 broken, 2 Now");
    home.piton("checkpoint rename demo@broken worse").ok();
    for one in [&browser, &second] {
        shows(one, "1 clean, 2 worse, 2 Now");
    }
    second.shot("vm-dark-narrow");
    has_no_complaints(&second);

    // By keyboard.
    browser.click(&row("worse"));
    browser.keys(&format!("{HOME}{END}{UP}{F2}"));
    browser.until("document.querySelector('dialog h2')?.textContent === 'Rename “worse”'");
    browser.keys(&format!("worst{ENTER}"));
    shows(&browser, "1 clean, 2 worst, 2 Now");
    browser.until("document.activeElement.id.startsWith('node-')");
    browser.keys(LEFT);
    browser.until("document.activeElement.querySelector('.name').textContent === 'clean'");
    browser.keys(LEFT);
    shows(&browser, "1 clean");
    browser.keys("\u{e014}");
    shows(&browser, "1 clean, 2 worst, 2 Now");
    browser.keys(ENTER);
    browser.until("document.querySelector('dialog h2')?.textContent === 'Apply checkpoint “clean”'");
    browser.keys(ESCAPE);
    browser.until("!document.querySelector('dialog')");
    browser.shot("vm-light");
    is_accessible(&browser);
    browser.click(&row("worst"));
    browser.keys(DELETE);
    browser.until("document.querySelector('dialog')?.textContent.includes('It holds')");
    browser.shot("delete-light");
    is_accessible(&browser);
    browser.press("Delete");
    for one in [&browser, &second] {
        shows(one, "1 clean, 2 Now");
    }

    // Its process is killed while it is looked at.
    let pid = home.piton("show demo --json").json()["pid"].as_i64().unwrap() as i32;
    send_signal(pid, libc::SIGKILL);
    for one in [&browser, &second] {
        one.until("document.querySelector('.vmhead').innerText.includes('Its process was killed.')");
    }
    browser.press("Start");
    second.until("document.querySelector('.vmhead .state').textContent === 'running'");
    browser.click("[...document.querySelectorAll('.tabs a')].find((one) => one.textContent === 'Settings')");
    browser.until("document.querySelector('.panel')?.checkVisibility()");
    is_accessible(&browser);
    browser.shot("settings-light");
    for one in [&browser, &second] {
        has_no_complaints(one);
    }
}

/// Checkpoints of a stopped VM, as many as a year of use leaves, with branches now and then.
fn grow(home: &Home, count: u32) {
    let folder = VmHome::at(home.root(), Storage::os()).folder(&"many".parse().unwrap());
    let definition = folder.load().unwrap();
    let catalog = Catalog::new(&folder, &definition);
    let first = catalog.resolve(&definition, "first").unwrap();
    let mut ids = vec![first.id];
    for number in 1..count {
        // Every fifth one begins beside the line.
        let back = if number % 5 == 0 { ids.len() / 2 } else { ids.len() - 1 };
        let mut bytes = [0x11; 16];
        bytes[..4].copy_from_slice(&number.to_be_bytes());
        let manifest = Manifest {
            id: Id::from_bytes(bytes),
            name: format!("day {number}").parse().unwrap(),
            parent: Some(ids[back]),
            kind: if number % 3 == 0 { Kind::Production } else { Kind::Offline },
            created: first.created + chrono::TimeDelta::minutes(number.into()),
            ..first.clone()
        };
        let dir = catalog.store.path(manifest.id);
        std::fs::create_dir(&dir).unwrap();
        std::fs::write(dir.join("manifest.json"), manifest.encode().unwrap()).unwrap();
        ids.push(manifest.id);
    }
}

#[test]
fn many_vms_and_many_checkpoints() {
    let Some(driver) = Driver::start() else { return };
    let home = Home::new();
    home.piton("run many --memory 32M --detach").ok();
    home.piton("kill many").ok();
    home.piton("checkpoint create many first").ok();
    grow(&home, 200);
    for number in 1..50 {
        let dir = home.vm(&format!("vm-{number:02}"));
        std::fs::create_dir(&dir).unwrap();
        std::fs::copy(home.vm("many").join("vm.json"), dir.join("vm.json")).unwrap();
    }
    home.piton("run running --memory 32M --detach").ok();
    let manager = Manager::start(&home);
    let browser = driver.browser();
    browser.size(1280, 800);
    browser.scheme("light");
    browser.open(&manager.link);
    browser.until("document.querySelectorAll('.card').length === 51");
    browser.shot("list-light");
    is_accessible(&browser);
    has_no_complaints(&browser);
    browser.scheme("dark");
    browser.size(360, 740);
    browser.shot("list-dark-narrow");
    has_no_complaints(&browser);
    browser.size(1280, 800);
    browser.click("document.querySelector('[data-vm=many] h2 a')");
    browser.until("document.querySelectorAll('[role=treeitem]').length === 201");
    browser.click(&row("day 7"));
    browser.until("document.querySelector('.details h2')?.textContent === 'day 7'");
    browser.shot("tree-dark");
    // The last is reached by one key, and a change is seen though there is much.
    browser.keys(END);
    browser.until("document.activeElement.getBoundingClientRect().bottom <= innerHeight");
    home.args(["checkpoint", "rename", "many@day 9", "day nine"]).ok();
    browser.until(&row("day nine"));
    is_accessible(&browser);
    has_no_complaints(&browser);
}
