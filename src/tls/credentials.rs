//! A workload's certificate, key and trusted roots.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::sign::CertifiedKey;
use rustls::{InconsistentKeys, RootCertStore};

use super::verify::other_form;
use super::{Certificate, provider};
use crate::error::{Error, ErrorKind, Layer, Result, Side};
use crate::identity::SpiffeId;

/// A workload's certificate chain with its private key, and the roots that it trusts: checked, and ready for
/// handshakes. Cheap to clone.
///
/// Equal when the certificate chain and the roots are: loading the same files twice gives equal credentials.
///
/// # What issuers must keep to
///
/// Chains are verified by [rustls-webpki](https://docs.rs/rustls-webpki): certificates of version 3, a chain of at most
/// six intermediates, sent in order. It knows name constraints of the kinds DNS, IP and directory name only: an issuer
/// with a *URI* name constraint (X509-SVID, section 4.2) is refused with `UnsupportedNameConstraint`, whether it
/// permits the trust domain or not. Leave it out, or constrain the set of trust domains with
/// [`TrustDomains`](crate::TrustDomains) and [`AcceptedIdentities`](crate::AcceptedIdentities), which are checked on
/// each handshake.
#[derive(Clone)]
pub struct Credentials(Arc<Inner>);

struct Inner {
    key: Arc<CertifiedKey>,
    roots: Arc<RootCertStore>,
    client_verifier: Arc<dyn ClientCertVerifier>,
    provider: Arc<CryptoProvider>,
    certificate: Certificate,
}

/// How [`Credentials`] are made where the defaults will not do; [`Credentials::builder`] gives one.
#[derive(Clone, Debug, Default)]
pub struct CredentialsBuilder {
    provider: Option<Arc<CryptoProvider>>,
    any_path: bool,
    as_of: Option<UnixTime>,
}

impl Credentials {
    /// For another provider of cryptography, a signing key that is not in memory, or other forms of SPIFFE ID.
    pub fn builder() -> CredentialsBuilder {
        CredentialsBuilder::default()
    }

    /// Checks and takes DER: the chain with the workload's own certificate first, its private key (PKCS#8, SEC1 or
    /// PKCS#1) and the trusted roots. More than one root is fine, as during a root's rotation.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidCredentials`], naming the part at fault: an empty chain or set of roots, a key that does not
    /// belong to the certificate, a certificate without exactly one SPIFFE ID, out of its dates, or from none of the
    /// roots.
    pub fn from_der(
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
        roots: Vec<CertificateDer<'static>>,
    ) -> Result<Self> {
        Self::builder().from_der(chain, key, roots)
    }

    /// Like [`Credentials::from_der`], from PEM. Blocks of other kinds are passed over.
    ///
    /// # Errors
    ///
    /// As [`Credentials::from_der`], and when a text has no such block.
    pub fn from_pem(chain: &[u8], key: &[u8], roots: &[u8]) -> Result<Self> {
        Self::builder().from_pem(chain, key, roots)
    }

    /// Like [`Credentials::from_pem`], from files.
    ///
    /// # Errors
    ///
    /// As [`Credentials::from_pem`], and when a file can't be read; each names the file.
    pub fn from_pem_files(chain: &Path, key: &Path, roots: &Path) -> Result<Self> {
        Self::builder().from_pem_files(chain, key, roots)
    }

    /// The workload's identity: that of its certificate.
    pub fn identity(&self) -> &SpiffeId {
        self.0.certificate.identity()
    }

    /// The workload's certificate: identity, serial number, dates.
    pub fn certificate(&self) -> &Certificate {
        &self.0.certificate
    }

