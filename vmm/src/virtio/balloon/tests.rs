use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

use super::ranges::{PAGE_BYTES, Range, coalesce, discard};
use super::request::parse_statistics;
use super::*;
use crate::memory::{BLOCK_BYTES, Mapping, PluggedBlocks, RamRegion};
use crate::virtio::rng::driver::{Driver, Interrupts, Mischief, NEXT, WRITE, mischief, small_ram};

const MIB: u64 = 1 << 20;
const RAM_MIB: u64 = 256;
const PFNS: u64 = 0x10_0000;
const ALL: u64 = F_STATS_VQ | F_DEFLATE_ON_OOM | F_PAGE_POISON | F_REPORTING;

struct Rig {
    ram: Arc<GuestRam>,
    interrupts: Arc<Interrupts>,
    drivers: Vec<Driver>,
    device: Balloon,
    control: BalloonController,
}

fn idle_rig() -> Rig {
    let ram = small_ram(RAM_MIB as usize);
    let device = Balloon::new(RAM_MIB * MIB).unwrap();
    let control = device.controller();
    Rig {
        ram,
        interrupts: Arc::default(),
        drivers: Vec::new(),
        device,
        control,
    }
}

impl Rig {
    fn activate(&mut self, acked_features: u64) {
        self.drivers = (0..4)
            .map(|i| Driver::new(self.ram.clone(), i * 0x4000, 128))
            .collect();
        self.drivers
            .iter_mut()
            .for_each(|driver| driver.set_avail(0));
        self.device.activate(Activation {
            acked_features,
            ram: self.ram.clone(),
            queues: self.drivers.iter().map(Driver::queue).collect(),
            interrupt: self.interrupts.clone(),
        });
    }

    fn write_pages(&self, at: u64, pages: &[u32]) -> u32 {
        let bytes: Vec<u8> = pages.iter().flat_map(|page| page.to_le_bytes()).collect();
        self.ram.write_slice(&bytes, GuestAddress(at)).unwrap();
        bytes.len() as u32
    }

    fn inflate(&mut self, pages: &[u32]) {
        let len = self.write_pages(PFNS, pages);
        self.drivers[0].add(&[(PFNS, len, 0)]);
        self.device.queue_notified(0);
    }

    fn touch(&self, address: u64) {
        self.ram.write_obj(!0u64, GuestAddress(address)).unwrap();
    }

    fn is_empty(&self, address: u64) -> bool {
        self.ram.read_obj::<u64>(GuestAddress(address)).unwrap() == 0
    }

    fn write_actual(&self, bytes: u64) {
        let pages = (bytes / PAGE_BYTES) as u32;
        self.device.config().write(4, &pages.to_le_bytes());
    }

    fn read_config(&self, offset: u64) -> u32 {
        let mut bytes = [0; 4];
        self.device.config().read(offset, &mut bytes);
        u32::from_le_bytes(bytes)
    }

    fn run_until_idle(&mut self) {
        while self.device.shared.wakeup.read().is_ok() {
            self.device.serve(|_| true);
        }
    }

    fn bad_requests(&self) -> u64 {
        self.control.status().status.bad_requests
    }
}

fn rig() -> Rig {
    let mut rig = idle_rig();
    rig.activate(ALL);
    rig
}

fn statistic(tag: u16, value: u64) -> Vec<u8> {
    [tag.to_le_bytes().as_slice(), value.to_le_bytes().as_slice()].concat()
}

#[test]
fn inflated_pages_go_back_to_the_host_and_others_stay() {
    let mut rig = rig();
    let page = |n: u64| 32 * MIB + n * PAGE_BYTES;
    (0..6).for_each(|n| rig.touch(page(n)));
    let first = (page(0) / PAGE_BYTES) as u32;
    rig.inflate(&[first + 3, first, first + 1, first, first + 3]);
    assert_eq!(rig.drivers[0].used(), [(0, 0)]);
    assert_eq!(rig.interrupts.take(), (1, 0, 0));
    let empty: Vec<u64> = (0..6).filter(|n| rig.is_empty(page(*n))).collect();
    assert_eq!(empty, [0, 1, 3]);
    assert_eq!(
        rig.control.status().status.inflated_total.get(),
        3 * PAGE_BYTES
    );
    assert_eq!(rig.bad_requests(), 0);
}

