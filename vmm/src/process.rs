//! The vmm process: from a specification in a file to an exit status.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use concertina_api::vm::{VmExitRecord, VmSpec, exit as status};
use concertina_http::Server;
use vmm_sys_util::eventfd::EventFd;

use crate::cgroup::Cgroup;
use crate::control::{Control, chain};
use crate::counters::Publisher;
use crate::devices::serial::Console;
use crate::error::VmmError;
use crate::event_loop::Poller;
use crate::exit::{Exit, ExitNotifier};
use crate::machine::Machine;
use crate::plan::VmPlan;
use crate::server;
use crate::shed::Shedding;
use crate::virtio::net;
use crate::virtio::pci::{Source, VirtioRunner};

/// How soon input that found no room in the guest's FIFO is offered again.
const INPUT_RETRY: Duration = Duration::from_millis(10);

/// Runs the VM that the JSON file `spec` describes ([`VmSpec`]); says why on standard error when it
/// ends by anything but power-off. Gives the exit status, one of [`status`].
pub fn main(spec: &Path) -> i32 {
    limit_heap();
    raise_descriptor_limit();
    let mut exit_file = None;
    let ended = read_spec(spec).and_then(|mut spec| {
        exit_file = spec.exit_file.take();
        run(spec)
    });
    let (status, reason) = match ended {
        Ok(exit) => {
            if exit != Exit::PowerOff && exit != Exit::Stopped {
                eprintln!("{}", exit.sentence());
            }
            (exit.status(), exit.sentence())
        }
        Err(error) => {
            let reason = chain(&error);
            eprintln!("{reason}");
            (status::SETUP_FAILED, reason)
        }
    };
    if let Some(path) = exit_file
        && let Err(error) = write_exit(&path, status, reason)
    {
        eprintln!("Exit record '{}' is not written: {error}", path.display());
    }
    status
}

/// Leaves word of the end. By rename: whoever finds the file finds all of it.
fn write_exit(path: &Path, status: i32, reason: String) -> io::Result<()> {
    let record = VmExitRecord {
        pid: i32::try_from(std::process::id()).unwrap_or(0),
        status,
        reason,
    };
    let beside = path.with_extension("new");
    std::fs::write(&beside, serde_json::to_vec(&record)?)?;
    std::fs::rename(&beside, path)
}

/// One heap for all threads, which gives back what it can: this process lives as long as its guest.
fn limit_heap() {
    // SAFETY: mallopt changes tunables of the allocator; no thread but this one exists yet.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 64 << 10);
        libc::mallopt(libc::M_MMAP_THRESHOLD, 64 << 10);
    }
}

/// Lets this process hold as many descriptors as its host allows: each connection of the guest's
/// sockets is one, and the customary limit of 1024 is too near to their number.
fn raise_descriptor_limit() {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: both calls get a valid rlimit. Where they fail, less connections are possible.
    unsafe {
        if libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) == 0 {
            limit.rlim_cur = limit.rlim_max;
            libc::setrlimit(libc::RLIMIT_NOFILE, &limit);
        }
    }
}

fn read_spec(path: &Path) -> Result<VmSpec, VmmError> {
    let what = format!("Specification '{}' cannot be read", path.display());
    let text = std::fs::read_to_string(path).map_err(VmmError::host(what))?;
    serde_json::from_str(&text).map_err(|error| {
        VmmError::Spec(format!(
            "Specification '{}' is wrong: {error}",
            path.display()
        ))
    })
}

