//! `concertina status`: one instance, once or again and again, for people or for programs; and why
//! it has the size that it has.

pub mod remote;
mod watch;
mod why;

use std::time::Duration;

use concertina_agent::client;
use concertina_agent::state_dir::{Ending, InstanceEntry, StateDir};
use concertina_api::disk::DiskStatus;
use concertina_api::instance::{
    CpuStatus, GuestStatus, InstanceSize, InstanceState, InstanceStatus, IoStatus, MemoryStatus,
    RateStatus, ThresholdStatus,
};
use concertina_api::net::{NetRates, NetStatus, NetTraffic};
use concertina_api::vm::ResizeReport;
use concertina_api::{Bytes, Cpus, IoRate, Quota};
use serde::Serialize;

use crate::commands::top::parse_interval;
use crate::{output, state};

const EXAMPLES: &str = "\
Examples:
  concertina status web
  concertina status web --why
  concertina status web --watch --interval 250ms | tee web.log
  concertina status web --json | jq .cpus.online
  concertina status web --watch --json | jq -c '[.time, .observed.cpu, .cpus.online]'

--watch prints a line when something is other than a look before: time (UTC), state, load (use
of its CPUs, percent), CPUs online, quota and target, memory plugged, target and resident on the
host, pressure (percent of the time in which something waited), and what happened since the line
before. It ends with the instance, with exit status 0; the last line says how the instance ended.

--why says for CPUs and memory which size there is and who set it (at launch, by hand, or which
rule), what each rule looks at and how far it is, what keeps it from acting (bounds, cooldown, a
hold after a resize by hand, the hour's changes of direction, a host that is short), and what
would have to happen for another size.

JSON fields: name, state, uptime_ms, cpus {min,max,target,online,quota}, memory {min,max,target,
plugged,balloon,guest_total,guest_available,host_resident} in bytes, io {disks [{path,capacity,
read_only,serial,rate,engine,direct,read_bytes,written_bytes,reads,writes,flushes,discards,
throttled,errors,last_error,bad_requests}], nets [{link,tap,mac,link_up,driver_ready,
rx,tx {bytes,frames,drops,throttled},bad_requests,rates {rx,tx}}]}, guest (what the agent in the
guest says, or null), last_resize, thresholds [{rule,state,last_value,window {breaching,need,of,
period_ms},cooldown_remaining_ms,held {reason,detail}}], scaling {mode,shrink_window_ms,
reversals_per_hour,cpus,memory {manual_hold_remaining_ms,reversals}}, observed (each metric that
is known, by its name in rules), recommended {cpus,memory} where a policy with
mode = \"recommend\" wants another size, policy_version, waiting {cpus,memory} (growth that the
host has no room for yet), restarts (after failures). An unknown value is null or absent. Of an
instance that ended only name, state and ending {status,reason,exit_reason,time} are known. States:
starting, running, paused, stopping, stopped, failed.
With --watch there is one object a look, on one line, with time and events (since the object
before) beside these; while there is no answer it has only those two.
With --why: name, mode, axes [{axis,size,min,max,target,set_by {by,cause,note,time,ago_ms},
on_its_way,manual_hold_remaining_ms,reversals,reversals_per_hour,rules [{rule,state,metric,value,
would_make,needs,held,cooldown_remaining_ms}]}]; sizes are CPUs or bytes.";

/// Pause between two looks of `--watch`.
const WATCH_PERIOD: Duration = Duration::from_secs(1);

/// Arguments of `status`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Name of the instance
    name: String,
    /// Print JSON; with --watch one object a line
    #[arg(long)]
    json: bool,
    /// Print a line when something changes, until the instance ends
    #[arg(short, long)]
    watch: bool,
    /// Time between two looks of --watch, 100ms to 1h; 1s by default
    #[arg(short, long, value_name = "T", value_parser = parse_interval, requires = "watch")]
    interval: Option<Duration>,
    /// Say why it has the size that it has, and what would change it
    #[arg(long, conflicts_with = "watch")]
    why: bool,
}

