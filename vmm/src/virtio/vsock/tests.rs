use std::io::Write;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

use super::model::{CID, Guest, PACKET, Rig, read_some};
use super::packet::{HEADER_BYTES, Header, MAX_PAYLOAD_BYTES, flag, op};
use super::windows::{ENLARGED, LARGEST, LEAST};
use crate::virtio::rng::driver::{Driver, Mischief, NEXT, WRITE, mischief};
use crate::virtio::{Activation, VirtioDevice};

#[test]
fn a_guest_reaches_whoever_listens_on_the_socket_of_the_port() {
    let mut rig = Rig::new();
    let listener = rig.listen(1030);
    let (mut guest, mut host) = rig.guest_connects(&listener, 1030);
    assert_eq!(guest.credit(), LARGEST);
    rig.send(guest.header(op::RW), b"from the guest");
    guest.sent = 14;
    assert_eq!(read_some(&mut host, 100).0, b"from the guest");
    host.write_all(b"from the host").unwrap();
    let packets = rig.exchange();
    assert_eq!(packets.len(), 1);
    let (header, payload) = &packets[0];
    assert_eq!(
        (header.op, payload.as_slice()),
        (op::RW, &b"from the host"[..])
    );
    guest.hear(header);
    assert_eq!(guest.credit(), LARGEST, "the host has taken everything");
    assert_eq!(rig.counter(|c| &c.bytes_from_guest), 14);
    assert_eq!(rig.counter(|c| &c.bytes_to_guest), 13);
    assert_eq!(rig.counter(|c| &c.opened_by_guest), 1);
}

#[test]
fn a_program_of_the_host_says_connect_and_reads_ok() {
    let mut rig = Rig::new();
    let (guest, mut host) = rig.host_connects(1024);
    assert!(guest.host_port >= 1 << 30);
    rig.send(guest.header(op::RW), b"hello");
    assert_eq!(read_some(&mut host, 100), (b"hello".to_vec(), false));
    let (second, _host) = rig.host_connects(1024);
    assert_ne!(second.host_port, guest.host_port);
    assert_eq!(rig.counter(|c| &c.connections), 2);
}

#[test]
fn what_follows_the_connect_line_reaches_the_guest_after_it_has_accepted() {
    let mut rig = Rig::new();
    let _host = rig.host_asks("CONNECT 7\nearly");
    let request = rig.answer();
    let guest = Guest::new(request.src_port, 7);
    rig.send(guest.header(op::RESPONSE), &[]);
    let packets = rig.exchange();
    assert_eq!(packets[0].1, b"early");
}

#[test]
fn who_is_not_listened_to_gets_a_reset() {
    let mut rig = Rig::new();
    rig.send(Guest::new(99, 5000).header(op::REQUEST), &[]);
    let answer = rig.answer();
    assert_eq!(
        (answer.op, answer.src_port, answer.dst_port),
        (op::RST, 99, 5000)
    );
    // The other way round: the guest refuses, and the host reads the end.
    let mut host = rig.host_asks("CONNECT 7\n");
    let request = rig.answer();
    rig.send(Guest::new(request.src_port, 7).header(op::RST), &[]);
    host.set_nonblocking(true).unwrap();
    assert_eq!(read_some(&mut host, 10), (vec![], true));
    assert_eq!(rig.counter(|c| &c.connections), 0);
    assert_eq!(rig.counter(|c| &c.bad_requests), 0);
}

#[test]
fn without_a_driver_programs_are_sent_away_and_after_a_reset_too() {
    let mut rig = Rig::new();
    let (_, mut old) = rig.host_connects(7);
    rig.device.reset();
    assert_eq!(read_some(&mut old, 10), (vec![], true));
    let mut host = rig.host_asks("CONNECT 7\n");
    rig.turns();
    host.set_nonblocking(true).unwrap();
    assert!(read_some(&mut host, 10).1);
    rig.activate();
    let (guest, mut host) = rig.host_connects(7);
    rig.send(guest.header(op::RW), b"again");
    assert_eq!(read_some(&mut host, 10).0, b"again");
}

