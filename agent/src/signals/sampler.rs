//! One look at an instance: host counters since the look before, and the guest's memory.
//!
//! Rates are of the time since the look before. After a resize the sampler starts afresh, so that no
//! rate mixes two sizes.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use concertina_api::Cpus;
use concertina_api::policy::Metric;
use concertina_api::vm::cgroup;

use super::counters::{CounterFile, Total};
use super::kvm::KvmStatistics;
use super::procfs::parse_schedstat;
use super::psi::parse_some_total;
use crate::cgroup::flat_value;
use crate::plan::memory::Held;
use crate::policy::{MemoryShort, Observations, Sample};
use crate::resize::guest::{self, Said};

/// The pressure files that metrics are told from.
const PRESSURES: [(Metric, &str); 3] = [
    (Metric::CpuPressure, "cpu.pressure"),
    (Metric::MemoryPressure, "memory.pressure"),
    (Metric::IoPressure, "io.pressure"),
];

/// One vCPU's thread.
#[derive(Debug)]
struct VcpuThread {
    schedstat: CounterFile,
    run_ns: Total,
    wait_ns: Total,
}

/// What the instance has at the moment of a look.
#[derive(Debug, Clone, Copy)]
pub struct Present {
    /// Its CPU size.
    pub cpus: Cpus,
    /// vCPUs that are online or coming.
    pub vcpus: u32,
    /// What its memory devices hold.
    pub held: Held,
}

/// Looks at one vmm.
#[derive(Debug)]
pub struct Sampler {
    threads: Vec<VcpuThread>,
    cpu_stat: CounterFile,
    throttled_us: Total,
    kvm: Option<KvmStatistics>,
    pressures: Vec<(Metric, CounterFile, Total)>,
    memory_events: CounterFile,
    braked: [Total; 2],
    /// Whether it is known that nobody has waited for memory since the ceiling was looked at; `None`: the
    /// pressure was not looked at since then.
    nobody_waited: Option<bool>,
    oom_kills: Total,
    alloc_stalls: Total,
    looked: Option<Instant>,
    buffer: Vec<u8>,
}

impl Sampler {
    /// For the vCPU threads `tids`, in the order of their vCPUs, of process `pid`, in `group`.
    pub fn new(proc: &Path, pid: i32, tids: &[i32], group: &Path) -> Self {
        let task = |tid: &i32| -> PathBuf { proc.join(format!("{pid}/task/{tid}/schedstat")) };
        Self {
            threads: tids
                .iter()
                .map(|tid| VcpuThread {
                    schedstat: CounterFile::new(&task(tid)),
                    run_ns: Total::default(),
                    wait_ns: Total::default(),
                })
                .collect(),
            cpu_stat: CounterFile::new(&group.join(cgroup::VCPU).join("cpu.stat")),
            throttled_us: Total::default(),
            kvm: None,
            pressures: PRESSURES
                .into_iter()
                .map(|(metric, name)| {
                    (
                        metric,
                        CounterFile::new(&group.join(name)),
                        Total::default(),
                    )
                })
                .collect(),
            memory_events: CounterFile::new(&group.join("memory.events")),
            braked: [Total::default(); 2],
            nobody_waited: None,
            oom_kills: Total::default(),
            alloc_stalls: Total::default(),
            looked: None,
            buffer: Vec::new(),
        }
    }

    /// Takes KVM's own statistics into account.
    pub fn with_kvm(mut self, kvm: Option<KvmStatistics>) -> Self {
        self.kvm = kvm;
        self
    }

    /// Takes new baselines without a look: the size has changed. Every thread is read, so that one
    /// that comes online later has a baseline too.
    pub fn rebase(&mut self) {
        let all = u32::try_from(self.threads.len()).unwrap_or(u32::MAX);
        self.advance_threads(all);
        self.advance_throttled();
        self.advance_polled();
        self.advance_pressures(Duration::ZERO, 0, &mut BTreeMap::new());
        self.looked = Some(Instant::now());
    }

