//! Which services are global, as `serviceScopeConfigs` of Istio's MeshConfig says.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

use super::service::ServiceScope;

/// The label that makes a service global where nothing else is configured.
const GLOBAL_LABEL: &str = "istio.io/global";

/// Labels of a namespace or service.
pub type Labels = BTreeMap<String, String>;

/// Which services other clusters may reach: the entries of `serviceScopeConfigs`, in order.
///
/// A service is global if an entry with [`ServiceScope::Global`] matches it, and local otherwise. As in Istio, an entry
/// with [`ServiceScope::Local`] decides nothing, so that it makes no exception from a later one. Each cluster goes by
/// its own entries, for the services of all clusters.
///
/// ```
/// use hbone::mesh::{Labels, ServiceScope, ServiceScopeConfigs};
///
/// // As in Istio's ambient profile: services with the label `istio.io/global: "true"`.
/// let configs = ServiceScopeConfigs::default();
/// let labelled = Labels::from([("istio.io/global".into(), "true".into())]);
/// assert_eq!(configs.scope(&Labels::new(), &labelled), ServiceScope::Global);
/// assert_eq!(configs.scope(&labelled, &Labels::new()), ServiceScope::Local);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceScopeConfigs(Vec<ServiceScopeConfig>);

/// One entry of `serviceScopeConfigs`: what both selectors match has this scope. Without a selector it matches all.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ServiceScopeConfig {
    /// What the labels of the service's namespace have to meet (`namespaceSelector`). Default: nothing.
    pub namespace_selector: LabelSelector,
    /// What the labels of the service have to meet (`servicesSelector`). Default: nothing.
    pub services_selector: LabelSelector,
    /// The scope of what matches.
    pub scope: ServiceScope,
}

/// A selector of Kubernetes: labels match if they meet all requirements, so that an empty one matches everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LabelSelector(Vec<LabelRequirement>);

/// What one label has to be, or not to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LabelRequirement {
    key: String,
    operator: LabelOperator,
    values: BTreeSet<String>,
}

/// How a [`LabelRequirement`] compares.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum LabelOperator {
    /// The label is there, with one of the values.
    In,
    /// The label is not there, or has none of the values.
    NotIn,
    /// The label is there.
    Exists,
    /// The label is not there.
    DoesNotExist,
}

/// Why a requirement is not valid.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum LabelSelectorError {
    /// The operator is none of In, NotIn, Exists and DoesNotExist, which are compared with their case.
    UnknownOperator(String),
    /// In and NotIn need values.
    NoValues(String),
    /// Exists and DoesNotExist take no values.
    Values(String),
    /// Not a label's key: a name of at most 63 letters, digits, `-`, `_` and `.`, with a letter or digit at both ends,
    /// and optionally a DNS name and `/` in front.
    BadKey(String),
    /// Not a label's value: empty, or as the name of a key.
    BadValue(String),
}

impl ServiceScopeConfigs {
    /// These entries. None make all services local.
    pub fn new(entries: impl IntoIterator<Item = ServiceScopeConfig>) -> Self {
        Self(entries.into_iter().collect())
    }

    /// The scope of a service, by the labels of its namespace and its own.
    pub fn scope(&self, namespace: &Labels, service: &Labels) -> ServiceScope {
        self.decided_by(namespace, service).map_or(ServiceScope::Local, |entry| self.0[entry].scope)
    }

    /// The entry that makes a service global, from 0 on: the first of those that do. `None` for a local service.
    pub fn decided_by(&self, namespace: &Labels, service: &Labels) -> Option<usize> {
        let decides = |entry: &ServiceScopeConfig| {
            entry.scope == ServiceScope::Global
                && entry.namespace_selector.matches(namespace)
                && entry.services_selector.matches(service)
        };
        self.0.iter().position(decides)
    }
}

