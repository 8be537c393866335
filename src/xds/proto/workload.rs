//! `istio.workload`: what a proxy learns of the mesh.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::json;

/// A resource of [`ADDRESS_TYPE`](super::ADDRESS_TYPE).
#[derive(Clone, PartialEq, prost::Message, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Address {
    /// Which.
    #[prost(oneof = "address::Type", tags = "1, 2")]
    #[serde(flatten)]
    pub r#type: Option<address::Type>,
}

/// The kinds of [`Address`].
pub mod address {
    use serde::{Deserialize, Serialize};

    /// A workload or a service.
    #[derive(Clone, PartialEq, prost::Oneof, Serialize, Deserialize)]
    #[serde(rename_all = "camelCase")]
    pub enum Type {
        /// A workload; its name is its uid.
        #[prost(message, tag = "1")]
        Workload(Box<super::Workload>),
        /// A service; its name is `NAMESPACE/HOSTNAME`.
        #[prost(message, tag = "2")]
        Service(Box<super::Service>),
    }
}

/// What runs somewhere, or stands for what runs in another network.
#[derive(Clone, PartialEq, prost::Message, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Workload {
    /// Its name.
    #[prost(string, tag = "1")]
    #[serde(skip_serializing_if = "json::is_default")]
    pub name: String,
    /// Its namespace.
    #[prost(string, tag = "2")]
    #[serde(skip_serializing_if = "json::is_default")]
    pub namespace: String,
    /// Four or sixteen bytes each.
    #[prost(bytes = "bytes", repeated, tag = "3")]
    #[serde(skip_serializing_if = "json::is_default", with = "json::base64_list")]
    pub addresses: Vec<bytes::Bytes>,
    /// Where its addresses mean something.
    #[prost(string, tag = "4")]
    #[serde(skip_serializing_if = "json::is_default")]
    pub network: String,
    /// How it is spoken to.
    #[prost(enumeration = "TunnelProtocol", tag = "5")]
    #[serde(skip_serializing_if = "json::is_default", with = "json::tunnel_protocol")]
    pub tunnel_protocol: i32,
    /// Of its identity; empty is `cluster.local`.
    #[prost(string, tag = "6")]
    #[serde(skip_serializing_if = "json::is_default")]
    pub trust_domain: String,
    /// Of its identity; empty is `default`.
    #[prost(string, tag = "7")]
    #[serde(skip_serializing_if = "json::is_default")]
    pub service_account: String,
    /// The waypoint before it.
    #[prost(message, optional, tag = "8")]
    #[serde(skip_serializing_if = "json::is_default")]
    pub waypoint: Option<GatewayAddress>,
    /// Its node.
    #[prost(string, tag = "9")]
    #[serde(skip_serializing_if = "json::is_default")]
    pub node: String,
    /// For telemetry.
    #[prost(string, tag = "10")]
    #[serde(skip_serializing_if = "json::is_default")]
    pub canonical_name: String,
    /// For telemetry.
    #[prost(string, tag = "11")]
    #[serde(skip_serializing_if = "json::is_default")]
    pub canonical_revision: String,
    /// What `workload_name` is.
    #[prost(enumeration = "WorkloadType", tag = "12")]
    #[serde(skip_serializing_if = "json::is_default", with = "json::workload_type")]
    pub workload_type: i32,
    /// For telemetry.
    #[prost(string, tag = "13")]
    #[serde(skip_serializing_if = "json::is_default")]
    pub workload_name: String,
    /// Whether it takes tunnels by itself.
    #[prost(bool, tag = "14")]
    #[serde(skip_serializing_if = "json::is_default")]
    pub native_tunnel: bool,
    /// `NAMESPACE/NAME` of the policies that name it.
    #[prost(string, repeated, tag = "16")]
    #[serde(skip_serializing_if = "json::is_default")]
    pub authorization_policies: Vec<String>,
    /// Whether it is ready.
    #[prost(enumeration = "WorkloadStatus", tag = "17")]
    #[serde(skip_serializing_if = "json::is_default", with = "json::workload_status")]
    pub status: i32,
    /// Its cluster.
    #[prost(string, tag = "18")]
    #[serde(skip_serializing_if = "json::is_default")]
    pub cluster_id: String,
    /// The way into its network.
    #[prost(message, optional, tag = "19")]
    #[serde(skip_serializing_if = "json::is_default")]
    pub network_gateway: Option<GatewayAddress>,
    /// Unique in the mesh.
    #[prost(string, tag = "20")]
    #[serde(skip_serializing_if = "json::is_default")]
    pub uid: String,
    /// To be resolved where it has no address.
    #[prost(string, tag = "21")]
    #[serde(skip_serializing_if = "json::is_default")]
    pub hostname: String,
    /// The ports of each service that it is an endpoint of, by `NAMESPACE/HOSTNAME`.
    #[prost(btree_map = "string, message", tag = "22")]
    #[serde(skip_serializing_if = "json::is_default")]
    pub services: BTreeMap<String, PortList>,
    /// What its application speaks instead of plain TCP.
    #[prost(message, optional, tag = "23")]
    #[serde(skip_serializing_if = "json::is_default")]
    pub application_tunnel: Option<ApplicationTunnel>,
    /// Where it is.
    #[prost(message, optional, tag = "24")]
    #[serde(skip_serializing_if = "json::is_default")]
    pub locality: Option<Locality>,
    /// Whether it has addresses of its own.
    #[prost(enumeration = "NetworkMode", tag = "25")]
    #[serde(skip_serializing_if = "json::is_default", with = "json::network_mode")]
    pub network_mode: i32,
    /// How many endpoints it stands for; absent is 1.
    #[prost(message, optional, tag = "27")]
    #[serde(skip_serializing_if = "json::is_default")]
    pub capacity: Option<UInt32Value>,
}

