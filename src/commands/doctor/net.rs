//! What network interfaces of instances need of this host. Instances without one need none of it.

use std::fs::{self, OpenOptions};
use std::io;

use concertina_agent::net::{PASST, TUN_DEVICE, find_passt};

use super::Check;

/// Tap interfaces. Who may use one, and what it leads to, is the business of whoever runs the host.
pub fn tap() -> Check {
    // Opening alone makes no interface.
    let opened = OpenOptions::new().read(true).write(true).open(TUN_DEVICE);
    judge_tap(opened.map(drop))
}

fn judge_tap(opened: io::Result<()>) -> Check {
    let name = "network: tap";
    match opened {
        Ok(()) => Check::ok(
            name,
            format!(
                "{TUN_DEVICE}; addresses and bridges are yours: ip address add … dev NAME, or \
                 ip link set NAME master BRIDGE"
            ),
        ),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Check::warning(
            name,
            format!("no permission on {TUN_DEVICE}: --net tap does not work"),
            "run as root, or use --net user",
        ),
        Err(_) => Check::warning(
            name,
            format!("{TUN_DEVICE} cannot be opened: --net tap does not work"),
            "modprobe tun",
        ),
    }
}

/// Networks without root.
pub fn user() -> Check {
    let routes = fs::read_to_string("/proc/net/route").unwrap_or_default();
    let routes6 = fs::read_to_string("/proc/net/ipv6_route").unwrap_or_default();
    judge_user(
        find_passt().is_some(),
        has_default_route(&routes) || has_default_route6(&routes6),
    )
}

fn judge_user(installed: bool, default_route: bool) -> Check {
    let name = "network: user";
    match (installed, default_route) {
        (true, true) => Check::ok(name, format!("{PASST} is installed")),
        (true, false) => Check::warning(
            name,
            format!("{PASST} is installed, but this host has no default route, which it may need"),
            "ip route add default via ROUTER, for --net user",
        ),
        (false, _) => Check::warning(
            name,
            format!("no program {PASST}: --net user does not work"),
            format!("apt-get install {PASST}"),
        ),
    }
}

/// Whether a line of `/proc/net/route` has destination and mask zero.
fn has_default_route(table: &str) -> bool {
    table.lines().skip(1).any(|line| {
        let field = |index| line.split_ascii_whitespace().nth(index);
        (field(1), field(7)) == (Some("00000000"), Some("00000000"))
    })
}

/// The same of `/proc/net/ipv6_route`, where the kernel's own refusals go to `lo`.
fn has_default_route6(table: &str) -> bool {
    table.lines().any(|line| {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        let zeroes = |field: Option<&&str>| field.is_some_and(|f| f.bytes().all(|b| b == b'0'));
        zeroes(fields.first()) && zeroes(fields.get(1)) && fields.last().is_some_and(|d| *d != "lo")
    })
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    #[test]
    fn what_lacks_is_named_with_what_mends_it() {
        assert_eq!(judge_tap(Ok(())).verdict, Verdict::Ok);
        for (check, mend) in [
            (
                judge_tap(Err(io::ErrorKind::NotFound.into())),
                "modprobe tun",
            ),
            (
                judge_tap(Err(io::ErrorKind::PermissionDenied.into())),
                "root",
            ),
            (judge_user(false, true), "apt-get install passt"),
            (judge_user(true, false), "ip route"),
        ] {
            assert_eq!(check.verdict, Verdict::Warning);
            assert!(check.mend.unwrap().contains(mend));
        }
        assert_eq!(judge_user(true, true).verdict, Verdict::Ok);
    }

    #[test]
    fn a_default_route_is_found_in_the_kernels_tables() {
        let head = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\n";
        let via = "eth0\t00000000\t0102000A\t0003\t0\t0\t0\t00000000\t0\t0\t0\n";
        let near = "eth0\t0002000A\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n";
        assert!(has_default_route(&format!("{head}{near}{via}")));
        assert!(!has_default_route(&format!("{head}{near}")));
        let zero = "00000000000000000000000000000000 00";
        let line = |device| format!("{zero} {zero} {zero} 00000400 1 0 00000003 {device}\n");
        assert!(has_default_route6(&line("eth0")));
        assert!(!has_default_route6(&line("lo")));
    }
}
