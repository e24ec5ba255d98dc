//! A cpio archive ("newc") whose bytes depend on nothing but what is in it: fixed times, owners and
//! inode numbers, sorted names. Format: the kernel's initramfs buffer format documentation.

use std::collections::BTreeMap;
use std::io;

use cpio::newc::{self, ModeFileType};

/// What a name stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Node {
    /// A folder.
    Folder,
    /// A file: permissions and content.
    File(u32, Vec<u8>),
    /// A symbolic link to a path.
    Link(String),
    /// A character device.
    Device {
        /// Permissions.
        mode: u32,
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
}

/// The tree to be written.
#[derive(Debug, Default)]
pub struct Archive {
    /// By path without a leading slash; sorted, so a folder comes before what is in it.
    nodes: BTreeMap<String, Node>,
}

impl Archive {
    /// Puts a node at a path, in place of what was there, and makes the folders above it.
    pub fn put(&mut self, path: &str, node: Node) {
        let path = path.trim_matches('/');
        for (end, _) in path.match_indices('/') {
            if let Some(parent) = path.get(..end) {
                self.nodes.entry(parent.to_owned()).or_insert(Node::Folder);
            }
        }
        self.nodes.insert(path.to_owned(), node);
    }

    /// Whether the path is taken.
    pub fn contains(&self, path: &str) -> bool {
        self.nodes.contains_key(path.trim_matches('/'))
    }

    /// The archive's bytes.
    pub fn to_bytes(&self) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        for (inode, (path, node)) in (1u32..).zip(&self.nodes) {
            let entry = newc::Builder::new(path).ino(inode).uid(0).gid(0).mtime(0);
            let (entry, content): (newc::Builder, &[u8]) = match node {
                Node::Folder => (
                    entry
                        .nlink(2)
                        .mode(0o755)
                        .set_mode_file_type(ModeFileType::Directory),
                    &[],
                ),
                Node::File(mode, content) => (
                    entry
                        .nlink(1)
                        .mode(*mode)
                        .set_mode_file_type(ModeFileType::Regular),
                    content,
                ),
                Node::Link(target) => (
                    entry
                        .nlink(1)
                        .mode(0o777)
                        .set_mode_file_type(ModeFileType::Symlink),
                    target.as_bytes(),
                ),
                Node::Device { mode, major, minor } => (
                    entry
                        .nlink(1)
                        .mode(*mode)
                        .set_mode_file_type(ModeFileType::Char)
                        .rdev_major(*major)
                        .rdev_minor(*minor),
                    &[],
                ),
            };
            let length = u32::try_from(content.len())
                .map_err(|_| io::Error::other(format!("{path} is larger than 4 GiB")))?;
            let mut writer = entry.write(bytes, length);
            io::Write::write_all(&mut writer, content)?;
            bytes = writer.finish()?;
        }
        newc::trailer(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(bytes: &[u8]) -> Vec<String> {
        let mut names = Vec::new();
        let mut rest = bytes;
        loop {
            let reader = newc::Reader::new(rest).unwrap();
            if reader.entry().is_trailer() {
                return names;
            }
            names.push(reader.entry().name().to_owned());
            rest = reader.finish().unwrap();
        }
    }

    #[test]
    fn the_order_of_putting_does_not_matter() {
        let nodes = [
            ("init", Node::File(0o755, b"x".to_vec())),
            ("/bin/sh", Node::Link("busybox".into())),
            (
                "dev/console",
                Node::Device {
                    mode: 0o600,
                    major: 5,
                    minor: 1,
                },
            ),
        ];
        let (mut one, mut other) = (Archive::default(), Archive::default());
        for (path, node) in &nodes {
            one.put(path, node.clone());
        }
        for (path, node) in nodes.iter().rev() {
            other.put(path, node.clone());
        }
        assert_eq!(one.to_bytes().unwrap(), other.to_bytes().unwrap());
    }

    #[test]
    fn folders_above_a_file_are_there_and_come_first() {
        let mut archive = Archive::default();
        archive.put("/lib/modules/6.1/a.ko", Node::File(0o644, vec![1]));
        let names = names(&archive.to_bytes().unwrap());
        assert_eq!(
            names,
            [
                "lib",
                "lib/modules",
                "lib/modules/6.1",
                "lib/modules/6.1/a.ko"
            ]
        );
    }
}
