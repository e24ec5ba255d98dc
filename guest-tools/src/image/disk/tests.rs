//! Images that mke2fs makes where it is installed, and bytes made by hand for what it would refuse.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use proptest::prelude::*;

use super::boot::inspect_image;
use super::table::tests::gpt;
use super::*;
use crate::image::tool::MKE2FS;

const MIB: usize = 1 << 20;
const RELEASE: &str = "6.1.0-9-amd64";

/// A file system of a folder's content; `None` where there is no mke2fs.
fn make(tree: &Path, options: &[&str]) -> Option<Vec<u8>> {
    let Ok(mke2fs) = MKE2FS.find() else {
        eprintln!("Without mke2fs this test proves nothing");
        return None;
    };
    let image = tree.with_extension("img");
    let status = Command::new(mke2fs)
        .args([
            "-q",
            "-F",
            "-t",
            "ext4",
            "-U",
            "11111111-2222-3333-4444-555555555555",
        ])
        .args(options)
        .arg("-d")
        .args([tree, &image])
        .arg("16M")
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .status()
        .unwrap();
    assert!(status.success());
    Some(fs::read(image).unwrap())
}

/// A folder that looks like a distribution.
fn distribution(folder: &Path) -> PathBuf {
    let tree = folder.join("tree");
    for path in ["boot", "usr/lib/systemd", "usr/sbin", "etc"] {
        fs::create_dir_all(tree.join(path)).unwrap();
    }
    let put = |path: &str, text: &str| fs::write(tree.join(path), text).unwrap();
    put(
        "usr/lib/os-release",
        "NAME=x\nPRETTY_NAME=\"Test \u{1b}[31mLinux 1\"\n",
    );
    put("usr/lib/systemd/systemd", "init");
    put(&format!("boot/vmlinuz-{RELEASE}"), "kernel");
    put(&format!("boot/initrd.img-{RELEASE}"), "initrd");
    symlink("../usr/lib/os-release", tree.join("etc/os-release")).unwrap();
    symlink("usr/sbin", tree.join("sbin")).unwrap();
    symlink("/usr/lib/systemd/systemd", tree.join("usr/sbin/init")).unwrap();
    tree
}

fn look(bytes: &[u8]) -> Inspection {
    inspect_image(&Image::of_bytes(bytes), Path::new("disk")).unwrap()
}

#[test]
fn a_bare_file_system_is_the_whole_disk() {
    let folder = tempfile::tempdir().unwrap();
    let Some(disk) = make(&distribution(folder.path()), &["-L", "rootfs"]) else {
        return;
    };
    let found = look(&disk);
    assert_eq!(found.table.as_str(), "none");
    assert_eq!(found.parts.len(), 1);
    assert_eq!(found.parts[0].label.as_deref(), Some("rootfs"));
    assert_eq!(found.release.as_deref(), Some(RELEASE));
    assert_eq!(
        found.kernel.as_ref().unwrap().path,
        format!("/boot/vmlinuz-{RELEASE}")
    );
    assert_eq!(found.initrd.as_ref().unwrap().size_bytes, 6);
    assert_eq!(
        found.root_arguments().unwrap(),
        "root=UUID=11111111-2222-3333-4444-555555555555 ro"
    );
    // What goes to a terminal commands no terminal.
    assert_eq!(
        found.root.as_ref().unwrap().os.as_deref(),
        Some("Test [31mLinux 1")
    );
    assert_eq!(found.lacks(), None);
}

#[test]
fn a_partition_is_found_behind_its_table_and_extracted() {
    let folder = tempfile::tempdir().unwrap();
    let Some(filesystem) = make(&distribution(folder.path()), &[]) else {
        return;
    };
    let mut disk = gpt(20 * MIB, &[(2048, 4095), (4096, 4096 + 32767)]);
    disk[2 * MIB..18 * MIB].copy_from_slice(&filesystem);
    let path = folder.path().join("disk");
    fs::write(&path, &disk).unwrap();
    let found = inspect(&path).unwrap();
    assert_eq!(found.table.as_str(), "gpt");
    assert_eq!(found.root.as_ref().unwrap().partition, 2);
    assert_eq!(found.parts[1].device(), "/dev/vda2");
    let extracted = extract(&found, folder.path()).unwrap();
    assert_eq!(fs::read(&extracted.kernel).unwrap(), b"kernel");
    assert_eq!(
        fs::read(extracted.initrd.clone().unwrap()).unwrap(),
        b"initrd"
    );
    // The same image has the same files; nothing else is left in the cache.
    let cached = || fs::read_dir(folder.path().join("boot")).unwrap().count();
    assert_eq!(extract(&found, folder.path()).unwrap(), extracted);
    assert_eq!(cached(), 2);
    // Whatever its guest makes its kernel.
    let place = disk.windows(6).position(|bytes| bytes == b"kernel");
    disk[place.unwrap()..][..6].copy_from_slice(b"Kernel");
    fs::write(&path, &disk).unwrap();
    assert_eq!(extract(&found, folder.path()).unwrap(), extracted);
    assert_eq!(fs::read(&extracted.kernel).unwrap(), b"Kernel");
    assert_eq!(cached(), 2);
    forget(&path, folder.path()).unwrap();
    assert_eq!(cached(), 0);
    forget(&path, folder.path()).unwrap();
}