/// A name, and what is behind it.
#[derive(Clone, PartialEq, prost::Message, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Service {
    /// Its name.
    #[prost(string, tag = "1")]
    #[serde(skip_serializing_if = "json::is_default")]
    pub name: String,
    /// Its namespace.
    #[prost(string, tag = "2")]
    #[serde(skip_serializing_if = "json::is_default")]
    pub namespace: String,
    /// Its name in DNS.
    #[prost(string, tag = "3")]
    #[serde(skip_serializing_if = "json::is_default")]
    pub hostname: String,
    /// Its virtual addresses, each in its network.
    #[prost(message, repeated, tag = "4")]
    #[serde(skip_serializing_if = "json::is_default")]
    pub addresses: Vec<NetworkAddress>,
    /// Its ports.
    #[prost(message, repeated, tag = "5")]
    #[serde(skip_serializing_if = "json::is_default")]
    pub ports: Vec<Port>,
    /// Identities that its endpoints may have beside their own.
    #[prost(string, repeated, tag = "6")]
    #[serde(skip_serializing_if = "json::is_default")]
    pub subject_alt_names: Vec<String>,
    /// The waypoint before it.
    #[prost(message, optional, tag = "7")]
    #[serde(skip_serializing_if = "json::is_default")]
    pub waypoint: Option<GatewayAddress>,
    /// Which endpoints are preferred.
    #[prost(message, optional, tag = "8")]
    #[serde(skip_serializing_if = "json::is_default")]
    pub load_balancing: Option<LoadBalancing>,
    /// Which addresses of an endpoint may be used.
    #[prost(enumeration = "IpFamilies", tag = "9")]
    #[serde(skip_serializing_if = "json::is_default", with = "json::ip_families")]
    pub ip_families: i32,
    /// Whether it is what its hostname stands for.
    #[prost(bool, tag = "11")]
    #[serde(skip_serializing_if = "json::is_default")]
    pub canonical: bool,
    /// Whether traffic of ingress gateways passes the waypoint.
    #[prost(bool, tag = "12")]
    #[serde(skip_serializing_if = "json::is_default")]
    pub ingress_use_waypoint: bool,
    /// Several waypoints, of which one is drawn.
    #[prost(message, repeated, tag = "13")]
    #[serde(skip_serializing_if = "json::is_default")]
    pub weighted_waypoints: Vec<WeightedWaypoint>,
    /// Who may see it.
    #[prost(enumeration = "Visibility", tag = "14")]
    #[serde(skip_serializing_if = "json::is_default", with = "json::visibility")]
    pub visibility: i32,
}

/// Which endpoints are preferred.
#[derive(Clone, PartialEq, prost::Message, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LoadBalancing {
    /// In order.
    #[prost(enumeration = "load_balancing::Scope", repeated, tag = "1")]
    #[serde(skip_serializing_if = "json::is_default", with = "json::routing_scopes")]
    pub routing_preference: Vec<i32>,
    /// What they mean.
    #[prost(enumeration = "load_balancing::Mode", tag = "2")]
    #[serde(skip_serializing_if = "json::is_default", with = "json::mode")]
    pub mode: i32,
    /// Which endpoints count.
    #[prost(enumeration = "load_balancing::HealthPolicy", tag = "3")]
    #[serde(skip_serializing_if = "json::is_default", with = "json::health_policy")]
    pub health_policy: i32,
}