#[test]
fn a_half_closed_connection_still_carries_the_other_half() {
    let mut rig = Rig::new();
    let (guest, mut host) = rig.host_connects(7);
    rig.send(guest.shutdown(flag::SEND), &[]);
    assert_eq!(read_some(&mut host, 10), (vec![], true));
    host.write_all(b"answer").unwrap();
    assert_eq!(rig.exchange()[0].1, b"answer");
    host.shutdown(Shutdown::Write).unwrap();
    let last = rig.answer();
    assert_eq!((last.op, last.flags), (op::SHUTDOWN, flag::BOTH));
    assert_eq!(rig.counter(|c| &c.connections), 0);

    let (guest, mut host) = rig.host_connects(7);
    host.write_all(b"question").unwrap();
    host.shutdown(Shutdown::Write).unwrap();
    let packets = rig.exchange();
    assert_eq!(packets[0].1, b"question");
    assert_eq!(
        (packets[1].0.op, packets[1].0.flags),
        (op::SHUTDOWN, flag::SEND)
    );
    rig.send(guest.header(op::RW), b"answer");
    assert_eq!(read_some(&mut host, 10).0, b"answer");
    rig.send(guest.shutdown(flag::BOTH), &[]);
    assert_eq!(rig.answer().op, op::RST);
    assert!(read_some(&mut host, 10).1);
}

#[test]
fn a_host_that_goes_ends_both_halves_after_its_last_byte() {
    let mut rig = Rig::new();
    let (guest, mut host) = rig.host_connects(7);
    host.write_all(b"last").unwrap();
    drop(host);
    let packets = rig.exchange();
    assert_eq!(packets[0].1, b"last");
    assert_eq!(
        (packets[1].0.op, packets[1].0.flags),
        (op::SHUTDOWN, flag::BOTH)
    );
    assert_eq!(rig.counter(|c| &c.connections), 0);
    rig.send(guest.header(op::RW), b"too late");
    assert_eq!(rig.answer().op, op::RST);
}

#[test]
fn what_a_slow_reader_has_not_taken_is_held_up_to_the_window_and_outlives_the_guests_close() {
    let mut rig = Rig::new();
    let (mut guest, mut host) = rig.host_connects(7);
    let mut sent = Vec::new();
    // Until there is no credit: the socket's own buffers are full by then.
    for _ in 0..64 {
        for (header, _) in rig.exchange() {
            guest.hear(&header);
        }
        let len = guest.credit().min(10_000) as usize;
        let bytes: Vec<u8> = (0..len).map(|i| (i + sent.len()) as u8).collect();
        rig.send(guest.header(op::RW), &bytes);
        guest.sent += len as u32;
        sent.extend(bytes);
    }
    assert_eq!(guest.credit(), 0);
    // The rest of the window is free again, but too little to tell the guest of it.
    let held = rig.device.muxer.backlog_bytes() as u32;
    assert!((LARGEST / 2..=LARGEST).contains(&held), "{held}");
    rig.send(guest.shutdown(flag::BOTH), &[]);
    assert_eq!(rig.answer().op, op::RST);
    let mut got = Vec::new();
    while got.len() < sent.len() {
        let (bytes, ended) = read_some(&mut host, 5000);
        assert!(!ended || got.len() + bytes.len() == sent.len());
        got.extend(bytes);
        rig.turns();
    }
    assert!(got == sent, "the streams differ");
    assert!(read_some(&mut host, 1).1);
    assert_eq!(rig.device.muxer.backlog_bytes(), 0);
    assert_eq!(rig.counter(|c| &c.connections), 0);
}

