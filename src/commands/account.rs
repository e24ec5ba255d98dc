//! `concertina account`: accounts of the control plane, for its operator.

use concertina_api::{Bytes, Cpus};
use concertina_control::http_method::Method;
use serde_json::{Value, json};

use crate::output;
use crate::remote::{Remote, text};

const EXAMPLES: &str = "\
Examples:
  concertina account create acme --instances 10 --cpus 32 --memory 128G
  concertina account list
  concertina account quota acme --requests 100
  concertina account suspend acme
  concertina key create ci --account acme --scope launch";

/// Arguments of `account`.
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
    /// Make an account
    Create {
        /// Its name: 1 to 63 of a-z, 0-9 and '-'
        name: String,
        #[command(flatten)]
        quota: Limits,
    },
    /// List accounts with their quotas
    List,
    /// Show one account; without a name the one that is logged in
    Show {
        /// Its name or id
        name: Option<String>,
    },
    /// Change what an account may have
    Quota {
        /// Its name or id
        name: String,
        #[command(flatten)]
        quota: Limits,
    },
    /// Let an account change nothing; its instances run on
    Suspend {
        /// Its name or id
        name: String,
    },
    /// Take a suspension back
    Resume {
        /// Its name or id
        name: String,
    },
}

#[derive(Debug, clap::Args)]
struct Limits {
    /// Most instances
    #[arg(long, value_name = "N")]
    instances: Option<u32>,
    /// Most CPUs, as the sum of upper bounds
    #[arg(long, value_name = "X")]
    cpus: Option<Cpus>,
    /// Most memory, as the sum of upper bounds
    #[arg(long, value_name = "SIZE")]
    memory: Option<Bytes>,
    /// Requests a second
    #[arg(long, value_name = "N")]
    requests: Option<u32>,
}

impl Limits {
    /// What is given, on top of what is there.
    fn over(&self, mut there: Value) -> Value {
        if let Value::Object(fields) = &mut there {
            let given = [
                ("instances", self.instances.map(|n| json!(n))),
                ("cpus", self.cpus.map(|n| json!(n))),
                ("memory", self.memory.map(|n| json!(n))),
                ("requests_per_second", self.requests.map(|n| json!(n))),
            ];
            for (name, value) in given {
                fields.extend(value.map(|value| (name.to_owned(), value)));
            }
        }
        there
    }
}

/// Does it.
pub fn run(args: &Args) -> anyhow::Result<i32> {
    let remote = Remote::here()?;
    let accounts = match &args.what {
        What::Create { name, quota } => {
            let body = json!({"name": name, "quota": quota.over(json!({}))});
            vec![remote.post("/v1/accounts", &body)?]
        }
        What::List => remote.all("/v1/accounts")?,
        What::Show { name: None } => vec![remote.get("/v1/account")?],
        What::Show { name: Some(name) } => vec![find(&remote, name)?],
        What::Quota { name, quota } => {
            let account = find(&remote, name)?;
            let present = account.get("quota").cloned().unwrap_or_default();
            vec![update(
                &remote,
                &account,
                json!({"quota": quota.over(present)}),
            )?]
        }
        What::Suspend { name } => {
            let account = find(&remote, name)?;
            vec![update(&remote, &account, json!({"suspended": true}))?]
        }
        What::Resume { name } => {
            let account = find(&remote, name)?;
            vec![update(&remote, &account, json!({"suspended": false}))?]
        }
    };
    if args.json {
        output::json(&accounts)?;
        return Ok(0);
    }
    let header = [
        "NAME",
        "INSTANCES",
        "CPUS",
        "MEMORY",
        "REQUESTS/S",
        "STATE",
        "ID",
    ];
    let rows: Vec<Vec<String>> = accounts.iter().map(row).collect();
    output::line(&output::table(&header, &rows, &[1, 2, 3, 4]))?;
    Ok(0)
}

/// The account of a name or an id.
pub fn find(remote: &Remote, name: &str) -> anyhow::Result<Value> {
    let all = remote.all("/v1/accounts")?;
    let found = all
        .into_iter()
        .find(|a| text(a, "name") == name || text(a, "id") == name);
    found
        .ok_or_else(|| anyhow::anyhow!("No account '{name}': 'concertina account list' shows them"))
}

fn update(remote: &Remote, account: &Value, change: Value) -> anyhow::Result<Value> {
    let path = format!("/v1/accounts/{}", text(account, "id"));
    remote.send(Method::PUT, &path, Some(&change))
}

fn row(account: &Value) -> Vec<String> {
    let of = |used: &str, quota: &str| {
        let number = |pointer: &str| account.pointer(pointer).cloned().unwrap_or_default();
        format!("{}/{}", number(used), number(quota))
    };
    let bytes = |pointer: &str| {
        let bytes = account
            .pointer(pointer)
            .and_then(Value::as_u64)
            .unwrap_or(0);
        output::size(Bytes(bytes))
    };
    let is_suspended = account
        .get("suspended")
        .and_then(Value::as_bool)
        .unwrap_or(false);
    vec![
        text(account, "name").to_owned(),
        of("/used_instances", "/quota/instances"),
        of("/used_cpus", "/quota/cpus"),
        format!("{}/{}", bytes("/used_memory"), bytes("/quota/memory")),
        account
            .pointer("/quota/requests_per_second")
            .cloned()
            .unwrap_or_default()
            .to_string(),
        if is_suspended { "suspended" } else { "active" }.to_owned(),
        text(account, "id").to_owned(),
    ]
}
