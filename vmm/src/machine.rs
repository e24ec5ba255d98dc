//! Puts a VM together, from plan to the first instruction, as one story: KVM, memory, kernel, tables,
//! processors, devices.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::time::Duration;

use concertina_api::vm::{VmSpec, VsockSpec};
use kvm_bindings::{
    KVM_CAP_DISABLE_QUIRKS2, KVM_MAX_CPUID_ENTRIES, KVM_X86_QUIRK_SLOT_ZAP_ALL, kvm_enable_cap,
    kvm_userspace_memory_region,
};
use kvm_ioctls::{Cap, Kvm, VcpuFd, VmFd};
use vmm_sys_util::eventfd::EventFd;

use crate::acpi;
use crate::boot::{self, BootFiles};
use crate::cpu::cpuid::{self, Topology};
use crate::cpu::hotplug::{self, CpuHotplug};
use crate::cpu::registers;
use crate::cpu::thread::{Vcpu, VcpuContext, VcpuHandle, install_kick_handler};
use crate::devices::ged::EventDevice;
use crate::devices::power::{PowerControl, SystemControlPortB};
use crate::devices::serial::{Console, SerialPort};
use crate::devices::{Bus, BusDevice};
use crate::error::VmmError;
use crate::exit::ExitNotifier;
use crate::layout::{self, MemoryMap};
use crate::memory::{
    BLOCK_BYTES, ElasticMemory, GuestRam, Mapping, MemorySlots, PluggedBlocks, RamRegion,
};
use crate::pci::msix::Routes;
use crate::pci::{Ecam, PciBus, PciWindow};
use crate::plan::VmPlan;
use crate::virtio::VirtioDevice;
use crate::virtio::balloon::{Balloon, BalloonController};
use crate::virtio::block::{Block, BlockController};
use crate::virtio::mem::{Mem, MemController};
use crate::virtio::net::{Net, NetController};
use crate::virtio::pci::{BAR_BYTES, VirtioPci, VirtioRunner};
use crate::virtio::rng::Rng;
use crate::virtio::vsock::{Vsock, VsockCounters};

/// First KVM memory slot of the elastic region; boot RAM has those below.
const FIRST_ELASTIC_SLOT: u32 = 8;

/// A VM that is put together, with all vCPUs parked.
pub struct Machine {
    /// Threads of all possible vCPUs.
    pub vcpus: Vec<VcpuHandle>,
    /// How they come and go.
    pub cpu_hotplug: Arc<CpuHotplug>,
    /// Event device, for the power button.
    pub event_device: Arc<EventDevice>,
    /// Elastic memory, if there is any.
    pub mem: Option<MemController>,
    /// Balloon.
    pub balloon: BalloonController,
    /// Disks, in the order of the specification.
    pub disks: Vec<BlockController>,
    /// Counters of the sockets, if there are any.
    pub vsock: Option<Arc<VsockCounters>>,
    /// Network interfaces, in the guest's order.
    pub nets: Vec<NetController>,
    /// Devices on the event loop.
    pub runners: Vec<VirtioRunner>,
    /// Console, and the descriptor that says that output waits.
    pub console: (Console, i32),
    /// Guest memory.
    pub ram: Arc<GuestRam>,
    /// KVM's handle of the VM.
    pub vm: Arc<VmFd>,
}

/// KVM's memory slots.
struct KvmSlots(Arc<VmFd>);

impl KvmSlots {
    fn set(&self, slot: u32, guest: u64, host: u64, len: u64) -> io::Result<()> {
        let region = kvm_userspace_memory_region {
            slot,
            guest_phys_addr: guest,
            memory_size: len,
            userspace_addr: host,
            flags: 0,
        };
        // SAFETY: the host range is a mapping of ours that outlives the VM: `GuestRam` holds it, and
        // the machine holds both.
        unsafe { self.0.set_user_memory_region(region) }
            .map_err(|e| io::Error::from_raw_os_error(e.errno()))
    }
}

