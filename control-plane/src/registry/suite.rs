//! One suite of tests for every registry. Against etcd it runs where `etcd` is installed; where it is
//! not, it says so.

use std::sync::Arc;
use std::time::Duration;

use super::sqlite::SqliteRegistry;
use super::{LIST_MAX, Registry, RegistryError, Transaction};

async fn put(registry: &dyn Registry, key: &str, value: &str) -> u64 {
    let mut transaction = Transaction::new();
    transaction.put(key, value).unwrap();
    registry.commit(transaction).await.unwrap()
}

async fn value(registry: &dyn Registry, key: &str) -> Option<String> {
    registry.read::<String>(key).await.unwrap().0
}

/// Compare-and-set: all or nothing, by revision.
async fn transactions(registry: &dyn Registry) {
    let first = put(registry, "t/a", "1").await;
    let mut stale = Transaction::new();
    stale
        .compare("t/a", first - 1)
        .put("t/a", "2")
        .unwrap()
        .put("t/b", "2")
        .unwrap();
    let refused = registry.commit(stale).await.unwrap_err();
    assert!(matches!(refused, RegistryError::Conflict(_)), "{refused:?}");
    assert_eq!(
        value(registry, "t/b").await,
        None,
        "nothing of a refused transaction is done"
    );
    let mut good = Transaction::new();
    good.compare("t/a", first)
        .absent("t/b")
        .put("t/b", "2")
        .unwrap()
        .delete("t/a");
    let second = registry.commit(good).await.unwrap();
    assert!(second > first);
    assert_eq!(
        (value(registry, "t/a").await, value(registry, "t/b").await),
        (None, Some("2".into()))
    );
    let mut again = Transaction::new();
    again.absent("t/b").put("t/b", "3").unwrap();
    assert!(registry.commit(again).await.is_err());
    let keys = ["t/b".to_owned(), "t/nothing".to_owned()];
    let found = registry.get_many(&keys).await.unwrap();
    assert_eq!(found[0].as_ref().unwrap().revision, second);
    assert!(found[1].is_none());
}

/// Of many that compare the same revision one wins.
async fn races(registry: &Arc<dyn Registry>) {
    put(registry.as_ref(), "race", "0").await;
    let (_, revision) = registry.read::<String>("race").await.unwrap();
    let tasks = (0..20).map(|number| {
        let registry = Arc::clone(registry);
        tokio::spawn(async move {
            let mut transaction = Transaction::new();
            transaction
                .compare("race", revision)
                .put("race", &number.to_string())
                .unwrap();
            registry.commit(transaction).await.is_ok()
        })
    });
    let mut won = 0;
    for task in tasks.collect::<Vec<_>>() {
        won += usize::from(task.await.unwrap());
    }
    assert_eq!(won, 1);
}

async fn lists(registry: &dyn Registry) {
    for number in 0..25 {
        put(registry, &format!("l/{number:03}"), "x").await;
    }
    put(registry, "l0", "beside").await;
    put(registry, "k/9", "before").await;
    let mut keys = Vec::new();
    let mut after: Option<String> = None;
    loop {
        let page = registry.list("l/", after.as_deref(), 10).await.unwrap();
        keys.extend(page.entries.iter().map(|entry| entry.key.clone()));
        after = keys.last().cloned();
        if !page.has_more {
            break;
        }
    }
    let wanted: Vec<String> = (0..25).map(|number| format!("l/{number:03}")).collect();
    assert_eq!(keys, wanted);
    let last = registry.list_back("l/", Some("l/024"), 2).await.unwrap();
    let last: Vec<&str> = last
        .entries
        .iter()
        .map(|entry| entry.key.as_str())
        .collect();
    assert_eq!(last, ["l/023", "l/022"]);
    let all = registry.list_back("l/", None, LIST_MAX).await.unwrap();
    assert_eq!((all.entries.len(), all.has_more), (25, false));
    // A cursor from elsewhere does not lead out of the prefix.
    let outside = registry.list("l/", Some("a"), 100).await.unwrap();
    assert_eq!(outside.entries.len(), 25);
    assert!(
        registry
            .list("l/", Some("z"), 100)
            .await
            .unwrap()
            .entries
            .is_empty()
    );
}

async fn leases(registry: &dyn Registry) {
    let short = registry.grant(Duration::from_secs(2)).await.unwrap();
    let kept = registry.grant(Duration::from_secs(4)).await.unwrap();
    let mut transaction = Transaction::new();
    transaction
        .put_leased("lease/short", "x", Some(short))
        .unwrap();
    transaction
        .put_leased("lease/kept", "x", Some(kept))
        .unwrap();
    let revision = registry.commit(transaction).await.unwrap();
    let mut watch = registry.watch("lease/", revision).await.unwrap();
    let seen = loop {
        registry.keep_alive(kept).await.unwrap();
        let next = tokio::time::timeout(Duration::from_millis(500), watch.next()).await;
        if let Ok(seen) = next {
            break seen.unwrap();
        }
    };
    assert_eq!((seen.key.as_str(), seen.value), ("lease/short", None));
    assert!(value(registry, "lease/kept").await.is_some());
    let late = registry.keep_alive(short).await.unwrap_err();
    assert!(matches!(late, RegistryError::LeaseExpired(_)), "{late:?}");
    let mut dead = Transaction::new();
    dead.put_leased("lease/dead", "x", Some(short)).unwrap();
    let refused = registry.commit(dead).await.unwrap_err();
    assert!(
        matches!(refused, RegistryError::LeaseExpired(_)),
        "{refused:?}"
    );
    registry.revoke(kept).await.unwrap();
    assert_eq!(value(registry, "lease/kept").await, None);
    // A key that was put again without its lease stays.
    let lease = registry.grant(Duration::from_secs(2)).await.unwrap();
    let mut transaction = Transaction::new();
    transaction
        .put_leased("lease/freed", "x", Some(lease))
        .unwrap();
    registry.commit(transaction).await.unwrap();
    put(registry, "lease/freed", "y").await;
    registry.revoke(lease).await.unwrap();
    assert!(value(registry, "lease/freed").await.is_some());
}

