//! `run --detach`: the supervisor in a session of its own, started while the person still waits.
//!
//! The background part is forked before anything of the instance exists. Up to the moment in which
//! the guest runs it speaks on the person's own standard error, and hands its exit status over by a
//! pipe; from then on its standard streams are files in the instance's folder.

use std::fs::OpenOptions;
use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;

use anyhow::{Context, bail};
use concertina_agent::launch::{Instance, LaunchSpec, prepare};
use concertina_agent::state_dir::InstancePaths;

use crate::commands::run::foreground::stop_on_signals;
use crate::{failure, output};

/// Launches in the background. In the process that the person started this returns once the guest
/// runs, in the background process once the instance has ended.
pub fn run(mut spec: LaunchSpec) -> anyhow::Result<i32> {
    make_absolute(&mut spec)?;
    let name = spec.name.clone();
    let (result, report) = io::pipe().context("Making a pipe failed")?;
    // SAFETY: this process has one thread, so the child finds no lock held by another. Both sides
    // go on as ordinary programs, and neither touches what it leaves to the other.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()).context("Starting the background process failed"),
        0 => {
            drop(result);
            Ok(supervise(spec, report))
        }
        child => {
            drop(report);
            let status = wait_until_it_runs(result, child)?;
            if status == 0 {
                output::line(&name)?;
            }
            Ok(status)
        }
    }
}

/// The background process works in `/`, so that it keeps no other folder busy.
fn make_absolute(spec: &mut LaunchSpec) -> anyhow::Result<()> {
    spec.kernel = std::path::absolute(&spec.kernel).context("Option --kernel")?;
    spec.initrd = spec
        .initrd
        .as_ref()
        .map(std::path::absolute)
        .transpose()
        .context("Option --initrd")?;
    Ok(())
}

/// Reads the status that the background process reports; it has printed why it is not 0.
fn wait_until_it_runs(mut result: PipeReader, child: libc::pid_t) -> anyhow::Result<i32> {
    let mut status = [0u8; 1];
    match result.read_exact(&mut status) {
        Ok(()) => Ok(status.first().copied().unwrap_or(failure::FAILED).into()),
        Err(_) => bail!("The background process {child} died before its guest ran"),
    }
}

/// The background process, from its first moment to its exit status.
fn supervise(spec: LaunchSpec, mut report: PipeWriter) -> i32 {
    let launched = leave_terminal().and_then(|()| launch(spec));
    let instance = match launched {
        Ok(instance) => instance,
        Err(error) => {
            let status = failure::status(&error);
            eprintln!("concertina: {}", failure::sentence(error.as_ref()));
            // Nobody waits any more where this fails.
            let _ = report.write_all(&[status]);
            return status.into();
        }
    };
    let _ = report.write_all(&[0]);
    drop(report);
    let ending = instance.supervise();
    eprintln!("{}", ending.reason);
    ending.status
}

/// A session without a terminal, and no folder kept busy.
fn leave_terminal() -> anyhow::Result<()> {
    // SAFETY: setsid(2) takes nothing; it cannot fail in a child that was forked just now.
    if unsafe { libc::setsid() } < 0 {
        return Err(io::Error::last_os_error()).context("Starting a session failed");
    }
    std::env::set_current_dir("/").context("Changing to / failed")
}

fn launch(spec: LaunchSpec) -> anyhow::Result<Instance> {
    let mut instance = prepare(spec)?;
    stop_on_signals(&instance)?;
    instance.start()?;
    if let Err(error) = redirect(instance.paths()) {
        instance.stopper().force();
        instance.supervise();
        return Err(error);
    }
    Ok(instance)
}

/// Puts the standard streams on `/dev/null` and the instance's own log.
fn redirect(paths: &InstancePaths) -> anyhow::Result<()> {
    let log_path = &paths.agent_log;
    let failed = || format!("Opening {} failed", log_path.display());
    let null = OpenOptions::new()
        .read(true)
        .open("/dev/null")
        .context("Opening /dev/null failed")?;
    let log = OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(log_path)
        .with_context(failed)?;
    for (from, to) in [
        (null.as_raw_fd(), libc::STDIN_FILENO),
        (log.as_raw_fd(), libc::STDOUT_FILENO),
        (log.as_raw_fd(), libc::STDERR_FILENO),
    ] {
        // SAFETY: dup2(2) on descriptors that are open; the standard streams are not owned by any
        // object that would close them.
        if unsafe { libc::dup2(from, to) } < 0 {
            return Err(io::Error::last_os_error()).context("Redirecting a standard stream failed");
        }
    }
    Ok(())
}
