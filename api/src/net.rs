//! Network interfaces of an instance: how people ask for them, and what is told and said of them.
//!
//! People write `tap`, `tap=NAME`, or `user` with `forward=HOST:GUEST` once or several times, and
//! after it `mac=`, `mtu=`, `rate=` (both directions), `rx-rate=` (to the guest) and `tx-rate=` (from
//! the guest), all separated by commas: `user,forward=8080:80,rate=10M`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::io::IoRate;
use crate::units::UnitError;

/// Most interfaces of one instance.
pub const MAX_NETS: usize = 8;
/// Least MTU: what IPv4 needs at least (RFC 791).
pub const MIN_MTU: u16 = 68;
/// Longest name of a network interface in Linux, in bytes (`IFNAMSIZ` without its NUL).
pub const INTERFACE_NAME_MAX: usize = 15;

/// The address of one Ethernet interface: never a group's, never zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(try_from = "String", into = "String")]
pub struct MacAddr([u8; 6]);

impl MacAddr {
    /// The address that belongs to interface `index` of the instance `name`: the same each time, and
    /// another one for each of them. Locally administered, so that it is no manufacturer's.
    pub fn stable(name: &str, index: usize) -> Self {
        // FNV-1a, finished by the mixer of MurmurHash3: few bits of input change all of the output.
        let text = name.bytes().chain([0]).chain(index.to_le_bytes());
        let mut hash = text.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        for factor in [0xff51_afd7_ed55_8ccd, 0xc4ce_b9fe_1a85_ec53] {
            hash = (hash ^ (hash >> 33)).wrapping_mul(factor);
        }
        let [a, b, c, d, e, f, ..] = (hash ^ (hash >> 33)).to_le_bytes();
        Self([(a & 0xfc) | 0x02, b, c, d, e, f])
    }

    /// In the order in which they are sent.
    pub fn octets(&self) -> [u8; 6] {
        self.0
    }
}

impl FromStr for MacAddr {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let bad = |why: &str| {
            Err(UnitError(format!(
                "MAC address '{text}' is not allowed: {why}"
            )))
        };
        let digits = |part: &str| {
            let two = part.len() == 2 && part.bytes().all(|b| b.is_ascii_hexdigit());
            two.then(|| u8::from_str_radix(part, 16).ok()).flatten()
        };
        let octets: Option<Vec<u8>> = text.split(':').map(digits).collect();
        let Some(Ok(octets)) = octets.map(<[u8; 6]>::try_from) else {
            return bad("write six pairs of hexadecimal digits, like 02:00:5e:10:00:01");
        };
        if octets == [0; 6] {
            return bad("all zeroes is no address");
        }
        if octets[0] & 1 != 0 {
            return bad("it is a group's, the first pair has to be even");
        }
        Ok(Self(octets))
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl TryFrom<String> for MacAddr {
    type Error = UnitError;
    fn try_from(text: String) -> Result<Self, UnitError> {
        text.parse()
    }
}

impl From<MacAddr> for String {
    fn from(mac: MacAddr) -> Self {
        mac.to_string()
    }
}

/// A TCP port of the host's loopback address that leads to one of the guest: `HOST:GUEST`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Forward {
    /// Port on 127.0.0.1 of the host.
    pub host: u16,
    /// Port of the guest.
    pub guest: u16,
}

impl FromStr for Forward {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let port = |text: &str| text.parse::<u16>().ok().filter(|port| *port > 0);
        text.split_once(':')
            .and_then(|(host, guest)| {
                Some(Self {
                    host: port(host)?,
                    guest: port(guest)?,
                })
            })
            .ok_or_else(|| {
                UnitError(format!(
                    "Forward '{text}' is not allowed: write HOST:GUEST, two TCP ports from 1 to \
                     65535, like 8080:80"
                ))
            })
    }
}

/// Where the frames of an interface go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum NetKind {
    /// A tap interface of the host. One that exists is used and stays; one that does not is made and
    /// goes with the instance. Without a name one is chosen.
    Tap(Option<String>),
    /// The networks of the host as an unprivileged program reaches them, through `passt`.
    User(Vec<Forward>),
}

/// One interface as somebody asks for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct NetWish {
    /// Where its frames go.
    pub kind: NetKind,
    /// Its address; absent: [`MacAddr::stable`].
    #[serde(default)]
    pub mac: Option<MacAddr>,
    /// MTU that the guest is told; absent: it takes its own, 1500.
    #[serde(default)]
    pub mtu: Option<u16>,
    /// Limits at the start.
    #[serde(default)]
    pub rates: NetRates,
}

