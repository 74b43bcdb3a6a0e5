//! The picture: pauses over how fast the guest dirties its memory, by the guest's clock and by the
//! host's, and over its size by both.

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
/// Whose clock, as a value's name has it.
const CLOCKS: [(&str, &str); 2] = [("guest", "pause_ms"), ("host", "host_pause_ms")];
const SIZE: (u32, u32) = (1120, 440);
const LEGEND: u32 = 34;
type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Drawn = Result<(), Box<dyn std::error::Error>>;

pub fn draw(results: &Results, quick: bool, path: &Path) -> io::Result<()> {
    let error = |e: &dyn std::fmt::Display| io::Error::other(format!("{}: {e}", path.display()));
    let root = SVGBackend::new(path, SIZE).into_drawing_area();
    root.fill(&WHITE).map_err(|e| error(&e))?;
    // Below all that is drawn, so that it hides nothing.
    let (charts, below) = root.split_vertically(SIZE.1 - LEGEND);
    let (by_guest, rest) = charts.split_horizontally(400);
    let (by_host, right) = rest.split_horizontally(400);
    for ((clock, value), area) in CLOCKS.into_iter().zip([&by_guest, &by_host]) {
        by_rate(results, quick, clock, value, area).map_err(|e| error(&e))?;
    }
    by_size(results, &right).map_err(|e| error(&e))?;
    legend(&below).map_err(|e| error(&e))?;
    root.present().map_err(|e| error(&e))
}

/// Each run is a dot, the medians are joined.
fn by_rate(results: &Results, quick: bool, clock: &str, value: &str, area: &Area) -> Drawn {
    let mib = sizes(quick).last().copied().unwrap_or(512);
    let mut chart = ChartBuilder::on(area)
        .caption(
            format!("pause by the {clock}'s clock, ms ({mib} MiB, 1 vCPU)"),
            ("sans-serif", 17),
        )
        .margin(10)
        .x_label_area_size(40)
        .y_label_area_size(50)
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
    for (index, (_, who, prefix, colour)) in LINES.into_iter().enumerate() {
        let shift = (index as f64 - 2.0) * 0.05;
        let mut medians = Vec::new();
        for (x, rate) in RATES.into_iter().enumerate() {
            let case = Case { mib, cpus: 1, rate, disk_load: false, peers: true };
            let pauses = results.of(&case.cell(who), &format!("{prefix}{value}"));
            let x = x as f64 + shift;
            chart.draw_series(
                pauses.iter().map(|&y| Circle::new((x, y), 2, colour.mix(0.5).filled())),
            )?;
            if !pauses.is_empty() {
                medians.push((x, median(&pauses)));
            }
        }
        chart.draw_series(LineSeries::new(medians, colour.stroke_width(2)))?;
    }
    Ok(())
}

/// By the guest's clock, and by the host's in the colour of what is incremental elsewhere.
fn by_size(results: &Results, area: &Area) -> Drawn {
    let of = |value| growing(results, value);
    let clocks = CLOCKS.map(|(clock, value)| (clock, of(value)));
    let all = clocks.iter().flat_map(|(_, points)| points).flat_map(|(_, pauses)| pauses);
    let largest = all.copied().fold(1.0, f64::max);
    let mut chart = ChartBuilder::on(area)
        .caption("piton at 500 MB/s, by memory", ("sans-serif", 17))
        .margin(10)
        .x_label_area_size(40)
        .y_label_area_size(45)
        .build_cartesian_2d(0.0..8600.0, (0.05..largest * 2.0).log_scale())?;
    chart
        .configure_mesh()
        .x_desc("guest memory, MiB")
        .x_labels(5)
        .x_label_formatter(&|x: &f64| x.to_string())
        .y_label_formatter(&|y| y.to_string())
        .y_desc("pause, ms")
        .light_line_style(WHITE)
        .draw()?;
    for ((clock, points), (_, _, _, colour)) in clocks.iter().zip(LINES) {
        let dots = points.iter().flat_map(|(mib, pauses)| pauses.iter().map(|&y| (*mib as f64, y)));
        chart.draw_series(dots.map(|at| Circle::new(at, 2, colour.mix(0.5).filled())))?;
        let medians: Vec<_> =
            points.iter().map(|(mib, pauses)| (*mib as f64, median(pauses))).collect();
        if let Some(&(x, y)) = medians.last() {
            let text = format!("{clock}'s clock");
            let style = ("sans-serif", 13).into_font().color(&colour);
            // Above the end of its line.
            chart.draw_series([Text::new(text, (x - 2900.0, y * 1.9), style)])?;
        }
        chart.draw_series(LineSeries::new(medians, colour.stroke_width(2)))?;
    }
    Ok(())
}

fn legend(area: &Area) -> Drawn {
    let mut x = 60;
    for (name, _, _, colour) in LINES {
        area.draw(&PathElement::new([(x, 14), (x + 22, 14)], colour.stroke_width(2)))?;
        area.draw(&Text::new(name, (x + 28, 8), ("sans-serif", 13).into_font()))?;
        x += 60 + name.len() as i32 * 7;
    }
    Ok(())
}
