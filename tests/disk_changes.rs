//! `piton disk`: disks of a VM that is off grow, come and go, and going back brings them back.

mod common;

use common::{Home, Vm, has_word};

/// Zeros, by what the guest reads of a place that it never wrote to.
fn reads_zeros(vm: &mut Vm, at: &str, len: &str) {
    let sum = |told: String| told.split_whitespace().find(|word| word.starts_with("sum=")).map(str::to_owned);
    let zeros = sum(vm.ok(&format!("blk read 3M {len}")));
    assert!(zeros.is_some());
    assert_eq!(sum(vm.ok(&format!("blk read {at} {len}"))), zeros, "{at}");
}

/// Without the journal that the guest keeps in a disk's last 64 KiB. It may begin one before it is told.
fn boot(home: &Home, line: &str) -> Vm {
    let mut vm = home.boot(line);
    vm.ok("journal off");
    vm
}

#[test]
fn an_overlay_grows_and_its_checkpoints_keep_their_size() {
    let home = Home::new();
    // Ends within a block.
    let image = home.image("a.raw", (8 << 20) - 512);
    let mut vm = boot(&home, &format!("run demo --memory 32M --disk {image},overlay,id=data"));
    vm.ok("blk write 0 1M 1");
    vm.ok(&format!("blk write {} 3584 2", (8 << 20) - 4096));
    home.piton("disk resize demo data 16M").fails(3, &["`demo` is running", "piton stop demo"]);
    vm.power_off();
    home.piton("checkpoint create demo small").ok();
    home.piton("disk resize demo data 4M").fails(3, &["a disk can only grow"]);
    home.piton("disk resize demo data 99999T").fails(2, &["not a disk size"]);
    home.piton("disk resize demo data 100").fails(2, &["not a disk size"]);
    home.piton("disk resize demo other 16M").fails(3, &["no disk `other`: it has data"]);
    let told = home.piton("disk resize demo data 16M").ok();
    assert!(told.contains("to 16 MiB") && told.contains("its checkpoints keep theirs"), "{told}");
    assert!(home.piton("disk resize demo data 16M").ok().contains("already"));
    let told = home.piton("disk resize demo data +8M --json").json();
    assert_eq!((&told["from"], &told["size"]), (&(16 << 20).into(), &(24 << 20).into()));

    let mut vm = boot(&home, "start demo --attach");
    let old = |vm: &mut Vm| {
        vm.ok("blk verify 0 1M 1");
        vm.ok(&format!("blk verify {} 3584 2", (8 << 20) - 4096));
    };
    old(&mut vm);
    reads_zeros(&mut vm, &((8 << 20) - 512).to_string(), "1M");
    reads_zeros(&mut vm, "16M", "4M");
    // Over the former end.
    vm.ok(&format!("blk write {} 1M 3", (8 << 20) - 512));
    vm.ok("blk write 22M 1M 4");
    vm.ok("blk flush");
    home.piton("checkpoint create demo large").ok();
    let told = home.piton("checkpoint apply demo@small --discard-current").ok();
    assert!(told.contains("disk data 8.0 MiB (was 24 MiB)"), "{told}");
    vm.exits_well();

    let mut vm = boot(&home, "start demo --attach");
    vm.ok("blk verify 0 1M 1");
    assert!(has_word(&vm.err("blk write 8M 4096 9"), "reason=range"));
    vm.ok("blk write 1M 1M 5");
    home.piton("checkpoint apply demo@large --discard-current --run").ok();
    let large = |vm: &mut Vm| {
        vm.ok("blk verify 0 1M 1");
        vm.ok(&format!("blk verify {} 1M 3", (8 << 20) - 512));
        vm.ok("blk verify 22M 1M 4");
        reads_zeros(vm, "1M", "1M");
    };
    large(&mut vm);
    home.piton("checkpoint verify demo@large").ok();
    let diff = home.piton("checkpoint diff demo@small demo@large --json").json();
    let found = &diff["disks"]["data"]["ranges"];
    assert!(found.as_array().is_some_and(|ranges| ranges.len() >= 2), "{diff}");

    // Whole, to another VM; and what differs on top of that.
    let (dir, later) = (home.beside("small"), home.beside("large"));
    home.piton(&format!("checkpoint export demo@small {}", dir.display())).ok();
    home.piton(&format!("checkpoint export demo@large {} --since small", later.display())).ok();
    home.piton(&format!("import {} {} --name other", dir.display(), later.display())).ok();
    home.piton("clone demo@large twin").ok();
    vm.power_off();
    for (name, word) in [("other", "start"), ("twin", "resume")] {
        home.piton(&format!("{word} {name}")).ok();
        let mut console = home.attach(name);
        console.ok("blk verify 22M 1M 4");
        console.ok("blk verify 0 1M 1");
        home.piton(&format!("kill {name}")).ok();
        home.ended(name);
        // Layers that it shares stay as they are.
        home.piton(&format!("rm {name} --yes")).ok();
    }

    // Layers of different sizes become one.
    home.piton("checkpoint delete demo@small --yes").ok();
    home.piton("checkpoint delete demo@large --yes").ok();
    let mut vm = boot(&home, "start demo --attach");
    large(&mut vm);
    vm.power_off();
    let names = std::fs::read_dir(home.vm("demo").join("disks")).unwrap();
    let layers = names.filter(|name| name.as_ref().unwrap().path().extension().is_some_and(|e| e == "delta"));
    assert_eq!(layers.count(), 1);
    assert_eq!(std::fs::metadata(&image).unwrap().len(), (8 << 20) - 512);
}

