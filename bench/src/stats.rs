//! Order statistics.

/// Sorted, without what is no number.
pub fn sorted(values: impl IntoIterator<Item = f64>) -> Vec<f64> {
    let mut values: Vec<f64> = values.into_iter().filter(|value| value.is_finite()).collect();
    values.sort_by(f64::total_cmp);
    values
}

/// The smallest value that at least this share of the sorted values does not exceed.
pub fn quantile(sorted: &[f64], share: f64) -> f64 {
    let index = (sorted.len() as f64 * share).ceil() as usize;
    sorted.get(index.max(1) - 1).copied().unwrap_or(f64::NAN)
}

pub fn median(sorted: &[f64]) -> f64 {
    quantile(sorted, 0.5)
}

/// Three digits, or a dash.
pub fn short(value: f64) -> String {
    match value.abs() {
        _ if !value.is_finite() => "–".into(),
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

/// A median and the range around it.
pub fn spread(sorted: &[f64]) -> String {
    if sorted.is_empty() {
        return "–".into();
    }
    format!(
        "{} ({}–{})",
        short(median(sorted)),
        short(quantile(sorted, 0.0)),
        short(quantile(sorted, 1.0))
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_values_that_were_seen() {
        let values = sorted([4.0, 1.0, f64::NAN, 3.0, 2.0]);
        assert_eq!(values, [1.0, 2.0, 3.0, 4.0]);
        assert_eq!(
            [0.0, 0.5, 0.51, 0.99, 1.0].map(|share| quantile(&values, share)),
            [1.0, 2.0, 3.0, 4.0, 4.0]
        );
        assert!(quantile(&[], 0.5).is_nan());
    }
}
