//! An error with its causes as one sentence, for events, logs and reasons.

use std::error::Error;

/// The error and each of its sources, joined by `: `.
pub fn sentence(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