/// Prints the status.
pub fn run(args: &Args, state: &StateDir) -> anyhow::Result<i32> {
    let entry = state::find(state, &args.name)?;
    if args.watch {
        let interval = args.interval.unwrap_or(WATCH_PERIOD);
        watch::watch(&entry.name, state, interval, args.json)?;
        let ended = state::find(state, &args.name)?;
        return print_ended(args, &ended);
    }
    if !entry.alive {
        return print_ended(args, &entry);
    }
    let status = client::status(&entry.paths)?;
    match (args.why, args.json) {
        (true, as_json) => why::print(&status, &entry.paths.events, as_json)?,
        (false, true) => output::json(&status)?,
        (false, false) => output::line(&describe(&status))?,
    }
    Ok(0)
}

/// How an instance ended.
fn print_ended(args: &Args, entry: &InstanceEntry) -> anyhow::Result<i32> {
    if args.json {
        let value = EndedStatus::of(entry);
        if args.watch {
            output::json_line(&value)?;
        } else {
            output::json(&value)?;
        }
        return Ok(0);
    }
    let how = match (&entry.ending, entry.left_vmm) {
        (Some(ending), _) => format!(
            "{} ({}, exit status {})",
            ending.reason, ending.time, ending.status
        ),
        (None, Some(vmm)) => format!(
            "process {vmm}, without its agent; 'concertina agent' with this state folder takes it over"
        ),
        (None, None) => "its supervisor died without a word".to_owned(),
    };
    output::line(&format!(
        "{}: {}: {how}",
        entry.name,
        state_word(entry.state)
    ))?;
    Ok(0)
}

/// An instance that ended, in the shape of a status whose values are unknown.
#[derive(Serialize)]
struct EndedStatus<'a> {
    name: &'a str,
    state: InstanceState,
    uptime_ms: Option<u64>,
    agent_pid: i32,
    vmm_pid: Option<i32>,
    cpus: Option<CpuStatus>,
    memory: Option<MemoryStatus>,
    io: Option<IoStatus>,
    last_resize: Option<ResizeReport<InstanceSize>>,
    thresholds: [ThresholdStatus; 0],
    ending: Option<&'a Ending>,
}

impl<'a> EndedStatus<'a> {
    fn of(entry: &'a InstanceEntry) -> Self {
        Self {
            name: &entry.name,
            state: entry.state,
            uptime_ms: None,
            agent_pid: entry.agent_pid,
            vmm_pid: entry.left_vmm,
            cpus: None,
            memory: None,
            io: None,
            last_resize: None,
            thresholds: [],
            ending: entry.ending.as_ref(),
        }
    }
}

/// The word of a state, as in JSON.
pub fn state_word(state: InstanceState) -> &'static str {
    match state {
        InstanceState::Starting => "starting",
        InstanceState::Running => "running",
        InstanceState::Paused => "paused",
        InstanceState::Stopping => "stopping",
        InstanceState::Stopped => "stopped",
        InstanceState::Failed => "failed",
    }
}

/// What the guest can use: vCPUs online, limited by the quota.
pub fn cpus_in_force(cpus: &CpuStatus) -> Cpus {
    let online = Cpus(cpus.online.saturating_mul(1000));
    match cpus.quota {
        Quota::Max => online,
        Quota::Limited(quota) => quota.min(online),
    }
}

/// What the agent in the guest says, in one line.
fn describe_guest(guest: &GuestStatus) -> String {
    let number = |value: Option<f64>, unit: &str| {
        value.map_or("unknown".to_owned(), |value| format!("{value:.1}{unit}"))
    };
    let swap = guest
        .swap_used
        .map_or("unknown".to_owned(), |used| used.to_string());
    let mut line = format!(
        "load {}, pressure cpu {} memory {} io {}, swap {swap}",
        number(guest.load1, ""),
        number(guest.cpu_pressure, "%"),
        number(guest.memory_pressure, "%"),
        number(guest.io_pressure, "%"),
    );
    for (name, value) in &guest.custom {
        line.push_str(&format!(", custom.{name} {value}"));
    }
    line
}

