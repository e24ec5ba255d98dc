//! The processor's virtualization, and `/dev/kvm`.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;

use serde::Serialize;

use super::Check;

const DEVICE: &str = "/dev/kvm";
/// `KVM_GET_API_VERSION`, and the only answer since Linux 2.6.22.
const GET_API_VERSION: libc::Ioctl = 0xae00;
const API_VERSION: libc::c_int = 12;

/// What stands behind KVM here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// VT-x or SVM of a machine of flesh and blood.
    Hardware,
    /// VT-x or SVM that a hypervisor passes on, backed by hardware as far as can be seen.
    Nested,
    /// SVM that QEMU emulates by TCG.
    Emulated,
    /// A KVM device with neither Intel's nor AMD's module behind it, as inside some cloud VMs.
    Other,
    /// No KVM.
    None,
}

/// What `/proc/cpuinfo` says that matters here.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cpu {
    model: String,
    has_vmx: bool,
    has_svm: bool,
    is_guest: bool,
    /// `kvm_intel` or `kvm_amd` is loaded or built in.
    has_module: bool,
    has_device: bool,
}

impl Cpu {
    /// The processor of this host.
    pub fn of_this_host() -> Self {
        let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let exists = |path: &str| fs::exists(path).unwrap_or(false);
        Self {
            has_module: exists("/sys/module/kvm_intel") || exists("/sys/module/kvm_amd"),
            has_device: exists(DEVICE),
            ..Self::parse(&info)
        }
    }

    /// Reads the first processor of a `cpuinfo`.
    fn parse(cpuinfo: &str) -> Self {
        let field = |name: &str| {
            cpuinfo.lines().find_map(|line| {
                let (key, value) = line.split_once(':')?;
                (key.trim() == name).then(|| value.trim())
            })
        };
        let flags = field("flags").unwrap_or_default();
        let has = |flag: &str| flags.split_ascii_whitespace().any(|word| word == flag);
        Self {
            model: field("model name")
                .unwrap_or("unknown processor")
                .to_owned(),
            has_vmx: has("vmx"),
            has_svm: has("svm"),
            is_guest: has("hypervisor"),
            has_module: false,
            has_device: false,
        }
    }

    /// What stands behind KVM.
    pub fn kind(&self) -> Kind {
        if self.has_device && !self.has_module {
            return Kind::Other;
        }
        match (self.has_vmx || self.has_svm, self.is_guest) {
            (true, _) if self.model.contains("QEMU TCG") => Kind::Emulated,
            (true, true) => Kind::Nested,
            (true, false) => Kind::Hardware,
            (false, _) => Kind::None,
        }
    }
}

/// The processor's part.
pub fn check_cpu(cpu: &Cpu) -> Check {
    let name = "virtualization";
    let with = |what: &str| format!("{what}, {}", cpu.model);
    let extension = if cpu.has_vmx { "VT-x" } else { "SVM" };
    match cpu.kind() {
        Kind::Hardware => Check::ok(name, with(extension)),
        Kind::Nested => Check::ok(name, with(&format!("{extension} inside a virtual machine"))),
        Kind::Emulated => Check::warning(
            name,
            with(&format!("{extension} emulated by QEMU")),
            "everything works, many times slower: use a machine with VT-x or SVM for real load",
        ),
        // Such a device opens and makes VMs, and then cannot run an ordinary kernel.
        Kind::Other => Check::missing(
            name,
            with("a KVM device with neither kvm_intel nor kvm_amd behind it"),
            "use a host with VT-x or SVM, or try things in an emulated host: \
             scripts/nested-kvm -- COMMAND",
        ),
        Kind::None if cpu.is_guest => Check::missing(
            name,
            with("neither VT-x nor SVM; this host is a virtual machine itself"),
            "switch nested virtualization on for it, or try things in an emulated host: \
             scripts/nested-kvm -- COMMAND",
        ),
        Kind::None => Check::missing(
            name,
            with("neither VT-x nor SVM"),
            "switch virtualization on in the firmware, or try things in an emulated host: \
             scripts/nested-kvm -- COMMAND",
        ),
    }
}

