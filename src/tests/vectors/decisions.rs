//! Where a tunnel goes: what client, gateway and destination make of a target.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::load;
use crate::balance::WeightedRandom;
use crate::identity::SpiffeId;
use crate::mesh::{Network, Snapshot, Workload};
use crate::policy::{ConnectionInfo, authorize};
use crate::refusal::{Refusal, RefusalReason};
use crate::route::{self, Choice};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(rename = "about")]
    _about: String,
    #[serde(rename = "section")]
    _section: String,
    /// In the form of a mesh file: YAML, of which JSON is a part.
    meshes: BTreeMap<String, serde_json::Value>,
    cases: Vec<Case>,
}

#[derive(Debug, Deserialize)]
#[serde(tag = "role", rename_all = "snake_case", deny_unknown_fields)]
enum Case {
    Client {
        mesh: String,
        workload: String,
        target: String,
        #[serde(default)]
        hops: Vec<Hop>,
        authority: Option<String>,
    },
    Gateway {
        mesh: String,
        network: String,
        authority: String,
        #[serde(default)]
        backends: Vec<String>,
        status: Option<u16>,
        error: Option<String>,
    },
    Destination {
        mesh: String,
        workload: String,
        client: String,
        authority: String,
        connects_to: Option<String>,
        status: Option<u16>,
        error: Option<String>,
    },
}

#[derive(Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Hop {
    address: Option<String>,
    authority: Option<String>,
    accept: Vec<String>,
}

fn expect_refusal(refusal: &Refusal, status: Option<u16>, error: Option<&str>, case: &Case) {
    assert_eq!(Some(refusal.status().as_u16()), status, "{case:?}: {refusal}");
    assert_eq!(Some(refusal.reason()), error.map(RefusalReason::from_token).as_ref(), "{case:?}: {refusal}");
}

#[test]
fn decisions() {
    let file: File = load("decisions.json");
    let meshes: BTreeMap<&String, Snapshot> = file
        .meshes
        .iter()
        .map(|(name, mesh)| (name, Snapshot::parse(name, &mesh.to_string()).unwrap_or_else(|e| panic!("{e}"))))
        .collect();
    let named = |mesh: &String, workload: &str| {
        let (namespace, name) = workload.split_once('/').unwrap();
        meshes[mesh].workload_named(namespace, name).unwrap_or_else(|| panic!("{workload}")).clone()
    };
    for case in &file.cases {
        match case {
            Case::Client { mesh, workload, target, hops, authority } => {
                let (balance, source) = (WeightedRandom::new(), named(mesh, workload));
                let route = route::outbound(&meshes[mesh], &source, &target.parse().unwrap(), &Choice::new(&balance));
                let Ok(route) = route else {
                    assert!(hops.is_empty(), "{case:?}: {route:?}");
                    continue;
                };
                let ids = |ids: &crate::AcceptedIdentities| ids.iter().map(ToString::to_string).collect();
                let first = route.path.first();
                let first =
                    Hop { address: Some(first.address.to_string()), authority: None, accept: ids(&first.accept) };
                let rest = route.path.tunnelled().iter().map(|hop| Hop {
                    address: None,
                    authority: Some(hop.authority.to_string()),
                    accept: ids(&hop.accept),
                });
                assert_eq!(&[first].into_iter().chain(rest).collect::<Vec<_>>(), hops, "{case:?}");
                assert_eq!(Some(route.authority.to_string()), *authority, "{case:?}");
            }
            Case::Gateway { mesh, network, authority, backends, status, error } => {
                let (network, authority) = (Network::new(network.as_str()), authority.parse().unwrap());
                let balance = WeightedRandom::new();
                for _ in 0..20 {
                    match route::gateway(&meshes[mesh], &network, &authority, &Choice::new(&balance)) {
                        Ok(backend) => {
                            assert!(backends.contains(&backend.address.to_string()), "{case:?}: {backend:?}")
                        }
                        Err(refusal) => expect_refusal(&refusal, *status, error.as_deref(), case),
                    }
                }
            }
            Case::Destination { mesh, workload, client, authority, connects_to, status, error } => {
                let workload = named(mesh, workload);
                match destination(&meshes[mesh], &workload, client, authority) {
                    Ok(address) => assert_eq!(Some(address), *connects_to, "{case:?}"),
                    Err(refusal) => expect_refusal(&refusal, *status, error.as_deref(), case),
                }
            }
        }
    }
}

fn destination(mesh: &Snapshot, workload: &Workload, client: &str, authority: &str) -> Result<String, Refusal> {
    let destination = route::inbound(mesh, workload, &authority.parse().unwrap())?;
    let peer: SpiffeId = client.parse().unwrap();
    let connection = ConnectionInfo { peer: &peer, source_ip: None, destination };
    if authorize(mesh.policies_for(workload), &connection).is_allowed() {
        Ok(destination.to_string())
    } else {
        Err(Refusal::new(RefusalReason::Denied))
    }
}
