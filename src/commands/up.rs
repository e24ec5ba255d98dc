//! `concertina up`: a whole cloud on one machine. A control plane and a host's agent in one process, with
//! an account and an image, so that the first instance is three lines away.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use concertina_agent::control::Identity;
use concertina_agent::host::config::{Config, IMAGE_CACHE};
use concertina_control::client::ClientError;
use concertina_control::config::{Settings, Store};
use serde_json::json;

use super::agent::{self, linked};
use super::control;
use super::image::registry::artifact;
use crate::failure::Usage;
use crate::remote::{Login, Remote, text};
use crate::signals::Signals;
use crate::{guest, output, state};

const EXAMPLES: &str = "\
Examples:
  concertina up
  concertina up --dir /srv/cloud --listen 127.0.0.1:8080

Control plane and agent of this host run together, on loopback; everything is in one folder:
  control/       registry, the operator's key, the certificate that clients trust (ca.pem)
  account.key    a key of the account 'first'
  images/        kernel and initramfs of the image 'default:1', the default guest
  host/          identity of this host, images and disks of its instances
  run/           folder of its instances (--state-dir overrides it)
What is there is used again. When it is ready it prints three lines that launch the first instance, and
serves until Ctrl-C or SIGTERM. Its VMs run on then, as those of 'concertina agent' do: the next
'concertina up' takes them over. 'concertina stop NAME --terminate' ends an instance for good.

More hosts join with 'concertina host token' and 'concertina agent --join TOKEN', once --agents-listen
is an address that they can reach.";

/// The account that is made.
const ACCOUNT: &str = "first";
/// The image that is registered.
const IMAGE: (&str, &str) = ("default", "1");
/// How long the host may take to be connected to its own control plane.
const CONNECT_LIMIT: Duration = Duration::from_secs(60);

/// Arguments of `up`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Folder of everything. Default: /var/lib/concertina/up for root, $XDG_STATE_HOME/concertina/up for
    /// others
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Where the API listens
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:7070")]
    listen: SocketAddr,
    /// Where agents of further hosts connect
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:7071")]
    agents_listen: SocketAddr,
    /// Kernel of the image, instead of the default guest's: bzImage or ELF vmlinux
    #[arg(long, value_name = "F")]
    kernel: Option<PathBuf>,
    /// Initial ram file system of the image
    #[arg(long, value_name = "F", requires = "kernel")]
    initrd: Option<PathBuf>,
    /// Agent's configuration: capacity, reserve, overcommit
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Folder where the default guest is kept
    #[arg(long, value_name = "DIR", env = "CONCERTINA_CACHE_DIR")]
    cache_dir: Option<PathBuf>,
}

/// Serves until a signal ends it.
pub fn run(args: &Args, state_dir: Option<&Path>) -> anyhow::Result<i32> {
    let config = match &args.config {
        Some(path) => Config::read(path).map_err(Usage)?,
        None => Config::default(),
    };
    agent::prepare_process();
    // Before anything is there that a signal would leave behind.
    let mut signals = Signals::catch().context("Catching signals failed")?;
    let folder = folder(args)?;
    make(&folder)?;
    let data_dir = folder.join("control");
    make(&data_dir)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("Starting threads failed")?;
    let settings = Settings {
        listen: args.listen,
        agents: args.agents_listen,
        ..Settings::new(Store::Embedded(data_dir.join(control::REGISTRY)))
    };
    let node = control::start(&runtime, settings, &data_dir)?;
    let place = Place {
        url: format!("https://{}", node.api),
        agents: node.control.agents_address(),
        data_dir,
        folder,
    };
    let operator = place.remote(&place.data_dir.join("operator.key"))?;
    place.image(args, &operator)?;
    place.account(&operator)?;
    let run_dir = place.folder.join("run");
    let setup = agent::setup(None, &config, Some(state_dir.unwrap_or(&run_dir)))?;
    let wish = place.join(&operator)?;
    let agent = agent::Running::start(setup, config.metrics_listen, Some(wish))?;
    place.wait(&operator, &agent)?;
    output::line(&place.first_lines())?;
    signals.next().context("Waiting for a signal failed")?;
    agent.end()?;
    runtime.block_on(node.stop());
    eprintln!("concertina: Ended. Instances run on; the next 'concertina up' takes them over");
    Ok(0)
}

fn folder(args: &Args) -> anyhow::Result<PathBuf> {
    let folder = match &args.dir {
        Some(folder) => folder.clone(),
        None if state::is_root() => "/var/lib/concertina/up".into(),
        // Beside the data of a control plane that stands alone.
        None => control::data_dir(None)?.with_file_name("up"),
    };
    std::path::absolute(folder).context("Option --dir is not usable")
}

