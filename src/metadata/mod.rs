//! The headers of a CONNECT and of its 200, as values.
//!
//! Both directions carry the same set: who is there ([`Baggage`]), for whom ([`Forwarded`]), as part of which trace
//! ([`Traceparent`]) and through which network. None of it is proven: the peer wrote it, so it is for logs and metrics,
//! and nothing in it makes a tunnel fail.
//!
//! Two headers are this crate's own, for connections through a gateway that are shared: the gateway's 200 says which
//! backend the tunnel leads to ([`BackendToken`]), and the client's CONNECT says which backends it is connected to
//! already, so that the gateway can pick another one. Peers that don't know them ignore them.

mod backend;
mod baggage;
mod forwarded;
pub(crate) mod proxy_status;
mod quoted;
mod received;
mod traceparent;

pub use self::backend::{BackendToken, BackendTokenError};
pub use self::baggage::{Baggage, WorkloadType};
pub use self::forwarded::Forwarded;
pub(crate) use self::received::Received;
pub use self::traceparent::Traceparent;

use http::header::{self, HeaderMap, HeaderName, HeaderValue};

use crate::error::{Error, Result};

/// The header of a [`Baggage`].
pub const BAGGAGE: HeaderName = HeaderName::from_static("baggage");
/// The header of a [`Forwarded`].
pub const FORWARDED: HeaderName = header::FORWARDED;
/// The header of a [`Traceparent`].
pub const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
/// The header with the name of the network that a request comes from.
pub const X_FORWARDED_NETWORK: HeaderName = HeaderName::from_static("x-forwarded-network");
/// The header of a 200 with the [`BackendToken`] of the backend that the tunnel leads to; this crate's own.
pub const X_HBONE_BACKEND: HeaderName = HeaderName::from_static("x-hbone-backend");
/// The header of a CONNECT with the [`BackendToken`]s of the backends that the client is connected to, separated by
/// commas; this crate's own.
pub const X_HBONE_BACKENDS: HeaderName = HeaderName::from_static("x-hbone-backends");
/// The header that says why a CONNECT was turned down (RFC 9209); a [`Refusal`](crate::Refusal) is its typed form.
pub const PROXY_STATUS: HeaderName = HeaderName::from_static("proxy-status");

/// Headers that no CONNECT and no 200 of this crate carries: those about one connection, which HTTP/2 forbids (RFC
/// 9113, section 8.2.2), the host, which is in the authority, a length, which would end the tunnel (RFC 9110, section
/// 9.3.6), and the status of a refusal.
const NOT_CARRIED: &[&str] = &[
    "connection",
    "content-length",
    "host",
    "keep-alive",
    "proxy-connection",
    "proxy-status",
    "te",
    "transfer-encoding",
    "upgrade",
];

/// Headers with a typed view.
const TYPED: [HeaderName; 6] =
    [BAGGAGE, FORWARDED, TRACEPARENT, X_FORWARDED_NETWORK, X_HBONE_BACKEND, X_HBONE_BACKENDS];

const MAX_NETWORK: usize = 255;

/// What a CONNECT, or the 200 that answers it, says besides the target.
///
/// A received one never fails to be read, and is written again as it came, header by header: what the typed view does
/// not know of a header is not lost as long as that header is not set anew. A header that can't be read counts as
/// absent in the typed view and stays in [`Metadata::other`]. No part of it is proven by the peer's certificate.
///
/// ```
/// use hbone::metadata::{Baggage, Metadata};
/// use http::{HeaderMap, HeaderName, HeaderValue};
///
/// let metadata = Metadata::default()
///     .with_baggage(Baggage::default().with_cluster("c1"))
///     .with_forwarded_network("network-1")?
///     .with_header(HeaderName::from_static("x-istio-source"), HeaderValue::from_static("gateway"))?;
/// let mut headers = HeaderMap::new();
/// metadata.write_to(&mut headers);
/// assert_eq!(headers["baggage"], "k8s.cluster.name=c1");
/// assert_eq!(Metadata::from_headers(&headers), metadata);
/// # Ok::<(), hbone::Error>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct Metadata {
    baggage: Option<Baggage>,
    forwarded: Option<Forwarded>,
    traceparent: Option<Traceparent>,
    forwarded_network: Option<String>,
    backend: Option<BackendToken>,
    known_backends: Vec<BackendToken>,
    /// Of the headers that have been read, those that say more than their typed view, or say it differently.
    verbatim: HeaderMap,
    other: HeaderMap,
}

