//! The target of a CONNECT.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV4};
use std::str::FromStr;
use std::sync::Arc;

/// The longest DNS name in its text form (RFC 1035, section 2.3.4).
const MAX_NAME: usize = 253;
const MAX_LABEL: usize = 63;

/// Where a tunnel leads: the `:authority` of a CONNECT (RFC 9113, section 8.5).
///
/// Parsed from `IP:port`, `[IPv6]:port` or `host:port`. The port is always there and never 0. Names are kept in lower
/// case and without a trailing dot, so that two spellings of one name are equal.
///
/// ```
/// use hbone::Authority;
///
/// let authority: Authority = "Cart.Shop.svc.cluster.local.:80".parse()?;
/// assert_eq!(authority.to_string(), "cart.shop.svc.cluster.local:80");
/// assert!("cart.shop.svc.cluster.local".parse::<Authority>().is_err(), "no port");
/// assert!("[fe80::1%eth0]:80".parse::<Authority>().is_err(), "zones mean nothing to a peer");
/// # Ok::<(), hbone::AuthorityError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Authority {
    /// An address. Its port is not 0 when parsed; an IPv6 flow label or scope is not sent.
    Ip(SocketAddr),
    /// A host name.
    Name(HostPort),
}

/// A validated host name with its port, the second form of an [`Authority`].
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HostPort {
    host: Arc<str>,
    port: u16,
}

/// Why a text is not an [`Authority`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum AuthorityError {
    /// Nothing there.
    Empty,
    /// Longer than any valid name.
    TooLong,
    /// A `user@` part, which a CONNECT must not have.
    UserInfo,
    /// No `:port`.
    NoPort,
    /// The port is not a number from 1 to 65535.
    BadPort,
    /// An IPv6 zone, which means nothing to another machine.
    Zone,
    /// The text in brackets is not an IPv6 address.
    BadIpv6,
    /// An IPv6 address must stand in brackets.
    UnbracketedIpv6,
    /// Digits and dots that are not an IPv4 address.
    BadIpv4,
    /// Not a valid DNS name.
    BadName,
}

impl Authority {
    /// Builds the name form.
    ///
    /// # Errors
    ///
    /// When `host` is not a DNS name or `port` is 0. An IP address is not a name: use [`Authority::from`] a
    /// [`SocketAddr`].
    pub fn name(host: &str, port: u16) -> Result<Self, AuthorityError> {
        if port == 0 {
            return Err(AuthorityError::BadPort);
        }
        Ok(Self::Name(HostPort { host: parse_name(host)?, port }))
    }

    /// The port.
    pub fn port(&self) -> u16 {
        match self {
            Self::Ip(addr) => addr.port(),
            Self::Name(name) => name.port,
        }
    }
}

impl HostPort {
    /// The name, in lower case and without a trailing dot.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.port
    }
}

impl From<SocketAddr> for Authority {
    fn from(addr: SocketAddr) -> Self {
        Self::Ip(addr)
    }
}

impl FromStr for Authority {
    type Err = AuthorityError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.is_empty() {
            return Err(AuthorityError::Empty);
        }
        // A name, its dot, a colon and five digits. Checked first, so that a hostile megabyte is not looked at.
        if text.len() > MAX_NAME + 7 {
            return Err(AuthorityError::TooLong);
        }
        if text.contains('@') {
            return Err(AuthorityError::UserInfo);
        }
        if let Some(rest) = text.strip_prefix('[') {
            let (ip, after) = rest.split_once(']').ok_or(AuthorityError::BadIpv6)?;
            if ip.contains('%') {
                return Err(AuthorityError::Zone);
            }
            let ip: Ipv6Addr = ip.parse().map_err(|_| AuthorityError::BadIpv6)?;
            let port = parse_port(after.strip_prefix(':').ok_or(AuthorityError::NoPort)?)?;
            return Ok(Self::Ip(SocketAddr::new(IpAddr::V6(ip), port)));
        }
        let (host, port) = text.rsplit_once(':').ok_or(AuthorityError::NoPort)?;
        if host.contains(':') {
            return Err(if host.contains('%') { AuthorityError::Zone } else { AuthorityError::UnbracketedIpv6 });
        }
        let port = parse_port(port)?;
        if looks_like_ipv4(host) {
            let ip = host.parse().map_err(|_| AuthorityError::BadIpv4)?;
            return Ok(Self::Ip(SocketAddr::new(IpAddr::V4(ip), port)));
        }
        Ok(Self::Name(HostPort { host: parse_name(host)?, port }))
    }
}

