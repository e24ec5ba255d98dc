//! Parts of images, by their digest: each is fetched once, checked, and then shared by all instances.
//!
//! A file under its digest is whole and was checked: it gets that name last. What is half there has
//! another name, and is removed by the next agent. A file's time of change is when it was used last: where
//! all of them take more room than they may, those that nobody uses go, the oldest first.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use concertina_api::Bytes;
use concertina_api::link::Artifact;
use sha2::{Digest, Sha256};

use super::download;
use super::lock_of;

/// Unit of a file's size on its disk, stat(2).
const BLOCK_BYTES: u64 = 512;
/// How much is read at once; what is zeroes all over is left out of the file.
const CHUNK_BYTES: usize = 64 << 10;

/// The cache.
#[derive(Debug)]
pub(super) struct Artifacts {
    folder: PathBuf,
    /// Who fetches: the same part is fetched by one launch, and the others wait for it.
    fetching: Mutex<BTreeMap<String, Arc<Mutex<()>>>>,
}

impl Artifacts {
    /// In a folder that is there. What an agent that died has fetched half of is removed.
    pub fn open(folder: PathBuf) -> io::Result<Self> {
        for entry in fs::read_dir(&folder)? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "new") {
                fs::remove_file(&path)?;
            }
        }
        Ok(Self {
            folder,
            fetching: Mutex::default(),
        })
    }

    /// The file of a part, fetched if it is not there.
    ///
    /// # Errors
    /// A sentence: it cannot be fetched, or is not what was registered. Nothing of it is left.
    pub fn fetch(&self, artifact: &Artifact) -> Result<PathBuf, String> {
        let digest = &artifact.sha256;
        let is_hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        if digest.len() != 64 || !digest.bytes().all(is_hex) {
            return Err(format!(
                "Digest '{digest}' of the image is not allowed: 64 hexadecimal digits are"
            ));
        }
        let turn = Arc::clone(lock_of(&self.fetching).entry(digest.clone()).or_default());
        let fetched = {
            let _turn = lock_of(&turn);
            self.fetch_alone(artifact)
        };
        let mut fetching = lock_of(&self.fetching);
        // The map and this one: nobody else waits.
        if Arc::strong_count(&turn) <= 2 {
            fetching.remove(digest);
        }
        fetched
    }

    fn fetch_alone(&self, artifact: &Artifact) -> Result<PathBuf, String> {
        let place = self.folder.join(&artifact.sha256);
        if place
            .metadata()
            .is_ok_and(|about| about.len() == artifact.size_bytes)
        {
            // One whose time cannot be set goes sooner than it should, and is fetched again.
            let opened = OpenOptions::new().write(true).open(&place);
            let _ = opened.and_then(|file| file.set_modified(SystemTime::now()));
            return Ok(place);
        }
        let fresh = self.folder.join(format!("{}.new", artifact.sha256));
        let fetched = take(artifact, &fresh).and_then(|()| {
            fs::rename(&fresh, &place)
                .map_err(|error| format!("The image cannot be kept on the host: {error}"))
        });
        if fetched.is_err() {
            let _ = fs::remove_file(&fresh);
        }
        fetched.map(|()| place)
    }

    /// Removes parts until what is left takes at most `most`, or is used. `used`: digests of those that
    /// somebody uses, or is about to; it is asked while nobody begins to use another one. `None`: that
    /// is not known, and nothing is removed.
    pub fn prune(&self, most: Bytes, used: impl FnOnce() -> Option<BTreeSet<String>>) {
        let _nobody_begins = lock_of(&self.fetching);
        let Some(used) = used() else { return };
        let mut room = 0u64;
        let mut unused = Vec::new();
        for entry in fs::read_dir(&self.folder).into_iter().flatten().flatten() {
            let Ok(about) = entry.metadata() else {
                continue;
            };
            let takes = about.blocks().saturating_mul(BLOCK_BYTES);
            room = room.saturating_add(takes);
            let name = entry.file_name();
            let is_used = name.to_str().is_none_or(|name| used.contains(name));
            // What is being fetched has another name.
            if !is_used && entry.path().extension().is_none() {
                let last = about.modified().unwrap_or(SystemTime::UNIX_EPOCH);
                unused.push((last, takes, entry.path()));
            }
        }
        unused.sort();
        for (_, takes, path) in unused {
            if room <= most.get() {
                return;
            }
            match fs::remove_file(&path) {
                Ok(()) => room = room.saturating_sub(takes),
                Err(error) => eprintln!("concertina: The image {}: {error}", path.display()),
            }
        }
    }
}

