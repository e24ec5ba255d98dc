//! Both spellings, and what is refused with which words.

use proptest::prelude::*;

use super::*;

fn bounds(cpus: &str, memory: &str) -> PolicyBounds {
    PolicyBounds {
        cpus: cpus.parse().unwrap(),
        memory: memory.parse().unwrap(),
    }
}

fn policy(cpus: &str, memory: &str, rules: &[&str]) -> Result<Policy, PolicyError> {
    let mut policy = Policy::new(bounds(cpus, memory));
    rules.iter().try_for_each(|rule| policy.scale(rule))?;
    policy.check(&Sources::without_guest_agent())?;
    Ok(policy)
}

/// The refusal of these rules for an instance of 1 to 4 CPUs and 256 MiB to 1 GiB.
fn refusal(rules: &[&str]) -> String {
    match policy("1..4", "256M..1G", rules) {
        Ok(_) => panic!("{rules:?} was accepted"),
        Err(error) => error.to_string(),
    }
}

fn assert_says(rules: &[&str], words: &[&str]) {
    let text = refusal(rules);
    for word in words {
        assert!(text.contains(word), "'{word}' is not in: {text}");
    }
}

#[test]
fn the_rules_of_the_design_are_accepted() {
    let rules = [
        "cpu > 75% for 5s: +1 cpu",
        "cpu < 20% for 60s: -1 cpu",
        "memory > 80% for 2s: +512M",
        "memory.pressure > 10% for 1s: +25%",
        "memory.available < 64M for 2s: +256M",
        "cpu > 80% 3 of 5: +1 cpu, cooldown 10s",
        "cpu.pressure > 20% for 1s every 100ms: = 2 cpu, missing breaching",
    ];
    for rule in rules {
        // An action that can be smaller than the present size may not run on missing data.
        let result = policy("0.5..2", "256M..4G", &[rule]);
        assert!(result.is_ok(), "{rule}: {result:?}");
    }
    let all = [
        "cpu > 75% for 5s: +1 cpu",
        "cpu < 20% for 60s: -1 cpu",
        "memory > 80% for 2s: +512M",
    ];
    assert_eq!(policy("0.5..4", "256M..1G", &all).unwrap().rules.len(), 3);
}

#[test]
fn a_rule_says_what_it_means() {
    let rule: Rule =
        "  cpu.pressure  >  7.5 %  3 of 5 every 100ms : +0.5 cpus ,cooldown 1m30s, missing ignore"
            .parse()
            .unwrap();
    let want = Threshold {
        metric: Metric::CpuPressure,
        comparison: Comparison::Above,
        level: 7.5,
        window: Window::Datapoints { need: 3, of: 5 },
        period_ms: Some(100),
        action: Action::Add(Amount::Cpus(Cpus(500))),
        cooldown_ms: 90_000,
        missing: Some(Missing::Ignore),
    };
    assert_eq!(rule, Rule::Threshold(want));
    let text = "cpu.pressure > 7.5% 3 of 5 every 100ms: +0.5 cpu, cooldown 1m30s, missing ignore";
    assert_eq!(rule.to_string(), text);
    let rule: Rule = "target cpu 60% for 3s".parse().unwrap();
    assert!(matches!(
        rule,
        Rule::Target(Target {
            window: Window::For(3000),
            ..
        })
    ));
    assert_eq!(rule.to_string(), "target cpu 60% for 3s");
}

#[test]
fn a_share_means_the_axis_of_its_metric_unless_it_says_another() {
    let axis = |text: &str| text.parse::<Rule>().unwrap().resource();
    assert_eq!(axis("memory.pressure > 10%: +25%"), Resource::Memory);
    assert_eq!(axis("cpu > 10%: +25%"), Resource::Cpus);
    assert_eq!(axis("cpu > 10%: +25% memory"), Resource::Memory);
    assert_eq!(axis("io.pressure > 10%: +25% cpu"), Resource::Cpus);
    let error = "io.pressure > 10%: +25%"
        .parse::<Rule>()
        .unwrap_err()
        .to_string();
    assert!(error.contains("'25% cpu' or '25% memory'"), "{error}");
}

