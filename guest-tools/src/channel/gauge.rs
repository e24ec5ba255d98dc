//! Numbers that programs of the guest say, in the words of statsd: `name:value|g`, one a line. A value
//! with a sign changes the gauge by so much; a sample rate or tags behind it are passed over.

/// Most gauges of one guest; a name beyond them is dropped.
pub const MAX_GAUGES: usize = 64;
/// Longest name, in bytes.
pub const MAX_NAME_BYTES: usize = 64;

/// What a line says.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Gauge<'a> {
    /// It has this value.
    Set(&'a str, f64),
    /// It has changed by this much.
    Change(&'a str, f64),
}

/// Whether a gauge may be called so: what may stand behind `custom.` in a rule.
pub fn is_gauge_name(name: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"_.-".contains(&b);
    (1..=MAX_NAME_BYTES).contains(&name.len()) && name.bytes().all(allowed)
}

/// Reads one line; `None` when it is no gauge, or its value is no number.
pub fn parse_gauge(line: &str) -> Option<Gauge<'_>> {
    let (name, rest) = line.trim().split_once(':')?;
    let mut fields = rest.split('|');
    let value = fields.next()?;
    if fields.next()? != "g" || !is_gauge_name(name) {
        return None;
    }
    let number: f64 = value
        .parse()
        .ok()
        .filter(|number: &f64| number.is_finite())?;
    if value.starts_with(['+', '-']) {
        Some(Gauge::Change(name, number))
    } else {
        Some(Gauge::Set(name, number))
    }
}
