//! Chains: what was written reads back, and whatever is changed shows.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::{Duration, UNIX_EPOCH};

use proptest::prelude::*;

use super::chain::check;
use super::*;
use crate::clock::Moment;
use crate::policy::Size;

fn at(seconds: u64) -> Moment {
    Moment {
        boot: "boot".into(),
        monotonic_ms: 1_000_000 + seconds * 1000,
        wall_ms: seconds * 1000,
    }
}

fn size(milli: u32, mib: u64) -> Size {
    Size {
        cpus: Cpus(milli),
        memory: Bytes::mib(mib),
    }
}

const RESIDENT: Bytes = Bytes::mib(64);

fn file() -> (tempfile::TempDir, PathBuf) {
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("usage.jsonl");
    (temp, path)
}

/// A life of two minutes that grows after one.
fn live(path: &Path, from: u64) {
    let log = UsageLog::open(path, "web").unwrap();
    log.launched(&at(from), size(1000, 512), RESIDENT);
    log.resized(&at(from + 60), size(2000, 1024), RESIDENT);
    assert!(!log.is_due(&at(from + 119)));
    assert!(log.is_due(&at(from + 120)));
    log.passed(&at(from + 120), RESIDENT);
    log.ended(&at(from + 150));
}

#[test]
fn a_life_reads_back_as_what_was_held() {
    let (_temp, path) = file();
    live(&path, 0);
    live(&path, 500);
    let chain = read_chain(&path, "web").unwrap();
    let reasons: Vec<Reason> = chain.records.iter().map(|record| record.reason).collect();
    let one = [Reason::Launch, Reason::Resize, Reason::Minute, Reason::End];
    assert_eq!(reasons, [one, one].concat());
    assert!(chain.gaps.is_empty() && chain.torn == 0);
    let totals = total(&chain.records, None);
    assert_eq!(totals.seconds(), 300.0);
    assert_eq!(totals.vcpu_seconds(), 2.0 * (60.0 + 2.0 * 90.0));
    assert_eq!(totals.promised_gib_seconds(), 2.0 * (30.0 + 90.0));
    assert_eq!(totals.resident_gib_seconds(), 300.0 / 16.0);
}

#[test]
fn since_a_time_counts_the_part_of_a_record_that_lies_after_it() {
    let (_temp, path) = file();
    live(&path, 0);
    let records = read_chain(&path, "web").unwrap().records;
    let since = |seconds| total(&records, Some(UNIX_EPOCH + Duration::from_secs(seconds)));
    assert_eq!(since(30).vcpu_seconds(), 30.0 + 180.0);
    assert_eq!(since(90).vcpu_seconds(), 120.0);
    assert_eq!(since(150), Totals::default());
}

#[test]
fn a_wall_clock_that_jumps_changes_labels_and_no_numbers() {
    let (_temp, path) = file();
    let log = UsageLog::open(&path, "web").unwrap();
    let jump = |seconds, wall_ms| Moment {
        wall_ms,
        ..at(seconds)
    };
    log.launched(&jump(0, 1_800_000_000_000), size(1000, 1024), RESIDENT);
    log.passed(&jump(60, 1_700_000_000_000), RESIDENT);
    log.passed(&jump(120, u64::MAX), RESIDENT);
    log.ended(&jump(130, 0));
    let chain = read_chain(&path, "web").unwrap();
    let totals = total(&chain.records, None);
    assert_eq!((totals.seconds(), totals.vcpu_seconds()), (130.0, 130.0));
}

#[test]
fn the_same_size_again_writes_nothing_and_loses_nothing() {
    let (_temp, path) = file();
    let log = UsageLog::open(&path, "web").unwrap();
    log.resized(&at(0), size(1000, 512), RESIDENT);
    assert!(log.mark().is_none(), "nothing is held before the launch");
    log.launched(&at(0), size(1000, 512), RESIDENT);
    log.resized(&at(10), size(1000, 512), RESIDENT);
    log.launched(&at(20), size(1000, 512), RESIDENT);
    assert_eq!(log.mark().unwrap().sequence, 0);
    log.ended(&at(30));
    log.ended(&at(40));
    let chain = read_chain(&path, "web").unwrap();
    assert_eq!(chain.records.len(), 2);
    assert_eq!(total(&chain.records, None).vcpu_seconds(), 30.0);
}

