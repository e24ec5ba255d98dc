//! A vmm for tests: it speaks the real protocol on a real unix socket, and has an obedient or a
//! difficult guest, but no VM behind it. It runs in the test's process, or as a process of its own:
//! the test program started again with [`process_command`].

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use concertina_api::counters::{Counters, STATISTIC_NAMES, Statistics};
use concertina_api::vm::*;
use concertina_api::{Bytes, Quota};
use concertina_http::{Handler, Method, Request, Response, Server, Stopper};

/// What is wrong with a fake guest or vmm.
#[derive(Debug, Clone, Default)]
pub struct Faults {
    /// The guest answers each request for another number of vCPUs with this `_OST` status.
    pub refuse_vcpus: Option<u32>,
    /// The guest does not plug or unplug.
    pub memory_stuck: bool,
    /// The guest plugs memory and does not bring it online.
    pub memory_offline: bool,
    /// There is no balloon driver, hence no statistics.
    pub no_balloon: bool,
    /// Bytes that the guest uses.
    pub used: u64,
    /// Each unplug makes the guest fault this often.
    pub faults_per_step: u64,
    /// Answers take this long.
    pub delay: Duration,
    /// Answers are not JSON.
    pub malformed: bool,
}

/// State of the fake VM.
#[derive(Debug)]
pub struct FakeVm {
    pub faults: Faults,
    pub vcpus: u32,
    pub quota: Quota,
    pub memory: Bytes,
    pub balloon: Bytes,
    pub major_faults: u64,
    pub boot: Bytes,
    pub max: Bytes,
    /// Thread that plays every vCPU.
    pub tid: i32,
    /// Requests to resize, in their order.
    pub wishes: Vec<VmResize>,
    pub power_button: bool,
    pub stop: bool,
    /// It can publish.
    pub can_publish: bool,
    /// It was asked to publish.
    pub publishes: bool,
}

/// A fake vmm that listens.
pub struct FakeVmm {
    pub vm: Arc<Mutex<FakeVm>>,
    stopper: Stopper,
    thread: Option<JoinHandle<()>>,
}

impl FakeVm {
    pub fn new(boot: Bytes, max: Bytes, vcpus: u32, faults: Faults) -> Self {
        Self {
            faults,
            vcpus,
            quota: Quota::Max,
            memory: boot,
            balloon: Bytes(0),
            major_faults: 0,
            boot,
            max,
            tid: std::process::id() as i32,
            wishes: Vec::new(),
            power_button: false,
            stop: false,
            can_publish: false,
            publishes: false,
        }
    }

    fn describe(&self) -> VmDescription {
        let pid = std::process::id() as i32;
        let threads = (0..8).map(|vcpu| VcpuThread {
            vcpu,
            tid: self.tid,
            state: VcpuState::Online,
        });
        VmDescription {
            name: "fake".into(),
            pid,
            uptime_ms: 1,
            state: RunState::Running,
            vcpus: VcpuStatus {
                max: 8,
                target: self.vcpus,
                present: self.vcpus,
                online: self.vcpus,
                threads: threads.collect(),
            },
            quota: Some(self.quota),
            memory: MemoryStatus {
                boot: self.boot,
                max: self.max,
                target: self.memory,
                plugged: self.memory,
                block: Bytes::mib(2),
                driver_ready: true,
                bad_requests: 0,
            },
            vsock: None,
            balloon: BalloonStatus {
                target: self.balloon,
                actual: self.balloon,
                driver_ready: !self.faults.no_balloon,
                reported_total: Bytes(0),
                inflated_total: Bytes(0),
                bad_requests: 0,
            },
            disks: Vec::new(),
            nets: Vec::new(),
            guest_resident: Bytes(self.memory.get() - self.balloon.get()),
            vmm_resident: Bytes::mib(3),
        }
    }

    fn statistics(&self) -> BalloonStatistics {
        if self.faults.no_balloon {
            return BalloonStatistics::default();
        }
        let online = if self.faults.memory_offline {
            self.boot
        } else {
            self.memory
        };
        let total = online.get() - Bytes::mib(16).get();
        let available = total.saturating_sub(self.faults.used + self.balloon.get());
        let values = [
            ("total_memory", total),
            ("available_memory", available),
            ("major_faults", self.major_faults),
        ];
        let values = values.map(|(name, value)| (name.to_owned(), value));
        BalloonStatistics {
            age_ms: Some(0),
            values: values.into(),
        }
    }