impl Metadata {
    /// Sets what this side says of its workload. An empty one takes the header away.
    pub fn with_baggage(mut self, baggage: Baggage) -> Self {
        self.forget(&BAGGAGE);
        self.baggage = Some(baggage).filter(|b| !b.is_empty());
        self
    }

    /// Sets for whom the tunnel is opened. An empty one takes the header away.
    pub fn with_forwarded(mut self, forwarded: Forwarded) -> Self {
        self.forget(&FORWARDED);
        self.forwarded = Some(forwarded).filter(|f| !f.is_empty());
        self
    }

    /// Sets the trace that the tunnel belongs to.
    pub fn with_traceparent(mut self, traceparent: Traceparent) -> Self {
        self.forget(&TRACEPARENT);
        self.traceparent = Some(traceparent);
        self
    }

    /// Sets the network that the source is in. On a nested path it belongs in the innermost CONNECT only, which the
    /// destination reads: it tells the destination not to look the source up by its address.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidInput`](crate::ErrorKind::InvalidInput) when the name is empty, over 255 bytes or not
    /// visible ASCII.
    pub fn with_forwarded_network(mut self, network: impl Into<String>) -> Result<Self> {
        let network = network.into();
        if !valid_network(&network) {
            let cause = "it must be 1 to 255 bytes of visible ASCII";
            return Err(Error::invalid(format!("setting the network {network:?}")).with_source(cause));
        }
        self.forget(&X_FORWARDED_NETWORK);
        self.forwarded_network = Some(network);
        Ok(self)
    }

    /// Sets which backend the tunnel leads to. It belongs in the 200 of a gateway.
    pub fn with_backend(mut self, backend: BackendToken) -> Self {
        self.forget(&X_HBONE_BACKEND);
        self.backend = Some(backend);
        self
    }

    /// Sets the backends that the client is connected to already, as this gateway calls them. It belongs in the outer
    /// CONNECT, whose gateway picks another backend then if it can. An empty list takes the header away.
    ///
    /// The first 128 are sent, since a peer limits how large the headers may be; put those first that matter most.
    pub fn with_known_backends(mut self, backends: impl IntoIterator<Item = BackendToken>) -> Self {
        self.forget(&X_HBONE_BACKENDS);
        self.known_backends = backends.into_iter().take(backend::MAX_TOKENS).collect();
        self
    }

    /// Adds a header as it is: one that this crate has no type for, or a ready-made `baggage`, for instance. One that
    /// is there already keeps its values and gets one more; of the headers with a typed view, the new value takes the
    /// place of the old one, and is sent as it is whether or not it can be read.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidInput`](crate::ErrorKind::InvalidInput) for `proxy-status` and `content-length`, and for the
    /// headers that HTTP/2 forbids: `connection`, `host`, `keep-alive`, `proxy-connection`, `te`, `transfer-encoding`,
    /// `upgrade`. Also when there are too many headers for a [`HeaderMap`].
    pub fn with_header(mut self, name: HeaderName, value: HeaderValue) -> Result<Self> {
        let refused = |cause| Err(Error::invalid(format!("setting the header {name}")).with_source(cause));
        if !is_carried(&name) {
            return refused("a tunnel does not carry it");
        }
        if TYPED.contains(&name) {
            self.forget(&name);
            let mut headers = HeaderMap::with_capacity(1);
            headers.insert(name.clone(), value);
            self.read(&name, &headers);
            return Ok(self);
        }
        match self.other.try_append(&name, value) {
            Ok(_) => Ok(self),
            Err(_) => refused("there are too many headers"),
        }
    }

