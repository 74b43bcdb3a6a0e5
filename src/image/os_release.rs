//! os-release(5).

/// An operating system, by its os-release.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct System {
    pub name: String,
    pub id: String,
    pub version: Option<String>,
}

pub fn parse(text: &str) -> System {
    let value = |name: &str| {
        let line = text.lines().find_map(|line| line.trim().strip_prefix(name)?.strip_prefix('='))?;
        let value = line.trim().trim_matches(['"', '\'']).to_owned();
        (!value.is_empty()).then_some(value)
    };
    let id = value("ID").unwrap_or_else(|| "linux".into());
    let name = value("PRETTY_NAME").or_else(|| value("NAME")).unwrap_or_else(|| id.clone());
    System { name, id, version: value("VERSION_ID") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_and_gaps() {
        let text = "# a comment\nPRETTY_NAME=\"Debian GNU/Linux 12\"\nID=debian\nVERSION_ID='12'\n";
        let system = parse(text);
        assert_eq!(
            (system.name.as_str(), system.id.as_str(), system.version.as_deref()),
            ("Debian GNU/Linux 12", "debian", Some("12"))
        );
        assert_eq!(parse("").name, "linux");
    }
}
