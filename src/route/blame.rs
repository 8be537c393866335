//! Whom a failure speaks against.

use http::StatusCode;

use super::{Backend, Route};
use crate::balance::health::HealthKey;
use crate::error::{Error, ErrorKind, Layer, Side};

/// Refusals by which the far side says something of itself, unlike the other ones of the class 4xx, which speak of the
/// request: not found, request timeout, misdirected request, too early, too many requests.
const ABOUT_THE_FAR_SIDE: [StatusCode; 5] = [
    StatusCode::NOT_FOUND,
    StatusCode::REQUEST_TIMEOUT,
    StatusCode::MISDIRECTED_REQUEST,
    StatusCode::TOO_EARLY,
    StatusCode::TOO_MANY_REQUESTS,
];

/// Whether another endpoint may cure a CONNECT that failed before its 200.
///
/// Not when the reason is on this side: what is asked for, our own certificate or a resource of this machine, or that
/// there is no way. Nor when the far side refused it for what it is, with a status such as 400 or 401: with 4xx, except
/// 404, 408, 421, 425 and 429. Another endpoint may cure everything else: not reached, no answer in time, somebody else
/// or something other than HBONE at that address, a reset, GOAWAY, the end of the connection, a refusal with 5xx.
pub fn is_retryable(error: &Error) -> bool {
    match error.kind() {
        ErrorKind::InvalidInput
        | ErrorKind::InvalidCredentials
        | ErrorKind::RejectedByPeer
        | ErrorKind::Local
        | ErrorKind::NoRoute
        | ErrorKind::WriteAfterShutdown => false,
        ErrorKind::Refused(refusal) => {
            !refusal.status().is_client_error() || ABOUT_THE_FAR_SIDE.contains(&refusal.status())
        }
        ErrorKind::Unreachable
        | ErrorKind::Timeout
        | ErrorKind::CertificateInvalid
        | ErrorKind::IdentityNotAccepted
        | ErrorKind::Protocol
        | ErrorKind::Reset(_)
        | ErrorKind::GoAway(_)
        | ErrorKind::Closed => true,
        ErrorKind::Other => error.side() == Side::Remote,
    }
}

impl Route {
    /// What an attempt along this way puts to the test, for
    /// [`Outliers::begin`](crate::balance::health::Outliers::begin): in the source's own network, the endpoint; through
    /// a gateway first the gateway, then the gateway for this service.
    ///
    /// When it succeeds, it does so at all of them. When it fails, [`blame`](Self::blame) says at which; if that is the
    /// gateway for the service, the gateway itself has succeeded, since it did forward; if it is the gateway, nothing
    /// is known of the other.
    pub fn health_keys(&self) -> impl Iterator<Item = HealthKey> + use<> {
        let keys = match (&self.gateway, &self.service) {
            (None, _) => [Some(HealthKey::Workload(self.picked.uid.clone())), None],
            (Some(gateway), Some(service)) => HealthKey::through(&gateway.uid, &service.key).map(Some),
            (Some(gateway), None) => [Some(HealthKey::Gateway(gateway.uid.clone())), None],
        };
        keys.into_iter().flatten()
    }

    /// Whom it speaks against when a CONNECT along this way fails with `error` before its 200: one of the
    /// [`health_keys`](Self::health_keys).
    ///
    /// `None` for an error that speaks against nobody, which is one that is not [retryable](is_retryable). In the
    /// source's own network, everything else speaks against the endpoint. Through a gateway, what happens on the
    /// connection to the gateway speaks against the gateway; how it answers the CONNECT, and all that happens behind
    /// it, against the gateway for this service. An error that names no [hop](Error::hop) counts as one on the
    /// connection to the gateway.
    pub fn blame(&self, error: &Error) -> Option<HealthKey> {
        if !is_retryable(error) {
            return None;
        }
        let at_gateway = match error.hop() {
            None => true,
            Some(0) => matches!(error.layer(), Layer::Dial | Layer::Tls | Layer::Http2),
            Some(_) => false,
        };
        let mut keys = self.health_keys();
        if at_gateway { keys.next() } else { keys.last() }
    }
}

impl Backend {
    /// What a dial is an attempt at.
    pub fn health_key(&self) -> HealthKey {
        HealthKey::Workload(self.workload.uid.clone())
    }
}
