//! How fast a stream from the guest flows, and what window that asks for. Pure: it is told the time.

use std::time::{Duration, Instant};

/// A stream whose host takes half of its window within this time is busy: a larger one lets it flow.
const BUSY: Duration = Duration::from_millis(250);
/// One that takes longer than this rests: it needs no large one.
const RESTS: Duration = Duration::from_secs(1);
/// A busy stream has proven that its bytes are read when so many have flowed: more than the buffers of a
/// unix socket hold for a program that reads nothing.
const PROVEN_BYTES: u32 = 1 << 20;

/// What window a stream should have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Advice {
    /// The one it has.
    Keep,
    /// A larger one.
    More,
    /// The one it began with.
    First,
}

/// What is remembered of a stream between two looks.
#[derive(Debug, Default)]
pub struct Pace {
    looked: Option<Instant>,
    /// Bytes that were taken since the stream last lagged or rested.
    flowed: u32,
}

impl Pace {
    /// A look at a stream of which half of the window or more, `taken` bytes, was taken since the one
    /// before; `held` bytes wait for the host's program.
    pub fn look(&mut self, now: Instant, window: u32, taken: u32, held: usize) -> Advice {
        let Some(before) = self.looked.replace(now) else {
            return Advice::Keep;
        };
        let took = now.saturating_duration_since(before);
        if took > RESTS || held > window as usize / 4 {
            self.flowed = 0;
            return Advice::First;
        }
        if took >= BUSY {
            return Advice::Keep;
        }
        self.flowed = self.flowed.saturating_add(taken);
        if self.flowed >= PROVEN_BYTES {
            Advice::More
        } else {
            Advice::Keep
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW: u32 = 64 << 10;
    const HALF: u32 = WINDOW / 2;

    /// A stream that has just proven to be busy, and the time then.
    fn busy() -> (Pace, Instant) {
        let (mut pace, mut now) = (Pace::default(), Instant::now());
        let first = pace.look(now, WINDOW, HALF, 0);
        assert_eq!(first, Advice::Keep);
        for look in 1..=PROVEN_BYTES / HALF {
            now += BUSY / 2;
            let wanted = if look == PROVEN_BYTES / HALF {
                Advice::More
            } else {
                Advice::Keep
            };
            assert_eq!(pace.look(now, WINDOW, HALF, 0), wanted, "look {look}");
        }
        (pace, now)
    }

    #[test]
    fn a_stream_that_flows_for_long_enough_is_to_have_more() {
        let (mut pace, now) = busy();
        assert_eq!(pace.look(now + BUSY / 2, WINDOW, HALF, 0), Advice::More);
        // Between busy and resting, it keeps what it has.
        let later = now + BUSY / 2 + BUSY;
        assert_eq!(pace.look(later, WINDOW, HALF, 0), Advice::Keep);
    }

    #[test]
    fn one_that_rests_or_whose_reader_lags_goes_back_and_must_prove_itself_again() {
        for (pause, held) in [(RESTS * 2, 0), (BUSY / 2, WINDOW as usize / 2)] {
            let (mut pace, now) = busy();
            let now = now + pause;
            assert_eq!(pace.look(now, WINDOW, HALF, held), Advice::First);
            assert_eq!(pace.look(now + BUSY / 2, WINDOW, HALF, 0), Advice::Keep);
        }
    }
}
