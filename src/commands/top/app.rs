//! What `top` knows, and how it reacts. Pure: no I/O and no clock, so that each test is a list of
//! inputs and a look at the outcome.
//!
//! ```text
//! list ◄──Esc── timeline of one          confirmation line ──Enter──► resize, in a thread
//!   └───Enter──────▲                        ▲ └──Esc──► dropped
//!                                      + - M m, in both views
//! ```

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::time::Duration;

use concertina_api::event::Event;
use concertina_api::instance::{InstanceResize, InstanceSize, InstanceState, InstanceStatus};
use concertina_api::policy::step::tracking_step;
use concertina_api::policy::{Axis, Direction, Resource};
use concertina_api::units::Bounds;
use concertina_api::vm::ResizeReport;
use concertina_api::{Bytes, Cpus};

use super::host::{Accounts, HostNumbers};
use super::instance::{Instance, Listed, Standing};
use crate::commands::status::{describe_resize, describe_size};

/// How long what was said last stays in the bottom line.
const NOTICE_TIME: Duration = Duration::from_secs(20);
/// How far PageUp and PageDown go.
const PAGE: usize = 10;
/// How long one instance may take to answer.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// A key as far as it means something here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Key {
    /// A character.
    Char(char),
    /// Cursor keys.
    Up,
    /// See `Up`.
    Down,
    /// See `Up`.
    PageUp,
    /// See `Up`.
    PageDown,
    /// See `Up`.
    Home,
    /// See `Up`.
    End,
    /// Return.
    Enter,
    /// Escape.
    Esc,
    /// Ctrl-C.
    Interrupt,
    /// Ctrl-Z.
    Suspend,
}

/// What others found out.
#[derive(Debug)]
pub enum Report {
    /// The host's numbers, and its book if there is one.
    Host(HostNumbers, Option<Accounts>),
    /// The instances of the state folder, all of them.
    Instances(Vec<Listed>),
    /// One instance's answer; `None` when it gave none.
    Answer(String, Option<Box<InstanceStatus>>),
    /// What happened to one instance.
    Events(String, Vec<Event>),
    /// How a resize ended, or why nobody knows.
    Resized(String, Result<Box<ResizeReport<InstanceSize>>, String>),
}

/// Something that the model reacts to.
#[derive(Debug)]
pub enum Input {
    /// A key was pressed.
    Key(Key),
    /// Time has passed.
    Tick,
    /// Something was found out.
    Report(Report),
}

/// What somebody else has to do.
#[derive(Debug, PartialEq)]
pub enum Effect {
    /// The end.
    Quit,
    /// Give the terminal back, and stop until somebody lets the program go on.
    Suspend,
    /// Ask this instance for another size, and report how it ended.
    Resize(String, Box<InstanceResize>),
}

/// By what the list is sorted; the largest first, but for the name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sort {
    /// By name.
    Name,
    /// By CPU time taken.
    Cpu,
    /// By memory held.
    Memory,
    /// By the largest pressure.
    Pressure,
    /// By time since launch.
    Age,
}

impl Sort {
    /// The word on the screen.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Name => "name",
            Self::Cpu => "cpu",
            Self::Memory => "memory",
            Self::Pressure => "pressure",
            Self::Age => "age",
        }
    }

    fn next(self) -> Self {
        match self {
            Self::Name => Self::Cpu,
            Self::Cpu => Self::Memory,
            Self::Memory => Self::Pressure,
            Self::Pressure => Self::Age,
            Self::Age => Self::Name,
        }
    }
}

/// What is shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum View {
    /// All instances.
    List,
    /// One of them, and which of its events the cursor is on, counted from the latest.
    Timeline {
        /// Its name.
        name: String,
        /// Number of the event.
        event: usize,
    },
}

/// A resize that waits for a yes.
#[derive(Debug, Clone, PartialEq)]
pub struct Prompt {
    /// Of which instance.
    pub name: String,
    /// The size that will be asked for.
    pub wish: InstanceResize,
}

