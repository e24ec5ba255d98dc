//! `status` at the control plane.

use serde_json::Value;

use super::{Args, WATCH_PERIOD};
use crate::output;
use crate::remote::{Remote, text};

/// Shows one instance, once or again and again.
pub fn run(args: &Args, remote: &Remote) -> anyhow::Result<i32> {
    let path = remote.path(&args.name)?;
    loop {
        let instance = remote.get(&path)?;
        if args.json && args.watch {
            output::json_line(&instance)?;
        } else if args.json {
            output::json(&instance)?;
        } else {
            output::line(&describe(&instance))?;
        }
        let is_over = matches!(
            text(&instance, "state"),
            "terminated" | "stopped" | "failed"
        );
        if !args.watch || is_over {
            return Ok(0);
        }
        std::thread::sleep(WATCH_PERIOD);
    }
}

fn describe(instance: &Value) -> String {
    let mut lines = vec![format!(
        "{}: {}",
        text(instance, "name"),
        text(instance, "state")
    )];
    let mut add = |name: &str, value: String| lines.push(format!("  {name:<12} {value}"));
    if let Some(reason) = instance.get("reason").and_then(Value::as_str) {
        add("reason", reason.to_owned());
    }
    add("id", text(instance, "id").to_owned());
    add("image", text(instance, "image").to_owned());
    if let Some(host) = instance.get("host").and_then(Value::as_str) {
        add("host", host.to_owned());
    }
    for axis in ["cpus", "memory"] {
        let place = |pointer: &str| {
            let value = instance.pointer(&format!("{pointer}/{axis}"));
            value.cloned().unwrap_or(Value::Null)
        };
        let (bounds, observed) = (place("/policy/bounds"), place("/observed"));
        let show = |value: Option<&Value>| match (axis, value.and_then(Value::as_u64)) {
            ("memory", Some(bytes)) => output::size(concertina_api::Bytes(bytes)),
            _ => value.map_or_else(|| "-".to_owned(), ToString::to_string),
        };
        let (min, max) = (show(bounds.get("min")), show(bounds.get("max")));
        add(
            axis,
            format!("{} in {min}..{max}", show(observed.get("target"))),
        );
    }
    let rules = instance
        .pointer("/policy/thresholds")
        .and_then(Value::as_array);
    for rule in rules.into_iter().flatten().filter_map(Value::as_str) {
        add("threshold", rule.to_owned());
    }
    if let Some(short) = instance
        .pointer("/observed/capacity_short")
        .and_then(Value::as_str)
    {
        add("host short", short.to_owned());
    }
    lines.join("\n")
}
