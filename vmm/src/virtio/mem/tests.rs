use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

use super::request::{self, Answer, NamedRange, Request};
use super::state::{Step, Verdict, next_plugged_run};
use super::*;
use crate::memory::{
    BLOCK_BYTES, ElasticMemory, Mapping, MemorySlots, PluggedBlocks, RamRegion, SLOT_BYTES,
};
use crate::virtio::rng::driver::{Driver, Interrupts, Mischief, NEXT, WRITE, mischief};

const START: u64 = 4 << 30;
const BLOCK: u64 = BLOCK_BYTES;
const REQUEST: u64 = 0x4000;
const ANSWER: u64 = 0x5000;

/// Which slots KVM would have; refuses when told to.
#[derive(Clone, Default)]
struct Slots(Arc<Mutex<(BTreeSet<u32>, bool)>>);

impl MemorySlots for Slots {
    fn add(&mut self, slot: u32, _guest: u64, _host: u64, _len: u64) -> io::Result<()> {
        let mut inner = self.0.lock().unwrap();
        if inner.1 {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        assert!(inner.0.insert(slot), "slot {slot} added twice");
        Ok(())
    }

    fn remove(&mut self, slot: u32) -> io::Result<()> {
        assert!(
            self.0.lock().unwrap().0.remove(&slot),
            "slot {slot} removed twice"
        );
        Ok(())
    }
}

struct Rig {
    ram: Arc<GuestRam>,
    blocks: Arc<PluggedBlocks>,
    slots: Slots,
    interrupts: Arc<Interrupts>,
    driver: Driver,
    device: Mem,
    control: MemController,
}

impl Rig {
    fn activate(&mut self, acked_features: u64) {
        self.driver = Driver::new(self.ram.clone(), 0, 64);
        // The same place as before: its index is still there.
        self.driver.set_avail(0);
        self.device.activate(Activation {
            acked_features,
            ram: self.ram.clone(),
            queues: vec![self.driver.queue()],
            interrupt: self.interrupts.clone(),
        });
    }

    fn write_request(&self, at: u64, kind: u16, address: u64, blocks: u16) {
        let write = |offset: u64, bytes: &[u8]| {
            self.ram
                .write_slice(bytes, GuestAddress(at + offset))
                .unwrap();
        };
        write(0, &kind.to_le_bytes());
        write(8, &address.to_le_bytes());
        write(16, &blocks.to_le_bytes());
    }

    /// Sends a request; gives (type, state) of the answer.
    fn send(&mut self, kind: u16, address: u64, blocks: u16) -> (u16, u16) {
        self.write_request(REQUEST, kind, address, blocks);
        self.ram
            .write_slice(&[0xff; 10], GuestAddress(ANSWER))
            .unwrap();
        self.driver.add(&[(REQUEST, 24, 0), (ANSWER, 10, WRITE)]);
        self.device.queue_notified(0);
        while self.device.wakeup.read().is_ok() {
            self.device.serve();
        }
        let used = self.driver.used();
        assert_eq!(used.len(), 1);
        assert_eq!(used[0].1, 10);
        let answer: u16 = self.ram.read_obj(GuestAddress(ANSWER)).unwrap();
        (answer, self.ram.read_obj(GuestAddress(ANSWER + 8)).unwrap())
    }

