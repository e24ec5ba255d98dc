//! `concertina replay`: what would have become of an instance under a recorded load, with the live
//! decision and with others' ways to scale.

mod chart;
mod report;
mod table;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use anyhow::Context;
use concertina_agent::replay::{
    Actuation, Baseline, Demand, Interpolation, Live, Machine, Scene, Trace, TraceOptions,
    read_trace, run as replay,
};
use concertina_api::policy::check::MIN_CPUS;
use concertina_api::policy::step::{MEMORY_STEP, round_up};
use concertina_api::policy::{Axis, Mode, Policy, PolicyError, PolicyFile, Sources};
use concertina_api::{Bounds, Bytes, Cpus};

use crate::failure::Usage;
use crate::{output, policy};
use report::{Replayed, Report, TraceReport};

const EXAMPLES: &str = "\
Examples:
  concertina replay --policy default --trace cpu.csv --baseline all
  concertina replay --policy web.toml --trace monday.csv --trace tuesday.csv --svg week.svg
  concertina replay --policy web.toml --trace vm.csv --baseline vpa oracle --json
  concertina replay --policy web.toml --trace requests.csv --full 500 --actuation cpu-up=60ms

Traces are CSV files of two kinds. 'timestamp,value': how busy a machine was, in percent; values
beyond 100 are counts, of which --full (or the largest) is a fully used machine. Or a VM of GWA-T-12
(Bitbrains), with its CPU and memory. Demand is share times size of the machine, which is the file's,
or --trace-cpus and --trace-memory, or as large as the upper bounds, or 4 CPUs and 4G. A sample holds
for its interval (--interpolate linear: a straight line to the next one). Where a sample is missing,
demand and measurements are unknown, and nothing is scored. A load that wanted more than its machine
had does not show that in a trace: such samples are counted and said.

The scalers see what could be measured: utilisation of the present size, which ends at 100%, and the
memory that is left, which ends at nothing. What was short is lost and does not queue up. Changes of
size take what --actuation says; by default the medians that the README's table has:
  cpu-up=225ms       growth that adds vCPUs, for each
  cpu-down=17ms      shrinking (the quota)
  cpu-quota=17ms     growth within the vCPUs that are online
  memory-up=422ms    growth
  memory-down=681ms  one probe step of a shrink

Bounds are the policy's, or --cpus and --memory; without either, an eighth of the trace's machine
up to all of it. All start at the lower bounds, and all have the same bounds.

Baselines: static (99.5th percentile and a fifth), hoster (rules over minutes), load-average
(NeonVM's form), vpa (Kubernetes'), proxmox (memory ballooning, CPUs fixed), naive (must lose),
oracle (knows the trace). Scores: unserved demand and slack (held and not used), in CPU-seconds and
MiB-seconds; changes of size, changes of direction; steps (times at which the demand went beyond the
size) and how long they lasted.

JSON fields: actuation, interpolation, traces [{trace, samples, step_seconds, machine, bounds, notes,
results [{name, cpu, memory}]}], total [{name, cpu, memory}]. Sizes are CPUs and MiB.";

/// Machine of a trace about which nothing is known.
const CPUS: f64 = 4.0;
const MEMORY: f64 = (4 * Bytes::GIB) as f64;
/// Lower bounds that nobody gave are this part of the machine.
const LOWER_PART: u64 = 8;

/// Arguments of `replay`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The policy as a TOML file, or 'default': the rules that come with the program
    #[arg(long, value_name = "FILE")]
    policy: PathBuf,
    /// A recorded load; may be given several times
    #[arg(long, value_name = "CSV", required = true, num_args = 1..)]
    trace: Vec<PathBuf>,
    /// Others' ways to scale, to compare with: all, or some by their names
    #[arg(long, value_name = "NAME", num_args = 1.., value_delimiter = ',')]
    baseline: Vec<Baselines>,
    /// Bounds of CPUs, where the policy has none
    #[arg(long, value_name = "MIN[..MAX]")]
    cpus: Option<Bounds<Cpus>>,
    /// Bounds of memory, where the policy has none
    #[arg(long, value_name = "MIN[..MAX]")]
    memory: Option<Bounds<Bytes>>,
    /// A rule or setting that is added to the policy; may be given several times
    #[arg(long, value_name = "RULE")]
    scale: Vec<String>,
    /// CPUs of the machine on which the trace was recorded
    #[arg(long, value_name = "N", value_parser = machine_cpus)]
    trace_cpus: Option<Cpus>,
    /// Memory of the machine on which the trace was recorded
    #[arg(long, value_name = "SIZE", value_parser = machine_memory)]
    trace_memory: Option<Bytes>,
    /// What the values of a 'timestamp,value' trace are a share of
    #[arg(long, value_name = "AXIS", default_value = "cpu", value_parser = axis)]
    metric: Axis,
    /// The value of a 'timestamp,value' trace at which its machine is fully used
    #[arg(long, value_name = "VALUE", value_parser = full)]
    full: Option<f64>,
    /// What is assumed between two samples: hold or linear
    #[arg(long, value_name = "HOW", default_value = "hold", value_parser = interpolation)]
    interpolate: Interpolation,
    /// How long changes of size take: cpu-up, cpu-down, cpu-quota, memory-up, memory-down
    #[arg(long, value_name = "NAME=TIME,…", default_value_t)]
    actuation: Actuation,
    /// Write a chart of demand, size and shortage of each into this file
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// One word of `--baseline`.
#[derive(Debug, Clone)]
struct Baselines(Vec<Baseline>);