/// The guest sends until it has no credit; it hears what it is told in between.
fn use_up_credit(rig: &mut Rig, guest: &mut Guest) -> usize {
    let mut sent = 0;
    while guest.credit() > 0 {
        let len = (guest.credit() as usize).min(MAX_PAYLOAD_BYTES);
        rig.send(guest.header(op::RW), &vec![7; len]);
        guest.sent += len as u32;
        sent += len;
    }
    for (header, _) in rig.exchange() {
        guest.hear(&header);
    }
    sent
}

#[test]
fn a_busy_stream_whose_reader_keeps_pace_gets_a_larger_window() {
    let mut rig = Rig::new();
    let (mut guest, mut host) = rig.host_connects(7);
    let mut moved = 0;
    while guest.credit() < ENLARGED {
        assert!(moved < 32 << 20, "stays at {}", guest.credit());
        moved += use_up_credit(&mut rig, &mut guest);
        while !read_some(&mut host, 1 << 20).0.is_empty() {
            rig.turns();
        }
        for (header, _) in rig.exchange() {
            guest.hear(&header);
        }
    }
    // A reader that stops makes this process hold no more than that.
    for _ in 0..8 {
        use_up_credit(&mut rig, &mut guest);
    }
    let held = rig.device.muxer.backlog_bytes();
    assert!(held <= ENLARGED as usize, "{held}");
    assert_eq!(guest.credit(), 0);
    assert_eq!(rig.counter(|c| &c.bad_requests), 0);
}

#[test]
fn a_guest_that_ignores_its_credit_is_reset_and_counted() {
    let mut rig = Rig::new();
    let (guest, _host) = rig.host_connects(7);
    let packet = vec![0; MAX_PAYLOAD_BYTES];
    let mut sent = 0;
    while rig.counter(|c| &c.credit_overruns) == 0 {
        rig.send(guest.header(op::RW), &packet);
        sent += packet.len();
        assert!(sent < 16 << 20, "held without limit");
    }
    assert!(rig.device.muxer.backlog_bytes() <= LARGEST as usize);
    let last = rig.exchange().pop().unwrap().0;
    assert_eq!(last.op, op::RST);
    assert_eq!(rig.counter(|c| &c.connections), 0);
    assert_eq!(rig.counter(|c| &c.bad_requests), 1);
}

#[test]
fn the_host_waits_for_the_guests_credit_and_asks_once() {
    let mut rig = Rig::new();
    let (mut guest, mut host) = rig.host_connects(7);
    guest.window = 10;
    rig.send(guest.header(op::CREDIT_UPDATE), &[]);
    host.write_all(b"0123456789abc").unwrap();
    let packets = rig.exchange();
    assert_eq!(packets[0].1, b"0123456789");
    assert_eq!(packets[1].0.op, op::CREDIT_REQUEST);
    assert_eq!(packets.len(), 2);
    assert!(rig.exchange().is_empty());
    guest.taken = 10;
    rig.send(guest.header(op::CREDIT_UPDATE), &[]);
    assert_eq!(rig.exchange()[0].1, b"abc");
    rig.send(guest.header(op::CREDIT_REQUEST), &[]);
    assert_eq!(rig.answer().op, op::CREDIT_UPDATE);
}

#[test]
fn windows_shrink_when_there_are_many_connections_and_there_is_a_most() {
    let mut rig = Rig::new();
    let listener = rig.listen(1);
    let mut hosts = Vec::new();
    let mut open = |rig: &mut Rig, port| {
        rig.send(Guest::new(1, port).header(op::REQUEST), &[]);
        hosts.push(listener.accept().unwrap());
        rig.answer().buf_alloc
    };
    let windows: Vec<u32> = (0..200).map(|port| open(&mut rig, port)).collect();
    assert_eq!(windows[0], LARGEST);
    assert!(
        windows[199] < windows[100] && windows[100] < windows[1],
        "{windows:?}"
    );
    assert!(windows[199] >= LEAST, "{windows:?}");
    // One that ends makes room for another.
    rig.send(Guest::new(1, 0).header(op::RST), &[]);
    assert!(open(&mut rig, 0) > windows[199]);
}

