//! Who the peer is, and whether it is accepted.

use std::fmt;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, OtherError, RootCertStore, SignatureScheme};

use crate::identity::{AcceptedIdentities, SpiffeId, SpiffeIdError, TrustDomains};

/// Why a certificate's identity is not accepted, although its chain may be valid.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum IdentityError {
    Unreadable,
    NoSpiffeId,
    SeveralSpiffeIds,
    Malformed(String, SpiffeIdError),
    NotAccepted { found: SpiffeId, accepted: AcceptedIdentities },
    ForeignTrustDomain { found: SpiffeId, trusted: TrustDomains },
}

impl fmt::Display for IdentityError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreadable => f.write_str("the certificate is not X.509"),
            Self::NoSpiffeId => f.write_str("the certificate has no SPIFFE ID among its URI names"),
            Self::SeveralSpiffeIds => {
                f.write_str("the certificate has more than one SPIFFE ID, and must have exactly one")
            }
            Self::Malformed(uri, e) => write!(f, "the certificate's URI name {uri:?} is not a workload identity: {e}"),
            Self::NotAccepted { found, accepted } => {
                write!(f, "the peer's certificate belongs to {found}, and accepted is {accepted}")
            }
            Self::ForeignTrustDomain { found, trusted } => {
                write!(f, "the peer's certificate belongs to {found}, and let in are the trust domains {trusted}")
            }
        }
    }
}

impl std::error::Error for IdentityError {}

impl From<IdentityError> for rustls::Error {
    fn from(e: IdentityError) -> Self {
        Self::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(e))))
    }
}

/// The one SPIFFE ID in a certificate (X509-SVID, section 2: exactly one URI SAN with it).
pub(super) fn spiffe_id(certificate: &webpki::EndEntityCert<'_>) -> Result<SpiffeId, IdentityError> {
    let mut uris = certificate.valid_uri_names().filter(|uri| uri.starts_with("spiffe:"));
    match (uris.next(), uris.next()) {
        (Some(uri), None) => SpiffeId::from_any_path(uri).map_err(|e| IdentityError::Malformed(uri.to_owned(), e)),
        (Some(_), Some(_)) => Err(IdentityError::SeveralSpiffeIds),
        (None, _) => Err(IdentityError::NoSpiffeId),
    }
}

fn identity(certificate: &CertificateDer<'_>) -> Result<SpiffeId, IdentityError> {
    spiffe_id(&webpki::EndEntityCert::try_from(certificate).map_err(|_| IdentityError::Unreadable)?)
}

/// An identity that is not a Kubernetes workload's, where it must be.
pub(super) fn other_form(identity: &SpiffeId) -> IdentityError {
    IdentityError::Malformed(identity.to_string(), SpiffeIdError::NotWorkload)
}

/// The client's check: chain, dates and usage, then the identity against the hop's set. Host names play no part.
#[derive(Debug)]
pub(super) struct ServerVerifier {
    pub(super) provider: Arc<CryptoProvider>,
    pub(super) roots: Arc<RootCertStore>,
    pub(super) accepted: AcceptedIdentities,
}

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let algorithms = self.provider.signature_verification_algorithms.all;
        let parsed = ParsedCertificate::try_from(end_entity)?;
        verify_server_cert_signed_by_trust_anchor(&parsed, &self.roots, intermediates, now, algorithms)?;
        let found = identity(end_entity)?;
        if !self.accepted.contains(&found) {
            if !found.is_workload() {
                return Err(other_form(&found).into());
            }
            return Err(IdentityError::NotAccepted { found, accepted: self.accepted.clone() }.into());
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(only_tls13())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// The server's check: webpki's for chain, dates and usage, then the trust domain.
#[derive(Debug)]
pub(super) struct ClientVerifier {
    pub(super) chain: Arc<dyn ClientCertVerifier>,
    pub(super) trusted: TrustDomains,
}

impl ClientCertVerifier for ClientVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.chain.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let verified = self.chain.verify_client_cert(end_entity, intermediates, now)?;
        let found = identity(end_entity)?;
        if !self.trusted.allows_form_of(&found) {
            return Err(other_form(&found).into());
        }
        if !self.trusted.contains(&found) {
            return Err(IdentityError::ForeignTrustDomain { found, trusted: self.trusted.clone() }.into());
        }
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(only_tls13())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chain.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}

fn only_tls13() -> rustls::Error {
    rustls::Error::General("HBONE speaks TLS 1.3 only".into())
}
