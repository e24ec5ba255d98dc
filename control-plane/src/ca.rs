//! The control plane's own small certificate authority: it signs what agents and control plane show each
//! other, and nothing else trusts it.
//!
//! ```text
//! authority 1  ├──── signs ────┤  still trusted  ├
//! authority 2           ├ trusted, not signing ┤──── signs ────…
//!                       rotate                  one certificate's life later
//! ```
//! A rotation makes the next authority. It is trusted at once and signs after one life of a host's
//! certificate: by then each host that lives has renewed its own, and learned of it. Keys of authorities
//! are in the registry, since each node signs; whoever can read the registry is the control plane.

use std::sync::{Arc, RwLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use serde::{Deserialize, Serialize};

use crate::ids::{now_ms, sha256};
use crate::registry::{Registry, RegistryError, Transaction};

/// The name that the control plane has towards agents, wherever it is.
pub const CONTROL_NAME: &str = concertina_api::link::CONTROL_NAME;
/// How long an authority is good.
const AUTHORITY_LIFE: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// Clocks of hosts may be behind by so much.
const CLOCK_SKEW: Duration = Duration::from_secs(3600);

/// Something about certificates went wrong.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// A certificate or key cannot be made or read.
    #[error("Certificate: {0}")]
    Certificate(String),
    /// The registry does not work.
    #[error(transparent)]
    Registry(#[from] RegistryError),
}

fn broken(error: impl std::fmt::Display) -> CaError {
    CaError::Certificate(error.to_string())
}

/// One authority, as it is in the registry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Authority {
    /// Its number, from 1.
    pub number: u32,
    /// Its certificate, PEM.
    pub certificate: String,
    /// Its key, PEM.
    pub key: String,
    /// It signs from this time on, in milliseconds since 1970.
    pub signs_from_ms: u64,
}

impl Authority {
    fn generate(number: u32, signs_from_ms: u64) -> Result<Self, CaError> {
        let key = KeyPair::generate().map_err(broken)?;
        let mut params = CertificateParams::default();
        let name = format!("Concertina authority {number}");
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        set_life(&mut params, AUTHORITY_LIFE);
        let certificate = params.self_signed(&key).map_err(broken)?;
        Ok(Self {
            number,
            certificate: certificate.pem(),
            key: key.serialize_pem(),
            signs_from_ms,
        })
    }

    fn issuer(&self) -> Result<Issuer<'static, KeyPair>, CaError> {
        let key = KeyPair::from_pem(&self.key).map_err(broken)?;
        Issuer::from_ca_cert_pem(&self.certificate, key).map_err(broken)
    }

    fn der(&self) -> Result<CertificateDer<'static>, CaError> {
        CertificateDer::from_pem_slice(self.certificate.as_bytes()).map_err(broken)
    }

    /// SHA-256 of its certificate: what a join token carries, so that the first connection knows whom
    /// it talks to.
    pub fn fingerprint(&self) -> Result<String, CaError> {
        Ok(sha256(self.der()?))
    }
}

fn set_life(params: &mut CertificateParams, life: Duration) {
    let now = SystemTime::now();
    params.not_before = now.checked_sub(CLOCK_SKEW).unwrap_or(UNIX_EPOCH).into();
    params.not_after = now.checked_add(life).unwrap_or(now).into();
}

/// All authorities, as this node knows them.
#[derive(Debug, Default)]
pub struct Authorities {
    all: RwLock<Arc<Vec<Authority>>>,
}

impl Authorities {
    /// Reads them; makes the first where there is none.
    ///
    /// # Errors
    /// The registry does not work.
    pub async fn load(&self, registry: &dyn Registry) -> Result<(), CaError> {
        let mut listing = registry.list_all("authority/").await?;
        if listing.entries.is_empty() {
            let first = Authority::generate(1, 0)?;
            store(registry, &first).await?;
            listing = registry.list_all("authority/").await?;
        }
        let mut all = Vec::new();
        for entry in &listing.entries {
            all.push(entry.read::<Authority>()?);
        }
        *self
            .all
            .write()
            .unwrap_or_else(std::sync::PoisonError::into_inner) = Arc::new(all);
        Ok(())
    }

    /// Makes the next one, which signs after `overlap`.
    ///
    /// # Errors
    /// The registry does not work.
    pub async fn rotate(
        &self,
        registry: &dyn Registry,
        overlap: Duration,
    ) -> Result<Authority, CaError> {
        self.load(registry).await?;
        let number = self
            .all()
            .last()
            .map_or(0, |last| last.number)
            .saturating_add(1);
        let overlap_ms = u64::try_from(overlap.as_millis()).unwrap_or(u64::MAX);
        let next = Authority::generate(number, now_ms().saturating_add(overlap_ms))?;
        store(registry, &next).await?;
        self.load(registry).await?;
        Ok(next)
    }

    fn all(&self) -> Arc<Vec<Authority>> {
        Arc::clone(
            &self
                .all
                .read()
                .unwrap_or_else(std::sync::PoisonError::into_inner),
        )
    }

