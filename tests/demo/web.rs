//! A page in the guest, asked for over its network: it says how large the guest sees itself.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use anyhow::{Result, ensure};

use crate::guest::Guest;

/// Port of the host's loopback that leads to port 80 of the guest.
pub const PORT: u16 = 18080;
const BETWEEN: Duration = Duration::from_secs(5);
const ANSWER_LIMIT: Duration = Duration::from_secs(10);

const PAGE: &str = r#"#!/bin/sh
printf "Content-Type: text/plain\n\n"
echo "$(nproc) $(awk "/MemTotal/ { print int(\$2 / 1024) }" /proc/meminfo)"
"#;

/// What came over the network.
#[derive(Debug, Default, Clone, Copy)]
pub struct Visits {
    /// Requests that were answered.
    pub answered: u32,
    /// Requests that were not.
    pub failed: u32,
    /// Most processors that the page told of.
    pub most_cpus: u32,
    /// Most memory, in MiB.
    pub most_mib: u32,
}

/// Asks for the page again and again; ends when dropped.
pub struct Visitor {
    visits: Arc<Mutex<Visits>>,
    done: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// Puts the page into the guest and a server before it.
pub fn serve(guest: &mut Guest) -> Result<()> {
    let page = PAGE.replace('\\', "\\\\").replace('\'', "'\\''");
    let page = page.replace('\n', "\\n");
    guest.ask(&format!(
        "mkdir -p /srv/cgi-bin; printf '%b' '{page}' >/srv/cgi-bin/size; \
         chmod 755 /srv/cgi-bin/size; busybox httpd -p 80 -h /srv; echo served"
    ))?;
    let mut last = Ok((0, 0));
    for _ in 0..30 {
        last = visit();
        if last.is_ok() {
            return Ok(());
        }
        thread::sleep(BETWEEN);
    }
    last.map(drop)
}

impl Visitor {
    /// Begins.
    pub fn start() -> Self {
        let visits = Arc::new(Mutex::new(Visits::default()));
        let done = Arc::new(AtomicBool::new(false));
        let (counted, ended) = (Arc::clone(&visits), Arc::clone(&done));
        let thread = thread::spawn(move || {
            while !ended.load(Ordering::SeqCst) {
                let seen = visit();
                let mut visits = counted.lock().unwrap_or_else(PoisonError::into_inner);
                match seen {
                    Ok((cpus, mib)) => {
                        visits.answered += 1;
                        visits.most_cpus = visits.most_cpus.max(cpus);
                        visits.most_mib = visits.most_mib.max(mib);
                    }
                    Err(_) => visits.failed += 1,
                }
                drop(visits);
                thread::sleep(BETWEEN);
            }
        });
        Self {
            visits,
            done,
            thread: Some(thread),
        }
    }

    /// Ends it.
    pub fn finish(mut self) -> Visits {
        self.done.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        *self.visits.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Visitor {
    fn drop(&mut self) {
        self.done.store(true, Ordering::SeqCst);
    }
}

/// Processors and MiB that the page tells of.
fn visit() -> Result<(u32, u32)> {
    let address = SocketAddr::from(([127, 0, 0, 1], PORT));
    let mut stream = TcpStream::connect_timeout(&address, ANSWER_LIMIT)?;
    stream.set_read_timeout(Some(ANSWER_LIMIT))?;
    stream.write_all(b"GET /cgi-bin/size HTTP/1.0\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let body = answer.rsplit("\n\n").next().unwrap_or_default();
    let numbers: Vec<u32> = body
        .split_whitespace()
        .filter_map(|word| word.parse().ok())
        .collect();
    ensure!(numbers.len() == 2, "The guest's page says '{answer}'");
    Ok((numbers[0], numbers[1]))
}