impl fmt::Display for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            // A scope id is local to this machine, so it is not written, unlike in `SocketAddrV6`.
            Self::Ip(SocketAddr::V6(v6)) => write!(f, "[{}]:{}", v6.ip(), v6.port()),
            Self::Ip(SocketAddr::V4(v4)) => V4Text::new(*v4).fmt(f),
            Self::Name(name) => name.fmt(f),
        }
    }
}

/// An IPv4 address and port as text. The standard library's formatting takes ten times as long, which is 5 % of what a
/// new tunnel costs.
struct V4Text {
    bytes: [u8; "255.255.255.255:65535".len()],
    len: usize,
}

impl V4Text {
    fn new(address: SocketAddrV4) -> Self {
        let mut text = Self { bytes: [0; _], len: 0 };
        for (octet, after) in address.ip().octets().into_iter().zip(*b"...:") {
            text.number(octet.into());
            text.push(after);
        }
        text.number(address.port());
        text
    }

    fn number(&mut self, number: u16) {
        if number >= 10 {
            self.number(number / 10);
        }
        self.push(b'0' + (number % 10) as u8);
    }

    fn push(&mut self, byte: u8) {
        self.bytes[self.len] = byte;
        self.len += 1;
    }
}

impl fmt::Display for V4Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(str::from_utf8(&self.bytes[..self.len]).map_err(|_| fmt::Error)?)
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

impl fmt::Display for AuthorityError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Empty => "the authority is empty",
            Self::TooLong => "the authority is longer than any host name",
            Self::UserInfo => "the authority has a user part, which CONNECT does not allow",
            Self::NoPort => "the authority has no port",
            Self::BadPort => "the authority's port is not a number from 1 to 65535",
            Self::Zone => "the authority has an IPv6 zone, which means nothing to another machine",
            Self::BadIpv6 => "the authority's brackets hold no IPv6 address",
            Self::UnbracketedIpv6 => "the authority's IPv6 address is not in brackets",
            Self::BadIpv4 => "the authority's IPv4 address is not valid",
            Self::BadName => "the authority's host is not a valid DNS name",
        })
    }
}

impl std::error::Error for AuthorityError {}

fn parse_port(text: &str) -> Result<u16, AuthorityError> {
    // `u16::from_str` would take a leading plus.
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
        return Err(AuthorityError::BadPort);
    }
    match text.parse() {
        Ok(port) if port != 0 => Ok(port),
        _ => Err(AuthorityError::BadPort),
    }
}

/// A host whose last label is a number must be an IPv4 address: resolvers differ on what else it could mean.
fn looks_like_ipv4(host: &str) -> bool {
    let last = host.strip_suffix('.').unwrap_or(host).rsplit('.').next().unwrap_or_default();
    !last.is_empty() && last.bytes().all(|b| b.is_ascii_digit())
}

