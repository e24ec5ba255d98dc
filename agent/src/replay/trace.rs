//! Reading a trace: CSV of two kinds into samples of a machine's utilisation.
//!
//! - `timestamp,value`: how busy a machine was, in percent (as CloudWatch exports it), or a count of
//!   something, whose full value is given or is the largest one.
//! - GWA-T-12 (Bitbrains): one VM with its CPU cores, CPU usage in percent, memory usage and memory
//!   provisioned in KB; separated by `;`, `,` or tabs.
//!
//! Timestamps are seconds or milliseconds since 1970, or `2014-02-14 14:30:00`. A value that is
//! empty or not a number is unknown; the scalers do not see it either, and nothing is scored there.

use concertina_api::policy::Axis;

/// A trace that cannot be used: a sentence.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TraceError {
    /// The columns are not those of a known format.
    #[error(
        "The first line '{0}' is neither that of a trace 'timestamp,value' nor that of a VM of \
         GWA-T-12, which has the columns 'Timestamp [ms]', 'CPU cores', 'CPU usage [%]', 'Memory \
         capacity provisioned [KB]' and 'Memory usage [KB]'"
    )]
    Columns(String),
    /// A line is not CSV with the columns of the first one.
    #[error("The lines cannot be read: {0}")]
    Csv(String),
    /// One value makes no sense.
    #[error("Line {line}: {column} '{value}' is not allowed: {allowed}")]
    Value {
        /// Counted from 1.
        line: u64,
        /// Which column.
        column: &'static str,
        /// What stood there.
        value: String,
        /// What may stand there.
        allowed: &'static str,
    },
    /// Too little to replay.
    #[error("The trace has {0} samples: at least 2 are needed to know how long one lasts")]
    TooShort(usize),
    /// Every value is unknown.
    #[error("No value of the trace is known")]
    NothingKnown,
}

/// How a `timestamp,value` trace is to be understood.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TraceOptions {
    /// What the values are a utilisation of.
    pub axis: Axis,
    /// The value at which the machine is fully used. Absent: 100 where the values look like
    /// percentages, else the largest one.
    pub full: Option<f64>,
}

impl Default for TraceOptions {
    fn default() -> Self {
        Self {
            axis: Axis::Cpus,
            full: None,
        }
    }
}

/// What was measured in one interval.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TraceSample {
    /// When the interval began, in milliseconds since the first one.
    pub at_ms: u64,
    /// Share of the machine's CPUs, in percent.
    pub cpu_percent: Option<f64>,
    /// Share of the machine's memory, in percent.
    pub memory_percent: Option<f64>,
}

impl TraceSample {
    /// The share of one axis.
    pub fn percent(&self, axis: Axis) -> Option<f64> {
        match axis {
            Axis::Cpus => self.cpu_percent,
            Axis::Memory => self.memory_percent,
        }
    }
}

/// A recorded load.
#[derive(Debug, Clone, PartialEq)]
pub struct Trace {
    /// In the order of time, at least two.
    pub samples: Vec<TraceSample>,
    /// The usual time between two samples (their median), in milliseconds.
    pub step_ms: u64,
    /// CPUs of the machine, where the file says so.
    pub cpus: Option<f64>,
    /// Memory of the machine in bytes, where the file says so.
    pub memory_bytes: Option<f64>,
    /// A fully used machine may have wanted more. Not so with counts, which have no such end.
    pub is_censored: bool,
    /// What was assumed, as sentences.
    pub notes: Vec<String>,
}

/// From this share on a machine is taken to be saturated: what it would have needed is unknown.
const CENSORED_PERCENT: f64 = 99.0;
/// A value beyond this is no percentage, also not one of counters read a little apart.
const MOST_PERCENT: f64 = 110.0;
/// Larger numbers are milliseconds since 1970: in seconds this is the year 5138.
const LEAST_EPOCH_MS: f64 = 1e11;
/// No known machine, and no count of anything, has values beyond.
const MOST_VALUE: f64 = 1e15;
/// As in the format's description.
const KB: f64 = 1024.0;

impl Trace {
    /// Whether any value of this axis is known.
    pub fn has(&self, axis: Axis) -> bool {
        self.samples
            .iter()
            .any(|sample| sample.percent(axis).is_some())
    }

    fn note_censored(&mut self) {
        for axis in Axis::ALL {
            let known = self.samples.iter().filter_map(|s| s.percent(axis));
            let censored = known.filter(|value| *value >= CENSORED_PERCENT).count();
            if censored > 0 {
                let (all, axis) = (self.samples.len(), axis.as_str());
                self.notes.push(format!(
                    "{censored} of {all} samples show the {axis} at {CENSORED_PERCENT}% or more: \
                     what was wanted there beyond the machine is unknown, and not counted"
                ));
            }
        }
    }
}

