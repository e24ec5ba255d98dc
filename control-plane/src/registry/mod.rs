//! Where the control plane keeps everything: keys with values, changed in transactions that say what
//! they have read.
//!
//! ```text
//!            ┌─ get, list      as of the last commit
//! Registry ──┼─ commit         all of it or nothing, if what was compared is still so
//!            ├─ lease          keys that go away when their holder stops saying that it lives
//!            └─ watch          each change, in order
//! ```
//! Two implementations: [`sqlite`] in this process, for one node and no set-up, and [`etcd`] for several
//! nodes. One suite of tests (`suite`) holds both to the same behaviour. Values are JSON of the types
//! in [`crate::model`]; this module does not look into them.

pub mod etcd;
pub mod sqlite;
#[cfg(test)]
mod suite;

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;

/// A number that grows with each commit; 0 stands for "there is no such key".
pub type Revision = u64;
/// An answer that comes later.
pub type Reply<'a, T> = Pin<Box<dyn Future<Output = Result<T, RegistryError>> + Send + 'a>>;

/// Most keys that one [`Registry::list`] gives.
pub const LIST_MAX: usize = 1000;
/// Most comparisons, and most changes, of one transaction: what etcd takes by default.
pub const TRANSACTION_MAX: usize = 128;
/// Changes that a watcher may be behind before it has to list again.
pub const WATCH_BACKLOG: usize = 4096;

/// Why the registry did not do it.
#[derive(Debug, Clone, thiserror::Error)]
pub enum RegistryError {
    /// Something that the transaction had compared has changed: read again, and decide again.
    #[error("'{0}' was changed by somebody else in the meantime")]
    Conflict(String),
    /// A lease that has expired or was never granted.
    #[error("Lease {0} has expired")]
    LeaseExpired(LeaseId),
    /// A watch that cannot go on without a gap: list again.
    #[error("Changes were missed: {0}")]
    Missed(String),
    /// A stored value that is not what it should be.
    #[error("The stored value of '{key}' cannot be read: {why}")]
    Value {
        /// Its key.
        key: String,
        /// What is wrong.
        why: String,
    },
    /// The store itself does not work.
    #[error("The registry does not answer: {0}")]
    Unavailable(String),
}

/// A lease.
pub type LeaseId = u64;

/// A key with its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The key.
    pub key: String,
    /// The value.
    pub value: Vec<u8>,
    /// The revision of its last change.
    pub revision: Revision,
}

impl Entry {
    /// The value as what it should be.
    ///
    /// # Errors
    /// It is something else.
    pub fn read<T: DeserializeOwned>(&self) -> Result<T, RegistryError> {
        read_value(&self.key, &self.value)
    }
}

/// A stored value as what it should be.
pub(crate) fn read_value<T: DeserializeOwned>(key: &str, value: &[u8]) -> Result<T, RegistryError> {
    serde_json::from_slice(value).map_err(|error| RegistryError::Value {
        key: key.to_owned(),
        why: error.to_string(),
    })
}

/// One change of a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Sets a key.
    Put {
        /// The key.
        key: String,
        /// Its value.
        value: Vec<u8>,
        /// The lease with which it goes away.
        lease: Option<LeaseId>,
    },
    /// Removes a key; one that is not there is no error.
    Delete {
        /// The key.
        key: String,
    },
}

impl Change {
    /// Its key.
    pub fn key(&self) -> &str {
        match self {
            Self::Put { key, .. } | Self::Delete { key } => key,
        }
    }
}

/// What is done together, if what was read is still so. A key may be changed once in it.
#[derive(Debug, Clone, Default)]
pub struct Transaction {
    /// Keys with the revision that they must have.
    pub compares: Vec<(String, Revision)>,
    /// What is done.
    pub changes: Vec<Change>,
}

impl Transaction {
    /// An empty one.
    pub fn new() -> Self {
        Self::default()
    }

    /// Only if the key still has this revision (0: does not exist).
    pub fn compare(&mut self, key: impl Into<String>, revision: Revision) -> &mut Self {
        self.compares.push((key.into(), revision));
        self
    }

    /// Only if the key does not exist.
    pub fn absent(&mut self, key: impl Into<String>) -> &mut Self {
        self.compare(key, 0)
    }

    /// Sets a key to a value as JSON.
    ///
    /// # Errors
    /// The value has no JSON.
    pub fn put<T: Serialize + ?Sized>(
        &mut self,
        key: impl Into<String>,
        value: &T,
    ) -> Result<&mut Self, RegistryError> {
        self.put_leased(key, value, None)
    }

    /// [`Self::put`] with a lease.
    ///
    /// # Errors
    /// The value has no JSON.
    pub fn put_leased<T: Serialize + ?Sized>(
        &mut self,
        key: impl Into<String>,
        value: &T,
        lease: Option<LeaseId>,
    ) -> Result<&mut Self, RegistryError> {
        let key = key.into();
        let value = serde_json::to_vec(value).map_err(|error| RegistryError::Value {
            key: key.clone(),
            why: error.to_string(),
        })?;
        self.changes.push(Change::Put { key, value, lease });
        Ok(self)
    }

