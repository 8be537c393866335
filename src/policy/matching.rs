//! Rules, and how they match.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;

use super::ConnectionInfo;
use crate::identity::SpiffeId;

/// Matches if all of its clauses do; without clauses it matches everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Rule {
    /// The clauses, usually one each for from, to and when.
    pub clauses: Vec<Clause>,
}

/// Matches if any of its matches does; without matches it matches everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Clause {
    /// The alternatives.
    pub matches: Vec<Match>,
}

/// Matches if all of its conditions are met; without conditions it never matches.
///
/// ```
/// use hbone::policy::{Clause, Condition, Match, Rule, StringMatch};
///
/// let mut from_shop = Match::default();
/// from_shop.namespaces = Condition { any_of: vec![StringMatch::Exact("shop".into())], ..Condition::default() };
/// let rule = Rule::new([Clause::new([from_shop])]);
/// # assert_eq!(rule.clauses.len(), 1);
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Match {
    /// The peer's namespace.
    pub namespaces: Condition<StringMatch>,
    /// The peer's SPIFFE ID, without `spiffe://`.
    pub principals: Condition<StringMatch>,
    /// The peer's namespace and service account, in any trust domain.
    pub service_accounts: Condition<ServiceAccountMatch>,
    /// Where the connection comes from.
    pub source_ips: Condition<Cidr>,
    /// The address behind the tunnel.
    pub destination_ips: Condition<Cidr>,
    /// The port behind the tunnel: the workload's, not the service's and not the HBONE port.
    pub destination_ports: Condition<u16>,
}

/// Met if the value matches any of `any_of`, or that is empty, and none of `none_of`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition<T> {
    /// The patterns of which one has to match. Empty: any value will do.
    pub any_of: Vec<T>,
    /// The patterns of which none may match.
    pub none_of: Vec<T>,
}

/// A pattern for a text.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum StringMatch {
    /// Is this.
    Exact(Arc<str>),
    /// Starts with this.
    Prefix(Arc<str>),
    /// Ends with this.
    Suffix(Arc<str>),
    /// Is not empty.
    Presence,
}

/// A service account in any trust domain.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct ServiceAccountMatch {
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its name.
    pub service_account: Arc<str>,
}

/// A range of addresses (RFC 4632, section 3.1): those that share the first `prefix_len` bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Cidr {
    address: IpAddr,
    prefix_len: u8,
}

/// The text is not a [`Cidr`]: neither `IP` nor `IP/length`, or the length is over 32 or 128.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct CidrError;

impl Rule {
    /// A rule with these clauses.
    pub fn new(clauses: impl IntoIterator<Item = Clause>) -> Self {
        Self { clauses: clauses.into_iter().collect() }
    }

    pub(super) fn matches(&self, conn: &ConnectionInfo<'_>, unknown: bool) -> bool {
        self.clauses.iter().all(|clause| clause.matches(conn, unknown))
    }
}

impl Clause {
    /// A clause with these alternatives.
    pub fn new(matches: impl IntoIterator<Item = Match>) -> Self {
        Self { matches: matches.into_iter().collect() }
    }

    fn matches(&self, conn: &ConnectionInfo<'_>, unknown: bool) -> bool {
        self.matches.is_empty() || self.matches.iter().any(|m| m.matches(conn, unknown))
    }
}

impl Match {
    fn is_empty(&self) -> bool {
        self.namespaces.is_empty()
            && self.principals.is_empty()
            && self.service_accounts.is_empty()
            && self.source_ips.is_empty()
            && self.destination_ips.is_empty()
            && self.destination_ports.is_empty()
    }

