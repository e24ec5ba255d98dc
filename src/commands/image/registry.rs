//! `image register` and `image list`: what `NAME:VERSION` means to the control plane.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::failure::Usage;
use crate::output;
use crate::remote::{Remote, text};

const REGISTER_EXAMPLES: &str = "\
Examples:
  concertina image register debian:12 --disk web.img --url https://images.example/web.img
  concertina image register debian:12 --disk /srv/images/web.img
  concertina image register tiny:1 --kernel bzImage --initrd initramfs.cpio

The digest is taken of the files here. Hosts fetch them from the address (with --kernel and --initrd:
ADDRESS/FILENAME) and check it; without an address each host reads the same path of its own, which only
the operator may ask for. A version means the same for ever: another image is another version.";

const LIST_EXAMPLES: &str = "\
Examples:
  concertina image list
  concertina image list --own --json";

/// Arguments of `image register`.
#[derive(Debug, clap::Args)]
#[command(after_help = REGISTER_EXAMPLES)]
#[command(group = clap::ArgGroup::new("kind").args(["disk", "kernel"]).required(true))]
pub struct RegisterArgs {
    /// NAME:VERSION
    name: String,
    /// A raw disk of a distribution
    #[arg(long, value_name = "FILE")]
    disk: Option<PathBuf>,
    /// A kernel
    #[arg(long, value_name = "FILE")]
    kernel: Option<PathBuf>,
    /// Initial ram file system of the kernel
    #[arg(long, value_name = "FILE", requires = "kernel")]
    initrd: Option<PathBuf>,
    /// Text that is appended to the kernel command line
    #[arg(
        long,
        value_name = "STR",
        requires = "kernel",
        allow_hyphen_values = true
    )]
    append: Option<String>,
    /// Where hosts fetch it
    #[arg(long, value_name = "ADDRESS")]
    url: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Arguments of `image list`.
#[derive(Debug, clap::Args)]
#[command(after_help = LIST_EXAMPLES)]
pub struct ListArgs {
    /// Only the account's own
    #[arg(long)]
    own: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Registers an image.
pub fn register(args: &RegisterArgs) -> anyhow::Result<i32> {
    let (name, version) = args
        .name
        .split_once(':')
        .ok_or_else(|| Usage(format!("'{}' is not NAME:VERSION", args.name)))?;
    let parts = match (&args.disk, &args.kernel) {
        (Some(disk), _) => {
            json!({"kind": "disk", "disk": artifact(disk, args.url.as_deref(), false)?})
        }
        (None, Some(kernel)) => {
            let part = |path: &PathBuf| artifact(path, args.url.as_deref(), true);
            json!({
                "kind": "kernel",
                "kernel": part(kernel)?,
                "initrd": args.initrd.as_ref().map(part).transpose()?,
                "append": args.append,
            })
        }
        (None, None) => return Err(Usage("Name --disk or --kernel".into()).into()),
    };
    let body = json!({"name": name, "version": version, "parts": parts});
    let image = Remote::here()?.post("/v1/images", &body)?;
    if args.json {
        output::json(&image)?;
    } else {
        output::line(&args.name)?;
    }
    Ok(0)
}

/// A file with its digest and where hosts find it.
pub fn artifact(path: &Path, url: Option<&str>, in_folder: bool) -> anyhow::Result<Value> {
    let failed = || format!("Reading {} failed", path.display());
    let path = path.canonicalize().with_context(failed)?;
    let mut file = File::open(&path).with_context(failed)?;
    let mut digest = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    let mut size = 0u64;
    loop {
        let length = file.read(&mut buffer).with_context(failed)?;
        if length == 0 {
            break;
        }
        size += length as u64;
        digest.update(buffer.get(..length).unwrap_or_default());
    }
    let hex: String = digest
        .finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let name = path
        .file_name()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default();
    let url = match url {
        None => format!("file://{}", path.display()),
        Some(folder) if in_folder => format!("{}/{name}", folder.trim_end_matches('/')),
        Some(url) => url.to_owned(),
    };
    Ok(json!({"url": url, "sha256": hex, "size_bytes": size}))
}

/// Lists images.
pub fn list(args: &ListArgs) -> anyhow::Result<i32> {
    let remote = Remote::here()?;
    let mut images = remote.all("/v1/images?own=true")?;
    if !args.own {
        for image in remote.all("/v1/images?own=false")? {
            if !images.contains(&image) {
                images.push(image);
            }
        }
    }
    if args.json {
        output::json(&images)?;
        return Ok(0);
    }
    let row = |image: &Value| {
        let is_public = image
            .get("public")
            .and_then(Value::as_bool)
            .unwrap_or(false);
        vec![
            format!("{}:{}", text(image, "name"), text(image, "version")),
            image
                .pointer("/parts/kind")
                .and_then(Value::as_str)
                .unwrap_or("-")
                .to_owned(),
            if is_public { "everybody" } else { "own" }.to_owned(),
            text(image, "created").to_owned(),
        ]
    };
    let rows: Vec<Vec<String>> = images.iter().map(row).collect();
    output::line(&output::table(
        &["IMAGE", "KIND", "FOR", "REGISTERED"],
        &rows,
        &[],
    ))?;
    Ok(0)
}
