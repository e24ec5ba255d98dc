//! The ledger's promises, one by one.

use concertina_api::policy::Axis::{Cpus as CpuAxis, Memory};
use proptest::prelude::*;

use super::*;

const MIB: u64 = Bytes::MIB;

fn claim(memory: &str, weight: u32) -> Claim {
    Claim {
        bounds: PolicyBounds {
            cpus: "0.5..4".parse().unwrap(),
            memory: memory.parse().unwrap(),
        },
        weight,
    }
}

/// A host with so much memory to give, and CPUs enough.
fn host(mib: u64) -> Ledger {
    Ledger::new(Limits::exact(Size {
        cpus: Cpus::whole(64),
        memory: Bytes::mib(mib),
    }))
}

/// With instances of 256M to 4G that run at so many MiB.
fn host_with(mib: u64, instances: &[(&str, u64)]) -> Ledger {
    let mut ledger = host(mib);
    for (name, _) in instances {
        ledger.admit(name, claim("256M..4G", 1)).unwrap();
    }
    for (name, size) in instances {
        ledger.reserve(name, Memory, size * MIB).unwrap();
        ledger.commit(name, Memory, size * MIB).unwrap();
        ledger.commit(name, CpuAxis, 500).unwrap();
    }
    ledger
}

fn wait(ledger: &mut Ledger, name: &str, mib: u64) -> LedgerError {
    let why = ledger.reserve(name, Memory, mib * MIB).unwrap_err();
    ledger.wait_for(name, Memory, mib * MIB, 0, &why).unwrap();
    why
}

/// Who was served, and with how many MiB.
fn serve(ledger: &mut Ledger) -> Vec<(String, u64)> {
    let served = ledger.serve().into_iter();
    served
        .map(|served| (served.wait.instance, served.granted / MIB))
        .collect()
}

fn needs(known: &[(&str, f64, u64)]) -> BTreeMap<String, Need> {
    let need = |(name, pressure, mib): &(&str, f64, u64)| {
        let need = Need {
            pressure: *pressure,
            least: mib * MIB,
        };
        ((*name).to_owned(), need)
    };
    known.iter().map(need).collect()
}

fn donations(plan: &DonationPlan) -> Vec<(&str, u64, u64)> {
    let each = |d: &Donation| (d.from / MIB, d.to / MIB);
    plan.donations
        .iter()
        .map(|d| (d.donor.as_str(), each(d).0, each(d).1))
        .collect()
}

#[test]
fn of_two_that_race_for_the_last_room_one_gets_it_and_the_other_when_the_first_shrinks() {
    let mut ledger = host_with(1280, &[("a", 512), ("b", 512)]);
    ledger.reserve("a", Memory, 768 * MIB).unwrap();
    let why = wait(&mut ledger, "b", 768).to_string();
    assert_eq!(
        why,
        "host_short_of_memory: b wants 256M more, and 0 of 1.25G is free: 2 instances hold 1.25G, of \
         which 512M are guaranteed"
    );
    ledger.commit("a", Memory, 768 * MIB).unwrap();
    assert!(serve(&mut ledger).is_empty());
    // The way down gives nothing before it was seen.
    ledger.begin_shrink("a", Memory, 512 * MIB).unwrap();
    assert!(serve(&mut ledger).is_empty());
    assert_eq!(ledger.account(Memory).free(), 0);
    ledger.commit("a", Memory, 512 * MIB).unwrap();
    assert_eq!(serve(&mut ledger), [("b".to_owned(), 768)]);
    assert!(ledger.waiting().is_empty());
    assert_eq!(ledger.account(Memory).free(), 0);
}

#[test]
fn what_a_growth_did_not_take_is_free_again() {
    let mut ledger = host_with(2048, &[("a", 256)]);
    ledger.reserve("a", Memory, 2048 * MIB).unwrap();
    assert_eq!(ledger.account(Memory).free(), 0);
    ledger.commit("a", Memory, 1024 * MIB).unwrap();
    assert_eq!(ledger.account(Memory).free(), 1024 * MIB);
    ledger.reserve("a", Memory, 2048 * MIB).unwrap();
    ledger.abort("a", Memory).unwrap();
    assert_eq!(ledger.account(Memory).free(), 1024 * MIB);
}

