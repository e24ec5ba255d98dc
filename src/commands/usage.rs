//! `concertina usage`: what instances held, from the `usage.jsonl` in their folders, and whether
//! those records are as they were written.

pub mod remote;

use std::time::{Duration, SystemTime};

use anyhow::anyhow;
use concertina_agent::clock::Moment;
use concertina_agent::state_dir::{InstancePaths, StateDir};
use concertina_agent::usage::{self, Chain, TICK, Totals};
use serde::{Serialize, Serializer};

use crate::args::parse_duration;
use crate::failure::sentence;
use crate::output;

const EXAMPLES: &str = "\
Examples:
  concertina usage
  concertina usage web --since 24h
  concertina usage --since 2026-11-01T00:00:00Z --csv > november.csv
  concertina usage web --verify

CPU counts by quota and memory by promised size, as held between committed resizes; RESIDENT is what
the host really had in use. A running instance writes at each resize and once a minute. Records are
chained by hashes: --verify says whether one was changed or is missing (exit status 1).

JSON: a list of objects with name, from, to (RFC 3339), seconds, vcpu_seconds, promised_gib_seconds,
resident_gib_seconds, records and head, the hash of the last record.";

/// Arguments of `usage`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Name of the instance; without it: all
    name: Option<String>,
    /// Count from this time on: a time (RFC 3339), or how long ago, like 24h
    #[arg(long, value_name = "TIME", value_parser = parse_since)]
    since: Option<SystemTime>,
    /// Print JSON
    #[arg(long, conflicts_with = "csv")]
    json: bool,
    /// Print comma-separated values
    #[arg(long)]
    csv: bool,
    /// Check the records instead of adding them up
    #[arg(long, conflicts_with_all = ["since", "json", "csv"])]
    verify: bool,
}

/// What one instance held.
#[derive(Debug, Serialize)]
struct Row {
    name: String,
    from: Option<String>,
    to: Option<String>,
    #[serde(serialize_with = "thousandths")]
    seconds: f64,
    #[serde(serialize_with = "thousandths")]
    vcpu_seconds: f64,
    #[serde(serialize_with = "thousandths")]
    promised_gib_seconds: f64,
    #[serde(serialize_with = "thousandths")]
    resident_gib_seconds: f64,
    records: usize,
    head: String,
}

/// Prints the usage.
pub fn run(args: &Args, state: &StateDir) -> anyhow::Result<i32> {
    let names = names(args.name.as_deref(), state)?;
    if args.verify {
        return verify(&names, state);
    }
    let mut rows = Vec::new();
    for (name, paths) in &names {
        let chain = usage::read_chain(&paths.usage, name)?;
        for gap in gaps(&chain) {
            eprintln!("concertina: {name}: {gap}");
        }
        rows.push(row(name, &chain, args.since));
    }
    if args.json {
        output::json(&rows)?;
    } else if args.csv {
        output::write(csv(&rows).as_bytes())?;
    } else {
        output::line(&table(&rows))?;
    }
    Ok(0)
}

/// The instances that have usage records, also those of which nothing else is left.
fn names(wanted: Option<&str>, state: &StateDir) -> anyhow::Result<Vec<(String, InstancePaths)>> {
    if let Some(name) = wanted {
        let paths = state.paths(name)?;
        if !paths.usage.exists() {
            let root = state.root().display();
            return Err(anyhow!(
                "No usage of an instance '{name}' is recorded in {root}"
            ));
        }
        return Ok(vec![(name.to_owned(), paths)]);
    }
    let entries = std::fs::read_dir(state.root()).into_iter().flatten();
    let mut names: Vec<(String, InstancePaths)> = entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter_map(|name| state.paths(&name).ok().map(|paths| (name, paths)))
        .filter(|(_, paths)| paths.usage.exists())
        .collect();
    names.sort_by(|(a, _), (b, _)| a.cmp(b));
    Ok(names)
}

/// Says of each instance whether its records hold.
fn verify(names: &[(String, InstancePaths)], state: &StateDir) -> anyhow::Result<i32> {
    let mut status = 0;
    for (name, paths) in names {
        let alive = state
            .instance(name)
            .is_ok_and(|entry| entry.is_some_and(|entry| entry.alive));
        let checked = usage::read_chain(&paths.usage, name)
            .map_err(|error| sentence(&error))
            .and_then(|chain| match missing_end(&chain, alive, &Moment::now()) {
                Some(problem) => Err(format!("The usage records of {name} {problem}")),
                None => Ok(chain),
            });
        match checked {
            Ok(chain) => {
                let records = chain.records.len();
                output::line(&format!(
                    "{name}: {records} records hold, head {}",
                    chain.head
                ))?;
                for gap in gaps(&chain) {
                    output::line(&format!("{name}: {gap}"))?;
                }
            }
            Err(problem) => {
                eprintln!("concertina: {problem}");
                status = 1;
            }
        }
    }
    Ok(status)
}

