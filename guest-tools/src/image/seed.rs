//! A NoCloud seed: the small disk from which cloud-init takes an instance's name, its keys and its
//! user data. A FAT file system with the label CIDATA and the files `meta-data` and `user-data`, as
//! cloud-init's documentation of the NoCloud datasource asks for.

use std::io::{self, Cursor, Write};

use fatfs::{FileSystem, FormatVolumeOptions, FsOptions};
use sha2::{Digest, Sha256};

use super::error::ImageError;

/// Padded with blanks, as FAT wants it.
const LABEL: [u8; 11] = *b"CIDATA     ";
/// Most user data; clouds allow 16 to 64 KiB.
pub const MOST_USER_DATA_BYTES: usize = 4 << 20;
/// For the file system itself.
const SLACK_BYTES: usize = 512 << 10;
const MIB: usize = 1 << 20;
/// What cloud-init wants to see where the user has nothing to say.
const NO_USER_DATA: &[u8] = b"#cloud-config\n{}\n";
/// How SSH names its kinds of keys.
const KEY_KINDS: [&str; 3] = ["ssh-", "ecdsa-", "sk-"];

/// What the seed says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SeedSpec {
    /// Name of the instance, which becomes its host name.
    pub name: String,
    /// User data: `#cloud-config`, a script, or whatever else cloud-init takes.
    pub user_data: Option<Vec<u8>>,
    /// Public keys in the form of `authorized_keys`.
    pub ssh_keys: Vec<String>,
}

/// Public keys of an `authorized_keys` or `.pub` file: one a line, comments left out.
pub fn parse_keys(text: &str) -> Result<Vec<String>, String> {
    let keys: Vec<String> = text
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(str::to_owned)
        .collect();
    if text.contains("PRIVATE KEY") {
        return Err("it is a private key: give the public one, which ends in .pub".into());
    }
    let is_key = |line: &String| {
        let mut words = line.split_ascii_whitespace();
        words.any(|word| KEY_KINDS.iter().any(|kind| word.starts_with(kind)))
            && !line.chars().any(char::is_control)
    };
    match keys.iter().find(|line| !is_key(line)) {
        Some(_) => Err("it has a line that is no public key of SSH".into()),
        None if keys.is_empty() => Err("there is no key in it".into()),
        None => Ok(keys),
    }
}

/// The disk's bytes. The same words give the same disk.
pub fn build(spec: &SeedSpec) -> Result<Vec<u8>, ImageError> {
    let user_data = spec.user_data.as_deref().unwrap_or(NO_USER_DATA);
    if user_data.len() > MOST_USER_DATA_BYTES {
        return Err(ImageError::Invalid(format!(
            "User data has {} bytes: at most {MOST_USER_DATA_BYTES} are allowed",
            user_data.len()
        )));
    }
    let files = [
        ("meta-data", meta_data(spec, user_data)),
        ("user-data", user_data.to_owned()),
    ];
    let content: usize = files.iter().map(|(_, bytes)| bytes.len()).sum();
    let mut disk = vec![0; (content + SLACK_BYTES).next_multiple_of(MIB)];
    write_fat(&mut disk, &files)
        .map_err(|error| ImageError::Invalid(format!("The seed cannot be made: {error}")))?;
    Ok(disk)
}

fn write_fat(disk: &mut [u8], files: &[(&str, Vec<u8>)]) -> io::Result<()> {
    let mut cursor = Cursor::new(disk);
    let options = FormatVolumeOptions::new()
        .volume_label(LABEL)
        .volume_id(0x434f_4e43);
    fatfs::format_volume(&mut cursor, options)?;
    let filesystem = FileSystem::new(&mut cursor, FsOptions::new())?;
    let root = filesystem.root_dir();
    for (name, bytes) in files {
        let mut file = root.create_file(name)?;
        file.write_all(bytes)?;
        file.flush()?;
    }
    drop(root);
    filesystem.unmount()
}

