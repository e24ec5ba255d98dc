//! The books on a disk in memory: who gets what, who waits, and what a full disk stops.

use super::*;
use crate::journal::crashes::MemoryDisk;
use crate::resize::Cause;
use concertina_api::policy::PolicyBounds;

fn claim() -> Claim {
    Claim {
        bounds: PolicyBounds {
            cpus: "1..4".parse().unwrap(),
            memory: "256M..1G".parse().unwrap(),
        },
        weight: 100,
    }
}

fn limits(memory_mib: u64) -> Limits {
    Limits::exact(Size {
        cpus: Cpus::whole(8),
        memory: Bytes::mib(memory_mib),
    })
}

/// Books on a disk in memory, with instances of 256 MiB that run.
fn books(names: &[&str], memory_mib: u64) -> (MemoryDisk, HostBooks) {
    let disk = MemoryDisk::default();
    let journal = SharedJournal::new(disk.journal());
    let books = HostBooks::new(journal, limits(memory_mib));
    for name in names {
        let intent = books.admit(name, claim()).unwrap();
        let size = Size {
            cpus: Cpus::whole(1),
            memory: Bytes::mib(256),
        };
        books.launched(name, intent, Ok(size));
    }
    (disk, books)
}

fn begin(books: &HostBooks, name: &str, from: u64, to: u64) -> Result<IntentId, String> {
    begin_as(books, name, from, to, Cause::Manual)
}

fn begin_as(
    books: &HostBooks,
    name: &str,
    from: u64,
    to: u64,
    cause: Cause,
) -> Result<IntentId, String> {
    let order = Order::of_axis(Axis::Memory, to << 20, Duration::from_secs(1), cause);
    let step = Step {
        axis: Axis::Memory,
        before: from << 20,
        target: to << 20,
        order: &order,
    };
    books.begin_change(name, &step)
}

fn end(books: &HostBooks, name: &str, intent: IntentId, from: u64, to: u64, got: u64) {
    let outcome = if got == to {
        Outcome::Applied
    } else {
        Outcome::TimedOut
    };
    let done = Done {
        axis: Axis::Memory,
        target: to << 20,
        before: from << 20,
        after: got << 20,
        outcome,
        reason: None,
    };
    books.end_change(name, intent, &done);
}

fn held_mib(books: &HostBooks) -> u64 {
    books.account(Axis::Memory).held >> 20
}

#[test]
fn a_full_disk_stops_what_would_begin_and_nothing_is_lost_of_what_ends() {
    let (disk, books) = books(&["web"], 4096);
    let intent = begin(&books, "web", 256, 512).unwrap();
    disk.set_room(Some(0));
    // The change has happened; its outcome cannot be written.
    end(&books, "web", intent, 256, 512, 512);
    assert_eq!(held_mib(&books), 512);
    let why = begin(&books, "web", 512, 768).unwrap_err();
    assert!(why.contains("journal cannot be written"), "{why}");
    assert_eq!(held_mib(&books), 512, "what was not begun holds nothing");
    assert!(begin(&books, "web", 512, 256).is_err());
    assert!(books.admit("db", claim()).is_err());
    assert_eq!(held_mib(&books), 512);
    assert!(books.trouble().is_some());
    // With room again, the outcome comes first, and all goes on.
    disk.set_room(None);
    assert_eq!(books.trouble(), None);
    assert_eq!(books.book(|book| book.open().count()), 0);
    let intent = begin(&books, "web", 512, 256).unwrap();
    end(&books, "web", intent, 512, 256, 256);
    // And the next agent reads the same.
    let size = disk.journal().book().instances()["web"].size;
    assert_eq!(size.memory, Bytes::mib(256));
}

#[test]
fn what_waits_is_served_when_another_one_shrinks() {
    let (_disk, books) = books(&["a", "b"], 768);
    let first = begin(&books, "a", 256, 512).unwrap();
    let why = begin(&books, "b", 256, 512).unwrap_err();
    assert!(why.contains("waits"), "{why}");
    assert_eq!(books.awaited("b", Axis::Memory), Some(512 << 20));
    end(&books, "a", first, 256, 512, 512);
    assert!(books.serve().is_empty());
    let second = begin(&books, "a", 512, 256).unwrap();
    assert!(
        books.serve().is_empty(),
        "what was not seen to be given is not given"
    );
    end(&books, "a", second, 512, 256, 256);
    let grants = books.serve();
    let [grant] = grants.as_slice() else {
        panic!("{grants:?}");
    };
    assert_eq!(
        (grant.instance.as_str(), grant.order.memory),
        ("b", Some(Bytes::mib(512)))
    );
    assert!(grant.order.note.as_ref().unwrap().contains("waited"));
    assert_eq!(held_mib(&books), 768);
    // It is carried out under what is reserved; or given back, when it cannot be.
    assert!(begin(&books, "b", 256, 512).is_ok());
    books.settle(
        "b",
        Axis::Memory,
        Size {
            cpus: Cpus::whole(1),
            memory: Bytes::mib(256),
        },
    );
    assert_eq!(held_mib(&books), 512);
}

