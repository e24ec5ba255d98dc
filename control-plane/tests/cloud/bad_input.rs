//! Input that is wrong gets a problem with a code, and changes nothing.

use hyper::Method;
use serde_json::{Value, json};

use crate::support::{Api, Cloud, Reply, call, launch};

async fn raw(api: &Api, body: &[u8], kind: &str) -> Reply {
    let authorization = format!("Bearer {}", api.key);
    let headers = [
        ("authorization", authorization.as_str()),
        ("content-type", kind),
    ];
    call(
        api.address,
        Method::POST,
        "/v1/instances",
        &headers,
        body.to_vec(),
    )
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_that_are_no_launch_are_told_apart() {
    let cloud = Cloud::start().await;
    let api = cloud.account("acme").await;
    let json = "application/json";
    assert_eq!(
        raw(&api, b"{\"name\":", json).await.problem(400),
        "malformed_json"
    );
    assert_eq!(
        raw(&api, b"\xff\xfe", json).await.problem(400),
        "malformed_json"
    );
    assert_eq!(raw(&api, b"{}", json).await.problem(422), "invalid_body");
    assert_eq!(
        raw(&api, b"{}", "text/plain").await.problem(415),
        "unsupported_media_type"
    );
    let large = vec![b' '; (1 << 20) + 1];
    assert_eq!(raw(&api, &large, json).await.problem(413), "body_too_large");
    let deep = format!("{{\"thresholds\":{}", "[".repeat(100_000));
    assert_eq!(
        raw(&api, deep.as_bytes(), json).await.problem(400),
        "malformed_json"
    );
    let mut unknown = launch("web");
    unknown["cpu"] = 1.into();
    assert_eq!(
        api.post("/v1/instances", unknown).await.problem(422),
        "invalid_body"
    );
    let listed = api.get("/v1/instances").await.expect(200);
    assert_eq!(listed["items"], json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn each_wrong_value_is_named() {
    let cloud = Cloud::start().await;
    let _host = cloud.host("one").await;
    let api = cloud.account("acme").await;
    let cases: [(&str, Value, u16, &str); 12] = [
        ("/name", json!("Web"), 422, "Web"),
        ("/name", json!(""), 422, "name"),
        ("/image", json!("debian"), 422, "NAME:VERSION"),
        ("/image", json!("debian:13"), 404, "debian:13"),
        ("/image", json!("../x:12"), 404, "image"),
        ("/bounds/cpus/min", json!(-1), 422, "-1"),
        ("/bounds/cpus/min", json!(8), 422, "8"),
        ("/bounds/memory/max", json!("lots"), 422, "lots"),
        ("/thresholds", json!(["cpo > 1%: +1 cpu"]), 422, "cpo"),
        ("/networks", json!(["tap=eth0"]), 422, "tap=eth0"),
        ("/metrics", json!(["nonsense"]), 422, "nonsense"),
        ("/client_token", json!(""), 422, "client_token"),
    ];
    for (field, value, status, named) in cases {
        let mut body = launch("web");
        for optional in ["networks", "metrics", "client_token"] {
            body[optional] = Value::Null;
            if field.trim_start_matches('/') != optional {
                body.as_object_mut().unwrap().remove(optional);
            }
        }
        *body.pointer_mut(field).unwrap() = value.clone();
        let reply = api.post("/v1/instances", body).await;
        assert_eq!(reply.status, status, "{field} {value}: {}", reply.text);
        let detail = reply.body["detail"].as_str().unwrap();
        assert!(detail.contains(named), "{field} {value}: {detail}");
    }
    let account = api.get("/v1/account").await.expect(200);
    assert_eq!(account["used_instances"], 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn paths_queries_and_methods_that_are_none() {
    let cloud = Cloud::start().await;
    let api = cloud.account("acme").await;
    for (path, status) in [
        ("/v1/nothing", 404),
        ("/v1/instances/web", 404),
        ("/v1/instances/i-%2e%2e", 404),
        ("/v1/instances/%00", 404),
        ("/v1/instances?limit=0", 422),
        ("/v1/instances?limit=many", 400),
        ("/v1/instances?cursor=%21", 400),
        ("/v1/instances?unknown=1", 400),
        ("/v1/instances?cursor=Li4vLi4va2V5", 200),
    ] {
        let reply = api.get(path).await;
        assert_eq!(reply.status, status, "{path}: {}", reply.text);
        if status == 200 {
            assert_eq!(reply.body["items"], json!([]), "{path}");
        }
    }
    let reply = api.delete("/v1/instances").await;
    assert_eq!(reply.problem(405), "method_not_allowed");
    let none = call(api.address, Method::GET, "/v1/instances", &[], Vec::new()).await;
    assert_eq!(none.headers["www-authenticate"], "Bearer");
    assert_eq!(none.problem(401), "unauthenticated");
}
