//! The journal on a disk that fails, fills, and loses power at any point: what was acknowledged as
//! synced is there afterwards, what is there is a beginning of what was appended, and nothing else.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use concertina_api::instance::InstanceSize;
use concertina_api::policy::Axis;
use concertina_api::vm::Outcome;
use concertina_api::{Bytes, Cpus};
use proptest::prelude::*;

use super::disk::{Disk, DiskFile};
use super::tests::{claim, moment};
use super::*;
use crate::policy::Size;

/// Sectors reach the disk one by one; small ones, so that there are many of them in a short file.
const SECTOR: usize = 64;

#[derive(Debug, Default, Clone)]
struct Inode {
    data: Vec<u8>,
    /// What is on the disk.
    safe: Vec<u8>,
}

#[derive(Debug, Default)]
struct State {
    inodes: Vec<Inode>,
    names: BTreeMap<PathBuf, usize>,
    safe_names: BTreeMap<PathBuf, usize>,
    /// Bytes that may still be written.
    room: Option<usize>,
    /// Fails so many fsyncs.
    bad_syncs: u32,
    /// Changes until the power is lost.
    changes_left: Option<u32>,
    syncs: u32,
    /// How long an fsync takes.
    sync_time: Duration,
}

/// A disk in memory.
#[derive(Debug, Clone, Default)]
pub(crate) struct MemoryDisk(Arc<Mutex<State>>);

#[derive(Debug)]
struct MemoryFile(MemoryDisk, usize);

impl MemoryDisk {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    /// The journal on this disk, as an agent that starts finds it.
    pub(crate) fn journal(&self) -> Journal {
        let opened = Journal::open_on(Box::new(self.clone()), Path::new(PATH)).unwrap();
        opened.journal
    }

    /// So many bytes may still be written; `None`: as many as anybody likes.
    pub(crate) fn set_room(&self, room: Option<usize>) {
        self.state().room = room;
    }

    /// One more change; fails when there is no power any longer.
    fn change(&self) -> io::Result<MutexGuard<'_, State>> {
        let mut state = self.state();
        match &mut state.changes_left {
            Some(0) => return Err(io::Error::other("no power")),
            Some(left) => *left -= 1,
            None => {}
        }
        Ok(state)
    }

    /// Each fsync takes so long.
    pub(super) fn slow_down(&self, sync_time: Duration) {
        self.state().sync_time = sync_time;
    }

    pub(super) fn syncs(&self) -> u32 {
        self.state().syncs
    }

    /// Power is back: of what was not synced, some sectors, lengths and names are there and others
    /// are not.
    fn restart(&self, luck: &mut impl FnMut() -> bool) {
        let mut state = self.state();
        state.changes_left = None;
        state.room = None;
        state.bad_syncs = 0;
        if luck() {
            state.safe_names = state.names.clone();
        }
        state.names = state.safe_names.clone();
        for inode in &mut state.inodes {
            let length = if luck() {
                inode.data.len()
            } else {
                inode.safe.len()
            };
            let mut after = inode.safe.clone();
            after.resize(length, 0);
            for (number, sector) in after.chunks_mut(SECTOR).enumerate() {
                let written = inode.data.get(number * SECTOR..).unwrap_or_default();
                if luck() {
                    let known = sector.len().min(written.len());
                    sector[..known].copy_from_slice(&written[..known]);
                }
            }
            inode.data = after.clone();
            inode.safe = after;
        }
    }
}

impl Disk for MemoryDisk {
    fn open(&self, path: &Path) -> io::Result<Option<Box<dyn DiskFile>>> {
        let found = self.state().names.get(path).copied();
        Ok(found.map(|inode| Box::new(MemoryFile(self.clone(), inode)) as Box<dyn DiskFile>))
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let mut state = self.change()?;
        state.inodes.push(Inode::default());
        let inode = state.inodes.len() - 1;
        state.names.insert(path.to_owned(), inode);
        Ok(Box::new(MemoryFile(self.clone(), inode)))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.change()?;
        let inode = state.names.remove(from).unwrap();
        state.names.insert(to.to_owned(), inode);
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.change()?.names.remove(path);
        Ok(())
    }

