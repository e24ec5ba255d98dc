//! Runs the `concertina` command as a user would, with a limit on how long it may take.

use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use serde_json::Value;

use super::until;

/// How a command ended, and what it said.
#[derive(Debug)]
pub struct Finished {
    /// The arguments, for messages.
    pub line: String,
    /// Exit status; 128 + signal when it was killed.
    pub status: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Finished {
    /// Fails the test unless the command ended with status 0.
    #[track_caller]
    pub fn expect_success(self) -> Self {
        assert_eq!(self.status, 0, "{self:#?}");
        self
    }

    /// Standard output as one JSON document.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout)
            .unwrap_or_else(|e| panic!("Output of '{}' is not JSON ({e}): {self:#?}", self.line))
    }
}

/// Runs `concertina ARGUMENTS…` with nothing on its standard input.
#[track_caller]
pub fn concertina(arguments: &[&str]) -> Finished {
    concertina_with(arguments, Duration::from_secs(60))
}

/// The same with another limit.
#[track_caller]
pub fn concertina_with(arguments: &[&str], limit: Duration) -> Finished {
    let mut command = Command::new("concertina");
    command.args(arguments).stdin(Stdio::null());
    let line = format!("concertina {}", arguments.join(" "));
    finish(start(&mut command, &line), line, limit)
}

/// Runs `concertina ARGUMENTS…` with variables of the environment.
#[track_caller]
pub fn concertina_env(arguments: &[&str], env: &[(&str, &str)], limit: Duration) -> Finished {
    let mut command = Command::new("concertina");
    command.args(arguments).stdin(Stdio::null());
    // A state folder that is named means this host's instances.
    command.env_remove("CONCERTINA_STATE_DIR");
    command.envs(env.iter().copied());
    let line = format!("concertina {}", arguments.join(" "));
    finish(start(&mut command, &line), line, limit)
}

/// Runs `concertina ARGUMENTS…` as an ordinary user whose processes are in `group`.
#[track_caller]
pub fn concertina_as(user: u32, group: &Path, arguments: &[&str]) -> Finished {
    let mut command = Command::new("sh");
    command
        .args(["-c", "read -r moved; exec concertina \"$@\"", "sh"])
        .args(arguments)
        .env_remove("CONCERTINA_STATE_DIR")
        .uid(user)
        .gid(user)
        .stdin(Stdio::piped());
    let line = format!("concertina {} (as user {user})", arguments.join(" "));
    let mut child = start(&mut command, &line);
    std::fs::write(group.join("cgroup.procs"), child.id().to_string())
        .unwrap_or_else(|e| panic!("{} takes no process: {e}", group.display()));
    let mut input = child.stdin.take().expect("its input is a pipe");
    input.write_all(b"moved\n").expect("it reads its input");
    drop(input);
    finish(child, line, Duration::from_secs(60))
}

#[track_caller]
fn start(command: &mut Command, line: &str) -> Child {
    command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|e| panic!("'{line}' cannot be started: {e}"))
}

#[track_caller]
fn finish(mut child: Child, line: String, limit: Duration) -> Finished {
    let stdout = collect(child.stdout.take());
    let stderr = collect(child.stderr.take());
    let pid = child.id();
    let status = until(
        &format!("the end of '{line}' (pid {pid})"),
        limit,
        || match child.try_wait() {
            Ok(status) => status,
            Err(e) => panic!("'{line}' cannot be waited for: {e}"),
        },
    );
    let signal = std::os::unix::process::ExitStatusExt::signal(&status);
    Finished {
        line,
        status: status.code().unwrap_or(128 + signal.unwrap_or(0)),
        stdout: stdout.join().unwrap_or_default(),
        stderr: stderr.join().unwrap_or_default(),
    }
}

fn collect(pipe: Option<impl Read + Send + 'static>) -> thread::JoinHandle<String> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            let _ = pipe.read_to_end(&mut bytes);
        }
        String::from_utf8_lossy(&bytes).into_owned()
    })
}
