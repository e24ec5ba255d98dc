//! A guest made of register accesses: what the DSDT's methods do, and what a hostile guest may do.

use proptest::prelude::*;
use vmm_sys_util::eventfd::EventFd;

use super::*;

const COUNT: u32 = 4;

struct Guest {
    hotplug: CpuHotplug,
    vcpus: Vec<Arc<Vcpu>>,
    event_device: Arc<EventDevice>,
    interrupt: EventFd,
}

impl Guest {
    fn new(boot: u32) -> Self {
        let vcpus: Vec<_> = (0..COUNT).map(Vcpu::without_thread).collect();
        for vcpu in vcpus.iter().take(boot as usize) {
            vcpu.unpark();
            vcpu.set_started(true);
        }
        let interrupt = EventFd::new(libc::EFD_NONBLOCK).unwrap();
        let event_device = Arc::new(EventDevice::new(interrupt.try_clone().unwrap()));
        Self {
            hotplug: CpuHotplug::new(vcpus.clone(), boot, event_device.clone()),
            vcpus,
            event_device,
            interrupt,
        }
    }

    fn select(&self, vcpu: u32) {
        self.hotplug.write(REG_SELECTOR, &vcpu.to_le_bytes());
    }

    /// `CSTA`.
    fn flags(&self, vcpu: u32) -> u8 {
        self.select(vcpu);
        self.selected_flags()
    }

    fn selected_flags(&self) -> u8 {
        let mut data = [0];
        self.hotplug.read(REG_FLAGS, &mut data);
        data[0]
    }

    fn command(&self, command: u8, data: u32) {
        self.hotplug.write(REG_COMMAND, &[command]);
        self.hotplug.write(REG_DATA, &data.to_le_bytes());
    }

    fn ost(&self, vcpu: u32, event: u32, status: u32) {
        self.select(vcpu);
        self.command(CMD_OST_EVENT, event);
        self.command(CMD_OST_STATUS, status);
    }

    /// `CSCN`: which were announced or asked back, acknowledged like the DSDT does.
    fn scan(&self) -> Vec<(u32, u8)> {
        let mut seen = Vec::new();
        self.select(0);
        loop {
            self.hotplug.write(REG_COMMAND, &[CMD_NEXT_PENDING]);
            let mut number = [0; 4];
            self.hotplug.read(REG_DATA, &mut number);
            let number = u32::from_le_bytes(number);
            let notice = self.selected_flags() & (FLAG_INSERTING | FLAG_REMOVING);
            if notice == 0 {
                return seen;
            }
            seen.push((number, notice));
            self.hotplug.write(REG_FLAGS, &[notice]);
        }
    }

    fn eject(&self, vcpu: u32) {
        self.select(vcpu);
        self.hotplug.write(REG_FLAGS, &[FLAG_EJECT]);
        if !self.vcpus[vcpu as usize].is_wanted() {
            self.vcpus[vcpu as usize].set_started(false);
        }
    }

    fn start(&self, vcpu: u32) {
        self.vcpus[vcpu as usize].set_started(true);
    }

    fn online(&self) -> u32 {
        self.hotplug.progress().online
    }
}

#[test]
fn added_vcpus_are_announced_taken_and_started() {
    let guest = Guest::new(1);
    guest.hotplug.request(3);
    assert!(
        guest.vcpus[2].is_wanted(),
        "in KVM before the guest hears of it"
    );
    assert_eq!(guest.scan(), [(1, FLAG_INSERTING), (2, FLAG_INSERTING)]);
    assert_eq!(
        guest.hotplug.progress(),
        Progress {
            present: 3,
            online: 1,
            refused: None
        }
    );
    guest.start(1);
    guest.start(2);
    assert_eq!(guest.online(), 3);
    assert_eq!(guest.flags(2), FLAG_ENABLED);
    assert_eq!(guest.flags(3), 0);
}