impl MemorySlots for KvmSlots {
    fn add(&mut self, slot: u32, guest: u64, host: u64, len: u64) -> io::Result<()> {
        self.set(slot, guest, host, len)
    }
    fn remove(&mut self, slot: u32) -> io::Result<()> {
        self.set(slot, 0, 0, 0)
    }
}

fn open_kvm() -> Result<Kvm, VmmError> {
    Kvm::new().map_err(|error| {
        let hint = match error.errno() {
            libc::ENOENT => "it does not exist; load kvm_intel or kvm_amd, and switch on virtualization in the firmware",
            libc::EACCES => "no permission; become a member of its group, usually kvm",
            _ => "see `concertina doctor`",
        };
        VmmError::OpenKvm { hint, source: io::Error::from_raw_os_error(error.errno()) }
    })
}

fn create_vm(kvm: &Kvm) -> Result<Arc<VmFd>, VmmError> {
    for (cap, name) in [
        (Cap::Irqchip, "an interrupt controller"),
        (Cap::Ioeventfd, "ioeventfd"),
        (Cap::Irqfd, "irqfd"),
        (Cap::UserMemory, "user memory"),
        (Cap::ImmediateExit, "immediate exit"),
    ] {
        if !kvm.check_extension(cap) {
            return Err(VmmError::Spec(format!(
                "KVM of this host lacks {name}: Linux 5.10 or later is needed"
            )));
        }
    }
    let vm = kvm.create_vm().map_err(VmmError::kvm("KVM_CREATE_VM"))?;
    keep_mappings_of_other_slots(&vm);
    vm.set_identity_map_address(layout::KVM_IDENTITY_MAP)
        .map_err(VmmError::kvm("KVM_SET_IDENTITY_MAP_ADDR"))?;
    vm.set_tss_address(layout::KVM_TSS)
        .map_err(VmmError::kvm("KVM_SET_TSS_ADDR"))?;
    vm.create_irq_chip()
        .map_err(VmmError::kvm("KVM_CREATE_IRQCHIP"))?;
    Ok(Arc::new(vm))
}

/// Without this quirk of KVM, taking one memory slot away drops only that slot's mappings, not the
/// whole guest's, which would then fault back in page by page. Older kernels do not offer it.
fn keep_mappings_of_other_slots(vm: &VmFd) {
    let offered = vm.check_extension_raw(u64::from(KVM_CAP_DISABLE_QUIRKS2));
    if offered & KVM_X86_QUIRK_SLOT_ZAP_ALL as i32 != 0 {
        let mut cap = kvm_enable_cap {
            cap: KVM_CAP_DISABLE_QUIRKS2,
            ..Default::default()
        };
        cap.args[0] = u64::from(KVM_X86_QUIRK_SLOT_ZAP_ALL);
        // Best effort: only speed depends on it.
        let _ = vm.enable_cap(&cap);
    }
}

struct Memory {
    ram: Arc<GuestRam>,
    elastic: Option<ElasticMemory>,
}

fn create_memory(vm: &Arc<VmFd>, map: &MemoryMap) -> Result<Memory, VmmError> {
    let no_memory = |what: &str| VmmError::host(format!("{what} cannot be reserved"));
    let mut regions = Vec::new();
    for (slot, (start, len)) in (0u32..).zip(map.boot_ranges()) {
        let mapping = Mapping::new(len as usize, true).map_err(no_memory("Boot RAM"))?;
        let host = mapping.as_ptr() as u64;
        KvmSlots(vm.clone())
            .set(slot, start, host, len)
            .map_err(no_memory("KVM memory slot"))?;
        regions.push(RamRegion::fixed(start, Arc::new(mapping)));
    }
    let mut elastic = None;
    if map.elastic_bytes > 0 {
        let mapping = Mapping::new(map.elastic_bytes as usize, false)
            .map_err(no_memory("Address space of the elastic region"))?;
        let mapping = Arc::new(mapping);
        let blocks = Arc::new(PluggedBlocks::new(map.elastic_bytes / BLOCK_BYTES));
        let start = map.elastic_start;
        regions.push(RamRegion::elastic(start, mapping.clone(), blocks.clone()));
        let slots = Box::new(KvmSlots(vm.clone()));
        elastic = Some(ElasticMemory::new(
            start,
            mapping,
            blocks,
            slots,
            FIRST_ELASTIC_SLOT,
        ));
    }
    let ram = GuestRam::from_regions(regions).map_err(|_| VmmError::Bug("memory regions"))?;
    Ok(Memory {
        ram: Arc::new(ram),
        elastic,
    })
}