#[test]
fn what_was_taken_out_of_an_image_long_ago_is_removed_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let Some(filesystem) = make(&distribution(folder.path()), &[]) else {
        return;
    };
    let path = folder.path().join("disk");
    fs::write(&path, filesystem).unwrap();
    let boot = folder.path().join("boot");
    fs::create_dir(&boot).unwrap();
    let day = Duration::from_secs(24 * 3600);
    for (name, age) in [
        ("kernel-old", 31),
        (".copy-half", 31),
        ("mine", 31),
        ("initrd-new", 29),
    ] {
        let file = fs::File::create(boot.join(name)).unwrap();
        file.set_modified(SystemTime::now() - age * day).unwrap();
    }
    extract(&inspect(&path).unwrap(), folder.path()).unwrap();
    let there = |name: &str| boot.join(name).exists();
    assert_eq!(
        ["kernel-old", ".copy-half", "mine", "initrd-new"].map(there),
        [false, false, true, true]
    );
}

#[test]
fn without_an_initrd_the_kernel_finds_its_root_by_itself() {
    let folder = tempfile::tempdir().unwrap();
    let tree = distribution(folder.path());
    fs::remove_file(tree.join(format!("boot/initrd.img-{RELEASE}"))).unwrap();
    let Some(filesystem) = make(&tree, &[]) else {
        return;
    };
    assert_eq!(
        look(&filesystem).root_arguments().unwrap(),
        "root=/dev/vda ro"
    );
    let mut disk = gpt(20 * MIB, &[(4096, 4096 + 32767)]);
    disk[2 * MIB..18 * MIB].copy_from_slice(&filesystem);
    assert_eq!(
        look(&disk).root_arguments().unwrap(),
        "root=PARTUUID=01010101-0101-0101-0101-010101010101 ro"
    );
}

#[test]
fn the_newest_kernel_is_taken_unless_a_link_says_otherwise() {
    let folder = tempfile::tempdir().unwrap();
    let tree = distribution(folder.path());
    for name in [
        "vmlinuz-6.1.0-10-amd64",
        "initrd.img-6.1.0-10-amd64",
        "vmlinuz-9.0-rescue",
        "vmlinuz-9.9",
    ] {
        fs::write(tree.join("boot").join(name), "x").unwrap();
    }
    let Some(disk) = make(&tree, &[]) else {
        return;
    };
    assert_eq!(look(&disk).release.as_deref(), Some("6.1.0-10-amd64"));
    symlink(format!("boot/vmlinuz-{RELEASE}"), tree.join("vmlinuz")).unwrap();
    assert_eq!(
        look(&make(&tree, &[]).unwrap()).release.as_deref(),
        Some(RELEASE)
    );
}

#[test]
fn a_boot_partition_of_its_own_is_searched() {
    let folder = tempfile::tempdir().unwrap();
    let tree = folder.path().join("tree");
    fs::create_dir(&tree).unwrap();
    fs::write(tree.join("vmlinuz-6.12.1-1.fc"), "kernel").unwrap();
    fs::write(tree.join("initramfs-6.12.1-1.fc.img"), "initrd").unwrap();
    let Some(boot) = make(&tree, &[]) else {
        return;
    };
    let mut disk = gpt(40 * MIB, &[(4096, 4096 + 32767), (40960, 50000)]);
    disk[2 * MIB..18 * MIB].copy_from_slice(&boot);
    disk[20 * MIB..][..4].copy_from_slice(b"XFSB");
    let found = look(&disk);
    assert_eq!(found.kernel.as_ref().unwrap().partition, 1);
    assert_eq!(
        found.initrd.as_ref().unwrap().path,
        "/initramfs-6.12.1-1.fc.img"
    );
    // The table says that both are roots; the one that could be one is taken.
    assert_eq!(found.root.as_ref().unwrap().partition, 1);
}

#[test]
fn an_image_with_nothing_to_boot_says_what_it_lacks() {
    for disk in [vec![0; MIB], vec![], gpt(2 * MIB, &[(2048, 2100)])] {
        let found = look(&disk);
        assert!(found.lacks().unwrap().contains("no kernel"), "{found:?}");
        let cache = tempfile::tempdir().unwrap();
        assert!(extract(&found, cache.path()).is_err());
    }
}

