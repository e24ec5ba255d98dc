use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::thread::{self, JoinHandle};

use concertina_api::policy::Metric;
use concertina_guest::channel::{
    Answer, Disk, GuestHello, Lines, MAX_GAUGES, Memory, Pressure, Processors, Report,
};
use proptest::prelude::*;

use super::*;
use crate::poll;

/// A channel, and whoever plays the guest.
struct Bench {
    channel: Arc<Channel>,
    watch: Arc<Wakeup>,
    socket: std::path::PathBuf,
    _temp: tempfile::TempDir,
}

fn bench() -> Bench {
    let temp = tempfile::tempdir().unwrap();
    let watch = Arc::new(Wakeup::new().unwrap());
    let channel = Channel::new(Instant::now(), Arc::clone(&watch)).unwrap();
    let socket = temp.path().join("s");
    channel.listen(&socket, &Arc::default()).unwrap();
    Bench {
        channel: Arc::new(channel),
        watch,
        socket,
        _temp: temp,
    }
}

impl Bench {
    /// Connects; the host's first words have come.
    fn guest(&self) -> Guest {
        let stream = UnixStream::connect(&self.socket).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(5)))
            .unwrap();
        let mut guest = Guest {
            stream,
            lines: Lines::default(),
            heard: VecDeque::new(),
        };
        let hello = guest.hear().hello.unwrap();
        assert_eq!((hello.version, hello.period_ms), (1, 1000));
        guest
    }

    /// What is seen once the last words of the guest have arrived.
    fn seen_after(&self, guest: &mut Guest, words: &str) -> Observations {
        guest.say(words);
        // A mark behind them.
        guest.say(r#"{"report":{"custom":{"mark":1}}}"#);
        until(|| {
            self.channel
                .status()
                .is_some_and(|s| s.custom.contains_key("mark"))
        });
        guest.say(words);
        until(|| {
            self.channel
                .status()
                .is_none_or(|s| !s.custom.contains_key("mark"))
        });
        self.seen()
    }

    fn seen(&self) -> Observations {
        let mut seen = Observations::default();
        let now = self.channel.launched.elapsed().as_millis() as u64;
        self.channel.observe(now, &mut seen);
        seen
    }
}

struct Guest {
    stream: UnixStream,
    lines: Lines,
    heard: VecDeque<ToGuest>,
}

impl Guest {
    fn say(&mut self, words: &str) {
        self.stream
            .write_all(format!("{words}\n").as_bytes())
            .unwrap();
    }

    fn report(&mut self, report: Report) {
        let message = FromGuest {
            report: Some(report),
            ..FromGuest::default()
        };
        self.stream
            .write_all(&channel::encode(&message).unwrap())
            .unwrap();
    }

    fn hooks(&mut self, before_shrink: bool, after_grow: bool) {
        let message = FromGuest {
            hooks: Some(Hooks {
                before_shrink,
                after_grow,
            }),
            ..FromGuest::default()
        };
        self.stream
            .write_all(&channel::encode(&message).unwrap())
            .unwrap();
    }

    fn answer(&mut self, id: u64, outcome: AnswerOutcome, reason: &str) {
        let message = FromGuest {
            answer: Some(Answer {
                id,
                outcome,
                reason: Some(reason.into()),
            }),
            ..FromGuest::default()
        };
        self.stream
            .write_all(&channel::encode(&message).unwrap())
            .unwrap();
    }

    fn hear(&mut self) -> ToGuest {
        while self.heard.is_empty() {
            let mut chunk = [0; 512];
            let got = self.stream.read(&mut chunk).unwrap();
            assert!(got > 0, "the host has gone");
            self.lines.feed(&chunk[..got], |line| {
                self.heard
                    .push_back(channel::decode(line.unwrap()).unwrap());
            });
        }
        self.heard.pop_front().unwrap()
    }
}

#[track_caller]
fn until(mut done: impl FnMut() -> bool) {
    let began = Instant::now();
    while !done() {
        assert!(began.elapsed() < Duration::from_secs(10), "not within 10 s");
        thread::sleep(Duration::from_millis(2));
    }
}

fn value(seen: &Observations, metric: &Metric) -> Option<f64> {
    seen.samples.get(metric).map(|sample| sample.value)
}

