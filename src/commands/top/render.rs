//! From the model to a picture. Pure: the same model and size give the same picture.

mod list;
mod timeline;

use std::time::Duration;

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Paragraph, Wrap};

use super::app::{App, View, size_of};
use super::bars::{Glyphs, SizeBar, Zone};
use super::instance::{Instance, Standing};
use crate::commands::status::describe_size;
use crate::output;
use crate::text::{cut, plain};

pub use list::whole_height;

/// Least width of a window.
pub const LEAST_WIDTH: u16 = 60;
/// Least height of a window.
const LEAST_HEIGHT: u16 = 15;

const HELP: &str = "\
Up, Down, k, j   select an instance, or an event     PgUp PgDn Home End: further
Enter            timeline of the selected instance   Esc: back to the list
s                sort by name, cpu, memory, pressure, age (the largest first)
r                the other way round
+  -             more or less CPU for it, by hand: asks before it does anything
M  m             more or less memory, the same way
q  Ctrl-C        leave; Ctrl-Z goes back to the shell for a while

Bars: the whole bar is the upper bound.
  {floor} up to the lower bound   {above} has beyond it   {coming} is to get   {room} could get
CPUS    what it has, of the upper bound
LOAD    use of what it has, in percent, and over the last minute
MEMORY  what it holds, of the upper bound
PRESS   time in which something waited: c for CPU, m for memory, i for I/O
LAST    what happened last, and how long ago

A resize by hand pauses the rules of its axis (manual_hold, 5 minutes by default).";

const HINTS: &str = "q quit  Enter timeline  s sort  r reverse  +/- CPUs  M/m memory  ? help";

/// How things look.
#[derive(Debug, Clone, Copy)]
pub struct Theme {
    /// Colours are shown; else only bold and reversed text.
    pub color: bool,
    /// What bars are made of.
    pub glyphs: Glyphs,
}

impl Theme {
    /// In a program's environment: `NO_COLOR` (no-color.org) and the locale's character set.
    pub fn of_environment(variable: impl Fn(&str) -> Option<String>) -> Self {
        let said = |name: &&str| variable(name).filter(|value| !value.is_empty());
        // The first that is set counts (locale(7)).
        let locale = ["LC_ALL", "LC_CTYPE", "LANG"].iter().find_map(said);
        let utf8 = locale.is_some_and(|locale| {
            let locale = locale.to_ascii_lowercase();
            locale.contains("utf-8") || locale.contains("utf8")
        });
        Self {
            color: said(&"NO_COLOR").is_none(),
            glyphs: if utf8 { Glyphs::BLOCKS } else { Glyphs::ASCII },
        }
    }

    fn color(&self, color: Color) -> Style {
        if self.color {
            Style::new().fg(color)
        } else {
            Style::new()
        }
    }

    fn of_zone(&self, zone: Zone) -> Style {
        self.color(match zone {
            Zone::Floor => Color::Blue,
            Zone::Above => Color::Cyan,
            Zone::Coming => Color::Yellow,
            Zone::Room => Color::DarkGray,
        })
    }

    fn of_standing(&self, standing: Standing) -> Style {
        match standing {
            Standing::Answers => Style::new(),
            Standing::Silent => self.color(Color::Red),
            Standing::Asked | Standing::Ended => self.color(Color::DarkGray),
        }
    }

    /// A text of others, on one line of at most `width` characters.
    fn text(&self, text: &str, width: usize) -> String {
        cut(&plain(text), width, self.glyphs.ascii)
    }

    fn bar(&self, bar: SizeBar, width: usize) -> Vec<Span<'static>> {
        let zones = bar
            .zones(width)
            .into_iter()
            .filter(|(_, length)| *length > 0);
        zones
            .map(|(zone, length)| Span::styled(self.glyphs.zone(zone, length), self.of_zone(zone)))
            .collect()
    }
}

const BOLD: Style = Style::new().add_modifier(Modifier::BOLD);
const REVERSED: Style = Style::new().add_modifier(Modifier::REVERSED);