    fn matches(&self, conn: &ConnectionInfo<'_>, unknown: bool) -> bool {
        let source_ip = || match conn.source_ip {
            Some(ip) => self.source_ips.holds(|range| range.contains(ip)),
            None => self.source_ips.is_empty() || unknown,
        };
        !self.is_empty()
            && self.namespaces.holds(|m| m.matches(conn.peer.namespace()))
            && self.principals.holds(|m| m.matches_principal(conn.peer))
            && self.service_accounts.holds(|m| m.matches(conn.peer))
            && self.destination_ips.holds(|range| range.contains(conn.destination.ip()))
            && self.destination_ports.holds(|port| *port == conn.destination.port())
            && source_ip()
    }
}

impl<T> Condition<T> {
    /// Whether any value meets it.
    pub fn is_empty(&self) -> bool {
        self.any_of.is_empty() && self.none_of.is_empty()
    }

    fn holds(&self, is: impl Fn(&T) -> bool) -> bool {
        (self.any_of.is_empty() || self.any_of.iter().any(&is)) && !self.none_of.iter().any(&is)
    }
}

impl<T> Default for Condition<T> {
    fn default() -> Self {
        Self { any_of: Vec::new(), none_of: Vec::new() }
    }
}

impl StringMatch {
    /// Whether the text matches.
    pub fn matches(&self, text: &str) -> bool {
        match self {
            Self::Exact(exact) => text == &**exact,
            Self::Prefix(prefix) => text.starts_with(&**prefix),
            Self::Suffix(suffix) => text.ends_with(&**suffix),
            Self::Presence => !text.is_empty(),
        }
    }

    /// Whether the identity matches. Patterns are written without `spiffe://`; with it they mean the same.
    pub fn matches_principal(&self, id: &SpiffeId) -> bool {
        let text = id.to_string();
        let bare = text.strip_prefix("spiffe://").unwrap_or(&text);
        self.matches(bare) || (matches!(self, Self::Exact(_) | Self::Prefix(_)) && self.matches(&text))
    }
}

impl ServiceAccountMatch {
    /// The service account `namespace`/`service_account`.
    pub fn new(namespace: impl Into<Arc<str>>, service_account: impl Into<Arc<str>>) -> Self {
        Self { namespace: namespace.into(), service_account: service_account.into() }
    }

    /// Whether the identity is this service account's, in any trust domain.
    pub fn matches(&self, id: &SpiffeId) -> bool {
        *self.namespace == *id.namespace() && *self.service_account == *id.service_account()
    }
}

impl Cidr {
    /// A range. One of IPv4 addresses in their IPv6 form (`::ffff:10.0.0.0/104`) is the range of IPv4 addresses.
    ///
    /// # Errors
    ///
    /// When `prefix_len` is over 32 (IPv4) or 128 (IPv6).
    pub fn new(address: IpAddr, prefix_len: u8) -> Result<Self, CidrError> {
        let max = if address.is_ipv4() { 32 } else { 128 };
        if prefix_len > max {
            return Err(CidrError);
        }
        Ok(match (address.to_canonical(), prefix_len.checked_sub(128 - 32)) {
            (v4 @ IpAddr::V4(_), Some(prefix_len)) if address.is_ipv6() => Self { address: v4, prefix_len },
            _ => Self { address, prefix_len },
        })
    }

    /// Whether the address is in the range. An IPv4 address that arrived on an IPv6 socket (`::ffff:1.2.3.4`) counts as
    /// the IPv4 address that it is.
    pub fn contains(&self, ip: IpAddr) -> bool {
        match (self.address, ip.to_canonical()) {
            (IpAddr::V4(range), IpAddr::V4(ip)) => {
                let differ = u64::from(range.to_bits() ^ ip.to_bits());
                differ >> (32 - u32::from(self.prefix_len)) == 0
            }
            (IpAddr::V6(range), IpAddr::V6(ip)) => {
                let differ = range.to_bits() ^ ip.to_bits();
                differ.checked_shr(128 - u32::from(self.prefix_len)).unwrap_or(0) == 0
            }
            _ => false,
        }
    }
}

impl From<IpAddr> for Cidr {
    fn from(address: IpAddr) -> Self {
        let address = address.to_canonical();
        Self { address, prefix_len: if address.is_ipv4() { 32 } else { 128 } }
    }
}