/// Fetches a part to a file, and checks it.
fn take(artifact: &Artifact, fresh: &Path) -> Result<(), String> {
    let url = &artifact.url;
    let failed = |why: String| format!("The image cannot be fetched from {url}: {why}");
    let said = |error: io::Error| failed(error.to_string());
    let mut source: Box<dyn Read> = match url.strip_prefix("file://") {
        Some(path) => Box::new(File::open(path).map_err(said)?),
        None => Box::new(download::open(url, artifact.size_bytes).map_err(failed)?),
    };
    let mut options = OpenOptions::new();
    let options = options.write(true).create(true).truncate(true).mode(0o600);
    let mut file = options.open(fresh).map_err(said)?;
    let (length, digest) = copy(source.as_mut(), &mut file, artifact.size_bytes).map_err(said)?;
    if length != artifact.size_bytes {
        return Err(format!(
            "The image from {url} is not the one that was registered: it has {} {} bytes, and {} were \
             expected",
            if length > artifact.size_bytes {
                "over"
            } else {
                "only"
            },
            length.min(artifact.size_bytes),
            artifact.size_bytes
        ));
    }
    if digest != artifact.sha256 {
        return Err(format!(
            "The image from {url} is not the one that was registered: its SHA-256 is {digest}, and {} \
             was expected",
            artifact.sha256
        ));
    }
    file.sync_all().map_err(said)
}

/// Copies at most one byte more than `most`; the length and the digest of what came.
fn copy(source: &mut dyn Read, file: &mut File, most: u64) -> io::Result<(u64, String)> {
    let mut source = source.take(most.saturating_add(1));
    let mut digest = Sha256::new();
    let mut chunk = vec![0; CHUNK_BYTES];
    let mut length = 0u64;
    loop {
        let count = fill(&mut source, &mut chunk)?;
        let read = chunk.get(..count).unwrap_or_default();
        if read.is_empty() {
            break;
        }
        digest.update(read);
        length += count as u64;
        if read.iter().all(|byte| *byte == 0) {
            file.seek(SeekFrom::Start(length))?;
        } else {
            file.write_all(read)?;
        }
    }
    file.set_len(length)?;
    let hex = digest.finalize();
    Ok((
        length,
        hex.iter().map(|byte| format!("{byte:02x}")).collect(),
    ))
}

