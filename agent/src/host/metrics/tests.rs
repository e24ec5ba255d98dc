//! What is exported is well formed, documented, and all that the dashboard asks for.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use concertina_api::policy::{Direction, PolicyBounds};
use concertina_api::vm::Outcome;
use concertina_api::{Bytes, Cpus};
use concertina_http::{Method, client};

use super::text::Kind;
use super::*;
use crate::host::Setup;
use crate::host::tests::bench;
use crate::ledger::Limits;
use crate::policy::{Held, Size};
use crate::resize::Cause;

const DOCUMENT: &str = include_str!("../../../../docs/metrics.md");
const DASHBOARD: &str = include_str!("../../../../dist/grafana/concertina.json");

fn host() -> (tempfile::TempDir, Arc<Host>) {
    let temp = tempfile::tempdir().unwrap();
    let capacity = Size {
        cpus: Cpus::whole(8),
        memory: Bytes::mib(4096),
    };
    let state_dir: PathBuf = temp.path().join("state");
    let host = Host::start(Setup {
        socket: state_dir.join("daemon.sock"),
        journal: state_dir.join("host.journal"),
        state_dir,
        limits: Limits::exact(capacity),
        vmm_command: vec!["false".into()],
        cgroup: None,
        boot_sources: Arc::new(|_| unreachable!("no instance boots here")),
    });
    (temp, host.unwrap())
}

#[test]
fn everything_in_the_table_is_exported_and_nothing_else() {
    let (_temp, host) = host();
    let parsed = parser::parse(&text(&host)).unwrap();
    let exported: BTreeSet<&str> = parsed.keys().map(String::as_str).collect();
    let named: BTreeSet<&str> = names::ALL.iter().map(|family| family.name).collect();
    assert_eq!(exported, named);
    for family in names::ALL {
        let parsed = &parsed[family.name];
        assert_eq!(parsed.kind, family.kind.as_str(), "{}", family.name);
        for sample in &parsed.samples {
            let labels = sample
                .labels
                .keys()
                .map(String::as_str)
                .filter(|label| *label != "le");
            let labels: BTreeSet<&str> = labels.collect();
            let named: BTreeSet<&str> = family.labels.iter().copied().collect();
            assert_eq!(labels, named, "{}", family.name);
        }
    }
    host.leave();
}

#[test]
fn units_are_base_units() {
    for family in names::ALL {
        for bad in [
            "_ms", "_us", "_mib", "_kib", "_percent", "_milli", "_count", "_sum", "_bucket",
        ] {
            assert!(!family.name.ends_with(bad), "{}", family.name);
        }
        let is_histogram = family.kind == Kind::Histogram;
        assert!(
            !is_histogram || family.name.ends_with("_seconds"),
            "{}",
            family.name
        );
        assert!(!family.help.ends_with('.'), "{}", family.name);
    }
}

