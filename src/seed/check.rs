//! What users give for cloud-init, looked at before a guest gets it: cloud-init itself says nothing
//! to them, it ignores what it does not understand.

use saphyr_parser::{Event, Parser};

/// Bytes of user data. What clouds take is less.
const USER_DATA_MAX: usize = 1 << 20;
const HOSTNAME_MAX: usize = 63;

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum SeedError {
    #[error(
        "this is a private key, which a guest must never see: give the public one, whose name usually ends \
         with .pub"
    )]
    PrivateKey,
    #[error("this is not a public SSH key, one line such as `ssh-ed25519 AAAA... name`")]
    NoKey,
    #[error("`{0}` is not a host name: use up to 63 letters, digits and `-`, with no `-` at either end")]
    Hostname(String),
    #[error("this is not the hash of a password that cloud-init knows: make one with `openssl passwd -6`")]
    Password,
    #[error("this user data has {0} bytes, and at most {USER_DATA_MAX} are passed on")]
    TooLong(usize),
    #[error("this user data is not text in UTF-8")]
    NotText,
    #[error("this user data is not YAML: {error} (line {line})")]
    NotYaml { error: String, line: usize },
    #[error(
        "cloud-init would ignore this user data: it begins with neither `#cloud-config` nor `#!`, and is no YAML \
         with settings"
    )]
    Unknown,
    #[error("the disk for cloud-init cannot be made: {0}")]
    Disk(String),
}

/// The first lines of what cloud-init takes beside scripts and settings.
const OTHERS: [&str; 8] = [
    "#include",
    "#cloud-boothook",
    "#part-handler",
    "#upstart-job",
    "#cloud-config-archive",
    "## template: jinja",
    "Content-Type: multipart",
    "MIME-Version:",
];

/// A line of a public key file.
pub fn check_key(text: &str) -> Result<String, SeedError> {
    if text.contains("PRIVATE KEY") {
        return Err(SeedError::PrivateKey);
    }
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    let (Some(line), None) = (lines.next(), lines.next()) else { return Err(SeedError::NoKey) };
    let mut words = line.split_whitespace();
    let kind = words.next().unwrap_or_default();
    let known = kind.starts_with("ssh-") || kind.starts_with("ecdsa-sha2-") || kind.starts_with("sk-");
    // Every key begins with its kind's length, three zeros of it.
    let is_key = words.next().is_some_and(|key| key.len() > 40 && key.starts_with("AAAA"));
    if !known || !is_key || line.contains(|c: char| c.is_control() || c == '"' || c == '\\') {
        return Err(SeedError::NoKey);
    }
    Ok(line.to_owned())
}

pub fn check_hostname(name: &str) -> Result<(), SeedError> {
    let fits = |c: char| c.is_ascii_alphanumeric() || c == '-';
    let named = (1..=HOSTNAME_MAX).contains(&name.len()) && name.chars().all(fits);
    if named && !name.starts_with('-') && !name.ends_with('-') {
        return Ok(());
    }
    Err(SeedError::Hostname(name.to_owned()))
}

/// As crypt(5) has them, of the kinds that cloud-init takes for hashes.
pub fn check_password(hash: &str) -> Result<(), SeedError> {
    let known = ["$1$", "$2a$", "$2y$", "$5$", "$6$"].iter().any(|kind| hash.starts_with(kind));
    let plain = hash.chars().all(|c| c.is_ascii_alphanumeric() || "./$=,-".contains(c));
    if known && plain && hash.matches('$').count() >= 3 { Ok(()) } else { Err(SeedError::Password) }
}

/// User data as cloud-init takes it; settings without their first line get it.
pub fn user_data(bytes: &[u8]) -> Result<String, SeedError> {
    if bytes.len() > USER_DATA_MAX {
        return Err(SeedError::TooLong(bytes.len()));
    }
    let text = std::str::from_utf8(bytes).map_err(|_| SeedError::NotText)?;
    let first = text.lines().next().unwrap_or_default().trim_end();
    if first.starts_with("#!") || OTHERS.iter().any(|other| first.starts_with(other)) {
        return Ok(text.to_owned());
    }
    let settings = is_settings(text)?;
    match (first == "#cloud-config", settings) {
        (true, _) => Ok(text.to_owned()),
        (false, true) => Ok(format!("#cloud-config\n{text}")),
        (false, false) => Err(SeedError::Unknown),
    }
}

/// Whether it is YAML whose outermost thing has names and values.
fn is_settings(text: &str) -> Result<bool, SeedError> {
    let mut first = None;
    for event in Parser::new_from_str(text) {
        let (event, _) =
            event.map_err(|e| SeedError::NotYaml { error: e.info().to_owned(), line: e.marker().line() })?;
        if !matches!(event, Event::StreamStart | Event::DocumentStart(_)) {
            first.get_or_insert(matches!(event, Event::MappingStart(..)));
        }
    }
    Ok(first.unwrap_or(false))
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGbAvv1234567890123456789012345678901234 me@here";

    #[test]
    fn keys() {
        assert_eq!(check_key(&format!("# mine\n{KEY}\n")), Ok(KEY.to_owned()));
        for private in ["-----BEGIN OPENSSH PRIVATE KEY-----\n", "-----BEGIN RSA PRIVATE KEY-----"] {
            assert_eq!(check_key(private), Err(SeedError::PrivateKey));
        }
        for wrong in ["", "hello", "ssh-ed25519 short", &format!("{KEY}\n{KEY}"), &format!("{KEY}\"")] {
            assert_eq!(check_key(wrong), Err(SeedError::NoKey), "{wrong}");
        }
    }

    #[test]
    fn names_and_passwords() {
        for (name, good) in [("web-1", true), ("", false), ("-a", false), ("a.b", false), ("a\nb", false)] {
            assert_eq!(check_hostname(name).is_ok(), good, "{name}");
        }
        for (hash, good) in [("$6$salt$abc./", true), ("secret", false), ("$6$x", false), ("$6$a$b\n", false)]
        {
            assert_eq!(check_password(hash).is_ok(), good, "{hash}");
        }
    }

    #[test]
    fn user_data_that_cloud_init_understands() {
        for good in ["#cloud-config\na: 1\n", "#!/bin/sh\n: :\n- [", "#include\nhttp://x", "#cloud-config\n"]
        {
            assert_eq!(user_data(good.as_bytes()).as_deref(), Ok(good));
        }
        assert_eq!(user_data(b"packages: [x]\n").as_deref(), Ok("#cloud-config\npackages: [x]\n"));
        for wrong in ["a: [1\n", "#cloud-config\n\ta: {b\n", "a: b: c"] {
            assert!(matches!(user_data(wrong.as_bytes()), Err(SeedError::NotYaml { .. })), "{wrong}");
        }
        for wrong in ["hello", "", "- a\n"] {
            assert_eq!(user_data(wrong.as_bytes()), Err(SeedError::Unknown), "{wrong}");
        }
        assert_eq!(user_data(b"a: \xff"), Err(SeedError::NotText));
        assert_eq!(user_data(&vec![b'#'; USER_DATA_MAX + 1]), Err(SeedError::TooLong(USER_DATA_MAX + 1)));
    }

    proptest::proptest! {
        #[test]
        fn no_text_ends_the_process(text in "[ -~\\n\\t]{0,200}") {
            let _ = user_data(text.as_bytes());
            let _ = check_key(&text);
        }
    }
}
