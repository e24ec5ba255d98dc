//! `concertina top`: all instances on one screen, while they grow and shrink.

mod app;
mod bars;
mod collect;
mod host;
mod instance;
mod render;

use std::io::{self, IsTerminal};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use anyhow::Context;
use concertina_agent::state_dir::StateDir;
use ratatui::Terminal;
use ratatui::backend::{CrosstermBackend, TestBackend};
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

use crate::args::parse_duration;
use crate::failure::Usage;
use crate::signals::Signals;
use crate::terminal::{FullScreen, Pictures};
use crate::{output, poll};
use app::{App, Effect, Input, Key, Report};
use collect::Collector;
use host::AgentBook;
use instance::Standing;
use render::Theme;

const EXAMPLES: &str = "\
Examples:
  concertina top
  concertina top --interval 250ms --all
  concertina top --once
  watch concertina top --once

Keys: Up and Down (or k and j) select an instance, Enter opens its timeline and Esc leaves it,
s sorts by name, cpu, memory, pressure or age and r reverses, + and - propose more or less CPU and
M and m more or less memory for the selected instance: nothing happens before Enter confirms it, and
the bottom line tells the outcome. ? explains the screen, q leaves, Ctrl-Z goes back to the shell for a
while ('fg' comes back).

A bar's whole length is the upper bound; its parts are what the instance has up to its lower bound,
what it has beyond it, what it is about to get, and what it could get. LOAD is the use of the CPUs
that it has, now and over the last minute. PRESS is the share of time in which something waited: c
for CPU, m for memory, i for I/O. An instance that does not answer within 2 s is shown as such.

The least window is 60 x 15; at 80 x 24 everything is there, and more width shows more. NO_COLOR in
the environment turns colours off; without UTF-8 in LC_ALL, LC_CTYPE or LANG bars are ASCII. --once
writes one picture as text, as wide as the terminal, or 80 columns where there is none.

Exit status: 0 left with q, 2 standard input or output is no terminal and --once is not given, 128
and the number of a signal that ended it.";

/// Shortest time between two questions.
const LEAST_INTERVAL: Duration = Duration::from_millis(100);
/// Longest time between two questions.
const MOST_INTERVAL: Duration = Duration::from_secs(3600);
/// The ages on the screen are brought up to date at least this often.
const CLOCK: Duration = Duration::from_secs(1);
/// How long `--once` waits for answers: a little longer than an instance may take.
const ONCE_TIMEOUT: Duration = Duration::from_millis(2500);
/// Columns of `--once` where there is no terminal.
const ONCE_WIDTH: u16 = 80;

/// Arguments of `top`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Time between two looks, 100ms to 1h
    #[arg(short, long, value_name = "T", value_parser = parse_interval, default_value = "1s")]
    interval: Duration,
    /// Write one picture as plain text, and end
    #[arg(long)]
    once: bool,
    /// Show instances that had ended before, too
    #[arg(short, long)]
    all: bool,
}

/// A time between two looks.
pub fn parse_interval(text: &str) -> Result<Duration, String> {
    let interval = parse_duration(text)?;
    if (LEAST_INTERVAL..=MOST_INTERVAL).contains(&interval) {
        return Ok(interval);
    }
    Err(format!("'{text}' is out of range: 100ms to 1h are allowed"))
}

/// Shows the screen until it is left.
pub fn run(args: &Args, state: &StateDir) -> anyhow::Result<i32> {
    let theme = Theme::of_environment(|name| std::env::var(name).ok());
    let app = App::new(args.interval, args.all);
    if args.once {
        return once(app, theme, state);
    }
    let signals = Signals::catch().and_then(Signals::with_stop);
    let mut signals = signals.context("Catching signals failed")?;
    let screen = FullScreen::enter().context("The terminal does not take a full screen")?;
    let Some(screen) = screen else {
        let why = "Standard input and output have to be a terminal: 'concertina top --once' writes \
                   one picture as text";
        return Err(Usage(why.into()).into());
    };
    show(app, theme, state, (&mut signals, &screen))
}