#[test]
fn a_launch_is_refused_with_numbers_when_its_lower_bound_has_no_room() {
    let mut ledger = host_with(1024, &[("a", 512)]);
    let error = ledger.admit("b", claim("768M..1G", 1)).unwrap_err();
    let text = error.to_string();
    for number in ["768M", "512M of 1G", "256M"] {
        assert!(text.contains(number), "{text}");
    }
    assert_eq!(ledger.account(Memory).instances, 1);
    // Nothing of the CPUs was reserved either.
    assert_eq!(ledger.account(CpuAxis).held, 500);
    ledger.admit("b", claim("512M..1G", 1)).unwrap();
    assert!(matches!(
        ledger.admit("b", claim("1M", 1)),
        Err(LedgerError::Known(_))
    ));
}

#[test]
fn a_lower_bound_stays_reserved_whatever_the_guest_takes_of_it() {
    let mut ledger = host_with(1024, &[("a", 512)]);
    ledger.commit("a", Memory, 100 * MIB).unwrap();
    assert_eq!(ledger.held("a", Memory), 256 * MIB);
    ledger.abort("a", Memory).unwrap();
    assert_eq!(ledger.held("a", Memory), 256 * MIB);
    assert!(ledger.begin_shrink("a", Memory, 128 * MIB).is_err());
}

#[test]
fn overhead_of_each_instance_counts() {
    let limits = Limits {
        overhead: Bytes::mib(16),
        ..Limits::exact(Size {
            cpus: Cpus::whole(64),
            memory: Bytes::mib(1024),
        })
    };
    let mut ledger = Ledger::new(limits);
    let names = ["a", "b", "c", "d"];
    let admitted = names.map(|name| ledger.admit(name, claim("256M..1G", 1)).is_ok());
    assert_eq!(admitted, [true, true, true, false]);
    let account = ledger.account(Memory);
    assert_eq!(account.held, 3 * 272 * MIB);
    assert_eq!(account.guaranteed, account.held);
}

#[test]
fn those_who_wait_are_served_in_their_order() {
    let mut ledger = host_with(2048, &[("a", 1024), ("b", 256), ("c", 256), ("d", 512)]);
    wait(&mut ledger, "c", 512);
    wait(&mut ledger, "b", 512);
    // A newer wish keeps the place.
    wait(&mut ledger, "c", 384);
    assert_eq!(ledger.account(Memory).awaited, (128 + 256) * MIB);
    ledger.commit("a", Memory, 896 * MIB).unwrap();
    assert_eq!(serve(&mut ledger), [("c".to_owned(), 384)]);
    ledger.withdraw("b", Memory).unwrap();
    ledger.forget("a");
    assert!(serve(&mut ledger).is_empty());
}

#[test]
fn who_wants_more_than_its_share_gets_its_share_first_and_waits_for_the_rest() {
    let mut ledger = host_with(2048, &[("a", 1792), ("b", 256)]);
    // The fair share of both is 1 GiB.
    wait(&mut ledger, "b", 1536);
    ledger.commit("a", Memory, 1024 * MIB).unwrap();
    assert_eq!(serve(&mut ledger), [("b".to_owned(), 1024)]);
    assert_eq!(ledger.waiting().len(), 1);
    ledger.commit("a", Memory, 512 * MIB).unwrap();
    // Nobody is granted more while it is still growing.
    assert!(serve(&mut ledger).is_empty());
    ledger.commit("b", Memory, 1024 * MIB).unwrap();
    assert_eq!(serve(&mut ledger), [("b".to_owned(), 1536)]);
}

#[test]
fn nobody_goes_beyond_its_share_while_another_waits_below_its_own() {
    let mut ledger = host_with(2048, &[("a", 1408), ("b", 256), ("c", 256)]);
    // Shares are 2048 / 3 MiB; b's whole wish does not fit, and 128 MiB are free.
    wait(&mut ledger, "b", 512);
    let error = ledger.reserve("a", Memory, 1472 * MIB).unwrap_err();
    assert!(matches!(error, LedgerError::Unfair { .. }), "{error}");
    // Below its own share, c need not wait for b.
    ledger.reserve("c", Memory, 320 * MIB).unwrap();
    // A stuck instance holds nobody back.
    ledger.set_stuck("b", Memory, true).unwrap();
    ledger.reserve("a", Memory, 1472 * MIB).unwrap();
}

#[test]
fn what_can_never_be_met_does_not_wait() {
    let mut ledger = host_with(1024, &[("a", 256), ("b", 256)]);
    let why = ledger.reserve("a", Memory, 1000 * MIB).unwrap_err();
    let never = ledger
        .wait_for("a", Memory, 1000 * MIB, 0, &why)
        .unwrap_err();
    assert!(
        never.to_string().contains("768M of memory at most"),
        "{never}"
    );
    assert!(ledger.waiting().is_empty());
    let error = ledger.reserve("a", Memory, 5 << 30).unwrap_err();
    assert!(error.to_string().contains("256M to 4G"), "{error}");
}

