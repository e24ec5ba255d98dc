//! `resize` at the control plane.

use concertina_api::instance::InstanceSize;
use concertina_api::vm::{Outcome, ResizeReport};
use serde_json::{Value, json};

use super::Args;
use crate::args::as_ms;
use crate::commands::status::describe_resize;
use crate::failure::Usage;
use crate::output;
use crate::remote::{Remote, text};

/// Resizes and prints the outcome.
pub fn run(args: &Args, remote: &Remote) -> anyhow::Result<i32> {
    if args.disk_rate.is_some() || args.net_rate.is_some() {
        return Err(
            Usage("--disk-rate and --net-rate are for instances of this host".into()).into(),
        );
    }
    let path = format!("{}/resizes", remote.path(&args.name)?);
    let mut wish = json!({"timeout_ms": as_ms(args.timeout)});
    if let Value::Object(fields) = &mut wish {
        fields.extend(args.cpus.map(|cpus| ("cpus".to_owned(), json!(cpus))));
        fields.extend(
            args.memory
                .map(|memory| ("memory".to_owned(), json!(memory))),
        );
    }
    let resize = remote.post(&path, &wish)?;
    let report = resize.get("report").cloned();
    let report: Option<ResizeReport<InstanceSize>> =
        report.map(serde_json::from_value).transpose()?;
    if args.json {
        output::json(&resize)?;
    } else {
        let said = match &report {
            Some(report) => describe_resize(report),
            None if text(&resize, "error").is_empty() => "not ended yet".into(),
            None => text(&resize, "error").to_owned(),
        };
        output::line(&format!("{}: {said}", args.name))?;
    }
    let is_applied = report.is_some_and(|report| report.outcome == Outcome::Applied);
    Ok(if is_applied { 0 } else { 1 })
}
