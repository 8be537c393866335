//! Kubernetes and Istio objects, as far as a control plane reads them. What else they say is left unread.

use std::collections::BTreeMap;

use serde::Deserialize;

/// Text by name.
pub type Map = BTreeMap<String, String>;

/// What every object has.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", default)]
pub struct Metadata {
    /// Unique in the namespace, for its kind.
    pub name: String,
    /// Empty is `default`, or none for kinds that have none.
    pub namespace: String,
    /// Labels.
    pub labels: Map,
    /// Annotations.
    pub annotations: Map,
    /// Who made it.
    pub owner_references: Vec<OwnerReference>,
    /// What its generated name begins with.
    pub generate_name: String,
    /// Set once it is being deleted.
    pub deletion_timestamp: Option<String>,
}

/// Of [`Metadata`].
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(default)]
pub struct OwnerReference {
    /// The owner's kind.
    pub kind: String,
    /// The owner's name.
    pub name: String,
    /// Whether the owner manages it.
    pub controller: bool,
}

/// `v1/Pod`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", default)]
pub struct Pod {
    /// Name and labels.
    pub metadata: Metadata,
    /// What it should be.
    pub spec: PodSpec,
    /// What it is.
    pub status: PodStatus,
}

/// Of [`Pod`].
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", default)]
pub struct PodSpec {
    /// Empty is `default`.
    pub service_account_name: String,
    /// Where it runs.
    pub node_name: String,
    /// Whether it has its node's addresses.
    pub host_network: bool,
    /// Its containers.
    pub containers: Vec<Container>,
    /// Containers that start first, or stay beside the others.
    pub init_containers: Vec<Container>,
}

/// Of [`PodSpec`].
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(default)]
pub struct Container {
    /// Ports with names.
    pub ports: Vec<ContainerPort>,
}

/// Of [`Container`].
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", default)]
pub struct ContainerPort {
    /// What services call it.
    pub name: String,
    /// The number.
    pub container_port: u16,
    /// Empty is `TCP`.
    pub protocol: String,
}

/// Of [`Pod`].
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", default)]
pub struct PodStatus {
    /// `Pending`, `Running`, `Succeeded`, `Failed`, `Unknown`.
    pub phase: String,
    /// Its first address.
    #[serde(rename = "podIP")]
    pub pod_ip: String,
    /// All of its addresses.
    #[serde(rename = "podIPs")]
    pub pod_ips: Vec<PodIp>,
    /// `Ready`, and others.
    pub conditions: Vec<Condition>,
}

/// Of [`PodStatus`].
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(default)]
pub struct PodIp {
    /// The address.
    pub ip: String,
}

/// Of a status.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(default)]
pub struct Condition {
    /// Which.
    #[serde(rename = "type")]
    pub kind: String,
    /// `True`, `False` or `Unknown`.
    pub status: String,
}

/// `v1/Service`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(default)]
pub struct Service {
    /// Name and labels.
    pub metadata: Metadata,
    /// What it should be.
    pub spec: ServiceSpec,
}

/// Of [`Service`].
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceSpec {
    /// `ExternalName` is not one of the mesh.
    #[serde(rename = "type")]
    pub kind: String,
    /// `None` where there is none.
    #[serde(rename = "clusterIP")]
    pub cluster_ip: String,
    /// All of them.
    #[serde(rename = "clusterIPs")]
    pub cluster_ips: Vec<String>,
    /// Ports.
    pub ports: Vec<ServicePort>,
    /// Labels of its pods. Empty selects none.
    pub selector: Map,
    /// `IPv4`, `IPv6`.
    pub ip_families: Vec<String>,
    /// Which endpoints are preferred.
    pub traffic_distribution: String,
    /// `Local` keeps traffic on the node.
    pub internal_traffic_policy: String,
    /// Whether endpoints count that are not ready.
    pub publish_not_ready_addresses: bool,
}

/// Of [`ServiceSpec`].
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", default)]
pub struct ServicePort {
    /// Its name, which may begin with what is spoken there.
    pub name: String,
    /// The number.
    pub port: u16,
    /// Empty is `TCP`.
    pub protocol: String,
    /// What is spoken there.
    pub app_protocol: Option<String>,
    /// The endpoints' port. Absent is the same number.
    pub target_port: Option<TargetPort>,
}

/// Of [`ServicePort`].
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(untagged)]
pub enum TargetPort {
    /// By number.
    Number(u16),
    /// By the name of a container's port.
    Name(String),
}

/// `discovery.k8s.io/v1/EndpointSlice`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", default)]
pub struct EndpointSlice {
    /// Name and labels; `kubernetes.io/service-name` names the service.
    pub metadata: Metadata,
    /// `IPv4`, `IPv6`, `FQDN`.
    pub address_type: String,
    /// Ports of all endpoints.
    pub ports: Vec<SlicePort>,
    /// Endpoints.
    pub endpoints: Vec<SliceEndpoint>,
}

