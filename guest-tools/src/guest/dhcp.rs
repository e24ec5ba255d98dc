//! Addresses for network interfaces, where the kernel command line asks for them: by busybox's
//! `udhcpc`, beside everything else, since a server's answer takes its time.

use std::fs;

use super::bootargs::Command;
use super::{console, sys};

const CLIENT: &str = "/bin/udhcpc";

/// Asks for an address for each of these interfaces.
pub fn start(interfaces: &[String]) {
    for interface in interfaces {
        if let Err(why) = start_one(interface) {
            sys::say(&format!(
                "concertina-guest: No address is asked for on {interface:?}: {why}"
            ));
        }
    }
}

fn start_one(interface: &str) -> Result<(), String> {
    let is_name = !interface.is_empty() && interface.bytes().all(|b| b.is_ascii_alphanumeric());
    if !is_name {
        return Err("that is no name of an interface".into());
    }
    if !fs::exists(CLIENT).unwrap_or(false) {
        return Err("this image has no busybox".into());
    }
    // It asks three times, and ends when it has an address: leases of virtual networks do not end.
    let line = format!(
        "{CLIENT} -i {interface} -n -q >/run/dhcp.{interface} 2>&1 || \
         echo 'concertina-guest: {interface} has got no address by DHCP'"
    );
    let started = console::run_in_background(&Command::Line(line));
    started.map(|_| ()).map_err(|error| error.to_string())
}
