//! Whole distributions, unmodified, from a disk image that `concertina image build` has made: they
//! boot with their own kernel and initrd, scale, and keep what they write.

use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use crate::support::{
    Image, Instance, Launch, MIB, STEP_LIMIT, Shell, Uplink, concertina, concertina_with, images,
    proc, until,
};
use crate::systemd;

/// A distribution under systemd takes most of a minute in the nested host, and longer when the
/// machine beneath it is busy.
const DISTRIBUTION_LIMIT: Duration = Duration::from_secs(300);
/// What no scenario needs, and what would make a slow boot slower: the image itself has it.
const LEAVE_OUT: &str = "systemd.mask=systemd-resolved.service systemd.mask=e2scrub_reap.service \
                         systemd.mask=apt-daily.timer systemd.mask=apt-daily-upgrade.timer";

fn inspect(path: &Path) -> Value {
    let path = path.display().to_string();
    let inspect = ["image", "inspect", &path, "--json"];
    concertina_with(&inspect, DISTRIBUTION_LIMIT)
        .expect_success()
        .json()
}

fn boot(name: &str, image: &Image, key: &Path, more: &[&str]) -> (Instance, Shell) {
    let key = key.display().to_string();
    let instance = Launch::new(name)
        .image(&image.path)
        .cpus("1..3")
        .memory("512M..1G")
        .arguments(&["--ssh-key", &key, "--append", LEAVE_OUT])
        .arguments(&["--net", "user"])
        .arguments(more)
        .start();
    let mut shell = instance.shell_within(DISTRIBUTION_LIMIT);
    // The console's getty is there a little before everything else is.
    until("multi-user.target", DISTRIBUTION_LIMIT, || {
        let (status, _) = shell.try_run("systemctl is-active multi-user.target", STEP_LIMIT * 2);
        (status == 0).then_some(())
    });
    // scripts/test ends a host of which nothing is heard.
    eprintln!("{name}: multi-user.target is reached");
    (instance, shell)
}

/// Each in a test of its own, and so in a nested host of its own.
mod distribution {
    use super::*;

    #[test]
    fn debian_12_boots_from_its_disk_scales_and_keeps_what_it_writes() {
        boots_scales_and_keeps_what_it_writes("bookworm", "6.1");
    }

    /// In this room since it needs the same image.
    #[test]
    fn debian_12s_systemd_runs_the_agent_as_the_unit_says() {
        systemd::the_unit_keeps_its_word(&image("bookworm-6.1"));
    }

    /// Run with `--matrix`.
    #[test]
    fn debian_13s_systemd_does_so() {
        systemd::the_unit_keeps_its_word(&image("trixie-6.12"));
    }

    /// Run with `--matrix`.
    #[test]
    fn debian_12_does_so_with_kernel_6_12() {
        boots_scales_and_keeps_what_it_writes("bookworm", "6.12");
    }

    /// Run with `--matrix`.
    #[test]
    fn debian_13_does_so() {
        boots_scales_and_keeps_what_it_writes("trixie", "6.12");
    }

    /// The usual cloud image: partitioned, and configured by its own cloud-init at the first boot. Run
    /// with `--matrix`.
    #[test]
    fn a_cloud_image_is_configured_by_the_seed() {
        configured_by_the_seed();
    }
}

/// The image of that name in `CONCERTINA_TEST_IMAGES`.
fn image(name: &str) -> Image {
    let mut images = images().into_iter();
    let image = images.find(|image| image.name == name);
    image.unwrap_or_else(|| panic!("No image {name} in CONCERTINA_TEST_IMAGES"))
}

fn boots_scales_and_keeps_what_it_writes(release: &str, series: &str) {
    let folder = tempfile::tempdir().expect("a folder");
    let key = folder.path().join("id.pub");
    std::fs::write(&key, "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIE2e me\n").expect("a key");
    let uplink = Uplink::make("world1");
    let image = image(&format!("{release}-{series}"));
    let found = inspect(&image.path);
    assert_eq!(found["bootable"], true, "{found:#}");
    let kernel = found["release"].as_str().unwrap_or_default();
    assert!(kernel.starts_with(&format!("{series}.")), "{found:#}");
    let os = found["root"]["os"].as_str().unwrap_or_default();
    assert!(os.contains(release), "{found:#}");

    let (instance, mut shell) = boot("distro", &image, &key, &[]);
    assert_eq!(shell.run("uname -r"), kernel);
    assert!(shell.run("cat /etc/os-release").contains(release));
    assert_eq!(shell.run("systemctl is-active concertina-guest"), "active");
    the_network_is_up(&uplink, &mut shell);
    vcpus_come_and_go(&instance, &mut shell);
    eprintln!("distro: network and vCPUs are as they should be");
    memory_comes_and_goes(&instance, &mut shell);
    the_seed_is_there(&mut shell);
    let sum = write_to_the_disk(&mut shell);

    // Power is cut: nothing is unmounted, and the journal has to be replayed.
    drop(shell);
    instance.stop(&["--force"]);
    let found = inspect(&image.path);
    assert_eq!(found["release"], kernel, "{found:#}");
    assert_eq!(found["partitions"][0]["problem"], Value::Null, "{found:#}");
    let (_instance, mut shell) = boot("distro", &image, &key, &[]);
    assert_eq!(shell.run("md5sum </root/kept"), sum);
    shell.run("findmnt -n -o OPTIONS / | grep -qw rw");
}