#[test]
fn what_a_booting_guest_finds_by_itself_is_not_taken_back() {
    let guest = Guest::new(1);
    guest.hotplug.request(3);
    // The scan of its name space at boot: nobody listens to notices yet.
    assert_eq!(guest.flags(1), FLAG_ENABLED | FLAG_INSERTING);
    guest.start(1);
    assert_eq!(guest.online(), 2);
    guest.hotplug.withdraw();
    assert!(guest.vcpus[1].is_wanted(), "it runs in the guest");
    assert!(!guest.vcpus[2].is_wanted(), "the guest did not look at it");
    assert_eq!(guest.hotplug.target(), 2);
    // Its driver comes, and looks for what it has missed.
    assert_eq!(guest.scan(), [(1, FLAG_INSERTING)]);
    // Linux 6.1: "already enumerated".
    guest.ost(1, OST_EVENT_DEVICE_CHECK, 1);
    assert_eq!(guest.hotplug.progress().refused, None);
    guest.hotplug.request(1);
    assert_eq!(guest.scan(), [(1, FLAG_REMOVING)]);
    guest.eject(1);
    assert_eq!(guest.hotplug.progress().present, 1);
}

#[test]
fn a_check_of_what_the_guest_has_refuses_nothing() {
    let guest = Guest::new(1);
    guest.hotplug.request(2);
    guest.scan();
    guest.ost(1, OST_EVENT_DEVICE_CHECK, 0);
    // Nobody in the guest brings it online; it is asked for once more.
    guest.hotplug.withdraw();
    guest.hotplug.request(2);
    assert_eq!(guest.scan(), [(1, FLAG_INSERTING)]);
    guest.ost(1, OST_EVENT_DEVICE_CHECK, 1);
    assert_eq!(guest.hotplug.progress().refused, None);
    assert!(guest.vcpus[1].is_wanted());
    guest.start(1);
    assert_eq!(guest.online(), 2);
}

#[test]
fn who_has_not_acknowledged_is_told_again_and_who_has_is_not() {
    let guest = Guest::new(1);
    let told = || {
        let interrupts = guest.interrupt.read().unwrap_or(0);
        let mut event = [0];
        guest.event_device.read(0, &mut event);
        (interrupts, event[0])
    };
    let wait = || {
        let deadline = Instant::now() + TELL_AGAIN * 3 / 2;
        guest
            .hotplug
            .wait(deadline, |progress| progress.online == 2)
    };
    guest.hotplug.request(2);
    assert_eq!(told(), (1, EVENT_CPU));
    assert!(wait().1);
    assert_eq!(told(), (1, EVENT_CPU));
    guest.scan();
    assert!(wait().1);
    assert_eq!(told(), (0, 0));
}

#[test]
fn an_eject_after_its_notice_was_acknowledged_is_honoured_at_once() {
    let guest = Guest::new(3);
    guest.hotplug.request(1);
    assert_eq!(guest.scan(), [(1, FLAG_REMOVING), (2, FLAG_REMOVING)]);
    guest.eject(2);
    assert_eq!(
        guest.flags(2),
        0,
        "the status that the guest reads straight after"
    );
    assert!(!guest.vcpus[2].is_wanted());
    guest.eject(1);
    assert_eq!(guest.hotplug.progress().present, 1);
}

#[test]
fn the_guest_cannot_eject_what_it_was_not_asked_for() {
    let guest = Guest::new(3);
    guest.eject(2);
    guest.eject(0);
    assert_eq!(guest.hotplug.progress().present, 3);
    guest.hotplug.request(1);
    guest.eject(0);
    assert_eq!(guest.hotplug.progress().present, 3, "vCPU 0 never goes");
}

#[test]
fn a_refused_eject_is_told_and_the_next_request_works() {
    let guest = Guest::new(2);
    guest.hotplug.request(1);
    guest.scan();
    guest.ost(1, 0x103, 0x84);
    assert_eq!(guest.hotplug.progress().refused, None, "only under way");
    guest.ost(1, 0x103, 0x82);
    assert_eq!(
        guest.hotplug.progress(),
        Progress {
            present: 2,
            online: 2,
            refused: Some(0x82)
        }
    );
    guest.hotplug.withdraw();
    guest.eject(1);
    assert_eq!(guest.online(), 2, "too late");
    guest.hotplug.request(1);
    assert_eq!(guest.hotplug.progress().refused, None);
    assert_eq!(guest.scan(), [(1, FLAG_REMOVING)]);
    guest.eject(1);
    assert_eq!(guest.online(), 1);
}

