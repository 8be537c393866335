//! Where handshakes get their credentials from.

use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::time::SystemTime;

use super::Credentials;
use super::stream::failed;
use super::validity::Utc;
use crate::error::{ErrorKind, Result, Side};

/// The credentials of one identity, as they come and go: asked at each handshake, so that a renewed certificate is used
/// from the next handshake on.
///
/// [`Credentials`] are a source that never changes; [`ReloadingCredentials`](super::ReloadingCredentials) are replaced
/// by whoever holds them. Implement it for an agent or a certificate authority:
///
/// ```
/// use std::io;
///
/// use hbone::tls::{CredentialSource, Credentials, Ready};
/// use tokio::sync::watch;
///
/// /// Filled by a task that talks to the certificate authority.
/// #[derive(Debug)]
/// struct FromAuthority(watch::Receiver<Option<Credentials>>);
///
/// impl CredentialSource for FromAuthority {
///     fn credentials(&self) -> io::Result<Credentials> {
///         self.0.borrow().clone().ok_or(io::ErrorKind::WouldBlock.into())
///     }
///
///     fn ready(&self) -> Ready<'_> {
///         let mut latest = self.0.clone();
///         Box::pin(async move {
///             let _ = latest.wait_for(Option::is_some).await;
///         })
///     }
/// }
/// ```
pub trait CredentialSource: fmt::Debug + Send + Sync {
    /// The credentials to use now. Also asked at each checkout from a [`Pool`](crate::pool::Pool), whose connections
    /// are replaced once these are others than before: by certificate and roots, so that they may be loaded anew each
    /// time. Must not block.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::WouldBlock`] when there are none yet: the handshake awaits [`ready`](Self::ready), and asks
    /// once more. Anything else fails the handshake at once, with this as its cause.
    fn credentials(&self) -> io::Result<Credentials>;

    /// Waits until [`credentials`](Self::credentials) has something else to say than `WouldBlock`. Several handshakes
    /// may wait at once. The future is dropped when the handshake times out, and must leave nothing behind.
    ///
    /// Ready at once by default: a handshake without credentials then fails.
    fn ready(&self) -> Ready<'_> {
        Box::pin(std::future::ready(()))
    }
}

/// The boxed future that [`CredentialSource::ready`] returns.
pub type Ready<'a> = Pin<Box<dyn Future<Output = ()> + Send + 'a>>;

impl CredentialSource for Credentials {
    fn credentials(&self) -> io::Result<Credentials> {
        Ok(self.clone())
    }
}

/// Gets credentials for a handshake. Cancel safe.
pub(super) async fn current(source: &dyn CredentialSource) -> Result<Credentials> {
    let now = match source.credentials() {
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
            source.ready().await;
            source.credentials()
        }
        now => now,
    };
    now.map_err(|e| failed(ErrorKind::InvalidCredentials, Side::Local).with_source(e))
}

/// Refuses credentials that have expired by `now`. A server shows them all the same, so that its clients learn why it
/// can't be talked to; a client's would only come back as an alert, which does not say whose fault it is.
pub(super) fn check_expiry(credentials: &Credentials, now: SystemTime) -> Result<()> {
    let certificate = credentials.certificate();
    if !certificate.has_expired(now) {
        return Ok(());
    }
    let cause =
        format!("our own certificate, of {}, expired at {}", certificate.identity(), Utc(certificate.not_after()));
    Err(failed(ErrorKind::InvalidCredentials, Side::Local)
        .with_source(cause)
        .with_advice("renew the certificate, and check why that has not happened"))
}