/// The status for people.
fn describe(status: &InstanceStatus) -> String {
    let mut text = format!(
        "{}  {}  up {}  (process {}{})\n\n",
        status.name,
        state_word(status.state),
        output::span_ms(status.uptime_ms),
        status.agent_pid,
        status
            .vmm_pid
            .map(|pid| format!(", vmm {pid}"))
            .unwrap_or_default(),
    );
    text.push_str(&size_table(status));
    text.push_str("\n\n");
    if !status.io.disks.is_empty() {
        text.push_str(&disk_table(&status.io.disks));
        text.push_str("\n\n");
    }
    if !status.io.nets.is_empty() {
        text.push_str(&net_table(&status.io.nets));
        text.push_str("\n\n");
    }
    if let Some(guest) = &status.guest {
        text.push_str(&format!("Guest: {}\n", describe_guest(guest)));
    }
    if let Some(report) = &status.last_resize {
        text.push_str(&format!("Last resize: {}\n", describe_resize(report)));
    }
    if let Some(size) = &status.recommended {
        text.push_str(&format!("Recommended: {}\n", describe_size(size)));
    }
    if status.thresholds.is_empty() {
        text.push_str("No thresholds");
        return text;
    }
    let rows: Vec<Vec<String>> = status
        .thresholds
        .iter()
        .map(|threshold| {
            let value = match threshold.last_value {
                Some(value) => format!("{value:.1}"),
                None => "unknown".to_owned(),
            };
            vec![threshold.rule.clone(), threshold.state.to_string(), value]
        })
        .collect();
    text.push_str(&output::table(
        &["THRESHOLD", "STATE", "LAST VALUE"],
        &rows,
        &[2],
    ));
    text
}

fn disk_table(disks: &[DiskStatus]) -> String {
    let row = |(number, disk): (usize, &DiskStatus)| {
        let mut notes = Vec::new();
        if disk.read_only {
            notes.push("read-only".to_owned());
        }
        if let Some(error) = &disk.last_error {
            notes.push(format!("{} failed, the last: {error}", disk.errors));
        }
        vec![
            number.to_string(),
            disk.path.display().to_string(),
            output::size(disk.capacity),
            disk.rate.to_string(),
            output::size(Bytes(disk.read_bytes)),
            output::size(Bytes(disk.written_bytes)),
            notes.join(", "),
        ]
    };
    let rows: Vec<_> = disks.iter().enumerate().map(row).collect();
    let head = ["DISK", "PATH", "SIZE", "RATE", "READ", "WRITTEN", ""];
    output::table(&head, &rows, &[0, 2, 3, 4, 5])
}

fn net_table(nets: &[NetStatus]) -> String {
    let moved = |traffic: &NetTraffic| {
        let bytes = output::size(Bytes(traffic.bytes));
        match traffic.drops {
            0 => bytes,
            drops => format!("{bytes}, {drops} lost"),
        }
    };
    let limit = |rates: &NetRates| match (rates.rx, rates.tx) {
        (rx, tx) if rx == tx => rx.to_string(),
        (rx, tx) => format!("to {rx}, from {tx}"),
    };
    let row = |(number, net): (usize, &NetStatus)| {
        vec![
            number.to_string(),
            net.tap.clone().unwrap_or_else(|| "user".into()),
            net.mac.to_string(),
            limit(&net.rates),
            moved(&net.rx),
            moved(&net.tx),
            if net.link_up { "" } else { "link down" }.to_owned(),
        ]
    };
    let rows: Vec<_> = nets.iter().enumerate().map(row).collect();
    let head = ["NET", "HOST", "MAC", "RATE", "TO GUEST", "FROM GUEST", ""];
    output::table(&head, &rows, &[0, 3, 4, 5])
}

