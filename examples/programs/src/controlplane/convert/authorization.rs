//! AuthorizationPolicies as proxies understand them: layer 4 only.
//!
//! An ALLOW rule that asks for more than layer 4 can see is left out, so that nothing is allowed by half of it. Of a
//! DENY rule what layer 4 can't see is left out, and where nothing remains of a source, operation or condition it never
//! matches.

use std::net::IpAddr;

use hbone::xds::proto::{
    Action, Authorization, Cidr, Clause, Empty, Match, Rule, Scope, ServiceAccountMatch, StringMatch, string_match,
};

use super::super::kinds::{AuthorizationPolicy, AuthorizationRule, Map, Operation, PolicySelector, Source, When};
use super::gateways::Waypoint;
use super::{Context, DOMAIN, NamespaceMeaning, octets, selects};

/// What could not be read.
type Bad = Vec<String>;

impl Context<'_> {
    pub(super) fn authorization_policies(&self, namespace: &str, meaning: &mut NamespaceMeaning) {
        for policy in self.objects.namespace(namespace).authorization_policies.values() {
            if !self.is_sent(policy) {
                continue;
            }
            let mut bad = Bad::new();
            let converted = self.policy(policy, &mut bad);
            let key = format!("{namespace}/{}", policy.metadata.name);
            for reason in bad {
                self.problem(meaning, format!("AuthorizationPolicy {key}"), format!("left out: {reason}"));
            }
            meaning.policies.insert(key, converted);
        }
    }

    /// Whether it is one for ztunnels at all.
    fn is_sent(&self, policy: &AuthorizationPolicy) -> bool {
        let spec = &policy.spec;
        matches!(&*spec.action, "" | "ALLOW" | "DENY")
            && spec.target_refs.is_empty()
            && spec.target_ref.is_none()
            && (self.features.dry_run_policies || !is_dry_run(policy))
    }

    fn policy(&self, policy: &AuthorizationPolicy, bad: &mut Bad) -> Authorization {
        let (metadata, spec) = (&policy.metadata, &policy.spec);
        let scope = match labels(spec.selector.as_ref()) {
            Some(_) => Scope::WorkloadSelector,
            None if metadata.namespace == self.root => Scope::Global,
            None => Scope::Namespace,
        };
        let action = if spec.action == "DENY" { Action::Deny } else { Action::Allow };
        let rules = spec.rules.iter().filter(|rule| action == Action::Deny || !is_beyond_layer_4(rule));
        Authorization {
            name: metadata.name.clone(),
            namespace: metadata.namespace.clone(),
            scope: scope as i32,
            action: action as i32,
            rules: rules.map(|each| rule(each, &metadata.namespace, bad)).collect(),
            dry_run: is_dry_run(policy),
        }
    }

    /// The names of policies that select a workload, Istio's own among them.
    pub(super) fn policies_of(&self, namespace: &str, workload: &Map) -> Vec<String> {
        let mut found: Vec<String> = Vec::new();
        let mut namespaces = vec![namespace];
        if namespace != self.root {
            namespaces.push(self.root);
        }
        for name in namespaces {
            let policies = self.objects.namespace(name).authorization_policies.values();
            let selecting = policies.filter(|policy| {
                labels(policy.spec.selector.as_ref()).is_some_and(|selector| selects(selector, workload))
                    && self.is_sent(policy)
            });
            found.extend(selecting.map(|policy| format!("{name}/{}", policy.metadata.name)));
        }
        found.extend(self.peer_authentication_of(namespace, workload));
        found.sort();
        found
    }

    /// The names of policies that let a workload's waypoints in.
    pub(super) fn waypoint_policies_of(
        &self,
        namespace: &str,
        labels: &Map,
        services: &std::collections::BTreeMap<String, hbone::xds::proto::PortList>,
        own: Option<&Waypoint<'_>>,
    ) -> Vec<String> {
        if !self.features.auto_allow_waypoint || labels.contains_key("gateway.istio.io/managed") {
            return Vec::new();
        }
        let of = self.objects.namespace(namespace);
        let selecting = of.services.values().filter(|service| selects(&service.spec.selector, labels));
        let selecting = selecting.filter(|service| {
            services.contains_key(&super::services::key(namespace, &super::services::hostname(service)))
        });
        let of_services = selecting.filter_map(|service| self.waypoint(namespace, &service.metadata.labels, "service"));
        let mut names: Vec<_> = of_services.map(|(waypoint, _)| waypoint_policy(&waypoint)).collect();
        names.extend(own.map(waypoint_policy));
        names.sort();
        names.dedup();
        names
    }

    /// A policy for each waypoint that lets it in.
    pub(super) fn waypoint_policies(&self, namespace: &str, meaning: &mut NamespaceMeaning) {
        if !self.features.auto_allow_waypoint {
            return;
        }
        let gateways = self.objects.namespace(namespace).gateways.values();
        for gateway in gateways.filter(|gateway| gateway.spec.gateway_class_name == "istio-waypoint") {
            let key = waypoint_policy(&Waypoint { namespace, name: &gateway.metadata.name });
            let Some((_, name)) = key.split_once('/') else { continue };
            let trust_domain = if self.config.trust_domain.is_empty() { DOMAIN } else { &self.config.trust_domain };
            let principal = format!("{trust_domain}/ns/{namespace}/sa/{}", gateway.metadata.name);
            let principals = vec![StringMatch { kind: Some(string_match::Kind::Exact(principal)) }];
            let clause = Clause { matches: vec![Match { principals, ..Default::default() }] };
            let policy = Authorization {
                name: name.into(),
                namespace: namespace.into(),
                scope: Scope::WorkloadSelector as i32,
                action: Action::Allow as i32,
                rules: vec![Rule { clauses: vec![clause] }],
                dry_run: false,
            };
            meaning.policies.insert(key, policy);
        }
    }
}

