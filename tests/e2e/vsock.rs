//! Sockets between programs of the guest and of the host.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread;
use std::time::Duration;

use concertina_api::vm::VsockStatus;

use crate::support::{BOOT_LIMIT, Instance, Launch, MIB, STEP_LIMIT, Series, Shell, until};

/// Within this time of a young VM, what only its start and its load touched is given back.
const TEXT_LIMIT: Duration = Duration::from_secs(40);

/// Bytes that do not repeat soon, different for each `seed`.
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(2).wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut step = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..len).map(|_| step()).collect()
}

/// Connects to a port of the guest, which must accept.
fn connect(instance: &Instance, port: u32) -> Option<UnixStream> {
    let mut stream = UnixStream::connect(instance.file("vsock.sock")).ok()?;
    stream.set_read_timeout(Some(STEP_LIMIT)).unwrap();
    stream
        .write_all(format!("CONNECT {port}\n").as_bytes())
        .ok()?;
    let mut line = String::new();
    while !line.ends_with('\n') {
        let mut byte = [0];
        stream.read_exact(&mut byte).ok()?;
        line.push(char::from(byte[0]));
    }
    assert!(line.starts_with("OK "), "{line}");
    Some(stream)
}

/// Sends `bytes` to an echo in the guest and checks that they come back.
fn there_and_back(mut stream: UnixStream, bytes: &[u8]) {
    let mut reader = stream.try_clone().unwrap();
    thread::scope(|scope| {
        scope.spawn(move || {
            stream.write_all(bytes).unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
        });
        let mut back = Vec::new();
        reader.read_to_end(&mut back).unwrap();
        assert!(
            back == bytes,
            "{} of {} bytes came back",
            back.len(),
            bytes.len()
        );
    });
}

fn start_echo(instance: &Instance, shell: &mut Shell) -> UnixStream {
    shell.type_line("concertina-guest vsock echo 5000 &");
    until("the echo in the guest", STEP_LIMIT, || {
        connect(instance, 5000)
    })
}

fn counters(instance: &Instance) -> VsockStatus {
    instance.vm().vsock.expect("the VM has sockets")
}

/// A program of the guest sends a file to the host, which sends it back once it has all of it.
fn guest_sends_a_file(instance: &Instance, shell: &mut Shell, mib: usize) {
    let listener = UnixListener::bind(instance.file("vsock.sock_2000")).unwrap();
    shell.run(&format!(
        "dd if=/dev/urandom of=/tmp/sent bs=1M count={mib} 2>/dev/null"
    ));
    let host = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).unwrap();
        stream.write_all(&bytes).unwrap();
        bytes.len()
    });
    shell.run("concertina-guest vsock connect 2000 </tmp/sent >/tmp/back");
    shell.run("busybox cmp /tmp/sent /tmp/back");
    assert_eq!(host.join().unwrap(), mib << 20);
}

#[test]
fn streams_go_both_ways_whole_and_many_at_once_and_end_with_the_guest() {
    let (instance, mut shell) = Launch::new("vsock").boot();
    there_and_back(start_echo(&instance, &mut shell), &noise(0, 4 << 20));
    guest_sends_a_file(&instance, &mut shell, 4);

    // The program in the guest holds one all the time.
    let until_only_the_channel = |instance: &Instance| {
        until("no connection but the channel", STEP_LIMIT, || {
            (counters(instance).connections == 1).then_some(())
        });
    };
    until_only_the_channel(&instance);
    let streams: Vec<UnixStream> = (0..32)
        .map(|_| connect(&instance, 5000).expect("one of 32 connections"))
        .collect();
    assert_eq!(counters(&instance).connections, 33);
    thread::scope(|scope| {
        for (seed, stream) in (1..).zip(streams) {
            scope.spawn(move || there_and_back(stream, &noise(seed, 200_000)));
        }
    });
    until_only_the_channel(&instance);
    let seen = counters(&instance);
    assert_eq!(
        (seen.bad_requests, seen.credit_overruns),
        (0, 0),
        "{seen:?}"
    );
    assert!(seen.opened_by_guest >= 1, "{seen:?}");
    assert!(seen.bytes_to_guest >= 14 << 20, "{seen:?}");

    // What slow readers made it hold is given back, and the program's text that it touched since the
    // last time: the pauses between such times grow to about half a minute at this age.
    let mut overhead = instance.vm().vmm_resident;
    let begun = std::time::Instant::now();
    while overhead.get() >= 7 * MIB / 2 {
        assert!(begun.elapsed() < TEXT_LIMIT, "{overhead}");
        thread::sleep(Duration::from_secs(1));
        overhead = instance.vm().vmm_resident;
    }

    // Nobody listens: both sides hear of it at once.
    assert!(connect(&instance, 5001).is_none());
    let (status, text) = shell.try_run("concertina-guest vsock connect 2001", STEP_LIMIT);
    assert_eq!(status, 1, "{text}");

    // A guest that reboots ends its connections, and answers on new ones.
    let mut old = connect(&instance, 5000).unwrap();
    shell.type_line("reboot");
    old.set_read_timeout(Some(BOOT_LIMIT)).unwrap();
    assert_eq!(old.read(&mut [0; 8]).unwrap_or(0), 0);
    let mut shell = until("the guest after its reboot", BOOT_LIMIT, || {
        instance
            .console_log()
            .matches("init at")
            .nth(1)
            .map(|_| instance.shell())
    });
    there_and_back(start_echo(&instance, &mut shell), &noise(99, 100_000));

    instance.stop(&["--force"]);
    until("the socket's end", Duration::from_secs(5), || {
        (!instance.file("vsock.sock").exists()).then_some(())
    });
}

#[test]
fn the_older_kernel_has_sockets_too() {
    let (instance, mut shell) = Launch::new("vsock61").series(Series::V6_1).boot();
    there_and_back(start_echo(&instance, &mut shell), &noise(7, 1 << 20));
    guest_sends_a_file(&instance, &mut shell, 1);
    assert_eq!(counters(&instance).bad_requests, 0);
}