#[test]
fn hostile_packets_are_counted_and_answered_and_harm_no_other_connection() {
    let mut rig = Rig::new();
    let (guest, mut host) = rig.host_connects(7);
    let stranger = Guest::new(4242, 4243);
    let good = stranger.header(op::RW);
    let cases = [
        (Header { src_cid: 9, ..good }, None),
        (Header { dst_cid: 9, ..good }, Some(op::RST)),
        (Header { kind: 2, ..good }, Some(op::RST)),
        (Header { kind: 999, ..good }, Some(op::RST)),
        (stranger.header(0), Some(op::RST)),
        (stranger.header(8), Some(op::RST)),
        (stranger.header(u16::MAX), Some(op::RST)),
        (stranger.header(op::RW), Some(op::RST)),
        (stranger.header(op::SHUTDOWN), Some(op::RST)),
        (stranger.header(op::RESPONSE), Some(op::RST)),
        (stranger.header(op::CREDIT_UPDATE), Some(op::RST)),
        (stranger.header(op::RST), None),
        (
            Guest::new(u32::MAX, u32::MAX).header(op::REQUEST),
            Some(op::RST),
        ),
    ];
    for (header, answer) in cases {
        rig.send(header, b"x");
        let packets = rig.exchange();
        assert_eq!(packets.first().map(|p| p.0.op), answer, "{header:?}");
    }
    assert_eq!(rig.counter(|c| &c.bad_requests), 7);
    rig.send(guest.header(op::RW), b"fine");
    assert_eq!(read_some(&mut host, 10).0, b"fine");
    assert_eq!(rig.interrupts.take().2, 0);
}

#[test]
fn broken_protocol_on_a_connection_resets_it() {
    for wrong in [op::RESPONSE, 0, 8, 99] {
        let mut rig = Rig::new();
        let (guest, mut host) = rig.host_connects(7);
        rig.send(guest.header(wrong), &[]);
        assert_eq!(rig.answer().op, op::RST);
        assert!(read_some(&mut host, 1).1);
        assert_eq!(rig.counter(|c| &c.bad_requests), 1);
    }
    let mut rig = Rig::new();
    let (guest, _host) = rig.host_connects(7);
    rig.send(guest.shutdown(flag::SEND), &[]);
    rig.send(guest.header(op::RW), b"after its end");
    assert_eq!(rig.answer().op, op::RST);
    // A second request for the ports of a connection.
    let (guest, _host) = rig.host_connects(7);
    rig.send(guest.header(op::REQUEST), &[]);
    assert_eq!(rig.answer().op, op::RST);
}

/// A header somewhere in guest memory.
fn write_header(rig: &Rig, at: u64, len: u32) {
    let header = Header {
        len,
        ..Guest::new(1, 2).header(op::RW)
    };
    rig.ram
        .write_slice(&header.to_bytes(), GuestAddress(at))
        .unwrap();
}

#[test]
fn malformed_chains_are_counted_and_returned() {
    let mut rig = Rig::new();
    write_header(&rig, PACKET, 1000);
    let header = HEADER_BYTES as u32;
    let end = 4 << 20;
    let chains: [&[(u64, u32, u16)]; 8] = [
        &[(PACKET, header - 1, 0)],
        &[(PACKET, header, 0)],
        &[(PACKET, header, 0), (PACKET, 999, 0)],
        &[(PACKET, header, WRITE)],
        &[(PACKET, header, 0), (PACKET, 1000, WRITE)],
        &[(end - 4, header, 0)],
        &[(u64::MAX - 4, header, 0)],
        &[(PACKET, header, 0), (1 << 40, 1000, 0)],
    ];
    for (i, chain) in chains.into_iter().enumerate() {
        rig.from_guest.add(chain);
        rig.device.queue_notified(1);
        assert_eq!(rig.from_guest.used().len(), 1, "chain {i}");
        assert_eq!(rig.counter(|c| &c.bad_requests), i as u64 + 1, "chain {i}");
    }
    // More payload than any packet has.
    write_header(&rig, PACKET, MAX_PAYLOAD_BYTES as u32 + 1);
    rig.from_guest.add(&[(PACKET, header, 0), (0, 1 << 20, 0)]);
    rig.device.queue_notified(1);
    assert_eq!(rig.counter(|c| &c.bad_requests), 9);
    // A loop of descriptors is as long as the table at most.
    rig.from_guest.descriptor(100, PACKET, 1, NEXT, 101);
    rig.from_guest.descriptor(101, PACKET, 0, NEXT, 100);
    rig.from_guest.offer(100);
    rig.device.queue_notified(1);
    assert_eq!(rig.from_guest.used().len(), 2);
    assert_eq!(rig.interrupts.take().2, 0);
}

