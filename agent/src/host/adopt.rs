//! Takes over what an agent before this one has left, by the journal and by the instances' own records.
//!
//! ```text
//! in the journal, and   vmm at work ─► taken over; open resizes finished, an open stop goes on
//!                       vmm gone    ─► its end is explained; ended, or started again
//!                       not launched─► undone, unless its guest runs
//! not in the journal, with a record of ours and a vmm at work ─► entered, and taken over
//! ```
//! Every intent gets its one outcome. Nothing waits for a vmm that hangs.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use concertina_api::event::EventKind;
use concertina_api::vm::Outcome;

use super::{Host, InstancePaths, InstanceRecord, LaunchRecord, Member, claim_of};
use crate::cgroup::InstanceGroup;
use crate::clock::Moment;
use crate::instance::{Adoption, Core, First};
use crate::journal::{Action, Intent, IntentId};
use crate::resize::{Cause, Order};
use crate::state_dir::ProcessId;
use crate::vmm::process::exit_record;
use crate::vmm::{VmmExit, VmmProcess};
use crate::{fault, sentence};

/// Deadline of a resize that is finished for an agent that died.
const FINISH_TIMEOUT: Duration = Duration::from_secs(10);
/// Instances that are taken over at the same time: most of it is waiting for their vmms.
const AT_ONCE: usize = 16;

/// Takes over everything; returns when each instance is there or has its end.
pub(super) fn all(host: &Arc<Host>) {
    let mut names: Vec<String> = host.books.book(|book| {
        let names = book.instances().keys();
        names.cloned().collect()
    });
    for entry in host.state_dir.instances() {
        if entry.left_vmm.is_some() && !names.contains(&entry.name) {
            names.push(entry.name);
        }
    }
    let next = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..AT_ONCE.min(names.len()) {
            scope.spawn(|| {
                while let Some(name) = names.get(next.fetch_add(1, Ordering::SeqCst)) {
                    if let Err(why) = one(host, name) {
                        eprintln!("concertina: Instance {name} is not taken over: {why}");
                    }
                }
            });
        }
    });
}

/// What is left of an instance.
struct Left {
    paths: InstancePaths,
    record: Option<InstanceRecord>,
    launch: Option<LaunchRecord>,
    /// Its vmm, at work.
    vmm: Option<VmmProcess>,
}

fn one(host: &Arc<Host>, name: &str) -> Result<(), String> {
    let left = look(host, name)?;
    let is_known = host.books.book(|book| book.instances().contains_key(name));
    if !is_known {
        return enter(host, name, left);
    }
    let launching = host.books.book(|book| {
        let mut open = book.open_of(name);
        open.find(|intent| matches!(intent.action, Action::Launch { .. }))
            .map(|intent| intent.id)
    });
    if let Some(intent) = launching {
        return finish_launch(host, name, intent, left);
    }
    let ending = left
        .record
        .as_ref()
        .and_then(|record| record.ending.as_ref());
    if let Some(ending) = ending {
        host.books.ended(name, &ending.reason);
        return Ok(());
    }
    let booted = host.books.book(|book| {
        let book = book.instances().get(name);
        book.map(|book| Moment::now().since(&book.launched).is_some())
    });
    if booted == Some(false) || left.launch.is_none() {
        let reason = if booted == Some(false) {
            "The host was restarted"
        } else {
            "Its files are gone"
        };
        clean_up(&left);
        host.books.ended(name, reason);
        return Ok(());
    }
    take_over(host, name, left)
}

/// What there is of it. A vmm whose record was not written yet is found by its own answer.
fn look(host: &Host, name: &str) -> Result<Left, String> {
    let said = |error: crate::state_dir::StateError| sentence(&error);
    let paths = host.state_dir.paths(name).map_err(said)?;
    let record = InstanceRecord::read(&paths.record).map_err(said)?;
    let launch = LaunchRecord::read(&paths.launch).map_err(said)?;
    let is_ours = record
        .as_ref()
        .is_some_and(|record| record.ending.is_none());
    let recorded = record.as_ref().and_then(|record| record.vmm);
    let answers = || {
        let seen = crate::vmm::VmmClient::new(&paths.vmm_socket)
            .describe()
            .ok()?;
        ProcessId::of(seen.pid)
    };
    let vmm = match recorded.filter(ProcessId::is_alive).filter(|_| is_ours) {
        Some(vmm) => Some(vmm),
        None if is_ours => answers(),
        None => None,
    };
    let adopt = |id| {
        VmmProcess::adopt(id, &paths.exit)
            .map_err(|error| format!("Its vmm (process {}) cannot be watched: {error}", id.pid))
    };
    let vmm = vmm.map(adopt).transpose()?.flatten();
    Ok(Left {
        paths,
        record,
        launch,
        vmm,
    })
}

/// The journal does not know it: it was lost, or is another one.
fn enter(host: &Arc<Host>, name: &str, left: Left) -> Result<(), String> {
    let (Some(launch), Some(_)) = (&left.launch, &left.vmm) else {
        return Ok(());
    };
    let claim = claim_of(&launch.policy);
    let intent = host.books.enter(name, claim)?;
    take_over(host, name, left)?;
    if let Some(core) = host.find(name) {
        host.books.launched(name, intent, Ok(core.size()));
    }
    Ok(())
}

