//! The DSDT: what hardware-reduced ACPI needs to find and to call.
//!
//! `_SB_.PRES` holds the CPU hotplug registers, `_SB_.CPUS` one device per possible vCPU, `_SB_.GED_`
//! the event device, `_SB_.PCI0` the host bridge, `_SB_.COM1` the serial port, `_SB_.PWRB` the power
//! button. CPU objects as in ACPI 6.5 §8.4, `_OST` §6.3.5, event device §5.6.9.

use acpi_tables::aml::*;
use acpi_tables::sdt::Sdt;
use acpi_tables::{Aml, AmlSink};

use super::{Machine, table, x2apic_entry};
use crate::cpu::hotplug;
use crate::devices::ged;
use crate::devices::power::S5_SLEEP_TYPE;
use crate::layout;

/// Device check (ACPI 6.5 table 5.168).
const NOTIFY_DEVICE_CHECK: u8 = 1;
/// Eject request.
const NOTIFY_EJECT_REQUEST: u8 = 3;
/// Power button pressed (table 5.169).
const NOTIFY_BUTTON: u8 = 0x80;

pub(super) fn build(machine: &Machine) -> Sdt {
    let mut aml = Vec::new();
    cpu_registers(&mut aml);
    cpus(machine, &mut aml);
    event_device(&mut aml);
    pci(machine, &mut aml);
    serial(&mut aml);
    Device::new(
        "_SB_.PWRB".into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0C0C")),
            &Name::new("_UID".into(), &ZERO),
        ],
    )
    .to_aml_bytes(&mut aml);
    Name::new("_S5_".into(), &Package::new(vec![&S5_SLEEP_TYPE])).to_aml_bytes(&mut aml);

    let mut dsdt = table(b"DSDT", 36, 6);
    dsdt.append_slice(&aml);
    dsdt
}

fn cpu_registers(aml: &mut Vec<u8>) {
    use FieldEntry::{Named, Reserved};
    let base = layout::CPU_HOTPLUG;
    let bits = |reg: u64| reg as usize * 8;
    Device::new(
        "_SB_.PRES".into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0A06")),
            &Name::new("_UID".into(), &"CPU Hotplug Registers"),
            &Name::new(
                "_CRS".into(),
                &ResourceTemplate::new(vec![&Memory32Fixed::new(
                    true,
                    base as u32,
                    hotplug::REG_LEN as u32,
                )]),
            ),
            &OpRegion::new(
                "PRST".into(),
                OpRegionSpace::SystemMemory,
                &base,
                &hotplug::REG_LEN,
            ),
            // Writing one flag must not write the others back.
            &Field::new(
                "PRST".into(),
                FieldAccessType::Byte,
                FieldLockRule::NoLock,
                FieldUpdateRule::WriteAsZeroes,
                vec![
                    Reserved(bits(hotplug::REG_FLAGS)),
                    Named(*b"CPEN", 1),
                    Named(*b"CINS", 1),
                    Named(*b"CRMV", 1),
                    Named(*b"CEJ0", 1),
                    Reserved(4),
                    Named(*b"CCMD", 8),
                ],
            ),
            &Field::new(
                "PRST".into(),
                FieldAccessType::DWord,
                FieldLockRule::NoLock,
                FieldUpdateRule::Preserve,
                vec![
                    Named(*b"CSEL", 32),
                    Reserved(bits(hotplug::REG_DATA - hotplug::REG_FLAGS)),
                    Named(*b"CDAT", 32),
                ],
            ),
            &Mutex::new("CPLK".into(), 0),
        ],
    )
    .to_aml_bytes(aml);
}

/// Runs `body` with the registers to itself.
fn locked<'a>(
    acquire: &'a Acquire,
    release: &'a Release,
    body: Vec<&'a dyn Aml>,
) -> Vec<&'a dyn Aml> {
    let mut all: Vec<&dyn Aml> = vec![acquire];
    all.extend(body);
    all.push(release);
    all
}

/// One possible vCPU.
struct Cpu(u32);

impl Aml for Cpu {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        let id = self.0;
        Device::new(
            format!("C{id:03}").as_str().into(),
            vec![
                &Name::new("_HID".into(), &"ACPI0007"),
                &Name::new("_UID".into(), &id),
                &Name::new("_PXM".into(), &ZERO),
                &Method::new(
                    "_STA".into(),
                    0,
                    false,
                    vec![&Return::new(&MethodCall::new("CSTA".into(), vec![&id]))],
                ),
                &Name::new(
                    "_MAT".into(),
                    &BufferData::new(x2apic_entry(id, true).to_vec()),
                ),
                &Method::new(
                    "_OST".into(),
                    3,
                    false,
                    vec![&MethodCall::new("COST".into(), vec![&id, &Arg(0), &Arg(1)])],
                ),
                // vCPU 0 never goes.
                &Eject((id > 0).then_some(id)),
            ],
        )
        .to_aml_bytes(sink);
    }
}

