//! Peers that do what this crate never does: odd certificates, odd ALPN, no certificate at all.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    AlertDescription, ClientConfig, DigitallySignedStruct, DistinguishedName, Error as TlsError, ServerConfig,
    SignatureScheme,
};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, DuplexStream, duplex};
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};

use super::harness::trusted;
use crate::error::Result;
use crate::identity::{AcceptedIdentities, SpiffeId};
use crate::testing::{Ca, Issued};
use crate::tls::{Acceptor, Connector, TlsStream};

/// What a pipe of these tests holds.
const PIPE: usize = 64 << 10;

pub(super) fn pipe() -> (DuplexStream, DuplexStream) {
    duplex(PIPE)
}

pub(super) fn connector(ca: &Ca, identity: &SpiffeId) -> Connector {
    Connector::new(Arc::new(ca.issue(identity)), Arc::default())
}

pub(super) fn acceptor(ca: &Ca, identity: &SpiffeId) -> Acceptor {
    Acceptor::new(Arc::new(ca.issue(identity)), trusted(), Arc::default())
}

pub(super) type Session = Result<TlsStream<DuplexStream>>;

/// Both ends of a handshake between two sides of this crate.
pub(super) async fn handshake(
    connector: &Connector,
    accept: &AcceptedIdentities,
    acceptor: &Acceptor,
) -> (Session, Session) {
    let (near, far) = pipe();
    tokio::join!(connector.connect(near, accept), acceptor.accept(far))
}

/// A TLS 1.3 peer that accepts any certificate.
#[derive(Debug)]
pub(super) struct Peer {
    identity: Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>,
    alpn: Vec<Vec<u8>>,
}

impl Peer {
    /// Shows this certificate, whatever is wrong with it.
    pub(super) fn with(issued: &Issued) -> Self {
        Self::from_pem(&issued.chain_pem(), &issued.key_pem())
    }

    pub(super) fn from_pem(chain: &str, key: &str) -> Self {
        let chain = CertificateDer::pem_slice_iter(chain.as_bytes()).map(Result::unwrap).collect();
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
        Self { identity: Some((chain, key)), alpn: vec![b"h2".to_vec()] }
    }

    /// A client without a certificate.
    pub(super) fn anonymous() -> Self {
        Self { identity: None, alpn: vec![b"h2".to_vec()] }
    }

    pub(super) fn alpn(mut self, protocols: &[&str]) -> Self {
        self.alpn = protocols.iter().map(|p| p.as_bytes().to_vec()).collect();
        self
    }

    pub(super) async fn connect<IO>(self, io: IO) -> std::io::Result<client::TlsStream<IO>>
    where
        IO: AsyncRead + AsyncWrite + Unpin,
    {
        let builder = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Anybody(provider())));
        let mut config = match self.identity {
            Some((chain, key)) => builder.with_client_auth_cert(chain, key).unwrap(),
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = self.alpn;
        let name = ServerName::try_from("peer.invalid").unwrap();
        TlsConnector::from(Arc::new(config)).connect(name, io).await
    }

    pub(super) async fn accept<IO>(self, io: IO) -> std::io::Result<server::TlsStream<IO>>
    where
        IO: AsyncRead + AsyncWrite + Unpin,
    {
        let (chain, key) = self.identity.unwrap();
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_client_cert_verifier(Arc::new(Anybody(provider())))
            .with_single_cert(chain, key)
            .unwrap();
        config.alpn_protocols = self.alpn;
        TlsAcceptor::from(Arc::new(config)).accept(io).await
    }
}

/// The alert that ended a session: in its handshake, or after it (where a client learns that it was rejected).
pub(super) async fn alert<S: AsyncRead + Unpin>(session: std::io::Result<S>) -> AlertDescription {
    let error = match session {
        Ok(mut session) => session.read_to_end(&mut Vec::new()).await.unwrap_err(),
        Err(error) => error,
    };
    match error.get_ref().and_then(|e| e.downcast_ref()) {
        Some(TlsError::AlertReceived(alert)) => *alert,
        _ => panic!("no alert: {error:?}"),
    }
}

#[cfg(feature = "aws-lc-rs")]
pub(super) fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

#[cfg(not(feature = "aws-lc-rs"))]
pub(super) fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// Checks nothing about a certificate.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

type Signature = Result<HandshakeSignatureValid, TlsError>;

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, TlsError> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(&self, _: &[u8], _: &CertificateDer<'_>, _: &DigitallySignedStruct) -> Signature {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(&self, _: &[u8], _: &CertificateDer<'_>, _: &DigitallySignedStruct) -> Signature {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

impl ClientCertVerifier for Anybody {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, TlsError> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(&self, _: &[u8], _: &CertificateDer<'_>, _: &DigitallySignedStruct) -> Signature {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(&self, _: &[u8], _: &CertificateDer<'_>, _: &DigitallySignedStruct) -> Signature {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