#[test]
fn a_refused_insertion_parks_the_vcpu_again() {
    let guest = Guest::new(1);
    guest.hotplug.request(2);
    guest.scan();
    guest.ost(1, 1, 1);
    assert_eq!(
        guest.hotplug.progress(),
        Progress {
            present: 1,
            online: 1,
            refused: Some(1)
        }
    );
    assert!(!guest.vcpus[1].is_wanted());
}

#[test]
fn a_wish_that_the_guest_never_heard_of_is_taken_back_without_it() {
    let guest = Guest::new(1);
    guest.hotplug.request(4);
    guest.hotplug.withdraw();
    assert_eq!(guest.scan(), []);
    assert_eq!(guest.hotplug.target(), 1);
    assert!(guest.vcpus.iter().skip(1).all(|v| !v.is_wanted()));
}

#[test]
fn waiting_ends_at_the_deadline_and_leaves_the_lock_free() {
    let guest = Guest::new(1);
    guest.hotplug.request(2);
    let deadline = Instant::now() + Duration::from_millis(20);
    let (progress, timed_out) = guest.hotplug.wait(deadline, |p| p.online == 2);
    assert!(timed_out);
    assert_eq!(progress.present, 1);
    assert_eq!(guest.flags(1), FLAG_ENABLED | FLAG_INSERTING);
}

#[derive(Debug, Clone)]
enum Step {
    Request(u32),
    Withdraw,
    Scan,
    Eject(u32),
    Start(u32),
    Ost(u32, u32, u32),
    Write(u64, Vec<u8>),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (1..=COUNT).prop_map(Step::Request),
        Just(Step::Withdraw),
        Just(Step::Scan),
        (0..COUNT).prop_map(Step::Eject),
        (0..COUNT).prop_map(Step::Start),
        (
            0..COUNT,
            prop_oneof![Just(1u32), Just(3), Just(0x103)],
            0..0x90u32
        )
            .prop_map(|(v, e, s)| Step::Ost(v, e, s)),
        (0..16u64, proptest::collection::vec(any::<u8>(), 1..5))
            .prop_map(|(o, d)| Step::Write(o, d)),
    ]
}

proptest! {
    /// Whatever the guest writes: vCPU 0 stays, a vCPU runs exactly while it is in the machine, and a
    /// guest that behaves from some moment on reaches any size.
    #[test]
    fn no_sequence_of_accesses_breaks_the_next_resize(steps in proptest::collection::vec(step(), 0..60), last in 1..=COUNT) {
        let guest = Guest::new(2);
        for step in steps {
            match step {
                Step::Request(target) => guest.hotplug.request(target),
                Step::Withdraw => guest.hotplug.withdraw(),
                Step::Scan => drop(guest.scan()),
                Step::Eject(vcpu) => guest.eject(vcpu),
                // Only what is in KVM can be started.
                Step::Start(vcpu) if guest.vcpus[vcpu as usize].is_wanted() => guest.start(vcpu),
                Step::Start(_) => {}
                Step::Ost(vcpu, event, status) => guest.ost(vcpu, event, status),
                Step::Write(offset, data) => guest.hotplug.write(offset, &data),
            }
            let states = guest.hotplug.states();
            prop_assert!(states[0].1 != VcpuState::Parked && guest.vcpus[0].is_wanted());
            for (vcpu, state) in states {
                prop_assert_eq!(vcpu.is_wanted(), state != VcpuState::Parked);
                if state == VcpuState::Parked {
                    vcpu.set_started(false);
                }
            }
        }
        guest.hotplug.request(last);
        guest.scan();
        for vcpu in 0..COUNT {
            if vcpu >= last {
                guest.eject(vcpu);
            } else {
                guest.start(vcpu);
            }
        }
        prop_assert_eq!(guest.hotplug.progress(), Progress { present: last, online: last, refused: None });
    }
}
