//! Network interfaces: what a guest sends and receives, compared on both ends; limits, measured; and
//! what is left of it on the host. Traffic stays on loopback and on interfaces that are made here.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use concertina_api::net::MacAddr;
use serde_json::Value;

use crate::support::{
    Instance, Launch, MIB, STEP_LIMIT, Shell, alone, caused_by, concertina, until,
};

/// Documentation addresses (RFC 5737): nobody's.
const HOST: &str = "192.0.2.1";
const GUEST: &str = "192.0.2.2";

/// Runs a shell line on this host; gives what it printed, trimmed; fails when it fails.
#[track_caller]
fn host(line: &str) -> String {
    let done = Command::new("sh").args(["-c", line]).output().unwrap();
    let text = String::from_utf8_lossy(&done.stdout).trim().to_owned();
    assert!(
        done.status.success(),
        "On the host, '{line}' failed: {done:?}"
    );
    text
}

/// A shell line on this host that runs until this is dropped.
struct Background(Child);

impl Background {
    fn start(line: &str) -> Self {
        let child = Command::new("sh")
            .args(["-c", &format!("exec {line}")])
            // Open for as long as it runs: nc takes the end of its input for the end of the connection.
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        Self(child)
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Does something with the first connection to a port of [`HOST`]; gives the port.
fn on_connection<T: Send + 'static>(
    act: impl FnOnce(TcpStream) -> T + Send + 'static,
) -> (u16, JoinHandle<T>) {
    let listener = TcpListener::bind((HOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let thread = std::thread::spawn(move || act(listener.accept().unwrap().0));
    (port, thread)
}

fn exists(interface: &str) -> bool {
    Path::new("/sys/class/net").join(interface).exists()
}

fn digest(text: &str) -> String {
    text.split_whitespace()
        .next()
        .unwrap_or_default()
        .to_owned()
}

/// Bytes a second to the guest, and from it, over a while.
fn speed(instance: &Instance, over: Duration) -> (f64, f64) {
    let now = |instance: &Instance| {
        let net = &instance.vm().nets[0];
        (Instant::now(), net.rx.bytes, net.tx.bytes)
    };
    let (began, rx, tx) = now(instance);
    std::thread::sleep(over);
    let (ended, rx_end, tx_end) = now(instance);
    let seconds = (ended - began).as_secs_f64();
    (
        (rx_end - rx) as f64 / seconds,
        (tx_end - tx) as f64 / seconds,
    )
}

#[track_caller]
fn assert_near(what: &str, bytes_per_s: f64, mib_per_s: f64) {
    let got = bytes_per_s / MIB as f64;
    assert!(
        (got / mib_per_s - 1.0).abs() < 0.3,
        "{what}: {got:.2} MiB/s instead of {mib_per_s}"
    );
}

/// Gives both ends their addresses.
fn address_both(shell: &mut Shell, tap: &str) {
    host(&format!(
        "ip address add {HOST}/24 dev {tap} && ip link set {tap} up"
    ));
    shell.run(&format!("ip address add {GUEST}/24 dev eth0"));
    shell.run("ip link set lo up && ip link set eth0 up");
    until("an answer of the guest to a ping", STEP_LIMIT, || {
        let line = format!("ping -c 1 -W 1 {GUEST} >/dev/null");
        let done = Command::new("sh").args(["-c", &line]).status().unwrap();
        done.success().then_some(())
    });
    shell.run(&format!("ping -c 2 -W 5 {HOST}"));
}

/// Some MiB each way, large enough that a lost or doubled part shows in its digest.
fn transfer_both_ways(instance: &Instance, shell: &mut Shell, folder: &Path) {
    let folder = folder.display();
    let before = instance.vm().nets[0].clone();
    host(&format!("head -c 16777216 /dev/urandom >{folder}/down"));
    let server = Background::start(&format!("busybox httpd -f -p {HOST}:8000 -h {folder}"));
    let got = until("a download", STEP_LIMIT, || {
        let line =
            format!("wget -q -O - http://{HOST}:8000/down >/tmp/down && sha256sum /tmp/down");
        let line = line.replace("sha256sum", "busybox sha256sum");
        let (status, text) = shell.try_run(&line, STEP_LIMIT);
        (status == 0).then_some(text)
    });
    assert_eq!(
        digest(&got),
        digest(&host(&format!("sha256sum {folder}/down")))
    );
    drop(server);

    let (port, upload) = on_connection(|mut connection| {
        let mut bytes = Vec::new();
        connection.read_to_end(&mut bytes).map(|_| bytes)
    });
    shell.run(&format!("nc {HOST} {port} </tmp/down"));
    let up = upload.join().unwrap().unwrap();
    let down = std::fs::read(format!("{folder}/down")).unwrap();
    assert_eq!(up.len(), down.len());
    assert!(
        up == down,
        "what was sent back differs from what was received"
    );

    let after = instance.vm().nets[0].clone();
    assert!(after.rx.bytes - before.rx.bytes > 16 * MIB, "{after:?}");
    assert!(after.tx.bytes - before.tx.bytes > 16 * MIB, "{after:?}");
    // Larger frames than an MTU: segmentation is left to the kernels, in both directions.
    for (bytes, frames) in [
        (
            after.rx.bytes - before.rx.bytes,
            after.rx.frames - before.rx.frames,
        ),
        (
            after.tx.bytes - before.tx.bytes,
            after.tx.frames - before.tx.frames,
        ),
    ] {
        assert!(bytes > frames * 2000, "{bytes} bytes in {frames} frames");
    }
    assert_eq!((after.bad_requests, after.tx.drops), (0, 0), "{after:?}");
}

/// Limits hold, and change while the traffic goes on.
fn limits(instance: &Instance, shell: &mut Shell) {
    let change = |rate: &str| instance.resize_applied(&["--net-rate", rate]);
    let (port, source) = on_connection(|mut connection| {
        let zeroes = vec![0; MIB as usize];
        while connection.write_all(&zeroes).is_ok() {}
    });
    shell.run(&format!(
        "nc {HOST} {port} >/dev/null 2>&1 </dev/null & sleep 1"
    ));
    change("rx=2M");
    std::thread::sleep(Duration::from_secs(1));
    assert_near(
        "to the guest",
        speed(instance, Duration::from_secs(4)).0,
        2.0,
    );
    change("0.rx=5M");
    std::thread::sleep(Duration::from_secs(1));
    assert_near(
        "to the guest",
        speed(instance, Duration::from_secs(4)).0,
        5.0,
    );
    shell.run("busybox killall nc");
    source.join().unwrap();

    change("tx=3M");
    let (port, sink) = on_connection(|mut connection| {
        let mut chunk = vec![0; MIB as usize];
        while connection.read(&mut chunk).is_ok_and(|len| len > 0) {}
    });
    shell.run(&format!(
        "nc {HOST} {port} </dev/zero >/dev/null 2>&1 & sleep 1"
    ));
    assert_near(
        "from the guest",
        speed(instance, Duration::from_secs(4)).1,
        3.0,
    );
    change("max");
    std::thread::sleep(Duration::from_secs(1));
    let free = speed(instance, Duration::from_secs(2)).1 / MIB as f64;
    assert!(free > 4.5, "without a limit: {free:.2} MiB/s");
    shell.run("busybox killall nc");
    sink.join().unwrap();
    let net = instance.vm().nets[0].clone();
    assert!(net.rx.throttled > 0 && net.tx.throttled > 0, "{net:?}");
    let refused = instance.resize(&["--net-rate", "7.rx=1M"]);
    assert_eq!(refused["outcome"], "refused", "{refused:#}");
}

#[test]
fn a_tap_interface_carries_frames_within_limits_and_goes_with_its_instance() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    host("busybox tunctl -t kept0 >/dev/null");
    let nets = [
        "--net",
        "tap=made0",
        "--net",
        "tap=kept0,mac=02:00:00:00:00:77",
    ];
    let (instance, mut shell) = Launch::new("net-tap").arguments(&nets).boot();
    assert!(exists("made0"));
    let mac = shell.run("cat /sys/class/net/eth0/address");
    assert_eq!(mac, MacAddr::stable("net-tap", 0).to_string());
    assert_eq!(
        shell.run("cat /sys/class/net/eth1/address"),
        "02:00:00:00:00:77"
    );
    address_both(&mut shell, "made0");
    transfer_both_ways(&instance, &mut shell, folder.path());
    limits(&instance, &mut shell);

    // Another instance cannot have it, nor what is no tap, and leaves nothing.
    for (net, words) in [
        ("tap=made0", "in use"),
        ("tap=lo", "no tap"),
        ("tap=a/b", "a/b"),
    ] {
        let state = folder.path().join("state").display().to_string();
        let line = Launch::new("other")
            .arguments(&["--net", net])
            .line(Path::new(&state));
        let line: Vec<&str> = line.iter().map(String::as_str).collect();
        let refused = concertina(&line);
        assert_ne!(refused.status, 0, "{refused:#?}");
        assert!(refused.stderr.contains(words), "{refused:#?}");
        assert!(!Path::new(&state).join("other").exists());
    }

    // The interface keeps its address when the guest restarts.
    shell.type_line("reboot");
    until("the guest's restart", STEP_LIMIT, || {
        instance
            .events()
            .iter()
            .any(|e| e["event"] == "rebooted")
            .then_some(())
    });
    let mut shell = instance.shell();
    assert!(host("ip address show dev made0").contains(HOST));
    shell.run(&format!(
        "ip address add {GUEST}/24 dev eth0 && ip link set eth0 up"
    ));
    shell.run(&format!("ping -c 2 -W 5 {HOST}"));

    instance.stop(&["--force"]).expect_success();
    until("the end of the interface", STEP_LIMIT, || {
        (!exists("made0")).then_some(())
    });
    assert!(exists("kept0"));
    // The process that had both interfaces closes one after the other.
    until("nobody has the kept interface", STEP_LIMIT, || {
        let delete = ["tunctl", "-d", "kept0"];
        let deleted = Command::new("busybox").args(delete).output();
        deleted
            .is_ok_and(|done| done.status.success())
            .then_some(())
    });
}

/// Process ids of `passt`.
fn passts() -> Vec<String> {
    let found = Command::new("pidof").arg("passt").output().unwrap();
    let text = String::from_utf8_lossy(&found.stdout);
    text.split_whitespace().map(str::to_owned).collect()
}

#[test]
fn a_user_network_gives_an_address_and_leads_to_a_port_of_the_guest() {
    // passt gives the guest the address by which its host reaches the world: here, an interface that
    // leads nowhere.
    host("busybox tunctl -t world0 >/dev/null");
    host("ip address add 198.51.100.7/24 dev world0 && ip link set world0 up");
    host("ip route add default via 198.51.100.1 dev world0");
    let folder = tempfile::tempdir().unwrap();
    let net = ["--net", "user,forward=18080:80"];
    let (instance, mut shell) = Launch::new("net-user").arguments(&net).boot();
    until("an address from DHCP", STEP_LIMIT, || {
        let text = shell.run("ip address show dev eth0");
        text.contains("198.51.100.7/24").then_some(())
    });
    assert!(shell.run("ip route").contains("default via 198.51.100.1"));
    let [passt] = passts().try_into().expect("one passt");
    // What it uses is the instance's, and no vCPU's quota is in its way.
    let group = host(&format!("cat /proc/{passt}/cgroup"));
    assert!(group.ends_with("/net-user/emu"), "{group}");
    let vmm = instance.vm().pid;
    let accounts = host(&format!(
        "cat /sys/fs/cgroup$(sed 's,^0::,,; s,/emu$,,' /proc/{passt}/cgroup)/cgroup.procs"
    ));
    for pid in [&passt, &vmm.to_string()] {
        assert!(
            accounts.lines().any(|line| line == pid),
            "{pid}: {accounts}"
        );
    }

    shell.run("mkdir -p /tmp/www && head -c 8388608 /dev/urandom >/tmp/www/file");
    shell.run("busybox httpd -p 80 -h /tmp/www");
    let there = shell.run("busybox sha256sum /tmp/www/file");
    let copy = folder.path().join("file").display().to_string();
    host(&format!("wget -q -O {copy} http://127.0.0.1:18080/file"));
    assert_eq!(digest(&host(&format!("sha256sum {copy}"))), digest(&there));
    let net = instance.vm().nets[0].clone();
    assert!(net.tx.bytes > 8 * MIB && net.rx.frames > 0, "{net:?}");
    assert_eq!((net.bad_requests, net.link_up), (0, true), "{net:?}");

    // What listens on the host's loopback only is not the guest's.
    let secret = Background::start("busybox httpd -f -p 127.0.0.1:8001 -h /");
    let (status, _) = shell.try_run(
        "wget -q -T 3 -O - http://198.51.100.1:8001/init",
        STEP_LIMIT,
    );
    assert_ne!(status, 0);
    drop(secret);

    // A port that is taken is said, with nothing left.
    let state = folder.path().join("state");
    let line = Launch::new("other")
        .arguments(&["--net", "user,forward=18080:80"])
        .line(&state);
    let line: Vec<&str> = line.iter().map(String::as_str).collect();
    let refused = concertina(&line);
    assert_eq!(refused.status, 1, "{refused:#?}");
    assert!(
        refused.stderr.contains("passt") && refused.stderr.contains("18080"),
        "{refused:#?}"
    );
    assert!(!state.join("other").exists());
    assert_eq!(passts().len(), 1);

    // Its end takes the link down, and the VM goes on.
    host(&format!("kill {}", passts().join(" ")));
    until("the link to be down", STEP_LIMIT, || {
        (!instance.vm().nets[0].link_up).then_some(())
    });
    until("the guest to see it", STEP_LIMIT, || {
        (shell.run("cat /sys/class/net/eth0/carrier") == "0").then_some(())
    });

    instance.wait_for_event("the end of passt in the events", STEP_LIMIT, |event| {
        event["event"] == "net_down" && event["net"] == 0
    });

    // A restart brings another one, which ends with the instance.
    shell.type_line("reboot");
    until("another passt", STEP_LIMIT, || {
        (passts().len() == 1).then_some(())
    });
    let mut shell = instance.shell();
    until("an address from DHCP", STEP_LIMIT, || {
        let text = shell.run("ip address show dev eth0");
        text.contains("198.51.100.7/24").then_some(())
    });
    instance.stop(&["--force"]).expect_success();
    until("the end of passt", STEP_LIMIT, || {
        passts().is_empty().then_some(())
    });
    host("ip route del default; ip link set world0 down; busybox tunctl -d world0 >/dev/null");
}

/// Bytes a second that the guest sends, over a while: as the VM's process counts them, as the tap
/// interface of the host received them, and as the guest counts them.
fn sent(instance: &Instance, shell: &mut Shell, tap: &str, over: Duration) -> [f64; 3] {
    let mut now = || {
        let count = |text: String| text.parse::<u64>().expect("a counter of bytes");
        let tap = format!("/sys/class/net/{tap}/statistics/rx_bytes");
        let there = shell.run("cat /sys/class/net/eth0/statistics/tx_bytes");
        let bytes = [
            instance.vm().nets[0].tx.bytes,
            count(host(&format!("cat {tap}"))),
            count(there),
        ];
        (Instant::now(), bytes)
    };
    let (began, before) = now();
    std::thread::sleep(over);
    let (ended, after) = now();
    let seconds = (ended - began).as_secs_f64();
    [0, 1, 2].map(|i| (after[i] - before[i]) as f64 / seconds)
}

/// A megabit a second in bytes a second, the unit of `net.mbps`.
const MBIT: u64 = 125_000;

#[test]
fn a_networks_limit_follows_the_load_up_and_down() {
    let _alone = alone();
    let (instance, mut shell) = Launch::new("stream")
        .arguments(&["--net", "tap=flow0", "--net-rate", "8mbit..32mbit"])
        .scale("net > 80% for 2s: +8 net.mbps, cooldown 1s")
        .scale("net < 20% for 3s: -50%, cooldown 1s")
        .scale("set shrink_window 3s")
        .boot();
    address_both(&mut shell, "flow0");
    let limits = |status: &Value| {
        let rates = &status["io"]["nets"][0]["rates"];
        ["rx", "tx"].map(|direction| rates[direction]["bytes_per_s"].as_u64())
    };
    let status = instance.status();
    assert_eq!(limits(&status), [Some(8 * MBIT); 2], "{status:#}");
    let bounds = &status["io"]["net_rate"];
    for (which, mbit) in [("min", 8), ("max", 32), ("target", 8)] {
        assert_eq!(bounds[which]["bytes_per_s"], mbit * MBIT, "{status:#}");
    }

    let (port, sink) = on_connection(|mut connection| {
        let mut chunk = vec![0; MIB as usize];
        while connection.read(&mut chunk).is_ok_and(|len| len > 0) {}
    });
    shell.run(&format!(
        "nc {HOST} {port} </dev/zero >/dev/null 2>&1 & sleep 1"
    ));
    let low = sent(&instance, &mut shell, "flow0", Duration::from_secs(1));
    instance.wait_for_status("the upper bound under load", STEP_LIMIT * 2, |s| {
        limits(s) == [Some(32 * MBIT); 2]
    });
    let high = sent(&instance, &mut shell, "flow0", Duration::from_secs(3));
    for (low, high) in low.into_iter().zip(high) {
        // A step up may come within the first of them; the last one is beyond any smaller limit.
        assert!(low < 17.0 * MBIT as f64, "{low} bytes/s at 8 Mbit/s");
        assert!(high > 20.0 * MBIT as f64, "{high} bytes/s at 32 Mbit/s");
        assert!(high < 38.0 * MBIT as f64, "{high} bytes/s at 32 Mbit/s");
    }
    shell.run("busybox killall nc");
    sink.join().unwrap();
    instance.wait_for_status("the lower bound when idle", STEP_LIMIT * 2, |s| {
        limits(s) == [Some(8 * MBIT); 2] && s["io"]["net_rate"]["target"]["bytes_per_s"] == 8 * MBIT
    });

    let status = instance.status();
    let rules = status["thresholds"].as_array().expect("thresholds");
    let known = |rule: &Value| rule["last_value"].is_number();
    assert!(rules.len() == 2 && rules.iter().all(known), "{rules:#?}");
    let resized = instance.applied_resizes();
    let caused = |word: &str| caused_by(&resized, word);
    assert!(caused("net > 80%") >= 3, "{resized:#?}");
    assert!(caused("net < 20%") >= 2, "{resized:#?}");
    let first = &resized[0];
    let bytes = |size: &str| first[size]["net_rate"]["tx"]["bytes_per_s"].as_u64();
    assert_eq!(
        (bytes("before"), bytes("got")),
        (Some(8 * MBIT), Some(16 * MBIT)),
        "{first:#}"
    );
}
