//! Keys, scopes, quotas, rate limits, the audit log.

use hyper::Method;
use serde_json::json;

use crate::support::{Api, Cloud, call, launch};

#[tokio::test(flavor = "multi_thread")]
async fn a_scope_allows_what_it_says() {
    let cloud = Cloud::start().await;
    let _host = cloud.host("one").await;
    let admin = cloud.account("acme").await;
    let account = admin.get("/v1/account").await.expect(200);
    let account = account["id"].as_str().unwrap();
    let (read, launcher) = (
        cloud.key(account, "read").await,
        cloud.key(account, "launch").await,
    );
    assert_eq!(
        read.post("/v1/instances", launch("a")).await.problem(403),
        "insufficient_scope"
    );
    launcher.launched(launch("a")).await;
    read.get("/v1/instances").await.expect(200);
    assert_eq!(
        launcher.get("/v1/keys").await.problem(403),
        "insufficient_scope"
    );
    assert_eq!(admin.get("/v1/hosts").await.problem(403), "operator_only");
    let suspend = json!({"suspended": true});
    cloud
        .operator
        .put(&format!("/v1/accounts/{account}"), suspend)
        .await
        .expect(200);
    assert_eq!(
        launcher
            .post("/v1/instances", launch("b"))
            .await
            .problem(403),
        "account_suspended"
    );
    read.get("/v1/instances").await.expect(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_are_shown_once_rotated_revoked_and_end() {
    let cloud = Cloud::start().await;
    let api = cloud.account("acme").await;
    let made = api
        .post(
            "/v1/keys",
            json!({"name": "ci", "scope": "read", "expires_in_s": 1}),
        )
        .await
        .expect(201);
    let short = Api::new(cloud.node.api, made["key"].as_str().unwrap());
    short.get("/v1/account").await.expect(200);
    let listed = api.get("/v1/keys").await;
    let secret = made["key"].as_str().unwrap().split('_').nth(1).unwrap();
    assert!(!listed.text.contains(secret), "a secret is shown once");
    tokio::time::sleep(std::time::Duration::from_millis(1100)).await;
    assert_eq!(
        short.get("/v1/account").await.problem(401),
        "unauthenticated"
    );

    let made = api
        .post("/v1/keys", json!({"name": "ci", "scope": "launch"}))
        .await
        .expect(201);
    let old = Api::new(cloud.node.api, made["key"].as_str().unwrap());
    let path = format!("/v1/keys/{}", made["id"].as_str().unwrap());
    let rotated = api
        .post(&format!("{path}/rotate"), json!({"grace_s": 60}))
        .await
        .expect(201);
    let new = Api::new(cloud.node.api, rotated["key"].as_str().unwrap());
    old.get("/v1/account").await.expect(200);
    new.get("/v1/account").await.expect(200);
    api.delete(&path).await.expect(204);
    assert_eq!(old.get("/v1/account").await.problem(401), "unauthenticated");
    new.get("/v1/account").await.expect(200);
    assert_eq!(
        api.post(&format!("{path}/rotate"), json!({}))
            .await
            .problem(409),
        "key_not_in_force"
    );

    let audit = api.get("/v1/audit").await.expect(200);
    let actions: Vec<&str> = audit["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|e| e["action"].as_str().unwrap())
        .collect();
    assert_eq!(
        actions,
        ["key.revoke", "key.rotate", "key.create", "key.create"]
    );
    assert_eq!(audit["items"][0]["remote"], "127.0.0.1");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_operator_cannot_lock_itself_out() {
    let cloud = Cloud::start().await;
    let operator = &cloud.operator;
    let suspend = json!({"suspended": true});
    let refused = operator.put("/v1/accounts/operator", suspend).await;
    assert_eq!(refused.problem(409), "operator_needed");
    let first = format!("/v1/keys/{}", operator.key.split('_').next().unwrap());
    assert_eq!(operator.delete(&first).await.problem(409), "last_key");
    let body = json!({"name": "second", "scope": "admin"});
    let second = operator.post("/v1/keys", body).await.expect(201);
    operator.delete(&first).await.expect(204);
    let second = Api::new(cloud.node.api, second["key"].as_str().unwrap());
    second.get("/v1/keys").await.expect(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_account_that_asks_too_often_is_told_to_wait_and_others_are_not() {
    let cloud = Cloud::start().await;
    let busy = cloud
        .account_with("busy", json!({"requests_per_second": 1}))
        .await;
    let quiet = cloud.account("quiet").await;
    let mut refused = None;
    for _ in 0..50 {
        let reply = busy.get("/v1/account").await;
        if reply.status != 200 {
            refused = Some(reply);
            break;
        }
    }
    let refused = refused.unwrap();
    assert!(refused.headers.contains_key("retry-after"));
    assert_eq!(refused.problem(429), "rate_limited");
    quiet.get("/v1/account").await.expect(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_bad_tokens_are_cheap_and_tell_nothing() {
    let cloud = Cloud::start().await;
    let api = cloud.account("acme").await;
    let good_id = api.key.split('_').next().unwrap().to_owned();
    let wrong = [
        "nonsense".to_owned(),
        format!("ck-{}_{}", "0".repeat(26), "0".repeat(52)),
        // A key that there is, with another secret: the same answer.
        format!("{good_id}_{}", "0".repeat(52)),
    ];
    let mut bodies = std::collections::BTreeSet::new();
    let address = cloud.node.api;
    let tasks = (0..20usize).map(|worker| {
        let wrong = wrong.clone();
        tokio::spawn(async move {
            let mut bodies = Vec::new();
            for round in 0..500 {
                let token = format!("Bearer {}", wrong[(worker + round) % wrong.len()]);
                let headers = [("authorization", token.as_str())];
                let reply = call(address, Method::GET, "/v1/instances", &headers, Vec::new()).await;
                assert_eq!(reply.status, 401);
                bodies.push(reply.body["detail"].as_str().unwrap().to_owned());
            }
            bodies
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        // In the middle of it others are served.
        api.get("/v1/account").await.expect(200);
        bodies.extend(task.await.unwrap());
    }
    assert_eq!(bodies.len(), 1, "{bodies:?}");
}
