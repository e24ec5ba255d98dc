//! A driver that keeps to the specification, and hosts that do or do not.

use std::io::{Read, Write};
use std::time::{Duration, Instant};

use concertina_api::net::{NetLink, NetRates, NetSpec};
use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

use super::super::request::{HEADER_BYTES, MAX_FRAME_BYTES};
use super::super::*;
use super::rig::*;
use crate::virtio::rng::driver::small_ram;

#[test]
fn a_frame_of_many_parts_reaches_the_host_as_one() {
    for mut rig in [tap_rig(), stream_rig()] {
        let sent = packet(3000);
        // The header itself is cut, and a part is empty.
        rig.transmit(&sent, &[5, 3, 0, 4, 1, 1000]);
        let got = rig.host_got().unwrap();
        assert!(got.ends_with(&sent[HEADER_BYTES..]));
        assert_eq!(rig.tx.used(), [(0, 0)]);
        let status = rig.status();
        assert_eq!((status.tx.frames, status.tx.bytes), (1, 3000));
        assert_eq!((status.tx.drops, status.bad_requests), (0, 0));
        assert_eq!(rig.interrupts.take(), (1, 0, 0));
    }
}

#[test]
fn a_frame_is_spread_over_buffers_that_become_visible_together() {
    for mut rig in [tap_rig(), stream_rig()] {
        rig.offer_room(20, 1000);
        for len in [60, 988, 989, 5000, 14] {
            rig.host_sends(&frame(len));
            let got = rig.guest_got();
            assert_eq!(got.len(), 1, "frame of {len}");
            let buffers = (HEADER_BYTES + len).div_ceil(1000) as u16;
            assert_eq!(got[0][10..12], buffers.to_le_bytes());
            assert_eq!(got[0][HEADER_BYTES..], frame(len));
        }
        assert_eq!(rig.status().rx.frames, 5);
        assert_eq!(rig.status().rx.bytes, 60 + 988 + 989 + 5000 + 14);
    }
}

#[test]
fn a_frame_waits_until_the_driver_has_given_room_for_all_of_it_and_costs_no_turns() {
    for mut rig in [tap_rig(), stream_rig()] {
        rig.host_sends(&frame(9000));
        rig.offer_room(4, 1500);
        assert!(rig.guest_got().is_empty());
        assert!(!is_readable(rig.device.wakeup().unwrap()));
        rig.offer_room(3, 1500);
        assert_eq!(rig.guest_got().len(), 1);
        // Without any room nothing is read, and nothing is polled.
        rig.offer_room(0, 0);
        for _ in 0..3 {
            rig.host_sends(&frame(1000));
        }
        rig.offer_room(8, 1500);
        assert_eq!(rig.guest_got().len(), 3);
        assert_eq!(rig.status().rx.drops, 0);
    }
}

#[test]
fn without_merging_a_frame_that_does_not_fit_is_dropped_and_the_next_one_comes() {
    for rates in ["max", "1G"] {
        let rate = rates.parse().unwrap();
        let rates = NetRates { rx: rate, tx: rate };
        let acked = !features::MRG_RXBUF;
        let mut rig = tap_rig_with(small_ram(RAM_MIB), rates, acked);
        rig.offer_room(4, 1526);
        rig.host_sends(&frame(4000));
        rig.host_sends(&frame(1514));
        let got = rig.guest_got();
        assert_eq!(got.len(), 1);
        assert_eq!(got[0][10..12], [1, 0]);
        assert_eq!(got[0][HEADER_BYTES..], frame(1514));
        assert_eq!(rig.status().rx.drops, 1);
    }
}

#[test]
fn the_longest_frames_pass_both_ways() {
    let mut rig = stream_rig();
    rig.offer_room(48, 1536);
    rig.host_sends(&frame(MAX_FRAME_BYTES));
    assert_eq!(rig.guest_got()[0][HEADER_BYTES..], frame(MAX_FRAME_BYTES));
    rig.transmit(&packet(MAX_FRAME_BYTES), &[12, 4096, 4096]);
    assert_eq!(rig.host_got().unwrap(), frame(MAX_FRAME_BYTES));
}

