//! Samples on disk, one JSON object a line, so that a run can be cut short and gone on with.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::host::{self, CpuTimes};
use crate::stats;

pub type Values = BTreeMap<String, f64>;

/// What one contender did in one round of one case.
#[derive(Serialize, Deserialize)]
struct Sample {
    cell: String,
    round: usize,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    values: Values,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    cpu: CpuTimes,
    load: f64,
}

pub struct Results {
    file: Option<File>,
    samples: Vec<Sample>,
}

impl Results {
    pub fn load(path: &Path) -> io::Result<Self> {
        let text = match fs::read_to_string(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => String::new(),
            other => other?,
        };
        // A line that was cut short is measured again.
        let samples = text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        Ok(Self { file: None, samples })
    }

    pub fn append_to(path: &Path) -> io::Result<Self> {
        let mut results = Self::load(path)?;
        let mut file = File::options().append(true).create(true).open(path)?;
        // Ends such a line.
        file.write_all(b"\n")?;
        results.file = Some(file);
        Ok(results)
    }

    /// What failed counts as not done, so that the next run tries it again.
    pub fn has(&self, cell: &str, round: usize) -> bool {
        let done = |sample: &Sample| {
            sample.cell == cell && sample.round == round && sample.error.is_none()
        };
        self.samples.iter().any(done)
    }

    /// Measures unless that was done before. What fails is noted, and the run goes on.
    pub fn measure(
        &mut self,
        cell: &str,
        round: usize,
        run: impl FnOnce() -> io::Result<Values>,
    ) -> io::Result<()> {
        if self.has(cell, round) {
            return Ok(());
        }
        let load = host::load();
        let before = CpuTimes::now()?;
        let outcome = run();
        let cpu = CpuTimes::now()?.since(&before);
        let (values, error) = match outcome {
            Ok(values) => (values, None),
            Err(e) => (Values::new(), Some(e.to_string())),
        };
        eprintln!("round {}: {cell}: {}", round + 1, error.as_deref().unwrap_or("done"));
        let sample = Sample { cell: cell.into(), round, values, error, cpu, load };
        if let Some(file) = &mut self.file {
            writeln!(file, "{}", serde_json::to_string(&sample)?)?;
        }
        self.samples.push(sample);
        Ok(())
    }

    /// All that was measured of one thing, sorted.
    pub fn of(&self, cell: &str, value: &str) -> Vec<f64> {
        let of_cell = self.samples.iter().filter(|sample| sample.cell == cell);
        stats::sorted(of_cell.filter_map(|sample| sample.values.get(value).copied()))
    }

    pub fn median(&self, cell: &str, value: &str) -> f64 {
        stats::median(&self.of(cell, value))
    }

    pub fn rounds(&self) -> usize {
        self.samples.iter().map(|sample| sample.round + 1).max().unwrap_or(0)
    }

    /// Rounds and noise, as lines of a list.
    pub fn describe(&self) -> String {
        let mut cpu = CpuTimes::default();
        self.samples.iter().for_each(|sample| cpu.add(&sample.cpu));
        let loads = stats::sorted(self.samples.iter().map(|sample| sample.load));
        let mut text = format!(
            "- {} interleaved rounds; {}\n- load average before each measurement: median {:.1}, highest {:.1}",
            self.rounds(),
            cpu.describe(),
            stats::median(&loads),
            stats::quantile(&loads, 1.0)
        );
        let mut errors: BTreeMap<(&str, &str), usize> = BTreeMap::new();
        for sample in &self.samples {
            if let Some(error) = &sample.error
                && !self.has(&sample.cell, sample.round)
            {
                *errors.entry((&sample.cell, error)).or_default() += 1;
            }
        }
        for ((cell, error), count) in errors {
            text += &format!("\n- failed {count} times: {cell}: {}", error.replace('\n', " "));
        }
        text
    }
}

/// One line of the table of goals.
pub fn goal(what: &str, goal: &str, measured: f64, unit: &str, met: bool) -> String {
    let verdict = match met {
        _ if !measured.is_finite() => "not measured",
        true => "met",
        false => "**not met**",
    };
    format!("| {what} | {goal} | {} {unit} | {verdict} |\n", stats::short(measured))
}

pub const GOALS: &str = "| | goal | measured | |\n| --- | --- | ---: | --- |\n";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_goes_on_after_a_line_cut_short() {
        let path = std::env::temp_dir().join(format!("piton-bench-{}.jsonl", std::process::id()));
        let one = |value| move || Ok(Values::from([("ms".into(), value)]));
        let mut results = Results::append_to(&path).unwrap();
        results.measure("a", 0, one(1.0)).unwrap();
        results.measure("a", 1, || Err(io::Error::other("no"))).unwrap();
        drop(results);
        let whole = fs::read_to_string(&path).unwrap();
        fs::write(&path, format!("{whole}{{\"cell\":\"a\",\"rou")).unwrap();
        let mut results = Results::append_to(&path).unwrap();
        results.measure("a", 0, || panic!("measured before")).unwrap();
        results.measure("a", 2, one(3.0)).unwrap();
        assert_eq!(Results::load(&path).unwrap().of("a", "ms"), [1.0, 3.0]);
        assert!(results.describe().contains("failed 1 times: a: no"));
        fs::remove_file(&path).unwrap();
    }
}
