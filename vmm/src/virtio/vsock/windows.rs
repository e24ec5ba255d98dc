//! How much each connection may hold for a host that reads slowly. A stream of one connection needs
//! several of the guest's largest packets in flight to flow; many connections share one budget, which
//! bounds what a guest can make this process hold.

/// The most connections at once; each of them has at least [`LEAST`].
pub const MAX_CONNECTIONS: usize = 1024;
/// Bytes of the largest window: one of Linux's largest packets. Its vhost gives four times as much, and
/// is faster for it; here, what slow readers made this process hold has to stay small.
pub const LARGEST: u32 = 64 << 10;
/// Bytes of the smallest window.
pub const LEAST: u32 = 4 << 10;
/// Bytes that are given beyond the least of all connections.
const BUDGET: u32 = 4 << 20;
/// A new connection gets this part of what is left, so that there is always something left.
const SHARE: u32 = 16;
/// All windows together never promise more bytes than this: 8 MiB.
#[cfg(any(test, feature = "fuzzing"))]
pub const MOST_PROMISED: usize = MAX_CONNECTIONS * LEAST as usize + BUDGET as usize;

/// What is left to be promised.
#[derive(Debug)]
pub struct Windows {
    left: u32,
}

impl Default for Windows {
    fn default() -> Self {
        Self { left: BUDGET }
    }
}

impl Windows {
    /// The window of a new connection.
    pub fn grant(&mut self) -> u32 {
        let extra = (self.left / SHARE).min(LARGEST - LEAST);
        self.left -= extra;
        LEAST + extra
    }

    /// A connection with this window has ended.
    pub fn give_back(&mut self, window: u32) {
        let extra = window.saturating_sub(LEAST);
        self.left = self.left.saturating_add(extra).min(BUDGET);
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

    proptest! {
        #[test]
        fn no_coming_and_going_promises_more_than_there_is(
            steps in proptest::collection::vec((any::<bool>(), any::<usize>()), 1..3000),
        ) {
            let (mut windows, mut open) = (Windows::default(), Vec::new());
            for (opens, which) in steps {
                if opens && open.len() < MAX_CONNECTIONS {
                    open.push(windows.grant());
                } else if !open.is_empty() {
                    windows.give_back(open.swap_remove(which % open.len()));
                }
                let promised: usize = open.iter().map(|window| *window as usize).sum();
                prop_assert!(promised <= MOST_PROMISED);
            }
            open.drain(..).for_each(|window| windows.give_back(window));
            prop_assert_eq!(windows.left, BUDGET);
        }
    }
}
