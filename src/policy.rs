//! Policies by name or file, for the subcommands that take one.

use std::path::Path;

use concertina_api::policy::PolicyFile;

use crate::failure::Usage;

/// The name of the policy that comes with the program.
pub const DEFAULT: &str = "default";

/// Its text. It has no bounds: they are the instance's.
const DEFAULT_TEXT: &str = include_str!("../docs/policies/default.toml");

/// Reads a policy file, or the policy that comes with the program.
pub fn read(path: &Path) -> Result<PolicyFile, Usage> {
    if path == Path::new(DEFAULT) {
        return concertina_agent::policy::read_policy(DEFAULT_TEXT).map_err(Usage);
    }
    let wrong = |why: String| Usage(format!("Policy file '{}': {why}", path.display()));
    let text = std::fs::read_to_string(path).map_err(|error| wrong(error.to_string()))?;
    concertina_agent::policy::read_policy(&text).map_err(wrong)
}

#[cfg(test)]
mod tests {
    use concertina_api::policy::Sources;

    use super::*;

    #[test]
    fn the_default_policy_suits_small_and_large_instances() {
        for (cpus, memory) in [
            ("0.1..1", "128M..1G"),
            ("0.25..4", "256M..4G"),
            ("1..2", "512M..1G"),
            ("2..64", "1G..256G"),
        ] {
            let file = read(Path::new(DEFAULT)).unwrap();
            let policy = file
                .into_policy(cpus.parse().ok(), memory.parse().ok())
                .unwrap();
            if let Err(error) = policy.check(&Sources::without_guest_agent()) {
                panic!("{cpus}, {memory}: {error}");
            }
        }
    }
}
