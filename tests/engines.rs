//! What runs VMs for others: the agent for Pacemaker, as Pacemaker calls it.

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;

use common::{Finished, Home, send_signal};

const GENERIC: i32 = 1;
const UNIMPLEMENTED: i32 = 3;
const INSTALLED: i32 = 5;
const CONFIGURED: i32 = 6;
const NOT_RUNNING: i32 = 7;

fn dist(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("dist").join(path)
}

/// Calls the agent with parameters of the resource.
fn ocf(home: &Home, action: &str, parameters: &[(&str, &str)]) -> Finished {
    let mut command = Command::new(dist("ocf/piton"));
    home.equip(&mut command);
    command.arg(action).env("OCF_RESKEY_home", home.root());
    command.env("OCF_RESKEY_binary", env!("CARGO_BIN_EXE_piton")).env("OCF_RESKEY_CRM_meta_timeout", "90000");
    for (name, value) in parameters {
        command.env(name, value);
    }
    Finished::run(command)
}

#[test]
fn the_ocf_agent_starts_watches_and_stops_a_vm() {
    let home = Home::new();
    home.piton("run demo --memory 32M --detach").ok();
    home.piton("kill demo").ok();
    home.ended("demo");
    let vm = ("OCF_RESKEY_vm", "demo");
    let code =
        |action: &str, more: &[(&str, &str)]| ocf(&home, action, &[&[vm], more].concat()).code.unwrap();
    assert_eq!(code("validate-all", &[]), 0);
    assert_eq!(code("monitor", &[]), NOT_RUNNING);
    assert_eq!((code("stop", &[]), code("start", &[])), (0, 0));
    // What is so already is no error.
    assert_eq!((code("monitor", &[]), code("start", &[])), (0, 0));
    home.piton("pause demo").ok();
    assert_eq!(code("monitor", &[]), GENERIC, "it serves nobody");
    assert_eq!((code("start", &[]), code("monitor", &[])), (0, 0));
    // A check in the guest fails where there is no agent.
    let deep = [("OCF_CHECK_LEVEL", "10"), ("OCF_RESKEY_monitor_exec", "true")];
    assert_eq!(code("monitor", &deep), GENERIC);
    assert_eq!(code("monitor", &deep[..1]), 0);
    // A process that is stuck is found, and ended.
    let pid = home.piton("show demo --json").json()["pid"].as_i64().unwrap() as i32;
    send_signal(pid, libc::SIGSTOP);
    assert_eq!(code("monitor", &[]), GENERIC);
    send_signal(pid, libc::SIGCONT);
    assert_eq!((code("stop", &[]), code("monitor", &[]), code("stop", &[])), (0, NOT_RUNNING, 0));
    assert_eq!(home.piton("show demo --json").json()["last_run"]["how"], "off", "the guest shut down");
    // With a checkpoint first, also of one that is paused.
    assert_eq!(code("start", &[]), 0);
    home.piton("pause demo").ok();
    assert_eq!(code("stop", &[("OCF_RESKEY_stop", "checkpoint")]), 0);
    let tree = home.piton("checkpoint list demo --json").json();
    let name = tree["checkpoints"][0]["name"].as_str().unwrap();
    assert!(name.starts_with("cluster-stop-"), "{tree}");
}

#[test]
fn the_ocf_agent_says_what_is_wrong() {
    let home = Home::new();
    let nobody = ("OCF_RESKEY_vm", "nobody");
    let code = |action: &str, parameters: &[(&str, &str)]| ocf(&home, action, parameters).code.unwrap();
    assert_eq!(code("monitor", &[]), CONFIGURED);
    assert_eq!(code("start", &[nobody]), INSTALLED);
    // A node without the storage runs nothing of it.
    assert_eq!((code("monitor", &[nobody]), code("stop", &[nobody])), (NOT_RUNNING, 0));
    assert_eq!(code("start", &[nobody, ("OCF_RESKEY_binary", "/no/piton")]), INSTALLED);
    assert_eq!(code("start", &[nobody, ("OCF_RESKEY_stop", "never")]), CONFIGURED);
    assert_eq!(code("migrate_to", &[nobody]), UNIMPLEMENTED);
    let told = ocf(&home, "meta-data", &[]).ok();
    for word in [
        "<resource-agent name=\"piton\"",
        "<parameter name=\"vm\"",
        "<action name=\"stop\"",
        "</resource-agent>",
    ] {
        assert!(told.contains(word), "{word} is missing: {told}");
    }
}
