//! Authorization: what must not change a decision, and that doubt denies.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use arbitrary::{Arbitrary, Unstructured};

use crate::identity::SpiffeId;
use crate::policy::{
    Action, Cidr, Clause, Condition, ConnectionInfo, Match, Policy, PolicyName, Rule, Scope, ServiceAccountMatch,
    StringMatch, authorize,
};

/// Texts for patterns, many of which match the peers.
const WORDS: &[&str] = &["a", "b", "ab", "ns/a", "td/ns/a/sa/b", "spiffe://td/ns/a/sa/b", "spiffe://td/", "b/sa/a", ""];

type Input<'a, 'b> = &'b mut Unstructured<'a>;

fn pick<'a, T: Clone>(u: Input<'a, '_>, of: &[T]) -> arbitrary::Result<T> {
    Ok(of[usize::from(u8::arbitrary(u)?) % of.len()].clone())
}

fn condition<'a, T>(
    u: Input<'a, '_>,
    one: impl Fn(Input<'a, '_>) -> arbitrary::Result<T>,
) -> arbitrary::Result<Condition<T>> {
    // Most conditions are empty, or nothing would match.
    let counts = u8::arbitrary(u)?;
    let mut several = |count| (0..count).map(|_| one(u)).collect::<arbitrary::Result<Vec<_>>>();
    Ok(Condition { any_of: several((counts & 3) % 3)?, none_of: several(counts >> 2 & 1)? })
}

fn text(u: Input<'_, '_>) -> arbitrary::Result<StringMatch> {
    let word = pick(u, WORDS)?.into();
    Ok(match u8::arbitrary(u)? % 4 {
        0 => StringMatch::Exact(word),
        1 => StringMatch::Prefix(word),
        2 => StringMatch::Suffix(word),
        _ => StringMatch::Presence,
    })
}

/// Addresses that differ in few bits: IPv4, IPv6 and IPv4-mapped.
fn ip(u: Input<'_, '_>) -> arbitrary::Result<IpAddr> {
    let (kind, last) = (u8::arbitrary(u)? % 4, u8::arbitrary(u)?);
    let v4 = Ipv4Addr::new(10, 0, 0, last);
    Ok(match kind {
        0 | 1 => v4.into(),
        2 => v4.to_ipv6_mapped().into(),
        _ => Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, last.into()).into(),
    })
}

fn range(u: Input<'_, '_>) -> arbitrary::Result<Cidr> {
    let (address, len) = (ip(u)?, u8::arbitrary(u)?);
    let longest = if address.is_ipv4() { 32 } else { 128 };
    assert!(Cidr::new(address, longest + 1).is_err());
    Ok(Cidr::new(address, len % (longest + 1)).expect("a length that is not too long"))
}

fn one_match(u: Input<'_, '_>) -> arbitrary::Result<Match> {
    let account = |u: Input<'_, '_>| {
        Ok(ServiceAccountMatch { namespace: pick(u, WORDS)?.into(), service_account: pick(u, WORDS)?.into() })
    };
    Ok(Match {
        namespaces: condition(u, text)?,
        principals: condition(u, text)?,
        service_accounts: condition(u, account)?,
        source_ips: condition(u, range)?,
        destination_ips: condition(u, range)?,
        destination_ports: condition(u, |u| pick(u, &[80, 443]))?,
    })
}

fn policy(u: Input<'_, '_>, n: usize) -> arbitrary::Result<Policy> {
    let kind = u8::arbitrary(u)?;
    let name = PolicyName::new("ns", format!("p{n}"));
    if kind % 16 == 15 {
        return Ok(Policy::missing(name));
    }
    let action = if kind & 1 == 0 { Action::Allow } else { Action::Deny };
    let mut policy = Policy::new(name, Scope::Global, action);
    policy.dry_run = kind % 16 >= 12;
    for _ in 0..kind >> 4 & 3 {
        let mut rule = Rule::default();
        for _ in 0..u8::arbitrary(u)? % 3 {
            let matches = (0..u8::arbitrary(u)? % 3).map(|_| one_match(u)).collect::<arbitrary::Result<_>>()?;
            rule.clauses.push(Clause { matches });
        }
        policy.rules.push(rule);
    }
    Ok(policy)
}

