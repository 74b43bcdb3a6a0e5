//! What is in checkpoints and what came of trying them, as a user sees it.

use crate::browser::Driver;
use crate::client::Manager;
use crate::common::Home;
use crate::image_common::{Contents, Root, debugfs, write_disk};
use crate::pages::{asks, field, has_no_complaints, is_accessible, pictures, row, shows};

/// Files that differ, checkpoints that are tried, and going back without memory.
#[test]
fn what_is_in_checkpoints_and_whether_they_work() {
    let Some(driver) = Driver::start() else { return };
    let home = Home::with_trash();
    let root = Root::new(&home, "root");
    for (file, text) in [("etc/passwd", "root\n"), ("etc/motd", "hello\n"), ("var/old", "old\n")] {
        root.file(file, text.as_bytes());
    }
    let base = root.ext4_with(4 << 20, &["-b", "4096"]);
    let disk = format!("{base},id=root,overlay");
    home.args_vm(&["run", "demo", "--memory", "32M", "--disk", &disk]).power_off();
    home.piton("checkpoint create demo installed").ok();
    let image = home.beside("now").display().to_string();
    std::fs::copy(&base, &image).unwrap();
    let new = home.file("new", &[7; 3000]);
    debugfs(
        &image,
        &[
            "rm /var/old",
            "rm /etc/motd",
            &format!("write {new} /etc/motd"),
            "mkdir /srv",
            &format!("write {new} /srv/<b>new"),
        ],
    );
    write_disk(&home, "demo", "root", &base, &Contents::of(&image));

    let manager = Manager::start(&home);
    let browser = driver.browser();
    browser.size(1280, 800);
    browser.scheme("light");
    browser.open(&manager.link);
    browser.click("document.querySelector('[data-vm=demo] h2 a')");
    shows(&browser, "1 installed, 2 Now");
    browser.click(&row("installed"));
    browser.press("Compare…");
    asks(&browser, "List the files that differ");
    browser.press("Compare");
    asks(&browser, "Files 2 added, 1 removed, 1 changed");
    for line in [
        "changed: /etc/motd 6 B → 2.9 KiB",
        "added: /srv/",
        "added: /srv/<b>new 2.9 KiB",
        "removed: /var/old 4 B",
    ] {
        browser.until(&format!(
            "[...document.querySelectorAll('dialog .files li')].some((one) => one.textContent.slice(1).trim() === {line:?})"
        ));
    }
    is_accessible(&browser);
    pictures(&browser, "compare-files");
    browser.press("Close");

    // It is tried, and what came of it is shown.
    let attempt = |regex: &str, seconds: &str| {
        browser.press("Try…");
        asks(&browser, "temporary clone without a network");
        browser.click("document.querySelector('dialog input[value=prints]')");
        field(&browser, "Regular expression");
        browser.keys(regex);
        field(&browser, "Seconds");
        browser.keys(seconds);
    };
    attempt("piton guest ready", "60");
    is_accessible(&browser);
    pictures(&browser, "try");
    browser.press("Try it");
    browser.until("document.querySelector('.details .tag')?.textContent === 'verified'");
    browser.until("document.querySelector('.details').innerText.includes('yes: it was booted, and its console matched')");
    attempt("never said", "1");
    browser.press("Try it");
    browser.until("document.querySelector('.details .tag')?.textContent === 'failed'");
    browser.until("document.querySelector('[role=treeitem] .tag')?.textContent === 'failed'");
    browser.until("document.querySelector('.messages').innerText.includes('within 1 s it was not seen')");
    is_accessible(&browser);
    pictures(&browser, "tried");
    browser.js("document.querySelectorAll('.messages button').forEach((one) => one.click()) ?? true", &[]);
    browser.press("Console…");
    asks(&browser, "piton guest ready");
    is_accessible(&browser);
    pictures(&browser, "tried-console");
    browser.press("Close");

    // With memory there is a choice, and without it the VM is off afterwards.
    home.piton("start demo").ok();
    home.piton("checkpoint create demo warm --type standard").ok();
    shows(&browser, "1 installed, 2 warm, 3 Now");
    browser.click(&row("warm"));
    browser.press("Apply…");
    asks(&browser, "Leave out its memory");
    browser.click("document.querySelector('dialog input[value=discard]')");
    field(&browser, "Leave out its memory");
    browser.keys(" ");
    is_accessible(&browser);
    pictures(&browser, "apply-cold");
    field(&browser, "Let it run at once");
    browser.keys(" ");
    browser.press("Apply");
    browser.until("document.querySelector('.vmhead .state').textContent === 'stopped'");
    has_no_complaints(&browser);
}