    /// What the peer says of its workload. Telemetry and never authorisation: see [`Baggage`].
    pub fn baggage(&self) -> Option<&Baggage> {
        self.baggage.as_ref()
    }

    /// For whom the peer says it opened the tunnel.
    pub fn forwarded(&self) -> Option<&Forwarded> {
        self.forwarded.as_ref()
    }

    /// The trace that the tunnel belongs to.
    pub fn traceparent(&self) -> Option<&Traceparent> {
        self.traceparent.as_ref()
    }

    /// The network that the peer says it is in. Networks are compared without regard to case.
    pub fn forwarded_network(&self) -> Option<&str> {
        self.forwarded_network.as_deref()
    }

    /// Which backend a gateway says the tunnel leads to.
    pub fn backend(&self) -> Option<&BackendToken> {
        self.backend.as_ref()
    }

    /// The backends that a client says it is connected to already: at most 128.
    pub fn known_backends(&self) -> &[BackendToken] {
        &self.known_backends
    }

    /// All other headers, as they came: those without a typed view, and those whose typed view could not be read.
    pub fn other(&self) -> &HeaderMap {
        &self.other
    }

    /// Reads the headers of a request or a response. Those that [`Metadata::with_header`] refuses for what they are
    /// (hop by hop, `content-length`, `proxy-status`) are left out.
    ///
    /// A `traceparent`, `x-forwarded-network` or `x-hbone-backend` with several values counts as one that can't be
    /// read. Of all `x-hbone-backends` together, up to 128 valid tokens are read.
    pub fn from_headers(headers: &HeaderMap) -> Self {
        let mut metadata = Self::default();
        for name in TYPED.iter().filter(|name| headers.contains_key(*name)) {
            metadata.read(name, headers);
        }
        for (name, value) in headers {
            if is_carried(name) && !TYPED.contains(name) {
                append(&mut metadata.other, name, value);
            }
        }
        metadata
    }

    /// Writes the headers, in place of those that `headers` already has under the same names.
    pub fn write_to(&self, headers: &mut HeaderMap) {
        for name in TYPED {
            if let Some(value) = self.typed(&name).filter(|_| !self.verbatim.contains_key(&name)) {
                // As in `append`.
                let _ = headers.try_insert(name, value);
            }
        }
        for map in [&self.verbatim, &self.other] {
            for name in map.keys() {
                headers.remove(name);
            }
            for (name, value) in map {
                append(headers, name, value);
            }
        }
    }

    /// Takes one of the typed headers from `headers`.
    fn read(&mut self, name: &HeaderName, headers: &HeaderMap) {
        match name.as_str() {
            "baggage" => self.baggage = Baggage::read(headers.get_all(BAGGAGE)),
            "forwarded" => self.forwarded = headers.get(FORWARDED).and_then(Forwarded::read),
            "traceparent" => self.traceparent = only(headers, name).and_then(Traceparent::read),
            "x-forwarded-network" => {
                self.forwarded_network = only(headers, name).filter(|n| valid_network(n)).map(str::to_owned);
            }
            "x-hbone-backend" => self.backend = only(headers, name).and_then(BackendToken::read),
            "x-hbone-backends" => self.known_backends = BackendToken::read_list(headers.get_all(X_HBONE_BACKENDS)),
            _ => {}
        }
        let typed = self.typed(name);
        let mut values = headers.get_all(name).iter();
        if typed.is_some() && (values.next(), values.next()) == (typed.as_ref(), None) {
            return;
        }
        let map = if typed.is_some() { &mut self.verbatim } else { &mut self.other };
        for value in headers.get_all(name) {
            append(map, name, value);
        }
    }

    /// What the typed view of this header says, as a header.
    fn typed(&self, name: &HeaderName) -> Option<HeaderValue> {
        match name.as_str() {
            "baggage" => self.baggage.as_ref().and_then(Baggage::write),
            "forwarded" => self.forwarded.as_ref().and_then(Forwarded::write),
            "traceparent" => self.traceparent.map(|traceparent| traceparent.write()),
            "x-forwarded-network" => self.forwarded_network.as_ref().and_then(|n| HeaderValue::try_from(n).ok()),
            "x-hbone-backend" => self.backend.as_ref().and_then(BackendToken::write),
            "x-hbone-backends" => BackendToken::write_list(&self.known_backends),
            _ => None,
        }
    }

