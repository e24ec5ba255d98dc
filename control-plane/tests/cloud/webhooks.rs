//! Events reach webhooks signed, again after failures, and are put aside when they never do.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::mpsc;

use crate::support::{Cloud, eventually};

/// A receiver that refuses so many messages first; what it was sent.
async fn receiver(refusals: usize) -> (String, mpsc::UnboundedReceiver<String>, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/hook", listener.local_addr().unwrap());
    let (sender, received) = mpsc::unbounded_channel();
    let left = Arc::new(AtomicUsize::new(refusals));
    let refusing = Arc::clone(&left);
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut bytes = Vec::new();
            let mut buffer = [0; 4096];
            let text = loop {
                let length = stream.read(&mut buffer).await.unwrap();
                bytes.extend_from_slice(&buffer[..length]);
                let text = String::from_utf8_lossy(&bytes).into_owned();
                let Some((head, body)) = text.split_once("\r\n\r\n") else {
                    continue;
                };
                let wanted = head
                    .lines()
                    .find_map(|line| line.strip_prefix("content-length: "))
                    .and_then(|length| length.parse::<usize>().ok())
                    .unwrap_or(0);
                if body.len() >= wanted || length == 0 {
                    break text;
                }
            };
            let is_refused = refusing
                .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| {
                    left.checked_sub(1)
                })
                .is_ok();
            let status = if is_refused { "500 No" } else { "200 OK" };
            if !is_refused {
                sender.send(text).unwrap();
            }
            let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n");
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    });
    (url, received, left)
}

fn header<'t>(text: &'t str, name: &str) -> &'t str {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|rest| rest.strip_prefix(": ")).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_are_signed_and_repeated_until_they_are_taken() {
    let cloud = Cloud::start().await;
    let _host = cloud.host("one").await;
    let api = cloud.account("acme").await;
    let (url, mut received, _) = receiver(2).await;
    let hook = json!({"url": url, "events": ["state"]});
    let hook = api.post("/v1/webhooks", hook).await.expect(201);
    let secret = hook["secret"].as_str().unwrap();
    let id = api.running("web").await;
    let message = received.recv().await.unwrap();
    let (_, body) = message.split_once("\r\n\r\n").unwrap();
    let signature = header(&message, "concertina-signature");
    let seconds = signature
        .trim_start_matches("t=")
        .split(',')
        .next()
        .unwrap()
        .parse()
        .unwrap();
    let expected = concertina_control::webhooks::signature(secret, seconds, body.as_bytes());
    assert_eq!(signature, expected);
    let event: serde_json::Value = serde_json::from_str(body).unwrap();
    assert_eq!(
        (&event["instance"], &event["event"]),
        (&json!(id), &json!("state"))
    );
    assert!(
        !api.get("/v1/webhooks").await.text.contains(secret),
        "it is shown once"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_delivered_is_put_aside_and_sent_again_when_asked() {
    let cloud = Cloud::start().await;
    let _host = cloud.host("one").await;
    let api = cloud.account("acme").await;
    let (url, mut received, refusals) = receiver(usize::MAX).await;
    let hook = api
        .post("/v1/webhooks", json!({"url": url, "events": ["policy"]}))
        .await
        .expect(201);
    let path = format!("/v1/webhooks/{}/dead-letters", hook["id"].as_str().unwrap());
    let id = api.running("web").await;
    let mode = format!("/v1/instances/{id}/policy/mode");
    api.put(&mode, json!({"mode": "recommend"}))
        .await
        .expect(200);
    eventually("it is put aside", || async {
        api.get(&path).await.expect(200)["items"]
            .as_array()
            .unwrap()
            .len()
            == 1
    })
    .await;
    let dead = api.get(&path).await.expect(200)["items"][0].clone();
    assert_eq!(
        (&dead["attempts"], &dead["last_error"]),
        (
            &json!(3),
            &json!("the answer was 500 Internal Server Error")
        )
    );
    refusals.store(0, Ordering::SeqCst);
    let retry = format!("{path}/retry");
    api.post(&retry, json!({"delivery": dead["id"]}))
        .await
        .expect(202);
    let message = received.recv().await.unwrap();
    assert_eq!(
        header(&message, "concertina-delivery"),
        dead["id"].as_str().unwrap()
    );
    assert_eq!(api.get(&path).await.expect(200)["items"], json!([]));
}