    /// The certificate chain, the workload's own certificate first.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.0.key.cert
    }

    pub(super) fn key(&self) -> Arc<CertifiedKey> {
        self.0.key.clone()
    }

    pub(super) fn roots(&self) -> &Arc<RootCertStore> {
        &self.0.roots
    }

    pub(super) fn client_verifier(&self) -> &Arc<dyn ClientCertVerifier> {
        &self.0.client_verifier
    }

    pub(super) fn provider(&self) -> &Arc<CryptoProvider> {
        &self.0.provider
    }

    /// Whether the other is a clone of this one, and so has the same signing key.
    pub(super) fn is_clone_of(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl CredentialsBuilder {
    /// The cryptography of the key and of all handshakes; it needs a cipher suite of TLS 1.3. Default:
    /// [`provider::installed`].
    pub fn with_provider(mut self, provider: Arc<CryptoProvider>) -> Self {
        self.provider = Some(provider);
        self
    }

    /// Allows the certificate a SPIFFE ID of any form, as SPIRE issues them. By default it must be that of a Kubernetes
    /// workload, `spiffe://<trust domain>/ns/<namespace>/sa/<service account>`. Their own settings say whether peers
    /// may have others: [`TrustDomains::with_any_path`](crate::TrustDomains::with_any_path),
    /// [`AcceptedIdentities`](crate::AcceptedIdentities).
    pub fn with_any_path(mut self) -> Self {
        self.any_path = true;
        self
    }

    /// Checks dates as of this time rather than now.
    #[cfg(feature = "test-util")]
    pub(crate) fn valid_at(mut self, time: UnixTime) -> Self {
        self.as_of = Some(time);
        self
    }

    /// Checks and takes a key that may be anywhere, such as in an HSM: any [`rustls::sign::SigningKey`], with the chain
    /// that it belongs to, and the trusted roots. A signing key that does not reveal its public key is taken to belong
    /// to the certificate.
    ///
    /// # Errors
    ///
    /// As [`Credentials::from_der`]; also when there is no provider, or it lacks TLS 1.3.
    pub fn from_key(self, key: CertifiedKey, roots: Vec<CertificateDer<'static>>) -> Result<Credentials> {
        let provider = self.provider()?;
        // aws-lc gathers entropy when it is asked for the first time, for up to a tenth of a second: better now than in
        // the first handshake.
        provider.secure_random.fill(&mut [0]).map_err(|_| invalid("the system has no randomness"))?;
        if !provider.cipher_suites.iter().any(|suite| suite.tls13().is_some()) {
            return Err(invalid("the TLS provider").with_source("it has no cipher suite of TLS 1.3"));
        }
        let certificate = self.leaf(&key.cert)?;
        if roots.is_empty() {
            return Err(invalid("there is no trusted root"));
        }
        let mut store = RootCertStore::empty();
        for root in roots {
            store.add(root).map_err(|e| with_cause(invalid("a trusted root is not a valid certificate"), e))?;
        }
        let store = Arc::new(store);
        let identity = certificate.identity();
        match key.keys_match() {
            Ok(()) | Err(rustls::Error::InconsistentKeys(InconsistentKeys::Unknown)) => {}
            Err(_) => {
                return Err(invalid(format!("the private key does not belong to the certificate of {identity}")));
            }
        }
        check_chain(&key.cert, &store, &provider, self.as_of.unwrap_or_else(UnixTime::now))
            .map_err(|e| with_cause(invalid(format!("the certificate of {identity}")), e))?;
        let client_verifier = WebPkiClientVerifier::builder_with_provider(store.clone(), provider.clone())
            .build()
            .map_err(|e| invalid("the trusted roots").with_source(e))?;
        let inner = Inner { key: Arc::new(key), roots: store, client_verifier, provider, certificate };
        Ok(Credentials(Arc::new(inner)))
    }

    /// As [`Credentials::from_der`].
    ///
    /// # Errors
    ///
    /// As [`CredentialsBuilder::from_key`].
    pub fn from_der(
        self,
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
        roots: Vec<CertificateDer<'static>>,
    ) -> Result<Credentials> {
        self.leaf(&chain)?;
        let key = self
            .provider()?
            .key_provider
            .load_private_key(key)
            .map_err(|e| invalid("the private key can't be used").with_source(e))?;
        self.from_key(CertifiedKey::new(chain, key), roots)
    }

    /// As [`Credentials::from_pem`].
    ///
    /// # Errors
    ///
    /// As [`CredentialsBuilder::from_key`], and when a text has no such block.
    pub fn from_pem(self, chain: &[u8], key: &[u8], roots: &[u8]) -> Result<Credentials> {
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
        self.from_der(certificates("certificate chain", chain)?, key, certificates("trusted roots", roots)?)
    }

    /// As [`Credentials::from_pem_files`].
    ///
    /// # Errors
    ///
    /// As [`CredentialsBuilder::from_pem`], and when a file can't be read; each names the file.
    pub fn from_pem_files(self, chain: &Path, key: &Path, roots: &Path) -> Result<Credentials> {
        let read = |what: &str, path: &Path| {
            std::fs::read(path)
                .map_err(|e| invalid(format!("reading the {what} from {}", path.display())).with_source(e))
        };
        let (chain_pem, key_pem, roots_pem) =
            (read("certificate chain", chain)?, read("private key", key)?, read("trusted roots", roots)?);
        self.from_pem(&chain_pem, &key_pem, &roots_pem).map_err(|e| {
            let files = format!(
                "loading the certificate {}, key {}, roots {}",
                chain.display(),
                key.display(),
                roots.display()
            );
            invalid(files).with_source(CauseOf(e))
        })
    }

    fn provider(&self) -> Result<Arc<CryptoProvider>> {
        let none = || invalid("no TLS provider").with_source("hbone was built without one, and none is installed");
        self.provider.clone().or_else(provider::installed).ok_or_else(none)
    }

    fn leaf(&self, chain: &[CertificateDer<'static>]) -> Result<Certificate> {
        let leaf = chain.first().ok_or_else(|| invalid("the certificate chain is empty"))?;
        let certificate = Certificate::read(leaf).and_then(|certificate| {
            let identity = certificate.identity();
            if identity.is_workload() || self.any_path { Ok(certificate) } else { Err(other_form(identity)) }
        });
        certificate.map_err(|e| invalid("our own certificate").with_source(e))
    }
}

impl PartialEq for Credentials {
    fn eq(&self, other: &Self) -> bool {
        self.is_clone_of(other) || (self.chain() == other.chain() && self.roots().roots == other.roots().roots)
    }
}

impl Eq for Credentials {}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials")
            .field("certificate", self.certificate())
            .field("roots", &self.roots().len())
            .finish_non_exhaustive()
    }
}

/// An [`Error`] as the cause of another: what was being done and why it failed, without layer and advice.
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

/// rustls words its errors as if every certificate were a peer's.
fn with_cause(error: Error, cause: rustls::Error) -> Error {
    match cause {
        rustls::Error::InvalidCertificate(cause) => error.with_source(cause.to_string()),
        other => error.with_source(other),
    }
}

/// Checks the chain as a peer with the same roots would. A certificate for only one of the two roles passes.
fn check_chain(
    chain: &[CertificateDer<'_>],
    roots: &RootCertStore,
    provider: &CryptoProvider,
    now: UnixTime,
) -> Result<(), rustls::Error> {
    use rustls::client::verify_server_cert_signed_by_trust_anchor;
    let [leaf, intermediates @ ..] = chain else {
        return Ok(());
    };
    let leaf = rustls::server::ParsedCertificate::try_from(leaf)?;
    let algorithms = provider.signature_verification_algorithms.all;
    match verify_server_cert_signed_by_trust_anchor(&leaf, roots, intermediates, now, algorithms) {
        Err(rustls::Error::InvalidCertificate(
            rustls::CertificateError::InvalidPurpose | rustls::CertificateError::InvalidPurposeContext { .. },
        )) => Ok(()),
        other => other,
    }
}
