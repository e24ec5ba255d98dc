//! Events as streams, one JSON object a line (`application/x-ndjson`).

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::sync::Arc;
use std::sync::mpsc::RecvTimeoutError;
use std::time::Duration;

use concertina_http::{Response, Sink};

use super::Host;
use crate::events::Told;
use crate::state_dir::InstancePaths;

const NDJSON: &str = "application/x-ndjson";
/// How often to look whether a silent stream still has a reader.
const READER_CHECK: Duration = Duration::from_secs(1);
/// Most bytes of one read of a file.
const CHUNK_BYTES: u64 = 64 << 10;

/// What happens to all instances from here on; each object has the field `instance`.
pub(super) fn of_all(host: &Arc<Host>) -> Response {
    let host = Arc::clone(host);
    Response::stream(NDJSON, move |sink| {
        let told = host.hub().listen();
        loop {
            match told.recv_timeout(READER_CHECK) {
                Ok(told) => sink.write(with_instance(&told).as_bytes())?,
                Err(RecvTimeoutError::Timeout) if sink.is_gone() => return Ok(()),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
            }
        }
    })
}

/// An event is an object: the name goes in as its first field. Names need no escapes.
fn with_instance(told: &Told) -> String {
    let rest = told.line.strip_prefix('{').unwrap_or_default();
    format!("{{\"instance\":\"{}\",{rest}\n", told.instance)
}

/// What has happened to one instance; with `follow` also what happens, until it has ended.
pub(super) fn of_one(host: &Arc<Host>, name: &str, paths: InstancePaths, follow: bool) -> Response {
    let (host, name) = (Arc::clone(host), name.to_owned());
    Response::stream(NDJSON, move |sink| {
        // First of all: what is written while the file is read is heard afterwards.
        let told = host.hub().listen();
        let mut from = 0;
        loop {
            // Asked before the read: what is written before the end is in that read.
            let is_over = !follow || host.find(&name).is_none_or(|core| core.has_ended());
            copy(&paths, &mut from, sink)?;
            if is_over {
                return Ok(());
            }
            loop {
                match told.recv_timeout(READER_CHECK) {
                    Ok(told) if *told.instance == *name => break,
                    Ok(_) => {}
                    Err(RecvTimeoutError::Timeout) if sink.is_gone() => return Ok(()),
                    // It may have ended without another event.
                    Err(RecvTimeoutError::Timeout) => break,
                    Err(RecvTimeoutError::Disconnected) => return Ok(()),
                }
            }
        }
    })
}

/// Copies what the file has beyond `from`.
fn copy(paths: &InstancePaths, from: &mut u64, sink: &mut dyn Sink) -> io::Result<()> {
    let mut file = match File::open(&paths.events) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        opened => opened?,
    };
    file.seek(SeekFrom::Start(*from))?;
    loop {
        let mut chunk = Vec::new();
        let count = (&file).take(CHUNK_BYTES).read_to_end(&mut chunk)?;
        if count == 0 {
            return Ok(());
        }
        sink.write(&chunk)?;
        *from = from.saturating_add(count as u64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_of_the_common_stream_says_whose_it_is() {
        let told = Told {
            instance: "web".into(),
            line: r#"{"event":"rebooted"}"#.into(),
        };
        let value: serde_json::Value = serde_json::from_str(&with_instance(&told)).unwrap();
        assert_eq!(value["instance"], "web");
        assert_eq!(value["event"], "rebooted");
    }
}
