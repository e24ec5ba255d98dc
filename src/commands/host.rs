//! `concertina host`: hosts of the control plane, for its operator.

use std::time::Duration;

use concertina_api::Bytes;
use concertina_control::http_method::Method;
use serde_json::{Value, json};

use crate::args::parse_duration;
use crate::output;
use crate::remote::{Remote, text};

const EXAMPLES: &str = "\
Examples:
  concertina host token                 # what the agent of another host joins with
  concertina host list
  concertina host drain rack1-a
  concertina host remove rack1-a        # one that is lost, for good";

/// Arguments of `host`.
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

#[derive(Debug, clap::Subcommand)]
enum What {
    /// Make a join token, good for one host
    Token {
        /// How long it is good, at most a week
        #[arg(long, value_name = "T", value_parser = parse_duration, default_value = "1h")]
        expires: Duration,
    },
    /// List hosts with their room
    List,
    /// Show one host
    Show {
        /// Its name or id
        name: String,
    },
    /// Give a host no further instances
    Drain {
        /// Its name or id
        name: String,
    },
    /// Give it instances again
    Undrain {
        /// Its name or id
        name: String,
    },
    /// Remove a host that is lost, for good: what was on it is given up
    Remove {
        /// Its name or id
        name: String,
    },
    /// Make the next authority that signs hosts' certificates
    RotateAuthority,
}

/// Does it.
pub fn run(args: &Args) -> anyhow::Result<i32> {
    let remote = Remote::here()?;
    let hosts = match &args.what {
        What::Token { expires } => {
            let body = json!({"expires_in_s": expires.as_secs()});
            let token = remote.post("/v1/hosts/join-tokens", &body)?;
            return print(args, &token, text(&token, "token"));
        }
        What::RotateAuthority => {
            let made = remote.send(Method::POST, "/v1/hosts/authority/rotate", None)?;
            let line = format!(
                "Authority {} signs from {} on",
                made.get("number").cloned().unwrap_or_default(),
                text(&made, "signs_from")
            );
            return print(args, &made, &line);
        }
        What::Remove { name } => {
            let path = path(&remote, name)?;
            remote.send(Method::DELETE, &path, None)?;
            return Ok(0);
        }
        What::List => remote.all("/v1/hosts")?,
        What::Show { name } => vec![remote.get(&path(&remote, name)?)?],
        What::Drain { name } => vec![drain(&remote, name, true)?],
        What::Undrain { name } => vec![drain(&remote, name, false)?],
    };
    if args.json {
        output::json(&hosts)?;
        return Ok(0);
    }
    let header = ["NAME", "STATE", "INSTANCES", "CPUS", "MEMORY", "FROM", "ID"];
    let rows: Vec<Vec<String>> = hosts.iter().map(row).collect();
    output::line(&output::table(&header, &rows, &[2, 3, 4]))?;
    Ok(0)
}

fn print(args: &Args, value: &Value, line: &str) -> anyhow::Result<i32> {
    if args.json {
        output::json(value)?;
    } else {
        output::line(line)?;
    }
    Ok(0)
}

fn path(remote: &Remote, name: &str) -> anyhow::Result<String> {
    let all = remote.all("/v1/hosts")?;
    let found = all
        .iter()
        .find(|h| text(h, "name") == name || text(h, "id") == name);
    let found = found
        .ok_or_else(|| anyhow::anyhow!("No host '{name}': 'concertina host list' shows them"))?;
    Ok(format!("/v1/hosts/{}", text(found, "id")))
}

fn drain(remote: &Remote, name: &str, draining: bool) -> anyhow::Result<Value> {
    let path = path(remote, name)?;
    remote.send(Method::PUT, &path, Some(&json!({"draining": draining})))
}

fn row(host: &Value) -> Vec<String> {
    let value = |pointer: &str| host.pointer(pointer).cloned().unwrap_or_default();
    let bytes = |pointer: &str| output::size(Bytes(value(pointer).as_u64().unwrap_or(0)));
    vec![
        text(host, "name").to_owned(),
        text(host, "state").to_owned(),
        value("/instances").to_string(),
        format!("{}/{}", value("/promised_cpus"), value("/capacity/cpus")),
        format!(
            "{}/{}",
            bytes("/promised_memory"),
            bytes("/capacity/memory")
        ),
        host.get("remote")
            .and_then(Value::as_str)
            .unwrap_or("-")
            .to_owned(),
        text(host, "id").to_owned(),
    ]
}
