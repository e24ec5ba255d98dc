//! A node of the control plane, from its settings to its listeners.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::ca::{self, Authorities, CaError};
use crate::config::{ApiTls, Settings, Store};
use crate::control::Control;
use crate::ids::{self, now_text};
use crate::keys;
use crate::limit::Limiter;
use crate::link::Hub;
use crate::model::{Account, ApiKey, Cluster, OPERATOR, Quota, Scope};
use crate::registry::sqlite::SqliteRegistry;
use crate::registry::{Registry, RegistryError, Transaction};

/// Version of the values' form in the registry.
pub const SCHEMA: u32 = 1;

/// Why a node does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The registry.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// Certificates.
    #[error(transparent)]
    Ca(#[from] CaError),
    /// The system has no random numbers.
    #[error(transparent)]
    Random(#[from] ids::NoRandom),
    /// A listener.
    #[error("Listening on {address} failed: {why}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// What the system said.
        why: std::io::Error,
    },
    /// The registry is of a later version.
    #[error("The registry has form {found} and this program knows {SCHEMA}: use a newer one")]
    Schema {
        /// What is there.
        found: u32,
    },
}

/// A node that runs. Dropping it lets it run on; [`Node::stop`] ends it.
#[derive(Debug)]
pub struct Node {
    /// What it works with.
    pub control: Arc<Control>,
    /// Where the API listens.
    pub api: SocketAddr,
    /// Where agents connect.
    pub agents: SocketAddr,
    /// The first key of the operator, when the registry was made just now. It is shown once.
    pub operator_key: Option<String>,
    stop: watch::Sender<bool>,
    tasks: JoinSet<()>,
}

/// Opens the registry that the settings name.
///
/// # Errors
/// It cannot be used.
pub async fn open(store: &Store) -> Result<Arc<dyn Registry>, RegistryError> {
    match store {
        Store::Embedded(path) => Ok(Arc::new(open_file(path)?)),
        Store::Etcd(endpoints) => {
            let etcd = crate::registry::etcd::EtcdRegistry::connect(endpoints).await?;
            Ok(Arc::new(etcd))
        }
    }
}

fn open_file(path: &Path) -> Result<SqliteRegistry, RegistryError> {
    SqliteRegistry::open(path)
}

async fn listen(address: SocketAddr) -> Result<(TcpListener, SocketAddr), StartError> {
    let failed = |why| StartError::Listen { address, why };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let bound = listener.local_addr().map_err(failed)?;
    Ok((listener, bound))
}

/// What a fresh registry begins with; the operator's first key when it was made here.
async fn begin(registry: &dyn Registry) -> Result<Option<String>, StartError> {
    if let (Some(cluster), _) = registry.read::<Cluster>("cluster").await? {
        if cluster.schema > SCHEMA {
            return Err(StartError::Schema {
                found: cluster.schema,
            });
        }
        return Ok(None);
    }
    let (key, id, hash) = keys::fresh()?;
    let cluster = Cluster {
        schema: SCHEMA,
        id: ids::fresh("c")?,
    };
    let account = Account {
        id: OPERATOR.into(),
        name: OPERATOR.into(),
        quota: Quota {
            requests_per_second: 1000,
            ..Quota::default()
        },
        suspended: false,
        created: now_text(),
    };
    let record = ApiKey {
        id: id.clone(),
        account: OPERATOR.into(),
        name: "first".into(),
        scope: Scope::Admin,
        hash,
        created: now_text(),
        expires_ms: None,
        revoked: false,
    };
    let mut transaction = Transaction::new();
    transaction
        .absent("cluster")
        .put("cluster", &cluster)?
        .put(format!("account/{OPERATOR}"), &account)?
        .put(format!("account-name/{OPERATOR}"), OPERATOR)?
        .put(format!("key/{id}"), &record)?
        .put(format!("account-key/{OPERATOR}/{id}"), &())?;
    match registry.commit(transaction).await {
        Ok(_) => Ok(Some(key)),
        // Another node was faster.
        Err(RegistryError::Conflict(_)) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Returns when a node is asked to stop, or is gone.
pub(crate) async fn asked_to_stop(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

impl Node {
    /// Starts a node: when this returns, it serves.
    ///
    /// # Errors
    /// The registry, a certificate or a listener does not work; nothing is left running.
    pub async fn start(settings: Settings) -> Result<Self, StartError> {
        let registry = open(&settings.store).await?;
        let operator_key = begin(registry.as_ref()).await?;
        let authorities = Authorities::default();
        authorities.load(registry.as_ref()).await?;
        let (api_listener, api) = listen(settings.listen).await?;
        let (agents_listener, agents) = listen(settings.agents).await?;
        let tls = match &settings.tls {
            ApiTls::None => None,
            ApiTls::Files { certificate, key } => Some(ca::api_tls_of_files(certificate, key)?),
            ApiTls::Own(names) => {
                let mut all = vec!["localhost".to_owned(), "127.0.0.1".into(), "::1".into()];
                all.push(api.ip().to_string());
                all.extend(names.iter().cloned());
                all.sort_unstable();
                all.dedup();
                Some(authorities.api_tls(all)?)
            }
        };
        let mut settings = settings;
        (settings.listen, settings.agents) = (api, agents);
        let control = Arc::new(Control {
            registry,
            settings,
            authorities,
            limiter: Limiter::default(),
            hub: Hub::default(),
            placing: tokio::sync::Mutex::default(),
        });
        let (stop, stopped) = watch::channel(false);
        let mut tasks = JoinSet::new();
        let router = crate::http::router(Arc::clone(&control));
        tasks.spawn(crate::http::serve(
            api_listener,
            tls,
            router,
            stopped.clone(),
        ));
        let linked = Arc::clone(&control);
        tasks.spawn(crate::link::serve(linked, agents_listener, stopped.clone()));
        tasks.spawn(crate::link::follow(Arc::clone(&control), stopped.clone()));
        tasks.spawn(crate::controller::run(Arc::clone(&control), stopped));
        Ok(Self {
            control,
            api,
            agents,
            operator_key,
            stop,
            tasks,
        })
    }

    /// Ends it: what was answered is durable, connections are closed.
    pub async fn stop(mut self) {
        let _ = self.stop.send(true);
        while self.tasks.join_next().await.is_some() {}
    }
}
