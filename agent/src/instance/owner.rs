//! What differs between a process for one instance (`concertina run`) and the agent of a host.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::ExitReport;
use crate::events::Hub;
use crate::measure::Measures;
use crate::pool::Pool;
use crate::resize::books::Books;
use crate::resize::capacity::HostMemory;
use crate::vmm::Bond;

/// What an agent does when an instance of its own has ended.
pub(crate) type OnEnd = Box<dyn FnOnce(&ExitReport) + Send>;

/// Who supervises an instance.
#[derive(Debug)]
pub(crate) struct Owner {
    /// What becomes of the vmm when the supervisor ends.
    pub bond: Bond,
    /// The books of the host.
    pub books: Arc<dyn Books>,
    /// Where the agent listens; absent: the instance has a socket of its own.
    pub socket: Option<PathBuf>,
    /// Who else hears its events.
    pub hub: Option<Arc<Hub>>,
    /// What all its instances have in common is counted there.
    pub measures: Arc<Measures>,
    /// Where its instances are looked at.
    pub pool: Arc<Pool>,
}

impl Owner {
    /// A process that lives and dies with its one instance.
    pub fn process() -> Self {
        Self {
            bond: Bond::DiesWithUs,
            books: Arc::new(HostMemory::new(Path::new("/proc/meminfo"))),
            socket: None,
            hub: None,
            measures: Arc::default(),
            pool: Arc::default(),
        }
    }

    /// The agent of a host, which listens on `socket`.
    pub fn agent(books: Arc<dyn Books>, socket: PathBuf, hub: Arc<Hub>) -> Self {
        Self {
            bond: Bond::OutlivesUs,
            books,
            socket: Some(socket),
            hub: Some(hub),
            measures: Arc::default(),
            pool: Arc::default(),
        }
    }

    /// Counts there, and looks there.
    pub fn with(self, measures: Arc<Measures>, pool: Arc<Pool>) -> Self {
        Self {
            measures,
            pool,
            ..self
        }
    }
}