/// Everything that `top` knows.
#[derive(Debug)]
pub struct App {
    /// Instances by name.
    instances: BTreeMap<String, Instance>,
    /// The host's numbers.
    pub host: HostNumbers,
    /// The host's book.
    pub accounts: Option<Accounts>,
    /// Order of the list.
    pub sort: Sort,
    /// The other way round.
    pub reverse: bool,
    /// What is shown.
    pub view: View,
    /// The help is shown over it.
    pub help: bool,
    /// What waits for a yes.
    pub prompt: Option<Prompt>,
    notice: Option<(String, Duration)>,
    selected: Option<String>,
    selected_index: usize,
    /// Instances that had ended before are shown, too.
    show_ended: bool,
    /// The state folder has been read.
    pub listed: bool,
    /// Time between two questions.
    pub interval: Duration,
    /// The time of the last input.
    pub now: Duration,
}

impl App {
    /// Nothing is known yet.
    pub fn new(interval: Duration, show_ended: bool) -> Self {
        Self {
            instances: BTreeMap::new(),
            host: HostNumbers::default(),
            accounts: None,
            sort: Sort::Name,
            reverse: false,
            view: View::List,
            help: false,
            prompt: None,
            notice: None,
            selected: None,
            selected_index: 0,
            show_ended,
            listed: false,
            interval,
            now: Duration::ZERO,
        }
    }

    /// Takes in what happened at `now`, which never goes back.
    pub fn update(&mut self, input: Input, now: Duration) -> Option<Effect> {
        self.now = now;
        if matches!(&self.notice, Some((_, at)) if now.saturating_sub(*at) > NOTICE_TIME) {
            self.notice = None;
        }
        let effect = match input {
            Input::Key(key) => self.press(key),
            Input::Tick => None,
            Input::Report(report) => {
                self.learn(report);
                None
            }
        };
        self.keep_selection();
        effect
    }

    /// How long an instance may be silent.
    pub fn patience(&self) -> Duration {
        ANSWER_TIMEOUT + 2 * self.interval
    }

    /// How far an instance can be relied on.
    pub fn standing(&self, instance: &Instance) -> Standing {
        instance.standing(self.now, self.patience())
    }

    /// The instances of the list, in its order.
    pub fn visible(&self) -> Vec<&Instance> {
        let mut visible: Vec<&Instance> = self.instances.values().collect();
        visible.sort_by(|a, b| self.compare(a, b));
        visible
    }

    /// Number of the selected instance in the list.
    pub fn selected_index(&self) -> usize {
        self.selected_index
    }

    /// The instance that keys are about: the one of the timeline, or the selected one.
    pub fn current(&self) -> Option<&Instance> {
        let name = match &self.view {
            View::Timeline { name, .. } => Some(name),
            View::List => self.selected.as_ref(),
        };
        self.instances.get(name?)
    }

    /// What the bottom line has to say, besides the prompt.
    pub fn message(&self) -> Option<String> {
        if let Some((text, _)) = &self.notice {
            return Some(text.clone());
        }
        let (instance, (wish, since)) = self
            .instances
            .values()
            .find_map(|instance| Some((instance, instance.resizing.as_ref()?)))?;
        Some(format!(
            "{}: asked for {}, {} s ago",
            instance.name(),
            describe_size(&size_of(wish)),
            self.now.saturating_sub(*since).as_secs()
        ))
    }

    fn say(&mut self, text: String) {
        self.notice = Some((text, self.now));
    }

    fn compare(&self, a: &Instance, b: &Instance) -> Ordering {
        let value = |instance: &Instance| match self.sort {
            Sort::Name => None,
            Sort::Cpu => instance.cpus_used(),
            Sort::Memory => instance.memory().map(|memory| memory.get() as f64),
            Sort::Pressure => instance.pressure().map(|pressure| pressure.percent),
            Sort::Age => instance.uptime(self.now).map(|uptime| uptime.as_secs_f64()),
        };
        let turned = |order: Ordering| if self.reverse { order.reverse() } else { order };
        match (value(a), value(b)) {
            (Some(a_value), Some(b_value)) => {
                turned(b_value.total_cmp(&a_value)).then_with(|| a.name().cmp(b.name()))
            }
            // What is unknown comes last, whichever way.
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (None, None) if self.sort == Sort::Name => turned(a.name().cmp(b.name())),
            (None, None) => a.name().cmp(b.name()),
        }
    }