/// The entry of Istio's ambient profile: services with the label `istio.io/global`, whose value is `true`, are global.
impl Default for ServiceScopeConfigs {
    fn default() -> Self {
        let requirement = LabelRequirement {
            key: GLOBAL_LABEL.to_owned(),
            operator: LabelOperator::In,
            values: BTreeSet::from(["true".to_owned()]),
        };
        let selector = LabelSelector(vec![requirement]);
        Self(vec![ServiceScopeConfig::new(ServiceScope::Global).with_services_selector(selector)])
    }
}

impl ServiceScopeConfig {
    /// An entry that matches every service.
    pub fn new(scope: ServiceScope) -> Self {
        Self { namespace_selector: LabelSelector::default(), services_selector: LabelSelector::default(), scope }
    }

    /// Sets what the labels of the namespace have to meet.
    pub fn with_namespace_selector(mut self, selector: LabelSelector) -> Self {
        self.namespace_selector = selector;
        self
    }

    /// Sets what the labels of the service have to meet.
    pub fn with_services_selector(mut self, selector: LabelSelector) -> Self {
        self.services_selector = selector;
        self
    }
}

impl LabelSelector {
    /// The selector with these `matchLabels` and `matchExpressions`.
    ///
    /// # Errors
    ///
    /// Where Kubernetes has none either: for a key or value that no label can have.
    pub fn new(
        match_labels: &Labels,
        match_expressions: impl IntoIterator<Item = LabelRequirement>,
    ) -> Result<Self, LabelSelectorError> {
        let equal = |(key, value): (&String, &String)| LabelRequirement::new(key, LabelOperator::In, [value.as_str()]);
        let mut requirements = match_labels.iter().map(equal).collect::<Result<Vec<_>, _>>()?;
        requirements.extend(match_expressions);
        Ok(Self(requirements))
    }

    /// Whether the labels meet all requirements.
    pub fn matches(&self, labels: &Labels) -> bool {
        self.0.iter().all(|requirement| requirement.is_met_by(labels))
    }
}

impl LabelRequirement {
    /// A requirement, as in `matchExpressions`.
    ///
    /// # Errors
    ///
    /// When the key or a value can't be that of a label, In or NotIn has no values, or another operator has.
    pub fn new<'a>(
        key: &str,
        operator: LabelOperator,
        values: impl IntoIterator<Item = &'a str>,
    ) -> Result<Self, LabelSelectorError> {
        let values: BTreeSet<String> = values.into_iter().map(str::to_owned).collect();
        if !is_key(key) {
            return Err(LabelSelectorError::BadKey(key.to_owned()));
        }
        if let Some(bad) = values.iter().find(|value| !value.is_empty() && !is_name(value)) {
            return Err(LabelSelectorError::BadValue(bad.clone()));
        }
        match operator {
            LabelOperator::In | LabelOperator::NotIn if values.is_empty() => {
                Err(LabelSelectorError::NoValues(key.to_owned()))
            }
            LabelOperator::Exists | LabelOperator::DoesNotExist if !values.is_empty() => {
                Err(LabelSelectorError::Values(key.to_owned()))
            }
            operator => Ok(Self { key: key.to_owned(), operator, values }),
        }
    }

    fn is_met_by(&self, labels: &Labels) -> bool {
        let value = labels.get(&self.key);
        match self.operator {
            LabelOperator::In => value.is_some_and(|value| self.values.contains(value)),
            LabelOperator::NotIn => value.is_none_or(|value| !self.values.contains(value)),
            LabelOperator::Exists => value.is_some(),
            LabelOperator::DoesNotExist => value.is_none(),
        }
    }
}

fn is_key(key: &str) -> bool {
    match key.split_once('/') {
        Some((prefix, name)) => is_dns_subdomain(prefix) && is_name(name),
        None => is_name(key),
    }
}

/// RFC 1123, section 2.1, in lower case.
fn is_dns_subdomain(text: &str) -> bool {
    let label = |label: &str| {
        let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        !label.is_empty() && label.bytes().all(inner) && !label.starts_with('-') && !label.ends_with('-')
    };
    text.len() <= 253 && text.split('.').all(label)
}