#[test]
fn what_cannot_be_read_is_named_with_what_is_allowed() {
    assert_says(
        &["cpus > 75%: +1 cpu"],
        &[
            "'cpus > 75%: +1 cpu'",
            "metric 'cpus'",
            "did you mean 'cpu'",
        ],
    );
    assert_says(&["cpu > 75: +1 cpu"], &["level '75'", "like 75%"]);
    assert_says(&["cpu > -5%: +1 cpu"], &["level '-5%'"]);
    assert_says(&["cpu > nan%: +1 cpu"], &["level 'nan%'"]);
    assert_says(&["cpu >= 75%: +1 cpu"], &["only '>' and '<'"]);
    assert_says(&["cpu 75%: +1 cpu"], &["METRIC > LEVEL"]);
    assert_says(&["cpu > 75%"], &["METRIC > LEVEL"]);
    assert_says(&["cpu > 75% for 5: +1 cpu"], &["for '5'", "5s"]);
    assert_says(&["cpu > 75% for 5s for 6s: +1 cpu"], &["'M of N'"]);
    assert_says(
        &["cpu > 75% 6 of 5: +1 cpu"],
        &["datapoints '6 of 5'", "M <= N"],
    );
    assert_says(&["cpu > 75% 0 of 5: +1 cpu"], &["datapoints '0 of 5'"]);
    assert_says(&["cpu > 75% sometimes: +1 cpu"], &["'sometimes'"]);
    assert_says(&["cpu > 75%: 1 cpu"], &["action '1 cpu'", "+512M"]);
    assert_says(&["cpu > 75%: +1"], &["action '+1'", "+1 cpu"]);
    assert_says(&["cpu > 75%: = 25%"], &["'=' takes a size"]);
    assert_says(
        &["cpu > 75%: +1 cpu, cooldwn 5s"],
        &["option 'cooldwn 5s'", "cooldown TIME"],
    );
    assert_says(
        &["cpu > 75%: +1 cpu, missing maybe"],
        &["missing 'maybe'", "breaching"],
    );
    assert_says(&["memory.available < 10%: +256M"], &["is a size", "64M"]);
    assert_says(&["set shrink_windw 5s"], &["shrink_windw", "shrink_window"]);
    assert_says(&["set period 5ms"], &["'5ms'", "100ms"]);
    assert_says(&["target cpu 3 of 5"], &["level '3'"]);
    assert_says(&["target cpu 60% 3 of 5"], &["'3 of 5'", "mean"]);
}

#[test]
fn a_level_that_always_or_never_breaches_is_refused() {
    assert_says(&["cpu > 100%: +1 cpu"], &["level '100%'", "less than 100%"]);
    assert_says(&["cpu > 175%: +1 cpu"], &["level '175%'"]);
    assert_says(&["cpu < 0%: -1 cpu"], &["level '0%'", "more than 0%"]);
    assert_says(
        &["memory.available < 2G: +256M"],
        &["level '2G'", "up to 1G"],
    );
    assert_says(&["target cpu 0%"], &["level '0%'"]);
}

#[test]
fn an_action_that_can_never_apply_is_refused() {
    let refused = |cpus, memory, rule| policy(cpus, memory, &[rule]).unwrap_err().to_string();
    let text = refused("2", "256M..1G", "cpu > 75%: +1 cpu");
    assert!(
        text.contains("can never apply") && text.contains("fixed at 2 cpu"),
        "{text}"
    );
    let text = refused("1..4", "512M", "memory > 80%: +25%");
    assert!(text.contains("memory is fixed at 512M"), "{text}");
    assert_says(&["cpu > 75%: = 8 cpu"], &["'8 cpu'", "1 cpu to 4 cpu"]);
    assert_says(&["cpu > 75%: +0 cpu"], &["'0 cpu'", "at least 0.01 cpu"]);
    assert_says(&["memory > 75%: +1M"], &["'1M'", "at least 2M"]);
    assert_says(&["memory > 75%: +0%"], &["'0%'", "1% to 1000%"]);
    assert_says(&["cpu < 5%: -150%"], &["1% to 100%"]);
    assert_says(
        &["target memory.pressure 5%"],
        &["share of the size: one of cpu, memory"],
    );
}

#[test]
fn a_step_larger_than_the_range_is_clamped_not_refused() {
    assert!(policy("1..4", "256M..1G", &["memory > 90%: +4G"]).is_ok());
}

