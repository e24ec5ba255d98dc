//! Ids and secrets. An id sorts by the time at which it was made, and says nothing else.

use std::time::{SystemTime, UNIX_EPOCH};

/// The 32 digits of Crockford's alphabet in lower case: no i, l, o, u.
const DIGITS: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";

/// The system has no random numbers.
#[derive(Debug, thiserror::Error)]
#[error("The system gives no random numbers: {0}")]
pub struct NoRandom(String);

/// Milliseconds since 1970.
pub fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |time| {
        u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
    })
}

/// The present time as RFC 3339 with milliseconds.
pub fn now_text() -> String {
    time_text(now_ms())
}

/// A time as RFC 3339 with milliseconds.
pub fn time_text(ms: u64) -> String {
    // Later than the year 9999 has no such form.
    let ms = ms.min(253_402_300_799_999);
    humantime::format_rfc3339_millis(UNIX_EPOCH + std::time::Duration::from_millis(ms)).to_string()
}

/// Random bytes.
///
/// # Errors
/// The system has none.
pub fn random<const N: usize>() -> Result<[u8; N], NoRandom> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|error| NoRandom(error.to_string()))?;
    Ok(bytes)
}

/// 26 digits: 48 bits of time, 80 random bits.
fn digits(time_ms: u64, random: [u8; 10]) -> String {
    let time = u128::from(time_ms & 0xffff_ffff_ffff) << 80;
    let random = random
        .iter()
        .fold(0u128, |all, byte| all << 8 | u128::from(*byte));
    let value = time | random;
    (0..26u32)
        .rev()
        .map(|place| {
            let digit = (value >> (5 * place)) & 31;
            char::from(DIGITS.get(digit as usize).copied().unwrap_or(b'0'))
        })
        .collect()
}

/// A fresh id: the prefix, `-`, 26 digits.
///
/// # Errors
/// The system has no random numbers.
pub fn fresh(prefix: &str) -> Result<String, NoRandom> {
    Ok(format!("{prefix}-{}", digits(now_ms(), random()?)))
}

/// Whether a text has the form of an id with this prefix.
pub fn is_id(prefix: &str, text: &str) -> bool {
    text.strip_prefix(prefix)
        .and_then(|rest| rest.strip_prefix('-'))
        .is_some_and(|rest| rest.len() == 26 && rest.bytes().all(|byte| DIGITS.contains(&byte)))
}

/// 256 random bits as 52 digits.
///
/// # Errors
/// The system has no random numbers.
pub fn secret() -> Result<String, NoRandom> {
    let bytes: [u8; 52] = random()?;
    let digit = |byte: &u8| char::from(DIGITS.get(usize::from(byte & 31)).copied().unwrap_or(b'0'));
    Ok(bytes.iter().map(digit).collect())
}

/// Bytes as hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// SHA-256 as hexadecimal digits.
pub fn sha256(bytes: impl AsRef<[u8]>) -> String {
    use sha2::Digest;
    hex(&sha2::Sha256::digest(bytes.as_ref()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_sort_by_time_and_are_recognised() {
        let early = digits(1, [255; 10]);
        let late = digits(2, [0; 10]);
        assert!(early < late);
        let id = fresh("i").unwrap();
        assert!(is_id("i", &id), "{id}");
        assert_eq!(id.len(), concertina_api::link::INSTANCE_ID_BYTES);
        for text in [
            "",
            "i-",
            "i-x",
            "h-00000000000000000000000000",
            "i-0000000000000000000000000u",
        ] {
            assert!(!is_id("i", text), "{text}");
        }
    }

    #[test]
    fn secrets_differ_and_have_260_bits() {
        let secret = secret().unwrap();
        assert_eq!(secret.len(), 52);
        assert_ne!(secret, super::secret().unwrap());
    }
}
