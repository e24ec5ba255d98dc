//! Others' ways to scale, to compare with: each is small, pure, and sees what its original would see.

mod hoster;
mod load_average;
mod naive;
mod oracle;
mod proxmox;
mod static_size;
mod vpa;

use std::fmt;
use std::str::FromStr;

use concertina_api::policy::PolicyBounds;
use serde::Serialize;

use super::demand::Demand;
use super::scaler::Scaler;

/// A way to scale.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Baseline {
    /// Provisioned once, by the trace's own peak.
    Static,
    /// Step rules over minutes, as hosting panels have them.
    Hoster,
    /// A goal from the load average, in NeonVM's form.
    LoadAverage,
    /// Percentiles of decaying histograms, in the form of Kubernetes' vertical autoscaler.
    Vpa,
    /// Ballooning towards a host that is used to 80 %, in Proxmox' form.
    Proxmox,
    /// A step every five minutes; what cannot be read is taken for 0.
    Naive,
    /// Knows the trace and pays for actuation only.
    Oracle,
}

impl Baseline {
    /// Every one.
    pub const ALL: [Self; 7] = [
        Self::Static,
        Self::Hoster,
        Self::LoadAverage,
        Self::Vpa,
        Self::Proxmox,
        Self::Naive,
        Self::Oracle,
    ];

    /// The name on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Static => "static",
            Self::Hoster => "hoster",
            Self::LoadAverage => "load-average",
            Self::Vpa => "vpa",
            Self::Proxmox => "proxmox",
            Self::Naive => "naive",
            Self::Oracle => "oracle",
        }
    }

    /// Its scaler, for an instance with these bounds under this load.
    pub fn scaler<'a>(self, demand: &'a Demand, bounds: &PolicyBounds) -> Box<dyn Scaler + 'a> {
        match self {
            Self::Static => Box::new(static_size::Static::new(demand, bounds)),
            Self::Hoster => Box::new(hoster::Hoster::new()),
            Self::LoadAverage => Box::new(load_average::LoadAverage),
            Self::Vpa => Box::new(vpa::Vpa::new()),
            Self::Proxmox => Box::new(proxmox::Proxmox::new(bounds)),
            Self::Naive => Box::new(naive::Naive),
            Self::Oracle => Box::new(oracle::Oracle::new(demand)),
        }
    }
}

impl fmt::Display for Baseline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Baseline {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|one| one.as_str() == text);
        found.ok_or_else(|| {
            let names = Self::ALL.map(Self::as_str).join(", ");
            format!("'{text}' is no baseline: they are all, {names}")
        })
    }
}

/// The next time on a clock of this period.
fn next_tick(now_ms: u64, period_ms: u64) -> u64 {
    (now_ms / period_ms + 1) * period_ms
}
