//! The list of instances, the host above it, the selected one in words below it.

use concertina_agent::ledger::Account;
use concertina_api::{Bytes, Cpus};
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Cell, Paragraph, Row, Table, TableState, Wrap};

use super::{BOLD, LEAST_HEIGHT, REVERSED, Theme, cpu_bar, memory_bar, short_span};
use crate::commands::events::kind_and_text;
use crate::commands::status::state_word;
use crate::commands::top::app::App;
use crate::commands::top::bars::SizeBar;
use crate::commands::top::instance::{Instance, Standing, event_word};
use crate::output;

use std::time::Duration;

/// Lines about the host.
const HOST_LINES: u16 = 3;
/// Lines about the selected instance.
const DETAIL_LINES: u16 = 3;
/// What a sparkline of the list covers.
const SPARK_SPAN: Duration = Duration::from_secs(60);

/// Lines that a picture needs to show all instances.
pub fn whole_height(app: &App) -> u16 {
    let rows = u16::try_from(app.visible().len()).unwrap_or(u16::MAX);
    let others = HOST_LINES + DETAIL_LINES + 3;
    rows.saturating_add(others).max(LEAST_HEIGHT)
}

/// Draws it.
pub fn render(app: &App, theme: &Theme, frame: &mut Frame<'_>, area: Rect) {
    let [host, table, detail] = Layout::vertical([
        Constraint::Length(HOST_LINES),
        Constraint::Min(0),
        Constraint::Length(DETAIL_LINES),
    ])
    .areas(area);
    let width = usize::from(area.width);
    let lines = host_lines(app).map(|line| Line::raw(theme.text(&line, width)));
    frame.render_widget(Paragraph::new(lines.to_vec()), host);
    render_table(app, theme, frame, table);
    if let Some(instance) = app.current() {
        let lines = detail_lines(app, instance).map(|line| Line::raw(theme.text(&line, width)));
        frame.render_widget(Paragraph::new(lines.to_vec()), detail);
    }
}

/// What the instances have together, may have, and keep.
#[derive(Default)]
struct Sums {
    has: u64,
    min: u64,
    max: u64,
}

impl Sums {
    fn add(&mut self, has: u64, min: u64, max: u64) {
        self.has = self.has.saturating_add(has);
        self.min = self.min.saturating_add(min);
        self.max = self.max.saturating_add(max);
    }

    fn text(&self, show: impl Fn(u64) -> String) -> String {
        format!(
            "{}, at least {}, at most {}",
            show(self.has),
            show(self.min),
            show(self.max)
        )
    }
}

fn host_lines(app: &App) -> [String; 3] {
    let (mut cpus, mut memory, mut resident) = (Sums::default(), Sums::default(), 0u64);
    let mut unknown = 0;
    for instance in app.visible() {
        match (app.standing(instance), &instance.status) {
            (Standing::Ended, _) => {}
            (_, Some(status)) => {
                let (of_cpus, of_memory) = (&status.cpus, &status.memory);
                let milli = |cpus: Cpus| u64::from(cpus.milli());
                let has = instance.cpus().map_or(0, milli);
                cpus.add(has, milli(of_cpus.min), milli(of_cpus.max));
                let held = instance.memory().map_or(0, Bytes::get);
                memory.add(held, of_memory.min.get(), of_memory.max.get());
                resident = resident.saturating_add(of_memory.host_resident.get());
            }
            (_, None) => unknown += 1,
        }
    }
    let host = &app.host;
    let known = |text: Option<String>| text.unwrap_or_else(|| "?".into());
    let count = known(host.cpus.map(|cpus| cpus.to_string()));
    let busy = host
        .busy
        .map_or(String::new(), |busy| format!(", {busy:.0}% busy"));
    let total = known(host.memory.map(output::size));
    let available = known(host.available.map(output::size));
    let book = match &app.accounts {
        None => "no host agent".to_owned(),
        Some(accounts) => format!(
            "CPUs {}   memory {}",
            account(&accounts.cpus, cpu_text),
            account(&accounts.memory, memory_text)
        ),
    };
    let unknown = match unknown {
        0 => String::new(),
        count => format!("   (without {count} that gave no answer yet)"),
    };
    [
        format!("CPUs    {count}{busy}   instances: {}", cpus.text(cpu_text)),
        format!(
            "Memory  {total}, {available} free   instances: {}, resident {}",
            memory.text(memory_text),
            memory_text(resident)
        ),
        format!("Book    {book}{unknown}"),
    ]
}