/// By the distribution's own DHCP client; a file of the host comes whole.
fn the_network_is_up(uplink: &Uplink, shell: &mut Shell) {
    until("an address from DHCP", DISTRIBUTION_LIMIT, || {
        let (status, text) = shell.try_run("ip -4 route show default", STEP_LIMIT * 2);
        (status == 0 && text.contains("default via")).then_some(())
    });
    let bytes: Vec<u8> = (0..300_000_u32)
        .map(|i| (i.wrapping_mul(i) >> 8) as u8)
        .collect();
    let (host, port) = uplink.serve(bytes.clone());
    let line = format!("exec 3<>/dev/tcp/{host}/{port}; cat <&3 >/root/from-host");
    shell.run(&format!(
        "timeout 60 bash -c '{line}'; wc -c </root/from-host"
    ));
    let copy = shell.run("md5sum </root/from-host");
    let folder = tempfile::tempdir().expect("a folder");
    let original = folder.path().join("bytes");
    std::fs::write(&original, bytes).expect("a file");
    let done = std::process::Command::new("md5sum").arg(&original).output();
    let sum = String::from_utf8_lossy(&done.expect("md5sum runs").stdout).into_owned();
    assert_eq!(copy.split(' ').next(), sum.split(' ').next());
}

/// Brought online by the guest's own rule or service: nothing is typed.
fn vcpus_come_and_go(instance: &Instance, shell: &mut Shell) {
    assert_eq!(shell.online_cpus(), 1);
    for vcpus in [3, 1] {
        instance.resize_applied(&["--cpus", &vcpus.to_string()]);
        until(
            &format!("{vcpus} processors in the guest"),
            STEP_LIMIT,
            || (shell.online_cpus() == vcpus).then_some(()),
        );
    }
}

fn memory_comes_and_goes(instance: &Instance, shell: &mut Shell) {
    let before = shell.meminfo("MemTotal");
    instance.resize_applied(&["--memory", "1G"]);
    let grown = until("512 MiB more in the guest", STEP_LIMIT, || {
        let grown = shell.meminfo("MemTotal") - before;
        (grown >= 490 * MIB).then_some(grown)
    });
    assert!(grown <= 512 * MIB, "{grown}");
    // Held and let go of, so that the host has something to get back.
    shell.run("head -c 300M /dev/zero >/dev/shm/held; rm /dev/shm/held");
    let pid = instance.vmm_pid();
    instance.resize_applied(&["--memory", "512M"]);
    assert!(shell.meminfo("MemTotal") <= before + MIB);
    let resident = proc::resident_bytes(pid);
    assert!(resident < 530 * MIB, "Resident {resident} after the shrink");
}

/// What cloud-init would find.
fn the_seed_is_there(shell: &mut Shell) {
    shell.run("mount -o ro -L CIDATA /mnt");
    let meta = shell.run("cat /mnt/meta-data");
    assert!(
        meta.contains("ssh-ed25519") && meta.contains("distro"),
        "{meta}"
    );
    shell.run("test -s /mnt/user-data && umount /mnt");
}

fn write_to_the_disk(shell: &mut Shell) -> String {
    shell.run("head -c 20M /dev/urandom >/root/kept && sync");
    shell.run("md5sum </root/kept")
}

fn configured_by_the_seed() {
    let image = image("bookworm-6.1+cloud-init");
    let found = inspect(&image.path);
    assert_eq!(found["bootable"], true, "{found:#}");
    assert_eq!(found["table"], "gpt", "{found:#}");

    let folder = tempfile::tempdir().expect("a folder");
    let key = folder.path().join("id.pub");
    std::fs::write(&key, "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIE2e me\n").expect("a key");
    let data = folder.path().join("user-data");
    // The image has no locales: cloud-init's own default would be an error of its own.
    let words = "#cloud-config\nlocale: C.UTF-8\nruncmd:\n  - [sh, -c, \"echo seeded >/root/by-cloud-init\"]\n";
    std::fs::write(&data, words).expect("user data");
    let _uplink = Uplink::make("world2");
    let user_data = ["--user-data", &data.display().to_string()];
    let (_instance, mut shell) = boot("cloudy", &image, &key, &user_data);
    until("the end of cloud-init", DISTRIBUTION_LIMIT, || {
        // Written at the very end; `cloud-init status` may say `error` long before.
        let (status, _) = shell.try_run("test -e /run/cloud-init/result.json", STEP_LIMIT * 2);
        (status == 0).then_some(())
    });
    let result = shell.run("cat /run/cloud-init/result.json");
    let result: serde_json::Value = serde_json::from_str(&result).expect("a result");
    assert_eq!(result["v1"]["errors"], serde_json::json!([]), "{result:#}");
    assert_eq!(shell.run("cat /root/by-cloud-init"), "seeded");
    assert_eq!(shell.run("hostname"), "cloudy");
    let keys = shell.run("cat /home/*/.ssh/authorized_keys");
    assert!(keys.contains("AAAAC3NzaC1lZDI1NTE5AAAAIE2e"), "{keys}");
}

#[test]
fn an_image_that_cannot_be_booted_is_refused_with_a_sentence() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("a.img");
    let name = path.display().to_string();
    let state = folder.path().join("state").display().to_string();
    for (content, words) in [
        (vec![0; 1 << 20], "no kernel"),
        (b"QFI\xfb\0\0\0\x03".to_vec(), "concertina image import"),
    ] {
        std::fs::write(&path, content).expect("an image");
        let line = ["run", "--name", "bad", "--cpus", "1", "--memory", "512M"];
        let more = ["--image", &name, "--state-dir", &state];
        let finished = concertina(&[&line[..], &more[..]].concat());
        assert!(
            finished.status == 1 || finished.status == 2,
            "{finished:#?}"
        );
        assert!(finished.stderr.contains(words), "{finished:#?}");
        assert!(!Path::new(&state).join("bad").exists(), "{finished:#?}");
    }
}
