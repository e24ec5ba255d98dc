//! Programs of the host that take long: found before anything is begun, told what they do line by
//! line, and known by their process id, so that they can be ended with us.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use super::error::ImageError;

/// A line of a tool is cut here.
const LINE_LIMIT_BYTES: usize = 4 << 10;
/// How apt and mmdebstrap mark an error; the first one is the cause of those that follow.
const ERROR_MARK: &str = "E: ";
/// Where tools of the administrator lie, which a plain user's PATH may lack.
const SYSTEM_FOLDERS: [&str; 2] = ["/usr/sbin", "/sbin"];

/// The tool that runs, or 0.
static RUNNING: AtomicU32 = AtomicU32::new(0);
/// This program was asked to end.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// This program was asked to end: no further tool is started, and whatever waits for one takes back
/// what it has begun. Gives the process id of the tool that runs, which has to be told as well.
pub fn interrupt() -> Option<u32> {
    INTERRUPTED.store(true, Ordering::SeqCst);
    Some(RUNNING.load(Ordering::SeqCst)).filter(|pid| *pid != 0)
}

/// An error once [`interrupt`] was called.
pub fn check_interrupt() -> Result<(), ImageError> {
    if INTERRUPTED.load(Ordering::SeqCst) {
        Err(ImageError::Interrupted)
    } else {
        Ok(())
    }
}

/// A program, and the Debian package that brings it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tool {
    /// Name of the program.
    pub program: &'static str,
    /// Debian package.
    pub package: &'static str,
}

/// Builds a Debian root file system.
pub const MMDEBSTRAP: Tool = Tool {
    program: "mmdebstrap",
    package: "mmdebstrap",
};
/// Makes an ext4 file system from a folder.
pub const MKE2FS: Tool = Tool {
    program: "mke2fs",
    package: "e2fsprogs",
};
/// Maps a user's subordinate ids, for those who are not root.
pub const NEWUIDMAP: Tool = Tool {
    program: "newuidmap",
    package: "uidmap",
};
/// Converts disk image formats.
pub const QEMU_IMG: Tool = Tool {
    program: "qemu-img",
    package: "qemu-utils",
};

impl Tool {
    /// The program's path, or a sentence that names its package.
    pub fn find(self) -> Result<PathBuf, ImageError> {
        self.find_on(&std::env::var_os("PATH").unwrap_or_default())
    }

    fn find_on(self, path: &std::ffi::OsStr) -> Result<PathBuf, ImageError> {
        std::env::split_paths(path)
            .chain(SYSTEM_FOLDERS.iter().map(PathBuf::from))
            .map(|folder| folder.join(self.program))
            .find(|file| is_program(file))
            .ok_or(ImageError::NoTool {
                program: self.program,
                package: self.package,
            })
    }
}

fn is_program(file: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    std::fs::metadata(file)
        .is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
}

/// Which of a program's outputs is read line by line.
#[derive(Debug)]
pub enum Listen {
    /// Standard error; standard output is dropped.
    Errors,
    /// Standard error; standard output goes to this file.
    ErrorsBeside(File),
    /// Standard output; errors are kept for the message.
    Output,
}

/// Runs a program to its end. `on_line` gets each line without its end; a carriage return ends one
/// too. On failure the sentence has the program's own errors.
pub fn run(
    command: &mut Command,
    listen: Listen,
    on_line: &mut dyn FnMut(&str),
) -> Result<(), ImageError> {
    let name = command.get_program().to_string_lossy().into_owned();
    let name = name.rsplit('/').next().unwrap_or_default().to_owned();
    let failed = |why: String| ImageError::Command {
        command: name.clone(),
        why,
    };
    command
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .stderr(Stdio::piped());
    command.stdout(match listen {
        Listen::Errors => Stdio::null(),
        Listen::ErrorsBeside(file) => file.into(),
        Listen::Output => Stdio::piped(),
    });
    check_interrupt()?;
    let mut child = command.spawn().map_err(|error| failed(error.to_string()))?;
    RUNNING.store(child.id(), Ordering::SeqCst);
    let errors = read_all(&mut child, on_line);
    // Before it is waited for: afterwards the number may be another process's.
    RUNNING.store(0, Ordering::SeqCst);
    let status = child.wait().map_err(|error| failed(error.to_string()))?;
    if status.success() {
        return Ok(());
    }
    check_interrupt()?;
    Err(failed(errors.cause().unwrap_or_else(|| status.to_string())))
}