impl FromStr for Cidr {
    type Err = CidrError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let Some((address, len)) = text.split_once('/') else {
            return text.parse::<IpAddr>().map(Self::from).map_err(|_| CidrError);
        };
        // `u8::from_str` would take a leading plus.
        if !len.bytes().all(|b| b.is_ascii_digit()) {
            return Err(CidrError);
        }
        Self::new(address.parse().map_err(|_| CidrError)?, len.parse().map_err(|_| CidrError)?)
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix_len)
    }
}

impl fmt::Display for CidrError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not an IP address with an optional prefix length, such as 10.0.0.0/8")
    }
}

impl std::error::Error for CidrError {}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    fn exact(text: &str) -> StringMatch {
        StringMatch::Exact(text.into())
    }

    fn matches(m: &Match, source_ip: Option<&str>, unknown: bool) -> bool {
        let peer = "spiffe://td/ns/web/sa/front".parse().unwrap();
        let destination = "10.0.0.1:80".parse().unwrap();
        m.matches(
            &ConnectionInfo { peer: &peer, source_ip: source_ip.map(|ip| ip.parse().unwrap()), destination },
            unknown,
        )
    }

    fn any_of<T>(value: T) -> Condition<T> {
        Condition { any_of: vec![value], none_of: vec![] }
    }

    fn swap<T>(condition: Condition<T>) -> Condition<T> {
        Condition { any_of: condition.none_of, none_of: condition.any_of }
    }

    fn principal(pattern: StringMatch) -> Match {
        Match { principals: any_of(pattern), ..Match::default() }
    }

    fn namespace(name: &str) -> Match {
        Match { namespaces: any_of(exact(name)), ..Match::default() }
    }

    fn source(range: &str) -> Match {
        Match { source_ips: any_of(range.parse().unwrap()), ..Match::default() }
    }

    fn destination(range: &str) -> Match {
        Match { destination_ips: any_of(range.parse().unwrap()), ..Match::default() }
    }

    fn port(port: u16) -> Match {
        Match { destination_ports: any_of(port), ..Match::default() }
    }

    fn account(namespace: &str, service_account: &str) -> Match {
        let account = ServiceAccountMatch { namespace: namespace.into(), service_account: service_account.into() };
        Match { service_accounts: any_of(account), ..Match::default() }
    }

    #[rstest]
    #[case(namespace("web"), true)]
    #[case(namespace("we"), false)]
    #[case(principal(exact("td/ns/web/sa/front")), true)]
    #[case(principal(exact("spiffe://td/ns/web/sa/front")), true)]
    #[case(principal(StringMatch::Prefix("td/".into())), true)]
    #[case(principal(StringMatch::Prefix("spiffe://td/".into())), true)]
    #[case(principal(StringMatch::Prefix("other/".into())), false)]
    #[case(principal(StringMatch::Suffix("/sa/front".into())), true)]
    #[case(principal(StringMatch::Presence), true)]
    #[case(account("web", "front"), true)]
    #[case(account("web", "back"), false)]
    #[case(account("shop", "front"), false)]
    #[case(source("10.9.0.0/16"), true)]
    #[case(source("10.8.0.0/16"), false)]
    #[case(destination("10.0.0.1"), true)]
    #[case(destination("10.0.0.2"), false)]
    #[case(port(80), true)]
    #[case(port(15008), false)]
    fn a_negative_condition_is_the_opposite_of_the_positive(#[case] positive: Match, #[case] expected: bool) {
        assert_eq!(matches(&positive, Some("10.9.1.1"), false), expected);
        let negative = Match {
            namespaces: swap(positive.namespaces),
            principals: swap(positive.principals),
            service_accounts: swap(positive.service_accounts),
            source_ips: swap(positive.source_ips),
            destination_ips: swap(positive.destination_ips),
            destination_ports: swap(positive.destination_ports),
        };
        assert_eq!(matches(&negative, Some("10.9.1.1"), false), !expected);
    }

    #[test]
    fn an_unknown_source_address_counts_as_the_caller_says() {
        let positive = source("10.0.0.0/8");
        let negative = Match { source_ips: swap(positive.source_ips.clone()), ..Match::default() };
        for unknown in [true, false] {
            assert_eq!(matches(&positive, None, unknown), unknown);
            assert_eq!(matches(&negative, None, unknown), unknown);
        }
    }

    #[test]
    fn all_conditions_of_a_match_have_to_hold() {
        let web_at = |number| Match { destination_ports: any_of(number), ..namespace("web") };
        assert!(matches(&web_at(80), None, false));
        assert!(!matches(&web_at(81), None, false));
        let contradiction = Condition { any_of: vec![exact("web")], none_of: vec![exact("web")] };
        assert!(!matches(&Match { namespaces: contradiction, ..Match::default() }, None, false));
    }

    #[test]
    fn emptiness_matches_everything_but_in_a_match() {
        let peer = "spiffe://td/ns/web/sa/front".parse().unwrap();
        let conn = ConnectionInfo { peer: &peer, source_ip: None, destination: "10.0.0.1:80".parse().unwrap() };
        let with = |clauses| Rule { clauses }.matches(&conn, false);
        let (web, shop) = (namespace("web"), namespace("shop"));
        assert!(with(vec![]));
        assert!(with(vec![Clause::default()]));
        assert!(!with(vec![Clause { matches: vec![Match::default()] }]));
        assert!(with(vec![Clause { matches: vec![Match::default(), shop.clone(), web.clone()] }]));
        assert!(!with(vec![Clause { matches: vec![web] }, Clause { matches: vec![shop] }]));
    }

    #[rstest]
    #[case("10.0.0.0/8", "10.255.0.1", true)]
    #[case("10.0.0.0/8", "11.0.0.0", false)]
    #[case("10.0.0.0/8", "::ffff:10.0.0.1", true)]
    #[case("::ffff:10.0.0.0/104", "10.255.0.1", true)]
    #[case("::ffff:10.0.0.0/104", "11.0.0.0", false)]
    #[case("::ffff:10.0.0.1", "10.0.0.1", true)]
    #[case("::ffff:10.0.0.0/95", "10.0.0.0", false)]
    #[case("10.0.0.1", "10.0.0.1", true)]
    #[case("10.0.0.1", "10.0.0.0", false)]
    #[case("0.0.0.0/0", "1.2.3.4", true)]
    #[case("0.0.0.0/0", "::1", false)]
    #[case("::/0", "2001:db8::1", true)]
    #[case("2001:db8::/32", "2001:db8:ffff::1", true)]
    #[case("2001:db8::/32", "2001:db9::", false)]
    #[case("2001:db8::1", "2001:db8::2", false)]
    fn ranges_compare_as_many_bits_as_they_say(#[case] range: Cidr, #[case] ip: IpAddr, #[case] expected: bool) {
        assert_eq!(range.contains(ip), expected);
    }

    #[rstest]
    #[case("10.0.0.0/33")]
    #[case("::/129")]
    #[case("10.0.0.0/")]
    #[case("10.0.0.0/+8")]
    #[case("10.0.0/8")]
    #[case("")]
    fn invalid_ranges_are_refused(#[case] text: &str) {
        assert_eq!(text.parse::<Cidr>(), Err(CidrError));
    }

    proptest! {
        #[test]
        fn a_range_contains_what_shares_its_first_bits(a: u32, b: u32, len in 0u8..=32) {
            let range = Cidr::new(IpAddr::V4(a.into()), len).unwrap();
            let shared = (a ^ b).leading_zeros() >= u32::from(len);
            prop_assert_eq!(range.contains(IpAddr::V4(b.into())), shared);
            prop_assert_eq!(range.to_string().parse(), Ok(range));
        }
    }
}