fn is_name(text: &str) -> bool {
    let inner = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    let ends = |b: Option<&u8>| b.is_some_and(u8::is_ascii_alphanumeric);
    let bytes = text.as_bytes();
    bytes.len() <= 63 && bytes.iter().copied().all(inner) && ends(bytes.first()) && ends(bytes.last())
}

impl FromStr for LabelOperator {
    type Err = LabelSelectorError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "In" => Ok(Self::In),
            "NotIn" => Ok(Self::NotIn),
            "Exists" => Ok(Self::Exists),
            "DoesNotExist" => Ok(Self::DoesNotExist),
            _ => Err(LabelSelectorError::UnknownOperator(text.to_owned())),
        }
    }
}

impl fmt::Display for LabelSelectorError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownOperator(text) => {
                write!(f, "the operator {text:?} is not one of In, NotIn, Exists and DoesNotExist")
            }
            Self::NoValues(key) => write!(f, "the requirement on label {key:?} needs values, and has none"),
            Self::Values(key) => write!(f, "the requirement on label {key:?} has values, and its operator takes none"),
            Self::BadKey(key) => write!(f, "{key:?} can't be the key of a label"),
            Self::BadValue(value) => write!(f, "{value:?} can't be the value of a label"),
        }
    }
}

impl std::error::Error for LabelSelectorError {}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    /// From `key=value` or `key`, with spaces between.
    fn labels(text: &str) -> Labels {
        let label = |text: &str| {
            let (key, value) = text.split_once('=').unwrap_or((text, ""));
            (key.to_owned(), value.to_owned())
        };
        text.split_whitespace().map(label).collect()
    }

    fn requirement(key: &str, operator: &str, values: &[&str]) -> Result<LabelRequirement, LabelSelectorError> {
        LabelRequirement::new(key, operator.parse()?, values.iter().copied())
    }

    fn selector(match_labels: &str, expressions: &[(&str, &str, &[&str])]) -> LabelSelector {
        let expressions = expressions.iter().map(|(key, operator, values)| requirement(key, operator, values).unwrap());
        LabelSelector::new(&labels(match_labels), expressions).unwrap()
    }

    #[rstest]
    #[case("", &[], "", true)]
    #[case("", &[], "a=1", true)]
    #[case("a=1", &[], "a=1 b=2", true)]
    #[case("a=1 b=2", &[], "a=1", false)]
    #[case("a=1", &[], "a=2", false)]
    #[case("", &[("a", "In", &["1", "2"][..])], "a=2", true)]
    #[case("", &[("a", "In", &["1", "2"][..])], "a=3", false)]
    #[case("", &[("a", "In", &["1"][..])], "", false)]
    #[case("", &[("a", "In", &[""][..])], "a", true)]
    #[case("", &[("a", "NotIn", &["1"][..])], "a=1", false)]
    #[case("", &[("a", "NotIn", &["1"][..])], "a=2", true)]
    #[case("", &[("a", "NotIn", &["1"][..])], "", true)]
    #[case("", &[("a", "Exists", &[][..])], "a", true)]
    #[case("", &[("a", "Exists", &[][..])], "b", false)]
    #[case("", &[("a", "DoesNotExist", &[][..])], "a", false)]
    #[case("", &[("a", "DoesNotExist", &[][..])], "b", true)]
    #[case("b=1", &[("a", "Exists", &[][..]), ("a", "NotIn", &["no"][..])], "a=yes b=1", true)]
    #[case("b=1", &[("a", "Exists", &[][..]), ("a", "NotIn", &["no"][..])], "a=no b=1", false)]
    fn labels_have_to_meet_each_requirement(
        #[case] match_labels: &str,
        #[case] expressions: &[(&str, &str, &[&str])],
        #[case] of: &str,
        #[case] expected: bool,
    ) {
        assert_eq!(selector(match_labels, expressions).matches(&labels(of)), expected);
    }

    #[rstest]
    #[case("a", "Like", &["*"], "the operator \"Like\" is not one of")]
    #[case("a", "in", &["1"], "the operator \"in\" is not one of")]
    #[case("a", "In", &[], "needs values")]
    #[case("a", "NotIn", &[], "needs values")]
    #[case("a", "Exists", &["1"], "takes none")]
    #[case("a", "DoesNotExist", &["1"], "takes none")]
    #[case("", "Exists", &[], "\"\" can't be the key of a label")]
    #[case("/a", "Exists", &[], "can't be the key of a label")]
    #[case("a/b/c", "Exists", &[], "can't be the key of a label")]
    #[case("A.b/c", "Exists", &[], "can't be the key of a label")]
    #[case("-a", "Exists", &[], "can't be the key of a label")]
    #[case("a", "In", &["a b"], "\"a b\" can't be the value of a label")]
    #[case("a", "In", &["*"], "\"*\" can't be the value of a label")]
    fn what_kubernetes_refuses_is_refused(
        #[case] key: &str,
        #[case] operator: &str,
        #[case] values: &[&str],
        #[case] expected: &str,
    ) {
        let error = requirement(key, operator, values).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }

    /// Entries that differ in kind: a local one first, one with both selectors, one by namespace.
    fn mixed() -> ServiceScopeConfigs {
        let not_in_tests = selector("tier=gold", &[("env", "NotIn", &["test"])]);
        let exposed = selector("", &[("exposed", "Exists", &[]), ("exposed", "NotIn", &["no"])]);
        ServiceScopeConfigs::new([
            ServiceScopeConfig::new(ServiceScope::Local).with_services_selector(selector("keep=home", &[])),
            ServiceScopeConfig::new(ServiceScope::Global)
                .with_namespace_selector(not_in_tests)
                .with_services_selector(exposed),
            ServiceScopeConfig::new(ServiceScope::Global)
                .with_namespace_selector(selector("istio.io/global=true", &[])),
        ])
    }

    #[rstest]
    #[case("tier=gold env=prod", "", None)]
    #[case("tier=gold env=prod", "exposed=yes", Some(1))]
    #[case("tier=gold env=prod", "exposed", Some(1))]
    #[case("tier=gold env=prod", "exposed=no", None)]
    #[case("tier=gold", "exposed=yes", Some(1))]
    #[case("tier=gold env=test", "exposed=yes", None)]
    #[case("tier=silver", "exposed=yes", None)]
    #[case("istio.io/global=true", "", Some(2))]
    #[case("", "istio.io/global=true", None)]
    // The local entry matches, and decides nothing.
    #[case("tier=gold", "exposed=yes keep=home", Some(1))]
    #[case("", "keep=home", None)]
    fn the_first_global_entry_that_matches_decides(
        #[case] namespace: &str,
        #[case] service: &str,
        #[case] expected: Option<usize>,
    ) {
        let scope = if expected.is_some() { ServiceScope::Global } else { ServiceScope::Local };
        let (configs, namespace, service) = (mixed(), labels(namespace), labels(service));
        assert_eq!(configs.decided_by(&namespace, &service), expected);
        assert_eq!(configs.scope(&namespace, &service), scope);
    }

    #[rstest]
    #[case("istio.io/global=true", true)]
    #[case("istio.io/global=True", false)]
    #[case("istio.io/global=false", false)]
    #[case("istio.io/global", false)]
    #[case("", false)]
    fn by_default_the_label_makes_a_service_global(#[case] service: &str, #[case] global: bool) {
        let scope = ServiceScopeConfigs::default().scope(&labels("istio.io/global=true"), &labels(service));
        assert_eq!(scope == ServiceScope::Global, global);
    }

    #[test]
    fn an_entry_without_selectors_matches_everything_and_no_entry_nothing() {
        let all = ServiceScopeConfigs::new([ServiceScopeConfig::new(ServiceScope::Global)]);
        assert_eq!(all.scope(&Labels::new(), &labels("keep=home")), ServiceScope::Global);
        assert_eq!(ServiceScopeConfigs::new([]).scope(&Labels::new(), &Labels::new()), ServiceScope::Local);
    }
}
