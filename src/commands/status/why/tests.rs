use concertina_api::instance::{AxisScaling, WindowStatus};
use serde_json::json;

use super::*;
use crate::commands::status::tests::example;

const GROW: &str = "cpu > 75% for 5s: +1 cpu, cooldown 10s";
const SHRINK: &str = "cpu < 20% for 60s: -0.5 cpu";

fn threshold(
    rule: &str,
    state: &str,
    value: Option<f64>,
    breaching: u32,
    of: u32,
) -> ThresholdStatus {
    ThresholdStatus {
        rule: rule.into(),
        state: state.to_owned().into(),
        last_value: value,
        window: Some(WindowStatus {
            breaching,
            need: of,
            of,
            period_ms: 1000,
        }),
        ..ThresholdStatus::default()
    }
}

/// The example of `status`: 1.5 CPUs of 0.5 to 4, 448M of 256M to 1G; settled, and with these rules.
fn ruled(thresholds: Vec<ThresholdStatus>) -> InstanceStatus {
    let mut status = example();
    status.cpus.target = Cpus(1500);
    status.last_resize = None;
    status.recommended = None;
    status.io.disk_rate = None;
    status.thresholds = thresholds;
    status.scaling = Some(ScalingStatus {
        shrink_window_ms: 60_000,
        reversals_per_hour: 4,
        ..ScalingStatus::default()
    });
    status
}

fn event(value: serde_json::Value) -> Event {
    serde_json::from_value(value).unwrap()
}

fn resized(at_ms: u64, cause: &str, before: f64, got: f64) -> Event {
    event(
        json!({"time": "2026-11-22T10:00:00.000Z", "uptime_ms": at_ms, "event": "resized",
        "cause": cause, "before": {"cpus": before}, "outcome": "applied", "asked": {"cpus": got},
        "got": {"cpus": got}, "timeline_ms": {}, "resident_before": 1, "resident_after": 1}),
    )
}

fn started() -> Event {
    event(json!({"time": "t", "uptime_ms": 1500, "event": "started", "vmm_pid": 7}))
}

fn text(status: &InstanceStatus, events: &[Event]) -> String {
    Why::of(status, events).text()
}

#[test]
fn it_says_who_set_the_size_and_what_would_change_it() {
    let status = ruled(vec![
        threshold(GROW, "ok", Some(12.0), 0, 5),
        threshold(SHRINK, "breaching", Some(12.0), 45, 60),
    ]);
    let events = [started(), resized(31_500, GROW, 0.5, 1.5)];
    assert_eq!(
        text(&status, &events),
        "\
CPU: 1.5 CPUs, set by 'cpu > 75% for 5s: +1 cpu, cooldown 10s' 30.0s ago; bounds 0.5 CPUs to 4 CPUs.
  cpu > 75% for 5s: +1 cpu, cooldown 10s
    cpu is 12% (ok)
    cpu over 75% for 5s makes it 2.5 CPUs.
  cpu < 20% for 60s: -0.5 cpu
    cpu is 12% (breaching)
    cpu under 20% for 1m makes it 1 CPU, when nothing more was wanted for 1m (it was for 45 of 60 \
         datapoints: 15s more).

Memory: 448M, as at launch 1m 00s ago; bounds 256M to 1G.
  No rule resizes it: only 'concertina resize' does."
    );
}

#[test]
fn a_resize_by_hand_is_told_with_the_pause_after_it() {
    let mut status = ruled(vec![threshold(GROW, "held", Some(90.0), 5, 5)]);
    status.thresholds[0].held = Some(HeldStatus {
        reason: "manual_hold".into(),
        detail: "resized by hand; rules pause for another 271.5s".into(),
    });
    status.scaling.as_mut().unwrap().cpus = AxisScaling {
        manual_hold_remaining_ms: 271_500,
        reversals: 3,
    };
    let text = text(&status, &[started(), resized(33_000, "manual", 0.5, 1.5)]);
    for sentence in [
        "CPU: 1.5 CPUs, set by hand 28.5s ago",
        "its rules pause for another 4m 31s",
        "changed its direction 3 times in the last hour; 4 are allowed",
        "it fired, and is held (manual_hold): resized by hand",
    ] {
        assert!(text.contains(sentence), "{sentence} is missing in:\n{text}");
    }
}

