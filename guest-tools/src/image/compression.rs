//! Decompression of kernels and modules, told apart by their first bytes. All decoders are pure
//! Rust, and every result has a limit: a small hostile file must not fill the host's memory.

use std::io::{self, Read};

/// No kernel and no module is larger.
pub const MOST_BYTES: u64 = 512 << 20;

const GZIP: &[u8] = &[0x1f, 0x8b];
const XZ: &[u8] = &[0xfd, b'7', b'z', b'X', b'Z', 0];
const ZSTD: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];
const LZ4_LEGACY: &[u8] = &[0x02, 0x21, 0x4c, 0x18];
/// The legacy LZ4 format's blocks hold this much each, the last one less.
const LZ4_BLOCK_BYTES: usize = 8 << 20;

/// The formats that are told apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// gzip.
    Gzip,
    /// xz.
    Xz,
    /// Zstandard.
    Zstd,
    /// LZ4 as the kernel's build uses it ("legacy" frames).
    Lz4,
    /// None of these.
    None,
}

impl Compression {
    /// Looks at the first bytes.
    pub fn of(data: &[u8]) -> Self {
        match data {
            d if d.starts_with(GZIP) => Self::Gzip,
            d if d.starts_with(XZ) => Self::Xz,
            d if d.starts_with(ZSTD) => Self::Zstd,
            d if d.starts_with(LZ4_LEGACY) => Self::Lz4,
            _ => Self::None,
        }
    }
}

/// Decompresses; what is in no known format comes back as it is. What follows the compressed data
/// (a kernel payload ends with its size) is left alone.
pub fn decompress(data: &[u8]) -> io::Result<Vec<u8>> {
    match Compression::of(data) {
        Compression::Gzip => read_limited(flate2::read::GzDecoder::new(data)),
        Compression::Xz => read_limited(lzma_rust2::XzReader::new(data, false)),
        Compression::Zstd => {
            let decoder = ruzstd::decoding::StreamingDecoder::new(data)
                .map_err(|error| invalid(error.to_string()))?;
            read_limited(decoder)
        }
        Compression::Lz4 => lz4_legacy(data.get(LZ4_LEGACY.len()..).unwrap_or_default()),
        Compression::None => Ok(data.to_vec()),
    }
}

fn read_limited(reader: impl Read) -> io::Result<Vec<u8>> {
    let mut plain = Vec::new();
    reader.take(MOST_BYTES + 1).read_to_end(&mut plain)?;
    if plain.len() as u64 > MOST_BYTES {
        return Err(too_large());
    }
    Ok(plain)
}

/// Blocks of a 32-bit length and that many bytes of LZ4. A short block is the last one; the
/// kernel's build appends the plain size after it, which is no block.
fn lz4_legacy(mut data: &[u8]) -> io::Result<Vec<u8>> {
    let mut plain = Vec::new();
    let mut block = vec![0; LZ4_BLOCK_BYTES];
    while let Some((length, rest)) = data.split_first_chunk::<4>() {
        if length == LZ4_LEGACY {
            data = rest; // a further frame
            continue;
        }
        let length = u32::from_le_bytes(*length) as usize;
        let Some(packed) = rest.get(..length) else {
            if plain.is_empty() {
                return Err(invalid("the first LZ4 block is cut off".into()));
            }
            break;
        };
        let got = lz4_flex::block::decompress_into(packed, &mut block)
            .map_err(|error| invalid(error.to_string()))?;
        plain.extend_from_slice(block.get(..got).unwrap_or_default());
        if plain.len() as u64 > MOST_BYTES {
            return Err(too_large());
        }
        data = rest.get(length..).unwrap_or_default();
        if got < LZ4_BLOCK_BYTES {
            break;
        }
    }
    Ok(plain)
}

fn invalid(why: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

fn too_large() -> io::Error {
    invalid(format!(
        "it decompresses to more than {} MiB",
        MOST_BYTES >> 20
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Write;

    /// LZ4 literals only: a token with the literal length, then the bytes.
    fn lz4_block(plain: &[u8]) -> Vec<u8> {
        assert!((15..15 + 255).contains(&plain.len()));
        let mut block = vec![0xf0, (plain.len() - 15) as u8];
        block.extend_from_slice(plain);
        let mut framed = (block.len() as u32).to_le_bytes().to_vec();
        framed.extend_from_slice(&block);
        framed
    }

    #[test]
    fn gzip_comes_back_as_it_was() {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(b"module").unwrap();
        assert_eq!(decompress(&encoder.finish().unwrap()).unwrap(), b"module");
    }

    #[test]
    fn lz4_legacy_ends_before_the_appended_size() {
        let plain = [7u8; 40];
        let data = [LZ4_LEGACY, &lz4_block(&plain), &40u32.to_le_bytes()].concat();
        assert_eq!(decompress(&data).unwrap(), plain);
    }

    #[test]
    fn cut_off_lz4_is_an_error_and_not_an_empty_kernel() {
        let data = [LZ4_LEGACY, &lz4_block(&[7u8; 40])].concat();
        assert!(decompress(&data[..20]).is_err());
    }

    #[test]
    fn unknown_data_is_left_alone() {
        assert_eq!(decompress(b"\x7fELF").unwrap(), b"\x7fELF");
    }

    proptest! {
        #[test]
        fn hostile_data_is_refused_not_obeyed(
            magic in prop::sample::select(vec![GZIP, XZ, ZSTD, LZ4_LEGACY]),
            tail in prop::collection::vec(any::<u8>(), 0..300),
        ) {
            let _ = decompress(&[magic, &tail].concat());
        }
    }
}