    /// Looks at the host's counters; `now_ms` is the time of the samples.
    pub fn look(&mut self, present: &Present, now_ms: u64) -> Observations {
        let mut seen = Observations::default();
        let now = Instant::now();
        let passed = self
            .looked
            .map(|looked| now.saturating_duration_since(looked));
        self.looked = Some(now);
        let times = self.advance_threads(present.vcpus);
        let throttled_us = self.advance_throttled();
        let polled_ns = self.advance_polled();
        let Some(passed) = passed.filter(|passed| !passed.is_zero()) else {
            self.advance_pressures(Duration::ZERO, now_ms, &mut BTreeMap::new());
            return seen;
        };
        let passed_ns = passed.as_nanos() as f64;
        let mut put = |metric: Metric, value: f64| {
            seen.samples.insert(
                metric,
                Sample {
                    value,
                    at_ms: now_ms,
                },
            );
        };
        if let Some((run_ns, wait_ns)) = times {
            let capacity_ns = passed_ns * present.cpus.as_f64();
            let busy_ns = run_ns.saturating_sub(polled_ns.unwrap_or(0));
            put(Metric::Cpu, percent(busy_ns as f64, capacity_ns));
            // A throttled thread waits too, but by our own quota and not for want of the host. In a
            // VM without the group nothing is throttled.
            let own_us = throttled_us.unwrap_or(0);
            let stolen_ns = wait_ns.saturating_sub(own_us.saturating_mul(1000));
            put(
                Metric::CpuSteal,
                percent(stolen_ns as f64, passed_ns * f64::from(present.vcpus)),
            );
        }
        self.advance_pressures(passed, now_ms, &mut seen.samples);
        seen
    }

    /// Adds what the guest says. `said`: absent when the vmm did not answer.
    pub fn look_at_guest(
        &mut self,
        said: Option<&Said>,
        present: &Present,
        now_ms: u64,
        seen: &mut Observations,
    ) {
        let guest = said.and_then(|said| guest::read(said, present.held));
        let stalled = self
            .alloc_stalls
            .advance(guest.map(|guest| guest.alloc_stalls));
        let killed = self.oom_kills.advance(guest.map(|guest| guest.oom_kills));
        if stalled.is_some_and(|count| count > 0) {
            seen.memory_short = Some(MemoryShort::AllocStall);
        }
        if killed.is_some_and(|count| count > 0) {
            seen.memory_short = Some(MemoryShort::OomKill);
        }
        let Some(guest) = guest else { return };
        // The numbers are as old as the guest's answer, not as our question.
        let age_ms = said.and_then(|said| said.age_ms).unwrap_or(0);
        let at_ms = now_ms.saturating_sub(age_ms);
        let used = percent(guest.used().get() as f64, guest.total.get() as f64);
        seen.samples
            .insert(Metric::Memory, Sample { value: used, at_ms });
        let value = guest.available.get() as f64;
        seen.samples
            .insert(Metric::MemoryAvailable, Sample { value, at_ms });
    }

    /// How often the cgroup's brake or ceiling was met since the last call: the vmm takes more than
    /// its instance was promised. `None`: unknown.
    ///
    /// Who meets them waits for memory in the kernel's eyes (`reclaim_high` and `try_charge_memcg` of its
    /// mm/memcontrol.c tell PSI): where nobody has waited since the last call, nobody has met them.
    pub fn look_at_ceiling(&mut self) -> Option<u64> {
        let nobody_waited = self.nobody_waited.take() == Some(true);
        if nobody_waited && self.braked.iter().all(|total| total.is_known()) {
            return Some(0);
        }
        let text = self.memory_events.read(&mut self.buffer);
        let [high, max] = &mut self.braked;
        let high = high.advance(text.and_then(|text| flat_value(text, "high")));
        let max = max.advance(text.and_then(|text| flat_value(text, "max")));
        Some(high?.saturating_add(max?))
    }

