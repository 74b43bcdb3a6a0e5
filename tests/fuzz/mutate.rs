//! Damaged inputs from good ones. No coverage guides it: targets mend the checksums of what comes
//! out, so that what is behind them is reached.

use serde_json::Value;

/// SplitMix64: the same seed gives the same inputs.
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    pub fn below(&mut self, end: usize) -> usize {
        (self.next() % end.max(1) as u64) as usize
    }
}

const INTERESTING: [u64; 22] = [
    0,
    1,
    2,
    3,
    4,
    15,
    16,
    63,
    64,
    127,
    255,
    256,
    511,
    512,
    4095,
    4096,
    0x7fff_ffff,
    0xffff_ffff,
    1 << 32,
    1 << 46,
    i64::MAX as u64,
    u64::MAX,
];

fn number(rng: &mut Rng) -> u64 {
    let near = INTERESTING[rng.below(INTERESTING.len())];
    match rng.below(4) {
        0 => near.wrapping_sub(1),
        1 => near.wrapping_add(1),
        2 => near,
        _ => rng.next() >> rng.below(64),
    }
}

/// Where to change something. Files of fixed places are zeros for the most part; what says
/// something is elsewhere.
fn place(rng: &mut Rng, bytes: &[u8], fixed_len: bool) -> usize {
    if fixed_len && rng.below(4) > 0 {
        let said: Vec<usize> = (0..bytes.len()).filter(|&at| bytes[at] != 0).collect();
        if !said.is_empty() {
            return (said[rng.below(said.len())] + rng.below(8)).min(bytes.len() - 1);
        }
    }
    rng.below(bytes.len())
}

/// A few changes to `bytes`; `other` is where pieces come from.
pub fn bytes(rng: &mut Rng, bytes: &mut Vec<u8>, other: &[u8], fixed_len: bool) {
    for _ in 0..1 << rng.below(4) {
        if bytes.is_empty() {
            bytes.push(rng.next() as u8);
        }
        let at = place(rng, bytes, fixed_len);
        match rng.below(if fixed_len { 5 } else { 8 }) {
            0 => bytes[at] ^= 1 << rng.below(8),
            1 => bytes[at] = rng.next() as u8,
            2 | 3 => {
                // Most fields are aligned.
                let width = 1 << rng.below(4);
                let at = at / width * width;
                let value = number(rng).to_le_bytes();
                let len = width.min(bytes.len() - at);
                bytes[at..at + len].copy_from_slice(&value[..len]);
            }
            4 => {
                let from = rng.below(other.len());
                let len = rng.below(64).min(other.len() - from).min(bytes.len() - at);
                bytes[at..at + len].copy_from_slice(&other[from..from + len]);
            }
            5 => {
                let end = (at + 1 + rng.below(32)).min(bytes.len());
                bytes.drain(at..end);
            }
            6 => {
                let from = rng.below(other.len());
                let end = (from + rng.below(64)).min(other.len());
                bytes.splice(at..at, other[from..end].iter().copied());
            }
            _ => bytes.truncate(at.max(bytes.len() / 2)),
        }
    }
}

fn count(value: &Value) -> usize {
    1 + match value {
        Value::Array(items) => items.iter().map(count).sum(),
        Value::Object(fields) => fields.values().map(count).sum(),
        _ => 0,
    }
}

/// The `n`th value of the tree in order.
fn pick<'a>(value: &'a mut Value, n: &mut usize) -> Option<&'a mut Value> {
    if *n == 0 {
        return Some(value);
    }
    *n -= 1;
    match value {
        Value::Array(items) => items.iter_mut().find_map(|item| pick(item, n)),
        Value::Object(fields) => fields.values_mut().find_map(|item| pick(item, n)),
        _ => None,
    }
}

fn change(rng: &mut Rng, value: &mut Value) {
    match value {
        Value::Number(_) if rng.below(8) > 0 => *value = number(rng).into(),
        Value::Bool(b) if rng.below(8) > 0 => *b = !*b,
        Value::String(text) if rng.below(8) > 0 => {
            let mut raw = text.clone().into_bytes();
            bytes(rng, &mut raw, b"../\0/\n\xc3\xa9\"\\ 9999-99-99T99:99:99Z raw qcow2 production", false);
            *text = String::from_utf8_lossy(&raw).into_owned();
        }
        Value::Array(items) if !items.is_empty() && rng.below(4) > 0 => {
            let at = rng.below(items.len());
            match rng.below(3) {
                0 => drop(items.remove(at)),
                1 => items.insert(at, items[at].clone()),
                _ => {
                    let to = rng.below(items.len());
                    items.swap(at, to);
                }
            }
        }
        Value::Object(fields) if !fields.is_empty() && rng.below(4) > 0 => {
            let key = fields.keys().nth(rng.below(fields.len())).cloned().unwrap_or_default();
            let taken = fields.remove(&key).unwrap_or_default();
            if rng.below(2) == 0 {
                fields.insert(format!("{key}x"), taken);
            }
        }
        _ => {
            *value = match rng.below(6) {
                0 => Value::Null,
                1 => Value::Array(Vec::new()),
                2 => Value::Object(serde_json::Map::new()),
                3 => (-1).into(),
                4 => 1e300.into(),
                _ => Value::String(String::new()),
            }
        }
    }
}

/// Changes values of a JSON text, now and then its bytes.
pub fn json(rng: &mut Rng, text: &mut Vec<u8>, other: &[u8]) {
    match serde_json::from_slice::<Value>(text) {
        Ok(mut value) if rng.below(8) > 0 => {
            for _ in 0..1 + rng.below(3) {
                let mut n = rng.below(count(&value));
                if let Some(found) = pick(&mut value, &mut n) {
                    change(rng, found);
                }
            }
            *text = value.to_string().into_bytes();
        }
        _ => bytes(rng, text, other, false),
    }
}
