//! The default guest's initial ram file system: the guest program as `/init`, the modules that the
//! kernel needs, busybox if there is one, and files of the user's.
//!
//! It is kept small and uncompressed: what it holds is the guest's memory for as long as it runs,
//! and what is compressed costs boot time. Same input, same bytes.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::archive::{Archive, Node};
use super::error::ImageError;
use super::modules::{ModuleTree, Selection};
use super::{command, elf};

/// Links to busybox in the guest.
const APPLETS: [&str; 36] = [
    "awk", "cat", "chmod", "cp", "cut", "date", "dd", "df", "dmesg", "echo", "env", "free", "grep",
    "head", "ip", "kill", "ln", "ls", "mkdir", "mount", "mv", "nc", "ping", "ps", "rm", "sed",
    "sh", "sleep", "tail", "top", "udhcpc", "umount", "uname", "vi", "wc", "wget",
];
/// What busybox's `udhcpc` does with an answer, and where it looks for that.
const DHCP_SCRIPT: (&str, &str) = (
    "etc/udhcpc/default.script",
    include_str!("../../dist/udhcpc.script"),
);
/// Links to the guest program, which knows how to end the guest.
const ENDINGS: [&str; 3] = ["halt", "poweroff", "reboot"];
/// Where Debian and others put a static busybox.
const BUSYBOX_PLACES: [&str; 4] = [
    "/bin/busybox",
    "/usr/bin/busybox",
    "/bin/busybox.static",
    "/usr/bin/busybox.static",
];
/// Folders that are mounted over, or that programs expect.
const FOLDERS: [&str; 8] = ["dev", "etc", "proc", "root", "run", "sbin", "sys", "tmp"];

/// Where the modules come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ModuleSource {
    /// A `lib/modules/RELEASE` folder, or a folder that holds exactly one of these (an unpacked
    /// package).
    Dir(PathBuf),
    /// A Debian kernel package (`.deb`); needs `dpkg`.
    KernelPackage(PathBuf),
}

/// Whether the guest gets a shell.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Busybox {
    /// If a static busybox is installed on this host.
    #[default]
    IfInstalled,
    /// This program, which must be static.
    Program(PathBuf),
    /// None: the console has the guest program's own prompt.
    None,
}

/// What to build.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InitramfsSpec {
    /// Modules of the kernel that the guest will run.
    pub modules: ModuleSource,
    /// Names of modules beside the default ones.
    pub extra_modules: Vec<String>,
    /// The `concertina-guest` program; see [`find_guest_program`](super::find_guest_program).
    pub guest_program: PathBuf,
    /// The shell.
    pub busybox: Busybox,
    /// Files of the host and where they go in the guest; permissions are kept.
    pub files: Vec<(PathBuf, String)>,
    /// Where the result goes; replaced as a whole, or not at all.
    pub output: PathBuf,
}

/// What was built.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// The file.
    pub output: PathBuf,
    /// Its size in bytes.
    pub size_bytes: u64,
    /// The kernel release that it is for.
    pub release: String,
    /// Modules in it, in loading order, with their sizes in bytes.
    pub modules: Vec<(String, u64)>,
    /// Wanted modules that the kernel has built in.
    pub builtin: Vec<String>,
    /// Modules that would make the guest better and that this kernel has not.
    pub missing: Vec<String>,
    /// The busybox in it.
    pub busybox: Option<PathBuf>,
}

/// Builds it.
pub fn build(spec: &InitramfsSpec) -> Result<Report, ImageError> {
    let unpacked; // keeps a package's files until they are in the archive
    let folder = match &spec.modules {
        ModuleSource::Dir(folder) => find_release_folder(folder)?,
        ModuleSource::KernelPackage(package) => {
            unpacked = unpack(package)?;
            find_release_folder(unpacked.path())?
        }
    };
    let tree = ModuleTree::open(&folder)?;
    let selection = tree.select(&spec.extra_modules)?;
    let busybox = choose_busybox(&spec.busybox)?;

    let mut archive = Archive::default();
    add_base(&mut archive, read_static(&spec.guest_program)?);
    add_modules(&mut archive, tree.release(), &selection);
    if let Some((_, program)) = &busybox {
        add_busybox(&mut archive, program.clone());
    }
    for (source, target) in &spec.files {
        add_file(&mut archive, source, target)?;
    }
    let bytes = archive
        .to_bytes()
        .map_err(ImageError::file("write", &spec.output))?;
    write_whole(&spec.output, &bytes)?;
    Ok(Report {
        output: spec.output.clone(),
        size_bytes: bytes.len() as u64,
        release: tree.release().to_owned(),
        modules: selection
            .modules
            .iter()
            .map(|m| (m.name.clone(), m.data.len() as u64))
            .collect(),
        builtin: selection.builtin,
        missing: selection.missing,
        busybox: busybox.map(|(path, _)| path),
    })
}

