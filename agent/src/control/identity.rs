//! Who this host is towards the control plane: its key, which never leaves it, and its certificate.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use concertina_api::link::{CONTROL_NAME, FromAgent, ToAgent};
use rcgen::{CertificateParams, KeyPair};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{
    ClientConfig, DigitallySignedStruct, Error as TlsError, RootCertStore, SignatureScheme,
};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::link::Link;
use crate::clock::Moment;
use crate::state_dir::write_private;

const KEY_FILE: &str = "host.key";
const CERTIFICATE_FILE: &str = "host.pem";
const AUTHORITIES_FILE: &str = "authorities.pem";
const ABOUT_FILE: &str = "control.json";
/// How long joining may take.
const JOIN_TIMEOUT: Duration = Duration::from_secs(30);

/// Why this host has no identity.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The token has not the form of one.
    #[error(
        "The join token is not whole: 'concertina host token' gives one like HOST:PORT/ID_SECRET/FINGERPRINT"
    )]
    Token,
    /// A file.
    #[error("{path}: {source}")]
    File {
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A key or a certificate cannot be made or used.
    #[error("Certificate: {0}")]
    Certificate(String),
    /// The control plane cannot be reached, or is not the one that the token names.
    #[error("The control plane at {address} cannot be reached: {why}")]
    Unreachable {
        /// Where.
        address: String,
        /// Why not.
        why: String,
    },
    /// The control plane says no.
    #[error("The control plane refuses: {0}")]
    Refused(String),
}

fn certificate_error(error: impl std::fmt::Display) -> IdentityError {
    IdentityError::Certificate(error.to_string())
}

/// The parts of a join token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JoinWords {
    /// `HOST:PORT` of the control plane.
    pub address: String,
    /// What it knows the token by.
    pub secret: String,
    /// SHA-256 of its authority's certificate, 64 hexadecimal digits.
    pub fingerprint: String,
}

impl std::str::FromStr for JoinWords {
    type Err = IdentityError;

    fn from_str(text: &str) -> Result<Self, IdentityError> {
        let mut words = text.trim().split('/');
        let (Some(address), Some(secret), Some(fingerprint), None) =
            (words.next(), words.next(), words.next(), words.next())
        else {
            return Err(IdentityError::Token);
        };
        let is_hex = fingerprint.len() == 64 && fingerprint.bytes().all(|b| b.is_ascii_hexdigit());
        if address.is_empty() || secret.is_empty() || !is_hex {
            return Err(IdentityError::Token);
        }
        Ok(Self {
            address: address.to_owned(),
            secret: secret.to_owned(),
            fingerprint: fingerprint.to_ascii_lowercase(),
        })
    }
}

/// What is stored beside key and certificates.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct About {
    address: String,
    host: String,
    /// When the certificate came, in milliseconds since 1970 by this host's clock.
    issued_ms: u64,
    /// How long it is good, in seconds.
    life_s: u64,
}

/// Who this host is.
#[derive(Debug)]
pub struct Identity {
    folder: PathBuf,
    key: KeyPair,
    about: About,
}

fn read(path: &Path) -> Result<String, IdentityError> {
    fs::read_to_string(path).map_err(|source| IdentityError::File {
        path: path.to_owned(),
        source,
    })
}

fn write(path: &Path, text: &str) -> Result<(), IdentityError> {
    let failed = |source| IdentityError::File {
        path: path.to_owned(),
        source,
    };
    let fresh = path.with_extension("new");
    match fs::remove_file(&fresh) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    write_private(&fresh, text.as_bytes())
        .map_err(|error| failed(io::Error::other(crate::sentence(&error))))?;
    fs::rename(&fresh, path).map_err(failed)
}

impl Identity {
    /// Reads the identity from a folder; `None`: this host has not joined.
    ///
    /// # Errors
    /// It is there and cannot be read.
    pub fn open(folder: &Path) -> Result<Option<Self>, IdentityError> {
        if !folder.join(CERTIFICATE_FILE).exists() {
            return Ok(None);
        }
        let key = KeyPair::from_pem(&read(&folder.join(KEY_FILE))?).map_err(certificate_error)?;
        let about =
            serde_json::from_str(&read(&folder.join(ABOUT_FILE))?).map_err(certificate_error)?;
        Ok(Some(Self {
            folder: folder.to_owned(),
            key,
            about,
        }))
    }

    /// The host's id.
    pub fn host(&self) -> &str {
        &self.about.host
    }

    /// `HOST:PORT` of the control plane.
    pub fn address(&self) -> &str {
        &self.about.address
    }

