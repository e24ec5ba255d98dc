//! The chain of records in a file: one line each, sealed with a hash.
//!
//! ```text
//! {"sequence":7, …, "previous":"<hash of record 6>","hash":"<SHA-256 of this line before ,"hash">"}
//! ```
//! The hash covers the bytes of the line as they are, and through `previous` all lines before.

use std::io;
use std::path::Path;

use sha2::{Digest, Sha256};

use super::{Reason, UsageRecord};

/// What the first record names as the one before it.
pub const GENESIS: &str = "0000000000000000000000000000000000000000000000000000000000000000";

const SEAL: &str = ",\"hash\":\"";

/// A chain that holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Chain {
    /// Its records.
    pub records: Vec<UsageRecord>,
    /// Hash of the last one.
    pub head: String,
    /// Times about which it says nothing.
    pub gaps: Vec<Gap>,
    /// Bytes at the end that are no whole line: a write that was cut off by a crash.
    pub torn: usize,
}

/// A time about which a chain says nothing: an agent died, and the instance with it or before
/// another agent came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gap {
    /// Number of the record before it.
    pub after: u64,
    /// Its length; `None`: the host was started again meanwhile.
    pub span_ms: Option<u64>,
}

/// Where and why a chain does not hold.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("The usage records of {instance} were changed or are incomplete: line {line} {problem}")]
pub struct Broken {
    /// Name of the instance.
    pub instance: String,
    /// Line of the file, from 1.
    pub line: usize,
    /// The rest of the sentence.
    pub problem: String,
}

/// Why a chain could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ChainError {
    /// The system refused.
    #[error("Reading {path} failed")]
    Io {
        /// The file.
        path: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// It does not hold.
    #[error(transparent)]
    Broken(#[from] Broken),
}

/// Seals a record: its line, with the line end, and its hash.
pub(super) fn seal(record: &UsageRecord) -> Result<(String, String), serde_json::Error> {
    let mut line = serde_json::to_string(record)?;
    // Without its closing brace, which comes after the hash.
    line.pop();
    let hash = hash_of(&line);
    line.push_str(SEAL);
    line.push_str(&hash);
    line.push_str("\"}\n");
    Ok((line, hash))
}

/// A record as a line of a chain, without its line end, and its hash.
///
/// # Errors
/// It has no JSON.
pub fn seal_line(record: &UsageRecord) -> Result<(String, String), serde_json::Error> {
    let (mut line, hash) = seal(record)?;
    line.pop();
    Ok((line, hash))
}

/// Opens a sealed line (without its line end): the record and its hash, when the seal is good.
pub(super) fn open(line: &str) -> Result<(UsageRecord, String), String> {
    let (body, rest) = line.rsplit_once(SEAL).ok_or("has no hash")?;
    let hash = rest.strip_suffix("\"}").ok_or("has no hash at its end")?;
    if hash_of(body) != hash {
        return Err("does not have the hash that it names".into());
    }
    let record = serde_json::from_str(&format!("{body}}}"))
        .map_err(|error| format!("is no usage record: {error}"))?;
    Ok((record, hash.to_owned()))
}

/// Reads and checks the chain of an instance.
///
/// # Errors
/// The file cannot be read, or the chain does not hold.
pub fn read_chain(path: &Path, instance: &str) -> Result<Chain, ChainError> {
    let bytes = std::fs::read(path).map_err(|source| ChainError::Io {
        path: path.display().to_string(),
        source,
    })?;
    Ok(check(&bytes, instance)?)
}

/// Checks the bytes of a file.
pub(super) fn check(bytes: &[u8], instance: &str) -> Result<Chain, Broken> {
    let whole = bytes
        .iter()
        .rposition(|byte| *byte == b'\n')
        .map_or(0, |at| at + 1);
    let (lines, torn) = bytes.split_at_checked(whole).unwrap_or((bytes, &[]));
    let mut chain = Chain {
        head: GENESIS.into(),
        torn: torn.len(),
        ..Chain::default()
    };
    for (index, line) in lines.split_inclusive(|byte| *byte == b'\n').enumerate() {
        let broken = |problem: String| Broken {
            instance: instance.to_owned(),
            line: index + 1,
            problem,
        };
        let text = std::str::from_utf8(line).map_err(|_| broken("is no text".into()))?;
        let (record, hash) = open(text.trim_end_matches('\n')).map_err(broken)?;
        follows(&chain, &record, instance).map_err(broken)?;
        if let Some(gap) = gap_before(&chain, &record) {
            chain.gaps.push(gap);
        }
        chain.head = hash;
        chain.records.push(record);
    }
    Ok(chain)
}

/// Whether a record may come next.
fn follows(chain: &Chain, record: &UsageRecord, instance: &str) -> Result<(), String> {
    let expected = chain.records.len() as u64;
    if record.sequence != expected {
        let found = record.sequence;
        return Err(format!(
            "is record {found}, and record {expected} is missing"
        ));
    }
    if record.previous != chain.head {
        return Err("does not name the record before it".into());
    }
    if record.instance != instance {
        return Err(format!("belongs to {}", record.instance));
    }
    if record.to_ms < record.from_ms {
        return Err("ends before it begins".into());
    }
    let Some(last) = chain.records.last() else {
        return match record.reason {
            Reason::Launch => Ok(()),
            _ => Err("is the first one, and no launch".into()),
        };
    };
    match (last.reason, record.reason) {
        (Reason::End, Reason::Launch) | (_, Reason::Launch) => Ok(()),
        (Reason::End, _) => Err("comes after the end, and is no launch".into()),
        _ if record.boot != last.boot => Err("is of another boot of the host".into()),
        _ if record.from_ms != last.to_ms => Err(format!(
            "begins {} ms after the end of the one before",
            i128::from(record.from_ms) - i128::from(last.to_ms)
        )),
        _ => Ok(()),
    }
}

/// A launch after something that had not ended leaves a time of which nothing is known.
fn gap_before(chain: &Chain, record: &UsageRecord) -> Option<Gap> {
    let last = chain.records.last()?;
    let unended = record.reason == Reason::Launch && last.reason != Reason::End;
    unended.then(|| Gap {
        after: last.sequence,
        span_ms: (last.boot == record.boot)
            .then(|| record.from_ms.checked_sub(last.to_ms))
            .flatten(),
    })
}

fn hash_of(body: &str) -> String {
    let digest = Sha256::digest(body.as_bytes());
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}
