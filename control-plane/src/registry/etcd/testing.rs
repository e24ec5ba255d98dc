//! etcd on loopback, for tests of this crate and of its users.
#![allow(dead_code)] // each of them uses a part

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// Members on loopback; they end when it is dropped.
#[derive(Debug)]
pub struct Cluster {
    members: Vec<Member>,
    _folder: TempDir,
}

#[derive(Debug)]
struct Member {
    process: Child,
    client: u16,
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

impl Cluster {
    /// Starts so many members; `None`: etcd is not installed.
    pub fn start(count: usize) -> Option<Self> {
        Command::new("etcd")
            .arg("--version")
            .stdout(Stdio::null())
            .status()
            .ok()?;
        let folder = tempfile::tempdir().unwrap();
        let ports: Vec<(u16, u16)> = (0..count).map(|_| (free_port(), free_port())).collect();
        let peer =
            |(index, (_, peer)): (usize, &(u16, u16))| format!("m{index}=http://127.0.0.1:{peer}");
        let all = ports
            .iter()
            .enumerate()
            .map(peer)
            .collect::<Vec<_>>()
            .join(",");
        let members = ports.iter().enumerate().map(|(index, (client, peer))| {
            let (client_url, peer_url) = (
                format!("http://127.0.0.1:{client}"),
                format!("http://127.0.0.1:{peer}"),
            );
            let process = Command::new("etcd")
                .args(["--name", &format!("m{index}")])
                .arg("--data-dir")
                .arg(folder.path().join(format!("m{index}")))
                .args([
                    "--listen-client-urls",
                    &client_url,
                    "--advertise-client-urls",
                    &client_url,
                ])
                .args([
                    "--listen-peer-urls",
                    &peer_url,
                    "--initial-advertise-peer-urls",
                    &peer_url,
                ])
                .args(["--initial-cluster", &all, "--initial-cluster-state", "new"])
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .unwrap();
            Member {
                process,
                client: *client,
            }
        });
        let cluster = Self {
            members: members.collect(),
            _folder: folder,
        };
        let begun = Instant::now();
        for member in &cluster.members {
            while std::net::TcpStream::connect(("127.0.0.1", member.client)).is_err() {
                assert!(
                    begun.elapsed() < Duration::from_secs(60),
                    "etcd does not start"
                );
                std::thread::sleep(Duration::from_millis(50));
            }
        }
        Some(cluster)
    }

    /// Sends a signal to a member: `STOP`, `CONT` or `KILL`.
    pub fn signal(&self, member: usize, signal: &str) {
        let id = self.members[member].process.id().to_string();
        // The shell's own: a small system has no program of that name.
        let sent = Command::new("/bin/sh")
            .args(["-c", "kill -s \"$0\" \"$1\"", signal, &id])
            .status()
            .unwrap();
        assert!(sent.success());
    }

    /// Addresses of the members.
    pub fn endpoints(&self) -> Vec<String> {
        let url = |member: &Member| format!("http://127.0.0.1:{}", member.client);
        self.members.iter().map(url).collect()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for member in &mut self.members {
            // Also one that is stopped.
            let _ = member.process.kill();
            let _ = member.process.wait();
        }
    }
}
