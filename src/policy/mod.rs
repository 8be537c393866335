//! Authorization by identity, address and port, as in ambient meshes (`istio.security.Authorization`, layer 4).
//!
//! [`Snapshot::policies_for`](crate::mesh::Snapshot::policies_for) finds the policies that apply to a workload;
//! [`authorize`] evaluates them. The order is ztunnel's: a DENY policy that matches decides; else, without any ALLOW
//! policy, the connection is allowed; else an ALLOW policy has to match. Where ztunnel would let a connection through
//! for lack of knowledge, this module denies it:
//!
//! - A policy that a workload names and the mesh does not have denies; ztunnel skips it.
//! - A policy that can't be read [denies](Policy::unreadable) whatever it might deny.
//! - A condition on an unknown source address is met in a DENY policy, and not met in an ALLOW policy.

mod matching;

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;
use std::sync::Arc;

pub use self::matching::{Cidr, CidrError, Clause, Condition, Match, Rule, ServiceAccountMatch, StringMatch};
use crate::identity::SpiffeId;

/// The resource name of a policy, `namespace/name`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PolicyName {
    /// The namespace; of a [`Scope::Global`] policy the mesh's root namespace.
    pub namespace: Arc<str>,
    /// The name inside of the namespace.
    pub name: Arc<str>,
}

/// One policy: who may, or may not, connect to what.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Policy {
    /// Its name.
    pub name: PolicyName,
    /// Which workloads it applies to.
    pub scope: Scope,
    /// What happens on a match.
    pub action: Action,
    /// The rules, any of which has to match. Without rules the policy matches no connection, so that an ALLOW denies
    /// all.
    pub rules: Vec<Rule>,
    /// Only report what the policy would match. Default: false.
    pub dry_run: bool,
    stand_in: Option<StandIn>,
}

/// Why a policy is not the real one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum StandIn {
    Missing,
    Unreadable,
}

/// Which workloads a [`Policy`] applies to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Scope {
    /// All of the mesh.
    Global,
    /// All in the policy's namespace.
    Namespace,
    /// Those whose [`authorization_policies`](crate::mesh::Workload::authorization_policies) name it.
    WorkloadSelector,
}

/// What happens when a [`Policy`] matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Action {
    /// The connection is allowed, unless a DENY policy matches too.
    Allow,
    /// The connection is denied.
    Deny,
}

/// A connection to decide on.
///
/// ```
/// use hbone::policy::ConnectionInfo;
///
/// let peer = "spiffe://cluster.local/ns/shop/sa/web".parse()?;
/// let info = ConnectionInfo::new(&peer, "10.0.0.1:8080".parse()?).with_source_ip("10.0.0.2".parse()?);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct ConnectionInfo<'a> {
    /// The identity that the client proved.
    pub peer: &'a SpiffeId,
    /// Where the client's connection comes from; behind a gateway that is the gateway's address. Default: unknown.
    pub source_ip: Option<IpAddr>,
    /// The workload's address and the port behind the tunnel, which is not the HBONE port.
    pub destination: SocketAddr,
}

/// The result of [`authorize`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Verdict {
    /// What was decided, and by which policy.
    pub decision: Decision,
    /// The dry-run policies that match, for a report. They decided nothing.
    pub dry_run: Vec<(PolicyName, Action)>,
}

/// What was decided, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Decision {
    /// Allowed: no ALLOW policy applies and no DENY policy matches.
    AllowedByDefault,
    /// Allowed by this policy.
    AllowedBy(PolicyName),
    /// Denied by this policy.
    DeniedBy(PolicyName),
    /// Denied: the workload names this policy and the mesh does not have it.
    DeniedAsMissing(PolicyName),
    /// Denied: this policy applies and can't be read.
    DeniedAsUnreadable(PolicyName),
    /// Denied: ALLOW policies apply and none matches.
    DeniedByDefault,
}

impl<'a> ConnectionInfo<'a> {
    /// A connection of `peer` to `destination`, from an unknown address.
    pub fn new(peer: &'a SpiffeId, destination: SocketAddr) -> Self {
        Self { peer, source_ip: None, destination }
    }

    /// Sets where the connection comes from.
    pub fn with_source_ip(mut self, source_ip: IpAddr) -> Self {
        self.source_ip = Some(source_ip);
        self
    }
}

