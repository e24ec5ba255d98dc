//! `POST /v1/instances`: from a customer's words to a recorded intent. Nothing is done before it is
//! recorded: the record is what hosts are told from.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use concertina_api::Bytes;
use concertina_api::link::Restart;
use concertina_api::net::{MAX_NETS, NetKind, NetWish};
use concertina_api::policy::{Policy, PolicyFile, Sources};
use serde::Deserialize;
use serde_json::Value;
use utoipa::ToSchema;

use super::accounts::check_name;
use super::views::{Bounds, InstanceView};
use crate::control::Control;
use crate::http::{Body, Caller};
use crate::ids::{self, now_ms, now_text, sha256};
use crate::model::{
    CapacityShortAction, HostLostAction, Instance, InstanceSpec, Life, Once, PlacementHints, Scope,
};
use crate::problem::{Answer, Fault, Problem, ProblemDocument};

/// The rules that an instance gets whose launch names none.
const DEFAULT_POLICY: &str = include_str!("../../../../docs/policies/default.toml");
/// Most rules and settings of one policy.
const THRESHOLDS_MAX: usize = 64;
/// Longest user data, in bytes.
const USER_DATA_MAX: usize = 64 << 10;
/// Most metrics, and most SSH keys.
const LIST_MAX: usize = 64;

/// What ended by an error.
#[derive(Debug, Clone, Copy, Default, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum RestartDto {
    /// It stays failed.
    #[default]
    Never,
    /// Its host starts it again, each time after a longer while.
    OnFailure,
}

/// An instance to be launched.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct LaunchRequest {
    /// Its name, unique among the account's instances: 1 to 63 of a-z, 0-9 and '-'.
    #[schema(pattern = "^[a-z0-9][a-z0-9-]{0,62}$")]
    pub name: String,
    /// `NAME:VERSION` of a registered image.
    #[schema(example = "debian:12")]
    pub image: String,
    /// Least and most.
    pub bounds: Bounds,
    /// Rules and settings: texts like `cpu > 75% for 5s: +1 cpu` or `set shrink_window 30s`, or
    /// objects with the fields of a policy file's `[[threshold]]`. Absent: the default policy. Empty:
    /// the size is only changed by hand.
    #[serde(default)]
    #[schema(value_type = Option<Vec<Object>>, max_items = 64)]
    pub thresholds: Option<Vec<Value>>,
    /// Metrics that are shown, by name; absent: all.
    #[serde(default)]
    #[schema(max_items = 64)]
    pub metrics: Vec<String>,
    /// Network interfaces: `user` (reaches what the host reaches) or `tap`, with `rate=`.
    #[serde(default)]
    #[schema(max_items = 8)]
    pub networks: Vec<String>,
    /// cloud-init user data, at most 64 KiB.
    #[serde(default)]
    #[schema(max_length = 65536)]
    pub user_data: Option<String>,
    /// SSH keys for the image's first user.
    #[serde(default)]
    #[schema(max_items = 64)]
    pub ssh_keys: Vec<String>,
    /// Least size of its disk in bytes.
    #[serde(default)]
    #[schema(value_type = Option<u64>)]
    pub disk: Option<Bytes>,
    /// Where it shall be.
    #[serde(default)]
    pub placement: PlacementHints,
    /// When its host is lost.
    #[serde(default)]
    pub on_host_lost: HostLostAction,
    /// When its host cannot let it grow.
    #[serde(default)]
    pub on_capacity_short: CapacityShortAction,
    /// When it has ended by an error.
    #[serde(default)]
    pub restart: RestartDto,
    /// A text of the customer's choice, 1 to 64 printable characters: the same launch with the same
    /// token is done once, whatever happens to the connection.
    #[serde(default)]
    #[schema(min_length = 1, max_length = 64)]
    pub client_token: Option<String>,
}

