//! Numbers of a host and its instances in Prometheus' text format (version 0.0.4).

mod names;
#[cfg(test)]
mod parser;
mod process;
mod text;

use std::sync::Arc;

use concertina_api::policy::{Axis, Metric, Resource};

use self::process::ProcessNumbers;
use self::text::{Family, Text};
use super::Host;
use crate::instance::Core;
use crate::measure::{CAUSES, Measures, OUTCOMES, Phase, Way, direction_word};
use crate::policy::HeldReason;

/// The resources of [`names::PRESSURE`].
const PRESSURES: [(&str, Metric); 3] = [
    ("cpu", Metric::CpuPressure),
    ("memory", Metric::MemoryPressure),
    ("io", Metric::IoPressure),
];

/// All of them.
pub(super) fn text(host: &Arc<Host>) -> String {
    let mut text = Text::default();
    let instances = host.instances();
    text.family(&names::BUILD)
        .sample(&[env!("CARGO_PKG_VERSION")], 1.0);
    text.family(&names::INSTANCES)
        .sample(&[], instances.len() as f64);
    books(host, &mut text);
    measures(host.measures(), &mut text);
    sizes(&instances, &mut text);
    signals(&instances, &mut text);
    process(&mut text);
    text.into_string()
}

/// Thousandths of a CPU as CPUs.
fn cpus(milli: u64) -> f64 {
    milli as f64 / 1000.0
}

fn books(host: &Host, text: &mut Text) {
    let books = host.books();
    let account = books.account(Axis::Cpus);
    for (family, milli) in [
        (&names::CPUS_LIMIT, account.limit),
        (&names::CPUS_HELD, account.held),
        (&names::CPUS_ACTUAL, account.actual),
        (&names::CPUS_GUARANTEED, account.guaranteed),
        (&names::CPUS_AWAITED, account.awaited),
    ] {
        text.family(family).sample(&[], cpus(milli));
    }
    let account = books.account(Axis::Memory);
    for (family, bytes) in [
        (&names::MEMORY_LIMIT, account.limit),
        (&names::MEMORY_HELD, account.held),
        (&names::MEMORY_ACTUAL, account.actual),
        (&names::MEMORY_GUARANTEED, account.guaranteed),
        (&names::MEMORY_AWAITED, account.awaited),
    ] {
        text.family(family).sample(&[], bytes as f64);
    }
    text.family(&names::WAITING);
    for axis in Axis::ALL {
        let waiting = books.look(|ledger| {
            let waits = ledger.waiting().iter();
            waits.filter(|wait| wait.axis == axis).count()
        });
        text.sample(&[axis.as_str()], waiting as f64);
    }
    text.family(&names::JOURNAL_BYTES)
        .sample(&[], books.journal_bytes() as f64);
    let open = books.book(|book| book.open().count());
    text.family(&names::JOURNAL_OPEN).sample(&[], open as f64);
    let writable = f64::from(u8::from(books.trouble().is_none()));
    text.family(&names::JOURNAL_OK).sample(&[], writable);
}

fn measures(measures: &Measures, text: &mut Text) {
    text.family(&names::LOOK).histogram(&[], &measures.look);
    text.family(&names::TO_INTENT);
    for way in Way::ALL {
        let labels = [way.axis.as_str(), direction_word(way.direction)];
        text.histogram(&labels, measures.to_intent(way));
    }
    text.family(&names::PHASE);
    for way in Way::ALL {
        let [axis, direction] = [way.axis.as_str(), direction_word(way.direction)];
        for phase in Phase::ALL {
            let labels = [axis, direction, phase.as_str()];
            text.histogram(&labels, measures.phase(way, phase));
        }
    }
    text.family(&names::RESIZES);
    for way in Way::ALL {
        let [axis, direction] = [way.axis.as_str(), direction_word(way.direction)];
        for (index, cause) in CAUSES.into_iter().enumerate() {
            for outcome in OUTCOMES {
                let count = measures.resizes(index, way, outcome);
                text.sample(&[axis, direction, cause, outcome.as_str()], count as f64);
            }
        }
    }
    text.family(&names::HELD);
    for axis in Resource::ALL {
        for why in HeldReason::ALL {
            let looks = measures.held_looks(axis, why);
            text.sample(&[axis.as_str(), why.as_str()], looks as f64);
        }
    }
}