fn cpu_text(milli: u64) -> String {
    Cpus(u32::try_from(milli).unwrap_or(u32::MAX)).to_string()
}

fn memory_text(bytes: u64) -> String {
    output::size(Bytes(bytes))
}

fn account(account: &Account, show: impl Fn(u64) -> String) -> String {
    let mut text = format!(
        "{} of {} held, {} guaranteed",
        show(account.held),
        show(account.limit),
        show(account.guaranteed)
    );
    if account.awaited > 0 {
        text.push_str(&format!(", {} awaited", show(account.awaited)));
    }
    text
}

/// Widths of the columns in a window of some width.
struct Columns {
    name: usize,
    /// Of one bar, without its number.
    bar: usize,
    /// Of a sparkline, without its number; 0: there is none.
    spark: usize,
    /// Of the last event; 0: it is not shown.
    event: usize,
}

/// Width of a CPU number such as `1.25/16`.
const CPU_TEXT: usize = 7;
/// Width of a memory number such as `1.5G/16G`.
const MEMORY_TEXT: usize = 9;
/// Width of a state, which stands in place of the load.
const STATE_TEXT: usize = 9;
/// Width of `m100%`.
const PRESSURE_TEXT: usize = 5;

impl Columns {
    fn new(width: usize, longest_name: usize) -> Self {
        let mut columns = Self {
            name: 12,
            bar: 0,
            spark: if width >= 66 { 6 } else { 0 },
            event: if width >= 76 { 11 } else { 0 },
        };
        let spare = width.saturating_sub(columns.total());
        columns.bar = (spare / 2).min(16);
        // What is left goes to long names, then to the events.
        let spare = width.saturating_sub(columns.total());
        let wanted = (longest_name + 1).clamp(columns.name, 25);
        columns.name += spare.min(wanted - columns.name);
        if columns.event > 0 {
            columns.event += width.saturating_sub(columns.total());
        }
        columns
    }

    fn load(&self) -> usize {
        if self.spark > 0 {
            self.spark + 5
        } else {
            STATE_TEXT
        }
    }

    fn widths(&self) -> Vec<usize> {
        let mut widths = vec![
            self.name,
            self.bar + 1 + CPU_TEXT,
            self.load(),
            self.bar + 1 + MEMORY_TEXT,
            PRESSURE_TEXT,
        ];
        if self.event > 0 {
            widths.push(self.event);
        }
        widths
    }

    fn total(&self) -> usize {
        let widths = self.widths();
        widths.iter().sum::<usize>() + widths.len() - 1
    }
}

fn render_table(app: &App, theme: &Theme, frame: &mut Frame<'_>, area: Rect) {
    let visible = app.visible();
    if visible.is_empty() && app.listed {
        let text = "No instance runs here: 'concertina run' launches one, 'concertina top --all' \
                    shows those that ended, too.";
        frame.render_widget(Paragraph::new(text).wrap(Wrap { trim: true }), area);
        return;
    }
    let longest = visible.iter().map(|instance| instance.name().len()).max();
    let columns = Columns::new(usize::from(area.width), longest.unwrap_or(0));
    let rows = visible.iter().enumerate().map(|(index, instance)| {
        row(
            app,
            theme,
            &columns,
            instance,
            index == app.selected_index(),
        )
    });
    let widths = columns
        .widths()
        .into_iter()
        .map(|width| Constraint::Length(u16::try_from(width).unwrap_or(u16::MAX)));
    let header = [" NAME", "CPUS", "LOAD", "MEMORY", "PRESS", "LAST"];
    let header = header.into_iter().take(columns.widths().len());
    let table = Table::new(rows, widths)
        .header(Row::new(header).style(BOLD))
        .column_spacing(1)
        .row_highlight_style(REVERSED);
    let mut state = TableState::new().with_selected(Some(app.selected_index()));
    frame.render_stateful_widget(table, area, &mut state);
}

