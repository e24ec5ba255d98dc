//! `stop` at the control plane.

use std::time::{Duration, Instant};

use anyhow::bail;
use concertina_control::http_method::Method;
use serde_json::json;

use super::{Args, TIDY_UP};
use crate::args::as_ms;
use crate::output;
use crate::remote::{Remote, text};

const PERIOD: Duration = Duration::from_millis(200);

/// Stops, or terminates, and waits for the end.
pub fn run(args: &Args, remote: &Remote) -> anyhow::Result<i32> {
    let path = remote.path(&args.name)?;
    let wanted = if args.terminate {
        remote.send(Method::DELETE, &path, None)?;
        "terminated"
    } else {
        let body = json!({"force": args.force, "timeout_ms": as_ms(args.timeout)});
        remote.post(&format!("{path}/stop"), &body)?;
        "stopped"
    };
    let begun = Instant::now();
    loop {
        let instance = remote.get(&path)?;
        let state = text(&instance, "state");
        if state == wanted {
            output::line(&format!("{}: {state}", args.name))?;
            return Ok(0);
        }
        if begun.elapsed() > args.timeout.saturating_add(TIDY_UP) {
            bail!(
                "Instance '{}' is still {state} after {}",
                args.name,
                output::span(begun.elapsed())
            );
        }
        std::thread::sleep(PERIOD);
    }
}
