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
}

impl Measured {
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
        let at = |share: f64| {
            let index = (share * sorted.len() as f64).ceil() as usize;
            sorted.get(index.saturating_sub(1)).copied()
        };
        let (Some(median), Some(p99)) = (at(0.5), at(0.99)) else {
            return;
        };
        self.add_summary(name, of, unit, (median, p99), sorted.len());
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
        });
    }

    /// Writes them as JSON.
    pub fn write(&self, file: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self)?;
        std::fs::write(file, text + "\n").with_context(|| format!("Writing {}", file.display()))
    }

    /// Reads the results of several runs.
    pub fn merge(files: &[PathBuf]) -> Result<Self> {
        let mut all = Self::default();
        for file in files {
            let text = std::fs::read_to_string(file)
                .with_context(|| format!("Reading {}", file.display()))?;
            let part: Self = serde_json::from_str(&text)
                .with_context(|| format!("Reading {}", file.display()))?;
            all.measured.extend(part.measured);
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