#[test]
fn wild_page_numbers_are_counted_and_harm_nobody() {
    let mut rig = rig();
    let end = (RAM_MIB * MIB / PAGE_BYTES) as u32;
    rig.touch(64 * MIB);
    rig.inflate(&[end - 1, end, end + 7, u32::MAX, 0x000c_0000]);
    assert_eq!(rig.drivers[0].used().len(), 1);
    assert_eq!(rig.control.status().status.inflated_total.get(), PAGE_BYTES);
    assert_eq!(rig.bad_requests(), 4);
    assert!(!rig.is_empty(64 * MIB));
}

#[test]
fn malformed_inflations_are_returned_and_counted() {
    let mut rig = rig();
    let page = (32 * MIB / PAGE_BYTES) as u32;
    rig.touch(32 * MIB);
    rig.write_pages(PFNS, &[page, page + 1]);
    let end = RAM_MIB * MIB;
    let chains: &[&[(u64, u32, u16)]] = &[
        &[(PFNS, 4, WRITE)],
        &[(PFNS, 0, 0)],
        &[(PFNS, 3, 0)],
        &[(PFNS, u32::MAX, 0)],
        &[(PFNS, 1 << 20, 0)],
        &[(end - 2, 4, 0)],
        &[(end, 4, 0)],
        &[(u64::MAX - 1, 4, 0)],
        &[(PFNS, 4, 0), (1 << 45, 4, 0)],
    ];
    for chain in chains {
        rig.drivers[0].add(chain);
    }
    rig.device.queue_notified(0);
    assert_eq!(rig.drivers[0].used().len(), chains.len());
    assert_eq!(rig.bad_requests(), chains.len() as u64);
    assert!(!rig.is_empty(32 * MIB));

    rig.drivers[0].add(&[(PFNS, 6, 0)]);
    rig.device.queue_notified(0);
    assert!(
        rig.is_empty(32 * MIB),
        "whole numbers before an odd tail count"
    );
    assert_eq!(rig.bad_requests(), chains.len() as u64 + 1);
}

#[test]
fn page_numbers_may_be_split_anywhere() {
    let mut rig = rig();
    rig.touch(32 * MIB);
    rig.write_pages(PFNS, &[(32 * MIB / PAGE_BYTES) as u32]);
    rig.drivers[0].add(&[(PFNS, 1, 0), (PFNS + 1, 3, 0)]);
    rig.device.queue_notified(0);
    assert!(rig.is_empty(32 * MIB));
    assert_eq!(rig.bad_requests(), 0);
}

#[test]
fn loops_of_descriptors_end() {
    let mut rig = rig();
    rig.write_pages(PFNS, &[9000]);
    for (lane, flags) in [(0, NEXT), (3, NEXT | WRITE), (2, NEXT)] {
        rig.drivers[lane].descriptor(0, PFNS, 4, flags, 1);
        rig.drivers[lane].descriptor(1, PFNS, 4, flags, 0);
        rig.drivers[lane].offer(0);
        rig.device.queue_notified(lane as u16);
    }
    rig.run_until_idle();
    assert_eq!(rig.drivers[0].used(), [(0, 0)]);
    assert_eq!(rig.drivers[3].used(), [(0, 0)]);
}

#[test]
fn deflation_returns_every_buffer_unread() {
    let mut rig = rig();
    rig.drivers[1].add(&[(1 << 50, 1024, 0)]);
    rig.drivers[1].add(&[(PFNS, 4, 0)]);
    rig.device.queue_notified(1);
    assert_eq!(rig.drivers[1].used().len(), 2);
    assert_eq!(rig.interrupts.take(), (1, 0, 0));
}

#[test]
fn a_turn_discards_a_bounded_amount_and_returns_chains_only_when_done() {
    let mut rig = rig();
    rig.touch(16 * MIB);
    rig.touch(239 * MIB);
    rig.drivers[3].add(&[(16 * MIB, (224 * MIB) as u32, WRITE)]);
    rig.device.queue_notified(3);
    assert_eq!(rig.drivers[3].used(), []);
    assert!(rig.is_empty(16 * MIB) && !rig.is_empty(239 * MIB));
    assert_eq!(rig.control.status().status.reported_total.get(), TURN_BYTES);
    rig.run_until_idle();
    assert_eq!(rig.drivers[3].used(), [(0, 0)]);
    assert!(rig.is_empty(239 * MIB));
    assert_eq!(rig.control.status().status.reported_total.get(), 224 * MIB);
    assert_eq!(rig.interrupts.take(), (1, 0, 0));
}

