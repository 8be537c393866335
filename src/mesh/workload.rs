//! Workloads: what runs, where, and under which identity.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use super::address::{GatewayAddress, Hostname, NamespacedHostname, Network, NetworkAddress, Ports};
use crate::identity::{SpiffeId, TrustDomain};
use crate::metadata::{Baggage, WorkloadType};
use crate::policy::PolicyName;

/// A pod, a virtual machine, a gateway, or a placeholder for all endpoints of a service in another network
/// (`istio.workload.Workload`).
///
/// [`Workload::new`] gives one with the defaults below; set what differs.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Workload {
    /// Its name in the mesh, unique in a snapshot: `cluster/group/kind/namespace/name`.
    pub uid: Arc<str>,
    /// Its name in its namespace.
    pub name: Arc<str>,
    identity: SpiffeId,
    /// Its addresses in its network; a placeholder has none. Default: none.
    pub addresses: Vec<IpAddr>,
    /// A name of its own. Default: none.
    pub hostname: Option<Hostname>,
    /// Its network. Default: the one with the empty name.
    pub network: Network,
    /// Whether its addresses are its node's, so that they don't identify it. Default: false.
    pub host_network: bool,
    /// How it is reached. Default: [`Protocol::None`].
    pub protocol: Protocol,
    /// The node that it runs on. Default: empty, for unknown.
    pub node: Arc<str>,
    /// The cluster that it is part of. Default: empty.
    pub cluster: Arc<str>,
    /// Where it runs. Default: unknown.
    pub locality: Locality,
    /// The services that it is an endpoint of, each with its own target ports. Default: none.
    pub services: BTreeMap<NamespacedHostname, Ports>,
    /// The gateway through which other networks reach it. Default: none.
    pub network_gateway: Option<GatewayAddress>,
    /// The waypoint that connections to it go through. Default: none.
    pub waypoint: Option<GatewayAddress>,
    /// The policies that select it, besides those of its namespace and of the mesh. Default: none.
    pub authorization_policies: Vec<PolicyName>,
    /// Whether it is ready. Default: [`Status::Healthy`].
    pub status: Status,
    /// Its weight; of a placeholder, the number of ready endpoints. 0 gets no traffic. Default: 1.
    pub capacity: u32,
    /// The application that it belongs to, for telemetry. Default: empty.
    pub canonical_name: Arc<str>,
    /// The version of the application, for telemetry. Default: empty.
    pub canonical_revision: Arc<str>,
    /// What created it, for telemetry. Default: [`WorkloadType::Deployment`].
    pub workload_type: WorkloadType,
    /// The name of what created it, for telemetry. Default: empty.
    pub workload_name: Arc<str>,
    /// How its proxy hands connections to the application. Default: as they are.
    pub application_tunnel: Option<ApplicationTunnel>,
}

/// How a workload is reached (`istio.workload.TunnelProtocol`). The legacy protocol of sidecars is not supported.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Protocol {
    /// Not by the mesh. This crate does not connect to it, since that would be plaintext.
    #[default]
    None,
    /// HBONE.
    Hbone,
}

/// Whether a workload is ready (`istio.workload.WorkloadStatus`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Status {
    /// Ready.
    #[default]
    Healthy,
    /// Not ready.
    Unhealthy,
}

/// How a proxy hands connections to the workload's application (`istio.workload.ApplicationTunnel`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct ApplicationTunnel {
    /// The form.
    pub protocol: ApplicationProtocol,
    /// The port of the application that takes them. 0: the one that the tunnel leads to.
    pub port: u16,
}

/// The form in which an application takes connections (`istio.workload.ApplicationTunnel.Protocol`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ApplicationProtocol {
    /// As they are.
    #[default]
    None,
    /// With a PROXY protocol header in front. This crate sends none, so it does not serve such a workload; others may,
    /// so connecting to it is fine.
    Proxy,
}

/// Where a workload runs (`istio.workload.Locality`). An empty text stands for an unknown place, and equals no other.
///
/// ```
/// use hbone::mesh::Locality;
///
/// let here = Locality::new("eu-west").with_zone("eu-west-1b");
/// assert_eq!((&*here.region, &*here.zone, &*here.subzone), ("eu-west", "eu-west-1b", ""));
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Locality {
    /// The region.
    pub region: Arc<str>,
    /// The zone in the region.
    pub zone: Arc<str>,
    /// The part of the zone.
    pub subzone: Arc<str>,
}

impl Workload {
    /// A workload with the defaults of its fields. Its namespace, service account and trust domain are those of
    /// `identity`.
    pub fn new(uid: impl Into<Arc<str>>, name: impl Into<Arc<str>>, identity: SpiffeId) -> Self {
        let empty = Arc::<str>::from("");
        Self {
            uid: uid.into(),
            name: name.into(),
            identity,
            addresses: Vec::new(),
            hostname: None,
            network: Network::default(),
            host_network: false,
            protocol: Protocol::default(),
            node: empty.clone(),
            cluster: empty.clone(),
            locality: Locality::default(),
            services: BTreeMap::new(),
            network_gateway: None,
            waypoint: None,
            authorization_policies: Vec::new(),
            status: Status::default(),
            capacity: 1,
            canonical_name: empty.clone(),
            canonical_revision: empty.clone(),
            workload_type: WorkloadType::Deployment,
            workload_name: empty,
            application_tunnel: None,
        }
    }

    /// The identity that its certificate has to prove.
    pub fn identity(&self) -> &SpiffeId {
        &self.identity
    }

