//! Where kernels and guest images are kept between launches.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use crate::failure::Usage;
use crate::state::is_root;

/// The cache folder: as named, else /var/cache/concertina for root, else the user's own. Nothing
/// is created.
pub fn folder(named: Option<&Path>) -> anyhow::Result<PathBuf> {
    if let Some(folder) = named {
        return Ok(std::path::absolute(folder)?);
    }
    default_folder(
        is_root(),
        std::env::var_os("XDG_CACHE_HOME"),
        std::env::var_os("HOME"),
    )
}

fn default_folder(
    is_root: bool,
    xdg: Option<OsString>,
    home: Option<OsString>,
) -> anyhow::Result<PathBuf> {
    let set = |value: Option<OsString>| value.filter(|value| !value.is_empty()).map(PathBuf::from);
    match (is_root, set(xdg), set(home)) {
        (true, ..) => Ok(PathBuf::from("/var/cache/concertina")),
        (_, Some(xdg), _) => Ok(xdg.join("concertina")),
        (_, _, Some(home)) => Ok(home.join(".cache/concertina")),
        _ => Err(Usage(
            "No cache folder: neither XDG_CACHE_HOME nor HOME is set, so name one with \
             CONCERTINA_CACHE_DIR"
                .into(),
        )
        .into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cache_is_where_this_user_may_write() {
        let folder = |root, xdg: Option<&str>, home: Option<&str>| {
            default_folder(root, xdg.map(Into::into), home.map(Into::into))
        };
        assert_eq!(
            folder(true, None, None).unwrap(),
            Path::new("/var/cache/concertina")
        );
        assert_eq!(
            folder(false, Some("/x"), Some("/h")).unwrap(),
            Path::new("/x/concertina")
        );
        assert_eq!(
            folder(false, Some(""), Some("/h")).unwrap(),
            Path::new("/h/.cache/concertina")
        );
        assert!(folder(false, None, None).is_err());
    }
}
