//! What a workload's certificate says.

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use rustls::pki_types::CertificateDer;

use super::validity::{Utc, validity};
use super::verify::{IdentityError, spiffe_id};
use crate::error::{Error, Result};
use crate::identity::SpiffeId;

/// What one X.509-SVID says: whose it is, its serial number and its dates. Cheap to clone.
///
/// Reading a certificate verifies nothing. The certificates of a [`TlsStream`](super::TlsStream) and of
/// [`Credentials`](super::Credentials) have been verified, one of your own making has not.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Certificate(Arc<Facts>);

#[derive(PartialEq, Eq, Hash)]
struct Facts {
    identity: SpiffeId,
    serial: Box<[u8]>,
    not_before: SystemTime,
    not_after: SystemTime,
}

impl Certificate {
    /// Reads the workload's own (leaf) certificate, without verifying it. For a TLS stack of your own, once that has
    /// verified the chain.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidInput`](crate::ErrorKind::InvalidInput) when it is not an X.509 certificate of version 3, or
    /// does not have exactly one SPIFFE ID.
    pub fn from_der(certificate: &CertificateDer<'_>) -> Result<Self> {
        Self::read(certificate).map_err(|e| Error::invalid("reading a certificate").with_source(e))
    }

    pub(super) fn read(certificate: &CertificateDer<'_>) -> Result<Self, IdentityError> {
        let parsed = webpki::EndEntityCert::try_from(certificate).map_err(|_| IdentityError::Unreadable)?;
        let identity = spiffe_id(&parsed)?;
        let (not_before, not_after) = validity(certificate).ok_or(IdentityError::Unreadable)?;
        Ok(Self(Arc::new(Facts { identity, serial: parsed.serial().into(), not_before, not_after })))
    }

    /// The workload's identity.
    pub fn identity(&self) -> &SpiffeId {
        &self.0.identity
    }

    /// The serial number, as the certificate has it: big-endian, in two's complement. Unique for each issuer.
    pub fn serial(&self) -> &[u8] {
        &self.0.serial
    }

    /// When the certificate begins to be valid.
    pub fn not_before(&self) -> SystemTime {
        self.0.not_before
    }

    /// The last second in which the certificate is valid. Its issuers may expire earlier.
    pub fn not_after(&self) -> SystemTime {
        self.0.not_after
    }

    /// Whether the certificate has expired by `now`.
    pub fn has_expired(&self, now: SystemTime) -> bool {
        now > self.0.not_after
    }
}

impl fmt::Debug for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let serial: String = self.serial().iter().map(|byte| format!("{byte:02x}")).collect();
        f.debug_struct("Certificate")
            .field("identity", self.identity())
            .field("serial", &serial)
            .field("not_before", &format_args!("{}", Utc(self.not_before())))
            .field("not_after", &format_args!("{}", Utc(self.not_after())))
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::error::ErrorKind;
    use crate::testing::Ca;

    const SERVER: &str = "spiffe://cluster.local/ns/default/sa/server";

    #[test]
    fn identity_serial_and_dates_are_read() {
        let ca = Ca::new();
        let issued = ca.certificate().uri(SERVER).issue();
        let certificate = issued.credentials().unwrap().certificate().clone();
        assert_eq!(certificate.identity().to_string(), SERVER);
        assert!(!certificate.serial().is_empty());
        let day = Duration::from_secs(24 * 60 * 60);
        let (now, valid) = (SystemTime::now(), certificate.not_before()..=certificate.not_after());
        assert!(valid.contains(&now) && !valid.contains(&(now + 2 * day)) && !valid.contains(&(now - 2 * day)));
        let end = certificate.not_after();
        assert!(!certificate.has_expired(end) && certificate.has_expired(end + Duration::from_secs(1)));
    }

    #[test]
    fn two_certificates_of_one_workload_differ() {
        let ca = Ca::new();
        let issue = || ca.certificate().uri(SERVER).issue().credentials().unwrap().certificate().clone();
        let one = issue();
        assert_eq!(one, one.clone());
        assert_ne!(one, issue());
    }

    #[test]
    fn anything_else_is_an_error() {
        for der in [&b""[..], b"hello", &[0x30, 0x82, 0xff, 0xff]] {
            let error = Certificate::from_der(&CertificateDer::from(der)).unwrap_err();
            assert_eq!(error.kind(), &ErrorKind::InvalidInput);
        }
    }
}