#[test]
fn reports_are_cut_to_whole_pages_of_the_guest() {
    let mut rig = rig();
    let end = RAM_MIB * MIB;
    rig.drivers[3].add(&[
        (32 * MIB + 1, 3 * PAGE_BYTES as u32, WRITE),
        (end - PAGE_BYTES, 1 << 30, WRITE),
        (40 * MIB, 100, WRITE),
        (40 * MIB, 0, WRITE),
        (48 * MIB, PAGE_BYTES as u32, 0),
        (u64::MAX - 100, u32::MAX / 2, WRITE),
    ]);
    rig.device.queue_notified(3);
    rig.run_until_idle();
    assert_eq!(rig.drivers[3].used(), [(0, 0)]);
    assert_eq!(
        rig.control.status().status.reported_total.get(),
        3 * PAGE_BYTES
    );
    assert!(rig.bad_requests() >= 5);
}

#[test]
fn poisoned_pages_keep_their_content() {
    let mut rig = rig();
    rig.touch(32 * MIB);
    rig.device.config().write(12, &[0xaa; 4]);
    rig.drivers[3].add(&[(32 * MIB, 2 << 20, WRITE)]);
    rig.device.queue_notified(3);
    assert_eq!(rig.drivers[3].used().len(), 1);
    assert!(!rig.is_empty(32 * MIB));

    rig.device.config().write(12, &[0; 4]);
    rig.drivers[3].add(&[(32 * MIB, 2 << 20, WRITE)]);
    rig.device.queue_notified(3);
    assert!(rig.is_empty(32 * MIB));
}

#[test]
fn queues_are_numbered_by_the_features_that_were_accepted() {
    let roles = |acked| Role::of_queues(acked).collect::<Vec<_>>();
    use Role::{Deflate, Inflate, Reporting, Statistics};
    assert_eq!(roles(ALL), [Inflate, Deflate, Statistics, Reporting]);
    assert_eq!(roles(F_REPORTING), [Inflate, Deflate, Reporting]);
    assert_eq!(roles(F_STATS_VQ), [Inflate, Deflate, Statistics]);
    assert_eq!(roles(F_DEFLATE_ON_OOM), [Inflate, Deflate]);

    let mut rig = idle_rig();
    rig.activate(F_REPORTING);
    rig.touch(32 * MIB);
    rig.drivers[2].add(&[(32 * MIB, 2 << 20, WRITE)]);
    rig.device.queue_notified(2);
    assert!(rig.is_empty(32 * MIB));
    rig.drivers[3].add(&[(32 * MIB, 2 << 20, WRITE)]);
    rig.device.queue_notified(3);
    assert_eq!(rig.drivers[3].used(), [], "there is no such queue");
    rig.device.queue_notified(u16::MAX);
}

#[test]
fn statistics_are_held_and_fetched_anew_on_request() {
    let mut rig = rig();
    assert_eq!(rig.control.status().status.bad_requests, 0);
    let none = rig
        .control
        .statistics(Duration::ZERO, Duration::from_millis(5));
    assert_eq!((none.age_ms, none.values.len()), (None, 0));
    rig.run_until_idle();

    let write = |rig: &Rig, bytes: &[u8]| {
        rig.ram.write_slice(bytes, GuestAddress(PFNS)).unwrap();
        bytes.len() as u32
    };
    let old = write(&rig, &statistic(4, 1000));
    rig.drivers[2].add(&[(PFNS, old, 0)]);
    rig.device.queue_notified(2);
    assert_eq!(rig.drivers[2].used(), [], "the device keeps the buffer");
    let first = rig
        .control
        .statistics(Duration::from_secs(60), Duration::ZERO);
    assert_eq!(first.values["free_memory"], 1000);

    let control = rig.control.clone();
    let asker =
        std::thread::spawn(move || control.statistics(Duration::ZERO, Duration::from_secs(20)));
    while rig.device.shared.wakeup.read().is_err() {
        std::thread::yield_now();
    }
    rig.device.host_event();
    assert_eq!(rig.drivers[2].used(), [(0, 0)]);
    let new = [
        statistic(4, 2000),
        statistic(10, 3),
        statistic(99, 1),
        statistic(15, 7),
    ]
    .concat();
    let len = write(&rig, &new);
    rig.drivers[2].add(&[(PFNS, len, 0)]);
    rig.device.queue_notified(2);
    let fresh = asker.join().unwrap();
    assert!(fresh.age_ms.unwrap() < 20_000);
    assert_eq!(fresh.values.len(), 3);
    assert_eq!(fresh.values["free_memory"], 2000);
    assert_eq!(fresh.values["oom_kill"], 3);
    assert_eq!(fresh.values["direct_reclaim"], 7);
}

