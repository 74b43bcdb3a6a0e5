//! The disk itself: FAT, which every distribution's kernel and cloud-init read.

use std::io::{Cursor, Write};

use super::check::SeedError;
use crate::id::Id;

/// Sectors of a disk without much user data.
const SMALLEST: usize = 1 << 20;
const SECTOR: usize = 512;
const INSTANCE: &str = "instance-id: piton-";
const HOSTNAME: &str = "local-hostname: ";
/// A host name is followed by spaces up to so many characters, so that a clone's fits in its place.
const HOSTNAME_ROOM: usize = 63;

/// What is told to cloud-init.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Seed {
    pub hostname: String,
    /// Public keys of those who may log in as the image's first user.
    pub keys: Vec<String>,
    /// As [`super::user_data`] returns it; none: one that fits the rest.
    pub user_data: Option<String>,
    /// Of the image's first user.
    pub password_hash: Option<String>,
    /// Let cloud-init install qemu-guest-agent.
    pub install_agent: bool,
}

impl Seed {
    /// The bytes of the disk. `instance` is what tells cloud-init one VM from another.
    pub fn disk(&self, instance: Id) -> Result<Vec<u8>, SeedError> {
        let (meta, user) = (self.meta_data(instance), self.user_data());
        let len = (SMALLEST + user.len()).next_multiple_of(SMALLEST);
        let mut disk = Cursor::new(vec![0; len]);
        let failed = |e: std::io::Error| SeedError::Disk(e.to_string());
        let options = fatfs::FormatVolumeOptions::new()
            .volume_label(*b"CIDATA     ")
            .total_sectors(u32::try_from(len / SECTOR).unwrap_or(u32::MAX))
            // Of the instance: two disks of one VM would have the same.
            .volume_id(crc32fast::hash(meta.as_bytes()));
        fatfs::format_volume(&mut disk, options).map_err(failed)?;
        {
            let volume = fatfs::FileSystem::new(&mut disk, fatfs::FsOptions::new()).map_err(failed)?;
            for (name, text) in [("meta-data", &meta), ("user-data", &user)] {
                let mut file = volume.root_dir().create_file(name).map_err(failed)?;
                file.write_all(text.as_bytes()).and_then(|()| file.flush()).map_err(failed)?;
            }
        }
        Ok(disk.into_inner())
    }

    fn meta_data(&self, instance: Id) -> String {
        let mut text = format!("{INSTANCE}{instance}\n{HOSTNAME}{:HOSTNAME_ROOM$}\n", self.hostname);
        if !self.keys.is_empty() {
            text.push_str("public-keys:\n");
            self.keys.iter().for_each(|key| text.push_str(&format!("  - \"{key}\"\n")));
        }
        text
    }

    fn user_data(&self) -> String {
        if let Some(text) = &self.user_data {
            return text.clone();
        }
        let mut text = "#cloud-config\n".to_owned();
        if let Some(hash) = &self.password_hash {
            text.push_str(&format!("password: \"{hash}\"\nchpasswd: {{expire: false}}\n"));
        }
        if self.install_agent {
            text.push_str(
                "package_update: true\npackages: [qemu-guest-agent]\n\
                 runcmd:\n  - [systemctl, enable, --now, qemu-guest-agent]\n",
            );
        }
        if text.lines().count() == 1 {
            // Of settings without any cloud-init says that they cannot be merged.
            text.push_str("preserve_hostname: false\n");
        }
        text
    }
}

/// The same disk for a clone: another instance, and if the host was called after its VM, called
/// after the clone. None: it is no disk of ours.
pub fn for_clone(disk: &[u8], instance: Id, from: &str, to: &str) -> Option<Vec<u8>> {
    let find = |text: &str| disk.windows(text.len()).position(|part| part == text.as_bytes());
    let mut disk_of_clone = disk.to_vec();
    let mut put = |at: usize, text: &str| {
        let place = disk_of_clone.get_mut(at..at + text.len());
        place.map(|place| place.copy_from_slice(text.as_bytes()))
    };
    put(find(INSTANCE)? + INSTANCE.len(), &instance.to_string())?;
    let hostname = |name: &str| format!("{HOSTNAME}{name:HOSTNAME_ROOM$}\n");
    if let Some(at) = find(&hostname(from)).filter(|_| super::check::check_hostname(to).is_ok()) {
        put(at, &hostname(to))?;
    }
    Some(disk_of_clone)
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    fn read(disk: &[u8], name: &str) -> String {
        let mut bytes = disk.to_vec();
        let volume = fatfs::FileSystem::new(Cursor::new(&mut bytes), fatfs::FsOptions::new()).unwrap();
        assert_eq!(volume.volume_label(), "CIDATA");
        let mut text = String::new();
        volume.root_dir().open_file(name).unwrap().read_to_string(&mut text).unwrap();
        text
    }

    #[test]
    fn it_holds_what_cloud_init_looks_for() {
        let (one, two) = (Id::from_bytes([0x11; 16]), Id::from_bytes([0x22; 16]));
        let seed = Seed {
            hostname: "web".into(),
            keys: vec!["ssh-ed25519 AAAA me".into()],
            password_hash: Some("$6$a$b".into()),
            install_agent: true,
            user_data: None,
        };
        let disk = seed.disk(one).unwrap();
        let meta = read(&disk, "meta-data");
        assert!(meta.starts_with(&format!("instance-id: piton-{one}\nlocal-hostname: web ")), "{meta}");
        assert!(meta.ends_with("public-keys:\n  - \"ssh-ed25519 AAAA me\"\n"), "{meta}");
        let user = read(&disk, "user-data");
        assert!(user.starts_with("#cloud-config\npassword: \"$6$a$b\"\n"), "{user}");
        assert!(user.contains("packages: [qemu-guest-agent]"), "{user}");
        assert!(super::super::user_data(user.as_bytes()).is_ok());
        // A clone of it is another host.
        let clone = for_clone(&disk, two, "web", "other").unwrap();
        assert_eq!(
            read(&clone, "meta-data"),
            meta.replace(&one.to_string(), &two.to_string()).replace("web  ", "other")
        );
        let clone = for_clone(&disk, two, "not", "other").unwrap();
        assert!(read(&clone, "meta-data").contains("local-hostname: web"));
        assert_eq!(for_clone(&[0; 512], two, "a", "b"), None);
        // Much user data.
        let long = Seed { user_data: Some(format!("#!{}", "x".repeat(900_000))), ..Seed::default() };
        assert_eq!(read(&long.disk(one).unwrap(), "user-data").len(), 900_002);
    }
}
