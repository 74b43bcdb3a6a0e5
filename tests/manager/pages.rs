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

pub fn row(name: &str) -> String {
    format!(
        "[...document.querySelectorAll('[role=treeitem] .name')].find((one) => one.textContent === {name:?})"
    )
}

#[track_caller]
pub fn shows(browser: &Browser, rows: &str) {
    browser.until(&format!("{ROWS} === {rows:?}"));
}

/// Nothing that keeps people out, and nothing that the browser refused.
#[track_caller]
pub fn is_accessible(browser: &Browser) {
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
pub fn has_no_complaints(browser: &Browser) {
    let log = browser.log();
    assert_eq!(log, serde_json::json!([]), "{log:#}");
    let wide = browser.js("document.documentElement.scrollWidth > document.documentElement.clientWidth", &[]);
    assert_eq!(wide, false, "the page is wider than its window");
}

fn tab(browser: &Browser, label: &str) {
    browser.click(&format!(
        "[...document.querySelectorAll('.tabs a')].find((one) => one.textContent === {label:?})"
    ));
}

/// Waits for what a dialog says.
#[track_caller]
pub fn asks(browser: &Browser, text: &str) {
    browser.until(&format!("document.querySelector('dialog')?.textContent.includes({text:?})"));
}

/// Puts the focus on a field of the dialog, and selects what is in it.
#[track_caller]
pub fn field(browser: &Browser, label: &str) {
    browser.until(&format!(
        "(() => {{ const label = [...document.querySelectorAll('dialog label, dialog legend')]\
         .find((one) => one.checkVisibility() && one.textContent.trim().startsWith({label:?}));\
         const input = label && (document.getElementById(label.htmlFor) ?? label.querySelector('input'));\
         input?.focus(); input?.select?.(); return Boolean(input); }})()"
    ));
}

/// Pictures of a page, wide and narrow, light and dark.
pub fn pictures(browser: &Browser, name: &str) {
    for (scheme, width, height, how) in
        [("light", 1280, 860, "light"), ("dark", 1280, 860, "dark"), ("light", 360, 740, "narrow")]
    {
        browser.scheme(scheme);
        browser.size(width, height);
        browser.whole_shot(&format!("{name}-{how}"));
        has_no_complaints(browser);
    }
    browser.scheme("light");
    browser.size(1280, 800);
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
    tab(&browser, "Console");
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
    tab(&browser, "Checkpoints");
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
    tab(&browser, "Settings");
    browser.until("document.querySelector('.panel')?.checkVisibility()");
    is_accessible(&browser);
    for one in [&browser, &second] {
        has_no_complaints(one);
    }
}

/// What the command line does to checkpoints, the trash and settings.
#[test]
fn all_that_the_commands_do() {
    let Some(driver) = Driver::start() else { return };
    let home = Home::with_trash();
    let disk = home.file("data.raw", &vec![0; 4 << 20]);
    home.args(["run", "demo", "--memory", "32M", "--detach", "--disk", &format!("{disk},overlay")]).ok();
    let mut console = home.attach("demo");
    console.ok("fill 4 1");
    home.piton("checkpoint create demo base --type standard").ok();
    console.ok("fill 8 2");
    console.ok("blk 0 write 64K 256K 3");
    home.piton("checkpoint create demo work --type standard").ok();
    home.piton("checkpoint create demo later --type standard").ok();
    drop(console);
    let mut manager = Manager::start(&home);
    let browser = driver.browser();
    browser.size(1280, 800);
    browser.scheme("light");
    browser.open(&manager.link);
    browser.click("document.querySelector('[data-vm=demo] h2 a')");
    shows(&browser, "1 base, 2 work, 3 later, 4 Now");

    // Pins and notes, by keys.
    browser.click(&row("base"));
    browser.keys("p");
    browser.until("document.querySelector('.details .tag')?.textContent === 'pinned'");
    browser.until("[...document.querySelectorAll('.details button')].find((one) => one.textContent === 'Delete…').disabled");
    assert_eq!(home.piton("checkpoint show demo@base --json").json()["pinned"], true);
    browser.click(&row("base"));
    browser.keys("n");
    asks(&browser, "Note of “base”");
    browser.keys("as it came");
    browser.press("Save");
    browser.until("document.querySelector('.details .note')?.textContent === 'as it came'");
    is_accessible(&browser);
    browser.press("Unpin");
    browser.until("!document.querySelector('.details .tag')");

    // What differs, disks as a map.
    browser.click(&row("base"));
    browser.keys("c");
    asks(&browser, "Compare “base”");
    browser.press("Compare");
    browser.until("document.querySelectorAll('dialog .map .differs').length > 1");
    asks(&browser, "of 4 MiB differ");
    asks(&browser, "Memory");
    is_accessible(&browser);
    pictures(&browser, "compare");
    browser.press("Close");

    // Each is checked, and it is told of each that it was.
    browser.click(&row("work"));
    browser.keys("v");
    browser.until("document.querySelector('.details').innerText.includes('all as it was written')");

    // A subtree goes, with what that frees told before; undo brings it back.
    browser.click(&row("work"));
    browser.press("Delete with all below…");
    asks(&browser, "These 2 checkpoints hold");
    asks(&browser, "will be free");
    browser.shot("delete-subtree-light");
    browser.press("Delete 2");
    shows(&browser, "1 base, 2 Now");
    browser.click(&row("base"));
    browser.press("Undo…");
    asks(&browser, "“work”, “later”");
    browser.press("Undo");
    shows(&browser, "1 base, 2 work, 3 later, 4 Now");
    // A state that was discarded, too.
    browser.press("Revert…");
    asks(&browser, "“Undo” brings it back");
    browser.press("Revert");
    browser.until("document.querySelector('.messages').innerText.includes('is back at “later”')");
    tab(&browser, "Trash");
    browser.until("document.querySelector('.entry')?.innerText.includes('revert to later')");
    is_accessible(&browser);
    browser.press("Restore…");
    asks(&browser, "goes back to its state before the revert");
    browser.press("Restore");
    browser.until("document.querySelector('.entry')?.innerText.includes('restore from the trash')");
    pictures(&browser, "trash");
    browser.press("Empty…");
    browser.press("Empty the trash");
    browser.until("document.querySelector('.panel').innerText.includes('It is empty.')");

    // Clones, and an export.
    tab(&browser, "Checkpoints");
    browser.click(&row("work"));
    browser.press("Clone…");
    browser.keys("copy");
    field(&browser, "How many");
    browser.keys("2");
    browser.press("Clone");
    browser.until("document.querySelector('.messages').innerText.includes('2 VMs were created.')");
    assert_eq!(home.piton("show copy-2 --json").json()["state"], "paused");
    browser.press("Export…");
    browser.keys(home.beside("out").to_str().unwrap());
    browser.press("Export");
    browser.until("document.querySelector('.messages').innerText.includes('Exported to')");
    assert!(home.beside("out").join("export.json").exists());

    // Settings.
    tab(&browser, "Settings");
    browser.until("document.querySelectorAll('.panel').length >= 6");
    let change =
        |what: &str| browser.click(&format!("document.querySelector('[aria-label=\"Change {what}…\"]')"));
    change("the schedule");
    browser.keys("soon");
    browser.press("Save");
    asks(&browser, "“soon” is not a time");
    field(&browser, "While it runs");
    browser.keys("2h");
    browser.press("Save");
    browser.until("document.querySelector('.panels').innerText.includes('a checkpoint every 2 h')");
    change("rules");
    browser.keys("1");
    field(&browser, "Also apply this");
    browser.keys(" ");
    is_accessible(&browser);
    browser.shot("rules-light");
    browser.press("Save");
    browser.until("document.querySelector('.panels').innerText.includes('last 1')");
    change("the trash");
    browser.keys("3d");
    browser.press("Save");
    browser.until("document.querySelector('.panels').innerText.includes('3 days')");
    let set = home.piton("show demo --json").json();
    assert_eq!((&set["schedule"]["every_seconds"], &set["trash_seconds"]), (&7200.into(), &259_200.into()));
    assert_eq!((&set["retention"]["keep"]["last"], &set["retention"]["all"]), (&1.into(), &true.into()));
    pictures(&browser, "settings");
    browser.press("Prune…");
    asks(&browser, "2 checkpoints will be deleted for good");
    asks(&browser, "no rule keeps it");
    is_accessible(&browser);
    browser.shot("prune-light");
    browser.press("Delete 2");
    browser.until("document.querySelector('.messages').innerText.includes('2 checkpoints deleted.')");

    // Pauses and bytes.
    tab(&browser, "Time line");
    browser.until("document.querySelectorAll('.plot').length === 3");
    is_accessible(&browser);
    tab(&browser, "Checkpoints");
    shows(&browser, "1 later, 2 Now");

    // Long work is called off: the agent never answers.
    let mut console = home.attach("demo");
    console.ok("agent silent");
    drop(console);
    let second = driver.browser();
    second.open(&manager.next_link());
    second.click("document.querySelector('[data-vm=demo] h2 a')");
    shows(&second, "1 later, 2 Now");
    browser.press("Create checkpoint");
    browser.keys("never");
    browser.press("Create");
    // Both see it.
    for one in [&browser, &second] {
        one.until(
            "document.querySelector('.activity .what')?.textContent.includes('demo: Creating a checkpoint')",
        );
    }
    // At once: after half a minute the agent is not waited for any more.
    second.press("Cancel");
    browser.shot("job-light");
    for one in [&browser, &second] {
        one.until("document.querySelector('.activity').hidden");
    }
    shows(&browser, "1 later, 2 Now");
    browser.until("document.querySelector('.messages').innerText.includes('ancelled')");

    // Turned off, which is asked first; then its hardware and its name can be changed.
    browser.press("Turn off");
    asks(&browser, "is lost");
    browser.press("Turn off");
    browser.until("document.querySelector('.vmhead .state').textContent === 'stopped'");
    tab(&browser, "Settings");
    change("hardware");
    field(&browser, "Memory in MiB");
    browser.keys("48");
    browser.press("Save");
    browser.until("document.querySelector('.panels').innerText.includes('48 MiB')");
    browser.press("Rename…");
    browser.keys("renamed");
    browser.press("Rename");
    browser.until("location.hash === '#/vm/renamed/settings' && document.querySelector('h1').textContent.startsWith('renamed')");
    second.until("document.querySelector('.vmhead').innerText.includes('There is no VM “demo” any more.')");

    // Removed, and restored.
    browser.press("Remove");
    asks(&browser, "goes to the trash");
    browser.press("Remove");
    for one in [&browser, &second] {
        one.open(&format!("http://{}/#/", manager.host()));
        one.until("document.querySelector('.removed .entry strong')?.textContent === 'renamed'");
    }
    is_accessible(&browser);
    browser.shot("removed-light");
    browser.press("Restore…");
    browser.press("Restore");
    second.until("document.querySelector('[data-vm=renamed] .state')?.textContent === 'stopped'");
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
    let long_ago = first.created - chrono::TimeDelta::days(count.into());
    let first = catalog.store.update(first.id, |first| first.created = long_ago).unwrap();
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
            created: first.created + chrono::TimeDelta::days(number.into()),
            ..first.clone()
        };
        let dir = catalog.store.path(manifest.id);
        std::fs::create_dir(&dir).unwrap();
        std::fs::write(dir.join("manifest.json"), manifest.encode().unwrap()).unwrap();
        ids.push(manifest.id);
    }
}