#[test]
fn a_metric_without_a_source_is_refused_with_the_source() {
    assert_says(
        &["load1 > 4: +1 cpu"],
        &["load1", "guest agent channel", "memory.available"],
    );
    assert_says(
        &["custom.rps > 100: +1 cpu"],
        &["custom.rps", "guest agent channel"],
    );
    let mut with_agent = Policy::new(bounds("1..4", "256M..1G"));
    with_agent.scale("custom.rps > 100: +1 cpu").unwrap();
    assert_eq!(with_agent.check(&Sources::all()), Ok(()));
    let no_psi = Sources::all().without(Source::HostPressure);
    with_agent.scale("memory.pressure > 10%: +25%").unwrap();
    assert!(
        with_agent
            .check(&no_psi)
            .unwrap_err()
            .to_string()
            .contains("PSI")
    );
}

#[test]
fn inverted_or_tiny_bounds_are_refused() {
    let mut policy = Policy::new(bounds("1..4", "256M..1G"));
    std::mem::swap(&mut policy.bounds.cpus.min, &mut policy.bounds.cpus.max);
    let text = policy.check(&Sources::all()).unwrap_err().to_string();
    assert!(text.contains("inverted") && text.contains('4'), "{text}");
    let policy = Policy::new(bounds("0.01..4", "256M..1G"));
    assert!(
        policy
            .check(&Sources::all())
            .unwrap_err()
            .to_string()
            .contains("least is 0.1")
    );
}

#[test]
fn windows_have_to_fit_their_periods() {
    assert_says(
        &["cpu > 75% for 1500ms: +1 cpu"],
        &["for '1s500ms'", "multiple", "1s"],
    );
    assert!(
        policy(
            "1..4",
            "256M..1G",
            &["cpu > 75% for 1500ms every 100ms: +1 cpu"]
        )
        .is_ok()
    );
    assert_says(&["cpu > 75% for 2h: +1 cpu"], &["at most 3600 datapoints"]);
}

#[test]
fn missing_data_never_shrink() {
    assert_says(
        &["cpu < 20%: -1 cpu, missing breaching"],
        &["never shrinks"],
    );
    assert_says(
        &["set missing breaching", "cpu < 20%: -1 cpu"],
        &["never shrinks"],
    );
    assert_says(
        &["cpu > 20%: = 2 cpu, missing breaching"],
        &["never shrinks"],
    );
    assert!(
        policy(
            "1..4",
            "256M..1G",
            &["cpu > 75%: = 4 cpu, missing breaching"]
        )
        .is_ok()
    );
}

#[test]
fn a_rule_that_feeds_the_idle_or_starves_the_busy_is_refused() {
    assert_says(&["cpu > 75%: -1 cpu"], &["shrinks cpu when it is short"]);
    assert_says(
        &["memory.available > 512M: +128M"],
        &["grows memory when it is idle"],
    );
    // Giving CPUs back while the host is short of them makes sense.
    assert!(policy("1..4", "256M..1G", &["cpu.steal > 30%: -1 cpu"]).is_ok());
}

#[test]
fn the_same_rule_twice_is_refused() {
    assert_says(&["cpu > 75%: +1 cpu", "cpu>75%:+1 cpu"], &["twice"]);
}

#[test]
fn levels_that_overlap_or_touch_are_refused_with_both_rules() {
    let (up, down) = ("cpu > 50%: +1 cpu", "cpu < 60%: -1 cpu");
    assert_says(&[up, down], &[up, down, "oscillate", "between 50% and 60%"]);
    assert_says(&[down, up], &[up, down]);
    assert_says(
        &["cpu > 50%: +1 cpu", "cpu < 50%: -1 cpu"],
        &["nothing lies between"],
    );
    let (up, down) = ("memory.pressure > 5%: +25%", "memory.pressure < 9%: -10%");
    assert_says(&[up, down], &[up, down, "between 5% and 9%"]);
    assert_says(
        &[
            "memory.available < 128M: +64M",
            "memory.available > 100M: -64M",
        ],
        &["oscillate"],
    );
    let (up, down) = ("cpu.steal > 10%: +1 cpu", "cpu.steal > 20%: -1 cpu");
    assert_says(&[up, down], &["both fire above 20%"]);
    // Different axes do not meet.
    assert!(
        policy(
            "1..4",
            "256M..1G",
            &["cpu > 50%: +128M", "cpu < 60%: -1 cpu"]
        )
        .is_ok()
    );
}