impl std::str::FromStr for Baselines {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "all" => Ok(Self(Baseline::ALL.to_vec())),
            name => Ok(Self(vec![name.parse()?])),
        }
    }
}

fn axis(text: &str) -> Result<Axis, String> {
    let found = Axis::ALL.into_iter().find(|axis| axis.as_str() == text);
    found.ok_or_else(|| format!("'{text}' is not cpu or memory"))
}

fn interpolation(text: &str) -> Result<Interpolation, String> {
    match text {
        "hold" => Ok(Interpolation::Hold),
        "linear" => Ok(Interpolation::Linear),
        _ => Err(format!("'{text}' is not hold or linear")),
    }
}

fn full(text: &str) -> Result<f64, String> {
    let value = text.parse::<f64>().ok();
    value
        .filter(|value| *value > 0.0 && *value <= 1e15)
        .ok_or_else(|| format!("'{text}' is not a number above 0"))
}

fn machine_cpus(text: &str) -> Result<Cpus, String> {
    let cpus = text.parse::<Cpus>().map_err(|error| error.to_string())?;
    if cpus == Cpus(0) {
        return Err("a machine has more than 0 CPUs".into());
    }
    Ok(cpus)
}

fn machine_memory(text: &str) -> Result<Bytes, String> {
    let memory = text.parse::<Bytes>().map_err(|error| error.to_string())?;
    if memory == Bytes(0) {
        return Err("a machine has more memory than 0".into());
    }
    Ok(memory)
}

/// Replays each trace and prints the scores.
pub fn run(args: &Args) -> anyhow::Result<i32> {
    let file = policy::read(&args.policy)?;
    let traces = replay_all(args, &file)?;
    let report = Report::new(args.actuation, args.interpolate, traces);
    if let Some(path) = &args.svg {
        std::fs::write(path, chart::draw(&report))
            .with_context(|| format!("Writing {} failed", path.display()))?;
    }
    if args.json {
        output::json(&report)?;
    } else {
        output::line(&table::text(&report))?;
    }
    Ok(0)
}

fn replay_all(args: &Args, file: &PolicyFile) -> anyhow::Result<Vec<TraceReport>> {
    let mut baselines: Vec<Baseline> = Vec::new();
    for baseline in args.baseline.iter().flat_map(|Baselines(some)| some) {
        if !baselines.contains(baseline) {
            baselines.push(*baseline);
        }
    }
    // All that was typed is looked at before the first replay, which takes a while.
    let loads = args
        .trace
        .iter()
        .map(|path| Load::read(args, file, path))
        .collect::<anyhow::Result<Vec<Load>>>()?;
    in_parallel(&loads, |load| load.replay(args, &baselines))
}

/// Works on each item with as many threads as there are processors; the results are in the items'
/// order.
fn in_parallel<T: Sync, R: Send>(
    items: &[T],
    work: impl Fn(&T) -> R + Sync,
) -> anyhow::Result<Vec<R>> {
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let next = AtomicUsize::new(0);
    let worker = || {
        let mut done = Vec::new();
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            match items.get(at) {
                Some(item) => done.push((at, work(item))),
                None => return done,
            }
        }
    };
    let done = thread::scope(|scope| {
        let workers: Vec<_> = (0..threads.min(items.len()))
            .map(|_| scope.spawn(worker))
            .collect();
        let ended = workers.into_iter().map(|worker| worker.join());
        ended.collect::<Result<Vec<_>, _>>()
    });
    let done = done.map_err(|_| anyhow::anyhow!("A replay has failed"))?;
    let mut done: Vec<(usize, R)> = done.into_iter().flatten().collect();
    done.sort_by_key(|(at, _)| *at);
    Ok(done.into_iter().map(|(_, result)| result).collect())
}

