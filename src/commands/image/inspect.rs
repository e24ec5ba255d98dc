//! `concertina image inspect`: what is in a disk image.

use std::path::PathBuf;

use concertina_api::Bytes;
use concertina_guest::image::disk::{self, BootFile, Inspection, PartInfo};
use serde_json::{Value, json};

use crate::output;

const EXAMPLES: &str = "\
Examples:
  concertina image inspect debian-12-genericcloud-amd64.raw
  concertina image inspect web.img --json | jq -r .kernel.path

JSON fields: path, size_bytes, table (none, mbr, gpt), partitions [{number, device, start_bytes,
size_bytes, partuuid, filesystem, uuid, label, problem}], root {partition, argument, os}, release,
kernel and initrd {partition, path, size_bytes}, bootable. Number 0 is the whole disk.
Exit status: 0 the image can be booted with 'run --image', 1 it cannot, or it cannot be read.";

/// Arguments of `image inspect`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// A raw disk image, or a block device
    image: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Looks and prints; gives the exit status.
pub fn run(args: &Args) -> anyhow::Result<i32> {
    let found = disk::inspect(&args.image)?;
    if args.json {
        output::json(&as_json(&found))?;
    } else {
        output::line(&describe(&found))?;
    }
    match found.lacks() {
        None => Ok(0),
        Some(_) if args.json => Ok(1),
        Some(sentence) => Err(anyhow::anyhow!(sentence)),
    }
}

fn as_json(found: &Inspection) -> Value {
    let file = |file: &BootFile| {
        json!({
            "partition": file.partition,
            "path": file.path,
            "size_bytes": file.size_bytes,
        })
    };
    let part = |part: &PartInfo| {
        json!({
            "number": part.number,
            "device": part.device(),
            "start_bytes": part.start_bytes,
            "size_bytes": part.size_bytes,
            "partuuid": part.partuuid,
            "filesystem": part.filesystem.as_str(),
            "uuid": part.uuid,
            "label": part.label,
            "problem": part.problem,
        })
    };
    json!({
        "path": found.path,
        "size_bytes": found.size_bytes,
        "table": found.table.as_str(),
        "partitions": found.parts.iter().map(part).collect::<Vec<_>>(),
        "root": found.root.as_ref().map(|root| json!({
            "partition": root.partition,
            "argument": root.spec,
            "os": root.os,
        })),
        "release": found.release,
        "kernel": found.kernel.as_ref().map(file),
        "initrd": found.initrd.as_ref().map(file),
        "bootable": found.lacks().is_none(),
    })
}

fn describe(found: &Inspection) -> String {
    let rows: Vec<Vec<String>> = found
        .parts
        .iter()
        .map(|part| {
            let or_dash = |text: Option<&String>| text.map_or("-".to_owned(), String::clone);
            vec![
                part.device(),
                output::size(Bytes(part.size_bytes)),
                part.filesystem.as_str().to_owned(),
                or_dash(part.label.as_ref()),
                or_dash(part.uuid.as_ref().or(part.problem.as_ref())),
            ]
        })
        .collect();
    let file = |file: &Option<BootFile>| {
        file.as_ref().map_or("-".to_owned(), |file| {
            format!("{} ({})", file.path, output::size(Bytes(file.size_bytes)))
        })
    };
    let root = found.root.as_ref();
    format!(
        "{}\n\nsystem  {}\nroot    {}\nkernel  {}\ninitrd  {}",
        output::table(&["DEVICE", "SIZE", "KIND", "LABEL", "UUID"], &rows, &[1]),
        root.and_then(|root| root.os.clone()).unwrap_or("-".into()),
        root.map_or("-", |root| &root.spec),
        file(&found.kernel),
        file(&found.initrd),
    )
}
