//! `ps` at the control plane.

use serde_json::Value;

use super::Args;
use crate::output;
use crate::remote::{Remote, text};

/// Lists the account's instances.
pub fn run(args: &Args, remote: &Remote) -> anyhow::Result<i32> {
    let mut instances = remote.all("/v1/instances")?;
    instances.retain(|instance| {
        args.all || !matches!(text(instance, "state"), "terminated" | "stopped" | "failed")
    });
    if args.json {
        output::json(&instances)?;
        return Ok(0);
    }
    let header = [
        "NAME", "STATE", "CPUS", "BOUNDS", "MEMORY", "BOUNDS", "HOST", "ID",
    ];
    let rows: Vec<Vec<String>> = instances.iter().map(row).collect();
    output::line(&output::table(&header, &rows, &[2, 4]))?;
    Ok(0)
}

fn row(instance: &Value) -> Vec<String> {
    let number = |pointer: &str| instance.pointer(pointer).and_then(Value::as_f64);
    let bytes = |pointer: &str| {
        let found = instance.pointer(pointer).and_then(Value::as_u64);
        found.map(|bytes| output::size(concertina_api::Bytes(bytes)))
    };
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".into());
    let range =
        |min: Option<String>, max: Option<String>| format!("{}..{}", or_dash(min), or_dash(max));
    let cpus = |pointer: &str| number(pointer).map(|cpus| cpus.to_string());
    vec![
        text(instance, "name").to_owned(),
        text(instance, "state").to_owned(),
        or_dash(cpus("/observed/cpus/target")),
        range(
            cpus("/policy/bounds/cpus/min"),
            cpus("/policy/bounds/cpus/max"),
        ),
        or_dash(bytes("/observed/memory/target")),
        range(
            bytes("/policy/bounds/memory/min"),
            bytes("/policy/bounds/memory/max"),
        ),
        instance
            .get("host")
            .and_then(Value::as_str)
            .unwrap_or("-")
            .to_owned(),
        text(instance, "id").to_owned(),
    ]
}
