//! What a proxy tells its peers of the workloads that it stands for. Display only, on both sides.

use crate::mesh::{Workload, WorkloadType};
use crate::metadata::{self, Baggage};

/// A workload as baggage.
pub(super) fn baggage(workload: &Workload) -> Baggage {
    let name = if workload.workload_name.is_empty() { &workload.name } else { &workload.workload_name };
    let kind = match workload.workload_type {
        WorkloadType::Deployment => metadata::WorkloadType::Deployment,
        WorkloadType::CronJob => metadata::WorkloadType::CronJob,
        WorkloadType::Pod => metadata::WorkloadType::Pod,
        WorkloadType::Job => metadata::WorkloadType::Job,
    };
    let text = |text: &str| text.to_owned();
    // Empty values are left out by the setters.
    Baggage::default()
        .with_cluster(text(&workload.cluster))
        .with_namespace(text(workload.namespace()))
        .with_workload(kind, text(name))
        .with_service_name(text(&workload.canonical_name))
        .with_service_version(text(&workload.canonical_revision))
        .with_region(text(&workload.locality.region))
        .with_zone(text(&workload.locality.zone))
}
