//! The kernel proper out of a bzImage: an ELF `vmlinux` that boots by PVH.
//!
//! A bzImage is a real-mode part, a decompressor, and the kernel compressed as the payload, whose
//! place the setup header gives. Offsets: the kernel's x86 boot protocol document, version 2.08 and
//! later.

use std::fs;
use std::path::Path;

use super::compression;
use super::error::ImageError;
use super::initramfs::write_whole;

const BOOT_FLAG: (usize, &[u8]) = (0x1fe, &[0x55, 0xaa]);
const MAGIC: (usize, &[u8]) = (0x202, b"HdrS");
/// The field itself is four bytes further on than the magic.
const PROTOCOL_VERSION: usize = 0x206;
const LEAST_PROTOCOL_VERSION: u16 = 0x208;
const SETUP_SECTORS: usize = 0x1f1;
const DEFAULT_SETUP_SECTORS: u8 = 4;
const SECTOR_BYTES: usize = 512;
const PAYLOAD_OFFSET: usize = 0x248;
const PAYLOAD_LENGTH: usize = 0x24c;

/// Extracts the `vmlinux` of a bzImage into a file; returns its size in bytes.
pub fn extract(bzimage: &Path, output: &Path) -> Result<u64, ImageError> {
    let image = fs::read(bzimage).map_err(ImageError::file("read", bzimage))?;
    let expected = "a bzImage with a kernel in it";
    let payload = payload(&image).map_err(|why| ImageError::format(bzimage, expected, why))?;
    let kernel =
        compression::decompress(payload).map_err(ImageError::file("decompress", bzimage))?;
    if !kernel.starts_with(super::elf::MAGIC) {
        let why = "its payload is no ELF file after decompression";
        return Err(ImageError::format(bzimage, expected, why));
    }
    write_whole(output, &kernel)?;
    Ok(kernel.len() as u64)
}

/// The compressed kernel inside a bzImage. The error is what is wrong with the file.
pub fn payload(image: &[u8]) -> Result<&[u8], String> {
    let is_at = |(offset, bytes): (usize, &[u8])| {
        image
            .get(offset..)
            .is_some_and(|rest| rest.starts_with(bytes))
    };
    if !is_at(BOOT_FLAG) || !is_at(MAGIC) {
        return Err("it has no Linux setup header".into());
    }
    let cut = || "its setup header is cut off".to_owned();
    let version = image
        .get(PROTOCOL_VERSION..)
        .and_then(|b| b.first_chunk())
        .ok_or_else(cut)?;
    let version = u16::from_le_bytes(*version);
    if version < LEAST_PROTOCOL_VERSION {
        return Err(format!(
            "its boot protocol is {}.{:02}, and 2.08 is the least that names a payload",
            version >> 8,
            version & 0xff
        ));
    }
    let sectors = match image.get(SETUP_SECTORS).copied().ok_or_else(cut)? {
        0 => DEFAULT_SETUP_SECTORS,
        sectors => sectors,
    };
    let offset = u32_at(image, PAYLOAD_OFFSET).ok_or_else(cut)?;
    let length = u32_at(image, PAYLOAD_LENGTH).ok_or_else(cut)?;
    let protected_mode = (usize::from(sectors) + 1) * SECTOR_BYTES;
    image
        .get(protected_mode..)
        .and_then(|code| code.get(offset..)?.get(..length))
        .filter(|payload| !payload.is_empty())
        .ok_or_else(|| {
            format!("its payload of {length} bytes lies outside of the file: it may be cut off")
        })
}

fn u32_at(bytes: &[u8], offset: usize) -> Option<usize> {
    let value = u32::from_le_bytes(*bytes.get(offset..)?.first_chunk()?);
    usize::try_from(value).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Write;

    /// One setup sector beyond the first, and the payload a little into what follows.
    fn bzimage(payload: &[u8]) -> Vec<u8> {
        let mut image = vec![0; 2 * SECTOR_BYTES + 16];
        image[SETUP_SECTORS] = 1;
        image[0x1fe..0x200].copy_from_slice(BOOT_FLAG.1);
        image[0x202..0x206].copy_from_slice(MAGIC.1);
        image[PROTOCOL_VERSION..PROTOCOL_VERSION + 2].copy_from_slice(&0x20f_u16.to_le_bytes());
        image[PAYLOAD_OFFSET] = 16;
        image[PAYLOAD_LENGTH..PAYLOAD_LENGTH + 4]
            .copy_from_slice(&(payload.len() as u32).to_le_bytes());
        image.extend_from_slice(payload);
        image
    }

    fn gzip(plain: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(plain).unwrap();
        encoder.finish().unwrap()
    }

    fn extract_bytes(image: &[u8]) -> Result<Vec<u8>, ImageError> {
        let folder = tempfile::tempdir().unwrap();
        let (input, output) = (folder.path().join("bzImage"), folder.path().join("vmlinux"));
        fs::write(&input, image).unwrap();
        let result = extract(&input, &output);
        assert_eq!(output.exists(), result.is_ok(), "a failure leaves no file");
        result.map(|_| fs::read(&output).unwrap())
    }

    #[test]
    fn the_kernel_comes_out_whole_with_its_appended_size_ignored() {
        let kernel = b"\x7fELF and the rest of a kernel";
        let payload = [gzip(kernel), (kernel.len() as u32).to_le_bytes().to_vec()].concat();
        assert_eq!(extract_bytes(&bzimage(&payload)).unwrap(), kernel);
    }

    #[test]
    fn every_truncation_is_refused() {
        let image = bzimage(&gzip(b"\x7fELF"));
        for length in 0..image.len() {
            assert!(payload(&image[..length]).is_err(), "{length}");
        }
    }

    #[test]
    fn what_is_no_kernel_is_refused_with_a_reason() {
        for (image, must_hold) in [
            (b"\x7fELF".to_vec(), "setup header"),
            (bzimage(&gzip(b"text")), "no ELF file"),
            (bzimage(b""), "outside of the file"),
        ] {
            let error = extract_bytes(&image).unwrap_err().to_string();
            assert!(error.contains(must_hold), "{error}");
        }
    }

    #[test]
    fn an_old_boot_protocol_is_named() {
        let mut image = bzimage(&gzip(b"\x7fELF"));
        image[PROTOCOL_VERSION..PROTOCOL_VERSION + 2].copy_from_slice(&0x0204_u16.to_le_bytes());
        assert!(payload(&image).unwrap_err().contains("2.04"));
    }

    proptest! {
        #[test]
        fn hostile_headers_never_panic(
            changes in prop::collection::vec((0x1f0usize..0x260, any::<u8>()), 0..12)
        ) {
            let mut image = bzimage(&gzip(b"\x7fELF"));
            for (offset, byte) in changes {
                image[offset] = byte;
            }
            let _ = payload(&image);
        }
    }
}
