//! The server's side of the handshake.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use rustls::server::NoServerSessionStorage;
use rustls::sign::SingleCertAndKey;
use rustls::{KeyLog, NoKeyLog, ServerConfig};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, copy, sink};
use tokio::time::timeout;

use super::custom::{Lent, ServerTls};
use super::source::current;
use super::stream::{classify, handshake_error, not_trusted, timed_out, unusable};
use super::verify::ClientVerifier;
use super::{ALPN_H2, CredentialSource, Credentials, TlsStream};
use crate::config::Config;
use crate::error::Result;
use crate::identity::TrustDomains;

/// What is read and thrown away at most from a client that was rejected.
const MAX_DISCARD: u64 = 64 << 10;

/// Opens TLS sessions as a server. Cheap to clone.
#[derive(Clone)]
pub struct Acceptor {
    stack: Stack,
    trusted: TrustDomains,
    config: Arc<Config>,
}

#[derive(Clone)]
enum Stack {
    Rustls(Rustls),
    Custom(Arc<dyn ServerTls>),
}

#[derive(Clone)]
struct Rustls {
    source: Arc<dyn CredentialSource>,
    key_log: Arc<dyn KeyLog>,
    built: Arc<Mutex<Option<Built>>>,
}

/// The configuration made from the credentials seen last.
struct Built {
    from: Credentials,
    config: Arc<ServerConfig>,
}

impl Acceptor {
    /// An acceptor that shows the certificate which `source` has at each handshake, and lets in workloads of the
    /// `trusted` domains. Of `config` it uses the TLS and the linger timeout.
    pub fn new(source: Arc<dyn CredentialSource>, trusted: TrustDomains, config: Arc<Config>) -> Self {
        let rustls = Rustls { source, key_log: Arc::new(NoKeyLog), built: Arc::default() };
        Self { stack: Stack::Rustls(rustls), trusted, config }
    }

    /// An acceptor with a TLS stack of your own. Of `config` it uses the TLS timeout.
    pub fn custom(tls: Arc<dyn ServerTls>, trusted: TrustDomains, config: Arc<Config>) -> Self {
        Self { stack: Stack::Custom(tls), trusted, config }
    }

    /// Hands the secrets of each session to `key_log`, such as [`rustls::KeyLogFile`], so that recorded traffic can be
    /// decrypted. Off by default, and without effect on a [custom](Self::custom) stack, which does its own logging.
    pub fn with_key_log(mut self, log: Arc<dyn KeyLog>) -> Self {
        if let Stack::Rustls(rustls) = &mut self.stack {
            rustls.key_log = log;
            rustls.built = Arc::default();
        }
        self
    }

    /// Does the handshake over `io`. A client certificate is required.
    ///
    /// When the client is rejected, this returns once it has gone, or after the linger timeout, so that it learns why.
    ///
    /// Cancel safe in that nothing is leaked; `io` is gone then.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::IdentityNotAccepted`](crate::ErrorKind) for a foreign trust domain, `CertificateInvalid`,
    /// `RejectedByPeer`, `Protocol` (no TLS, no TLS 1.3, no ALPN `h2`), `Timeout`, `Closed` or `InvalidCredentials`.
    pub async fn accept<IO>(&self, io: IO) -> Result<TlsStream<IO>>
    where
        IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let tls = match &self.stack {
            Stack::Rustls(rustls) => return self.rustls(rustls, io).await,
            Stack::Custom(tls) => tls,
        };
        let (lent, kept) = Lent::new(io);
        let handshake = timeout(self.config.tls_timeout, tls.accept(Box::new(lent)));
        let secured = handshake.await.unwrap_or_else(|_| Err(timed_out()))?;
        if !self.trusted.contains(secured.peer.identity()) {
            return Err(not_trusted(secured.peer.identity(), &self.trusted));
        }
        Ok(TlsStream::custom(secured, kept))
    }

    async fn rustls<IO>(&self, rustls: &Rustls, io: IO) -> Result<TlsStream<IO>>
    where
        IO: AsyncRead + AsyncWrite + Unpin,
    {
        let handshake = async {
            let credentials = current(&*rustls.source).await?;
            let config = rustls.server_config(&credentials, &self.trusted)?;
            Ok((credentials, tokio_rustls::TlsAcceptor::from(config).accept(io).into_fallible().await))
        };
        match timeout(self.config.tls_timeout, handshake).await {
            Ok(Ok((credentials, Ok(stream)))) => {
                let (io, connection) = stream.into_inner();
                TlsStream::new(io, connection.into(), &credentials)
            }
            Ok(Ok((_, Err((e, mut io))))) => {
                if classify(&e).is_some() {
                    // The client sends its first requests together with the certificate that is rejected: closing with
                    // them unread could destroy the alert.
                    let _ = timeout(self.config.linger_timeout, end(&mut io)).await;
                }
                Err(handshake_error(e))
            }
            Ok(Err(error)) => Err(error),
            Err(_) => Err(timed_out()),
        }
    }
}

impl Rustls {
    fn server_config(&self, credentials: &Credentials, trusted: &TrustDomains) -> Result<Arc<ServerConfig>> {
        let mut built = self.built.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(Built { from, config }) = &*built
            && from.is_clone_of(credentials)
        {
            return Ok(config.clone());
        }
        let verifier = ClientVerifier { chain: credentials.client_verifier().clone(), trusted: trusted.clone() };
        let mut config = ServerConfig::builder_with_provider(credentials.provider().clone())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(unusable)?
            .with_client_cert_verifier(Arc::new(verifier))
            .with_cert_resolver(Arc::new(SingleCertAndKey::from(credentials.key())));
        config.alpn_protocols = vec![ALPN_H2.to_vec()];
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        config.key_log = self.key_log.clone();
        let config = Arc::new(config);
        *built = Some(Built { from: credentials.clone(), config: config.clone() });
        Ok(config)
    }
}

impl fmt::Debug for Acceptor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("Acceptor");
        match &self.stack {
            Stack::Rustls(rustls) => debug.field("source", &rustls.source),
            Stack::Custom(tls) => debug.field("tls", tls),
        };
        debug.field("trusted", &self.trusted).finish_non_exhaustive()
    }
}

/// Ends this side of a byte stream, and waits for the other.
async fn end<IO: AsyncRead + AsyncWrite + Unpin>(io: &mut IO) -> std::io::Result<()> {
    io.shutdown().await?;
    copy(&mut io.take(MAX_DISCARD), &mut sink()).await?;
    Ok(())
}
