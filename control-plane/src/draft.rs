//! A transaction in the making: whoever reads through it need not think of comparing. Whatever was read
//! has to be unchanged when it is committed; else it is done over.

use std::collections::HashMap;
use std::future::Future;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::registry::{Registry, RegistryError, Revision, Transaction};

/// How often something is done over before it is given up.
const TRIES: u32 = 40;

/// A transaction in the making.
#[derive(Debug)]
pub struct Draft<'r> {
    registry: &'r dyn Registry,
    read: HashMap<String, Revision>,
    written: HashMap<String, Vec<u8>>,
    transaction: Transaction,
}

impl<'r> Draft<'r> {
    /// An empty one.
    pub fn new(registry: &'r dyn Registry) -> Self {
        Self {
            registry,
            read: HashMap::new(),
            written: HashMap::new(),
            transaction: Transaction::new(),
        }
    }

    /// Reads a key that must not change until the commit. What this draft has written is read back.
    ///
    /// # Errors
    /// The registry does not work, or the value is something else.
    pub async fn read<T: DeserializeOwned>(
        &mut self,
        key: impl Into<String>,
    ) -> Result<Option<T>, RegistryError> {
        let key = key.into();
        if let Some(value) = self.written.get(&key) {
            return crate::registry::read_value(&key, value).map(Some);
        }
        let entry = self.registry.get(key.clone()).await?;
        let revision = entry.as_ref().map_or(0, |entry| entry.revision);
        match self.read.get(&key) {
            Some(known) if *known != revision => return Err(RegistryError::Conflict(key)),
            Some(_) => {}
            None => {
                self.transaction.compare(key.clone(), revision);
                self.read.insert(key, revision);
            }
        }
        entry.map(|entry| entry.read()).transpose()
    }

    /// The revision at which a key was read; 0: there was none, or it was not read.
    pub fn revision(&self, key: &str) -> Revision {
        self.read.get(key).copied().unwrap_or(0)
    }

    /// Sets a key.
    ///
    /// # Errors
    /// The value has no JSON.
    pub fn write<T: Serialize + ?Sized>(
        &mut self,
        key: impl Into<String>,
        value: &T,
    ) -> Result<(), RegistryError> {
        let key = key.into();
        let bytes = serde_json::to_vec(value).map_err(|error| RegistryError::Value {
            key: key.clone(),
            why: error.to_string(),
        })?;
        self.transaction
            .changes
            .retain(|change| change.key() != key);
        self.transaction.put(key.clone(), value)?;
        self.written.insert(key, bytes);
        Ok(())
    }

    /// Removes a key.
    pub fn remove(&mut self, key: impl Into<String>) {
        let key = key.into();
        self.transaction
            .changes
            .retain(|change| change.key() != key);
        self.written.remove(&key);
        self.transaction.delete(key);
    }

    /// Does it.
    ///
    /// # Errors
    /// [`RegistryError::Conflict`]: something that was read has changed.
    pub async fn commit(self) -> Result<Revision, RegistryError> {
        self.registry.commit(self.transaction).await
    }
}

/// Whether an error is a conflict, which is mended by doing it over.
pub trait MayConflict {
    /// Is it?
    fn is_conflict(&self) -> bool;
}

impl MayConflict for RegistryError {
    fn is_conflict(&self) -> bool {
        matches!(self, Self::Conflict(_))
    }
}

/// Does something over while it conflicts with others, after a while that grows and differs.
///
/// # Errors
/// Those of `attempt`; a conflict after many tries.
pub async fn again<T, E: MayConflict, F: Future<Output = Result<T, E>>>(
    mut attempt: impl FnMut() -> F,
) -> Result<T, E> {
    let mut tries = 0;
    loop {
        match attempt().await {
            Err(error) if error.is_conflict() && tries < TRIES => tries += 1,
            done => return done,
        }
        let most_us = 500u64 << tries.min(6);
        let random = crate::ids::random::<2>().map_or(0, u16::from_le_bytes);
        let wait_us = most_us * u64::from(random) / u64::from(u16::MAX);
        tokio::time::sleep(Duration::from_micros(wait_us)).await;
    }
}
