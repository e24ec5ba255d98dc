//! A cloud on loopback: a node of the control plane, hosts, accounts.

mod client;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use concertina_agent::control::simulated::SimulatedHost;
use concertina_agent::control::{ClientConfig, ControlClient, Identity, join};
use concertina_api::{Bytes, Cpus};
use concertina_control::Node;
use concertina_control::config::{ApiTls, Settings, Store};
use serde_json::{Value, json};
use tempfile::TempDir;

pub use client::{Api, Reply, call};

/// A loaded machine may take long; whoever waits gets on as soon as it is so.
const PATIENCE: Duration = Duration::from_secs(60);

/// The whole of it.
pub struct Cloud {
    pub node: Node,
    pub operator: Api,
    pub folder: TempDir,
}

/// A simulated host with the agent's client.
pub struct TestHost {
    pub id: String,
    pub host: Arc<SimulatedHost>,
    pub folder: PathBuf,
    client: Option<ControlClient>,
}

/// Settings of a node in a folder, on free ports, with a short lease of hosts.
pub fn settings(folder: &Path) -> Settings {
    Settings {
        listen: ([127, 0, 0, 1], 0).into(),
        agents: ([127, 0, 0, 1], 0).into(),
        tls: ApiTls::None,
        host_lease: Duration::from_millis(1500),
        webhooks_anywhere: true,
        webhook_attempts: 3,
        webhook_backoff: Duration::from_millis(20),
        ..Settings::new(Store::Embedded(folder.join("registry.db")))
    }
}

impl Cloud {
    pub async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    pub async fn start_with(change: impl FnOnce(&mut Settings)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut settings = settings(folder.path());
        change(&mut settings);
        let node = Node::start(settings).await.unwrap();
        let key = node.operator_key.clone().unwrap();
        let operator = Api::new(node.api, &key);
        let cloud = Self {
            node,
            operator,
            folder,
        };
        cloud.register_image().await;
        cloud
    }

    async fn register_image(&self) {
        let image = json!({
            "name": "debian", "version": "12",
            "parts": {"kind": "disk", "disk": {
                "url": "http://images.example/debian.raw", "sha256": "0".repeat(64), "size_bytes": 1
            }},
        });
        self.operator.post("/v1/images", image).await.expect(201);
    }

    /// An account with a key that may do everything in it.
    pub async fn account(&self, name: &str) -> Api {
        self.account_with(name, json!({"requests_per_second": 100_000}))
            .await
    }

    pub async fn account_with(&self, name: &str, quota: Value) -> Api {
        let body = json!({"name": name, "quota": quota});
        let account = self.operator.post("/v1/accounts", body).await.expect(201);
        let id = account["id"].as_str().unwrap();
        self.key(id, "admin").await
    }

    pub async fn key(&self, account: &str, scope: &str) -> Api {
        let path = format!("/v1/accounts/{account}/keys");
        let body = json!({"name": "test", "scope": scope});
        let key = self.operator.post(&path, body).await.expect(201);
        Api::new(self.node.api, key["key"].as_str().unwrap())
    }

    pub async fn join_token(&self) -> String {
        let token = self
            .operator
            .post("/v1/hosts/join-tokens", json!({}))
            .await
            .expect(201);
        token["token"].as_str().unwrap().to_owned()
    }

    /// A host with 8 CPUs and 32 GiB.
    pub async fn host(&self, name: &str) -> TestHost {
        self.host_of(
            name,
            SimulatedHost::new(Cpus::whole(8), Bytes(32 * Bytes::GIB)),
        )
        .await
    }

    pub async fn host_of(&self, name: &str, host: SimulatedHost) -> TestHost {
        let token = self.join_token().await;
        let folder = self.folder.path().join(name);
        let (at, name) = (folder.clone(), name.to_owned());
        let joined = blocking(move || join(&at, &token.parse().unwrap(), &name).unwrap()).await;
        let mut host = TestHost {
            id: joined.host().to_owned(),
            host: Arc::new(host),
            folder,
            client: None,
        };
        host.connect().await;
        self.host_is(&host.id, "ready").await;
        host
    }