    /// Makes room for another value of one of the typed headers.
    fn forget(&mut self, name: &HeaderName) {
        self.verbatim.remove(name);
        self.other.remove(name);
    }
}

/// Equal when they are written as the same headers.
impl PartialEq for Metadata {
    fn eq(&self, other: &Self) -> bool {
        let written = |metadata: &Self| {
            let mut headers = HeaderMap::new();
            metadata.write_to(&mut headers);
            headers
        };
        written(self) == written(other)
    }
}

impl Eq for Metadata {}

fn is_carried(name: &HeaderName) -> bool {
    !NOT_CARRIED.contains(&name.as_str())
}

fn valid_network(network: &str) -> bool {
    (1..=MAX_NETWORK).contains(&network.len()) && network.bytes().all(|b| b.is_ascii_graphic())
}

/// The value of a header that may stand there once only.
fn only<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (Some(value), None) => value.to_str().ok(),
        _ => None,
    }
}

fn append(headers: &mut HeaderMap, name: &HeaderName, value: &HeaderValue) {
    // `append` panics past the 32768 headers that a map can hold; HTTP/2's limit on header lists is far below that.
    let _ = headers.try_append(name, value.clone());
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;
    use crate::error::ErrorKind;

    fn headers(lines: &[(&str, &str)]) -> HeaderMap {
        lines.iter().map(|(n, v)| (n.parse().unwrap(), v.parse().unwrap())).collect::<HeaderMap>()
    }

    fn written(metadata: &Metadata) -> HeaderMap {
        let mut headers = HeaderMap::new();
        metadata.write_to(&mut headers);
        headers
    }

    #[test]
    fn the_headers_of_a_ztunnel_are_read_and_written_as_they_came() {
        let headers = headers(&[
            ("baggage", "k8s.cluster.name=c1,k8s.namespace.name=shop,k8s.pod.name=cart-1"),
            ("forwarded", "for=\"10.0.0.5:41234\";host=cart.shop.svc.cluster.local"),
            ("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00"),
            ("x-forwarded-network", "network-1"),
            ("x-istio-source", "waypoint"),
        ]);
        let metadata = Metadata::from_headers(&headers);
        assert_eq!(metadata.baggage().and_then(Baggage::workload_name), Some("cart-1"));
        assert_eq!(metadata.forwarded().and_then(Forwarded::host), Some("cart.shop.svc.cluster.local"));
        assert_eq!(metadata.traceparent().unwrap().parent_id()[7], 0xb7);
        assert_eq!(metadata.forwarded_network(), Some("network-1"));
        assert_eq!(metadata.other().len(), 1);
        assert_eq!(written(&metadata), headers);
    }

    #[rstest]
    #[case::only_unknown_keys(&[("baggage", "a=b"), ("baggage", "c=d")])]
    #[case::no_known_parameter(&[("forwarded", "for=unknown;proto=http")])]
    #[case::bad_traceparent(&[("traceparent", "garbage")])]
    #[case::several_traceparents(&[
        ("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00"),
        ("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00"),
    ])]
    #[case::empty_network(&[("x-forwarded-network", "")])]
    #[case::several_networks(&[("x-forwarded-network", "a"), ("x-forwarded-network", "b")])]
    #[case::bad_backend(&[("x-hbone-backend", "two words")])]
    #[case::several_backends(&[("x-hbone-backend", "a"), ("x-hbone-backend", "a")])]
    #[case::no_known_backend(&[("x-hbone-backends", "two words"), ("x-hbone-backends", "")])]
    #[case::repeated_unknown(&[("x-a", "1"), ("x-b", "2"), ("x-a", "0"), ("x-a", "1")])]
    fn what_can_not_be_read_stays_as_it_came(#[case] lines: &[(&str, &str)]) {
        let headers = headers(lines);
        let metadata = Metadata::from_headers(&headers);
        assert_eq!(metadata, Metadata { other: headers.clone(), ..Metadata::default() });
        assert_eq!(written(&metadata), headers);
    }

    #[test]
    fn setting_a_typed_header_replaces_one_that_could_not_be_read() {
        let unreadable = headers(&[
            ("baggage", "a=b"),
            ("forwarded", "x"),
            ("traceparent", "x"),
            ("x-forwarded-network", "a"),
            ("x-forwarded-network", "b"),
            ("x-hbone-backend", "two words"),
            ("x-hbone-backends", ","),
        ]);
        let parent = Traceparent::new([1; 16], [2; 8], true).unwrap();
        let metadata = Metadata::from_headers(&unreadable)
            .with_baggage(Baggage::default())
            .with_forwarded(Forwarded::default().with_host("h").unwrap())
            .with_traceparent(parent)
            .with_forwarded_network("n")
            .unwrap()
            .with_backend("b1".parse().unwrap())
            .with_known_backends(["b2", "b3"].map(|token| token.parse().unwrap()));
        assert!(metadata.other().is_empty());
        let expected = headers(&[
            ("forwarded", "host=h"),
            ("traceparent", &parent.to_string()),
            ("x-forwarded-network", "n"),
            ("x-hbone-backend", "b1"),
            ("x-hbone-backends", "b2, b3"),
        ]);
        assert_eq!(written(&metadata), expected);
    }

    #[rstest]
    #[case("connection")]
    #[case("content-length")]
    #[case("host")]
    #[case("keep-alive")]
    #[case("proxy-connection")]
    #[case("te")]
    #[case("transfer-encoding")]
    #[case("upgrade")]
    #[case("proxy-status")]
    fn headers_that_a_tunnel_can_not_carry_are_refused_and_left_out(#[case] name: &str) {
        let error = Metadata::default().with_header(name.parse().unwrap(), HeaderValue::from_static("x")).unwrap_err();
        assert_eq!(error.kind(), &ErrorKind::InvalidInput);
        assert!(error.to_string().contains(name), "{error}");
        assert_eq!(Metadata::from_headers(&headers(&[(name, "x")])), Metadata::default());
    }

    const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-03";

    #[rstest]
    #[case::baggage(&[("baggage", "k8s.cluster.name=c1,tenant=acme;prop=1")])]
    #[case::several_lines(&[("baggage", "k8s.cluster.name=c1"), ("baggage", "tenant=acme")])]
    #[case::properties(&[("baggage", " k8s.cluster.name = c1 ; ttl=3")])]
    #[case::other_spelling(&[("baggage", "k8s.pod.name=a%2Db")])]
    #[case::forwarded(&[("forwarded", "for=\"10.0.0.5:1\";proto=http;by=gw, for=unknown")])]
    #[case::flags(&[("traceparent", PARENT)])]
    #[case::version(&[("traceparent", "cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-later")])]
    #[case::backends(&[("x-hbone-backends", "a, no token"), ("x-hbone-backends", "b")])]
    fn what_is_understood_in_part_is_written_as_it_came(#[case] lines: &[(&str, &str)]) {
        let headers = headers(lines);
        let metadata = Metadata::from_headers(&headers);
        assert!(metadata.other().is_empty(), "it can be read");
        assert_eq!(written(&metadata), headers);
        assert_eq!(Metadata::from_headers(&written(&metadata)), metadata);
    }

    #[rstest]
    #[case(BAGGAGE, "k8s.cluster.name=c1,tenant=acme")]
    #[case(FORWARDED, "for=unknown;host=h")]
    #[case(TRACEPARENT, PARENT)]
    #[case(X_FORWARDED_NETWORK, "n")]
    #[case(X_HBONE_BACKEND, "b1")]
    #[case(X_HBONE_BACKENDS, "b1,b2")]
    fn a_typed_header_can_be_given_ready_made(#[case] name: HeaderName, #[case] value: &'static str) {
        let given = HeaderValue::from_static(value);
        let unreadable = HeaderValue::from_static("; ,");
        for earlier in [None, Some(&given), Some(&unreadable)] {
            let metadata = earlier.map_or(Ok(Metadata::default()), |earlier| {
                Metadata::default().with_header(name.clone(), earlier.clone())
            });
            let metadata = metadata.unwrap().with_header(name.clone(), given.clone()).unwrap();
            assert_eq!(written(&metadata), headers(&[(name.as_str(), value)]));
            assert!(metadata.other().is_empty(), "it can be read");
        }
        let metadata = Metadata::default().with_header(name.clone(), given).unwrap();
        let metadata = metadata.with_header(name.clone(), unreadable).unwrap();
        assert_eq!(written(&metadata), headers(&[(name.as_str(), "; ,")]));
    }

    #[test]
    fn setting_a_header_anew_forgets_what_came_with_it() {
        let read = Metadata::from_headers(&headers(&[("forwarded", "host=h;proto=http"), ("traceparent", PARENT)]));
        let forwarded = Forwarded::default().with_host("i").unwrap();
        assert_eq!(
            written(&read.with_forwarded(forwarded)),
            headers(&[("forwarded", "host=i"), ("traceparent", PARENT)])
        );
    }

    #[test]
    fn known_backends_are_merged_and_the_first_128_are_sent() {
        let read = headers(&[("x-hbone-backends", "a, no token"), ("x-hbone-backends", "b")]);
        let tokens =
            |metadata: &Metadata| metadata.known_backends().iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(tokens(&Metadata::from_headers(&read)), ["a", "b"]);

        let many = Metadata::default().with_known_backends((0..200).map(|n| n.to_string().parse().unwrap()));
        assert_eq!(tokens(&many), (0..128).map(|n| n.to_string()).collect::<Vec<_>>());
        assert_eq!(Metadata::from_headers(&written(&many)), many);
        assert_eq!(many.with_known_backends([]), Metadata::default());
    }

    #[rstest]
    #[case("")]
    #[case("two words")]
    #[case("line\nbreak")]
    #[case("netz-ü")]
    #[case(&"n".repeat(256))]
    fn a_network_that_can_not_be_sent_is_refused(#[case] network: &str) {
        assert!(Metadata::default().with_forwarded_network(network).is_err());
    }

    #[test]
    fn writing_replaces_the_same_names_only() {
        let mut map = headers(&[("x-a", "old"), ("x-a", "older"), ("baggage", "old=1"), ("x-b", "stays")]);
        let metadata = Metadata::default()
            .with_baggage(Baggage::default().with_region("r"))
            .with_header("x-a".parse().unwrap(), HeaderValue::from_static("new"))
            .unwrap();
        metadata.write_to(&mut map);
        assert_eq!(map, headers(&[("x-a", "new"), ("baggage", "cloud.region=r"), ("x-b", "stays")]));
    }

    #[test]
    fn more_headers_than_a_map_holds_are_an_error() {
        let mut metadata = Metadata::default();
        let result = (0..40_000).try_for_each(|n| {
            let name = HeaderName::try_from(format!("x-{n}")).unwrap();
            metadata = std::mem::take(&mut metadata).with_header(name, HeaderValue::from_static(""))?;
            Ok::<_, Error>(())
        });
        assert!(result.is_err());
    }

    proptest! {
        #[test]
        fn any_headers_are_read_and_what_is_written_is_read_back(
            lines in proptest::collection::vec(
                ("baggage|forwarded|traceparent|x-forwarded-network|x-hbone-backends?|host|x-[a-c]", "[ -~]{0,30}|[a-c, ]{0,9}|k8s[.]pod[.]name=[a-z]{0,3}|host=[a-z]"),
                0..8,
            ),
        ) {
            let lines: Vec<_> = lines.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
            let metadata = Metadata::from_headers(&headers(&lines));
            prop_assert_eq!(Metadata::from_headers(&written(&metadata)), metadata);
        }
    }
}
