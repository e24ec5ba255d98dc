//! `run` in the foreground: the instance lives as long as this process, its console in this terminal.

use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Context;
use concertina_agent::launch::{Instance, LaunchSpec, prepare};
use concertina_agent::state_dir::InstancePaths;

use crate::follow::Follower;
use crate::output;
use crate::pump::{self, End, Input};
use crate::signals::Signals;
use crate::terminal::{self, RawMode};

/// How often the output's end is looked for where nothing wakes us: the instance ends silently.
const END_CHECK: Duration = Duration::from_millis(100);
/// Pause between attempts to reach the console of a guest that restarts.
const RECONNECT_PAUSE: Duration = Duration::from_millis(20);

/// Launches and stays until the instance has ended; gives its exit status.
pub fn run(spec: LaunchSpec, with_console: bool) -> anyhow::Result<i32> {
    let mut instance = prepare(spec)?;
    stop_on_signals(&instance)?;
    instance.start()?;
    let ended = Arc::new(AtomicBool::new(false));
    let console = show_console(instance.paths().clone(), with_console, Arc::clone(&ended))?;
    let ending = instance.supervise();
    ended.store(true, Ordering::SeqCst);
    report_console(console);
    terminal::discard_typed();
    if ending.status != 0 {
        eprintln!("concertina: {}", ending.reason);
    }
    Ok(ending.status)
}

/// Waits until all of the console was shown, and says what went wrong with it.
pub fn report_console(console: JoinHandle<anyhow::Result<()>>) {
    if let Ok(Err(error)) = console.join()
        && !error.is::<output::OutputClosed>()
    {
        eprintln!("concertina: {}", crate::failure::sentence(error.as_ref()));
    }
}

/// From here on the first signal that asks for an end lets the guest power off, a second one ends
/// the VM.
pub fn stop_on_signals(instance: &Instance) -> anyhow::Result<()> {
    let mut signals = Signals::catch().context("Catching signals failed")?;
    let stopper = instance.stopper();
    std::thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            let mut is_asked = false;
            while signals.next().is_ok() {
                if is_asked {
                    stopper.force();
                } else {
                    eprint!("concertina: asking the guest to power off; once more ends it now\r\n");
                    stopper.request_stop();
                    is_asked = true;
                }
            }
        })
        .context("Starting the signal thread failed")?;
    Ok(())
}

/// Shows the console on a thread of its own, until `ended` is set and everything was printed.
pub fn show_console(
    paths: InstancePaths,
    with_console: bool,
    ended: Arc<AtomicBool>,
) -> anyhow::Result<JoinHandle<anyhow::Result<()>>> {
    // Before the thread: what fails here fails the launch's command visibly and at once.
    let log = Follower::new(&paths.console_log)
        .with_context(|| format!("Following {} failed", paths.console_log.display()))?;
    std::thread::Builder::new()
        .name("console".into())
        .spawn(move || {
            if !with_console {
                return copy_log(log, 0, &ended);
            }
            match converse(&paths, &ended)? {
                // What was shown up to here is not shown again.
                Some(shown_bytes) => copy_log(log, shown_bytes, &ended),
                None => Ok(()),
            }
        })
        .context("Starting the console thread failed")
}

/// Copies the console's log to standard output, but for its first `skip_bytes`. The log has every
/// byte, also those from before we looked, and those after the guest's last breath.
fn copy_log(mut log: Follower, skip_bytes: u64, ended: &AtomicBool) -> anyhow::Result<()> {
    const FAILED: &str = "Reading the console's log failed";
    let mut to_skip = skip_bytes;
    loop {
        // Looked at before the read: what was written before the end is in that read.
        let is_last = ended.load(Ordering::SeqCst);
        let chunk = log.read().context(FAILED)?;
        if chunk.is_empty() {
            if is_last {
                return Ok(());
            }
            log.wait(END_CHECK).context(FAILED)?;
            continue;
        }
        let skipped = usize::try_from(to_skip)
            .unwrap_or(usize::MAX)
            .min(chunk.len());
        to_skip -= skipped as u64;
        output::write(chunk.get(skipped..).unwrap_or_default())?;
    }
}

/// Connects the terminal to the console, again and again where the guest reboots. Gives the length
/// of the log when the person leaves, `None` when the instance has ended.
fn converse(paths: &InstancePaths, ended: &AtomicBool) -> anyhow::Result<Option<u64>> {
    let raw = RawMode::enter().context("The terminal does not take raw mode")?;
    if raw.is_some() {
        eprint!("Console of the guest; Ctrl-] leaves it.\r\n");
    }
    let mut input = Input::stdin(raw.is_some(), None)?;
    while !ended.load(Ordering::SeqCst) {
        let Ok(socket) = UnixStream::connect(&paths.console_socket) else {
            std::thread::sleep(RECONNECT_PAUSE);
            continue;
        };
        match pump::run(&socket, &mut input, None)? {
            End::Detached => {
                drop(raw);
                eprintln!("\nOutput goes on; Ctrl-C asks the guest to power off.");
                let shown = std::fs::metadata(&paths.console_log).map(|log| log.len());
                return Ok(Some(shown.unwrap_or(0)));
            }
            End::Closed | End::Drained | End::Signal(_) => std::thread::sleep(RECONNECT_PAUSE),
        }
    }
    Ok(None)
}