    pub async fn host_is(&self, id: &str, state: &str) {
        let path = format!("/v1/hosts/{id}");
        eventually(&format!("host is {state}"), || async {
            self.operator.get(&path).await.expect(200)["state"] == state
        })
        .await;
    }

    /// Ends the node and starts another one on the same registry and ports.
    pub async fn restart(self) -> Self {
        let settings = self.node.control.settings.clone();
        self.node.stop().await;
        let node = started(settings).await;
        Self { node, ..self }
    }
}

/// Starts a node on ports that another one has just left.
pub async fn started(settings: Settings) -> Node {
    let begun = Instant::now();
    loop {
        match Node::start(settings.clone()).await {
            Ok(node) => return node,
            Err(error) if begun.elapsed() > PATIENCE => panic!("{error}"),
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

impl TestHost {
    /// Starts the client, as a restarted agent does.
    pub async fn connect(&mut self) {
        self.disconnect().await;
        let (folder, host) = (self.folder.clone(), Arc::clone(&self.host));
        let client = blocking(move || {
            let identity = Identity::open(&folder).unwrap().unwrap();
            ControlClient::start(&ClientConfig { folder }, identity, host).unwrap()
        })
        .await;
        eventually("agent is connected", || async { client.is_connected() }).await;
        self.client = Some(client);
    }

    /// Ends the client; the simulated VMs run on.
    pub async fn disconnect(&mut self) {
        if let Some(client) = self.client.take() {
            blocking(move || drop(client)).await;
        }
    }

    pub fn is_connected(&self) -> bool {
        self.client
            .as_ref()
            .is_some_and(ControlClient::is_connected)
    }
}

pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.unwrap()
}

/// Waits until it is so.
pub async fn eventually<F: Future<Output = bool>>(what: &str, mut is_so: impl FnMut() -> F) {
    let begun = Instant::now();
    while !is_so().await {
        assert!(begun.elapsed() < PATIENCE, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A launch of the usual kind.
pub fn launch(name: &str) -> Value {
    json!({
        "name": name,
        "image": "debian:12",
        "bounds": {"cpus": {"min": 1, "max": 4}, "memory": {"min": "512M", "max": "4G"}},
        "thresholds": ["cpu > 75% for 5s: +1 cpu", "cpu < 20% for 60s: -1 cpu"],
    })
}

impl Api {
    /// Launches; the id.
    pub async fn launched(&self, body: Value) -> String {
        let instance = self.post("/v1/instances", body).await.expect(201);
        instance["id"].as_str().unwrap().to_owned()
    }

    /// Launches and waits until it runs; the id.
    pub async fn running(&self, name: &str) -> String {
        let id = self.launched(launch(name)).await;
        self.instance_is(&id, "running").await;
        id
    }

    pub async fn instance(&self, id: &str) -> Value {
        self.get(&format!("/v1/instances/{id}")).await.expect(200)
    }

    pub async fn instance_is(&self, id: &str, state: &str) {
        eventually(&format!("instance is {state}"), || async {
            self.instance(id).await["state"] == state
        })
        .await;
    }

    pub async fn events(&self, id: &str) -> Vec<Value> {
        let page = self
            .get(&format!("/v1/instances/{id}/events?limit=500"))
            .await
            .expect(200);
        page["items"].as_array().unwrap().clone()
    }

    /// How often each kind of event is in the record.
    pub async fn kinds(&self, id: &str) -> BTreeMap<String, usize> {
        let mut kinds = BTreeMap::new();
        for event in self.events(id).await {
            *kinds
                .entry(event["event"].as_str().unwrap().to_owned())
                .or_default() += 1;
        }
        kinds
    }
}