fn waypoint_policy(waypoint: &Waypoint<'_>) -> String {
    let Waypoint { namespace, name } = waypoint;
    format!("{namespace}/istio_allow_waypoint_{namespace}_{name}")
}

fn is_dry_run(policy: &AuthorizationPolicy) -> bool {
    policy.metadata.annotations.get("istio.io/dry-run").is_some_and(|value| value == "true")
}

/// The labels of a selector that says something.
pub(super) fn labels(selector: Option<&PolicySelector>) -> Option<&Map> {
    selector.map(|selector| &selector.match_labels).filter(|labels| !labels.is_empty())
}

fn is_beyond_layer_4(rule: &AuthorizationRule) -> bool {
    let any = |lists: &[&Vec<String>]| lists.iter().any(|list| !list.is_empty());
    let source = |s: &Source| {
        any(&[&s.request_principals, &s.not_request_principals, &s.remote_ip_blocks, &s.not_remote_ip_blocks])
    };
    let operation = |o: &Operation| any(&[&o.hosts, &o.not_hosts, &o.methods, &o.not_methods, &o.paths, &o.not_paths]);
    rule.from.iter().any(|from| source(&from.source))
        || rule.to.iter().any(|to| operation(&to.operation))
        || rule.when.iter().any(|when| !is_layer_4(&when.key))
}

fn is_layer_4(key: &str) -> bool {
    matches!(
        key,
        "source.ip"
            | "source.namespace"
            | "source.principal"
            | "source.serviceAccount"
            | "destination.ip"
            | "destination.port"
    )
}

fn rule(rule: &AuthorizationRule, namespace: &str, bad: &mut Bad) -> Rule {
    let mut clauses = Vec::new();
    if !rule.to.is_empty() {
        clauses.push(Clause { matches: rule.to.iter().map(|to| operation(&to.operation, bad)).collect() });
    }
    if !rule.from.is_empty() {
        clauses.push(Clause { matches: rule.from.iter().map(|from| source(&from.source, namespace, bad)).collect() });
    }
    clauses.extend(rule.when.iter().map(|each| Clause { matches: vec![when(each, namespace, bad)] }));
    Rule { clauses }
}