fn make(folder: &Path) -> anyhow::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true).mode(0o700);
    let made = builder.create(folder);
    made.with_context(|| format!("Making {} failed", folder.display()))
}

/// Where everything is.
struct Place {
    url: String,
    agents: String,
    data_dir: PathBuf,
    folder: PathBuf,
}

impl Place {
    fn ca(&self) -> PathBuf {
        self.data_dir.join("ca.pem")
    }

    fn account_key(&self) -> PathBuf {
        self.folder.join("account.key")
    }

    /// The API, with the key in a file.
    fn remote(&self, key: &Path) -> anyhow::Result<Remote> {
        let read = |path: &Path| {
            fs::read_to_string(path).with_context(|| format!("Reading {} failed", path.display()))
        };
        Remote::of(&Login {
            url: self.url.clone(),
            key: read(key)?.trim().to_owned(),
            authorities: Some(read(&self.ca())?),
        })
    }

    /// Registers the image, unless it is there.
    fn image(&self, args: &Args, operator: &Remote) -> anyhow::Result<()> {
        let (name, version) = IMAGE;
        match operator.get(&format!("/v1/images/{name}/{version}")) {
            Ok(_) => return Ok(()),
            Err(error) if is_missing(&error) => {}
            Err(error) => return Err(error),
        }
        let cache = args.cache_dir.as_deref();
        let boot = guest::boot_files(args.kernel.clone(), args.initrd.clone(), cache)?;
        // Copies, since the cache may be emptied at any time.
        let images = self.folder.join("images");
        make(&images)?;
        let copy = |from: &Path, name: &str| {
            let to = images.join(name);
            let copied = fs::copy(from, &to);
            copied.with_context(|| format!("Copying {} failed", from.display()))?;
            artifact(&to, None, false)
        };
        let initrd = boot.initrd.as_deref();
        let parts = json!({
            "kind": "kernel",
            "kernel": copy(&boot.kernel, "kernel")?,
            "initrd": initrd.map(|path| copy(path, "initramfs")).transpose()?,
        });
        let image = json!({"name": name, "version": version, "parts": parts});
        operator.post("/v1/images", &image).map(drop)
    }

    /// Makes the account and a key of it, unless they are there.
    fn account(&self, operator: &Remote) -> anyhow::Result<()> {
        let path = self.account_key();
        if path.exists() && self.remote(&path)?.get("/v1/account").is_ok() {
            return Ok(());
        }
        let account = match super::account::find(operator, ACCOUNT) {
            Ok(account) => account,
            Err(_) => operator.post("/v1/accounts", &json!({"name": ACCOUNT}))?,
        };
        let keys = format!("/v1/accounts/{}/keys", text(&account, "id"));
        let key = operator.post(&keys, &json!({"name": ACCOUNT, "scope": "admin"}))?;
        control::write_private(&path, text(&key, "key"))
    }

    /// How this host belongs to the control plane.
    fn join(&self, operator: &Remote) -> anyhow::Result<linked::Wish> {
        let folder = self.folder.join("host");
        let token = match Identity::open(&folder)? {
            Some(_) => None,
            None => {
                let token = operator.post("/v1/hosts/join-tokens", &json!({}))?;
                Some(text(&token, "token").to_owned())
            }
        };
        Ok(linked::Wish {
            folder,
            token,
            address: Some(self.agents.clone()),
            name: linked::own_name(),
            image_cache: IMAGE_CACHE,
        })
    }

    /// Waits until the host takes instances.
    fn wait(&self, operator: &Remote, agent: &agent::Running) -> anyhow::Result<()> {
        let begun = Instant::now();
        let is_ready = || -> anyhow::Result<bool> {
            let hosts = operator.all("/v1/hosts")?;
            Ok(agent.is_connected() && hosts.iter().any(|host| text(host, "state") == "ready"))
        };
        while !is_ready()? {
            if begun.elapsed() > CONNECT_LIMIT {
                bail!(
                    "This host is not connected to its control plane at {} after {} s",
                    self.agents,
                    CONNECT_LIMIT.as_secs()
                );
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    /// What launches the first instance.
    fn first_lines(&self) -> String {
        let (name, version) = IMAGE;
        format!(
            "concertina login {} --ca {} < {}\n\
             concertina run --name web --image {name}:{version} --cpus 0.5..2 --memory 256M..512M\n\
             concertina status web",
            self.url,
            self.ca().display(),
            self.account_key().display()
        )
    }
}

fn is_missing(error: &anyhow::Error) -> bool {
    matches!(
        error.downcast_ref::<ClientError>(),
        Some(ClientError::Problem { status: 404, .. })
    )
}
