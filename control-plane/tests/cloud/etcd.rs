//! Two nodes on a three-member etcd, of which one member hangs and another one dies in the middle of
//! launches.

#[path = "../../src/registry/etcd/testing.rs"]
mod testing;

use std::collections::BTreeSet;
use std::time::Duration;

use concertina_control::Node;
use concertina_control::config::Store;
use serde_json::{Value, json};

use crate::support::{Api, Cloud, eventually, launch, settings};

const LAUNCHES: usize = 24;

/// Launches until it is answered, at one node after the other: the same token each time.
async fn launched(nodes: &[Api], first: usize, body: Value) -> String {
    for api in nodes.iter().cycle().skip(first) {
        let reply = api.post("/v1/instances", body.clone()).await;
        match reply.status {
            200 | 201 => return reply.body["id"].as_str().unwrap().to_owned(),
            // Busy, or the registry does not answer.
            409 | 503 => tokio::time::sleep(Duration::from_millis(50)).await,
            _ => panic!("{}", reply.text),
        }
    }
    unreachable!("a cycle has no end")
}

#[tokio::test(flavor = "multi_thread")]
async fn members_of_etcd_that_hang_or_die_in_the_middle_of_launches_change_nothing() {
    let Some(etcd) = testing::Cluster::start(3) else {
        eprintln!("NOT RUN: etcd is not installed (apt-get install etcd-server)");
        return;
    };
    let endpoints = etcd.endpoints();
    let store = Store::Etcd(endpoints.clone());
    let cloud = Cloud::start_with(|settings| {
        settings.store = store;
        // Longer than an election.
        settings.host_lease = Duration::from_secs(10);
    })
    .await;
    let folder = tempfile::tempdir().unwrap();
    let second = Node::start(concertina_control::config::Settings {
        store: Store::Etcd(endpoints.into_iter().rev().collect()),
        host_lease: Duration::from_secs(10),
        ..settings(folder.path())
    })
    .await
    .unwrap();
    assert!(
        second.operator_key.is_none(),
        "the registry has an operator already"
    );
    let host = cloud.host("one").await;
    let quota = json!({"instances": 100, "cpus": 1000, "memory": 1u64 << 42, "requests_per_second": 10_000});
    let api = cloud.account_with("acme", quota).await;
    let nodes = vec![api.clone(), Api::new(second.api, &api.key)];

    let tasks: Vec<_> = (0..LAUNCHES)
        .map(|number| {
            let nodes = nodes.clone();
            let mut body = launch(&format!("web-{number}"));
            body["client_token"] = format!("token {number}").into();
            body["thresholds"] = json!([]);
            body["bounds"]["cpus"] = json!({"min": 0.1, "max": 2});
            body["bounds"]["memory"] = json!({"min": "64M", "max": "1G"});
            tokio::spawn(async move {
                tokio::time::sleep(Duration::from_millis(100 * number as u64)).await;
                launched(&nodes, number, body).await
            })
        })
        .collect();
    tokio::time::sleep(Duration::from_millis(500)).await;
    etcd.signal(0, "STOP");
    tokio::time::sleep(Duration::from_secs(4)).await;
    etcd.signal(0, "CONT");
    tokio::time::sleep(Duration::from_millis(500)).await;
    etcd.signal(1, "KILL");
    let mut ids = BTreeSet::new();
    for task in tasks {
        assert!(ids.insert(task.await.unwrap()), "one id for two launches");
    }
    eventually("all of them run", || async {
        let listed = nodes[1].get("/v1/instances?limit=500").await;
        let items = listed.body["items"].as_array().cloned().unwrap_or_default();
        items
            .iter()
            .filter(|instance| instance["state"] == "running")
            .count()
            == LAUNCHES
    })
    .await;
    let listed = nodes[0].get("/v1/instances?limit=500").await.expect(200);
    let listed = listed["items"].as_array().unwrap();
    let listed: BTreeSet<String> = listed
        .iter()
        .map(|i| i["id"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(listed, ids, "nothing lost, nothing twice");
    let launches = host.host.launches();
    assert_eq!(launches.len(), LAUNCHES);
    assert!(launches.values().all(|count| *count == 1), "{launches:?}");
    // The other node, to which the host is not connected, reaches it as well.
    let id = ids.iter().next().unwrap();
    let path = format!("/v1/instances/{id}/resizes");
    let resize = nodes[1].post(&path, json!({"cpus": 1})).await;
    assert!(matches!(resize.status, 200 | 202), "{}", resize.text);
    nodes[1]
        .delete(&format!("/v1/instances/{id}"))
        .await
        .expect(202);
    api.instance_is(id, "terminated").await;
    second.stop().await;
    cloud.node.stop().await;
}
