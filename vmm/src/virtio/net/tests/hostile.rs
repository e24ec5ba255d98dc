//! Drivers that do not keep to the specification: counted, refused, survived.

use std::sync::Arc;

use concertina_api::net::NetRates;
use proptest::prelude::*;

use super::super::request::{HEADER_BYTES, MAX_FRAME_BYTES, Malformed, checked_header};
use super::super::*;
use super::rig::*;
use crate::memory::{BLOCK_BYTES, Mapping, PluggedBlocks, RamRegion};
use crate::virtio::rng::driver::{Driver, Mischief, NEXT, WRITE, mischief};

const RAM_END: u64 = (RAM_MIB as u64) << 20;

#[test]
fn bad_requests_are_counted_and_returned_and_good_ones_still_pass() {
    let mut rig = tap_rig();
    let at = TX_BUFFERS;
    let chains: &[&[(u64, u32, u16)]] = &[
        // Shorter than a header, than an Ethernet header, longer than any frame.
        &[(at, 0, 0)],
        &[(at, 11, 0)],
        &[(at, 5, 0), (at, 6, 0)],
        &[(at, 12, 0)],
        &[(at, 25, 0)],
        &[(at, (HEADER_BYTES + MAX_FRAME_BYTES + 1) as u32, 0)],
        &[(at, 60_000, 0), (at, 60_000, 0)],
        &[(at, u32::MAX, 0)],
        // For the device to write.
        &[(at, 100, WRITE)],
        &[(at, 100, 0), (at, 100, WRITE)],
        // Outside.
        &[(1 << 40, 100, 0)],
        &[(RAM_END - 8, 100, 0)],
        &[(u64::MAX - 8, 100, 0)],
        &[(at, 100, 0), (RAM_END, 100, 0)],
    ];
    for chain in chains {
        rig.tx.add(chain);
    }
    rig.device.queue_notified(TX_QUEUE);
    rig.settle();
    assert_eq!(rig.tx.used().len(), chains.len());
    assert_eq!(rig.status().bad_requests, chains.len() as u64);
    assert_eq!(rig.status().tx.frames, 0);
    assert!(rig.host_got().is_none());
    rig.transmit(&packet(60), &[]);
    assert_eq!(rig.host_got().unwrap().len(), HEADER_BYTES + 60);
    assert_eq!(rig.interrupts.take().2, 0);
}

#[test]
fn bad_buffers_for_receiving_go_back_empty_with_those_before_them() {
    let mut rig = tap_rig();
    for chain in [
        (RX_BUFFERS, 100, WRITE),
        (RX_BUFFERS, 100, 0),
        (RX_BUFFERS, 11, WRITE),
        (1 << 40, 1500, WRITE),
        (RX_BUFFERS, 1500, WRITE),
    ] {
        rig.rx.add(&[chain]);
    }
    rig.device.queue_notified(RX_QUEUE);
    // A first frame that needs more than the first buffer brings the bad ones to light.
    rig.host_sends(&frame(900));
    let used = rig.rx.used();
    assert_eq!(used, [(0, 0), (1, 0), (2, 0), (3, 0), (4, 912)]);
    assert_eq!(rig.status().bad_requests, 3);
    assert_eq!(rig.interrupts.take().2, 0);
}

#[test]
fn a_loop_of_descriptors_ends() {
    let mut rig = tap_rig();
    rig.tx.descriptor(0, TX_BUFFERS, 1, NEXT, 1);
    rig.tx.descriptor(1, TX_BUFFERS, 1, NEXT, 0);
    rig.tx.offer(0);
    rig.device.queue_notified(TX_QUEUE);
    rig.rx.descriptor(0, RX_BUFFERS, 1, WRITE | NEXT, 1);
    rig.rx.descriptor(1, RX_BUFFERS, 1, WRITE | NEXT, 0);
    rig.rx.offer(0);
    rig.device.queue_notified(RX_QUEUE);
    rig.host_sends(&frame(60));
    rig.settle();
    assert_eq!(rig.tx.used().len(), 1);
    assert_eq!(rig.interrupts.take().2, 0);
}

#[test]
fn broken_rings_ask_for_a_reset_and_after_it_the_device_works() {
    for queue in [RX_QUEUE, TX_QUEUE] {
        for way in 0..2 {
            let mut rig = tap_rig();
            let driver = if queue == RX_QUEUE {
                &mut rig.rx
            } else {
                &mut rig.tx
            };
            match way {
                0 => driver.set_avail(1000),
                _ => driver.offer(9999),
            }
            rig.host_sends(&frame(60));
            rig.device.queue_notified(queue);
            rig.settle();
            assert_eq!(rig.interrupts.take().2, 1);
            assert!(rig.status().bad_requests > 0 && !rig.status().driver_ready);
            rig.transmit(&packet(60), &[]);
            assert!(rig.host_got().is_none());

            rig.reset();
            rig.transmit(&packet(60), &[]);
            assert!(rig.host_got().is_some());
            rig.offer_room(2, 1536);
            assert_eq!(rig.guest_got().len(), 1);
        }
    }
}

