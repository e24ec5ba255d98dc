//! Where Debian's packages come from: the host's own apt sources, as apt itself understands them, so
//! that a mirror or a snapshot that its administrator chose is what the guest is built from.

use std::fs;
use std::process::Command;

use crate::image::command;

/// What is asked of apt: a line for each package list that it has.
const FORMAT: &str = "$(REPO_URI) $(RELEASE) $(COMPONENT) $(ORIGIN)";
const ONLY_PACKAGES: &str = "Identifier: Packages";
const DEBIAN: &str = "Debian";
/// Pockets of a release.
const POCKETS: [&str; 4] = ["", "-updates", "-security", "-backports"];
/// Settings of apt that belong to the host's way to its mirrors.
const HOST_SETTINGS: [&str; 4] = [
    "Acquire::http::Proxy",
    "Acquire::https::Proxy",
    "Acquire::Check-Valid-Until",
    "Acquire::Check-Date",
];

/// Lines of a `sources.list` for a release. Empty where the host has no sources of Debian's: then
/// mmdebstrap knows the public mirrors.
pub fn for_release(release: &str) -> Vec<String> {
    let ask = ["indextargets", "--format", FORMAT, ONLY_PACKAGES];
    // A host without apt has no sources.
    let targets = command::run(Command::new("apt-get").args(ask)).unwrap_or_default();
    let own = fs::read_to_string("/etc/os-release").unwrap_or_default();
    choose(&targets, release, code_name(&own))
}

fn code_name(os_release: &str) -> Option<&str> {
    os_release
        .lines()
        .find_map(|line| line.strip_prefix("VERSION_CODENAME="))
        .map(|name| name.trim_matches('"'))
        .filter(|name| !name.is_empty())
}

/// The host's sources of that release; else those of its own release, with the name replaced.
fn choose(targets: &str, release: &str, own: Option<&str>) -> Vec<String> {
    let of_release = |name: &str| -> Vec<String> {
        let mut lines: Vec<String> = targets
            .lines()
            .filter_map(|line| source(line, name, release))
            .collect();
        lines.dedup();
        lines
    };
    let direct = of_release(release);
    if !direct.is_empty() {
        return direct;
    }
    own.map(of_release).unwrap_or_default()
}

/// One target as a source of `release`, if it is a pocket of Debian's release `name`.
fn source(target: &str, name: &str, release: &str) -> Option<String> {
    let mut words = target.split_ascii_whitespace();
    let (uri, suite, component) = (words.next()?, words.next()?, words.next()?);
    // The origin is known once the lists have been fetched; before that only the suite speaks.
    if words.next().is_some_and(|origin| origin != DEBIAN) {
        return None;
    }
    let pocket = suite.strip_prefix(name)?;
    let of_debian = matches!(
        component,
        "main" | "contrib" | "non-free" | "non-free-firmware"
    );
    (of_debian && POCKETS.contains(&pocket)).then(|| {
        let uri = uri.trim_end_matches('/');
        format!("deb {uri} {release}{pocket} {component}")
    })
}

/// The host's apt settings that its sources need, as options for apt.
pub fn host_settings() -> Vec<String> {
    let dump = command::run(Command::new("apt-config").arg("dump")).unwrap_or_default();
    settings(&dump)
}

fn settings(dump: &str) -> Vec<String> {
    dump.lines()
        .filter(|line| {
            line.split_once(' ').is_some_and(|(key, value)| {
                HOST_SETTINGS.contains(&key) && value.trim_end_matches(';') != "\"\""
            })
        })
        .map(|line| line.trim_end_matches(';').to_owned())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TARGETS: &str = "\
http://mirror.example/debian/ bookworm main Debian
http://mirror.example/debian/ bookworm-updates main Debian
http://mirror.example/debian-security/ bookworm-security main Debian
http://docker.example/linux/debian/ bookworm stable Docker
http://other.example/ bookworm main Other
http://pg.example/ bookworm-pgdg main apt.postgresql.org
";

    #[test]
    fn only_debians_own_sources_of_the_release_are_taken() {
        assert_eq!(
            choose(TARGETS, "bookworm", Some("bookworm")),
            [
                "deb http://mirror.example/debian bookworm main",
                "deb http://mirror.example/debian bookworm-updates main",
                "deb http://mirror.example/debian-security bookworm-security main",
            ]
        );
    }

    #[test]
    fn another_release_comes_from_the_same_mirrors() {
        let lines = choose(TARGETS, "trixie", Some("bookworm"));
        assert_eq!(lines.len(), 3);
        assert_eq!(lines[0], "deb http://mirror.example/debian trixie main");
    }

    #[test]
    fn lists_that_were_never_fetched_have_no_origin() {
        let target = "http://mirror.example/debian/ bookworm main ";
        assert_eq!(choose(target, "bookworm", None).len(), 1);
    }

    #[test]
    fn a_host_of_another_distribution_has_none() {
        let target = "http://mirror.example/ubuntu/ noble main Ubuntu\n";
        assert!(choose(target, "bookworm", Some("noble")).is_empty());
        assert!(choose("", "bookworm", None).is_empty());
    }

    #[test]
    fn settings_of_the_way_to_the_mirrors_are_passed_on() {
        let dump = "Acquire::Languages \"none\";\nAcquire::http::Proxy \"http://p:3142\";\n\
                    Acquire::https::Proxy \"\";\nAcquire::Check-Valid-Until \"false\";\n";
        assert_eq!(
            settings(dump),
            [
                "Acquire::http::Proxy \"http://p:3142\"",
                "Acquire::Check-Valid-Until \"false\""
            ]
        );
    }

    #[test]
    fn the_code_name_is_read() {
        assert_eq!(
            code_name("A=b\nVERSION_CODENAME=bookworm\n"),
            Some("bookworm")
        );
        assert_eq!(code_name("VERSION_CODENAME=\n"), None);
    }
}
