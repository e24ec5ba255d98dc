//! The agent as its unit has it, under a real systemd: Debian's own, as the first process of a PID
//! namespace of the scenario's host, with this host's KVM and cgroups.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::support::{BOOT_LIMIT, Image, STEP_LIMIT, Series, guest, proc, until};

/// systemd reaches its basic target in seconds; longer when the machine beneath is busy.
const SYSTEMD_LIMIT: Duration = Duration::from_secs(120);
/// Units that look after devices and clocks, which are the host's here.
const MASKED: [&str; 6] = [
    "systemd-udevd.service",
    "systemd-udev-trigger.service",
    "systemd-timesyncd.service",
    "systemd-networkd.service",
    "systemd-resolved.service",
    "e2scrub_reap.service",
];

/// A Debian whose systemd runs. Its processes end with it.
struct Machine {
    root: PathBuf,
    /// Waits for the first process of the namespace.
    keeper: Child,
    /// That process, as the host sees it.
    init: String,
}

impl Machine {
    /// Mounts an image, puts the agent into it as its unit says, and starts its systemd.
    fn start(image: &Image) -> Self {
        let root = PathBuf::from("/mnt/systemd");
        fs::create_dir_all(&root).expect("a mount point");
        shell(&format!(
            "mount -t ext4 {} {}",
            image.path.display(),
            root.display()
        ));
        for folder in ["etc/concertina", "root/guest", "usr/local/bin"] {
            fs::create_dir_all(root.join(folder)).expect("a folder in the image");
        }
        let units = root.join("etc/systemd/system");
        let write = |path: PathBuf, text: &str| fs::write(path, text).expect("a file in the image");
        write(
            units.join("concertina.service"),
            include_str!("../../dist/concertina.service"),
        );
        write(
            root.join("etc/concertina/agent.toml"),
            include_str!("../../docs/agent.toml"),
        );
        for unit in MASKED {
            let _ = fs::remove_file(units.join(unit));
            std::os::unix::fs::symlink("/dev/null", units.join(unit)).expect("a masked unit");
        }
        let copy = |from: &Path, to: &str| {
            fs::copy(from, root.join(to)).expect("a file can be copied into the image");
        };
        copy(
            Path::new("/usr/local/bin/concertina"),
            "usr/local/bin/concertina",
        );
        let files = guest(Series::V6_12);
        copy(&files.bzimage, "root/guest/bzImage");
        copy(&files.initramfs, "root/guest/initramfs");

        let at = root.display();
        let script = format!(
            "mount --make-rprivate / && mount -o rbind /dev {at}/dev && mount -o rbind /sys {at}/sys \
             && mount -t proc proc {at}/proc && mount -t tmpfs run {at}/run \
             && exec env -i container=other PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin \
             chroot {at} /lib/systemd/systemd --unit=basic.target"
        );
        let keeper = Command::new("unshare")
            .args(["-m", "-p", "-f", "sh", "-c", &script])
            .stdin(Stdio::null())
            .spawn()
            .expect("namespaces can be made");
        let children = format!("/proc/{0}/task/{0}/children", keeper.id());
        let init = until("the first process", STEP_LIMIT, || {
            let pids = fs::read_to_string(&children).ok()?;
            let pid = pids.split_whitespace().next()?.to_owned();
            let name = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
            (name.trim() == "systemd").then_some(pid)
        });
        let machine = Self { root, keeper, init };
        until("systemd has started", SYSTEMD_LIMIT, || {
            let (_, said) = machine.run("systemctl is-system-running");
            matches!(said.as_str(), "running" | "degraded").then_some(())
        });
        machine
    }