/// The device's part: there, ours to open, and of the version that everybody has.
pub fn check_device(cpu: &Cpu) -> Check {
    let name = "kvm device";
    let device = match OpenOptions::new().read(true).write(true).open(DEVICE) {
        Ok(device) => device,
        Err(error) => return closed_device(name, &error, cpu),
    };
    // SAFETY: this ioctl takes no argument and only returns a number; the descriptor is open.
    match unsafe { libc::ioctl(device.as_raw_fd(), GET_API_VERSION, 0) } {
        API_VERSION => Check::ok(name, format!("{DEVICE} can be opened")),
        other => Check::missing(
            name,
            format!("{DEVICE} answers with API version {other} instead of {API_VERSION}"),
            "use a kernel whose KVM is not replaced by another driver",
        ),
    }
}

fn closed_device(name: &'static str, error: &io::Error, cpu: &Cpu) -> Check {
    let module = if cpu.has_svm { "kvm_amd" } else { "kvm_intel" };
    match error.kind() {
        io::ErrorKind::NotFound => Check::missing(
            name,
            format!("no {DEVICE}"),
            format!("sudo modprobe {module}"),
        ),
        io::ErrorKind::PermissionDenied => Check::missing(
            name,
            format!("no permission on {DEVICE}"),
            "sudo usermod -aG kvm \"$USER\", then log in again",
        ),
        _ => Check::missing(
            name,
            format!("{DEVICE} cannot be opened: {error}"),
            format!("sudo modprobe {module}; dmesg | grep -i kvm says why where that fails"),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cpu(model: &str, flags: &str) -> Cpu {
        Cpu::parse(&format!(
            "processor\t: 0\nmodel name\t: {model}\nflags\t\t: fpu {flags} de\n"
        ))
    }

    #[test]
    fn the_kind_follows_flags_and_model() {
        assert_eq!(cpu("AMD EPYC", "svm").kind(), Kind::Hardware);
        assert_eq!(cpu("Intel Xeon", "vmx hypervisor").kind(), Kind::Nested);
        assert_eq!(
            cpu("QEMU TCG CPU version 2.5+", "svm hypervisor").kind(),
            Kind::Emulated
        );
        assert_eq!(cpu("Intel Xeon", "hypervisor svm_lock").kind(), Kind::None);
    }

    #[test]
    fn a_device_without_its_module_cannot_run_instances() {
        let bare = Cpu {
            has_device: true,
            ..cpu("Intel Xeon", "vmx hypervisor")
        };
        assert_eq!(bare.kind(), Kind::Other);
        assert_eq!(check_cpu(&bare).verdict, super::super::Verdict::Missing);
        let with_module = Cpu {
            has_module: true,
            ..bare
        };
        assert_eq!(with_module.kind(), Kind::Nested);
    }

    #[test]
    fn a_processor_without_virtualization_is_told_what_to_do() {
        let check = check_cpu(&cpu("Intel Xeon", "hypervisor"));
        assert_eq!(check.verdict, super::super::Verdict::Missing);
        assert!(check.mend.unwrap().contains("nested"));
    }

    #[test]
    fn each_refusal_of_the_device_has_its_own_mend() {
        let mend = |kind: io::ErrorKind, flags: &str| {
            closed_device("kvm device", &kind.into(), &cpu("x", flags))
                .mend
                .unwrap()
        };
        assert!(mend(io::ErrorKind::NotFound, "svm").contains("modprobe kvm_amd"));
        assert!(mend(io::ErrorKind::NotFound, "vmx").contains("modprobe kvm_intel"));
        assert!(mend(io::ErrorKind::PermissionDenied, "vmx").contains("usermod -aG kvm"));
    }
}