#[test]
fn bad_room_is_returned_empty_and_the_packet_goes_into_the_next() {
    let mut rig = Rig::new();
    let mut host = rig.host_asks("CONNECT 7\n");
    rig.turns();
    let end = 4 << 20;
    rig.to_guest.add(&[(PACKET, 4096, 0)]);
    rig.to_guest.add(&[(PACKET, HEADER_BYTES as u32, WRITE)]);
    rig.to_guest.add(&[(end - 8, 4096, WRITE)]);
    rig.device.queue_notified(0);
    let used: Vec<u32> = rig.to_guest.used().into_iter().map(|u| u.1).collect();
    assert_eq!(used, [0, 0, 0]);
    assert_eq!(rig.counter(|c| &c.bad_requests), 3);
    assert_eq!(rig.answer().op, op::REQUEST);
    host.write_all(b"x").unwrap();
}

#[test]
fn an_index_that_jumps_asks_for_a_reset_and_ends_all_connections() {
    for queue in [0, 1] {
        let mut rig = Rig::new();
        let (_, mut host) = rig.host_connects(7);
        host.write_all(b"x").unwrap();
        let driver = if queue == 0 {
            &mut rig.to_guest
        } else {
            &mut rig.from_guest
        };
        driver.set_avail(30_000);
        rig.device.queue_notified(queue);
        rig.turns();
        assert_eq!(rig.interrupts.take().2, 1);
        assert!(read_some(&mut host, 1).1);
        rig.device.reset();
        rig.activate();
        rig.host_connects(7);
    }
}

/// Where the driver of the queue from the guest says which used buffer it wants to hear of, and where
/// the device says which available one.
const USED_EVENT: u64 = 0x4000 + 16 * 128 + 4 + 2 * 128;
const AVAIL_EVENT: u64 = (USED_EVENT + 2).next_multiple_of(4) + 4 + 8 * 128;

#[test]
fn with_event_indices_each_side_hears_only_of_what_it_waits_for() {
    let mut rig = Rig::new();
    rig.device.reset();
    rig.activate_with(rig.device.features());
    let stranger = Guest::new(1, 2).header(op::RST);
    rig.ram.write_obj(2u16, GuestAddress(USED_EVENT)).unwrap();
    let mut interrupts = Vec::new();
    for sent in 1..=4u16 {
        rig.send(stranger, &[]);
        interrupts.push(rig.interrupts.take().0);
        let awaited: u16 = rig.ram.read_obj(GuestAddress(AVAIL_EVENT)).unwrap();
        assert_eq!(awaited, sent, "the next packet is to be notified of");
    }
    assert_eq!(interrupts, [0, 0, 1, 0]);
}

