//! grubenv: variables that outlive a boot.

use std::collections::BTreeMap;

/// What GRUB itself clears after it was used once, which nobody does here: not taken for true.
const ONCE: [&str; 4] = ["next_entry", "prev_saved_entry", "recordfail", "boot_once"];

/// Lines `name=value`; a value is escaped with backslashes.
pub fn parse(text: &str) -> BTreeMap<String, String> {
    let mut variables = BTreeMap::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        if let Some((name, value)) = line.split_once('=')
            && !ONCE.contains(&name)
        {
            let mut plain = String::new();
            let mut rest = value.chars();
            while let Some(c) = rest.next() {
                plain.extend(if c == '\\' { rest.next() } else { Some(c) });
            }
            variables.insert(name.to_owned(), plain);
        }
    }
    variables
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_of_it() {
        let found = parse("# GRUB Environment Block\nsaved_entry=a\\\\b c\nnext_entry=once\n#####");
        assert_eq!(found.into_iter().collect::<Vec<_>>(), [("saved_entry".into(), "a\\b c".into())]);
    }
}