fn operation(operation: &Operation, bad: &mut Bad) -> Match {
    Match {
        destination_ports: ports(&operation.ports, bad),
        not_destination_ports: ports(&operation.not_ports, bad),
        ..Default::default()
    }
}

fn source(source: &Source, namespace: &str, bad: &mut Bad) -> Match {
    Match {
        namespaces: patterns(&source.namespaces),
        not_namespaces: patterns(&source.not_namespaces),
        principals: patterns(&source.principals),
        not_principals: patterns(&source.not_principals),
        source_ips: cidrs(&source.ip_blocks, bad),
        not_source_ips: cidrs(&source.not_ip_blocks, bad),
        service_accounts: accounts(&source.service_accounts, namespace),
        not_service_accounts: accounts(&source.not_service_accounts, namespace),
        ..Default::default()
    }
}

fn when(when: &When, namespace: &str, bad: &mut Bad) -> Match {
    let When { key, values, not_values } = when;
    let mut found = Match::default();
    match &**key {
        "source.namespace" => {
            (found.namespaces, found.not_namespaces) = (patterns(values), patterns(not_values));
        }
        "source.principal" => {
            (found.principals, found.not_principals) = (patterns(values), patterns(not_values));
        }
        "source.serviceAccount" => {
            found.service_accounts = accounts(values, namespace);
            found.not_service_accounts = accounts(not_values, namespace);
        }
        "source.ip" => {
            (found.source_ips, found.not_source_ips) = (cidrs(values, bad), cidrs(not_values, bad));
        }
        "destination.ip" => {
            (found.destination_ips, found.not_destination_ips) = (cidrs(values, bad), cidrs(not_values, bad));
        }
        "destination.port" => {
            (found.destination_ports, found.not_destination_ports) = (ports(values, bad), ports(not_values, bad));
        }
        // Nothing remains of it.
        _ => {}
    }
    found
}

fn patterns(values: &[String]) -> Vec<StringMatch> {
    values.iter().map(|value| StringMatch { kind: Some(pattern(value)) }).collect()
}

fn pattern(value: &str) -> string_match::Kind {
    match (value.strip_prefix('*'), value.strip_suffix('*')) {
        (Some(""), _) => string_match::Kind::Presence(Empty {}),
        (_, Some(prefix)) => string_match::Kind::Prefix(prefix.into()),
        (Some(suffix), _) => string_match::Kind::Suffix(suffix.into()),
        _ => string_match::Kind::Exact(value.into()),
    }
}

fn accounts(values: &[String], own_namespace: &str) -> Vec<ServiceAccountMatch> {
    let account = |value: &String| {
        let (namespace, account) = value.split_once('/').unwrap_or((own_namespace, value));
        ServiceAccountMatch { namespace: namespace.into(), service_account: account.into() }
    };
    values.iter().map(account).collect()
}

fn ports(values: &[String], bad: &mut Bad) -> Vec<u32> {
    let port = |value: &String| match value.parse::<u16>() {
        Ok(port) if port != 0 => Some(u32::from(port)),
        _ => {
            bad.push(format!("{value:?} is not a port from 1 to 65535"));
            None
        }
    };
    values.iter().filter_map(port).collect()
}

fn cidrs(values: &[String], bad: &mut Bad) -> Vec<Cidr> {
    let read = |value: &String| {
        let found = cidr(value);
        if found.is_none() {
            bad.push(format!("{value:?} is not an IP address or range"));
        }
        found
    };
    values.iter().filter_map(read).collect()
}

fn cidr(value: &str) -> Option<Cidr> {
    let (ip, length) = match value.split_once('/') {
        Some((ip, length)) => (ip, Some(length.parse::<u32>().ok()?)),
        None => (value, None),
    };
    let ip: IpAddr = ip.parse().ok()?;
    let full = if ip.is_ipv4() { 32 } else { 128 };
    let length = length.unwrap_or(full);
    (length <= full).then(|| Cidr { address: octets(ip), length })
}