/// Draws everything.
pub fn render(app: &App, theme: &Theme, frame: &mut Frame<'_>) {
    let area = frame.area();
    if area.width < LEAST_WIDTH || area.height < LEAST_HEIGHT {
        let text = format!(
            "This window is too small: {} x {}, and {LEAST_WIDTH} x {LEAST_HEIGHT} is the least. \
             q leaves.",
            area.width, area.height
        );
        frame.render_widget(Paragraph::new(text).wrap(Wrap { trim: true }), area);
        return;
    }
    let [title, body, bottom] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Min(0),
        Constraint::Length(1),
    ])
    .areas(area);
    render_title(app, theme, frame, title);
    match (&app.view, app.current()) {
        _ if app.help => render_help(theme, frame, body),
        (View::Timeline { event, .. }, Some(instance)) => {
            timeline::render(app, theme, instance, *event, frame, body);
        }
        _ => list::render(app, theme, frame, body),
    }
    render_bottom(app, theme, frame, bottom);
}

fn render_title(app: &App, theme: &Theme, frame: &mut Frame<'_>, area: Rect) {
    let visible = app.visible();
    let count = |wanted: fn(Standing) -> bool| {
        visible
            .iter()
            .filter(|instance| wanted(app.standing(instance)))
            .count()
    };
    let mut left = format!(
        "concertina top   {} instances",
        count(|standing| standing != Standing::Ended)
    );
    match count(|standing| standing == Standing::Silent) {
        0 => {}
        1 => left.push_str(", 1 gives no answer"),
        silent => left.push_str(&format!(", {silent} give no answer")),
    }
    let right = match &app.view {
        View::List => format!(
            "sort: {}{}",
            app.sort.as_str(),
            if app.reverse { ", reversed" } else { "" }
        ),
        View::Timeline { name, .. } => format!("timeline of {name}"),
    };
    let width = usize::from(area.width);
    let right = theme.text(&right, width.saturating_sub(left.len() + 1));
    let gap = width.saturating_sub(left.len() + right.chars().count());
    let line = format!("{left}{:gap$}{right}", "");
    frame.render_widget(Line::styled(line, BOLD), area);
}

fn render_help(theme: &Theme, frame: &mut Frame<'_>, area: Rect) {
    let mut text = HELP.to_owned();
    for (name, zone) in [
        ("{floor}", Zone::Floor),
        ("{above}", Zone::Above),
        ("{coming}", Zone::Coming),
        ("{room}", Zone::Room),
    ] {
        text = text.replace(name, &theme.glyphs.zone(zone, 2));
    }
    frame.render_widget(Paragraph::new(text).wrap(Wrap { trim: false }), area);
}

/// The question, what was said last, or the keys.
fn render_bottom(app: &App, theme: &Theme, frame: &mut Frame<'_>, area: Rect) {
    let width = usize::from(area.width);
    let line = if let Some(prompt) = &app.prompt {
        let text = format!(
            "Resize {} to {}? Enter: yes  Esc: no  +/- M/m: change",
            prompt.name,
            describe_size(&size_of(&prompt.wish))
        );
        Line::styled(format!("{:width$}", theme.text(&text, width)), REVERSED)
    } else if let Some(message) = app.message() {
        Line::styled(theme.text(&message, width), BOLD)
    } else if app.help {
        Line::raw("Any key: back")
    } else if matches!(app.view, View::Timeline { .. }) {
        Line::raw("q quit  Esc back  Up/Down event  +/- CPUs  M/m memory  ? help")
    } else {
        Line::raw(HINTS)
    };
    frame.render_widget(line, area);
}

/// The CPUs of an instance as a bar, and as numbers.
fn cpu_bar(instance: &Instance) -> Option<(SizeBar, String)> {
    let cpus = &instance.status.as_ref()?.cpus;
    let has = instance.cpus()?;
    let bar = SizeBar {
        has: has.as_f64(),
        target: cpus.target.as_f64(),
        min: cpus.min.as_f64(),
        max: cpus.max.as_f64(),
    };
    Some((bar, format!("{has}/{}", cpus.max)))
}

/// The memory of an instance as a bar, and as numbers.
fn memory_bar(instance: &Instance) -> Option<(SizeBar, String)> {
    let memory = &instance.status.as_ref()?.memory;
    let has = instance.memory()?;
    let bar = SizeBar {
        has: has.get() as f64,
        target: memory.target.get() as f64,
        min: memory.min.get() as f64,
        max: memory.max.get() as f64,
    };
    Some((
        bar,
        format!("{}/{}", output::size(has), output::size(memory.max)),
    ))
}

/// A time in its largest unit: `12s`, `5m`, `3h`, `4d`.
fn short_span(span: Duration) -> String {
    let seconds = span.as_secs();
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m", seconds / 60),
        3600..86_400 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

#[cfg(test)]
pub mod tests;