fn run(spec: VmSpec) -> Result<Exit, VmmError> {
    let plan = VmPlan::new(spec)?;
    let nets = net::open(&plan.spec.name, &plan.spec.nets)?;
    let cgroup = plan.spec.cgroup.as_deref().map(Cgroup::new).transpose()?;
    if let Some(cgroup) = &cgroup {
        // First of all: threads start in the group of the thread that makes them.
        // SAFETY: gettid has no preconditions.
        cgroup.add_other(unsafe { libc::gettid() })?;
        cgroup.set_quota(plan.spec.quota)?;
    }
    let event = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)
        .map_err(VmmError::host("Event descriptor cannot be made"))?;
    let event = Arc::new(event);
    let exit = ExitNotifier::new(event.clone());
    let mut machine = Machine::new(&plan, nets, &exit)?;
    if let Some(cgroup) = &cgroup {
        for handle in &machine.vcpus {
            cgroup.add_vcpu(handle.vcpu.tid())?;
        }
    }
    let socket = plan.spec.api_socket.clone();
    let server = Server::bind(&socket).map_err(|error| {
        VmmError::Spec(format!(
            "API socket '{}' cannot be made: {error}",
            socket.display()
        ))
    })?;
    let boot_vcpus = plan.spec.boot_vcpus;
    let console_socket = plan.spec.console_socket.clone();
    let counters_file = plan.spec.counters_file.clone();
    let control = Arc::new(Control::new(plan, &machine, cgroup, exit.clone()));
    let publisher = counters_file
        .map(|path| Publisher::new(&path, control.schedule(), machine.balloon.clone()))
        .transpose()
        .map_err(VmmError::host("The counters file cannot be made"))?;
    let stopper = server::serve(control, server)?;

    machine.start(boot_vcpus);
    let ended = EventLoop::new(&mut machine, &event, publisher)
        .and_then(|mut event_loop| event_loop.run(&exit))
        .map_err(VmmError::host("The event loop cannot go on"));
    machine.vcpus.iter_mut().for_each(|vcpu| vcpu.end());
    stopper.stop();
    if let Some(path) = console_socket {
        let _ = std::fs::remove_file(path);
    }
    ended
}

/// What became readable.
#[derive(Debug, Clone, Copy)]
enum Token {
    Exit,
    Output,
    Listener,
    Client(i32),
    Device(usize, Source),
}

/// Console and devices at work.
struct EventLoop<'a> {
    poller: Poller<Token>,
    console: &'a mut Console,
    runners: &'a mut [VirtioRunner],
    input_waits: bool,
    publisher: Option<Publisher>,
}

impl<'a> EventLoop<'a> {
    fn new(
        machine: &'a mut Machine,
        exit: &EventFd,
        publisher: Option<Publisher>,
    ) -> io::Result<Self> {
        use std::os::fd::AsRawFd;
        let mut poller = Poller::new()?;
        poller.add(exit.as_raw_fd(), Token::Exit)?;
        let (console, output) = &mut machine.console;
        poller.add(*output, Token::Output)?;
        if let Some(listener) = console.listener_fd() {
            poller.add(listener, Token::Listener)?;
        }
        for (index, runner) in machine.runners.iter().enumerate() {
            for (fd, source) in runner.sources() {
                poller.add(fd, Token::Device(index, source))?;
            }
        }
        Ok(Self {
            poller,
            console,
            runners: &mut machine.runners,
            input_waits: false,
            publisher,
        })
    }

    fn run(&mut self, exit: &ExitNotifier) -> io::Result<Exit> {
        let mut ready = Vec::new();
        let mut shedding = Shedding::begin();
        loop {
            let retry = self.input_waits.then_some(INPUT_RETRY);
            let publish = self.publisher.as_ref().and_then(Publisher::left);
            let timeout = [retry, shedding.left(), publish];
            let timeout = timeout.into_iter().flatten().min();
            self.poller.wait(timeout, &mut ready)?;
            shedding.look();
            for token in &ready {
                self.handle(*token)?;
            }
            if let Some(publisher) = &mut self.publisher {
                publisher.look();
            }
            if self.input_waits {
                self.input_waits = self.console.feed_input();
            }
            if let Some(exit) = exit.get() {
                self.console.finish();
                return Ok(exit);
            }
        }
    }

    fn handle(&mut self, token: Token) -> io::Result<()> {
        match token {
            Token::Exit => {}
            Token::Output => self.console.drain_output(),
            Token::Listener => {
                if let Some(client) = self.console.accept() {
                    self.poller.add(client, Token::Client(client))?;
                }
            }
            Token::Client(fd) => {
                if self.console.read_client(fd) {
                    self.input_waits = true;
                } else {
                    self.poller.forget(fd);
                }
            }
            Token::Device(index, source) => {
                if let Some(runner) = self.runners.get_mut(index) {
                    runner.handle(source);
                }
            }
        }
        Ok(())
    }
}
