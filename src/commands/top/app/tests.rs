use concertina_api::vm::Outcome;

use super::*;
use crate::commands::top::instance::tests::{listed, secs, status};

/// A model that has heard of three instances at 1 s; `cache` gives no answer.
pub fn three() -> App {
    let mut app = App::new(secs(1), false);
    let found = ["cache", "db", "web"].map(listed).to_vec();
    hear(&mut app, Report::Instances(found), 0);
    // db: 0.5 CPUs used, much pressure; web: 1.5 CPUs used, and it is younger.
    let db = status("db", 12.5, 4, 30.0);
    let mut web = status("web", 75.0, 2, 0.0);
    web.uptime_ms = 5000;
    web.memory.balloon = Bytes(0);
    hear(&mut app, Report::Answer("db".into(), Some(Box::new(db))), 1);
    hear(
        &mut app,
        Report::Answer("web".into(), Some(Box::new(web))),
        1,
    );
    hear(&mut app, Report::Answer("cache".into(), None), 1);
    app
}

pub fn hear(app: &mut App, report: Report, at: u64) {
    assert_eq!(app.update(Input::Report(report), secs(at)), None);
}

pub fn press(app: &mut App, keys: &str) -> Option<Effect> {
    let mut last = None;
    for key in keys.chars() {
        let key = match key {
            '\n' => Key::Enter,
            '\x1b' => Key::Esc,
            key => Key::Char(key),
        };
        last = app.update(Input::Key(key), app.now);
    }
    last
}

fn names(app: &App) -> Vec<&str> {
    app.visible().into_iter().map(Instance::name).collect()
}

fn report(outcome: Outcome, cpus: Cpus) -> ResizeReport<InstanceSize> {
    let size = InstanceSize {
        cpus: Some(cpus),
        ..InstanceSize::default()
    };
    ResizeReport {
        outcome,
        asked: size,
        got: size,
        reason: None,
        ost: None,
        timeline_ms: BTreeMap::new(),
    }
}

#[test]
fn sorting_goes_through_all_orders_and_the_unknown_comes_last() {
    let mut app = three();
    let mut orders = Vec::new();
    for _ in 0..5 {
        orders.push((app.sort.as_str(), names(&app).join(" ")));
        let order = names(&app).join(" ");
        press(&mut app, "r");
        let reversed = names(&app).join(" ");
        press(&mut app, "r");
        assert_ne!(order, reversed);
        if app.sort != Sort::Name {
            assert!(reversed.ends_with("cache"), "{reversed}");
        }
        press(&mut app, "s");
    }
    let wanted = [
        ("name", "cache db web"),
        ("cpu", "web db cache"),
        ("memory", "web db cache"),
        ("pressure", "db web cache"),
        ("age", "db web cache"),
    ];
    assert_eq!(orders, wanted.map(|(sort, order)| (sort, order.to_owned())));
    assert_eq!(app.sort, Sort::Name);
}

#[test]
fn the_selection_follows_its_instance_and_survives_its_end() {
    let mut app = three();
    press(&mut app, "jj");
    assert_eq!(app.current().unwrap().name(), "web");
    press(&mut app, "j");
    assert_eq!(app.current().unwrap().name(), "web");
    press(&mut app, "s");
    assert_eq!(
        (app.current().unwrap().name(), app.selected_index()),
        ("web", 0)
    );
    press(&mut app, "G");
    assert_eq!(app.current().unwrap().name(), "cache");
    let found = ["db", "web"].map(listed).to_vec();
    hear(&mut app, Report::Instances(found), 2);
    assert_eq!(app.current().unwrap().name(), "db");
    hear(&mut app, Report::Instances(vec![]), 3);
    assert!(app.current().is_none());
    // Nothing to press on.
    assert_eq!(press(&mut app, "jk+\n\x1b"), None);
}

#[test]
fn what_ends_while_it_is_looked_at_stays_and_what_had_ended_does_not_come() {
    let ended = |name| Listed {
        alive: false,
        state: InstanceState::Failed,
        ..listed(name)
    };
    let mut app = three();
    let found = vec![ended("web"), ended("old"), listed("db")];
    hear(&mut app, Report::Instances(found.clone()), 2);
    assert_eq!(names(&app), ["db", "web"]);
    let mut all = App::new(secs(1), true);
    hear(&mut all, Report::Instances(found), 2);
    assert_eq!(names(&all), ["db", "old", "web"]);
}

