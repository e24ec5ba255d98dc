//! The embedded registry: one SQLite file (WAL, `synchronous=FULL`), nothing to set up.
//!
//! ```text
//! commit, lease, watch ──queue──► writer thread ──► one SQLite transaction for all that wait
//! get, list ──► pool of reading connections (WAL: they see the last commit)
//! ```
//! Commits that wait together share one `fsync`: each sees those before it, and a conflict of one of
//! them touches no other. Leases are timed by the monotonic clock of this process; after a restart each
//! has its whole time again, since nobody could keep it alive meanwhile.

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rusqlite::{Connection, OpenFlags, OptionalExtension, params};
use tokio::sync::{mpsc as async_mpsc, oneshot};

use super::{
    Change, Entry, LIST_MAX, LeaseId, Listing, Registry, RegistryError, Reply, Revision, Seen,
    TRANSACTION_MAX, Transaction, WATCH_BACKLOG, Watch, after_prefix,
};

/// Most commits that share one `fsync`.
const BATCH_MAX: usize = 64;
/// How often expired leases are looked for.
const LEASE_TICK: Duration = Duration::from_millis(100);
/// Reading connections that are kept open.
const READERS_MAX: usize = 8;
/// Changes that are remembered for watches that begin in the past.
const HISTORY: usize = 8192;
/// How long opening waits for another process to let go of the file.
const LOCK_PATIENCE: Duration = Duration::from_secs(1);

/// Each brings the file from its index to the next version. They are never changed, only added to.
const MIGRATIONS: &[&str] = &["CREATE TABLE entry (
         key      TEXT PRIMARY KEY,
         value    BLOB NOT NULL,
         revision INTEGER NOT NULL,
         lease    INTEGER
     ) WITHOUT ROWID;
     CREATE INDEX entry_lease ON entry (lease) WHERE lease IS NOT NULL;
     CREATE TABLE lease (id INTEGER PRIMARY KEY AUTOINCREMENT, ttl_ms INTEGER NOT NULL);
     CREATE TABLE counter (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
     INSERT INTO counter VALUES ('revision', 0);"];

/// The registry in a file.
#[derive(Debug)]
pub struct SqliteRegistry {
    path: PathBuf,
    readers: Arc<Mutex<Vec<Connection>>>,
    /// Absent only while it is dropped.
    queue: Option<mpsc::Sender<Job>>,
    writer: Option<JoinHandle<()>>,
}

type Answer<T> = oneshot::Sender<Result<T, RegistryError>>;

enum Job {
    Commit(Transaction, Answer<Revision>),
    Grant(Duration, Answer<LeaseId>),
    KeepAlive(LeaseId, Answer<()>),
    Revoke(LeaseId, Answer<()>),
    Watch(String, Revision, Answer<Watch>),
}

fn broken(error: impl std::fmt::Display) -> RegistryError {
    RegistryError::Unavailable(error.to_string())
}

fn open_connection(path: &Path, flags: OpenFlags) -> rusqlite::Result<Connection> {
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(Duration::from_secs(10))?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    Ok(connection)
}

/// Brings a file to the present version.
fn migrate(connection: &mut Connection) -> Result<(), RegistryError> {
    let version: usize = connection
        .pragma_query_value(None, "user_version", |row| row.get(0))
        .map_err(broken)?;
    let Some(missing) = MIGRATIONS.get(version..) else {
        return Err(RegistryError::Unavailable(format!(
            "the file has version {version} and this program knows versions up to {}: use a newer one",
            MIGRATIONS.len()
        )));
    };
    for (step, sql) in missing.iter().enumerate() {
        let transaction = connection.transaction().map_err(broken)?;
        transaction.execute_batch(sql).map_err(broken)?;
        transaction
            .pragma_update(None, "user_version", version + step + 1)
            .map_err(broken)?;
        transaction.commit().map_err(broken)?;
    }
    Ok(())
}

impl SqliteRegistry {
    /// Opens a file, or makes it, readable by its owner alone.
    ///
    /// # Errors
    /// It cannot be used, is of a later version, or another process has it open for writing.
    pub fn open(path: &Path) -> Result<Self, RegistryError> {
        create_private(path).map_err(|error| {
            RegistryError::Unavailable(format!("{} cannot be made: {error}", path.display()))
        })?;
        let lock = lock_file(path)?;
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let mut connection = open_connection(path, flags).map_err(broken)?;
        connection
            .pragma_update(None, "journal_mode", "WAL")
            .map_err(broken)?;
        migrate(&mut connection)?;
        let (queue, jobs) = mpsc::channel();
        let mut writer = Writer::new(connection, lock).map_err(broken)?;
        let writer = thread::Builder::new()
            .name("registry".into())
            .spawn(move || writer.run(&jobs))
            .map_err(broken)?;
        Ok(Self {
            path: path.to_owned(),
            readers: Arc::default(),
            queue: Some(queue),
            writer: Some(writer),
        })
    }

    fn ask<T: Send + 'static>(&self, job: impl FnOnce(Answer<T>) -> Job) -> Reply<'_, T> {
        let (answer, answered) = oneshot::channel();
        let sent = self.queue.as_ref().map(|queue| queue.send(job(answer)));
        Box::pin(async move {
            sent.ok_or_else(|| broken("it is closed"))?
                .map_err(|_| broken("its thread has ended"))?;
            answered.await.map_err(|_| broken("its thread has ended"))?
        })
    }

    /// Reads on a thread that may wait for the disk.
    fn reading<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Reply<'_, T> {
        let (path, readers) = (self.path.clone(), Arc::clone(&self.readers));
        Box::pin(async move {
            let task = tokio::task::spawn_blocking(move || {
                let kept = lock(&readers).pop();
                let connection = match kept {
                    Some(connection) => connection,
                    None => {
                        let flags =
                            OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
                        open_connection(&path, flags)?
                    }
                };
                let result = connection
                    .unchecked_transaction()
                    .and_then(|_snapshot| read(&connection));
                let mut kept = lock(&readers);
                if result.is_ok() && kept.len() < READERS_MAX {
                    kept.push(connection);
                }
                result
            });
            task.await.map_err(broken)?.map_err(broken)
        })
    }
}

