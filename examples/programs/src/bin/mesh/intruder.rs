//! Somebody at the gateway's door with the wrong certificate, or none.

use std::net::SocketAddr;
use std::sync::Arc;

use hbone::metadata::Metadata;
use hbone::testing::Ca;
use hbone::tls::{Connector, Credentials};
use hbone::{AcceptedIdentities, Config, SpiffeId, client};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::Failure;
use crate::world::REVIEWS;

/// Tries to open a tunnel with a certificate from `ca`. The mesh's root is public, so the intruder trusts it.
pub(crate) async fn with_certificate(
    gateway: SocketAddr,
    mesh: &Ca,
    ca: &Ca,
    identity: &SpiffeId,
) -> Result<(), Failure> {
    let issued = ca.certificate().uri(&identity.to_string()).issue();
    let roots = format!("{}{}", issued.root_pem(), mesh.root_pem());
    let credentials =
        Credentials::from_pem(issued.chain_pem().as_bytes(), issued.key_pem().as_bytes(), roots.as_bytes())?;
    let tls = Connector::new(Arc::new(credentials), Arc::new(Config::new()));
    let accept =
        AcceptedIdentities::from("spiffe://cluster.local/ns/istio-gateways/sa/gateway-west".parse::<SpiffeId>()?);
    let stream = tls.connect(TcpStream::connect(gateway).await?, &accept).await?;
    let (client, driver) = client::handshake(stream).await?;
    tokio::spawn(driver);
    client.connect(&format!("{REVIEWS}:80").parse()?, &Metadata::default()).await?;
    Ok(())
}

/// Tries to get in without any.
pub(crate) async fn without_certificate(gateway: SocketAddr) -> Result<(), Failure> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody(provider)))
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let name = ServerName::try_from("gateway.example")?;
    let tcp = TcpStream::connect(gateway).await?;
    let mut stream = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, tcp).await?;
    // In TLS 1.3 the client hears of its rejection with its first read.
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await?;
    match stream.read(&mut [0; 64]).await? {
        0 => Err("the gateway closed".into()),
        _ => Ok(()),
    }
}

/// An intruder does not care whom it talks to.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