#[test]
fn a_driver_that_does_not_answer_costs_the_timeout_and_gives_old_numbers_their_age() {
    let mut rig = rig();
    rig.ram
        .write_slice(&statistic(6, 5), GuestAddress(PFNS))
        .unwrap();
    rig.drivers[2].add(&[(PFNS, 10, 0)]);
    rig.device.queue_notified(2);
    let start = Instant::now();
    std::thread::sleep(Duration::from_millis(20));
    let old = rig
        .control
        .statistics(Duration::ZERO, Duration::from_millis(30));
    assert!(start.elapsed() >= Duration::from_millis(50));
    assert_eq!(old.values["available_memory"], 5);
    assert!(old.age_ms.unwrap() >= 50);
}

#[test]
fn a_second_statistics_buffer_sends_the_first_one_back() {
    let mut rig = rig();
    rig.ram
        .write_slice(&statistic(6, 5), GuestAddress(PFNS))
        .unwrap();
    rig.drivers[2].add(&[(PFNS, 10, 0)]);
    rig.drivers[2].add(&[(PFNS, 10, 0)]);
    rig.device.queue_notified(2);
    assert_eq!(rig.drivers[2].used(), [(0, 0)]);
    rig.drivers[2].add(&[(PFNS, 10, WRITE)]);
    rig.drivers[2].add(&[(1 << 44, 10, 0)]);
    rig.drivers[2].add(&[(PFNS, 2570, 0)]);
    rig.device.queue_notified(2);
    assert_eq!(rig.bad_requests(), 3);
}

#[test]
fn statistics_skip_what_they_do_not_know() {
    let mut bytes = [statistic(16, 1), statistic(u16::MAX, 2), statistic(0, 3)].concat();
    bytes.extend([1, 2, 3]);
    let parsed = parse_statistics(&bytes);
    assert_eq!(parsed.bad_items, 1);
    assert_eq!(parsed.value[0], Some(3));
    assert!(parsed.value[1..].iter().all(Option::is_none));
    let all: Vec<u8> = (0..16)
        .flat_map(|tag| statistic(tag, u64::from(tag) + 1))
        .collect();
    let parsed = parse_statistics(&all);
    let values: Vec<u64> = parsed.value.iter().map(|value| value.unwrap()).collect();
    assert_eq!(values, (1..=16).collect::<Vec<u64>>());
}

#[test]
fn the_target_reaches_the_driver_with_one_interrupt() {
    let mut rig = idle_rig();
    rig.control.set_target(8 * MIB + 5).unwrap();
    assert_eq!(rig.read_config(0), 2048);
    rig.activate(ALL);
    assert_eq!(
        rig.interrupts.take(),
        (0, 1, 0),
        "it may have read the old target"
    );
    let generation = rig.device.config().generation();
    rig.control.set_target(16 * MIB).unwrap();
    rig.control.set_target(16 * MIB).unwrap();
    assert_eq!(rig.interrupts.take(), (0, 1, 0));
    assert_ne!(rig.device.config().generation(), generation);
    let error = rig.control.set_target((RAM_MIB + 1) * MIB).unwrap_err();
    assert!(error.to_string().contains("268435456"), "{error}");
    assert!(rig.control.set_target(u64::MAX).is_err());
    assert_eq!(rig.control.status().status.target.get(), 16 * MIB);
}

#[test]
fn only_actual_and_poison_can_be_written_by_the_guest() {
    let rig = rig();
    rig.control.set_target(8 * MIB).unwrap();
    rig.device.config().write(0, &[0x11; 16]);
    assert_eq!(rig.read_config(0), 2048);
    assert_eq!(rig.read_config(8), 0);
    assert_eq!(rig.read_config(12), 0x1111_1111);
    assert_eq!(
        rig.bad_requests(),
        1,
        "0x11111111 pages are more than it has"
    );
    assert_eq!(rig.control.status().status.actual.get(), RAM_MIB * MIB);
    rig.device.config().write(u64::MAX, &[1; 8]);
    rig.device.config().write(14, &[0; 8]);
    assert_eq!(rig.read_config(12), 0x1111);
}

