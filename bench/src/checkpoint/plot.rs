//! The picture: pauses over how fast the guest dirties its memory, and over its size.

use std::io;
use std::path::Path;

use plotters::coord::Shift;
use plotters::prelude::*;

use super::cases::{Case, RATES, growing, sizes};
use crate::results::Results;
use crate::stats::median;

/// What is drawn, with its cells' name, prefix and colour.
const LINES: [(&str, &str, &str, RGBColor); 5] = [
    ("piton", "piton", "", RGBColor(0, 90, 181)),
    ("piton, incremental", "piton", "next_", RGBColor(86, 180, 233)),
    ("QEMU background-snapshot", "background-snapshot", "", RGBColor(0, 140, 90)),
    ("QEMU savevm", "savevm", "", RGBColor(213, 94, 0)),
    ("QEMU migrate", "migrate", "", RGBColor(204, 121, 167)),
];
const TICKS: [&str; 4] = ["0", "50 MB/s", "500 MB/s", "unpaced"];
type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

pub fn draw(results: &Results, quick: bool, path: &Path) -> io::Result<()> {
    let error = |e: &dyn std::fmt::Display| io::Error::other(format!("{}: {e}", path.display()));
    let root = SVGBackend::new(path, (1000, 420)).into_drawing_area();
    root.fill(&WHITE).map_err(|e| error(&e))?;
    let (left, right) = root.split_horizontally(640);
    by_rate(results, quick, &left).map_err(|e| error(&e))?;
    by_size(results, &right).map_err(|e| error(&e))?;
    root.present().map_err(|e| error(&e))
}

/// Each run is a dot, the medians are joined.
fn by_rate(results: &Results, quick: bool, area: &Area) -> Result<(), Box<dyn std::error::Error>> {
    let mib = sizes(quick).last().copied().unwrap_or(512);
    let mut chart = ChartBuilder::on(area)
        .caption(format!("pause as a guest of {mib} MiB, 1 vCPU saw it, ms"), ("sans-serif", 17))
        .margin(10)
        .x_label_area_size(40)
        .y_label_area_size(55)
        .build_cartesian_2d(-0.4..3.4, (0.05..20_000.0_f64).log_scale())?;
    chart
        .configure_mesh()
        .x_desc("what the guest dirties")
        .x_labels(8)
        .x_label_formatter(&|x: &f64| {
            let whole = (x - x.round()).abs() < 0.01;
            TICKS
                .get(x.round() as usize)
                .filter(|_| whole && *x > -0.1)
                .map_or(String::new(), |tick| (*tick).into())
        })
        .y_label_formatter(&|y| y.to_string())
        .disable_x_mesh()
        .light_line_style(WHITE)
        .draw()?;
    for (index, (name, who, prefix, colour)) in LINES.into_iter().enumerate() {
        let shift = (index as f64 - 2.0) * 0.05;
        let mut medians = Vec::new();
        for (x, rate) in RATES.into_iter().enumerate() {
            let case = Case { mib, cpus: 1, rate, disk_load: false, peers: true };
            let pauses = results.of(&case.cell(who), &format!("{prefix}pause_ms"));
            let x = x as f64 + shift;
            chart.draw_series(
                pauses.iter().map(|&y| Circle::new((x, y), 2, colour.mix(0.5).filled())),
            )?;
            if !pauses.is_empty() {
                medians.push((x, median(&pauses)));
            }
        }
        if medians.is_empty() {
            continue;
        }
        chart
            .draw_series(LineSeries::new(medians, colour.stroke_width(2)))?
            .label(name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(2)));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::MiddleRight)
        .background_style(WHITE.mix(0.8))
        .border_style(BLACK.mix(0.3))
        .draw()?;
    Ok(())
}

fn by_size(results: &Results, area: &Area) -> Result<(), Box<dyn std::error::Error>> {
    let points = growing(results);
    let largest = points.iter().flat_map(|(_, pauses)| pauses).copied().fold(1.0, f64::max);
    let (_, _, _, colour) = LINES[0];
    let mut chart = ChartBuilder::on(area)
        .caption("piton at 500 MB/s, by memory", ("sans-serif", 17))
        .margin(10)
        .x_label_area_size(40)
        .y_label_area_size(45)
        .build_cartesian_2d(0.0..8600.0, 0.0..largest * 1.1)?;
    chart
        .configure_mesh()
        .x_desc("guest memory, MiB")
        .x_labels(5)
        .x_label_formatter(&|x: &f64| x.to_string())
        .y_desc("pause, ms")
        .light_line_style(WHITE)
        .draw()?;
    let dots = points.iter().flat_map(|(mib, pauses)| pauses.iter().map(|&y| (*mib as f64, y)));
    chart.draw_series(dots.map(|at| Circle::new(at, 2, colour.mix(0.5).filled())))?;
    let medians = points.iter().map(|(mib, pauses)| (*mib as f64, median(pauses)));
    chart.draw_series(LineSeries::new(medians, colour.stroke_width(2)))?;
    Ok(())
}