#[test]
fn the_books_and_what_was_counted_are_told() {
    let (_temp, host) = host();
    let bounds = PolicyBounds {
        cpus: "1..4".parse().unwrap(),
        memory: "512M..1G".parse().unwrap(),
    };
    host.books()
        .admit("web", crate::ledger::Claim { bounds, weight: 1 })
        .unwrap();
    let way = Way::new(Axis::Memory, Direction::Grow);
    let measures = host.measures();
    measures.resized(way, &Cause::Manual, Outcome::TimedOut);
    measures.took(way, Phase::ReadBack, Duration::from_millis(7));
    measures.held(&[Held {
        cause: "cpu > 75%: +1 cpu".into(),
        axis: Resource::Cpus,
        why: HeldReason::Cooldown,
        detail: String::new(),
    }]);
    let parsed = parser::parse(&text(&host)).unwrap();
    let value = |name: &str, labels: &[(&str, &str)]| -> f64 {
        let family = parsed.values().flat_map(|family| &family.samples);
        let mut found = family.filter(|sample| {
            let mut wanted = labels.iter();
            sample.name == name
                && sample.labels.len() == labels.len()
                && wanted
                    .all(|(label, value)| sample.labels.get(*label).is_some_and(|v| v == value))
        });
        found
            .next()
            .unwrap_or_else(|| panic!("{name} {labels:?}"))
            .value
    };
    assert_eq!(
        value("concertina_host_memory_limit_bytes", &[]),
        f64::from(1u32 << 31) * 2.0
    );
    assert_eq!(value("concertina_host_cpus_guaranteed", &[]), 1.0);
    assert_eq!(
        value("concertina_host_memory_guaranteed_bytes", &[]),
        f64::from(512 << 20)
    );
    assert_eq!(
        value("concertina_journal_open_intents", &[]),
        1.0,
        "the launch"
    );
    assert_eq!(value("concertina_journal_writable", &[]), 1.0);
    let labels = [
        ("axis", "memory"),
        ("direction", "grow"),
        ("cause", "manual"),
        ("outcome", "timed_out"),
    ];
    assert_eq!(value("concertina_resizes_total", &labels), 1.0);
    let labels = [
        ("axis", "memory"),
        ("direction", "grow"),
        ("phase", "read_back"),
    ];
    assert_eq!(value("concertina_resize_phase_seconds_sum", &labels), 0.007);
    let labels = [("axis", "cpu"), ("reason", "cooldown")];
    assert_eq!(value("concertina_held_looks_total", &labels), 1.0);
    host.leave();
}

#[test]
fn an_instance_is_told_by_its_name_with_size_bounds_and_changes() {
    let bench = bench("obey");
    let _agent = bench.agent();
    bench.launch("web").unwrap();
    assert_eq!(bench.resize_memory("web", 512).0, Outcome::Applied);
    let asked = client::send::<()>(
        &bench.socket(),
        Method::Get,
        "/metrics",
        None,
        Duration::from_secs(60),
    );
    let text = String::from_utf8(asked.unwrap().body).unwrap();
    let parsed = parser::parse(&text).unwrap();
    let of_vm = |name: &str| -> Option<f64> {
        let mut samples = parsed[name].samples.iter();
        let sample = samples.find(|sample| sample.labels["vm"] == "web")?;
        assert_eq!(parsed[name].samples.len(), 1, "{name}");
        Some(sample.value)
    };
    let mib = |mib: u32| Some(f64::from(mib) * 1_048_576.0);
    assert_eq!(of_vm("concertina_instance_memory_bytes"), mib(512));
    assert_eq!(of_vm("concertina_instance_memory_target_bytes"), mib(512));
    assert_eq!(of_vm("concertina_instance_memory_min_bytes"), mib(256));
    assert_eq!(of_vm("concertina_instance_memory_max_bytes"), mib(1024));
    assert_eq!(of_vm("concertina_instance_cpus"), Some(0.5));
    assert_eq!(of_vm("concertina_instance_cpus_max"), Some(4.0));
    assert_eq!(of_vm("concertina_instance_vcpus"), Some(1.0));
    assert_eq!(of_vm("concertina_instance_state"), Some(1.0));
    assert_eq!(of_vm("concertina_instance_restarts_total"), Some(0.0));
    let state = &parsed["concertina_instance_state"].samples[0];
    assert_eq!(state.labels["state"], "running");
    let grown = |name: &str, label: (&str, &str)| -> f64 {
        let family = parsed.values().flat_map(|family| &family.samples);
        let of_it = |sample: &&parser::Sample| {
            let labels = [("axis", "memory"), ("direction", "grow"), label];
            let mut labels = labels.iter();
            sample.name == name
                && labels
                    .all(|(label, value)| sample.labels.get(*label).is_some_and(|v| v == value))
        };
        family.filter(of_it).map(|sample| sample.value).sum()
    };
    assert_eq!(
        grown("concertina_resizes_total", ("outcome", "applied")),
        1.0
    );
    for phase in ["reserve", "act", "read_back", "commit"] {
        let count = grown("concertina_resize_phase_seconds_count", ("phase", phase));
        assert_eq!(count, 1.0, "{phase}");
    }
    let count = grown("concertina_resize_phase_seconds_count", ("phase", "decide"));
    assert_eq!(count, 0.0, "a person wanted it");
}

