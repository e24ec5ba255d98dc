use std::sync::Arc;
use std::sync::atomic::Ordering;

use proptest::{collection, proptest};
use vm_memory::{Bytes, GuestAddress};

use super::driver::{Driver, Interrupts, Mischief, NEXT, WRITE, mischief, small_ram};
use super::*;

struct Rig {
    ram: Arc<GuestRam>,
    interrupts: Arc<Interrupts>,
    driver: Driver,
    device: Rng,
}

fn rig() -> Rig {
    let ram = small_ram(2);
    let interrupts = Arc::new(Interrupts::default());
    let driver = Driver::new(ram.clone(), 0, 64);
    let mut device = Rng::new().unwrap();
    device.activate(Activation {
        acked_features: 0,
        ram: ram.clone(),
        queues: vec![driver.queue()],
        interrupt: interrupts.clone(),
    });
    Rig {
        ram,
        interrupts,
        driver,
        device,
    }
}

#[test]
fn a_buffer_is_filled_with_bytes_that_differ() {
    let mut rig = rig();
    rig.driver
        .add(&[(0x10000, 256, WRITE), (0x20000, 64, WRITE)]);
    rig.device.queue_notified(0);
    assert_eq!(rig.driver.used(), [(0, 320)]);
    assert_eq!(rig.interrupts.take(), (1, 0, 0));
    let mut bytes = [0u8; 256];
    rig.ram
        .read_slice(&mut bytes, GuestAddress(0x10000))
        .unwrap();
    let distinct: std::collections::BTreeSet<u8> = bytes.into_iter().collect();
    assert!(
        distinct.len() > 64,
        "256 random bytes have only {} values",
        distinct.len()
    );
    assert_eq!(rig.device.counters().bytes.load(Ordering::Relaxed), 320);
}

#[test]
fn a_turn_hands_out_a_bounded_number_of_bytes_and_the_next_goes_on() {
    let mut rig = rig();
    for _ in 0..32 {
        rig.driver.add(&[(0x10000, u32::MAX, WRITE)]);
    }
    rig.device.queue_notified(0);
    let first: u64 = rig
        .driver
        .used()
        .iter()
        .map(|(_, len)| u64::from(*len))
        .sum();
    assert_eq!(first, TURN_BYTES as u64);
    assert_eq!(rig.device.wakeup.read().unwrap(), 1);
    rig.device.host_event();
    assert_eq!(rig.driver.used().len(), 32 - TURN_BYTES / REQUEST_BYTES);
}

#[test]
fn hostile_requests_are_counted_and_returned_empty() {
    let mut rig = rig();
    rig.driver.add(&[(0x10000, 64, 0)]);
    rig.driver.add(&[(0x10000, 0, WRITE)]);
    rig.driver.add(&[(1 << 40, 64, WRITE)]);
    rig.driver.add(&[((2 << 20) - 8, 64, WRITE)]);
    rig.driver.add(&[(u64::MAX - 8, 64, WRITE)]);
    rig.driver.offer(9999);
    rig.device.queue_notified(0);
    let used = rig.driver.used();
    assert!(
        rig.device.active.is_none(),
        "a head beyond the table cannot be returned"
    );
    assert_eq!(used.len(), 5);
    assert!(used.iter().all(|(_, len)| *len == 0));
    assert_eq!(
        rig.device.counters().bad_requests.load(Ordering::Relaxed),
        6
    );
    assert_eq!(rig.interrupts.take().2, 1);
}

#[test]
fn a_loop_of_descriptors_ends() {
    let mut rig = rig();
    rig.driver.descriptor(0, 0x10000, 1, WRITE | NEXT, 1);
    rig.driver.descriptor(1, 0x10001, 1, WRITE | NEXT, 0);
    rig.driver.offer(0);
    rig.device.queue_notified(0);
    assert_eq!(rig.driver.used(), [(0, 64)]);
}

#[test]
fn an_index_that_jumps_asks_for_a_reset_and_after_it_the_device_works() {
    let mut rig = rig();
    rig.driver.set_avail(1000);
    rig.device.queue_notified(0);
    assert_eq!(rig.interrupts.take(), (0, 0, 1));
    rig.device.queue_notified(0);
    assert_eq!(rig.interrupts.take(), (0, 0, 0));

    rig.device.reset();
    let mut driver = Driver::new(rig.ram.clone(), 0x8000, 64);
    driver.add(&[(0x10000, 16, WRITE)]);
    rig.device.activate(Activation {
        acked_features: 0,
        ram: rig.ram.clone(),
        queues: vec![driver.queue()],
        interrupt: rig.interrupts.clone(),
    });
    assert_eq!(driver.used(), [(0, 16)]);
}

proptest! {
    #[test]
    fn any_mischief_is_survived(acts in collection::vec(mischief(&[0, 0x10000, 2 << 20, u64::MAX]), 1..60)) {
        let mut rig = rig();
        for act in &acts {
            rig.driver.misbehave(act);
            if !matches!(act, Mischief::Descriptor(..)) {
                rig.device.queue_notified(0);
                rig.device.host_event();
            }
        }
    }
}