#[test]
fn a_stream_may_stop_anywhere_in_both_directions() {
    let mut rig = stream_rig();
    rig.offer_room(20, 1536);
    let mut bytes = Vec::new();
    for len in [60usize, 3000, 0, 13, 1514] {
        bytes.extend((len as u32).to_be_bytes());
        bytes.extend(frame(len));
    }
    for byte in bytes {
        let Host::Stream(host) = &mut rig.host else {
            panic!()
        };
        host.write_all(&[byte]).unwrap();
        rig.settle();
    }
    // Of nothing and of less than an Ethernet header no frame is made.
    let lengths: Vec<usize> = rig.guest_got().iter().map(Vec::len).collect();
    assert_eq!(lengths, [60, 3000, 1514].map(|len| len + HEADER_BYTES));

    let Host::Stream(host) = &rig.host else {
        panic!()
    };
    shrink_buffers(host);
    shrink_buffers(&rig.device.backend.as_ref().map(|b| b.fd()).unwrap());
    for _ in 0..10 {
        rig.transmit(&packet(9000), &[12, 100, 4000]);
    }
    // The host is full: the rest waits in the queue, lost is nothing.
    assert!(rig.tx.used().len() < 10);
    let mut got: Vec<u8> = Vec::new();
    for _ in 0..10_000 {
        let mut part = [0; 777];
        if let Host::Stream(host) = &mut rig.host
            && let Ok(len) = host.read(&mut part)
        {
            got.extend(&part[..len]);
        }
        rig.settle();
    }
    let one = [&9000u32.to_be_bytes(), &frame(9000)[..]].concat();
    assert_eq!(got.len(), 10 * one.len());
    assert!(got.chunks(one.len()).all(|chunk| chunk == one));
    assert_eq!(rig.status().tx.frames, 10);
    assert_eq!(rig.status().tx.drops, 0);
}

#[test]
fn a_host_that_ends_or_talks_nonsense_takes_the_link_down_and_frames_are_dropped() {
    for nonsense in [None, Some(u32::MAX)] {
        let mut rig = stream_rig();
        rig.offer_room(4, 1536);
        rig.interrupts.take();
        let mut link = [0; 2];
        rig.device.config().read(6, &mut link);
        assert_eq!(link, [1, 0]);
        match (&mut rig.host, nonsense) {
            (Host::Stream(host), Some(length)) => host.write_all(&length.to_be_bytes()).unwrap(),
            (host, _) => *host = Host::Nobody,
        }
        rig.settle();
        rig.device.config().read(6, &mut link);
        assert_eq!(link, [0, 0]);
        assert!(!rig.status().link_up);
        assert_eq!(rig.interrupts.take(), (0, 1, 0));
        rig.transmit(&packet(60), &[]);
        assert_eq!(rig.tx.used().len(), 1);
        assert_eq!(rig.status().tx.drops, 1);
        rig.reset();
        rig.transmit(&packet(60), &[]);
        assert_eq!(rig.status().tx.drops, 2);
    }
}

#[test]
fn a_tap_that_is_full_drops_as_a_cable_would() {
    let mut rig = tap_rig();
    shrink_buffers(&rig.device.backend.as_ref().map(|b| b.fd()).unwrap());
    for _ in 0..50 {
        rig.transmit(&packet(1500), &[]);
    }
    let status = rig.status();
    assert!(status.tx.drops > 0 && status.tx.frames > 0);
    assert_eq!(status.tx.drops + status.tx.frames, 50);
    assert_eq!(rig.tx.used().len(), 50);
}

#[test]
fn limits_hold_in_each_direction_and_change_while_frames_wait() {
    let rate = "1M,burst=2K".parse().unwrap();
    let rates = NetRates { rx: rate, tx: rate };
    let mut rig = tap_rig_with(small_ram(RAM_MIB), rates, u64::MAX);
    rig.offer_room(40, 1536);
    for _ in 0..8 {
        rig.host_sends(&frame(1000));
        rig.transmit(&packet(1000), &[]);
    }
    // What waits is woken by a timer, and polls nothing until then.
    assert!(!is_readable(rig.device.wakeup().unwrap()));
    let (received, sent) = (rig.guest_got().len(), rig.status().tx.frames);
    assert!(received < 6 && sent < 6, "{received} {sent}");
    assert!(rig.status().rx.throttled > 0 && rig.status().tx.throttled > 0);
    let began = Instant::now();
    let mut received = received;
    while received < 8 || rig.status().tx.frames < 8 {
        assert!(began.elapsed() < Duration::from_secs(5));
        rig.settle();
        received += rig.guest_got().len();
    }

    for _ in 0..4 {
        rig.host_sends(&frame(1000));
        rig.transmit(&packet(1000), &[]);
    }
    change_rates(&[rig.device.controller()], &"max".parse().unwrap());
    rig.settle();
    assert_eq!((rig.status().rx.frames, rig.status().tx.frames), (12, 12));
    assert!(rig.status().rates.rx.is_unlimited());
    assert_eq!(rig.status().rx.drops + rig.status().tx.drops, 0);
}