    fn sync_folder_of(&self, _: &Path) -> io::Result<()> {
        let mut state = self.change()?;
        if state.bad_syncs > 0 {
            state.bad_syncs -= 1;
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        state.safe_names = state.names.clone();
        Ok(())
    }
}

impl DiskFile for MemoryFile {
    fn read_all(&mut self) -> io::Result<Vec<u8>> {
        Ok(self.0.state().inodes[self.1].data.clone())
    }

    fn write_at(&mut self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let mut state = self.0.change()?;
        let fits = state.room.map_or(bytes.len(), |room| room.min(bytes.len()));
        state.room = state.room.map(|room| room - fits);
        let data = &mut state.inodes[self.1].data;
        data.resize(offset as usize, 0);
        data.extend_from_slice(&bytes[..fits]);
        if fits < bytes.len() {
            return Err(io::Error::from_raw_os_error(libc::ENOSPC));
        }
        Ok(())
    }

    fn cut(&mut self, length: u64) -> io::Result<()> {
        let mut state = self.0.change()?;
        let data = &mut state.inodes[self.1].data;
        let freed = data.len().saturating_sub(length as usize);
        data.resize(length as usize, 0);
        state.room = state.room.map(|room| room + freed);
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        let pause = self.0.state().sync_time;
        std::thread::sleep(pause);
        let mut state = self.0.change()?;
        state.syncs += 1;
        let inode = self.1;
        if state.bad_syncs > 0 {
            state.bad_syncs -= 1;
            // What could not be written is dropped, and nothing tells so later.
            state.inodes[inode].data = state.inodes[inode].safe.clone();
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        state.inodes[inode].safe = state.inodes[inode].data.clone();
        Ok(())
    }
}

/// Something that an agent does to its journal, or that happens to its disk.
#[derive(Debug, Clone)]
enum Step {
    Append { what: u8, who: u8, synced: bool },
    End { who: u8 },
    Sync,
    Compact,
    DiskFull { room: usize },
    Room,
    BadSync,
    PowerLoss { after: u32, luck: Vec<bool> },
}

fn step() -> impl Strategy<Value = Step> {
    let luck = prop::collection::vec(any::<bool>(), 1..40);
    prop_oneof![
        12 => (0..7u8, 0..3u8, any::<bool>())
            .prop_map(|(what, who, synced)| Step::Append { what, who, synced }),
        2 => (0..3u8).prop_map(|who| Step::End { who }),
        1 => Just(Step::Sync),
        1 => Just(Step::Compact),
        1 => (0..300usize).prop_map(|room| Step::DiskFull { room }),
        2 => Just(Step::Room),
        1 => Just(Step::BadSync),
        2 => (0..12u32, luck).prop_map(|(after, luck)| Step::PowerLoss { after, luck }),
    ]
}

/// A record that an agent could write at this point; it may not fit.
fn record(book: &HostBook, what: u8, who: u8) -> Record {
    let instance = ["db", "mail", "web"][usize::from(who)].to_owned();
    let size = Size {
        cpus: Cpus(1500),
        memory: Bytes::mib(512),
    };
    let intent = |action| {
        Record::Intent(Intent {
            id: book.next_intent(),
            instance: instance.clone(),
            action,
            key: Some(format!("key-{}", book.next_intent())),
            at: moment(1),
        })
    };
    let resize = |before: InstanceSize, target: InstanceSize| Action::Resize {
        before,
        target,
        cause: "manual".into(),
        policy_version: 3,
    };
    match what {
        0 | 1 => match book.open_of(&instance).next() {
            Some(open) => Record::Outcome(Conclusion {
                id: open.id,
                outcome: if what == 0 {
                    Outcome::Applied
                } else {
                    Outcome::RolledBack
                },
                after: InstanceSize {
                    cpus: None,
                    memory: Some(Bytes::mib(300 + u64::from(what))),
                    disk_rate: None,
                    net_rate: None,
                },
                reason: None,
                at: moment(2),
            }),
            None => intent(Action::Launch { claim: claim(1) }),
        },
        2 => intent(resize(
            InstanceSize {
                cpus: Some(Cpus(500)),
                memory: None,
                disk_rate: None,
                net_rate: None,
            },
            InstanceSize {
                cpus: Some(Cpus(2000)),
                memory: None,
                disk_rate: None,
                net_rate: None,
            },
        )),
        3 => intent(resize(
            InstanceSize {
                cpus: None,
                memory: Some(Bytes::mib(512)),
                disk_rate: None,
                net_rate: None,
            },
            InstanceSize {
                cpus: None,
                memory: Some(Bytes::mib(256)),
                disk_rate: None,
                net_rate: None,
            },
        )),
        4 => Record::Seen { instance, size },
        5 => Record::Usage {
            instance,
            mark: UsageMark {
                sequence: book.next_intent().0,
                hash: "ab".repeat(32),
            },
        },
        _ => Record::Stuck {
            instance,
            axis: Axis::Memory,
            stuck: true,
        },
    }
}

/// An agent with its disk, and what it was told.
struct Host {
    disk: MemoryDisk,
    journal: Journal,
    /// The book after each acknowledged record.
    history: Vec<HostBook>,
    /// The last one that must survive.
    safe: usize,
    /// What may be there though the agent was told that it failed, or was told nothing.
    perhaps: Vec<HostBook>,
}

const PATH: &str = "state/journal";

impl Host {
    fn new() -> Self {
        let disk = MemoryDisk::default();
        Self {
            journal: disk.journal(),
            disk,
            history: vec![HostBook::default()],
            safe: 0,
            perhaps: Vec::new(),
        }
    }