/// Limits of both directions, as the guest sees them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct NetRates {
    /// To the guest.
    #[serde(default)]
    pub rx: IoRate,
    /// From the guest.
    #[serde(default)]
    pub tx: IoRate,
}

impl FromStr for NetWish {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let mut parts = text.split(',').map(str::trim);
        let mut wish = Self {
            kind: kind(text, parts.next().unwrap_or_default())?,
            mac: None,
            mtu: None,
            rates: NetRates::default(),
        };
        let mut rates: Vec<(&str, String)> = Vec::new();
        for part in parts {
            let (key, value) = part.split_once('=').unwrap_or((part, ""));
            match (key, &mut wish.kind, rates.last_mut()) {
                ("mac", ..) => set_once(&mut wish.mac, value.parse()?, text, key)?,
                ("mtu", ..) => set_once(&mut wish.mtu, mtu(value)?, text, key)?,
                ("forward", NetKind::User(forwards), _) => forwards.push(value.parse()?),
                ("rate" | "rx-rate" | "tx-rate", ..) => rates.push((key, value.to_owned())),
                // A rate has commas of its own.
                (_, _, Some((_, rate))) => *rate = format!("{rate},{part}"),
                _ => return Err(unknown(text, part)),
            }
        }
        for (key, rate) in rates {
            let rate: IoRate = rate.parse()?;
            if key != "tx-rate" {
                wish.rates.rx = rate;
            }
            if key != "rx-rate" {
                wish.rates.tx = rate;
            }
        }
        Ok(wish)
    }
}

/// As it is parsed.
impl fmt::Display for NetWish {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kind {
            NetKind::Tap(None) => f.write_str("tap")?,
            NetKind::Tap(Some(name)) => write!(f, "tap={name}")?,
            NetKind::User(forwards) => {
                f.write_str("user")?;
                for forward in forwards {
                    write!(f, ",forward={}:{}", forward.host, forward.guest)?;
                }
            }
        }
        if let Some(mac) = self.mac {
            write!(f, ",mac={mac}")?;
        }
        if let Some(mtu) = self.mtu {
            write!(f, ",mtu={mtu}")?;
        }
        for (name, rate) in [("rx-rate", self.rates.rx), ("tx-rate", self.rates.tx)] {
            if !rate.is_unlimited() {
                write!(f, ",{name}={rate}")?;
            }
        }
        Ok(())
    }
}

fn kind(text: &str, word: &str) -> Result<NetKind, UnitError> {
    match word.split_once('=') {
        None if word == "tap" => Ok(NetKind::Tap(None)),
        None if word == "user" => Ok(NetKind::User(Vec::new())),
        Some(("tap", name)) => {
            check_interface_name(name)?;
            Ok(NetKind::Tap(Some(name.to_owned())))
        }
        _ => Err(UnitError(format!(
            "Network '{text}' is not allowed: begin with tap, tap=NAME or user"
        ))),
    }
}

/// The rules of Linux (`dev_valid_name`), and no `%`, which would be a pattern.
fn check_interface_name(name: &str) -> Result<(), UnitError> {
    let good = |b: u8| b.is_ascii_graphic() && !matches!(b, b'/' | b':' | b'%');
    let length = 1..=INTERFACE_NAME_MAX;
    if length.contains(&name.len()) && name.bytes().all(good) && name != "." && name != ".." {
        return Ok(());
    }
    Err(UnitError(format!(
        "Interface name '{name}' is not allowed: 1 to {INTERFACE_NAME_MAX} printable characters \
         without blank, '/', ':' and '%'"
    )))
}

fn mtu(text: &str) -> Result<u16, UnitError> {
    let number = text.parse::<u16>().ok().filter(|mtu| *mtu >= MIN_MTU);
    number.ok_or_else(|| {
        UnitError(format!(
            "MTU '{text}' is not allowed: {MIN_MTU} to {}",
            u16::MAX
        ))
    })
}

fn set_once<T>(field: &mut Option<T>, value: T, text: &str, key: &str) -> Result<(), UnitError> {
    match field.replace(value) {
        None => Ok(()),
        Some(_) => Err(UnitError(format!("Network '{text}' names {key} twice"))),
    }
}

fn unknown(text: &str, part: &str) -> UnitError {
    UnitError(format!(
        "Network '{text}' is not allowed: '{part}' is not known; after tap or user may come \
         mac=, mtu=, rate=, rx-rate=, tx-rate= and, after user, forward=HOST:GUEST"
    ))
}

