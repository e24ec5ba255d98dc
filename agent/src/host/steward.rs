//! The thread that looks after those who wait for room: it serves them as soon as there is some, and asks
//! donors to shrink for them. What it starts runs in threads of its own, so that an instance that hangs
//! holds nobody else back.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, Weak};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use concertina_api::policy::Axis;
use concertina_api::{Bytes, Cpus};

use super::books::Grant;
use super::{Host, lock_of};
use crate::instance::Core;
use crate::ledger::Donation;
use crate::resize::{Cause, Order};

/// Longest time between two looks: what could not be written is tried again, and donors may have become
/// known.
const LOOK_PERIOD: Duration = Duration::from_secs(1);
/// Deadline of a donor's shrink.
const DONATION_TIMEOUT: Duration = Duration::from_secs(30);
/// A donor is not asked again for this long.
const DONOR_REST: Duration = Duration::from_secs(10);

/// Who was asked to shrink, and when.
type Asked = Arc<Mutex<BTreeMap<(String, Axis), Option<Instant>>>>;

/// Starts it.
pub(super) fn start(host: &Arc<Host>) -> io::Result<JoinHandle<()>> {
    let books = Arc::clone(&host.books);
    let host = Arc::downgrade(host);
    thread::Builder::new()
        .name("steward".into())
        .spawn(move || {
            let asked = Asked::default();
            while books.wait(LOOK_PERIOD) {
                let Some(host) = host.upgrade() else {
                    return;
                };
                look(&host, &asked);
            }
        })
}

fn look(host: &Arc<Host>, asked: &Asked) {
    // Says nothing where there is nothing to say.
    let _ = host.books.trouble();
    for grant in host.books.serve() {
        serve(host, grant);
    }
    for axis in Axis::ALL {
        for donation in host.books.donations(axis).donations {
            ask(host, axis, &donation, asked);
        }
    }
}

/// Lets somebody who waited have what was reserved.
fn serve(host: &Arc<Host>, grant: Grant) {
    let core = host.find(&grant.instance).filter(|core| core.is_running());
    let Some(core) = core else {
        return host.books.give_back(&grant);
    };
    let weak = Arc::downgrade(host);
    let order = grant.order.clone();
    let carried = run("grant", move || {
        core.carry_out(&order);
        give_back_rest(&weak, &core, &order);
    });
    if carried.is_err() {
        host.books.give_back(&grant);
    }
}

/// A grant that was refused before anything began (its instance has another wish by now) is still
/// reserved.
fn give_back_rest(host: &Weak<Host>, core: &Core, order: &Order) {
    let Some(host) = host.upgrade() else {
        return;
    };
    for (axis, wanted) in [
        (Axis::Cpus, order.cpus.is_some()),
        (Axis::Memory, order.memory.is_some()),
    ] {
        let is_changing = core.is_busy(axis);
        if wanted && !is_changing {
            host.books.settle(core.name(), axis, core.size());
        }
    }
}

fn ask(host: &Arc<Host>, axis: Axis, donation: &Donation, asked: &Asked) {
    let Some(core) = host.find(&donation.donor).filter(|core| core.is_running()) else {
        return;
    };
    let place = (donation.donor.clone(), axis);
    {
        let mut asked = lock_of(asked);
        asked.retain(|_, at| at.is_none_or(|at| at.elapsed() < DONOR_REST));
        if asked.contains_key(&place) {
            return;
        }
        asked.insert(place.clone(), None);
    }
    let waiting = host.books.look(|ledger| {
        let names = ledger.waiting().iter();
        let names = names.filter(|wait| wait.axis == axis);
        let names = names.map(|wait| wait.instance.as_str());
        let names: Vec<&str> = names.chain(ledger.launches()).collect();
        names.join(", ")
    });
    let why = format!(
        "{waiting} waits for {}, and this instance holds {} more than it needs",
        axis.as_str(),
        match axis {
            Axis::Cpus => {
                let spare = donation.from.saturating_sub(donation.to);
                Cpus(u32::try_from(spare).unwrap_or(u32::MAX)).to_string()
            }
            Axis::Memory => Bytes(donation.from.saturating_sub(donation.to)).to_string(),
        }
    );
    let order = Order::of_axis(axis, donation.to, DONATION_TIMEOUT, Cause::Host(why));
    let (rest, key) = (Arc::clone(asked), place.clone());
    let begun = run("donate", move || {
        core.carry_out(&order);
        lock_of(&rest).insert(key, Some(Instant::now()));
    });
    if begun.is_err() {
        lock_of(asked).remove(&place);
    }
}

fn run(name: &str, body: impl FnOnce() + Send + 'static) -> io::Result<()> {
    let spawned = thread::Builder::new()
        .name(name.into())
        .stack_size(512 << 10)
        .spawn(body);
    spawned.map(|_| ())
}
