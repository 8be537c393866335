//! Names and addresses in the mesh, as distinct types.

use std::borrow::Borrow;
use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;

use crate::authority::{Authority, AuthorityError};

/// The HBONE port where none is given.
pub(crate) const HBONE_PORT: u16 = 15008;

/// The name of a network, in which addresses are unique and reachable from each other. The empty name is valid, and is
/// that of the only network in a mesh without others.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Network(Arc<str>);

/// A valid DNS name, in lower case and without a trailing dot.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Hostname(Arc<str>);

/// A hostname in a namespace, written `namespace/hostname`: the key of a service.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NamespacedHostname {
    /// The namespace.
    pub namespace: Arc<str>,
    /// The hostname.
    pub hostname: Hostname,
}

/// An address in a network, written `network/IP`. Networks may use the same addresses, so neither part identifies
/// anything by itself.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub struct NetworkAddress {
    /// The network.
    pub network: Network,
    /// The address. `::ffff:1.2.3.4` is kept as `1.2.3.4`.
    pub ip: IpAddr,
}

/// Where a gateway or waypoint is (`istio.workload.GatewayAddress`).
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub struct GatewayAddress {
    /// Its address or its service.
    pub destination: GatewayDestination,
    /// Its HBONE port; of a service the service port.
    pub hbone_mtls_port: u16,
}

/// The two forms of a [`GatewayAddress`].
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum GatewayDestination {
    /// An address.
    Address(NetworkAddress),
    /// A service.
    Hostname(NamespacedHostname),
}

/// Service ports, each with the target port of the workload.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ports(BTreeMap<u16, u16>);

/// Why a text is not an address or name in the mesh.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum AddressError {
    /// Not of the form `network/IP`.
    NotNetworkAddress,
    /// Not of the form `namespace/hostname`.
    NotNamespacedHostname,
    /// The hostname is not a valid DNS name.
    BadHostname(AuthorityError),
}

impl Network {
    /// The network of this name.
    pub fn new(name: impl Into<Arc<str>>) -> Self {
        Self(name.into())
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Hostname {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl NamespacedHostname {
    /// Builds a key from its parts.
    pub fn new(namespace: impl Into<Arc<str>>, hostname: Hostname) -> Self {
        Self { namespace: namespace.into(), hostname }
    }
}

impl NetworkAddress {
    /// Builds an address from its parts.
    pub fn new(network: Network, ip: IpAddr) -> Self {
        Self { network, ip: ip.to_canonical() }
    }
}

impl GatewayAddress {
    /// A gateway at `destination`. A `hbone_mtls_port` of 0, which is what a control plane sends for none, means 15008.
    pub fn new(destination: GatewayDestination, hbone_mtls_port: u16) -> Self {
        let hbone_mtls_port = if hbone_mtls_port == 0 { HBONE_PORT } else { hbone_mtls_port };
        Self { destination, hbone_mtls_port }
    }
}

impl Ports {
    /// The port of the workload behind this service port. `None` where the service does not have the port, or has a
    /// target port of 0, which stands for one that only the endpoint knows.
    pub fn target(&self, service_port: u16) -> Option<u16> {
        self.0.get(&service_port).copied().filter(|target| *target != 0)
    }

    /// Whether the service has this port.
    pub fn contains(&self, service_port: u16) -> bool {
        self.0.contains_key(&service_port)
    }

    /// Service ports and target ports, in order.
    pub fn iter(&self) -> impl Iterator<Item = (u16, u16)> + '_ {
        self.0.iter().map(|(service, target)| (*service, *target))
    }
}

/// From pairs of service port and target port.
impl FromIterator<(u16, u16)> for Ports {
    fn from_iter<I: IntoIterator<Item = (u16, u16)>>(ports: I) -> Self {
        Self(ports.into_iter().collect())
    }
}

impl Default for Network {
    fn default() -> Self {
        Self(Arc::from(""))
    }
}

/// So that a map with hostnames as keys finds them by their text.
impl Borrow<str> for Hostname {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl FromStr for Hostname {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match Authority::name(text, 1) {
            Ok(Authority::Name(name)) => Ok(Self(name.host().into())),
            Ok(Authority::Ip(_)) => Err(AddressError::BadHostname(AuthorityError::BadName)),
            Err(error) => Err(AddressError::BadHostname(error)),
        }
    }
}

impl FromStr for NamespacedHostname {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (namespace, hostname) = text.split_once('/').ok_or(AddressError::NotNamespacedHostname)?;
        Ok(Self::new(namespace, hostname.parse()?))
    }
}

impl FromStr for NetworkAddress {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (network, ip) = text.split_once('/').ok_or(AddressError::NotNetworkAddress)?;
        let ip = ip.parse().map_err(|_| AddressError::NotNetworkAddress)?;
        Ok(Self::new(Network::new(network), ip))
    }
}

