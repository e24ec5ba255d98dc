use proptest::prelude::*;

use super::*;

fn number() -> impl Strategy<Value = Option<f64>> {
    // Eighths are exact in decimal; the last bit of others may differ on the other side.
    prop::option::of((-1_000_000_000_000i64..1_000_000_000_000).prop_map(|n| n as f64 / 8.0))
}

fn report() -> impl Strategy<Value = Report> {
    let pressure =
        (number(), number(), number()).prop_map(|(cpu, memory, io)| Pressure { cpu, memory, io });
    let memory = any::<[u64; 4]>().prop_map(|[total, available, swap_total, swap_used]| Memory {
        total,
        available,
        swap_total,
        swap_used,
    });
    let root = any::<(u64, u64)>().prop_map(|(total, available)| Disk { total, available });
    let cpus = any::<(u32, u32)>().prop_map(|(online, present)| Processors { online, present });
    let custom = prop::collection::btree_map("[a-z0-9_.-]{1,64}", number(), 0..MAX_GAUGES);
    (
        any::<bool>(),
        pressure,
        number(),
        prop::option::of(memory),
        prop::option::of(root),
        prop::option::of(cpus),
        custom,
    )
        .prop_map(
            |(urgent, pressure, load1, memory, root, cpus, custom)| Report {
                urgent,
                pressure,
                load1,
                memory,
                root,
                cpus,
                custom,
            },
        )
}

fn from_guest() -> impl Strategy<Value = FromGuest> {
    let hello =
        (any::<u32>(), ".{0,40}").prop_map(|(version, program)| GuestHello { version, program });
    let outcome = prop::sample::select(vec![
        AnswerOutcome::Done,
        AnswerOutcome::Vetoed,
        AnswerOutcome::TimedOut,
    ]);
    let answer =
        (any::<u64>(), outcome, prop::option::of(".{0,200}")).prop_map(|(id, outcome, reason)| {
            Answer {
                id,
                outcome,
                reason,
            }
        });
    let hooks = any::<(bool, bool)>().prop_map(|(before_shrink, after_grow)| Hooks {
        before_shrink,
        after_grow,
    });
    (
        prop::option::of(hello),
        prop::option::of(report()),
        prop::option::of(hooks),
        prop::option::of(answer),
    )
        .prop_map(|(hello, report, hooks, answer)| FromGuest {
            hello,
            report,
            hooks,
            answer,
        })
}

fn to_guest() -> impl Strategy<Value = ToGuest> {
    let hello =
        any::<(u32, u64)>().prop_map(|(version, period_ms)| HostHello { version, period_ms });
    let moment = prop::sample::select(vec![Moment::BeforeShrink, Moment::AfterGrow]);
    let axis = prop::sample::select(vec![ChangeAxis::Cpu, ChangeAxis::Memory]);
    let change = (any::<[u64; 4]>(), moment, axis).prop_map(
        |([id, from, to, deadline_ms], moment, axis)| Change {
            id,
            moment,
            axis,
            from,
            to,
            deadline_ms,
        },
    );
    (
        prop::option::of(hello),
        prop::option::of(change),
        any::<bool>(),
    )
        .prop_map(|(hello, change, power_off)| ToGuest {
            hello,
            change,
            power_off,
        })
}

/// All lines of a stream that arrives in pieces of these lengths.
fn lines_of(stream: &[u8], pieces: &[usize]) -> Vec<Result<Vec<u8>, LineTooLong>> {
    let mut lines = Lines::default();
    let mut found = Vec::new();
    let mut rest = stream;
    for piece in pieces.iter().cycle() {
        if rest.is_empty() {
            break;
        }
        let (now, later) = rest.split_at((*piece).min(rest.len()));
        lines.feed(now, |line| found.push(line.map(<[u8]>::to_vec)));
        rest = later;
    }
    found
}