/// Cutting the end off a chain breaks no hash; what a chain has to end with tells it.
fn missing_end(chain: &Chain, alive: bool, now: &Moment) -> Option<String> {
    let last = chain.records.last();
    let age_ms = last.and_then(|last| {
        let same_boot = last.boot == now.boot;
        same_boot.then(|| now.monotonic_ms.saturating_sub(last.to_ms))
    });
    match (alive, last, age_ms) {
        (true, Some(last), _) if last.reason == usage::Reason::End => {
            Some("end with an end, and the instance runs".into())
        }
        (true, Some(_), Some(age_ms)) if age_ms > 3 * TICK => Some(format!(
            "end {} ago, and the running instance writes each minute: the end was cut off, or its \
             agent hangs",
            output::span_ms(age_ms)
        )),
        _ => None,
    }
}

fn gaps(chain: &Chain) -> impl Iterator<Item = String> + '_ {
    let torn = (chain.torn > 0).then(|| {
        let bytes = chain.torn;
        format!("the last {bytes} bytes are half a record, as a crash leaves it")
    });
    let gap = |gap: &usage::Gap| {
        let span = match gap.span_ms {
            Some(ms) => output::span_ms(ms),
            None => "the time until the host's next boot".into(),
        };
        let after = gap.after;
        format!(
            "nothing is known of {span} after record {after}: the instance had died with its agent"
        )
    };
    chain.gaps.iter().map(gap).chain(torn)
}

fn row(name: &str, chain: &Chain, since: Option<SystemTime>) -> Row {
    let totals: Totals = usage::total(&chain.records, since);
    let counted: Vec<_> = chain
        .records
        .iter()
        .filter_map(|record| Some((record, humantime::parse_rfc3339(&record.time).ok()?)))
        .filter(|(_, end)| since.is_none_or(|since| *end > since))
        .collect();
    let text = |time| humantime::format_rfc3339_millis(time).to_string();
    let from = counted.first().and_then(|(record, end)| {
        let span = Duration::from_millis(record.to_ms.saturating_sub(record.from_ms));
        let begin = end.checked_sub(span)?;
        Some(text(since.map_or(begin, |since| begin.max(since))))
    });
    Row {
        name: name.to_owned(),
        from,
        to: counted.last().map(|(_, end)| text(*end)),
        seconds: totals.seconds(),
        vcpu_seconds: totals.vcpu_seconds(),
        promised_gib_seconds: totals.promised_gib_seconds(),
        resident_gib_seconds: totals.resident_gib_seconds(),
        records: counted.len(),
        head: chain.head.clone(),
    }
}

fn table(rows: &[Row]) -> String {
    let header = [
        "NAME",
        "FROM",
        "TO",
        "TIME",
        "VCPU-S",
        "GIB-S",
        "RESIDENT GIB-S",
    ];
    let cells = |row: &Row| {
        let label = |time: &Option<String>| time.clone().unwrap_or_else(|| "-".into());
        vec![
            row.name.clone(),
            label(&row.from),
            label(&row.to),
            output::span(Duration::from_secs_f64(row.seconds)),
            format!("{:.1}", row.vcpu_seconds),
            format!("{:.1}", row.promised_gib_seconds),
            format!("{:.1}", row.resident_gib_seconds),
        ]
    };
    let rows: Vec<Vec<String>> = rows.iter().map(cells).collect();
    output::table(&header, &rows, &[3, 4, 5, 6])
}

/// Names and times hold no comma and no quote.
fn csv(rows: &[Row]) -> String {
    let mut text = String::from(
        "name,from,to,seconds,vcpu_seconds,promised_gib_seconds,resident_gib_seconds\n",
    );
    for row in rows {
        let label = |time: &Option<String>| time.clone().unwrap_or_default();
        text.push_str(&format!(
            "{},{},{},{:.3},{:.3},{:.3},{:.3}\n",
            row.name,
            label(&row.from),
            label(&row.to),
            row.seconds,
            row.vcpu_seconds,
            row.promised_gib_seconds,
            row.resident_gib_seconds,
        ));
    }
    text
}

fn thousandths<S: Serializer>(value: &f64, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64((value * 1000.0).round() / 1000.0)
}