fn ordinary() -> Report {
    Report {
        pressure: Pressure {
            cpu: Some(20.0),
            memory: Some(5.0),
            io: None,
        },
        load1: Some(1.5),
        memory: Some(Memory {
            total: 1000,
            available: 400,
            swap_total: 100,
            swap_used: 30,
        }),
        root: Some(Disk {
            total: 10,
            available: 4,
        }),
        cpus: Some(Processors {
            online: 1,
            present: 2,
        }),
        custom: BTreeMap::from([("rps".to_owned(), Some(12.0))]),
        ..Report::default()
    }
}

#[test]
fn a_report_becomes_samples_and_of_pressure_the_larger_one_counts() {
    let bench = bench();
    let mut guest = bench.guest();
    guest.report(ordinary());
    until(|| bench.channel.status().is_some());
    let mut seen = Observations::default();
    let host = |value| Sample { value, at_ms: 0 };
    seen.samples.insert(Metric::CpuPressure, host(70.0));
    seen.samples.insert(Metric::MemoryPressure, host(1.0));
    seen.samples.insert(Metric::IoPressure, host(3.0));
    let now = bench.channel.launched.elapsed().as_millis() as u64;
    bench.channel.observe(now, &mut seen);
    for (metric, expected) in [
        (Metric::CpuPressure, 70.0),
        (Metric::MemoryPressure, 5.0),
        (Metric::IoPressure, 3.0),
        (Metric::Load1, 1.5),
        (Metric::Swap, 30.0),
        (Metric::Custom("rps".into()), 12.0),
    ] {
        assert_eq!(value(&seen, &metric), Some(expected), "{metric}");
    }
    let status = bench.channel.status().unwrap();
    assert_eq!(
        (status.cpus_online, status.cpus_present),
        (Some(1), Some(2))
    );
    // What the host measures alone is no matter of the guest's.
    assert_eq!(value(&seen, &Metric::Cpu), None);
    assert_eq!(value(&seen, &Metric::Memory), None);
}

#[test]
fn what_is_old_or_of_a_guest_that_has_gone_is_unknown() {
    let bench = bench();
    let mut guest = bench.guest();
    guest.report(ordinary());
    until(|| bench.channel.status().is_some());
    let mut seen = Observations::default();
    let later = bench.channel.launched.elapsed() + FRESH + Duration::from_millis(10);
    bench.channel.observe(later.as_millis() as u64, &mut seen);
    assert!(seen.samples.is_empty());
    assert!(!bench.seen().samples.is_empty());
    drop(guest);
    until(|| bench.channel.status().is_none());
    assert!(bench.seen().samples.is_empty());
}

#[test]
fn absurd_values_are_unknown_each_by_itself() {
    let bench = bench();
    let mut guest = bench.guest();
    for absurd in [
        r#"{"report":{"load1":-1,"pressure":{"cpu":101,"memory":-0.1,"io":1e308}}}"#,
        r#"{"report":{"load1":1e300,"memory":{"total":5,"swap_total":4,"swap_used":9}}}"#,
        r#"{"report":{"memory":{"swap_total":18446744073709551615,"swap_used":18446744073709551615}}}"#,
        r#"{"report":{"custom":{"A":1,"a b":2,"x":1e200,"y":null,"z":-1e16,"":3}}}"#,
        r#"{"report":{"cpus":{"online":9,"present":2},"root":{"total":1,"available":2}}}"#,
    ] {
        let mut seen = bench.seen_after(&mut guest, absurd);
        // Swap that the guest did not speak of is none in use.
        seen.samples
            .retain(|metric, sample| *metric != Metric::Swap || sample.value != 0.0);
        assert!(seen.samples.is_empty(), "{absurd}: {:?}", seen.samples);
    }
    let status = bench.channel.status().unwrap();
    assert_eq!((status.cpus_online, status.root_total), (None, None));
    // One bad field takes no good one with it.
    let seen = bench.seen_after(
        &mut guest,
        r#"{"report":{"load1":2,"pressure":{"cpu":-7}}}"#,
    );
    assert_eq!(value(&seen, &Metric::Load1), Some(2.0));
    assert_eq!(value(&seen, &Metric::CpuPressure), None);
}

#[test]
fn names_of_numbers_are_bounded() {
    let bench = bench();
    let mut guest = bench.guest();
    let custom = (0..500).map(|i| (format!("n{i}"), Some(1.0))).collect();
    guest.report(Report {
        custom,
        ..Report::default()
    });
    until(|| bench.channel.status().is_some());
    assert_eq!(bench.channel.status().unwrap().custom.len(), MAX_GAUGES);
}

