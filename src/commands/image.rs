//! `concertina image`: disk images of distributions, and the default guest's parts, one at a time.

mod build;
mod import;
mod inspect;
pub mod registry;

use std::path::{Path, PathBuf};

use concertina_api::Bytes;
use concertina_guest::image::initramfs::{self, Busybox, InitramfsSpec, ModuleSource};
use concertina_guest::image::kernel::{self, KernelOptions};
use concertina_guest::image::{find_guest_program, vmlinux};
use serde_json::json;

use crate::failure::Usage;
use crate::guest::progress;
use crate::{cache, output};

const EXAMPLES: &str = "\
Examples:
  concertina image build debian --release bookworm -o web.img
  concertina image import debian-12-genericcloud-amd64.qcow2 -o web.img
  concertina image inspect web.img
  concertina image kernel --version 6.1 --json
  concertina image initramfs --modules /lib/modules/\"$(uname -r)\" -o initramfs.cpio
  concertina image initramfs --kernel-package linux-image-6.12-cloud-amd64 -o initramfs.cpio
  concertina image vmlinux /boot/vmlinuz-\"$(uname -r)\" -o vmlinux";

const KERNEL_EXAMPLES: &str = "\
Examples:
  concertina image kernel
  concertina image kernel --version 6.12 --debian
  concertina run --name web --cpus 1 --memory 256M \\
      --kernel \"$(concertina image kernel --json | jq -r .image)\"

In this order: the host's running kernel where it is readable in /boot with its modules, the host's
newest other one, the newest in the cache, Debian's cloud kernel, which is downloaded and unpacked
into the cache, not installed.";

const INITRAMFS_EXAMPLES: &str = "\
Examples:
  concertina image initramfs --modules /lib/modules/\"$(uname -r)\" -o initramfs.cpio
  concertina image initramfs --kernel-package linux-image.deb -o initramfs.cpio
  concertina image initramfs --kernel-package linux-image-6.12-cloud-amd64 \\
      --file ./my-program:/bin/my-program --module virtio_net -o initramfs.cpio

The same input gives the same bytes. The guest program is the one that CONCERTINA_GUEST names, else
concertina-guest beside this program or on the PATH.";

const VMLINUX_EXAMPLES: &str = "\
Examples:
  concertina image vmlinux /boot/vmlinuz-\"$(uname -r)\" -o vmlinux";

/// Arguments of `image`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// What to do.
    #[command(subcommand)]
    part: Part,
}

/// Disk images, and parts of the default guest.
#[derive(Debug, clap::Subcommand)]
enum Part {
    /// Build a disk image of a distribution
    Build(build::Args),
    /// Show partitions, kernel, initrd and root file system of a disk image
    Inspect(inspect::Args),
    /// Make a raw disk image of a qcow2, vmdk or other one
    Import(import::Args),
    /// Tell the control plane what NAME:VERSION means
    Register(registry::RegisterArgs),
    /// List the control plane's images
    List(registry::ListArgs),
    /// Find or fetch the default guest's kernel
    Kernel(KernelArgs),
    /// Build an initramfs: the guest program and the modules it needs
    Initramfs(InitramfsArgs),
    /// Extract the ELF vmlinux of a bzImage
    Vmlinux(VmlinuxArgs),
}

/// Arguments of `image kernel`.
#[derive(Debug, clap::Args)]
#[command(after_help = KERNEL_EXAMPLES)]
struct KernelArgs {
    /// Beginning of the version: 6.1, 6.12
    #[arg(long, value_name = "V")]
    version: Option<String>,
    /// Leave this host's own kernels aside
    #[arg(long)]
    debian: bool,
    /// Folder where kernels are kept
    #[arg(long, value_name = "DIR", env = "CONCERTINA_CACHE_DIR")]
    cache_dir: Option<PathBuf>,
    /// Print JSON: image, modules, release
    #[arg(long)]
    json: bool,
}

/// Arguments of `image initramfs`.
#[derive(Debug, clap::Args)]
#[command(after_help = INITRAMFS_EXAMPLES)]
#[command(group = clap::ArgGroup::new("source").args(["kernel_package", "modules"]).required(true))]
struct InitramfsArgs {
    /// Modules of a Debian kernel package: a .deb file, or the name of a cloud kernel's package,
    /// which is fetched
    #[arg(long, value_name = "PACKAGE")]
    kernel_package: Option<PathBuf>,
    /// Modules of a lib/modules/RELEASE folder
    #[arg(long, value_name = "DIR")]
    modules: Option<PathBuf>,
    /// File to write
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// A static busybox for a shell in the guest [default: the installed one, if any]
    #[arg(long, value_name = "FILE", conflicts_with = "no_busybox")]
    busybox: Option<PathBuf>,
    /// No shell: the console has the guest program's own prompt
    #[arg(long)]
    no_busybox: bool,
    /// A further module with what it depends on; may be given several times
    #[arg(long = "module", value_name = "NAME")]
    extra_modules: Vec<String>,
    /// A file of this host and its path in the guest; may be given several times
    #[arg(long = "file", value_name = "SRC:DST", value_parser = parse_file)]
    files: Vec<(PathBuf, String)>,
    /// Folder where fetched packages are kept
    #[arg(long, value_name = "DIR", env = "CONCERTINA_CACHE_DIR")]
    cache_dir: Option<PathBuf>,
    /// Print JSON: output, size_bytes, release, modules, builtin, missing, busybox
    #[arg(long)]
    json: bool,
}

/// Arguments of `image vmlinux`.
#[derive(Debug, clap::Args)]
#[command(after_help = VMLINUX_EXAMPLES)]
struct VmlinuxArgs {
    /// The bzImage
    bzimage: PathBuf,
    /// File to write
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
}

