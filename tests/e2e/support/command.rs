//! Runs the `concertina` command as a user would, with a limit on how long it may take.

use std::io::Read;
use std::process::{Command, Stdio};
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
    let line = format!("concertina {}", arguments.join(" "));
    let mut child = Command::new("concertina")
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|e| panic!("'{line}' cannot be started: {e}"));
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
