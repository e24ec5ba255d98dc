//! Certificates are renewed, and authorities follow each other, while hosts stay connected.

use std::time::Duration;

use crate::support::{Cloud, eventually};

#[tokio::test(flavor = "multi_thread")]
async fn hosts_renew_and_a_rotated_authority_takes_over() {
    let cloud =
        Cloud::start_with(|settings| settings.certificate_life = Duration::from_secs(15)).await;
    let mut host = cloud.host("one").await;
    let certificate = || std::fs::read_to_string(host.folder.join("host.pem")).unwrap();
    let authorities = || std::fs::read_to_string(host.folder.join("authorities.pem")).unwrap();
    let first = certificate();
    let path = "/v1/hosts/authority/rotate";
    let rotated = cloud
        .operator
        .send(hyper::Method::POST, path, None, &[])
        .await
        .expect(201);
    assert_eq!(rotated["number"], 2);
    eventually("the certificate is renewed", || async {
        certificate() != first
    })
    .await;
    assert_eq!(
        authorities().matches("BEGIN CERTIFICATE").count(),
        2,
        "both are trusted"
    );
    // By now the second signs what the control plane shows, and what hosts get.
    tokio::time::sleep(Duration::from_secs(16)).await;
    host.connect().await;
    cloud.host_is(&host.id, "ready").await;
    let other = cloud.host("two").await;
    cloud.host_is(&other.id, "ready").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_without_a_certificate_of_ours_is_refused() {
    let cloud = Cloud::start().await;
    let host = cloud.host("one").await;
    let stranger = Cloud::start().await;
    let other = stranger.host("one").await;
    // The certificate of another control plane does not open this one.
    for file in ["host.key", "host.pem"] {
        std::fs::copy(other.folder.join(file), host.folder.join(file)).unwrap();
    }
    let mut host = host;
    host.disconnect().await;
    cloud.host_is(&host.id, "lost").await;
    let identity = concertina_agent::control::Identity::open(&host.folder)
        .unwrap()
        .unwrap();
    let config = concertina_agent::control::ClientConfig {
        folder: host.folder.clone(),
    };
    let client =
        concertina_agent::control::ControlClient::start(&config, identity, host.host.clone())
            .unwrap();
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(!client.is_connected());
    crate::support::blocking(move || drop(client)).await;
}
