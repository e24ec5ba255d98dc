//! `concertina key`: API keys of an account.

use std::time::Duration;

use concertina_control::http_method::Method;
use serde_json::{Value, json};

use crate::args::parse_duration;
use crate::output;
use crate::remote::{Remote, text};

const EXAMPLES: &str = "\
Examples:
  concertina key create ci --scope launch --expires 90d
  concertina key create first --account acme --scope admin      # for the operator
  concertina key list
  concertina key rotate ck-… --grace 1h
  concertina key revoke ck-…

A key is printed once, on standard output, and is not stored anywhere but as a hash.";

/// Arguments of `key`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// What to do.
    #[command(subcommand)]
    what: What,
    /// Print JSON
    #[arg(long, global = true)]
    json: bool,
}

/// What a key may do.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Scope {
    /// See what the account has
    Read,
    /// Launch, resize, stop, terminate
    Launch,
    /// Keys, webhooks, audit log
    Admin,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// Make a key, and print it
    Create {
        /// What it is for
        name: String,
        /// What it may do
        #[arg(long, value_enum)]
        scope: Scope,
        /// How long it is good: 90d, 12h; absent: for ever
        #[arg(long, value_name = "T", value_parser = parse_duration)]
        expires: Option<Duration>,
        /// Name or id of another account, for the operator
        #[arg(long, value_name = "NAME")]
        account: Option<String>,
    },
    /// List keys
    List,
    /// Replace a key by another one, and print it
    Rotate {
        /// Its id
        id: String,
        /// How long the old one goes on
        #[arg(long, value_name = "T", value_parser = parse_duration, default_value = "0s")]
        grace: Duration,
    },
    /// Make a key worthless at once
    Revoke {
        /// Its id
        id: String,
    },
}

/// Does it.
pub fn run(args: &Args) -> anyhow::Result<i32> {
    let remote = Remote::here()?;
    match &args.what {
        What::Create {
            name,
            scope,
            expires,
            account,
        } => {
            let word = match scope {
                Scope::Read => "read",
                Scope::Launch => "launch",
                Scope::Admin => "admin",
            };
            let body = json!({
                "name": name, "scope": word, "expires_in_s": expires.map(|time| time.as_secs()),
            });
            let path = match account {
                Some(account) => {
                    let account = super::account::find(&remote, account)?;
                    format!("/v1/accounts/{}/keys", text(&account, "id"))
                }
                None => "/v1/keys".into(),
            };
            print_new(args, &remote.post(&path, &body)?)?;
        }
        What::Rotate { id, grace } => {
            let body = json!({"grace_s": grace.as_secs()});
            print_new(args, &remote.post(&format!("/v1/keys/{id}/rotate"), &body)?)?;
        }
        What::Revoke { id } => {
            remote.send(Method::DELETE, &format!("/v1/keys/{id}"), None)?;
        }
        What::List => {
            let keys = remote.all("/v1/keys")?;
            if args.json {
                output::json(&keys)?;
            } else {
                let header = ["ID", "NAME", "SCOPE", "STATE", "EXPIRES"];
                let rows: Vec<Vec<String>> = keys.iter().map(row).collect();
                output::line(&output::table(&header, &rows, &[]))?;
            }
        }
    }
    Ok(0)
}

fn print_new(args: &Args, key: &Value) -> anyhow::Result<()> {
    if args.json {
        return output::json(key);
    }
    output::line(text(key, "key"))
}

fn row(key: &Value) -> Vec<String> {
    let is_revoked = key.get("revoked").and_then(Value::as_bool).unwrap_or(false);
    let expires = key
        .get("expires")
        .and_then(Value::as_str)
        .unwrap_or("never");
    vec![
        text(key, "id").to_owned(),
        text(key, "name").to_owned(),
        text(key, "scope").to_owned(),
        if is_revoked { "revoked" } else { "in force" }.to_owned(),
        expires.to_owned(),
    ]
}
