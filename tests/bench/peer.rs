//! Debian's QEMU with KVM on the same host, with the same guest, asked through QMP.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use crate::Options;
use crate::machine::{Machine, Wish};

const LIMIT: Duration = Duration::from_secs(60);
const VCPU_ID: &str = "vcpu1";

/// The command line that our agent gives its guests, as far as resizing needs it.
const KERNEL_COMMAND_LINE: &str = "console=ttyS0 panic=-1 memhp_default_state=online \
     memory_hotplug.online_policy=auto-movable memory_hotplug.auto_movable_ratio=301 \
     memory_hotplug.memmap_on_memory=1 random.trust_cpu=on quiet";

/// A running QEMU; killed when dropped.
pub struct Peer {
    child: Child,
    folder: tempfile::TempDir,
    boot_mib: u64,
    qmp: Mutex<Qmp>,
    /// Properties of the processor that can be added.
    spare: Value,
}

impl Peer {
    /// Starts a machine with one processor of two and this memory.
    pub fn launch(options: &Options, boot_mib: u64, max_mib: u64) -> Result<Self> {
        Self::launch_with(options, boot_mib, max_mib, &[])
    }

    /// The same with further arguments.
    pub fn launch_with(
        options: &Options,
        boot_mib: u64,
        max_mib: u64,
        further: &[String],
    ) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let qmp_socket = folder.path().join("qmp");
        let mut command = match &options.peer_root {
            Some(root) => {
                let mut command = Command::new("chroot");
                command.arg(root).arg("qemu-system-x86_64");
                command
            }
            None => Command::new("qemu-system-x86_64"),
        };
        let socket = |path: &Path| format!("unix:{},server=on,wait=off", path.display());
        command
            .args([
                "-machine",
                "q35,accel=kvm",
                "-cpu",
                "host",
                "-nodefaults",
                "-no-reboot",
                "-display",
                "none",
            ])
            .args(["-smp", "1,maxcpus=2,sockets=2,cores=1,threads=1"])
            .arg("-kernel")
            .arg(&options.kernel)
            .arg("-initrd")
            .arg(&options.initrd)
            .args(["-append", KERNEL_COMMAND_LINE])
            .args(["-serial", &socket(&folder.path().join("console"))])
            .args(["-qmp", &socket(&qmp_socket)])
            .args([
                "-device",
                "virtio-balloon-pci,id=balloon,free-page-reporting=on,deflate-on-oom=on",
            ])
            .args(["-device", "virtio-rng-pci"])
            .args(further);
        if max_mib > boot_mib {
            command
                .args(["-m", &format!("{boot_mib}M,maxmem={}M", max_mib + 1024)])
                .args([
                    "-object",
                    &format!("memory-backend-ram,id=more,size={}M", max_mib - boot_mib),
                ])
                .args([
                    "-device",
                    "virtio-mem-pci,id=elastic,memdev=more,node=0,requested-size=0",
                ]);
        } else {
            command.args(["-m", &format!("{boot_mib}M")]);
        }
        let child = command
            .stdin(Stdio::null())
            .spawn()
            .context("Starting QEMU")?;
        let mut qmp = Qmp::connect(&qmp_socket)?;
        let slots = qmp.call("query-hotpluggable-cpus", json!({}))?;
        let spare = slots
            .as_array()
            .and_then(|slots| slots.iter().find(|slot| slot.get("qom-path").is_none()))
            .cloned()
            .context("QEMU has no processor to add")?;
        Ok(Self {
            child,
            folder,
            boot_mib,
            qmp: Mutex::new(qmp),
            spare,
        })
    }

    fn call(&self, command: &str, arguments: Value) -> Result<Value> {
        let mut qmp = self.qmp.lock().unwrap_or_else(PoisonError::into_inner);
        qmp.call(command, arguments)
    }

    fn add_processor(&self) -> Result<()> {
        let mut arguments = self.spare["props"].clone();
        arguments["driver"] = self.spare["type"].clone();
        arguments["id"] = json!(VCPU_ID);
        self.call("device_add", arguments).map(drop)
    }
}

impl Machine for Peer {
    fn name(&self) -> &'static str {
        "qemu"
    }

    fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    fn console(&self) -> PathBuf {
        self.folder.path().join("console")
    }

    fn ask(&self, wish: Wish) -> Result<()> {
        match wish {
            Wish::Vcpus(2) => self.add_processor(),
            Wish::Vcpus(1) => self.call("device_del", json!({ "id": VCPU_ID })).map(drop),
            Wish::Vcpus(n) => bail!("QEMU was started for 1 or 2 processors, not for {n}"),
            Wish::MemoryMib(mib) => {
                let bytes = mib.saturating_sub(self.boot_mib) << 20;
                let size =
                    json!({ "path": "elastic", "property": "requested-size", "value": bytes });
                self.call("qom-set", size).map(drop)
            }
            Wish::BalloonMib(mib) => {
                let left = self.boot_mib.saturating_sub(mib) << 20;
                self.call("balloon", json!({ "value": left })).map(drop)
            }
        }
    }

    fn reached(&self, wish: Wish) -> Result<bool> {
        Ok(match wish {
            Wish::Vcpus(_) => true,
            Wish::MemoryMib(mib) => {
                let size = json!({ "path": "elastic", "property": "size" });
                let bytes = mib.saturating_sub(self.boot_mib) << 20;
                self.call("qom-get", size)?.as_u64() == Some(bytes)
            }
            Wish::BalloonMib(mib) => {
                let left = self.boot_mib.saturating_sub(mib) << 20;
                self.call("query-balloon", json!({}))?["actual"].as_u64() == Some(left)
            }
        })
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A QMP connection.
struct Qmp {
    reader: BufReader<UnixStream>,
}

impl Qmp {
    fn connect(socket: &Path) -> Result<Self> {
        let started = Instant::now();
        let stream = loop {
            match UnixStream::connect(socket) {
                Ok(stream) => break stream,
                Err(_) if started.elapsed() < LIMIT => thread::sleep(Duration::from_millis(50)),
                Err(error) => return Err(error).context("Connecting to QEMU"),
            }
        };
        stream.set_read_timeout(Some(LIMIT))?;
        let mut qmp = Self {
            reader: BufReader::new(stream),
        };
        qmp.line()?;
        qmp.call("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    fn line(&mut self) -> Result<Value> {
        let mut line = String::new();
        let read = self
            .reader
            .read_line(&mut line)
            .context("Reading QEMU's answer")?;
        ensure!(read > 0, "QEMU has closed its connection");
        serde_json::from_str(&line).with_context(|| format!("Reading QEMU's answer {line}"))
    }

    /// Sends a command, passes over events, and gives what the command returns.
    fn call(&mut self, command: &str, arguments: Value) -> Result<Value> {
        let message = json!({ "execute": command, "arguments": arguments });
        self.reader
            .get_mut()
            .write_all(format!("{message}\n").as_bytes())
            .context("Asking QEMU")?;
        loop {
            let mut answer = self.line()?;
            if let Some(error) = answer.get("error") {
                bail!("QEMU refuses {command}: {error}");
            }
            if answer.get("return").is_some() {
                return Ok(answer["return"].take());
            }
        }
    }
}
