//! `concertina agent`: the agent of a host, as a service.

mod images;
pub mod linked;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;

use anyhow::{Context, anyhow};
use concertina_agent::clock::Moment;
use concertina_agent::host::config::{Config, Listen, MetricsListen, size_of_host};
use concertina_agent::host::{self, Host, Setup, api, notify};
use concertina_http::{Handler, HttpError, Server, Stopper};

use crate::commands::run::{image, vmm_command};
use crate::failure::Usage;
use crate::signals::Signals;
use crate::{output, state};

const EXAMPLES: &str = "\
Examples:
  concertina agent
  concertina agent --state-dir /run/concertina --listen unix:/run/concertina/daemon.sock
  concertina agent --config /etc/concertina/agent.toml
  concertina agent --join TOKEN           # belong to the control plane that the token is of
  concertina agent --openapi > agent.json
  curl --unix-socket /run/concertina/daemon.sock http://localhost/v1/host

It owns all instances of its state folder: 'run', 'ps', 'status', 'resize', 'stop' and 'events' with the
same state folder talk to it as long as it runs. SIGTERM and SIGINT end it; its VMs run on, and the next
agent takes them over, as it does after a crash. SIGHUP reads the configuration again.

Configuration (TOML; every key is optional; docs/agent.toml is a commented example):
  state_dir = \"DIR\"          folder of the instances; --state-dir overrides it
  listen = \"unix:PATH\"       where the API listens; --listen overrides it (daemon.sock in state_dir)
  metrics_listen = \"127.0.0.1:9464\"
                             where Prometheus may ask by TCP, a loopback address (nowhere)
  journal = \"PATH\"           what was begun, promised and remembered (host.journal in state_dir)
  cgroup = \"DIR\"             cgroup below which instances get theirs (the tree's root, or where that is
                             not ours the agent's own group)
  overhead = \"16M\"           memory that each instance costs beside its own  (*)
  [capacity]                 what the host has (*)
  cpus = 16                    default: all processors
  memory = \"64G\"             default: all memory
  [reserve]                  what the host keeps for itself (*)
  cpus = 0.5                   default: 0
  memory = \"2G\"              default: 256M or a 32nd, whichever is more; 0 where capacity.memory is given
  [overcommit]               how much more is promised than there is after the reserve, 0.1 to 64 (*)
  cpus = 4.0                   default: 4
  memory = 1.0                 default: 1
  [control]                  the control plane that the host belongs to
  join = \"TOKEN\"             what it joins with, once ('concertina host token'); --join overrides it
  address = \"HOST:PORT\"      where it is, when the token says something else; --control overrides it
  name = \"rack1-a\"           name that the host joins by (its own); --join-name overrides it
  folder = \"DIR\"             identity, images and disks; --control-dir overrides it
                               (/var/lib/concertina/host; control.d in a state folder that is named)
  image_cache = \"20G\"        room for copies of images that no instance uses; default: 20G
A host that has joined connects again at each start, without its token.
(*) read again by SIGHUP; the others take effect with the next start.

Exit status: 0 when it was ended by a signal, 1 when it failed, 2 for a wrong command line or
configuration.";

/// Arguments of `agent`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Where the API listens
    #[arg(long, value_name = "unix:PATH")]
    listen: Option<Listen>,
    /// Configuration file
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    link: linked::LinkArgs,
    /// Print the description of the API (OpenAPI 3.1) and end
    #[arg(long)]
    openapi: bool,
}

/// Serves until a signal ends it.
pub fn run(args: &Args, state_dir: Option<&Path>) -> anyhow::Result<i32> {
    if args.openapi {
        output::write(api::openapi_document().as_bytes())?;
        return Ok(0);
    }
    let config = read_config(args)?;
    prepare_process();
    // Before anything is there that a signal would leave behind.
    let mut signals = Signals::catch().context("Catching signals failed")?;
    let listen = args.listen.as_ref().or(config.listen.as_ref());
    let setup = setup(listen, &config, state_dir)?;
    let link = linked::Wish::of(&args.link, &config, state_dir, &setup)?;
    let agent = Running::start(setup, config.metrics_listen, link)?;
    notify::say(notify::READY);
    eprintln!(
        "concertina: The agent listens on {}",
        agent.host.socket().display()
    );
    let mut present = config;
    while signals.next().context("Waiting for a signal failed")? == libc::SIGHUP {
        present = reload(args, &agent.host, present);
    }
    notify::say(notify::STOPPING);
    agent.end()?;
    Ok(0)
}

/// An agent that serves.
pub struct Running {
    host: Arc<Host>,
    api: Serving,
    metrics: Option<Serving>,
    link: Option<linked::Linked>,
}

