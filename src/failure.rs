//! Errors as people read them: one sentence with its causes, and the exit status that goes with it.

use std::error::Error;
use std::process::ExitCode;

use concertina_agent::launch::LaunchError;
use concertina_agent::state_dir::StateError;

use crate::output::OutputClosed;

/// Exit status of something that was tried and failed.
pub const FAILED: u8 = 1;
/// Exit status of a wrong command line, or of a wrong value in it.
pub const USAGE: u8 = 2;

/// A value on the command line that is wrong: a sentence, exit status 2.
#[derive(Debug)]
pub struct Usage(pub String);

impl std::fmt::Display for Usage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl Error for Usage {}

/// Prints an error and gives its exit status.
pub fn report(error: &anyhow::Error) -> ExitCode {
    // Whoever read our output has gone, as in `concertina events web | head`: nothing is wrong.
    if error.is::<OutputClosed>() {
        return ExitCode::SUCCESS;
    }
    eprintln!("concertina: {}", sentence(error.as_ref()));
    ExitCode::from(status(error))
}

/// Prints what the parser says: help and version on standard output, errors in our own form.
pub fn report_parse(error: &clap::Error) -> ExitCode {
    if !error.use_stderr() {
        // A closed standard output is the reader's choice.
        let _ = error.print();
        return ExitCode::SUCCESS;
    }
    let text = error.render().to_string();
    eprint!(
        "concertina: {}",
        text.strip_prefix("error: ").unwrap_or(&text)
    );
    ExitCode::from(USAGE)
}

/// The exit status for an error.
pub fn status(error: &anyhow::Error) -> u8 {
    let is_usage = error.chain().any(|cause| {
        cause.is::<Usage>()
            || matches!(
                cause.downcast_ref::<StateError>(),
                Some(StateError::Name(_))
            )
            || cause
                .downcast_ref::<LaunchError>()
                .is_some_and(LaunchError::is_usage)
    });
    if is_usage { USAGE } else { FAILED }
}

/// An error with its causes, joined by `: `. A cause that the sentence before it quotes already is
/// not said again.
pub fn sentence(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let said = error.to_string();
        if !text.contains(&said) {
            text.push_str(": ");
            text.push_str(&said);
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use anyhow::{Context, anyhow};

    use super::*;

    #[test]
    fn causes_follow_each_other_and_are_not_repeated() {
        let error = anyhow!("disk is full")
            .context("Writing a failed: disk is full")
            .context("Oh");
        assert_eq!(
            sentence(error.as_ref()),
            "Oh: Writing a failed: disk is full"
        );
    }

    #[test]
    fn a_wrong_value_is_usage_also_under_a_context() {
        let wrong = Err::<(), _>(Usage("'x' is no y".into()))
            .context("Option --z")
            .unwrap_err();
        assert_eq!(status(&wrong), USAGE);
        assert_eq!(
            status(&anyhow::Error::from(StateError::Name("A".into()))),
            USAGE
        );
        assert_eq!(status(&anyhow!("no")), FAILED);
    }
}
