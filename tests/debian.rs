//! A stock Debian image as clouds use it, booted with the kernel in it. Only where stock Linux can
//! run, see tests/linux.rs.

mod common;

use common::{Home, Vm, debian_image, is_long, until};

const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGbAvv1234567890123456789012345678901234 me@here";

fn agent(home: &Home) {
    until("the guest's agent", || {
        (home.piton("show demo --json").json()["agent_connected"] == true).then_some(())
    });
}

fn boot(home: &Home, more: &[&str]) -> Option<Vm> {
    // Before the image: it may not even be built where this is not wanted.
    let image = is_long().then(debian_image)??;
    let key = home.file("id.pub", KEY.as_bytes());
    let mut words =
        vec!["run", "demo", "--memory", "512M", "--image", image.to_str().unwrap(), "--ssh-key", &key];
    words.extend(more);
    Some(home.args_vm(&words))
}

#[test]
fn an_image_boots_to_its_login_as_cloud_init_set_it_up() {
    let home = Home::new();
    let Some(mut vm) = boot(&home, &["--hostname", "web", "--cmdline-extra", "quiet"]) else { return };
    // cloud-init says whose keys it has put in place, and the login is under its name.
    vm.expect("web login:");
    agent(&home);
    vm.expect("me@here");
    home.piton("stop demo --timeout 240").ok();
    vm.exits_well();
}
