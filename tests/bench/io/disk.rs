//! `fio` in the guest: sequential and random, reading and writing.

use anyhow::{Context, Result, ensure};

use super::Side;
use crate::report::Results;

const SECONDS: u32 = 4;

/// A kind of load.
struct Job {
    name: &'static str,
    rw: &'static str,
    block: &'static str,
    depth: u32,
    /// In a line of fio's terse format, version 3.
    field: usize,
    unit: &'static str,
    /// What fio's number is divided by.
    scale: f64,
}

const READ_KIB: usize = 7;
const READ_IOPS: usize = 8;
const WRITE_KIB: usize = 48;
const WRITE_IOPS: usize = 49;

/// Writing comes first: reading what was never written is another thing.
const JOBS: [Job; 6] = [
    Job {
        name: "disk, sequential write, 256 KiB, depth 8",
        rw: "write",
        block: "256k",
        depth: 8,
        field: WRITE_KIB,
        unit: "MiB/s",
        scale: 1024.0,
    },
    Job {
        name: "disk, sequential read, 256 KiB, depth 8",
        rw: "read",
        block: "256k",
        depth: 8,
        field: READ_KIB,
        unit: "MiB/s",
        scale: 1024.0,
    },
    Job {
        name: "disk, random write, 4 KiB, depth 16",
        rw: "randwrite",
        block: "4k",
        depth: 16,
        field: WRITE_IOPS,
        unit: "IO/s",
        scale: 1.0,
    },
    Job {
        name: "disk, random read, 4 KiB, depth 16",
        rw: "randread",
        block: "4k",
        depth: 16,
        field: READ_IOPS,
        unit: "IO/s",
        scale: 1.0,
    },
    Job {
        name: "disk, random write, 4 KiB, depth 1",
        rw: "randwrite",
        block: "4k",
        depth: 1,
        field: WRITE_IOPS,
        unit: "IO/s",
        scale: 1.0,
    },
    Job {
        name: "disk, random read, 4 KiB, depth 1",
        rw: "randread",
        block: "4k",
        depth: 1,
        field: READ_IOPS,
        unit: "IO/s",
        scale: 1.0,
    },
];

/// Runs every job on both sides, round by round.
pub fn measure(sides: &mut [Side; 2], rounds: usize, results: &mut Results) -> Result<()> {
    for side in sides.iter_mut() {
        // Every block exists before anything is measured.
        side.guest
            .run("dd if=/dev/zero of=/dev/vda bs=1M oflag=direct 2>/dev/null; echo done")
            .with_context(|| format!("Filling the disk of {}", side.name))?;
    }
    for job in &JOBS {
        let mut samples = [Vec::new(), Vec::new()];
        for _ in 0..rounds {
            for (side, samples) in sides.iter_mut().zip(&mut samples) {
                samples.push(run(side, job)?);
            }
        }
        for (side, samples) in sides.iter().zip(&samples) {
            results.add(job.name, side.name, job.unit, samples);
        }
    }
    Ok(())
}

fn run(side: &mut Side, job: &Job) -> Result<f64> {
    let line = format!(
        "fio --name=job --filename=/dev/vda --rw={} --bs={} --iodepth={} --ioengine=libaio --direct=1 \
         --thread --time_based --runtime={SECONDS} --ramp_time=1 --randseed=1 --minimal | tail -n 1 | \
         cut -d ';' -f {}",
        job.rw, job.block, job.depth, job.field
    );
    let text = side.guest.run(&line)?;
    let number: f64 = text
        .parse()
        .with_context(|| format!("fio in the guest of {} said '{text}'", side.name))?;
    ensure!(
        number > 0.0,
        "fio in the guest of {} did nothing",
        side.name
    );
    Ok(number / job.scale)
}