#[test]
fn deflation_on_oom_is_counted_and_lowers_the_offer_until_the_next_target() {
    let rig = rig();
    rig.control.set_target(64 * MIB).unwrap();
    rig.write_actual(32 * MIB);
    rig.write_actual(64 * MIB);
    assert_eq!(rig.control.status().oom_deflations, 0);
    rig.interrupts.take();

    rig.write_actual(63 * MIB);
    let reading = rig.control.status();
    assert_eq!(reading.oom_deflations, 1);
    assert_eq!(reading.offered.get(), 63 * MIB);
    assert_eq!(reading.status.target.get(), 64 * MIB);
    assert_eq!(
        rig.read_config(0),
        (63 * MIB / PAGE_BYTES) as u32,
        "no second round"
    );
    rig.write_actual(62 * MIB);
    assert_eq!(rig.control.status().oom_deflations, 2);

    rig.control.set_target(64 * MIB).unwrap();
    assert_eq!(rig.read_config(0), (64 * MIB / PAGE_BYTES) as u32);
    assert_eq!(rig.interrupts.take(), (0, 1, 0));
}

#[test]
fn a_deflation_that_the_host_asked_for_is_not_taken_for_oom() {
    let rig = rig();
    rig.control.set_target(64 * MIB).unwrap();
    rig.write_actual(64 * MIB);
    rig.control.set_target(16 * MIB).unwrap();
    rig.write_actual(40 * MIB);
    // The wish changes while the driver is on its way down: one more step is the old wish's.
    rig.control.set_target(48 * MIB).unwrap();
    rig.write_actual(39 * MIB);
    assert_eq!(rig.control.status().oom_deflations, 0);
    rig.write_actual(48 * MIB);
    rig.write_actual(47 * MIB);
    assert_eq!(rig.control.status().oom_deflations, 1);
}

#[test]
fn waiting_ends_when_the_guest_says_so_or_with_the_deadline() {
    let rig = rig();
    rig.control.set_target(8 * MIB).unwrap();
    let control = rig.control.clone();
    let waiter = std::thread::spawn(move || {
        let deadline = Instant::now() + Duration::from_secs(20);
        control.wait_until(deadline, |reading| {
            reading.status.actual == reading.status.target
        })
    });
    rig.write_actual(4 * MIB);
    rig.write_actual(8 * MIB);
    assert_eq!(waiter.join().unwrap().unwrap().status.actual.get(), 8 * MIB);
    let deadline = Instant::now() + Duration::from_millis(20);
    assert!(
        rig.control
            .wait_until(deadline, |r| r.status.actual.get() == 0)
            .is_err()
    );
}

#[test]
fn an_index_that_jumps_needs_a_reset_and_after_it_the_device_works() {
    let mut rig = rig();
    rig.control.set_target(8 * MIB).unwrap();
    rig.write_actual(8 * MIB);
    rig.interrupts.take();
    for lane in 0..4 {
        rig.drivers[lane].set_avail(1000);
        rig.device.queue_notified(lane as u16);
        assert_eq!(rig.interrupts.take(), (0, 0, 1));
        let status = rig.control.status().status;
        assert!(!status.driver_ready);
        assert_eq!((status.actual.get(), status.target.get()), (0, 8 * MIB));
        rig.device.host_event();
        rig.device.reset();
        rig.activate(ALL);
    }
    // The place of the used index is as the first driver left it: nothing was used.
    rig.touch(32 * MIB);
    rig.inflate(&[(32 * MIB / PAGE_BYTES) as u32]);
    assert!(rig.is_empty(32 * MIB));
}