/// Reads until the chunk is full or the source has ended.
fn fill(source: &mut dyn Read, chunk: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while let Some(rest) = chunk.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match source.read(rest) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A file as a part of an image.
    pub(in super::super) fn artifact(path: &Path) -> Artifact {
        let content = fs::read(path).unwrap();
        let digest = Sha256::digest(&content);
        Artifact {
            url: format!("file://{}", path.display()),
            sha256: digest.iter().map(|byte| format!("{byte:02x}")).collect(),
            size_bytes: content.len() as u64,
        }
    }

    #[test]
    fn a_part_is_fetched_once_and_zeroes_take_no_room() {
        let folder = tempfile::tempdir().unwrap();
        let source = folder.path().join("source");
        let mut content = vec![0; 4 << 20];
        content.extend(b"the end");
        fs::write(&source, &content).unwrap();
        let part = artifact(&source);
        let cache = folder.path().join("cache");
        fs::create_dir(&cache).unwrap();
        fs::write(cache.join("0.new"), "half").unwrap();
        let artifacts = Artifacts::open(cache.clone()).unwrap();
        let place = artifacts.fetch(&part).unwrap();
        assert_eq!(fs::read(&place).unwrap(), content);
        let blocks = place.metadata().unwrap().blocks();
        assert!(blocks * 512 < 1 << 20, "{blocks}");
        // From here on the source is not needed.
        fs::remove_file(&source).unwrap();
        assert_eq!(artifacts.fetch(&part).unwrap(), place);
        assert_eq!(fs::read_dir(&cache).unwrap().count(), 1);
        assert!(lock_of(&artifacts.fetching).is_empty());
    }

    #[test]
    fn what_nobody_uses_goes_when_there_is_too_much_the_longest_unused_first() {
        let folder = tempfile::tempdir().unwrap();
        let cache = folder.path().join("cache");
        fs::create_dir(&cache).unwrap();
        let artifacts = Artifacts::open(cache.clone()).unwrap();
        let parts: Vec<Artifact> = (1..=4u8)
            .map(|number| {
                let source = folder.path().join(number.to_string());
                fs::write(&source, vec![number; 1 << 20]).unwrap();
                artifact(&source)
            })
            .collect();
        for (part, age_s) in parts.iter().zip([40, 30, 20, 10]) {
            let place = artifacts.fetch(part).unwrap();
            let then = SystemTime::now() - std::time::Duration::from_secs(age_s);
            let file = OpenOptions::new().write(true).open(place).unwrap();
            file.set_modified(then).unwrap();
        }
        fs::write(cache.join("half.new"), "").unwrap();
        let there = || -> Vec<bool> {
            let is_there = |part: &Artifact| cache.join(&part.sha256).exists();
            parts.iter().map(is_there).collect()
        };
        let used = |which: &[usize]| {
            let digests = which.iter().map(|number| parts[*number].sha256.clone());
            Some(digests.collect::<BTreeSet<_>>())
        };
        artifacts.prune(Bytes::mib(8), || used(&[]));
        artifacts.prune(Bytes(0), || None);
        assert_eq!(
            there(),
            [true; 4],
            "there is room; and who uses what is not known"
        );
        // Used a moment ago, so that the second is the oldest one that may go.
        artifacts.fetch(&parts[0]).unwrap();
        artifacts.prune(Bytes(3 << 20 | 64 << 10), || used(&[]));
        assert_eq!(there(), [true, false, true, true]);
        artifacts.prune(Bytes(0), || used(&[2]));
        assert_eq!(there(), [false, false, true, false], "what is used stays");
        assert!(cache.join("half.new").exists(), "somebody fetches that");
    }

    #[test]
    fn what_is_not_what_was_registered_is_refused_and_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let source = folder.path().join("source");
        fs::write(&source, "content").unwrap();
        let good = artifact(&source);
        let cache = folder.path().join("cache");
        fs::create_dir(&cache).unwrap();
        let artifacts = Artifacts::open(cache.clone()).unwrap();
        let other = |change: &dyn Fn(&mut Artifact)| {
            let mut part = good.clone();
            change(&mut part);
            artifacts.fetch(&part).unwrap_err()
        };
        let wrong = other(&|part| part.sha256 = "0".repeat(64));
        assert!(wrong.contains(&good.sha256), "{wrong}");
        let short = other(&|part| part.size_bytes = 8);
        assert!(short.contains("only 7") && short.contains('8'), "{short}");
        let long = other(&|part| part.size_bytes = 6);
        assert!(long.contains("over 6"), "{long}");
        let missing = other(&|part| part.url = "file:///nonexistent".into());
        assert!(missing.contains("/nonexistent"), "{missing}");
        let escaping = other(&|part| part.sha256 = "../../x".into());
        assert!(escaping.contains("not allowed"), "{escaping}");
        assert_eq!(fs::read_dir(&cache).unwrap().count(), 0);
    }
}