#[test]
fn a_ring_that_cannot_be_read_asks_for_a_reset_and_not_for_ever() {
    use crate::memory::{BLOCK_BYTES, GuestRam, Mapping, PluggedBlocks, RamRegion};
    use std::sync::Arc;
    // The ring's index lies in the last bytes of a block that is there, its entries in one that goes.
    let mapping = Arc::new(Mapping::new(2 * BLOCK_BYTES as usize, false).unwrap());
    mapping.allow(0, 2 * BLOCK_BYTES).unwrap();
    let blocks = Arc::new(PluggedBlocks::new(2));
    blocks.set(0, 2, true);
    let region = RamRegion::elastic(0, mapping, blocks.clone());
    let ram = Arc::new(GuestRam::from_regions(vec![region]).unwrap());
    let mut rig = Rig::new();
    rig.device.reset();
    rig.ram = ram.clone();
    let base = BLOCK_BYTES - 16 * 128 - 4;
    let mut driver = Driver::new(ram.clone(), base, 128);
    driver.add(&[(0x1000, 44, 0)]);
    let other = Driver::new(ram.clone(), 0x8000, 128);
    rig.device.activate(Activation {
        acked_features: 0,
        ram,
        queues: vec![other.queue(), driver.queue(), other.queue()],
        interrupt: rig.interrupts.clone(),
    });
    assert_eq!(rig.interrupts.take().2, 0);
    driver.add(&[(0x1000, 44, 0)]);
    blocks.set(1, 1, false);
    rig.device.queue_notified(1);
    assert_eq!(rig.interrupts.take().2, 1);
    rig.turns();
}

#[test]
fn answers_without_end_are_bounded() {
    let mut rig = Rig::new();
    for port in 0..1000 {
        rig.send(Guest::new(9, port).header(op::RW), b"x");
    }
    let mut answers = 0;
    loop {
        let packets = rig.exchange();
        if packets.is_empty() {
            break;
        }
        answers += packets.len();
    }
    assert_eq!(answers, 256);
    assert_eq!(rig.counter(|c| &c.bad_requests), 744);
}

#[test]
fn programs_that_connect_and_say_nothing_give_way() {
    let mut rig = Rig::new();
    let mut silent: Vec<UnixStream> = (0..100).map(|_| rig.host_asks("")).collect();
    rig.turns();
    silent[0].set_nonblocking(true).unwrap();
    silent[99].set_nonblocking(true).unwrap();
    assert!(read_some(&mut silent[0], 1).1);
    assert!(!read_some(&mut silent[99], 1).1);
    rig.host_connects(7);
}