    /// The one that signs now.
    ///
    /// # Errors
    /// None was loaded.
    pub fn signing(&self) -> Result<Authority, CaError> {
        let now = now_ms();
        let all = self.all();
        let signs = |authority: &&Authority| authority.signs_from_ms <= now;
        let signing = all.iter().rev().find(signs);
        signing
            .cloned()
            .ok_or_else(|| broken("there is no authority"))
    }

    /// Changes when another authority is known, or another one signs.
    pub fn mark(&self) -> (usize, u32) {
        let signing = self.signing().map_or(0, |authority| authority.number);
        (self.all().len(), signing)
    }

    /// Certificates of all, PEM.
    pub fn pem(&self) -> String {
        self.all()
            .iter()
            .map(|authority| authority.certificate.as_str())
            .collect()
    }

    fn roots(&self) -> Result<RootCertStore, CaError> {
        let mut roots = RootCertStore::empty();
        for authority in self.all().iter() {
            roots.add(authority.der()?).map_err(broken)?;
        }
        Ok(roots)
    }

    /// Signs a host's request. Only its public key is taken from it.
    ///
    /// # Errors
    /// It is no request, or its signature is wrong.
    pub fn sign_host(&self, host: &str, request: &str, life: Duration) -> Result<String, CaError> {
        let request = CertificateSigningRequestParams::from_pem(request).map_err(broken)?;
        let mut params = CertificateParams::new(vec![format!("{host}.host")]).map_err(broken)?;
        params.distinguished_name.push(DnType::CommonName, host);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        set_life(&mut params, life);
        let issuer = self.signing()?.issuer()?;
        let certificate = params
            .signed_by(&request.public_key, &issuer)
            .map_err(broken)?;
        Ok(certificate.pem())
    }

    /// A key and a certificate of our own, for these names and addresses.
    fn own(
        &self,
        names: Vec<String>,
    ) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), CaError> {
        let authority = self.signing()?;
        let key = KeyPair::generate().map_err(broken)?;
        let mut params = CertificateParams::new(names).map_err(broken)?;
        params
            .distinguished_name
            .push(DnType::CommonName, CONTROL_NAME);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        set_life(&mut params, Duration::from_secs(90 * 24 * 3600));
        let certificate = params
            .signed_by(&key, &authority.issuer()?)
            .map_err(broken)?;
        let private = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        // With the authority itself, so that who pins it by its fingerprint sees it.
        Ok((vec![certificate.der().clone(), authority.der()?], private))
    }

    /// TLS towards agents: they show a certificate of ours, or none when they join.
    ///
    /// # Errors
    /// Certificates cannot be made.
    pub fn agents_tls(&self) -> Result<Arc<ServerConfig>, CaError> {
        let (chain, key) = self.own(vec![CONTROL_NAME.to_owned()])?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(
            Arc::new(self.roots()?),
            Arc::clone(&provider),
        )
        .allow_unauthenticated()
        .build()
        .map_err(broken)?;
        let config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(broken)?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain, key)
            .map_err(broken)?;
        Ok(Arc::new(config))
    }

    /// TLS of the API with a certificate of ours.
    ///
    /// # Errors
    /// Certificates cannot be made.
    pub fn api_tls(&self, names: Vec<String>) -> Result<Arc<ServerConfig>, CaError> {
        let (chain, key) = self.own(names)?;
        api_config(chain, key)
    }
}

/// TLS of the API with a certificate from files.
///
/// # Errors
/// They cannot be read, or do not belong together.
pub fn api_tls_of_files(
    certificate: &std::path::Path,
    key: &std::path::Path,
) -> Result<Arc<ServerConfig>, CaError> {
    let of = |path: &std::path::Path, error: &dyn std::fmt::Display| {
        broken(format!("{}: {error}", path.display()))
    };
    let chain = CertificateDer::pem_file_iter(certificate)
        .and_then(Iterator::collect)
        .map_err(|error| of(certificate, &error))?;
    let key = PrivateKeyDer::from_pem_file(key).map_err(|error| of(key, &error))?;
    api_config(chain, key)
}

fn api_config(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<Arc<ServerConfig>, CaError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(broken)?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(broken)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

async fn store(registry: &dyn Registry, authority: &Authority) -> Result<(), CaError> {
    let mut transaction = Transaction::new();
    let key = format!("authority/{:06}", authority.number);
    transaction.absent(key.clone()).put(key, authority)?;
    match registry.commit(transaction).await {
        // Another node was faster: its is as good.
        Ok(_) | Err(RegistryError::Conflict(_)) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// SHA-256 of the public key that a request is for.
///
/// # Errors
/// It is no request.
pub fn key_of_request(request: &str) -> Result<String, CaError> {
    let request = CertificateSigningRequestParams::from_pem(request).map_err(broken)?;
    Ok(sha256(request.public_key.subject_public_key_info()))
}

/// SHA-256 of the public key that a certificate is for.
///
/// # Errors
/// It is no certificate.
pub fn key_of_certificate(certificate: &CertificateDer<'_>) -> Result<String, CaError> {
    let parsed = rustls::server::ParsedCertificate::try_from(certificate).map_err(broken)?;
    Ok(sha256(parsed.subject_public_key_info()))
}
