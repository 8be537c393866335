//! The own certificate, key and trust anchors.

use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;

use rustls::RootCertStore;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::sign::CertifiedKey;

use super::provider::provider;
use super::verify::spiffe_id;
use crate::error::{Error, ErrorKind, Layer, Result, Side};
use crate::identity::SpiffeId;

/// Gives the credentials to use now. Asked at each handshake, so that a renewed certificate is used from the next one on.
///
/// [`Credentials`] are a source that never changes.
pub trait CredentialSource: fmt::Debug + Send + Sync {
    /// The credentials to use now. Must not block.
    ///
    /// # Errors
    ///
    /// When there are none (yet, or any more). The handshake then fails with this as its cause.
    fn credentials(&self) -> io::Result<Credentials>;
}

impl CredentialSource for Credentials {
    fn credentials(&self) -> io::Result<Credentials> {
        Ok(self.clone())
    }
}

/// A workload's certificate chain with its private key, and the roots that it trusts: checked, and ready for handshakes.
/// Cheap to clone.
#[derive(Clone)]
pub struct Credentials {
    pub(super) key: Arc<CertifiedKey>,
    pub(super) roots: Arc<RootCertStore>,
    pub(super) client_verifier: Arc<dyn ClientCertVerifier>,
    identity: SpiffeId,
}

impl Credentials {
    /// Whether the other is a clone of this one.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.key, &other.key)
    }

    /// Checks and takes DER: the chain with the workload's own certificate first, its private key (PKCS#8, SEC1 or PKCS#1)
    /// and the trusted roots. More than one root is fine, as during a root's rotation.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidCredentials`], naming the part at fault: an empty chain or set of roots, a key that does not
    /// belong to the certificate, a certificate without exactly one SPIFFE ID, out of its dates, or from none of the roots.
    pub fn from_der(
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
        roots: Vec<CertificateDer<'static>>,
    ) -> Result<Self> {
        let provider = provider();
        // aws-lc gathers entropy when it is asked for the first time, for up to a tenth of a second: better now than in the
        // first handshake.
        provider.secure_random.fill(&mut [0]).map_err(|_| invalid("the system has no randomness"))?;
        let leaf = chain.first().ok_or_else(|| invalid("the certificate chain is empty"))?.clone();
        if roots.is_empty() {
            return Err(invalid("there is no trusted root"));
        }
        let mut store = RootCertStore::empty();
        for root in roots {
            store.add(root).map_err(|e| with_cause(invalid("a trusted root is no valid certificate"), e))?;
        }
        let store = Arc::new(store);
        let identity = spiffe_id(&leaf).map_err(|e| invalid("the own certificate").with_source(e))?;
        let signing = provider
            .key_provider
            .load_private_key(key)
            .map_err(|e| invalid("the private key can't be used").with_source(e))?;
        let key = CertifiedKey::new(chain, signing);
        key.keys_match()
            .map_err(|_| invalid(format!("the private key does not belong to the certificate of {identity}")))?;
        check_chain(&key.cert, &store).map_err(|e| with_cause(invalid(format!("the certificate of {identity}")), e))?;
        let client_verifier = WebPkiClientVerifier::builder_with_provider(store.clone(), provider)
            .build()
            .map_err(|e| invalid("the trusted roots").with_source(e))?;
        Ok(Self { key: Arc::new(key), roots: store, client_verifier, identity })
    }

    /// Like [`Credentials::from_der`], from PEM. What is no certificate (or key) block is passed over.
    ///
    /// # Errors
    ///
    /// As [`Credentials::from_der`], and when a text has no such block.
    pub fn from_pem(chain: &[u8], key: &[u8], roots: &[u8]) -> Result<Self> {
        let certificates = |what: &str, text: &[u8]| {
            CertificateDer::pem_slice_iter(text)
                .collect::<Result<Vec<_>, _>>()
                .map_err(|e| invalid(format!("reading the {what} as PEM")).with_source(e))
        };
        let key = PrivateKeyDer::from_pem_slice(key).map_err(|e| {
            let error = invalid("reading the private key as PEM");
            match e {
                pem::Error::NoItemsFound => error.with_source("there is no PRIVATE KEY block"),
                e => error.with_source(e),
            }
        })?;
        Self::from_der(certificates("certificate chain", chain)?, key, certificates("trusted roots", roots)?)
    }

    /// Like [`Credentials::from_pem`], from files.
    ///
    /// # Errors
    ///
    /// As [`Credentials::from_pem`], and when a file can't be read; each names the file.
    pub fn from_pem_files(chain: &Path, key: &Path, roots: &Path) -> Result<Self> {
        let read = |what: &str, path: &Path| {
            std::fs::read(path)
                .map_err(|e| invalid(format!("reading the {what} from {}", path.display())).with_source(e))
        };
        let (chain_pem, key_pem, roots_pem) =
            (read("certificate chain", chain)?, read("private key", key)?, read("trusted roots", roots)?);
        Self::from_pem(&chain_pem, &key_pem, &roots_pem).map_err(|e| {
            let files = format!(
                "loading the certificate {}, key {}, roots {}",
                chain.display(),
                key.display(),
                roots.display()
            );
            invalid(files).with_source(CauseOf(e))
        })
    }

    /// The identity in the own certificate.
    pub fn identity(&self) -> &SpiffeId {
        &self.identity
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials")
            .field("identity", &self.identity)
            .field("roots", &self.roots.len())
            .finish_non_exhaustive()
    }
}

/// An [`Error`] as the cause of another: its action and causes, without repeating layer and advice.
#[derive(Debug)]
struct CauseOf(Error);

impl fmt::Display for CauseOf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.doing())
    }
}

impl std::error::Error for CauseOf {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        std::error::Error::source(&self.0)
    }
}

fn invalid(doing: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::InvalidCredentials, Layer::Config, Side::Local, doing)
}

/// rustls takes every certificate for a peer's, and says so.
fn with_cause(error: Error, cause: rustls::Error) -> Error {
    match cause {
        rustls::Error::InvalidCertificate(cause) => error.with_source(cause.to_string()),
        other => error.with_source(other),
    }
}

/// Checks the own chain as a peer with the same roots would. A certificate for only one of the two roles is let pass.
fn check_chain(chain: &[CertificateDer<'_>], roots: &RootCertStore) -> Result<(), rustls::Error> {
    use rustls::client::verify_server_cert_signed_by_trust_anchor;
    let [leaf, intermediates @ ..] = chain else {
        return Ok(());
    };
    let leaf = rustls::server::ParsedCertificate::try_from(leaf)?;
    let algorithms = provider().signature_verification_algorithms.all;
    match verify_server_cert_signed_by_trust_anchor(&leaf, roots, intermediates, UnixTime::now(), algorithms) {
        Err(rustls::Error::InvalidCertificate(
            rustls::CertificateError::InvalidPurpose | rustls::CertificateError::InvalidPurposeContext { .. },
        )) => Ok(()),
        other => other,
    }
}