#[test]
fn the_configuration_space_is_the_context_id() {
    let rig = Rig::new();
    let mut bytes = [9; 12];
    rig.device.config().read(0, &mut bytes);
    assert_eq!(bytes, [CID as u8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    rig.device.config().read(u64::MAX - 3, &mut bytes[..4]);
}

#[derive(Debug, Clone)]
enum Act {
    GuestSends(usize),
    GuestTakes(usize),
    GuestGives(u64),
    HostSends(usize),
    HostTakes(usize),
    Turns,
}

fn act() -> impl Strategy<Value = Act> {
    let len = || prop_oneof![1usize..50, 1usize..60_000, Just(1 << 20)];
    prop_oneof![
        len().prop_map(Act::GuestSends),
        len().prop_map(Act::GuestTakes),
        (1u64..20).prop_map(Act::GuestGives),
        len().prop_map(Act::HostSends),
        len().prop_map(Act::HostTakes),
        Just(Act::Turns),
    ]
}

/// Bytes of a stream from `start` on: no two near places look alike.
fn stream(start: usize, len: usize) -> Vec<u8> {
    (start..start + len)
        .map(|i| (i ^ (i >> 8) ^ (i >> 16)) as u8)
        .collect()
}

/// Both streams of a connection, checked byte for byte.
struct Streams {
    rig: Rig,
    guest: Guest,
    host: UnixStream,
    held_by_guest: usize,
    from_host: usize,
    to_guest: usize,
    to_host: usize,
}

impl Streams {
    fn new(window: u32) -> Self {
        let mut rig = Rig::new();
        let (mut guest, host) = rig.host_connects(7);
        guest.window = window;
        rig.send(guest.header(op::CREDIT_UPDATE), &[]);
        Self {
            rig,
            guest,
            host,
            held_by_guest: 0,
            from_host: 0,
            to_guest: 0,
            to_host: 0,
        }
    }

    fn act(&mut self, act: &Act) {
        match *act {
            Act::GuestSends(len) => {
                let len = len.min(self.guest.credit() as usize).min(MAX_PAYLOAD_BYTES);
                let bytes = stream(self.guest.sent as usize, len);
                self.rig.send(self.guest.header(op::RW), &bytes);
                self.guest.sent += len as u32;
            }
            Act::GuestTakes(len) => {
                let len = len.min(self.held_by_guest);
                self.held_by_guest -= len;
                self.guest.taken += len as u32;
                self.rig.send(self.guest.header(op::CREDIT_UPDATE), &[]);
            }
            Act::GuestGives(count) => {
                let count = count.min(100 - self.rig.waiting_rooms);
                self.rig.give_rooms(count);
            }
            Act::HostSends(len) => {
                let bytes = stream(self.from_host, len);
                self.from_host += self.host.write(&bytes).unwrap_or(0);
            }
            Act::HostTakes(len) => {
                let (bytes, ended) = read_some(&mut self.host, len);
                assert!(!ended);
                assert!(bytes == stream(self.to_host, bytes.len()));
                self.to_host += bytes.len();
            }
            Act::Turns => self.rig.turns(),
        }
        self.guest_hears();
    }

    fn guest_hears(&mut self) {
        for (header, payload) in self.rig.packets() {
            assert!(matches!(
                header.op,
                op::RW | op::CREDIT_UPDATE | op::CREDIT_REQUEST
            ));
            self.guest.hear(&header);
            assert!(payload == stream(self.to_guest, payload.len()));
            self.to_guest += payload.len();
            self.held_by_guest += payload.len();
            assert!(self.held_by_guest <= self.guest.window as usize);
        }
    }

    /// Lets everything arrive.
    fn finish(&mut self) {
        for _ in 0..10_000 {
            if self.to_guest == self.from_host && self.to_host == self.guest.sent as usize {
                return;
            }
            for act in [
                Act::Turns,
                Act::GuestGives(20),
                Act::GuestTakes(1 << 20),
                Act::HostTakes(1 << 20),
            ] {
                self.act(&act);
            }
        }
        panic!("a stream has stopped");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn both_streams_arrive_whole_whatever_the_order(
        window in prop_oneof![300u32..1000, 1000u32..200_000],
        acts in prop::collection::vec(act(), 1..120),
    ) {
        let mut streams = Streams::new(window);
        for act in &acts {
            streams.act(act);
        }
        streams.finish();
        prop_assert_eq!(streams.rig.counter(|c| &c.bad_requests), 0);
    }

    #[test]
    fn any_mischief_is_survived(
        acts in prop::collection::vec(
            (any::<bool>(), mischief(&[0, PACKET, 4 << 20, u64::MAX])), 1..60),
    ) {
        let mut rig = Rig::new();
        write_header(&rig, PACKET, 3);
        let _host = rig.host_asks("CONNECT 7\nhello");
        for (to_guest, act) in &acts {
            let driver = if *to_guest { &mut rig.to_guest } else { &mut rig.from_guest };
            driver.misbehave(act);
            if !matches!(act, Mischief::Descriptor(..)) {
                rig.device.queue_notified(u16::from(!*to_guest));
                rig.device.host_event();
            }
        }
    }

    #[test]
    fn any_packets_are_survived(
        packets in prop::collection::vec(
            (0u16..9, prop_oneof![Just(1u32), any::<u32>()], 0u32..4, any::<u32>(), any::<u32>(), 0usize..2000), 1..60),
    ) {
        let mut rig = Rig::new();
        let _listener = rig.listen(1);
        for (operation, host_port, flags, buf_alloc, fwd_cnt, len) in packets {
            let header = Guest::new(host_port, 5).header(operation);
            rig.send(Header { flags, buf_alloc, fwd_cnt, ..header }, &vec![7; len]);
            rig.exchange();
            prop_assert!(rig.device.muxer.backlog_bytes() <= LARGEST as usize);
        }
    }
}
