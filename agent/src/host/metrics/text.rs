//! Writes Prometheus' text format, version 0.0.4.

use std::fmt::Write;
use std::time::Duration;

use crate::measure::Histogram;
use crate::measure::histogram::BOUNDS_US;

/// What kind of numbers a family has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Goes up and down.
    Gauge,
    /// Only grows, from zero at the agent's start.
    Counter,
    /// Durations in seconds.
    Histogram,
}

impl Kind {
    /// The word after `# TYPE`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Gauge => "gauge",
            Self::Counter => "counter",
            Self::Histogram => "histogram",
        }
    }
}

/// Metrics of one name.
#[derive(Debug, Clone, Copy)]
pub struct Family {
    /// Its name, with its unit.
    pub name: &'static str,
    /// Its kind.
    pub kind: Kind,
    /// Names of its labels.
    pub labels: &'static [&'static str],
    /// A sentence, without its full stop.
    pub help: &'static str,
}

/// A text that is being written: one family after the other.
#[derive(Debug, Default)]
pub struct Text {
    text: String,
    family: Option<Family>,
}

impl Text {
    /// Begins a family; its samples follow.
    pub fn family(&mut self, family: &Family) -> &mut Self {
        self.text.push_str("# HELP ");
        self.text.push_str(family.name);
        self.text.push(' ');
        escape(&mut self.text, family.help, false);
        self.line(format_args!(
            ".\n# TYPE {} {}\n",
            family.name,
            family.kind.as_str()
        ));
        self.family = Some(*family);
        self
    }

    /// One sample. `values`: of the family's labels, in their order. What is not a number is left out.
    pub fn sample(&mut self, values: &[&str], value: f64) {
        let Some(family) = self.family.filter(|_| !value.is_nan()) else {
            return;
        };
        self.head(family.name, "", family.labels, values, None);
        self.number(value);
    }

    /// The samples of one histogram.
    pub fn histogram(&mut self, values: &[&str], histogram: &Histogram) {
        let Some(family) = self.family else {
            return;
        };
        let counts = histogram.counts();
        let mut bucket = |bound: &str, count: u64| {
            self.head(family.name, "_bucket", family.labels, values, Some(bound));
            self.line(format_args!("{count}\n"));
        };
        for (bound, count) in BOUNDS_US.iter().zip(counts.at_most) {
            bucket(
                &Duration::from_micros(*bound).as_secs_f64().to_string(),
                count,
            );
        }
        bucket("+Inf", counts.count);
        self.head(family.name, "_sum", family.labels, values, None);
        self.number(Duration::from_nanos(counts.sum_ns).as_secs_f64());
        self.head(family.name, "_count", family.labels, values, None);
        self.line(format_args!("{}\n", counts.count));
    }

    /// The whole text.
    pub fn into_string(self) -> String {
        self.text
    }

    /// Name and labels, and a blank.
    fn head(
        &mut self,
        name: &str,
        suffix: &str,
        labels: &[&str],
        values: &[&str],
        bound: Option<&str>,
    ) {
        debug_assert_eq!(labels.len(), values.len(), "{name}");
        self.text.push_str(name);
        self.text.push_str(suffix);
        let pairs = labels.iter().copied().zip(values.iter().copied());
        for (index, (label, value)) in pairs.chain(bound.map(|le| ("le", le))).enumerate() {
            self.text.push(if index == 0 { '{' } else { ',' });
            self.text.push_str(label);
            self.text.push_str("=\"");
            escape(&mut self.text, value, true);
            self.text.push('"');
        }
        if !labels.is_empty() || bound.is_some() {
            self.text.push('}');
        }
        self.text.push(' ');
    }

    fn number(&mut self, value: f64) {
        if value == f64::INFINITY {
            self.text.push_str("+Inf\n");
        } else if value == f64::NEG_INFINITY {
            self.text.push_str("-Inf\n");
        } else {
            self.line(format_args!("{value}\n"));
        }
    }

    fn line(&mut self, line: std::fmt::Arguments<'_>) {
        // Writing to a string does not fail.
        let _ = self.text.write_fmt(line);
    }
}

/// In both a backslash and a line end are escaped; in the value of a label a quote is, too.
fn escape(text: &mut String, raw: &str, is_label: bool) {
    for character in raw.chars() {
        match character {
            '\\' => text.push_str("\\\\"),
            '\n' => text.push_str("\\n"),
            '"' if is_label => text.push_str("\\\""),
            other => text.push(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::parser;
    use super::*;

    const GAUGE: Family = Family {
        name: "gauge_bytes",
        kind: Kind::Gauge,
        labels: &["name"],
        help: "With a \\ and\na line",
    };

    #[test]
    fn what_is_escaped_is_read_back() {
        let mut text = Text::default();
        let wild = "a\"b\\c\nd}";
        text.family(&GAUGE).sample(&[wild], 1.5);
        text.sample(&["nothing"], f64::NAN);
        text.sample(&["much"], f64::INFINITY);
        let families = parser::parse(&text.into_string()).unwrap();
        let samples = &families["gauge_bytes"].samples;
        assert_eq!(samples.len(), 2, "what is not a number is no sample");
        assert_eq!(samples[0].labels["name"], wild);
        assert_eq!(samples[0].value, 1.5);
        assert_eq!(samples[1].value, f64::INFINITY);
        assert_eq!(families["gauge_bytes"].help, "With a \\ and\na line.");
    }

    #[test]
    fn a_histogram_has_rising_buckets_a_sum_and_a_count() {
        const TIMES: Family = Family {
            name: "times_seconds",
            kind: Kind::Histogram,
            labels: &["axis"],
            help: "Times",
        };
        let histogram = Histogram::default();
        histogram.observe(Duration::from_millis(3));
        histogram.observe(Duration::from_secs(90));
        let mut text = Text::default();
        text.family(&TIMES).histogram(&["cpu"], &histogram);
        let text = text.into_string();
        parser::parse(&text).unwrap();
        assert!(
            text.contains("times_seconds_bucket{axis=\"cpu\",le=\"0.0025\"} 0\n"),
            "{text}"
        );
        assert!(
            text.contains("times_seconds_bucket{axis=\"cpu\",le=\"0.005\"} 1\n"),
            "{text}"
        );
        assert!(
            text.contains("times_seconds_bucket{axis=\"cpu\",le=\"+Inf\"} 2\n"),
            "{text}"
        );
        assert!(
            text.contains("times_seconds_sum{axis=\"cpu\"} 90.003\n"),
            "{text}"
        );
        assert!(
            text.contains("times_seconds_count{axis=\"cpu\"} 2\n"),
            "{text}"
        );
    }
}
