//! All families that the agent exports. `docs/metrics.md` has the same table, which a test compares.

use super::text::{Family, Kind};

// Not `instance`: Prometheus gives that label to what it scrapes.
const VM: &[&str] = &["vm"];
const WAY: &[&str] = &["axis", "direction"];

macro_rules! families {
    ($($constant:ident = $kind:ident $name:literal $labels:expr, $help:literal;)*) => {
        $(pub const $constant: Family = Family {
            name: $name,
            kind: Kind::$kind,
            labels: $labels,
            help: $help,
        };)*
        /// In the order in which they are exported.
        #[cfg(test)]
        pub const ALL: &[Family] = &[$($constant),*];
    };
}

families! {
    BUILD = Gauge "concertina_build_info" &["version"], "Always 1; the version is in the label";
    INSTANCES = Gauge "concertina_host_instances" &[], "Instances that are there";

    CPUS_LIMIT = Gauge "concertina_host_cpus_limit" &[],
        "CPUs that may be held: (capacity - reserve) x overcommit";
    CPUS_HELD = Gauge "concertina_host_cpus_held" &[],
        "CPUs that are held: what instances have, or are promised, whichever is more";
    CPUS_ACTUAL = Gauge "concertina_host_cpus_actual" &[], "CPUs that instances have";
    CPUS_GUARANTEED = Gauge "concertina_host_cpus_guaranteed" &[],
        "CPUs that are the lower bounds of all instances";
    CPUS_AWAITED = Gauge "concertina_host_cpus_awaited" &[],
        "CPUs that those who wait for room want beyond what they have";
    MEMORY_LIMIT = Gauge "concertina_host_memory_limit_bytes" &[],
        "Memory that may be held: (capacity - reserve) x overcommit";
    MEMORY_HELD = Gauge "concertina_host_memory_held_bytes" &[],
        "Memory that is held, the overhead of each instance included: what instances have, or are promised, whichever is more";
    MEMORY_ACTUAL = Gauge "concertina_host_memory_actual_bytes" &[], "Memory that instances have";
    MEMORY_GUARANTEED = Gauge "concertina_host_memory_guaranteed_bytes" &[],
        "Memory that is the lower bounds and the overhead of all instances";
    MEMORY_AWAITED = Gauge "concertina_host_memory_awaited_bytes" &[],
        "Memory that those who wait for room want beyond what they have";
    WAITING = Gauge "concertina_host_waiting_instances" &["axis"],
        "Instances that wait for room to grow";

    JOURNAL_BYTES = Gauge "concertina_journal_size_bytes" &[], "Length of the journal";
    JOURNAL_OPEN = Gauge "concertina_journal_open_intents" &[],
        "Changes that were begun and have no outcome yet";
    JOURNAL_OK = Gauge "concertina_journal_writable" &[],
        "1: the journal can be written; 0: it cannot, and nothing is begun until it can";

    LOOK = Histogram "concertina_look_seconds" &[],
        "One look at an instance: its counters are read, its rules decide";
    TO_INTENT = Histogram "concertina_sample_to_intent_seconds" WAY,
        "From the look at the counters until the change that its rules want is in the journal, on the disk";
    PHASE = Histogram "concertina_resize_phase_seconds" &["axis", "direction", "phase"],
        "Parts of a change: decide (look to wish), reserve (ledger, and intent on the disk), act (until devices and cgroups have their targets), read_back (until KVM, device, guest and host agree), commit (outcome written)";
    RESIZES = Counter "concertina_resizes_total" &["axis", "direction", "cause", "outcome"],
        "Changes of size that have ended; cause: manual, rule, or host (which needed room for others)";
    HELD = Counter "concertina_held_looks_total" &["axis", "reason"],
        "Looks at which a rule had fired and was not followed, by reason; an idle instance at its lower bound counts at each look";

    STATE = Gauge "concertina_instance_state" &["vm", "state"],
        "1 for the state that the instance is in";
    SIZE_CPUS = Gauge "concertina_instance_cpus" VM, "CPUs that the instance has";
    TARGET_CPUS = Gauge "concertina_instance_cpus_target" VM, "CPUs that it shall have";
    MIN_CPUS = Gauge "concertina_instance_cpus_min" VM, "Lower bound of its CPUs";
    MAX_CPUS = Gauge "concertina_instance_cpus_max" VM, "Upper bound of its CPUs";
    VCPUS = Gauge "concertina_instance_vcpus" VM, "vCPUs that are online or coming";
    SIZE_MEMORY = Gauge "concertina_instance_memory_bytes" VM, "Memory that the instance has";
    TARGET_MEMORY = Gauge "concertina_instance_memory_target_bytes" VM,
        "Memory that it shall have";
    MIN_MEMORY = Gauge "concertina_instance_memory_min_bytes" VM, "Lower bound of its memory";
    MAX_MEMORY = Gauge "concertina_instance_memory_max_bytes" VM, "Upper bound of its memory";
    RESIDENT = Gauge "concertina_instance_resident_memory_bytes" VM,
        "Anonymous memory of its VM process that is resident on the host";
    CPU = Gauge "concertina_instance_cpu_utilization_ratio" VM,
        "Share of its present CPUs that was used at the last look; absent: unknown";
    MEMORY = Gauge "concertina_instance_memory_utilization_ratio" VM,
        "Share of its guest's memory that was used at the last look; absent: unknown";
    AVAILABLE = Gauge "concertina_instance_memory_available_bytes" VM,
        "Memory that its guest could use without swapping at the last look; absent: unknown";
    STEAL = Gauge "concertina_instance_cpu_steal_ratio" VM,
        "Share of time in which vCPUs were ready and the host ran something else; absent: unknown";
    PRESSURE = Gauge "concertina_instance_pressure_ratio" &["vm", "resource"],
        "Share of time in which something waited for cpu, memory or io, the larger of what host and guest see; absent: unknown";
    RESTARTS = Counter "concertina_instance_restarts_total" VM,
        "Times that its VM was started again after a failure, by this agent";
    LOOKS = Counter "concertina_instance_looks_total" VM, "Looks at the instance";
    AGENT_CPU = Counter "concertina_instance_agent_cpu_seconds_total" VM,
        "CPU time that the agent has spent in watching this instance";

    START = Gauge "process_start_time_seconds" &[], "When the agent was started, since 1970";
    PROCESS_CPU = Counter "process_cpu_seconds_total" &[], "CPU time of the agent";
    PROCESS_RESIDENT = Gauge "process_resident_memory_bytes" &[], "Resident memory of the agent";
    PROCESS_THREADS = Gauge "process_threads" &[], "Threads of the agent";
    PROCESS_FDS = Gauge "process_open_fds" &[], "Descriptors that the agent has open";
    PROCESS_FDS_MAX = Gauge "process_max_fds" &[], "Descriptors that it may have open";
}
