//! The registry in etcd, for more than one node of the control plane: its JSON gateway over HTTP/1.1.
//!
//! A request that finds its member silent goes to the next one. A transaction may then be done twice by
//! etcd's members only if nothing that it compares was changed by itself; ours compare what they change,
//! so the second time is a conflict, and whoever asked reads again and finds its own change.

mod gateway;
#[cfg(test)]
pub(super) mod testing;
mod watch;

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::{Value, json};

use self::gateway::{Gateway, GatewayError};
use super::{
    Change, Entry, LIST_MAX, LeaseId, Listing, Registry, RegistryError, Reply, Revision,
    TRANSACTION_MAX, Transaction, Watch, after_prefix,
};

/// All our keys begin with it.
const NAMESPACE: &str = "concertina/";

/// The registry in etcd.
#[derive(Debug)]
pub struct EtcdRegistry {
    gateway: Gateway,
}

/// 64-bit numbers come as texts, and zero as nothing.
fn number<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Number {
        Text(String),
        Number(u64),
    }
    match Number::deserialize(deserializer)? {
        Number::Number(number) => Ok(number),
        // Leases are signed there, and never negative.
        Number::Text(text) => text.parse().map_err(serde::de::Error::custom),
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Header {
    #[serde(deserialize_with = "number")]
    revision: u64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct KeyValue {
    key: String,
    value: String,
    #[serde(deserialize_with = "number")]
    mod_revision: u64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Range {
    header: Header,
    kvs: Vec<KeyValue>,
    more: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct TxnAnswer {
    header: Header,
    succeeded: bool,
    responses: Vec<TxnResponse>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct TxnResponse {
    response_range: Range,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct LeaseAnswer {
    #[serde(rename = "ID", deserialize_with = "number")]
    id: u64,
    #[serde(rename = "TTL", deserialize_with = "number")]
    ttl: u64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Streamed<T> {
    result: T,
}

fn encode(key: &str) -> String {
    STANDARD.encode(format!("{NAMESPACE}{key}"))
}

fn text(encoded: &str) -> Result<Vec<u8>, RegistryError> {
    STANDARD
        .decode(encoded)
        .map_err(|error| RegistryError::Unavailable(format!("etcd sent no base64: {error}")))
}

fn key_of(encoded: &str) -> Result<String, RegistryError> {
    let full = String::from_utf8_lossy(&text(encoded)?).into_owned();
    Ok(full.strip_prefix(NAMESPACE).unwrap_or(&full).to_owned())
}

fn entry(kv: &KeyValue) -> Result<Entry, RegistryError> {
    Ok(Entry {
        key: key_of(&kv.key)?,
        value: text(&kv.value)?,
        revision: kv.mod_revision,
    })
}

impl From<GatewayError> for RegistryError {
    fn from(error: GatewayError) -> Self {
        Self::Unavailable(format!("etcd: {error}"))
    }
}

impl EtcdRegistry {
    /// Connects to the members `http://HOST:PORT`; one that answers is enough.
    ///
    /// # Errors
    /// None answers, or an address is wrong.
    pub async fn connect(endpoints: &[String]) -> Result<Self, RegistryError> {
        let gateway = Gateway::new(endpoints).await?;
        let registry = Self { gateway };
        registry.get_many(&["cluster".to_owned()]).await?;
        Ok(registry)
    }

    async fn range(
        &self,
        range: (String, String),
        limit: usize,
        backwards: bool,
    ) -> Result<Listing, RegistryError> {
        let mut request = json!({
            "key": encode(&range.0),
            "range_end": encode(&range.1),
            "limit": limit.clamp(1, LIST_MAX),
        });
        if backwards && let Value::Object(fields) = &mut request {
            fields.insert("sort_order".into(), "DESCEND".into());
            fields.insert("sort_target".into(), "KEY".into());
        }
        let range: Range = self.gateway.ask("/v3/kv/range", &request).await?;
        Ok(Listing {
            entries: range.kvs.iter().map(entry).collect::<Result<_, _>>()?,
            has_more: range.more,
            revision: range.header.revision,
        })
    }

    /// Reads some keys as of a revision (0: the present one).
    async fn read(
        &self,
        keys: &[String],
        revision: u64,
    ) -> Result<(Vec<Option<Entry>>, u64), RegistryError> {
        let reads: Vec<Value> = keys
            .iter()
            .map(|key| json!({"request_range": {"key": encode(key), "revision": revision}}))
            .collect();
        let answer: TxnAnswer = self
            .gateway
            .ask("/v3/kv/txn", &json!({"success": reads}))
            .await?;
        let entries = answer
            .responses
            .iter()
            .map(|response| response.response_range.kvs.first().map(entry).transpose())
            .collect::<Result<_, _>>()?;
        Ok((entries, answer.header.revision))
    }
}

fn compare((key, revision): &(String, Revision)) -> Value {
    json!({
        "key": encode(key),
        "target": "MOD",
        "result": "EQUAL",
        "mod_revision": revision.to_string(),
    })
}

fn operation(change: &Change) -> Value {
    match change {
        Change::Put { key, value, lease } => json!({"request_put": {
            "key": encode(key),
            "value": STANDARD.encode(value),
            "lease": lease.unwrap_or(0).to_string(),
        }}),
        Change::Delete { key } => json!({"request_delete_range": {"key": encode(key)}}),
    }
}

impl Registry for EtcdRegistry {
    fn get_many<'a>(&'a self, keys: &'a [String]) -> Reply<'a, Vec<Option<Entry>>> {
        Box::pin(async move {
            let mut all = Vec::with_capacity(keys.len());
            let mut revision = 0;
            for chunk in keys.chunks(TRANSACTION_MAX) {
                let (entries, at) = self.read(chunk, revision).await?;
                all.extend(entries);
                revision = if revision == 0 { at } else { revision };
            }
            Ok(all)
        })
    }

    fn list<'a>(
        &'a self,
        prefix: &'a str,
        after: Option<&'a str>,
        limit: usize,
    ) -> Reply<'a, Listing> {
        let from = match after {
            Some(after) if after >= prefix => format!("{after}\0"),
            _ => prefix.to_owned(),
        };
        Box::pin(self.range((from, after_prefix(prefix)), limit, false))
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
        Box::pin(self.range((prefix.to_owned(), to), limit, true))
    }

    fn commit(&self, transaction: Transaction) -> Reply<'_, Revision> {
        Box::pin(async move {
            let size = transaction.changes.len().max(transaction.compares.len());
            if size > TRANSACTION_MAX {
                return Err(RegistryError::Unavailable(format!(
                    "a transaction of {size} parts is too large, at most {TRANSACTION_MAX} are allowed"
                )));
            }
            let request = json!({
                "compare": transaction.compares.iter().map(compare).collect::<Vec<_>>(),
                "success": transaction.changes.iter().map(operation).collect::<Vec<_>>(),
            });
            let leased = transaction.changes.iter().find_map(|change| match change {
                Change::Put { lease, .. } => *lease,
                Change::Delete { .. } => None,
            });
            let answer: TxnAnswer = match self.gateway.ask("/v3/kv/txn", &request).await {
                Err(GatewayError::Refused(why)) if why.contains("lease not found") => {
                    return Err(RegistryError::LeaseExpired(leased.unwrap_or(0)));
                }
                answer => answer?,
            };
            if answer.succeeded {
                return Ok(answer.header.revision);
            }
            let keys: Vec<&str> = transaction
                .compares
                .iter()
                .map(|(key, _)| key.as_str())
                .collect();
            Err(RegistryError::Conflict(keys.join(", ")))
        })
    }

    fn grant(&self, time_to_live: Duration) -> Reply<'_, LeaseId> {
        Box::pin(async move {
            let seconds = time_to_live.as_secs_f64().ceil().max(1.0) as u64;
            let request = json!({"TTL": seconds});
            let answer: LeaseAnswer = self.gateway.ask("/v3/lease/grant", &request).await?;
            Ok(answer.id)
        })
    }

    fn keep_alive(&self, lease: LeaseId) -> Reply<'_, ()> {
        Box::pin(async move {
            let request = json!({"ID": lease.to_string()});
            let answer: Streamed<LeaseAnswer> =
                self.gateway.ask("/v3/lease/keepalive", &request).await?;
            // A lease that is over has no time to live.
            match answer.result.ttl {
                0 => Err(RegistryError::LeaseExpired(lease)),
                _ => Ok(()),
            }
        })
    }

    fn revoke(&self, lease: LeaseId) -> Reply<'_, ()> {
        Box::pin(async move {
            let request = json!({"ID": lease.to_string()});
            match self
                .gateway
                .ask::<Value>("/v3/lease/revoke", &request)
                .await
            {
                Err(GatewayError::Refused(why)) if why.contains("lease not found") => Ok(()),
                Err(error) => Err(error.into()),
                Ok(_) => Ok(()),
            }
        })
    }

    fn watch<'a>(&'a self, prefix: &'a str, after: Revision) -> Reply<'a, Watch> {
        Box::pin(watch::begin(&self.gateway, prefix, after))
    }
}
