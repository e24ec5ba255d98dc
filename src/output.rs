//! Standard output: text, JSON and tables, and a reader that may go away at any time.

use std::io::{self, Write};
use std::time::Duration;

use comfy_table::{Cell, CellAlignment, Table, presets};
use concertina_api::Bytes;
use serde::Serialize;

/// Standard output was closed by its reader.
#[derive(Debug)]
pub struct OutputClosed;

impl std::fmt::Display for OutputClosed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Standard output is closed")
    }
}

impl std::error::Error for OutputClosed {}

/// Writes bytes as they are, at once.
pub fn write(bytes: &[u8]) -> anyhow::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout
        .write_all(bytes)
        .and_then(|()| stdout.flush())
        .map_err(|error| match error.kind() {
            io::ErrorKind::BrokenPipe => OutputClosed.into(),
            _ => anyhow::Error::new(error).context("Writing to standard output failed"),
        })
}

/// Writes a line.
pub fn line(text: &str) -> anyhow::Result<()> {
    write(format!("{text}\n").as_bytes())
}

/// Writes a value as indented JSON, for `--json` with one answer.
pub fn json<T: Serialize>(value: &T) -> anyhow::Result<()> {
    line(&serde_json::to_string_pretty(value)?)
}

/// Writes a value as JSON on one line, for `--json` with a stream of answers.
pub fn json_line<T: Serialize>(value: &T) -> anyhow::Result<()> {
    line(&serde_json::to_string(value)?)
}

/// A table without borders, two blanks between its columns, as `ps` prints it. Columns whose number
/// is in `right` are aligned to the right.
pub fn table(header: &[&str], rows: &[Vec<String>], right: &[usize]) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(header.iter().map(Cell::new));
    for row in rows {
        table.add_row(row.iter().map(Cell::new));
    }
    for (index, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, 2));
        if right.contains(&index) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.trim_fmt()
}

/// A size for people: the short form where that is exact, else one decimal.
pub fn size(bytes: Bytes) -> String {
    let exact = bytes.to_string();
    if bytes.get() < 10 * Bytes::GIB || !exact.contains('.') {
        return exact;
    }
    format!("{:.1}G", bytes.as_mib_f64() / 1024.0)
}

/// A time span to its two largest units: `850ms`, `12.3s`, `4m 05s`, `3h 12m`, `2d 4h`.
pub fn span(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0 => format!("{}ms", duration.as_millis()),
        1..60 => format!("{}.{}s", seconds, duration.subsec_millis() / 100),
        60..3600 => format!("{}m {:02}s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{}h {:02}m", seconds / 3600, seconds / 60 % 60),
        _ => format!("{}d {}h", seconds / 86_400, seconds / 3600 % 24),
    }
}

/// [`span`] of milliseconds.
pub fn span_ms(milliseconds: u64) -> String {
    span(Duration::from_millis(milliseconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_show_two_units() {
        for (ms, text) in [
            (0, "0ms"),
            (850, "850ms"),
            (12_345, "12.3s"),
            (245_000, "4m 05s"),
            (11_520_000, "3h 12m"),
            (187_200_000, "2d 4h"),
        ] {
            assert_eq!(span_ms(ms), text);
        }
    }

    #[test]
    fn large_sizes_that_are_not_round_are_shown_in_gibibytes() {
        assert_eq!(size(Bytes(90 * Bytes::MIB + 300)), "90.0M");
        assert_eq!(size(Bytes::mib(1536)), "1.5G");
        assert_eq!(size(Bytes(22 * Bytes::GIB - 4096)), "22.0G");
    }

    #[test]
    fn a_table_lines_up_and_has_no_trailing_blanks() {
        let rows = vec![
            vec!["web".into(), "7".into()],
            vec!["database".into(), "1200".into()],
        ];
        assert_eq!(
            table(&["NAME", "PID"], &rows, &[1]),
            "NAME       PID\nweb          7\ndatabase  1200"
        );
    }
}
