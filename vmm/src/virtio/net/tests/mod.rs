//! The device against drivers, well-behaved and hostile, and against hosts that stop in the middle.

mod good;
mod hostile;
mod rig;
