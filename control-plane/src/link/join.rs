//! A host joins with a token, once, and gets a certificate; later it renews it.

use axum::http::StatusCode;
use concertina_api::link::{HostCapacity, ToAgent};

use crate::ca::key_of_request;
use crate::control::Control;
use crate::ids::{self, is_id, now_ms, now_text, sha256};
use crate::keys::is_same;
use crate::model::{Host, JoinToken};
use crate::problem::{Answer, Fault, Problem};

fn bad_request(error: &crate::ca::CaError) -> Problem {
    Problem::new(
        StatusCode::UNPROCESSABLE_ENTITY,
        "invalid_request",
        error.to_string(),
    )
}

/// Lets a host join. The same key with the same token gets the same host again: an answer may be lost.
pub async fn join(control: &Control, token: &str, name: &str, request: &str) -> Answer<ToAgent> {
    let refused = || {
        let detail = "The join token is not valid, was used, or has ended: ask for a fresh one";
        Problem::forbidden("invalid_join_token", detail)
    };
    let (id, secret) = token.split_once('_').ok_or_else(refused)?;
    if !is_id("j", id) {
        return Err(refused().into());
    }
    crate::http::routes::accounts::check_name("name", name)?;
    let public_key = key_of_request(request).map_err(|error| bad_request(&error))?;
    let host = crate::draft::again(|| async {
        let mut draft = control.draft();
        let found = draft.read::<JoinToken>(format!("join/{id}")).await?;
        let mut token = found
            .filter(|token| is_same(&token.hash, &sha256(secret)) && now_ms() < token.expires_ms)
            .ok_or_else(refused)?;
        if let Some(host) = &token.used_by {
            let is_same_key = token.public_key.as_ref() == Some(&public_key);
            return if is_same_key {
                Ok(host.clone())
            } else {
                Err(refused().into())
            };
        }
        let name_key = format!("host-name/{name}");
        if let Some(there) = draft.read::<String>(name_key.clone()).await? {
            // The same host again, whose certificate has ended.
            let host = draft.read::<Host>(format!("host/{there}")).await?;
            if host.is_some_and(|host| host.public_key == public_key) {
                token.used_by = Some(there.clone());
                token.public_key = Some(public_key.clone());
                draft.write(format!("join/{id}"), &token)?;
                draft.commit().await?;
                return Ok(there);
            }
            let detail = format!(
                "There is a host '{name}' already: remove it first, or choose another name"
            );
            return Err(Problem::conflict("name_taken", detail).into());
        }
        let host = Host {
            id: ids::fresh("h")?,
            name: name.to_owned(),
            draining: false,
            // Until it says hello.
            lost: true,
            capacity: HostCapacity::default(),
            version: String::new(),
            boot: String::new(),
            public_key: public_key.clone(),
            unknown: Vec::new(),
            created: now_text(),
        };
        token.used_by = Some(host.id.clone());
        token.public_key = Some(public_key.clone());
        draft.write(format!("join/{id}"), &token)?;
        draft.write(name_key, &host.id)?;
        draft.write(format!("host-key/{public_key}"), &host.id)?;
        draft.write(format!("host/{}", host.id), &host)?;
        draft.commit().await?;
        Ok::<_, Fault>(host.id)
    })
    .await?;
    certificate(control, &host, request)
}

/// A certificate for a host's key.
pub fn certificate(control: &Control, host: &str, request: &str) -> Answer<ToAgent> {
    let life = control.settings.certificate_life;
    let signed = control.authorities.sign_host(host, request, life);
    Ok(ToAgent::Certificate {
        host: host.to_owned(),
        certificate: signed.map_err(|error| bad_request(&error))?,
        authorities: control.authorities.pem(),
        life_s: life.as_secs(),
    })
}

/// Renews a host's certificate. The key stays: it is what the host is known by.
pub fn renew(control: &Control, host: &Host, request: &str) -> Answer<ToAgent> {
    let key = key_of_request(request).map_err(|error| bad_request(&error))?;
    if key != host.public_key {
        let detail = "A certificate is renewed for the same key";
        return Err(Problem::forbidden("wrong_key", detail).into());
    }
    certificate(control, &host.id, request)
}