    /// What it publishes: a guest that has used nearly all, whatever it answers when it is asked.
    fn counters(&self) -> Counters {
        let now_ms = crate::clock::monotonic_ms();
        let mut statistics = Statistics::default();
        let total = self.memory.get() - Bytes::mib(16).get();
        for (place, name) in statistics.iter_mut().zip(STATISTIC_NAMES) {
            *place = match name {
                "total_memory" => Some(total),
                "available_memory" => Some(total / 20),
                _ => None,
            };
        }
        Counters {
            published_ms: now_ms,
            statistics_ms: Some(now_ms),
            balloon: self.balloon,
            statistics,
        }
    }

    fn resize(&mut self, wish: &VmResize) -> ResizeReport {
        self.wishes.push(wish.clone());
        let mut outcome = Outcome::Applied;
        let mut ost = None;
        let follows = wish.vcpus.is_some_and(|vcpus| vcpus < self.vcpus);
        let keeps_vcpus = follows && self.faults.refuse_vcpus.is_some();
        if !keeps_vcpus {
            self.quota = wish.quota.unwrap_or(self.quota);
        }
        if let Some(vcpus) = wish.vcpus.filter(|vcpus| *vcpus != self.vcpus) {
            match self.faults.refuse_vcpus {
                Some(status) => {
                    ost = Some(status);
                    outcome = Outcome::Refused;
                }
                None => self.vcpus = vcpus,
            }
        }
        if let Some(memory) = wish.memory.filter(|memory| *memory != self.memory) {
            if self.faults.memory_stuck {
                outcome = Outcome::TimedOut;
            } else {
                if memory < self.memory {
                    self.major_faults += self.faults.faults_per_step;
                }
                self.memory = memory;
            }
        }
        self.balloon = wish.balloon.unwrap_or(self.balloon);
        let asked = VmSize {
            vcpus: wish.vcpus,
            quota: wish.quota,
            memory: wish.memory,
            balloon: wish.balloon,
            disk_rate: wish.disk_rate,
            net_rate: wish.net_rate,
        };
        ResizeReport {
            outcome,
            got: VmSize {
                vcpus: asked.vcpus.map(|_| self.vcpus),
                quota: asked.quota.map(|_| self.quota),
                memory: asked.memory.map(|_| self.memory),
                balloon: asked.balloon.map(|_| self.balloon),
                disk_rate: asked.disk_rate,
                net_rate: asked.net_rate,
            },
            asked,
            reason: (outcome != Outcome::Applied).then(|| "the fake guest does not".into()),
            ost,
            timeline_ms: BTreeMap::from([("total".to_owned(), 0.5)]),
        }
    }
}

fn answer(vm: &Mutex<FakeVm>, request: &Request) -> Response {
    let faults = vm.lock().unwrap().faults.clone();
    std::thread::sleep(faults.delay);
    if faults.malformed {
        return Response::new(200, "application/json", b"{\"outcome\":".to_vec());
    }
    let mut vm = vm.lock().unwrap();
    match (request.method, request.path.as_str()) {
        (Method::Get, "/v1/vm") => Response::json(200, &vm.describe()),
        (Method::Get, "/v1/vm/balloon/statistics") => Response::json(200, &vm.statistics()),
        (Method::Put, "/v1/vm/resize") => match request.json::<VmResize>() {
            Ok(wish) => Response::json(200, &vm.resize(&wish)),
            Err(response) => response,
        },
        (Method::Put, "/v1/vm/counters") if vm.can_publish => {
            vm.publishes = true;
            Response::empty(204)
        }
        (Method::Put, "/v1/vm/power-button") => {
            vm.power_button = true;
            Response::empty(204)
        }
        (Method::Put, "/v1/vm/stop") => {
            vm.stop = true;
            Response::empty(204)
        }
        _ => Response::not_found(request),
    }
}

impl FakeVmm {
    pub fn listen(socket: &Path, vm: FakeVm) -> Self {
        let vm = Arc::new(Mutex::new(vm));
        let answered = Arc::clone(&vm);
        let server = Server::bind(socket).unwrap();
        let stopper = server.stopper();
        let handler: Arc<Handler> = Arc::new(move |request| answer(&answered, request));
        let thread = Some(std::thread::spawn(move || server.serve(handler).unwrap()));
        Self {
            vm,
            stopper,
            thread,
        }
    }
}

