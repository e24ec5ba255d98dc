//! Results: named numbers with a unit, how they were got, and what they are held against.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

/// One measured thing.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Measured {
    /// What was measured.
    pub name: String,
    /// Of which program: `concertina`, `vmm` (our VM process alone), `qemu`.
    pub of: String,
    /// Unit of the numbers.
    pub unit: String,
    /// Middle of the samples.
    pub median: f64,
    /// The value that 99 of 100 samples do not pass; with 20 samples, the largest.
    pub p99: f64,
    /// How many samples.
    pub samples: usize,
    /// The samples, rising; empty where somebody else has counted them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub values: Vec<f64>,
}

/// Median and p99 of rising samples.
fn summary(sorted: &[f64]) -> Option<(f64, f64)> {
    let at = |share: f64| {
        let index = (share * sorted.len() as f64).ceil() as usize;
        sorted.get(index.saturating_sub(1)).copied()
    };
    Some((at(0.5)?, at(0.99)?))
}

impl Measured {
    /// Takes in what another run has measured of the same thing.
    fn absorb(&mut self, other: Self) {
        self.values.extend(other.values);
        self.values.sort_by(f64::total_cmp);
        if let Some((median, p99)) = summary(&self.values) {
            (self.median, self.p99) = (median, p99);
            self.samples = self.values.len();
        }
    }

    fn is_of_same(&self, other: &Self) -> bool {
        let of = |measured: &Self| (measured.name.clone(), measured.of.clone());
        of(self) == of(other) && !self.values.is_empty() && !other.values.is_empty()
    }

    /// How many times better than another's: over 1 is ahead, whether less or more is better.
    fn better_than(&self, other: &Self) -> f64 {
        if self.unit.ends_with("/s") {
            self.median / other.median
        } else {
            other.median / self.median
        }
    }
}

/// All of them.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Results {
    /// In the order of measuring.
    pub measured: Vec<Measured>,
}

impl Results {
    /// Adds the samples of one thing, and says them.
    pub fn add(&mut self, name: &str, of: &str, unit: &str, samples: &[f64]) {
        let mut sorted = samples.to_vec();
        sorted.sort_by(f64::total_cmp);
        let Some(summary) = summary(&sorted) else {
            return;
        };
        self.add_summary(name, of, unit, summary, sorted.len());
        if let Some(last) = self.measured.last_mut() {
            last.values = sorted;
        }
    }

    /// Adds median and p99 of samples that somebody else has counted, and says them.
    pub fn add_summary(
        &mut self,
        name: &str,
        of: &str,
        unit: &str,
        (median, p99): (f64, f64),
        samples: usize,
    ) {
        println!(
            "{name} ({of}): median {median:.2} {unit}, p99 {p99:.2} {unit}, {samples} samples"
        );
        self.measured.push(Measured {
            name: name.to_owned(),
            of: of.to_owned(),
            unit: unit.to_owned(),
            median,
            p99,
            samples,
            values: Vec::new(),
        });
    }

    /// Writes them as JSON.
    pub fn write(&self, file: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self)?;
        std::fs::write(file, text + "\n").with_context(|| format!("Writing {}", file.display()))
    }

    /// Reads the results of several runs; samples of the same thing come together.
    pub fn merge(files: &[PathBuf]) -> Result<Self> {
        let mut all = Self::default();
        for file in files {
            let text = std::fs::read_to_string(file)
                .with_context(|| format!("Reading {}", file.display()))?;
            let part: Self = serde_json::from_str(&text)
                .with_context(|| format!("Reading {}", file.display()))?;
            for more in part.measured {
                match all.measured.iter_mut().find(|one| one.is_of_same(&more)) {
                    Some(one) => one.absorb(more),
                    None => all.measured.push(more),
                }
            }
        }
        Ok(all)
    }

    /// A Markdown table: ours, and QEMU beside it, and by what factor ours is better, where both were measured.
    pub fn table(&self) -> String {
        let head = [
            "measured",
            "of",
            "median",
            "p99",
            "unit",
            "QEMU median",
            "better by",
        ];
        let mut rows = vec![head.map(str::to_owned)];
        for ours in self.measured.iter().filter(|m| m.of != "qemu") {
            let peer = self
                .measured
                .iter()
                .find(|m| m.of == "qemu" && m.name == ours.name);
            rows.push([
                ours.name.clone(),
                ours.of.clone(),
                format!("{:.2}", ours.median),
                format!("{:.2}", ours.p99),
                ours.unit.clone(),
                peer.map_or("-".into(), |p| format!("{:.2}", p.median)),
                peer.map_or("-".into(), |p| format!("{:.2}", ours.better_than(p))),
            ]);
        }
        let widths: Vec<usize> = (0..head.len())
            .map(|column| rows.iter().map(|row| row[column].len()).max().unwrap_or(0))
            .collect();
        let mut text = String::new();
        for (number, row) in rows.iter().enumerate() {
            for (cell, wide) in row.iter().zip(&widths) {
                text += &format!("| {cell:<wide$} ");
            }
            text += "|\n";
            if number == 0 {
                for wide in &widths {
                    text += &format!("|{}", "-".repeat(wide + 2));
                }
                text += "|\n";
            }
        }
        text
    }
}