#[test]
fn an_urgent_report_wakes_the_watch_at_once() {
    let bench = bench();
    let mut guest = bench.guest();
    guest.report(ordinary());
    until(|| bench.channel.status().is_some());
    assert!(!bench.channel.take_alarm() && !bench.watch.clear());
    guest.report(Report {
        urgent: true,
        ..ordinary()
    });
    let fds = [bench.watch.as_raw_fd()];
    let woken = poll::wait_readable(&fds, Some(Duration::from_secs(5))).unwrap();
    assert_eq!(woken, [true]);
    assert!(bench.channel.take_alarm());
    assert!(!bench.channel.take_alarm());
}

#[test]
fn a_guest_in_permanent_alarm_wakes_the_watch_now_and_then() {
    let bench = bench();
    let mut guest = bench.guest();
    let began = Instant::now();
    let mut alarms = 0;
    while began.elapsed() < Duration::from_millis(700) {
        guest.say(r#"{"report":{"urgent":true}}"#);
        alarms += u32::from(bench.channel.take_alarm());
        thread::sleep(Duration::from_millis(1));
    }
    let allowed = began.elapsed().as_millis() / ALARM_PAUSE.as_millis() + 1;
    assert!(alarms > 0 && u128::from(alarms) <= allowed, "{alarms}");
}

#[test]
fn rubbish_is_counted_and_too_much_of_it_ends_the_connection() {
    let bench = bench();
    let mut guest = bench.guest();
    for rubbish in ["", "{", "7", "\u{0}", r#"{"report":{"load1":1e999}}"#] {
        guest.say(rubbish);
    }
    guest.say(&"x".repeat(40_000));
    guest.report(ordinary());
    until(|| bench.channel.status().is_some());
    assert_eq!(bench.channel.status().unwrap().bad_lines, 6);
    for _ in 0..20 {
        // The host may have hung up in the middle of it.
        let _ = guest.stream.write_all(b"rubbish\n");
    }
    until(|| bench.channel.status().is_none());
    // The next one is listened to.
    let mut guest = bench.guest();
    guest.report(ordinary());
    until(|| bench.channel.status().is_some());
}

#[test]
fn a_guest_that_floods_is_read_slowly() {
    let bench = bench();
    let mut guest = bench.guest();
    guest.stream.set_nonblocking(true).unwrap();
    let line = channel::encode(&FromGuest {
        report: Some(ordinary()),
        ..FromGuest::default()
    });
    let flood = line.unwrap().repeat(50);
    let began = Instant::now();
    let mut taken = 0;
    while began.elapsed() < Duration::from_secs(1) {
        match guest.stream.write(&flood) {
            Ok(n) => taken += n,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                thread::sleep(Duration::from_millis(1));
            }
            Err(error) => panic!("{error}"),
        }
    }
    // What the socket itself holds, a burst, and a second's worth.
    assert!(taken < (512 << 10), "{taken}");
    assert!(bench.channel.status().is_some());
}

#[test]
fn the_newest_connection_counts() {
    let bench = bench();
    let mut first = bench.guest();
    first.report(ordinary());
    until(|| bench.channel.status().is_some());
    let mut second = bench.guest();
    assert_eq!(bench.channel.status(), None);
    second.report(ordinary());
    until(|| bench.channel.status().is_some());
    assert_eq!(first.stream.read(&mut [0; 8]).unwrap(), 0);
}

/// Asks the guest's hooks in a thread; gives what they said and how long it took.
fn ask(bench: &Bench, left: Duration) -> JoinHandle<(Option<String>, Duration)> {
    let channel = Arc::clone(&bench.channel);
    thread::spawn(move || {
        let began = Instant::now();
        let said = channel.before_shrink(Axis::Memory, 200, 100, left);
        (said, began.elapsed())
    })
}