#[test]
fn a_step_that_makes_the_other_rule_fire_is_refused_with_the_size() {
    let rules = ["cpu > 70%: +1 cpu", "cpu < 40%: -1 cpu"];
    let text = policy("1..2", "512M", &rules).unwrap_err().to_string();
    for word in ["at 1 cpu", "at 2 cpu", rules[0], rules[1], "at most 35%"] {
        assert!(text.contains(word), "'{word}' is not in: {text}");
    }
    assert!(policy("1..2", "512M", &["cpu > 70%: +1 cpu", "cpu < 35%: -1 cpu"]).is_ok());
    // From 3 to 4 the same levels are quiet: 70 % of 3 are 52 % of 4.
    assert!(policy("3..4", "512M", &rules).is_ok());
}

#[test]
fn memory_rules_are_checked_across_their_metrics() {
    // 80 % of 256M used: 51M available of 256M, 307M of 512M.
    let rules = ["memory > 80%: +256M", "memory.available > 300M: -256M"];
    assert_says(&rules, &["oscillate", "256M", "512M"]);
    assert!(
        policy(
            "1",
            "256M..1G",
            &["memory > 80%: +256M", "memory.available > 700M: -256M"]
        )
        .is_ok()
    );
    // Comes to rest between 64M and 128M available, after one way back.
    let rules = [
        "memory.available < 64M: +256M",
        "memory.available > 128M: -64M",
    ];
    assert!(policy("1", "256M..1G", &rules).is_ok());
    let rules = [
        "memory.available < 64M: +256M",
        "memory.available > 128M: -128M",
    ];
    assert_says(&rules, &[rules[0], rules[1]]);
}

#[test]
fn target_tracking_is_checked_against_thresholds() {
    assert!(policy("1..4", "512M", &["target cpu 60%"]).is_ok());
    assert_says(
        &["target cpu 60%", "cpu < 58%: -1 cpu"],
        &["target cpu 60%", "oscillate"],
    );
}

#[test]
fn settings_come_on_the_command_line_too() {
    let settings = [
        "set shrink_window 5s",
        "set manual_hold 0s",
        "set period 200ms",
        "set reversals_per_hour 6",
        "set mode recommend",
    ];
    let policy = policy("1..4", "256M..1G", &settings).unwrap();
    assert_eq!((policy.shrink_window_ms, policy.manual_hold_ms), (5000, 0));
    assert_eq!((policy.period_ms, policy.reversals_per_hour), (200, 6));
    assert_eq!(policy.mode, Mode::Recommend);
}

fn any_metric() -> impl Strategy<Value = Metric> {
    prop_oneof![
        Just(Metric::Cpu),
        Just(Metric::CpuPressure),
        Just(Metric::CpuSteal),
        Just(Metric::Memory),
        Just(Metric::MemoryPressure),
        Just(Metric::MemoryAvailable),
        Just(Metric::IoPressure),
        Just(Metric::Load1),
        prop::sample::select(Resource::IO.to_vec()).prop_map(Resource::share),
        prop::sample::select(Resource::IO.to_vec())
            .prop_filter_map("a throughput", Resource::throughput),
        "[a-z0-9_.-]{1,12}".prop_map(Metric::Custom),
    ]
}

fn any_action() -> impl Strategy<Value = Action> {
    let limit = (prop::sample::select(Resource::IO.to_vec()), 0u64..1 << 40);
    let amount = prop_oneof![
        any::<u32>().prop_map(|milli| Amount::Cpus(Cpus(milli))),
        any::<u64>().prop_map(|bytes| Amount::Memory(Bytes(bytes))),
        (0u64..100_000).prop_map(|mib| Amount::Memory(Bytes::mib(mib))),
        limit.prop_map(|(of, count)| Amount::Io {
            of,
            size: count * of.unit()
        }),
        (any::<u32>(), prop::sample::select(Resource::ALL.to_vec()))
            .prop_map(|(percent, of)| Amount::Percent { percent, of }),
    ];
    (0..3, amount).prop_map(|(kind, amount)| match (kind, amount) {
        (0, amount) => Action::Add(amount),
        (1, Amount::Cpus(cpus)) => Action::SetCpus(cpus),
        (1, Amount::Memory(bytes)) => Action::SetMemory(bytes),
        (1, Amount::Io { of, size }) => Action::SetIo { of, size },
        (_, amount) => Action::Remove(amount),
    })
}

fn any_window() -> impl Strategy<Value = Window> {
    let points = (1u32..=MAX_DATAPOINTS)
        .prop_flat_map(|of| (1..=of).prop_map(move |need| Window::Datapoints { need, of }));
    prop_oneof![(100u64..10_000_000).prop_map(Window::For), points]
}