fn show(
    mut app: App,
    theme: Theme,
    state: &StateDir,
    (signals, screen): (&mut Signals, &FullScreen),
) -> anyhow::Result<i32> {
    const LOST: &str = "The terminal is lost";
    let begun = Instant::now();
    let mut collector =
        Collector::start(state.clone(), app.interval, Box::new(AgentBook::new(state)))
            .context("Looking at the instances cannot begin")?;
    let mut terminal = empty_terminal().context(LOST)?;
    let mut suspend = false;
    loop {
        if std::mem::take(&mut suspend) {
            screen.suspend().context(LOST)?;
            // Nothing of the picture before is there.
            terminal = empty_terminal().context(LOST)?;
            app.update(Input::Tick, begun.elapsed());
        }
        terminal
            .draw(|frame| render::render(&app, &theme, frame))
            .context(LOST)?;
        let stdin = io::stdin();
        let [on_keys, on_signal, _] = poll::wait(
            [
                (stdin.as_fd(), libc::POLLIN),
                (signals.as_fd(), libc::POLLIN),
                (collector.as_fd(), libc::POLLIN),
            ],
            Some(CLOCK.min(app.interval)),
        )
        .context("Waiting for keys failed")?;
        if on_signal != 0 {
            match signals.next()? {
                libc::SIGTSTP => suspend = true,
                // As a shell reports a program that a signal ended.
                signal => return Ok(128 + signal),
            }
        }
        if on_keys & libc::POLLHUP != 0 {
            return Ok(128 + libc::SIGHUP);
        }
        app.update(Input::Tick, begun.elapsed());
        while let Some(report) = collector.take() {
            app.update(Input::Report(report), begun.elapsed());
        }
        // Asked each time: a change of the window's size comes here too, as an interrupted wait.
        while event::poll(Duration::ZERO).context(LOST)? {
            let Some(key) = key_of(&event::read().context(LOST)?) else {
                continue;
            };
            match app.update(Input::Key(key), begun.elapsed()) {
                None => {}
                Some(Effect::Quit) => return Ok(0),
                Some(Effect::Suspend) => suspend = true,
                Some(Effect::Resize(name, wish)) => match state.paths(&name) {
                    Ok(paths) => collector.resize(paths, name, *wish),
                    Err(error) => {
                        let report = Report::Resized(name, Err(error.to_string()));
                        app.update(Input::Report(report), begun.elapsed());
                    }
                },
            }
        }
    }
}

/// A terminal of which every character has still to be drawn.
fn empty_terminal() -> io::Result<Terminal<CrosstermBackend<Pictures>>> {
    Terminal::new(CrosstermBackend::new(Pictures::to_stdout()?))
}

/// Writes one picture, with the answers of all instances that give one.
fn once(mut app: App, theme: Theme, state: &StateDir) -> anyhow::Result<i32> {
    let begun = Instant::now();
    let mut collector =
        Collector::start(state.clone(), app.interval, Box::new(AgentBook::new(state)))
            .context("Looking at the instances cannot begin")?;
    let mut host_known = false;
    loop {
        let left = ONCE_TIMEOUT.saturating_sub(begun.elapsed());
        let Some(report) = collector.wait(left) else {
            break;
        };
        host_known |= matches!(report, Report::Host(..));
        app.update(Input::Report(report), begun.elapsed());
        if app.listed && host_known && waiting(&app).is_empty() {
            break;
        }
    }
    for name in waiting(&app) {
        app.update(Input::Report(Report::Answer(name, None)), begun.elapsed());
    }
    output::line(&picture(&app, &theme)?)?;
    Ok(0)
}

/// Instances that were asked, and have neither answered nor failed.
fn waiting(app: &App) -> Vec<String> {
    let visible = app.visible().into_iter();
    visible
        .filter(|instance| app.standing(instance) == Standing::Asked)
        .map(|instance| instance.name().to_owned())
        .collect()
}

/// A picture of all instances as lines of text, without the line of keys.
fn picture(app: &App, theme: &Theme) -> anyhow::Result<String> {
    let width = match ratatui::crossterm::terminal::size() {
        Ok((width, _)) if io::stdout().is_terminal() => width.max(render::LEAST_WIDTH),
        _ => ONCE_WIDTH,
    };
    let height = render::whole_height(app);
    let mut terminal = Terminal::new(TestBackend::new(width, height))?;
    terminal.draw(|frame| render::render(app, theme, frame))?;
    let cells = terminal.backend().buffer().content();
    let rows = cells
        .chunks(usize::from(width))
        .take(usize::from(height) - 1);
    let lines = rows.map(|row| {
        let line: String = row.iter().map(ratatui::buffer::Cell::symbol).collect();
        line.trim_end().to_owned()
    });
    let lines: Vec<String> = lines.filter(|line| !line.is_empty()).collect();
    Ok(lines.join("\n"))
}

fn key_of(event: &Event) -> Option<Key> {
    let Event::Key(KeyEvent {
        code,
        modifiers,
        kind: KeyEventKind::Press | KeyEventKind::Repeat,
        ..
    }) = event
    else {
        return None;
    };
    let control = modifiers.contains(KeyModifiers::CONTROL);
    match code {
        KeyCode::Char('c') if control => Some(Key::Interrupt),
        KeyCode::Char('z') if control => Some(Key::Suspend),
        KeyCode::Char(_) if control => None,
        KeyCode::Char(c) => Some(Key::Char(*c)),
        KeyCode::Up => Some(Key::Up),
        KeyCode::Down => Some(Key::Down),
        KeyCode::PageUp => Some(Key::PageUp),
        KeyCode::PageDown => Some(Key::PageDown),
        KeyCode::Home => Some(Key::Home),
        KeyCode::End => Some(Key::End),
        KeyCode::Enter => Some(Key::Enter),
        KeyCode::Esc => Some(Key::Esc),
        _ => None,
    }
}