#[test]
fn a_ring_in_memory_that_is_unplugged_asks_for_a_reset_and_does_not_spin() {
    let base = 1 << 32;
    for index in [RX_QUEUE, TX_QUEUE] {
        let low = Arc::new(Mapping::new(RAM_MIB << 20, true).unwrap());
        let high = Arc::new(Mapping::new(4 * BLOCK_BYTES as usize, false).unwrap());
        let blocks = Arc::new(PluggedBlocks::new(4));
        let regions = vec![
            RamRegion::fixed(0, low),
            RamRegion::elastic(base, high.clone(), blocks.clone()),
        ];
        let ram = Arc::new(GuestRam::from_regions(regions).unwrap());
        let mut rig = tap_rig_with(ram.clone(), NetRates::default(), u64::MAX);
        high.allow(0, 2 * BLOCK_BYTES).unwrap();
        blocks.set(0, 2, true);
        // Descriptors, the available index and six entries lie in the first block, the other entries
        // in the second one, and the used ring in memory that is always there.
        let ring = base + BLOCK_BYTES - 16 - 16 * u64::from(QUEUE);
        let driver = Driver::new(ram, ring, QUEUE);
        let mut queue = driver.queue();
        queue.set_used_ring_address(Some(0x8000), Some(0));
        let queues = if index == RX_QUEUE {
            rig.rx = driver;
            vec![queue, rig.tx.queue()]
        } else {
            rig.tx = driver;
            vec![rig.rx.queue(), queue]
        };
        rig.device.reset();
        rig.device.activate(Activation {
            acked_features: rig.acked,
            ram: rig.ram.clone(),
            queues,
            interrupt: rig.interrupts.clone(),
        });
        for _ in 0..6 {
            if index == RX_QUEUE {
                rig.offer_room(1, 1536);
                rig.host_sends(&frame(60));
            } else {
                rig.transmit(&packet(60), &[]);
                assert!(rig.host_got().is_some());
            }
        }
        let passed = rig.status();
        assert_eq!(passed.rx.frames + passed.tx.frames, 6);
        assert!(passed.driver_ready && rig.interrupts.take().2 == 0);
        if index == RX_QUEUE {
            rig.rx.add(&[(RX_BUFFERS, 1536, WRITE)]);
        } else {
            rig.tx.add(&[(TX_BUFFERS, 72, 0)]);
        }
        blocks.set(1, 1, false);
        high.discard(BLOCK_BYTES, BLOCK_BYTES).unwrap();
        high.forbid(BLOCK_BYTES, BLOCK_BYTES).unwrap();
        rig.device.queue_notified(index);
        rig.settle();
        assert_eq!(rig.interrupts.take().2, 1, "queue {index}");
        assert!(!rig.status().driver_ready);
        rig.reset();
        rig.transmit(&packet(60), &[]);
        assert!(rig.host_got().is_some());
    }
}

#[test]
fn blocks_of_elastic_memory_that_are_not_plugged_are_never_touched() {
    let base = 1 << 32;
    let low = Arc::new(Mapping::new(RAM_MIB << 20, true).unwrap());
    let high = Arc::new(Mapping::new(4 * BLOCK_BYTES as usize, false).unwrap());
    let blocks = Arc::new(PluggedBlocks::new(4));
    let ram = GuestRam::from_regions(vec![
        RamRegion::fixed(0, low),
        RamRegion::elastic(base, high.clone(), blocks.clone()),
    ]);
    let mut rig = tap_rig_with(Arc::new(ram.unwrap()), NetRates::default(), u64::MAX);
    high.allow(0, BLOCK_BYTES).unwrap();
    blocks.set(0, 1, true);

    let edge = base + BLOCK_BYTES;
    rig.tx.add(&[(edge - 500, 400, 0)]);
    rig.tx.add(&[(edge - 50, 100, 0)]);
    rig.tx.add(&[(edge, 100, 0)]);
    rig.device.queue_notified(TX_QUEUE);
    assert_eq!(rig.host_got().unwrap().len(), 400);
    assert_eq!(rig.status().bad_requests, 2);

    // A buffer is given, looked at, and its block unplugged before a frame comes.
    rig.rx.add(&[(edge - 2000, 1536, WRITE)]);
    rig.device.queue_notified(RX_QUEUE);
    rig.settle();
    blocks.set(0, 1, false);
    high.discard(0, BLOCK_BYTES).unwrap();
    high.forbid(0, BLOCK_BYTES).unwrap();
    rig.host_sends(&frame(100));
    assert_eq!(rig.rx.used(), [(0, 0)]);
    rig.offer_room(1, 1536);
    assert_eq!(rig.guest_got().len(), 1);
}

/// A header of these fields.
fn header(flags: u8, gso: u8, rest: [u16; 4]) -> [u8; HEADER_BYTES] {
    let mut bytes = [flags, gso, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff];
    for (place, value) in bytes[2..10].chunks_exact_mut(2).zip(rest) {
        place.copy_from_slice(&value.to_le_bytes());
    }
    bytes
}

