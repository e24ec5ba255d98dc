//! API keys: `ck-ID_SECRET`. The id finds the record; the secret is compared by its hash in a time that
//! does not depend on where they differ.
//!
//! The hash is a plain SHA-256: slow password hashes make guessing of *guessable* secrets dear, and a
//! secret of 260 random bits cannot be guessed. A fast one keeps a flood of wrong keys cheap for us.

use std::sync::LazyLock;

use subtle::ConstantTimeEq;

use crate::ids::{self, NoRandom, is_id, sha256};
use crate::model::ApiKey;

/// Prefix of keys' ids.
pub const PREFIX: &str = "ck";

/// Compared with where there is no record, so that it takes as long.
static NOBODY: LazyLock<String> = LazyLock::new(|| sha256("nobody"));

/// A fresh key and its id: the only time that the key is there in full.
///
/// # Errors
/// The system has no random numbers.
pub fn fresh() -> Result<(String, String, String), NoRandom> {
    let id = ids::fresh(PREFIX)?;
    let secret = ids::secret()?;
    let hash = sha256(&secret);
    Ok((format!("{id}_{secret}"), id, hash))
}

/// The id and the secret of a text that has a key's form.
pub fn split(key: &str) -> Option<(&str, &str)> {
    let (id, secret) = key.split_once('_')?;
    (is_id(PREFIX, id) && secret.len() == 52).then_some((id, secret))
}

/// Whether a secret is that of a record, and the record is in force.
pub fn is_valid(record: Option<&ApiKey>, secret: &str, now_ms: u64) -> bool {
    let wanted = record.map_or(NOBODY.as_str(), |record| record.hash.as_str());
    let is_equal: bool = is_same(wanted, &sha256(secret));
    is_equal && record.is_some_and(|record| is_in_force(record, now_ms))
}

/// Whether a key is neither revoked nor over.
pub fn is_in_force(record: &ApiKey, now_ms: u64) -> bool {
    !record.revoked && record.expires_ms.is_none_or(|end| now_ms < end)
}

/// Compares in constant time.
pub fn is_same(a: &str, b: &str) -> bool {
    a.as_bytes().ct_eq(b.as_bytes()).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Scope;

    fn record(id: &str, hash: &str) -> ApiKey {
        ApiKey {
            id: id.into(),
            account: "a".into(),
            name: "n".into(),
            scope: Scope::Read,
            hash: hash.into(),
            created: String::new(),
            expires_ms: Some(1000),
            revoked: false,
        }
    }

    #[test]
    fn only_the_right_secret_of_a_key_in_force_is_valid() {
        let (key, id, hash) = fresh().unwrap();
        let (found, secret) = split(&key).unwrap();
        assert_eq!(found, id);
        let mut record = record(&id, &hash);
        assert!(is_valid(Some(&record), secret, 999));
        assert!(!is_valid(Some(&record), secret, 1000), "expired");
        assert!(!is_valid(Some(&record), &"0".repeat(52), 999), "wrong");
        assert!(!is_valid(None, "nobody", 999), "there is no such key");
        record.revoked = true;
        assert!(!is_valid(Some(&record), secret, 999), "revoked");
        assert!(!hash.contains(secret) && !key.contains(&hash));
    }

    #[test]
    fn what_has_not_the_form_of_a_key_is_refused_before_the_registry_is_asked() {
        for text in [
            "",
            "x",
            "ck-_",
            "Bearer",
            "ck-00000000000000000000000000_short",
        ] {
            assert_eq!(split(text), None, "{text}");
        }
    }
}
