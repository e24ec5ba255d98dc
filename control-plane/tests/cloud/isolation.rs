//! One account never sees or touches another's things: every route of the OpenAPI document is tried with
//! another account's key, so that a route that is added without being thought of fails here.

use std::collections::BTreeMap;

use hyper::Method;
use serde_json::{Value, json};

use crate::support::{Api, Cloud, launch};

/// Names of path parameters that stand for a customer's own things.
const OWN: [&str; 4] = ["{instance}", "{key}", "{webhook}", "{resize}"];

/// A body that is right for a route, so that it is not refused for that.
fn body(method: &str, path: &str) -> Option<Value> {
    let body = match (method, path) {
        ("post", "/v1/keys/{key}/rotate") => json!({}),
        ("post", "/v1/instances/{instance}/stop") => json!({}),
        ("post", "/v1/instances/{instance}/resizes") => json!({"cpus": 2}),
        ("put", "/v1/instances/{instance}/policy") => json!({"thresholds": []}),
        ("put", "/v1/instances/{instance}/policy/mode") => json!({"mode": "recommend"}),
        ("post", "/v1/webhooks/{webhook}/dead-letters/retry") => {
            json!({"delivery": format!("d-{}", "0".repeat(26))})
        }
        _ => return None,
    };
    Some(body)
}

/// Routes that have nobody's things in their path, and what another account may see there.
fn is_without_things(path: &str) -> bool {
    matches!(
        path,
        "/healthz"
            | "/v1/openapi.json"
            | "/v1/account"
            | "/v1/keys"
            | "/v1/audit"
            | "/v1/images"
            | "/v1/images/{name}/{version}"
            | "/v1/instances"
            | "/v1/webhooks"
    ) || path.starts_with("/v1/accounts")
        || path.starts_with("/v1/hosts")
}

struct Things {
    ids: BTreeMap<&'static str, String>,
}