fn add_base(archive: &mut Archive, program: Vec<u8>) {
    for folder in FOLDERS {
        archive.put(folder, Node::Folder);
    }
    // The kernel opens it for process 1 before anything is mounted.
    archive.put(
        "dev/console",
        Node::Device {
            mode: 0o600,
            major: 5,
            minor: 1,
        },
    );
    archive.put("init", Node::File(0o755, program));
    for name in ENDINGS.iter().chain(&["concertina-guest"]) {
        archive.put(&format!("bin/{name}"), Node::Link("../init".into()));
    }
}

fn add_modules(archive: &mut Archive, release: &str, selection: &Selection) {
    let folder = format!("lib/modules/{release}");
    let mut order = String::new();
    for module in &selection.modules {
        let file = format!("{}.ko", module.name);
        archive.put(
            &format!("{folder}/{file}"),
            Node::File(0o644, module.data.clone()),
        );
        order.push_str(&file);
        order.push('\n');
    }
    archive.put(
        &format!("{folder}/load.order"),
        Node::File(0o644, order.into_bytes()),
    );
}

fn add_busybox(archive: &mut Archive, program: Vec<u8>) {
    archive.put("bin/busybox", Node::File(0o755, program));
    for name in APPLETS {
        archive.put(&format!("bin/{name}"), Node::Link("busybox".into()));
    }
    let (path, script) = DHCP_SCRIPT;
    archive.put(path, Node::File(0o755, script.into()));
}

fn add_file(archive: &mut Archive, source: &Path, target: &str) -> Result<(), ImageError> {
    use std::os::unix::fs::PermissionsExt;
    let inside = target.split('/').all(|part| part != "." && part != "..");
    if target.trim_matches('/').is_empty() || !inside {
        return Err(ImageError::Invalid(format!(
            "Target '{target}' of {} is no path inside the guest: write one like /bin/name",
            source.display()
        )));
    }
    if archive.contains(target) {
        return Err(ImageError::Invalid(format!(
            "Target '{target}' of {} is taken: choose another name",
            source.display()
        )));
    }
    let content = read(source)?;
    let metadata = fs::metadata(source).map_err(ImageError::file("read", source))?;
    archive.put(
        target,
        Node::File(metadata.permissions().mode() & 0o777, content),
    );
    Ok(())
}

fn choose_busybox(wish: &Busybox) -> Result<Option<(PathBuf, Vec<u8>)>, ImageError> {
    match wish {
        Busybox::None => Ok(None),
        Busybox::Program(path) => Ok(Some((path.clone(), read_static(path)?))),
        Busybox::IfInstalled => Ok(installed_busybox()),
    }
}

/// The first static busybox of this host, with its content.
pub(super) fn installed_busybox() -> Option<(PathBuf, Vec<u8>)> {
    BUSYBOX_PLACES
        .iter()
        .map(PathBuf::from)
        .find_map(|path| read_static(&path).ok().map(|program| (path, program)))
}

fn read(path: &Path) -> Result<Vec<u8>, ImageError> {
    fs::read(path).map_err(ImageError::file("read", path))
}

fn read_static(path: &Path) -> Result<Vec<u8>, ImageError> {
    let program = read(path)?;
    if elf::is_static_program(&program) {
        return Ok(program);
    }
    Err(ImageError::format(
        path,
        "a static x86-64 program",
        "the guest has no libc to run it with",
    ))
}

/// The one `lib/modules/RELEASE` folder at or below a folder.
pub(super) fn find_release_folder(folder: &Path) -> Result<PathBuf, ImageError> {
    let is_release = |path: &Path| path.join("modules.builtin").is_file();
    if is_release(folder) {
        return Ok(folder.to_owned());
    }
    let mut found: Vec<PathBuf> = ["", "lib/modules", "usr/lib/modules"]
        .iter()
        .filter_map(|below| fs::read_dir(folder.join(below)).ok())
        .flat_map(|entries| entries.flatten().map(|entry| entry.path()))
        .filter(|path| is_release(path))
        .collect();
    found.sort();
    let expected = "a folder of one kernel's modules";
    match found.as_slice() {
        [one] => Ok(one.clone()),
        [] => {
            fs::read_dir(folder).map_err(ImageError::file("read", folder))?;
            Err(ImageError::format(
                folder,
                expected,
                "there is no modules.builtin in it",
            ))
        }
        several => {
            let names: Vec<String> = several
                .iter()
                .filter_map(|path| path.file_name())
                .map(|name| name.to_string_lossy().into_owned())
                .collect();
            Err(ImageError::format(
                folder,
                expected,
                format!("it has {}", names.join(", ")),
            ))
        }
    }
}

