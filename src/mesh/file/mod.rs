//! A mesh from a file: the tables of the control plane as YAML, in the form that ztunnel reads through
//! `LOCAL_XDS_PATH`.

mod left_out;
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

pub use self::left_out::LeftOut;
use self::left_out::What;
use self::node::{At, Fault, Fields};
use super::address::{GatewayAddress, GatewayDestination, NetworkAddress, Ports};
use super::resource::{Resource, ResourceName};
use super::snapshot::{Conflict, Snapshot};
use super::store::{Applied, Store};
use super::tables::Tables;
use crate::error::Error;
use crate::policy::Policy;

/// The resources of a mesh file, each taken or left out by itself.
///
/// A file is YAML with the lists `workloads`, `services` and `policies`. The names are those of WDS (`istio.workload`,
/// `istio.security`) in camel case, except for `workloadIps`, `protocol` (`HBONE` or `NONE`) and `vips`; a network
/// address is written `network/IP`. One field of a service is this crate's own: `scope: LOCAL | GLOBAL`, since WDS has
/// none ([`ServiceScope`](super::ServiceScope) says why). What WDS has and this crate does not use is skipped.
///
/// # What is left out
///
/// One odd entry must not stop the mesh, so it is left out, with file, line, field and reason in
/// [`left_out`](Self::left_out):
///
/// - An entry with a field that is in no table or a value that is not valid, and one whose name or address an entry
///   before it has. Where the file is read again, the version that was there before stays.
/// - Of a service, a subject alternative name that is no SPIFFE ID. The service stays, and accepts one less.
/// - A policy that can't be read must not let anybody in whom it would turn away. The version that was there before
///   stays; if there is none, a [stand-in](crate::policy::Policy::unreadable) denies whoever it may be about.
///
/// An error of the whole file, so that nothing of it is taken, is: that it can't be read or is empty (it may be on its
/// way to being replaced), that it is not YAML or not of these three lists, that a policy can't be read and neither can
/// be told for whom it holds, and that each of its entries is left out.
///
/// ```
/// # fn main() -> Result<(), hbone::Error> {
/// use hbone::mesh::{MeshFile, Store};
///
/// let file = MeshFile::parse("mesh.yaml", r#"
/// services:
/// - {name: cart, namespace: shop, hostname: cart.shop, ports: {80: 8080}}
/// - {name: any, namespace: shop, hostname: '*.example.com', ports: {443: 443}}
/// "#)?;
/// let left_out = file.left_out()[0].to_string();
/// assert_eq!(
///     left_out,
///     "mesh.yaml:4: services[1].hostname: \"*.example.com\" is not a valid DNS name; the service is left out"
/// );
///
/// let mut store = Store::new();
/// let applied = file.apply_to(&mut store);
/// assert_eq!(applied.changed.len(), 1);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct MeshFile {
    resources: Vec<Resource>,
    /// Stand-ins for policies that can't be read.
    stand_ins: Vec<Policy>,
    left_out: Vec<LeftOut>,
}

impl MeshFile {
    /// Reads a file.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidInput`](crate::ErrorKind::InvalidInput), with file, line and field, for an error
    /// [of the whole file](Self#what-is-left-out).
    pub fn load(path: &Path) -> Result<Self, Error> {
        let (name, text) = read(path)?;
        Self::parse(&name, &text)
    }

    /// Like [`MeshFile::load`], from a text. `name` stands for the file in messages.
    ///
    /// # Errors
    ///
    /// As [`MeshFile::load`].
    pub fn parse(name: &str, text: &str) -> Result<Self, Error> {
        let mut reading = Reading::new(name, text)?;
        if reading.resources.is_empty()
            && reading.stand_ins.is_empty()
            && let Some(first) = reading.left_out.first()
        {
            return Err(first.error());
        }
        if let Some(fault) = reading.fatal.pop() {
            return Err(fault.in_file(name));
        }
        let Reading { resources, stand_ins, left_out, .. } = reading;
        Ok(Self { resources, stand_ins, left_out })
    }

    /// The resources that were taken. No two of them conflict.
    pub fn resources(&self) -> &[Resource] {
        &self.resources
    }

    /// What was left out, and why.
    pub fn left_out(&self) -> &[LeftOut] {
        &self.left_out
    }

    /// Makes a mesh consist of what the file has, and of the previous versions of what was left out.
    pub fn apply_to(&self, store: &mut Store) -> Applied {
        let before = store.snapshot();
        let is_there = |stand_in: &&Policy| before.policy(&stand_in.name).is_some_and(|policy| !policy.is_unreadable());
        let stand_ins = self.stand_ins.iter().filter(|stand_in| !is_there(stand_in)).cloned().map(Resource::from);
        let keep = self.left_out.iter().filter_map(|left_out| left_out.resource().cloned());
        store.replace(self.resources.iter().cloned().chain(stand_ins), keep)
    }
}

impl Snapshot {
    /// Reads a mesh from a file of the form that [`MeshFile`] describes, and takes all of it or nothing.
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
    /// [`ErrorKind::InvalidInput`](crate::ErrorKind::InvalidInput), with file, line and field: where [`MeshFile::load`]
    /// fails or leaves something out.
    pub fn load(path: &Path) -> Result<Self, Error> {
        let (name, text) = read(path)?;
        Self::parse(&name, &text)
    }

