//! `concertina control`: a node of the control plane, and its registry's backup.

use std::io::Write;
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use concertina_control::config::{ApiTls, Settings, Store};
use concertina_control::registry::sqlite;
use concertina_control::{Node, http};

use tokio::runtime::Runtime;

use crate::args::parse_duration;
use crate::failure::Usage;
use crate::output;
use crate::signals::Signals;

const EXAMPLES: &str = "\
Examples:
  concertina control                                  # everything in /var/lib/concertina/control
  concertina control --listen 0.0.0.0:7070 --agents-listen 0.0.0.0:7071 \\
      --tls-name cloud.example --agents-address cloud.example:7071
  concertina control --listen 127.0.0.1:7070 --plain-http        # behind a proxy that has TLS
  concertina control --etcd http://10.0.0.1:2379 --etcd http://10.0.0.2:2379
  concertina control backup -o registry.backup        # also while it runs
  concertina control restore registry.backup          # while it does not
  concertina control openapi

A fresh registry has one account, the operator's. Its first key is written to operator.key in the data
folder, readable by its owner alone, and the certificate that clients have to trust to ca.pem:
  concertina login https://127.0.0.1:7070 --ca DIR/ca.pem < DIR/operator.key

It ends with Ctrl-C or SIGTERM; hosts and their instances go on, and connect again.";

/// Arguments of `control`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES, args_conflicts_with_subcommands = true)]
pub struct Args {
    /// What to do, instead of serving.
    #[command(subcommand)]
    what: Option<What>,
    #[command(flatten)]
    serve: Serve,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// Copy the embedded registry to a file, as of one moment
    Backup {
        /// The file to make
        #[arg(short, long, value_name = "FILE")]
        output: PathBuf,
        /// The data folder
        #[arg(long, value_name = "DIR")]
        data_dir: Option<PathBuf>,
    },
    /// Put a backup in the registry's place; what was there is kept beside it
    Restore {
        /// The backup
        backup: PathBuf,
        /// The data folder
        #[arg(long, value_name = "DIR")]
        data_dir: Option<PathBuf>,
    },
    /// Print the OpenAPI description of the API
    Openapi,
}

#[derive(Debug, clap::Args)]
struct Serve {
    /// Folder of the registry and of the first key. Default: /var/lib/concertina/control for root,
    /// $XDG_STATE_HOME/concertina/control for others
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Keep the registry in etcd, for more than one node: http://HOST:PORT of each member; may be
    /// given several times
    #[arg(long, value_name = "URL")]
    etcd: Vec<String>,
    /// Where the API listens
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:7070")]
    listen: SocketAddr,
    /// Where agents of hosts connect
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:7071")]
    agents_listen: SocketAddr,
    /// How hosts reach it: HOST:PORT in join tokens [default: as --agents-listen]
    #[arg(long, value_name = "HOST:PORT")]
    agents_address: Option<String>,
    /// A name of the API's own certificate; may be given several times
    #[arg(long, value_name = "NAME")]
    tls_name: Vec<String>,
    /// Another certificate for the API, with its chain
    #[arg(
        long,
        value_name = "FILE",
        requires = "tls_key",
        conflicts_with = "tls_name"
    )]
    tls_certificate: Option<PathBuf>,
    /// The key of that certificate
    #[arg(long, value_name = "FILE", requires = "tls_certificate")]
    tls_key: Option<PathBuf>,
    /// No TLS at the API: behind a proxy that has it, or on one machine
    #[arg(long, conflicts_with_all = ["tls_name", "tls_certificate"])]
    plain_http: bool,
    /// How long a host may be silent until it counts as lost
    #[arg(long, value_name = "T", value_parser = parse_duration, default_value = "15s")]
    host_lease: Duration,
    /// Let webhooks lead to this machine and to private networks, and without TLS
    #[arg(long)]
    webhooks_anywhere: bool,
}