struct Eject(Option<u32>);

impl Aml for Eject {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        if let Some(id) = self.0 {
            Method::new(
                "_EJ0".into(),
                1,
                false,
                vec![&MethodCall::new("CEJT".into(), vec![&id])],
            )
            .to_aml_bytes(sink);
        }
    }
}

fn cpus(machine: &Machine, aml: &mut Vec<u8>) {
    let lock = Acquire::new("\\_SB_.PRES.CPLK".into(), 0xffff);
    let unlock = Release::new("\\_SB_.PRES.CPLK".into());
    let select = Path::new("\\_SB_.PRES.CSEL");
    let (enabled, inserting) = (Path::new("\\_SB_.PRES.CPEN"), Path::new("\\_SB_.PRES.CINS"));
    let (removing, eject) = (Path::new("\\_SB_.PRES.CRMV"), Path::new("\\_SB_.PRES.CEJ0"));
    let (command, data) = (Path::new("\\_SB_.PRES.CCMD"), Path::new("\\_SB_.PRES.CDAT"));
    let cpus: Vec<Cpu> = (0..machine.max_vcpus).map(Cpu).collect();

    // CSTA(n): 0xf where it is in the machine.
    let store_sel = Store::new(&select, &Arg(0));
    let zero_result = Store::new(&Local(0), &ZERO);
    let is_enabled = Equal::new(&enabled, &ONE);
    let store_present = Store::new(&Local(0), &0xfu8);
    let if_enabled = If::new(&is_enabled, vec![&store_present]);
    let mut status = locked(&lock, &unlock, vec![&store_sel, &zero_result, &if_enabled]);
    let return_status = Return::new(&Local(0));
    status.push(&return_status);

    // CEJT(n): eject it.
    let do_eject = Store::new(&eject, &ONE);
    let eject_body = locked(&lock, &unlock, vec![&store_sel, &do_eject]);

    // COST(n, event, status): tell the host how it went.
    let cmd_event = Store::new(&command, &hotplug::CMD_OST_EVENT);
    let put_event = Store::new(&data, &Arg(1));
    let cmd_status = Store::new(&command, &hotplug::CMD_OST_STATUS);
    let put_status = Store::new(&data, &Arg(2));
    let ost_body = locked(
        &lock,
        &unlock,
        vec![&store_sel, &cmd_event, &put_event, &cmd_status, &put_status],
    );

    // CSCN: for each CPU with a notice: notify its device, acknowledge. The register finds the next
    // one itself, so a scan costs as much as there are notices, not CPUs.
    let cmd_next = Store::new(&command, &hotplug::CMD_NEXT_PENDING);
    let get_next = Store::new(&Local(0), &data);
    let more = Store::new(&Local(1), &ONE);
    let no_more = Store::new(&Local(1), &ZERO);
    let is_inserting = Equal::new(&inserting, &ONE);
    let is_removing = Equal::new(&removing, &ONE);
    let notify_in = MethodCall::new("CTFY".into(), vec![&Local(0), &NOTIFY_DEVICE_CHECK]);
    let ack_in = Store::new(&inserting, &ONE);
    let notify_out = MethodCall::new("CTFY".into(), vec![&Local(0), &NOTIFY_EJECT_REQUEST]);
    let ack_out = Store::new(&removing, &ONE);
    let if_in = If::new(&is_inserting, vec![&notify_in, &ack_in, &more]);
    let if_out = If::new(&is_removing, vec![&notify_out, &ack_out, &more]);
    let go_on = Equal::new(&Local(1), &ONE);
    let scan_loop = While::new(
        &go_on,
        vec![&no_more, &cmd_next, &get_next, &if_in, &if_out],
    );
    let first = Store::new(&select, &ZERO);
    let scan_body = locked(&lock, &unlock, vec![&first, &more, &scan_loop]);

    let notify = NotifyCpus(machine.max_vcpus);
    let hid = Name::new("_HID".into(), &"ACPI0010");
    let eisa = EISAName::new("PNP0A05");
    let cid = Name::new("_CID".into(), &eisa);
    let sta = Method::new("CSTA".into(), 1, true, status);
    let ejt = Method::new("CEJT".into(), 1, true, eject_body);
    let ost = Method::new("COST".into(), 3, true, ost_body);
    let ctfy = Method::new("CTFY".into(), 2, true, vec![&notify]);
    let cscn = Method::new("CSCN".into(), 0, true, scan_body);
    let mut children: Vec<&dyn Aml> = vec![&hid, &cid, &sta, &ejt, &ost, &ctfy, &cscn];
    children.extend(cpus.iter().map(|c| c as &dyn Aml));
    Device::new("_SB_.CPUS".into(), children).to_aml_bytes(aml);
}

