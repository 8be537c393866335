//! Plain mutual TLS by tokio-rustls, without this crate: what everything else is compared to. Same provider, version
//! and first cipher suite; the peer's chain is verified, and who it is is not looked at.

use std::io;
use std::sync::Arc;

use hbone::testing::Issued;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, verify_server_cert_signed_by_trust_anchor};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{ClientConfig, DigitallySignedStruct, Error, RootCertStore, ServerConfig, SignatureScheme};
use tokio_rustls::{TlsAcceptor, TlsConnector};

fn provider() -> Arc<CryptoProvider> {
    use aws_lc_rs::cipher_suite::{TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384};
    let cipher_suites = vec![TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384];
    Arc::new(CryptoProvider { cipher_suites, ..aws_lc_rs::default_provider() })
}

/// A certificate with its key, and the root to trust, all PEM.
#[derive(Clone, Debug)]
pub(crate) struct Pem {
    pub(crate) chain: String,
    pub(crate) key: String,
    pub(crate) root: String,
}

impl From<&Issued> for Pem {
    fn from(issued: &Issued) -> Self {
        Self { chain: issued.chain_pem(), key: issued.key_pem(), root: issued.root_pem().to_owned() }
    }
}

struct Parts {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    roots: Arc<RootCertStore>,
}

impl Pem {
    fn parts(&self) -> io::Result<Parts> {
        let certificates = |text: &str| {
            CertificateDer::pem_slice_iter(text.as_bytes()).collect::<Result<Vec<_>, _>>().map_err(io::Error::other)
        };
        let mut roots = RootCertStore::empty();
        for root in certificates(&self.root)? {
            roots.add(root).map_err(io::Error::other)?;
        }
        let key = PrivateKeyDer::from_pem_slice(self.key.as_bytes()).map_err(io::Error::other)?;
        Ok(Parts { chain: certificates(&self.chain)?, key, roots: Arc::new(roots) })
    }

    pub(crate) fn connector(&self) -> io::Result<TlsConnector> {
        let Parts { chain, key, roots } = self.parts()?;
        let mut config = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(io::Error::other)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(AnyName(roots)))
            .with_client_auth_cert(chain, key)
            .map_err(io::Error::other)?;
        config.resumption = Resumption::disabled();
        Ok(Arc::new(config).into())
    }

    pub(crate) fn acceptor(&self) -> io::Result<TlsAcceptor> {
        let Parts { chain, key, roots } = self.parts()?;
        let clients =
            WebPkiClientVerifier::builder_with_provider(roots, provider()).build().map_err(io::Error::other)?;
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(io::Error::other)?
            .with_client_cert_verifier(clients)
            .with_single_cert(chain, key)
            .map_err(io::Error::other)?;
        config.send_tls13_tickets = 0;
        Ok(Arc::new(config).into())
    }
}

/// The name that the session is for; nobody looks at it.
pub(crate) fn name() -> ServerName<'static> {
    ServerName::from(std::net::Ipv4Addr::UNSPECIFIED)
}

#[derive(Debug)]
struct AnyName(Arc<RootCertStore>);

impl ServerCertVerifier for AnyName {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let (leaf, algorithms) =
            (ParsedCertificate::try_from(end_entity)?, provider().signature_verification_algorithms);
        verify_server_cert_signed_by_trust_anchor(&leaf, &self.0, intermediates, now, algorithms.all)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.3 only".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &provider().signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}