fn row<'a>(
    app: &App,
    theme: &Theme,
    columns: &Columns,
    instance: &Instance,
    selected: bool,
) -> Row<'a> {
    let standing = app.standing(instance);
    let name = theme.text(instance.name(), columns.name.saturating_sub(1));
    let mark = if selected { '>' } else { ' ' };
    let mut cells = vec![
        Cell::from(format!("{mark}{name}")),
        bar_cell(theme, columns.bar, CPU_TEXT, cpu_bar(instance), standing),
        Cell::from(load(app, theme, columns, instance, standing)),
        bar_cell(
            theme,
            columns.bar,
            MEMORY_TEXT,
            memory_bar(instance),
            standing,
        ),
        Cell::from(pressure(instance, standing)),
    ];
    if columns.event > 0 {
        let text = last_event(app, instance, columns.event);
        cells.push(Cell::from(theme.text(&text, columns.event)));
    }
    Row::new(cells).style(theme.of_standing(standing))
}

fn bar_cell<'a>(
    theme: &Theme,
    width: usize,
    text_width: usize,
    bar: Option<(SizeBar, String)>,
    standing: Standing,
) -> Cell<'a> {
    let Some((bar, text)) = bar.filter(|_| standing != Standing::Ended) else {
        return Cell::from("-");
    };
    let mut spans = theme.bar(bar, width);
    let text = theme.text(&text, text_width);
    spans.push(Span::raw(format!(" {text:<text_width$}")));
    Cell::from(Line::from(spans))
}

/// The load now and before; or why there is none.
fn load(
    app: &App,
    theme: &Theme,
    columns: &Columns,
    instance: &Instance,
    standing: Standing,
) -> String {
    let word = instance.word(standing);
    if standing != Standing::Answers || word != "running" {
        return word.to_owned();
    }
    let number = match instance.load() {
        Some(load) => format!("{load:.0}%"),
        None => "-".to_owned(),
    };
    if columns.spark == 0 {
        return format!("{number:>4}");
    }
    let hold = app.interval * 2;
    let past = instance.past(app.now, SPARK_SPAN, columns.spark, hold, |point| {
        point.load.map(|load| load / 100.0)
    });
    format!("{} {number:>4}", theme.glyphs.spark(&past))
}

fn pressure(instance: &Instance, standing: Standing) -> String {
    let known = instance
        .pressure()
        .filter(|_| standing == Standing::Answers);
    known.map_or_else(
        || "-".to_owned(),
        |pressure| format!("{}{:.0}%", pressure.of, pressure.percent),
    )
}

fn last_event(app: &App, instance: &Instance, width: usize) -> String {
    let Some(event) = instance.events.back() else {
        return "-".to_owned();
    };
    let mut text = event_word(&event.kind).to_owned();
    if let Some(age) = instance.age(event, app.now) {
        text.push_str(&format!(" {}", short_span(age)));
    }
    // Room for a few words more.
    if width >= 30 {
        text.push_str(&format!(": {}", kind_and_text(event).1));
    }
    text
}

fn detail_lines(app: &App, instance: &Instance) -> [String; 3] {
    let standing = app.standing(instance);
    let name = instance.name();
    let word = instance.word(standing);
    let Some(status) = instance
        .status
        .as_ref()
        .filter(|_| standing != Standing::Ended)
    else {
        let why = instance.listed.ending.as_deref().unwrap_or_default();
        return [format!("{name}: {word}"), why.to_owned(), String::new()];
    };
    let known = match standing {
        Standing::Answers => state_word(status.state),
        _ => word,
    };
    let uptime = instance
        .uptime(app.now)
        .map(output::span)
        .unwrap_or_default();
    let (cpus, memory) = (&status.cpus, &status.memory);
    let last = match instance.events.back() {
        None => String::new(),
        Some(event) => {
            let age = instance
                .age(event, app.now)
                .map(|age| format!(" {} ago", short_span(age)));
            let (kind, text) = kind_and_text(event);
            format!("{kind}{}: {text}", age.unwrap_or_default())
        }
    };
    [
        format!(
            "{name}: {known}, up {uptime}; CPUs {}..{}, {} online, quota {}, target {}",
            cpus.min, cpus.max, cpus.online, cpus.quota, cpus.target
        ),
        format!(
            "memory {}..{}, {} plugged, {} balloon, target {}, resident {}",
            output::size(memory.min),
            output::size(memory.max),
            output::size(memory.plugged),
            output::size(memory.balloon),
            output::size(memory.target),
            output::size(memory.host_resident),
        ),
        last,
    ]
}