    fn plug(&mut self, first: u64, blocks: u16) -> u16 {
        self.send(0, START + first * BLOCK, blocks).0
    }
    fn unplug(&mut self, first: u64, blocks: u16) -> u16 {
        self.send(1, START + first * BLOCK, blocks).0
    }
}

const ACK: u16 = 0;
const NACK: u16 = 1;
const BUSY: u16 = 2;
const ERROR: u16 = 3;

fn idle_rig(region: u64) -> Rig {
    let boot = Arc::new(Mapping::new(2 << 20, true).unwrap());
    let mapping = Arc::new(Mapping::new(region as usize, false).unwrap());
    let blocks = Arc::new(PluggedBlocks::new(region / BLOCK));
    let slots = Slots::default();
    let elastic = ElasticMemory::new(
        START,
        mapping.clone(),
        blocks.clone(),
        Box::new(slots.clone()),
        8,
    );
    let regions = vec![
        RamRegion::fixed(0, boot),
        RamRegion::elastic(START, mapping, blocks.clone()),
    ];
    let ram = Arc::new(GuestRam::from_regions(regions).unwrap());
    let device = Mem::new(elastic).unwrap();
    let control = device.controller();
    let driver = Driver::new(ram.clone(), 0, 64);
    Rig {
        ram,
        blocks,
        slots,
        interrupts: Arc::default(),
        driver,
        device,
        control,
    }
}

fn rig(region: u64) -> Rig {
    let mut rig = idle_rig(region);
    rig.activate(F_UNPLUGGED_INACCESSIBLE | F_ACPI_PXM);
    rig
}

fn config_u64(device: &Mem, offset: u64) -> u64 {
    let mut bytes = [0; 8];
    device.config().read(offset, &mut bytes);
    u64::from_le_bytes(bytes)
}

#[test]
fn grows_and_shrinks_as_the_driver_acts_and_the_slots_follow() {
    let mut rig = rig(1 << 30);
    rig.control.set_requested(SLOT_BYTES + BLOCK).unwrap();
    assert_eq!(rig.interrupts.take(), (0, 1, 0));
    assert_eq!(rig.plug(0, 64), ACK);
    assert_eq!(rig.plug(64, 1), ACK);
    assert_eq!(rig.control.status().plugged, SLOT_BYTES + BLOCK);
    assert_eq!(rig.slots.0.lock().unwrap().0, BTreeSet::from([8, 9]));
    rig.ram
        .write_obj(7u64, GuestAddress(START + 64 * BLOCK))
        .unwrap();

    rig.control.set_requested(0).unwrap();
    assert_eq!(
        rig.control.status().plugged,
        SLOT_BYTES + BLOCK,
        "only the guest gives back"
    );
    assert_eq!(rig.unplug(64, 1), ACK);
    assert!(
        rig.ram
            .read_obj::<u64>(GuestAddress(START + 64 * BLOCK))
            .is_err()
    );
    assert_eq!(rig.slots.0.lock().unwrap().0, BTreeSet::from([8]));
    assert_eq!(rig.unplug(0, 64), ACK);
    assert_eq!(rig.control.status().plugged, 0);
    assert_eq!(rig.control.status().bad_requests, 0);
}

#[test]
fn a_block_plugged_again_is_empty() {
    let mut rig = rig(1 << 30);
    rig.control.set_requested(BLOCK).unwrap();
    rig.plug(3, 1);
    rig.ram
        .write_obj(7u64, GuestAddress(START + 3 * BLOCK))
        .unwrap();
    rig.unplug(3, 1);
    rig.plug(3, 1);
    assert_eq!(
        rig.ram
            .read_obj::<u64>(GuestAddress(START + 3 * BLOCK))
            .unwrap(),
        0
    );
}

#[test]
fn a_plug_that_races_with_a_smaller_wish_is_put_off_not_an_error() {
    let mut rig = rig(1 << 30);
    rig.control.set_requested(4 * BLOCK).unwrap();
    assert_eq!(rig.plug(0, 2), ACK);
    rig.control.set_requested(3 * BLOCK).unwrap();
    assert_eq!(rig.plug(2, 2), NACK);
    assert_eq!(rig.plug(2, 1), ACK);
    assert_eq!(rig.control.status().nacked_requests, 1);
    assert_eq!(rig.control.status().bad_requests, 0);
}

#[test]
fn invalid_requests_are_errors_and_are_counted() {
    let mut rig = rig(1 << 30);
    rig.control.set_requested(64 << 20).unwrap();
    let usable = rig.control.status().usable;
    assert!(usable < 1 << 30);
    assert_eq!(rig.plug(0, 2), ACK);
    let bad = [
        (0, START + 1, 1),
        (0, START + 4096, 1),
        (0, START + 8 * BLOCK, 0),
        (0, START - BLOCK, 1),
        (0, START + BLOCK, 1),
        (0, START + usable, 1),
        (0, START + usable - BLOCK, 2),
        (0, !(BLOCK - 1), 1),
        (0, !(BLOCK - 1), u16::MAX),
        (0, 0, 1),
        (1, START + BLOCK, 2),
        (1, START + 2 * BLOCK, 1),
        (1, START, 0),
        (3, START + usable, 1),
        (3, START, 0),
        (4, START, 1),
        (u16::MAX, START, 1),
    ];
    for (kind, address, blocks) in bad {
        assert_eq!(
            rig.send(kind, address, blocks).0,
            ERROR,
            "{kind} {address:#x} {blocks}"
        );
    }
    assert_eq!(rig.control.status().bad_requests, bad.len() as u64);
    assert_eq!(rig.control.status().plugged, 2 * BLOCK);
}

#[test]
fn state_of_a_range_is_plugged_unplugged_or_mixed() {
    let mut rig = rig(1 << 30);
    rig.control.set_requested(64 << 20).unwrap();
    rig.plug(2, 2);
    assert_eq!(rig.send(3, START + 2 * BLOCK, 2), (ACK, 0));
    assert_eq!(rig.send(3, START + 4 * BLOCK, 2), (ACK, 1));
    assert_eq!(rig.send(3, START + BLOCK, 2), (ACK, 2));
}

#[test]
fn unplug_all_gives_everything_back_and_keeps_usable_above_requested() {
    let mut rig = rig(4 << 30);
    rig.control.set_requested(2 << 30).unwrap();
    for first in [0, 3, 64, 130, 700] {
        assert_eq!(rig.plug(first, 2), ACK);
    }
    rig.control.set_requested(256 << 20).unwrap();
    rig.interrupts.take();
    assert_eq!(rig.send(2, 0, 0).0, ACK);
    let status = rig.control.status();
    assert_eq!(status.plugged, 0);
    assert_eq!(rig.blocks.count(0, rig.blocks.len()), 0);
    assert!(rig.slots.0.lock().unwrap().0.is_empty());
    assert_eq!(status.usable, (256 << 20) + SLACK_BYTES);
    assert_eq!(rig.interrupts.take().1, 1, "usable has changed");
    assert_eq!(rig.send(2, 0, 0).0, ACK, "nothing to do is fine");
    assert_eq!(rig.interrupts.take().1, 0);
}

#[test]
fn a_host_that_refuses_is_busy_and_the_next_try_works() {
    let mut rig = rig(1 << 30);
    rig.control.set_requested(64 << 20).unwrap();
    rig.slots.0.lock().unwrap().1 = true;
    assert_eq!(rig.plug(0, 1), BUSY);
    assert_eq!(rig.control.status().host_failures, 1);
    assert_eq!(rig.control.status().plugged, 0);
    rig.slots.0.lock().unwrap().1 = false;
    assert_eq!(rig.plug(0, 1), ACK);
}

#[test]
fn an_answer_that_lies_in_the_block_it_unplugs_is_dropped() {
    let mut rig = rig(1 << 30);
    rig.control.set_requested(64 << 20).unwrap();
    rig.plug(0, 1);
    rig.write_request(REQUEST, 1, START, 1);
    rig.driver.add(&[(REQUEST, 24, 0), (START + 64, 10, WRITE)]);
    rig.device.queue_notified(0);
    assert_eq!(rig.driver.used()[0].1, 0);
    assert_eq!(rig.control.status().plugged, 0);
}

#[test]
fn rings_that_vanish_with_their_block_need_a_reset() {
    let mut rig = idle_rig(1 << 30);
    rig.control.set_requested(64 << 20).unwrap();
    rig.activate(F_UNPLUGGED_INACCESSIBLE);
    rig.plug(0, 1);
    rig.device.reset();
    let mut driver = Driver::new(rig.ram.clone(), START, 64);
    rig.write_request(REQUEST, 1, START, 1);
    driver.add(&[(REQUEST, 24, 0), (ANSWER, 10, WRITE)]);
    rig.device.activate(Activation {
        acked_features: F_UNPLUGGED_INACCESSIBLE,
        ram: rig.ram.clone(),
        queues: vec![driver.queue()],
        interrupt: rig.interrupts.clone(),
    });
    assert_eq!(rig.interrupts.take().2, 1);
    assert!(!rig.control.status().driver_ready);
}

#[test]
fn misframed_requests_are_returned_empty_and_do_nothing() {
    let mut rig = rig(1 << 30);
    rig.control.set_requested(64 << 20).unwrap();
    rig.write_request(REQUEST, 0, START, 1);
    let chains: &[&[(u64, u32, u16)]] = &[
        &[(REQUEST, 24, 0)],
        &[(REQUEST, 24, 0), (ANSWER, 9, WRITE)],
        &[(REQUEST, 23, 0), (ANSWER, 10, WRITE)],
        &[(REQUEST, 25, 0), (ANSWER, 10, WRITE)],
        &[(REQUEST, u32::MAX, 0), (ANSWER, 10, WRITE)],
        &[(REQUEST, 24, WRITE), (ANSWER, 10, WRITE)],
        &[(REQUEST, 24, 0), (ANSWER, 10, 0)],
        &[(START, 24, 0), (ANSWER, 10, WRITE)],
        &[((2 << 20) - 8, 24, 0), (ANSWER, 10, WRITE)],
        &[(u64::MAX - 8, 24, 0), (ANSWER, 10, WRITE)],
    ];
    for chain in chains {
        rig.driver.add(chain);
        rig.device.queue_notified(0);
        assert_eq!(
            rig.driver.used().iter().map(|u| u.1).collect::<Vec<_>>(),
            [0]
        );
    }
    // A loop repeats the request, which makes it too long.
    rig.driver.descriptor(40, REQUEST, 24, NEXT, 41);
    rig.driver.descriptor(41, ANSWER, 10, WRITE | NEXT, 40);
    rig.driver.offer(40);
    rig.device.queue_notified(0);
    assert_eq!(rig.driver.used(), [(40, 0)]);
    assert_eq!(rig.control.status().bad_requests, chains.len() as u64 + 1);
    assert_eq!(rig.control.status().plugged, 0);
}

#[test]
fn a_request_in_many_small_pieces_is_understood() {
    let mut rig = rig(1 << 30);
    rig.control.set_requested(64 << 20).unwrap();
    rig.write_request(REQUEST, 0, START, 1);
    let mut pieces: Vec<_> = (0..24).map(|i| (REQUEST + i, 1, 0)).collect();
    pieces.extend((0..10).map(|i| (ANSWER + i, 1, WRITE)));
    rig.driver.add(&pieces);
    rig.device.queue_notified(0);
    assert_eq!(rig.driver.used(), [(0, 10)]);
    assert_eq!(rig.control.status().plugged, BLOCK);
}

#[test]
fn an_index_that_jumps_needs_a_reset_and_blocks_survive_it() {
    let mut rig = rig(1 << 30);
    rig.control.set_requested(64 << 20).unwrap();
    rig.plug(0, 2);
    rig.interrupts.take();
    rig.driver.set_avail(500);
    rig.device.queue_notified(0);
    assert_eq!(rig.interrupts.take(), (0, 0, 1));
    rig.device.reset();
    rig.activate(F_UNPLUGGED_INACCESSIBLE);
    assert_eq!(rig.control.status().plugged, 2 * BLOCK);
    assert!(rig.control.status().driver_ready);
    assert_eq!(config_u64(&rig.device, 40), 2 * BLOCK);
}

#[test]
fn a_driver_that_touches_unplugged_memory_is_refused() {
    let mut rig = idle_rig(1 << 30);
    rig.activate(F_ACPI_PXM);
    assert_eq!(rig.interrupts.take(), (0, 0, 1));
    assert!(!rig.control.status().driver_ready);
}

#[test]
fn config_space_has_every_field_and_zeroes_behind() {
    let rig = idle_rig(1 << 30);
    rig.control.set_requested(6 << 20).unwrap();
    let fields: Vec<u64> = (0..7).map(|i| config_u64(&rig.device, 8 * i)).collect();
    let usable = 384 << 20;
    assert_eq!(fields, [2 << 20, 0, START, 1 << 30, usable, 0, 6 << 20]);
    let mut tail = [0xff; 8];
    rig.device.config().read(52, &mut tail);
    assert_eq!(tail, [0; 8]);
    rig.device.config().read(u64::MAX, &mut tail);
    rig.device.config().write(48, &[0xff; 8]);
    assert_eq!(config_u64(&rig.device, 48), 6 << 20, "read-only");
}

#[test]
fn the_driver_is_told_of_each_change_once() {
    let mut rig = idle_rig(1 << 30);
    let generation = rig.device.config().generation();
    rig.control.set_requested(BLOCK).unwrap();
    assert_ne!(rig.device.config().generation(), generation);
    assert_eq!(rig.interrupts.take(), (0, 0, 0));
    rig.activate(F_UNPLUGGED_INACCESSIBLE);
    assert_eq!(
        rig.interrupts.take(),
        (0, 1, 0),
        "it may have read the old size"
    );
    rig.control.set_requested(BLOCK).unwrap();
    assert_eq!(rig.interrupts.take(), (0, 0, 0), "the same size is no news");
    rig.control.set_requested(2 * BLOCK).unwrap();
    assert_eq!(rig.interrupts.take(), (0, 1, 0));
}

#[test]
fn impossible_sizes_are_refused_with_a_sentence() {
    let rig = idle_rig(1 << 30);
    rig.control.set_requested(BLOCK).unwrap();
    let error = rig.control.set_requested(BLOCK + 1).unwrap_err();
    assert!(error.to_string().contains("2097153"), "{error}");
    let error = rig.control.set_requested((1 << 30) + BLOCK).unwrap_err();
    assert!(error.to_string().contains("1073741824"), "{error}");
    assert!(rig.control.set_requested(u64::MAX).is_err());
    assert_eq!(rig.control.status().requested, BLOCK);
    rig.control.set_requested(1 << 30).unwrap();
    assert_eq!(rig.control.status().usable, 1 << 30);
}

#[test]
fn waiting_ends_with_the_plug_or_with_the_deadline() {
    let mut rig = rig(1 << 30);
    rig.control.set_requested(2 * BLOCK).unwrap();
    let control = rig.control.clone();
    let waiter = std::thread::spawn(move || {
        control.wait_until(Instant::now() + Duration::from_secs(20), |s| {
            s.plugged == s.requested
        })
    });
    rig.plug(0, 1);
    rig.plug(1, 1);
    assert_eq!(waiter.join().unwrap().unwrap().plugged, 2 * BLOCK);
    let deadline = Instant::now() + Duration::from_millis(20);
    let late = rig
        .control
        .wait_until(deadline, |s| s.plugged == 0)
        .unwrap_err();
    assert_eq!(late.plugged, 2 * BLOCK);
    assert!(Instant::now() >= deadline);
}

#[test]
fn runs_end_with_their_slot() {
    let blocks = PluggedBlocks::new(200);
    blocks.set(60, 80, true);
    let mut runs = Vec::new();
    let mut from = 0;
    while let Some(run) = next_plugged_run(&blocks, from) {
        runs.push((run.first, run.count));
        from = run.first + run.count;
    }
    assert_eq!(runs, [(60, 4), (64, 64), (128, 12)]);
}

#[derive(Debug, Clone)]
enum Event {
    Wish(u64),
    Request { kind: u16, first: u64, blocks: u16 },
    UnplugAll,
}

const REGION_BLOCKS: u64 = 320;

fn event() -> impl Strategy<Value = Event> {
    let first = 0..REGION_BLOCKS + 4;
    let request = (
        prop::sample::select(vec![0u16, 0, 0, 1, 3]),
        first,
        0u16..90,
    );
    prop_oneof![
        2 => (0..=REGION_BLOCKS).prop_map(|blocks| Event::Wish(blocks * BLOCK)),
        8 => request.prop_map(|(kind, first, blocks)| Event::Request { kind, first, blocks }),
        1 => Just(Event::UnplugAll),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn any_sequence_agrees_with_a_set_of_blocks(events in prop::collection::vec(event(), 1..40)) {
        let mut rig = rig(REGION_BLOCKS * BLOCK);
        let mut model = BTreeSet::<u64>::new();
        let (mut wish, mut usable) = (0, SLACK_BYTES);
        for event in events {
            match event {
                Event::Wish(bytes) => {
                    rig.control.set_requested(bytes).unwrap();
                    wish = bytes;
                    let room = (wish + SLACK_BYTES).next_multiple_of(SLOT_BYTES);
                    usable = usable.max(room.min(REGION_BLOCKS * BLOCK));
                }
                Event::UnplugAll => {
                    prop_assert_eq!(rig.send(2, 0, 0).0, ACK);
                    model.clear();
                    let room = (wish + SLACK_BYTES).next_multiple_of(SLOT_BYTES);
                    usable = room.min(REGION_BLOCKS * BLOCK);
                }
                Event::Request { kind, first, blocks } => {
                    let named: BTreeSet<u64> = (first..first + u64::from(blocks)).collect();
                    let inside = named.iter().all(|b| (b + 1) * BLOCK <= usable);
                    let valid = !named.is_empty() && inside;
                    let fits = (model.len() + named.len()) as u64 * BLOCK <= wish;
                    let expected = match kind {
                        _ if !valid => (ERROR, 0),
                        0 if !model.is_disjoint(&named) => (ERROR, 0),
                        0 if !fits => (NACK, 0),
                        1 if !model.is_superset(&named) => (ERROR, 0),
                        3 if model.is_superset(&named) => (ACK, 0),
                        3 if model.is_disjoint(&named) => (ACK, 1),
                        3 => (ACK, 2),
                        _ => (ACK, 0),
                    };
                    prop_assert_eq!(rig.send(kind, START + first * BLOCK, blocks), expected);
                    if expected.0 == ACK && kind == 0 {
                        model.extend(&named);
                    } else if expected.0 == ACK && kind == 1 {
                        model.retain(|b| !named.contains(b));
                    }
                    if expected.0 == ACK && kind == 0 {
                        prop_assert!(model.len() as u64 * BLOCK <= wish);
                    }
                }
            }
            let status = rig.control.status();
            prop_assert_eq!(status.plugged, model.len() as u64 * BLOCK);
            prop_assert_eq!(rig.blocks.count(0, REGION_BLOCKS) as usize, model.len());
            prop_assert!(model.iter().all(|b| rig.blocks.is_plugged(*b)));
            prop_assert_eq!(status.usable, usable);
            prop_assert!(status.usable >= status.requested);
            let slots: BTreeSet<u32> = model.iter().map(|b| 8 + (b / 64) as u32).collect();
            prop_assert_eq!(&rig.slots.0.lock().unwrap().0, &slots);
        }
    }

    #[test]
    fn any_bytes_parse_without_a_panic_and_stay_inside(
        bytes in any::<[u8; 24]>(), usable in 0u64..=64, plugged in prop::collection::vec(0u64..64, 0..20),
    ) {
        let mut sizes = Sizes::new(START, 64 * BLOCK);
        sizes.usable = usable * BLOCK;
        sizes.requested = usable * BLOCK;
        let blocks = PluggedBlocks::new(64);
        for block in plugged {
            blocks.set(block, 1, true);
        }
        if let Some(request) = request::parse(&bytes) {
            match sizes.decide(request, &blocks) {
                Verdict::Step(Step::Plug(range) | Step::Unplug(range)) => {
                    prop_assert!(range.count > 0 && range.first + range.count <= usable);
                }
                Verdict::Step(Step::Answer(_)) | Verdict::UnplugAll => {}
            }
        }
    }
}

#[test]
fn a_plug_beyond_the_region_by_one_block_is_an_error() {
    let mut sizes = Sizes::new(START, 8 * BLOCK);
    sizes.set_requested(8 * BLOCK).unwrap();
    let blocks = PluggedBlocks::new(8);
    let plug = |first: u64, blocks| {
        Request::Plug(NamedRange {
            address: START + first * BLOCK,
            blocks,
        })
    };
    let whole = sizes.decide(plug(0, 8), &blocks);
    assert!(matches!(whole, Verdict::Step(Step::Plug(range)) if range.count == 8));
    let error = Verdict::Step(Step::Answer(Answer::Error));
    assert_eq!(sizes.decide(plug(0, 9), &blocks), error);
    assert_eq!(sizes.decide(plug(8, 1), &blocks), error);
}

const PLACES: &[u64] = &[0, REQUEST, ANSWER, 2 << 20, START, START + BLOCK, u64::MAX];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_mischief_is_survived_with_blocks_coming_and_going(
        acts in prop::collection::vec(mischief(PLACES), 1..60),
        kinds in prop::collection::vec((0u16..4, 0u64..3, 1u16..3), 60),
    ) {
        let mut rig = rig(1 << 30);
        rig.control.set_requested(64 << 20).unwrap();
        for (act, (kind, first, blocks)) in acts.iter().zip(&kinds) {
            rig.write_request(REQUEST, *kind, START + first * BLOCK, *blocks);
            rig.driver.misbehave(act);
            if !matches!(act, Mischief::Descriptor(..)) {
                rig.device.queue_notified(0);
                rig.device.host_event();
            }
        }
        let plugged = rig.blocks.count(0, rig.blocks.len()) * BLOCK;
        prop_assert_eq!(rig.control.status().plugged, plugged);
        prop_assert!(plugged <= 64 << 20);
    }
}