/// An event descriptor that raises interrupt line `gsi`.
fn interrupt_line(vm: &VmFd, gsi: u32) -> Result<EventFd, VmmError> {
    let event = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC).map_err(VmmError::host(
        "Event descriptor of an interrupt line cannot be made",
    ))?;
    vm.register_irqfd(&event, gsi)
        .map_err(VmmError::kvm("KVM_IRQFD"))?;
    Ok(event)
}

fn create_vcpus(kvm: &Kvm, vm: &VmFd, plan: &VmPlan) -> Result<Vec<VcpuFd>, VmmError> {
    let most = kvm.get_max_vcpus();
    if plan.spec.max_vcpus as usize > most {
        return Err(VmmError::Spec(format!(
            "{} vCPUs are not possible: KVM of this host allows {most}",
            plan.spec.max_vcpus
        )));
    }
    let supported = kvm
        .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
        .map_err(VmmError::kvm("KVM_GET_SUPPORTED_CPUID"))?;
    let mut fds = Vec::new();
    for id in 0..plan.spec.max_vcpus {
        let fd = vm
            .create_vcpu(u64::from(id))
            .map_err(VmmError::kvm("KVM_CREATE_VCPU"))?;
        let topology = Topology {
            max_vcpus: plan.spec.max_vcpus,
            tsc_deadline: kvm.check_extension(Cap::TscDeadlineTimer),
            tsc_khz: fd.get_tsc_khz().unwrap_or(0),
        };
        let leaves = cpuid::for_vcpu(&supported, id, &topology);
        let leaves = kvm_bindings::CpuId::from_entries(&leaves)
            .map_err(|_| VmmError::Bug("too many CPUID leaves"))?;
        fd.set_cpuid2(&leaves)
            .map_err(VmmError::kvm("KVM_SET_CPUID2"))?;
        registers::set_common_state(&fd)?;
        fds.push(fd);
    }
    Ok(fds)
}

/// Devices, their place on the bus, and what the control side keeps of them.
struct Devices {
    runners: Vec<VirtioRunner>,
    pci: PciBus,
    mem: Option<MemController>,
    balloon: BalloonController,
    disks: Vec<BlockController>,
    vsock: Option<Arc<VsockCounters>>,
    nets: Vec<NetController>,
}

fn create_vsock(spec: &VsockSpec) -> Result<Vsock, VmmError> {
    let what = format!("Socket '{}' cannot be made", spec.socket.display());
    Vsock::new(spec.cid, &spec.socket).map_err(VmmError::host(what))
}

