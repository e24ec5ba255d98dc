//! The journal on the real file system, and its book.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use concertina_api::instance::InstanceSize;
use concertina_api::policy::{Axis, Direction, Policy, PolicyBounds};
use concertina_api::vm::Outcome;
use concertina_api::{Bytes, Cpus};

use super::crashes::MemoryDisk;
use super::*;
use crate::clock::Moment;
use crate::ledger::Claim;
use crate::policy::{PolicyState, Size};

pub(super) fn claim(weight: u32) -> Claim {
    Claim {
        bounds: PolicyBounds {
            cpus: "0.5..4".parse().unwrap(),
            memory: "256M..4G".parse().unwrap(),
        },
        weight,
    }
}

pub(super) fn moment(monotonic_ms: u64) -> Moment {
    Moment {
        boot: "boot".into(),
        monotonic_ms,
        wall_ms: 0,
    }
}

fn intent(instance: &str, action: Action) -> Intent {
    Intent {
        id: IntentId::NEXT,
        instance: instance.into(),
        action,
        key: None,
        at: moment(1),
    }
}

fn memory(mib: u64) -> InstanceSize {
    InstanceSize {
        cpus: None,
        memory: Some(Bytes::mib(mib)),
        disk_rate: None,
        net_rate: None,
    }
}

fn grow_memory(from: u64, to: u64) -> Action {
    Action::Resize {
        before: memory(from),
        target: memory(to),
        cause: "memory > 80% for 2s: +512M".into(),
        policy_version: 1,
    }
}

fn outcome(id: IntentId, outcome: Outcome, after: InstanceSize) -> Record {
    Record::Outcome(Conclusion {
        id,
        outcome,
        after,
        reason: None,
        at: moment(2),
    })
}

/// A journal in which `web` runs.
fn with_web(path: &Path) -> Journal {
    let mut journal = Journal::open(path).unwrap().journal;
    let id = journal
        .begin(intent("web", Action::Launch { claim: claim(1) }))
        .unwrap();
    let launched = outcome(id, Outcome::Applied, InstanceSize::default());
    journal.append(&launched, Durability::Synced).unwrap();
    journal
}

#[test]
fn an_open_growth_is_reserved_after_a_restart_and_its_outcome_ends_that() {
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("journal");
    let mut journal = with_web(&path);
    let id = journal.begin(intent("web", grow_memory(256, 768))).unwrap();
    drop(journal);

    let mut journal = Journal::open(&path).unwrap().journal;
    assert_eq!(journal.book().open().next().unwrap().id, id);
    let holding = journal.book().holdings().remove(0);
    let at = |mib| Size {
        cpus: Cpus(500),
        memory: Bytes::mib(mib),
    };
    assert_eq!((holding.actual, holding.reserved), (at(256), at(768)));

    let partial = outcome(id, Outcome::Partial, memory(512));
    journal.append(&partial, Durability::Synced).unwrap();
    let again = journal.append(&partial, Durability::Synced).unwrap_err();
    assert!(again.to_string().contains("not open"), "{again}");
    let holding = journal.book().holdings().remove(0);
    assert_eq!((holding.actual, holding.reserved), (at(512), at(512)));
}

#[test]
fn what_does_not_fit_is_refused_and_not_written() {
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("journal");
    let mut journal = with_web(&path);
    let grow = journal.begin(intent("web", grow_memory(256, 768))).unwrap();
    let length = journal.length();
    let refused = [
        Record::Intent(intent("web", Action::Launch { claim: claim(1) })),
        Record::Intent(intent("web", grow_memory(256, 512))),
        Record::Intent(intent("db", grow_memory(256, 512))),
        Record::Intent(Intent {
            id: grow,
            ..intent("web", Action::Stop)
        }),
        Record::Ended {
            instance: "web".into(),
            reason: "gone".into(),
            at: moment(3),
        },
        outcome(IntentId(77), Outcome::Applied, memory(256)),
    ];
    for record in refused {
        let error = journal.append(&record, Durability::Written).unwrap_err();
        assert!(matches!(error, JournalError::Misfit(_)), "{error}");
    }
    assert_eq!(journal.length(), length);
    // The other axis is free to change meanwhile.
    let cpus = |milli| InstanceSize {
        cpus: Some(Cpus(milli)),
        memory: None,
        disk_rate: None,
        net_rate: None,
    };
    let other_axis = Action::Resize {
        before: cpus(500),
        target: cpus(1000),
        cause: "manual".into(),
        policy_version: 1,
    };
    journal.begin(intent("web", other_axis)).unwrap();
    assert_eq!(journal.book().open_of("web").count(), 2);
}

