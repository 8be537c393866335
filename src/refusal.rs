//! Why a CONNECT was refused, in a form that programs can read: status and RFC 9209 error type.

use std::borrow::Cow;
use std::fmt;
use std::sync::LazyLock;
use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};

/// A refused CONNECT: what the server sends, and what the client's [`Error`](crate::Error) carries.
///
/// On the wire it is the status and a `proxy-status` field (RFC 9209) with the reason and the details, plus any other
/// headers and a short body. A refusal from a peer that sends no such field has [`RefusalReason::Unspecified`].
///
/// ```
/// use std::time::Duration;
///
/// use hbone::{Refusal, RefusalReason};
/// use http::{HeaderName, HeaderValue, StatusCode};
///
/// let refusal = Refusal::new(RefusalReason::ConnectionLimitReached)
///     .with_status(StatusCode::TOO_MANY_REQUESTS)?
///     .with_header(HeaderName::from_static("retry-after"), HeaderValue::from_static("3"))?
///     .with_details("100 tunnels are open");
/// assert_eq!(refusal.retry_after(), Some(Duration::from_secs(3)));
/// # Ok::<(), hbone::RefusalError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    status: StatusCode,
    reason: RefusalReason,
    details: Option<String>,
    /// Boxed, as few have any.
    content: Option<Box<Content>>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Content {
    headers: HeaderMap,
    body: Bytes,
}

/// What can't be part of a [`Refusal`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RefusalError {
    /// A status below 300: of an answer that is not final, or that opens the tunnel.
    Status(StatusCode),
    /// A header that HTTP/2 forbids, that says how long the body is, or `proxy-status`, which the refusal writes
    /// itself.
    Header(HeaderName),
    /// More headers than a [`HeaderMap`] holds.
    TooManyHeaders,
    /// A body of over 16 KiB.
    BodyTooLong,
}

/// The reasons of a refusal: proxy error types of RFC 9209, section 2.3.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum RefusalReason {
    /// `http_request_error`: the request is not a valid CONNECT. Status 400.
    InvalidRequest,
    /// `destination_ip_prohibited`: this address is not served here. Status 400.
    DestinationProhibited,
    /// `http_request_denied`: a policy denies this peer. Status 401, as in ztunnel.
    Denied,
    /// `destination_not_found`: no such workload, service or port here. Status 503.
    DestinationNotFound,
    /// `destination_unavailable`: the service is known, and has no healthy backend. Status 503.
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
    /// An error type unknown to this crate.
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

/// The longest body, in both directions.
pub(crate) const MAX_BODY: usize = 16 << 10;

/// Headers about the connection or the body's length, and the one that is written from reason and details.
const NOT_CARRIED: &[&str] = &[
    "connection",
    "content-length",
    "keep-alive",
    "proxy-connection",
    "proxy-status",
    "te",
    "transfer-encoding",
    "upgrade",
];

impl Refusal {
    /// A refusal with the status that belongs to `reason`.
    pub fn new(reason: RefusalReason) -> Self {
        Self { status: reason.status(), reason, details: None, content: None }
    }

    /// Sets another status than that of the reason.
    ///
    /// # Errors
    ///
    /// [`RefusalError::Status`] when it is below 300.
    pub fn with_status(mut self, status: StatusCode) -> Result<Self, RefusalError> {
        if status.as_u16() < 300 {
            return Err(RefusalError::Status(status));
        }
        self.status = status;
        Ok(self)
    }

    /// Adds a header, such as `retry-after`. One that is there already keeps its values and gets one more.
    ///
    /// # Errors
    ///
    /// [`RefusalError::Header`] for `proxy-status`, `content-length` and the headers that HTTP/2 forbids;
    /// [`RefusalError::TooManyHeaders`].
    pub fn with_header(mut self, name: HeaderName, value: HeaderValue) -> Result<Self, RefusalError> {
        if NOT_CARRIED.contains(&name.as_str()) {
            return Err(RefusalError::Header(name));
        }
        let headers = &mut self.content.get_or_insert_default().headers;
        headers.try_append(name, value).map_err(|_| RefusalError::TooManyHeaders)?;
        Ok(self)
    }

    /// Sets a body, for clients that show or log it. Say what it is with a `content-type`.
    ///
    /// # Errors
    ///
    /// [`RefusalError::BodyTooLong`] when it has over 16 KiB.
    pub fn with_body(mut self, body: impl Into<Bytes>) -> Result<Self, RefusalError> {
        let body = body.into();
        if body.len() > MAX_BODY {
            return Err(RefusalError::BodyTooLong);
        }
        self.content.get_or_insert_default().body = body;
        Ok(self)
    }

