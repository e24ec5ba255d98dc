//! One journal for many threads. An fsync takes as long for a hundred records as for one, so the
//! first thread that comes writes for all that come while it waits for the disk.

use std::collections::HashMap;
use std::sync::{Condvar, Mutex, MutexGuard};

use super::{Durability, Intent, IntentId, Journal, JournalError, Record};

/// How the records of one caller ended: the numbers of the intents among them.
type Ending = Result<Vec<IntentId>, JournalError>;

/// A journal that many threads append to.
#[derive(Debug)]
pub struct SharedJournal {
    journal: Mutex<Journal>,
    queue: Mutex<Queue>,
    written: Condvar,
}

#[derive(Debug, Default)]
struct Queue {
    next_ticket: u64,
    waiting: Vec<Waiting>,
    ended: HashMap<u64, Ending>,
    /// A thread is writing for the others.
    led: bool,
}

/// Records that belong together: they succeed or fail with the disk as one, in this order.
#[derive(Debug)]
struct Waiting {
    ticket: u64,
    records: Vec<Record>,
    durability: Durability,
}

impl SharedJournal {
    /// Shares a journal.
    pub fn new(journal: Journal) -> Self {
        Self {
            journal: Mutex::new(journal),
            queue: Mutex::new(Queue::default()),
            written: Condvar::new(),
        }
    }

    /// Appends a record; returns when it is as safe as asked.
    ///
    /// # Errors
    /// See [`Journal::append`].
    pub fn append(&self, record: Record, durability: Durability) -> Result<(), JournalError> {
        self.append_all(vec![record], durability).map(|_| ())
    }

    /// Appends an intent; returns its number when it is on the disk.
    ///
    /// # Errors
    /// See [`Journal::append`].
    pub fn begin(&self, intent: Intent) -> Result<IntentId, JournalError> {
        let numbers = self.append_all(vec![Record::Intent(intent)], Durability::Synced)?;
        Ok(numbers.first().copied().unwrap_or(IntentId::NEXT))
    }

    /// Appends records that belong together, in this order; gives the numbers of the intents among
    /// them. Fails with the first record that does not fit; those that do are written all the same.
    ///
    /// # Errors
    /// See [`Journal::append`].
    pub fn append_all(&self, records: Vec<Record>, durability: Durability) -> Ending {
        let mut queue = lock(&self.queue);
        let ticket = queue.next_ticket;
        queue.next_ticket = ticket.wrapping_add(1);
        queue.waiting.push(Waiting {
            ticket,
            records,
            durability,
        });
        loop {
            if let Some(result) = queue.ended.remove(&ticket) {
                return result;
            }
            if queue.led {
                queue = self
                    .written
                    .wait(queue)
                    .unwrap_or_else(|poisoned| poisoned.into_inner());
                continue;
            }
            queue.led = true;
            let batch = std::mem::take(&mut queue.waiting);
            drop(queue);
            let ended = self.write(batch);
            queue = lock(&self.queue);
            queue.led = false;
            queue.ended.extend(ended);
            self.written.notify_all();
        }
    }

    /// Looks at the journal, or changes it alone: its book, a compaction. Appends wait meanwhile.
    pub fn with<T>(&self, look: impl FnOnce(&mut Journal) -> T) -> T {
        look(&mut lock(&self.journal))
    }

    fn write(&self, batch: Vec<Waiting>) -> Vec<(u64, Ending)> {
        let durability = batch.iter().map(|waiting| waiting.durability).max();
        let (mut records, mut owners) = (Vec::new(), Vec::new());
        for waiting in batch {
            owners.push((waiting.ticket, waiting.records.len()));
            records.extend(waiting.records);
        }
        let durability = durability.unwrap_or(Durability::Written);
        let results = lock(&self.journal).append_batch(&records, durability);
        let mut results = results.into_iter();
        owners
            .into_iter()
            .map(|(ticket, count)| {
                let own: Vec<_> = results.by_ref().take(count).collect();
                let own: Result<Vec<_>, _> = own.into_iter().collect();
                (ticket, own.map(|own| own.into_iter().flatten().collect()))
            })
            .collect()
    }
}

/// A panic of a thread leaves both whole: the journal changes its book and its file together, or
/// neither.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner())
}