    fn keep_selection(&mut self) {
        let (index, name) = {
            let visible = self.visible();
            let place = |name: &String| visible.iter().position(|found| found.name() == name);
            // Where the selected one is gone, the one in its place is selected.
            let index = self.selected.as_ref().and_then(place);
            let index = index.unwrap_or(self.selected_index.min(visible.len().saturating_sub(1)));
            (
                index,
                visible.get(index).map(|found| found.name().to_owned()),
            )
        };
        self.selected_index = index;
        self.selected = name;
        if let View::Timeline { name, .. } = &self.view
            && !self.instances.contains_key(name)
        {
            self.view = View::List;
        }
    }

    fn select(&mut self, index: usize) {
        let visible = self.visible();
        let index = index.min(visible.len().saturating_sub(1));
        let name = visible.get(index).map(|found| found.name().to_owned());
        self.selected_index = index;
        self.selected = name;
    }

    fn learn(&mut self, report: Report) {
        let now = self.now;
        match report {
            Report::Host(numbers, accounts) => {
                self.host = numbers;
                self.accounts = accounts;
            }
            Report::Instances(found) => self.list(found),
            Report::Answer(name, answer) => {
                if let Some(instance) = self.instances.get_mut(&name) {
                    instance.answer(answer.map(|status| *status), now);
                }
            }
            Report::Events(name, events) => {
                if let Some(instance) = self.instances.get_mut(&name) {
                    let count = events.len();
                    instance.happened(events);
                    let kept = instance.events.len();
                    self.stay_on_event(&name, count, kept);
                }
            }
            Report::Resized(name, outcome) => {
                if let Some(instance) = self.instances.get_mut(&name) {
                    instance.resizing = None;
                }
                let text = match outcome {
                    Ok(report) => format!("{name}: {}", describe_resize(&report)),
                    Err(why) => format!("{name}: {why}"),
                };
                self.say(text);
            }
        }
    }

    /// The cursor stays on its event when later ones come, unless it is on the latest.
    fn stay_on_event(&mut self, of: &str, more: usize, kept: usize) {
        if let View::Timeline { name, event } = &mut self.view
            && name == of
            && *event > 0
        {
            *event = event.saturating_add(more).min(kept.saturating_sub(1));
        }
    }

    fn list(&mut self, found: Vec<Listed>) {
        self.listed = true;
        self.instances
            .retain(|name, _| found.iter().any(|listed| listed.name == *name));
        for listed in found {
            match self.instances.get_mut(&listed.name) {
                Some(instance) => instance.list(listed, self.now),
                // What has ended while it was looked at stays; what had ended before does not come.
                None if !listed.alive && !self.show_ended => {}
                None => {
                    let name = listed.name.clone();
                    self.instances.insert(name, Instance::new(listed, self.now));
                }
            }
        }
    }

    fn press(&mut self, key: Key) -> Option<Effect> {
        if matches!(key, Key::Char('q') | Key::Interrupt) {
            return Some(Effect::Quit);
        }
        if key == Key::Suspend {
            return Some(Effect::Suspend);
        }
        if self.help {
            self.help = false;
            return None;
        }
        match key {
            Key::Char('?') => self.help = true,
            Key::Char('+' | '=') => self.step(Axis::Cpus, Direction::Grow),
            Key::Char('-' | '_') => self.step(Axis::Cpus, Direction::Shrink),
            Key::Char('M') => self.step(Axis::Memory, Direction::Grow),
            Key::Char('m') => self.step(Axis::Memory, Direction::Shrink),
            _ if self.prompt.is_some() => return self.press_prompt(key),
            _ => self.press_view(key),
        }
        None
    }

    fn press_prompt(&mut self, key: Key) -> Option<Effect> {
        match key {
            Key::Enter | Key::Char('y') => {}
            Key::Esc | Key::Char('n') => {
                self.prompt = None;
                return None;
            }
            // Anything else is not meant for a question, and not an answer either.
            _ => return None,
        }
        let Prompt { name, wish } = self.prompt.take()?;
        let instance = self.instances.get_mut(&name)?;
        instance.resizing = Some((wish.clone(), self.now));
        self.notice = None;
        Some(Effect::Resize(name, Box::new(wish)))
    }

