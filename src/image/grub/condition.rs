//! What `[` and `test` say. Source: the GRUB manual, "test".

/// What conditions ask of files.
pub trait Files {
    fn is_file(&self, path: &str) -> bool;
    fn is_filled(&self, path: &str) -> bool;
    fn is_folder(&self, path: &str) -> bool;
}

/// Depth of parentheses and negations.
const DEPTH_MAX: usize = 32;

/// None: it makes no sense.
pub fn holds(words: &[String], files: &dyn Files) -> Option<bool> {
    let mut test = Test { rest: words, files };
    let result = test.any(0)?;
    test.rest.is_empty().then_some(result)
}

struct Test<'a> {
    rest: &'a [String],
    files: &'a dyn Files,
}

impl<'a> Test<'a> {
    fn next(&mut self) -> Option<&'a str> {
        let (word, rest) = self.rest.split_first()?;
        self.rest = rest;
        Some(word)
    }

    fn next_is(&mut self, word: &str) -> bool {
        let is = self.rest.first().is_some_and(|next| next == word);
        if is {
            self.next();
        }
        is
    }

    fn any(&mut self, depth: usize) -> Option<bool> {
        let mut result = self.all(depth)?;
        while self.next_is("-o") {
            result |= self.all(depth)?;
        }
        Some(result)
    }

    fn all(&mut self, depth: usize) -> Option<bool> {
        let mut result = self.one(depth)?;
        while self.next_is("-a") {
            result &= self.one(depth)?;
        }
        Some(result)
    }

    fn one(&mut self, depth: usize) -> Option<bool> {
        if depth > DEPTH_MAX {
            return None;
        }
        if let [left, operator, right, ..] = self.rest
            && let Some(result) = compare(left, operator, right)
        {
            self.rest = &self.rest[3..];
            return Some(result);
        }
        if self.next_is("!") {
            return Some(!self.one(depth + 1)?);
        }
        if self.next_is("(") {
            let result = self.any(depth + 1)?;
            return self.next_is(")").then_some(result);
        }
        let Some(word) = self.next() else { return Some(false) };
        let files = self.files;
        let asks: &dyn Fn(&str) -> bool = match word {
            "-n" => &|text| !text.is_empty(),
            "-z" => &|text| text.is_empty(),
            "-e" => &|path| files.is_file(path) || files.is_folder(path),
            "-f" => &|path| files.is_file(path),
            "-s" => &|path| files.is_filled(path),
            "-d" => &|path| files.is_folder(path),
            word => return Some(!word.is_empty()),
        };
        match self.next() {
            Some(what) => Some(asks(what)),
            // The word alone is a text that is not empty.
            None => Some(true),
        }
    }
}

fn compare(left: &str, operator: &str, right: &str) -> Option<bool> {
    let numbers = || {
        let number = |text: &str| text.parse::<i64>().unwrap_or(0);
        number(left).cmp(&number(right))
    };
    Some(match operator {
        "=" | "==" => left == right,
        "!=" => left != right,
        "<" => left < right,
        ">" => left > right,
        "<=" => left <= right,
        ">=" => left >= right,
        "-eq" => numbers().is_eq(),
        "-ne" => numbers().is_ne(),
        "-lt" => numbers().is_lt(),
        "-le" => numbers().is_le(),
        "-gt" => numbers().is_gt(),
        "-ge" => numbers().is_ge(),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fixed;

    impl Files for Fixed {
        fn is_file(&self, path: &str) -> bool {
            path == "/file"
        }
        fn is_filled(&self, path: &str) -> bool {
            path == "/file"
        }
        fn is_folder(&self, path: &str) -> bool {
            path == "/folder"
        }
    }

    #[test]
    fn as_in_grub() {
        let says = |text: &str| {
            let words: Vec<String> = text.split(' ').map(|word| word.replace("''", "")).collect();
            holds(&words, &Fixed)
        };
        for (text, expected) in [
            ("x = x", true),
            ("x != x", false),
            ("xy = xy -a -s /file", true),
            ("-f /folder -o -d /folder", true),
            ("! -e /none", true),
            ("( a = b ) -o ( 2 -lt 10 )", true),
            ("''", false),
            ("word", true),
            ("-n ''", false),
            ("-z ''", true),
        ] {
            assert_eq!(says(text), Some(expected), "{text}");
        }
        assert_eq!(says("( a"), None);
        assert_eq!(says("a b c d"), None);
        assert_eq!(says(&"! ".repeat(100)), None);
        assert_eq!(holds(&[], &Fixed), Some(false));
    }
}