/// Of [`EndpointSlice`].
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(default)]
pub struct SlicePort {
    /// The name of the service's port.
    pub name: String,
    /// The number.
    pub port: u16,
}

/// Of [`EndpointSlice`].
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", default)]
pub struct SliceEndpoint {
    /// Addresses, of which the first counts.
    pub addresses: Vec<String>,
    /// Whether it is ready.
    pub conditions: SliceConditions,
    /// What it is: a pod is read as such.
    pub target_ref: Option<TargetRef>,
}

/// Of [`SliceEndpoint`].
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(default)]
pub struct SliceConditions {
    /// Absent is yes.
    pub ready: Option<bool>,
}

/// A reference to an object.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(default)]
pub struct TargetRef {
    /// Its kind.
    pub kind: String,
    /// Its name.
    pub name: String,
}

/// An object of which only the metadata counts: `v1/Namespace`, `v1/Node`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(default)]
pub struct Bare {
    /// Name and labels.
    pub metadata: Metadata,
}

/// `gateway.networking.k8s.io/Gateway`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(default)]
pub struct Gateway {
    /// Name and labels.
    pub metadata: Metadata,
    /// What it should be.
    pub spec: GatewaySpec,
    /// What it is.
    pub status: GatewayStatus,
}

/// Of [`Gateway`].
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", default)]
pub struct GatewaySpec {
    /// `istio-east-west`, `istio-remote`, `istio-waypoint`.
    pub gateway_class_name: String,
    /// Where it listens.
    pub listeners: Vec<Listener>,
    /// Where it should be.
    pub addresses: Vec<GatewayAddress>,
}

/// Of [`GatewaySpec`].
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(default)]
pub struct Listener {
    /// The port.
    pub port: u16,
    /// `HBONE`, and others.
    pub protocol: String,
    /// How TLS is handled.
    pub tls: Option<ListenerTls>,
}

/// Of [`Listener`].
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(default)]
pub struct ListenerTls {
    /// `Terminate` or `Passthrough`; empty is `Terminate`.
    pub mode: String,
}

/// Of [`Gateway`].
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(default)]
pub struct GatewayStatus {
    /// Where it is.
    pub addresses: Vec<GatewayAddress>,
}

/// Of [`GatewayStatus`].
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(default)]
pub struct GatewayAddress {
    /// `IPAddress` or `Hostname`; empty is `IPAddress`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The address.
    pub value: String,
}

/// `networking.istio.io/ServiceEntry`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(default)]
pub struct ServiceEntry {
    /// Name and labels.
    pub metadata: Metadata,
    /// What it should be.
    pub spec: ServiceEntrySpec,
}

/// Of [`ServiceEntry`].
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceEntrySpec {
    /// Names; each is a service.
    pub hosts: Vec<String>,
    /// Virtual addresses, or ranges.
    pub addresses: Vec<String>,
    /// Ports.
    pub ports: Vec<EntryPort>,
    /// `NONE`, `STATIC`, `DNS`, `DNS_ROUND_ROBIN`; empty is `NONE`.
    pub resolution: String,
    /// Endpoints given here.
    pub endpoints: Vec<WorkloadEntrySpec>,
    /// Pods and workload entries that are endpoints.
    pub workload_selector: Option<EntrySelector>,
    /// Identities that the endpoints may have.
    pub subject_alt_names: Vec<String>,
}

/// Of [`ServiceEntrySpec`].
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", default)]
pub struct EntryPort {
    /// The number.
    pub number: u16,
    /// Its name.
    pub name: String,
    /// What is spoken there.
    pub protocol: String,
    /// The endpoints' port; 0 is the same number.
    pub target_port: u16,
}

/// Labels to select by.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(default)]
pub struct EntrySelector {
    /// All must be there.
    pub labels: Map,
}

/// `networking.istio.io/WorkloadEntry`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(default)]
pub struct WorkloadEntry {
    /// Name and labels.
    pub metadata: Metadata,
    /// What it should be.
    pub spec: WorkloadEntrySpec,
    /// What it is.
    pub status: EntryStatus,
}

/// Of [`WorkloadEntry`], and inline in a [`ServiceEntry`].
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", default)]
pub struct WorkloadEntrySpec {
    /// An address, or a name.
    pub address: String,
    /// Endpoint ports by the name of the service's port.
    pub ports: BTreeMap<String, u16>,
    /// Labels.
    pub labels: Map,
    /// Empty is that of the cluster.
    pub network: String,
    /// `REGION/ZONE/SUBZONE`.
    pub locality: String,
    /// For how many it stands; 0 is 1.
    pub weight: u32,
    /// Of its identity.
    pub service_account: String,
}

/// Of [`WorkloadEntry`].
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(default)]
pub struct EntryStatus {
    /// `Healthy`.
    pub conditions: Vec<Condition>,
}

