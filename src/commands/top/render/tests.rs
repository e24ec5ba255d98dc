use concertina_agent::ledger::Account;
use concertina_api::event::Event;
use concertina_api::instance::InstanceState;
use concertina_api::{Bytes, Cpus};
use proptest::prelude::*;
use ratatui::Terminal;
use ratatui::backend::TestBackend;
use serde_json::json;

use super::*;
use crate::commands::top::app::tests::{hear, press, three};
use crate::commands::top::app::{Input, Report};
use crate::commands::top::host::{Accounts, HostNumbers};
use crate::commands::top::instance::Listed;
use crate::commands::top::instance::tests::{listed, secs, status};

const PLAIN: Theme = Theme {
    color: false,
    glyphs: Glyphs::ASCII,
};

/// The picture's lines, without blanks at their ends.
fn drawn(app: &App, theme: &Theme, width: u16, height: u16) -> Vec<String> {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| render(app, theme, frame)).unwrap();
    let buffer = terminal.backend().buffer();
    buffer
        .content()
        .chunks(usize::from(width))
        .map(|row| {
            let line: String = row.iter().map(ratatui::buffer::Cell::symbol).collect();
            line.trim_end().to_owned()
        })
        .collect()
}

fn screen(app: &App) -> Vec<String> {
    drawn(app, &PLAIN, 80, 24)
}

#[track_caller]
fn line_with<'a>(lines: &'a [String], word: &str) -> &'a str {
    lines
        .iter()
        .find(|line| line.contains(word))
        .unwrap_or_else(|| panic!("No line has '{word}':\n{}", lines.join("\n")))
}

fn resized(at_ms: u64, cause: &str) -> Event {
    serde_json::from_value(
        json!({"time": "2026-11-22T10:00:03.000Z", "uptime_ms": at_ms,
        "event": "resized", "cause": cause, "before": {"cpus": 1.0}, "outcome": "applied",
        "asked": {"cpus": 2.0}, "got": {"cpus": 2.0}, "timeline_ms": {}, "resident_before": 1,
        "resident_after": 1}),
    )
    .unwrap()
}

fn with_events() -> App {
    let mut app = three();
    let events = vec![resized(3000, "cpu > 75% for 5s: +1 cpu")];
    hear(&mut app, Report::Events("web".into(), events), 2);
    app
}

#[test]
fn a_window_of_80_by_24_shows_everything() {
    let mut app = with_events();
    let numbers = HostNumbers {
        cpus: Some(8),
        busy: Some(12.4),
        memory: Some(Bytes::mib(16 << 10)),
        available: Some(Bytes::mib(9 << 10)),
    };
    hear(&mut app, Report::Host(numbers, None), 2);
    press(&mut app, "jj");
    assert_eq!(
        screen(&app),
        [
            "concertina top   3 instances, 1 gives no answer                       sort: name",
            "CPUs    8, 12% busy   instances: 6, at least 1, at most 8",
            "Memory  16G, 9G free   instances: 960M, at least 512M, at most 2G, resident 180M",
            "Book    no host agent   (without 1 that gave no answer yet)",
            " NAME        CPUS              LOAD        MEMORY              PRESS LAST",
            " cache       -                 no answer   -                   -     -",
            " db          #======== 4/4          .  12% ##==..... 448M/1G   m30%  -",
            ">web         #====.... 2/4          *  75% ##===.... 512M/1G   c1%   grew 3s",
            "",
            "",
            "",
            "",
            "",
            "",
            "",
            "",
            "",
            "",
            "",
            "",
            "web: running, up 6.0s; CPUs 0.5..4, 2 online, quota max, target 2",
            "memory 256M..1G, 512M plugged, 0 balloon, target 448M, resident 90M",
            "resized 3s ago: cpu > 75% for 5s: +1 cpu: from 1 CPU: applied: asked 2 CPUs (re~",
            "q quit  Enter timeline  s sort  r reverse  +/- CPUs  M/m memory  ? help",
        ]
    );
}

