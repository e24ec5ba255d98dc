//! Events and usage are in the record exactly once.

use concertina_api::event::EventKind;
use serde_json::Value;

use crate::support::{Cloud, eventually};

fn numbers(events: &[Value]) -> Vec<u64> {
    let host = events.iter().filter(|event| event["source"] == "host");
    host.map(|event| event["host_number"].as_u64().unwrap())
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn events_and_usage_of_a_broken_link_come_later_and_once() {
    let cloud = Cloud::start().await;
    let mut host = cloud.host("one").await;
    let api = cloud.account("acme").await;
    let id = api.running("web").await;
    let placement = host.host.running().remove(0);
    for round in 0..4 {
        host.disconnect().await;
        for _ in 0..50 {
            let cause = format!("round {round}");
            let why = "cooldown".to_owned();
            host.host.happen(&placement, EventKind::Held { cause, why });
            host.host.count(&placement);
        }
        host.connect().await;
        // In the middle of sending, mostly.
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    eventually("all events are there", || async {
        api.kinds(&id).await.get("held") == Some(&200)
    })
    .await;
    let events = api.events(&id).await;
    let all: Vec<u64> = (0..events.len() as u64).collect();
    let recorded: Vec<u64> = events
        .iter()
        .map(|e| e["number"].as_u64().unwrap())
        .collect();
    assert_eq!(recorded, all, "the record has no gap");
    let of_host = numbers(&events);
    assert_eq!(
        of_host,
        (0..of_host.len() as u64).collect::<Vec<_>>(),
        "each once, in order"
    );

    let chain = host.host.chain(&placement);
    let path = format!("/v1/instances/{id}/usage/records?limit=500");
    eventually("all usage is there", || async {
        api.get(&path).await.expect(200)["items"]
            .as_array()
            .unwrap()
            .len()
            == chain.len()
    })
    .await;
    let records = api.get(&path).await.expect(200);
    let lines: Vec<&str> = records["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|r| r["line"].as_str().unwrap())
        .collect();
    assert_eq!(lines, chain, "the record is the host's own chain");
    let sum: u64 = chain
        .iter()
        .map(|line| {
            serde_json::from_str::<Value>(line).unwrap()["vcpu_us"]
                .as_u64()
                .unwrap()
        })
        .sum();
    let total = api
        .get(&format!("/v1/instances/{id}/usage"))
        .await
        .expect(200);
    assert!((total["vcpu_seconds"].as_f64().unwrap() - sum as f64 / 1e6).abs() < 1e-6);
    assert_eq!(total["records"].as_u64().unwrap(), chain.len() as u64);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_goes_on_where_the_last_one_ended() {
    let cloud = Cloud::start().await;
    let host = cloud.host("one").await;
    let api = cloud.account("acme").await;
    let id = api.running("web").await;
    let placement = host.host.running().remove(0);
    eventually("its start is recorded", || async {
        api.kinds(&id).await.contains_key("started")
    })
    .await;
    let last = api.events(&id).await.len() - 1;
    let streaming = {
        let api = api.clone();
        let path = format!("/v1/instances/{id}/events/stream?seconds=3");
        let after = last.to_string();
        tokio::spawn(async move {
            let headers = [("last-event-id", after.as_str())];
            api.send(hyper::Method::GET, &path, None, &headers).await
        })
    };
    let (cause, why) = ("rule".to_owned(), "cooldown".to_owned());
    host.host.happen(&placement, EventKind::Held { cause, why });
    let reply = streaming.await.unwrap();
    assert_eq!(reply.headers["content-type"], "text/event-stream");
    assert!(
        reply
            .text
            .starts_with(&format!("id: {}\nevent: held\ndata: {{", last + 1)),
        "{}",
        reply.text
    );
    assert_eq!(reply.text.matches("event:").count(), 1, "{}", reply.text);
}