#[test]
fn a_restart_of_the_guest_takes_the_size_back() {
    let rebooted = event(json!({"time": "t", "uptime_ms": 50_000, "event": "rebooted"}));
    let events = [started(), resized(31_500, GROW, 0.5, 1.5), rebooted];
    let why = Why::of(&ruled(vec![]), &events);
    assert_eq!(
        (why.axes[0].set_by.by, why.axes[0].set_by.ago_ms),
        ("launch", Some(11_500))
    );
}

#[test]
fn a_resize_that_changed_nothing_set_nothing() {
    let events = [
        resized(31_500, GROW, 0.5, 1.5),
        resized(40_000, "manual", 1.5, 1.5),
    ];
    let why = Why::of(&ruled(vec![]), &events);
    assert_eq!(why.axes[0].set_by.cause.as_deref(), Some(GROW));
    // Of the memory nothing is known where its events are gone.
    assert_eq!(why.axes[1].set_by.by, "unknown");
}

#[test]
fn a_rule_at_its_bound_or_in_its_cooldown_says_so() {
    let mut status = ruled(vec![threshold(GROW, "cooldown", Some(90.0), 2, 5)]);
    status.thresholds[0].cooldown_remaining_ms = Some(6200);
    let waiting = text(&status, &[]);
    assert!(
        waiting.contains("after its last resize it waits for another 6.2s"),
        "{waiting}"
    );
    assert!(
        waiting.contains("it was for 2 of 5 datapoints: 3s more"),
        "{waiting}"
    );

    status.cpus.online = 4;
    status.cpus.quota = concertina_api::Quota::Max;
    status.cpus.target = Cpus::whole(4);
    let bound = text(&status, &[]);
    assert!(
        bound.contains("It leads to 4 CPUs, its upper bound, which is there already."),
        "{bound}"
    );
}

#[test]
fn what_it_has_not_yet_is_told_with_the_reason() {
    let mut status = example();
    status.thresholds.clear();
    let told = text(&status, &[]);
    assert!(
        told.contains("It shall have 2 CPUs: the last resize ended partial: asked 2 CPUs"),
        "{told}"
    );
    status.last_resize = None;
    let told = text(&status, &[]);
    assert!(
        told.contains("It shall have 2 CPUs: it grows at the moment"),
        "{told}"
    );
}

#[test]
fn recommending_fixed_and_unknown_are_said() {
    let mut status = ruled(vec![threshold(GROW, "unknown", None, 0, 5)]);
    status.scaling.as_mut().unwrap().mode = Mode::Recommend;
    status.memory.min = Bytes::mib(448);
    status.memory.max = Bytes::mib(448);
    let text = text(&status, &[]);
    for sentence in [
        "web only recommends",
        "cpu is unknown",
        "the rule does nothing",
        "its bounds are 448M, so that it cannot change",
    ] {
        assert!(text.contains(sentence), "{sentence} is missing in:\n{text}");
    }
}

#[test]
fn target_tracking_names_the_values_at_which_it_changes() {
    let rule = "target cpu 60% for 10s";
    let status = ruled(vec![threshold(rule, "ok", Some(55.0), 0, 10)]);
    let told = text(&status, &[]);
    // 1.5 CPUs, steps of 0.5: wanted is 1.5 x measured / 60 %.
    assert!(
        told.contains("cpu over 70% on average for 10s makes it 2 CPUs."),
        "{told}"
    );
    assert!(
        told.contains("cpu under 40% on average for 10s makes it 1 CPU."),
        "{told}"
    );
}

