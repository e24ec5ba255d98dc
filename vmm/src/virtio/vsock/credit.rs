//! Flow control of one connection (§5.10.6.3): how much each side may send before the other has room.
//!
//! Each side counts the bytes that it has sent or taken, modulo 2^32, and tells the other how much it
//! is willing to hold. Nothing here is trusted: absurd counts of the guest cost it its own credit.

/// The guest has sent more than it was allowed to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Overrun;

/// Both directions of one connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Credit {
    /// Bytes beyond `told` that the guest was allowed to send, when it was last told.
    window: u32,
    /// Bytes that we want to hold for the guest at most.
    wanted: u32,
    /// Bytes that the guest has sent.
    received: u32,
    /// Of these, what the host's program has taken.
    forwarded: u32,
    /// `forwarded` as the guest knows it.
    told: u32,
    /// Bytes that we have sent to the guest.
    sent: u32,
    /// Bytes that the guest is willing to hold.
    peer_window: u32,
    /// Bytes that the guest's program has taken, as the guest says.
    peer_forwarded: u32,
}

impl Credit {
    /// A fresh connection on which we hold at most `window` bytes. Until the guest has said how much
    /// it holds, it gets nothing.
    pub fn new(window: u32) -> Self {
        Self {
            window,
            wanted: window,
            received: 0,
            forwarded: 0,
            told: 0,
            sent: 0,
            peer_window: 0,
            peer_forwarded: 0,
        }
    }

    /// Bytes that we hold at most.
    pub fn window(&self) -> u32 {
        self.window.max(self.wanted)
    }

    /// Wants to hold another number of bytes at most. The guest hears of more with the next packet; less
    /// comes about as it sends, since what it was allowed cannot be taken back.
    pub fn want_window(&mut self, wanted: u32) {
        self.wanted = wanted;
    }

    /// The guest has sent `len` bytes.
    ///
    /// # Errors
    /// It had no credit for them.
    pub fn receive(&mut self, len: u32) -> Result<(), Overrun> {
        let sent = self.received.wrapping_sub(self.told);
        if u64::from(sent) + u64::from(len) > u64::from(self.window) {
            return Err(Overrun);
        }
        self.received = self.received.wrapping_add(len);
        Ok(())
    }

    /// The host's program has taken `len` of the bytes held.
    pub fn forward(&mut self, len: usize) {
        self.forwarded = self.forwarded.wrapping_add(len as u32);
    }

    /// The guest may soon be out of credit, and does not know that there is more.
    pub fn update_is_due(&self) -> bool {
        self.untold() >= self.window / 2
    }

    /// Bytes that the host's program has taken and the guest has not heard of.
    pub fn untold(&self) -> u32 {
        self.forwarded.wrapping_sub(self.told)
    }

    /// What the next packet to the guest says: (`buf_alloc`, `fwd_cnt`). Their sum never falls, whatever
    /// is wanted: the guest may have used all of it.
    pub fn tell(&mut self) -> (u32, u32) {
        let kept = self.window.saturating_sub(self.untold());
        self.window = kept.max(self.wanted);
        self.told = self.forwarded;
        (self.window, self.forwarded)
    }

    /// What a packet of the guest says.
    pub fn told_by_guest(&mut self, buf_alloc: u32, fwd_cnt: u32) {
        self.peer_window = buf_alloc;
        self.peer_forwarded = fwd_cnt;
    }

    /// Bytes that the guest has room for. A guest that has taken more than it was sent has none.
    pub fn room(&self) -> u32 {
        let in_flight = self.sent.wrapping_sub(self.peer_forwarded);
        self.peer_window.saturating_sub(in_flight)
    }

    /// `len` bytes, at most [`Credit::room`], were sent to the guest.
    pub fn send(&mut self, len: usize) {
        self.sent = self.sent.wrapping_add(len as u32);
    }