    /// Adds details for whoever reads the client's log. They travel only inside the mutual TLS of the hop.
    pub fn with_details(mut self, details: impl Into<String>) -> Self {
        self.details = Some(details.into());
        self
    }

    /// A refusal as a peer sent it.
    pub(crate) fn received(status: StatusCode, reason: RefusalReason, details: Option<String>) -> Self {
        Self { status, reason, details, content: None }
    }

    /// Adds the other headers and the body of a received refusal.
    pub(crate) fn with_content(mut self, headers: &HeaderMap, body: Bytes) -> Self {
        let carried = headers.iter().filter(|(name, _)| !NOT_CARRIED.contains(&name.as_str()));
        let headers: HeaderMap = carried.map(|(name, value)| (name.clone(), value.clone())).collect();
        self.content = (!headers.is_empty() || !body.is_empty()).then(|| Box::new(Content { headers, body }));
        self
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

    /// The headers other than `proxy-status` and those about connection and length.
    pub fn headers(&self) -> &HeaderMap {
        static NONE: LazyLock<HeaderMap> = LazyLock::new(HeaderMap::new);
        self.content.as_ref().map_or(&NONE, |content| &content.headers)
    }

    /// The body; empty without one. Of a received refusal, up to 16 KiB of what arrived within a second.
    pub fn body(&self) -> &Bytes {
        static NONE: Bytes = Bytes::new();
        self.content.as_ref().map_or(&NONE, |content| &content.body)
    }

    /// How long to wait before trying again, if the `retry-after` header says so in seconds (RFC 9110, section 10.2.3).
    pub fn retry_after(&self) -> Option<Duration> {
        let seconds = self.headers().get(header::RETRY_AFTER)?.to_str().ok()?.trim();
        // `parse` takes a sign, which the header must not have.
        let digits = seconds.bytes().all(|byte| byte.is_ascii_digit());
        digits.then(|| seconds.parse().ok().map(Duration::from_secs)).flatten()
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

impl fmt::Display for RefusalError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Status(status) => write!(f, "{} is not the status of a refusal", status.as_u16()),
            Self::Header(name) => write!(f, "a refusal does not carry the header {name}"),
            Self::TooManyHeaders => f.write_str("there are too many headers"),
            Self::BodyTooLong => f.write_str("the body of a refusal may have 16 KiB"),
        }
    }
}

impl std::error::Error for RefusalError {}

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

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn with_retry_after(value: &str) -> Refusal {
        let value = HeaderValue::from_str(value).unwrap();
        Refusal::new(RefusalReason::ConnectionLimitReached).with_header(header::RETRY_AFTER, value).unwrap()
    }

    #[rstest]
    #[case("0", Some(0))]
    #[case("120", Some(120))]
    #[case(" 7 ", Some(7))]
    #[case("", None)]
    #[case("-1", None)]
    #[case("+1", None)]
    #[case("1.5", None)]
    #[case("99999999999999999999", None)]
    #[case("Fri, 31 Dec 1999 23:59:59 GMT", None)]
    fn retry_after_is_read_in_seconds(#[case] value: &str, #[case] seconds: Option<u64>) {
        assert_eq!(with_retry_after(value).retry_after(), seconds.map(Duration::from_secs));
    }

    #[rstest]
    #[case(100)]
    #[case(200)]
    #[case(204)]
    fn a_status_that_is_no_refusal_is_not_taken(#[case] status: u16) {
        let status = StatusCode::from_u16(status).unwrap();
        assert_eq!(Refusal::new(RefusalReason::Denied).with_status(status), Err(RefusalError::Status(status)));
    }

    #[rstest]
    #[case("connection")]
    #[case("content-length")]
    #[case("proxy-status")]
    #[case("transfer-encoding")]
    fn a_header_that_can_not_be_carried_is_not_taken(#[case] name: HeaderName) {
        let refusal = Refusal::new(RefusalReason::Denied);
        let result = refusal.with_header(name.clone(), HeaderValue::from_static("x"));
        assert_eq!(result, Err(RefusalError::Header(name)));
    }

    #[test]
    fn a_body_is_bounded() {
        let refusal = |length| Refusal::new(RefusalReason::Denied).with_body(vec![b'x'; length]);
        assert_eq!(refusal(MAX_BODY).unwrap().body().len(), MAX_BODY);
        assert_eq!(refusal(MAX_BODY + 1), Err(RefusalError::BodyTooLong));
    }

    #[test]
    fn a_refusal_without_content_is_small() {
        assert!(size_of::<Refusal>() <= 72, "{}", size_of::<Refusal>());
    }
}