    /// Runs a line in the machine; its status, output, and errors.
    fn enter(&self, line: &str) -> (i32, String, String) {
        let done = Command::new("nsenter")
            .args(["-t", &self.init, "-m", "-p", "-r", "-w"])
            .args(["/bin/sh", "-c", line])
            .env("PATH", "/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
            .stdin(Stdio::null())
            .output()
            .expect("a process can enter the namespaces");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        let status = done.status.code().unwrap_or(-1);
        (status, text(&done.stdout), text(&done.stderr))
    }

    /// The same without errors.
    fn run(&self, line: &str) -> (i32, String) {
        let (status, said, _) = self.enter(line);
        (status, said)
    }

    /// Runs a line that has to succeed; its output.
    #[track_caller]
    fn ok(&self, line: &str) -> String {
        let (status, said, errors) = self.enter(line);
        if status != 0 {
            let log =
                self.run("journalctl -b --no-pager | tail -n 40; systemctl status concertina");
            panic!("'{line}' ended with {status}: {said}\n{errors}\n{}", log.1);
        }
        said
    }

    fn version(&self) -> u32 {
        let said = self.ok("systemctl --version");
        let number = said.split([' ', '.']).nth(1);
        let number = number.and_then(|number| number.parse().ok());
        number.unwrap_or_else(|| panic!("No version: {said}"))
    }

    fn main_pid(&self) -> String {
        self.ok("systemctl show -P MainPID concertina")
    }

    /// Of the instance's VM, as the machine sees it.
    #[track_caller]
    fn vmm_pid(&self) -> String {
        let status = self.ok("concertina status web --json");
        let status: serde_json::Value = serde_json::from_str(&status).expect("JSON");
        assert_eq!(status["state"], "running", "{status:#}");
        status["vmm_pid"].to_string()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // The first process of a PID namespace takes all others with it.
        proc::signal(self.init.parse().expect("a process id"), libc::SIGKILL);
        let _ = self.keeper.wait();
        let _ = Command::new("umount").arg("-l").arg(&self.root).status();
    }
}

#[track_caller]
fn shell(line: &str) {
    let status = Command::new("sh").args(["-c", line]).status();
    assert!(status.is_ok_and(|status| status.success()), "{line}");
}

/// The unit from start to stop, with a VM that outlives each agent.
pub fn the_unit_keeps_its_word(image: &Image) {
    let machine = Machine::start(image);
    eprintln!("systemd {} has started", machine.version());
    // Type=notify: it returns when the agent says that it serves.
    machine.ok("systemctl start concertina");
    assert_eq!(machine.ok("systemctl is-active concertina"), "active");
    let first = machine.main_pid();
    machine.ok(
        "concertina run --name web --kernel /root/guest/bzImage --initrd /root/guest/initramfs \
         --cpus 0.5..2 --memory 256M..512M --detach",
    );
    let vmm = machine.vmm_pid();
    let group = machine.ok(&format!("cat /proc/{vmm}/cgroup"));
    // Where systemd gives the agent a group of its own within what it delegates, VMs are beside it;
    // an older one could not start the next agent among them.
    let place = if machine.version() >= 254 {
        "0::/system.slice/concertina.service/concertina/web/"
    } else {
        "0::/concertina/web/"
    };
    assert!(group.starts_with(place), "{group}");
    until("the guest speaks", BOOT_LIMIT, || {
        let (_, said) = machine.run("concertina status web --json");
        let status: serde_json::Value = serde_json::from_str(&said).ok()?;
        status["guest"]["load1"].is_f64().then_some(())
    });
    // With the capabilities, devices and controllers that the unit leaves it.
    until("a resize is applied", BOOT_LIMIT, || {
        let (status, said) = machine.run("concertina resize web --cpus 2 --memory 512M");
        eprintln!("{said}");
        (status == 0).then_some(())
    });
    let limits = machine.ok("concertina status web --json");
    let limits: serde_json::Value = serde_json::from_str(&limits).expect("JSON");
    assert_eq!(limits["cpus"]["online"], 2, "{limits:#}");

    machine.ok("systemctl reload concertina");
    assert_eq!(machine.main_pid(), first, "SIGHUP is no restart");
    machine.ok(&format!("kill -KILL {first}"));
    let second = until("the next agent", BOOT_LIMIT, || {
        let (_, active) = machine.run("systemctl is-active concertina");
        let pid = machine.main_pid();
        (active == "active" && pid != first && pid != "0").then_some(pid)
    });
    assert_eq!(machine.vmm_pid(), vmm, "the same VM");

    machine.ok("systemctl stop concertina");
    assert_eq!(machine.ok("systemctl show -P Result concertina"), "success");
    machine.ok(&format!("kill -0 {vmm}"));
    machine.ok("systemctl start concertina");
    assert_ne!(machine.main_pid(), second);
    assert_eq!(machine.vmm_pid(), vmm, "the same VM");
    machine.ok("concertina stop web --force");
    let (status, _) = machine.run(&format!("kill -0 {vmm}"));
    assert_ne!(status, 0, "its VM has ended");
    machine.ok("systemctl stop concertina");
}