    fn press_view(&mut self, key: Key) {
        let at = match &self.view {
            View::List => self.selected_index,
            View::Timeline { event, .. } => *event,
        };
        let to = match key {
            Key::Up | Key::Char('k') => at.saturating_sub(1),
            Key::Down | Key::Char('j') => at.saturating_add(1),
            Key::PageUp => at.saturating_sub(PAGE),
            Key::PageDown => at.saturating_add(PAGE),
            Key::Home | Key::Char('g') => 0,
            Key::End | Key::Char('G') => usize::MAX,
            _ => return self.press_command(key),
        };
        let events = self.current().map_or(0, |instance| instance.events.len());
        match &mut self.view {
            View::List => self.select(to),
            View::Timeline { event, .. } => *event = to.min(events.saturating_sub(1)),
        }
    }

    fn press_command(&mut self, key: Key) {
        match (key, &self.view) {
            (Key::Esc, View::Timeline { .. }) => self.view = View::List,
            (Key::Enter, View::List) => {
                if let Some(name) = self.selected.clone() {
                    self.view = View::Timeline { name, event: 0 };
                }
            }
            (Key::Esc, View::List) => self.notice = None,
            (Key::Char('s'), View::List) => self.sort = self.sort.next(),
            (Key::Char('r'), View::List) => self.reverse = !self.reverse,
            _ => {}
        }
    }

    /// Proposes another size of the current instance, or changes what is proposed already.
    fn step(&mut self, axis: Axis, direction: Direction) {
        let Some(instance) = self.current() else {
            return;
        };
        let name = instance.name().to_owned();
        let running = self.standing(instance) == Standing::Answers;
        let status = instance.status.as_ref();
        let Some(status) =
            status.filter(|status| running && status.state == InstanceState::Running)
        else {
            return self.say(format!("{name} does not run: its size cannot change"));
        };
        if instance.resizing.is_some() {
            return self.say(format!("{name} is being resized: wait for the outcome"));
        }
        let mut wish = match &self.prompt {
            Some(prompt) if prompt.name == name => prompt.wish.clone(),
            _ => InstanceResize::default(),
        };
        match proposed(status, &wish, axis, direction) {
            Ok(size) => {
                let stays = size == target_of(status, axis);
                match axis {
                    // Sizes are inside the bounds, which fit their types.
                    Axis::Cpus => {
                        wish.cpus = (!stays).then(|| Cpus(u32::try_from(size).unwrap_or(u32::MAX)));
                    }
                    Axis::Memory => wish.memory = (!stays).then_some(Bytes(size)),
                }
                let empty = wish == InstanceResize::default();
                self.prompt = (!empty).then_some(Prompt { name, wish });
                self.notice = None;
            }
            Err(why) => self.say(format!("{name} {why}")),
        }
    }
}

/// The size that a wish names, for sentences.
pub fn size_of(wish: &InstanceResize) -> InstanceSize {
    InstanceSize {
        cpus: wish.cpus,
        memory: wish.memory,
        disk_rate: wish.disk_rate,
        net_rate: wish.net_rate,
    }
}

fn target_of(status: &InstanceStatus, axis: Axis) -> u64 {
    match axis {
        Axis::Cpus => status.cpus.target.milli().into(),
        Axis::Memory => status.memory.target.get(),
    }
}

/// The next size of an axis, a step from what is proposed or from the target. The step is that of
/// target tracking: half a CPU or a memory block of 128M, less between narrow bounds.
fn proposed(
    status: &InstanceStatus,
    wish: &InstanceResize,
    axis: Axis,
    direction: Direction,
) -> Result<u64, String> {
    let (cpus, memory) = (&status.cpus, &status.memory);
    let (bounds, wished) = match axis {
        Axis::Cpus => (
            Bounds {
                min: u64::from(cpus.min.milli()),
                max: u64::from(cpus.max.milli()),
            },
            wish.cpus.map(|cpus| u64::from(cpus.milli())),
        ),
        Axis::Memory => (
            Bounds {
                min: memory.min.get(),
                max: memory.max.get(),
            },
            wish.memory.map(Bytes::get),
        ),
    };
    let from = wished.unwrap_or(target_of(status, axis));
    let step = tracking_step(axis.into(), &bounds);
    let (to, side) = match direction {
        Direction::Grow => (from.saturating_add(step).min(bounds.max), "upper"),
        Direction::Shrink => (from.saturating_sub(step).max(bounds.min), "lower"),
    };
    if to == from {
        let bound = Resource::from(axis).text(to);
        return Err(format!("has its {side} bound: {bound}"));
    }
    Ok(to)
}

#[cfg(test)]
pub mod tests;