fn size_table(status: &InstanceStatus) -> String {
    let (cpus, memory, io) = (&status.cpus, &status.memory, &status.io);
    let unknown = |bytes: Option<Bytes>| bytes.map_or("unknown".to_owned(), output::size);
    let mut rows = vec![
        vec![
            "cpus".to_owned(),
            cpus.min.to_string(),
            cpus.max.to_string(),
            cpus.target.to_string(),
            cpus_in_force(cpus).to_string(),
            format!("{} online, quota {}", cpus.online, cpus.quota),
        ],
        vec![
            "memory".to_owned(),
            memory.min.to_string(),
            memory.max.to_string(),
            memory.target.to_string(),
            Bytes(memory.plugged.get().saturating_sub(memory.balloon.get())).to_string(),
            format!(
                "{} plugged, {} balloon, {} resident; guest: {} of {} available",
                memory.plugged,
                memory.balloon,
                output::size(memory.host_resident),
                unknown(memory.guest_available),
                unknown(memory.guest_total),
            ),
        ],
    ];
    let has = io.disks.first().map(|disk| disk.rate);
    let limit = rate_row("disk rate", io.disk_rate, has, "of each disk");
    rows.extend(limit);
    let has = io.nets.first().map(|net| net.rates.rx);
    let of = "of each network interface, in each direction";
    rows.extend(rate_row("net rate", io.net_rate, has, of));
    output::table(
        &["", "MIN", "MAX", "TARGET", "HAS", ""],
        &rows,
        &[1, 2, 3, 4],
    )
}

/// A limit that has bounds: all devices of a kind have the same.
fn rate_row(
    name: &str,
    limit: Option<RateStatus>,
    has: Option<IoRate>,
    of: &str,
) -> Option<Vec<String>> {
    let limit = limit?;
    let has = has.map_or("unknown".to_owned(), |rate| rate.to_string());
    Some(vec![
        name.to_owned(),
        limit.min.to_string(),
        limit.max.to_string(),
        limit.target.to_string(),
        has,
        of.to_owned(),
    ])
}

/// A size in words: `2 CPUs and 512M`.
pub fn describe_size(size: &InstanceSize) -> String {
    let cpus = size.cpus.map(|cpus| {
        format!(
            "{cpus} CPU{}",
            if cpus == Cpus::whole(1) { "" } else { "s" }
        )
    });
    let memory = size.memory.map(|memory| memory.to_string());
    let disks = size.disk_rate.map(|wish| match wish.disk {
        Some(number) => format!("{} for disk {number}", wish.rate),
        None => format!("{} for all disks", wish.rate),
    });
    let nets = size.net_rate.map(|change| change.to_string());
    let parts = [cpus, memory, disks, nets];
    let parts: Vec<String> = parts.into_iter().flatten().collect();
    if parts.is_empty() {
        return "nothing".to_owned();
    }
    parts.join(" and ")
}

/// How a resize ended, in one sentence.
pub fn describe_resize(report: &ResizeReport<InstanceSize>) -> String {
    let mut text = format!(
        "{}: asked {}",
        report.outcome.as_str(),
        describe_size(&report.asked)
    );
    if report.got != report.asked {
        text.push_str(&format!(", got {}", describe_size(&report.got)));
    }
    if let Some(total) = report.timeline_ms.get("total") {
        text.push_str(&format!(", in {total:.0} ms"));
    }
    if let Some(reason) = &report.reason {
        text.push_str(&format!(": {reason}"));
    }
    text
}

#[cfg(test)]
pub mod tests {
    use std::collections::BTreeMap;

    use concertina_api::net::NetLink;
    use concertina_api::vm::Outcome;
    use serde_json::json;

    use super::*;