fn parse_name(host: &str) -> Result<Arc<str>, AuthorityError> {
    let host = host.strip_suffix('.').unwrap_or(host);
    if host.len() > MAX_NAME {
        return Err(AuthorityError::TooLong);
    }
    let valid_label = |label: &str| {
        // Underscores stand in service names that are in use, though not in host names (RFC 1123).
        (1..=MAX_LABEL).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    if !host.split('.').all(valid_label) || looks_like_ipv4(host) {
        return Err(AuthorityError::BadName);
    }
    Ok(host.to_ascii_lowercase().into())
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("10.0.0.1:80", "10.0.0.1:80")]
    #[case("[2001:db8::1]:8080", "[2001:db8::1]:8080")]
    #[case("[2001:DB8:0::1]:8080", "[2001:db8::1]:8080")]
    #[case("cart.shop.svc.cluster.local:80", "cart.shop.svc.cluster.local:80")]
    #[case("CART.shop.:65535", "cart.shop:65535")]
    #[case("_tcp.a-b:1", "_tcp.a-b:1")]
    fn valid_forms_are_normalised(#[case] text: &str, #[case] normal: &str) {
        let authority: Authority = text.parse().unwrap();
        assert_eq!(authority.to_string(), normal);
        assert_eq!(normal.parse::<Authority>().unwrap(), authority);
    }

    #[rstest]
    #[case("", AuthorityError::Empty)]
    #[case("host", AuthorityError::NoPort)]
    #[case("10.0.0.1", AuthorityError::NoPort)]
    #[case("[::1]", AuthorityError::NoPort)]
    #[case("[::1]x:80", AuthorityError::NoPort)]
    #[case("host:", AuthorityError::BadPort)]
    #[case("host:0", AuthorityError::BadPort)]
    #[case("host:65536", AuthorityError::BadPort)]
    #[case("host:+80", AuthorityError::BadPort)]
    #[case("host:80 ", AuthorityError::BadPort)]
    #[case("user@host:80", AuthorityError::UserInfo)]
    #[case("user:pass@host:80", AuthorityError::UserInfo)]
    #[case("[fe80::1%eth0]:80", AuthorityError::Zone)]
    #[case("[fe80::1%25eth0]:80", AuthorityError::Zone)]
    #[case("fe80::1%eth0:80", AuthorityError::Zone)]
    #[case("::1:80", AuthorityError::UnbracketedIpv6)]
    #[case("[::1:80", AuthorityError::BadIpv6)]
    #[case("[1.2.3.4]:80", AuthorityError::BadIpv6)]
    #[case("1.2.3.999:80", AuthorityError::BadIpv4)]
    #[case("1.2.3:80", AuthorityError::BadIpv4)]
    #[case("host.1:80", AuthorityError::BadIpv4)]
    #[case(":80", AuthorityError::BadName)]
    #[case(".:80", AuthorityError::BadName)]
    #[case("a..b:80", AuthorityError::BadName)]
    #[case("-a:80", AuthorityError::BadName)]
    #[case("a b:80", AuthorityError::BadName)]
    #[case("a/b:80", AuthorityError::BadName)]
    #[case("bücher:80", AuthorityError::BadName)]
    fn invalid_forms_say_why(#[case] text: &str, #[case] error: AuthorityError) {
        assert_eq!(text.parse::<Authority>(), Err(error));
    }

    #[test]
    fn a_megabyte_is_refused_for_its_length() {
        assert_eq!(format!("{}:80", "a".repeat(1 << 20)).parse::<Authority>(), Err(AuthorityError::TooLong));
        assert_eq!(format!("{}:80", "a".repeat(64)).parse::<Authority>(), Err(AuthorityError::BadName));
    }

    proptest! {
        #[test]
        fn what_parses_prints_and_parses_to_itself(text in "\\PC{0,40}") {
            if let Ok(authority) = text.parse::<Authority>() {
                prop_assert_eq!(authority.to_string().parse::<Authority>(), Ok(authority));
            }
        }

        #[test]
        fn an_ipv4_address_prints_as_the_standard_library_prints_it(ip: u32, port: u16) {
            let address = SocketAddr::from((Ipv4Addr::from(ip), port));
            prop_assert_eq!(Authority::Ip(address).to_string(), address.to_string());
        }
    }
}
