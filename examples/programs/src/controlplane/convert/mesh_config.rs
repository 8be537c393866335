//! What holds for the whole cluster.

use hbone::mesh::{
    LabelRequirement, LabelSelector, LabelSelectorError, ServiceScope, ServiceScopeConfig, ServiceScopeConfigs,
};
use hbone::xds::view::ClusterConfig;

use super::super::kinds::{MeshConfig, ScopeConfig, Selector};
use super::super::manifest::{Problem, ReadAs as _};
use super::super::objects::Objects;
use super::{DOMAIN, ROOT_NAMESPACE};

const NETWORK_LABEL: &str = "topology.istio.io/network";
const CONFIG_MAP: &str = "istio";

/// What the ConfigMap `istio` says.
pub(super) fn find(objects: &Objects, problems: &mut Vec<Problem>) -> MeshConfig {
    let map = objects.namespace(ROOT_NAMESPACE).config_maps.get(CONFIG_MAP);
    let Some(text) = map.and_then(|map| map.data.get("mesh")) else { return MeshConfig::default() };
    text.as_str().read_as().unwrap_or_else(|error: serde_saphyr::Error| {
        let reason = error.to_string();
        problem(problems, reason.lines().next().unwrap_or_default());
        MeshConfig::default()
    })
}

pub(super) fn convert(objects: &Objects, mesh: &MeshConfig, problems: &mut Vec<Problem>) -> ClusterConfig {
    let mut config = ClusterConfig::new(objects.namespace_label(ROOT_NAMESPACE, NETWORK_LABEL).unwrap_or_default());
    config.trust_domain = if mesh.trust_domain.is_empty() { DOMAIN.into() } else { mesh.trust_domain.clone() };
    if let Some(entries) = &mesh.service_scope_configs {
        let rules = entries.iter().enumerate().filter_map(|(n, entry)| match rule(entry) {
            Ok(rule) => Some(rule),
            Err(reason) => {
                problem(problems, &format!("serviceScopeConfigs[{n}] is left out: {reason}"));
                None
            }
        });
        config.scopes = ServiceScopeConfigs::new(rules.collect::<Vec<_>>());
    }
    config
}

fn rule(entry: &ScopeConfig) -> Result<ServiceScopeConfig, String> {
    let scope = match &*entry.scope {
        "GLOBAL" => ServiceScope::Global,
        "" | "LOCAL" => ServiceScope::Local,
        other => return Err(format!("the scope {other:?} is neither LOCAL nor GLOBAL")),
    };
    Ok(ServiceScopeConfig::new(scope)
        .with_namespace_selector(selector(entry.namespace_selector.as_ref())?)
        .with_services_selector(selector(entry.services_selector.as_ref())?))
}

fn selector(selector: Option<&Selector>) -> Result<LabelSelector, String> {
    let Some(Selector { match_labels, match_expressions }) = selector else { return Ok(LabelSelector::default()) };
    let expressions = match_expressions.iter().map(|expression| {
        let operator = expression.operator.parse().map_err(|error: LabelSelectorError| error.to_string())?;
        let values = expression.values.iter().map(String::as_str);
        LabelRequirement::new(&expression.key, operator, values).map_err(|error| error.to_string())
    });
    let expressions = expressions.collect::<Result<Vec<_>, _>>()?;
    LabelSelector::new(match_labels, expressions).map_err(|error| error.to_string())
}

fn problem(problems: &mut Vec<Problem>, reason: &str) {
    problems.push(Problem {
        source: String::new(),
        line: 0,
        object: format!("ConfigMap {ROOT_NAMESPACE}/{CONFIG_MAP}, mesh"),
        reason: reason.into(),
    });
}
