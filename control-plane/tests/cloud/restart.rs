//! A node that ends and starts again goes on from what it has recorded.

use crate::support::{Cloud, eventually, launch};

/// A registry that was put back from a backup knows nothing of later launches: they are left alone.
#[tokio::test(flavor = "multi_thread")]
async fn instances_that_no_record_tells_of_are_left_alone_and_shown_to_the_operator() {
    use concertina_control::registry::sqlite::{backup, restore};
    let cloud = Cloud::start().await;
    let host = cloud.host("one").await;
    let api = cloud.account("acme").await;
    api.running("before").await;
    let file = cloud.folder.path().join("registry.db");
    let copy = cloud.folder.path().join("copy.db");
    backup(&file, &copy).unwrap();
    api.running("after").await;
    let Cloud {
        node,
        operator,
        folder,
    } = cloud;
    let settings = node.control.settings.clone();
    node.stop().await;
    while restore(&copy, &file).is_err() {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    let node = crate::support::started(settings).await;
    let cloud = Cloud {
        node,
        operator,
        folder,
    };
    let path = format!("/v1/hosts/{}", host.id);
    eventually("it is shown as unknown", || async {
        let shown = cloud.operator.get(&path).await.expect(200);
        shown["unknown"].as_array().unwrap().len() == 1
    })
    .await;
    assert_eq!(host.host.running().len(), 2, "nothing is ended");
    cloud.node.stop().await;
}

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