#[test]
fn bars_show_what_is_to_come() {
    let mut app = three();
    let mut web = status("web", 10.0, 1, 0.0);
    web.cpus.target = Cpus::whole(3);
    hear(
        &mut app,
        Report::Answer("web".into(), Some(Box::new(web))),
        2,
    );
    assert!(line_with(&screen(&app), " web").contains("#=+++++.. 1/4"));
    let blocks = Theme {
        glyphs: Glyphs::BLOCKS,
        ..PLAIN
    };
    let lines = drawn(&app, &blocks, 80, 24);
    assert!(line_with(&lines, " web").contains("█▓▒▒▒▒▒░░ 1/4"));
}

#[test]
fn the_book_is_shown_where_somebody_keeps_it() {
    let mut app = three();
    let accounts = Accounts {
        cpus: Account {
            limit: 8000,
            held: 5500,
            guaranteed: 2000,
            awaited: 500,
            ..Account::default()
        },
        memory: Account {
            limit: 16 << 30,
            held: 3 << 30,
            guaranteed: 1 << 30,
            ..Account::default()
        },
    };
    hear(
        &mut app,
        Report::Host(HostNumbers::default(), Some(accounts)),
        2,
    );
    let lines = drawn(&app, &PLAIN, 120, 24);
    let book = line_with(&lines, "Book");
    assert!(
        book.contains("CPUs 5.5 of 8 held, 2 guaranteed, 0.5 awaited   memory 3G of 16G held, 1G"),
        "{book}"
    );
    // What could not be read is no number.
    assert!(line_with(&lines, "CPUs  ").contains("CPUs    ?   instances"));
}

#[test]
fn the_order_of_the_list_is_that_of_the_model() {
    let mut app = three();
    press(&mut app, "s");
    let lines = screen(&app);
    assert!(lines[0].ends_with("sort: cpu"), "{}", lines[0]);
    let names: Vec<&str> = lines[5..8]
        .iter()
        .filter_map(|line| line[1..].split(' ').next())
        .collect();
    assert_eq!(names, ["web", "db", "cache"]);
    press(&mut app, "r");
    let lines = screen(&app);
    assert!(lines[0].ends_with("sort: cpu, reversed"), "{}", lines[0]);
}

#[test]
fn silence_pauses_and_ends_stand_in_place_of_the_load() {
    let mut app = three();
    let mut paused = status("db", 0.0, 1, 0.0);
    paused.state = InstanceState::Paused;
    hear(
        &mut app,
        Report::Answer("db".into(), Some(Box::new(paused))),
        2,
    );
    let ended = Listed {
        alive: false,
        state: InstanceState::Failed,
        ending: Some("The guest crashed".into()),
        ..listed("web")
    };
    hear(
        &mut app,
        Report::Instances(vec![listed("cache"), listed("db"), ended]),
        2,
    );
    press(&mut app, "G");
    let lines = screen(&app);
    assert!(line_with(&lines, " cache").contains("no answer"));
    assert!(line_with(&lines, " db").contains("paused"));
    assert!(line_with(&lines, ">web").contains("failed"));
    assert!(
        lines.iter().any(|line| line == "The guest crashed"),
        "{lines:#?}"
    );
}

#[test]
fn an_instance_that_hangs_is_silent_after_a_while_and_the_others_are_not() {
    let mut app = three();
    for second in 2..12 {
        let web = status("web", 75.0, 2, 0.0);
        hear(
            &mut app,
            Report::Answer("web".into(), Some(Box::new(web))),
            second,
        );
    }
    // Nothing at all was heard of db for ten seconds.
    let lines = screen(&app);
    assert!(line_with(&lines, " db").contains("no answer"));
    assert!(line_with(&lines, " web").contains("75%"));
    assert!(lines[0].contains("2 give no answer"));
}