#[test]
fn the_least_pressured_gives_first_and_down_to_its_need() {
    let mut ledger = host_with(2560, &[("a", 256), ("b", 768), ("c", 768), ("d", 768)]);
    wait(&mut ledger, "a", 768);
    let known = needs(&[("b", 1.0, 300), ("c", 0.0, 512), ("d", 0.5, 768)]);
    let plan = ledger.donations(Memory, &known);
    assert_eq!(donations(&plan), [("c", 768, 512), ("b", 768, 512)]);
    assert_eq!(plan.missing, 0);
}

#[test]
fn who_is_unknown_stuck_or_waiting_gives_nothing() {
    let mut ledger = host_with(2048, &[("a", 256), ("b", 1024), ("c", 512), ("d", 256)]);
    wait(&mut ledger, "a", 512);
    let unknown = ledger.donations(Memory, &needs(&[("c", f64::NAN, 256), ("d", -1.0, 256)]));
    assert!(unknown.donations.is_empty());
    assert_eq!(unknown.missing, 256 * MIB);
    ledger.set_stuck("b", Memory, true).unwrap();
    wait(&mut ledger, "c", 640);
    let known = needs(&[("a", 0.0, 0), ("b", 0.0, 0), ("c", 0.0, 0), ("d", 0.0, 0)]);
    let plan = ledger.donations(Memory, &known);
    assert!(plan.donations.is_empty(), "{plan:?}");
}

#[test]
fn under_pressure_one_gives_only_what_is_beyond_its_share_to_one_below_its_own() {
    let mut ledger = host_with(2048, &[("a", 256), ("b", 1536), ("c", 256)]);
    let pressed = needs(&[("b", 40.0, 256), ("c", 40.0, 256)]);
    wait(&mut ledger, "a", 512);
    let plan = ledger.donations(Memory, &pressed);
    assert_eq!(donations(&plan), [("b", 1536, 1280)]);
    // Beyond a's own share (2048 / 3 MiB) nobody under pressure gives.
    ledger
        .wait_for(
            "a",
            Memory,
            1024 * MIB,
            0,
            &LedgerError::Unknown("a".into()),
        )
        .unwrap();
    let plan = ledger.donations(Memory, &pressed);
    let (_, from, to) = donations(&plan)[0];
    assert_eq!((from, to), (1536, 1536 - 428));
    assert_eq!((plan.missing + 2 * MIB) / MIB, 1024 - 682);
}

#[test]
fn what_comes_already_is_not_asked_for_twice() {
    let mut ledger = host_with(2048, &[("a", 256), ("b", 1280), ("c", 512)]);
    wait(&mut ledger, "a", 512);
    ledger.begin_shrink("b", Memory, 1152 * MIB).unwrap();
    let known = needs(&[("b", 0.0, 256), ("c", 0.0, 256)]);
    let plan = ledger.donations(Memory, &known);
    assert_eq!(plan.coming, 128 * MIB);
    assert_eq!(donations(&plan), [("c", 512, 384)]);
    // A guest that does not give what it was asked for does not count: others are asked.
    ledger.set_stuck("b", Memory, true).unwrap();
    let plan = ledger.donations(Memory, &known);
    assert_eq!((plan.coming, donations(&plan)), (0, vec![("c", 512, 256)]));
}

#[test]
fn room_for_a_launch_comes_from_donors_too() {
    let mut ledger = host_with(1024, &[("a", 1024)]);
    let known = needs(&[("a", 0.0, 512)]);
    assert!(ledger.donations(Memory, &known).donations.is_empty());
    ledger.await_launch("b", claim("256M..1G", 1)).unwrap();
    assert_eq!(ledger.account(Memory).awaited, 256 * MIB);
    let plan = ledger.donations(Memory, &known);
    assert_eq!(donations(&plan), [("a", 1024, 768)]);
    ledger.begin_shrink("a", Memory, 768 * MIB).unwrap();
    ledger.commit("a", Memory, 768 * MIB).unwrap();
    assert!(ledger.donations(Memory, &known).donations.is_empty());
    ledger.admit("b", claim("256M..1G", 1)).unwrap();
    ledger.withdraw_launch("b");
    assert_eq!(ledger.account(Memory).awaited, 0);
}