/// The input is a connection and the policies to decide it by.
pub fn policies(data: &[u8]) {
    let _ = decide(&mut Unstructured::new(data));
}

fn decide(u: Input<'_, '_>) -> arbitrary::Result<()> {
    let domain = pick(u, &["td", "other"])?.parse().expect("a trust domain");
    let (namespace, account) = (pick(u, &["a", "b", "ab"])?, pick(u, &["a", "b", "ab"])?);
    let peer = SpiffeId::new(domain, namespace, account).expect("an identity");
    let (source, other_source) = (ip(u)?, ip(u)?);
    let destination = SocketAddr::new(ip(u)?, pick(u, &[80, 443])?);
    let address_range = range(u)?;
    let mut policies = Vec::new();
    while !u.is_empty() && policies.len() < 8 {
        policies.push(policy(u, policies.len())?);
    }

    for address in [source, other_source] {
        assert_eq!(address_range.contains(address), shares_bits(address_range, address), "{address_range}: {address}");
    }
    assert_eq!(address_range.to_string().parse().as_ref(), Ok(&address_range));

    let conn = |source_ip| ConnectionInfo { peer: &peer, source_ip, destination };
    let allowed = |policies: &[Policy], source| authorize(policies, &conn(source)).is_allowed();
    let verdict = authorize(&policies, &conn(Some(source)));
    let is_allowed = verdict.is_allowed();
    let by = verdict.policy().and_then(|name| policies.iter().find(|policy| policy.name == *name));
    assert!(by.is_none_or(|policy| (policy.action == Action::Allow) == is_allowed && !policy.dry_run));

    let mapped = match source {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().into(),
        IpAddr::V6(_) => source.to_canonical(),
    };
    assert_eq!(allowed(&policies, Some(mapped)), is_allowed, "by the way in which an address is written");
    if allowed(&policies, None) {
        assert!(is_allowed && allowed(&policies, Some(other_source)), "an address that is not known lets nobody in");
    }
    let mut changed = policies.clone();
    changed.reverse();
    assert_eq!(allowed(&changed, Some(source)), is_allowed, "in any order");
    changed.retain(|policy| !policy.dry_run);
    assert_eq!(allowed(&changed, Some(source)), is_allowed, "without what is only reported");
    changed.push(Policy::new(PolicyName::new("ns", "empty"), Scope::Global, Action::Deny));
    assert_eq!(allowed(&changed, Some(source)), is_allowed, "a DENY without rules does nothing");
    changed.push(Policy::missing(PolicyName::new("ns", "missing")));
    assert!(!allowed(&changed, Some(source)), "a policy that is not there denies");
    changed.retain(|policy| policy.action == Action::Allow);
    assert!(allowed(&changed, Some(source)) || !is_allowed, "a DENY lets nobody in");
    Ok(())
}

/// The reference for ranges: all addresses as 128 bits, with IPv4 mapped; no range holds both families.
fn shares_bits(range: Cidr, address: IpAddr) -> bool {
    let text = range.to_string();
    let (base, len) = text.split_once('/').expect("an address and a length");
    let (base, len): (IpAddr, u32) = (base.parse().expect("an address"), len.parse().expect("a length"));
    let (base, len) = match base {
        IpAddr::V4(v4) => (v4.to_ipv6_mapped(), len + 96),
        IpAddr::V6(v6) => (v6, len),
    };
    let mapped = |v6: Ipv6Addr| v6.to_ipv4_mapped().is_some();
    let address = match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    };
    let shared = (base.to_bits() ^ address.to_bits()).leading_zeros() >= len;
    shared && mapped(address) == (mapped(base) && len >= 96)
}
