//! The `forwarded` header.

use std::fmt::Write;
use std::net::SocketAddr;

use http::HeaderValue;

use super::quoted;
use crate::authority::Authority;
use crate::error::{Error, Result};

/// A host name with its dot, a colon and five digits.
const MAX_HOST: usize = 260;

/// Who opened the connection that is being tunnelled, and which host it asked for: the `forwarded` header (RFC 7239).
///
/// It is the peer's word, for logs and metrics; nothing may be decided by it. Of a list, the first element is read,
/// which is the one nearest to the client (RFC 7239, section 4). An address without a port, `unknown` and obfuscated
/// names count as absent, and so do the parameters `by` and `proto`.
///
/// ```
/// use hbone::metadata::Forwarded;
///
/// let forwarded = Forwarded::default().with_for("10.0.0.5:41234".parse()?).with_host("cart.shop.svc.cluster.local")?;
/// assert_eq!(forwarded.host(), Some("cart.shop.svc.cluster.local"));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Forwarded {
    client: Option<SocketAddr>,
    host: Option<String>,
}

impl Forwarded {
    /// Sets the address of the client. An IPv6 flow label or scope is not kept: it means nothing to another machine.
    pub fn with_for(mut self, client: SocketAddr) -> Self {
        self.client = Some(SocketAddr::new(client.ip(), client.port()));
        self
    }

    /// Sets the host that the client asked for, with or without a port.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidInput`](crate::ErrorKind::InvalidInput) when it is empty, longer than a host name with its
    /// port or not visible ASCII.
    pub fn with_host(mut self, host: impl Into<String>) -> Result<Self> {
        let host = host.into();
        if !valid_host(&host) {
            return Err(Error::invalid("setting the forwarded host").with_source("not a host"));
        }
        self.host = Some(host);
        Ok(self)
    }

    /// The address of the client.
    pub fn for_addr(&self) -> Option<SocketAddr> {
        self.client
    }

    /// The host that the client asked for.
    pub fn host(&self) -> Option<&str> {
        self.host.as_deref()
    }

    /// Whether there is nothing in it; such a header is not sent.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// `None` when nothing in it is known here.
    pub(super) fn read(line: &HeaderValue) -> Option<Self> {
        let element = quoted::split(line.to_str().ok()?, ',').map(str::trim).find(|e| !e.is_empty())?;
        let mut forwarded = Self::default();
        for parameter in quoted::split(element, ';') {
            let Some((name, value)) = parameter.split_once('=') else { continue };
            let (name, value) = (name.trim(), value.trim());
            let value = if value.starts_with('"') { quoted::unquote(value) } else { Some(value.to_owned()) };
            let Some(value) = value else { continue };
            if name.eq_ignore_ascii_case("for") && forwarded.client.is_none() {
                forwarded.client = read_client(&value);
            } else if name.eq_ignore_ascii_case("host") && forwarded.host.is_none() {
                forwarded.host = Some(value).filter(|v| valid_host(v));
            }
        }
        Some(forwarded).filter(|f| !f.is_empty())
    }

    /// `None` when there is nothing to send.
    pub(super) fn write(&self) -> Option<HeaderValue> {
        let mut line = String::with_capacity(96);
        if let Some(client) = self.client {
            // Writing to a `String` does not fail.
            let _ = write!(line, "for=\"{}\"", Authority::Ip(client));
        }
        if let Some(host) = &self.host {
            line.push_str(if line.is_empty() { "host=" } else { ";host=" });
            match host.bytes().all(quoted::is_token_byte) {
                true => line.push_str(host),
                false => line.push_str(&quoted::quote(host)),
            }
        }
        if line.is_empty() { None } else { HeaderValue::try_from(line).ok() }
    }
}

fn read_client(text: &str) -> Option<SocketAddr> {
    // `SocketAddr` takes an IPv6 zone, which means nothing on this machine.
    if text.contains('%') { None } else { text.parse().ok() }
}