/// What stands behind the descriptor of an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum NetLink {
    /// A tap interface with `IFF_NO_PI` and `IFF_VNET_HDR`.
    Tap,
    /// A connected stream socket: each frame behind its length, 32 bits, big-endian.
    Stream,
}

/// One interface in the words of whoever starts a vmm.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct NetSpec {
    /// What stands behind the descriptor.
    pub link: NetLink,
    /// Number of a descriptor that the vmm inherits, for this interface alone.
    pub fd: i32,
    /// Its address; absent: [`MacAddr::stable`].
    #[serde(default)]
    pub mac: Option<MacAddr>,
    /// MTU that the guest is told.
    #[serde(default)]
    pub mtu: Option<u16>,
    /// Limits at the start.
    #[serde(default)]
    pub rates: NetRates,
}

/// What has passed in one direction since the vmm's start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct NetTraffic {
    /// Bytes of frames, Ethernet header included.
    pub bytes: u64,
    /// Frames.
    pub frames: u64,
    /// Frames lost: the host would not take them, or no buffer of the guest was large enough.
    pub drops: u64,
    /// Frames that had to wait for the rate limit.
    pub throttled: u64,
}

/// One interface as it is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct NetStatus {
    /// What stands behind it.
    pub link: NetLink,
    /// Name of the host's tap interface.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tap: Option<String>,
    /// Its address in the guest.
    pub mac: MacAddr,
    /// The host's side is there.
    pub link_up: bool,
    /// The guest's driver is up.
    pub driver_ready: bool,
    /// To the guest.
    pub rx: NetTraffic,
    /// From the guest.
    pub tx: NetTraffic,
    /// Requests of the driver that were refused because they are invalid.
    pub bad_requests: u64,
    /// Limits in force.
    pub rates: NetRates,
}

/// Other limits of one interface; what is absent stays as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct NetRateChange {
    /// Which interface, from 0; absent: all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub index: Option<u32>,
    /// To the guest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rx: Option<IoRate>,
    /// From the guest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tx: Option<IoRate>,
}

impl FromStr for NetRateChange {
    type Err = UnitError;

    /// `RATE`, or in front of it which interface and which direction: `rx=RATE`, `0=RATE`,
    /// `1.tx=RATE`.
    fn from_str(text: &str) -> Result<Self, UnitError> {
        let (which, rate) = match text.split_once('=') {
            // The equals sign of `10M,burst=2M` is the rate's own.
            Some((which, rate)) if !which.contains(',') => (which, rate),
            _ => ("", text),
        };
        let (index, direction) = match which.split_once('.') {
            Some((index, direction)) => (index, direction),
            None if which.bytes().all(|b| b.is_ascii_digit()) => (which, ""),
            None => ("", which),
        };
        let bad = || {
            UnitError(format!(
                "Rate '{text}' is not allowed: write RATE for both directions of all interfaces, \
                 or before it rx=, tx=, 0=, 0.rx= and so on"
            ))
        };
        let index = match index {
            "" if which.contains('.') => return Err(bad()),
            "" => None,
            digits => Some(digits.parse().map_err(|_| bad())?),
        };
        let rate: IoRate = rate.parse()?;
        let (rx, tx) = match direction {
            "" => (Some(rate), Some(rate)),
            "rx" => (Some(rate), None),
            "tx" => (None, Some(rate)),
            _ => return Err(bad()),
        };
        Ok(Self { index, rx, tx })
    }
}

