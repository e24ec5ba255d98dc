//! From a utilisation trace to demand: how many CPUs and how much memory the load wants at a moment.
//!
//! A utilisation trace says how busy a machine of fixed size was, so demand = share x size of that
//! machine ([`Machine`]). A sample is a mean over its interval; between two of them there are two
//! readings ([`Interpolation`]). Where a sample is missing the demand is unknown.

use concertina_api::policy::Axis;
use serde::{Deserialize, Serialize};

use super::trace::Trace;

/// The machine on which a trace was recorded.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Machine {
    /// Its CPUs.
    pub cpus: f64,
    /// Its memory in bytes.
    pub memory_bytes: f64,
}

/// What is assumed between two samples.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Interpolation {
    /// The demand is the sample's value for all of its interval, and jumps to the next one. Keeps the
    /// CPU time of each interval exactly, and is the hardest to follow.
    #[default]
    Hold,
    /// The demand goes from sample to sample on a straight line, in steps of a second.
    Linear,
}

/// Step of a straight line in milliseconds: the usual time between two decisions.
const LINE_STEP_MS: u64 = 1000;

/// What the load wants at a moment, in the axis's smallest unit: thousandths of a CPU, or bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Wanted {
    /// CPUs; absent: unknown.
    pub cpus: Option<u64>,
    /// Memory; absent: unknown.
    pub memory: Option<u64>,
}

impl Wanted {
    /// One axis.
    pub fn of(&self, axis: Axis) -> Option<u64> {
        match axis {
            Axis::Cpus => self.cpus,
            Axis::Memory => self.memory,
        }
    }
}

/// A sample with its interval.
#[derive(Debug, Clone, Copy)]
struct Span {
    from_ms: u64,
    /// Where the next sample, or a gap before it, begins.
    until_ms: u64,
    wanted: Wanted,
}

/// A load over time.
#[derive(Debug, Clone)]
pub struct Demand {
    spans: Vec<Span>,
    interpolation: Interpolation,
}

impl Demand {
    /// The load of `trace`, recorded on `machine`.
    pub fn new(trace: &Trace, machine: &Machine, interpolation: Interpolation) -> Self {
        // Casts from floating point saturate.
        let wanted = |percent: Option<f64>, size: f64| {
            percent.map(|percent| (percent / 100.0 * size).round() as u64)
        };
        let next = trace.samples.iter().skip(1).map(|sample| sample.at_ms);
        let ends = next.map(Some).chain([None]);
        let spans = trace
            .samples
            .iter()
            .zip(ends)
            .map(|(sample, next)| Span {
                from_ms: sample.at_ms,
                until_ms: span_end(sample.at_ms, next, trace.step_ms),
                wanted: Wanted {
                    cpus: wanted(sample.cpu_percent, machine.cpus * 1000.0),
                    memory: wanted(sample.memory_percent, machine.memory_bytes),
                },
            })
            .collect();
        Self {
            spans,
            interpolation,
        }
    }

    /// When the last sample's interval ends, in milliseconds.
    pub fn end_ms(&self) -> u64 {
        self.spans.last().map_or(0, |span| span.until_ms)
    }

    /// What is wanted at `now_ms`, and until when that is so: a time after `now_ms`, or the end of
    /// time.
    pub fn at(&self, now_ms: u64) -> (Wanted, u64) {
        let after = self.spans.partition_point(|span| span.from_ms <= now_ms);
        let next = self.spans.get(after);
        let Some(span) = after.checked_sub(1).and_then(|at| self.spans.get(at)) else {
            return (
                Wanted::default(),
                next.map_or(u64::MAX, |next| next.from_ms),
            );
        };
        if now_ms >= span.until_ms {
            return (
                Wanted::default(),
                next.map_or(u64::MAX, |next| next.from_ms),
            );
        }
        match (self.interpolation, next) {
            (Interpolation::Linear, Some(next)) if next.from_ms == span.until_ms => {
                line(span, next, now_ms)
            }
            _ => (span.wanted, span.until_ms),
        }
    }