/// The table of `docs/metrics.md`.
fn table() -> String {
    let mut table = String::from("| name | type | labels | what it is |\n|---|---|---|---|\n");
    for family in names::ALL {
        let labels: Vec<String> = family
            .labels
            .iter()
            .map(|label| format!("`{label}`"))
            .collect();
        let (name, kind, help) = (family.name, family.kind.as_str(), family.help);
        table += &format!("| `{name}` | {kind} | {} | {help} |\n", labels.join(", "));
    }
    table
}

#[test]
fn the_document_has_the_table_of_the_code() {
    let table = table();
    assert!(
        DOCUMENT.contains(&table),
        "docs/metrics.md does not have this table:\n\n{table}"
    );
}

/// Words of a dashboard's expressions that look like names of ours.
fn asked_for(dashboard: &serde_json::Value, into: &mut BTreeSet<String>) {
    match dashboard {
        serde_json::Value::Object(fields) => {
            for (key, value) in fields {
                match value.as_str() {
                    Some(text) if ["expr", "query", "definition"].contains(&key.as_str()) => {
                        let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
                        let ours = |word: &&str| {
                            word.starts_with("concertina_") || word.starts_with("process_")
                        };
                        into.extend(words.filter(ours).map(str::to_owned));
                    }
                    _ => asked_for(value, into),
                }
            }
        }
        serde_json::Value::Array(values) => values.iter().for_each(|v| asked_for(v, into)),
        _ => {}
    }
}

#[test]
fn the_dashboard_asks_for_what_there_is() {
    let dashboard: serde_json::Value = serde_json::from_str(DASHBOARD).unwrap();
    let mut asked = BTreeSet::new();
    asked_for(&dashboard, &mut asked);
    assert!(asked.len() > 20, "{asked:?}");
    for name in &asked {
        let there = names::ALL.iter().any(|family| match family.kind {
            Kind::Histogram => ["_bucket", "_sum", "_count"]
                .iter()
                .any(|suffix| name.strip_suffix(suffix) == Some(family.name)),
            _ => family.name == name,
        });
        assert!(there, "{name} is not exported");
    }
}

#[test]
fn the_dashboard_can_be_imported_anywhere() {
    let dashboard: serde_json::Value = serde_json::from_str(DASHBOARD).unwrap();
    assert_eq!(
        dashboard["id"],
        serde_json::Value::Null,
        "Grafana gives the number"
    );
    assert!(dashboard["schemaVersion"].as_u64().unwrap() >= 41);
    let inputs = dashboard["__inputs"].as_array().unwrap();
    assert!(
        inputs
            .iter()
            .any(|input| input["name"] == "DS_PROMETHEUS" && input["type"] == "datasource")
    );
    let panels = dashboard["panels"].as_array().unwrap();
    let mut ids = BTreeSet::new();
    for panel in panels {
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "{panel}");
        let place = &panel["gridPos"];
        assert!(
            place["x"].as_u64().unwrap() + place["w"].as_u64().unwrap() <= 24,
            "{panel}"
        );
        if panel["type"] == "row" {
            continue;
        }
        assert_eq!(panel["datasource"]["uid"], "${DS_PROMETHEUS}", "{panel}");
        let targets = panel["targets"].as_array().unwrap();
        assert!(!targets.is_empty(), "{panel}");
        let mut names = BTreeSet::new();
        assert!(
            targets
                .iter()
                .all(|t| names.insert(t["refId"].as_str().unwrap())),
            "{panel}"
        );
    }
}