#[test]
fn a_resize_is_asked_for_only_after_a_yes_and_its_outcome_is_told() {
    let mut app = three();
    press(&mut app, "jj");
    assert_eq!(press(&mut app, "+"), None);
    assert_eq!(app.prompt.as_ref().unwrap().wish.cpus, Some(Cpus(2500)));
    assert_eq!(press(&mut app, "++m"), None);
    let wish = app.prompt.as_ref().unwrap().wish.clone();
    assert_eq!(
        (wish.cpus, wish.memory),
        (Some(Cpus(3500)), Some(Bytes::mib(320)))
    );
    // Other keys are no answer.
    assert_eq!(press(&mut app, "jsr"), None);
    assert_eq!(app.prompt.as_ref().unwrap().wish, wish);
    let effect = press(&mut app, "\n");
    assert_eq!(effect, Some(Effect::Resize("web".into(), Box::new(wish))));
    assert!(app.prompt.is_none());
    app.update(Input::Tick, secs(3));
    assert_eq!(
        app.message().unwrap(),
        "web: asked for 3.5 CPUs and 320M, 2 s ago"
    );
    // One at a time.
    assert_eq!(press(&mut app, "+\n"), None);
    assert!(app.message().unwrap().contains("wait for the outcome"));
    press(&mut app, "\x1b");

    let done = Report::Resized(
        "web".into(),
        Ok(Box::new(report(Outcome::Applied, Cpus(3500)))),
    );
    hear(&mut app, done, 4);
    assert_eq!(app.message().unwrap(), "web: applied: asked 3.5 CPUs");
    app.update(Input::Tick, secs(30));
    assert_eq!(app.message(), None);
    let failed = Report::Resized("web".into(), Err("No answer".into()));
    hear(&mut app, failed, 31);
    assert_eq!(app.message().unwrap(), "web: No answer");
}

#[test]
fn a_no_and_a_way_back_leave_nothing_asked() {
    let mut app = three();
    press(&mut app, "jj");
    for keys in ["+\x1b", "+n", "+-", "M\x1b", "M-+m"] {
        assert_eq!(press(&mut app, keys), None, "{keys:?}");
        assert_eq!(app.prompt, None, "{keys:?}");
    }
    assert_eq!(press(&mut app, "\n"), None);
    assert!(matches!(app.view, View::Timeline { .. }));
}

#[test]
fn a_step_stops_at_the_bounds_and_says_so() {
    let mut app = three();
    press(&mut app, "jj");
    press(&mut app, "++++++++");
    assert_eq!(app.prompt.as_ref().unwrap().wish.cpus, Some(Cpus(4000)));
    assert_eq!(app.message().unwrap(), "web has its upper bound: 4 cpu");
    press(&mut app, "mmmmmm");
    assert_eq!(
        app.prompt.as_ref().unwrap().wish.memory,
        Some(Bytes::mib(256))
    );
    assert_eq!(app.message().unwrap(), "web has its lower bound: 256M");
}

#[test]
fn who_does_not_answer_or_run_is_not_resized() {
    let mut app = three();
    assert_eq!(app.current().unwrap().name(), "cache");
    assert_eq!(press(&mut app, "+"), None);
    assert_eq!(
        app.message().unwrap(),
        "cache does not run: its size cannot change"
    );
    assert_eq!(app.prompt, None);
    press(&mut app, "j");
    let mut paused = status("db", 0.0, 1, 0.0);
    paused.state = InstanceState::Paused;
    hear(
        &mut app,
        Report::Answer("db".into(), Some(Box::new(paused))),
        2,
    );
    press(&mut app, "+");
    assert_eq!(app.prompt, None);
}

#[test]
fn the_timeline_keeps_its_event_when_others_come() {
    let event = |ms: u64| -> Event {
        let value = serde_json::json!({"time": "t", "uptime_ms": ms, "event": "rebooted"});
        serde_json::from_value(value).unwrap()
    };
    let mut app = three();
    hear(
        &mut app,
        Report::Events("web".into(), vec![event(1), event(2), event(3)]),
        2,
    );
    press(&mut app, "G\n");
    let at = |app: &App| match &app.view {
        View::Timeline { name, event } => {
            let events = &app.instances[name].events;
            events.iter().rev().nth(*event).map(|event| event.uptime_ms)
        }
        View::List => None,
    };
    // On the latest it goes along; on an older one it stays.
    assert_eq!(at(&app), Some(3));
    hear(&mut app, Report::Events("web".into(), vec![event(4)]), 3);
    assert_eq!(at(&app), Some(4));
    press(&mut app, "jj");
    hear(
        &mut app,
        Report::Events("web".into(), vec![event(5), event(6)]),
        4,
    );
    assert_eq!(at(&app), Some(2));
    press(&mut app, "G");
    assert_eq!(at(&app), Some(1));
    press(&mut app, "jjj");
    assert_eq!(at(&app), Some(1));
    press(&mut app, "\x1b");
    assert_eq!(app.view, View::List);
    // An instance whose folder is gone has no timeline.
    press(&mut app, "\n");
    hear(&mut app, Report::Instances(vec![listed("db")]), 5);
    assert_eq!(app.view, View::List);
}

#[test]
fn q_leaves_from_everywhere() {
    for keys in ["", "?", "\n", "jj+"] {
        let mut app = three();
        press(&mut app, keys);
        assert_eq!(press(&mut app, "q"), Some(Effect::Quit), "{keys:?}");
        assert_eq!(
            app.update(Input::Key(Key::Interrupt), secs(9)),
            Some(Effect::Quit)
        );
    }
}

#[test]
fn any_key_closes_the_help_and_does_nothing_else() {
    let mut app = three();
    press(&mut app, "?");
    assert!(app.help);
    press(&mut app, "s");
    assert!(!app.help && app.sort == Sort::Name);
}
