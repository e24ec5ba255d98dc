//! `status --watch`: lines for people and pipes, one when something has changed.

use std::collections::BTreeMap;
use std::thread;
use std::time::{Duration, SystemTime};

use concertina_agent::client;
use concertina_agent::state_dir::StateDir;
use concertina_api::Bytes;
use concertina_api::event::Event;
use concertina_api::instance::InstanceStatus;
use serde::Serialize;

use super::state_word;
use crate::commands::events::kind_and_text;
use crate::event_tail::EventTail;
use crate::text::plain;
use crate::{failure, output, state};

/// One look, in JSON.
#[derive(Serialize)]
struct Look<'a> {
    time: &'a str,
    #[serde(flatten)]
    status: Option<&'a InstanceStatus>,
    events: &'a [Event],
}

/// Looks each `interval`, until the instance has ended.
pub fn watch(name: &str, state: &StateDir, interval: Duration, json: bool) -> anyhow::Result<()> {
    let paths = state.paths(name)?;
    let mut tail = EventTail::new(&paths.events);
    // Of what happened before only the last is told.
    let mut events = tail.read().unwrap_or_default();
    events.drain(..events.len().saturating_sub(1));
    let mut before = None;
    while state::find(state, name)?.alive {
        let status = client::status(&paths);
        if status.is_err() && !state::find(state, name)?.alive {
            break;
        }
        events.extend(tail.read().unwrap_or_default());
        let time = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
        if json {
            output::json_line(&Look {
                time: &time,
                status: status.as_ref().ok(),
                events: &events,
            })?;
        } else {
            let text = match &status {
                Ok(status) => line(status),
                Err(error) => format!("no answer: {}", failure::sentence(error)),
            };
            if !events.is_empty() || before.as_ref() != Some(&text) {
                output::line(&plain(&format!("{time}  {text}{}", told(&events))))?;
            }
            before = Some(text);
        }
        events.clear();
        thread::sleep(interval);
    }
    Ok(())
}

/// What of a status is worth a line.
fn line(status: &InstanceStatus) -> String {
    let (cpus, memory) = (&status.cpus, &status.memory);
    let share = |name: &str| percent(&status.observed, name);
    let mut line = format!(
        "{}  load {}  cpus {} quota {} target {}  memory {} target {} resident {}  pressure cpu {} \
         memory {} io {}",
        state_word(status.state),
        share("cpu"),
        cpus.online,
        cpus.quota,
        cpus.target,
        memory.plugged,
        memory.target,
        output::size(memory.host_resident),
        share("cpu.pressure"),
        share("memory.pressure"),
        share("io.pressure"),
    );
    if memory.balloon > Bytes(0) {
        line.push_str(&format!("  balloon {}", memory.balloon));
    }
    line
}

fn percent(observed: &BTreeMap<String, f64>, name: &str) -> String {
    observed
        .get(name)
        .map_or("-".to_owned(), |value| format!("{value:.0}%"))
}

fn told(events: &[Event]) -> String {
    let tell = |event: &Event| {
        let (kind, text) = kind_and_text(event);
        format!("  {kind}: {text}")
    };
    events.iter().map(tell).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::status::tests::example;

    #[test]
    fn a_line_has_sizes_load_and_pressure_and_marks_the_unknown() {
        let mut status = example();
        let line_of = |status: &InstanceStatus| line(status);
        assert_eq!(
            line_of(&status),
            "running  load -  cpus 2 quota 1.5 target 2  memory 512M target 448M resident 90M  \
             pressure cpu - memory - io -  balloon 64M"
        );
        status.observed = [("cpu", 74.6), ("memory.pressure", 3.0)]
            .map(|(name, value)| (name.to_owned(), value))
            .into();
        let line = line_of(&status);
        assert!(
            line.contains("load 75%") && line.contains("memory 3% io -"),
            "{line}"
        );
    }

    #[test]
    fn time_alone_is_no_news() {
        let status = example();
        let later = InstanceStatus {
            uptime_ms: status.uptime_ms + 1000,
            ..status.clone()
        };
        assert_eq!(line(&status), line(&later));
    }

    #[test]
    fn a_look_is_one_object_with_the_fields_of_a_status() {
        let status = example();
        let look = Look {
            time: "t",
            status: Some(&status),
            events: &[],
        };
        let value = serde_json::to_value(look).unwrap();
        for path in ["/time", "/events", "/cpus/online", "/memory/plugged"] {
            assert!(
                value.pointer(path).is_some(),
                "{path} is missing in {value}"
            );
        }
        let silent = Look {
            time: "t",
            status: None,
            events: &[],
        };
        assert_eq!(
            serde_json::to_string(&silent).unwrap(),
            r#"{"time":"t","events":[]}"#
        );
    }
}
