//! A snapshot from a file: the tables of the control plane as YAML, in the form that ztunnel reads through
//! `LOCAL_XDS_PATH`.

mod node;
mod policies;
mod services;
#[cfg(test)]
mod tests;
mod workloads;

use std::net::IpAddr;
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;

use self::node::{At, Fields};
use super::address::{GatewayAddress, GatewayDestination, NetworkAddress, Ports};
use super::index::{Conflict, Snapshot};
use crate::error::Error;

impl Snapshot {
    /// Reads a mesh from a YAML file with the lists `workloads`, `services` and `policies`.
    ///
    /// The names are those of WDS (`istio.workload`, `istio.security`) in camel case, except for `workloadIps`,
    /// `protocol` (`HBONE` or `NONE`) and `vips`; a network address is written `network/IP`. One field of a service
    /// is this crate's own: `scope: LOCAL | GLOBAL`, since WDS has none ([`ServiceScope`](super::ServiceScope) says
    /// why).
    ///
    /// What WDS has and this crate does not use is skipped. Where skipping would change where a connection goes or
    /// who may open it, it is an error, as is a name that is in no table.
    ///
    /// ```
    /// # fn main() -> Result<(), hbone::Error> {
    /// use hbone::mesh::Snapshot;
    ///
    /// let mesh = Snapshot::parse("mesh.yaml", r#"
    /// workloads:
    /// - {uid: east//Pod/shop/cart, name: cart, namespace: shop, workloadIps: [10.0.0.1], protocol: HBONE}
    /// "#)?;
    /// assert!(mesh.workload_named("shop", "cart").is_some());
    ///
    /// let error = Snapshot::parse("mesh.yaml", "services:\n- hostnam: cart").unwrap_err();
    /// assert!(error.to_string().contains("mesh.yaml:2: services[0].hostnam: no such field"));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidInput`](crate::ErrorKind::InvalidInput), with file, line and field: when the file can't be
    /// read or is empty (it may be on its way to being replaced), when it is not YAML, when a field is not known or
    /// its value not valid, and where [`Snapshot::new`] fails.
    pub fn load(path: &Path) -> Result<Self, Error> {
        let name = path.display().to_string();
        let text = std::fs::read_to_string(path)
            .map_err(|e| Error::invalid(format!("{name}: the mesh can't be read")).with_source(e))?;
        Self::parse(&name, &text)
    }

    /// Like [`Snapshot::load`], from a text. `name` stands for the file in errors.
    ///
    /// # Errors
    ///
    /// As [`Snapshot::load`].
    pub fn parse(name: &str, text: &str) -> Result<Self, Error> {
        let root = node::parse(name, text)?;
        if root.at(name).is_null() {
            return Err(Error::invalid(format!("{name}:1: the file is empty")));
        }
        let root = root.at(name).fields(&["workloads", "services", "policies"])?;
        let workloads = read_list(&root, "workloads", workloads::read)?;
        let services = read_list(&root, "services", services::read)?;
        let policies = read_list(&root, "policies", policies::read)?;
        Self::index(workloads, services, policies).map_err(|conflict| locate(&root, &conflict))
    }
}

fn read_list<'a, T>(
    root: &Fields<'a>,
    name: &str,
    read: impl Fn(At<'a>) -> Result<T, Error>,
) -> Result<Vec<Arc<T>>, Error> {
    root.list(name)?.into_iter().map(|at| read(at).map(Arc::new)).collect()
}

/// Finds the line of a conflict between two entries that are valid by themselves.
fn locate(root: &Fields<'_>, conflict: &Conflict) -> Error {
    let entry = root.list(conflict.list).ok().and_then(|list| list.into_iter().nth(conflict.index));
    let known = [workloads::KNOWN, services::KNOWN, policies::KNOWN].concat();
    let place = entry.and_then(|entry| {
        let fields = entry.fields(&known).ok()?;
        let at = fields.get(conflict.field).or_else(|| fields.get("addresses"))?;
        match conflict.item {
            Some(item) => at.list().ok()?.nth(item),
            None => Some(at),
        }
    });
    match place {
        Some(at) => at.error(&conflict.message),
        None => Error::invalid(conflict.message.clone()),
    }
}

fn arc(text: &str) -> Arc<str> {
    text.into()
}

fn ip(at: &At<'_>) -> Result<IpAddr, Error> {
    at.parse::<IpAddr>("an IP address").map(|ip| ip.to_canonical())
}

fn network_address(at: &At<'_>) -> Result<NetworkAddress, Error> {
    at.parse("of the form network/IP")
}

fn port(at: &At<'_>) -> Result<u16, Error> {
    at.number(u16::MAX)
}

fn gateway_address(at: At<'_>) -> Result<GatewayAddress, Error> {
    let fields = at.fields(&["destination", "hboneMtlsPort"])?;
    let destination = fields.require("destination")?;
    let what = "of the form network/IP or namespace/hostname";
    let text = destination.text()?;
    let by_address = NetworkAddress::from_str(text).map(GatewayDestination::Address);
    let destination = match by_address {
        Ok(address) => address,
        Err(_) => GatewayDestination::Hostname(destination.parse(what)?),
    };
    let port = fields.get("hboneMtlsPort").map_or(Ok(0), |at| port(&at))?;
    Ok(GatewayAddress::new(destination, port))
}

/// A map from service ports to target ports.
fn ports(at: &At<'_>) -> Result<Ports, Error> {
    let mut ports = Vec::new();
    for (key, target) in at.entries()? {
        let service = match key.parse::<u16>() {
            Ok(service) if service != 0 => service,
            _ => return Err(target.error(format_args!("{key:?} is not a port from 1 to 65535"))),
        };
        if ports.iter().any(|(other, _)| *other == service) {
            return Err(target.error("stands here twice"));
        }
        ports.push((service, port(&target)?));
    }
    Ok(ports.into_iter().collect())
}