#[test]
fn a_small_window_says_so_and_none_breaks_anything() {
    let mut app = with_events();
    let lines = drawn(&app, &PLAIN, 59, 24);
    assert!(
        lines[0].starts_with("This window is too small: 59 x 24"),
        "{}",
        lines[0]
    );
    let lines = drawn(&app, &PLAIN, 60, 15);
    assert!(line_with(&lines, " web").contains("2/4"));
    assert!(lines.iter().all(|line| line.chars().count() <= 60));
    for keys in ["", "?", "x\n", "+"] {
        press(&mut app, keys);
        for (width, height) in [
            (1, 1),
            (1, 40),
            (60, 15),
            (61, 16),
            (65, 15),
            (75, 20),
            (300, 90),
        ] {
            drawn(&app, &PLAIN, width, height);
        }
    }
}

#[test]
fn more_width_shows_more() {
    let mut app = with_events();
    let name = "a-name-of-twenty-two-c";
    hear(
        &mut app,
        Report::Instances(vec![listed("web"), listed(name)]),
        2,
    );
    let narrow = screen(&app);
    assert!(line_with(&narrow, "a-name").contains("a-name-of-~"));
    let wide = drawn(&app, &PLAIN, 140, 24);
    assert!(line_with(&wide, "a-name").contains(name));
    assert!(line_with(&wide, " web").contains("grew 3s: cpu > 75% for 5s"));
}

#[test]
fn a_long_list_scrolls_with_the_selection() {
    let mut app = three();
    let found: Vec<Listed> = (0..50).map(|n| listed(&format!("vm{n:02}"))).collect();
    hear(&mut app, Report::Instances(found), 2);
    assert!(!screen(&app).iter().any(|line| line.contains("vm49")));
    press(&mut app, "G");
    let lines = screen(&app);
    line_with(&lines, ">vm49");
    assert!(!lines.iter().any(|line| line.contains("vm00")));
}

#[test]
fn words_of_guests_cannot_break_the_screen() {
    let mut app = three();
    let hostile = "custom.\x1b[2J\x1b[31m\r\n\u{202e}evil\u{9b}5n\u{200b} > 1: +1 cpu";
    let events = vec![resized(3000, hostile), resized(4000, hostile)];
    hear(&mut app, Report::Events("web".into(), events), 2);
    let failed = Report::Resized("web".into(), Err(hostile.into()));
    press(&mut app, "G");
    let calm = drawn(&app, &PLAIN, 140, 24);
    hear(&mut app, failed, 2);
    for keys in ["", "\n"] {
        press(&mut app, keys);
        for width in [80, 140] {
            let lines = drawn(&app, &PLAIN, width, 24);
            let bad = |c: char| c.is_control() || c == '\u{202e}' || c == '\u{200b}';
            assert!(!lines.iter().any(|line| line.contains(bad)), "{lines:?}");
            assert!(
                lines
                    .iter()
                    .all(|line| line.chars().count() <= usize::from(width))
            );
        }
    }
    // The rows stand where they stood.
    assert!(calm[7].starts_with(">web"), "{calm:#?}");
}

#[test]
fn the_timeline_shows_the_past_and_the_events_with_their_sizes() {
    let mut app = with_events();
    for second in 2..40 {
        let web = status("web", 75.0, 2, 0.0);
        hear(
            &mut app,
            Report::Answer("web".into(), Some(Box::new(web))),
            second,
        );
    }
    press(&mut app, "G\n");
    let lines = screen(&app);
    assert!(lines[0].ends_with("timeline of web"), "{}", lines[0]);
    assert_eq!(lines[1], "web: running; the last 1m 00s");
    let load = line_with(&lines, "load  ");
    assert!(
        load.contains("*********") && load.ends_with("75%"),
        "{load}"
    );
    assert!(line_with(&lines, "cpus  ").ends_with("2/4"));
    assert!(line_with(&lines, "memory  ").ends_with("448M/1G"));
    let event = line_with(&lines, "grew");
    assert!(
        event.starts_with(">58.5s") && event.contains("1 > 2 cpu") && event.contains("cpu > 75%"),
        "{event}"
    );
    assert!(
        lines
            .iter()
            .any(|line| line.starts_with("2026-11-22T10:00:03.000Z resized: "))
    );
    assert!(lines[23].starts_with("q quit  Esc back"));
}

