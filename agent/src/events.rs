//! The instance's `events.jsonl`: what happened, one JSON object a line, in the order of writing.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Instant, SystemTime};

use concertina_api::event::{Event, EventKind};

/// Wall clock as RFC 3339 with milliseconds.
pub fn wall_clock() -> String {
    humantime::format_rfc3339_millis(SystemTime::now()).to_string()
}

/// Who listens to the events of all instances of a process, as they happen.
#[derive(Debug, Default)]
pub struct Hub {
    listeners: Mutex<Vec<SyncSender<Told>>>,
}

/// One event.
#[derive(Debug, Clone)]
pub struct Told {
    /// Name of the instance.
    pub instance: Arc<str>,
    /// The event, as it stands in the file, without its line end.
    pub line: Arc<str>,
}

/// Events that may wait for a listener. One that is slower than that is let go, and sees that its
/// stream has ended.
const LISTENER_QUEUE: usize = 1024;

impl Hub {
    /// Listens from here on. Ends when [`Hub::close`] is called, or when this falls behind.
    pub fn listen(&self) -> Receiver<Told> {
        let (sender, receiver) = sync_channel(LISTENER_QUEUE);
        self.lock().push(sender);
        receiver
    }

    /// Ends what all listeners hear.
    pub fn close(&self) {
        self.lock().clear();
    }

    fn tell(&self, told: &Told) {
        self.lock()
            .retain(|listener| listener.try_send(told.clone()).is_ok());
    }

    fn lock(&self) -> MutexGuard<'_, Vec<SyncSender<Told>>> {
        self.listeners
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// Appends events. Losing one (a full disk) must not stop the instance, so appending cannot fail;
/// what was lost is counted and said with the next event that can be written.
#[derive(Debug)]
pub struct EventLog {
    launched: Instant,
    hub: Option<(Arc<str>, Arc<Hub>)>,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    file: File,
    lost: u64,
}

impl EventLog {
    /// Opens or makes the file; `launched` is the zero of `uptime_ms`.
    pub fn open(path: &Path, launched: Instant) -> io::Result<Self> {
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(path)?;
        Ok(Self {
            launched,
            hub: None,
            inner: Mutex::new(Inner { file, lost: 0 }),
        })
    }

    /// Tells the listeners of `hub` as well, by the name of the instance.
    pub fn with_hub(mut self, instance: &str, hub: Option<Arc<Hub>>) -> Self {
        self.hub = hub.map(|hub| (instance.into(), hub));
        self
    }

    /// Appends one event with the present time.
    pub fn append(&self, kind: EventKind) {
        self.append_of(None, kind);
    }

    /// Appends one event that this version of the instance's policy has caused.
    pub fn append_of(&self, policy_version: Option<u64>, kind: EventKind) {
        let event = Event {
            time: wall_clock(),
            uptime_ms: u64::try_from(self.launched.elapsed().as_millis()).unwrap_or(u64::MAX),
            policy_version,
            kind,
        };
        let Ok(mut line) = serde_json::to_vec(&event) else {
            return;
        };
        line.push(b'\n');
        let mut inner = self
            .inner
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        // One write a line: a reader that follows the file never sees two events mixed.
        match inner.file.write_all(&line) {
            Ok(()) if inner.lost > 0 => {
                eprintln!("concertina: {} events could not be written", inner.lost);
                inner.lost = 0;
            }
            Ok(()) => {}
            Err(_) => inner.lost += 1,
        }
        if let Some((instance, hub)) = &self.hub {
            line.pop();
            // Still under the lock: listeners hear events in the order of the file.
            hub.tell(&Told {
                instance: Arc::clone(instance),
                line: String::from_utf8_lossy(&line).into(),
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_event_is_a_line_that_parses_back() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("events.jsonl");
        let log = EventLog::open(&path, Instant::now()).unwrap();
        log.append(EventKind::Started { vmm_pid: 7 });
        log.append(EventKind::Rebooted);
        let text = std::fs::read_to_string(&path).unwrap();
        let events: Vec<Event> = text
            .lines()
            .map(|l| serde_json::from_str(l).unwrap())
            .collect();
        assert_eq!(events[0].kind, EventKind::Started { vmm_pid: 7 });
        assert_eq!(events[1].kind, EventKind::Rebooted);
        assert!(humantime::parse_rfc3339(&events[0].time).is_ok());
    }
}