prop_compose! {
    fn any_threshold()(
        metric in any_metric(),
        above in any::<bool>(),
        number in prop_oneof![0.0..1e9, (0u32..100).prop_map(f64::from)],
        bytes in 0u64..1 << 53,
        window in any_window(),
        period_ms in prop::option::of(100u64..3_600_000),
        action in any_action(),
        cooldown_ms in prop_oneof![Just(0), 0..MAX_WAIT_MS],
        missing in prop::option::of(prop_oneof![
            Just(Missing::Hold), Just(Missing::Breaching), Just(Missing::Ignore)
        ]),
    ) -> Threshold {
        let level = if metric.unit() == MetricUnit::Bytes { bytes as f64 } else { number };
        let comparison = if above { Comparison::Above } else { Comparison::Below };
        Threshold { metric, comparison, level, window, period_ms, action, cooldown_ms, missing }
    }
}

proptest! {
    #[test]
    fn a_threshold_parses_back_to_itself(threshold in any_threshold()) {
        let rule = Rule::Threshold(threshold);
        prop_assert_eq!(rule.to_string().parse::<Rule>(), Ok(rule));
    }

    #[test]
    fn a_target_parses_back_to_itself(
        of in prop::sample::select(Resource::ALL.to_vec()),
        level in 0.0..100.0f64,
        time_ms in prop::option::of(100u64..10_000_000),
        period_ms in prop::option::of(100u64..3_600_000),
        cooldown_ms in 0..MAX_WAIT_MS,
    ) {
        let metric = of.share();
        let window = time_ms.map_or(Window::Datapoints { need: 1, of: 1 }, Window::For);
        let rule = Rule::Target(Target { metric, level, window, period_ms, cooldown_ms });
        prop_assert_eq!(rule.to_string().parse::<Rule>(), Ok(rule));
    }

    #[test]
    fn no_text_panics_the_parser(text in "[a-z0-9 .:<>%+=,-]{0,60}|\\PC{0,40}") {
        let _ = text.parse::<ScaleArgument>();
        let _ = format!("cpu > 5%: {text}").parse::<ScaleArgument>();
        let _ = format!("cpu > {text}: +1 cpu").parse::<ScaleArgument>();
    }

    #[test]
    fn an_action_stays_inside_the_bounds(
        action in any_action(),
        present in any::<u64>(),
        least in any::<u64>(),
        range in any::<u64>(),
    ) {
        let bounds = Bounds { min: least, max: least.saturating_add(range) };
        let target = step::apply(action, present, &bounds).target;
        prop_assert!(bounds.contains(target));
    }

    /// A steady load under an accepted policy comes to rest, from every size.
    #[test]
    fn an_accepted_pair_comes_to_rest(
        up in 2u32..100,
        down in 1u32..99,
        step_up in 1u32..30,
        step_down in 1u32..30,
        max in 11u32..60,
        start in 10u32..60,
        load in 0.0..6.0f64,
    ) {
        let tenths = |n: u32| Cpus(n * 100).to_string();
        let rules = [
            format!("cpu > {up}%: +{} cpu", tenths(step_up)),
            format!("cpu < {down}%: -{} cpu", tenths(step_down)),
        ];
        let rules: Vec<&str> = rules.iter().map(String::as_str).collect();
        let Ok(policy) = policy(&format!("1..{}", tenths(max)), "512M", &rules) else {
            return Ok(());
        };
        let bounds = policy.bounds.of(Axis::Cpus);
        // A size that the rules reach: the launch size, after some growth.
        let mut size = bounds.min;
        while size < u64::from(start) * 100 && size < bounds.max {
            size = size.saturating_add(u64::from(step_up) * 100).min(bounds.max);
        }
        let mut changes = 0;
        for _ in 0..200 {
            let busy = (100.0 * load * 1000.0 / size as f64).min(100.0);
            let next = if busy > f64::from(up) {
                (size + u64::from(step_up) * 100).min(bounds.max)
            } else if busy < f64::from(down) {
                size.saturating_sub(u64::from(step_down) * 100).max(bounds.min)
            } else {
                size
            };
            changes += u32::from(next != size);
            size = next;
        }
        prop_assert!(changes < 100, "{rules:?} at load {load} keeps moving");
    }
}
