//! `concertina doctor`: can this host run instances? What is missing, and the command that mends it.

mod checks;
mod kvm;
mod net;

use serde::Serialize;

use crate::output;

const EXAMPLES: &str = "\
Examples:
  concertina doctor
  concertina doctor --json | jq '.checks[] | select(.verdict != \"ok\")'

JSON fields: ready, kvm_kind (hardware, nested, emulated, other, none), checks [{name, verdict,
found, mend}]; verdict is ok, warning (instances run, something of them does not) or missing.
Exit status: 0 instances can run here, 1 something they need is missing.";

/// Arguments of `doctor`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// How much a finding matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// Instances run, but something of them is slow or does not work.
    Warning,
    /// No instance can run.
    Missing,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    name: &'static str,
    verdict: Verdict,
    /// What is there, as a phrase.
    found: String,
    /// What a person does about it: a command, or a sentence.
    mend: Option<String>,
}

impl Check {
    fn ok(name: &'static str, found: impl Into<String>) -> Self {
        Self {
            name,
            verdict: Verdict::Ok,
            found: found.into(),
            mend: None,
        }
    }

    fn warning(name: &'static str, found: impl Into<String>, mend: impl Into<String>) -> Self {
        Self {
            name,
            verdict: Verdict::Warning,
            found: found.into(),
            mend: Some(mend.into()),
        }
    }

    fn missing(name: &'static str, found: impl Into<String>, mend: impl Into<String>) -> Self {
        Self {
            name,
            verdict: Verdict::Missing,
            found: found.into(),
            mend: Some(mend.into()),
        }
    }
}

/// Everything that was found.
#[derive(Debug, Serialize)]
struct Report {
    ready: bool,
    kvm_kind: kvm::Kind,
    checks: Vec<Check>,
}

/// Looks, prints; changes nothing on the host.
pub fn run(args: &Args) -> anyhow::Result<i32> {
    let cpu = kvm::Cpu::of_this_host();
    let checks = vec![
        kvm::check_cpu(&cpu),
        kvm::check_device(&cpu),
        checks::kernel(),
        checks::cgroups(),
        checks::pressure(),
        checks::memory(),
        net::tap(),
        net::user(),
        checks::guest_program(),
        checks::guest_kernel(),
    ];
    let ready = checks.iter().all(|check| check.verdict != Verdict::Missing);
    let report = Report {
        ready,
        kvm_kind: cpu.kind(),
        checks,
    };
    if args.json {
        output::json(&report)?;
    } else {
        output::line(&describe(&report))?;
    }
    Ok(if ready { 0 } else { 1 })
}

fn describe(report: &Report) -> String {
    let rows: Vec<Vec<String>> = report
        .checks
        .iter()
        .map(|check| {
            let verdict = match check.verdict {
                Verdict::Ok => "ok",
                Verdict::Warning => "warning",
                Verdict::Missing => "MISSING",
            };
            vec![
                check.name.to_owned(),
                verdict.to_owned(),
                check.found.clone(),
            ]
        })
        .collect();
    let mut text = output::table(&["CHECK", "", "FOUND"], &rows, &[]);
    let mends: Vec<String> = report
        .checks
        .iter()
        .filter_map(|check| Some(format!("  {}: {}", check.name, check.mend.as_ref()?)))
        .collect();
    if !mends.is_empty() {
        text.push_str("\n\nWhat mends it:\n");
        text.push_str(&mends.join("\n"));
    }
    text.push_str(if report.ready {
        "\n\nThis host can run instances."
    } else {
        "\n\nThis host cannot run instances."
    });
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_mends_it_stands_below_the_table_once() {
        let report = Report {
            ready: false,
            kvm_kind: kvm::Kind::None,
            checks: vec![
                Check::ok("memory", "2G"),
                Check::missing("kvm device", "no /dev/kvm", "modprobe kvm_intel"),
            ],
        };
        let text = describe(&report);
        assert_eq!(text.matches("modprobe kvm_intel").count(), 1, "{text}");
        assert!(text.ends_with("This host cannot run instances."), "{text}");
    }

    #[test]
    fn json_has_words_for_verdicts_and_kinds() {
        let report = Report {
            ready: true,
            kvm_kind: kvm::Kind::Nested,
            checks: vec![Check::warning("pressure", "none", "psi=1")],
        };
        let value = serde_json::to_value(&report).unwrap();
        assert_eq!(value.pointer("/kvm_kind").unwrap(), "nested");
        assert_eq!(value.pointer("/checks/0/verdict").unwrap(), "warning");
        assert_eq!(value.pointer("/checks/0/mend").unwrap(), "psi=1");
    }
}