/// Closes the file: when this returns, another process can open it.
impl Drop for SqliteRegistry {
    fn drop(&mut self) {
        self.queue = None;
        if let Some(writer) = self.writer.take() {
            let _ = writer.join();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Takes the file for this process.
fn lock_file(path: &Path) -> Result<File, RegistryError> {
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    let file = File::create(Path::new(&name)).map_err(broken)?;
    // A program that its owner is starting has the lock as well for a moment, between fork and exec.
    let patience = Instant::now() + LOCK_PATIENCE;
    while file.try_lock().is_err() {
        if Instant::now() > patience {
            let why = format!("another process has {} open", path.display());
            return Err(RegistryError::Unavailable(why));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(file)
}

/// Writes a copy of a registry's file, also while a node works with it: as of one commit.
///
/// # Errors
/// It cannot be read, or the copy is there already or cannot be written.
pub fn backup(path: &Path, copy: &Path) -> Result<(), RegistryError> {
    if copy.exists() {
        return Err(RegistryError::Unavailable(format!(
            "{} is there already",
            copy.display()
        )));
    }
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let source = open_connection(path, flags).map_err(broken)?;
    let unfinished = copy.with_extension("unfinished");
    let made = create_private(&unfinished)
        .map_err(broken)
        .and_then(|()| copy_pages(&source, &unfinished).map_err(broken))
        .and_then(|()| check(&unfinished))
        .and_then(|()| std::fs::rename(&unfinished, copy).map_err(broken));
    if made.is_err() {
        let _ = std::fs::remove_file(&unfinished);
    }
    made
}

fn copy_pages(source: &Connection, copy: &Path) -> rusqlite::Result<()> {
    let mut target = Connection::open(copy)?;
    let backup = rusqlite::backup::Backup::new(source, &mut target)?;
    // All at once: a step that lets others write in between would begin again.
    backup.run_to_completion(std::ffi::c_int::MAX, Duration::from_millis(50), None)
}

/// Whether a file is a registry that this program can read.
fn check(path: &Path) -> Result<(), RegistryError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags).map_err(broken)?;
    let version: usize = connection
        .pragma_query_value(None, "user_version", |row| row.get(0))
        .map_err(broken)?;
    let sound: String = connection
        .pragma_query_value(None, "integrity_check", |row| row.get(0))
        .map_err(broken)?;
    if sound != "ok" || version == 0 || version > MIGRATIONS.len() {
        return Err(RegistryError::Unavailable(format!(
            "{} is no registry of this program: version {version}, {sound}",
            path.display()
        )));
    }
    Ok(())
}

/// Puts a backup in the place of a registry's file. No node may work with it; what was there is kept
/// beside it, with the ending `.before`.
///
/// # Errors
/// The backup is none, or a node has the file open.
pub fn restore(backup: &Path, path: &Path) -> Result<(), RegistryError> {
    check(backup)?;
    let _lock = lock_file(path)?;
    let fresh = path.with_extension("restoring");
    std::fs::copy(backup, &fresh).map_err(broken)?;
    let sync = File::open(&fresh).and_then(|file| file.sync_all());
    sync.map_err(broken)?;
    if path.exists() {
        // With what is only in the write-ahead log so far.
        let old = open_connection(path, OpenFlags::SQLITE_OPEN_READ_WRITE).map_err(broken)?;
        old.pragma_update(None, "journal_mode", "DELETE")
            .map_err(broken)?;
        drop(old);
        std::fs::rename(path, path.with_extension("before")).map_err(broken)?;
    }
    std::fs::rename(&fresh, path).map_err(broken)
}

fn create_private(path: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::OpenOptionsExt;
    std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(path)
        .map(drop)
}

fn entry_of(row: &rusqlite::Row<'_>) -> rusqlite::Result<Entry> {
    Ok(Entry {
        key: row.get(0)?,
        value: row.get(1)?,
        revision: row.get(2)?,
    })
}

fn revision_of(connection: &Connection) -> rusqlite::Result<Revision> {
    connection
        .prepare_cached("SELECT value FROM counter WHERE name = 'revision'")?
        .query_row([], |row| row.get(0))
}

fn list(
    connection: &Connection,
    sql: &str,
    (from, to): (String, String),
    limit: usize,
) -> rusqlite::Result<Listing> {
    let limit = limit.clamp(1, LIST_MAX);
    let mut statement = connection.prepare_cached(sql)?;
    let rows = statement.query_map(params![from, to, limit + 1], entry_of)?;
    let mut entries = rows.collect::<rusqlite::Result<Vec<Entry>>>()?;
    let has_more = entries.len() > limit;
    entries.truncate(limit);
    Ok(Listing {
        entries,
        has_more,
        revision: revision_of(connection)?,
    })
}

impl Registry for SqliteRegistry {
    fn get_many<'a>(&'a self, keys: &'a [String]) -> Reply<'a, Vec<Option<Entry>>> {
        let keys = keys.to_vec();
        self.reading(move |connection| {
            let mut statement = connection
                .prepare_cached("SELECT key, value, revision FROM entry WHERE key = ?1")?;
            let read = |key: &String| statement.query_row([key], entry_of).optional();
            keys.iter().map(read).collect()
        })
    }

    fn list<'a>(
        &'a self,
        prefix: &'a str,
        after: Option<&'a str>,
        limit: usize,
    ) -> Reply<'a, Listing> {
        // A key is greater than its own prefix, and the smallest greater text ends in a NUL.
        let from = match after {
            Some(after) if after >= prefix => format!("{after}\0"),
            _ => prefix.to_owned(),
        };
        let range = (from, after_prefix(prefix));
        let sql = "SELECT key, value, revision FROM entry WHERE key >= ?1 AND key < ?2
                   ORDER BY key LIMIT ?3";
        self.reading(move |connection| list(connection, sql, range, limit))
    }

    fn list_back<'a>(
        &'a self,
        prefix: &'a str,
        before: Option<&'a str>,
        limit: usize,
    ) -> Reply<'a, Listing> {
        let end = after_prefix(prefix);
        let to = match before {
            Some(before) if before < end.as_str() => before.to_owned(),
            _ => end,
        };
        let range = (prefix.to_owned(), to);
        let sql = "SELECT key, value, revision FROM entry WHERE key >= ?1 AND key < ?2
                   ORDER BY key DESC LIMIT ?3";
        self.reading(move |connection| list(connection, sql, range, limit))
    }

    fn commit(&self, transaction: Transaction) -> Reply<'_, Revision> {
        let size = transaction.changes.len().max(transaction.compares.len());
        if size > TRANSACTION_MAX {
            return Box::pin(async move {
                Err(broken(format!(
                    "a transaction of {size} parts is too large, at most {TRANSACTION_MAX} are allowed"
                )))
            });
        }
        self.ask(|answer| Job::Commit(transaction, answer))
    }

    fn grant(&self, time_to_live: Duration) -> Reply<'_, LeaseId> {
        self.ask(|answer| Job::Grant(time_to_live, answer))
    }

    fn keep_alive(&self, lease: LeaseId) -> Reply<'_, ()> {
        self.ask(|answer| Job::KeepAlive(lease, answer))
    }

    fn revoke(&self, lease: LeaseId) -> Reply<'_, ()> {
        self.ask(|answer| Job::Revoke(lease, answer))
    }

    fn watch<'a>(&'a self, prefix: &'a str, after: Revision) -> Reply<'a, Watch> {
        let prefix = prefix.to_owned();
        self.ask(move |answer| Job::Watch(prefix, after, answer))
    }
}