/// Key of the answer to a client token.
pub fn once_key(account: &str, kind: &str, token: &str) -> Answer<String> {
    let is_good =
        (1..=64).contains(&token.len()) && token.bytes().all(|b| (b' '..=b'~').contains(&b));
    if !is_good {
        let allowed = "1 to 64 printable ASCII characters";
        return Err(Problem::invalid("client_token", token, allowed).into());
    }
    // A hash, since it may hold whatever has a meaning in keys.
    Ok(format!("once/{account}/{kind}/{}", sha256(token)))
}

/// Whether an earlier answer is that to this request.
///
/// # Errors
/// The token was used for another request.
pub fn check_once(once: &Once, digest: &str) -> Answer<()> {
    if once.request == digest {
        return Ok(());
    }
    let status = StatusCode::UNPROCESSABLE_ENTITY;
    let detail = "The client token was used for another request";
    Err(Problem::new(status, "client_token_reused", detail).into())
}

/// Bounds and rules of a request as a checked policy.
///
/// # Errors
/// Something is wrong in it.
pub fn read_policy(bounds: Bounds, thresholds: Option<&[Value]>) -> Answer<Policy> {
    let invalid = |detail: String| {
        Fault::from(Problem::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            "invalid_policy",
            detail,
        ))
    };
    let thresholds = match thresholds {
        Some(thresholds) if thresholds.len() > THRESHOLDS_MAX => {
            let detail = format!("{} thresholds are too many: at most 64", thresholds.len());
            return Err(invalid(detail));
        }
        other => other,
    };
    let file: PolicyFile = match thresholds {
        None => toml::from_str(DEFAULT_POLICY).map_err(|error| invalid(error.to_string()))?,
        Some(thresholds) => {
            let objects: Vec<&Value> = thresholds.iter().filter(|rule| !rule.is_string()).collect();
            let (targets, thresholds): (Vec<&Value>, Vec<&Value>) = objects
                .into_iter()
                .partition(|rule| rule.get("level").is_some() && rule.get("add").is_none());
            let file = serde_json::json!({ "threshold": thresholds, "target": targets });
            serde_json::from_value(file)
                .map_err(|error| invalid(format!("A threshold: {error}")))?
        }
    };
    let cpus = concertina_api::Bounds {
        min: bounds.cpus.min,
        max: bounds.cpus.max,
    };
    let memory = concertina_api::Bounds {
        min: bounds.memory.min,
        max: bounds.memory.max,
    };
    let refused = |error: concertina_api::policy::PolicyError| invalid(error.to_string());
    let mut policy = file
        .into_policy(Some(cpus), Some(memory))
        .map_err(refused)?;
    for rule in thresholds.into_iter().flatten().filter_map(Value::as_str) {
        policy.scale(rule).map_err(refused)?;
    }
    policy.check(&Sources::all()).map_err(refused)?;
    Ok(policy)
}

fn check_networks(networks: &[String]) -> Answer<()> {
    if networks.len() > MAX_NETS {
        return Err(Problem::invalid("networks", networks.len(), "at most 8").into());
    }
    for network in networks {
        let refuse = |why: &str| Fault::from(Problem::invalid("networks", network, why));
        let wish: NetWish = network
            .parse()
            .map_err(|error: concertina_api::UnitError| refuse(&error.to_string()))?;
        // Interfaces and ports of a host belong to nobody's account.
        let is_plain = match &wish.kind {
            NetKind::Tap(name) => name.is_none(),
            NetKind::User(forwards) => forwards.is_empty(),
        };
        if !is_plain {
            let allowed = "'user' or 'tap', with mac=, mtu=, rate=, rx-rate= or tx-rate=";
            return Err(refuse(allowed));
        }
    }
    Ok(())
}

