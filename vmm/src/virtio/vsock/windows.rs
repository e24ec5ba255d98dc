//! How much each connection may hold for a host that reads slowly. A stream of one connection needs
//! several of the guest's largest packets in flight to flow; many connections share one budget, which
//! bounds what a guest can make this process hold.
//!
//! A connection begins with a part of what is left. A busy one whose reader keeps pace gets more from a
//! smaller reserve, so that few busy streams flow as fast as with large windows, and what many slow
//! readers made this process hold stays small.

/// The most connections at once; each of them has at least [`LEAST`].
pub const MAX_CONNECTIONS: usize = 1024;
/// Bytes of the largest window of a new connection: one of Linux's largest packets.
pub const LARGEST: u32 = 64 << 10;
/// Bytes of the largest window that a busy stream gets: what Linux's vhost gives to all.
pub const ENLARGED: u32 = 256 << 10;
/// Bytes of the smallest window.
pub const LEAST: u32 = 4 << 10;
/// Bytes for busy streams: four of them have the largest window.
const RESERVE: u32 = 4 * (ENLARGED - LARGEST);
/// Bytes that are given to new connections beyond the least of all.
const BUDGET: u32 = (4 << 20) - RESERVE;
/// A new connection gets this part of what is left, so that there is always something left.
const SHARE: u32 = 16;
/// All windows together never promise more bytes than this: 8 MiB.
#[cfg(any(test, feature = "fuzzing"))]
pub const MOST_PROMISED: usize = MAX_CONNECTIONS * LEAST as usize + (BUDGET + RESERVE) as usize;

/// What is left to be promised.
#[derive(Debug)]
pub struct Windows {
    left: u32,
    reserve: u32,
}

impl Default for Windows {
    fn default() -> Self {
        Self {
            left: BUDGET,
            reserve: RESERVE,
        }
    }
}

impl Windows {
    /// The window of a new connection.
    pub fn grant(&mut self) -> u32 {
        let extra = (self.left / SHARE).min(LARGEST - LEAST);
        self.left -= extra;
        LEAST + extra
    }

    /// A connection that was granted this window has ended.
    pub fn give_back(&mut self, granted: u32) {
        let extra = granted.saturating_sub(LEAST);
        self.left = self.left.saturating_add(extra).min(BUDGET);
    }

    /// What a window of this size gets on top: as much again, as far as there is some.
    pub fn enlarge(&mut self, window: u32) -> u32 {
        let more = window
            .min(ENLARGED.saturating_sub(window))
            .min(self.reserve);
        self.reserve -= more;
        more
    }

    /// So much of what [`Windows::enlarge`] gave is no longer promised.
    pub fn give_back_more(&mut self, more: u32) {
        self.reserve = self.reserve.saturating_add(more).min(RESERVE);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn few_connections_have_large_windows_and_the_last_of_many_still_has_one() {
        let mut windows = Windows::default();
        assert_eq!(windows.grant(), LARGEST);
        let all: Vec<u32> = (1..MAX_CONNECTIONS).map(|_| windows.grant()).collect();
        assert!(all[15] >= LARGEST / 4 && all[31] >= 32 << 10, "{all:?}");
        assert!(all.iter().all(|window| (LEAST..=LARGEST).contains(window)));
        assert!(all.is_sorted_by(|before, after| before >= after));
    }

    #[test]
    fn a_few_busy_streams_get_the_largest_windows_and_the_others_keep_theirs() {
        let mut windows = Windows::default();
        let mut grown = |start| {
            let mut window = start;
            for _ in 0..4 {
                window += windows.enlarge(window);
            }
            window
        };
        let all: Vec<u32> = (0..6).map(|_| grown(LARGEST)).collect();
        assert_eq!(all[..4], [ENLARGED; 4]);
        assert_eq!(all[4..], [LARGEST; 2]);
    }

    proptest! {
        #[test]
        fn no_coming_and_going_promises_more_than_there_is(
            steps in proptest::collection::vec((0u8..4, any::<usize>()), 1..3000),
        ) {
            // What was granted, and what was given on top.
            let mut open: Vec<(u32, u32)> = Vec::new();
            let mut windows = Windows::default();
            for (step, which) in steps {
                let count = open.len();
                let at = which % count.max(1);
                match step {
                    0 if count < MAX_CONNECTIONS => open.push((windows.grant(), 0)),
                    1 if count > 0 => {
                        let (granted, more) = open.swap_remove(at);
                        windows.give_back(granted);
                        windows.give_back_more(more);
                    }
                    2 if count > 0 => {
                        let (granted, more) = &mut open[at];
                        *more += windows.enlarge(*granted + *more);
                        prop_assert!(*granted + *more <= ENLARGED);
                    }
                    3 if count > 0 => windows.give_back_more(std::mem::take(&mut open[at].1)),
                    _ => {}
                }
                let promised: usize = open.iter().map(|(a, b)| (a + b) as usize).sum();
                prop_assert!(promised <= MOST_PROMISED);
            }
            for (granted, more) in open {
                windows.give_back(granted);
                windows.give_back_more(more);
            }
            prop_assert_eq!((windows.left, windows.reserve), (BUDGET, RESERVE));
        }
    }
}