    /// The namespace.
    pub fn namespace(&self) -> &str {
        self.identity.namespace()
    }

    /// The baggage by which its proxy describes it to peers. For display only, on both sides.
    pub fn baggage(&self) -> Baggage {
        let (kind, name) = match &*self.workload_name {
            "" => (WorkloadType::Pod, &*self.name),
            name => (self.workload_type, name),
        };
        // Empty values are left out by the setters.
        Baggage::default()
            .with_cluster(&*self.cluster)
            .with_namespace(self.namespace())
            .with_workload(kind, name)
            .with_service_name(&*self.canonical_name)
            .with_service_version(&*self.canonical_revision)
            .with_region(&*self.locality.region)
            .with_zone(&*self.locality.zone)
    }

    /// The service account.
    pub fn service_account(&self) -> &str {
        self.identity.service_account()
    }

    /// The trust domain.
    pub fn trust_domain(&self) -> &TrustDomain {
        self.identity.trust_domain()
    }

    /// Whether it has this address. `::ffff:1.2.3.4` is `1.2.3.4`.
    pub fn has_address(&self, ip: IpAddr) -> bool {
        self.addresses.iter().any(|a| a.to_canonical() == ip.to_canonical())
    }

    /// Its addresses in the order in which to try them from `from`: those of the same family first, each family in the
    /// order of [`addresses`](Self::addresses). Without `from` in that order alone.
    ///
    /// A workload with several addresses may listen at any of them, so a caller that fails at one tries the next.
    pub fn addresses_from(&self, from: Option<IpAddr>) -> impl Iterator<Item = IpAddr> + '_ {
        let like = move |ip: &IpAddr| from.is_none_or(|from| from.to_canonical().is_ipv4() == ip.is_ipv4());
        let all = || self.addresses.iter().map(IpAddr::to_canonical);
        all().filter(move |ip| like(ip)).chain(all().filter(move |ip| !like(ip)))
    }

    /// The addresses that are its alone in its network: none if they are its node's.
    pub(super) fn own_addresses(&self) -> impl Iterator<Item = NetworkAddress> + '_ {
        let addresses = if self.host_network { &[] } else { &*self.addresses };
        addresses.iter().map(|ip| NetworkAddress::new(self.network.clone(), *ip))
    }
}

impl ApplicationTunnel {
    /// Connections in this form, to this port. A `port` of 0 stands for the one that the tunnel leads to.
    pub fn new(protocol: ApplicationProtocol, port: u16) -> Self {
        Self { protocol, port }
    }
}

impl Locality {
    /// A region, with zone and subzone unknown.
    pub fn new(region: impl Into<Arc<str>>) -> Self {
        Self { region: region.into(), ..Self::default() }
    }

    /// Sets the zone.
    pub fn with_zone(mut self, zone: impl Into<Arc<str>>) -> Self {
        self.zone = zone.into();
        self
    }

    /// Sets the part of the zone.
    pub fn with_subzone(mut self, subzone: impl Into<Arc<str>>) -> Self {
        self.subzone = subzone.into();
        self
    }
}

impl Default for Locality {
    fn default() -> Self {
        let empty = Arc::<str>::from("");
        Self { region: empty.clone(), zone: empty.clone(), subzone: empty }
    }
}

/// Namespace, name and uid, for messages.
impl fmt::Display for Workload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{} ({})", self.namespace(), self.name, self.uid)
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[test]
    fn namespace_and_account_are_those_of_the_identity() {
        let workload = Workload::new("uid", "cart-1", "spiffe://td/ns/shop/sa/cart".parse().unwrap());
        assert_eq!((workload.namespace(), workload.service_account()), ("shop", "cart"));
        assert_eq!(workload.identity().to_string(), "spiffe://td/ns/shop/sa/cart");
        assert_eq!(workload.to_string(), "shop/cart-1 (uid)");
    }

    #[test]
    fn defaults_are_those_of_wds_and_plaintext_is_not_hbone() {
        let workload = Workload::new("uid", "cart-1", "spiffe://td/ns/shop/sa/cart".parse().unwrap());
        assert_eq!((workload.capacity, workload.status, workload.protocol), (1, Status::Healthy, Protocol::None));
    }

    #[rstest]
    #[case(None, ["fd00::1", "10.0.0.1", "fd00::2", "10.0.0.2"])]
    #[case(Some("10.9.9.9"), ["10.0.0.1", "10.0.0.2", "fd00::1", "fd00::2"])]
    #[case(Some("::ffff:10.9.9.9"), ["10.0.0.1", "10.0.0.2", "fd00::1", "fd00::2"])]
    #[case(Some("fd00::9"), ["fd00::1", "fd00::2", "10.0.0.1", "10.0.0.2"])]
    fn addresses_of_the_same_family_come_first_and_none_is_left_out(
        #[case] from: Option<&str>,
        #[case] expected: [&str; 4],
    ) {
        let mut workload = Workload::new("uid", "cart-1", "spiffe://td/ns/shop/sa/cart".parse().unwrap());
        workload.addresses =
            ["fd00::1", "::ffff:10.0.0.1", "fd00::2", "10.0.0.2"].map(|ip| ip.parse().unwrap()).to_vec();
        let found: Vec<String> =
            workload.addresses_from(from.map(|ip| ip.parse().unwrap())).map(|ip| ip.to_string()).collect();
        assert_eq!(found, expected);
    }
}