fn unpack(package: &Path) -> Result<tempfile::TempDir, ImageError> {
    fs::File::open(package).map_err(ImageError::file("read", package))?;
    let folder = tempfile::Builder::new()
        .prefix("concertina-kernel-")
        .tempdir()
        .map_err(ImageError::file(
            "create a folder in",
            &std::env::temp_dir(),
        ))?;
    command::run(
        Command::new("dpkg")
            .arg("-x")
            .arg(package)
            .arg(folder.path()),
    )?;
    Ok(folder)
}

/// Writes a file so that it is there as a whole or not at all.
pub(super) fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), ImageError> {
    use std::os::unix::fs::PermissionsExt;
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let write = || -> std::io::Result<()> {
        let mut file = tempfile::Builder::new()
            .permissions(fs::Permissions::from_mode(0o644))
            .tempfile_in(folder)?;
        file.write_all(bytes)?;
        file.persist(path)?;
        Ok(())
    };
    write().map_err(ImageError::file("write", path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::modinfo::testing::module;

    struct Bench(tempfile::TempDir);

    impl Bench {
        fn new() -> Self {
            let bench = Self(tempfile::tempdir().unwrap());
            let release = bench.path("package/lib/modules/6.1-test");
            fs::create_dir_all(release.join("kernel")).unwrap();
            for name in ["virtio_pci", "virtio_mem", "button"] {
                fs::write(release.join(format!("kernel/{name}.ko")), module(name, "")).unwrap();
            }
            fs::write(release.join("modules.builtin"), "").unwrap();
            bench
        }
        fn path(&self, name: &str) -> PathBuf {
            self.0.path().join(name)
        }
        fn spec(&self, output: &str) -> InitramfsSpec {
            InitramfsSpec {
                modules: ModuleSource::Dir(self.path("package")),
                extra_modules: Vec::new(),
                guest_program: std::env::current_exe().unwrap(),
                busybox: Busybox::None,
                files: Vec::new(),
                output: self.path(output),
            }
        }
    }

    #[test]
    fn same_input_same_bytes() {
        let bench = Bench::new();
        let one = build(&bench.spec("one")).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(20));
        build(&bench.spec("two")).unwrap();
        assert_eq!(
            fs::read(bench.path("one")).unwrap(),
            fs::read(bench.path("two")).unwrap()
        );
        let names: Vec<&str> = one.modules.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["virtio_pci", "virtio_mem", "button"]);
        assert_eq!(
            one.missing,
            [
                "virtio_balloon",
                "virtio_rng",
                "virtio_blk",
                "vmw_vsock_virtio_transport",
                "virtio_net"
            ]
        );
        assert_eq!(one.release, "6.1-test");
    }

    #[test]
    fn a_dynamic_or_missing_program_is_refused_and_nothing_is_written() {
        let bench = Bench::new();
        fs::write(bench.path("script"), "#!/bin/sh\n").unwrap();
        for program in ["script", "absent"] {
            let spec = InitramfsSpec {
                guest_program: bench.path(program),
                ..bench.spec("out")
            };
            let error = build(&spec).unwrap_err().to_string();
            assert!(error.contains(program), "{error}");
            assert!(!bench.path("out").exists());
        }
    }

    #[test]
    fn files_of_the_user_go_in_but_over_nothing_and_not_outside() {
        let bench = Bench::new();
        let with = |target: &str| {
            let files = vec![(bench.path("data"), target.to_owned())];
            build(&InitramfsSpec {
                files,
                ..bench.spec("out")
            })
        };
        fs::write(bench.path("data"), "x").unwrap();
        assert!(with("/etc/data").is_ok());
        for target in ["/init", "/../data", "/", "a/./b"] {
            assert!(
                matches!(with(target), Err(ImageError::Invalid(_))),
                "{target}"
            );
        }
    }

    #[test]
    fn a_folder_of_several_kernels_is_ambiguous() {
        let bench = Bench::new();
        let other = bench.path("package/lib/modules/6.12-test");
        fs::create_dir_all(&other).unwrap();
        fs::write(other.join("modules.builtin"), "").unwrap();
        let error = build(&bench.spec("out")).unwrap_err().to_string();
        assert!(
            error.contains("6.1-test") && error.contains("6.12-test"),
            "{error}"
        );
    }
}