/// The agent died over a launch: a guest that runs is kept, anything less is undone.
fn finish_launch(host: &Arc<Host>, name: &str, intent: IntentId, left: Left) -> Result<(), String> {
    let answers = || {
        let client = crate::vmm::VmmClient::new(&left.paths.vmm_socket);
        client.describe().is_ok()
    };
    if left.vmm.is_some() && left.launch.is_some() && answers() {
        take_over(host, name, left)?;
        if let Some(core) = host.find(name) {
            host.books.launched(name, intent, Ok(core.size()));
            core.event(EventKind::Recovered {
                intent: intent.0,
                outcome: Outcome::Applied,
                reason: "The agent died over its launch; its guest runs".into(),
            });
        }
        return Ok(());
    }
    clean_up(&left);
    let _ = std::fs::remove_dir_all(&left.paths.dir);
    let why = "The agent died over its launch, and its guest did not run yet";
    host.books.launched(name, intent, Err(why));
    Ok(())
}

/// Ends what is left on the host of an instance that is no more.
fn clean_up(left: &Left) {
    if let Some(vmm) = &left.vmm {
        vmm.id().kill();
    }
    let group = left
        .record
        .as_ref()
        .and_then(|record| record.cgroup.clone());
    if let Some(group) = group
        && let Err(error) = InstanceGroup::existing(group).remove()
    {
        eprintln!("concertina: {}", sentence(&error));
    }
    left.paths.remove_runtime_files();
}

fn take_over(host: &Arc<Host>, name: &str, left: Left) -> Result<(), String> {
    let (Some(launch), Some(record)) = (left.launch, left.record) else {
        return Err("its records are gone".into());
    };
    let group = record.cgroup.ok_or("its record names no cgroup")?;
    let (lock, paths) = host
        .state_dir
        .claim(name)
        .map_err(|error| sentence(&error))?;
    let first = match left.vmm {
        Some(vmm) => First::TakeOver(vmm),
        None => First::Gone(how_it_ended(&paths, record.vmm)),
    };
    let boot_image = launch.boot_image.clone();
    let adoption = Adoption {
        name: name.to_owned(),
        launch,
        paths,
        group: InstanceGroup::existing(group),
        vmm_command: host.vmm_command.clone(),
        boot_source: boot_image.map(|image| (host.boot_sources)(image)),
        owner: host.owner(name),
        lock,
    };
    host.members().insert(name.to_owned(), Member::Launching);
    let taken = Core::take_over(adoption, first, host.on_end(name));
    let mut members = host.members();
    match &taken {
        // One that has ended has taken itself out.
        Ok(core) if members.contains_key(name) => {
            members.insert(name.to_owned(), Member::Running(Arc::clone(core)));
        }
        Ok(_) => {}
        Err(_) => {
            members.remove(name);
        }
    }
    drop(members);
    let core = taken.map_err(|error| sentence(&error))?;
    finish_intents(host, &core);
    Ok(())
}

fn how_it_ended(paths: &InstancePaths, vmm: Option<ProcessId>) -> VmmExit {
    let record = vmm.and_then(|vmm| exit_record(&paths.exit, vmm.pid));
    record.map_or(VmmExit::Vanished, |record| {
        VmmExit::from_code(record.status)
    })
}

/// Brings what was begun to its end, in threads of its own: a guest may take its time.
fn finish_intents(host: &Arc<Host>, core: &Arc<Core>) {
    let open: Vec<Intent> = host
        .books
        .book(|book| book.open_of(core.name()).cloned().collect());
    for intent in open {
        match &intent.action {
            Action::Stop => core.ask_to_stop(),
            Action::Launch { .. } => {}
            Action::Resize { .. } => {
                let (host, core) = (Arc::clone(host), Arc::clone(core));
                let id = intent.id;
                let finish = move || finish_resize(&host, &core, &intent);
                let spawned = thread::Builder::new()
                    .name("finish".into())
                    .stack_size(512 << 10)
                    .spawn(finish);
                if let Err(error) = spawned {
                    eprintln!("concertina: Intent {id} is not finished yet: {error}");
                }
            }
        }
    }
}

fn finish_resize(host: &Arc<Host>, core: &Core, intent: &Intent) {
    let Action::Resize {
        target,
        cause,
        policy_version,
        ..
    } = &intent.action
    else {
        return;
    };
    let order = Order {
        cause: Cause::from_text(cause),
        resumes: Some(intent.id),
        note: Some(format!(
            "intent {} of an agent that died, brought to its end",
            intent.id
        )),
        ..Order::manual(target.cpus, target.memory, FINISH_TIMEOUT)
    }
    .by_policy(*policy_version);
    fault::point("finishing");
    let report = core.carry_out(&order);
    let reason = report.reason.unwrap_or_else(|| "finished".into());
    // What was refused before it began (the policy has other bounds by now) is still open.
    host.books.close(intent.id, core.size(), &reason);
    core.event(EventKind::Recovered {
        intent: intent.id.0,
        outcome: report.outcome,
        reason,
    });
}
