//! A node that ends and starts again goes on from what it has recorded.

use crate::support::{Cloud, eventually, launch};

#[tokio::test(flavor = "multi_thread")]
async fn launches_that_were_answered_are_there_after_a_restart_and_none_is_done_twice() {
    let mut cloud = Cloud::start().await;
    let host = cloud.host("one").await;
    let api = cloud.account("acme").await;
    let mut ids = Vec::new();
    for round in 0..4 {
        // Not waited for: the node ends in the middle of it.
        ids.push(api.launched(launch(&format!("web-{round}"))).await);
        cloud = cloud.restart().await;
    }
    for id in &ids {
        api.instance_is(id, "running").await;
    }
    let launches = host.host.launches();
    assert_eq!(launches.len(), ids.len());
    assert!(launches.values().all(|count| *count == 1), "{launches:?}");
    for id in &ids {
        api.delete(&format!("/v1/instances/{id}")).await.expect(202);
    }
    cloud = cloud.restart().await;
    eventually("nothing is left", || async { host.host.is_clean() }).await;
    cloud.node.stop().await;
}