    fn append(&mut self, records: &[Record], durability: Durability) {
        let mut after = Vec::new();
        let mut book = self.journal.book().clone();
        for record in records {
            if book.apply(record).is_ok() {
                after.push(book.clone());
            }
        }
        let results = self.journal.append_batch(records, durability);
        let failed = |result: &&Result<_, JournalError>| matches!(result, Err(error) if !matches!(error, JournalError::Misfit(_)));
        if results.iter().any(|result| failed(&result)) {
            assert!(results.iter().all(|result| result.is_err()));
            self.perhaps = after;
        } else {
            assert_eq!(results.iter().filter(|r| r.is_ok()).count(), after.len());
            self.history.extend(after);
            if results.iter().all(Result::is_err) {
                return;
            }
            self.perhaps.clear();
            if durability == Durability::Synced {
                self.safe = self.history.len() - 1;
            }
        }
        assert_eq!(Some(self.journal.book()), self.history.last());
    }

    fn all_is_safe(&mut self) {
        self.safe = self.history.len() - 1;
        self.perhaps.clear();
    }

    fn power_loss(&mut self, luck: &[bool]) {
        let mut turns = luck.iter().cycle();
        self.disk.restart(&mut || *turns.next().unwrap());
        let journal = self.disk.journal();
        let found = journal.book().clone();
        let known = self.history[self.safe..].iter().chain(&self.perhaps);
        assert!(
            known.clone().any(|book| *book == found),
            "found {found:#?}, which is none of the last {} books",
            known.count()
        );
        self.journal = journal;
        self.history = vec![found];
        self.all_is_safe();
    }