#[test]
fn hooks_may_refuse_a_shrink_and_say_why() {
    let bench = bench();
    let mut guest = bench.guest();
    guest.report(ordinary());
    until(|| bench.channel.status().is_some());
    let asked = ask(&bench, Duration::from_secs(4));
    let change = guest.hear().change.unwrap();
    assert_eq!(
        (change.moment, change.axis, change.from, change.to),
        (Moment::BeforeShrink, ChangeAxis::Memory, 200, 100)
    );
    assert!(change.deadline_ms > 3000 && change.deadline_ms <= 4000);
    guest.answer(change.id + 1, AnswerOutcome::Vetoed, "another change");
    guest.answer(
        change.id,
        AnswerOutcome::Vetoed,
        &format!("busy\u{1b}[2J{}", "x".repeat(999)),
    );
    let reason = asked.join().unwrap().0.unwrap();
    assert!(
        reason.contains("busy") && !reason.contains('\u{1b}'),
        "{reason}"
    );
    assert!(reason.len() < 300, "{reason}");

    let asked = ask(&bench, Duration::from_secs(4));
    let change = guest.hear().change.unwrap();
    guest.answer(change.id, AnswerOutcome::Done, "");
    assert_eq!(asked.join().unwrap().0, None);

    bench.channel.after_grow(Axis::Cpus, 1000, 2000);
    assert_eq!(guest.hear().change.unwrap().moment, Moment::AfterGrow);

    // A guest that has none is not asked; one that has some of one kind is asked at that moment only.
    let says = |guest: &mut Guest, before_shrink| {
        guest.hooks(before_shrink, false);
        until(|| bench.channel.status().unwrap().shrink_hooks == Some(before_shrink));
    };
    says(&mut guest, false);
    assert_eq!(ask(&bench, Duration::from_secs(4)).join().unwrap().0, None);
    bench.channel.after_grow(Axis::Cpus, 1000, 2000);
    says(&mut guest, true);
    let asked = ask(&bench, Duration::from_secs(4));
    let change = guest.hear().change.unwrap();
    assert_eq!(change.moment, Moment::BeforeShrink);
    guest.answer(change.id, AnswerOutcome::Vetoed, "busy");
    assert!(asked.join().unwrap().0.is_some());
    bench.channel.power_off();
    assert!(guest.hear().power_off);
}

#[test]
fn a_guest_that_does_not_answer_holds_nothing_up_for_long() {
    let bench = bench();
    // Nobody is there.
    let (said, took) = ask(&bench, Duration::from_secs(60)).join().unwrap();
    assert_eq!(said, None);
    assert!(took < Duration::from_millis(500), "{took:?}");
    // Somebody is there who says nothing.
    let mut guest = bench.guest();
    guest.report(ordinary());
    until(|| bench.channel.status().is_some());
    let (said, took) = ask(&bench, Duration::from_millis(100)).join().unwrap();
    assert_eq!(said, None);
    assert!(took < Duration::from_secs(3), "{took:?}");
    // Somebody who goes while he is waited for.
    guest.hear();
    let asked = ask(&bench, Duration::from_secs(60));
    guest.hear();
    drop(guest);
    let (said, took) = asked.join().unwrap();
    assert_eq!(said, None);
    assert!(took < Duration::from_secs(4), "{took:?}");
}

fn wild() -> impl Strategy<Value = Option<f64>> {
    prop::option::of(any::<f64>())
}

proptest! {
    #[test]
    fn whatever_is_reported_only_sane_numbers_are_left(
        (cpu, memory, io, load1) in (wild(), wild(), wild(), wild()),
        [total, available, swap_total, swap_used] in any::<[u64; 4]>(),
        custom in prop::collection::btree_map("[ -~]{0,70}", wild(), 0..100),
    ) {
        let reading = Reading::of(Report {
            pressure: Pressure { cpu, memory, io },
            load1,
            memory: Some(Memory { total, available, swap_total, swap_used }),
            custom,
            ..Report::default()
        });
        for (metric, value) in reading.pressures() {
            prop_assert!((0.0..=100.0).contains(&value), "{} {}", metric, value);
        }
        let mut count = 0;
        for (metric, value) in reading.numbers() {
            prop_assert!(value.is_finite() && value.abs() < 2e18, "{} {}", metric, value);
            prop_assert_eq!(metric.to_string().parse::<Metric>(), Ok(metric));
            count += 1;
        }
        prop_assert!(count <= MAX_GAUGES + 2);
    }
}

#[test]
fn a_hello_alone_is_no_report() {
    let bench = bench();
    let mut guest = bench.guest();
    let hello = FromGuest {
        hello: Some(GuestHello {
            version: 99,
            program: "later".into(),
        }),
        ..FromGuest::default()
    };
    let line = channel::encode(&hello).unwrap();
    guest.stream.write_all(&line).unwrap();
    thread::sleep(Duration::from_millis(20));
    assert_eq!(bench.channel.status(), None);
}
