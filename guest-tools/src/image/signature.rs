//! The signature at the end of a kernel module, and the module without it.
//!
//! Checking one takes the kernel about 60 million instructions, ten times what the rest of loading
//! takes, and it is done for each module at each boot. The kernel package's own signature has been
//! checked when it was downloaded, and no guest of ours enforces module signatures, so the image
//! holds modules without: the kernel then notes the taint `E`. Layout: `struct module_signature`.

const MARKER: &[u8] = b"~Module signature appended~\n";
/// The fields between signature and marker; the last four bytes are the signature's length.
const FIELDS_BYTES: usize = 12;

/// The module without its signature; one that has none, or a broken one, comes back as it is.
pub fn strip(module: &[u8]) -> &[u8] {
    without_signature(module).unwrap_or(module)
}

fn without_signature(module: &[u8]) -> Option<&[u8]> {
    let signed = module.strip_suffix(MARKER)?;
    let (rest, length) = signed.split_last_chunk::<4>()?;
    let fields = FIELDS_BYTES.checked_sub(length.len())?;
    let tail = usize::try_from(u32::from_be_bytes(*length))
        .ok()?
        .checked_add(fields)?;
    rest.get(..rest.len().checked_sub(tail)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn signed(module: &[u8], length: u32) -> Vec<u8> {
        [
            module,
            &[9; 100],
            &[0, 0, 2, 0, 0, 0, 0, 0],
            &length.to_be_bytes(),
            MARKER,
        ]
        .concat()
    }

    #[test]
    fn the_module_before_the_signature_is_left() {
        assert_eq!(strip(&signed(b"module", 100)), b"module");
    }

    #[test]
    fn modules_without_a_signature_or_with_a_broken_one_are_left_alone() {
        for module in [
            b"module".to_vec(),
            MARKER.to_vec(),
            signed(b"", 101),
            signed(b"", u32::MAX),
        ] {
            assert_eq!(strip(&module), module);
        }
    }
}
