//! The guest's memory in our address space: boot RAM, and the elastic region whose blocks come and go.
//!
//! [`GuestRam`] is what devices see. Every access is checked against the blocks that are plugged, so
//! that no address of an unplugged block is ever touched on the guest's behalf: it is mapped without
//! access, and to touch it would end the process.

mod elastic;
mod mapping;
mod region;

pub use elastic::{ElasticError, ElasticMemory, MemorySlots};
pub use mapping::Mapping;
pub use region::{PluggedBlocks, RamRegion};

use vm_memory::GuestRegionCollection;

/// All memory of the guest.
pub type GuestRam = GuestRegionCollection<RamRegion>;

/// Unit in which the elastic region is plugged and unplugged, bytes.
pub const BLOCK_BYTES: u64 = 2 << 20;
/// Unit in which the elastic region is given to KVM, bytes: one memory slot each.
pub const SLOT_BYTES: u64 = 128 << 20;