proptest! {
    #[test]
    fn what_the_guest_says_arrives_in_any_pieces(
        messages in prop::collection::vec(from_guest(), 1..6),
        pieces in prop::collection::vec(1usize..300, 1..20),
    ) {
        let stream: Vec<u8> = messages.iter().flat_map(|m| encode(m).unwrap()).collect();
        let arrived: Vec<FromGuest> = lines_of(&stream, &pieces)
            .into_iter()
            .map(|line| decode(&line.unwrap()).unwrap())
            .collect();
        prop_assert_eq!(arrived, messages);
    }

    #[test]
    fn what_the_host_says_arrives(message in to_guest()) {
        prop_assert_eq!(decode::<ToGuest>(&encode(&message).unwrap()), Some(message));
    }

    #[test]
    fn any_bytes_are_survived_and_nothing_longer_than_allowed_is_kept(
        bytes in prop::collection::vec(any::<u8>(), 0..2000),
        long in 0usize..40_000,
        pieces in prop::collection::vec(1usize..9000, 1..20),
    ) {
        let mut stream = bytes.clone();
        stream.extend(vec![b'x'; long]);
        stream.extend(b"\n{\"report\":{\"load1\":1}}\n");
        let lines = lines_of(&stream, &pieces);
        for line in lines.iter().flatten() {
            prop_assert!(line.len() < MAX_LINE_BYTES);
            let _ = decode::<FromGuest>(line);
        }
        let last = decode::<FromGuest>(lines.last().unwrap().as_ref().unwrap()).unwrap();
        prop_assert_eq!(last.report.unwrap().load1, Some(1.0));
        prop_assert_eq!(lines.len(), stream.iter().filter(|b| **b == b'\n').count());
    }

    #[test]
    fn any_text_is_survived_as_a_gauge(text in ".{0,80}", value in any::<f64>()) {
        let _ = parse_gauge(&text);
        let line = format!("a:{value}|g");
        prop_assert_eq!(parse_gauge(&line).is_some(), value.is_finite());
    }
}

#[test]
fn a_newer_side_is_understood_as_far_as_it_goes() {
    let line = br#"{"hello":{"version":9,"program":"x","mood":1},"dance":{"steps":[1]},
        "report":{"load1":2.5,"pressure":{"cpu":1,"gpu":3},"custom":{"a":null,"b":4}},
        "answer":{"id":3,"outcome":"postponed"}}"#;
    let message: FromGuest = decode(line).unwrap();
    assert_eq!(message.hello.unwrap().version, 9);
    let report = message.report.unwrap();
    assert_eq!((report.load1, report.pressure.cpu), (Some(2.5), Some(1.0)));
    assert_eq!((report.custom["a"], report.custom["b"]), (None, Some(4.0)));
    assert_eq!(message.answer.unwrap().outcome, AnswerOutcome::Unknown);
    let change = r#"{"change":{"id":1,"moment":"during_moon","axis":"gpu"}}"#;
    let change = decode::<ToGuest>(change.as_bytes())
        .unwrap()
        .change
        .unwrap();
    assert_eq!(
        (change.moment, change.axis),
        (Moment::Unknown, ChangeAxis::Unknown)
    );
}

#[test]
fn what_is_no_message_is_none() {
    for line in [
        "",
        "{",
        "7",
        "{\"report\":7}",
        "{\"report\":{\"load1\":1e999}}",
        "\u{0}",
    ] {
        assert_eq!(decode::<FromGuest>(line.as_bytes()), None, "{line}");
    }
    // Deep nesting must not end in a stack overflow.
    assert_eq!(decode::<FromGuest>("[".repeat(16_000).as_bytes()), None);
    let long = GuestHello {
        program: "x".repeat(MAX_LINE_BYTES),
        ..GuestHello::default()
    };
    assert_eq!(encode(&long), None);
}

#[test]
fn gauges_are_read_like_statsd_reads_them() {
    assert_eq!(parse_gauge("rps:12.5|g"), Some(Gauge::Set("rps", 12.5)));
    assert_eq!(
        parse_gauge("queue.len:+3|g"),
        Some(Gauge::Change("queue.len", 3.0))
    );
    assert_eq!(
        parse_gauge("q:-1|g|@0.1|#a:b\n"),
        Some(Gauge::Change("q", -1.0))
    );
    for line in [
        "", "a", "a:1", "a:1|c", "a:x|g", "a:nan|g", "a:inf|g", "A:1|g", ":1|g", "a b:1|g",
    ] {
        assert_eq!(parse_gauge(line), None, "{line}");
    }
}
