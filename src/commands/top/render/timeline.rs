//! One instance over time: load, CPUs and memory as lines, and its events with what they changed.

use std::time::Duration;

use concertina_api::event::{Event, EventKind};
use concertina_api::instance::InstanceSize;
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::text::Line;
use ratatui::widgets::{Cell, Paragraph, Row, Table, TableState, Wrap};

use super::{BOLD, REVERSED, Theme, cpu_bar, memory_bar};
use crate::commands::events::kind_and_text;
use crate::commands::top::app::App;
use crate::commands::top::instance::{Instance, Point, event_word};
use crate::output;
use crate::text::plain;

/// The lines cover so much at most.
const LONGEST_SPAN: Duration = Duration::from_secs(600);
/// And so much at least.
const SHORTEST_SPAN: Duration = Duration::from_secs(60);
/// Lines that tell the selected event in full.
const EVENT_LINES: u16 = 3;
const LABEL: usize = 8;
const NUMBER: usize = 10;

/// Draws it.
pub fn render(
    app: &App,
    theme: &Theme,
    instance: &Instance,
    selected: usize,
    frame: &mut Frame<'_>,
    area: Rect,
) {
    let [past, table, event] = Layout::vertical([
        Constraint::Length(5),
        Constraint::Min(0),
        Constraint::Length(EVENT_LINES),
    ])
    .areas(area);
    frame.render_widget(
        Paragraph::new(past_lines(app, theme, instance, past.width)),
        past,
    );
    render_events(app, theme, instance, selected, frame, table);
    if let Some(found) = instance.events.iter().rev().nth(selected) {
        let (kind, text) = kind_and_text(found);
        let text = plain(&format!("{} {kind}: {text}", found.time));
        frame.render_widget(Paragraph::new(text).wrap(Wrap { trim: true }), event);
    }
}

fn past_lines(app: &App, theme: &Theme, instance: &Instance, width: u16) -> Vec<Line<'static>> {
    let columns = usize::from(width).saturating_sub(LABEL + NUMBER + 1);
    let known = instance
        .history
        .front()
        .map_or(Duration::ZERO, |first| app.now.saturating_sub(first.at));
    let span = known.clamp(SHORTEST_SPAN, LONGEST_SPAN);
    let line = |label: &str, number: String, share: &dyn Fn(&Point) -> Option<f64>| {
        let past = instance.past(app.now, span, columns, app.interval * 2, share);
        let spark = theme.glyphs.spark(&past);
        Line::raw(format!(
            "{label:<LABEL$}{spark} {:>NUMBER$}",
            theme.text(&number, NUMBER)
        ))
    };
    let of =
        |value: f64, most: Option<f64>| most.filter(|most| *most > 0.0).map(|most| value / most);
    let (cpus, memory) = (cpu_bar(instance), memory_bar(instance));
    let number = |known: &Option<(super::SizeBar, String)>| {
        known
            .as_ref()
            .map_or("-".to_owned(), |(_, text)| text.clone())
    };
    let most = |known: &Option<(super::SizeBar, String)>| known.as_ref().map(|(bar, _)| bar.max);
    let load = instance
        .load()
        .map_or("-".to_owned(), |load| format!("{load:.0}%"));
    let word = instance.word(app.standing(instance));
    vec![
        Line::styled(
            theme.text(
                &format!(
                    "{}: {word}; the last {}",
                    instance.name(),
                    output::span(span)
                ),
                usize::from(width),
            ),
            BOLD,
        ),
        line("load", load, &|point| point.load.map(|load| load / 100.0)),
        line("cpus", number(&cpus), &|point| {
            of(point.cpus.as_f64(), most(&cpus))
        }),
        line("memory", number(&memory), &|point| {
            of(point.memory.get() as f64, most(&memory))
        }),
        Line::raw(""),
    ]
}

fn render_events(
    app: &App,
    theme: &Theme,
    instance: &Instance,
    selected: usize,
    frame: &mut Frame<'_>,
    area: Rect,
) {
    if instance.events.is_empty() {
        frame.render_widget(Paragraph::new("No events"), area);
        return;
    }
    let (ago, kind, size) = (9, 10, 22);
    let rest = usize::from(area.width).saturating_sub(ago + kind + size + 3);
    let rows = instance
        .events
        .iter()
        .rev()
        .enumerate()
        .map(|(index, event)| {
            let mark = if index == selected { '>' } else { ' ' };
            let when = match instance.age(event, app.now) {
                Some(age) => output::span(age),
                // Of an instance that ended only the time of day is known.
                None => event.time.get(11..19).unwrap_or_default().to_owned(),
            };
            Row::new([
                Cell::from(format!("{mark}{when}")),
                Cell::from(theme.text(event_word(&event.kind), kind)),
                Cell::from(theme.text(&change(event), size)),
                Cell::from(theme.text(&cause(event), rest)),
            ])
        });
    let widths = [ago, kind, size, rest]
        .map(|width| Constraint::Length(u16::try_from(width).unwrap_or(u16::MAX)));
    let table = Table::new(rows, widths)
        .header(Row::new([" AGO", "EVENT", "SIZE", "BY"]).style(BOLD))
        .row_highlight_style(REVERSED);
    let mut state = TableState::new().with_selected(Some(selected));
    frame.render_stateful_widget(table, area, &mut state);
}

/// What an event changed, or would: `1 > 2 cpu`.
fn change(event: &Event) -> String {
    let (before, after) = match &event.kind {
        EventKind::Resized { before, report, .. } => (before, &report.got),
        EventKind::Recommended {
            present,
            recommended,
            ..
        } => (present, recommended),
        _ => return String::new(),
    };
    let parts = |size: &InstanceSize| {
        (
            size.cpus.map(|cpus| cpus.to_string()),
            size.memory.map(output::size),
        )
    };
    let ((cpus, memory), (to_cpus, to_memory)) = (parts(before), parts(after));
    let text = |from: Option<String>, to: Option<String>, unit: &str| {
        let to = to?;
        Some(match from {
            Some(from) if from != to => format!("{from} > {to}{unit}"),
            _ => format!("{to}{unit}"),
        })
    };
    let texts = [text(cpus, to_cpus, " cpu"), text(memory, to_memory, "")];
    texts.into_iter().flatten().collect::<Vec<_>>().join(", ")
}

/// Why it happened.
fn cause(event: &Event) -> String {
    match &event.kind {
        EventKind::Resized { cause, .. } | EventKind::Recommended { cause, .. } => cause.clone(),
        _ => kind_and_text(event).1,
    }
}
