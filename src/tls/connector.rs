//! The client's side of the handshake.

use std::fmt;
use std::future::Future;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::client::Resumption;
use rustls::pki_types::ServerName;
use rustls::sign::SingleCertAndKey;
use rustls::{ClientConfig, KeyLog, NoKeyLog};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::time::{sleep, timeout};

use super::custom::{ClientTls, Lent, Shown};
use super::source::{check_expiry, current};
use super::stream::{classify, handshake_error, no_credentials, not_accepted, timed_out, unusable};
use super::verify::ServerVerifier;
use super::{ALPN_H2, CredentialSource, Credentials, TlsStream};
use crate::config::Config;
use crate::error::{Error, Result};
use crate::identity::AcceptedIdentities;

/// Opens TLS sessions as a client. Cheap to clone.
#[derive(Clone)]
pub struct Connector {
    stack: Stack,
    config: Arc<Config>,
}

#[derive(Clone)]
enum Stack {
    Rustls { source: Arc<dyn CredentialSource>, key_log: Arc<dyn KeyLog> },
    Custom(Arc<dyn ClientTls>),
}

impl Connector {
    /// A connector that shows the certificate which `source` has at each handshake. Of `config` it uses the TLS and the
    /// linger timeout.
    pub fn new(source: Arc<dyn CredentialSource>, config: Arc<Config>) -> Self {
        Self { stack: Stack::Rustls { source, key_log: Arc::new(NoKeyLog) }, config }
    }

    /// A connector with a TLS stack of your own. Of `config` it uses the TLS timeout.
    pub fn custom(tls: Arc<dyn ClientTls>, config: Arc<Config>) -> Self {
        Self { stack: Stack::Custom(tls), config }
    }

    /// Hands the secrets of each session to `key_log`, such as [`rustls::KeyLogFile`], so that recorded traffic can be
    /// decrypted. Off by default, and without effect on a [custom](Self::custom) stack, which does its own logging.
    pub fn with_key_log(mut self, key_log: Arc<dyn KeyLog>) -> Self {
        if let Stack::Rustls { key_log: old, .. } = &mut self.stack {
            *old = key_log;
        }
        self
    }

    /// Does the handshake over `io` and accepts only a peer with one of these identities; an empty set accepts nobody.
    ///
    /// Cancel safe in that nothing is leaked; `io` is gone then.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::IdentityNotAccepted`](crate::ErrorKind), `CertificateInvalid`, `RejectedByPeer`, `Protocol` (no
    /// TLS, no TLS 1.3, no ALPN `h2`), `Timeout`, `Closed` or `InvalidCredentials`. That the server rejected *our*
    /// certificate comes to light only with the first read after the handshake (RFC 8446, section 4.4.2.4).
    pub async fn connect<IO>(&self, io: IO, accept: &AcceptedIdentities) -> Result<TlsStream<IO>>
    where
        IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        self.connect_unless(io, accept, sleep(self.time())).await.map_err(|(error, _)| error)
    }

    /// [`Connector::connect`] until `late` is ready. On failure the byte stream comes back, as far as it is still
    /// there.
    pub(crate) async fn connect_unless<IO>(
        &self,
        io: IO,
        accept: &AcceptedIdentities,
        late: impl Future<Output = ()>,
    ) -> Result<TlsStream<IO>, (Error, Option<IO>)>
    where
        IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        match &self.stack {
            Stack::Rustls { source, key_log } => self.rustls(&**source, key_log, io, accept, late).await,
            Stack::Custom(tls) => {
                let (lent, kept) = Lent::new(io);
                let done = tokio::select! {
                    biased;
                    done = tls.connect(Box::new(lent), accept) => done,
                    () = late => return Err((timed_out(), None)),
                };
                match done {
                    Ok(secured) if accept.contains(secured.peer.identity()) => Ok(TlsStream::custom(secured, kept)),
                    Ok(secured) => {
                        let error = not_accepted(secured.peer.identity(), accept);
                        drop(secured);
                        Err((error, kept.back()))
                    }
                    Err(error) => Err((error, kept.back())),
                }
            }
        }
    }

    async fn rustls<IO>(
        &self,
        source: &dyn CredentialSource,
        key_log: &Arc<dyn KeyLog>,
        io: IO,
        accept: &AcceptedIdentities,
        late: impl Future<Output = ()>,
    ) -> Result<TlsStream<IO>, (Error, Option<IO>)>
    where
        IO: AsyncRead + AsyncWrite + Unpin,
    {
        tokio::pin!(late);
        let current = async {
            let credentials = current(source).await?;
            check_expiry(&credentials, SystemTime::now())?;
            let config = client_config(&credentials, accept, key_log)?;
            Ok((credentials, config))
        };
        let found = tokio::select! {
            biased;
            found = current => found,
            () = &mut late => Err(no_credentials()),
        };
        let (credentials, config) = match found {
            Ok(found) => found,
            Err(error) => return Err((error, Some(io))),
        };
        // No SNI is sent; rustls still wants a name.
        let name = ServerName::from(Ipv4Addr::UNSPECIFIED);
        let handshake = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, io).into_fallible();
        let done = tokio::select! {
            biased;
            done = handshake => done,
            () = &mut late => return Err((timed_out(), None)),
        };
        match done {
            Ok(stream) => {
                let (io, connection) = stream.into_inner();
                TlsStream::new(io, connection.into(), &credentials).map_err(|error| (error, None))
            }
            Err((e, mut io)) => {
                if classify(&e).is_some() {
                    // Dropping a tunnel would throw away the alert that tells the server why.
                    let _ = timeout(self.config.linger_timeout, io.shutdown()).await;
                }
                Err((handshake_error(e), Some(io)))
            }
        }
    }

    /// How long a handshake may take.
    pub(crate) fn time(&self) -> Duration {
        self.config.tls_timeout
    }

    /// The certificate that the next handshake would show. `None` while there is none, or it is not known.
    pub(crate) fn shown(&self) -> Option<Shown> {
        match &self.stack {
            Stack::Rustls { source, .. } => source.credentials().ok().map(Shown::Credentials),
            Stack::Custom(tls) => tls.certificate().map(Shown::Certificate),
        }
    }
}

impl fmt::Debug for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("Connector");
        match &self.stack {
            Stack::Rustls { source, .. } => debug.field("source", source),
            Stack::Custom(tls) => debug.field("tls", tls),
        };
        debug.finish_non_exhaustive()
    }
}

fn client_config(
    credentials: &Credentials,
    accept: &AcceptedIdentities,
    key_log: &Arc<dyn KeyLog>,
) -> Result<ClientConfig, Error> {
    let provider = credentials.provider().clone();
    let verifier =
        ServerVerifier { provider: provider.clone(), roots: credentials.roots().clone(), accepted: accept.clone() };
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(unusable)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(credentials.key())));
    config.alpn_protocols = vec![ALPN_H2.to_vec()];
    config.enable_sni = false;
    config.resumption = Resumption::disabled();
    config.key_log = key_log.clone();
    Ok(config)
}