fn create_devices(
    vm: &Arc<VmFd>,
    memory: Memory,
    spec: &VmSpec,
    nets: Vec<Net>,
) -> Result<Devices, VmmError> {
    let no_event = || VmmError::host("Event descriptor of a device cannot be made");
    let mut devices: Vec<Box<dyn VirtioDevice>> = Vec::new();
    // Disks come first, so that their places and names do not depend on what else there is.
    let mut disks = Vec::new();
    for disk in &spec.disks {
        let device = Block::new(disk)?;
        disks.push(device.controller());
        devices.push(Box::new(device));
    }
    let balloon = Balloon::new(spec.max_memory.get()).map_err(no_event())?;
    let balloon_controller = balloon.controller();
    devices.push(Box::new(balloon));
    devices.push(Box::new(Rng::new().map_err(no_event())?));
    let net_controllers = nets.iter().map(Net::controller).collect();
    for net in nets {
        devices.push(Box::new(net));
    }
    let mut mem = None;
    if let Some(elastic) = memory.elastic {
        let device = Mem::new(elastic).map_err(no_event())?;
        mem = Some(device.controller());
        devices.push(Box::new(device));
    }
    let vsock = spec.vsock.as_ref().map(create_vsock).transpose()?;
    let vsock_counters = vsock.as_ref().map(Vsock::counters);
    devices.extend(vsock.map(|device| Box::new(device) as Box<dyn VirtioDevice>));
    let routes = Arc::new(Routes::new(vm.clone()));
    let mut pci = PciBus::default();
    let mut runners = Vec::new();
    let mut bar = layout::MMIO32;
    for device in devices {
        let transport = VirtioPci::new(&*device, vm.clone(), routes.clone(), bar)?;
        bar += BAR_BYTES;
        pci.add(transport.clone());
        runners.push(VirtioRunner::new(device, transport, memory.ram.clone()));
    }
    Ok(Devices {
        runners,
        pci,
        mem,
        balloon: balloon_controller,
        disks,
        vsock: vsock_counters,
        nets: net_controllers,
    })
}

fn create_console(plan: &VmPlan, port: SerialPort) -> Result<Console, VmmError> {
    let mut listener = None;
    if let Some(path) = &plan.spec.console_socket {
        let what = || format!("Console socket '{}' cannot be made", path.display());
        let _ = std::fs::remove_file(path);
        let socket = UnixListener::bind(path).map_err(VmmError::host(what()))?;
        socket
            .set_nonblocking(true)
            .map_err(VmmError::host(what()))?;
        listener = Some(socket);
    }
    let mut log = None;
    if let Some(path) = &plan.spec.console_log {
        let what = format!("Console log '{}' cannot be opened", path.display());
        let file = OpenOptions::new().create(true).append(true).open(path);
        log = Some(file.map_err(VmmError::host(what))?);
    }
    Ok(Console::new(port, listener, log))
}

impl Machine {
    /// Puts it together, with network interfaces that were opened before all else. Nothing of the
    /// guest runs before [`Machine::start`].
    ///
    /// # Errors
    /// What is missing or refused; everything made is gone again.
    pub fn new(plan: &VmPlan, nets: Vec<Net>, exit: &ExitNotifier) -> Result<Self, VmmError> {
        let spec = &plan.spec;
        install_kick_handler()?;
        let kvm = open_kvm()?;
        let vm = create_vm(&kvm)?;
        let memory = create_memory(&vm, &plan.map)?;
        let ram = memory.ram.clone();
        let files = BootFiles {
            kernel: &spec.kernel,
            initrd: spec.initrd.as_deref(),
            cmdline: &spec.cmdline,
        };
        let entry = boot::load(&ram, &plan.map, &files)?;
        let (boot_vcpus, max_vcpus) = (spec.boot_vcpus, spec.max_vcpus);
        acpi::write_tables(
            &ram,
            &acpi::Machine {
                boot_vcpus,
                max_vcpus,
                map: plan.map,
            },
        )?;
        let fds = create_vcpus(&kvm, &vm, plan)?;
        if let Some(first) = fds.first() {
            registers::set_boot_state(first, &ram, entry)?;
        }

        let serial_line = interrupt_line(&vm, layout::SERIAL_IRQ)?;
        let (port, output_ready) =
            SerialPort::new(serial_line).map_err(VmmError::host("Serial port cannot be made"))?;
        let event_device = Arc::new(EventDevice::new(interrupt_line(&vm, layout::GED_IRQ)?));
        let devices = create_devices(&vm, memory, spec, nets)?;

        let mut pio = Bus::default();
        let ports: [(u16, u64, Arc<dyn BusDevice>); 3] = [
            (layout::SERIAL_PORT, 8, Arc::new(port.clone())),
            (layout::POWER_PORT, 1, Arc::new(PowerControl(exit.clone()))),
            (0x61, 1, Arc::new(SystemControlPortB)),
        ];
        for (base, len, device) in ports {
            pio.add(u64::from(base), len, device)
                .map_err(|_| VmmError::Bug("port overlap"))?;
        }
        let late = LateHotplug::default();
        let mmio = mmio_bus(plan, Arc::new(devices.pci), &event_device, &late)?;
        let (pio, mmio) = (Arc::new(pio), Arc::new(mmio));
        let mut vcpus = Vec::new();
        for (id, fd) in (0u32..).zip(fds) {
            let late = late.clone();
            let context = VcpuContext {
                pio: pio.clone(),
                mmio: mmio.clone(),
                exit: exit.clone(),
                on_change: Arc::new(move || late.vcpu_changed()),
            };
            vcpus.push(VcpuHandle::spawn(id, fd, context)?);
        }
        let shared: Vec<Arc<Vcpu>> = vcpus.iter().map(|v| v.vcpu.clone()).collect();
        for vcpu in &shared {
            vcpu.wait_settled(Duration::from_secs(10));
        }
        let cpu_hotplug = Arc::new(CpuHotplug::new(shared, boot_vcpus, event_device.clone()));
        late.set(cpu_hotplug.clone());

        let console = (create_console(plan, port)?, output_ready);
        let Devices {
            runners,
            mem,
            balloon,
            disks,
            vsock,
            nets,
            ..
        } = devices;
        Ok(Self {
            vcpus,
            cpu_hotplug,
            event_device,
            mem,
            balloon,
            disks,
            vsock,
            nets,
            runners,
            console,
            ram,
            vm,
        })
    }

