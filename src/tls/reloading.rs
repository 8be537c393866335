//! Credentials that are replaced while they are in use.

use std::io;

use tokio::sync::watch;

use super::{CredentialSource, Credentials, Ready};
use crate::error::{Error, ErrorKind, Layer, Result, Side};

/// Credentials that whoever watches files, an agent or a certificate authority replaces while connections use them.
/// Clones are the same credentials.
///
/// What is new was checked as a whole when it became [`Credentials`]: the key belongs to the certificate, the
/// certificate to one of the roots, and none has expired. Where that fails, the last good ones stay. Handshakes begun
/// from then on show the new certificate, connections of a [`Pool`](crate::pool::Pool) take no new tunnels, and the
/// open tunnels go on.
///
/// ```no_run
/// use std::path::Path;
///
/// use hbone::tls::{Credentials, ReloadingCredentials};
///
/// # fn changes() -> impl Iterator { std::iter::empty::<()>() }
/// let load = || Credentials::from_pem_files(Path::new("tls.crt"), Path::new("tls.key"), Path::new("ca.crt"));
/// let credentials = ReloadingCredentials::from(load()?);
/// for change in changes() {
///     match credentials.update(load()) {
///         Ok(true) => println!("using {credentials:?} from now on"),
///         Ok(false) => {}
///         Err(error) => eprintln!("going on with the last good certificate: {error}"),
///     }
/// }
/// # Ok::<(), hbone::Error>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct ReloadingCredentials(watch::Sender<State>);

#[derive(Debug, Default)]
struct State {
    credentials: Option<Credentials>,
    error: Option<Error>,
}

impl ReloadingCredentials {
    /// None yet: handshakes wait for the first, as long as the [`tls_timeout`](crate::Config::with_tls_timeout).
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes what was `loaded` anew, and says whether that is another certificate, or trusts other roots, than before.
    /// When loading failed, the last good credentials stay, as does the reason, until the next call.
    ///
    /// # Errors
    ///
    /// Why loading failed. [`ErrorKind::InvalidCredentials`] for credentials of another identity than before: who
    /// shares connections, and what policies say, depends on it.
    pub fn update(&self, loaded: Result<Credentials>) -> Result<bool> {
        let mut result = Ok(false);
        self.0.send_if_modified(|state| {
            result = loaded.and_then(|new| same_identity(state.credentials.as_ref(), new)).map(|new| {
                let changed = state.credentials.as_ref() != Some(&new);
                state.credentials = Some(new);
                changed
            });
            state.error = result.as_ref().err().cloned();
            matches!(result, Ok(true))
        });
        result
    }

    /// The credentials in use.
    pub fn current(&self) -> Option<Credentials> {
        self.0.borrow().credentials.clone()
    }

    /// Why the last update was not taken, until one is.
    pub fn last_error(&self) -> Option<Error> {
        self.0.borrow().error.clone()
    }
}

fn same_identity(old: Option<&Credentials>, new: Credentials) -> Result<Credentials> {
    match old.map(Credentials::identity) {
        Some(identity) if identity != new.identity() => {
            let what = format!("replacing the certificate of {identity}");
            Err(Error::new(ErrorKind::InvalidCredentials, Layer::Config, Side::Local, what)
                .with_source(format!("the new one is that of {}", new.identity()))
                .with_advice("a certificate may be renewed, and not be replaced by that of another workload"))
        }
        _ => Ok(new),
    }
}

impl From<Credentials> for ReloadingCredentials {
    fn from(credentials: Credentials) -> Self {
        Self(watch::Sender::new(State { credentials: Some(credentials), error: None }))
    }
}

impl CredentialSource for ReloadingCredentials {
    fn credentials(&self) -> io::Result<Credentials> {
        self.current().ok_or_else(|| io::Error::new(io::ErrorKind::WouldBlock, "there is no certificate yet"))
    }

    fn ready(&self) -> Ready<'_> {
        let mut state = self.0.subscribe();
        Box::pin(async move {
            // Fails only when the sender is gone, which `self` keeps.
            let _ = state.wait_for(|state| state.credentials.is_some()).await;
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::SpiffeId;
    use crate::testing::Ca;

    fn id(name: &str) -> SpiffeId {
        format!("spiffe://cluster.local/ns/default/sa/{name}").parse().unwrap()
    }

    #[test]
    fn a_new_certificate_replaces_the_old_one() {
        let ca = Ca::new();
        let (old, new) = (ca.issue(&id("web")), ca.issue(&id("web")));
        let credentials = ReloadingCredentials::from(old.clone());
        assert!(!credentials.update(Ok(old)).unwrap());
        assert!(credentials.update(Ok(new.clone())).unwrap());
        assert_eq!(credentials.clone().credentials().unwrap(), new);
    }

    #[test]
    fn a_failure_keeps_the_last_good_one_and_is_told_until_the_next() {
        let ca = Ca::new();
        let good = ca.issue(&id("web"));
        let credentials = ReloadingCredentials::from(good.clone());
        let expired = ca.certificate().uri(&id("web").to_string()).expired().issue().credentials();
        let error = credentials.update(expired).unwrap_err();
        assert!(error.to_string().contains("expired"), "{error}");
        assert_eq!(credentials.credentials().unwrap(), good);
        assert_eq!(credentials.last_error().unwrap().to_string(), error.to_string());
        credentials.update(Ok(good)).unwrap();
        assert!(credentials.last_error().is_none());
    }

    #[test]
    fn a_certificate_of_another_workload_is_not_taken() {
        let ca = Ca::new();
        let good = ca.issue(&id("web"));
        let credentials = ReloadingCredentials::from(good.clone());
        let error = credentials.update(Ok(ca.issue(&id("cart")))).unwrap_err();
        assert_eq!(error.kind(), &ErrorKind::InvalidCredentials);
        assert!(error.to_string().contains("sa/web") && error.to_string().contains("sa/cart"), "{error}");
        assert_eq!(credentials.credentials().unwrap(), good);
    }

    #[tokio::test]
    async fn who_waits_goes_on_with_the_first_one() {
        let ca = Ca::new();
        let credentials = ReloadingCredentials::new();
        assert_eq!(credentials.credentials().unwrap_err().kind(), io::ErrorKind::WouldBlock);
        let (filled, first) = (credentials.clone(), ca.issue(&id("web")));
        tokio::join!(credentials.ready(), async { filled.update(Ok(first.clone())).unwrap() });
        assert_eq!(credentials.credentials().unwrap(), first);
    }
}