impl Drop for FakeVmm {
    fn drop(&mut self) {
        self.stopper.stop();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Command of a fake vmm in its own process, which behaves as said:
///
/// | word | |
/// |---|---|
/// | `obey` | powers off when asked, stops when told |
/// | `ignore-button` | only stops when told |
/// | `ignore-all` | has to be killed |
/// | `exit-N` | ends with status N after a short life |
/// | `fail` | says why on its log and ends with status 1 before it listens |
/// | `mute` | lives and does not listen |
/// | `reset-once` | resets at its first life, then obeys |
/// | `reset-after-rate` | resets once a limit was set in its first life, then obeys |
/// | `burn` | obeys, and its vCPUs are busy all the time |
/// | `publish` | obeys, and publishes other statistics than it answers with |
pub fn process_command(behaviour: &str) -> Vec<OsString> {
    let program = std::env::current_exe().unwrap().into_os_string();
    let words = [
        "testing::fake_vmm_process",
        "--exact",
        "--ignored",
        "--nocapture",
        behaviour,
    ];
    std::iter::once(program)
        .chain(words.map(OsString::from))
        .collect()
}

/// Not a test: the body of the process that [`process_command`] starts.
#[test]
#[ignore = "the body of a process that other tests start"]
fn fake_vmm_process() {
    let words: Vec<String> = std::env::args().collect();
    let [.., behaviour, spec] = words.as_slice() else {
        return;
    };
    let Ok(spec) = std::fs::read(spec) else {
        return;
    };
    let spec: VmSpec = serde_json::from_slice(&spec).unwrap();
    let exit_file = spec.exit_file.clone();
    let end = move |status: i32| -> () {
        if let Some(path) = &exit_file {
            let record = VmExitRecord {
                pid: std::process::id() as i32,
                status,
                reason: "the fake vmm ends".into(),
            };
            let _ = std::fs::write(path, serde_json::to_vec(&record).unwrap());
        }
        std::process::exit(status)
    };
    match behaviour.as_str() {
        "fail" => {
            eprintln!("concertina: The fake kernel is bad");
            end(1);
        }
        "mute" => std::thread::sleep(Duration::from_secs(600)),
        _ => {}
    }
    let marker = spec.api_socket.with_extension("reset-once");
    let mut vm = FakeVm::new(
        spec.boot_memory,
        spec.max_memory,
        spec.boot_vcpus,
        Faults::default(),
    );
    vm.quota = spec.quota;
    vm.can_publish = behaviour == "publish";
    // SAFETY: gettid(2) has no preconditions.
    vm.tid = unsafe { libc::gettid() };
    let fake = FakeVmm::listen(&spec.api_socket, vm);
    if let Some(status) = behaviour.strip_prefix("exit-") {
        std::thread::sleep(Duration::from_millis(300));
        end(status.parse().unwrap());
    }
    if behaviour == "reset-once" && !marker.exists() {
        std::fs::write(&marker, "").unwrap();
        std::thread::sleep(Duration::from_millis(200));
        end(exit::RESET);
    }
    let mut published = None;
    loop {
        let pause = Duration::from_millis(5);
        let vm_wishes = || fake.vm.lock().unwrap().wishes.clone();
        if behaviour == "reset-after-rate"
            && !marker.exists()
            && vm_wishes().iter().any(|wish| wish.disk_rate.is_some())
        {
            std::fs::write(&marker, "").unwrap();
            // The answer has to be on its way.
            std::thread::sleep(Duration::from_millis(100));
            end(exit::RESET);
        }
        if behaviour == "burn" {
            let begun = std::time::Instant::now();
            while begun.elapsed() < pause {
                std::hint::spin_loop();
            }
        } else {
            std::thread::sleep(pause);
        }
        // Nobody is left behind by a test that has failed.
        if !spec.api_socket.parent().is_some_and(Path::exists) {
            end(exit::SETUP_FAILED);
        }
        let vm = fake.vm.lock().unwrap();
        if vm.publishes
            && let Some(path) = &spec.counters_file
        {
            // Made once: one that was made again would outlive its folder's removal.
            let file = published.get_or_insert_with(|| std::fs::File::create(path).unwrap());
            file.write_all_at(&vm.counters().encode(), 0).unwrap();
        }
        let obeys_button = matches!(
            behaviour.as_str(),
            "obey" | "reset-once" | "reset-after-rate" | "burn" | "publish"
        );
        if vm.power_button && obeys_button || vm.stop && behaviour != "ignore-all" {
            end(exit::POWER_OFF);
        }
    }
}
