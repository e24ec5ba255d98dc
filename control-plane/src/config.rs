//! How a control plane is set.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// Where the registry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Store {
    /// A file of this node.
    Embedded(PathBuf),
    /// etcd: `http://HOST:PORT` of each member.
    Etcd(Vec<String>),
}

/// TLS of the API.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ApiTls {
    /// A certificate of the control plane's own authority, for these names.
    Own(Vec<String>),
    /// A certificate from files.
    Files {
        /// Certificate with its chain, PEM.
        certificate: PathBuf,
        /// Its key, PEM.
        key: PathBuf,
    },
    /// None: behind a proxy that has it, or on one machine.
    None,
}

/// Everything that can be set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Where the registry is.
    pub store: Store,
    /// Where the API listens.
    pub listen: SocketAddr,
    /// TLS of the API.
    pub tls: ApiTls,
    /// Where agents connect.
    pub agents: SocketAddr,
    /// How hosts reach it: `HOST:PORT`, part of join tokens; absent: as it listens.
    pub agents_url: Option<String>,
    /// How long a host may be silent until it is lost.
    pub host_lease: Duration,
    /// How long a host's certificate is good; it is renewed after two thirds.
    pub certificate_life: Duration,
    /// Webhooks may lead to this machine and to private networks, and need no TLS.
    pub webhooks_anywhere: bool,
    /// How often webhooks are tried before they are put aside.
    pub webhook_attempts: u32,
    /// How long the first repetition of a webhook waits; each further one twice as long.
    pub webhook_backoff: Duration,
    /// Most bytes of a request's body.
    pub body_limit: usize,
}

impl Settings {
    /// Defaults, with the registry in a file.
    pub fn new(store: Store) -> Self {
        Self {
            store,
            listen: SocketAddr::from(([127, 0, 0, 1], 7070)),
            tls: ApiTls::Own(Vec::new()),
            agents: SocketAddr::from(([127, 0, 0, 1], 7071)),
            agents_url: None,
            host_lease: Duration::from_secs(15),
            certificate_life: Duration::from_secs(30 * 24 * 3600),
            webhooks_anywhere: false,
            webhook_attempts: 8,
            webhook_backoff: Duration::from_secs(5),
            body_limit: 1 << 20,
        }
    }
}
