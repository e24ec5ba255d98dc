//! How a VM ends.

use std::sync::{Arc, Mutex, PoisonError};

use concertina_api::vm::exit as status;
use vmm_sys_util::eventfd::EventFd;

/// Why the VM is over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Exit {
    /// The guest powered off.
    PowerOff,
    /// Stopped by request from outside.
    Stopped,
    /// The guest asked for a reset.
    Reset,
    /// A vCPU shut down after an exception that the guest could not take.
    TripleFault,
    /// KVM cannot go on; a sentence says why.
    Kvm(String),
}

impl Exit {
    /// Exit status of the process.
    pub fn status(&self) -> i32 {
        match self {
            Self::PowerOff | Self::Stopped => status::POWER_OFF,
            Self::Reset => status::RESET,
            Self::TripleFault => status::TRIPLE_FAULT,
            Self::Kvm(_) => status::KVM_ERROR,
        }
    }

    /// A sentence for the log.
    pub fn sentence(&self) -> String {
        match self {
            Self::PowerOff => "The guest powered off".into(),
            Self::Stopped => "The VM was stopped on request".into(),
            Self::Reset => "The guest asked for a reset".into(),
            Self::TripleFault => {
                "The guest crashed: a vCPU shut down by triple fault (its kernel could not handle an exception)"
                    .into()
            }
            Self::Kvm(why) => format!("KVM cannot run the guest any further: {why}"),
        }
    }
}

/// Says, from any thread, that the VM is over. The first one counts.
#[derive(Clone)]
pub struct ExitNotifier {
    first: Arc<Mutex<Option<Exit>>>,
    event: Arc<EventFd>,
}

impl ExitNotifier {
    /// `event` wakes the event loop.
    pub fn new(event: Arc<EventFd>) -> Self {
        Self {
            first: Arc::default(),
            event,
        }
    }

    /// The VM is over.
    pub fn notify(&self, exit: Exit) {
        self.first
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get_or_insert(exit);
        let _ = self.event.write(1);
    }

    /// Why, if it is.
    pub fn get(&self) -> Option<Exit> {
        self.first
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}