impl PolicyName {
    /// Builds a name from its parts.
    pub fn new(namespace: impl Into<Arc<str>>, name: impl Into<Arc<str>>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl Policy {
    /// A policy without rules: an ALLOW denies all connections, a DENY none.
    pub fn new(name: PolicyName, scope: Scope, action: Action) -> Self {
        Self { name, scope, action, rules: Vec::new(), dry_run: false, stand_in: None }
    }

    /// A stand-in for a policy that a workload names and the mesh does not have. It denies all connections.
    pub fn missing(name: PolicyName) -> Self {
        Self { stand_in: Some(StandIn::Missing), ..Self::deny_all(name, Scope::WorkloadSelector) }
    }

    /// A stand-in for a policy that exists and can't be read. It denies whatever the policy might deny: as an ALLOW it
    /// allows nothing; as a DENY, or if the action can't be read either, it denies all connections.
    pub fn unreadable(name: PolicyName, scope: Scope, action: Option<Action>) -> Self {
        let policy = match action {
            Some(Action::Allow) => Self::new(name, scope, Action::Allow),
            Some(Action::Deny) | None => Self::deny_all(name, scope),
        };
        Self { stand_in: Some(StandIn::Unreadable), ..policy }
    }

    fn deny_all(name: PolicyName, scope: Scope) -> Self {
        Self { rules: vec![Rule::default()], ..Self::new(name, scope, Action::Deny) }
    }

    /// Whether this policy is a stand-in from [`Policy::missing`].
    pub fn is_missing(&self) -> bool {
        self.stand_in == Some(StandIn::Missing)
    }

    /// Whether this policy is a stand-in from [`Policy::unreadable`].
    pub fn is_unreadable(&self) -> bool {
        self.stand_in == Some(StandIn::Unreadable)
    }

    /// Whether one of the rules matches. What is unknown counts against the peer.
    pub fn matches(&self, conn: &ConnectionInfo<'_>) -> bool {
        let unknown = self.action == Action::Deny;
        self.rules.iter().any(|rule| rule.matches(conn, unknown))
    }
}

/// Evaluates the policies that apply to a connection's destination.
///
/// The policies may come in any order. Of several that match, the verdict names the first.
pub fn authorize<P>(policies: impl IntoIterator<Item = P>, conn: &ConnectionInfo<'_>) -> Verdict
where
    P: AsRef<Policy>,
{
    let mut dry_run = Vec::new();
    let mut denied = None;
    let mut allowed = None;
    let mut has_allow = false;
    for policy in policies {
        let policy = policy.as_ref();
        let matches = policy.matches(conn);
        if policy.dry_run {
            if matches {
                dry_run.push((policy.name.clone(), policy.action));
            }
            continue;
        }
        has_allow |= policy.action == Action::Allow;
        if !matches {
            continue;
        }
        let name = policy.name.clone();
        match (policy.action, policy.stand_in) {
            (Action::Deny, None) => denied = denied.or(Some(Decision::DeniedBy(name))),
            (Action::Deny, Some(StandIn::Missing)) => denied = denied.or(Some(Decision::DeniedAsMissing(name))),
            (Action::Deny, Some(StandIn::Unreadable)) => denied = denied.or(Some(Decision::DeniedAsUnreadable(name))),
            (Action::Allow, _) => allowed = allowed.or(Some(Decision::AllowedBy(name))),
        }
    }
    let default = if has_allow { Decision::DeniedByDefault } else { Decision::AllowedByDefault };
    Verdict { decision: denied.or(allowed).unwrap_or(default), dry_run }
}

impl AsRef<Policy> for Policy {
    fn as_ref(&self) -> &Policy {
        self
    }
}

impl Verdict {
    /// Whether the connection is allowed.
    pub fn is_allowed(&self) -> bool {
        matches!(self.decision, Decision::AllowedByDefault | Decision::AllowedBy(_))
    }

    /// The policy that decided, where it was one.
    pub fn policy(&self) -> Option<&PolicyName> {
        match &self.decision {
            Decision::AllowedBy(name)
            | Decision::DeniedBy(name)
            | Decision::DeniedAsMissing(name)
            | Decision::DeniedAsUnreadable(name) => Some(name),
            Decision::AllowedByDefault | Decision::DeniedByDefault => None,
        }
    }
}

impl FromStr for PolicyName {
    type Err = PolicyNameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once('/') {
            Some((namespace, name)) if !name.is_empty() && !name.contains('/') => Ok(Self::new(namespace, name)),
            _ => Err(PolicyNameError),
        }
    }
}

/// The text is not a [`PolicyName`], `namespace/name`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct PolicyNameError;

impl fmt::Display for PolicyNameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the policy's name is not of the form namespace/name")
    }
}

impl std::error::Error for PolicyNameError {}

impl fmt::Display for PolicyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.decision.fmt(f)
    }
}