impl Running {
    /// Takes over what is there, serves, and connects to the control plane that the host belongs to.
    pub fn start(
        setup: Setup,
        metrics_listen: Option<MetricsListen>,
        link: Option<linked::Wish>,
    ) -> anyhow::Result<Self> {
        // A host that cannot join is none: before it has taken over anything.
        let joined = link.map(linked::Wish::join).transpose()?.flatten();
        let host = Host::start(setup)?;
        let server = api::bind(&host)?;
        let metrics = metrics_listen.map(|MetricsListen(address)| api::bind_metrics(address));
        let metrics = metrics.transpose()?;
        host.announce().map_err(|why| anyhow!(why))?;
        let api = Serving::begin("api", server, api::handler(Arc::clone(&host)))?;
        let handler = || api::metrics_handler(Arc::clone(&host));
        let metrics = metrics.map(|server| Serving::begin("metrics", server, handler()));
        let metrics = metrics.transpose()?;
        let link = joined.map(|joined| joined.connect(&host)).transpose()?;
        Ok(Self {
            host,
            api,
            metrics,
            link,
        })
    }

    /// Whether the control plane has welcomed this host.
    pub fn is_connected(&self) -> bool {
        self.link.as_ref().is_some_and(linked::Linked::is_connected)
    }

    /// Ends it; its VMs run on.
    pub fn end(self) -> anyhow::Result<()> {
        // First of all, nothing is asked for any more.
        if let Some(link) = self.link {
            link.end();
        }
        self.api.stop();
        if let Some(metrics) = self.metrics {
            metrics.stop();
            metrics.join()?;
        }
        self.host.leave();
        // Its socket file goes with it.
        self.api.join()
    }
}

/// A server in a thread of its own.
struct Serving {
    thread: JoinHandle<Result<(), HttpError>>,
    stopper: Stopper,
}

impl Serving {
    fn begin(name: &str, server: Server, handler: Arc<Handler>) -> anyhow::Result<Self> {
        let stopper = server.stopper();
        let thread = std::thread::Builder::new()
            .name(name.into())
            .spawn(move || server.serve(handler))
            .with_context(|| format!("Starting the thread '{name}' failed"))?;
        Ok(Self { thread, stopper })
    }

    fn stop(&self) {
        self.stopper.stop();
    }

    fn join(self) -> anyhow::Result<()> {
        match self.thread.join() {
            Ok(Err(error)) => Err(error.into()),
            _ => Ok(()),
        }
    }
}

fn read_config(args: &Args) -> anyhow::Result<Config> {
    match &args.config {
        Some(path) => Ok(Config::read(path).map_err(Usage)?),
        None => Ok(Config::default()),
    }
}

/// What an agent is started with.
pub fn setup(
    listen: Option<&Listen>,
    config: &Config,
    named: Option<&Path>,
) -> anyhow::Result<Setup> {
    let folder = named
        .map(Path::to_owned)
        .or_else(|| config.state_dir.clone());
    let state = state::open(folder.as_deref())?;
    let state_dir = state.root().to_owned();
    let absolute = |path: PathBuf| std::path::absolute(path).context("A path is not usable");
    Ok(Setup {
        socket: absolute(match listen {
            Some(Listen(path)) => path.clone(),
            None => host::default_socket(&state_dir),
        })?,
        journal: absolute(match &config.journal {
            Some(path) => path.clone(),
            None => host::default_journal(&state_dir),
        })?,
        state_dir,
        limits: config.limits(size_of_host()),
        vmm_command: vmm_command(),
        cgroup: config.cgroup.clone(),
        boot_sources: Arc::new(image::source_of),
    })
}

/// Takes over what may change while the agent runs; gives the configuration in force.
fn reload(args: &Args, host: &Host, before: Config) -> Config {
    notify::say(&notify::reloading(Moment::now().monotonic_ms));
    let read = match &args.config {
        Some(path) => Config::read(path),
        None => Ok(Config::default()),
    };
    let after = match read {
        Ok(after) => {
            for key in before.fixed_differences(&after) {
                eprintln!("concertina: {key} has changed, which takes effect with the next start");
            }
            host.books().set_limits(after.limits(size_of_host()));
            eprintln!("concertina: The configuration was read again");
            after
        }
        Err(why) => {
            eprintln!("concertina: {why}; what was configured before stays in force");
            before
        }
    };
    notify::say(notify::READY);
    after
}

/// A process that lives long, with many threads and many descriptors. To be called before there are any.
pub fn prepare_process() {
    // SAFETY: mallopt changes tunables of the allocator; no thread but this one exists yet.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 2);
    }
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: both calls get a valid rlimit. Where they fail, fewer instances are possible.
    unsafe {
        if libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) == 0 {
            limit.rlim_cur = limit.rlim_max;
            libc::setrlimit(libc::RLIMIT_NOFILE, &limit);
        }
    }
}
