//! The thread of one vCPU.
//!
//! ```text
//!            unpark                  pause
//!   Parked ─────────► Running ──────────────► Paused
//!      ▲               │  ▲                     │
//!      └───── park ────┘  └────── resume ───────┘
//! ```
//! All possible vCPUs and their threads exist from the start: KVM cannot destroy a vCPU, and threads
//! that come and go are how others leak them. A parked thread sleeps outside KVM.
//!
//! Whoever wants a change sets it and signals; the signal's handler sets `immediate_exit`, so that the
//! next `KVM_RUN` returns at once: no wish falls between the check and the call. By that same return
//! KVM has completed an I/O access that was under way.

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use kvm_bindings::{
    KVM_MP_STATE_INIT_RECEIVED, KVM_MP_STATE_RUNNABLE, KVM_MP_STATE_UNINITIALIZED, kvm_mp_state,
};
use kvm_ioctls::{VcpuExit, VcpuFd};
use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler};

use crate::devices::Bus;
use crate::error::VmmError;
use crate::exit::{Exit, ExitNotifier};

/// What the thread shall do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wish {
    Park,
    Pause,
    Run,
    End,
}

/// What the thread does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Doing {
    Parked,
    Paused,
    Running,
    Ended,
}

#[derive(Debug)]
struct Control {
    wish: Wish,
    doing: Doing,
}

/// The part of a vCPU that other threads see.
pub struct Vcpu {
    id: u32,
    tid: AtomicI32,
    pthread: AtomicU64,
    started: AtomicBool,
    /// INIT was received, SIPI not seen yet.
    initialised: AtomicBool,
    control: Mutex<Control>,
    changed: Condvar,
}

/// A vCPU and its thread.
pub struct VcpuHandle {
    /// Shared part.
    pub vcpu: Arc<Vcpu>,
    thread: Option<JoinHandle<()>>,
}

thread_local! {
    /// The `immediate_exit` byte of this thread's vCPU, for the signal handler.
    static IMMEDIATE_EXIT: Cell<*mut u8> = const { Cell::new(std::ptr::null_mut()) };
}

extern "C" fn on_kick(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // A const-initialised thread local without destructor is a plain address: safe in a handler.
    let flag = IMMEDIATE_EXIT.get();
    if !flag.is_null() {
        // SAFETY: set by the vCPU's own thread to a byte of its mapped `kvm_run`, and cleared before
        // that mapping goes away; this handler runs on that same thread.
        unsafe { flag.write_volatile(1) };
    }
}

/// Installs the handler of the signal that takes vCPU threads out of KVM. Once per process.
///
/// # Errors
/// The kernel refuses.
pub fn install_kick_handler() -> Result<(), VmmError> {
    register_signal_handler(SIGRTMIN(), on_kick)
        .map_err(|e| VmmError::host("Signal handler of the vCPU threads cannot be set")(e.into()))
}

impl Vcpu {
    fn new(id: u32, doing: Doing) -> Self {
        Self {
            id,
            tid: AtomicI32::new(0),
            pthread: AtomicU64::new(0),
            started: AtomicBool::new(false),
            initialised: AtomicBool::new(false),
            control: Mutex::new(Control {
                wish: Wish::Park,
                doing,
            }),
            changed: Condvar::new(),
        }
    }

    /// Without a thread, for tests of what drives it.
    #[cfg(test)]
    pub(crate) fn without_thread(id: u32) -> Arc<Self> {
        Arc::new(Self::new(id, Doing::Parked))
    }

    /// Stands for a guest that has sent SIPI.
    #[cfg(test)]
    pub(crate) fn set_started(&self, started: bool) {
        self.started.store(started, Ordering::Release);
    }

    /// Whether it was wished to run.
    #[cfg(test)]
    pub(crate) fn is_wanted(&self) -> bool {
        self.lock().wish == Wish::Run
    }

    fn lock(&self) -> MutexGuard<'_, Control> {
        // Held for a few instructions each time, never while waiting for anything else.
        self.control.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Its number, equal to its APIC id.
    pub fn id(&self) -> u32 {
        self.id
    }
    /// Thread id on the host; 0 before the thread has begun.
    pub fn tid(&self) -> i32 {
        self.tid.load(Ordering::Acquire)
    }
    /// Whether the guest has started it (SIPI received, or vCPU 0) since it was last unparked.
    pub fn is_started(&self) -> bool {
        self.started.load(Ordering::Acquire)
    }
    /// Whether the guest is just starting it: INIT was received, and SIPI, which KVM handles without
    /// telling, must be near. [`Vcpu::kick`] has it looked for.
    pub fn is_starting(&self) -> bool {
        self.initialised.load(Ordering::Acquire) && !self.is_started()
    }
    /// Whether its thread sleeps outside KVM, not part of the machine.
    pub fn is_parked(&self) -> bool {
        self.lock().doing == Doing::Parked
    }