#[test]
fn the_edges_of_target_tracking_are_those_of_the_step_itself() {
    use concertina_api::policy::step::track_target;
    let bounds = Bounds {
        min: 500,
        max: 4000,
    };
    for present in [500, 740, 1000, 1100, 1500, 2600, 3999] {
        let status = ruled(vec![threshold("target cpu 60%", "ok", Some(55.0), 0, 1)]);
        let mut status = status;
        status.cpus.online = 4;
        status.cpus.quota = concertina_api::Quota::Limited(Cpus(present));
        let told = text(&status, &[]);
        // What it says it takes to shrink: just under it the size changes, just over it it does not.
        let Some((_, rest)) = told.split_once("cpu under ") else {
            assert!(present == 500 && told.contains("its lower bound"), "{told}");
            continue;
        };
        let level: f64 = rest.split_once('%').unwrap().0.parse().unwrap();
        let size = |measured| track_target(Resource::Cpus, 60.0, measured, present.into(), &bounds);
        // Sentences round to a tenth of a percent.
        assert!(
            size(level - 0.1) < present.into(),
            "{present} at {level}: {told}"
        );
        assert_eq!(
            size(level + 0.1),
            u64::from(present),
            "{present} at {level}: {told}"
        );
    }
}

#[test]
fn names_that_guests_choose_cannot_move_the_cursor() {
    let rule = "custom.queue > 5: +1 cpu";
    let mut status = ruled(vec![threshold(rule, "ok", Some(1.0), 0, 1)]);
    status.thresholds[0].held = Some(HeldStatus {
        reason: "busy".into(),
        detail: "\x1b[2J\u{202e}".into(),
    });
    let told = text(&status, &[]);
    assert!(
        told.chars().all(|c| c == '\n' || !c.is_control()),
        "{told:?}"
    );
    assert!(told.contains("?[2J?"), "{told}");
}

#[test]
fn json_has_the_fields_of_the_contract() {
    let status = ruled(vec![threshold(GROW, "ok", Some(12.0), 0, 5)]);
    let events = [resized(31_500, GROW, 0.5, 1.5)];
    let value = serde_json::to_value(Why::of(&status, &events)).unwrap();
    assert_eq!(value.pointer("/axes/0/size"), Some(&json!(1.5)));
    assert_eq!(value.pointer("/axes/1/size"), Some(&json!(448 << 20)));
    assert_eq!(value.pointer("/axes/0/set_by/by"), Some(&json!("rule")));
    assert_eq!(value.pointer("/axes/0/set_by/ago_ms"), Some(&json!(30_000)));
    assert_eq!(
        value.pointer("/axes/0/rules/0/would_make"),
        Some(&json!(2.5))
    );
    for path in [
        "/name",
        "/mode",
        "/axes/0/axis",
        "/axes/0/target",
        "/axes/0/on_its_way",
        "/axes/0/reversals_per_hour",
        "/axes/0/rules/0/needs/0",
        "/axes/0/rules/0/held",
        "/axes/0/rules/0/cooldown_remaining_ms",
    ] {
        assert!(
            value.pointer(path).is_some(),
            "{path} is missing in {value}"
        );
    }
}

#[test]
fn limits_on_io_that_have_bounds_are_axes_of_their_own() {
    // The example has 50M and 2000iops of 10M to 100M, and shall have 60M.
    let rule = "disk > 90% for 5s: +25 disk.mbps";
    let mut status = ruled(vec![threshold(rule, "ok", Some(40.0), 0, 5)]);
    status.io.disk_rate = example().io.disk_rate;
    let limit = status.scaling.as_mut().unwrap();
    limit.io.insert(
        Resource::DiskBytes,
        AxisScaling {
            manual_hold_remaining_ms: 60_000,
            reversals: 0,
        },
    );
    let why = Why::of(&status, &[started()]);
    let axes: Vec<&str> = why.axes.iter().map(|axis| axis.axis.as_str()).collect();
    assert_eq!(axes, ["cpu", "memory", "disk.mbps", "disk.iops"]);
    let told = why.text();
    for sentence in [
        "Limit: 50 disk.mbps, as at launch 1m 00s ago; bounds 10 disk.mbps to 100 disk.mbps.",
        "It shall have 60 disk.mbps: it grows at the moment.",
        "Somebody resized it by hand: its rules pause for another 1m 00s.",
        "disk over 90% for 5s makes it 75 disk.mbps.",
    ] {
        assert!(told.contains(sentence), "{sentence} is missing in:\n{told}");
    }
    let value = serde_json::to_value(&why).unwrap();
    assert_eq!(value.pointer("/axes/2/size"), Some(&json!(50 << 20)));
}