    fn take(&mut self, step: &Step) {
        match step {
            Step::Append { what, who, synced } => {
                let record = record(self.journal.book(), *what, *who);
                let durability = if *synced {
                    Durability::Synced
                } else {
                    Durability::Written
                };
                self.append(&[record], durability);
            }
            Step::End { who } => {
                let name = ["db", "mail", "web"][usize::from(*who)];
                let records = self
                    .journal
                    .book()
                    .records_of_end(name, "it is gone", &moment(3));
                self.append(&records, Durability::Synced);
                if self.perhaps.is_empty() {
                    assert!(!self.journal.book().instances().contains_key(name));
                }
            }
            Step::Sync => {
                if self.journal.sync().is_ok() {
                    self.all_is_safe();
                }
            }
            Step::Compact => {
                if self.journal.compact().is_ok() {
                    self.all_is_safe();
                }
            }
            Step::DiskFull { room } => self.disk.state().room = Some(*room),
            Step::Room => self.disk.state().room = None,
            Step::BadSync => self.disk.state().bad_syncs = 1,
            Step::PowerLoss { after, .. } => {
                self.disk.state().changes_left = Some(*after);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]
    #[test]
    fn what_was_acknowledged_survives_whatever_happens(
        steps in prop::collection::vec(step(), 1..60),
    ) {
        let mut host = Host::new();
        let mut luck = None;
        for step in &steps {
            host.take(step);
            if let Step::PowerLoss { luck: next, .. } = step {
                luck = luck.or(Some(next));
            }
            // The agent goes on until it notices.
            if host.disk.state().changes_left == Some(0) && let Some(luck) = luck.take() {
                host.power_loss(luck);
            }
        }
        host.power_loss(luck.unwrap_or(&vec![true]));
        // And with room and power everything works again.
        let id = IntentId(1000);
        host.append(&[Record::NextIntent { id }], Durability::Synced);
        prop_assert_eq!(host.safe, 1);
    }
}

#[test]
fn a_full_disk_fails_the_append_and_not_the_journal() {
    let mut host = Host::new();
    let launch = record(host.journal.book(), 0, 2);
    host.disk.state().room = Some(40);
    let length = host.journal.length();
    let error = host
        .journal
        .append(&launch, Durability::Synced)
        .unwrap_err();
    assert!(crate::sentence(&error).contains("state/journal"), "{error}");
    assert!(
        crate::sentence(&error).contains("space"),
        "{}",
        crate::sentence(&error)
    );
    assert_eq!(host.journal.length(), length);
    host.disk.state().room = None;
    host.journal.append(&launch, Durability::Synced).unwrap();
    assert_eq!(host.journal.book().instances().len(), 1);
}

#[test]
fn after_a_failed_fsync_the_book_is_written_to_another_file_before_anything_is_acknowledged() {
    let mut host = Host::new();
    let launch = record(host.journal.book(), 0, 2);
    host.append(&[launch], Durability::Synced);
    // Written and not synced: the failed fsync drops it from the kernel's hands.
    let seen = record(host.journal.book(), 4, 2);
    host.append(&[seen], Durability::Written);
    host.disk.state().bad_syncs = 1;
    let mark = record(host.journal.book(), 5, 2);
    host.append(std::slice::from_ref(&mark), Durability::Synced);
    assert_eq!(host.perhaps.len(), 1, "the failure was told");
    host.append(&[mark], Durability::Synced);
    host.power_loss(&[false]);
    assert!(host.journal.book().instances()["web"].usage.is_some());
}

#[test]
fn compaction_keeps_the_book_and_shortens_the_file() {
    let mut host = Host::new();
    for what in [0, 0, 3, 4, 5, 5, 5, 6] {
        let record = record(host.journal.book(), what, 2);
        host.append(&[record], Durability::Written);
    }
    let (book, length) = (host.journal.book().clone(), host.journal.length());
    assert_eq!(book.open().count(), 1);
    host.journal.compact().unwrap();
    assert!(host.journal.length() < length);
    host.all_is_safe();
    host.power_loss(&[false]);
    assert_eq!(host.journal.book(), &book);
}