#[test]
fn other_formats_are_named_with_the_command_that_helps() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.qcow2");
    fs::write(&path, b"QFI\xfb\0\0\0\x03 and more").unwrap();
    let text = inspect(&path).unwrap_err().to_string();
    assert!(
        text.contains("qcow2") && text.contains("concertina image import"),
        "{text}"
    );
    assert!(
        inspect(folder.path())
            .unwrap_err()
            .to_string()
            .contains("neither a file")
    );
    assert!(inspect(&folder.path().join("absent")).is_err());
}

#[test]
fn a_truncated_image_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let Some(disk) = make(&distribution(folder.path()), &[]) else {
        return;
    };
    let text = look(&disk[..8 * MIB]).lacks().unwrap();
    assert!(text.contains("cut off"), "{text}");
    assert!(look(&disk[..1024 + 512]).lacks().is_some());
}

#[test]
fn an_absurd_superblock_is_refused_before_anything_is_allocated() {
    let folder = tempfile::tempdir().unwrap();
    // Without checksums, so that what is changed is believed.
    let options = ["-O", "^metadata_csum"];
    let Some(disk) = make(&distribution(folder.path()), &options) else {
        return;
    };
    for (at, value) in [
        (0x18, 40u32),     // block size
        (0x20, 0),         // blocks per group
        (0x20, u32::MAX),  // blocks per group
        (0x04, u32::MAX),  // blocks
        (0x150, u32::MAX), // blocks, high
    ] {
        let mut disk = disk.clone();
        disk[1024 + at..][..4].copy_from_slice(&value.to_le_bytes());
        let text = look(&disk).lacks().unwrap();
        assert!(
            text.contains("absurd") || text.contains("cut off"),
            "{at:#x}: {text}"
        );
    }
    // A journal that is to be replayed, and whose inode claims 8 EiB.
    let mut disk = disk;
    disk[1024 + 0x60] |= 4;
    let block = 1024usize << disk[1024 + 0x18];
    let groups = block.max(2048);
    let table = u32::from_le_bytes(*disk[groups + 8..].first_chunk().unwrap()) as usize;
    let inode = table * block + 7 * 256;
    disk[inode + 0x6c..][..4].copy_from_slice(&0x7fff_ffffu32.to_le_bytes());
    let text = look(&disk).lacks().unwrap();
    assert!(text.contains("journal is absurdly large"), "{text}");
}

#[test]
fn links_that_go_round_or_claim_much_lead_nowhere() {
    let folder = tempfile::tempdir().unwrap();
    let tree = distribution(folder.path());
    symlink("b", tree.join("a")).unwrap();
    symlink("a", tree.join("b")).unwrap();
    symlink("../../../../boot/../a/x", tree.join("vmlinuz")).unwrap();
    fs::remove_file(tree.join("etc/os-release")).unwrap();
    symlink("loop/loop/loop", tree.join("etc/os-release")).unwrap();
    symlink(".", tree.join("etc/loop")).unwrap();
    let Some(disk) = make(&tree, &["-O", "^metadata_csum"]) else {
        return;
    };
    let found = look(&disk);
    assert_eq!(found.release.as_deref(), Some(RELEASE));
    let files = filesystem::Filesystem::open(&Image::of_bytes(&disk)).unwrap();
    assert_eq!(files.find("/a/x"), None);
    assert_eq!(files.find("/a"), None);
    assert_eq!(files.find("/vmlinuz"), None);
    assert_eq!(
        files.find("/../../sbin/./init").unwrap().path,
        "/usr/lib/systemd/systemd"
    );
    assert_eq!(files.find("/usr/lib/os-release/x"), None);
}

#[test]
fn a_file_that_claims_more_than_a_kernel_can_have_is_not_copied() {
    let folder = tempfile::tempdir().unwrap();
    let tree = distribution(folder.path());
    let kernel = tree.join(format!("boot/vmlinuz-{RELEASE}"));
    // A hole of one TiB takes no room in the image.
    fs::File::create(&kernel).unwrap().set_len(1 << 40).unwrap();
    let Some(disk) = make(&tree, &[]) else {
        return;
    };
    let path = folder.path().join("disk");
    fs::write(&path, disk).unwrap();
    let found = inspect(&path).unwrap();
    let text = extract(&found, folder.path()).unwrap_err().to_string();
    assert!(text.contains("larger than 512 MiB"), "{text}");
    assert_eq!(fs::read_dir(folder.path().join("boot")).unwrap().count(), 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn damaged_file_systems_are_survived(
        damage in prop::collection::vec((0usize..3 * MIB, any::<u8>()), 1..400),
    ) {
        let folder = tempfile::tempdir().unwrap();
        let tree = distribution(folder.path());
        if let Some(mut disk) = make(&tree, &["-O", "^metadata_csum", "-b", "1024", "-N", "64"]) {
            for (at, byte) in damage {
                disk[1024 + at % (256 << 10)] = byte;
            }
            let path = folder.path().join("disk");
            fs::write(&path, disk).unwrap();
            let found = inspect(&path).unwrap();
            let _ = extract(&found, folder.path());
        }
    }
}