    /// Like [`Snapshot::load`], from a text. `name` stands for the file in errors.
    ///
    /// # Errors
    ///
    /// As [`Snapshot::load`].
    pub fn parse(name: &str, text: &str) -> Result<Self, Error> {
        let reading = Reading::new(name, text)?;
        match reading.left_out.first() {
            Some(left_out) => Err(left_out.error()),
            None => Ok(Self(Arc::new(reading.tables))),
        }
    }
}

fn read(path: &Path) -> Result<(String, String), Error> {
    let name = path.display().to_string();
    match std::fs::read_to_string(path) {
        Ok(text) => Ok((name, text)),
        Err(error) => Err(Error::invalid(format!("{name}: the mesh can't be read")).with_source(error)),
    }
}

/// A file that is being read.
struct Reading {
    file: Arc<str>,
    /// What has been taken, so that what conflicts with it is found.
    tables: Tables,
    resources: Vec<Resource>,
    stand_ins: Vec<Policy>,
    left_out: Vec<LeftOut>,
    /// Why nothing of the file may be taken.
    fatal: Vec<Fault>,
}

impl Reading {
    fn new(file: &str, text: &str) -> Result<Self, Error> {
        let root = node::parse(file, text)?;
        if root.root().is_null() {
            return Err(Error::invalid(format!("{file}:1: the file is empty")));
        }
        let mut reading = Self {
            file: file.into(),
            tables: Tables::default(),
            resources: Vec::new(),
            stand_ins: Vec::new(),
            left_out: Vec::new(),
            fatal: Vec::new(),
        };
        let fields = root.root().fields(&["workloads", "services", "policies"]);
        fields.and_then(|fields| reading.lists(&fields)).map_err(|fault| fault.in_file(file))?;
        Ok(reading)
    }

    fn lists(&mut self, root: &Fields<'_>) -> Result<(), Fault> {
        // All are read before the first is indexed, so that workloads lie side by side in memory: choosing an endpoint
        // goes through all of a service.
        let entries = root.list("workloads")?;
        let workloads: Vec<_> = entries.iter().map(|at| workloads::read(at.clone()).map(Resource::from)).collect();
        for (at, workload) in entries.into_iter().zip(workloads) {
            self.entry(&at, What::Workload, || workloads::uid(&at).map(ResourceName::Workload), workload);
        }
        for at in root.list("services")? {
            let mut odd_names = Vec::new();
            let service = services::read(at.clone(), &mut odd_names).map(Resource::from);
            if service.is_ok() {
                let left_out = odd_names.into_iter().map(|fault| LeftOut::new(&self.file, fault, What::Name, None));
                self.left_out.extend(left_out);
            }
            self.entry(&at, What::Service, || services::name(&at).map(ResourceName::Service), service);
        }
        for at in root.list("policies")? {
            let policy = policies::read(at.clone()).map(Resource::from);
            let stand_in = || policies::stand_in(&at);
            if let Err(fault) = &policy {
                match stand_in() {
                    Some(stand_in) => self.stand_ins.push(stand_in),
                    None => self.fatal.push(fault.clone()),
                }
            }
            self.entry(&at, What::Policy, || Some(ResourceName::Policy(stand_in()?.name)), policy);
        }
        Ok(())
    }

    /// Takes an entry, or leaves it out; `name` is asked for then.
    fn entry(
        &mut self,
        at: &At<'_>,
        what: What,
        name: impl FnOnce() -> Option<ResourceName>,
        read: Result<Resource, Fault>,
    ) {
        let taken = read.and_then(|resource| {
            self.tables.add_new(&resource).map_err(|conflict| place(at, &conflict))?;
            Ok(resource)
        });
        match taken {
            Ok(resource) => self.resources.push(resource),
            Err(fault) => self.left_out.push(LeftOut::new(&self.file, fault, what, name())),
        }
    }
}

/// Where in an entry, valid by itself, a conflict with another one is.
fn place(entry: &At<'_>, conflict: &Conflict) -> Fault {
    let found = entry.clone().any_fields().ok().and_then(|fields| {
        let at = fields.get(conflict.field).or_else(|| fields.get("addresses"))?;
        match conflict.item {
            Some(item) => at.list().ok()?.nth(item),
            None => Some(at),
        }
    });
    found.as_ref().unwrap_or(entry).error(&conflict.message)
}

fn arc(text: &str) -> Arc<str> {
    text.into()
}

fn ip(at: &At<'_>) -> Result<IpAddr, Fault> {
    at.parse::<IpAddr>("an IP address").map(|ip| ip.to_canonical())
}

fn network_address(at: &At<'_>) -> Result<NetworkAddress, Fault> {
    at.parse("of the form network/IP")
}

fn port(at: &At<'_>) -> Result<u16, Fault> {
    at.number(u16::MAX)
}

fn gateway_address(at: At<'_>) -> Result<GatewayAddress, Fault> {
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
fn ports(at: &At<'_>) -> Result<Ports, Fault> {
    let mut ports = Vec::new();
    for (key, target) in at.entries()? {
        let service = match key.parse::<u16>() {
            Ok(service) if service != 0 => service,
            _ => return Err(target.error(format_args!("{key:?} is not a port from 1 to 65535"))),
        };
        if ports.iter().any(|(other, _)| *other == service) {
            return Err(target.error("is set twice"));
        }
        ports.push((service, port(&target)?));
    }
    Ok(ports.into_iter().collect())
}