#[test]
fn an_end_gives_every_open_intent_its_outcome() {
    let temp = tempfile::tempdir().unwrap();
    let mut journal = with_web(&temp.path().join("journal"));
    journal.begin(intent("web", grow_memory(256, 768))).unwrap();
    journal.begin(intent("web", Action::Stop)).unwrap();
    let db = journal
        .begin(intent("db", Action::Launch { claim: claim(1) }))
        .unwrap();
    let mut records = journal.book().records_of_end("web", "killed", &moment(9));
    assert_eq!(records.len(), 3);
    records.extend(journal.book().records_of_end("db", "no kernel", &moment(9)));
    assert!(records.iter().any(|record| matches!(
        record,
        Record::Outcome(end) if end.id == db && end.outcome == Outcome::RolledBack
    )));
    for result in journal.append_batch(&records, Durability::Synced) {
        result.unwrap();
    }
    assert_eq!(journal.book().open().count(), 0);
    assert!(journal.book().instances().is_empty());
    assert_eq!(journal.book().next_intent(), IntentId(5));
}

#[test]
fn the_same_key_gets_the_same_answer_after_a_restart_and_a_compaction() {
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("journal");
    let mut journal = with_web(&path);
    for number in 0..20 {
        let id = journal
            .begin(Intent {
                key: Some(format!("key-{number}")),
                ..intent("web", grow_memory(256, 512))
            })
            .unwrap();
        let refused = outcome(id, Outcome::Refused, memory(256));
        journal.append(&refused, Durability::Written).unwrap();
    }
    journal.compact().unwrap();
    drop(journal);
    let journal = Journal::open(&path).unwrap().journal;
    let answer = journal.book().answer("web", "key-19").unwrap();
    assert_eq!(answer.outcome, Outcome::Refused);
    assert!(
        journal.book().answer("web", "key-0").is_none(),
        "the list is bounded"
    );
    assert!(journal.book().answer("web", "key-20").is_none());
}

#[test]
fn cooldowns_back_offs_and_budgets_survive_a_restart_and_a_compaction() {
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("journal");
    let mut journal = with_web(&path);
    let policy = Policy::new(claim(1).bounds);
    let mut state = PolicyState::default();
    state.committed(&policy, Axis::Cpus, Direction::Grow, &[], 1000);
    state.committed(&policy, Axis::Cpus, Direction::Shrink, &[], 2000);
    state.not_reached(Axis::Cpus, Direction::Grow, 3000);
    state.resized_by_hand(&policy, Axis::Memory, 512 << 20, 4000);
    assert_ne!(state, PolicyState::default());
    let record = Record::Policy {
        instance: "web".into(),
        version: 7,
        state: Box::new(state.clone()),
    };
    journal.append(&record, Durability::Written).unwrap();
    for compact in [true, false] {
        let mut journal = Journal::open(&path).unwrap().journal;
        let mark = journal.book().instances()["web"].policy.clone().unwrap();
        assert_eq!((mark.version, &mark.state), (7, &state));
        if compact {
            journal.compact().unwrap();
        }
    }
}

#[test]
fn open_intents_are_those_without_outcome() {
    let number = |id, intent| {
        Record::Intent(Intent {
            id: IntentId(id),
            ..intent
        })
    };
    let records = [
        number(1, intent("web", Action::Launch { claim: claim(1) })),
        outcome(IntentId(1), Outcome::Applied, InstanceSize::default()),
        number(2, intent("web", grow_memory(256, 512))),
        number(3, intent("web", Action::Stop)),
        outcome(IntentId(2), Outcome::TimedOut, memory(256)),
    ];
    let open = open_intents(&records).unwrap();
    assert_eq!(open.len(), 1);
    assert_eq!(open[0].id, IntentId(3));
    assert!(open_intents(&records[1..]).is_err());
}

#[test]
fn a_torn_end_is_cut_and_said_and_damage_before_it_is_an_error() {
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("journal");
    drop(with_web(&path));
    let whole = fs::read(&path).unwrap();
    let mut file = fs::OpenOptions::new().append(true).open(&path).unwrap();
    file.write_all(&whole[8..60]).unwrap();
    let opened = Journal::open(&path).unwrap();
    assert_eq!(
        opened.cut,
        Some(Cut {
            at: whole.len(),
            bytes: 52
        })
    );
    assert_eq!(fs::read(&path).unwrap(), whole);

    let mut damaged = whole.clone();
    damaged[60] ^= 1;
    fs::write(&path, &damaged).unwrap();
    let error = Journal::open(&path).unwrap_err();
    assert!(matches!(error, JournalError::Damaged { .. }), "{error}");
    assert_eq!(fs::read(&path).unwrap(), damaged, "evidence stays");
}

#[test]
fn what_is_no_journal_is_not_touched() {
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("journal");
    fs::write(&path, "important notes").unwrap();
    assert!(matches!(
        Journal::open(&path),
        Err(JournalError::Foreign(_))
    ));
    assert_eq!(fs::read(&path).unwrap(), b"important notes");
}

