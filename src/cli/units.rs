//! Amounts as people read them.

pub fn size(bytes: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let unit = (bytes.max(1).ilog2() / 10).min(4) as usize;
    let value = bytes as f64 / (1u64 << (10 * unit)) as f64;
    if value.fract() < 0.05 {
        format!("{value:.0} {}", units[unit])
    } else {
        format!("{value:.1} {}", units[unit])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_well() {
        assert_eq!(size(0), "0 B");
        assert_eq!(size(512 << 20), "512 MiB");
        assert_eq!(size(1536 << 20), "1.5 GiB");
        assert_eq!(size(1023), "1023 B");
    }
}