/// Reads a trace; which of the two formats it is, the first line tells.
pub fn read_trace(text: &str, options: &TraceOptions) -> Result<Trace, TraceError> {
    let head = text.trim_start_matches('\u{feff}');
    let first_line = head.lines().next().unwrap_or_default();
    let delimiter = [';', ',', '\t']
        .into_iter()
        .find(|c| first_line.contains(*c));
    let unknown = || TraceError::Columns(first_line.chars().take(120).collect());
    let mut reader = csv::ReaderBuilder::new()
        .delimiter(delimiter.ok_or_else(unknown)? as u8)
        .trim(csv::Trim::All)
        .from_reader(head.as_bytes());
    let names = reader.headers().map_err(csv_error)?.clone();
    let column = |name: &str| {
        names
            .iter()
            .position(|have| have.eq_ignore_ascii_case(name))
    };
    let mut trace = match (
        column("timestamp"),
        column("value"),
        Bitbrains::find(&column),
    ) {
        (Some(time), Some(value), _) => read_plain(&mut reader, (time, value), options)?,
        (_, _, Some(columns)) => columns.read(&mut reader)?,
        _ => return Err(unknown()),
    };
    if trace.samples.len() < 2 {
        return Err(TraceError::TooShort(trace.samples.len()));
    }
    if !Axis::ALL.into_iter().any(|axis| trace.has(axis)) {
        return Err(TraceError::NothingKnown);
    }
    trace.step_ms = median_step(&trace.samples);
    if trace.is_censored {
        trace.note_censored();
    }
    Ok(trace)
}

type Reader<'a> = csv::Reader<&'a [u8]>;

fn read_plain(
    reader: &mut Reader<'_>,
    (time, value): (usize, usize),
    options: &TraceOptions,
) -> Result<Trace, TraceError> {
    let mut values = Vec::new();
    let mut clock = Clock::default();
    for record in reader.records() {
        let row = Row(record.map_err(csv_error)?);
        values.push((clock.read(&row, time)?, row.number(value, "value")?));
    }
    let known = values.iter().filter_map(|(_, value)| *value);
    let largest = known.fold(0.0, f64::max);
    let mut notes = Vec::new();
    let are_counts = options.full.is_none() && largest > MOST_PERCENT;
    if are_counts {
        notes.push(format!(
            "Values go up to {largest}, so they are no percentages: {largest} is taken for a fully \
             used machine"
        ));
    }
    let full = options
        .full
        .unwrap_or(if are_counts { largest } else { 100.0 });
    let sample = |(at_ms, value): (u64, Option<f64>)| {
        let percent = value.map(|value| value / full * 100.0);
        TraceSample {
            at_ms,
            cpu_percent: percent.filter(|_| options.axis == Axis::Cpus),
            memory_percent: percent.filter(|_| options.axis == Axis::Memory),
        }
    };
    Ok(Trace {
        samples: values.into_iter().map(sample).collect(),
        step_ms: 0,
        cpus: None,
        memory_bytes: None,
        is_censored: !are_counts,
        notes,
    })
}

/// Columns of a VM of GWA-T-12.
struct Bitbrains {
    time: usize,
    cores: usize,
    cpu_percent: usize,
    memory: usize,
    memory_used: usize,
}

/// One line of it.
struct BitbrainsRow {
    at_ms: u64,
    cores: Option<f64>,
    cpu_percent: Option<f64>,
    memory: Option<f64>,
    memory_used: Option<f64>,
}

impl Bitbrains {
    fn find(column: &dyn Fn(&str) -> Option<usize>) -> Option<Self> {
        Some(Self {
            time: column("Timestamp [ms]")?,
            cores: column("CPU cores")?,
            cpu_percent: column("CPU usage [%]")?,
            memory: column("Memory capacity provisioned [KB]")?,
            memory_used: column("Memory usage [KB]")?,
        })
    }

