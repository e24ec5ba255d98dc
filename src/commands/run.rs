//! `concertina run`: launches an instance and stays with it, in the foreground or in the background.

mod background;
mod by_agent;
mod foreground;
pub mod image;
pub mod remote;

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use concertina_agent::host::HostRecord;
use concertina_agent::launch::LaunchSpec;
use concertina_agent::state_dir::StateDir;
use concertina_api::disk::DiskSpec;
use concertina_api::host::LAUNCH_WAIT_MAX_MS;
use concertina_api::net::NetWish;
use concertina_api::policy::{Policy, PolicyError, PolicyFile, Source, Sources};
use concertina_api::{Bounds, Bytes, Cpus, RateBounds};

use crate::args::parse_duration;
use crate::failure::Usage;
use crate::{guest, policy};

const EXAMPLES: &str = "\
Examples:
  concertina run --name web --cpus 2 --memory 512M
  concertina run --name web --cpus 0.5..4 --memory 256M..1G --detach \\
      --scale 'cpu > 75% for 5s: +1 cpu' --scale 'cpu < 20% for 60s: -1 cpu' \\
      --scale 'memory > 80% for 2s: +128M, cooldown 5s'
  concertina run --name web --cpus 0.25..4 --memory 256M..4G --policy default
  concertina run --name web --policy web.toml --kernel bzImage --initrd initramfs.cpio --console
  concertina run --name web --cpus 1..4 --memory 512M..4G --image debian-12.raw \\
      --ssh-key ~/.ssh/id_ed25519.pub --user-data web.yaml --detach
  concertina run --name db --cpus 2 --memory 1G --disk data.img,serial=data,rate=50M,2000iops

With --image a distribution boots from its disk with its own kernel and initrd, unmodified;
'concertina image' builds, imports and inspects such disks.

Without --image and --kernel the default guest is used: this host's own kernel where it suits, else
Debian's cloud kernel, with an initramfs that is built for it; both are kept in the cache folder. With
--kernel alone the initramfs is built from that kernel's modules, where they are found.

Rules (--scale), each with metric, comparison, level, time, action:
  cpu > 75% for 5s: +1 cpu          cpu < 20% for 60s: -1 cpu
  memory > 80% for 2s: +512M        memory.pressure > 10% for 1s: +25%
  cpu > 80% 3 of 5: +0.5 cpu, cooldown 10s
  target cpu 60%
Metrics: cpu, cpu.pressure, cpu.steal, memory, memory.available, memory.pressure, io.pressure, and
from the agent in the guest load1, swap and custom.NAME (see 'concertina-guest agent --help').
Limits of disks and networks with bounds (--disk-rate 10M..100M, --net-rate 80mbit..800mbit) scale too:
  disk > 80% for 3s: +20 disk.mbps  disk < 20% for 60s: -20 disk.mbps
  net > 80% for 3s: +25%            net < 20% for 60s: -100 net.mbps
  target disk 70% for 3s
