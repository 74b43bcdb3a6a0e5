//! What checkpoints and VMs take on disk: what is told is what there is, and what is free afterwards.

mod common;

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use common::Home;
use serde_json::{Value, json};

/// Bytes of all files below `dir`, each counted once.
fn bytes(dir: &Path) -> u64 {
    fn walk(dir: &Path, files: &mut BTreeMap<(u64, u64), u64>) {
        for entry in std::fs::read_dir(dir).unwrap() {
            let entry = entry.unwrap();
            let meta = entry.metadata().unwrap();
            if meta.is_dir() {
                walk(&entry.path(), files);
            } else if meta.is_file() {
                files.insert((meta.dev(), meta.ino()), meta.blocks() * 512);
            }
        }
    }
    let mut files = BTreeMap::new();
    walk(dir, &mut files);
    files.values().sum()
}

fn size_of(home: &Home, checkpoint: &str) -> Value {
    home.piton(&format!("checkpoint show {checkpoint} --json")).json()["size"].clone()
}

fn number(value: &Value, name: &str) -> u64 {
    value[name].as_u64().unwrap_or_else(|| panic!("no {name} in {value}"))
}

fn shared<'a>(size: &'a Value, name: &str) -> Option<&'a Value> {
    size["shared"].as_array()?.iter().find(|one| one["name"] == name)
}

#[test]
fn a_checkpoint_frees_what_it_says() {
    let home = Home::with_trash();
    let image = home.image("a.raw", 16 << 20);
    let mut vm = home.boot(&format!("run demo --memory 64M --disk {image},id=a,overlay"));
    for (step, name) in ["root", "mid", "leaf"].iter().enumerate() {
        vm.ok(&format!("fill 4 {}", step + 1));
        vm.ok(&format!("blk 0 write {step}M 1M {}", step + 1));
        home.piton(&format!("checkpoint create demo {name}")).ok();
    }
    vm.ok("blk 0 write 0 1M 9");
    // The same over the socket, and in the list but for who shares with whom.
    let over = home.http("demo", "GET", "/vm/checkpoints/mid", "").json()["size"].clone();
    let size = size_of(&home, "demo@mid");
    assert_eq!(size, over);
    let list = home.piton("checkpoint list demo --json").json();
    let mid = list["checkpoints"].as_array().unwrap().iter().find(|one| one["name"] == "mid").unwrap();
    assert_eq!((&mid["size"]["held"], &mid["size"]["freed"]), (&size["held"], &size["freed"]));
    assert!(home.piton("checkpoint list demo").ok().contains(", frees "));
    // Each lies on what came before it.
    let held = |name: &str| number(&size_of(&home, &format!("demo@{name}")), "held");
    assert!(held("root") < held("mid") && held("mid") < held("leaf"));
    let with_root = number(shared(&size, "root").unwrap(), "bytes");
    assert!(with_root >= 1 << 20 && with_root < number(&size, "held"), "{size}");
    assert!(number(&size, "shared_with_now") >= 2 << 20, "{size}");
    assert_eq!(number(&size, "shared_with_vms"), 0);
    let told = home.piton("checkpoint show demo@mid").ok();
    assert!(told.contains("\nheld ") && told.contains(" with `root`"), "{told}");
    vm.power_off();

    // A clone has the same layers, and an image of memory that was made for it: they are not free as
    // long as it is there.
    home.piton("clone demo@leaf web").ok();
    home.piton("stop web --force").ok();
    home.ended("web");
    let size = size_of(&home, "demo@leaf");
    assert!(number(&size, "shared_with_vms") >= 3 << 20, "{size}");
    home.piton("rm web --yes --no-undo").ok();
    let alone = size_of(&home, "demo@leaf");
    assert_eq!(number(&alone, "shared_with_vms"), 0);
    assert_eq!(number(&alone, "held"), number(&size, "held"));
    assert!(number(&alone, "freed") >= number(&size, "freed") + (3 << 20), "{alone} {size}");
    for name in ["mid", "root", "leaf"] {
        let freed = number(&size_of(&home, &format!("demo@{name}")), "freed");
        let before = bytes(&home.vm("demo"));
        home.piton(&format!("checkpoint delete demo@{name} --yes --no-undo")).ok();
        let after = bytes(&home.vm("demo"));
        assert!(
            before.saturating_sub(after) >= freed.saturating_sub(8192),
            "{name}: {before} {after} {freed}"
        );
    }
}

#[test]
fn df_adds_up() {
    let home = Home::with_trash();
    assert_eq!(home.piton("df --json").json()["bytes"], 0);
    let image = home.image("a.raw", 8 << 20);
    std::fs::write(&image, vec![1; 4 << 20]).unwrap();
    let mut vm = home.boot(&format!("run demo --memory 64M --disk {image},id=a,overlay"));
    vm.ok("blk 0 write 0 2M 1");
    vm.ok("fill 8 1");
    home.piton("checkpoint create demo one").ok();
    vm.ok("blk 0 write 2M 1M 1");
    vm.ok("fill 8 2");
    home.piton("checkpoint create demo two").ok();
    home.piton("checkpoint delete demo@one --yes").ok();
    vm.power_off();
    home.piton("clone demo@two web").ok();
    home.piton("stop web --force").ok();
    home.ended("web");
    home.boot("run own --memory 32M").power_off();
    home.piton("rm own --yes").ok();
    let df = home.piton("df --json").json();
    assert_eq!(number(&df, "bytes"), bytes(&home.root()), "{df}");
    let vms = df["vms"].as_array().unwrap();
    let vm = |name: &str| vms.iter().find(|vm| vm["name"] == name).unwrap();
    for vm in vms {
        let parts = ["images", "layers", "checkpoints", "flat", "other"].map(|part| number(vm, part));
        assert_eq!(number(vm, "bytes"), parts.iter().sum::<u64>(), "{vm}");
    }
    // What they share is in each, and once in all.
    let (demo, web, own) = (vm("demo"), vm("web"), vm("own"));
    assert_eq!(number(demo, "bytes"), bytes(&home.vm("demo")));
    assert_eq!(number(demo, "shared"), number(web, "shared"));
    assert!(number(demo, "shared") > 2 << 20, "{df}");
    assert_eq!((&demo["shared_with"], &web["shared_with"]), (&json!(["web"]), &json!(["demo"])));
    let sum: u64 = vms.iter().map(|vm| number(vm, "bytes")).sum();
    assert_eq!(number(&df, "bytes"), sum - number(demo, "shared"));
    assert!(number(demo, "layers") >= 3 << 20 && number(demo, "images") == 0, "{demo}");
    assert!(own["removed"].is_string() && number(own, "layers") == 0, "{own}");
    // What is in the trash is shown.
    let removed = home.piton("trash list --json").json();
    let trash = home.piton("trash list demo --json").json();
    assert!(number(&trash, "bytes") > 0);
    assert_eq!(number(demo, "trash"), number(&trash, "bytes"));
    assert_eq!(number(&df, "trash"), number(&trash, "bytes") + number(&removed, "bytes"));
    let images = df["images"].as_array().unwrap();
    assert_eq!(images.len(), 1);
    assert_eq!((&images[0]["path"], &images[0]["used_by"]), (&json!(image), &json!(["demo", "web"])));
    assert_eq!(number(&df, "image_bytes"), number(&images[0], "bytes"));
    let told = home.piton("df").ok();
    assert!(told.contains("own (removed)") && told.contains("used by demo, web"), "{told}");
}