/// The enums of [`LoadBalancing`].
pub mod load_balancing {
    proto_enum! {
        /// What an endpoint may have in common with the client.
        Scope {
            /// Nothing.
            Unspecified = 0 "UNSPECIFIED_SCOPE",
            /// The region.
            Region = 1 "REGION",
            /// The zone.
            Zone = 2 "ZONE",
            /// The subzone.
            Subzone = 3 "SUBZONE",
            /// The node.
            Node = 4 "NODE",
            /// The cluster.
            Cluster = 5 "CLUSTER",
            /// The network.
            Network = 6 "NETWORK",
        }
    }

    proto_enum! {
        /// What preferences mean.
        Mode {
            /// Nothing.
            Unspecified = 0 "UNSPECIFIED_MODE",
            /// Only those that match all.
            Strict = 1 "STRICT",
            /// The others where there are none.
            Failover = 2 "FAILOVER",
            /// The address that was dialed.
            Passthrough = 3 "PASSTHROUGH",
        }
    }

    proto_enum! {
        /// Which endpoints count.
        HealthPolicy {
            /// Healthy ones.
            OnlyHealthy = 0 "ONLY_HEALTHY",
            /// All.
            AllowAll = 1 "ALLOW_ALL",
        }
    }
}

/// Ports of an endpoint.
#[derive(Clone, PartialEq, prost::Message, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PortList {
    /// The ports.
    #[prost(message, repeated, tag = "1")]
    #[serde(skip_serializing_if = "json::is_default")]
    pub ports: Vec<Port>,
}

/// A port.
#[derive(Clone, PartialEq, prost::Message, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Port {
    /// Of the service.
    #[prost(uint32, tag = "1")]
    #[serde(skip_serializing_if = "json::is_default")]
    pub service_port: u32,
    /// Of the endpoint; 0 where endpoints differ.
    #[prost(uint32, tag = "2")]
    #[serde(skip_serializing_if = "json::is_default")]
    pub target_port: u32,
    /// What is spoken there.
    #[prost(enumeration = "AppProtocol", tag = "3")]
    #[serde(skip_serializing_if = "json::is_default", with = "json::app_protocol")]
    pub app_protocol: i32,
}

/// A gateway or waypoint.
#[derive(Clone, PartialEq, prost::Message, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct GatewayAddress {
    /// Where it is.
    #[prost(oneof = "gateway_address::Destination", tags = "1, 2")]
    #[serde(flatten)]
    pub destination: Option<gateway_address::Destination>,
    /// 0 is 15008.
    #[prost(uint32, tag = "3")]
    #[serde(skip_serializing_if = "json::is_default")]
    pub hbone_mtls_port: u32,
}

/// The kinds of [`GatewayAddress`].
pub mod gateway_address {
    use serde::{Deserialize, Serialize};

    /// Where it is.
    #[derive(Clone, PartialEq, prost::Oneof, Serialize, Deserialize)]
    #[serde(rename_all = "camelCase")]
    pub enum Destination {
        /// By name.
        #[prost(message, tag = "1")]
        Hostname(super::NamespacedHostname),
        /// By address.
        #[prost(message, tag = "2")]
        Address(super::NetworkAddress),
    }
}

/// An address in its network.
#[derive(Clone, PartialEq, prost::Message, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NetworkAddress {
    /// The network.
    #[prost(string, tag = "1")]
    #[serde(skip_serializing_if = "json::is_default")]
    pub network: String,
    /// Four or sixteen bytes.
    #[prost(bytes = "bytes", tag = "2")]
    #[serde(skip_serializing_if = "json::is_default", with = "json::base64")]
    pub address: bytes::Bytes,
    /// How many bits count, where it is a range.
    #[prost(uint32, optional, tag = "3")]
    #[serde(skip_serializing_if = "json::is_default")]
    pub length: Option<u32>,
}

/// A service by name.
#[derive(Clone, PartialEq, prost::Message, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NamespacedHostname {
    /// Its namespace.
    #[prost(string, tag = "1")]
    #[serde(skip_serializing_if = "json::is_default")]
    pub namespace: String,
    /// Its name in DNS.
    #[prost(string, tag = "2")]
    #[serde(skip_serializing_if = "json::is_default")]
    pub hostname: String,
}