/// One family with a sample for each instance that has a value.
fn each(
    instances: &[Arc<Core>],
    text: &mut Text,
    family: &Family,
    value: impl Fn(&Core) -> Option<f64>,
) {
    text.family(family);
    for core in instances {
        if let Some(value) = value(core) {
            text.sample(&[core.name()], value);
        }
    }
}

fn sizes(instances: &[Arc<Core>], text: &mut Text) {
    text.family(&names::STATE);
    for core in instances {
        text.sample(&[core.name(), core.state().as_str()], 1.0);
    }
    let milli = |cpus: concertina_api::Cpus| Some(self::cpus(cpus.milli().into()));
    let bytes = |bytes: concertina_api::Bytes| Some(bytes.get() as f64);
    each(instances, text, &names::SIZE_CPUS, |core| {
        milli(core.size().cpus)
    });
    each(instances, text, &names::TARGET_CPUS, |core| {
        milli(core.target().cpus)
    });
    each(instances, text, &names::MIN_CPUS, |core| {
        milli(core.policy().policy.bounds.cpus.min)
    });
    each(instances, text, &names::MAX_CPUS, |core| {
        milli(core.policy().policy.bounds.cpus.max)
    });
    each(instances, text, &names::VCPUS, |core| {
        Some(core.vcpus().into())
    });
    each(instances, text, &names::SIZE_MEMORY, |core| {
        bytes(core.size().memory)
    });
    each(instances, text, &names::TARGET_MEMORY, |core| {
        bytes(core.target().memory)
    });
    each(instances, text, &names::MIN_MEMORY, |core| {
        bytes(core.policy().policy.bounds.memory.min)
    });
    each(instances, text, &names::MAX_MEMORY, |core| {
        bytes(core.policy().policy.bounds.memory.max)
    });
    each(instances, text, &names::RESIDENT, |core| {
        Some(core.resident_bytes() as f64)
    });
}

fn signals(instances: &[Arc<Core>], text: &mut Text) {
    let ratio = |core: &Core, metric: &Metric| Some(core.measures.signal(metric)? / 100.0);
    each(instances, text, &names::CPU, |core| {
        ratio(core, &Metric::Cpu)
    });
    each(instances, text, &names::MEMORY, |core| {
        ratio(core, &Metric::Memory)
    });
    let available = |core: &Core| core.measures.signal(&Metric::MemoryAvailable);
    each(instances, text, &names::AVAILABLE, available);
    each(instances, text, &names::STEAL, |core| {
        ratio(core, &Metric::CpuSteal)
    });
    text.family(&names::PRESSURE);
    for core in instances {
        for (resource, metric) in &PRESSURES {
            if let Some(value) = ratio(core, metric) {
                text.sample(&[core.name(), resource], value);
            }
        }
    }
    each(instances, text, &names::RESTARTS, |core| {
        Some(core.restarts() as f64)
    });
    each(instances, text, &names::LOOKS, |core| {
        Some(core.measures.looks() as f64)
    });
    each(instances, text, &names::AGENT_CPU, |core| {
        Some(core.measures.agent_cpu_ns() as f64 / 1e9)
    });
}

fn process(text: &mut Text) {
    let numbers = ProcessNumbers::read();
    for (family, value) in [
        (&names::START, numbers.started_s),
        (&names::PROCESS_CPU, numbers.cpu_s),
        (&names::PROCESS_RESIDENT, numbers.resident_bytes),
        (&names::PROCESS_THREADS, numbers.threads),
        (&names::PROCESS_FDS, numbers.open_fds),
        (&names::PROCESS_FDS_MAX, numbers.max_fds),
    ] {
        text.family(family);
        if let Some(value) = value {
            text.sample(&[], value);
        }
    }
}

#[cfg(test)]
mod tests;