fn check_lists(wanted: &LaunchRequest) -> Answer<()> {
    if wanted.metrics.len() > LIST_MAX {
        return Err(Problem::invalid("metrics", wanted.metrics.len(), "at most 64").into());
    }
    for metric in &wanted.metrics {
        metric
            .parse::<concertina_api::policy::Metric>()
            .map_err(|error| Problem::invalid("metrics", metric, &error.0))?;
    }
    if wanted
        .user_data
        .as_ref()
        .is_some_and(|data| data.len() > USER_DATA_MAX)
    {
        let length = wanted.user_data.as_ref().map_or(0, String::len);
        return Err(Problem::invalid("user_data", length, "at most 65536 bytes").into());
    }
    let is_key = |key: &String| key.len() <= 16_384 && !key.chars().any(char::is_control);
    if wanted.ssh_keys.len() > LIST_MAX || !wanted.ssh_keys.iter().all(is_key) {
        let allowed = "at most 64 public keys of one line each";
        return Err(Problem::invalid("ssh_keys", wanted.ssh_keys.len(), allowed).into());
    }
    let hints = &wanted.placement;
    for (field, hint) in [
        ("placement.host", &hints.host),
        ("placement.spread", &hints.spread),
    ] {
        if let Some(hint) = hint {
            check_name(field, hint)?;
        }
    }
    Ok(())
}

/// The request as what is stored.
async fn spec(control: &Control, caller: &Caller, wanted: &LaunchRequest) -> Answer<InstanceSpec> {
    check_name("name", &wanted.name)?;
    check_networks(&wanted.networks)?;
    check_lists(wanted)?;
    let policy = read_policy(wanted.bounds, wanted.thresholds.as_deref())?;
    let (name, version) = wanted.image.split_once(':').ok_or_else(|| {
        Problem::invalid("image", &wanted.image, "NAME:VERSION of a registered image")
    })?;
    let image = super::images::find(control, &caller.account.id, name, version).await?;
    Ok(InstanceSpec {
        name: wanted.name.clone(),
        image: wanted.image.clone(),
        parts: image.parts,
        policy,
        metrics: wanted.metrics.clone(),
        networks: wanted.networks.clone(),
        user_data: wanted.user_data.clone(),
        ssh_keys: wanted.ssh_keys.clone(),
        disk: wanted.disk,
        placement: wanted.placement.clone(),
        on_host_lost: wanted.on_host_lost,
        on_capacity_short: wanted.on_capacity_short,
        restart: match wanted.restart {
            RestartDto::Never => Restart::Never,
            RestartDto::OnFailure => Restart::OnFailure,
        },
    })
}

/// Launches an instance: it is placed, and its host is told. `GET` it, or follow its events, to see it
/// run.
#[utoipa::path(post, path = "/v1/instances", tag = "instances", security(("key" = [])),
    request_body = LaunchRequest, responses(
    (status = 201, body = InstanceView),
    (status = 200, description = "The same launch was made before with this client token", body = InstanceView),
    (status = "4XX", body = ProblemDocument, content_type = "application/problem+json"),
))]
pub async fn launch(
    State(control): State<Arc<Control>>,
    caller: Caller,
    Body {
        value: wanted,
        digest,
    }: Body<LaunchRequest>,
) -> Answer<(StatusCode, Json<InstanceView>)> {
    caller.require(Scope::Launch)?;
    let once = match &wanted.client_token {
        Some(token) => Some(once_key(&caller.account.id, "launch", token)?),
        None => None,
    };
    if let Some(instance) = launched(&control, once.as_deref(), &digest).await? {
        return Ok((StatusCode::OK, Json(InstanceView::of(&instance, None))));
    }
    let spec = spec(&control, &caller, &wanted).await?;
    // One id for all attempts: a commit whose answer was lost is recognised as our own.
    let id = ids::fresh("i")?;
    let _placing = control.placing.lock().await;
    crate::draft::again(|| async {
        // A request that came twice at once is found here by whichever is second.
        if let Some(instance) = launched(&control, once.as_deref(), &digest).await? {
            return Ok((StatusCode::OK, Json(InstanceView::of(&instance, None))));
        }
        let once = once.as_deref().map(|key| (key, digest.as_str()));
        let instance = attempt(&control, &caller, &id, spec.clone(), once).await?;
        Ok::<_, Fault>((StatusCode::CREATED, Json(InstanceView::of(&instance, None))))
    })
    .await
}

