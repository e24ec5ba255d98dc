//! The commands of operators and customers, as they are typed.

use std::os::unix::fs::MetadataExt;

use serde_json::Value;

use crate::cloud::{Cloud, path_text, wait_until};

#[test]
fn a_customer_does_with_remote_what_others_do_on_a_host() {
    let mut cloud = Cloud::start();
    cloud.account("acme");
    let (host, _client) = cloud.host("rack1");
    assert_eq!(
        std::fs::metadata(cloud.path("acme")).unwrap().mode() & 0o777,
        0o600
    );
    let run = [
        "run",
        "--name",
        "web",
        "--image",
        "debian:12",
        "--cpus",
        "0.5..4",
        "--memory",
        "256M..1G",
        "--scale",
        "cpu > 75% for 5s: +1 cpu",
    ];
    assert_eq!(cloud.ok("acme", &run), "web");
    let listed = cloud.ok("acme", &["ps"]);
    assert!(
        listed.contains("web") && listed.contains("running") && listed.contains("0.5..4"),
        "{listed}"
    );
    let resized = cloud.ok("acme", &["resize", "web", "--cpus", "2"]);
    assert!(resized.contains("applied"), "{resized}");
    let status: Value =
        serde_json::from_str(&cloud.ok("acme", &["status", "web", "--json"])).unwrap();
    assert_eq!(
        status["policy"]["thresholds"][0],
        "cpu > 75% for 5s: +1 cpu"
    );
    wait_until("the resize is in the events", || {
        cloud
            .ok("acme", &["events", "web"])
            .contains("manual: from 0.5 CPUs")
    });
    assert!(
        cloud
            .ok("acme", &["usage", "web", "--csv"])
            .starts_with("name,seconds")
    );
    let outside = cloud.command("acme", &["resize", "web", "--cpus", "5"]);
    let error = String::from_utf8(outside.stderr).unwrap();
    assert_eq!(outside.status.code(), Some(1));
    assert!(
        error.contains("0.5..4") && error.lines().count() == 1,
        "{error}"
    );
    assert_eq!(cloud.ok("acme", &["stop", "web"]), "web: stopped");
    assert_eq!(
        cloud.ok("acme", &["stop", "web", "--remote", "--terminate"]),
        "web: terminated"
    );
    wait_until("nothing is left", || host.is_clean());
    assert!(!cloud.ok("acme", &["ps"]).contains("web"));

    let hosts = cloud.ok("operator", &["host", "list"]);
    assert!(
        hosts.contains("rack1") && hosts.contains("ready"),
        "{hosts}"
    );
    let refused = cloud.command("acme", &["host", "list"]);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("operator"));
    let account = cloud.ok("acme", &["account", "show"]);
    assert!(
        account.contains("acme") && account.contains("0/1000"),
        "{account}"
    );

    let copy = cloud.path("copy.backup");
    let data = cloud.path("data");
    let folder = ["--data-dir", path_text(&data)];
    cloud.ok(
        "operator",
        &[&["control", "backup", "-o", path_text(&copy)], &folder[..]].concat(),
    );
    let restore = [&["control", "restore", path_text(&copy)], &folder[..]].concat();
    let busy = cloud.command("operator", &restore);
    assert!(!busy.status.success(), "not while it runs");
    cloud.ok("operator", &["account", "create", "later"]);
    cloud.kill();
    cloud.ok("operator", &restore);
    cloud.run();
    assert!(!cloud.ok("operator", &["account", "list"]).contains("later"));
    cloud.ok("acme", &["login", "--out"]);
    assert!(!cloud.path("acme").exists());
}