#[test]
fn a_launch_that_could_never_fit_does_not_wait() {
    let mut ledger = host_with(1024, &[("a", 1024)]);
    let never = ledger.await_launch("b", claim("1G..2G", 1)).unwrap_err();
    let text = never.to_string();
    assert!(text.contains("768M of memory at most"), "{text}");
    assert_eq!(ledger.launches().count(), 0);
}

#[test]
fn growth_beyond_the_share_leaves_to_a_launch_what_it_waits_for() {
    // A share is 512 MiB; 128 MiB are free, and the launch wants 256.
    let mut ledger = host_with(1024, &[("a", 576), ("b", 320)]);
    ledger.await_launch("c", claim("256M..1G", 1)).unwrap();
    let error = ledger.reserve("a", Memory, 640 * MIB).unwrap_err();
    assert!(error.to_string().contains("the launch of c"), "{error}");
    ledger.reserve("b", Memory, 448 * MIB).unwrap();
    ledger.commit("b", Memory, 448 * MIB).unwrap();
    ledger.withdraw_launch("c");
    ledger.begin_shrink("b", Memory, 320 * MIB).unwrap();
    ledger.commit("b", Memory, 320 * MIB).unwrap();
    ledger.reserve("a", Memory, 640 * MIB).unwrap();
}

#[test]
fn facts_that_break_the_rule_are_said_and_stop_all_growth() {
    let mut ledger = host_with(1024, &[("a", 512), ("b", 256)]);
    ledger.set_limits(Limits::exact(Size {
        cpus: Cpus::whole(64),
        memory: Bytes::mib(640),
    }));
    assert_eq!(ledger.account(Memory).overdrawn(), 128 * MIB);
    assert!(ledger.reserve("b", Memory, 258 * MIB).is_err());
    ledger.commit("a", Memory, 256 * MIB).unwrap();
    assert_eq!(ledger.account(Memory).overdrawn(), 0);
    ledger.seen("b", Memory, 1024 * MIB).unwrap();
    assert_eq!(ledger.account(Memory).overdrawn(), 640 * MIB);
    ledger.reserve("b", Memory, 300 * MIB).unwrap();
}

#[test]
fn a_higher_lower_bound_is_reserved_or_refused() {
    let mut ledger = host_with(1024, &[("a", 256), ("b", 512)]);
    assert!(ledger.set_claim("a", claim("640M..4G", 1)).is_err());
    assert_eq!(ledger.held("a", Memory), 256 * MIB);
    ledger.set_claim("a", claim("512M..4G", 3)).unwrap();
    assert_eq!(ledger.account(Memory).free(), 0);
}

proptest! {
    #[test]
    fn a_plan_never_takes_what_is_guaranteed_needed_or_unknown(
        sizes in prop::collection::vec((256..1024u64, 0.0..100.0f64, 0..1024u64, any::<bool>()), 2..8),
        wish in 256..4096u64,
    ) {
        let names: Vec<String> = (0..sizes.len()).map(|n| format!("vm-{n}")).collect();
        let total: u64 = sizes.iter().map(|(size, ..)| size).sum();
        let instances: Vec<(&str, u64)> = names.iter().map(String::as_str)
            .zip(sizes.iter().map(|(size, ..)| *size)).collect();
        let mut ledger = host_with(total, &instances);
        let known: Vec<_> = instances.iter().zip(&sizes).filter(|(_, (.., known))| *known)
            .map(|((name, _), (_, pressure, least, _))| (*name, *pressure, *least)).collect();
        let known = needs(&known);
        let why = LedgerError::Unknown(String::new());
        let waits = ledger.wait_for("vm-0", Memory, wish * MIB, 0, &why).is_ok();
        let plan = ledger.donations(Memory, &known);
        for gift in &plan.donations {
            let need = known[&gift.donor];
            prop_assert!(gift.donor != "vm-0" || !waits);
            prop_assert!(gift.to >= need.least.max(256 * MIB) && gift.to < gift.from);
            if need.pressure > COMFORTABLE_PERCENT {
                prop_assert!(gift.to >= ledger.fair_share(&gift.donor, Memory));
            }
        }
        let wanted = if waits { (wish * MIB).saturating_sub(ledger.held("vm-0", Memory)) } else { 0 };
        let given: u64 = plan.donations.iter().map(|gift| gift.from - gift.to).sum();
        prop_assert!(given + plan.missing >= wanted);
        prop_assert!(given < wanted + 2 * MIB * sizes.len() as u64);
    }
}
