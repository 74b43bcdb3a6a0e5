//! The order of kernels' versions.

use std::cmp::Ordering;

/// Numbers count as numbers, and what is no number by its letters; `~` comes before the end.
pub fn compare(a: &str, b: &str) -> Ordering {
    let (mut a, mut b) = (a.as_bytes(), b.as_bytes());
    loop {
        let (x, rest_a) = run(a, |byte| !byte.is_ascii_digit());
        let (y, rest_b) = run(b, |byte| !byte.is_ascii_digit());
        let weights = |text: &[u8]| text.iter().map(|byte| weight(*byte)).chain([1]).collect::<Vec<_>>();
        let by_text = weights(x).cmp(&weights(y));
        if by_text.is_ne() {
            return by_text;
        }
        let (x, rest_a) = run(rest_a, u8::is_ascii_digit);
        let (y, rest_b) = run(rest_b, u8::is_ascii_digit);
        let (x, y) = (number(x), number(y));
        let by_number = (x.len(), x).cmp(&(y.len(), y));
        if by_number.is_ne() || (rest_a.is_empty() && rest_b.is_empty()) {
            return by_number;
        }
        (a, b) = (rest_a, rest_b);
    }
}

fn run(text: &[u8], belongs: impl Fn(&u8) -> bool) -> (&[u8], &[u8]) {
    text.split_at(text.iter().position(|byte| !belongs(byte)).unwrap_or(text.len()))
}

fn number(digits: &[u8]) -> &[u8] {
    &digits[digits.iter().position(|digit| *digit != b'0').unwrap_or(digits.len())..]
}

fn weight(byte: u8) -> u16 {
    match byte {
        b'~' => 0,
        byte => u16::from(byte) + 2,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn newer_is_greater() {
        let order =
            ["5.9.0", "5.10.0-8-amd64", "5.10.0-23-amd64", "6.1.0~rc1", "6.1.0", "6.1.0-9", "6.01.0-10"];
        for pair in order.windows(2) {
            assert_eq!(compare(pair[0], pair[1]), Ordering::Less, "{pair:?}");
            assert_eq!(compare(pair[1], pair[0]), Ordering::Greater, "{pair:?}");
        }
        assert_eq!(compare("6.1", "6.01"), Ordering::Equal);
        assert_eq!(compare("", ""), Ordering::Equal);
    }
}
