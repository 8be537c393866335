//! Which of the backends behind one name a connection leads to.

use std::sync::Arc;

use crate::metadata::{BackendToken, Baggage, WorkloadType};

/// A backend, by what identified it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum BackendId {
    /// The gateway said so.
    Token(BackendToken),
    /// The backend itself named its pod.
    Pod(Arc<str>),
}

impl BackendId {
    /// What a backend's baggage says. Only a pod's name will do: those of a deployment have their name in common.
    pub(super) fn from_baggage(baggage: &Baggage) -> Option<Self> {
        let name = baggage.workload_name().filter(|_| baggage.workload_type() == Some(WorkloadType::Pod))?;
        let (cluster, namespace) = (baggage.cluster().unwrap_or_default(), baggage.namespace().unwrap_or_default());
        Some(Self::Pod(format!("{cluster}/{namespace}/{name}").into()))
    }

    pub(super) fn token(&self) -> Option<&BackendToken> {
        match self {
            Self::Token(token) => Some(token),
            Self::Pod(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("k8s.cluster.name=west,k8s.namespace.name=shop,k8s.pod.name=a-1", Some("west/shop/a-1"))]
    #[case("k8s.pod.name=a-1", Some("//a-1"))]
    #[case("k8s.cluster.name=west,k8s.namespace.name=shop,k8s.deployment.name=a", None)]
    #[case("k8s.cluster.name=west", None)]
    fn only_a_pods_name_tells_backends_apart(#[case] header: &str, #[case] expected: Option<&str>) {
        let headers = http::HeaderMap::from_iter([(crate::metadata::BAGGAGE, header.parse().unwrap())]);
        let metadata = crate::metadata::Metadata::from_headers(&headers);
        let baggage = metadata.baggage().unwrap();
        let expected = expected.map(|name| BackendId::Pod(name.into()));
        assert_eq!(BackendId::from_baggage(baggage), expected);
    }
}