struct Watcher {
    prefix: String,
    sender: async_mpsc::Sender<Result<Seen, RegistryError>>,
}

struct Lease {
    time_to_live: Duration,
    ends: Instant,
}

/// The only one that writes.
struct Writer {
    connection: Connection,
    /// Held while the file is open: two processes would not see each other's changes.
    _lock: File,
    revision: Revision,
    leases: HashMap<LeaseId, Lease>,
    watchers: Vec<Watcher>,
    /// The last changes, for watches that begin in the past.
    history: VecDeque<Seen>,
    /// Changes after this revision are all in `history`.
    history_from: Revision,
}

impl Writer {
    fn new(connection: Connection, lock: File) -> rusqlite::Result<Self> {
        let revision = revision_of(&connection)?;
        let now = Instant::now();
        let leases = {
            let mut statement = connection.prepare("SELECT id, ttl_ms FROM lease")?;
            let rows = statement.query_map([], |row| {
                let time_to_live = Duration::from_millis(row.get(1)?);
                let ends = now + time_to_live;
                Ok((row.get(0)?, Lease { time_to_live, ends }))
            })?;
            rows.collect::<rusqlite::Result<HashMap<_, _>>>()?
        };
        Ok(Self {
            connection,
            _lock: lock,
            revision,
            leases,
            watchers: Vec::new(),
            history: VecDeque::new(),
            history_from: revision,
        })
    }

