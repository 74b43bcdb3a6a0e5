//! What can be typed for cloud-init.

use std::path::PathBuf;

use clap::Args;

#[derive(Debug, Args)]
#[command(next_help_heading = "For cloud-init in the guest")]
pub struct SeedArgs {
    /// Let the owner of this public SSH key log in; may be repeated
    #[arg(long = "ssh-key", value_name = "FILE")]
    pub ssh_keys: Vec<PathBuf>,
    /// Name of the guest [default: the VM's]
    #[arg(long, value_name = "NAME")]
    pub hostname: Option<String>,
    /// Password of the image's user, as `openssl passwd -6` prints it
    #[arg(long, value_name = "HASH", conflicts_with = "user_data")]
    pub password_hash: Option<String>,
    /// User data: YAML, `#cloud-config`, or a script
    #[arg(long, value_name = "FILE")]
    pub user_data: Option<PathBuf>,
    /// Do not install qemu-guest-agent if the image lacks it
    #[arg(long)]
    pub no_agent: bool,
}

impl SeedArgs {
    /// Whether anything was asked for that cloud-init has to do.
    pub fn is_given(&self) -> bool {
        !self.ssh_keys.is_empty()
            || self.hostname.is_some()
            || self.password_hash.is_some()
            || self.user_data.is_some()
    }
}