#[test]
fn an_image_that_is_written_to_grows_itself_unless_a_checkpoint_needs_it() {
    let home = Home::new();
    let image = home.image("a.raw", 8 << 20);
    let len = || std::fs::metadata(&image).unwrap().len();
    let mut vm = boot(&home, &format!("run demo --memory 32M --disk {image}"));
    vm.ok("blk write 0 1M 1");
    vm.power_off();
    home.piton("disk resize demo disk0 12M").ok();
    assert_eq!(len(), 12 << 20);
    home.piton("checkpoint create demo one").ok();
    home.piton("disk resize demo disk0 20M").ok();
    assert_eq!(len(), 12 << 20, "a checkpoint is based on it");
    let mut vm = boot(&home, "start demo --attach");
    vm.ok("blk verify 0 1M 1");
    reads_zeros(&mut vm, "8M", "4M");
    vm.ok("blk write 11M 8M 2");
    // While its guest runs, the image that is open cannot grow.
    home.piton("checkpoint delete demo@one --yes").ok();
    vm.ok("blk verify 11M 8M 2");
    assert_eq!(len(), 12 << 20);
    vm.power_off();
    assert_eq!(len(), 20 << 20, "what lay on it was merged into it");
    let mut vm = boot(&home, "start demo --attach");
    vm.ok("blk verify 0 1M 1");
    vm.ok("blk verify 11M 8M 2");
    reads_zeros(&mut vm, "4M", "3M");
    vm.power_off();
    assert_eq!(std::fs::read_dir(home.vm("demo").join("disks")).unwrap().count(), 0);
}

#[test]
fn a_disk_is_larger_than_its_image_from_the_start() {
    let home = Home::new();
    let image = home.image("a.raw", 1 << 20);
    home.piton(&format!("run demo --disk {image},size=4M")).fails(2, &["takes an overlay", ",overlay"]);
    home.piton(&format!("run demo --disk {image},overlay,size=4096K,size=8M")).fails(2, &["twice"]);
    let small = home.piton(&format!("run demo --disk {image},overlay,size=512K"));
    small.fails(3, &["cannot be smaller than that"]);
    home.is_empty();
    let mut vm = boot(&home, &format!("run demo --memory 32M --disk {image},overlay,size=4M"));
    vm.ok("blk write 2M 1M 7");
    vm.ok("blk write 1047552 4096 8");
    vm.ok("blk verify 2M 1M 7");
    assert!(has_word(&vm.err("blk write 4M 4096 9"), "reason=range"));
    vm.power_off();
    assert_eq!(std::fs::metadata(&image).unwrap().len(), 1 << 20);
}

#[test]
fn disks_come_and_go() {
    let home = Home::new();
    let (first, second) = (home.image("a.raw", 1 << 20), home.image("b.raw", 2 << 20));
    let mut vm = boot(&home, &format!("run demo --memory 32M --disk {first},id=root"));
    vm.ok("blk 0 write 0 64K 1");
    home.piton(&format!("disk add demo {second}")).fails(3, &["`demo` is running"]);
    vm.power_off();
    home.piton(&format!("disk add demo {first}")).fails(3, &["are the same file"]);
    home.piton(&format!("disk add demo {second},id=root")).fails(3, &["two disks have the id `root`"]);
    home.piton("disk add demo /no/such").fails(3, &["/no/such"]);
    home.piton(&format!("disk add demo {second},overlay,size=1M")).fails(3, &["cannot be smaller"]);
    let told = home.piton(&format!("disk add demo {second},overlay,size=3M")).ok();
    assert!(told.contains("has the disk `disk1` (3 MiB)"), "{told}");
    let mut vm = boot(&home, "start demo --attach");
    vm.ok("blk 1 write 1536K 1M 2");
    vm.ok("blk 1 flush");
    vm.power_off();
    home.piton("disk remove demo disk1").fails(3, &["no checkpoint has the", "--discard"]);
    home.piton("checkpoint create demo two").ok();
    let told = home.piton("disk remove demo disk1").ok();
    assert!(told.contains("b.raw is still there"), "{told}");
    let mut vm = boot(&home, "start demo --attach");
    assert!(vm.text().contains("disks=1"));
    vm.power_off();

    // What a checkpoint needs is not written to, nor taken for another disk.
    home.piton(&format!("disk add demo {second},id=w"))
        .fails(3, &["checkpoint `two` is based on", ",overlay"]);
    home.piton(&format!("disk add demo {},id=disk1", home.image("c.raw", 4096)))
        .fails(3, &["another disk `disk1`"]);
    let told = home.piton("checkpoint apply demo@two --discard-current").ok();
    assert!(told.contains("disks root, disk1 (was root)"), "{told}");
    let mut vm = boot(&home, "start demo --attach");
    vm.ok("blk 1 verify 1536K 1M 2");
    vm.ok("blk 0 verify 0 64K 1");
    vm.power_off();
    home.piton("checkpoint delete demo@two --yes").ok();
    home.piton("disk rm demo disk1 --discard").ok();
    let mut vm = boot(&home, "start demo --attach");
    vm.ok("blk 0 verify 0 64K 1");
    vm.power_off();
    assert_eq!(std::fs::metadata(&second).unwrap().len(), 2 << 20);
}
