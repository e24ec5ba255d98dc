//! Hosts: joining, lost, back, drained, short of capacity.

use concertina_agent::control::simulated::SimulatedHost;
use concertina_agent::control::{JoinWords, join};
use concertina_api::{Bytes, Cpus};
use serde_json::json;

use crate::support::{Cloud, blocking, eventually, launch};

#[tokio::test(flavor = "multi_thread")]
async fn a_join_token_is_good_for_one_host_and_only_for_this_control_plane() {
    let cloud = Cloud::start().await;
    let token = cloud.join_token().await;
    let words: JoinWords = token.parse().unwrap();
    let folder = cloud.folder.path().to_owned();
    let at = move |name: &str, words: &JoinWords| {
        let (folder, name, words) = (folder.join(name), name.to_owned(), words.clone());
        blocking(move || join(&folder, &words, &name).map(|identity| identity.host().to_owned()))
    };
    let other = JoinWords {
        fingerprint: "0".repeat(64),
        ..words.clone()
    };
    let refused = at("one", &other).await.unwrap_err().to_string();
    assert!(refused.contains("cannot be reached"), "{refused}");
    let first = at("one", &words).await.unwrap();
    let again = at("one", &words).await.unwrap();
    assert_eq!(first, again, "an answer that was lost is given again");
    let second = at("two", &words).await.unwrap_err().to_string();
    assert!(second.contains("token"), "{second}");
    let fresh: JoinWords = cloud.join_token().await.parse().unwrap();
    let taken = at("three/../one2", &fresh).await.unwrap_err().to_string();
    assert!(taken.contains("name"), "{taken}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_is_lost_and_back_keeps_its_instances() {
    let cloud = Cloud::start().await;
    let mut host = cloud.host("one").await;
    let api = cloud.account("acme").await;
    let id = api.running("web").await;
    host.disconnect().await;
    cloud.host_is(&host.id, "lost").await;
    api.instance_is(&id, "unreachable").await;
    assert_eq!(
        api.post("/v1/instances", launch("b")).await.problem(409),
        "no_capacity"
    );
    host.connect().await;
    api.instance_is(&id, "running").await;
    assert_eq!(
        host.host.launches().values().copied().collect::<Vec<_>>(),
        [1]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_placed_elsewhere_is_not_brought_back_by_a_host_that_was_lost() {
    let cloud = Cloud::start().await;
    let mut lost = cloud.host("one").await;
    let api = cloud.account("acme").await;
    let mut body = launch("web");
    body["on_host_lost"] = "relaunch".into();
    let id = api.launched(body).await;
    api.instance_is(&id, "running").await;
    let other = cloud.host("two").await;
    lost.disconnect().await;
    eventually("it runs on the other host", || async {
        let shown = api.instance(&id).await;
        shown["state"] == "running" && shown["host"] == other.id
    })
    .await;
    assert_eq!(
        lost.host.running().len(),
        1,
        "nobody could tell the lost host"
    );
    lost.connect().await;
    eventually("the old one is ended and removed", || async {
        lost.host.is_clean()
    })
    .await;
    assert_eq!(other.host.running().len(), 1);
    assert_eq!(api.instance(&id).await["state"], "running");
    let kinds = api.kinds(&id).await;
    assert_eq!(
        (kinds["started"], kinds["ended"]),
        (2, 1),
        "the old one's end is in the record"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn instances_that_a_host_has_lost_have_failed() {
    let cloud = Cloud::start().await;
    let mut host = cloud.host("one").await;
    let api = cloud.account("acme").await;
    let id = api.running("web").await;
    host.disconnect().await;
    host.host.lose_all();
    host.connect().await;
    api.instance_is(&id, "failed").await;
    assert!(
        host.host.running().is_empty(),
        "it is not started again by itself"
    );
    api.delete(&format!("/v1/instances/{id}")).await.expect(202);
    api.instance_is(&id, "terminated").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_is_short_is_told_of_and_the_instance_moves_where_that_is_wished() {
    let cloud = Cloud::start().await;
    let first = cloud.host("one").await;
    let api = cloud.account("acme").await;
    let stays = api.running("stays").await;
    let mut body = launch("moves");
    body["on_capacity_short"] = "move".into();
    let moves = api.launched(body).await;
    api.instance_is(&moves, "running").await;
    let second = cloud.host("two").await;
    for placement in first.host.running() {
        first
            .host
            .set_short(&placement, Some("256M are wanted and 128M are free"));
    }
    eventually("it has moved", || async {
        let shown = api.instance(&moves).await;
        shown["state"] == "running" && shown["host"] == second.id
    })
    .await;
    assert_eq!(api.kinds(&moves).await["capacity_short"], 1);
    eventually("its customer is told", || async {
        api.kinds(&stays).await.get("capacity_short") == Some(&1)
    })
    .await;
    assert_eq!(api.instance(&stays).await["host"], first.id);
    eventually("nothing of it is left on the first", || async {
        first.host.instances_of(&moves) == 0
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_is_drained_and_removed() {
    let cloud = Cloud::start().await;
    let mut host = cloud.host("one").await;
    let api = cloud.account("acme").await;
    let id = api.running("web").await;
    let path = format!("/v1/hosts/{}", host.id);
    cloud
        .operator
        .put(&path, json!({"draining": true}))
        .await
        .expect(200);
    assert_eq!(
        api.post("/v1/instances", launch("b")).await.problem(409),
        "no_capacity"
    );
    assert_eq!(
        cloud.operator.delete(&path).await.problem(409),
        "host_not_lost"
    );
    host.disconnect().await;
    cloud.host_is(&host.id, "lost").await;
    cloud.operator.delete(&path).await.expect(204);
    api.instance_is(&id, "failed").await;
    assert_eq!(cloud.operator.get(&path).await.problem(404), "not_found");
    assert!(!host.is_connected());
}

#[tokio::test(flavor = "multi_thread")]
async fn instances_spread_and_go_where_they_are_sent() {
    let cloud = Cloud::start().await;
    let small = SimulatedHost::new(Cpus::whole(4), Bytes(8 * Bytes::GIB));
    let small = cloud.host_of("small", small).await;
    let large = cloud.host("large").await;
    let api = cloud.account("acme").await;
    let mut body = launch("a");
    body["placement"] = json!({"spread": "web"});
    let a = api.launched(body.clone()).await;
    assert_eq!(api.instance(&a).await["host"], large.id);
    body["name"] = "b".into();
    let b = api.launched(body.clone()).await;
    assert_eq!(
        api.instance(&b).await["host"],
        small.id,
        "rather than beside the first"
    );
    body["name"] = "c".into();
    body["placement"] = json!({"host": "small"});
    let c = api.launched(body.clone()).await;
    assert_eq!(api.instance(&c).await["host"], small.id);
    body["name"] = "d".into();
    body["placement"] = json!({"host": "nowhere"});
    assert_eq!(
        api.post("/v1/instances", body).await.problem(409),
        "no_capacity"
    );
}