    /// An instance with 2 vCPUs at a quota of 1.5 and 512 MiB less a balloon of 64 MiB.
    pub fn example() -> InstanceStatus {
        let size = |cpus| InstanceSize {
            cpus: Some(Cpus(cpus)),
            ..InstanceSize::default()
        };
        InstanceStatus {
            name: "web".into(),
            state: InstanceState::Running,
            uptime_ms: 61_500,
            agent_pid: 70,
            vmm_pid: Some(71),
            cpus: CpuStatus {
                min: Cpus(500),
                max: Cpus(4000),
                target: Cpus(2000),
                online: 2,
                quota: Quota::Limited(Cpus(1500)),
            },
            memory: MemoryStatus {
                min: Bytes::mib(256),
                max: Bytes::mib(1024),
                target: Bytes::mib(448),
                plugged: Bytes::mib(512),
                balloon: Bytes::mib(64),
                guest_total: None,
                guest_available: Some(Bytes::mib(100)),
                host_resident: Bytes::mib(90),
            },
            io: IoStatus {
                disk_rate: Some(RateStatus {
                    min: "10M,500iops".parse().unwrap(),
                    max: "100M,5000iops".parse().unwrap(),
                    target: "60M,2000iops".parse().unwrap(),
                }),
                net_rate: None,
                disks: vec![DiskStatus {
                    path: "/srv/data.img".into(),
                    capacity: Bytes::mib(2048),
                    read_only: true,
                    serial: None,
                    rate: "50M,2000iops".parse().unwrap(),
                    engine: "io_uring".into(),
                    direct: true,
                    read_bytes: 3 << 20,
                    written_bytes: 0,
                    reads: 5,
                    writes: 0,
                    flushes: 0,
                    discards: 0,
                    throttled: 1,
                    errors: 2,
                    last_error: Some("Read: broken".into()),
                    bad_requests: 0,
                }],
                nets: vec![NetStatus {
                    link: NetLink::Tap,
                    tap: Some("vm0".into()),
                    mac: "02:00:00:00:00:01".parse().unwrap(),
                    link_up: false,
                    driver_ready: true,
                    rx: NetTraffic {
                        bytes: 5 << 20,
                        frames: 4000,
                        drops: 3,
                        throttled: 0,
                    },
                    tx: NetTraffic::default(),
                    bad_requests: 0,
                    rates: NetRates {
                        rx: "10M".parse().unwrap(),
                        tx: IoRate::MAX,
                    },
                }],
            },
            guest: None,
            last_resize: Some(ResizeReport {
                outcome: Outcome::Partial,
                asked: size(2000),
                got: size(1500),
                reason: Some("the guest is slow".into()),
                ost: None,
                timeline_ms: BTreeMap::from([("total".to_owned(), 12.4)]),
            }),
            recommended: Some(size(2500)),
            policy_version: 1,
            waiting: None,
            restarts: 0,
            thresholds: vec![ThresholdStatus {
                rule: "cpu > 75% for 5s: +1 cpu".into(),
                state: "unknown".into(),
                ..ThresholdStatus::default()
            }],
            scaling: None,
            observed: BTreeMap::new(),
        }
    }

    #[test]
    fn json_has_the_fields_of_the_contract() {
        let value = serde_json::to_value(example()).unwrap();
        for path in [
            "/name",
            "/state",
            "/uptime_ms",
            "/cpus/min",
            "/cpus/max",
            "/cpus/target",
            "/cpus/online",
            "/cpus/quota",
            "/memory/min",
            "/memory/max",
            "/memory/target",
            "/memory/plugged",
            "/memory/balloon",
            "/memory/guest_total",
            "/memory/guest_available",
            "/memory/host_resident",
            "/io/disks/0/path",
            "/io/disk_rate/min/bytes_per_s",
            "/io/disk_rate/target/ops_per_s",
            "/io/disks/0/rate/bytes_per_s",
            "/io/disks/0/errors",
            "/io/nets/0/mac",
            "/io/nets/0/rx/throttled",
            "/io/nets/0/rates/tx/ops_per_s",
            "/last_resize/outcome",
            "/thresholds/0/rule",
            "/thresholds/0/state",
            "/thresholds/0/last_value",
        ] {
            assert!(
                value.pointer(path).is_some(),
                "{path} is missing in {value}"
            );
        }
        assert_eq!(value.pointer("/memory/plugged"), Some(&json!(512 << 20)));
        assert_eq!(value.pointer("/cpus/quota"), Some(&json!(1.5)));
    }

    #[test]
    fn people_read_bounds_target_and_what_is_there() {
        let text = describe(&example());
        for word in [
            "web",
            "running",
            "1m 01s",
            "0.5",
            "448M",
            "quota 1.5",
            "unknown",
            "90M",
            "/srv/data.img",
            "50M,2000iops",
            "60M,2000iops",
            "100M,5000iops",
            "of each disk",
            "read-only, 2 failed, the last: Read: broken",
            "vm0",
            "02:00:00:00:00:01",
            "to 10M, from max",
            "5M, 3 lost",
            "link down",
        ] {
            assert!(text.contains(word), "{word} is missing in:\n{text}");
        }
        assert!(text.contains("partial: asked 2 CPUs, got 1.5 CPUs, in 12 ms: the guest is slow"));
        assert!(text.contains("Recommended: 2.5 CPUs"), "{text}");
    }
}