    /// Removes a key.
    pub fn delete(&mut self, key: impl Into<String>) -> &mut Self {
        self.changes.push(Change::Delete { key: key.into() });
        self
    }
}

/// A change that was committed, as a watcher sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// The key.
    pub key: String,
    /// Its value; absent: it was removed.
    pub value: Option<Vec<u8>>,
    /// The revision of the commit.
    pub revision: Revision,
}

/// Changes under a prefix. It ends with an error when it cannot go on without a gap.
#[derive(Debug)]
pub struct Watch {
    receiver: mpsc::Receiver<Result<Seen, RegistryError>>,
}

impl Watch {
    pub(crate) fn new(receiver: mpsc::Receiver<Result<Seen, RegistryError>>) -> Self {
        Self { receiver }
    }

    /// The next change.
    ///
    /// # Errors
    /// Changes were missed, or the store is gone: list again, and watch from there.
    pub async fn next(&mut self) -> Result<Seen, RegistryError> {
        match self.receiver.recv().await {
            Some(seen) => seen,
            None => Err(RegistryError::Missed("the watch has ended".into())),
        }
    }
}

/// A list of keys and the revision that it is as of.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Listing {
    /// In the order of their keys' bytes.
    pub entries: Vec<Entry>,
    /// Whether there are more behind the last one.
    pub has_more: bool,
    /// A watch after this revision sees whatever is not in the list.
    pub revision: Revision,
}

/// The store.
pub trait Registry: Send + Sync + std::fmt::Debug {
    /// Reads keys, all as of the same commit.
    fn get_many<'a>(&'a self, keys: &'a [String]) -> Reply<'a, Vec<Option<Entry>>>;

    /// Reads the keys with a prefix that come after a key, at most `limit` and [`LIST_MAX`].
    fn list<'a>(
        &'a self,
        prefix: &'a str,
        after: Option<&'a str>,
        limit: usize,
    ) -> Reply<'a, Listing>;

    /// The same, from the last key backwards, before a key.
    fn list_back<'a>(
        &'a self,
        prefix: &'a str,
        before: Option<&'a str>,
        limit: usize,
    ) -> Reply<'a, Listing>;

    /// Does a transaction: durably when it answers.
    fn commit(&self, transaction: Transaction) -> Reply<'_, Revision>;

    /// Grants a lease that ends when it is not kept alive for so long.
    fn grant(&self, time_to_live: Duration) -> Reply<'_, LeaseId>;

    /// Says that a lease's holder lives.
    fn keep_alive(&self, lease: LeaseId) -> Reply<'_, ()>;

    /// Ends a lease and removes its keys at once.
    fn revoke(&self, lease: LeaseId) -> Reply<'_, ()>;

    /// Shows each change under a prefix after a revision.
    fn watch<'a>(&'a self, prefix: &'a str, after: Revision) -> Reply<'a, Watch>;
}

impl dyn Registry + '_ {
    /// Reads one key.
    ///
    /// # Errors
    /// The store does not work.
    pub async fn get(&self, key: impl Into<String>) -> Result<Option<Entry>, RegistryError> {
        let keys = [key.into()];
        Ok(self.get_many(&keys).await?.pop().flatten())
    }

    /// Reads one key as what it should be, with its revision (0: there is none).
    ///
    /// # Errors
    /// The store does not work, or the value is something else.
    pub async fn read<T: DeserializeOwned>(
        &self,
        key: impl Into<String>,
    ) -> Result<(Option<T>, Revision), RegistryError> {
        match self.get(key).await? {
            Some(entry) => Ok((Some(entry.read()?), entry.revision)),
            None => Ok((None, 0)),
        }
    }

    /// Reads everything under a prefix, in several lists where it is much.
    ///
    /// # Errors
    /// The store does not work.
    pub async fn list_all(&self, prefix: &str) -> Result<Listing, RegistryError> {
        let mut all = self.list(prefix, None, LIST_MAX).await?;
        while all.has_more {
            let after = all.entries.last().map(|entry| entry.key.clone());
            let more = self.list(prefix, after.as_deref(), LIST_MAX).await?;
            all.has_more = more.has_more;
            all.entries.extend(more.entries);
        }
        Ok(all)
    }
}

/// The first key after all keys with a prefix. Keys are ASCII, so a last byte can always be raised.
pub(crate) fn after_prefix(prefix: &str) -> String {
    let mut end = prefix.to_owned();
    match end.pop() {
        Some(last) => {
            let next = char::from_u32(u32::from(last) + 1).unwrap_or('\u{7f}');
            end.push(next);
        }
        None => end.push('\u{7f}'),
    }
    end
}