#[test]
fn an_instance_that_ran_on_without_its_agent_is_counted_and_one_that_died_with_it_is_a_gap() {
    let (_temp, path) = file();
    let log = UsageLog::open(&path, "web").unwrap();
    log.launched(&at(0), size(2000, 512), RESIDENT);
    drop(log);
    let log = UsageLog::open(&path, "web").unwrap();
    log.adopted(&at(100), size(2000, 512), RESIDENT);
    drop(log);
    let chain = read_chain(&path, "web").unwrap();
    assert_eq!(total(&chain.records, None).vcpu_seconds(), 200.0);
    assert!(chain.gaps.is_empty());

    UsageLog::open(&path, "web")
        .unwrap()
        .launched(&at(130), size(1000, 512), RESIDENT);
    let chain = read_chain(&path, "web").unwrap();
    let gap = Gap {
        after: 1,
        span_ms: Some(30_000),
    };
    assert_eq!(chain.gaps, [gap]);
    assert_eq!(total(&chain.records, None).vcpu_seconds(), 200.0);
}

#[test]
fn a_line_that_a_crash_cut_off_is_removed_and_the_chain_goes_on() {
    let (_temp, path) = file();
    live(&path, 0);
    let whole = fs::read(&path).unwrap();
    let mut torn = whole.clone();
    torn.extend_from_slice(b"{\"sequence\":4,\"inst");
    fs::write(&path, &torn).unwrap();
    assert_eq!(read_chain(&path, "web").unwrap().torn, 19);
    live(&path, 300);
    assert!(fs::read(&path).unwrap().starts_with(&whole));
    assert_eq!(read_chain(&path, "web").unwrap().records.len(), 8);
}

#[test]
fn a_changed_last_record_is_not_built_upon() {
    let (_temp, path) = file();
    live(&path, 0);
    let text = fs::read_to_string(&path).unwrap();
    let changed = text.replace("\"sequence\":3", "\"sequence\":9");
    fs::write(&path, &changed).unwrap();
    let error = UsageLog::open(&path, "web").unwrap_err().to_string();
    assert!(
        error.contains("usage.jsonl") && error.contains("hash"),
        "{error}"
    );
    assert_eq!(fs::read_to_string(&path).unwrap(), changed);
}

#[test]
fn a_record_of_another_instance_or_made_up_anew_does_not_fit() {
    let (_temp, path) = file();
    live(&path, 0);
    let bytes = fs::read(&path).unwrap();
    let error = check(&bytes, "db").unwrap_err();
    assert!(error.to_string().contains("belongs to web"), "{error}");
    // Whoever lowers a number and seals the record again breaks the next one.
    let text = String::from_utf8(bytes).unwrap();
    let mut lines: Vec<String> = text.lines().map(|line| format!("{line}\n")).collect();
    let (mut record, _) = super::chain::open(lines[1].trim_end()).unwrap();
    record.vcpu_us /= 2;
    lines[1] = super::chain::seal(&record).unwrap().0;
    let error = check(lines.concat().as_bytes(), "web").unwrap_err();
    assert_eq!(
        (error.line, error.problem.as_str()),
        (3, "does not name the record before it")
    );
}

/// The file after two lives; written once for all cases.
fn two_lives() -> &'static str {
    static TEXT: OnceLock<String> = OnceLock::new();
    TEXT.get_or_init(|| {
        let (_temp, path) = file();
        live(&path, 0);
        live(&path, 300);
        fs::read_to_string(&path).unwrap()
    })
}

proptest! {
    #[test]
    fn whatever_byte_is_changed_it_shows(
        index in any::<prop::sample::Index>(), flip in 1..=255u8,
    ) {
        let mut bytes = two_lives().as_bytes().to_vec();
        let index = index.index(bytes.len());
        bytes[index] ^= flip;
        let shows = match check(&bytes, "web") {
            Err(_) => true,
            // The last line end is gone: the line is not whole.
            Ok(chain) => chain.torn > 0 && index == bytes.len() - 1,
        };
        prop_assert!(shows);
    }

    #[test]
    fn whatever_line_is_missing_doubled_or_moved_it_shows(a in 0..7usize, b in 0..7usize) {
        let lines: Vec<&str> = two_lives().split_inclusive('\n').collect();
        let mut missing = lines.clone();
        missing.remove(a);
        prop_assert!(check(missing.concat().as_bytes(), "web").is_err());
        let mut doubled = lines.clone();
        doubled.insert(a, lines[b]);
        prop_assert!(check(doubled.concat().as_bytes(), "web").is_err());
        if a != b {
            let mut moved = lines.clone();
            moved.swap(a, b);
            prop_assert!(check(moved.concat().as_bytes(), "web").is_err());
        }
    }
}
