//! Rules about limits on I/O: what is understood, and what is refused with which words.

use proptest::prelude::*;

use super::*;

const DISK: &str = "10M,500iops..100M,5000iops";
const NET: &str = "80mbit..800mbit";

fn policy(disk: Option<&str>, net: Option<&str>, rules: &[&str]) -> Result<Policy, PolicyError> {
    let mut policy = Policy::new(PolicyBounds {
        cpus: "1..4".parse().unwrap(),
        memory: "256M".parse().unwrap(),
    });
    policy.io = IoBounds {
        disk: disk.map(|text| text.parse().unwrap()),
        net: net.map(|text| text.parse().unwrap()),
    };
    rules.iter().try_for_each(|rule| policy.scale(rule))?;
    policy.check(&Sources::without_guest_agent())?;
    Ok(policy)
}

fn refusal(disk: Option<&str>, net: Option<&str>, rules: &[&str]) -> String {
    match policy(disk, net, rules) {
        Ok(_) => panic!("{rules:?} was accepted"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn an_amount_is_in_the_unit_of_its_word() {
    let size = |text: &str| match text.parse::<Rule>().unwrap() {
        Rule::Threshold(Threshold {
            action: Action::Add(Amount::Io { of, size }),
            ..
        }) => (of, size),
        other => panic!("{other:?}"),
    };
    for (action, meant) in [
        ("+50 net.mbps", (Resource::NetBytes, 6_250_000)),
        ("+100 disk.mbps", (Resource::DiskBytes, 100 << 20)),
        ("+500disk.iops", (Resource::DiskOps, 500)),
        ("+9000 net.pps", (Resource::NetOps, 9000)),
    ] {
        assert_eq!(size(&format!("net > 80%: {action}")), meant);
    }
    let share: Rule = "disk.iops > 400: -25%".parse().unwrap();
    assert_eq!(share.resource(), Resource::DiskOps);
    for action in [
        "+0.5 net.mbps",
        "+ net.mbps",
        "+-1 disk.iops",
        "+9999999999999999 net.mbps",
    ] {
        let error = format!("net > 80%: {action}").parse::<Rule>().unwrap_err();
        assert!(error.to_string().contains("whole number"), "{error}");
    }
}

#[test]
fn rules_of_every_kind_are_accepted_within_their_bounds() {
    for rule in [
        "net > 80% for 3s: +50 net.mbps",
        "net < 20% for 60s: -50 net.mbps, cooldown 5s",
        "net.mbps > 300: = 800 net.mbps",
        "disk > 90% 3 of 5: +25%",
        "disk.requests > 90%: +500 disk.iops",
        "io.pressure > 40%: +10% disk.mbps",
        "cpu > 90%: +20 disk.mbps",
        "disk > 95%: +1 cpu",
        "target disk 70% for 3s",
        "target disk.requests 50%",
        "target net 70%",
    ] {
        let result = policy(Some(DISK), Some(NET), &[rule]);
        assert!(result.is_ok(), "{rule}: {result:?}");
    }
}

#[test]
fn a_rule_without_bounds_or_device_can_never_apply() {
    let says = |disk: Option<&str>, net: Option<&str>, rule: &str, words: &[&str]| {
        let text = refusal(disk, net, &[rule]);
        for word in words {
            assert!(text.contains(word), "'{word}' is not in: {text}");
        }
    };
    let net = "net > 80%: +50 net.mbps";
    says(
        Some(DISK),
        None,
        net,
        &["never apply", "no bounds", "--net-rate"],
    );
    let disk = "disk > 80%: +50 disk.mbps";
    says(
        None,
        Some(NET),
        disk,
        &["never apply", "no bounds", "--disk-rate"],
    );
    // Requests alone are bounded.
    says(
        Some("1iops..9iops"),
        None,
        disk,
        &["disk.mbps has no bounds"],
    );
    says(None, Some("80mbit"), net, &["fixed at 80 net.mbps"]);
    says(
        None,
        Some(NET),
        "net > 80%: = 900 net.mbps",
        &["900 net.mbps", "80 net.mbps to 800"],
    );
    says(
        None,
        Some(NET),
        "net > 80%: -50 net.mbps",
        &["shrinks net.mbps when it is short"],
    );
    says(
        None,
        Some(NET),
        "target net.mbps 60",
        &["share of the size", "net.packets"],
    );
    let mut without = policy(Some(DISK), Some(NET), &[net]).unwrap();
    without.io.disk = None;
    let sources = Sources::all().without(Source::Networks);
    let error = without.check(&sources).unwrap_err().to_string();
    assert!(
        error.contains("--net") && error.contains("this instance has none"),
        "{error}"
    );
}

#[test]
fn limits_that_would_chase_each_other_are_refused() {
    // 90 % of 100 are 45 % of 200.
    let shares = ["net > 80%: +100%", "net < 50%: -50%"];
    let text = refusal(None, Some(NET), &shares);
    assert!(
        text.contains("would oscillate") && text.contains("net.mbps"),
        "{text}"
    );
    // 85 pass: 85 % of 100, and less than 90 of 300.
    let mixed = ["net > 80%: +200 net.mbps", "net.mbps < 90: -200 net.mbps"];
    let text = refusal(None, Some("100mbit..800mbit"), &mixed);
    assert!(text.contains("would oscillate"), "{text}");
    let apart = ["net > 80%: +200 net.mbps", "net.mbps < 40: -200 net.mbps"];
    assert!(policy(None, Some("100mbit..800mbit"), &apart).is_ok());
    // Other resources have nothing to do with each other.
    let crossed = ["disk > 80%: +10 disk.mbps", "disk < 75%: -500 disk.iops"];
    assert!(policy(Some(DISK), None, &crossed).is_ok());
}

proptest! {
    /// A steady load on a limit under accepted rules comes to rest, from every size that they reach.
    #[test]
    fn an_accepted_pair_comes_to_rest(
        of in prop::sample::select(Resource::IO.to_vec()),
        up in 2u32..100,
        down in 1u32..99,
        step_up in 1u64..30,
        step_down in 1u64..30,
        throughput in any::<bool>(),
        max in 11u64..60,
        load in 0.0..70.0f64,
    ) {
        let word = of.as_str();
        // The lower rule may look at what passes, and not at the share.
        let (below, level) = match of.throughput().filter(|_| throughput) {
            Some(metric) => (metric.to_string(), format!("{down}")),
            None => (of.share().to_string(), format!("{down}%")),
        };
        let rules = [
            format!("{} > {up}%: +{step_up} {word}", of.share()),
            format!("{below} < {level}: -{step_down} {word}"),
        ];
        let rules: Vec<&str> = rules.iter().map(String::as_str).collect();
        let limit = |count: u64| of.in_rate(crate::IoRate::MAX, count * of.unit()).to_string();
        let bounds = format!("{}..{}", limit(10), limit(max));
        let (disk, net) = match of.device() {
            Some(Device::Disk) => (Some(bounds.as_str()), None),
            _ => (None, Some(bounds.as_str())),
        };
        let Ok(policy) = policy(disk, net, &rules) else {
            return Ok(());
        };
        let bounds = policy.bounds_of(of).unwrap();
        let load = load * of.unit() as f64;
        let mut size = bounds.min;
        let mut changes = 0;
        for _ in 0..200 {
            let share = (100.0 * load / size as f64).min(100.0);
            let passed = load.min(size as f64) / of.unit() as f64;
            let low = if throughput { passed } else { share };
            let next = if share > f64::from(up) {
                (size + step_up * of.unit()).min(bounds.max)
            } else if low < f64::from(down) {
                size.saturating_sub(step_down * of.unit()).max(bounds.min)
            } else {
                size
            };
            changes += u32::from(next != size);
            size = next;
        }
        prop_assert!(changes < 100, "{rules:?} at load {load} keeps moving");
    }
}
