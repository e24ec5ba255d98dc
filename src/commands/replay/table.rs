//! The scores for people.

use std::time::Duration;

use concertina_agent::replay::AxisScore;
use concertina_api::policy::Axis;

use super::report::{AxisTotal, POLICY, Report, Total, TraceReport};
use crate::output;

/// All tables, one below the other.
pub fn text(report: &Report) -> String {
    let mut parts: Vec<String> = report.traces.iter().map(of_trace).collect();
    if report.traces.len() > 1 {
        parts.push(of_total(report));
    }
    parts.push(format!("Actuation: {}", report.actuation));
    parts.join("\n\n")
}

fn of_trace(trace: &TraceReport) -> String {
    let mut parts = vec![headline(trace)];
    parts.extend(trace.notes.iter().map(|note| format!("  {note}.")));
    for axis in Axis::ALL {
        let scores: Vec<(&str, &AxisScore)> = trace
            .results
            .iter()
            .filter_map(|result| Some((result.name, result.score.of(axis)?)))
            .collect();
        if !scores.is_empty() {
            parts.push(axis_table(axis, &scores));
        }
    }
    parts.join("\n")
}

fn headline(trace: &TraceReport) -> String {
    let span = |seconds: f64| output::span(Duration::from_secs_f64(seconds.max(0.0)));
    format!(
        "{}: {} samples of {} in {}, on a machine of {} CPUs and {:.0} MiB\nBounds: {} CPUs, {}",
        trace.trace,
        trace.samples,
        span(trace.step_seconds),
        span(trace.step_seconds * trace.samples as f64),
        trace.machine.cpus,
        trace.machine.memory_bytes / (1024.0 * 1024.0),
        trace.bounds.cpus,
        trace.bounds.memory,
    )
}

fn unit(axis: Axis) -> &'static str {
    match axis {
        Axis::Cpus => "CPU-S",
        Axis::Memory => "MIB-S",
    }
}

fn axis_table(axis: Axis, scores: &[(&str, &AxisScore)]) -> String {
    let ms = |time: Option<u64>| time.map_or("-".to_owned(), output::span_ms);
    let rows: Vec<Vec<String>> = scores
        .iter()
        .map(|(name, score)| {
            vec![
                (*name).to_owned(),
                amount(score.unserved),
                share(score.unserved, score.demand),
                amount(score.slack),
                share(score.slack, score.demand),
                score.changes.to_string(),
                score.reversals.to_string(),
                format!("{}/{}", score.steps_covered, score.steps),
                ms(score.cover_median_ms),
                ms(score.cover_p95_ms),
                ms(score.cover_longest_ms),
            ]
        })
        .collect();
    let unit = unit(axis);
    let header = [
        axis.as_str().to_uppercase(),
        format!("UNSERVED {unit}"),
        "%".into(),
        format!("SLACK {unit}"),
        "%".into(),
        "CHANGES".into(),
        "REVERSALS".into(),
        "STEPS COVERED".into(),
        "MEDIAN".into(),
        "P95".into(),
        "LONGEST".into(),
    ];
    let header = header.each_ref().map(String::as_str);
    output::table(&header, &rows, &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10])
}

fn of_total(report: &Report) -> String {
    let mut parts = vec![format!("All {} traces together", report.traces.len())];
    for axis in Axis::ALL {
        let totals: Vec<(&str, &AxisTotal)> = report
            .total
            .iter()
            .filter_map(|total: &Total| Some((total.name, total.of(axis)?)))
            .collect();
        let Some((_, policy)) = totals.iter().find(|(name, _)| *name == POLICY) else {
            continue;
        };
        let rows: Vec<Vec<String>> = totals
            .iter()
            .map(|(name, total)| {
                vec![
                    (*name).to_owned(),
                    amount(total.unserved),
                    share(total.unserved, total.demand),
                    amount(total.slack),
                    share(total.slack, total.demand),
                    total.changes.to_string(),
                    total.reversals.to_string(),
                    better(policy, total, *name == POLICY).to_owned(),
                ]
            })
            .collect();
        let unit = unit(axis);
        let header = [
            axis.as_str().to_uppercase(),
            format!("UNSERVED {unit}"),
            "%".into(),
            format!("SLACK {unit}"),
            "%".into(),
            "CHANGES".into(),
            "REVERSALS".into(),
            "POLICY HAS LESS".into(),
        ];
        let header = header.each_ref().map(String::as_str);
        parts.push(output::table(&header, &rows, &[1, 2, 3, 4, 5, 6]));
    }
    parts.join("\n")
}

/// In what the policy is better than another.
fn better(policy: &AxisTotal, other: &AxisTotal, is_itself: bool) -> &'static str {
    let unserved = policy.unserved < other.unserved;
    let slack = policy.slack < other.slack;
    match (is_itself, unserved, slack) {
        (true, ..) => "",
        (_, true, true) => "of both",
        (_, true, false) => "unserved",
        (_, false, true) => "slack",
        (_, false, false) => "of none",
    }
}

/// A number with its thousands apart.
fn amount(value: f64) -> String {
    let digits = format!("{value:.0}");
    let first = digits.len() % 3;
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && at % 3 == first {
            text.push(' ');
        }
        text.push(digit);
    }
    text
}

fn share(part: f64, whole: f64) -> String {
    if whole <= 0.0 {
        return "-".into();
    }
    let percent = part / whole * 100.0;
    if percent < 10.0 {
        format!("{percent:.2}")
    } else {
        format!("{percent:.0}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped_by_thousands() {
        for (value, text) in [
            (0.4, "0"),
            (999.0, "999"),
            (1000.0, "1 000"),
            (1_234_567.0, "1 234 567"),
            (100_000.0, "100 000"),
        ] {
            assert_eq!(amount(value), text);
        }
    }

    #[test]
    fn shares_are_fine_where_they_are_small() {
        assert_eq!(share(1.0, 800.0), "0.12");
        assert_eq!(share(300.0, 100.0), "300");
        assert_eq!(share(1.0, 0.0), "-");
    }

    #[test]
    fn better_is_less() {
        let total = |unserved, slack| AxisTotal {
            unserved,
            slack,
            ..AxisTotal::default()
        };
        let policy = total(5.0, 5.0);
        for (unserved, slack, word) in [
            (6.0, 6.0, "of both"),
            (6.0, 5.0, "unserved"),
            (4.0, 6.0, "slack"),
            (5.0, 5.0, "of none"),
        ] {
            assert_eq!(better(&policy, &total(unserved, slack), false), word);
        }
    }
}
