//! Units that people type and programs exchange: bytes, CPUs in thousandths, CPU quota, bounds.
//!
//! People write `512M`, `1.5G`, `0.5`, `1..4`; JSON carries bytes as integers and CPUs as numbers.
//! Suffixes are binary (`M` = MiB), as in every other tool of this field.

use std::fmt;
use std::str::FromStr;

use serde::de::{self, Deserializer, Visitor};
use serde::{Deserialize, Serialize, Serializer};

/// A text that is not the unit it should be: a sentence for the person who typed it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct UnitError(pub String);

/// A number of bytes. Parses `268435456`, `256M`, `1.5G`, `64KiB`; prints the shortest exact form.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Bytes(pub u64);

impl Bytes {
    /// One mebibyte.
    pub const MIB: u64 = 1 << 20;
    /// One gibibyte.
    pub const GIB: u64 = 1 << 30;

    /// So many mebibytes.
    pub const fn mib(n: u64) -> Self {
        Self(n * Self::MIB)
    }
    /// The number itself.
    pub const fn get(self) -> u64 {
        self.0
    }
    /// In mebibytes, for tables and charts.
    pub fn as_mib_f64(self) -> f64 {
        self.0 as f64 / Self::MIB as f64
    }
}

const SUFFIXES: [(char, u32); 4] = [('K', 10), ('M', 20), ('G', 30), ('T', 40)];

impl FromStr for Bytes {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let bad = || {
            UnitError(format!(
                "Size '{text}' is not a size: write a number with K, M, G or T (binary), like 512M or 1.5G"
            ))
        };
        let upper = text.trim().to_ascii_uppercase();
        let trimmed = upper
            .strip_suffix("IB")
            .or_else(|| upper.strip_suffix('B'))
            .unwrap_or(&upper);
        let (number, shift) = match SUFFIXES.iter().find(|(c, _)| trimmed.ends_with(*c)) {
            Some((_, shift)) => (&trimmed[..trimmed.len() - 1], *shift),
            None if upper.ends_with("IB") => return Err(bad()),
            None => (trimmed, 0),
        };
        let (whole, fraction) = number.trim().split_once('.').unwrap_or((number.trim(), ""));
        let digits = |s: &str| s.bytes().all(|b| b.is_ascii_digit());
        if whole.is_empty() || !digits(whole) || !digits(fraction) || fraction.len() > 9 {
            return Err(bad());
        }
        if number.contains('.') && (fraction.is_empty() || shift == 0) {
            return Err(bad());
        }
        let whole: u64 = whole.parse().map_err(|_| bad())?;
        let mut total = u128::from(whole) << shift;
        if !fraction.is_empty() {
            let scale = 10u128.pow(fraction.len() as u32);
            let part: u128 = fraction.parse().map_err(|_| bad())?;
            total += (part << shift) / scale;
        }
        u64::try_from(total).map(Self).map_err(|_| bad())
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (suffix, shift) in SUFFIXES.iter().rev() {
            let unit = 1u64 << shift;
            if self.0 >= unit {
                if self.0.is_multiple_of(unit) {
                    return write!(f, "{}{suffix}", self.0 >> shift);
                }
                if *shift >= 20 && self.0.is_multiple_of(unit / 4) {
                    let quarters = self.0 / (unit / 4);
                    let text = format!("{:.2}", quarters as f64 / 4.0);
                    return write!(f, "{}{suffix}", text.trim_end_matches('0'));
                }
                if *shift == 20 {
                    return write!(f, "{:.1}M", self.as_mib_f64());
                }
            }
        }
        write!(f, "{}", self.0)
    }
}

impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_u64(self.0)
    }
}

/// CPUs in thousandths: `1500` is one and a half. Parses `2`, `0.5`, `1.25`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cpus(pub u32);

impl Cpus {
    /// So many whole CPUs.
    pub const fn whole(n: u32) -> Self {
        Self(n * 1000)
    }
    /// In thousandths.
    pub const fn milli(self) -> u32 {
        self.0
    }
    /// vCPUs that must be online to hold this much: 1.5 needs two.
    pub const fn vcpus(self) -> u32 {
        self.0.div_ceil(1000)
    }
    /// As a number, for arithmetic and charts.
    pub fn as_f64(self) -> f64 {
        f64::from(self.0) / 1000.0
    }
}

impl FromStr for Cpus {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let bad = || {
            UnitError(format!(
                "CPU count '{text}' is not a number of CPUs: write 1, 2 or a fraction like 0.5"
            ))
        };
        let (whole, fraction) = text.trim().split_once('.').unwrap_or((text.trim(), "0"));
        let digits = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
        if !digits(whole) || !digits(fraction) || fraction.len() > 3 {
            return Err(bad());
        }
        let whole: u32 = whole.parse().map_err(|_| bad())?;
        let part: u32 = format!("{fraction:0<3}").parse().map_err(|_| bad())?;
        whole
            .checked_mul(1000)
            .and_then(|w| w.checked_add(part))
            .map(Self)
            .ok_or_else(bad)
    }
}

impl fmt::Display for Cpus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_multiple_of(1000) {
            return write!(f, "{}", self.0 / 1000);
        }
        let text = format!("{}.{:03}", self.0 / 1000, self.0 % 1000);
        f.write_str(text.trim_end_matches('0'))
    }
}

