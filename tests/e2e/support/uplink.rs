//! What `--net user` needs of a host: a way to the world, and somebody whom the guest can reach.

use std::io::Write;
use std::net::TcpListener;
use std::process::Command;
use std::thread;

/// Documentation addresses (RFC 5737): nobody's.
const HOST: &str = "192.0.2.77";
const ADDRESS: &str = "198.51.100.9/24";
const GATEWAY: &str = "198.51.100.1";

/// A route to the world, where the host has none: an interface that leads nowhere; and an address of
/// the host. Gone when dropped.
pub struct Uplink {
    tap: Option<&'static str>,
}

fn ip(arguments: &str) -> String {
    let done = Command::new("ip")
        .args(arguments.split_whitespace())
        .output()
        .expect("ip runs");
    String::from_utf8_lossy(&done.stdout).trim().to_owned()
}

impl Uplink {
    /// Makes what is missing; the interface has this name.
    pub fn make(tap: &'static str) -> Self {
        ip(&format!("address add {HOST}/32 dev lo"));
        if !ip("route show default").is_empty() {
            return Self { tap: None };
        }
        let made = Command::new("busybox")
            .args(["tunctl", "-t", tap])
            .output()
            .expect("busybox runs");
        assert!(made.status.success(), "{made:?}");
        ip(&format!("address add {ADDRESS} dev {tap}"));
        ip(&format!("link set {tap} up"));
        ip(&format!("route add default via {GATEWAY} dev {tap}"));
        assert!(!ip("route show default").is_empty(), "no route was made");
        Self { tap: Some(tap) }
    }

    /// Listens on the host's address, and gives `bytes` to each who connects; gives the address and
    /// the port, as a shell wants them.
    pub fn serve(&self, bytes: Vec<u8>) -> (String, u16) {
        let listener = TcpListener::bind((HOST, 0)).expect("a port of the host");
        let port = listener.local_addr().expect("its address").port();
        thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                // Whoever goes away early has failed on its own side.
                let _ = stream.write_all(&bytes);
            }
        });
        (HOST.into(), port)
    }
}

impl Drop for Uplink {
    fn drop(&mut self) {
        if let Some(tap) = self.tap {
            ip("route del default");
            let _ = Command::new("busybox").args(["tunctl", "-d", tap]).output();
        }
        ip(&format!("address del {HOST}/32 dev lo"));
    }
}
