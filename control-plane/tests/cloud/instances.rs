//! Instances from launch to termination.

use hyper::Method;
use serde_json::json;

use crate::support::{Cloud, eventually, launch};

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_lives_from_launch_to_nothing_left() {
    let cloud = Cloud::start().await;
    let host = cloud.host("one").await;
    let api = cloud.account("acme").await;
    let id = api.running("web").await;
    let shown = api.instance(&id).await;
    assert_eq!(shown["policy"]["thresholds"][0], "cpu > 75% for 5s: +1 cpu");
    assert_eq!(shown["host"], host.id);

    let path = format!("/v1/instances/{id}/resizes");
    let resize = api
        .post(&path, json!({"cpus": 2, "memory": "1G"}))
        .await
        .expect(200);
    assert_eq!(resize["report"]["outcome"], "applied");
    eventually("the size is observed", || async {
        api.instance(&id).await["observed"]["cpus"]["target"] == 2
    })
    .await;
    let metrics = api
        .get(&format!("/v1/instances/{id}/metrics"))
        .await
        .expect(200);
    assert_eq!(metrics["values"]["cpu"], 25.0);

    api.post(&format!("/v1/instances/{id}/stop"), json!({}))
        .await
        .expect(202);
    api.instance_is(&id, "stopped").await;
    assert!(
        host.host.running().is_empty() && !host.host.is_clean(),
        "its disk stays"
    );
    api.send(
        Method::POST,
        &format!("/v1/instances/{id}/start"),
        None,
        &[],
    )
    .await
    .expect(202);
    api.instance_is(&id, "running").await;
    assert_eq!(api.instance(&id).await["generation"], 2);

    api.delete(&format!("/v1/instances/{id}")).await.expect(202);
    api.instance_is(&id, "terminated").await;
    eventually("nothing is left", || async { host.host.is_clean() }).await;
    let kinds = api.kinds(&id).await;
    assert_eq!(
        (kinds["started"], kinds["ended"], kinds["resized"]),
        (2, 2, 1),
        "{kinds:?}"
    );
    let account = api.get("/v1/account").await.expect(200);
    assert_eq!(account["used_instances"], 0);
    let hosts = cloud.operator.get("/v1/hosts").await.expect(200);
    assert_eq!(hosts["items"][0]["promised_cpus"], 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_launch_with_a_client_token_is_done_once() {
    let cloud = Cloud::start().await;
    let host = cloud.host("one").await;
    let api = cloud.account("acme").await;
    let mut body = launch("web");
    body["client_token"] = "deploy 7".into();
    let launches = (0..8).map(|_| {
        let (api, body) = (api.clone(), body.clone());
        tokio::spawn(async move { api.post("/v1/instances", body).await })
    });
    let mut ids = Vec::new();
    let mut created = 0;
    for launch in launches.collect::<Vec<_>>() {
        let reply = launch.await.unwrap();
        created += usize::from(reply.status == 201);
        assert!(matches!(reply.status, 200 | 201), "{}", reply.text);
        ids.push(reply.body["id"].as_str().unwrap().to_owned());
    }
    ids.dedup();
    assert_eq!((ids.len(), created), (1, 1));
    api.instance_is(&ids[0], "running").await;
    assert_eq!(
        host.host.launches().values().copied().collect::<Vec<_>>(),
        [1]
    );
    body["name"] = "other".into();
    let reused = api.post("/v1/instances", body).await;
    assert_eq!(reused.problem(422), "client_token_reused");
    let again = api.post("/v1/instances", launch("web")).await;
    assert_eq!(again.problem(409), "name_taken");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_launch_that_fails_says_why_and_leaves_nothing() {
    let cloud = Cloud::start().await;
    let host = cloud.host("one").await;
    let api = cloud.account("acme").await;
    host.host
        .fail_launches(Some("Image 'debian:12' has another digest"));
    let id = api.launched(launch("web")).await;
    api.instance_is(&id, "failed").await;
    let shown = api.instance(&id).await;
    assert_eq!(shown["reason"], "Image 'debian:12' has another digest");
    assert_eq!(shown["host"], host.id);
    assert!(host.host.is_clean());
    host.host.fail_launches(None);
    api.send(
        Method::POST,
        &format!("/v1/instances/{id}/start"),
        None,
        &[],
    )
    .await
    .expect(202);
    api.instance_is(&id, "running").await;
    let launches: Vec<u32> = host.host.launches().into_values().collect();
    assert_eq!(launches, [1, 1], "each placement is launched once");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_fit_is_refused_with_numbers_and_leaves_no_trace() {
    let cloud = Cloud::start().await;
    let api = cloud
        .account_with("acme", json!({"requests_per_second": 1000, "instances": 3}))
        .await;
    let nowhere = api.post("/v1/instances", launch("web")).await;
    assert!(nowhere.text.contains("of 0 hosts"), "{}", nowhere.text);
    assert_eq!(nowhere.problem(409), "no_capacity");
    let _host = cloud.host("one").await;
    let mut body = launch("web");
    body["bounds"]["cpus"] = json!({"min": 9, "max": 12});
    let large = api.post("/v1/instances", body).await;
    assert!(
        large.text.contains("9 CPUs") && large.text.contains("8 CPUs"),
        "{}",
        large.text
    );
    assert_eq!(large.problem(409), "no_capacity");
    for name in ["a", "b", "c"] {
        api.launched(launch(name)).await;
    }
    let over = api.post("/v1/instances", launch("d")).await;
    assert_eq!(over.problem(403), "quota_exceeded");
    let listed = api.get("/v1/instances?limit=2").await.expect(200);
    assert_eq!(listed["items"].as_array().unwrap().len(), 2);
    let next = format!(
        "/v1/instances?limit=2&cursor={}",
        listed["next_cursor"].as_str().unwrap()
    );
    let rest = api.get(&next).await.expect(200);
    assert_eq!(rest["items"].as_array().unwrap().len(), 1);
    assert!(rest.get("next_cursor").is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_is_replaced_by_version_and_reaches_the_host() {
    let cloud = Cloud::start().await;
    let _host = cloud.host("one").await;
    let api = cloud.account("acme").await;
    let id = api.running("web").await;
    let path = format!("/v1/instances/{id}/policy");
    let shown = api.get(&path).await;
    assert_eq!(shown.headers["etag"], "\"1\"");
    let body = json!({"thresholds": ["memory > 80% for 2s: +128M"]});
    let stale = api
        .send(
            Method::PUT,
            &path,
            Some(body.clone()),
            &[("if-match", "\"7\"")],
        )
        .await;
    assert_eq!(stale.problem(412), "version_conflict");
    let replaced = api
        .send(Method::PUT, &path, Some(body), &[("if-match", "\"1\"")])
        .await;
    assert_eq!(replaced.headers["etag"], "\"2\"");
    eventually("the policy is in force", || async {
        api.instance(&id).await["observed"]["policy_version"] == 2
    })
    .await;
    let mode = format!("{path}/mode");
    let recommend = api
        .put(&mode, json!({"mode": "recommend"}))
        .await
        .expect(200);
    assert_eq!(
        (recommend["version"].as_u64(), &recommend["mode"]),
        (Some(3), &json!("recommend"))
    );
    let bounds = json!({"cpus": {"min": 1, "max": 8}, "memory": {"min": "512M", "max": "4G"}});
    let fixed = api
        .put(&path, json!({"thresholds": [], "bounds": bounds}))
        .await;
    assert_eq!(fixed.problem(422), "bounds_fixed");
}

#[tokio::test(flavor = "multi_thread")]
async fn resizes_outside_the_bounds_or_of_what_does_not_run_are_refused() {
    let cloud = Cloud::start().await;
    let host = cloud.host("one").await;
    let api = cloud.account("acme").await;
    let id = api.running("web").await;
    let path = format!("/v1/instances/{id}/resizes");
    let outside = api.post(&path, json!({"cpus": 5})).await;
    assert!(outside.text.contains("1..4"), "{}", outside.text);
    assert_eq!(outside.problem(422), "invalid_value");
    let token = json!({"cpus": 3, "client_token": "t"});
    let first = api.post(&path, token.clone()).await.expect(200);
    let second = api.post(&path, token).await.expect(200);
    assert_eq!(first["id"], second["id"]);
    assert_eq!(api.kinds(&id).await.get("resized").copied().unwrap_or(1), 1);
    let placement = host.host.running().remove(0);
    host.host.end(&placement, 65, "Triple fault");
    api.instance_is(&id, "failed").await;
    assert_eq!(
        api.post(&path, json!({"cpus": 2})).await.problem(409),
        "wrong_state"
    );
}