/// Where the data is.
pub fn data_dir(named: Option<&Path>) -> anyhow::Result<PathBuf> {
    if let Some(named) = named {
        return Ok(named.to_owned());
    }
    if crate::state::is_root() {
        return Ok("/var/lib/concertina/control".into());
    }
    let folder = |name: &str| {
        std::env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    let state =
        folder("XDG_STATE_HOME").or_else(|| folder("HOME").map(|home| home.join(".local/state")));
    let state =
        state.ok_or_else(|| Usage("No data folder: name one with --data-dir DIR".into()))?;
    Ok(state.join("concertina/control"))
}

/// The embedded registry, in the data folder.
pub const REGISTRY: &str = "registry.db";

/// Serves, or does what was asked instead.
pub fn run(args: &Args) -> anyhow::Result<i32> {
    match &args.what {
        None => serve(&args.serve),
        Some(What::Backup {
            output,
            data_dir: dir,
        }) => {
            sqlite::backup(&data_dir(dir.as_deref())?.join(REGISTRY), output)?;
            output::line(&output.display().to_string())?;
            Ok(0)
        }
        Some(What::Restore {
            backup,
            data_dir: dir,
        }) => {
            let path = data_dir(dir.as_deref())?.join(REGISTRY);
            sqlite::restore(backup, &path)?;
            output::line(&path.display().to_string())?;
            Ok(0)
        }
        Some(What::Openapi) => {
            output::json(&http::document())?;
            Ok(0)
        }
    }
}

fn settings(args: &Serve, data_dir: &Path) -> Settings {
    let store = match args.etcd.as_slice() {
        [] => Store::Embedded(data_dir.join(REGISTRY)),
        members => Store::Etcd(members.to_vec()),
    };
    let tls = match (&args.tls_certificate, &args.tls_key) {
        _ if args.plain_http => ApiTls::None,
        (Some(certificate), Some(key)) => ApiTls::Files {
            certificate: certificate.clone(),
            key: key.clone(),
        },
        _ => ApiTls::Own(args.tls_name.clone()),
    };
    Settings {
        listen: args.listen,
        tls,
        agents: args.agents_listen,
        agents_url: args.agents_address.clone(),
        host_lease: args.host_lease,
        webhooks_anywhere: args.webhooks_anywhere,
        ..Settings::new(store)
    }
}

fn serve(args: &Serve) -> anyhow::Result<i32> {
    if args.host_lease < Duration::from_secs(1) {
        return Err(Usage("Option --host-lease is too short: at least 1s".into()).into());
    }
    let data_dir = data_dir(args.data_dir.as_deref())?;
    std::fs::create_dir_all(&data_dir)
        .with_context(|| format!("Making {} failed", data_dir.display()))?;
    let settings = settings(args, &data_dir);
    // Before there are threads, which inherit it.
    let mut signals = Signals::catch().context("Catching signals failed")?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("Starting threads failed")?;
    let node = start(&runtime, settings, &data_dir)?;
    let scheme = if args.plain_http { "http" } else { "https" };
    output::line(&format!(
        "The API is at {scheme}://{}, hosts connect to {}, data is in {}",
        node.api,
        node.control.agents_address(),
        data_dir.display()
    ))?;
    signals.next().context("Waiting for a signal failed")?;
    runtime.block_on(node.stop());
    Ok(0)
}

/// Starts a node, and writes down what its operator and its clients need.
pub fn start(runtime: &Runtime, settings: Settings, data_dir: &Path) -> anyhow::Result<Node> {
    let node = runtime.block_on(Node::start(settings))?;
    if let Some(key) = &node.operator_key {
        write_private(&data_dir.join("operator.key"), key)?;
    }
    write_private(&data_dir.join("ca.pem"), &node.control.authorities.pem())?;
    Ok(node)
}

/// Writes a file that its owner alone can read, in one step.
pub fn write_private(path: &Path, text: &str) -> anyhow::Result<()> {
    let failed = || format!("Writing {} failed", path.display());
    let fresh = path.with_extension("new");
    let _ = std::fs::remove_file(&fresh);
    let mut options = std::fs::OpenOptions::new();
    let mut file = options
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&fresh)
        .with_context(failed)?;
    writeln!(file, "{}", text.trim_end()).with_context(failed)?;
    file.sync_all().with_context(failed)?;
    std::fs::rename(&fresh, path).with_context(failed)
}