fn valid_host(host: &str) -> bool {
    (1..=MAX_HOST).contains(&host.len()) && host.bytes().all(|b| b.is_ascii_graphic())
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, SocketAddrV6};

    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    const HOST: &str = "cart.shop.svc.cluster.local";

    fn read(line: &str) -> Option<Forwarded> {
        Forwarded::read(&HeaderValue::from_str(line).unwrap())
    }

    fn forwarded(client: Option<&str>, host: Option<&str>) -> Forwarded {
        Forwarded { client: client.map(|c| c.parse().unwrap()), host: host.map(str::to_owned) }
    }

    #[rstest]
    #[case(Some("10.0.0.5:41234"), None, r#"for="10.0.0.5:41234""#)]
    #[case(Some("10.0.0.5:41234"), Some(HOST), r#"for="10.0.0.5:41234";host=cart.shop.svc.cluster.local"#)]
    #[case(Some("[2001:db8::1]:80"), None, r#"for="[2001:db8::1]:80""#)]
    #[case(None, Some("cart:80"), r#"host="cart:80""#)]
    #[case(None, Some(r#"a"b\c"#), r#"host="a\"b\\c""#)]
    fn each_form_is_written_quoted_as_needed_and_read_back(
        #[case] client: Option<&str>,
        #[case] host: Option<&str>,
        #[case] line: &str,
    ) {
        let forwarded = forwarded(client, host);
        assert_eq!(forwarded.write().unwrap(), line);
        assert_eq!(read(line), Some(forwarded));
    }

    #[rstest]
    #[case("FOR=\"10.0.0.5:1\" ; Host=a", Some("10.0.0.5:1"), Some("a"))]
    #[case("for=10.0.0.5:1;host=a", Some("10.0.0.5:1"), Some("a"))]
    #[case("by=x;;for=\"10.0.0.5:1\";proto=http", Some("10.0.0.5:1"), None)]
    #[case("for=unknown;host=a", None, Some("a"))]
    #[case("for=10.0.0.5;host=a", None, Some("a"))]
    #[case("for=\"_hidden\";host=a", None, Some("a"))]
    #[case("for=\"[fe80::1%3]:80\";host=a", None, Some("a"))]
    #[case("for=\"10.0.0.5:1;host=a", None, None)]
    #[case("host=a;for=\"10.0.0.5:1", None, Some("a"))]
    #[case("host=\"a;b,c\";for=\"10.0.0.5:1\"", Some("10.0.0.5:1"), Some("a;b,c"))]
    #[case("host=a, host=b", None, Some("a"))]
    #[case(" , host=b", None, Some("b"))]
    #[case("host=a;host=b", None, Some("a"))]
    #[case("host=;for", None, None)]
    #[case("host=\"a b\"", None, None)]
    #[case("", None, None)]
    fn reading_takes_what_it_knows(#[case] line: &str, #[case] client: Option<&str>, #[case] host: Option<&str>) {
        let expected = forwarded(client, host);
        assert_eq!(read(line).unwrap_or_default(), expected);
        assert_eq!(read(line).is_none(), expected.is_empty());
    }

    #[rstest]
    #[case("")]
    #[case("a b")]
    #[case("a\nb")]
    #[case("bücher")]
    #[case(&"a".repeat(261))]
    fn a_host_that_can_not_be_sent_is_refused(#[case] host: &str) {
        assert!(Forwarded::default().with_host(host).is_err());
        assert_eq!(read(&format!("host=\"{}\"", host.replace('\n', " "))), None);
    }

    #[test]
    fn an_ipv6_scope_is_not_sent() {
        let scoped = SocketAddrV6::new("fe80::1".parse().unwrap(), 80, 1, 3);
        let forwarded = Forwarded::default().with_for(scoped.into());
        assert_eq!(forwarded.write().unwrap(), r#"for="[fe80::1]:80""#);
        assert_eq!(forwarded, read(r#"for="[fe80::1]:80""#).unwrap());
    }

    #[test]
    fn an_empty_one_is_not_written() {
        assert_eq!(Forwarded::default().write(), None);
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(client: Option<(IpAddr, u16)>, host in proptest::option::of("[!-~]{1,260}")) {
            let forwarded = Forwarded { client: client.map(SocketAddr::from), host };
            let read = forwarded.write().and_then(|line| Forwarded::read(&line)).unwrap_or_default();
            prop_assert_eq!(read, forwarded);
        }

        #[test]
        fn any_bytes_are_read_without_panic(line: Vec<u8>) {
            if let Ok(line) = HeaderValue::from_bytes(&line) {
                let _ = Forwarded::read(&line);
            }
        }
    }
}