#[test]
fn only_interfaces_that_are_there_can_be_limited() {
    let check = |text: &str, interfaces| check_change(&text.parse().unwrap(), interfaces);
    assert_eq!(check("1.rx=5M", 2), Ok(()));
    assert_eq!(check("5M", 1), Ok(()));
    assert!(check("2.rx=5M", 2).unwrap_err().contains("interface 2"));
    assert!(check("5M", 0).unwrap_err().contains("no network"));
}

#[test]
fn a_driver_that_wants_no_interrupt_gets_none() {
    let mut rig = tap_rig();
    let flags = GuestAddress(TX_RING + 16 * u64::from(QUEUE));
    rig.ram.write_obj(1u16, flags).unwrap();
    rig.transmit(&packet(60), &[]);
    assert_eq!(rig.tx.used().len(), 1);
    assert_eq!(rig.interrupts.take(), (0, 0, 0));

    // By the other way: an interrupt when the third buffer was used, not before.
    rig.acked |= features::EVENT_IDX;
    rig.reset();
    let event = flags.0 + 4 + 2 * u64::from(QUEUE);
    rig.ram.write_obj(2u16, GuestAddress(event)).unwrap();
    let mut interrupts = Vec::new();
    for _ in 0..4 {
        rig.transmit(&packet(60), &[]);
        interrupts.push(rig.interrupts.take().0);
    }
    assert_eq!(interrupts, [0, 0, 1, 0]);
}

#[test]
fn frames_that_came_while_there_was_no_driver_wait_for_it() {
    let mut rig = tap_rig();
    rig.device.reset();
    rig.host_sends(&frame(100));
    assert!(!rig.status().driver_ready);
    rig.reset();
    rig.offer_room(2, 1536);
    assert_eq!(rig.guest_got().len(), 1);
}

#[test]
fn the_configuration_space_ends_where_it_ends() {
    let rig = tap_rig();
    let config = rig.device.config();
    let mut all = [0xff; 64];
    config.read(0, &mut all);
    assert_eq!(all[..6], rig.status().mac.octets());
    assert!(all[12..].iter().all(|byte| *byte == 0));
    for offset in [5, 11, 12, 4095, u64::MAX] {
        config.read(offset, &mut all);
        config.write(offset, &[0; 8]);
    }
}

#[test]
fn a_descriptor_that_is_no_interface_is_refused() {
    let spec = |fd, link| NetSpec {
        link,
        fd,
        mac: None,
        mtu: None,
        rates: NetRates::default(),
    };
    for specs in [
        vec![spec(0, NetLink::Tap)],
        vec![spec(-1, NetLink::Stream)],
        vec![spec(1_000_000, NetLink::Stream)],
    ] {
        let error = open("web", &specs).err().map(|e| e.to_string()).unwrap();
        assert!(error.contains(&specs[0].fd.to_string()), "{error}");
    }
    let many = vec![spec(0, NetLink::Tap); 9];
    assert!(open("web", &many).is_err());
}

/// How a packet is cut into descriptors.
fn cuts() -> impl Strategy<Value = Vec<usize>> {
    prop::collection::vec(prop_oneof![0usize..20, 0usize..3000], 0..8)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 300, ..Default::default() })]

    /// Whatever the lengths and cuts: each frame arrives, in order, unchanged.
    #[test]
    fn every_frame_arrives_as_it_was(
        stream in any::<bool>(),
        sends in prop::collection::vec((14usize..9000, cuts()), 1..12),
        receives in prop::collection::vec(14usize..9000, 1..12),
        room in 600u32..6000,
    ) {
        let mut rig = if stream { stream_rig() } else { tap_rig() };
        for (len, cuts) in &sends {
            let packet = packet(*len);
            rig.transmit(&packet, cuts);
            let got = rig.host_got().unwrap();
            prop_assert!(got.ends_with(&packet[HEADER_BYTES..]));
            prop_assert_eq!(got.len(), if stream { *len } else { packet.len() });
        }
        for len in &receives {
            // Room is given before or after the frame, and not always enough at once.
            rig.host_sends(&frame(*len));
            let mut got = rig.guest_got();
            while got.is_empty() {
                rig.offer_room(3, room);
                got = rig.guest_got();
            }
            prop_assert_eq!(got.len(), 1);
            prop_assert_eq!(&got[0][HEADER_BYTES..], &frame(*len)[..]);
        }
        prop_assert_eq!(rig.status().bad_requests, 0);
    }
}
