//! The life of an instance: a pure state machine. What happens goes in, the next state comes out; the
//! registry, hosts and clocks are elsewhere.
//!
//! ```text
//!                     launch, or start of a stopped one
//!                                  │
//!              no host has room ┌──▼───┐◄───────────────────────── gone ──────────┐
//!              (it waits)     ┌─┤pending│◄── relaunch after host lost ──┐         │
//!                             └─►└──┬───┘                              │         │
//!                        placed: generation + 1                        │         │
//!                                ┌──▼─────┐  host lost   ┌───────────┐ │  ┌──────┴┐
//!        ┌── launch failed ──────┤starting├─────────────►│unreachable├─┘  │moving │
//!        │                       └──┬─────┘◄─────────────┴───▲───────┘    └──▲────┘
//!        │                   guest runs        host back     │ host lost     │ move
//!   ┌────▼─┐     error     ┌────────▼────────────────────────┴───────────────┴────┐
//!   │failed│◄──────────────┤                    running                           │
//!   └──┬───┘               └───┬──────────────────────────────────┬───────────────┘
//!      │ start            stop │                      powered off │
//!      ▼                   ┌───▼────┐   ended, gone   ┌───────────▼┐
//!   pending                │stopping├────────────────►│  stopped   │──── start ──► pending
//!                          └────────┘                 └────────────┘
//!   from each of them:  terminate ──► terminating ── gone ──► terminated
//! ```
//! A *generation* is one placement. What a host says counts only for the present generation; for any
//! other the goal is [`GoalKind::Absent`]. That is the fence: whoever was declared lost and comes back
//! with an instance that was placed elsewhere meanwhile is told to end it.

use concertina_api::link::HostPhase;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Where an instance is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Waits for a host.
    Pending,
    /// A host launches it.
    Starting,
    /// Its guest runs.
    Running,
    /// It was asked to end.
    Stopping,
    /// It has ended as it should, and can be started.
    Stopped,
    /// It is ended on one host, to be started on another.
    Moving,
    /// Its host is lost.
    Unreachable,
    /// It has ended by an error, or could not be launched.
    Failed,
    /// Its remains are being removed.
    Terminating,
    /// Nothing is left but its record.
    Terminated,
}

impl State {
    /// Every state.
    pub const ALL: [Self; 10] = [
        Self::Pending,
        Self::Starting,
        Self::Running,
        Self::Stopping,
        Self::Stopped,
        Self::Moving,
        Self::Unreachable,
        Self::Failed,
        Self::Terminating,
        Self::Terminated,
    ];

    /// The word in JSON and tables.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Stopping => "stopping",
            Self::Stopped => "stopped",
            Self::Moving => "moving",
            Self::Unreachable => "unreachable",
            Self::Failed => "failed",
            Self::Terminating => "terminating",
            Self::Terminated => "terminated",
        }
    }
}

/// Where an instance is, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Life {
    /// The state.
    pub state: State,
    /// Why: a sentence.
    #[serde(default)]
    pub reason: Option<String>,
    /// How often it was placed; the number of its present placement.
    pub generation: u64,
    /// Host of the present placement. It may hold its disk when it does not run.
    #[serde(default)]
    pub host: Option<String>,
    /// The guest has run in this placement: its disk may hold something.
    #[serde(default)]
    pub ran: bool,
    /// The host has promised its lower bounds.
    #[serde(default)]
    pub promised: bool,
}

/// What happens to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// A host was chosen.
    Placed(String),
    /// No host has room, says the sentence.
    NoRoom(String),
    /// The host says how the present generation stands.
    Seen(HostPhase),
    /// The host has nothing of the present generation.
    Gone,
    /// The host's lease has expired.
    HostLost,
    /// The host is back.
    HostBack,
    /// The operator has removed the host: nothing will ever be heard of it.
    HostRemoved,
    /// It is given up where it is, since its host is lost, and shall be placed elsewhere.
    Relaunch,
    /// It shall be moved, for this reason.
    Move(String),
    /// The customer wants it to run.
    Start,
    /// The customer wants it to end.
    Stop,
    /// The customer does not want it any more.
    Terminate,
}

