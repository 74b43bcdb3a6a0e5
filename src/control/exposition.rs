//! Metrics as text that Prometheus reads (exposition format 0.0.4), and several of these as one.

use std::collections::BTreeMap;
use std::fmt::{Display, Write};

/// Content type of the text.
pub const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

#[derive(Clone, Copy)]
pub enum Type {
    Counter,
    Gauge,
    Histogram,
}

impl Type {
    fn name(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// The metrics of one VM as they are written down.
pub struct Page {
    text: String,
    vm: String,
    family: &'static str,
}

/// What a label may have in it goes between quotes.
fn quoted(value: &str) -> String {
    value.replace('\\', r"\\").replace('"', "\\\"").replace('\n', r"\n")
}

impl Page {
    pub fn new(vm: &str) -> Self {
        Self { text: String::new(), vm: quoted(vm), family: "" }
    }

    /// Begins a metric; its samples follow.
    pub fn family(&mut self, name: &'static str, kind: Type, help: &str) -> &mut Self {
        self.family = name;
        // A string takes all of it.
        let _ = writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} {}", kind.name());
        self
    }

    pub fn sample(&mut self, labels: &[(&str, &str)], value: impl Display) -> &mut Self {
        self.part("", labels, value)
    }

    /// Of a histogram, whose parts have names of their own.
    pub fn part(&mut self, suffix: &str, labels: &[(&str, &str)], value: impl Display) -> &mut Self {
        let _ = write!(self.text, "{}{suffix}{{vm=\"{}\"", self.family, self.vm);
        for (name, value) in labels {
            let _ = write!(self.text, ",{name}=\"{}\"", quoted(value));
        }
        let _ = writeln!(self.text, "}} {value}");
        self
    }

    /// A metric of one sample.
    pub fn one(&mut self, name: &'static str, kind: Type, help: &str, value: impl Display) {
        self.family(name, kind, help).sample(&[], value);
    }

    pub fn finish(self) -> String {
        self.text
    }
}

/// Pages of several VMs as one: what belongs to a metric has to stand together.
pub fn merge<'a>(pages: impl IntoIterator<Item = &'a str>) -> String {
    let mut order: Vec<&str> = Vec::new();
    let mut families: BTreeMap<&str, (Vec<&str>, Vec<&str>)> = BTreeMap::new();
    for page in pages {
        let mut family = "";
        for line in page.lines().filter(|line| !line.is_empty()) {
            let head = line.strip_prefix("# HELP ").or_else(|| line.strip_prefix("# TYPE "));
            if let Some(head) = head {
                family = head.split(' ').next().unwrap_or_default();
            }
            let (heads, samples) = families.entry(family).or_insert_with(|| {
                order.push(family);
                Default::default()
            });
            match head {
                // VMs of another piton may describe it otherwise; one description is allowed.
                Some(_) if samples.is_empty() && heads.len() < 2 => heads.push(line),
                Some(_) => {}
                None if line.starts_with('#') => {}
                None => samples.push(line),
            }
        }
    }
    let mut text = String::new();
    for (heads, samples) in order.iter().filter_map(|family| families.get(family)) {
        for line in heads.iter().chain(samples) {
            text.push_str(line);
            text.push('\n');
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_belongs_together_stands_together() {
        let page = |vm: &str, value: u32| {
            let mut page = Page::new(vm);
            page.one("a", Type::Gauge, "The a.", value);
            page.family("b", Type::Histogram, "The b.").part("_sum", &[("x", "a\"b\\c\nd")], 0.5);
            page.finish()
        };
        let (one, two) = (page("one", 1), page("two", 2));
        let merged = merge([one.as_str(), two.as_str()]);
        let lines = [
            "# HELP a The a.",
            "# TYPE a gauge",
            "a{vm=\"one\"} 1",
            "a{vm=\"two\"} 2",
            "# HELP b The b.",
            "# TYPE b histogram",
            "b_sum{vm=\"one\",x=\"a\\\"b\\\\c\\nd\"} 0.5",
            "b_sum{vm=\"two\",x=\"a\\\"b\\\\c\\nd\"} 0.5",
            "",
        ];
        assert_eq!(merged, lines.join("\n"));
        // What is one already stays as it is.
        assert_eq!(merge([merged.as_str()]), merged);
        assert_eq!(merge([]), "");
    }
}