    /// A connection that has already moved `bytes` each way.
    #[cfg(test)]
    pub fn aged(window: u32, bytes: u32) -> Self {
        Self {
            received: bytes,
            forwarded: bytes,
            told: bytes,
            sent: bytes,
            peer_forwarded: bytes,
            ..Self::new(window)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Debug, Clone)]
    enum Act {
        Receive(u32),
        Forward(u32),
        Send(u32),
        GuestTakes(u32),
        Tell,
        Want(u32),
    }

    fn act() -> impl Strategy<Value = Act> {
        let len = 0u32..200;
        prop_oneof![
            len.clone().prop_map(Act::Receive),
            len.clone().prop_map(Act::Forward),
            len.clone().prop_map(Act::Send),
            len.prop_map(Act::GuestTakes),
            Just(Act::Tell),
            (1u32..300).prop_map(Act::Want),
        ]
    }

    proptest! {
        /// The counts wrap at 2^32; a model that counts in 64 bits from 0 sees no difference.
        #[test]
        fn counting_modulo_2_32_is_counting(
            start in prop_oneof![Just(0u32), (u32::MAX - 400)..=u32::MAX, any::<u32>()],
            acts in prop::collection::vec(act(), 1..200),
        ) {
            let peer_window = 128u32;
            let (mut window, mut wanted) = (128u32, 128u32);
            let mut credit = Credit::aged(window, start);
            let (mut received, mut forwarded, mut told) = (0u64, 0u64, 0u64);
            let (mut sent, mut taken) = (0u64, 0u64);
            credit.told_by_guest(peer_window, start);
            for act in acts {
                match act {
                    Act::Receive(len) => {
                        let fits = received - told + u64::from(len) <= u64::from(window);
                        prop_assert_eq!(credit.receive(len).is_ok(), fits);
                        received += if fits { u64::from(len) } else { 0 };
                    }
                    Act::Forward(len) => {
                        let len = u64::from(len).min(received - forwarded);
                        credit.forward(len as usize);
                        forwarded += len;
                    }
                    Act::Send(len) => {
                        let len = len.min(credit.room());
                        credit.send(len as usize);
                        sent += u64::from(len);
                    }
                    Act::GuestTakes(len) => {
                        taken += u64::from(len).min(sent - taken);
                        credit.told_by_guest(peer_window, start.wrapping_add(taken as u32));
                    }
                    Act::Tell => {
                        let (said, count) = credit.tell();
                        prop_assert_eq!(count, start.wrapping_add(forwarded as u32));
                        // What the guest was allowed is not taken back; a smaller window comes about
                        // as fast as that lets it, a larger one at once.
                        let allowed = told + u64::from(window);
                        prop_assert_eq!(
                            forwarded + u64::from(said),
                            allowed.max(forwarded + u64::from(wanted))
                        );
                        (window, told) = (said, forwarded);
                    }
                    Act::Want(other) => {
                        wanted = other;
                        credit.want_window(wanted);
                    }
                }
                prop_assert_eq!(u64::from(credit.room()), u64::from(peer_window) - (sent - taken));
                prop_assert_eq!(credit.window(), window.max(wanted));
                prop_assert!(received - forwarded <= u64::from(credit.window()), "held beyond it");
                prop_assert_eq!(credit.update_is_due(), forwarded - told >= u64::from(window) / 2);
                // A guest that waits for credit always hears of it once its bytes were taken.
                if received == forwarded && received - told >= u64::from(window) {
                    prop_assert!(credit.update_is_due());
                }
            }
        }

        #[test]
        fn whatever_the_guest_says_it_never_gets_more_than_its_window(
            alloc in any::<u32>(), fwd in any::<u32>(), sent in any::<u32>(),
        ) {
            let mut credit = Credit::aged(64, sent);
            credit.told_by_guest(alloc, fwd);
            prop_assert!(credit.room() <= alloc);
        }
    }

    #[test]
    fn a_shrunk_window_is_no_negative_room() {
        let mut credit = Credit::new(64);
        credit.told_by_guest(100, 0);
        credit.send(80);
        credit.told_by_guest(50, 0);
        assert_eq!(credit.room(), 0);
        credit.told_by_guest(50, 81);
        assert_eq!(credit.room(), 0, "taken more than was sent");
    }
}
