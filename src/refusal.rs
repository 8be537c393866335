//! Why a CONNECT was turned down, in a form that a program can read: status and RFC 9209 error type.

use std::borrow::Cow;
use std::fmt;

use http::StatusCode;

/// A CONNECT turned down: what the server sends and what the client's [`Error`](crate::Error) carries.
///
/// On the wire it is the status and a `proxy-status` field (RFC 9209) with the reason and the details. A refusal from a
/// peer that sends no such field has [`RefusalReason::Unspecified`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    status: StatusCode,
    reason: RefusalReason,
    details: Option<String>,
}

/// The reasons of a refusal: proxy error types of RFC 9209, section 2.3.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum RefusalReason {
    /// `http_request_error`: the request is no valid CONNECT. Status 400.
    InvalidRequest,
    /// `destination_ip_prohibited`: this address is not served here. Status 400.
    DestinationProhibited,
    /// `http_request_denied`: a policy denies this peer. Status 401, as in ztunnel.
    Denied,
    /// `destination_not_found`: no such workload, service or port here. Status 503.
    DestinationNotFound,
    /// `destination_unavailable`: the service is known and nothing healthy stands behind it. Status 503.
    DestinationUnavailable,
    /// `dns_error`: the destination's name does not resolve. Status 503.
    DnsError,
    /// `connection_refused`: the destination refused the connection. Status 503.
    ConnectionRefused,
    /// `connection_timeout`: the destination did not answer in time. Status 503.
    ConnectionTimeout,
    /// `connection_terminated`: the destination closed before the tunnel was up. Status 503.
    ConnectionTerminated,
    /// `connection_limit_reached`: a limit of this proxy, or it is draining. Status 503.
    ConnectionLimitReached,
    /// `proxy_loop_detected`: the destination is this proxy. Status 503.
    LoopDetected,
    /// `proxy_configuration_error`. Status 503.
    Configuration,
    /// `proxy_internal_error`. Status 503.
    Internal,
    /// An error type that this crate does not know.
    Other(String),
    /// The peer gave a status and no reason.
    Unspecified,
}

/// Error types and their statuses; [`RefusalReason::token`], [`RefusalReason::from_token`] and
/// [`RefusalReason::status`] read this table.
const TABLE: &[(RefusalReason, &str, StatusCode)] = &[
    (RefusalReason::InvalidRequest, "http_request_error", StatusCode::BAD_REQUEST),
    (RefusalReason::DestinationProhibited, "destination_ip_prohibited", StatusCode::BAD_REQUEST),
    (RefusalReason::Denied, "http_request_denied", StatusCode::UNAUTHORIZED),
    (RefusalReason::DestinationNotFound, "destination_not_found", StatusCode::SERVICE_UNAVAILABLE),
    (RefusalReason::DestinationUnavailable, "destination_unavailable", StatusCode::SERVICE_UNAVAILABLE),
    (RefusalReason::DnsError, "dns_error", StatusCode::SERVICE_UNAVAILABLE),
    (RefusalReason::ConnectionRefused, "connection_refused", StatusCode::SERVICE_UNAVAILABLE),
    (RefusalReason::ConnectionTimeout, "connection_timeout", StatusCode::SERVICE_UNAVAILABLE),
    (RefusalReason::ConnectionTerminated, "connection_terminated", StatusCode::SERVICE_UNAVAILABLE),
    (RefusalReason::ConnectionLimitReached, "connection_limit_reached", StatusCode::SERVICE_UNAVAILABLE),
    (RefusalReason::LoopDetected, "proxy_loop_detected", StatusCode::SERVICE_UNAVAILABLE),
    (RefusalReason::Configuration, "proxy_configuration_error", StatusCode::SERVICE_UNAVAILABLE),
    (RefusalReason::Internal, "proxy_internal_error", StatusCode::SERVICE_UNAVAILABLE),
];

impl Refusal {
    /// A refusal with the status that belongs to `reason`.
    pub fn new(reason: RefusalReason) -> Self {
        Self { status: reason.status(), reason, details: None }
    }

    /// Says more, for the person who reads the client's log. It travels inside the mutual TLS of the hop only.
    pub fn with_details(mut self, details: impl Into<String>) -> Self {
        self.details = Some(details.into());
        self
    }

    /// A refusal as a peer sent it.
    pub(crate) fn received(status: StatusCode, reason: RefusalReason, details: Option<String>) -> Self {
        Self { status, reason, details }
    }

    /// The HTTP status.
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// The reason.
    pub fn reason(&self) -> &RefusalReason {
        &self.reason
    }

    /// What the refusing side added.
    pub fn details(&self) -> Option<&str> {
        self.details.as_deref()
    }
}

impl RefusalReason {
    /// The error type as RFC 9209 writes it.
    pub fn token(&self) -> Cow<'_, str> {
        match self {
            Self::Other(token) => Cow::Borrowed(token),
            known => Cow::Borrowed(TABLE.iter().find(|(r, ..)| r == known).map_or("unspecified", |(_, t, _)| t)),
        }
    }

    /// The reason with this RFC 9209 error type; [`RefusalReason::Other`] for one not in the list.
    pub fn from_token(token: &str) -> Self {
        match TABLE.iter().find(|(_, t, _)| *t == token) {
            Some((reason, ..)) => reason.clone(),
            None => Self::Other(token.to_owned()),
        }
    }

    /// The status that goes with the reason: 400, 401 or 503.
    pub fn status(&self) -> StatusCode {
        TABLE.iter().find(|(r, ..)| r == self).map_or(StatusCode::SERVICE_UNAVAILABLE, |(.., s)| *s)
    }
}

impl fmt::Display for RefusalReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.token())
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {}", self.status.as_u16(), self.reason)?;
        match &self.details {
            Some(details) => write!(f, " ({details})"),
            None => Ok(()),
        }
    }
}