impl fmt::Display for Decision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AllowedByDefault => f.write_str("allowed, as no ALLOW policy applies"),
            Self::AllowedBy(name) => write!(f, "allowed by policy {name}"),
            Self::DeniedBy(name) => write!(f, "denied by policy {name}"),
            Self::DeniedAsMissing(name) => {
                write!(f, "denied, as the workload names policy {name} and the mesh does not have it")
            }
            Self::DeniedAsUnreadable(name) => write!(f, "denied, as policy {name} can't be read"),
            Self::DeniedByDefault => f.write_str("denied, as no ALLOW policy matches"),
        }
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn policy(name: &str, action: Action, rules: Vec<Rule>) -> Policy {
        let mut policy = Policy::new(PolicyName::new("shop", name), Scope::Namespace, action);
        policy.rules = rules;
        policy
    }

    fn always() -> Vec<Rule> {
        vec![Rule::default()]
    }

    fn port(port: u16) -> Vec<Rule> {
        let destination_ports = Condition { any_of: vec![port], none_of: vec![] };
        vec![Rule { clauses: vec![Clause { matches: vec![Match { destination_ports, ..Match::default() }] }] }]
    }

    fn unreadable(action: Option<Action>) -> Policy {
        Policy::unreadable(PolicyName::new("shop", "u"), Scope::Namespace, action)
    }

    fn decide(policies: &[Policy]) -> Verdict {
        let peer = "spiffe://td/ns/web/sa/front".parse().unwrap();
        let destination = "10.0.0.1:80".parse().unwrap();
        authorize(policies, &ConnectionInfo { peer: &peer, source_ip: None, destination })
    }

    #[rstest]
    #[case::nothing_holds(vec![], Decision::AllowedByDefault)]
    #[case::deny_of_others(vec![policy("d", Action::Deny, port(81))], Decision::AllowedByDefault)]
    #[case::deny(vec![policy("d", Action::Deny, port(80))], Decision::DeniedBy(PolicyName::new("shop", "d")))]
    #[case::deny_beats_allow(
        vec![policy("a", Action::Allow, always()), policy("d", Action::Deny, port(80))],
        Decision::DeniedBy(PolicyName::new("shop", "d"))
    )]
    #[case::allow(
        vec![policy("a", Action::Allow, port(81)), policy("b", Action::Allow, port(80))],
        Decision::AllowedBy(PolicyName::new("shop", "b"))
    )]
    #[case::allow_of_others(vec![policy("a", Action::Allow, port(81))], Decision::DeniedByDefault)]
    #[case::allow_nobody(vec![policy("a", Action::Allow, vec![])], Decision::DeniedByDefault)]
    #[case::missing(
        vec![policy("a", Action::Allow, always()), Policy::missing(PolicyName::new("shop", "m"))],
        Decision::DeniedAsMissing(PolicyName::new("shop", "m"))
    )]
    #[case::unreadable_deny(
        vec![policy("a", Action::Allow, always()), unreadable(Some(Action::Deny))],
        Decision::DeniedAsUnreadable(PolicyName::new("shop", "u"))
    )]
    #[case::unreadable_at_all(vec![unreadable(None)], Decision::DeniedAsUnreadable(PolicyName::new("shop", "u")))]
    #[case::unreadable_allow(vec![unreadable(Some(Action::Allow))], Decision::DeniedByDefault)]
    #[case::unreadable_allow_beside_another(
        vec![unreadable(Some(Action::Allow)), policy("a", Action::Allow, always())],
        Decision::AllowedBy(PolicyName::new("shop", "a"))
    )]
    fn the_order_is_deny_then_allow_then_default(#[case] policies: Vec<Policy>, #[case] decision: Decision) {
        let allowed = matches!(decision, Decision::AllowedBy(_) | Decision::AllowedByDefault);
        let verdict = decide(&policies);
        assert_eq!(verdict.is_allowed(), allowed);
        assert_eq!(verdict.decision, decision);
    }

    #[test]
    fn a_dry_run_is_reported_and_decides_nothing() {
        let mut deny = policy("d", Action::Deny, always());
        let mut allow = policy("a", Action::Allow, port(81));
        deny.dry_run = true;
        allow.dry_run = true;
        let verdict = decide(&[deny, allow]);
        assert_eq!(verdict.decision, Decision::AllowedByDefault);
        assert_eq!(verdict.dry_run, [(PolicyName::new("shop", "d"), Action::Deny)]);
    }

    #[test]
    fn a_verdict_names_the_policy() {
        let verdict = decide(&[policy("d", Action::Deny, always())]);
        assert_eq!(verdict.policy().unwrap().to_string(), "shop/d");
        assert_eq!(verdict.to_string(), "denied by policy shop/d");
    }
}
