//! What takes time, shown on standard error: a line that moves on a terminal, plain lines elsewhere.

use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

/// A display for steps of unknown length, or for one of which the share is known.
#[derive(Debug)]
pub struct Progress {
    /// `None` where nobody looks at it move.
    bar: Option<ProgressBar>,
    /// The last whole ten percent that were said in plain lines.
    said: u64,
}

impl Progress {
    /// Steps, one after the other.
    pub fn steps() -> Self {
        Self::new("concertina: {msg} ({elapsed})", None)
    }

    /// One step of which the share is known.
    pub fn share(what: &str) -> Self {
        let shown = Self::new("concertina: {msg} {wide_bar} {percent}%", Some(100));
        match &shown.bar {
            Some(bar) => bar.set_message(what.to_owned()),
            None => eprintln!("concertina: {what}"),
        }
        shown
    }

    fn new(template: &str, length: Option<u64>) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = length.map_or_else(ProgressBar::new_spinner, ProgressBar::new);
            if let Ok(style) = ProgressStyle::with_template(template) {
                bar.set_style(style);
            }
            bar.enable_steady_tick(Duration::from_millis(500));
            bar
        });
        Self { bar, said: 0 }
    }

    /// A step has begun.
    pub fn step(&mut self, step: &str) {
        match &self.bar {
            Some(bar) => bar.set_message(step.to_owned()),
            None => eprintln!("concertina: {step}"),
        }
    }

    /// So much of it is done, in percent.
    pub fn percent(&mut self, percent: f64) {
        let whole = percent.clamp(0.0, 100.0) as u64;
        match &self.bar {
            Some(bar) => bar.set_position(whole),
            None if whole / 10 > self.said => {
                self.said = whole / 10;
                eprintln!("concertina: {whole}%");
            }
            None => {}
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