    /// The machine is the largest that the VM ever was, so that a share of a smaller one is
    /// converted.
    fn read(&self, reader: &mut Reader<'_>) -> Result<Trace, TraceError> {
        let mut rows = Vec::new();
        let mut clock = Clock::default();
        for record in reader.records() {
            let row = Row(record.map_err(csv_error)?);
            rows.push(BitbrainsRow {
                at_ms: clock.read(&row, self.time)?,
                cores: row.number(self.cores, "CPU cores")?,
                cpu_percent: row.number(self.cpu_percent, "CPU usage [%]")?,
                memory: row.number(self.memory, "Memory capacity provisioned [KB]")?,
                memory_used: row.number(self.memory_used, "Memory usage [KB]")?,
            });
        }
        let most = |of: fn(&BitbrainsRow) -> Option<f64>| {
            let largest = rows.iter().filter_map(of).fold(0.0, f64::max);
            (largest > 0.0).then_some(largest)
        };
        let (cores, memory) = (most(|row| row.cores), most(|row| row.memory));
        let sample = |row: &BitbrainsRow| TraceSample {
            at_ms: row.at_ms,
            cpu_percent: some3(row.cpu_percent, row.cores, cores)
                .map(|(percent, here, most)| percent * here / most),
            memory_percent: row
                .memory_used
                .zip(memory)
                .map(|(used, most)| used / most * 100.0),
        };
        Ok(Trace {
            samples: rows.iter().map(sample).collect(),
            step_ms: 0,
            cpus: cores,
            memory_bytes: memory.map(|kb| kb * KB),
            is_censored: true,
            notes: Vec::new(),
        })
    }
}

fn some3(a: Option<f64>, b: Option<f64>, c: Option<f64>) -> Option<(f64, f64, f64)> {
    Some((a?, b?, c?))
}

/// One line of the file.
struct Row(csv::StringRecord);

impl Row {
    fn line(&self) -> u64 {
        self.0.position().map_or(0, csv::Position::line)
    }

    fn wrong(&self, column: &'static str, value: &str, allowed: &'static str) -> TraceError {
        TraceError::Value {
            line: self.line(),
            column,
            value: value.to_owned(),
            allowed,
        }
    }

    /// A number from 0 on; unknown where there is none.
    fn number(&self, at: usize, column: &'static str) -> Result<Option<f64>, TraceError> {
        let text = self.0.get(at).unwrap_or_default();
        if text.is_empty() {
            return Ok(None);
        }
        match text.parse::<f64>() {
            Ok(value) if value.is_nan() => Ok(None),
            Ok(value) if (0.0..=MOST_VALUE).contains(&value) => Ok(Some(value)),
            _ => Err(self.wrong(
                column,
                text,
                "a number from 0 to 1e15, or nothing (or NaN) where it is unknown",
            )),
        }
    }
}

/// Time since the first line.
#[derive(Default)]
struct Clock {
    first_ms: Option<u64>,
    last_ms: Option<u64>,
}

impl Clock {
    fn read(&mut self, row: &Row, at: usize) -> Result<u64, TraceError> {
        let text = row.0.get(at).unwrap_or_default();
        let forms = "seconds or milliseconds since 1970, or a date like 2014-02-14 14:30:00";
        let now_ms = epoch_ms(text).ok_or_else(|| row.wrong("timestamp", text, forms))?;
        if self.last_ms.is_some_and(|last| last >= now_ms) {
            return Err(row.wrong("timestamp", text, "a later time than in the line before"));
        }
        self.last_ms = Some(now_ms);
        let first = *self.first_ms.get_or_insert(now_ms);
        Ok(now_ms.saturating_sub(first))
    }
}

fn epoch_ms(text: &str) -> Option<u64> {
    if let Ok(number) = text.parse::<f64>() {
        let ms = if number >= LEAST_EPOCH_MS {
            number
        } else {
            number * 1000.0
        };
        return (0.0..=MOST_VALUE).contains(&ms).then_some(ms as u64);
    }
    let time = humantime::parse_rfc3339_weak(text).ok()?;
    let since = time.duration_since(std::time::UNIX_EPOCH).ok()?;
    u64::try_from(since.as_millis()).ok()
}

fn csv_error(error: csv::Error) -> TraceError {
    TraceError::Csv(error.to_string())
}