/// A time, or how long ago.
fn parse_since(text: &str) -> Result<SystemTime, String> {
    if let Ok(time) = humantime::parse_rfc3339_weak(text) {
        return Ok(time);
    }
    let ago = parse_duration(text).map_err(|_| {
        format!(
            "'{text}' is not a time: write one like 2026-11-01T00:00:00Z, or how long ago, like 24h"
        )
    })?;
    SystemTime::now()
        .checked_sub(ago)
        .ok_or_else(|| format!("'{text}' ago is before all time"))
}

#[cfg(test)]
mod tests {
    use concertina_agent::policy::Size;
    use concertina_agent::usage::UsageLog;
    use concertina_api::{Bytes, Cpus};

    use super::*;

    const WALL_MS: u64 = 1_764_000_000_000;

    fn moment(seconds: u64) -> Moment {
        Moment {
            boot: "boot".into(),
            monotonic_ms: seconds * 1000,
            wall_ms: WALL_MS + seconds * 1000,
        }
    }

    /// A state folder in which `web` held one CPU and 1 GiB for 100 s.
    fn state_with_web() -> (tempfile::TempDir, StateDir) {
        let temp = tempfile::tempdir().unwrap();
        let state = StateDir::new(temp.path().to_owned());
        let paths = state.paths("web").unwrap();
        std::fs::create_dir(&paths.dir).unwrap();
        let log = UsageLog::open(&paths.usage, "web").unwrap();
        let size = Size {
            cpus: Cpus::whole(1),
            memory: Bytes::mib(1024),
        };
        log.launched(&moment(0), size, Bytes::mib(512));
        log.ended(&moment(100));
        (temp, state)
    }

    fn rows(state: &StateDir, since: Option<SystemTime>) -> Vec<Row> {
        let names = names(None, state).unwrap();
        let row = |(name, paths): &(String, InstancePaths)| {
            row(name, &usage::read_chain(&paths.usage, name).unwrap(), since)
        };
        names.iter().map(row).collect()
    }

    #[test]
    fn usage_is_a_table_or_csv_or_json_with_the_same_numbers() {
        let (_temp, state) = state_with_web();
        let rows = rows(&state, None);
        let text = table(&rows);
        for part in ["web", "2025-11-24T16:00:00.000Z", "1m 40s", "100.0", "50.0"] {
            assert!(text.contains(part), "{text}");
        }
        let line =
            "web,2025-11-24T16:00:00.000Z,2025-11-24T16:01:40.000Z,100.000,100.000,100.000,50.000";
        assert_eq!(csv(&rows).lines().nth(1), Some(line));
        let json = serde_json::to_value(&rows).unwrap();
        assert_eq!(json[0]["promised_gib_seconds"], 100.0);
        assert_eq!(json[0]["head"].as_str().unwrap().len(), 64);
    }

    #[test]
    fn since_counts_from_a_time_or_so_long_ago() {
        let (_temp, state) = state_with_web();
        let since = parse_since("2025-11-24T16:01:00Z").unwrap();
        let rows = rows(&state, Some(since));
        assert_eq!(rows[0].vcpu_seconds, 40.0);
        assert_eq!(rows[0].from.as_deref(), Some("2025-11-24T16:01:00.000Z"));
        let hour_ago = parse_since("1h").unwrap();
        let ago = SystemTime::now().duration_since(hour_ago).unwrap();
        assert!((3600..3660).contains(&ago.as_secs()));
        for text in ["soon", "", "2026-13-01"] {
            assert!(parse_since(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_changed_record_fails_the_check_and_the_sum() {
        let (_temp, state) = state_with_web();
        assert_eq!(verify(&names(None, &state).unwrap(), &state).unwrap(), 0);
        let path = state.paths("web").unwrap().usage;
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(
            &path,
            text.replace("\"vcpu_us\":100000000", "\"vcpu_us\":1"),
        )
        .unwrap();
        assert_eq!(verify(&names(None, &state).unwrap(), &state).unwrap(), 1);
        let args = Args {
            name: Some("web".into()),
            since: None,
            json: false,
            csv: false,
            verify: false,
        };
        let error = run(&args, &state).unwrap_err();
        assert!(error.to_string().contains("line 2"), "{error}");
        assert!(names(Some("db"), &state).is_err());
    }

    #[test]
    fn a_chain_whose_end_was_cut_off_does_not_pass_for_a_running_instance() {
        let (_temp, state) = state_with_web();
        let path = state.paths("web").unwrap().usage;
        let mut chain = usage::read_chain(&path, "web").unwrap();
        assert!(missing_end(&chain, false, &moment(9999)).is_none());
        assert!(missing_end(&chain, true, &moment(101)).is_some());
        chain.records.pop();
        assert!(missing_end(&chain, true, &moment(60)).is_none());
        let problem = missing_end(&chain, true, &moment(600)).unwrap();
        assert!(problem.contains("10m 00s"), "{problem}");
    }
}
