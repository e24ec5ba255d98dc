//! Prints how many journal commits a second this host's disk gives, alone and for many at once:
//! `cargo run --release -p concertina-agent --example journal -- [FOLDER]`.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use concertina_agent::clock::Moment;
use concertina_agent::journal::{
    Action, Conclusion, Durability, Intent, IntentId, Journal, JournalError, Record, SharedJournal,
};
use concertina_agent::ledger::Claim;
use concertina_api::instance::InstanceSize;
use concertina_api::policy::PolicyBounds;
use concertina_api::vm::Outcome;
use concertina_api::{Bounds, Bytes, Cpus};

/// How long each measurement takes.
const SPAN: Duration = Duration::from_secs(3);

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = std::env::args_os()
        .nth(1)
        .map_or(std::env::temp_dir(), PathBuf::from);
    println!("{:>8}  {:>12}  {:>12}", "threads", "commits/s", "mean ms");
    for threads in [1, 4, 16, 64] {
        let path = folder.join(format!("concertina-journal-{}", std::process::id()));
        let measured = measure(&path, threads);
        std::fs::remove_file(&path)?;
        let commits = measured?;
        let per_second = commits as f64 / SPAN.as_secs_f64();
        let mean_ms = threads as f64 * 1000.0 / per_second;
        println!("{threads:>8}  {per_second:>12.0}  {mean_ms:>12.3}");
    }
    Ok(())
}

/// Commits (each on the disk when it was counted) of resizes by so many threads.
fn measure(path: &Path, threads: usize) -> Result<u64, JournalError> {
    let shared = Arc::new(SharedJournal::new(Journal::open(path)?.journal));
    let until = Instant::now() + SPAN;
    let workers: Vec<_> = (0..threads)
        .map(|number| {
            let shared = Arc::clone(&shared);
            std::thread::spawn(move || resize_until(&shared, &format!("vm-{number}"), until))
        })
        .collect();
    let mut commits = 0;
    for worker in workers {
        commits += worker.join().unwrap_or(Ok(0))?;
    }
    Ok(commits)
}

fn resize_until(journal: &SharedJournal, name: &str, until: Instant) -> Result<u64, JournalError> {
    let intent = |action| Intent {
        id: IntentId::NEXT,
        instance: name.to_owned(),
        action,
        key: None,
        at: Moment::now(),
    };
    let end = |id| {
        Record::Outcome(Conclusion {
            id,
            outcome: Outcome::Applied,
            after: InstanceSize::default(),
            reason: None,
            at: Moment::now(),
        })
    };
    let memory = |mib| InstanceSize {
        cpus: None,
        memory: Some(Bytes::mib(mib)),
        disk_rate: None,
        net_rate: None,
    };
    let claim = Claim {
        bounds: PolicyBounds {
            cpus: Bounds {
                min: Cpus::whole(1),
                max: Cpus::whole(4),
            },
            memory: Bounds {
                min: Bytes::mib(256),
                max: Bytes::mib(4096),
            },
        },
        weight: 1,
    };
    let id = journal.begin(intent(Action::Launch { claim }))?;
    journal.append(end(id), Durability::Synced)?;
    let mut commits = 2;
    while Instant::now() < until {
        let id = journal.begin(intent(Action::Resize {
            before: memory(256),
            target: memory(512),
            cause: "memory > 80% for 2s: +256M".into(),
            policy_version: 1,
        }))?;
        journal.append(end(id), Durability::Synced)?;
        commits += 2;
    }
    Ok(commits)
}