fn median_step(samples: &[TraceSample]) -> u64 {
    let mut steps: Vec<u64> = samples
        .windows(2)
        .filter_map(|pair| Some(pair.last()?.at_ms - pair.first()?.at_ms))
        .collect();
    steps.sort_unstable();
    steps.get(steps.len() / 2).copied().unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Trace, TraceError> {
        read_trace(text, &TraceOptions::default())
    }

    const BITBRAINS: &str = "\
Timestamp [ms];\tCPU cores;\tCPU capacity provisioned [MHZ];\tCPU usage [MHZ];\tCPU usage [%];\t\
Memory capacity provisioned [KB];\tMemory usage [KB];\tDisk read throughput [KB/s]
1376314846;\t2;\t5200.0;\t520.0;\t10.0;\t2097152.0;\t1048576.0;\t0.0
1376315146;\t1;\t2600.0;\t1300.0;\t50.0;\t1048576.0;\t524288.0;\t0.0
";

    #[test]
    fn percentages_with_dates_are_read() {
        let trace =
            read("timestamp,value\n2014-02-14 14:30:00,12.5\n2014-02-14 14:35:00,99.5\n").unwrap();
        assert_eq!(trace.step_ms, 300_000);
        assert_eq!(trace.samples[1].at_ms, 300_000);
        assert_eq!(trace.samples[0].cpu_percent, Some(12.5));
        assert_eq!(
            (trace.has(Axis::Cpus), trace.has(Axis::Memory)),
            (true, false)
        );
        assert!(
            trace.notes[0].starts_with("1 of 2 samples"),
            "{:?}",
            trace.notes
        );
    }

    #[test]
    fn seconds_and_milliseconds_since_1970_are_the_same_times() {
        let seconds = read("timestamp,value\n1376314846,1\n1376315146,2\n").unwrap();
        let milliseconds = read("timestamp;value\n1376314846000;1\n1376315146000;2\n").unwrap();
        assert_eq!(seconds, milliseconds);
        assert_eq!(seconds.step_ms, 300_000);
    }

    #[test]
    fn a_vm_of_bitbrains_is_read_with_any_separator_and_measured_by_its_largest_size() {
        let trace = read(BITBRAINS).unwrap();
        assert_eq!(
            (trace.cpus, trace.memory_bytes),
            (Some(2.0), Some(2e9 * 1.073741824))
        );
        let shares: Vec<_> = trace
            .samples
            .iter()
            .map(|s| (s.cpu_percent, s.memory_percent))
            .collect();
        assert_eq!(shares, [(Some(10.0), Some(50.0)), (Some(25.0), Some(25.0))]);
        let commas = BITBRAINS.replace(";\t", ",");
        assert_eq!(read(&commas).unwrap(), trace);
        assert_eq!(read(&BITBRAINS.replace(";\t", ";")).unwrap(), trace);
    }

    #[test]
    fn counts_are_measured_by_the_largest_one_and_that_is_said() {
        let text = "timestamp,value\n1,50\n2,200\n3,100\n";
        let trace = read(text).unwrap();
        let shares: Vec<_> = trace.samples.iter().map(|s| s.cpu_percent).collect();
        assert_eq!(shares, [Some(25.0), Some(100.0), Some(50.0)]);
        assert!(trace.notes[0].contains("200"), "{:?}", trace.notes);
        let options = TraceOptions {
            axis: Axis::Memory,
            full: Some(400.0),
        };
        let trace = read_trace(text, &options).unwrap();
        assert_eq!(trace.samples[1].memory_percent, Some(50.0));
        assert!(trace.notes.is_empty());
    }

    #[test]
    fn what_is_empty_or_no_number_is_unknown() {
        let trace = read("timestamp,value\n0,5\n300,\n600,NaN\n900,7\n").unwrap();
        let known: Vec<_> = trace
            .samples
            .iter()
            .map(|s| s.cpu_percent.is_some())
            .collect();
        assert_eq!(known, [true, false, false, true]);
    }

    #[test]
    fn a_wrong_trace_is_refused_with_the_place() {
        for (text, words) in [
            ("", vec!["first line ''"]),
            ("a,b\n1,2\n", vec!["'a,b'", "timestamp,value"]),
            ("timestamp,value\n1,2\n", vec!["1 samples"]),
            ("timestamp,value\n1,2\n2,-5\n", vec!["Line 3", "value '-5'"]),
            ("timestamp,value\n1,2\n2,inf\n", vec!["Line 3", "'inf'"]),
            ("timestamp,value\n1,2\n2,x\n", vec!["Line 3", "'x'"]),
            ("timestamp,value\n2,2\n2,3\n", vec!["Line 3", "later"]),
            (
                "timestamp,value\nsoon,2\n",
                vec!["Line 2", "timestamp 'soon'"],
            ),
            ("timestamp,value\n1,2\n2,3,4\n", vec!["line: 3", "3 fields"]),
            ("timestamp,value\n1,\n2,nan\n", vec!["No value"]),
        ] {
            let error = read(text).unwrap_err().to_string();
            for word in words {
                assert!(error.contains(word), "'{word}' is not in: {error}");
            }
        }
    }
}
