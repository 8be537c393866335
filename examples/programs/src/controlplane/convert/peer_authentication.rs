//! PeerAuthentications as policies that keep out whoever has not proved an identity.

use hbone::xds::proto::{Action, Authorization, Clause, Empty, Match, Rule, Scope, StringMatch, string_match};

use super::super::kinds::{Map, Mtls, PeerAuthentication};
use super::authorization::labels;
use super::{Context, NamespaceMeaning, selects};

const STATIC_STRICT: &str = "istio_converted_static_strict";
const PREFIX: &str = "converted_peer_authentication_";

/// Whether plaintext is let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Strict,
    Permissive,
}

impl Context<'_> {
    pub(super) fn peer_authentications(&self, namespace: &str, meaning: &mut NamespaceMeaning) {
        let policies = &self.objects.namespace(namespace).peer_authentications;
        for policy in policies.values() {
            if let Some(converted) = self.converted(policy) {
                meaning.policies.insert(format!("{}/{}", converted.namespace, converted.name), converted);
            }
        }
        let is_used = self.objects.by_namespace.values().any(|of| !of.peer_authentications.is_empty());
        if namespace == self.root && is_used {
            meaning.policies.insert(format!("{}/{STATIC_STRICT}", self.root), static_strict(self.root));
        }
    }

    /// The name of the policy by which a workload keeps plaintext out.
    pub(super) fn peer_authentication_of(&self, namespace: &str, workload: &Map) -> Option<String> {
        let own = self.objects.namespace(namespace).peer_authentications.values();
        let own = own.filter(|_| namespace != self.root);
        let own = own
            .into_iter()
            .find(|policy| labels(policy.spec.selector.as_ref()).is_some_and(|selector| selects(selector, workload)));
        if let Some(converted) = own.and_then(|policy| self.converted(policy)) {
            return Some(format!("{}/{}", converted.namespace, converted.name));
        }
        let mode = own.and_then(|policy| mode(&policy.spec.mtls)).unwrap_or_else(|| self.inherited(namespace));
        (mode == Mode::Strict).then(|| format!("{}/{STATIC_STRICT}", self.root))
    }

    /// What holds for a namespace, and where it says nothing for the mesh.
    fn inherited(&self, namespace: &str) -> Mode {
        let of = |namespace: &str| {
            let policies = self.objects.namespace(namespace).peer_authentications.values();
            let mut whole = policies.filter(|policy| labels(policy.spec.selector.as_ref()).is_none());
            whole.next().and_then(|policy| mode(&policy.spec.mtls))
        };
        of(namespace).or_else(|| of(self.root)).unwrap_or(Mode::Permissive)
    }

    /// A policy of its own, for one whose ports differ.
    fn converted(&self, policy: &PeerAuthentication) -> Option<Authorization> {
        let (metadata, spec) = (&policy.metadata, &policy.spec);
        labels(spec.selector.as_ref())?;
        if metadata.namespace == self.root {
            return None;
        }
        let own = mode(&spec.mtls);
        let all = own.unwrap_or_else(|| self.inherited(&metadata.namespace));
        // By their text, as Istio sorts them.
        let differing = spec.port_level_mtls.iter().filter(|(_, mtls)| mode(mtls).is_some_and(|mode| mode != all));
        let ports: Vec<u32> = differing.filter_map(|(port, _)| port.parse::<u16>().ok()).map(u32::from).collect();
        if ports.is_empty() {
            return None;
        }
        let rules = match all {
            Mode::Strict => {
                let port = |port| Match { not_destination_ports: vec![port], ..Default::default() };
                let mut matches: Vec<_> = ports.into_iter().map(port).collect();
                let at = if own.is_some() { 0 } else { matches.len() };
                matches.insert(at, unproved());
                let clauses = matches.into_iter().map(|each| Clause { matches: vec![each] });
                vec![Rule { clauses: clauses.collect() }]
            }
            Mode::Permissive => {
                let rule = |port| {
                    let found = Match { destination_ports: vec![port], ..unproved() };
                    Rule { clauses: vec![Clause { matches: vec![found] }] }
                };
                ports.into_iter().map(rule).collect()
            }
        };
        Some(policy_of(&metadata.namespace, format!("{PREFIX}{}", metadata.name), rules))
    }
}

fn mode(mtls: &Mtls) -> Option<Mode> {
    match &*mtls.mode {
        "STRICT" => Some(Mode::Strict),
        "PERMISSIVE" | "DISABLE" => Some(Mode::Permissive),
        _ => None,
    }
}

/// Whoever has not proved an identity.
fn unproved() -> Match {
    let any = StringMatch { kind: Some(string_match::Kind::Presence(Empty {})) };
    Match { not_principals: vec![any], ..Default::default() }
}

fn static_strict(root: &str) -> Authorization {
    let rule = Rule { clauses: vec![Clause { matches: vec![unproved()] }] };
    policy_of(root, STATIC_STRICT.into(), vec![rule])
}

fn policy_of(namespace: &str, name: String, rules: Vec<Rule>) -> Authorization {
    Authorization {
        name,
        namespace: namespace.into(),
        scope: Scope::WorkloadSelector as i32,
        action: Action::Deny as i32,
        rules,
        dry_run: false,
    }
}