/// Reads until the program has closed its outputs; gives the errors that say why it failed.
fn read_all(child: &mut Child, on_line: &mut dyn FnMut(&str)) -> Errors {
    let mut kept = Errors::default();
    let (output, errors) = (child.stdout.take(), child.stderr.take());
    std::thread::scope(|scope| match (output, errors) {
        (Some(output), errors) => {
            // Both at once: a full pipe that nobody reads would stop the program.
            let kept = &mut kept;
            scope.spawn(move || {
                if let Some(errors) = errors {
                    each_line(errors, &mut |line| kept.note(line));
                }
            });
            each_line(output, on_line);
        }
        (None, Some(errors)) => each_line(errors, &mut |line| {
            kept.note(line);
            on_line(line);
        }),
        (None, None) => {}
    });
    kept
}

/// The line that is most likely to say why: the first one marked as an error, else the last one.
#[derive(Debug, Default)]
struct Errors {
    marked: Option<String>,
    last: Option<String>,
}

impl Errors {
    fn note(&mut self, line: &str) {
        let line = line.trim();
        if line.is_empty() {
            return;
        }
        if let (None, Some(error)) = (&self.marked, line.strip_prefix(ERROR_MARK)) {
            self.marked = Some(error.to_owned());
        }
        self.last = Some(line.to_owned());
    }

    fn cause(self) -> Option<String> {
        self.marked.or(self.last)
    }
}

/// Lines as they come: a progress display rewrites its line by a carriage return.
fn each_line(pipe: impl Read, on_line: &mut dyn FnMut(&str)) {
    let mut line = Vec::new();
    for byte in BufReader::new(pipe).bytes() {
        match byte {
            Ok(b'\n' | b'\r') => {
                if !line.is_empty() {
                    on_line(&String::from_utf8_lossy(&line));
                    line.clear();
                }
            }
            Ok(byte) if line.len() < LINE_LIMIT_BYTES => line.push(byte),
            Ok(_) => {}
            Err(_) => break,
        }
    }
    if !line.is_empty() {
        on_line(&String::from_utf8_lossy(&line));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn a_missing_tool_is_named_with_its_package() {
        let tool = Tool {
            program: "no-such-program",
            package: "nothing",
        };
        let text = tool.find_on("/usr/bin".as_ref()).unwrap_err().to_string();
        assert!(
            text.contains("no-such-program") && text.contains("apt-get install nothing"),
            "{text}"
        );
    }

    #[test]
    fn lines_arrive_and_marked_errors_make_the_sentence() {
        let mut lines = Vec::new();
        let script = "echo 'I: one' >&2; printf 'two\\rthree\\n' >&2; echo 'E: why' >&2; \
                      echo later >&2; exit 3";
        let error = run(&mut shell(script), Listen::Errors, &mut |line| {
            lines.push(line.to_owned());
        });
        assert_eq!(lines, ["I: one", "two", "three", "E: why", "later"]);
        assert_eq!(error.unwrap_err().to_string(), "sh failed: why");
    }

    #[test]
    fn errors_beside_much_output_block_nothing() {
        let script = "i=0; while [ $i -lt 3000 ]; do echo 0123456789012345678901234567890123456789; \
                      echo 0123456789012345678901234567890123456789 >&2; i=$((i+1)); done; exit 1";
        let mut count = 0;
        let error = run(&mut shell(script), Listen::Output, &mut |_| count += 1);
        assert_eq!(count, 3000);
        assert!(error.unwrap_err().to_string().contains("0123456789"));
    }

    #[test]
    fn a_silent_failure_has_its_status() {
        let error = run(&mut shell("exit 7"), Listen::Errors, &mut |_| {}).unwrap_err();
        assert!(error.to_string().contains('7'), "{error}");
    }
}
