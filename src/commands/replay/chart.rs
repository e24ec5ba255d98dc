//! The chart: for each trace and each way to scale one panel per axis, with what was wanted, what
//! was there, and what was short. Plain SVG that any browser shows.

use std::fmt::Write;

use concertina_agent::replay::Column;
use concertina_api::Bytes;
use concertina_api::policy::Axis;

use super::report::{Replayed, Report, TraceReport};

const WIDTH: f64 = 980.0;
const LEFT: f64 = 110.0;
const RIGHT: f64 = 24.0;
const TOP: f64 = 60.0;
const HEAD: f64 = 46.0;
const PANEL: f64 = 90.0;
const GAP: f64 = 16.0;
const FOOT: f64 = 40.0;

const WANTED: &str = "#f2c14e";
const HELD: &str = "#1f6feb";
const SHORT: &str = "#b91c1c";
/// Smaller shortages cannot be seen.
const LEAST_SEEN: f64 = 0.05;
const DAY_MS: f64 = 86_400_000.0;

/// Draws the report.
pub fn draw(report: &Report) -> String {
    let height = TOP + report.traces.iter().map(height_of).sum::<f64>();
    let mut svg = String::new();
    let _ = write!(
        svg,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" \
         viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n\
         <text x=\"{LEFT}\" y=\"26\" font-size=\"17\" font-weight=\"bold\">Replay of recorded \
         loads</text>\n"
    );
    let legend = [
        ("wanted", WANTED),
        ("held", HELD),
        ("short (hangs from the top)", SHORT),
    ];
    for (index, (name, color)) in legend.into_iter().enumerate() {
        let x = LEFT + 130.0 * index as f64;
        let _ = writeln!(
            svg,
            "<rect x=\"{x}\" y=\"38\" width=\"14\" height=\"8\" fill=\"{color}\"/>\
             <text x=\"{}\" y=\"46\">{name}</text>",
            x + 20.0
        );
    }
    let mut top = TOP;
    for trace in &report.traces {
        draw_trace(&mut svg, trace, top);
        top += height_of(trace);
    }
    svg.push_str("</svg>\n");
    svg
}

fn axes_of(trace: &TraceReport) -> impl Iterator<Item = Axis> {
    let has = |axis: &Axis| trace.results.iter().any(|r| r.score.of(*axis).is_some());
    Axis::ALL.into_iter().filter(has)
}

fn height_of(trace: &TraceReport) -> f64 {
    let panels = trace.results.len() * axes_of(trace).count();
    HEAD + FOOT + panels as f64 * (PANEL + GAP)
}

fn draw_trace(svg: &mut String, trace: &TraceReport, top: f64) {
    let _ = writeln!(
        svg,
        "<text x=\"{LEFT}\" y=\"{:.1}\" font-size=\"14\" font-weight=\"bold\">{}</text>",
        top + HEAD - 14.0,
        escape(&trace.trace)
    );
    let mut at = top + HEAD;
    for axis in axes_of(trace) {
        let most = most(trace, axis);
        for result in &trace.results {
            Panel {
                result,
                axis,
                most,
                top: at,
            }
            .draw(svg);
            at += PANEL + GAP;
        }
    }
    if let Some(result) = trace.results.first() {
        draw_days(svg, result, at);
    }
}

/// The largest value of any panel of an axis, so that all have one scale.
fn most(trace: &TraceReport, axis: Axis) -> f64 {
    let columns = trace.results.iter().flat_map(|r| r.timeline.of(axis));
    let values = columns.flat_map(|column| [column.wanted(), column.held()]);
    values.flatten().fold(1.0, f64::max) * 1.05
}

struct Panel<'a> {
    result: &'a Replayed,
    axis: Axis,
    most: f64,
    top: f64,
}