/// What cannot be done in this state.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("An instance that is {state} cannot be {verb}", state = .state.as_str())]
pub struct NotNow {
    /// The state.
    pub state: State,
    /// `started`, `stopped`, …
    pub verb: &'static str,
}

/// What a host shall do about one placement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GoalKind {
    /// It runs.
    Run,
    /// It does not run; its disk stays.
    Stop,
    /// Nothing of it is left.
    Absent,
}

impl Life {
    /// It has just been asked for.
    pub fn begin() -> Self {
        Self {
            state: State::Pending,
            reason: None,
            generation: 0,
            host: None,
            ran: false,
            promised: false,
        }
    }

    /// What `host` shall do about `generation` of it.
    pub fn goal(&self, host: &str, generation: u64) -> GoalKind {
        if generation != self.generation || self.host.as_deref() != Some(host) {
            return GoalKind::Absent;
        }
        match self.state {
            State::Starting | State::Running | State::Unreachable => GoalKind::Run,
            State::Stopping | State::Stopped | State::Moving => GoalKind::Stop,
            State::Failed if self.ran => GoalKind::Stop,
            State::Failed | State::Pending | State::Terminating | State::Terminated => {
                GoalKind::Absent
            }
        }
    }

    /// The next state. `false`: nothing has changed.
    ///
    /// # Errors
    /// A customer's wish that makes no sense in this state; what happens by itself never errs.
    pub fn step(&mut self, input: &Input) -> Result<bool, NotNow> {
        let before = self.clone();
        match input {
            Input::Placed(host) => self.placed(host),
            Input::NoRoom(why) if self.state == State::Pending => self.reason = Some(why.clone()),
            Input::NoRoom(_) => {}
            Input::Seen(phase) => self.seen(phase),
            Input::Gone => self.gone("Its host has nothing of it any more"),
            Input::HostLost => self.host_lost(),
            Input::HostBack if self.state == State::Unreachable => {
                let state = if self.ran {
                    State::Running
                } else {
                    State::Starting
                };
                self.enter(state, Some("Its host is back".into()));
            }
            Input::HostBack => {}
            Input::HostRemoved => self.host_removed(),
            Input::Relaunch if self.state == State::Unreachable => self.give_up_host(),
            Input::Relaunch => {}
            Input::Move(why) if self.state == State::Running => {
                self.enter(State::Moving, Some(why.clone()));
            }
            Input::Move(_) => return self.refuse("moved"),
            Input::Start => self.start()?,
            Input::Stop => self.stop()?,
            Input::Terminate => self.terminate(),
        }
        Ok(*self != before)
    }

    fn refuse(&self, verb: &'static str) -> Result<bool, NotNow> {
        Err(NotNow {
            state: self.state,
            verb,
        })
    }

    fn enter(&mut self, state: State, reason: Option<String>) {
        self.state = state;
        self.reason = reason;
    }

    fn placed(&mut self, host: &str) {
        if self.state != State::Pending {
            return;
        }
        self.generation = self.generation.saturating_add(1);
        self.host = Some(host.to_owned());
        self.ran = false;
        self.promised = true;
        self.enter(State::Starting, None);
    }