async fn watches(registry: &dyn Registry) {
    let before = put(registry, "w/before", "x").await;
    put(registry, "w/a", "1").await;
    put(registry, "elsewhere", "x").await;
    let mut watch = registry.watch("w/", before).await.unwrap();
    put(registry, "w/a", "2").await;
    let mut transaction = Transaction::new();
    transaction
        .delete("w/a")
        .delete("w/nothing")
        .put("w/b", "3")
        .unwrap();
    let last = registry.commit(transaction).await.unwrap();
    let mut seen = Vec::new();
    for _ in 0..4 {
        let next = tokio::time::timeout(Duration::from_secs(20), watch.next()).await;
        seen.push(next.unwrap().unwrap());
    }
    let short: Vec<(&str, Option<&[u8]>)> = seen
        .iter()
        .map(|seen| (seen.key.as_str(), seen.value.as_deref()))
        .collect();
    let mut wanted: Vec<(&str, Option<&[u8]>)> = vec![
        ("w/a", Some(b"\"1\"")),
        ("w/a", Some(b"\"2\"")),
        ("w/a", None),
        ("w/b", Some(b"\"3\"")),
    ];
    // Changes of one commit may come in any order.
    if short[2].0 == "w/b" {
        wanted.swap(2, 3);
    }
    assert_eq!(short, wanted);
    assert_eq!((seen[2].revision, seen[3].revision), (last, last));
}

async fn all(registry: Arc<dyn Registry>) {
    transactions(registry.as_ref()).await;
    races(&registry).await;
    lists(registry.as_ref()).await;
    leases(registry.as_ref()).await;
    watches(registry.as_ref()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_embedded_registry_keeps_the_contract() {
    let folder = tempfile::tempdir().unwrap();
    let registry = SqliteRegistry::open(&folder.path().join("r.db")).unwrap();
    all(Arc::new(registry)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_committed_is_there_when_the_file_is_opened_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("r.db");
    let (revision, lease) = {
        let registry = SqliteRegistry::open(&path).unwrap();
        let lease = registry.grant(Duration::from_secs(1)).await.unwrap();
        let mut transaction = Transaction::new();
        transaction.put_leased("live", "x", Some(lease)).unwrap();
        registry.commit(transaction).await.unwrap();
        (put(&registry, "a", "1").await, lease)
    };
    let registry = SqliteRegistry::open(&path).unwrap();
    assert_eq!(value(&registry, "a").await.as_deref(), Some("1"));
    registry.keep_alive(lease).await.unwrap();
    assert!(
        put(&registry, "b", "2").await > revision,
        "revisions never go back"
    );
    let mode = std::os::unix::fs::MetadataExt::mode(&std::fs::metadata(&path).unwrap());
    assert_eq!(mode & 0o777, 0o600, "keys of the authority are in it");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_is_as_of_one_commit_and_is_put_back() {
    use super::sqlite::{backup, restore};
    let folder = tempfile::tempdir().unwrap();
    let (path, copy) = (folder.path().join("r.db"), folder.path().join("copy.db"));
    let registry = SqliteRegistry::open(&path).unwrap();
    put(&registry, "a", "1").await;
    backup(&path, &copy).unwrap();
    assert!(
        backup(&path, &copy).is_err(),
        "a backup is never written over"
    );
    put(&registry, "a", "2").await;
    let refused = restore(&copy, &path).unwrap_err().to_string();
    assert!(refused.contains("open"), "{refused}");
    assert!(
        SqliteRegistry::open(&path).is_err(),
        "two processes cannot have it open"
    );
    drop(registry);
    restore(&copy, &path).unwrap();
    let registry = SqliteRegistry::open(&path).unwrap();
    assert_eq!(value(&registry, "a").await.as_deref(), Some("1"));
    std::fs::write(&copy, "nonsense").unwrap();
    assert!(restore(&copy, &folder.path().join("other.db")).is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_of_a_later_version_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("r.db");
    drop(SqliteRegistry::open(&path).unwrap());
    let connection = rusqlite::Connection::open(&path).unwrap();
    connection.pragma_update(None, "user_version", 99).unwrap();
    drop(connection);
    let refused = SqliteRegistry::open(&path).unwrap_err().to_string();
    assert!(refused.contains("version 99"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn etcd_keeps_the_contract() {
    let Some(etcd) = super::etcd::testing::Cluster::start(1) else {
        eprintln!("NOT RUN: etcd is not installed (apt-get install etcd-server)");
        return;
    };
    let registry = super::etcd::EtcdRegistry::connect(&etcd.endpoints())
        .await
        .unwrap();
    all(Arc::new(registry)).await;
}