impl Panel<'_> {
    fn bottom(&self) -> f64 {
        self.top + PANEL
    }

    fn y(&self, value: f64) -> f64 {
        self.bottom() - PANEL * (value / self.most).clamp(0.0, 1.0)
    }

    fn draw(&self, svg: &mut String) {
        let columns = self.result.timeline.of(self.axis);
        let (right, bottom) = (WIDTH - RIGHT, self.bottom());
        let scale = match self.axis {
            Axis::Cpus => format!("{:.1} CPUs", self.most / 1000.0),
            Axis::Memory => format!("{:.0} MiB", Bytes(self.most as u64).as_mib_f64()),
        };
        let _ = writeln!(
            svg,
            "<path d=\"M{LEFT},{top:.1} V{bottom:.1} H{right}\" fill=\"none\" stroke=\"#9aa5b1\"/>\
             <text x=\"{at}\" y=\"{name_y:.1}\" text-anchor=\"end\" font-weight=\"bold\">{name}</text>\
             <text x=\"{at}\" y=\"{scale_y:.1}\" text-anchor=\"end\" fill=\"#4b5563\">{scale}</text>",
            top = self.top,
            at = LEFT - 8.0,
            name_y = self.top + PANEL / 2.0,
            name = self.result.name,
            scale_y = self.top + 10.0,
        );
        let wanted = self.steps(columns, Column::wanted, Some(bottom));
        let held = self.steps(columns, Column::held, None);
        let _ = writeln!(
            svg,
            "<path d=\"{wanted}\" fill=\"{WANTED}\" fill-opacity=\"0.55\"/>\
             <path d=\"{held}\" fill=\"none\" stroke=\"{HELD}\" stroke-width=\"1.5\"/>\
             <path d=\"{}\" fill=\"none\" stroke=\"{SHORT}\" stroke-width=\"1.2\"/>",
            self.shortages(columns)
        );
    }

    /// A line in steps, or an area down to `base`, with a hole where a value is unknown.
    fn steps(
        &self,
        columns: &[Column],
        value: fn(&Column) -> Option<f64>,
        base: Option<f64>,
    ) -> String {
        let mut path = String::new();
        // Tenths of a pixel; a line goes on while they stay the same.
        let mut before: Option<i64> = None;
        for (index, column) in columns.iter().enumerate() {
            let from = x(index, columns.len());
            let Some(value) = value(column) else {
                close(&mut path, before.take(), base, from);
                continue;
            };
            let y = self.y(value);
            let tenths = (y * 10.0).round() as i64;
            let _ = match (before, base) {
                (Some(same), _) if same == tenths => Ok(()),
                (Some(_), _) => write!(path, " H{from:.1} V{y:.1}"),
                (None, Some(base)) => write!(path, " M{from:.1},{base:.1} V{y:.1}"),
                (None, None) => write!(path, " M{from:.1},{y:.1}"),
            };
            before = Some(tenths);
        }
        close(&mut path, before, base, WIDTH - RIGHT);
        path.trim_start().to_owned()
    }

    /// What was short hangs down from the top, so that its area is what was not served.
    fn shortages(&self, columns: &[Column]) -> String {
        let mut path = String::new();
        for (index, column) in columns.iter().enumerate() {
            let deep = PANEL * (column.short() / self.most).min(1.0);
            if deep < LEAST_SEEN {
                continue;
            }
            let at = x(index, columns.len()) + 0.5;
            let _ = write!(path, " M{at:.1},{:.1} v{deep:.1}", self.top);
        }
        path.trim_start().to_owned()
    }
}

fn close(path: &mut String, open: Option<i64>, base: Option<f64>, at: f64) {
    let _ = match (open, base) {
        (None, _) => Ok(()),
        (Some(_), Some(base)) => write!(path, " H{at:.1} V{base:.1} Z"),
        (Some(_), None) => write!(path, " H{at:.1}"),
    };
}

fn x(index: usize, count: usize) -> f64 {
    LEFT + (WIDTH - LEFT - RIGHT) * index as f64 / count.max(1) as f64
}

fn draw_days(svg: &mut String, result: &Replayed, at_y: f64) {
    let columns = result.timeline.of(Axis::Cpus).len();
    let days = result.timeline.column_ms() as f64 * columns as f64 / DAY_MS;
    let step = (days / 15.0).ceil().max(1.0);
    let mut day = 0.0;
    while day <= days {
        let x = LEFT + (WIDTH - LEFT - RIGHT) * day / days;
        let _ = writeln!(
            svg,
            "<text x=\"{x:.1}\" y=\"{at_y:.1}\" text-anchor=\"middle\" fill=\"#4b5563\">{day} d</text>"
        );
        day += step;
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}