    fn seen(&mut self, phase: &HostPhase) {
        match (self.state, phase) {
            (State::Starting | State::Unreachable, HostPhase::Running) => {
                self.ran = true;
                self.enter(State::Running, None);
            }
            (
                State::Starting | State::Running | State::Unreachable,
                HostPhase::LaunchFailed { reason },
            ) => {
                self.promised = false;
                self.enter(State::Failed, Some(reason.clone()));
            }
            (
                State::Starting | State::Running | State::Unreachable,
                HostPhase::Ended { status, reason },
            ) => {
                self.ran = true;
                self.promised = false;
                let state = if *status == 0 {
                    State::Stopped
                } else {
                    State::Failed
                };
                self.enter(state, Some(reason.clone()));
            }
            (
                State::Stopping,
                HostPhase::Ended { reason, .. } | HostPhase::LaunchFailed { reason },
            ) => {
                self.promised = false;
                self.enter(State::Stopped, Some(reason.clone()));
            }
            (State::Moving, HostPhase::Ended { .. } | HostPhase::LaunchFailed { .. }) => {
                self.give_up_host();
            }
            _ => {}
        }
    }

    fn gone(&mut self, why: &str) {
        match self.state {
            State::Terminating => {
                self.promised = false;
                self.host = None;
                self.enter(State::Terminated, None);
            }
            State::Moving => self.give_up_host(),
            State::Stopping => {
                self.promised = false;
                self.enter(State::Stopped, None);
            }
            // A launch may be on its way, so `starting` is not over by silence; the caller says
            // `Gone` only for what was there.
            State::Running | State::Unreachable | State::Starting => {
                self.promised = false;
                self.enter(State::Failed, Some(why.to_owned()));
            }
            _ => {}
        }
    }

    fn host_lost(&mut self) {
        match self.state {
            State::Starting | State::Running => {
                self.enter(State::Unreachable, Some("Its host is not heard of".into()));
            }
            State::Moving => self.give_up_host(),
            _ => {}
        }
    }

    fn host_removed(&mut self) {
        let why = "Its host was removed";
        match self.state {
            State::Stopped | State::Failed => {
                self.host = None;
                self.ran = false;
                self.reason = Some(why.to_owned());
            }
            State::Pending | State::Terminated => {}
            _ => {
                self.gone(why);
                self.host = None;
            }
        }
    }

    /// Waits for another host. The generation that was there is fenced: it is no host's any more.
    fn give_up_host(&mut self) {
        self.host = None;
        self.promised = false;
        self.ran = false;
        self.state = State::Pending;
    }

    fn start(&mut self) -> Result<(), NotNow> {
        match self.state {
            State::Pending | State::Starting | State::Running => Ok(()),
            State::Stopped | State::Failed => {
                self.enter(State::Pending, None);
                Ok(())
            }
            _ => self.refuse("started").map(drop),
        }
    }

    fn stop(&mut self) -> Result<(), NotNow> {
        match self.state {
            State::Stopping | State::Stopped => Ok(()),
            State::Pending => {
                self.enter(State::Stopped, None);
                Ok(())
            }
            State::Starting | State::Running | State::Unreachable | State::Moving => {
                self.enter(State::Stopping, None);
                Ok(())
            }
            State::Failed | State::Terminating | State::Terminated => {
                self.refuse("stopped").map(drop)
            }
        }
    }

