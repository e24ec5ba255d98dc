//! Asks one vmm over its unix socket. Each call has a deadline: a vmm that hangs must not hang
//! whoever asks.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use concertina_api::disk::DiskStatus;
use concertina_api::net::NetStatus;
use concertina_api::vm::{BalloonStatistics, Publishing, ResizeReport, VmDescription, VmResize};
use concertina_http::client::{self, Kept};
use concertina_http::{HttpError, Method};
use serde::de::DeserializeOwned;

/// Deadline of a request that needs nothing of the guest. Reading `smaps` of a large guest is the
/// slowest of them.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// What a resize may take beyond its own deadline until its answer is here.
const RESIZE_MARGIN: Duration = Duration::from_secs(5);
/// Deadline of a resize that names none, in milliseconds; the vmm's own default.
const RESIZE_DEFAULT_MS: u64 = 10_000;

/// The API of one vmm.
#[derive(Debug, Clone)]
pub struct VmmClient {
    socket: PathBuf,
    answer_timeout: Duration,
    /// For what is asked each second.
    kept: Arc<Mutex<Kept>>,
}

impl VmmClient {
    /// Names the socket; nothing is connected.
    pub fn new(socket: &Path) -> Self {
        Self {
            socket: socket.to_owned(),
            answer_timeout: ANSWER_TIMEOUT,
            kept: Arc::default(),
        }
    }

    /// The same with another deadline of what needs nothing of the guest.
    pub fn with_deadline(&self, deadline: Duration) -> Self {
        Self {
            answer_timeout: deadline,
            ..self.clone()
        }
    }

    /// The VM as it is.
    pub fn describe(&self) -> Result<VmDescription, HttpError> {
        self.get("/v1/vm")
    }

    /// Its disks as they are.
    pub fn disks(&self) -> Result<Vec<DiskStatus>, HttpError> {
        self.get("/v1/vm/disks")
    }

    /// Its network interfaces as they are.
    pub fn nets(&self) -> Result<Vec<NetStatus>, HttpError> {
        client::get_json(&self.socket, "/v1/vm/nets", self.answer_timeout)
    }

    /// What the guest's balloon driver says of its memory.
    pub fn balloon_statistics(&self) -> Result<BalloonStatistics, HttpError> {
        self.get("/v1/vm/balloon/statistics")
    }

    /// Has the counters file written from here on.
    pub fn publish(&self, wish: &Publishing) -> Result<(), HttpError> {
        client::put_json(&self.socket, "/v1/vm/counters", wish, self.answer_timeout)
    }

    /// Asks for another size and waits for what was reached.
    pub fn resize(&self, wish: &VmResize) -> Result<ResizeReport, HttpError> {
        let deadline = Duration::from_millis(wish.timeout_ms.unwrap_or(RESIZE_DEFAULT_MS));
        let timeout = deadline.saturating_add(RESIZE_MARGIN);
        client::put_json(&self.socket, "/v1/vm/resize", wish, timeout)
    }

    /// Presses the power button: the guest may shut itself down.
    pub fn power_button(&self) -> Result<(), HttpError> {
        self.put("/v1/vm/power-button")
    }

    /// Ends the VM without asking the guest.
    pub fn stop(&self) -> Result<(), HttpError> {
        self.put("/v1/vm/stop")
    }

    /// Asks on the connection that is kept; on another one, while somebody else is asking on it.
    fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, HttpError> {
        match self.kept.try_lock() {
            Ok(mut kept) => kept.get_json(&self.socket, path, self.answer_timeout),
            Err(_) => client::get_json(&self.socket, path, self.answer_timeout),
        }
    }

    fn put(&self, path: &str) -> Result<(), HttpError> {
        client::send::<()>(&self.socket, Method::Put, path, None, self.answer_timeout).map(|_| ())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{FakeVm, FakeVmm, Faults};
    use concertina_api::Bytes;
    use std::time::Instant;

    fn client(faults: Faults) -> (tempfile::TempDir, FakeVmm, VmmClient) {
        let temp = tempfile::tempdir().unwrap();
        let socket = temp.path().join("vmm.sock");
        let vm = FakeVm::new(Bytes::mib(256), Bytes::mib(512), 1, faults);
        let vmm = FakeVmm::listen(&socket, vm);
        let mut client = VmmClient::new(&socket);
        client.answer_timeout = Duration::from_millis(100);
        (temp, vmm, client)
    }

    #[test]
    fn a_vmm_that_hangs_costs_the_deadline_and_no_more() {
        let delay = Duration::from_millis(1500);
        let (_temp, _vmm, client) = client(Faults {
            delay,
            ..Faults::default()
        });
        let begun = Instant::now();
        assert!(client.describe().is_err());
        assert!(client.balloon_statistics().is_err());
        assert!(client.power_button().is_err());
        assert!(begun.elapsed() < delay, "{:?}", begun.elapsed());
    }

    #[test]
    fn an_answer_cut_off_is_an_error() {
        let (_temp, _vmm, client) = client(Faults {
            malformed: true,
            ..Faults::default()
        });
        assert!(client.describe().is_err());
        assert!(client.resize(&VmResize::default()).is_err());
    }
}