/// How long the page took, for whoever reads the output of the test: that depends on the host.
fn tell_paint(browser: &Browser, what: &str) {
    let ms = browser
        .js("Math.round(performance.getEntriesByName('first-contentful-paint')[0]?.startTime ?? -1)", &[]);
    let shown = browser.js("Math.round(performance.now())", &[]);
    eprintln!("{what}: first paint after {ms} ms, all seen by the test within {shown} ms");
}

/// The same for a change that a command makes; the clock of the page is that of the host.
fn tell_update(home: &Home, browser: &Browser) {
    let state = "document.querySelector('[data-vm=running] .state')";
    browser.js(
        &format!(
            "void (window.seen = new Promise((resolve) => new MutationObserver((_, watch) => {{\
             if ({state}.textContent === 'paused') {{ watch.disconnect(); resolve(Date.now()); }} }})\
             .observe({state}, {{childList: true, characterData: true, subtree: true}}))) ?? true"
        ),
        &[],
    );
    home.piton("pause running").ok();
    let ended = chrono::Utc::now().timestamp_millis();
    let seen = browser.js("window.seen", &[]).as_i64().unwrap();
    eprintln!("a pause was shown {} ms after the command had ended", seen - ended);
    home.piton("resume running").ok();
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
    tell_paint(&browser, "51 VMs");
    browser.shot("list-light");
    is_accessible(&browser);
    has_no_complaints(&browser);
    browser.scheme("dark");
    browser.size(360, 740);
    browser.shot("list-dark-narrow");
    has_no_complaints(&browser);
    browser.size(1280, 800);
    tell_update(&home, &browser);
    browser.click("document.querySelector('[data-vm=many] h2 a')");
    browser.until("document.querySelectorAll('[role=treeitem]').length === 201");
    browser.click(&row("day 7"));
    browser.until("document.querySelector('.details h2')?.textContent === 'day 7'");
    browser.shot("tree-dark");
    browser.open(browser.js("location.href", &[]).as_str().unwrap());
    browser.js("location.reload()", &[]);
    browser.until("document.querySelectorAll('[role=treeitem]').length === 201");
    tell_paint(&browser, "200 checkpoints");
    browser.click(&row("day 7"));
    // The last is reached by one key, and a change is seen though there is much.
    browser.keys(END);
    browser.until("document.activeElement.getBoundingClientRect().bottom <= innerHeight");
    home.args(["checkpoint", "rename", "many@day 9", "day nine"]).ok();
    browser.until(&row("day nine"));
    is_accessible(&browser);
    tab(&browser, "Time line");
    browser.until("document.querySelectorAll('tbody tr').length === 200");
    pictures(&browser, "timeline");
    is_accessible(&browser);
    has_no_complaints(&browser);
}
