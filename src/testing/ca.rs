//! A certificate authority that lives as long as its process.

use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose, SanType,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, UnixTime};

use crate::error::Error;
use crate::identity::SpiffeId;
use crate::tls::Credentials;

/// A certificate authority with its root in memory. Its keys are nowhere else, so nothing it issued outlives the
/// process in any useful way.
#[derive(Debug)]
pub struct Ca {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

/// A certificate with its key, and the root to trust.
#[derive(Debug)]
pub struct Issued {
    certificate: rcgen::Certificate,
    key: KeyPair,
    root: CertificateDer<'static>,
    root_pem: String,
}

/// A certificate about to be issued: what is odd about it is said before.
#[derive(Debug)]
pub struct Issuing<'a> {
    ca: &'a Ca,
    uris: Vec<String>,
    not_before: SystemTime,
    not_after: SystemTime,
}

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

impl Ca {
    /// A new authority with a new root.
    ///
    /// # Panics
    ///
    /// When the system has no randomness to give.
    pub fn new() -> Self {
        let mut params = CertificateParams::default();
        // Two authorities must not have the same name: a certificate of one would count as forged at the other, rather
        // than as unknown.
        params.distinguished_name = name(&format!("throwaway root {:016x}", fastrand::u64(..)));
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().expect("a key pair");
        Self { issuer: CertifiedIssuer::self_signed(params, key).expect("a self-signed root") }
    }

    /// Credentials for a workload, valid for a day.
    ///
    /// # Panics
    ///
    /// When the system has no randomness to give.
    pub fn issue(&self, identity: &SpiffeId) -> Credentials {
        let issued = self.certificate().uri(&identity.to_string()).issue();
        issued.credentials().expect("credentials issued just now")
    }

    /// A certificate with odd properties.
    pub fn certificate(&self) -> Issuing<'_> {
        let now = SystemTime::now();
        Issuing { ca: self, uris: Vec::new(), not_before: now - DAY, not_after: now + DAY }
    }

    /// The root, as PEM.
    pub fn root_pem(&self) -> String {
        self.issuer.pem()
    }
}

impl Default for Ca {
    fn default() -> Self {
        Self::new()
    }
}

impl Issuing<'_> {
    /// Adds a URI name.
    pub fn uri(mut self, uri: &str) -> Self {
        self.uris.push(uri.to_owned());
        self
    }

    /// Makes it one that ran out an hour ago.
    pub fn expired(mut self) -> Self {
        self.not_after = SystemTime::now() - Duration::from_secs(60 * 60);
        self
    }

    /// Makes it one that runs out at this time.
    pub fn not_after(mut self, time: SystemTime) -> Self {
        self.not_after = time;
        self
    }

    /// Makes it valid from tomorrow on.
    pub fn not_yet_valid(mut self) -> Self {
        self.not_before = SystemTime::now() + DAY;
        self.not_after = self.not_before + DAY;
        self
    }

    /// Issues it.
    ///
    /// # Panics
    ///
    /// When a URI is not ASCII, or the system has no randomness to give.
    pub fn issue(self) -> Issued {
        let mut params = CertificateParams::default();
        params.distinguished_name = name("workload");
        params.not_before = self.not_before.into();
        params.not_after = self.not_after.into();
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.subject_alt_names =
            self.uris.into_iter().map(|uri| SanType::URI(uri.try_into().expect("an ASCII URI"))).collect();
        let key = KeyPair::generate().expect("a key pair");
        let certificate = params.signed_by(&key, &self.ca.issuer).expect("a signed certificate");
        Issued { certificate, key, root: self.ca.issuer.der().clone(), root_pem: self.ca.root_pem() }
    }
}

impl Issued {
    /// As credentials, with the authority's root as the one to trust.
    ///
    /// # Errors
    ///
    /// As [`Credentials::from_der`]: what is odd about the certificate may be just that.
    pub fn credentials(&self) -> Result<Credentials, Error> {
        self.credentials_as_of(SystemTime::now())
    }

    /// As credentials that were loaded at this time: they may have expired since.
    ///
    /// # Errors
    ///
    /// As [`Credentials::from_der`].
    pub fn credentials_as_of(&self, time: SystemTime) -> Result<Credentials, Error> {
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(self.key.serialize_der()));
        let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let (chain, roots) = (vec![self.certificate.der().clone()], vec![self.root.clone()]);
        Credentials::builder().valid_at(UnixTime::since_unix_epoch(since)).from_der(chain, key, roots)
    }

    /// The certificate, as PEM.
    pub fn chain_pem(&self) -> String {
        self.certificate.pem()
    }

    /// The private key, as PEM.
    pub fn key_pem(&self) -> String {
        self.key.serialize_pem()
    }

    /// The root to trust, as PEM.
    pub fn root_pem(&self) -> &str {
        &self.root_pem
    }
}

fn name(common: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common);
    name
}