/// `if (Arg0 == n) Notify(Cnnn, Arg1)` for every CPU.
struct NotifyCpus(u32);

impl Aml for NotifyCpus {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        for id in 0..self.0 {
            let name = Path::new(&format!("C{id:03}"));
            If::new(
                &Equal::new(&Arg(0), &id),
                vec![&Notify::new(&name, &Arg(1))],
            )
            .to_aml_bytes(sink);
        }
    }
}

fn event_device(aml: &mut Vec<u8>) {
    let address = layout::GED;
    let event = |bit: u8| {
        And::new(
            &Local(1),
            &Local(0),
            &ZERO_PLUS[bit.trailing_zeros() as usize],
        )
    };
    Device::new(
        "_SB_.GED_".into(),
        vec![
            &Name::new("_HID".into(), &"ACPI0013"),
            &Name::new("_UID".into(), &ZERO),
            &Name::new(
                "_CRS".into(),
                &ResourceTemplate::new(vec![&Interrupt::new(
                    true,
                    true,
                    false,
                    false,
                    layout::GED_IRQ,
                )]),
            ),
            &OpRegion::new(
                "GREG".into(),
                OpRegionSpace::SystemMemory,
                &address,
                &1usize,
            ),
            &Field::new(
                "GREG".into(),
                FieldAccessType::Byte,
                FieldLockRule::NoLock,
                FieldUpdateRule::WriteAsZeroes,
                vec![FieldEntry::Named(*b"GEVT", 8)],
            ),
            &Method::new(
                "_EVT".into(),
                1,
                true,
                vec![
                    &Store::new(&Local(0), &Path::new("GEVT")),
                    &event(ged::EVENT_CPU),
                    &If::new(
                        &NotEqual::new(&Local(1), &ZERO),
                        vec![&MethodCall::new("\\_SB_.CPUS.CSCN".into(), vec![])],
                    ),
                    &event(ged::EVENT_POWER_BUTTON),
                    &If::new(
                        &NotEqual::new(&Local(1), &ZERO),
                        vec![&Notify::new(&Path::new("\\_SB_.PWRB"), &NOTIFY_BUTTON)],
                    ),
                ],
            ),
        ],
    )
    .to_aml_bytes(aml);
}

/// Powers of two, to be borrowed.
const ZERO_PLUS: [u8; 8] = [1, 2, 4, 8, 16, 32, 64, 128];

fn pci(machine: &Machine, aml: &mut Vec<u8>) {
    let ecam_end = layout::ECAM + layout::ECAM_SIZE;
    let mmio64 = machine.map.mmio64_start;
    Device::new(
        "_SB_.PCI0".into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0A08")),
            &Name::new("_CID".into(), &EISAName::new("PNP0A03")),
            &Name::new("_SEG".into(), &ZERO),
            &Name::new("_UID".into(), &ZERO),
            &Name::new("_CCA".into(), &ONE),
            &Name::new(
                "_CRS".into(),
                &ResourceTemplate::new(vec![
                    &AddressSpace::new_bus_number(0x0u16, 0x0u16),
                    &AddressSpace::new_memory(
                        AddressSpaceCacheable::NotCacheable,
                        true,
                        layout::MMIO32 as u32,
                        (layout::MMIO32_END - 1) as u32,
                        None,
                    ),
                    &AddressSpace::new_memory(
                        AddressSpaceCacheable::NotCacheable,
                        true,
                        mmio64,
                        mmio64 + layout::MMIO64_SIZE - 1,
                        None,
                    ),
                ]),
            ),
        ],
    )
    .to_aml_bytes(aml);
    Device::new(
        "_SB_.MCFG".into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0C02")),
            &Name::new("_UID".into(), &ONE),
            &Name::new(
                "_CRS".into(),
                &ResourceTemplate::new(vec![&Memory32Fixed::new(
                    true,
                    layout::ECAM as u32,
                    (ecam_end - layout::ECAM) as u32,
                )]),
            ),
        ],
    )
    .to_aml_bytes(aml);
}

fn serial(aml: &mut Vec<u8>) {
    Device::new(
        "_SB_.COM1".into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0501")),
            &Name::new("_UID".into(), &ZERO),
            &Name::new(
                "_CRS".into(),
                &ResourceTemplate::new(vec![
                    &Interrupt::new(true, true, false, false, layout::SERIAL_IRQ),
                    &IO::new(layout::SERIAL_PORT, layout::SERIAL_PORT, 0, 8),
                ]),
            ),
        ],
    )
    .to_aml_bytes(aml);
}
