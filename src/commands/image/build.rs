//! `concertina image build`: a disk image of a distribution.

use std::path::PathBuf;

use concertina_api::Bytes;
use concertina_guest::image::debian::{self, DebianSpec};
use concertina_guest::image::{find_guest_program, tool};
use serde_json::json;

use crate::failure::Usage;
use crate::progress::Progress;
use crate::signals::Signals;
use crate::{cache, output};

const EXAMPLES: &str = "\
Examples:
  concertina image build debian --release bookworm -o web.img
  concertina image build debian --release bookworm --kernel-series 6.12 --size 8G \\
      --package nginx --package stress-ng --hostname web -o web.img
  concertina run --name web --cpus 1..4 --memory 512M..4G --image web.img --console

The disk is one bare ext4 file system with systemd, Debian's cloud kernel and initrd, the guest
program as a service, udev rules for hot-added vCPUs and memory, DHCP on every wired network, and
root on the serial console. It is sparse. Packages come from this host's own apt sources, for another
release from the same mirrors. The base system is kept in the cache.

Needs mmdebstrap and e2fsprogs; without root also uidmap and lines for the user in /etc/subuid and
/etc/subgid.";

/// Arguments of `image build`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(subcommand)]
    distribution: Distribution,
}

#[derive(Debug, clap::Subcommand)]
enum Distribution {
    /// Build a Debian disk image
    Debian(DebianArgs),
}

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
struct DebianArgs {
    /// Code name of the release: bookworm, trixie
    #[arg(long, value_name = "NAME")]
    release: String,
    /// File to write; replaced when it is there
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// Size of the disk
    #[arg(long, value_name = "SIZE", default_value = "2G")]
    size: Bytes,
    /// Kernel series, where it is not the release's own: 6.12
    #[arg(long, value_name = "V")]
    kernel_series: Option<String>,
    /// A further package; may be given several times
    #[arg(long = "package", value_name = "P")]
    packages: Vec<String>,
    /// Host name of the guest
    #[arg(long, value_name = "NAME", default_value = "debian")]
    hostname: String,
    /// File whose first line becomes root's password; without it the serial console logs root in
    /// by itself
    #[arg(long, value_name = "FILE")]
    root_password_file: Option<PathBuf>,
    /// Fetch the packages again, even if the cache has the base system
    #[arg(long)]
    fresh: bool,
    /// Folder where base systems are kept
    #[arg(long, value_name = "DIR", env = "CONCERTINA_CACHE_DIR")]
    cache_dir: Option<PathBuf>,
    /// Print JSON: output, size_bytes, allocated_bytes, uuid, from_cache
    #[arg(long)]
    json: bool,
}

/// Builds.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let Distribution::Debian(args) = &args.distribution;
    let spec = DebianSpec {
        release: args.release.clone(),
        kernel_series: args.kernel_series.clone(),
        packages: args.packages.clone(),
        size_bytes: args.size.get(),
        hostname: args.hostname.clone(),
        root_password: read_password(args)?,
        fresh: args.fresh,
        guest_program: find_guest_program()?,
        cache: cache::folder(args.cache_dir.as_deref())?,
        output: args.output.clone(),
    };
    end_tools_with_us()?;
    let mut progress = Progress::steps();
    let report = debian::build(&spec, &mut |step| progress.step(step))?;
    drop(progress);
    if args.json {
        return output::json(&json!({
            "output": report.output,
            "size_bytes": report.size_bytes,
            "allocated_bytes": report.allocated_bytes,
            "uuid": report.uuid,
            "from_cache": report.from_cache,
        }));
    }
    output::line(&format!(
        "{} ({}, {} on this disk)",
        report.output.display(),
        output::size(Bytes(report.size_bytes)),
        output::size(Bytes(report.allocated_bytes)),
    ))
}

fn read_password(args: &DebianArgs) -> Result<Option<String>, Usage> {
    let Some(path) = &args.root_password_file else {
        return Ok(None);
    };
    let text = std::fs::read_to_string(path)
        .map_err(|error| Usage(format!("Password file '{}': {error}", path.display())))?;
    let line = text.lines().next().unwrap_or_default();
    Ok(Some(line.to_owned()))
}

/// Whoever ends us ends the tool that works for us: it takes back what it has begun, and so do we
/// when it is gone. A second signal ends us at once.
pub fn end_tools_with_us() -> anyhow::Result<()> {
    let mut signals = Signals::catch()?;
    let body = move || {
        let mut asked = false;
        while let Ok(signal) = signals.next() {
            if std::mem::replace(&mut asked, true) {
                std::process::exit(128 + signal);
            }
            let pid = tool::interrupt().and_then(|pid| libc::pid_t::try_from(pid).ok());
            // A key on the keyboard has reached the tool by itself.
            if let (Some(pid), libc::SIGTERM) = (pid, signal) {
                // SAFETY: kill(2) touches no memory. The process is our own child, which is not
                // waited for before the tool's number is taken back.
                unsafe { libc::kill(pid, signal) };
            }
        }
    };
    std::thread::Builder::new()
        .name("signals".into())
        .spawn(body)?;
    Ok(())
}