    /// Lets the boot vCPUs run.
    pub fn start(&self, boot_vcpus: u32) {
        for handle in self.vcpus.iter().filter(|v| v.vcpu.id() < boot_vcpus) {
            handle.vcpu.unpark();
        }
    }
}

/// The hotplug registers need the vCPU threads, whose bus needs the registers: they come in late.
#[derive(Clone, Default)]
struct LateHotplug(Arc<std::sync::OnceLock<Arc<CpuHotplug>>>);

impl LateHotplug {
    fn set(&self, hotplug: Arc<CpuHotplug>) {
        let _ = self.0.set(hotplug);
    }
    fn vcpu_changed(&self) {
        if let Some(hotplug) = self.0.get() {
            hotplug.vcpu_changed();
        }
    }
}

impl BusDevice for LateHotplug {
    fn read(&self, offset: u64, data: &mut [u8]) {
        if let Some(hotplug) = self.0.get() {
            hotplug.read(offset, data);
        }
    }
    fn write(&self, offset: u64, data: &[u8]) {
        if let Some(hotplug) = self.0.get() {
            hotplug.write(offset, data);
        }
    }
}

fn mmio_bus(
    plan: &VmPlan,
    pci: Arc<PciBus>,
    event_device: &Arc<EventDevice>,
    hotplug: &LateHotplug,
) -> Result<Bus, VmmError> {
    let window32 = PciWindow {
        bus: pci.clone(),
        base: layout::MMIO32,
    };
    let window64 = PciWindow {
        bus: pci.clone(),
        base: plan.map.mmio64_start,
    };
    let ranges: [(u64, u64, Arc<dyn BusDevice>); 5] = [
        (
            layout::MMIO32,
            layout::MMIO32_END - layout::MMIO32,
            Arc::new(window32),
        ),
        (layout::ECAM, layout::ECAM_SIZE, Arc::new(Ecam(pci))),
        (
            layout::CPU_HOTPLUG,
            hotplug::REG_LEN,
            Arc::new(hotplug.clone()),
        ),
        (layout::GED, 1, event_device.clone()),
        (
            plan.map.mmio64_start,
            layout::MMIO64_SIZE,
            Arc::new(window64),
        ),
    ];
    let mut bus = Bus::default();
    for (base, len, device) in ranges {
        bus.add(base, len, device)
            .map_err(|_| VmmError::Bug("register overlap"))?;
    }
    Ok(bus)
}