impl fmt::Display for NetRateChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.rx, self.tx) {
            (Some(rx), Some(tx)) if rx == tx => write!(f, "{rx} to and from the guest")?,
            (Some(rx), Some(tx)) => write!(f, "{rx} to and {tx} from the guest")?,
            (Some(rx), None) => write!(f, "{rx} to the guest")?,
            (None, Some(tx)) => write!(f, "{tx} from the guest")?,
            (None, None) => f.write_str("no other rate")?,
        }
        match self.index {
            Some(index) => write!(f, " on network interface {index}"),
            None => f.write_str(" on all network interfaces"),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn wish(text: &str) -> NetWish {
        text.parse().unwrap_or_else(|e| panic!("{text}: {e}"))
    }

    #[test]
    fn what_is_asked_for_is_written_as_it_is_read() {
        for text in [
            "tap",
            "tap=vm0,mac=02:00:00:00:00:01,mtu=1400",
            "user,forward=8080:80,forward=2222:22,rx-rate=10M,500iops,tx-rate=5M",
        ] {
            let wish: NetWish = text.parse().unwrap();
            assert_eq!(wish.to_string().parse::<NetWish>().unwrap(), wish, "{text}");
        }
    }

    #[test]
    fn interfaces_are_written_with_their_options() {
        assert_eq!(wish("tap").kind, NetKind::Tap(None));
        assert_eq!(wish("tap=vm0").kind, NetKind::Tap(Some("vm0".into())));
        let user = wish("user,forward=8080:80,forward=2222:22,mac=02:00:00:00:00:07,mtu=1400");
        let forwards = vec![
            Forward {
                host: 8080,
                guest: 80,
            },
            Forward {
                host: 2222,
                guest: 22,
            },
        ];
        assert_eq!(user.kind, NetKind::User(forwards));
        assert_eq!(user.mac.unwrap().to_string(), "02:00:00:00:00:07");
        assert_eq!(user.mtu, Some(1400));
        let limited = wish("tap,rate=10M,2000iops,burst=1M,mac=02:00:00:00:00:07,tx-rate=5M");
        assert_eq!(limited.rates.rx, "10M,burst=1M,2000iops".parse().unwrap());
        assert_eq!(limited.rates.tx, "5M".parse().unwrap());
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, named) in [
            ("", "tap=NAME"),
            ("bridge=br0", "tap=NAME"),
            ("tap=", "Interface name ''"),
            ("tap=a/b", "a/b"),
            ("tap=sixteen-letters-", "1 to 15"),
            ("tap=ct%d", "ct%d"),
            ("tap,forward=1:2", "forward"),
            ("tap,colour=red", "colour=red"),
            ("user,forward=80", "HOST:GUEST"),
            ("user,forward=0:80", "0:80"),
            ("user,forward=80:70000", "65535"),
            ("user,mac=02:00:00:00:00", "six pairs"),
            ("user,mac=03:00:00:00:00:01", "group"),
            ("user,mac=00:00:00:00:00:00", "zeroes"),
            ("user,mac=+2:00:00:00:00:01", "six pairs"),
            ("user,mtu=10", "68"),
            ("user,mtu=1400,mtu=1500", "twice"),
            ("tap,rate=fast", "fast"),
        ] {
            let error = text.parse::<NetWish>().unwrap_err().to_string();
            assert!(error.contains(named), "{text}: {error}");
        }
    }

    #[test]
    fn a_rate_change_names_interface_and_direction_or_neither() {
        let change = |text: &str| text.parse::<NetRateChange>().unwrap();
        let rate = Some("10M,burst=2M".parse().unwrap());
        let both = change("10M,burst=2M");
        assert_eq!((both.index, both.rx, both.tx), (None, rate, rate));
        let one = change("1=10M,burst=2M");
        assert_eq!((one.index, one.rx, one.tx), (Some(1), rate, rate));
        let rx = change("rx=10M,burst=2M");
        assert_eq!((rx.index, rx.rx, rx.tx), (None, rate, None));
        let tx = change("12.tx=max");
        assert_eq!(
            (tx.index, tx.rx, tx.tx),
            (Some(12), None, Some(IoRate::MAX))
        );
        for text in [
            "", "rx=", "ry=1M", ".rx=1M", "0.=", "x.rx=1M", "0.rx", "burst=1M",
        ] {
            assert!(text.parse::<NetRateChange>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_stable_address_differs_by_name_and_index_and_stays() {
        // A guest that comes back after an upgrade keeps its leases.
        assert_eq!(MacAddr::stable("web", 0).to_string(), "36:dd:b0:68:30:39");
        let mut seen = std::collections::BTreeSet::new();
        for name in 0..200 {
            for index in 0..4 {
                let mac = MacAddr::stable(&format!("web-{name}"), index);
                assert_eq!(mac.octets()[0] & 3, 2, "{mac}");
                assert!(seen.insert(mac.octets()), "{mac} twice");
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..Default::default() })]
        #[test]
        fn an_address_prints_as_what_it_is_read_from(octets in any::<[u8; 6]>()) {
            let text = MacAddr(octets).to_string();
            match text.parse::<MacAddr>() {
                Ok(mac) => prop_assert_eq!(mac.octets(), octets),
                Err(_) => prop_assert!(octets[0] & 1 == 1 || octets == [0; 6]),
            }
        }
    }
}