/// What a launch with this client token has made.
async fn launched(control: &Control, once: Option<&str>, digest: &str) -> Answer<Option<Instance>> {
    let Some(key) = once else {
        return Ok(None);
    };
    let (found, _) = control.registry.read::<Once>(key).await?;
    let Some(found) = found else {
        return Ok(None);
    };
    check_once(&found, digest)?;
    let (instance, _) = control
        .registry
        .read(format!("instance/{}", found.made))
        .await?;
    Ok(instance)
}

async fn attempt(
    control: &Control,
    caller: &Caller,
    id: &str,
    spec: InstanceSpec,
    once: Option<(&str, &str)>,
) -> Answer<Instance> {
    let account = &caller.account.id;
    let mut draft = control.draft();
    let name_key = format!("name/{account}/{}", spec.name);
    if let Some(taken) = draft.read::<String>(name_key.clone()).await? {
        let ours = draft.read::<Instance>(format!("instance/{id}")).await?;
        if let Some(instance) = ours.filter(|_| taken == id) {
            return Ok(instance);
        }
        let detail = format!("An instance '{}' is there already", spec.name);
        return Err(Problem::conflict("name_taken", detail).into());
    }
    let mut instance = Instance {
        id: id.to_owned(),
        account: account.clone(),
        spec,
        policy_version: 1,
        life: Life::begin(),
        stop_force: false,
        stop_timeout_ms: 0,
        capacity_short: None,
        avoid: None,
        created: now_text(),
        changed: now_text(),
    };
    control.count(&mut draft, &instance).await?;
    control.place(&mut draft, &mut instance).await?;
    control.change(&mut draft, None, &mut instance).await?;
    draft.write(name_key, id)?;
    draft.write(format!("account-instance/{account}/{id}"), &())?;
    if let Some((key, digest)) = once {
        // Read, so that two requests with the same token conflict.
        draft.read::<Once>(key).await?;
        let once = Once {
            request: digest.to_owned(),
            made: id.to_owned(),
            time_ms: now_ms(),
        };
        draft.write(key, &once)?;
    }
    caller.audit(&mut draft, "instance.launch", id)?;
    draft.commit().await?;
    Ok(instance)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bounds() -> Bounds {
        serde_json::from_str(r#"{"cpus":{"min":0.5,"max":4},"memory":{"min":"256M","max":"4G"}}"#)
            .unwrap()
    }

    #[test]
    fn thresholds_are_texts_or_objects_and_absent_means_the_default() {
        let rules: Vec<Value> = serde_json::from_str(
            r#"["cpu > 75% for 5s: +1 cpu", "set shrink_window 30s",
                {"metric":"memory","above":"80%","for":"2s","add":{"memory":"128M"}},
                {"metric":"memory","level":"70%"}]"#,
        )
        .unwrap();
        let policy = read_policy(bounds(), Some(&rules)).unwrap();
        assert_eq!((policy.rules.len(), policy.shrink_window_ms), (3, 30_000));
        assert!(read_policy(bounds(), None).unwrap().rules.len() > 3);
        assert!(read_policy(bounds(), Some(&[])).unwrap().rules.is_empty());
    }

    #[test]
    fn wrong_thresholds_are_refused_with_their_text() {
        for (rules, named) in [
            (r#"["cpo > 75%: +1 cpu"]"#, "cpo"),
            (r#"[{"metric":"cpu","above":"75%"}]"#, "add"),
            (r#"[7]"#, "threshold"),
            (r#"["cpu > 50%: +1 cpu", "cpu < 60%: -1 cpu"]"#, "oscillate"),
        ] {
            let rules: Vec<Value> = serde_json::from_str(rules).unwrap();
            let error = read_policy(bounds(), Some(&rules)).unwrap_err().to_string();
            assert!(error.contains(named), "{error}");
        }
    }

    #[test]
    fn a_hosts_interfaces_and_ports_are_not_for_customers() {
        let check = |network: &str| check_networks(&[network.to_owned()]);
        assert!(check("user,rate=10M").is_ok() && check("tap").is_ok());
        for network in ["tap=eth0", "user, forward=22:22", "bridge", ""] {
            assert!(check(network).is_err(), "{network}");
        }
    }
}