    /// Connects somewhere else from here on.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn set_address(&mut self, address: &str) -> Result<(), IdentityError> {
        self.about.address = address.to_owned();
        let about = serde_json::to_string(&self.about).map_err(certificate_error)?;
        write(&self.folder.join(ABOUT_FILE), &about)
    }

    /// A request for a certificate.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn request(&self) -> Result<String, IdentityError> {
        request(&self.key)
    }

    /// Whether two thirds of the certificate's life are over.
    pub fn is_old(&self) -> bool {
        let age_ms = Moment::now().wall_ms.saturating_sub(self.about.issued_ms);
        age_ms / 1000 >= self.about.life_s.saturating_mul(2) / 3
    }

    /// Takes a certificate, and the authorities to trust from here on.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn renew(
        &mut self,
        certificate: &str,
        authorities: &str,
        life_s: u64,
    ) -> Result<(), IdentityError> {
        self.about.issued_ms = Moment::now().wall_ms;
        self.about.life_s = life_s;
        self.write(certificate, authorities)
    }

    fn write(&self, certificate: &str, authorities: &str) -> Result<(), IdentityError> {
        let about = serde_json::to_string(&self.about).map_err(certificate_error)?;
        write(&self.folder.join(KEY_FILE), &self.key.serialize_pem())?;
        write(&self.folder.join(AUTHORITIES_FILE), authorities)?;
        write(&self.folder.join(ABOUT_FILE), &about)?;
        // The last one: an identity without it is none.
        write(&self.folder.join(CERTIFICATE_FILE), certificate)
    }

    /// TLS with this identity.
    ///
    /// # Errors
    /// A file cannot be read.
    pub fn tls(&self) -> Result<Arc<ClientConfig>, IdentityError> {
        let mut roots = RootCertStore::empty();
        let authorities = read(&self.folder.join(AUTHORITIES_FILE))?;
        for authority in CertificateDer::pem_slice_iter(authorities.as_bytes()) {
            let authority = authority.map_err(certificate_error)?;
            roots.add(authority).map_err(certificate_error)?;
        }
        let chain = CertificateDer::pem_file_iter(self.folder.join(CERTIFICATE_FILE))
            .and_then(Iterator::collect::<Result<Vec<_>, _>>)
            .map_err(certificate_error)?;
        let key = PrivateKeyDer::try_from(self.key.serialize_der()).map_err(certificate_error)?;
        let config =
            ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
                .with_protocol_versions(&[&rustls::version::TLS13])
                .map_err(certificate_error)?
                .with_root_certificates(roots)
                .with_client_auth_cert(chain, key)
                .map_err(certificate_error)?;
        Ok(Arc::new(config))
    }
}

fn request(key: &KeyPair) -> Result<String, IdentityError> {
    let params = CertificateParams::default();
    let request = params.serialize_request(key).map_err(certificate_error)?;
    request.pem().map_err(certificate_error)
}

/// Joins the control plane that a token names, and stores the identity in a folder. Done again with the
/// same token after an answer that was lost, it gives the same host.
///
/// # Errors
/// The token is wrong, the control plane cannot be reached or is another, or it says no.
pub fn join(folder: &Path, words: &JoinWords, name: &str) -> Result<Identity, IdentityError> {
    fs::create_dir_all(folder).map_err(|source| IdentityError::File {
        path: folder.to_owned(),
        source,
    })?;
    let key_path = folder.join(KEY_FILE);
    let key = match key_path.exists() {
        true => KeyPair::from_pem(&read(&key_path)?).map_err(certificate_error)?,
        false => {
            let key = KeyPair::generate().map_err(certificate_error)?;
            write(&key_path, &key.serialize_pem())?;
            key
        }
    };
    let unreachable = |why: String| IdentityError::Unreachable {
        address: words.address.clone(),
        why,
    };
    let deadline = Instant::now() + JOIN_TIMEOUT;
    let tls = Pinned::tls(&words.fingerprint)?;
    let mut link =
        Link::connect(&words.address, tls, deadline).map_err(|e| unreachable(e.to_string()))?;
    let join = FromAgent::Join {
        token: words.secret.clone(),
        name: name.to_owned(),
        request: request(&key)?,
    };
    link.send(&join).map_err(|e| unreachable(e.to_string()))?;
    match link
        .receive(deadline)
        .map_err(|e| unreachable(e.to_string()))?
    {
        ToAgent::Certificate {
            host,
            certificate,
            authorities,
            life_s,
        } => {
            let about = About {
                address: words.address.clone(),
                host,
                issued_ms: Moment::now().wall_ms,
                life_s,
            };
            let identity = Identity {
                folder: folder.to_owned(),
                key,
                about,
            };
            identity.write(&certificate, &authorities)?;
            Ok(identity)
        }
        ToAgent::Refused { detail, .. } => Err(IdentityError::Refused(detail)),
        other => Err(unreachable(format!("it answers {other:?}"))),
    }
}

/// Trusts the authority with one fingerprint, and nothing else.
#[derive(Debug)]
struct Pinned {
    fingerprint: String,
    provider: Arc<rustls::crypto::CryptoProvider>,
}

impl Pinned {
    fn tls(fingerprint: &str) -> Result<Arc<ClientConfig>, IdentityError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = Self {
            fingerprint: fingerprint.to_owned(),
            provider: Arc::clone(&provider),
        };
        let config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(certificate_error)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_no_client_auth();
        Ok(Arc::new(config))
    }
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, TlsError> {
        let is_pinned = |certificate: &&CertificateDer<'_>| {
            let digest = Sha256::digest(certificate.as_ref());
            let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
            hex == self.fingerprint
        };
        let Some(authority) = intermediates.iter().find(is_pinned) else {
            return Err(TlsError::General(
                "it is not the control plane that the token is of".into(),
            ));
        };
        // The pinned one has to have signed what is shown, for this name, and for now.
        let mut roots = RootCertStore::empty();
        roots.add(authority.clone().into_owned())?;
        let verifier = WebPkiServerVerifier::builder_with_provider(
            Arc::new(roots),
            Arc::clone(&self.provider),
        )
        .build()
        .map_err(|error| TlsError::General(error.to_string()))?;
        verifier.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

/// The name that a control plane has to show.
pub(super) fn control_name() -> Result<ServerName<'static>, io::Error> {
    ServerName::try_from(CONTROL_NAME).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_that_was_cut_off_is_recognised() {
        let whole = format!("10.0.0.1:7071/j-1_secret/{}", "0a".repeat(32));
        let words: JoinWords = whole.parse().unwrap();
        assert_eq!(
            (words.address.as_str(), words.secret.as_str()),
            ("10.0.0.1:7071", "j-1_secret")
        );
        for length in 0..whole.len() {
            assert!(whole[..length].parse::<JoinWords>().is_err(), "{length}");
        }
    }
}
