//! Numbers of a host and its instances in Prometheus' text format (version 0.0.4).

use std::fmt::Write;
use std::sync::Arc;

use concertina_api::policy::Axis;

use super::Host;

/// All of them.
pub(super) fn text(host: &Arc<Host>) -> String {
    let mut text = String::new();
    let books = host.books();
    let (cpus, memory) = (books.account(Axis::Cpus), books.account(Axis::Memory));
    let cpu = |milli: u64| milli as f64 / 1000.0;
    for (name, help, of_cpus, of_memory) in [
        (
            "limit",
            "The most that may be promised",
            cpus.limit,
            memory.limit,
        ),
        (
            "held",
            "Promised or in use, overhead included",
            cpus.held,
            memory.held,
        ),
        (
            "guaranteed",
            "Lower bounds of all instances",
            cpus.guaranteed,
            memory.guaranteed,
        ),
        (
            "awaited",
            "Wanted by those who wait",
            cpus.awaited,
            memory.awaited,
        ),
    ] {
        gauge(
            &mut text,
            &format!("concertina_host_cpus_{name}"),
            help,
            &[("", cpu(of_cpus))],
        );
        let name = format!("concertina_host_memory_{name}_bytes");
        gauge(&mut text, &name, help, &[("", of_memory as f64)]);
    }
    let instances = host.instances();
    let each = |value: &dyn Fn(&crate::policy::Size) -> f64| -> Vec<(String, f64)> {
        let named = instances.iter().map(|core| {
            (
                format!("{{instance=\"{}\"}}", core.name()),
                value(&core.size()),
            )
        });
        named.collect()
    };
    let sizes = each(&|size| cpu(size.cpus.milli().into()));
    let sizes: Vec<(&str, f64)> = sizes.iter().map(|(n, v)| (n.as_str(), *v)).collect();
    gauge(
        &mut text,
        "concertina_instance_cpus",
        "CPUs that an instance has",
        &sizes,
    );
    let sizes = each(&|size| size.memory.get() as f64);
    let sizes: Vec<(&str, f64)> = sizes.iter().map(|(n, v)| (n.as_str(), *v)).collect();
    gauge(
        &mut text,
        "concertina_instance_memory_bytes",
        "Memory that an instance has",
        &sizes,
    );
    text
}

/// One metric with its samples: labels, and value.
fn gauge(text: &mut String, name: &str, help: &str, samples: &[(&str, f64)]) {
    // Writing to a string does not fail.
    let _ = writeln!(text, "# HELP {name} {help}.\n# TYPE {name} gauge");
    for (labels, value) in samples {
        let _ = writeln!(text, "{name}{labels} {value}");
    }
}