    /// Known samples of one axis, in the axis's smallest unit.
    pub fn values(&self, axis: Axis) -> impl Iterator<Item = u64> {
        self.spans
            .iter()
            .filter_map(move |span| span.wanted.of(axis))
    }
}

/// An interval that is a little longer than usual is one interval; what is missing in a longer one is
/// a gap.
fn span_end(from_ms: u64, next_ms: Option<u64>, step_ms: u64) -> u64 {
    let usual = from_ms.saturating_add(step_ms);
    match next_ms {
        Some(next) if next <= usual.saturating_add(step_ms / 2) => next,
        _ => usual,
    }
}

/// The mean of the straight line over the second that `now_ms` is in.
fn line(span: &Span, next: &Span, now_ms: u64) -> (Wanted, u64) {
    let steps = now_ms.saturating_sub(span.from_ms) / LINE_STEP_MS;
    let from_ms = span.from_ms + steps * LINE_STEP_MS;
    let until_ms = (from_ms + LINE_STEP_MS).min(span.until_ms);
    let middle = u128::from(from_ms + until_ms - 2 * span.from_ms);
    let whole = u128::from(2 * (span.until_ms - span.from_ms)).max(1);
    let between = |from: Option<u64>, to: Option<u64>| {
        let (from, Some(to)) = (from?, to) else {
            return from;
        };
        let way = u128::from(from.abs_diff(to)) * middle / whole;
        let way = u64::try_from(way).unwrap_or(u64::MAX);
        Some(if to >= from { from + way } else { from - way })
    };
    let wanted = Wanted {
        cpus: between(span.wanted.cpus, next.wanted.cpus),
        memory: between(span.wanted.memory, next.wanted.memory),
    };
    (wanted, until_ms)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replay::trace::{TraceOptions, read_trace};

    fn demand(text: &str, interpolation: Interpolation) -> Demand {
        let trace = read_trace(text, &TraceOptions::default()).unwrap();
        let machine = Machine {
            cpus: 4.0,
            memory_bytes: 0.0,
        };
        Demand::new(&trace, &machine, interpolation)
    }

    fn at(demand: &Demand, now_ms: u64) -> (Option<u64>, u64) {
        let (wanted, until) = demand.at(now_ms);
        (wanted.cpus, until)
    }

    const TEXT: &str = "timestamp,value\n0,10\n300,50\n600,\n901,20\n1800,30\n2100,30\n";

    #[test]
    fn a_share_of_the_machine_holds_for_its_interval_and_a_gap_is_unknown() {
        let demand = demand(TEXT, Interpolation::Hold);
        assert_eq!(at(&demand, 0), (Some(400), 300_000));
        assert_eq!(at(&demand, 299_999), (Some(400), 300_000));
        assert_eq!(at(&demand, 300_000), (Some(2000), 600_000));
        // An empty value; the interval of 301 s is no gap, that of 899 s has one.
        assert_eq!(at(&demand, 600_000), (None, 901_000));
        assert_eq!(at(&demand, 901_000), (Some(800), 1_201_000));
        assert_eq!(at(&demand, 1_300_000), (None, 1_800_000));
        assert_eq!(at(&demand, 1_800_000), (Some(1200), 2_100_000));
        assert_eq!(demand.end_ms(), 2_400_000);
        assert_eq!(at(&demand, 2_400_000), (None, u64::MAX));
    }

    #[test]
    fn a_line_goes_from_sample_to_sample_by_seconds() {
        let demand = demand(TEXT, Interpolation::Linear);
        assert_eq!(at(&demand, 0), (Some(402), 1000));
        assert_eq!(at(&demand, 150_500), (Some(400 + 802), 151_000));
        assert_eq!(at(&demand, 299_000), (Some(1997), 300_000));
        // Where the way leads is unknown: held.
        assert_eq!(at(&demand, 599_000), (Some(2000), 600_000));
        assert_eq!(at(&demand, 901_500), (Some(800), 1_201_000));
    }
}
