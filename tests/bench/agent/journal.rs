//! How many resizes a second can be written down: each is an intent that is on the disk before
//! anything begins, and an outcome.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use concertina_agent::clock::Moment;
use concertina_agent::journal::{
    Action, Conclusion, Durability, Intent, IntentId, Journal, Record, SharedJournal,
};
use concertina_agent::ledger::Claim;
use concertina_api::Bytes;
use concertina_api::instance::InstanceSize;
use concertina_api::policy::PolicyBounds;
use concertina_api::vm::Outcome;

/// How long it is tried.
const TIME: Duration = Duration::from_secs(3);

/// Commits a second, by so many threads at a time, each with an instance of its own.
pub fn commits_per_second(folder: &Path, threads: usize) -> Result<f64> {
    let opened = Journal::open(&folder.join(format!("journal-{threads}")))?;
    let journal = SharedJournal::new(opened.journal);
    let done = AtomicU64::new(0);
    let begun = Instant::now();
    let ended: Result<Vec<()>> = thread::scope(|scope| {
        let writers: Vec<_> = (0..threads)
            .map(|number| {
                let (journal, done) = (&journal, &done);
                scope.spawn(move || -> Result<()> {
                    let name = format!("vm-{number:04}");
                    launch(journal, &name)?;
                    while begun.elapsed() < TIME {
                        resize(journal, &name)?;
                        done.fetch_add(1, Ordering::Relaxed);
                    }
                    Ok(())
                })
            })
            .collect();
        let joined = writers.into_iter().map(|writer| writer.join());
        joined
            .map(|ended| ended.map_err(|_| anyhow!("A writer panicked"))?)
            .collect()
    });
    ended?;
    Ok(done.load(Ordering::Relaxed) as f64 / begun.elapsed().as_secs_f64())
}

fn launch(journal: &SharedJournal, name: &str) -> Result<()> {
    let bounds = PolicyBounds {
        cpus: "1..4".parse().map_err(|e| anyhow!("{e}"))?,
        memory: "512M..4G".parse().map_err(|e| anyhow!("{e}"))?,
    };
    let claim = Claim { bounds, weight: 1 };
    let id = begin(journal, name, Action::Launch { claim })?;
    let size = InstanceSize {
        cpus: Some(bounds.cpus.min),
        memory: Some(bounds.memory.min),
        ..InstanceSize::default()
    };
    conclude(journal, id, size)
}

fn resize(journal: &SharedJournal, name: &str) -> Result<()> {
    let of = |memory| InstanceSize {
        memory: Some(memory),
        ..InstanceSize::default()
    };
    let action = Action::Resize {
        before: of(Bytes::mib(512)),
        target: of(Bytes::mib(640)),
        cause: "memory > 80% 1 of 1: +25%".into(),
        policy_version: 1,
    };
    let id = begin(journal, name, action)?;
    conclude(journal, id, of(Bytes::mib(512)))
}

fn begin(journal: &SharedJournal, name: &str, action: Action) -> Result<IntentId> {
    Ok(journal.begin(Intent {
        id: IntentId::NEXT,
        instance: name.to_owned(),
        action,
        key: None,
        at: Moment::now(),
    })?)
}

fn conclude(journal: &SharedJournal, id: IntentId, after: InstanceSize) -> Result<()> {
    let conclusion = Conclusion {
        id,
        outcome: Outcome::Applied,
        after,
        reason: None,
        at: Moment::now(),
    };
    Ok(journal.append(Record::Outcome(conclusion), Durability::Written)?)
}