    /// Run time and wait time of the first `vcpus` threads since the look before, in nanoseconds.
    /// `None` when one of them is unknown: a sum without it would be too small.
    fn advance_threads(&mut self, vcpus: u32) -> Option<(u64, u64)> {
        let online = usize::try_from(vcpus).ok()?;
        let mut sum = Some((0u64, 0u64));
        for thread in self.threads.iter_mut().take(online) {
            let times = thread
                .schedstat
                .read(&mut self.buffer)
                .and_then(parse_schedstat);
            let run = thread.run_ns.advance(times.map(|times| times.run_ns));
            let wait = thread.wait_ns.advance(times.map(|times| times.wait_ns));
            sum = match (sum, run, wait) {
                (Some((runs, waits)), Some(run), Some(wait)) => {
                    Some((runs.saturating_add(run), waits.saturating_add(wait)))
                }
                _ => None,
            };
        }
        sum.filter(|_| online > 0 && online <= self.threads.len())
    }

    fn advance_polled(&mut self) -> Option<u64> {
        self.kvm.as_mut()?.advance_polled(&mut self.buffer)
    }

    fn advance_throttled(&mut self) -> Option<u64> {
        let text = self.cpu_stat.read(&mut self.buffer);
        let throttled = text.and_then(|text| flat_value(text, "throttled_usec"));
        self.throttled_us.advance(throttled)
    }

    fn advance_pressures(
        &mut self,
        passed: Duration,
        now_ms: u64,
        samples: &mut BTreeMap<Metric, Sample>,
    ) {
        for (metric, file, total) in &mut self.pressures {
            let waited = total.advance(file.read(&mut self.buffer).and_then(parse_some_total));
            if *metric == Metric::MemoryPressure {
                self.nobody_waited = Some(self.nobody_waited != Some(false) && waited == Some(0));
            }
            if let Some(waited_us) = waited.filter(|_| !passed.is_zero()) {
                let value = percent(waited_us as f64, passed.as_micros() as f64);
                samples.insert(
                    metric.clone(),
                    Sample {
                        value,
                        at_ms: now_ms,
                    },
                );
            }
        }
    }
}