    fn terminate(&mut self) {
        if self.state == State::Terminated {
            return;
        }
        // Without a host nothing is left anywhere.
        let state = if self.host.is_some() {
            State::Terminating
        } else {
            State::Terminated
        };
        if self.state != state {
            self.enter(state, None);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn inputs() -> impl Strategy<Value = Input> {
        let phase = prop_oneof![
            Just(HostPhase::Preparing),
            Just(HostPhase::Running),
            Just(HostPhase::Stopping),
            (0i32..3).prop_map(|status| HostPhase::Ended {
                status,
                reason: "Ended".into()
            }),
            Just(HostPhase::LaunchFailed {
                reason: "No".into()
            }),
        ];
        prop_oneof![
            "[ab]".prop_map(Input::Placed),
            Just(Input::NoRoom("full".into())),
            phase.prop_map(Input::Seen),
            Just(Input::Gone),
            Just(Input::HostLost),
            Just(Input::HostBack),
            Just(Input::HostRemoved),
            Just(Input::Relaunch),
            Just(Input::Move("short".into())),
            Just(Input::Start),
            Just(Input::Stop),
            Just(Input::Terminate),
        ]
    }

    /// What has to hold in every state.
    fn assert_sound(life: &Life) {
        if life.promised {
            assert!(life.host.is_some(), "promised by nobody: {life:?}");
        }
        match life.state {
            State::Starting | State::Running | State::Unreachable | State::Moving => {
                assert!(life.promised && life.generation > 0, "{life:?}");
            }
            State::Stopped | State::Failed | State::Pending => {
                assert!(!life.promised, "{life:?}");
            }
            State::Terminated => assert!(!life.promised && life.host.is_none(), "{life:?}"),
            State::Terminating => assert!(life.host.is_some(), "{life:?}"),
            State::Stopping => assert!(life.host.is_some(), "{life:?}"),
        }
    }

    proptest! {
        #[test]
        fn no_order_of_happenings_breaks_it(inputs in prop::collection::vec(inputs(), 0..60)) {
            let mut life = Life::begin();
            for input in &inputs {
                let before = life.clone();
                let result = life.step(input);
                assert_sound(&life);
                prop_assert!(life.generation >= before.generation);
                prop_assert!(life.generation <= before.generation + 1);
                if life.generation > before.generation {
                    prop_assert!(matches!(input, Input::Placed(_)), "{input:?}");
                }
                if before.state == State::Terminated {
                    prop_assert_eq!(&life, &before, "terminated is the end");
                }
                match result {
                    Ok(changed) => prop_assert_eq!(changed, life != before),
                    Err(_) => prop_assert_eq!(&life, &before, "a refusal changes nothing"),
                }
            }
        }

        #[test]
        fn at_most_one_placement_may_ever_run(inputs in prop::collection::vec(inputs(), 0..60)) {
            let mut life = Life::begin();
            for input in &inputs {
                let _ = life.step(input);
                let runs = (0..=life.generation + 1)
                    .flat_map(|generation| [("a", generation), ("b", generation)])
                    .filter(|(host, generation)| life.goal(host, *generation) == GoalKind::Run);
                prop_assert!(runs.count() <= 1);
            }
        }
    }

    fn after(inputs: &[Input]) -> Life {
        let mut life = Life::begin();
        for input in inputs {
            life.step(input).unwrap();
        }
        life
    }

    fn placed() -> Input {
        Input::Placed("a".into())
    }

    #[test]
    fn a_moved_instance_is_fenced_on_the_host_that_was_lost() {
        let running = Input::Seen(HostPhase::Running);
        let mut life = after(&[placed(), running, Input::HostLost, Input::Relaunch]);
        life.step(&Input::Placed("b".into())).unwrap();
        assert_eq!(life.goal("a", 1), GoalKind::Absent);
        assert_eq!(life.goal("b", 2), GoalKind::Run);
    }

    #[test]
    fn a_failed_launch_leaves_nothing_and_a_crash_leaves_the_disk() {
        let failed = Input::Seen(HostPhase::LaunchFailed {
            reason: "No kernel".into(),
        });
        let life = after(&[placed(), failed]);
        assert_eq!(life.goal("a", 1), GoalKind::Absent);
        assert_eq!(life.reason.as_deref(), Some("No kernel"));
        let crashed = Input::Seen(HostPhase::Ended {
            status: 65,
            reason: "Triple fault".into(),
        });
        let life = after(&[placed(), Input::Seen(HostPhase::Running), crashed]);
        assert_eq!(
            (life.state, life.goal("a", 1)),
            (State::Failed, GoalKind::Stop)
        );
    }

    #[test]
    fn what_is_terminated_cannot_be_started() {
        let mut life = after(&[Input::Terminate]);
        let refused = life.step(&Input::Start).unwrap_err();
        assert_eq!(
            refused.to_string(),
            "An instance that is terminated cannot be started"
        );
    }
}
