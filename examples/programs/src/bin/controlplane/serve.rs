//! Delta xDS over TLS.

use std::error::Error;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use hbone::xds::DiscoveryServer;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio::net::TcpListener;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

const HANDSHAKE: Duration = Duration::from_secs(10);
const KEEPALIVE: Duration = Duration::from_secs(30);
/// After a failed accept, mostly for lack of file descriptors, some have to be closed before the next can succeed.
const BACK_OFF: Duration = Duration::from_millis(50);

pub(crate) fn tls(cert: &Path, key: &Path, client_ca: Option<&Path>) -> Result<TlsAcceptor, Box<dyn Error>> {
    let named = |flag: &str, path: &Path, error: &dyn std::fmt::Display| format!("{flag} {}: {error}", path.display());
    let read = |flag: &str, path: &Path| {
        let all = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
        all.map_err(|error| named(flag, path, &error))
    };
    let chain = read("--cert", cert)?;
    let private = PrivateKeyDer::from_pem_file(key).map_err(|error| named("--key", key, &error))?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ServerConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions()?;
    let config = match client_ca {
        None => config.with_no_client_auth(),
        Some(path) => {
            let mut roots = RootCertStore::empty();
            let (added, _) = roots.add_parsable_certificates(read("--client-ca", path)?);
            if added == 0 {
                return Err(named("--client-ca", path, &"it has no certificate that can be used").into());
            }
            config
                .with_client_cert_verifier(WebPkiClientVerifier::builder_with_provider(roots.into(), provider).build()?)
        }
    };
    let mut config = config.with_single_cert(chain, private).map_err(|error| named("--cert", cert, &error))?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

pub(crate) async fn run(listener: TcpListener, tls: TlsAcceptor, server: DiscoveryServer) {
    loop {
        let (stream, from) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "accepting a connection failed, going on");
                tokio::time::sleep(BACK_OFF).await;
                continue;
            }
        };
        let (tls, server) = (tls.clone(), server.clone());
        tokio::spawn(async move {
            let stream = match timeout(HANDSHAKE, tls.accept(stream)).await {
                Ok(Ok(stream)) => stream,
                Ok(Err(error)) => return tracing::info!(%from, %error, "TLS failed"),
                Err(_) => return tracing::info!(%from, "TLS took too long"),
            };
            let mut builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            builder.timer(TokioTimer::new()).keep_alive_interval(KEEPALIVE).keep_alive_timeout(KEEPALIVE);
            let service = TowerToHyperService::new(server);
            if let Err(error) = builder.serve_connection(TokioIo::new(stream), service).await {
                tracing::debug!(%from, %error, "connection ended");
            }
        });
    }
}