impl Serialize for Cpus {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        if self.0.is_multiple_of(1000) {
            s.serialize_u32(self.0 / 1000)
        } else {
            s.serialize_f64(self.as_f64())
        }
    }
}

/// How much CPU time the vCPUs may use together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Quota {
    /// No limit beyond the number of vCPUs. Written `"max"`.
    Max,
    /// At most so many CPUs' time.
    Limited(Cpus),
}

impl fmt::Display for Quota {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Max => f.write_str("max"),
            Self::Limited(cpus) => cpus.fmt(f),
        }
    }
}

impl FromStr for Quota {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        if text.trim() == "max" {
            return Ok(Self::Max);
        }
        match text.parse::<Cpus>()? {
            Cpus(0) => Err(UnitError(
                "Quota 0 is not allowed: the least is 0.01".into(),
            )),
            cpus => Ok(Self::Limited(cpus)),
        }
    }
}

impl Serialize for Quota {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Max => s.serialize_str("max"),
            Self::Limited(cpus) => cpus.serialize(s),
        }
    }
}

/// Accepts a number or a text in any self-describing format, and hands both to `FromStr`.
struct TextOrNumber<T>(&'static str, std::marker::PhantomData<T>);

impl<T: FromStr<Err = UnitError>> Visitor<'_> for TextOrNumber<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
    fn visit_u64<E: de::Error>(self, n: u64) -> Result<T, E> {
        n.to_string().parse().map_err(E::custom)
    }
    fn visit_i64<E: de::Error>(self, n: i64) -> Result<T, E> {
        n.to_string().parse().map_err(E::custom)
    }
    fn visit_f64<E: de::Error>(self, n: f64) -> Result<T, E> {
        n.to_string().parse().map_err(E::custom)
    }
    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        text.parse().map_err(E::custom)
    }
}

macro_rules! deserialize_text_or_number {
    ($($t:ty: $what:literal),*) => {$(
        impl<'de> Deserialize<'de> for $t {
            fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                d.deserialize_any(TextOrNumber($what, std::marker::PhantomData))
            }
        }
    )*};
}
deserialize_text_or_number!(
    Bytes: "a number of bytes, or a text like \"512M\"",
    Cpus: "a number of CPUs, like 2 or 0.5",
    Quota: "a number of CPUs, or \"max\""
);

/// Least and most. Parses `1..4`, or `2` for a fixed size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Bounds<T> {
    /// The least that the instance is guaranteed.
    pub min: T,
    /// The most that it may grow to.
    pub max: T,
}

impl<T: Ord + Copy> Bounds<T> {
    /// The nearest value inside.
    pub fn clamp(&self, value: T) -> T {
        value.max(self.min).min(self.max)
    }
    /// Whether the value is inside.
    pub fn contains(&self, value: T) -> bool {
        value >= self.min && value <= self.max
    }
}

impl<T: FromStr<Err = UnitError> + Ord + Copy + fmt::Display> FromStr for Bounds<T> {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let (min, max) = match text.split_once("..") {
            Some((min, max)) => (min.parse::<T>()?, max.parse::<T>()?),
            None => {
                let both = text.parse::<T>()?;
                (both, both)
            }
        };
        if min > max {
            return Err(UnitError(format!(
                "Bounds '{text}' are inverted: the lower bound {min} is above the upper bound {max}"
            )));
        }
        Ok(Self { min, max })
    }
}

impl<T: fmt::Display + PartialEq> fmt::Display for Bounds<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.min == self.max {
            return self.min.fmt(f);
        }
        write!(f, "{}..{}", self.min, self.max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_binary_and_exact() {
        for (text, want) in [
            ("512M", 512 << 20),
            ("1.5G", 3 << 29),
            ("1.5GiB", 3 << 29),
            ("64k", 64 << 10),
            ("4096", 4096),
            ("2T", 2 << 40),
        ] {
            assert_eq!(text.parse::<Bytes>().unwrap(), Bytes(want), "{text}");
        }
        for text in [
            "",
            "M",
            "1.5",
            "-1",
            "1e9",
            "1..2",
            "12X",
            "99999999999T",
            "1.G",
            "iB",
        ] {
            assert!(text.parse::<Bytes>().is_err(), "{text}");
        }
        assert_eq!(Bytes(3 << 29).to_string(), "1.5G");
        assert_eq!(Bytes::mib(640).to_string(), "640M");
    }

    #[test]
    fn cpus_are_thousandths() {
        assert_eq!("0.5".parse::<Cpus>().unwrap(), Cpus(500));
        assert_eq!("1.25".parse::<Cpus>().unwrap().vcpus(), 2);
        assert_eq!(Cpus(1500).to_string(), "1.5");
        for text in ["", ".5", "1.", "-1", "1.2345", "x", "5000000"] {
            assert!(text.parse::<Cpus>().is_err(), "{text}");
        }
    }

    #[test]
    fn inverted_bounds_are_refused_with_both_values() {
        let error = "4..1".parse::<Bounds<Cpus>>().unwrap_err().to_string();
        assert!(error.contains('4') && error.contains('1'), "{error}");
        assert_eq!("0.5..4".parse::<Bounds<Cpus>>().unwrap().max, Cpus(4000));
    }
}
