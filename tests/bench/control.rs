//! Load on the control plane's API: describes and launches at a fixed rate, on kept connections, against
//! simulated hosts that connect with the agent's own client. Rates do not wait for answers: whoever is
//! late is late for all that come after, and that is measured.

use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use concertina_agent::control::simulated::SimulatedHost;
use concertina_agent::control::{ClientConfig, ControlClient, join};
use concertina_api::{Bytes, Cpus};
use concertina_control::client::Client;
use concertina_control::http_method::Method;
use serde_json::{Value, json};

use crate::report::Results;

/// Instances that are there when describes are measured.
const INSTANCES: usize = 200;
/// How long each rate is kept up.
const TIME: Duration = Duration::from_secs(10);
const DESCRIBES_PER_SECOND: usize = 1000;
const LAUNCHES_PER_SECOND: usize = 100;
const CONNECTIONS: usize = 32;
const HOSTS: usize = 4;

/// The process; it ends when this is dropped.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

fn start(folder: &Path) -> Result<(Server, String)> {
    let (api, agents) = (free_port()?, free_port()?);
    let process = Command::new("concertina")
        .args(["control", "--plain-http", "--data-dir"])
        .arg(folder)
        .args(["--listen", &format!("127.0.0.1:{api}")])
        .args(["--agents-listen", &format!("127.0.0.1:{agents}")])
        .stdout(Stdio::null())
        .spawn()
        .context("Starting 'concertina control'")?;
    let server = Server(process);
    let begun = Instant::now();
    while !folder.join("ca.pem").exists() {
        if begun.elapsed() > Duration::from_secs(60) {
            bail!("'concertina control' does not start");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok((server, format!("http://127.0.0.1:{api}")))
}

async fn host(operator: &Client, folder: &Path, name: &str) -> Result<ControlClient> {
    let token = operator
        .send(Method::POST, "/v1/hosts/join-tokens", Some(&json!({})))
        .await?;
    let token = token["token"].as_str().unwrap_or_default().to_owned();
    let (folder, name) = (folder.join(name), name.to_owned());
    tokio::task::spawn_blocking(move || {
        let identity = join(&folder, &token.parse()?, &name)?;
        let host = SimulatedHost::new(Cpus::whole(4000), Bytes(64 * 1024 * Bytes::GIB));
        let client = ControlClient::start(&ClientConfig { folder }, identity, Arc::new(host))?;
        while !client.is_connected() {
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(client)
    })
    .await?
}

fn launch(name: &str) -> Value {
    json!({
        "name": name, "image": "debian:12",
        "bounds": {"cpus": {"min": 0.5, "max": 4}, "memory": {"min": "256M", "max": "4G"}},
        "thresholds": ["cpu > 75% for 5s: +1 cpu", "cpu < 20% for 60s: -1 cpu"],
    })
}

/// An account with a large quota, an image; the account's key.
async fn prepare(operator: &Client) -> Result<String> {
    let image = json!({"name": "debian", "version": "12", "parts": {"kind": "disk", "disk": {
        "url": "http://images.example/debian.raw", "sha256": "0".repeat(64), "size_bytes": 1}}});
    operator
        .send(Method::POST, "/v1/images", Some(&image))
        .await?;
    let quota = json!({"instances": 1_000_000, "cpus": 1_000_000, "memory": 1u64 << 60, "requests_per_second": 1_000_000});
    let account = json!({"name": "load", "quota": quota});
    let account = operator
        .send(Method::POST, "/v1/accounts", Some(&account))
        .await?;
    let path = format!(
        "/v1/accounts/{}/keys",
        account["id"].as_str().unwrap_or_default()
    );
    let key = json!({"name": "load", "scope": "admin"});
    let key = operator.send(Method::POST, &path, Some(&key)).await?;
    Ok(key["key"].as_str().unwrap_or_default().to_owned())
}

/// A request, and when it is to be sent.
type Due = (tokio::time::Instant, Method, String, Option<Value>);

/// Sends requests at a fixed rate over all connections; the latency of each, in milliseconds, counted
/// from when it was due.
async fn load<F>(clients: &[Arc<Client>], per_second: usize, request: F) -> Result<Vec<f64>>
where
    F: Fn(usize) -> (Method, String, Option<Value>),
{
    let begun = tokio::time::Instant::now() + Duration::from_millis(200);
    let count = per_second * TIME.as_secs() as usize;
    let mut lanes: Vec<Vec<Due>> = clients.iter().map(|_| Vec::new()).collect();
    for number in 0..count {
        let due = begun + Duration::from_secs_f64(number as f64 / per_second as f64);
        let (method, path, body) = request(number);
        lanes[number % clients.len()].push((due, method, path, body));
    }
    let tasks: Vec<_> = lanes
        .into_iter()
        .zip(clients)
        .map(|(lane, client)| {
            let client = Arc::clone(client);
            tokio::spawn(async move {
                let mut latencies = Vec::with_capacity(lane.len());
                for (due, method, path, body) in lane {
                    tokio::time::sleep_until(due).await;
                    client.send(method, &path, body.as_ref()).await?;
                    latencies.push(due.elapsed().as_secs_f64() * 1000.0);
                }
                Ok::<_, anyhow::Error>(latencies)
            })
        })
        .collect();
    let mut all = Vec::with_capacity(count);
    for task in tasks {
        all.extend(task.await??);
    }
    Ok(all)
}

/// Measures both rates.
pub fn measure(results: &mut Results) -> Result<()> {
    let folder =
        std::env::temp_dir().join(format!("concertina-bench-control-{}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    let measured = tokio::runtime::Runtime::new()?.block_on(measure_in(&folder, results));
    let _ = std::fs::remove_dir_all(&folder);
    measured
}

async fn measure_in(folder: &Path, results: &mut Results) -> Result<()> {
    let (_server, url) = start(&folder.join("data"))?;
    let key = std::fs::read_to_string(folder.join("data/operator.key"))?;
    let operator = Client::new(&url, key.trim(), None)?;
    let key = prepare(&operator).await?;
    let mut hosts = Vec::new();
    for number in 0..HOSTS {
        hosts.push(host(&operator, folder, &format!("host{number}")).await?);
    }
    let clients = (0..CONNECTIONS)
        .map(|_| Client::new(&url, &key, None).map(Arc::new))
        .collect::<Result<Vec<_>, _>>()?;
    let client = &clients[0];
    let mut ids = Vec::new();
    for number in 0..INSTANCES {
        let body = launch(&format!("seed-{number}"));
        let instance = client
            .send(Method::POST, "/v1/instances", Some(&body))
            .await?;
        ids.push(instance["id"].as_str().unwrap_or_default().to_owned());
    }
    let describes = load(&clients, DESCRIBES_PER_SECOND, |number| {
        (
            Method::GET,
            format!("/v1/instances/{}", ids[number % ids.len()]),
            None,
        )
    })
    .await?;
    results.add(
        &format!("API: {DESCRIBES_PER_SECOND} describes a second"),
        "concertina",
        "ms",
        &describes,
    );
    let launches = load(&clients, LAUNCHES_PER_SECOND, |number| {
        (
            Method::POST,
            "/v1/instances".into(),
            Some(launch(&format!("load-{number}"))),
        )
    })
    .await?;
    results.add(
        &format!("API: {LAUNCHES_PER_SECOND} launches a second"),
        "concertina",
        "ms",
        &launches,
    );
    let begun = Instant::now();
    let wanted = INSTANCES + launches.len();
    loop {
        let all = client.all("/v1/instances").await?;
        let running = all
            .iter()
            .filter(|instance| instance["state"] == "running")
            .count();
        if running == wanted {
            break;
        }
        if begun.elapsed() > Duration::from_secs(120) {
            bail!("{running} of {wanted} instances run");
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    println!(
        "all {wanted} run {:.1} s after the last launch was answered",
        begun.elapsed().as_secs_f64()
    );
    tokio::task::spawn_blocking(move || drop(hosts)).await?;
    Ok(())
}
