//! The agent's part in a control plane: joining, once, and the connection.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, anyhow};
use concertina_agent::control::{ClientConfig, ControlClient, Identity, JoinWords, join};
use concertina_agent::host::config::{Config, IMAGE_CACHE};
use concertina_agent::host::placements::Placements;
use concertina_agent::host::{Host, Setup};
use concertina_api::Bytes;

use super::images::DiskImages;
use crate::failure::Usage;
use crate::state::is_root;

/// Longest name of a host.
const NAME_MAX: usize = 63;

/// Arguments that are about the control plane.
#[derive(Debug, clap::Args)]
#[group(id = "linked")]
pub struct LinkArgs {
    /// Join the control plane that made this token ('concertina host token'); not looked at once the
    /// host has joined
    #[arg(
        long,
        value_name = "TOKEN",
        env = "CONCERTINA_JOIN",
        hide_env_values = true
    )]
    join: Option<String>,
    /// Where the control plane is, when that is not what the token says
    #[arg(long, value_name = "HOST:PORT")]
    control: Option<String>,
    /// Name that the host joins by: 1 to 63 of a-z, 0-9 and '-' [default: the host's own]
    #[arg(long, value_name = "NAME")]
    join_name: Option<String>,
    /// Folder of the host's identity, and of images and disks of the control plane's instances
    #[arg(long, value_name = "DIR")]
    control_dir: Option<PathBuf>,
}

/// How a host belongs to a control plane.
#[derive(Debug)]
pub struct Wish {
    /// Folder of identity, images and disks.
    pub folder: PathBuf,
    /// What it joins with.
    pub token: Option<String>,
    /// `HOST:PORT`, where that is not what the token says.
    pub address: Option<String>,
    /// Name that it joins by.
    pub name: String,
    /// Room that images may take.
    pub image_cache: Bytes,
}

impl Wish {
    /// What the command line and the configuration say; `None`: nothing, and this host has not joined.
    pub fn of(
        args: &LinkArgs,
        config: &Config,
        state_dir: Option<&Path>,
        setup: &Setup,
    ) -> anyhow::Result<Option<Self>> {
        let named = args.control_dir.as_ref().or(config.control.folder.as_ref());
        let state_is_named = state_dir.is_some() || config.state_dir.is_some();
        let folder = match named {
            Some(folder) => std::path::absolute(folder).context("Option --control-dir")?,
            None if state_is_named => setup.state_dir.join("control.d"),
            None => match default_folder() {
                Some(folder) => folder,
                None => setup.state_dir.join("control.d"),
            },
        };
        let token = args.join.as_ref().or(config.control.join.as_ref());
        let address = args.control.as_ref().or(config.control.address.as_ref());
        if token.is_none() && Identity::open(&folder)?.is_none() {
            return match address {
                Some(address) => Err(Usage(format!(
                    "This host does not belong to the control plane at {address} yet: join it with \
                     --join TOKEN, which 'concertina host token' prints"
                ))
                .into()),
                None => Ok(None),
            };
        }
        let name = args.join_name.as_ref().or(config.control.name.as_ref());
        Ok(Some(Self {
            folder,
            token: token.cloned(),
            address: address.cloned(),
            name: name.cloned().unwrap_or_else(own_name),
            image_cache: config.control.image_cache.unwrap_or(IMAGE_CACHE),
        }))
    }

    /// Joins, unless that was done before.
    pub fn join(self) -> anyhow::Result<Option<Joined>> {
        let mut identity = match (Identity::open(&self.folder)?, &self.token) {
            (Some(identity), _) => identity,
            (None, None) => return Ok(None),
            (None, Some(token)) => {
                let mut words: JoinWords =
                    token.parse().map_err(|error| Usage(format!("{error}")))?;
                if let Some(address) = &self.address {
                    words.address.clone_from(address);
                }
                let identity = join(&self.folder, &words, &self.name)?;
                eprintln!(
                    "concertina: This host has joined the control plane at {} as '{}' ({})",
                    identity.address(),
                    self.name,
                    identity.host()
                );
                identity
            }
        };
        if let Some(address) = self.address.filter(|address| address != identity.address()) {
            identity.set_address(&address)?;
        }
        Ok(Some(Joined {
            folder: self.folder,
            image_cache: self.image_cache,
            identity,
        }))
    }
}

fn default_folder() -> Option<PathBuf> {
    if is_root() {
        return Some("/var/lib/concertina/host".into());
    }
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    let state = set("XDG_STATE_HOME").map(PathBuf::from);
    let home = || set("HOME").map(|home| PathBuf::from(home).join(".local/state"));
    Some(state.or_else(home)?.join("concertina/host"))
}

/// The first label of this machine's name, as far as it can be a host's.
pub fn own_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    label(&name)
}

fn label(name: &str) -> String {
    let first = name.trim().split('.').next().unwrap_or_default();
    let kept = first.to_ascii_lowercase();
    let kept = kept.trim_matches(|letter: char| !letter.is_ascii_alphanumeric());
    let label: String = kept
        .chars()
        .map(|letter| {
            if letter.is_ascii_alphanumeric() {
                letter
            } else {
                '-'
            }
        })
        .take(NAME_MAX)
        .collect();
    if label.is_empty() {
        "host".into()
    } else {
        label
    }
}

/// A host that has joined.
#[derive(Debug)]
pub struct Joined {
    folder: PathBuf,
    image_cache: Bytes,
    identity: Identity,
}

impl Joined {
    /// Connects, and does from here on what the control plane wants.
    pub fn connect(self, host: &Arc<Host>) -> anyhow::Result<Linked> {
        let failed = || format!("Folder {} cannot be used", self.folder.display());
        let images = DiskImages {
            cache: self.folder.join("boot"),
        };
        let most = self.image_cache;
        let placements = Placements::open(Arc::clone(host), &self.folder, Box::new(images), most)
            .with_context(failed)?;
        let config = ClientConfig {
            folder: self.folder.clone(),
        };
        let client = ControlClient::start(&config, self.identity, placements.clone());
        match client {
            Ok(client) => Ok(Linked { client, placements }),
            Err(error) => {
                placements.end();
                Err(anyhow!(error)).with_context(failed)
            }
        }
    }
}

/// The connection.
#[derive(Debug)]
pub struct Linked {
    client: ControlClient,
    placements: Arc<Placements>,
}

impl Linked {
    /// Whether the control plane has welcomed this host.
    pub fn is_connected(&self) -> bool {
        self.client.is_connected()
    }

    /// Ends it. Instances run on.
    pub fn end(self) {
        drop(self.client);
        self.placements.end();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machines_name_becomes_a_hosts() {
        for (name, host) in [
            ("rack1-a\n", "rack1-a"),
            ("Web_1.example.com", "web-1"),
            ("-x-", "x"),
            ("", "host"),
            ("...", "host"),
        ] {
            assert_eq!(label(name), host, "{name}");
        }
        assert_eq!(label(&"a".repeat(80)).len(), NAME_MAX);
    }
}
