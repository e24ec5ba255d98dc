//! Lines of JSON on a stream, none longer than the protocol allows.

use concertina_api::link::{FromAgent, LINE_MAX_BYTES, ToAgent};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};

/// Why there is no next line.
#[derive(Debug, thiserror::Error)]
pub enum LineError {
    /// The connection is over.
    #[error("The connection has ended")]
    Ended,
    /// The system refused.
    #[error("The connection broke: {0}")]
    Io(#[from] std::io::Error),
    /// It is no message.
    #[error("A line is no message: {0}")]
    Message(String),
}

/// The reading half.
#[derive(Debug)]
pub struct Lines<R> {
    reader: BufReader<R>,
    line: Vec<u8>,
}

impl<R: AsyncRead + Unpin> Lines<R> {
    /// Reads from a stream.
    pub fn new(stream: R) -> Self {
        Self {
            reader: BufReader::new(stream),
            line: Vec::new(),
        }
    }

    /// The next message. May be dropped and asked again: what has arrived is kept.
    ///
    /// # Errors
    /// There is none, or it is not what it should be.
    pub async fn next(&mut self) -> Result<FromAgent, LineError> {
        let most = (LINE_MAX_BYTES + 1).saturating_sub(self.line.len());
        let mut limited = (&mut self.reader).take(most as u64);
        limited.read_until(b'\n', &mut self.line).await?;
        if self.line.last() != Some(&b'\n') {
            return Err(if self.line.len() > LINE_MAX_BYTES {
                LineError::Message(format!("it is longer than {LINE_MAX_BYTES} bytes"))
            } else {
                LineError::Ended
            });
        }
        let message = serde_json::from_slice(&self.line);
        self.line.clear();
        message.map_err(|error| LineError::Message(error.to_string()))
    }
}

/// Writes a message.
///
/// # Errors
/// The connection is over.
pub async fn send<W: AsyncWrite + Unpin>(
    stream: &mut W,
    message: &ToAgent,
) -> Result<(), LineError> {
    let mut line =
        serde_json::to_vec(message).map_err(|error| LineError::Message(error.to_string()))?;
    line.push(b'\n');
    stream.write_all(&line).await?;
    stream.flush().await?;
    Ok(())
}