    fn wish(&self, wish: Wish) {
        {
            let mut control = self.lock();
            if control.wish == Wish::End {
                return;
            }
            control.wish = wish;
        }
        self.changed.notify_all();
        self.kick();
    }

    /// Takes it out of the machine. Returns at once.
    pub fn park(&self) {
        self.wish(Wish::Park);
    }
    /// Puts it into the machine; it waits in KVM for the guest's INIT-SIPI. Returns at once.
    pub fn unpark(&self) {
        self.wish(Wish::Run);
    }
    /// Holds it between two instructions, if it runs. Returns at once.
    pub fn pause(&self) {
        if self.lock().wish == Wish::Run {
            self.wish(Wish::Pause);
        }
    }
    /// Lets it go on after [`Vcpu::pause`].
    pub fn resume(&self) {
        if self.lock().wish == Wish::Pause {
            self.wish(Wish::Run);
        }
    }
    /// Waits until it does what was wished, or for `timeout`; says whether it does.
    pub fn wait_settled(&self, timeout: std::time::Duration) -> bool {
        let unsettled = |c: &mut Control| match c.wish {
            Wish::Park => c.doing != Doing::Parked,
            Wish::Pause => c.doing != Doing::Paused,
            Wish::Run => c.doing != Doing::Running,
            Wish::End => c.doing != Doing::Ended,
        };
        let waited = self
            .changed
            .wait_timeout_while(self.lock(), timeout, unsettled);
        !waited.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }

    /// Takes the thread out of `KVM_RUN`, so that it looks at its wish and at its state.
    pub fn kick(&self) {
        let pthread = self.pthread.load(Ordering::Acquire);
        if pthread != 0 {
            // SAFETY: the thread clears this field before it ends and is joined only after that.
            unsafe { libc::pthread_kill(pthread as libc::pthread_t, SIGRTMIN()) };
        }
    }

    fn set_doing(&self, doing: Doing) {
        self.lock().doing = doing;
        self.changed.notify_all();
    }

    /// Blocks while the wish is not to run. True: run; false: end.
    fn wait_for_run(&self) -> bool {
        let mut control = self.lock();
        loop {
            let doing = match control.wish {
                Wish::Run => Doing::Running,
                Wish::End => Doing::Ended,
                Wish::Park => Doing::Parked,
                Wish::Pause => Doing::Paused,
            };
            if control.doing != doing {
                control.doing = doing;
                self.changed.notify_all();
            }
            match doing {
                Doing::Running => return true,
                Doing::Ended => return false,
                Doing::Parked | Doing::Paused => {
                    control = self
                        .changed
                        .wait(control)
                        .unwrap_or_else(PoisonError::into_inner);
                }
            }
        }
    }
}

/// What a vCPU's thread works with.
pub struct VcpuContext {
    /// Ports.
    pub pio: Arc<Bus>,
    /// Memory-mapped registers.
    pub mmio: Arc<Bus>,
    /// Where it says that the VM is at its end.
    pub exit: ExitNotifier,
    /// Told whenever a vCPU has been started by the guest, or parked.
    pub on_change: Arc<dyn Fn() + Send + Sync>,
}

impl VcpuHandle {
    /// Makes the thread, parked.
    ///
    /// # Errors
    /// No more threads to be had.
    pub fn spawn(id: u32, fd: VcpuFd, context: VcpuContext) -> Result<Self, VmmError> {
        let vcpu = Arc::new(Vcpu::new(id, Doing::Running));
        let shared = vcpu.clone();
        let thread = std::thread::Builder::new()
            .name(format!("vcpu{id}"))
            .stack_size(128 << 10)
            .spawn(move || {
                Runner {
                    shared,
                    fd,
                    context,
                }
                .run()
            })
            .map_err(VmmError::host(format!(
                "Thread of vCPU {id} cannot be made"
            )))?;
        Ok(Self {
            vcpu,
            thread: Some(thread),
        })
    }

