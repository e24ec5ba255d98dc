//! What a replay found, in the shape in which it is printed as JSON.

use concertina_agent::replay::{
    Actuation, AxisScore, Interpolation, Machine, Score, Timeline, Trace,
};
use concertina_api::policy::{Axis, PolicyBounds};
use serde::Serialize;

/// The name of the policy among the results.
pub const POLICY: &str = "policy";

/// One way to scale under one load.
#[derive(Debug, Serialize)]
pub struct Replayed {
    /// [`POLICY`], or the baseline's.
    pub name: &'static str,
    /// Its scores.
    #[serde(flatten)]
    pub score: Score,
    /// For the chart.
    #[serde(skip)]
    pub timeline: Timeline,
}

impl Replayed {
    /// As a replay ended.
    pub fn new(name: &'static str, (score, timeline): (Score, Timeline)) -> Self {
        Self {
            name,
            score,
            timeline,
        }
    }
}

/// All of one trace.
#[derive(Debug, Serialize)]
pub struct TraceReport {
    /// Path of the file.
    pub trace: String,
    /// Lines of it.
    pub samples: usize,
    /// Usual time between two of them.
    pub step_seconds: f64,
    /// The machine on which it was recorded.
    pub machine: Machine,
    /// Bounds of the instance.
    pub bounds: PolicyBounds,
    /// What to know for reading the scores.
    pub notes: Vec<String>,
    /// The policy first.
    pub results: Vec<Replayed>,
}

impl TraceReport {
    /// Of a trace that was replayed.
    pub fn new(
        name: &str,
        trace: &Trace,
        machine: Machine,
        bounds: PolicyBounds,
        results: Vec<Replayed>,
    ) -> Self {
        Self {
            trace: name.to_owned(),
            samples: trace.samples.len(),
            step_seconds: trace.step_ms as f64 / 1000.0,
            machine,
            bounds,
            notes: trace.notes.clone(),
            results,
        }
    }

    /// Says more.
    pub fn with_notes(mut self, notes: Vec<String>) -> Self {
        self.notes.extend(notes);
        self
    }
}

/// The sum of one axis over all traces.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct AxisTotal {
    /// See [`AxisScore`].
    pub demand: f64,
    /// See [`AxisScore`].
    pub unserved: f64,
    /// See [`AxisScore`].
    pub slack: f64,
    /// See [`AxisScore`].
    pub changes: u64,
    /// See [`AxisScore`].
    pub reversals: u64,
}

impl AxisTotal {
    fn add(&mut self, score: &AxisScore) {
        self.demand += score.demand;
        self.unserved += score.unserved;
        self.slack += score.slack;
        self.changes += score.changes;
        self.reversals += score.reversals;
    }
}

/// One way to scale under all loads.
#[derive(Debug, PartialEq, Serialize)]
pub struct Total {
    /// As in [`Replayed`].
    pub name: &'static str,
    /// CPUs; absent: no trace tells of them.
    pub cpu: Option<AxisTotal>,
    /// Memory.
    pub memory: Option<AxisTotal>,
}

impl Total {
    /// One axis.
    pub fn of(&self, axis: Axis) -> Option<&AxisTotal> {
        match axis {
            Axis::Cpus => self.cpu.as_ref(),
            Axis::Memory => self.memory.as_ref(),
        }
    }
}

/// Everything.
#[derive(Debug, Serialize)]
pub struct Report {
    /// How long changes took.
    pub actuation: Actuation,
    /// What was assumed between samples.
    pub interpolation: Interpolation,
    /// In the order of the command line.
    pub traces: Vec<TraceReport>,
    /// The sums over all traces, in the order of their results.
    pub total: Vec<Total>,
}

impl Report {
    /// Adds up.
    pub fn new(
        actuation: Actuation,
        interpolation: Interpolation,
        traces: Vec<TraceReport>,
    ) -> Self {
        let mut total: Vec<Total> = Vec::new();
        for result in traces.iter().flat_map(|trace| &trace.results) {
            if !total.iter().any(|total| total.name == result.name) {
                total.push(Total {
                    name: result.name,
                    cpu: None,
                    memory: None,
                });
            }
            let Some(sum) = total.iter_mut().find(|total| total.name == result.name) else {
                continue;
            };
            for (score, sum) in [
                (&result.score.cpu, &mut sum.cpu),
                (&result.score.memory, &mut sum.memory),
            ] {
                if let Some(score) = score {
                    sum.get_or_insert_default().add(score);
                }
            }
        }
        Self {
            actuation,
            interpolation,
            traces,
            total,
        }
    }
}
