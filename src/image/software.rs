//! What a system has that piton works with.

use super::survey::Volume;

const AGENT: [&str; 3] = ["/usr/sbin/qemu-ga", "/usr/bin/qemu-ga", "/sbin/qemu-ga"];
const CLOUD_INIT: [&str; 3] = ["/usr/bin/cloud-init", "/usr/local/bin/cloud-init", "/usr/sbin/cloud-init"];

/// Whether qemu-guest-agent is installed.
pub fn has_agent(root: &Volume) -> bool {
    AGENT.iter().any(|path| root.has(path))
}

pub fn has_cloud_init(root: &Volume) -> bool {
    CLOUD_INIT.iter().any(|path| root.has(path))
}
