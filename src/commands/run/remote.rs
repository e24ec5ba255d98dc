//! `run` at the control plane.

use std::fs;
use std::time::Duration;

use anyhow::{Context, bail};
use concertina_api::policy::{Mode, Policy, rule::time_text};
use serde_json::{Value, json};

use super::Args;
use crate::failure::Usage;
use crate::output;
use crate::remote::{Remote, text};

const PERIOD: Duration = Duration::from_millis(200);

/// Launches; returns when the guest runs.
pub fn run(args: &Args, remote: &Remote) -> anyhow::Result<i32> {
    let launch = request(args)?;
    let mut instance = remote.post("/v1/instances", &launch)?;
    let path = format!("/v1/instances/{}", text(&instance, "id"));
    loop {
        match text(&instance, "state") {
            "running" => break,
            "pending" | "starting" => {}
            state => bail!(
                "Instance '{}' is {state}: {}",
                args.name,
                text(&instance, "reason")
            ),
        }
        std::thread::sleep(PERIOD);
        instance = remote.get(&path)?;
    }
    output::line(&args.name)?;
    Ok(0)
}

/// The launch in the API's words.
fn request(args: &Args) -> anyhow::Result<Value> {
    let only_here = [
        ("--kernel", args.kernel.is_some()),
        ("--initrd", args.initrd.is_some()),
        ("--append", args.append.is_some()),
        ("--disk", !args.disks.is_empty()),
        ("--console", args.console),
        ("--wait-for-room", args.wait_for_room.is_some()),
    ];
    if let Some((option, _)) = only_here.iter().find(|(_, given)| *given) {
        return Err(Usage(format!(
            "{option} is for instances of this host, not with --remote"
        ))
        .into());
    }
    let image = args
        .image
        .image
        .as_ref()
        .map(|image| image.path.display().to_string());
    let image = image.ok_or_else(|| {
        Usage("Option --image is missing: NAME:VERSION, 'concertina image list' shows them".into())
    })?;
    let policy = super::read_policy(args)?;
    let user_data = args.image.user_data.as_ref().map(|path| {
        fs::read_to_string(path).with_context(|| format!("Reading {} failed", path.display()))
    });
    let mut keys = Vec::new();
    for path in &args.image.ssh_keys {
        let text = fs::read_to_string(path)
            .with_context(|| format!("Reading {} failed", path.display()))?;
        keys.extend(
            text.lines()
                .map(str::trim)
                .filter(|line| !line.is_empty())
                .map(str::to_owned),
        );
    }
    let networks: Vec<String> = args.nets.iter().map(ToString::to_string).collect();
    Ok(json!({
        "name": args.name,
        "image": image,
        "bounds": {"cpus": policy.bounds.cpus, "memory": policy.bounds.memory},
        "thresholds": words(&policy),
        "networks": networks,
        "user_data": user_data.transpose()?,
        "ssh_keys": keys,
    }))
}

/// Rules and settings of a policy as texts.
fn words(policy: &Policy) -> Vec<String> {
    let mut words: Vec<String> = policy.rules.iter().map(ToString::to_string).collect();
    words.push(format!("set period {}", time_text(policy.period_ms)));
    words.push(format!(
        "set manual_hold {}",
        time_text(policy.manual_hold_ms)
    ));
    words.push(format!(
        "set shrink_window {}",
        time_text(policy.shrink_window_ms)
    ));
    words.push(format!(
        "set reversals_per_hour {}",
        policy.reversals_per_hour
    ));
    if policy.mode == Mode::Recommend {
        words.push("set mode recommend".into());
    }
    words
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::args::{Cli, Command};

    fn request_of(words: &[&str]) -> anyhow::Result<Value> {
        let all = ["concertina", "run", "--remote", "--name", "web"]
            .iter()
            .chain(words);
        match Cli::try_parse_from(all).unwrap().command {
            Command::Run(args) => request(&args),
            other => panic!("not run: {other:?}"),
        }
    }

    #[test]
    fn a_launch_in_the_commands_words_is_one_in_the_apis_words() {
        let launch = request_of(&[
            "--image",
            "debian:12",
            "--cpus",
            "0.5..4",
            "--memory",
            "256M..1G",
            "--scale",
            "cpu > 75% for 5s: +1 cpu",
        ])
        .unwrap();
        assert_eq!(launch["image"], "debian:12");
        assert_eq!(launch["bounds"]["cpus"]["min"], 0.5);
        assert_eq!(launch["thresholds"][0], "cpu > 75% for 5s: +1 cpu");
    }

    #[test]
    fn what_only_this_host_can_do_is_refused() {
        let sizes = ["--cpus", "1", "--memory", "256M"];
        let with = |extra: &[&'static str]| {
            let words: Vec<&str> = sizes.iter().chain(extra).copied().collect();
            request_of(&words).unwrap_err().to_string()
        };
        assert!(with(&[]).contains("--image"));
        assert!(with(&["--kernel", "k"]).contains("--kernel"));
        assert!(with(&["--image", "a:1", "--disk", "d"]).contains("--disk"));
    }
}
