//! `events` at the control plane.

use std::time::Duration;

use concertina_api::event::Event;
use serde_json::Value;

use super::Args;
use crate::output;
use crate::remote::{Remote, text};

/// How often `--follow` looks.
const PERIOD: Duration = Duration::from_millis(500);

/// Prints the events; with `--follow` until the instance has ended.
pub fn run(args: &Args, remote: &Remote) -> anyhow::Result<i32> {
    let path = remote.path(&args.name)?;
    let mut from = 0;
    loop {
        // Read before the events: what is recorded up to its end is printed.
        let is_over = matches!(
            text(&remote.get(&path)?, "state"),
            "terminated" | "stopped" | "failed"
        );
        loop {
            let page = remote.get(&format!("{path}/events?from={from}&limit=500"))?;
            let items = page
                .get("items")
                .and_then(Value::as_array)
                .cloned()
                .unwrap_or_default();
            for item in &items {
                if args.json {
                    output::json_line(item)?;
                } else {
                    output::line(&describe(item))?;
                }
            }
            from = page.get("next").and_then(Value::as_u64).unwrap_or(from);
            if items.is_empty() {
                break;
            }
        }
        if !args.follow || is_over {
            return Ok(0);
        }
        std::thread::sleep(PERIOD);
    }
}

fn describe(item: &Value) -> String {
    if text(item, "source") == "host"
        && let Ok(event) = serde_json::from_value::<Event>(item.clone())
    {
        return super::describe(&event);
    }
    let detail = match text(item, "detail") {
        "" => String::new(),
        detail => format!(": {detail}"),
    };
    let (time, kind, state) = (
        text(item, "recorded"),
        text(item, "event"),
        text(item, "state"),
    );
    let time = time.get(11..23).unwrap_or(time);
    format!("{time}  {kind:<12}  {state}{detail}")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::describe;

    #[test]
    fn events_of_both_sources_are_lines() {
        let control = json!({"number": 0, "recorded": "2026-11-22T10:00:00.123Z", "source": "control",
            "event": "state", "state": "failed", "detail": "No kernel"});
        assert_eq!(
            describe(&control),
            "10:00:00.123  state         failed: No kernel"
        );
        let host = json!({"number": 1, "recorded": "t", "source": "host", "event": "rebooted",
            "time": "t", "uptime_ms": 1500, "host_number": 0, "generation": 1});
        assert!(describe(&host).starts_with("     1.500  rebooted"));
    }
}
