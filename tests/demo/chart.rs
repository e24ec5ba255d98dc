//! The chart: two panels over one time axis, what the guest wanted and what the instance had. Plain
//! SVG that any browser shows; events are marks whose tooltip says what happened.

use std::fmt::Write;

use concertina_api::event::EventKind;
use concertina_api::vm::Outcome;

use crate::record::{Recording, Sample};
use crate::screen;

const WIDTH: f64 = 980.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 24.0;
const PANEL_HEIGHT: f64 = 210.0;
const TOP: f64 = 64.0;
const GAP: f64 = 84.0;

/// One line or area of a panel.
struct Series {
    name: &'static str,
    color: &'static str,
    area: bool,
    value: fn(&Sample) -> f64,
}

struct Panel {
    title: &'static str,
    top: f64,
    most: f64,
    grid: f64,
    series: [Series; 3],
}

/// Draws the recording.
pub fn draw(recording: &Recording) -> String {
    let seconds = recording
        .samples
        .last()
        .map_or(1.0, |s| s.at.as_secs_f64())
        .max(1.0);
    let Some(first) = recording.samples.first() else {
        return String::new();
    };
    let height = TOP + 2.0 * PANEL_HEIGHT + GAP + 62.0;
    let mut svg = String::new();
    let _ = write!(
        svg,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" \
         viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n\
         <text x=\"{LEFT}\" y=\"26\" font-size=\"17\" font-weight=\"bold\">One instance follows its load, \
         without a reboot</text>\n"
    );
    for panel in panels(first) {
        draw_panel(&mut svg, &panel, recording, seconds);
    }
    draw_time_axis(&mut svg, height - 30.0, seconds);
    svg.push_str("</svg>\n");
    svg
}

fn panels(first: &Sample) -> [Panel; 2] {
    let (cpus, memory) = (&first.status.cpus, &first.status.memory);
    [
        Panel {
            title: "CPUs",
            top: TOP,
            most: cpus.max.as_f64() * 1.1,
            grid: 1.0,
            series: [
                Series {
                    name: "wanted by the guest",
                    color: "#f2c14e",
                    area: true,
                    value: |s| s.demand.cpus,
                },
                Series {
                    name: "vCPUs online",
                    color: "#9aa5b1",
                    area: false,
                    value: |s| f64::from(s.status.cpus.online),
                },
                Series {
                    name: "CPUs it may use (quota)",
                    color: "#1f6feb",
                    area: false,
                    value: Sample::cpus,
                },
            ],
        },
        Panel {
            title: "Memory, MiB",
            top: TOP + PANEL_HEIGHT + GAP,
            most: memory.max.as_mib_f64() * 1.1,
            grid: 256.0,
            series: [
                Series {
                    name: "wanted by the load",
                    color: "#f2c14e",
                    area: true,
                    value: |s| s.demand.memory.as_mib_f64(),
                },
                Series {
                    name: "plugged",
                    color: "#1f6feb",
                    area: false,
                    value: |s| s.status.memory.plugged.as_mib_f64(),
                },
                Series {
                    name: "resident on the host",
                    color: "#c2410c",
                    area: false,
                    value: |s| s.status.memory.host_resident.as_mib_f64(),
                },
            ],
        },
    ]
}

fn x(at: f64, seconds: f64) -> f64 {
    LEFT + (WIDTH - LEFT - RIGHT) * at / seconds
}

fn draw_panel(svg: &mut String, panel: &Panel, recording: &Recording, seconds: f64) {
    let bottom = panel.top + PANEL_HEIGHT;
    let y = |value: f64| bottom - PANEL_HEIGHT * (value / panel.most).clamp(0.0, 1.0);
    let right = WIDTH - RIGHT;
    let mut level = 0.0;
    while level <= panel.most {
        let at = y(level);
        let _ = writeln!(
            svg,
            "<line x1=\"{LEFT}\" y1=\"{at:.1}\" x2=\"{right}\" y2=\"{at:.1}\" stroke=\"#e5e7eb\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\" fill=\"#4b5563\">{level}</text>",
            LEFT - 8.0,
            at + 4.0
        );
        level += panel.grid;
    }
    let _ = writeln!(
        svg,
        "<text x=\"{LEFT}\" y=\"{:.1}\" font-weight=\"bold\">{}</text>",
        panel.top - 12.0,
        panel.title
    );
    let mut legend = LEFT + 130.0;
    for series in &panel.series {
        let path = steps(&recording.samples, seconds, series.value, &y);
        let _ = if series.area {
            let end = x(seconds, seconds);
            writeln!(
                svg,
                "<path d=\"{path} L{end:.1},{bottom:.1} L{LEFT:.1},{bottom:.1} Z\" fill=\"{}\" \
                 fill-opacity=\"0.45\"/>",
                series.color
            )
        } else {
            writeln!(
                svg,
                "<path d=\"{path}\" fill=\"none\" stroke=\"{}\" stroke-width=\"2\"/>",
                series.color
            )
        };
        let _ = writeln!(
            svg,
            "<rect x=\"{legend}\" y=\"{:.1}\" width=\"14\" height=\"8\" fill=\"{}\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\">{}</text>",
            panel.top - 20.0,
            series.color,
            legend + 20.0,
            panel.top - 12.0,
            series.name
        );
        legend += 200.0;
    }
    draw_events(svg, recording, seconds, bottom, panel.title == "CPUs");
}

/// A step line: a size holds until the next sample.
fn steps(
    samples: &[Sample],
    seconds: f64,
    value: fn(&Sample) -> f64,
    y: &dyn Fn(f64) -> f64,
) -> String {
    let mut path = String::new();
    let mut before: Option<f64> = None;
    for sample in samples {
        let (at, level) = (x(sample.at.as_secs_f64(), seconds), y(value(sample)));
        let _ = match before {
            None => write!(path, "M{at:.1},{level:.1}"),
            Some(old) => write!(path, " L{at:.1},{old:.1} L{at:.1},{level:.1}"),
        };
        before = Some(level);
    }
    path
}

fn draw_events(svg: &mut String, recording: &Recording, seconds: f64, bottom: f64, cpu: bool) {
    for seen in &recording.events {
        let EventKind::Resized { report, .. } = &seen.event.kind else {
            continue;
        };
        if report.asked.cpus.is_some() != cpu {
            continue;
        }
        let color = match report.outcome {
            Outcome::Applied => "#15803d",
            Outcome::Partial => "#d97706",
            _ => "#b91c1c",
        };
        let at = x(seen.at.as_secs_f64(), seconds);
        let _ = writeln!(
            svg,
            "<path d=\"M{at:.1},{:.1} l5,9 l-10,0 Z\" fill=\"{color}\"><title>{:.1} s: {}</title></path>",
            bottom + 3.0,
            seen.at.as_secs_f64(),
            escape(&screen::words(&seen.event.kind))
        );
    }
}

fn draw_time_axis(svg: &mut String, at_y: f64, seconds: f64) {
    let step = if seconds > 60.0 { 10u32 } else { 5 };
    let mut second = 0u32;
    while f64::from(second) <= seconds {
        let _ = writeln!(
            svg,
            "<text x=\"{:.1}\" y=\"{at_y:.1}\" text-anchor=\"middle\" fill=\"#4b5563\">{second} s</text>",
            x(f64::from(second), seconds)
        );
        second += step;
    }
    let _ = writeln!(
        svg,
        "<text x=\"{LEFT}\" y=\"{:.1}\" fill=\"#4b5563\">Triangles are resizes (green: applied, amber: in \
         part, red: not); point at one to read it.</text>",
        at_y + 22.0
    );
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}