/// A trace with the instance that is put under its load.
struct Load {
    name: String,
    trace: Trace,
    machine: Machine,
    policy: Policy,
}

impl Load {
    fn read(args: &Args, file: &PolicyFile, path: &Path) -> anyhow::Result<Self> {
        let wrong = |why: String| Usage(format!("Trace '{}': {why}", path.display()));
        let text = std::fs::read_to_string(path).map_err(|error| wrong(error.to_string()))?;
        let options = TraceOptions {
            axis: args.metric,
            full: args.full,
        };
        let trace = read_trace(&text, &options).map_err(|error| wrong(error.to_string()))?;
        let (cpus, memory) = file.bounds();
        let given = (args.cpus.or(cpus), args.memory.or(memory));
        let machine = machine(args, &trace, given);
        let bounds = (
            given.0.unwrap_or_else(|| default_cpus(&machine)),
            given.1.unwrap_or_else(|| default_memory(&machine)),
        );
        let policy = read_policy(args, file, bounds)?;
        Ok(Self {
            name: path.display().to_string(),
            trace,
            machine,
            policy,
        })
    }

    fn replay(&self, args: &Args, baselines: &[Baseline]) -> TraceReport {
        let demand = Demand::new(&self.trace, &self.machine, args.interpolate);
        let scene = Scene {
            demand: &demand,
            bounds: self.policy.bounds,
            actuation: args.actuation,
            hold_ms: self.policy.shrink_window_ms,
        };
        let mut live = Live::new(self.policy.clone());
        let mut results = vec![Replayed::new(report::POLICY, replay(&scene, &mut live))];
        for baseline in baselines {
            let mut scaler = baseline.scaler(&demand, &scene.bounds);
            let ended = replay(&scene, &mut *scaler);
            results.push(Replayed::new(baseline.as_str(), ended));
        }
        TraceReport::new(&self.name, &self.trace, self.machine, scene.bounds, results)
            .with_notes(self.notes())
    }

    /// What has to be known for reading the scores, besides what the trace says.
    fn notes(&self) -> Vec<String> {
        let blind = Live::blind_rules(&self.policy)
            .map(|rule| format!("Rule '{rule}' rests: no trace tells of its metric"));
        let recommends = (self.policy.mode == Mode::Recommend).then(|| {
            "The policy's mode is recommend: replayed as if it acted, which live it does not"
                .to_owned()
        });
        blind.chain(recommends).collect()
    }
}

type Given = (Option<Bounds<Cpus>>, Option<Bounds<Bytes>>);

fn machine(args: &Args, trace: &Trace, given: Given) -> Machine {
    let cpus = args.trace_cpus.map(Cpus::as_f64);
    let memory = args.trace_memory.map(|memory| memory.get() as f64);
    let cpus = cpus
        .or(trace.cpus)
        .or(given.0.map(|bounds| bounds.max.as_f64()));
    let memory = memory
        .or(trace.memory_bytes)
        .or(given.1.map(|bounds| bounds.max.get() as f64));
    Machine {
        cpus: cpus.unwrap_or(CPUS),
        memory_bytes: memory.unwrap_or(MEMORY),
    }
}

fn default_cpus(machine: &Machine) -> Bounds<Cpus> {
    // Casts from floating point saturate.
    let max = Cpus((machine.cpus * 1000.0).round() as u32).max(MIN_CPUS);
    Bounds {
        min: Cpus(max.milli() / LOWER_PART as u32).max(MIN_CPUS),
        max,
    }
}

fn default_memory(machine: &Machine) -> Bounds<Bytes> {
    let max = round_up(machine.memory_bytes as u64, MEMORY_STEP);
    Bounds {
        min: Bytes(round_up(max / LOWER_PART, MEMORY_STEP)),
        max: Bytes(max),
    }
}

fn read_policy(
    args: &Args,
    file: &PolicyFile,
    (cpus, memory): (Bounds<Cpus>, Bounds<Bytes>),
) -> anyhow::Result<Policy> {
    let usage = |error: PolicyError| Usage(error.to_string());
    let file = file.clone();
    let mut policy = file.into_policy(Some(cpus), Some(memory)).map_err(usage)?;
    for text in &args.scale {
        policy.scale(text).map_err(usage)?;
    }
    policy.check(&Sources::all()).map_err(usage)?;
    Ok(policy)
}

#[cfg(test)]
mod tests;
