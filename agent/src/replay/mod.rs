//! What would have become of an instance under a real load: the live decision ([`crate::policy`]
//! and [`crate::plan`]) and others' ways to scale ([`baseline`]) over the same recorded trace.
//!
//! Pure: text in, numbers out; no clock and no randomness, so the same input always gives the same
//! scores. Nothing is sampled; time goes from one happening to the next:
//!
//! ```text
//! trace ─► demand ──────────────► simulated instance ─► score
//! (file)   (CPUs, bytes at t)      │ sees       ▲ acts
//!                                  ▼            │ (measured times)
//!                                 scaler: live policy or baseline
//! ```
//!
//! A scaler never sees the demand. It sees what a live one would see: utilisation of the size that
//! is there, which ends at 100 %, and the memory that the guest has left, which ends at nothing. What
//! is not served in its moment is lost; it does not queue up.

pub mod actuation;
pub mod baseline;
pub mod demand;
mod instance;
mod live;
mod run;
pub mod scaler;
pub mod score;
mod timeline;
pub mod trace;

#[cfg(test)]
mod properties;
#[cfg(test)]
mod scenarios;

pub use actuation::Actuation;
pub use baseline::Baseline;
pub use demand::{Demand, Interpolation, Machine};
pub use live::Live;
pub use run::{Scene, run};
pub use score::{AxisScore, Score};
pub use timeline::{Column, Timeline};
pub use trace::{Trace, TraceError, TraceOptions, read_trace};