    fn run(&mut self, jobs: &mpsc::Receiver<Job>) {
        loop {
            match jobs.recv_timeout(LEASE_TICK) {
                Ok(job) => self.take(job, jobs),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            self.expire();
        }
    }

    fn take(&mut self, job: Job, jobs: &mpsc::Receiver<Job>) {
        let mut commits = Vec::new();
        let mut next = Some(job);
        // Whoever is not a commit waits until those before it are done: all see one order.
        while let Some(job) = next.take() {
            match job {
                Job::Commit(transaction, answer) => commits.push((transaction, answer)),
                other => {
                    self.commit(std::mem::take(&mut commits));
                    self.other(other);
                }
            }
            if commits.len() < BATCH_MAX {
                next = jobs.try_recv().ok();
            }
        }
        self.commit(commits);
    }

    fn other(&mut self, job: Job) {
        // Whoever asked may be gone: then nobody needs the answer.
        match job {
            Job::Commit(..) => {}
            Job::Grant(time_to_live, answer) => {
                let _ = answer.send(self.grant(time_to_live).map_err(broken));
            }
            Job::KeepAlive(id, answer) => {
                let kept = match self.leases.get_mut(&id) {
                    Some(lease) => {
                        lease.ends = Instant::now() + lease.time_to_live;
                        Ok(())
                    }
                    None => Err(RegistryError::LeaseExpired(id)),
                };
                let _ = answer.send(kept);
            }
            Job::Revoke(id, answer) => {
                let _ = answer.send(self.revoke(id).map_err(broken));
            }
            Job::Watch(prefix, after, answer) => {
                let _ = answer.send(self.watch(prefix, after));
            }
        }
    }

    /// Does transactions in their order, all with one `fsync`.
    fn commit(&mut self, commits: Vec<(Transaction, Answer<Revision>)>) {
        if commits.is_empty() {
            return;
        }
        let before = self.revision;
        let mut seen = Vec::new();
        let result = self.commit_all(&commits, &mut seen);
        let results = match result {
            Ok(results) => results,
            Err(error) => {
                self.revision = before;
                let _ = self.connection.execute_batch("ROLLBACK");
                seen.clear();
                commits.iter().map(|_| Err(broken(&error))).collect()
            }
        };
        self.tell(seen);
        for ((_, answer), result) in commits.into_iter().zip(results) {
            let _ = answer.send(result);
        }
    }

    fn commit_all(
        &mut self,
        commits: &[(Transaction, Answer<Revision>)],
        seen: &mut Vec<Seen>,
    ) -> rusqlite::Result<Vec<Result<Revision, RegistryError>>> {
        self.connection.execute_batch("BEGIN IMMEDIATE")?;
        let mut results = Vec::with_capacity(commits.len());
        for (transaction, _) in commits {
            results.push(match self.refusal(transaction)? {
                Some(refusal) => Err(refusal),
                None => {
                    self.apply(&transaction.changes, seen)?;
                    Ok(self.revision)
                }
            });
        }
        self.save_revision()?;
        self.connection.execute_batch("COMMIT")?;
        Ok(results)
    }

    fn save_revision(&self) -> rusqlite::Result<()> {
        self.connection
            .prepare_cached("UPDATE counter SET value = ?1 WHERE name = 'revision'")?
            .execute([self.revision])
            .map(drop)
    }

    /// Why a transaction cannot be done now.
    fn refusal(&self, transaction: &Transaction) -> rusqlite::Result<Option<RegistryError>> {
        let mut statement = self
            .connection
            .prepare_cached("SELECT revision FROM entry WHERE key = ?1")?;
        for (key, wanted) in &transaction.compares {
            let found: Option<Revision> =
                statement.query_row([key], |row| row.get(0)).optional()?;
            if found.unwrap_or(0) != *wanted {
                return Ok(Some(RegistryError::Conflict(key.clone())));
            }
        }
        let expired = transaction.changes.iter().find_map(|change| match change {
            Change::Put {
                lease: Some(id), ..
            } if !self.leases.contains_key(id) => Some(*id),
            _ => None,
        });
        Ok(expired.map(RegistryError::LeaseExpired))
    }

    fn apply(&mut self, changes: &[Change], seen: &mut Vec<Seen>) -> rusqlite::Result<()> {
        self.revision += 1;
        let mut put = self.connection.prepare_cached(
            "INSERT INTO entry (key, value, revision, lease) VALUES (?1, ?2, ?3, ?4)
             ON CONFLICT (key) DO UPDATE SET
             value = excluded.value, revision = excluded.revision, lease = excluded.lease",
        )?;
        let mut delete = self
            .connection
            .prepare_cached("DELETE FROM entry WHERE key = ?1")?;
        for change in changes {
            let value = match change {
                Change::Put { key, value, lease } => {
                    put.execute(params![key, value, self.revision, lease])?;
                    Some(value.clone())
                }
                Change::Delete { key } => {
                    if delete.execute([key])? == 0 {
                        continue;
                    }
                    None
                }
            };
            seen.push(Seen {
                key: change.key().to_owned(),
                value,
                revision: self.revision,
            });
        }
        Ok(())
    }

    fn grant(&mut self, time_to_live: Duration) -> rusqlite::Result<LeaseId> {
        let ttl_ms = u64::try_from(time_to_live.as_millis()).unwrap_or(u64::MAX);
        self.connection
            .execute("INSERT INTO lease (ttl_ms) VALUES (?1)", [ttl_ms])?;
        let id = LeaseId::try_from(self.connection.last_insert_rowid()).unwrap_or_default();
        let ends = Instant::now() + time_to_live;
        self.leases.insert(id, Lease { time_to_live, ends });
        Ok(id)
    }

    fn revoke(&mut self, id: LeaseId) -> rusqlite::Result<()> {
        let keys = {
            let mut statement = self
                .connection
                .prepare_cached("SELECT key FROM entry WHERE lease = ?1")?;
            let rows = statement.query_map([id], |row| row.get::<_, String>(0))?;
            rows.collect::<rusqlite::Result<Vec<_>>>()?
        };
        let deletes: Vec<Change> = keys.into_iter().map(|key| Change::Delete { key }).collect();
        let before = self.revision;
        let mut seen = Vec::new();
        let done = self.revoke_all(id, &deletes, &mut seen);
        if done.is_err() {
            self.revision = before;
            let _ = self.connection.execute_batch("ROLLBACK");
            return done;
        }
        self.leases.remove(&id);
        self.tell(seen);
        Ok(())
    }

    fn revoke_all(
        &mut self,
        id: LeaseId,
        deletes: &[Change],
        seen: &mut Vec<Seen>,
    ) -> rusqlite::Result<()> {
        self.connection.execute_batch("BEGIN IMMEDIATE")?;
        if !deletes.is_empty() {
            self.apply(deletes, seen)?;
            self.save_revision()?;
        }
        self.connection
            .execute("DELETE FROM lease WHERE id = ?1", [id])?;
        self.connection.execute_batch("COMMIT")
    }

    fn expire(&mut self) {
        let now = Instant::now();
        let over = |(id, lease): (&LeaseId, &Lease)| (lease.ends <= now).then_some(*id);
        let expired: Vec<LeaseId> = self.leases.iter().filter_map(over).collect();
        for id in expired {
            // A file that cannot be written is tried again at the next tick.
            let _ = self.revoke(id);
        }
    }

    fn watch(&mut self, prefix: String, after: Revision) -> Result<Watch, RegistryError> {
        if after < self.history_from {
            return Err(RegistryError::Missed(format!(
                "revision {after} is too long ago"
            )));
        }
        let (sender, receiver) = async_mpsc::channel(WATCH_BACKLOG.max(HISTORY));
        let missed = self.history.iter();
        for seen in missed.filter(|seen| seen.revision > after && seen.key.starts_with(&prefix)) {
            // The channel holds as much as the history.
            let _ = sender.try_send(Ok(seen.clone()));
        }
        self.watchers.push(Watcher { prefix, sender });
        Ok(Watch::new(receiver))
    }

    /// Tells watchers. One that is too far behind loses its channel, and sees that it has ended.
    fn tell(&mut self, seen: Vec<Seen>) {
        for change in seen {
            self.watchers.retain(|watcher| {
                !watcher.sender.is_closed()
                    && (!change.key.starts_with(&watcher.prefix)
                        || watcher.sender.try_send(Ok(change.clone())).is_ok())
            });
            self.history.push_back(change);
        }
        while self.history.len() > HISTORY {
            if let Some(oldest) = self.history.pop_front() {
                self.history_from = oldest.revision;
            }
        }
    }
}