    /// Ends the thread and waits for it.
    pub fn end(&mut self) {
        self.vcpu.wish(Wish::End);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Runner {
    shared: Arc<Vcpu>,
    fd: VcpuFd,
    context: VcpuContext,
}

impl Runner {
    fn run(mut self) {
        // SAFETY: gettid and pthread_self have no preconditions.
        let (tid, pthread) = unsafe { (libc::gettid(), libc::pthread_self()) };
        self.shared.tid.store(tid, Ordering::Release);
        IMMEDIATE_EXIT.set(&raw mut self.fd.get_kvm_run().immediate_exit);
        self.shared.pthread.store(pthread, Ordering::Release);
        self.shared.set_doing(Doing::Parked);

        while self.shared.wait_for_run() {
            if let Err(exit) = self.enter() {
                if exit == Exit::TripleFault {
                    eprintln!("{}", self.registers());
                }
                self.context.exit.notify(exit);
                // The event loop ends the VM; nothing more to run here.
                self.shared.wish(Wish::Park);
            }
            (self.context.on_change)();
        }
        self.shared.pthread.store(0, Ordering::Release);
        IMMEDIATE_EXIT.set(std::ptr::null_mut());
    }

    /// Runs until the wish changes.
    fn enter(&mut self) -> Result<(), Exit> {
        self.before_run().map_err(Exit::Kvm)?;
        loop {
            match self.fd.run() {
                Ok(exit) => handle(exit, &self.context)?,
                Err(error) => match error.errno() {
                    libc::EINTR => {
                        self.fd.set_kvm_immediate_exit(0);
                        // Order: the flag first, then the wish; see the module's head.
                        self.look_if_started()?;
                        if self.shared.lock().wish != Wish::Run {
                            return self.after_run();
                        }
                    }
                    // KVM returns so when a vCPU that waited for INIT-SIPI was woken.
                    libc::EAGAIN => self.look_if_started()?,
                    libc::EFAULT => {
                        return Err(Exit::Kvm(
                            "the guest touched memory that it does not have (an unplugged block)"
                                .into(),
                        ));
                    }
                    _ => return Err(Exit::Kvm(format!("KVM_RUN failed: {error}"))),
                },
            }
        }
    }

    /// Where it stands, for the log of a crash.
    fn registers(&self) -> String {
        let (Ok(regs), Ok(sregs)) = (self.fd.get_regs(), self.fd.get_sregs()) else {
            return format!("Registers of vCPU {} cannot be read", self.shared.id);
        };
        format!(
            "vCPU {} stands at rip {:#x} (cs {:#x}, base {:#x}), rsp {:#x}, cr0 {:#x}, cr2 {:#x}, \
             cr3 {:#x}, cr4 {:#x}, efer {:#x}",
            self.shared.id,
            regs.rip,
            sregs.cs.selector,
            sregs.cs.base,
            regs.rsp,
            sregs.cr0,
            sregs.cr2,
            sregs.cr3,
            sregs.cr4,
            sregs.efer
        )
    }

    fn before_run(&mut self) -> Result<(), String> {
        if self.shared.id == 0 {
            self.shared.started.store(true, Ordering::Release);
        }
        if self.shared.is_started() {
            // After a pause: tells the guest's watchdogs that the gap was the host's. Fails where the
            // guest does not use kvm-clock, which is no error.
            let _ = self.fd.kvmclock_ctrl();
            return Ok(());
        }
        let mp_state = kvm_mp_state {
            mp_state: KVM_MP_STATE_UNINITIALIZED,
        };
        self.fd
            .set_mp_state(mp_state)
            .map_err(|e| format!("KVM_SET_MP_STATE failed: {e}"))
    }

    fn after_run(&mut self) -> Result<(), Exit> {
        if self.shared.lock().wish == Wish::Park {
            self.shared.started.store(false, Ordering::Release);
            self.shared.initialised.store(false, Ordering::Release);
        }
        Ok(())
    }

    fn look_if_started(&mut self) -> Result<(), Exit> {
        if self.shared.is_started() {
            return Ok(());
        }
        let state = self.fd.get_mp_state();
        let state = state.map_err(|e| Exit::Kvm(format!("KVM_GET_MP_STATE failed: {e}")))?;
        match state.mp_state {
            KVM_MP_STATE_RUNNABLE => self.shared.started.store(true, Ordering::Release),
            KVM_MP_STATE_INIT_RECEIVED if !self.shared.is_starting() => {
                self.shared.initialised.store(true, Ordering::Release);
            }
            _ => return Ok(()),
        }
        (self.context.on_change)();
        Ok(())
    }
}

fn handle(exit: VcpuExit<'_>, context: &VcpuContext) -> Result<(), Exit> {
    match exit {
        VcpuExit::IoOut(port, data) => context.pio.write(u64::from(port), data),
        VcpuExit::IoIn(port, data) => context.pio.read(u64::from(port), data),
        VcpuExit::MmioWrite(addr, data) => context.mmio.write(addr, data),
        VcpuExit::MmioRead(addr, data) => context.mmio.read(addr, data),
        VcpuExit::Shutdown => return Err(Exit::TripleFault),
        VcpuExit::SystemEvent(kind, _) => {
            return Err(match kind {
                kvm_bindings::KVM_SYSTEM_EVENT_SHUTDOWN => Exit::PowerOff,
                kvm_bindings::KVM_SYSTEM_EVENT_RESET => Exit::Reset,
                _ => Exit::Kvm(format!("the guest ended with system event {kind}")),
            });
        }
        VcpuExit::FailEntry(reason, cpu) => {
            return Err(Exit::Kvm(format!(
                "the processor refused to enter the guest (reason {reason:#x}, host CPU {cpu})"
            )));
        }
        VcpuExit::InternalError => {
            return Err(Exit::Kvm(
                "KVM reports an internal error (an instruction that it cannot emulate?)".into(),
            ));
        }
        VcpuExit::Intr | VcpuExit::Hlt | VcpuExit::IrqWindowOpen => {}
        other => {
            return Err(Exit::Kvm(format!(
                "KVM returned for an unexpected reason: {other:?}"
            )));
        }
    }
    Ok(())
}
