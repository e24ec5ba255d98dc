//! `concertina login`: where the control plane is, and the key.

use std::io::{IsTerminal, Read};
use std::path::PathBuf;

use anyhow::Context;

use crate::failure::Usage;
use crate::output;
use crate::remote::{Login, Remote, text};

const EXAMPLES: &str = "\
Examples:
  concertina login https://cloud.example:7070
  concertina login https://10.0.0.1:7070 --ca ca.pem < key
  CONCERTINA_KEY=ck-… concertina login https://cloud.example
  concertina login --out

The key is read from CONCERTINA_KEY, or from standard input: never from the command line, which other
users of this machine can see. It is stored in $XDG_CONFIG_HOME/concertina/login.json (or the file that
CONCERTINA_LOGIN names), readable by you alone. From then on run, ps, status, resize, events, usage and
stop are about the instances of your account; --local (or --state-dir) means those of this host.";

/// Arguments of `login`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// https://HOST:PORT of the control plane
    #[arg(required_unless_present = "out")]
    url: Option<String>,
    /// Certificates to trust, when the control plane's own authority signs its certificate
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// Forget the login
    #[arg(long, conflicts_with_all = ["url", "ca"])]
    out: bool,
}

/// Logs in, or out.
pub fn run(args: &Args) -> anyhow::Result<i32> {
    let Some(url) = args.url.as_ref().filter(|_| !args.out) else {
        let path = crate::remote::path()?;
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("Removing {} failed", path.display()));
            }
            _ => return Ok(0),
        }
    };
    let authorities = args.ca.as_ref().map(|path| {
        std::fs::read_to_string(path).with_context(|| format!("Reading {} failed", path.display()))
    });
    let login = Login {
        url: url.clone(),
        key: read_key()?,
        authorities: authorities.transpose()?,
    };
    let account = Remote::of(&login)?.get("/v1/account")?;
    let path = login.write()?;
    output::line(&format!(
        "Logged in to {url} as account '{}'; the login is in {}",
        text(&account, "name"),
        path.display()
    ))?;
    Ok(0)
}

fn read_key() -> anyhow::Result<String> {
    if let Ok(key) = std::env::var("CONCERTINA_KEY")
        && !key.is_empty()
    {
        return Ok(key);
    }
    if std::io::stdin().is_terminal() {
        eprint!("API key: ");
    }
    let mut text = String::new();
    if std::io::stdin().is_terminal() {
        std::io::stdin().read_line(&mut text)?;
    } else {
        std::io::stdin().take(4096).read_to_string(&mut text)?;
    }
    match text.trim() {
        "" => {
            Err(Usage("No API key: give it on standard input or in CONCERTINA_KEY".into()).into())
        }
        key => Ok(key.to_owned()),
    }
}