#[test]
fn one_fsync_serves_all_who_wait() {
    let disk = MemoryDisk::default();
    disk.slow_down(Duration::from_micros(200));
    let shared = Arc::new(SharedJournal::new(disk.journal()));
    std::thread::scope(|scope| {
        for worker in 0..16 {
            let shared = Arc::clone(&shared);
            scope.spawn(move || {
                let name = format!("vm-{worker}");
                let launch = intent(&name, Action::Launch { claim: claim(1) });
                let id = shared.begin(launch).unwrap();
                let launched = outcome(id, Outcome::Applied, InstanceSize::default());
                shared.append(launched, Durability::Synced).unwrap();
                for _ in 0..20 {
                    let id = shared.begin(intent(&name, grow_memory(256, 512))).unwrap();
                    let wrong = outcome(IntentId(u64::MAX), Outcome::Applied, memory(1));
                    assert!(shared.append(wrong, Durability::Synced).is_err());
                    let end = outcome(id, Outcome::Refused, memory(256));
                    shared.append(end, Durability::Synced).unwrap();
                }
            });
        }
    });
    let appended = 16 * (2 + 2 * 20);
    shared.with(|journal| {
        assert_eq!(journal.book().next_intent(), IntentId(1 + 16 * 21));
        assert_eq!(journal.book().open().count(), 0);
    });
    assert!(
        disk.syncs() < appended / 2,
        "{} fsyncs for {appended}",
        disk.syncs()
    );
}

/// Starts this test program again as `test`, which finds the journal's path in its environment.
fn child(test: &str, path: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    let test = format!("journal::tests::{test}");
    command
        .args([&test, "--exact", "--ignored", "--nocapture"])
        .env("JOURNAL", path);
    command
}

#[test]
fn whatever_a_killed_agent_was_told_is_in_its_journal() {
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("journal");
    drop(with_web(&path));
    for round in 0..5 {
        let mut child = child("append_for_ever", &path)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let mut told = 0;
        for line in output.lines() {
            let line = line.unwrap();
            let Some((_, number)) = line.split_once("told ") else {
                continue;
            };
            told = number.parse().unwrap();
            if told % 40 >= 25 + round {
                child.kill().unwrap();
                break;
            }
        }
        child.wait().unwrap();
        let journal = Journal::open(&path).unwrap().journal;
        let mark = journal.book().instances()["web"].usage.clone().unwrap();
        assert!(
            told > 0 && mark.sequence >= told,
            "told {told}, found {}",
            mark.sequence
        );
    }
}

/// Not a test: the process that is killed.
#[test]
#[ignore = "the body of a process that another test starts"]
fn append_for_ever() {
    let Some(path) = std::env::var_os("JOURNAL") else {
        return;
    };
    let mut journal = Journal::open(Path::new(&path)).unwrap().journal;
    let before = journal.book().instances()["web"].usage.clone();
    for sequence in before.map_or(1, |mark| mark.sequence + 1).. {
        let record = Record::Usage {
            instance: "web".into(),
            mark: UsageMark {
                sequence,
                hash: "cd".repeat(32),
            },
        };
        journal.append(&record, Durability::Synced).unwrap();
        println!("told {sequence}");
    }
}

#[test]
fn a_real_file_that_may_not_grow_is_as_it_was_and_grows_when_it_may() {
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("journal");
    drop(with_web(&path));
    let status = child("append_up_to_a_limit", &path).status().unwrap();
    assert!(status.success());
    let journal = Journal::open(&path).unwrap();
    assert_eq!(journal.cut, None);
    let mark = journal.journal.book().instances()["web"].usage.clone();
    assert_eq!(mark.unwrap().sequence, u64::MAX);
}

/// Not a test: a process whose files may not be longer than 64 KiB, so that the kernel itself takes a
/// part of a write and refuses the rest.
#[test]
#[ignore = "the body of a process that another test starts"]
fn append_up_to_a_limit() {
    let Some(path) = std::env::var_os("JOURNAL") else {
        return;
    };
    let limit = |bytes| {
        let limit = libc::rlimit {
            rlim_cur: bytes,
            rlim_max: libc::RLIM_INFINITY,
        };
        // SAFETY: setrlimit(2) reads one rlimit; SIGXFSZ is ignored so that write(2) fails instead.
        unsafe {
            libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
            assert_eq!(libc::setrlimit(libc::RLIMIT_FSIZE, &limit), 0);
        }
    };
    limit(64 << 10);
    let mut journal = Journal::open(Path::new(&path)).unwrap().journal;
    let record = |sequence| Record::Usage {
        instance: "web".into(),
        mark: UsageMark {
            sequence,
            hash: "ef".repeat(200),
        },
    };
    let mut sequence = 0;
    let error = loop {
        sequence += 1;
        if let Err(error) = journal.append(&record(sequence), Durability::Synced) {
            break error;
        }
    };
    assert!(
        crate::sentence(&error).contains("large"),
        "{}",
        crate::sentence(&error)
    );
    let length = fs::metadata(&path).unwrap().len();
    assert_eq!(length, journal.length());
    assert!(length < 64 << 10 && length > 63 << 10);
    assert!(
        journal
            .append(&record(sequence), Durability::Synced)
            .is_err()
    );
    limit(libc::RLIM_INFINITY);
    journal
        .append(&record(u64::MAX), Durability::Synced)
        .unwrap();
}