#[test]
fn only_offloads_that_were_negotiated_and_make_sense_reach_the_host() {
    let all = features::CSUM | features::HOST_TSO4 | features::HOST_TSO6 | features::HOST_ECN;
    let tso = header(1, 1, [54, 1448, 34, 16]);
    let check = |header, acked| checked_header(header, 3000, acked);
    // What means nothing to the host is taken away.
    assert_eq!(
        check(header(0xfe, 0, [9, 9, 9, 9]), 0),
        Ok([0; HEADER_BYTES])
    );
    let csum = check(header(0xff, 0, [9, 9, 34, 16]), all).unwrap();
    assert_eq!(csum, [1, 0, 0, 0, 0, 0, 34, 0, 16, 0, 0, 0]);
    let good = check(tso, all).unwrap();
    assert_eq!(good[..10], tso[..10]);
    assert_eq!(good[10..], [0, 0]);
    assert!(check(header(1, 4 | 0x80, [54, 1448, 34, 16]), all).is_ok());

    for (what, header, acked) in [
        ("checksum not negotiated", header(1, 0, [0, 0, 34, 16]), 0),
        ("segmentation not negotiated", tso, features::CSUM),
        (
            "IPv6 not negotiated",
            header(1, 4, [54, 1448, 34, 16]),
            all & !features::HOST_TSO6,
        ),
        (
            "ECN not negotiated",
            header(1, 0x81, [54, 1448, 34, 16]),
            all & !features::HOST_ECN,
        ),
        ("without checksum", header(0, 1, [54, 1448, 34, 16]), all),
        ("segments of nothing", header(1, 1, [54, 0, 34, 16]), all),
        (
            "header beyond the end",
            header(1, 1, [3001, 1448, 34, 16]),
            all,
        ),
        (
            "checksum beyond the end",
            header(1, 0, [0, 0, 2984, 15]),
            all,
        ),
        (
            "sums that overflow",
            header(1, 0, [0, 0, u16::MAX, u16::MAX]),
            all,
        ),
        (
            "UDP fragmentation",
            header(1, 3, [54, 1448, 34, 16]),
            u64::MAX,
        ),
        (
            "UDP segmentation",
            header(1, 5, [54, 1448, 34, 16]),
            u64::MAX,
        ),
        ("unknown", header(1, 0x7f, [54, 1448, 34, 16]), u64::MAX),
    ] {
        assert_eq!(check(header, acked), Err(Malformed::Offload), "{what}");
    }
}

/// Something that happens around the device.
#[derive(Debug, Clone)]
enum Act {
    Rx(Mischief),
    Tx(Mischief),
    Notify(u16),
    /// The host sends a frame of so many bytes.
    Host(usize),
    HostReads,
    Limit(u64),
    Reset,
}

const PLACES: &[u64] = &[0, TX_RING, RX_BUFFERS, TX_BUFFERS, RAM_END, u64::MAX];

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        8 => mischief(PLACES).prop_map(Act::Rx),
        8 => mischief(PLACES).prop_map(Act::Tx),
        6 => (0u16..2).prop_map(Act::Notify),
        4 => prop_oneof![14usize..200, 14usize..70_000].prop_map(Act::Host),
        2 => Just(Act::HostReads),
        1 => prop_oneof![Just(0), 1u64..1 << 20].prop_map(Act::Limit),
        1 => Just(Act::Reset),
    ]
}

fn do_it(rig: &mut Rig, act: &Act) {
    match act {
        Act::Rx(mischief) => rig.rx.misbehave(mischief),
        Act::Tx(mischief) => rig.tx.misbehave(mischief),
        Act::Notify(queue) => rig.device.queue_notified(*queue),
        Act::Host(len) => match &mut rig.host {
            Host::Packets(socket) => drop(socket.send(&packet(*len))),
            Host::Stream(_) if *len <= 20_000 => rig.host_sends(&frame(*len)),
            _ => {}
        },
        Act::HostReads => drop(rig.host_got()),
        Act::Limit(bytes) => {
            let rate = match bytes {
                0 => "max".to_owned(),
                bytes => bytes.to_string(),
            };
            change_rates(&[rig.device.controller()], &rate.parse().unwrap());
        }
        Act::Reset => rig.reset(),
    }
    rig.settle();
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 1500, ..Default::default() })]

    /// Nothing that a driver does ends the VMM or keeps its event loop busy, and after a reset a good
    /// driver finds a device that works.
    #[test]
    fn any_mischief_is_survived(
        stream in any::<bool>(),
        acts in prop::collection::vec(act(), 1..60),
    ) {
        let mut rig = if stream { stream_rig() } else { tap_rig() };
        for act in &acts {
            do_it(&mut rig, act);
        }
        change_rates(&[rig.device.controller()], &"max".parse().unwrap());
        rig.settle();
        while rig.host_got().is_some() {}
        rig.reset();
        rig.settle();
        while rig.host_got().is_some() {}
        rig.transmit(&packet(60), &[20]);
        prop_assert!(rig.host_got().unwrap().ends_with(&frame(60)));
    }
}