/// Builds, fetches or looks; gives the exit status.
pub fn run(args: &Args) -> anyhow::Result<i32> {
    match &args.part {
        Part::Build(args) => build::run(args)?,
        Part::Inspect(args) => return inspect::run(args),
        Part::Register(args) => return registry::register(args),
        Part::List(args) => return registry::list(args),
        Part::Import(args) => import::run(args)?,
        Part::Kernel(args) => run_kernel(args)?,
        Part::Initramfs(args) => run_initramfs(args)?,
        Part::Vmlinux(args) => {
            let size = Bytes(vmlinux::extract(&args.bzimage, &args.output)?);
            output::line(&format!("{} ({size})", args.output.display()))?;
        }
    }
    Ok(0)
}

fn run_kernel(args: &KernelArgs) -> anyhow::Result<()> {
    let options = KernelOptions {
        version: args.version.clone(),
        ignore_host: args.debian,
    };
    let cache = cache::folder(args.cache_dir.as_deref())?;
    let kernel = kernel::default_kernel(&cache, &options, &mut progress)?;
    if args.json {
        return output::json(&json!({
            "image": kernel.image,
            "modules": kernel.modules,
            "release": kernel.release,
        }));
    }
    output::line(&format!(
        "release  {}\nimage    {}\nmodules  {}",
        kernel.release,
        kernel.image.display(),
        kernel.modules.display()
    ))
}

fn run_initramfs(args: &InitramfsArgs) -> anyhow::Result<()> {
    let modules = match (&args.modules, &args.kernel_package) {
        (Some(folder), _) => ModuleSource::Dir(folder.clone()),
        (None, Some(package)) => package_modules(package, args.cache_dir.as_deref())?,
        (None, None) => return Err(Usage("Neither --modules nor --kernel-package".into()).into()),
    };
    let busybox = match (&args.busybox, args.no_busybox) {
        (Some(program), _) => Busybox::Program(program.clone()),
        (None, true) => Busybox::None,
        (None, false) => Busybox::IfInstalled,
    };
    let report = initramfs::build(&InitramfsSpec {
        modules,
        extra_modules: args.extra_modules.clone(),
        guest_program: find_guest_program()?,
        busybox,
        files: args.files.clone(),
        output: args.output.clone(),
    })?;
    let modules: Vec<&str> = report
        .modules
        .iter()
        .map(|(name, _)| name.as_str())
        .collect();
    if args.json {
        return output::json(&json!({
            "output": report.output,
            "size_bytes": report.size_bytes,
            "release": report.release,
            "modules": modules,
            "builtin": report.builtin,
            "missing": report.missing,
            "busybox": report.busybox,
        }));
    }
    let list = |names: &[&str]| {
        if names.is_empty() {
            "-".into()
        } else {
            names.join(" ")
        }
    };
    let missing: Vec<&str> = report.missing.iter().map(String::as_str).collect();
    output::line(&format!(
        "{} ({}) for Linux {}\nmodules  {}\nmissing  {}\nbusybox  {}",
        report.output.display(),
        Bytes(report.size_bytes),
        report.release,
        list(&modules),
        list(&missing),
        report
            .busybox
            .map_or("-".to_owned(), |path| path.display().to_string()),
    ))
}

/// A package that is a file, or one that is fetched by its name.
fn package_modules(package: &Path, cache_dir: Option<&Path>) -> anyhow::Result<ModuleSource> {
    if package.is_file() {
        return Ok(ModuleSource::KernelPackage(package.to_owned()));
    }
    let options = options_of_package(package)?;
    let kernel = kernel::default_kernel(&cache::folder(cache_dir)?, &options, &mut progress)?;
    Ok(ModuleSource::Dir(kernel.modules))
}

/// What a cloud kernel's package name asks for: `linux-image-6.12-cloud-amd64` any 6.12.
fn options_of_package(package: &Path) -> Result<KernelOptions, Usage> {
    let release = package.to_str().and_then(|name| {
        name.strip_prefix("linux-image-")?
            .strip_suffix("cloud-amd64")
    });
    let Some(release) = release else {
        return Err(Usage(format!(
            "Kernel package '{}' is neither a file nor the name of a cloud kernel's package, like \
             linux-image-cloud-amd64 or linux-image-6.12-cloud-amd64",
            package.display()
        )));
    };
    let version = Some(release.trim_end_matches('-')).filter(|version| !version.is_empty());
    Ok(KernelOptions {
        version: version.map(str::to_owned),
        ignore_host: true,
    })
}

fn parse_file(text: &str) -> Result<(PathBuf, String), String> {
    match text.rsplit_once(':') {
        Some((source, target)) if !source.is_empty() && target.len() > 1 => {
            Ok((source.into(), target.to_owned()))
        }
        _ => Err("write SRC:DST, a path on this host and one in the guest".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_package_name_asks_for_its_version() {
        let version = |name: &str| options_of_package(Path::new(name)).map(|o| o.version);
        assert_eq!(version("linux-image-cloud-amd64").unwrap(), None);
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(
            version("linux-image-6.12-cloud-amd64").unwrap(),
            some("6.12")
        );
        assert_eq!(
            version("linux-image-6.12.117+deb12-cloud-amd64").unwrap(),
            some("6.12.117+deb12")
        );
        assert!(
            version("./missing.deb")
                .unwrap_err()
                .0
                .contains("./missing.deb")
        );
    }

    #[test]
    fn files_are_pairs_of_paths() {
        assert_eq!(
            parse_file("a:b:/c").unwrap(),
            ("a:b".into(), "/c".to_owned())
        );
        for text in ["a", ":/c", "a:", "a:/"] {
            assert!(parse_file(text).is_err(), "{text}");
        }
    }
}
