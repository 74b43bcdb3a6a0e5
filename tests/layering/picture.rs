//! docs/rooms.svg: a row for each level, a box for each room, lines for imports.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use crate::rooms::Room;

type Imports = BTreeSet<(String, String)>;

const WIDTH: f64 = 960.0;
const LEFT: f64 = 96.0;
const TOP: f64 = 64.0;
const ROW: f64 = 76.0;
const BOX: (f64, f64) = (104.0, 34.0);
/// The room that a line needs on its way past.
const WAY: f64 = 8.0;

/// Text of a system font, on a ground of its own: it can be read wherever it is shown.
const STYLE: &str = "\
.ground { fill: #ffffff } .row { fill: #f3f5f8 } .room { fill: #ffffff; stroke: #5b6b82 }
.line { fill: none; stroke: #7a8aa3; stroke-width: 1 } .name { fill: #17202c } .level { fill: #5b6b82 }
text { font: 14px system-ui, sans-serif } .level, .note { font-size: 12px } .note { fill: #5b6b82 }
@media (prefers-color-scheme: dark) {
.ground { fill: #10161d } .row { fill: #19212b } .room { fill: #232e3b; stroke: #8496b0 }
.line { stroke: #7487a3 } .name { fill: #eef2f7 } .level, .note { fill: #a3b1c6 }
}";

/// The imports without those that another room on the way makes, too.
fn direct(imports: &Imports) -> Imports {
    let next = |room: &str| {
        imports.iter().filter(move |(from, _)| from == room).map(|(_, to)| to).collect::<Vec<_>>()
    };
    let mut reach: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for (room, _) in imports {
        let (mut found, mut open) = (BTreeSet::new(), next(room));
        while let Some(other) = open.pop() {
            if found.insert(other.as_str()) {
                open.extend(next(other));
            }
        }
        reach.insert(room, found);
    }
    let by_way = |from: &str, to: &str| {
        next(from).into_iter().any(|via| reach.get(via.as_str()).is_some_and(|found| found.contains(to)))
    };
    imports.iter().filter(|(from, to)| !by_way(from, to)).cloned().collect()
}

/// What stands in a row: a room, or a line on its way past.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place<'a> {
    Room(&'a Room),
    Way(usize),
}

struct Layout<'a> {
    rows: Vec<(u32, Vec<(&'a Room, f64)>)>,
    /// Of each line, where it crosses each row from the one that it begins in.
    points: Vec<Vec<(usize, f64)>>,
}

/// Rows from the top. What stands in a row is near what its lines come from in the one above, and
/// no line runs behind a box.
fn lay_out<'a>(rooms: &'a [Room], lines: &[(String, String)]) -> Layout<'a> {
    let levels: BTreeSet<u32> = rooms.iter().map(|room| room.level).collect();
    let mut points: Vec<Vec<(usize, f64)>> = vec![Vec::new(); lines.len()];
    let mut done = vec![false; lines.len()];
    let mut rows = Vec::new();
    for (row, level) in levels.into_iter().rev().enumerate() {
        let here: Vec<&Room> = rooms.iter().filter(|room| room.level == level).collect();
        let ends_here = |line: usize| here.iter().any(|room| room.name == lines[line].1);
        let mut places: Vec<Place> = here.iter().map(|room| Place::Room(room)).collect();
        places.extend(
            (0..lines.len())
                .filter(|line| !points[*line].is_empty() && !done[*line] && !ends_here(*line))
                .map(Place::Way),
        );
        let last = |line: usize| points[line].last().map(|(_, x)| *x);
        let wish = |place: &Place| match place {
            Place::Way(line) => last(*line).unwrap_or(WIDTH),
            Place::Room(room) => {
                let into = (0..lines.len()).filter(|line| lines[*line].1 == room.name);
                let above: Vec<f64> = into.filter_map(last).collect();
                if above.is_empty() { WIDTH } else { above.iter().sum::<f64>() / above.len() as f64 }
            }
        };
        places.sort_by(|a, b| wish(a).total_cmp(&wish(b)));
        let wide = |place: &Place| if matches!(place, Place::Room(_)) { BOX.0 } else { WAY };
        let gap = (WIDTH - LEFT - places.iter().map(wide).sum::<f64>()) / (places.len() + 1) as f64;
        let mut x = LEFT + gap;
        let mut boxes = Vec::new();
        for place in &places {
            let middle = x + wide(place) / 2.0;
            x += wide(place) + gap;
            match place {
                Place::Way(line) => points[*line].push((row, middle)),
                Place::Room(room) => {
                    for (line, (from, to)) in lines.iter().enumerate() {
                        if *from == room.name || *to == room.name {
                            points[line].push((row, middle));
                            done[line] |= *to == room.name;
                        }
                    }
                    boxes.push((*room, middle));
                }
            }
        }
        rows.push((level, boxes));
    }
    Layout { rows, points }
}

fn middle(row: usize) -> f64 {
    TOP + ROW * (row as f64 + 0.5)
}

/// A curve between two rows, straight through the rows that it passes.
fn curve(points: &[(usize, f64)]) -> String {
    let half = BOX.1 / 2.0;
    let Some((row, x)) = points.first() else { return String::new() };
    let mut path = format!("M{x:.1} {:.1}", middle(*row) + half);
    for pair in points.windows(2) {
        let ((above, x1), (below, x2)) = (pair[0], pair[1]);
        let (y1, y2) = (middle(above) + half, middle(below) - half);
        let bend = (y2 - y1) / 2.0;
        let _ = write!(
            path,
            " L{x1:.1} {y1:.1} C{x1:.1} {:.1} {x2:.1} {:.1} {x2:.1} {y2:.1}",
            y1 + bend,
            y2 - bend
        );
    }
    path
}

pub fn draw(rooms: &[Room], imports: &Imports) -> String {
    let ground_level = rooms.iter().map(|room| room.level).min();
    let on_ground =
        |name: &str| rooms.iter().any(|room| room.name == name && Some(room.level) == ground_level);
    let lines: Vec<_> = direct(imports).into_iter().filter(|(_, to)| !on_ground(to)).collect();
    let Layout { rows, points } = lay_out(rooms, &lines);
    let height = TOP + ROW * rows.len() as f64 + 12.0;
    let mut ground = String::new();
    let mut boxes = String::new();
    for (i, (level, row)) in rows.iter().enumerate() {
        let y = middle(i);
        let (band, tall) = (y - ROW / 2.0 + 8.0, ROW - 16.0);
        let _ = writeln!(
            ground,
            "<rect class=\"row\" x=\"12\" y=\"{band}\" width=\"{}\" height=\"{tall}\" rx=\"6\"/>\n\
             <text class=\"level\" x=\"24\" y=\"{}\">level {level}</text>",
            WIDTH - 24.0,
            y + 4.0
        );
        for (room, x) in row {
            let (wide, high) = BOX;
            let _ = writeln!(
                boxes,
                "<g><title>{}: {}</title><rect class=\"room\" x=\"{:.1}\" y=\"{:.1}\" width=\"{wide}\" \
                 height=\"{high}\" rx=\"5\"/><text class=\"name\" x=\"{x:.1}\" y=\"{:.1}\" \
                 text-anchor=\"middle\">{}</text></g>",
                room.name,
                room.what,
                x - wide / 2.0,
                y - high / 2.0,
                y + 5.0,
                room.name
            );
        }
    }
    let mut curves = String::new();
    for points in &points {
        let _ = writeln!(curves, "<path class=\"line\" d=\"{}\"/>", curve(points));
    }
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" \
         height=\"{height}\" role=\"img\">\n<title>The rooms of piton's sources and what they import</title>\n\
         <style>\n{STYLE}\n</style>\n\
         <rect class=\"ground\" width=\"{WIDTH}\" height=\"{height}\" rx=\"8\"/>\n\
         <text class=\"note\" x=\"24\" y=\"30\">A line leads down from a room to one that it imports. Left out: \
         imports of the lowest level, and those to</text>\n\
         <text class=\"note\" x=\"24\" y=\"48\">which a longer way leads. Made by scripts/lib/rooms-picture.</text>\n\
         {ground}{curves}{boxes}</svg>\n"
    )
}
