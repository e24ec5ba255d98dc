//! Our own files of the guest, as a folder that goes over the base system.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use super::DebianSpec;
use crate::image::error::ImageError;

const SERVICE: &str = include_str!("../../../dist/concertina-guest.service");
const HOTPLUG_RULES: &str = include_str!("../../../dist/80-concertina-hotplug.rules");
const DHCP: &str = include_str!("../../../dist/80-concertina-dhcp.network");
const AUTOLOGIN: &str = include_str!("../../../dist/autologin.conf");

/// Writes them into a temporary folder.
pub fn write(spec: &DebianSpec, uuid: &str) -> Result<tempfile::TempDir, ImageError> {
    let parent = std::env::temp_dir();
    let folder = tempfile::Builder::new()
        .prefix("concertina-overlay-")
        .tempdir()
        .map_err(ImageError::file("create a folder in", &parent))?;
    let root = folder.path();
    for (path, text) in texts(spec, uuid) {
        put(root, path, text.as_bytes(), 0o644)?;
    }
    let program =
        fs::read(&spec.guest_program).map_err(ImageError::file("read", &spec.guest_program))?;
    put(root, "usr/local/bin/concertina-guest", &program, 0o755)?;
    let resolver = root.join("etc/resolv.conf");
    symlink("../run/systemd/resolve/stub-resolv.conf", &resolver)
        .map_err(ImageError::file("create", &resolver))?;
    Ok(folder)
}

fn texts(spec: &DebianSpec, uuid: &str) -> Vec<(&'static str, String)> {
    let name = &spec.hostname;
    let mut texts = vec![
        (
            "etc/systemd/system/concertina-guest.service",
            SERVICE.to_owned(),
        ),
        (
            "etc/udev/rules.d/80-concertina-hotplug.rules",
            HOTPLUG_RULES.to_owned(),
        ),
        (
            "etc/systemd/network/80-concertina-dhcp.network",
            DHCP.to_owned(),
        ),
        ("etc/hostname", format!("{name}\n")),
        (
            "etc/hosts",
            format!(
                "127.0.0.1 localhost\n127.0.1.1 {name}\n::1 localhost ip6-localhost ip6-loopback\n"
            ),
        ),
        // A disk that was made longer is used to its end.
        (
            "etc/fstab",
            format!("UUID={uuid} / ext4 errors=remount-ro,x-systemd.growfs 0 1\n"),
        ),
        // Empty: each guest makes its own at its first boot.
        ("etc/machine-id", String::new()),
    ];
    if spec.root_password.is_none() {
        texts.push((
            "etc/systemd/system/serial-getty@.service.d/autologin.conf",
            AUTOLOGIN.to_owned(),
        ));
    }
    texts
}

fn put(root: &Path, path: &str, content: &[u8], mode: u32) -> Result<(), ImageError> {
    let path = root.join(path);
    let write = || -> std::io::Result<()> {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        fs::write(&path, content)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(mode))
    };
    write().map_err(ImageError::file("write", &path))
}

#[cfg(test)]
mod tests {
    use super::super::tests::spec;
    use super::*;

    #[test]
    fn the_guest_gets_its_name_its_root_and_our_program() {
        let mut spec = spec();
        spec.hostname = "web".into();
        let folder = write(&spec, "1234-uuid").unwrap();
        let text = |path: &str| fs::read_to_string(folder.path().join(path)).unwrap();
        assert_eq!(text("etc/hostname"), "web\n");
        assert!(text("etc/fstab").starts_with("UUID=1234-uuid / ext4 "));
        assert_eq!(text("etc/machine-id"), "");
        let program = folder.path().join("usr/local/bin/concertina-guest");
        assert_eq!(
            fs::metadata(program).unwrap().permissions().mode() & 0o777,
            0o755
        );
        // However it ends, the host hears of the guest again.
        let service = text("etc/systemd/system/concertina-guest.service");
        assert!(service.contains("\nRestart=always\n"), "{service}");
        assert!(service.contains("\nStartLimitIntervalSec=0\n"), "{service}");
        assert!(
            text("etc/udev/rules.d/80-concertina-hotplug.rules").contains("SUBSYSTEM==\"cpu\"")
        );
    }

    #[test]
    fn the_console_logs_in_by_itself_only_without_a_password() {
        let autologin = "etc/systemd/system/serial-getty@.service.d/autologin.conf";
        let mut spec = spec();
        assert!(write(&spec, "u").unwrap().path().join(autologin).exists());
        spec.root_password = Some("secret".into());
        assert!(!write(&spec, "u").unwrap().path().join(autologin).exists());
    }
}
