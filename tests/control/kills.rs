//! `kill -9` of the control plane in the middle of launches: none is done twice, and none that was
//! answered is lost.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use concertina_control::client::{Client, ClientError};
use concertina_control::http_method::Method;
use serde_json::{Value, json};

use crate::cloud::{Cloud, wait_until};

const ROUNDS: usize = 10;
const LAUNCHES: usize = 6;

fn login(cloud: &Cloud, name: &str) -> (String, String) {
    let login: Value = serde_json::from_slice(&std::fs::read(cloud.path(name)).unwrap()).unwrap();
    (
        login["url"].as_str().unwrap().to_owned(),
        login["key"].as_str().unwrap().to_owned(),
    )
}

/// Launches until it is answered: the same token each time.
async fn launch(client: &Client, name: &str) -> String {
    let body = json!({
        "name": name, "image": "debian:12", "client_token": name, "thresholds": [],
        "bounds": {"cpus": {"min": 0.1, "max": 1}, "memory": {"min": "64M", "max": "128M"}},
    });
    loop {
        match client
            .send(Method::POST, "/v1/instances", Some(&body))
            .await
        {
            Ok(instance) => return instance["id"].as_str().unwrap().to_owned(),
            // It is not there, or not ready; the host may not be back yet.
            Err(ClientError::Unreachable { .. }) => {}
            Err(ClientError::Problem { code, .. }) if code == "no_capacity" || code == "busy" => {}
            Err(other) => panic!("{other}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[test]
fn ten_kills_in_the_middle_of_launches_lose_nothing_and_double_nothing() {
    let mut cloud = Cloud::start();
    cloud.account("acme");
    let (host, _client) = cloud.host("rack1");
    let (url, key) = login(&cloud, "acme");
    let ca = cloud.ca();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let mut answered = BTreeSet::new();
    for round in 0..ROUNDS {
        let begun = Arc::new(AtomicBool::new(false));
        let tasks: Vec<_> = (0..LAUNCHES)
            .map(|number| {
                let (url, key, ca, begun) = (url.clone(), key.clone(), ca.clone(), begun.clone());
                runtime.spawn(async move {
                    let client = Client::new(&url, &key, Some(&ca)).unwrap();
                    begun.store(true, Ordering::Relaxed);
                    launch(&client, &format!("web-{round}-{number}")).await
                })
            })
            .collect();
        wait_until("launches have begun", || begun.load(Ordering::Relaxed));
        // Each time at another point of them.
        std::thread::sleep(Duration::from_millis(7 * round as u64));
        cloud.kill();
        cloud.run();
        for task in tasks {
            assert!(
                answered.insert(runtime.block_on(task).unwrap()),
                "one id for two launches"
            );
        }
    }
    let client = Client::new(&url, &key, Some(&ca)).unwrap();
    let all = || runtime.block_on(client.all("/v1/instances")).unwrap();
    wait_until("all of them run", || {
        all()
            .iter()
            .filter(|instance| instance["state"] == "running")
            .count()
            == answered.len()
    });
    let listed: BTreeSet<String> = all()
        .iter()
        .map(|i| i["id"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(listed, answered, "what is there is what was answered");
    let launches = host.launches();
    assert_eq!(launches.len(), ROUNDS * LAUNCHES);
    assert!(launches.values().all(|count| *count == 1), "{launches:?}");
}
