//! The list `policies`.
//!
//! Rules are written as ztunnel reads them, lists of lists of matches, or with the names of `istio.security`:
//! `{clauses: [{matches: [..]}]}`. A pattern is `{Exact: text}` or `!Exact text`; likewise `Prefix`, `Suffix`; and
//! `Presence`.

use super::node::{At, Fault, Fields, same_word};
use super::{arc, port};
use crate::policy::{
    Action, Cidr, Clause, Condition, Match, Policy, PolicyName, Rule, Scope, ServiceAccountMatch, StringMatch,
};

pub(super) const KNOWN: &[&str] = &["name", "namespace", "scope", "action", "rules", "dryRun", "extensions"];

const MATCH: &[&str] = &[
    "namespaces",
    "notNamespaces",
    "principals",
    "notPrincipals",
    "sourceIps",
    "notSourceIps",
    "destinationIps",
    "notDestinationIps",
    "destinationPorts",
    "notDestinationPorts",
    "serviceAccounts",
    "notServiceAccounts",
];

pub(super) fn read(at: At<'_>) -> Result<Policy, Fault> {
    let fields = at.fields(KNOWN)?;
    let (name, scope) = (name(&fields)?, scope(&fields)?);
    let action = action(&fields)?;
    let mut policy = Policy::new(name, scope, action);
    policy.rules = fields.list("rules")?.into_iter().map(rule).collect::<Result<_, _>>()?;
    policy.dry_run = fields.get("dryRun").map_or(Ok(false), |at| at.bool())?;
    Ok(policy)
}

/// What stands in for a policy that can't be read, if it can be told for whom it holds.
pub(super) fn stand_in(at: &At<'_>) -> Option<Policy> {
    let fields = at.clone().any_fields().ok()?;
    let mut policy = Policy::unreadable(name(&fields).ok()?, scope(&fields).ok()?, action(&fields).ok());
    policy.dry_run = fields.get("dryRun").is_some_and(|at| at.bool().unwrap_or(false));
    Some(policy)
}

fn name(fields: &Fields<'_>) -> Result<PolicyName, Fault> {
    // A policy of the whole mesh may have no namespace.
    Ok(PolicyName::new(fields.require("namespace")?.text()?, fields.require_text("name")?))
}

fn scope(fields: &Fields<'_>) -> Result<Scope, Fault> {
    fields.require("scope")?.one_of(&[
        ("GLOBAL", Scope::Global),
        ("NAMESPACE", Scope::Namespace),
        ("WORKLOAD_SELECTOR", Scope::WorkloadSelector),
    ])
}

fn action(fields: &Fields<'_>) -> Result<Action, Fault> {
    fields.require("action")?.one_of(&[("ALLOW", Action::Allow), ("DENY", Action::Deny)])
}

fn rule(at: At<'_>) -> Result<Rule, Fault> {
    let clauses = items(at, "clauses")?;
    Ok(Rule { clauses: clauses.into_iter().map(clause).collect::<Result<_, _>>()? })
}

fn clause(at: At<'_>) -> Result<Clause, Fault> {
    let matches = items(at, "matches")?;
    Ok(Clause { matches: matches.into_iter().map(one_match).collect::<Result<_, _>>()? })
}

/// A list, bare or as the one field of a map.
fn items<'a>(at: At<'a>, name: &str) -> Result<Vec<At<'a>>, Fault> {
    if at.is_list() { Ok(at.list()?.collect()) } else { at.fields(&[name])?.list(name) }
}

fn one_match(at: At<'_>) -> Result<Match, Fault> {
    let fields = at.fields(MATCH)?;
    Ok(Match {
        namespaces: condition(&fields, "namespaces", "notNamespaces", string_match)?,
        principals: condition(&fields, "principals", "notPrincipals", string_match)?,
        service_accounts: condition(&fields, "serviceAccounts", "notServiceAccounts", service_account)?,
        source_ips: condition(&fields, "sourceIps", "notSourceIps", cidr)?,
        destination_ips: condition(&fields, "destinationIps", "notDestinationIps", cidr)?,
        destination_ports: condition(&fields, "destinationPorts", "notDestinationPorts", |at| port(&at))?,
    })
}

fn condition<T>(
    fields: &Fields<'_>,
    any_of: &str,
    none_of: &str,
    read: impl Fn(At<'_>) -> Result<T, Fault>,
) -> Result<Condition<T>, Fault> {
    let all = |name| fields.list(name)?.into_iter().map(&read).collect::<Result<Vec<T>, Fault>>();
    Ok(Condition { any_of: all(any_of)?, none_of: all(none_of)? })
}

fn string_match(at: At<'_>) -> Result<StringMatch, Fault> {
    const WHAT: &str = "one of Exact, Prefix, Suffix, Presence, such as {Exact: text}";
    if let Some(tag) = at.tag() {
        return if same_word(tag, "Presence") { Ok(StringMatch::Presence) } else { pattern(tag, &at, WHAT) };
    }
    if let Some(text) = at.as_text() {
        let presence = same_word(text, "Presence").then_some(StringMatch::Presence);
        return presence.ok_or_else(|| at.error(format_args!("{text:?} is not {WHAT}")));
    }
    let mut entries = at.entries()?;
    match (entries.next(), entries.next()) {
        (Some((key, _)), None) if same_word(key, "Presence") => Ok(StringMatch::Presence),
        (Some((key, value)), None) => pattern(key, &value, WHAT),
        _ => Err(at.error(format_args!("is not {WHAT}"))),
    }
}

fn pattern(kind: &str, at: &At<'_>, what: &str) -> Result<StringMatch, Fault> {
    match kind {
        _ if same_word(kind, "Exact") => Ok(StringMatch::Exact(arc(at.text()?))),
        _ if same_word(kind, "Prefix") => Ok(StringMatch::Prefix(arc(at.text()?))),
        _ if same_word(kind, "Suffix") => Ok(StringMatch::Suffix(arc(at.text()?))),
        _ => Err(at.error(format_args!("{kind:?} is not {what}"))),
    }
}

fn service_account(at: At<'_>) -> Result<ServiceAccountMatch, Fault> {
    let fields = at.fields(&["namespace", "serviceAccount"])?;
    Ok(ServiceAccountMatch {
        namespace: arc(fields.require_text("namespace")?),
        service_account: arc(fields.require_text("serviceAccount")?),
    })
}

fn cidr(at: At<'_>) -> Result<Cidr, Fault> {
    at.parse("an IP address with an optional prefix length, such as 10.0.0.0/8")
}