/// The name in quotes, since it may be empty.
impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.0)
    }
}

impl fmt::Debug for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for Hostname {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Hostname {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for NamespacedHostname {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.hostname)
    }
}

impl fmt::Display for NetworkAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network.as_str(), self.ip)
    }
}

impl fmt::Display for GatewayAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.destination {
            GatewayDestination::Address(address) => write!(f, "{address}, port {}", self.hbone_mtls_port),
            GatewayDestination::Hostname(name) => write!(f, "{name}, port {}", self.hbone_mtls_port),
        }
    }
}

impl fmt::Display for AddressError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotNetworkAddress => f.write_str("not of the form network/IP"),
            Self::NotNamespacedHostname => f.write_str("not of the form namespace/hostname"),
            Self::BadHostname(AuthorityError::TooLong) => f.write_str("longer than any host name"),
            Self::BadHostname(_) => f.write_str("not a valid DNS name"),
        }
    }
}

impl std::error::Error for AddressError {}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("/10.88.0.2", "", "10.88.0.2")]
    #[case("west/2001:db8::1", "west", "2001:db8::1")]
    #[case("west/::ffff:10.0.0.1", "west", "10.0.0.1")]
    fn network_addresses_may_have_an_empty_network(#[case] text: &str, #[case] network: &str, #[case] ip: &str) {
        let address: NetworkAddress = text.parse().unwrap();
        assert_eq!((address.network.as_str(), address.ip), (network, ip.parse().unwrap()));
    }

    #[rstest]
    #[case("10.0.0.1")]
    #[case("west/")]
    #[case("west/10.0.0")]
    #[case("west/10.0.0.1/32")]
    fn other_network_addresses_are_refused(#[case] text: &str) {
        assert_eq!(text.parse::<NetworkAddress>(), Err(AddressError::NotNetworkAddress));
    }

    #[test]
    fn keys_are_equal_in_any_spelling_of_the_hostname() {
        let key: NamespacedHostname = "shop/Cart.Shop.".parse().unwrap();
        assert_eq!(key, "shop/cart.shop".parse().unwrap());
        assert_eq!(key.to_string(), "shop/cart.shop");
        assert_eq!("cart.shop".parse::<NamespacedHostname>(), Err(AddressError::NotNamespacedHostname));
        assert!(matches!("shop/*.shop".parse::<NamespacedHostname>(), Err(AddressError::BadHostname(_))));
        assert!(matches!("shop/10.0.0.1".parse::<NamespacedHostname>(), Err(AddressError::BadHostname(_))));
    }

    #[test]
    fn a_gateway_without_a_port_has_15008() {
        let at = GatewayDestination::Address("west/10.0.0.1".parse().unwrap());
        assert_eq!(GatewayAddress::new(at.clone(), 0).hbone_mtls_port, 15008);
        assert_eq!(GatewayAddress::new(at, 15009).hbone_mtls_port, 15009);
    }

    #[test]
    fn a_target_port_of_0_is_not_known() {
        let ports: Ports = [(80, 8080), (81, 0)].into_iter().collect();
        assert_eq!((ports.target(80), ports.target(81), ports.target(82)), (Some(8080), None, None));
        assert!(ports.contains(81));
    }
}