/// Low RAM of 4 MiB, a hole of 4 MiB, 6 MiB of elastic memory of which the middle block is plugged.
fn broken_up_ram() -> (GuestRam, Vec<std::ops::Range<u64>>) {
    let low = Arc::new(Mapping::new(4 << 20, true).unwrap());
    let high = Arc::new(Mapping::new(6 << 20, false).unwrap());
    let blocks = Arc::new(PluggedBlocks::new(3));
    high.allow(BLOCK_BYTES, BLOCK_BYTES).unwrap();
    blocks.set(1, 1, true);
    let regions = vec![
        RamRegion::fixed(0, low),
        RamRegion::elastic(8 * MIB, high, blocks),
    ];
    let there = vec![0..4 * MIB, 10 * MIB..12 * MIB];
    (GuestRam::from_regions(regions).unwrap(), there)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn coalescing_keeps_exactly_the_pages(mut pages in prop::collection::vec(0u32..300, 0..200), high in any::<bool>()) {
        if high {
            pages.iter_mut().for_each(|page| *page = u32::MAX - *page);
        }
        let expected: BTreeSet<u64> = pages.iter().map(|page| u64::from(*page)).collect();
        let ranges = coalesce(&mut pages);
        let mut found = BTreeSet::new();
        for range in &ranges {
            prop_assert!(range.len > 0 && range.start % PAGE_BYTES == 0 && range.len % PAGE_BYTES == 0);
            for page in range.start / PAGE_BYTES..(range.start + range.len) / PAGE_BYTES {
                prop_assert!(found.insert(page), "page {} twice", page);
            }
        }
        prop_assert_eq!(found, expected);
        let apart = ranges.windows(2).all(|pair| pair[0].start + pair[0].len < pair[1].start);
        prop_assert!(apart, "neighbours are joined");
    }

    #[test]
    fn a_discard_empties_exactly_the_pages_that_are_there(first in 0u64..4000, count in 1u64..4000) {
        let (ram, there) = broken_up_ram();
        let pages: Vec<u64> = there.iter().flat_map(|r| r.clone().step_by(4096)).collect();
        for page in &pages {
            ram.write_obj(!0u64, GuestAddress(*page)).unwrap();
        }
        let range = Range { start: first * PAGE_BYTES, len: count * PAGE_BYTES };
        let result = discard(&ram, range);
        let mut emptied = 0;
        for page in &pages {
            let inside = (range.start..range.start + range.len).contains(page);
            let empty = ram.read_obj::<u64>(GuestAddress(*page)).unwrap() == 0;
            prop_assert_eq!(empty, inside, "page {:#x}", page);
            emptied += u64::from(empty);
        }
        prop_assert_eq!(result.bytes, emptied * PAGE_BYTES);
        prop_assert_eq!(result.refused_pieces == 0, emptied == count);
        prop_assert!(result.refused_pieces <= 4);
    }

    #[test]
    fn whole_pages_never_reach_outside(address in any::<u64>(), len in any::<u32>()) {
        if let Some(range) = Range::of_whole_pages(address, u64::from(len)) {
            prop_assert!(range.start >= address && range.len > 0);
            prop_assert!(range.start + range.len <= address + u64::from(len));
            prop_assert!(range.start % PAGE_BYTES == 0 && range.len % PAGE_BYTES == 0);
        }
    }

    #[test]
    fn splitting_loses_nothing(pages in 1u64..100, cut in any::<u64>()) {
        let range = Range { start: 7 * PAGE_BYTES, len: pages * PAGE_BYTES };
        let (front, rest) = range.split(cut % (200 * PAGE_BYTES));
        let rest_len = rest.map_or(0, |rest| rest.len);
        prop_assert_eq!(front.start, range.start);
        prop_assert_eq!(front.len + rest_len, range.len);
        prop_assert!(front.len > 0 && rest.is_none_or(|r| r.len > 0 && r.start == front.start + front.len));
    }
}

const PLACES: &[u64] = &[0, PFNS, 32 * MIB, RAM_MIB * MIB, u64::MAX];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_mischief_on_any_queue_is_survived(
        acts in prop::collection::vec((0usize..4, mischief(PLACES)), 1..80),
        writes in prop::collection::vec((0u64..20, any::<[u8; 4]>()), 0..8),
    ) {
        let mut rig = rig();
        rig.ram.write_slice(&[0x5a; 20_000], GuestAddress(PFNS)).unwrap();
        for (lane, act) in &acts {
            rig.drivers[*lane].misbehave(act);
            if !matches!(act, Mischief::Descriptor(..)) {
                rig.device.queue_notified(*lane as u16);
                rig.control.request_statistics();
                rig.device.host_event();
            }
        }
        for (offset, bytes) in writes {
            rig.device.config().write(offset, &bytes);
        }
        rig.device.host_event();
        let status = rig.control.status().status;
        prop_assert!(status.actual.get() <= RAM_MIB * MIB);
    }
}