#[test]
fn a_rule_that_is_content_gives_up_its_place_and_a_person_keeps_it() {
    let (_disk, books) = books(&["a", "b", "c"], 1024);
    let grown = begin(&books, "c", 256, 512).unwrap();
    end(&books, "c", grown, 256, 512, 512);
    let rule = Cause::Rules(vec!["memory > 80% for 2s: +128M".into()]);
    assert!(begin_as(&books, "a", 256, 512, rule).is_err());
    assert!(begin(&books, "b", 256, 512).is_err());
    books.content("a", Axis::Memory);
    books.content("b", Axis::Memory);
    assert_eq!(books.awaited("a", Axis::Memory), None);
    assert_eq!(books.awaited("b", Axis::Memory), Some(512 << 20));
    books.ended("b", "gone");
    assert_eq!(books.awaited("b", Axis::Memory), None);
}

#[test]
fn a_guest_that_gives_nothing_is_stuck_until_it_gives_something() {
    let (_disk, books) = books(&["web"], 4096);
    let grown = begin(&books, "web", 256, 768).unwrap();
    end(&books, "web", grown, 256, 768, 768);
    let is_stuck = || books.book(|book| book.instances()["web"].stuck.memory);
    let shrink = begin(&books, "web", 768, 256).unwrap();
    end(&books, "web", shrink, 768, 256, 768);
    assert!(is_stuck());
    let shrink = begin(&books, "web", 768, 256).unwrap();
    end(&books, "web", shrink, 768, 256, 256);
    assert!(!is_stuck());
}

#[test]
fn unknown_needs_make_nobody_a_donor() {
    let (_disk, books) = books(&["a", "b"], 768);
    let grown = begin(&books, "a", 256, 512).unwrap();
    end(&books, "a", grown, 256, 512, 512);
    assert!(begin(&books, "b", 256, 512).is_err());
    assert!(books.donations(Axis::Memory).donations.is_empty());
    let need = |pressure| {
        Some(Need {
            pressure,
            least: 300 << 20,
        })
    };
    for absurd in [f64::NAN, f64::INFINITY, -1.0] {
        books.need("a", [(Axis::Cpus, None), (Axis::Memory, need(absurd))]);
        assert!(
            books.donations(Axis::Memory).donations.is_empty(),
            "{absurd}"
        );
    }
    books.need("a", [(Axis::Cpus, None), (Axis::Memory, need(0.0))]);
    let plan = books.donations(Axis::Memory);
    assert_eq!(plan.donations.len(), 1);
    assert!(plan.donations[0].to >= 300 << 20, "{plan:?}");
    books.need("a", [(Axis::Cpus, None), (Axis::Memory, None)]);
    assert!(books.donations(Axis::Memory).donations.is_empty());
}

#[test]
fn who_is_granted_a_part_goes_on_waiting_for_the_rest() {
    let (_disk, books) = books(&["a", "b"], 768);
    let grown = begin(&books, "a", 256, 512).unwrap();
    end(&books, "a", grown, 256, 512, 512);
    assert!(begin(&books, "b", 256, 512).is_err());
    let given = begin(&books, "a", 512, 384).unwrap();
    end(&books, "a", given, 512, 384, 384);
    let grant = books.serve().pop().unwrap();
    assert_eq!(grant.order.memory, Some(Bytes::mib(384)));
    let step = Step {
        axis: Axis::Memory,
        before: 256 << 20,
        target: 384 << 20,
        order: &grant.order,
    };
    let part = books.begin_change("b", &step).unwrap();
    end(&books, "b", part, 256, 384, 384);
    assert_eq!(books.awaited("b", Axis::Memory), Some(512 << 20));
    assert!(books.serve().is_empty());
    let given = begin(&books, "a", 384, 256).unwrap();
    end(&books, "a", given, 384, 256, 256);
    let grant = books.serve().pop().unwrap();
    assert_eq!(grant.order.memory, Some(Bytes::mib(512)));
    assert_eq!(books.awaited("b", Axis::Memory), None);
}
