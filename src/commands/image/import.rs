//! `concertina image import`: disk images of other formats.

use std::path::PathBuf;

use concertina_api::Bytes;
use concertina_guest::image::import;
use serde_json::json;

use super::build::end_tools_with_us;
use crate::output;
use crate::progress::Progress;

const EXAMPLES: &str = "\
Examples:
  concertina image import debian-12-genericcloud-amd64.qcow2 -o web.img
  concertina image import appliance.vmdk -o appliance.img --force --json

Every format that qemu-img reads (Debian package qemu-utils). The result is raw and sparse. An image
that takes a part of its content from another file of this host is refused.";

/// Arguments of `image import`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The image: qcow2, vmdk, vhdx, vdi, …
    image: PathBuf,
    /// File to write
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// Replace the file when it is there
    #[arg(long)]
    force: bool,
    /// Print JSON: output, size_bytes, allocated_bytes
    #[arg(long)]
    json: bool,
}

/// Converts.
pub fn run(args: &Args) -> anyhow::Result<()> {
    end_tools_with_us()?;
    let mut progress = Progress::share(&format!("Importing {}", args.image.display()));
    let imported = import::import(&args.image, &args.output, args.force, &mut |percent| {
        progress.percent(percent);
    })?;
    drop(progress);
    if args.json {
        return output::json(&json!({
            "output": imported.output,
            "size_bytes": imported.size_bytes,
            "allocated_bytes": imported.allocated_bytes,
        }));
    }
    output::line(&format!(
        "{} ({}, {} on this disk)",
        imported.output.display(),
        output::size(Bytes(imported.size_bytes)),
        output::size(Bytes(imported.allocated_bytes)),
    ))
}