disk.mbps are MiB (1,048,576 bytes) a second, net.mbps are 1,000,000 bits a second, disk.iops and net.pps
are requests and packets a second. A limit holds for each disk, and for each network interface in each
direction. Metrics: disk and net in % of the limit that it has now (of several devices the busiest, unknown
without a limit), disk.requests and net.packets the same for a limit of requests or packets; disk.mbps,
disk.iops, net.mbps, net.pps: what all devices together move.
The same in TOML (--policy):
  [bounds]
  cpus   = { min = 1, max = 4 }
  memory = { min = \"512M\", max = \"4G\" }
  disk   = { min = \"10M\", max = \"100M\" }
  net    = { min = \"80mbit\", max = \"800mbit\" }
  [[threshold]]
  metric = \"cpu\"
  above  = \"75%\"
  for    = \"5s\"
  add    = { cpus = 1 }             # or { disk.mbps = 20 }, { net.mbps = 100 }, …
With mode = \"recommend\" in the file, or --scale 'set mode recommend', what the rules want is
reported in 'status' and 'events', and the instance keeps its size.

Network (--net, once for each interface):
  --net tap               a tap interface that is made, and removed at the end
  --net tap=vm0           the tap interface vm0 (made when there is none of this name)
  --net user,forward=8080:80
                          without root, through passt: the guest reaches what this host reaches;
                          port 8080 of 127.0.0.1 leads to port 80 of the guest
  each may end with ,mac=02:00:00:00:00:01 ,mtu=1400 ,rate=10M (both directions) ,rx-rate=10M
  (to the guest) ,tx-rate=5M,2000iops (from the guest)
Addresses and bridges of tap interfaces are this host's business: ip address add … dev vm0, or
ip link set vm0 master br0.

Foreground: the serial console's output is copied to standard output; nothing is typed to the
guest. Ctrl-C (or SIGTERM, SIGHUP) asks the guest to power off, a second one ends the VM at once.
--console: every key goes to the guest; Ctrl-] goes back to the mode above.
--detach: returns as soon as the guest runs, and prints the name.
Where an agent ('concertina agent') owns the state folder, it launches the instance and keeps it; the
foreground shows the console, and its end is the instance's. A host without room for the lower bounds
refuses at once, with the numbers, or after --wait-for-room.

Exit status: 0 when the guest powered off or was stopped, 1 when the launch failed, 2 when an
option is wrong, 65 after a triple fault, 66 after a KVM error, 67 when the guest resets itself
again and again right after its start, 128 + N when signal N killed the VM's process.";

/// Arguments of `run`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Name of the instance: 1 to 63 of a-z, 0-9 and '-'
    #[arg(long, value_name = "N")]
    name: String,
    /// Kernel: bzImage or ELF vmlinux
    #[arg(long, value_name = "F")]
    kernel: Option<PathBuf>,
    /// Initial ram file system
    #[arg(long, value_name = "F")]
    initrd: Option<PathBuf>,
    #[command(flatten)]
    image: image::ImageArgs,
    /// Text that is appended to the kernel command line
    #[arg(long, value_name = "STR", allow_hyphen_values = true)]
    append: Option<String>,
    /// Bounds of CPUs, or a fixed number: 0.5..4, 2
    #[arg(long, value_name = "MIN[..MAX]", required_unless_present = "policy")]
    pub cpus: Option<Bounds<Cpus>>,
    /// Bounds of memory, or a fixed size: 256M..1G, 1.5G
    #[arg(long, value_name = "MIN[..MAX]", required_unless_present = "policy")]
    pub memory: Option<Bounds<Bytes>>,
    /// A disk: raw image file or block device; may be given several times. ro: the guest cannot
    /// write, and several instances may have it at once; cached: through the host's page cache; rate, the last option: a limit like 100M,
    /// 2000iops or both
    #[arg(long = "disk", value_name = "PATH[,ro][,cached][,serial=S][,rate=R]")]
    pub disks: Vec<DiskSpec>,
    /// A rule by which the instance grows or shrinks; may be given several times
    #[arg(long, value_name = "RULE")]
    pub scale: Vec<String>,
    /// Bounds and rules from a TOML file, or 'default': the rules that come with the program; --scale
    /// adds to them
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
    /// Bounds of the limit of each disk, or a fixed one, in bytes or requests a second or both: 10M..100M,
    /// 500iops..5000iops, 10M,500iops..100M,5000iops
    #[arg(long, value_name = "MIN[..MAX]")]
    pub disk_rate: Option<RateBounds>,
    /// Bounds of the limit of each network interface in each direction, or a fixed one, in bits, bytes or
    /// packets a second: 80mbit..800mbit, 10M..100M, 1000pps..50000pps
    #[arg(long, value_name = "MIN[..MAX]")]
    pub net_rate: Option<RateBounds>,
    /// A network interface: tap, tap=NAME or user[,forward=HOST:GUEST]; may be given several times
    #[arg(long = "net", value_name = "NET")]
    nets: Vec<NetWish>,
    /// Connect this terminal to the guest's serial console
    #[arg(long, conflicts_with = "detach")]
    console: bool,
    /// Run in the background; return when the guest runs
    #[arg(short, long)]
    detach: bool,
    /// How long to wait for room on the host where it has not enough: its agent asks instances that hold
    /// more than they need to shrink. Without it a launch that finds no room is refused at once
    #[arg(long, value_name = "TIME", value_parser = parse_wait)]
    wait_for_room: Option<Duration>,
    /// Folder where kernels and guest images are kept
    #[arg(long, value_name = "DIR", env = "CONCERTINA_CACHE_DIR")]
    cache_dir: Option<PathBuf>,
}

/// A time as the command line has it, of which the agent takes an hour at most.
fn parse_wait(text: &str) -> Result<Duration, String> {
    let time = parse_duration(text)?;
    if time > Duration::from_millis(LAUNCH_WAIT_MAX_MS) {
        return Err(format!("'{text}' is too long: at most 1h is allowed"));
    }
    Ok(time)
}

/// Launches; gives the instance's exit status.
pub fn run(args: Args, state: StateDir) -> anyhow::Result<i32> {
    let policy = read_policy(&args)?;
    // A name that is wrong or taken is refused before a guest is fetched and built.
    refuse_taken(&args.name, &state)?;
    let cache_dir = args.cache_dir.as_deref();
    let image = match &args.image.image {
        Some(disk) => Some(image::boot_image(&disk.path, cache_dir)?),
        None => None,
    };
    let seed = image::seed_disk(&args.name, &args.image)?;
    let append = image::append(image.as_ref(), args.append);
    let boot_source = args
        .image
        .image
        .as_ref()
        .map(|disk| image::boot_source(&disk.path, cache_dir));
    let boot_source = boot_source.transpose()?;
    let disks = args.image.image.into_iter().chain(args.disks).collect();
    let boot = match image {
        Some(image) => image.files,
        None => guest::boot_files(args.kernel, args.initrd, cache_dir)?,
    };
    let spec = LaunchSpec {
        name: args.name,
        kernel: boot.kernel,
        initrd: boot.initrd,
        boot_source,
        append,
        nets: args.nets,
        disks,
        seed,
        policy,
        state_dir: state.root().to_owned(),
        vmm_command: vmm_command(),
    };
    if let Some(agent) = HostRecord::find(state.root()) {
        let launch = by_agent::Launch {
            spec,
            wait_for_room: args.wait_for_room.unwrap_or_default(),
        };
        return by_agent::run(launch, &agent, &state, args.console, args.detach);
    }
    if args.wait_for_room.is_some() {
        return Err(Usage(
            "--wait-for-room needs an agent ('concertina agent'), which shares out this host"
                .into(),
        )
        .into());
    }
    if args.detach {
        background::run(spec)
    } else {
        foreground::run(spec, args.console)
    }
}

/// This program again, as the VM's own process. By this path it is the same program even when its
/// file has been replaced in the meantime.
pub fn vmm_command() -> Vec<OsString> {
    vec!["/proc/self/exe".into(), "vmm".into()]
}

fn refuse_taken(name: &str, state: &StateDir) -> anyhow::Result<()> {
    // A record that cannot be read is for the launch to judge, which holds the lock.
    match state.instance(name) {
        Ok(Some(entry)) if entry.alive => Err(anyhow::anyhow!(
            "Name '{name}' is in use by a running instance: stop it first, or choose another name"
        )),
        Err(error @ concertina_agent::state_dir::StateError::Name(_)) => Err(error.into()),
        Ok(Some(entry)) if entry.left_vmm.is_some() => {
            crate::state::find_running(state, name).map(|_| ())
        }
        _ => Ok(()),
    }
}

/// The policy: the file's bounds and rules, if there is one, and those of the command line.
fn read_policy(args: &Args) -> anyhow::Result<Policy> {
    let file = match &args.policy {
        Some(path) => policy::read(path)?,
        None => PolicyFile::default(),
    };
    let usage = |error: PolicyError| Usage(error.to_string());
    let file = file
        .with_rates(args.disk_rate, args.net_rate)
        .map_err(usage)?;
    let mut policy = file.into_policy(args.cpus, args.memory).map_err(usage)?;
    for rule in &args.scale {
        policy.scale(rule).map_err(usage)?;
    }
    // The launch checks again; here a mistake costs no time for fetching a guest.
    policy.check(&sources(args)).map_err(usage)?;
    Ok(policy)
}

fn sources(args: &Args) -> Sources {
    let mut sources = Sources::all();
    if args.disks.is_empty() && args.image.image.is_none() {
        sources = sources.without(Source::Disks);
    }
    if args.nets.is_empty() {
        sources = sources.without(Source::Networks);
    }
    sources
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::args::{Cli, Command};
    use crate::failure;

    fn args(words: &[&str]) -> Args {
        let words = ["concertina", "run", "--name", "web"].iter().chain(words);
        match Cli::try_parse_from(words).unwrap().command {
            Command::Run(args) => *args,
            other => panic!("not run: {other:?}"),
        }
    }

    #[test]
    fn rules_of_the_file_and_of_the_command_line_are_put_together() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("web.toml");
        std::fs::write(
            &path,
            "[bounds]\ncpus = { min = 1, max = 4 }\n\
             [[threshold]]\nmetric = \"cpu\"\nabove = \"75%\"\nfor = \"5s\"\nadd = { cpus = 1 }\n",
        )
        .unwrap();
        let rule = "memory > 80% for 2s: +128M";
        let words = [
            "--policy",
            path.to_str().unwrap(),
            "--memory",
            "256M..1G",
            "--scale",
            rule,
        ];
        let policy = read_policy(&args(&words)).unwrap();
        assert_eq!(policy.rules.len(), 2);
        assert_eq!(policy.bounds.cpus.to_string(), "1..4");
        assert_eq!(policy.bounds.memory.to_string(), "256M..1G");
    }

    #[test]
    fn a_wrong_policy_is_a_usage_error_that_names_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("web.toml");
        std::fs::write(&path, "bound = 1\n").unwrap();
        let bounds = ["--cpus", "1", "--memory", "256M"];
        for (extra, named) in [
            (["--policy", path.to_str().unwrap()], "web.toml"),
            (["--policy", "/nonexistent/p.toml"], "/nonexistent/p.toml"),
            (["--scale", "cpo > 75% for 5s: +1 cpu"], "cpo"),
        ] {
            let words: Vec<&str> = bounds.iter().copied().chain(extra).collect();
            let error = read_policy(&args(&words)).unwrap_err();
            assert_eq!(failure::status(&error), failure::USAGE);
            let text = failure::sentence(error.as_ref());
            assert!(text.contains(named), "{text}");
        }
    }

    #[test]
    fn the_rules_of_the_help_are_rules() {
        let rules: Vec<&str> = EXAMPLES
            .lines()
            .skip_while(|line| !line.starts_with("Rules"))
            .skip(1)
            .take_while(|line| line.starts_with("  "))
            .flat_map(|line| line.trim().split("   "))
            .map(str::trim)
            .filter(|rule| !rule.is_empty())
            .collect();
        let limits = EXAMPLES
            .lines()
            .skip_while(|line| !line.starts_with("Limits"))
            .skip(1)
            .take_while(|line| line.starts_with("  "))
            .flat_map(|line| line.trim().split("  "))
            .map(str::trim)
            .filter(|rule| !rule.is_empty());
        let rules: Vec<&str> = rules.into_iter().chain(limits).collect();
        assert_eq!(rules.len(), 11, "{rules:?}");
        let bounds = [
            "--cpus",
            "0.5..4",
            "--memory",
            "256M..4G",
            "--disk",
            "a",
            "--disk-rate",
            "10M..100M",
            "--net",
            "user",
            "--net-rate",
            "80mbit..800mbit",
        ];
        for rule in rules {
            let words: Vec<&str> = bounds.iter().copied().chain(["--scale", rule]).collect();
            if let Err(error) = read_policy(&args(&words)) {
                panic!("{rule}: {error}");
            }
        }
    }

    #[test]
    fn limits_need_their_device_and_one_pair_of_bounds() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("web.toml");
        let text = "[bounds]\ndisk = { min = \"10M\", max = \"100M\" }\n";
        std::fs::write(&path, text).unwrap();
        let words = |extra: &[&'static str]| -> Vec<String> {
            let first = ["--cpus", "1", "--memory", "256M", "--disk", "a", "--policy"];
            let first = first.iter().map(ToString::to_string);
            let path = std::iter::once(path.display().to_string());
            let extra = extra.iter().map(ToString::to_string);
            first.chain(path).chain(extra).collect()
        };
        let policy = |extra: &[&'static str]| {
            let words = words(extra);
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            read_policy(&args(&words)).map_err(|error| error.to_string())
        };
        let same = policy(&["--disk-rate", "10M..100M", "--scale", "disk > 80%: +25%"]).unwrap();
        assert_eq!(same.io.disk.unwrap().to_string(), "10M..100M");
        assert_eq!(same.io, policy(&[]).unwrap().io);
        let error = policy(&["--disk-rate", "10M..200M"]).unwrap_err();
        assert!(
            error.contains("10M..200M") && error.contains("10M..100M"),
            "{error}"
        );
        let error = policy(&["--scale", "net > 80%: +1 net.mbps"]).unwrap_err();
        assert!(error.contains("--net"), "{error}");
    }

    #[test]
    fn the_networks_of_the_help_are_networks() {
        let nets: Vec<&str> = EXAMPLES
            .lines()
            .filter_map(|line| line.trim().strip_prefix("--net "))
            .filter_map(|rest| rest.split_whitespace().next())
            .collect();
        assert_eq!(nets.len(), 3, "{nets:?}");
        let bounds = ["--cpus", "1", "--memory", "256M"];
        let flags = nets.iter().flat_map(|net| ["--net", *net]);
        let words: Vec<&str> = bounds.into_iter().chain(flags).collect();
        assert_eq!(args(&words).nets.len(), 3);
    }

    #[test]
    fn an_append_may_begin_with_a_dash() {
        let words = [
            "--cpus",
            "1",
            "--memory",
            "256M",
            "--append",
            "-- load --cpu 1",
        ];
        assert_eq!(args(&words).append.unwrap(), "-- load --cpu 1");
    }
}