/// A share in percent, at most all of it: the counters are read one after the other, and a quota may
/// be overrun for a moment and made up for in the next. Not a number, which reads as unknown, where
/// there is nothing to share.
pub(super) fn percent(part: f64, whole: f64) -> f64 {
    if whole > 0.0 {
        (part / whole * 100.0).min(100.0)
    } else {
        f64::NAN
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use concertina_api::Bytes;
    use concertina_api::vm::BalloonStatistics;
    use std::fs;
    use std::thread::sleep;

    /// A process with two vCPU threads in a cgroup, all in a temporary folder.
    struct Fake(tempfile::TempDir);

    impl Fake {
        fn new() -> Self {
            let temp = tempfile::tempdir().unwrap();
            for tid in [11, 12] {
                fs::create_dir_all(temp.path().join(format!("7/task/{tid}"))).unwrap();
            }
            fs::create_dir(temp.path().join("vcpu")).unwrap();
            let fake = Self(temp);
            fake.threads([0, 0], [0, 0]);
            fake.group(0, 0);
            fake
        }

        fn threads(&self, run_ms: [u64; 2], wait_ms: [u64; 2]) {
            for (index, tid) in [11, 12].into_iter().enumerate() {
                let line = format!(
                    "{} {} 1\n",
                    run_ms[index] * 1_000_000,
                    wait_ms[index] * 1_000_000
                );
                fs::write(self.0.path().join(format!("7/task/{tid}/schedstat")), line).unwrap();
            }
        }

        fn group(&self, throttled_ms: u64, stalled_ms: u64) {
            let stat = format!(
                "usage_usec 1\nnr_throttled 1\nthrottled_usec {}\n",
                throttled_ms * 1000
            );
            fs::write(self.0.path().join("vcpu/cpu.stat"), stat).unwrap();
            let psi = format!(
                "some avg10=0.00 avg60=0.00 avg300=0.00 total={}\n",
                stalled_ms * 1000
            );
            for file in ["cpu.pressure", "memory.pressure", "io.pressure"] {
                fs::write(self.0.path().join(file), &psi).unwrap();
            }
        }

        fn sampler(&self) -> Sampler {
            Sampler::new(self.0.path(), 7, &[11, 12], self.0.path())
        }
    }

    fn present(milli: u32, vcpus: u32) -> Present {
        let held = Held {
            plugged: Bytes::mib(256),
            balloon: Bytes(0),
        };
        Present {
            cpus: Cpus(milli),
            vcpus,
            held,
        }
    }

    fn value(seen: &Observations, metric: Metric) -> f64 {
        seen.samples
            .get(&metric)
            .map_or(f64::NAN, |sample| sample.value)
    }

    #[test]
    fn the_first_look_knows_no_rate_and_a_rebase_makes_the_next_one_know() {
        let fake = Fake::new();
        let mut sampler = fake.sampler();
        assert!(sampler.look(&present(1000, 1), 0).samples.is_empty());
        sampler.rebase();
        sleep(Duration::from_millis(5));
        let seen = sampler.look(&present(1000, 1), 5);
        assert_eq!(value(&seen, Metric::Cpu), 0.0);
    }

    #[test]
    fn cpu_is_the_share_of_the_size_that_the_instance_has() {
        let fake = Fake::new();
        let mut sampler = fake.sampler();
        sampler.rebase();
        sleep(Duration::from_millis(50));
        // Half a CPU for the whole time is all of a size of 0.5, and a quarter of 2.
        fake.threads([20, 0], [0, 0]);
        let half = value(&sampler.look(&present(500, 1), 50), Metric::Cpu);
        assert!(half > 40.0 && half <= 80.1, "{half}");
        sleep(Duration::from_millis(50));
        fake.threads([45, 25], [0, 0]);
        let whole = value(&sampler.look(&present(2000, 2), 100), Metric::Cpu);
        assert!(whole > 25.0 && whole <= 50.1, "{whole}");
    }

    #[test]
    fn what_our_own_quota_holds_back_is_not_stolen() {
        let fake = Fake::new();
        let mut sampler = fake.sampler();
        sampler.rebase();
        sleep(Duration::from_millis(50));
        fake.threads([25, 0], [25, 0]);
        fake.group(25, 0);
        assert_eq!(
            value(&sampler.look(&present(500, 1), 50), Metric::CpuSteal),
            0.0
        );
        sleep(Duration::from_millis(50));
        fake.threads([30, 0], [65, 0]);
        let stolen = value(&sampler.look(&present(500, 1), 100), Metric::CpuSteal);
        assert!(stolen > 40.0 && stolen <= 80.1, "{stolen}");
    }

    #[test]
    fn a_thread_that_cannot_be_read_makes_the_sum_unknown_not_small() {
        let fake = Fake::new();
        let mut sampler = fake.sampler();
        sampler.rebase();
        sleep(Duration::from_millis(5));
        fs::write(fake.0.path().join("7/task/12/schedstat"), "rubbish").unwrap();
        let seen = sampler.look(&present(2000, 2), 5);
        assert!(!seen.samples.contains_key(&Metric::Cpu));
        let more_than_there_are = sampler.look(&present(3000, 3), 6);
        assert!(!more_than_there_are.samples.contains_key(&Metric::Cpu));
    }

    #[test]
    fn pressure_is_the_waiting_since_the_look_before() {
        let fake = Fake::new();
        let mut sampler = fake.sampler();
        sampler.rebase();
        sleep(Duration::from_millis(50));
        fake.group(0, 25);
        let seen = sampler.look(&present(1000, 1), 50);
        let memory = value(&seen, Metric::MemoryPressure);
        assert!(memory > 20.0 && memory <= 50.1, "{memory}");
        fs::remove_file(fake.0.path().join("io.pressure")).unwrap();
    }

    #[test]
    fn meeting_the_ceiling_is_counted_from_the_first_look_on() {
        let fake = Fake::new();
        let mut sampler = fake.sampler();
        let events = fake.0.path().join("memory.events");
        assert_eq!(sampler.look_at_ceiling(), None);
        fs::write(&events, "low 0\nhigh 5\nmax 1\noom 0\noom_kill 0\n").unwrap();
        assert_eq!(sampler.look_at_ceiling(), None);
        fs::write(&events, "low 0\nhigh 7\nmax 2\noom 0\noom_kill 0\n").unwrap();
        assert_eq!(sampler.look_at_ceiling(), Some(3));
        assert_eq!(sampler.look_at_ceiling(), Some(0));
    }

    #[test]
    fn the_ceiling_is_not_looked_at_where_nobody_has_waited_for_memory() {
        let fake = Fake::new();
        let events = fake.0.path().join("memory.events");
        let met = |times: u64| fs::write(&events, format!("high {times}\nmax 0\n")).unwrap();
        met(0);
        let mut sampler = fake.sampler();
        sampler.rebase();
        assert_eq!(sampler.look_at_ceiling(), None, "the first of its numbers");
        let mut look = |waited_ms: u64| {
            fake.group(0, waited_ms);
            sampler.rebase();
            sampler.look_at_ceiling()
        };
        assert_eq!(look(0), Some(0));
        met(2);
        assert_eq!(look(1), Some(2));
        assert_eq!(look(1), Some(0));
        // Who waited before the size changed was seen by the look that began afresh.
        met(3);
        fake.group(0, 2);
        sampler.rebase();
        sampler.rebase();
        assert_eq!(sampler.look_at_ceiling(), Some(1));
        // Pressure that is unknown says nothing about it.
        met(4);
        fs::write(fake.0.path().join("memory.pressure"), "rubbish").unwrap();
        sampler.rebase();
        assert_eq!(sampler.look_at_ceiling(), Some(1));
    }

    #[test]
    fn the_guest_is_short_when_its_counters_rise_and_never_when_they_are_unknown() {
        let fake = Fake::new();
        let mut sampler = fake.sampler();
        let said = |oom_kills: u64, stalls: u64, age_ms: u64| BalloonStatistics {
            age_ms: Some(age_ms),
            values: [
                ("total_memory", 240 << 20),
                ("available_memory", 60 << 20),
                ("oom_kill", oom_kills),
                ("alloc_stall", stalls),
            ]
            .map(|(name, value)| (name.to_owned(), value))
            .into(),
        };
        let mut look = |statistics: Option<&BalloonStatistics>, now_ms| {
            let mut seen = Observations::default();
            let said = statistics.map(Said::from);
            sampler.look_at_guest(said.as_ref(), &present(1000, 1), now_ms, &mut seen);
            seen
        };
        let seen = look(Some(&said(3, 3, 10)), 1000);
        assert_eq!(value(&seen, Metric::Memory), 75.0);
        assert_eq!(
            seen.samples[&Metric::Memory].at_ms,
            990,
            "as old as the answer"
        );
        assert_eq!(
            seen.memory_short, None,
            "what was before the first look is not news"
        );
        assert_eq!(
            look(Some(&said(3, 4, 0)), 1100).memory_short,
            Some(MemoryShort::AllocStall)
        );
        assert_eq!(
            look(Some(&said(4, 5, 0)), 1200).memory_short,
            Some(MemoryShort::OomKill)
        );
        assert!(look(None, 1300).samples.is_empty());
        assert!(look(Some(&said(9, 9, 60_000)), 1400).samples.is_empty());
        assert_eq!(look(Some(&said(9, 9, 0)), 1500).memory_short, None);
    }
}
