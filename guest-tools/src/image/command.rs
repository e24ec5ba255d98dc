//! Other programs that the image builder asks for help: `dpkg`, `apt-get`, `apt-cache`.

use std::process::{Command, Stdio};

use super::error::ImageError;

/// Runs a program to its end and returns what it printed. Its environment is kept, but it speaks
/// English: its output is parsed.
pub fn run(command: &mut Command) -> Result<String, ImageError> {
    let line = describe(command);
    let failed = |why: String| ImageError::Command {
        command: line.clone(),
        why,
    };
    let output = command
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .output()
        .map_err(|error| failed(error.to_string()))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let errors = String::from_utf8_lossy(&output.stderr);
    let last = errors.lines().map(str::trim).rfind(|line| !line.is_empty());
    Err(failed(
        last.map_or_else(|| output.status.to_string(), str::to_owned),
    ))
}

fn describe(command: &Command) -> String {
    let words: Vec<_> = std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| word.to_string_lossy())
        .collect();
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_carries_the_command_and_its_last_words() {
        let error = run(Command::new("sh").args(["-c", "echo first >&2; echo last >&2; exit 3"]));
        let text = error.unwrap_err().to_string();
        assert!(text.contains("sh -c") && text.ends_with("last"), "{text}");
    }

    #[test]
    fn a_program_that_is_not_there_is_named() {
        let text = run(&mut Command::new("no-such-program"))
            .unwrap_err()
            .to_string();
        assert!(text.starts_with("no-such-program failed"), "{text}");
    }
}