async fn things(api: &Api) -> Things {
    let instance = api.running("web").await;
    let path = format!("/v1/instances/{instance}/resizes");
    let resize = api.post(&path, json!({"cpus": 3})).await.expect(200);
    let key = api
        .post("/v1/keys", json!({"name": "k", "scope": "read"}))
        .await
        .expect(201);
    let hook = json!({"url": "http://127.0.0.1:1/", "events": ["nothing"]});
    let webhook = api.post("/v1/webhooks", hook).await.expect(201);
    let id = |value: &Value| value["id"].as_str().unwrap().to_owned();
    Things {
        ids: BTreeMap::from([
            ("{instance}", instance),
            ("{resize}", id(&resize)),
            ("{key}", id(&key)),
            ("{webhook}", id(&webhook)),
        ]),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_route_hides_what_belongs_to_another_account() {
    let cloud = Cloud::start().await;
    let _host = cloud.host("one").await;
    let (owner, stranger) = (
        cloud.account("owner").await,
        cloud.account("stranger").await,
    );
    let things = things(&owner).await;
    let before = owner.instance(&things.ids["{instance}"]).await;
    let document = stranger.get("/v1/openapi.json").await.expect(200);
    let mut tried = 0;
    for (path, operations) in document["paths"].as_object().unwrap() {
        if !OWN.iter().any(|parameter| path.contains(parameter)) {
            assert!(
                is_without_things(path),
                "{path} is new: say whose things it shows"
            );
            continue;
        }
        let fill = |ids: &dyn Fn(&str) -> String| {
            OWN.iter()
                .fold(path.clone(), |path, name| match path.contains(name) {
                    true => path.replace(name, &ids(name)),
                    false => path,
                })
        };
        let theirs = fill(&|name| things.ids[name].clone());
        let nobodys = fill(&|name| {
            let prefix = things.ids[name].split('-').next().unwrap().to_owned();
            format!("{prefix}-{}", "0".repeat(26))
        });
        for method in operations.as_object().unwrap().keys() {
            let verb = Method::from_bytes(method.to_uppercase().as_bytes()).unwrap();
            let ask = async |path: &str, template: &str| {
                stranger
                    .send(verb.clone(), path, body(method, template), &[])
                    .await
            };
            let foreign = ask(&theirs, path).await;
            let missing = ask(&nobodys, path).await;
            assert_eq!(foreign.status, 404, "{method} {path}: {}", foreign.text);
            assert_eq!(missing.status, 404, "{method} {path}: {}", missing.text);
            let plain = |reply: &crate::support::Reply| {
                let mut body = reply.body.clone();
                body["request_id"] = Value::Null;
                let text = body.to_string();
                things.ids.values().fold(text, |text, id| {
                    let prefix = id.split('-').next().unwrap();
                    text.replace(id, &format!("{prefix}-{}", "0".repeat(26)))
                })
            };
            assert_eq!(
                plain(&foreign),
                plain(&missing),
                "{method} {path} tells that it exists"
            );
            tried += 1;
        }
    }
    assert!(tried >= 17, "{tried}");
    let after = owner.instance(&things.ids["{instance}"]).await;
    assert_eq!(
        (&before["state"], &before["policy"]),
        (&after["state"], &after["policy"])
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_show_only_ones_own() {
    let cloud = Cloud::start().await;
    let _host = cloud.host("one").await;
    let (owner, stranger) = (
        cloud.account("owner").await,
        cloud.account("stranger").await,
    );
    let things = things(&owner).await;
    let image = json!({
        "name": "mine", "version": "1",
        "parts": {"kind": "disk", "disk": {"url": "http://x.example/", "sha256": "1".repeat(64), "size_bytes": 1}},
    });
    owner.post("/v1/images", image).await.expect(201);
    for path in [
        "/v1/instances",
        "/v1/webhooks",
        "/v1/images?own=true",
        "/v1/audit",
    ] {
        let listed = stranger.get(path).await.expect(200);
        assert_eq!(listed["items"], json!([]), "{path}");
        let own = owner.get(path).await.expect(200);
        assert_ne!(own["items"], json!([]), "{path}");
    }
    let keys = stranger.get("/v1/keys").await;
    assert!(!keys.text.contains(&things.ids["{key}"]));
    assert_eq!(
        stranger.get("/v1/images/mine/1").await.problem(404),
        "not_found"
    );
    let mut foreign = launch("x");
    foreign["image"] = "mine:1".into();
    assert_eq!(
        stranger
            .post("/v1/instances", foreign.clone())
            .await
            .problem(404),
        "not_found"
    );
    owner.post("/v1/instances", foreign).await.expect(201);
    // The same name in another account is another instance.
    stranger
        .post("/v1/instances", launch("web"))
        .await
        .expect(201);
    // A cursor made from another account's ids leads nowhere.
    let cursor = owner.get("/v1/instances?limit=1").await.expect(200);
    let path = format!(
        "/v1/instances?cursor={}",
        cursor["next_cursor"].as_str().unwrap()
    );
    let page = stranger.get(&path).await;
    assert!(!page.text.contains(&things.ids["{instance}"]));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_operators_routes_are_closed_to_customers() {
    let cloud = Cloud::start().await;
    let host = cloud.host("one").await;
    let stranger = cloud.account("stranger").await;
    let document = stranger.get("/v1/openapi.json").await.expect(200);
    let account = stranger.get("/v1/account").await.expect(200);
    let mut tried = 0;
    for (path, operations) in document["paths"].as_object().unwrap() {
        if !path.starts_with("/v1/accounts") && !path.starts_with("/v1/hosts") {
            continue;
        }
        let path = path
            .replace("{host}", &host.id)
            .replace("{account}", account["id"].as_str().unwrap());
        for method in operations.as_object().unwrap().keys() {
            let verb = Method::from_bytes(method.to_uppercase().as_bytes()).unwrap();
            let body = match (method.as_str(), path.as_str()) {
                ("post", "/v1/accounts") => json!({"name": "x"}),
                ("post", path) if path.ends_with("/keys") => json!({"name": "x", "scope": "admin"}),
                ("put", path) if path.starts_with("/v1/hosts") => json!({"draining": true}),
                _ => json!({}),
            };
            let body = (method != "get" && method != "delete").then_some(body);
            let reply = stranger.send(verb, &path, body, &[]).await;
            assert_eq!(reply.problem(403), "operator_only", "{method} {path}");
            tried += 1;
        }
    }
    assert!(tried >= 11, "{tried}");
}