#[test]
fn the_question_stands_on_the_bottom_line() {
    let mut app = three();
    press(&mut app, "G+");
    assert_eq!(
        screen(&app)[23],
        "Resize web to 2.5 CPUs? Enter: yes  Esc: no  +/- M/m: change"
    );
    press(&mut app, "\n");
    app.update(Input::Tick, secs(4));
    assert_eq!(screen(&app)[23], "web: asked for 2.5 CPUs, 3 s ago");
}

#[test]
fn the_help_fits_on_80_by_24() {
    let mut app = three();
    press(&mut app, "?");
    let lines = screen(&app);
    line_with(&lines, "## up to the lower bound");
    line_with(&lines, "A resize by hand pauses");
}

#[test]
fn without_instances_it_says_how_to_get_some() {
    let mut app = App::new(secs(1), false);
    hear(&mut app, Report::Instances(vec![]), 0);
    line_with(&screen(&app), "concertina run");
}

#[test]
fn the_environment_decides_on_colours_and_characters() {
    let theme = |variables: &[(&str, &str)]| {
        Theme::of_environment(|name| {
            let found = variables.iter().find(|(key, _)| *key == name);
            found.map(|(_, value)| (*value).to_owned())
        })
    };
    let plain = theme(&[("LANG", "C"), ("NO_COLOR", "1")]);
    assert!(!plain.color && plain.glyphs.ascii);
    let full = theme(&[("LANG", "de_DE.UTF-8"), ("NO_COLOR", "")]);
    assert!(full.color && !full.glyphs.ascii);
    assert!(theme(&[("LC_ALL", "C"), ("LANG", "C.UTF-8")]).glyphs.ascii);
    assert!(theme(&[]).glyphs.ascii);
}

#[test]
fn colours_mark_the_parts_of_a_bar_and_are_absent_without() {
    let colors = |color| {
        let mut terminal = Terminal::new(TestBackend::new(80, 24)).unwrap();
        let theme = Theme { color, ..PLAIN };
        let app = three();
        terminal.draw(|frame| render(&app, &theme, frame)).unwrap();
        let cells = terminal.backend().buffer().content().iter();
        cells.filter(|cell| cell.fg != Color::Reset).count()
    };
    assert_eq!(colors(false), 0);
    assert!(colors(true) > 10);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn no_keys_reports_and_windows_break_anything(
        steps in prop::collection::vec((0usize..24, 0u64..5), 1..60),
        windows in prop::collection::vec((1u16..160, 1u16..50), 1..4),
    ) {
        let keys: Vec<char> = "jkgGsrmM+-?yn\n\x1b".chars().collect();
        let mut app = with_events();
        let mut now = 2;
        for (step, wait) in steps {
            now += wait;
            if let Some(key) = keys.get(step) {
                app.update(Input::Tick, secs(now));
                press(&mut app, &key.to_string());
                continue;
            }
            let web = || Some(Box::new(status("web", step as f64, step as u32, f64::NAN)));
            let report = match step - keys.len() {
                0 => Report::Instances(vec![]),
                1 => Report::Instances(["cache", "db", "web"].map(listed).to_vec()),
                2 => Report::Answer("web".into(), None),
                3 => Report::Events("web".into(), vec![resized(now, "manual"), resized(9, "x")]),
                4 => Report::Resized("web".into(), Err("no".into())),
                _ => Report::Answer("web".into(), web()),
            };
            app.update(Input::Report(report), secs(now));
        }
        for (width, height) in windows {
            for theme in [PLAIN, Theme { color: true, glyphs: Glyphs::BLOCKS }] {
                drawn(&app, &theme, width, height);
            }
        }
    }
}
