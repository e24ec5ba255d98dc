//! Lines out of a stream of bytes, of bounded length whatever comes.

use super::MAX_LINE_BYTES;

/// A line was longer than allowed; it is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LineTooLong;

/// What has come of a line so far.
#[derive(Debug, Default)]
pub struct Lines {
    begun: Vec<u8>,
    /// The line at hand is too long: what comes up to its end is dropped.
    skipping: bool,
}

impl Lines {
    /// Takes bytes; calls `each` for every line that ends in them, without its newline.
    pub fn feed(&mut self, bytes: &[u8], mut each: impl FnMut(Result<&[u8], LineTooLong>)) {
        let mut parts = bytes.split(|byte| *byte == b'\n').peekable();
        while let Some(part) = parts.next() {
            // The newline counts too.
            if self.begun.len() + part.len() >= MAX_LINE_BYTES {
                self.skipping = true;
                self.begun = Vec::new();
            }
            let ends = parts.peek().is_some();
            match (self.skipping, ends) {
                (true, true) => each(Err(LineTooLong)),
                (false, true) if self.begun.is_empty() => each(Ok(part)),
                (false, true) => {
                    self.begun.extend(part);
                    each(Ok(&self.begun));
                }
                (true, false) => {}
                (false, false) => self.begun.extend(part),
            }
            if ends {
                self.skipping = false;
                self.begun.clear();
            }
        }
    }
}
