//! The table at the end, and the verdict: did the instance follow its load?

use concertina_api::event::EventKind;
use concertina_api::instance::InstanceSize;
use concertina_api::vm::{Outcome, ResizeReport};

use crate::record::Recording;
use crate::scenario::Scenario;
use crate::web::Visits;

/// What was seen when it was over.
pub struct End {
    /// Seconds that the guest had been up for, as it says.
    pub guest_uptime: String,
    /// Whether it is still the boot of before the load.
    pub same_boot: bool,
    /// What came over the guest's network, where it has one.
    pub visits: Option<Visits>,
}

/// Prints the table; true when the instance grew under the load, came back, and was never restarted.
pub fn print(recording: &Recording, scenario: &Scenario, end: &End) -> bool {
    let (Some(first), Some(last)) = (recording.samples.first(), recording.samples.last()) else {
        println!("Nothing was recorded.");
        return false;
    };
    let resident = |number: f64| format!("{number:.0} MiB");
    let host = |s: &crate::record::Sample| s.status.memory.host_resident.as_mib_f64();
    let plugged = |s: &crate::record::Sample| s.status.memory.plugged.as_mib_f64();
    let online = |s: &crate::record::Sample| f64::from(s.status.cpus.online);

    let mut table = Table::new(["", "at first", "most", "at last"]);
    let row = |name: &str, at: &dyn Fn(&crate::record::Sample) -> f64, unit: &str| {
        let show = |value: f64| match unit {
            "MiB" => resident(value),
            _ => format!("{value}"),
        };
        [
            name.to_owned(),
            show(at(first)),
            show(recording.most(at)),
            show(at(last)),
        ]
    };
    table.add(row("CPUs that the guest may use", &|s| s.cpus(), ""));
    table.add(row("vCPUs online", &online, ""));
    table.add(row("memory plugged", &plugged, "MiB"));
    table.add(row("memory resident on the host", &host, "MiB"));
    println!("\n{}", table.text());

    println!("{}", latencies(recording).text());
    let mut followed = vec![
        (
            format!(
                "grew to at least {} CPUs under the load",
                scenario.least_cpus
            ),
            recording.most(|s| s.cpus()) >= scenario.least_cpus,
        ),
        (
            format!("grew to at least {} under the load", scenario.least_memory),
            recording.most(plugged) >= scenario.least_memory.as_mib_f64(),
        ),
        (
            "came back to its lower bounds after it".into(),
            recording.is_back(),
        ),
        (
            "gave memory back to the host".into(),
            host(last) < recording.most(host) - 200.0,
        ),
        ("was never restarted: same boot id".into(), end.same_boot),
    ];
    if let Some(visits) = end.visits {
        followed.push((
            format!(
                "told its size over its network: up to {} processors and {} MiB ({} answers, {} failed)",
                visits.most_cpus, visits.most_mib, visits.answered, visits.failed
            ),
            f64::from(visits.most_cpus) >= scenario.least_cpus,
        ));
    }
    println!(
        "The guest has been up for {} s. The instance",
        end.guest_uptime
    );
    for (claim, holds) in &followed {
        println!("  [{}] {claim}", if *holds { "x" } else { " " });
    }
    followed.iter().all(|(_, holds)| *holds)
}

/// How long the resizes took, by kind.
fn latencies(recording: &Recording) -> Table<5> {
    let mut table = Table::new(["resizes", "applied", "others", "median", "longest"]);
    for (name, is_it) in KINDS {
        let (mut took, mut others) = (Vec::new(), 0u32);
        for seen in &recording.events {
            let EventKind::Resized { before, report, .. } = &seen.event.kind else {
                continue;
            };
            if !is_it(before, report) {
                continue;
            }
            if report.outcome == Outcome::Applied {
                took.extend(report.timeline_ms.get("total").copied());
            } else {
                others += 1;
            }
        }
        took.sort_by(f64::total_cmp);
        let ms = |value: Option<&f64>| value.map_or("-".into(), |v| format!("{v:.0} ms"));
        table.add([
            name.to_owned(),
            took.len().to_string(),
            others.to_string(),
            ms(took.get(took.len() / 2)),
            ms(took.last()),
        ]);
    }
    table
}

type IsKind = fn(&InstanceSize, &ResizeReport<InstanceSize>) -> bool;

const KINDS: [(&str, IsKind); 4] = [
    ("CPU up", |before, report| report.asked.cpus > before.cpus),
    ("CPU down", |before, report| {
        report.asked.cpus.is_some() && report.asked.cpus < before.cpus
    }),
    ("memory up", |before, report| {
        report.asked.memory > before.memory
    }),
    ("memory down", |before, report| {
        report.asked.memory.is_some() && report.asked.memory < before.memory
    }),
];

/// Columns, the first to the left and the others to the right.
struct Table<const COLUMNS: usize> {
    rows: Vec<[String; COLUMNS]>,
}

impl<const COLUMNS: usize> Table<COLUMNS> {
    fn new(head: [&str; COLUMNS]) -> Self {
        Self {
            rows: vec![head.map(str::to_owned)],
        }
    }

    fn add(&mut self, row: [String; COLUMNS]) {
        self.rows.push(row);
    }

    fn text(&self) -> String {
        let width = |column: usize| self.rows.iter().map(|row| row[column].len()).max();
        let widths: [usize; COLUMNS] = std::array::from_fn(|column| width(column).unwrap_or(0));
        let mut text = String::new();
        for row in &self.rows {
            for (column, cell) in row.iter().enumerate() {
                let wide = widths[column];
                text += &if column == 0 {
                    format!("{cell:<wide$}")
                } else {
                    format!("  {cell:>wide$}")
                };
            }
            text.push('\n');
        }
        text
    }
}