/// `security.istio.io/AuthorizationPolicy`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(default)]
pub struct AuthorizationPolicy {
    /// Name and labels.
    pub metadata: Metadata,
    /// What it should be.
    pub spec: AuthorizationSpec,
}

/// Of [`AuthorizationPolicy`].
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", default)]
pub struct AuthorizationSpec {
    /// Whose connections it is about.
    pub selector: Option<PolicySelector>,
    /// What it is attached to. With any, it is not for ztunnels.
    pub target_refs: Vec<TargetRef>,
    /// The older form.
    pub target_ref: Option<TargetRef>,
    /// `ALLOW`, `DENY`, `CUSTOM`, `AUDIT`; empty is `ALLOW`.
    pub action: String,
    /// Any of them.
    pub rules: Vec<AuthorizationRule>,
}

/// Labels to select by.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", default)]
pub struct PolicySelector {
    /// All must be there.
    pub match_labels: Map,
}

/// Of [`AuthorizationSpec`].
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(default)]
pub struct AuthorizationRule {
    /// Any of them.
    pub from: Vec<From>,
    /// Any of them.
    pub to: Vec<To>,
    /// All of them.
    pub when: Vec<When>,
}

/// Of [`AuthorizationRule`].
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(default)]
pub struct From {
    /// Who.
    pub source: Source,
}

/// Of [`From`].
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", default)]
#[expect(missing_docs, reason = "the fields of Istio's Source, by name")]
pub struct Source {
    pub principals: Vec<String>,
    pub not_principals: Vec<String>,
    pub request_principals: Vec<String>,
    pub not_request_principals: Vec<String>,
    pub namespaces: Vec<String>,
    pub not_namespaces: Vec<String>,
    pub service_accounts: Vec<String>,
    pub not_service_accounts: Vec<String>,
    pub ip_blocks: Vec<String>,
    pub not_ip_blocks: Vec<String>,
    pub remote_ip_blocks: Vec<String>,
    pub not_remote_ip_blocks: Vec<String>,
}

/// Of [`AuthorizationRule`].
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(default)]
pub struct To {
    /// What.
    pub operation: Operation,
}

/// Of [`To`].
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", default)]
#[expect(missing_docs, reason = "the fields of Istio's Operation, by name")]
pub struct Operation {
    pub hosts: Vec<String>,
    pub not_hosts: Vec<String>,
    pub ports: Vec<String>,
    pub not_ports: Vec<String>,
    pub methods: Vec<String>,
    pub not_methods: Vec<String>,
    pub paths: Vec<String>,
    pub not_paths: Vec<String>,
}

/// Of [`AuthorizationRule`].
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", default)]
pub struct When {
    /// The attribute.
    pub key: String,
    /// Any of them.
    pub values: Vec<String>,
    /// None of them.
    pub not_values: Vec<String>,
}

/// `security.istio.io/PeerAuthentication`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(default)]
pub struct PeerAuthentication {
    /// Name and labels.
    pub metadata: Metadata,
    /// What it should be.
    pub spec: PeerAuthenticationSpec,
}

/// Of [`PeerAuthentication`].
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", default)]
pub struct PeerAuthenticationSpec {
    /// Whose connections it is about.
    pub selector: Option<PolicySelector>,
    /// For all ports.
    pub mtls: Mtls,
    /// For single ports.
    pub port_level_mtls: BTreeMap<String, Mtls>,
}

/// Of [`PeerAuthenticationSpec`].
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(default)]
pub struct Mtls {
    /// `STRICT`, `PERMISSIVE`, `DISABLE`, `UNSET`; empty is `UNSET`.
    pub mode: String,
}

/// `v1/ConfigMap`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(default)]
pub struct ConfigMap {
    /// Name and labels.
    pub metadata: Metadata,
    /// Texts.
    pub data: Map,
}

/// Istio's `MeshConfig`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", default)]
pub struct MeshConfig {
    /// Empty is `cluster.local`.
    pub trust_domain: String,
    /// Which services are global. Absent is the default.
    pub service_scope_configs: Option<Vec<ScopeConfig>>,
    /// Where policies hold for all namespaces. Empty is `istio-system`.
    pub root_namespace: String,
}

/// Of [`MeshConfig`].
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", default)]
pub struct ScopeConfig {
    /// By labels of the namespace.
    pub namespace_selector: Option<Selector>,
    /// By labels of the service.
    pub services_selector: Option<Selector>,
    /// `LOCAL` or `GLOBAL`; empty is `LOCAL`.
    pub scope: String,
}

/// A Kubernetes label selector.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", default)]
pub struct Selector {
    /// Labels with these values.
    pub match_labels: Map,
    /// Further requirements.
    pub match_expressions: Vec<Expression>,
}

/// Of [`Selector`].
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(default)]
pub struct Expression {
    /// The label.
    pub key: String,
    /// `In`, `NotIn`, `Exists`, `DoesNotExist`.
    pub operator: String,
    /// For the first two.
    pub values: Vec<String>,
}