/// Where something is.
#[derive(Clone, PartialEq, prost::Message, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Locality {
    /// The region.
    #[prost(string, tag = "1")]
    #[serde(skip_serializing_if = "json::is_default")]
    pub region: String,
    /// The zone.
    #[prost(string, tag = "2")]
    #[serde(skip_serializing_if = "json::is_default")]
    pub zone: String,
    /// The subzone.
    #[prost(string, tag = "3")]
    #[serde(skip_serializing_if = "json::is_default")]
    pub subzone: String,
}

/// What an application speaks instead of plain TCP.
#[derive(Clone, PartialEq, prost::Message, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ApplicationTunnel {
    /// Which protocol.
    #[prost(enumeration = "application_tunnel::Protocol", tag = "1")]
    #[serde(skip_serializing_if = "json::is_default", with = "json::application_protocol")]
    pub protocol: i32,
    /// At which port; 0 is that of the destination.
    #[prost(uint32, tag = "2")]
    #[serde(skip_serializing_if = "json::is_default")]
    pub port: u32,
}

/// The enum of [`ApplicationTunnel`].
pub mod application_tunnel {
    proto_enum! {
        /// What an application speaks.
        Protocol {
            /// Plain TCP.
            None = 0 "NONE",
            /// PROXY protocol.
            Proxy = 1 "PROXY",
        }
    }
}

/// One of several waypoints.
#[derive(Clone, PartialEq, prost::Message, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct WeightedWaypoint {
    /// Where it is.
    #[prost(message, optional, tag = "1")]
    #[serde(skip_serializing_if = "json::is_default")]
    pub destination: Option<GatewayAddress>,
    /// Its share.
    #[prost(uint32, tag = "2")]
    #[serde(skip_serializing_if = "json::is_default")]
    pub weight: u32,
}

proto_enum! {
    /// How a workload is spoken to.
    TunnelProtocol {
        /// In plain TCP.
        None = 0 "NONE",
        /// By HBONE.
        Hbone = 1 "HBONE",
        /// By TLS of a sidecar.
        LegacyIstioMtls = 2 "LEGACY_ISTIO_MTLS",
    }
}

proto_enum! {
    /// Whether a workload is ready.
    WorkloadStatus {
        /// It is.
        Healthy = 0 "HEALTHY",
        /// It is not.
        Unhealthy = 1 "UNHEALTHY",
    }
}

proto_enum! {
    /// What a workload belongs to.
    WorkloadType {
        /// A deployment.
        Deployment = 0 "DEPLOYMENT",
        /// A cron job.
        CronJob = 1 "CRONJOB",
        /// Nothing.
        Pod = 2 "POD",
        /// A job.
        Job = 3 "JOB",
    }
}

proto_enum! {
    /// Whether a workload has addresses of its own.
    NetworkMode {
        /// It has.
        Standard = 0 "STANDARD",
        /// It has those of its node.
        HostNetwork = 1 "HOST_NETWORK",
    }
}

proto_enum! {
    /// What is spoken at a port.
    AppProtocol {
        /// Unknown.
        Unknown = 0 "UNKNOWN",
        /// HTTP/1.1.
        Http11 = 1 "HTTP11",
        /// HTTP/2.
        Http2 = 2 "HTTP2",
        /// gRPC.
        Grpc = 3 "GRPC",
        /// TCP.
        Tcp = 4 "TCP",
        /// TLS.
        Tls = 5 "TLS",
    }
}

proto_enum! {
    /// Which addresses of an endpoint may be used.
    IpFamilies {
        /// Any.
        Automatic = 0 "AUTOMATIC",
        /// IPv4.
        Ipv4Only = 1 "IPV4_ONLY",
        /// IPv6.
        Ipv6Only = 2 "IPV6_ONLY",
        /// Both.
        Dual = 3 "DUAL",
    }
}

proto_enum! {
    /// Who may see a service.
    Visibility {
        /// All.
        Public = 0 "PUBLIC",
        /// Its namespace.
        Namespace = 1 "NAMESPACE",
    }
}

/// `google.protobuf.UInt32Value`.
#[derive(Clone, Copy, PartialEq, prost::Message, Serialize, Deserialize)]
#[serde(transparent)]
pub struct UInt32Value {
    /// The value.
    #[prost(uint32, tag = "1")]
    pub value: u32,
}
