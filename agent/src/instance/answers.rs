//! Idempotency keys: a request with the key of an earlier one gets that one's answer, while that one is
//! still under way as well.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use concertina_api::instance::{InstanceResize, InstanceSize};
use concertina_api::vm::ResizeReport;

/// Answers that are kept; older keys are forgotten.
const KEPT: usize = 64;

/// What the agent says of a resize.
type Report = ResizeReport<InstanceSize>;

/// The answers of one instance.
#[derive(Debug, Default)]
pub(super) struct Answers {
    entries: Mutex<VecDeque<Entry>>,
    answered: Condvar,
}

#[derive(Debug)]
struct Entry {
    wish: InstanceResize,
    /// Absent: it is under way.
    report: Option<Report>,
}

impl Answers {
    /// Carries out a request, unless one with its key was before: then gives that one's answer, when
    /// it is there.
    ///
    /// # Errors
    /// The key belongs to another request: a sentence.
    pub fn once(
        &self,
        wish: &InstanceResize,
        carry_out: impl FnOnce() -> Report,
    ) -> Result<Report, String> {
        let Some(key) = &wish.key else {
            return Ok(carry_out());
        };
        let mut entries = self.lock();
        while let Some(entry) = find(&mut entries, key) {
            if entry.wish != *wish {
                return Err(format!(
                    "Key '{key}' was used for another request: give each request a key of its own"
                ));
            }
            if let Some(report) = &entry.report {
                return Ok(report.clone());
            }
            entries = self
                .answered
                .wait(entries)
                .unwrap_or_else(PoisonError::into_inner);
        }
        // Those that are under way are few, and are never forgotten: they are the newest.
        if entries.len() >= KEPT && entries.front().is_some_and(|old| old.report.is_some()) {
            entries.pop_front();
        }
        entries.push_back(Entry {
            wish: wish.clone(),
            report: None,
        });
        drop(entries);
        let report = carry_out();
        if let Some(entry) = find(&mut self.lock(), key) {
            entry.report = Some(report.clone());
        }
        self.answered.notify_all();
        Ok(report)
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn find<'a>(entries: &'a mut VecDeque<Entry>, key: &str) -> Option<&'a mut Entry> {
    entries
        .iter_mut()
        .find(|entry| entry.wish.key.as_deref() == Some(key))
}

#[cfg(test)]
mod tests {
    use super::*;
    use concertina_api::Cpus;
    use concertina_api::vm::Outcome;
    use std::sync::atomic::{AtomicU32, Ordering};

    fn wish(cpus: u32, key: Option<&str>) -> InstanceResize {
        InstanceResize {
            cpus: Some(Cpus::whole(cpus)),
            key: key.map(str::to_owned),
            ..InstanceResize::default()
        }
    }

    fn report() -> Report {
        Report {
            outcome: Outcome::Applied,
            asked: InstanceSize::default(),
            got: InstanceSize::default(),
            reason: None,
            ost: None,
            timeline_ms: Default::default(),
        }
    }

    #[test]
    fn requests_with_one_key_are_carried_out_once_also_at_the_same_time() {
        let (answers, times) = (Answers::default(), AtomicU32::new(0));
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    answers.once(&wish(2, Some("a")), || {
                        times.fetch_add(1, Ordering::SeqCst);
                        std::thread::sleep(std::time::Duration::from_millis(20));
                        report()
                    })
                });
            }
        });
        assert_eq!(times.load(Ordering::SeqCst), 1);
        assert!(answers.once(&wish(3, Some("a")), report).is_err());
        for _ in 0..2 {
            answers
                .once(&wish(2, None), || {
                    times.fetch_add(1, Ordering::SeqCst);
                    report()
                })
                .unwrap();
        }
        assert_eq!(times.load(Ordering::SeqCst), 3);
    }

    #[test]
    fn old_keys_are_forgotten() {
        let answers = Answers::default();
        for number in 0..=KEPT {
            answers
                .once(&wish(1, Some(&number.to_string())), report)
                .unwrap();
        }
        assert_eq!(answers.lock().len(), KEPT);
        assert!(answers.once(&wish(2, Some("0")), report).is_ok());
    }
}