/// Written as JSON, which is YAML too, so that nothing in it can be anything but text.
fn meta_data(spec: &SeedSpec, user_data: &[u8]) -> Vec<u8> {
    // cloud-init runs its modules again when the id is another one: for other words, not for a
    // mere restart of the instance.
    let mut digest = Sha256::new();
    digest.update(user_data);
    for key in &spec.ssh_keys {
        digest.update([0]);
        digest.update(key);
    }
    let digest: String = digest
        .finalize()
        .iter()
        .take(8)
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let mut text = serde_json::json!({
        "instance-id": format!("{}-{digest}", spec.name),
        "local-hostname": spec.name,
        "public-keys": spec.ssh_keys,
    })
    .to_string();
    text.push('\n');
    text.into_bytes()
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    fn read(disk: &[u8], name: &str) -> Vec<u8> {
        let mut disk = disk.to_vec();
        let filesystem = FileSystem::new(Cursor::new(&mut disk), FsOptions::new()).unwrap();
        assert_eq!(filesystem.volume_label(), "CIDATA");
        let mut bytes = Vec::new();
        let mut file = filesystem.root_dir().open_file(name).unwrap();
        file.read_to_end(&mut bytes).unwrap();
        bytes
    }

    fn spec() -> SeedSpec {
        SeedSpec {
            name: "web".into(),
            user_data: Some(b"#cloud-config\npackages: [nginx]\n".to_vec()),
            ssh_keys: vec!["ssh-ed25519 AAAA \"me\": x".into()],
        }
    }

    #[test]
    fn cloud_init_finds_its_files_as_they_were() {
        let disk = build(&spec()).unwrap();
        assert_eq!(read(&disk, "user-data"), spec().user_data.unwrap());
        let meta: serde_json::Value = serde_json::from_slice(&read(&disk, "meta-data")).unwrap();
        assert_eq!(meta["local-hostname"], "web");
        assert_eq!(meta["public-keys"][0], "ssh-ed25519 AAAA \"me\": x");
        assert!(meta["instance-id"].as_str().unwrap().starts_with("web-"));
        assert_eq!(disk, build(&spec()).unwrap());
    }

    #[test]
    fn other_words_are_another_instance_and_a_restart_is_not() {
        let id = |spec: &SeedSpec| {
            let meta = read(&build(spec).unwrap(), "meta-data");
            let meta: serde_json::Value = serde_json::from_slice(&meta).unwrap();
            meta["instance-id"].as_str().unwrap().to_owned()
        };
        let mut other = spec();
        other.ssh_keys.push("ssh-rsa BBBB".into());
        assert_eq!(id(&spec()), id(&spec()));
        assert_ne!(id(&spec()), id(&other));
    }

    #[test]
    fn without_user_data_there_is_an_empty_configuration() {
        let disk = build(&SeedSpec {
            user_data: None,
            ..spec()
        })
        .unwrap();
        assert!(read(&disk, "user-data").starts_with(b"#cloud-config\n"));
    }

    #[test]
    fn large_user_data_fits_and_absurd_user_data_is_refused() {
        let with = |len| {
            build(&SeedSpec {
                user_data: Some(vec![b'x'; len]),
                ..spec()
            })
        };
        let disk = with(MOST_USER_DATA_BYTES).unwrap();
        assert_eq!(read(&disk, "user-data").len(), MOST_USER_DATA_BYTES);
        assert!(with(MOST_USER_DATA_BYTES + 1).is_err());
    }

    #[test]
    fn keys_are_public_keys() {
        let text = "# mine\nssh-ed25519 AAAA me\n\nno-pty ecdsa-sha2-nistp256 BBBB\n";
        assert_eq!(parse_keys(text).unwrap().len(), 2);
        for (text, named) in [
            ("-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n", "private"),
            ("hello\n", "no public key"),
            ("# nothing\n", "no key"),
        ] {
            let why = parse_keys(text).unwrap_err();
            assert!(why.contains(named), "{why}");
        }
    }
}
