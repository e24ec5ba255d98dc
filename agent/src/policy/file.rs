//! Reading a policy file's text: TOML into [`PolicyFile`], with one sentence when it cannot be read.

use concertina_api::policy::PolicyFile;

/// Reads the text of a `--policy` file. The error names the line.
pub fn read_policy(text: &str) -> Result<PolicyFile, String> {
    toml::from_str(text).map_err(|error| {
        let before = error.span().and_then(|span| text.get(..span.start));
        let line = before.map_or(1, |before| before.matches('\n').count() + 1);
        let message = error.message().replace('\n', ", ");
        format!("Policy file, line {line}: {message}")
    })
}
