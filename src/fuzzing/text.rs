//! Parsers of text.

use std::net::IpAddr;

use http::Uri;

use crate::authority::Authority;
use crate::error::ErrorKind;
use crate::identity::{AcceptedIdentities, SpiffeId, TrustDomain};
use crate::mesh::{MeshFile, Snapshot, Store};

/// An authority has one written form, which is a valid URI authority.
pub fn authority(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else { return };
    let Ok(authority) = text.parse::<Authority>() else { return };
    let printed = authority.to_string();
    assert_eq!(printed.parse().as_ref(), Ok(&authority));
    assert_ne!(authority.port(), 0);
    let uri = Uri::from_maybe_shared(printed.clone()).expect("an authority that HTTP takes");
    assert_eq!(uri.authority().map(|authority| authority.as_str()), Some(&*printed));
    match &authority {
        Authority::Ip(address) => assert_eq!(printed, address.to_string()),
        Authority::Name(name) => {
            let host = name.host();
            assert_eq!(Authority::name(host, name.port()).as_ref(), Ok(&authority));
            assert!(host.len() <= 253 && !host.ends_with('.') && !host.bytes().any(|b| b.is_ascii_uppercase()));
            assert!(host.parse::<IpAddr>().is_err(), "an address is not a name");
            assert!(text.to_ascii_lowercase().starts_with(host), "it leads to what was written");
        }
    }
}

/// A SPIFFE ID prints as the text that it was parsed from.
pub fn spiffe_id(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else { return };
    if let Ok(id) = text.parse::<SpiffeId>() {
        assert_eq!(id.to_string(), text);
        assert!(text.len() <= 2048 && text.bytes().all(|b| b.is_ascii_graphic()));
        let parts = text.strip_prefix("spiffe://").map(|rest| rest.split('/').collect::<Vec<_>>());
        let own = [id.trust_domain().as_str(), "ns", id.namespace(), "sa", id.service_account()];
        assert_eq!(parts.as_deref(), Some(&own[..]));
        assert_eq!(SpiffeId::new(id.trust_domain().clone(), id.namespace(), id.service_account()).as_ref(), Ok(&id));
        assert!(AcceptedIdentities::from(id.clone()).contains(&id));
    }
    if let Ok(domain) = text.parse::<TrustDomain>() {
        assert_eq!(domain.as_str(), text);
        let id: SpiffeId = format!("spiffe://{text}/ns/a/sa/b").parse().expect("an identity in a trust domain");
        assert_eq!(id.trust_domain(), &domain);
    }
}

/// A mesh file loads, or its error names a line; what was loaded is found by its keys.
pub fn mesh_file(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else { return };
    let file = MeshFile::parse("mesh.yaml", text);
    let whole = Snapshot::parse("mesh.yaml", text);
    if let Ok(file) = &file {
        let mut store = Store::new();
        assert!(file.apply_to(&mut store).rejected.is_empty(), "what is taken from a file does not conflict");
        assert_eq!(whole.is_ok(), file.left_out().is_empty());
        assert!(whole.as_ref().is_ok_and(|mesh| *mesh == store.snapshot()) || !file.left_out().is_empty());
        let applied = file.apply_to(&mut store);
        assert!(applied.changed.is_empty(), "a file that is read again changes nothing: {:?}", applied.changed);
    }
    let mesh = match whole {
        Ok(mesh) => {
            assert!(file.is_ok());
            mesh
        }
        Err(error) => {
            assert_eq!(error.kind(), &ErrorKind::InvalidInput);
            let place = error.to_string().split_once("mesh.yaml:").map(|(_, rest)| rest.to_owned());
            let line = place.as_deref().and_then(|rest| rest.split(':').next()?.parse::<usize>().ok());
            // What YAML 1.1 or 1.2 takes for the end of a line.
            let lines = text.split(['\n', '\r', '\u{85}', '\u{2028}', '\u{2029}']).count();
            assert!(line.is_some_and(|line| (1..=lines + 1).contains(&line)), "no line of {lines}: {error}");
            return;
        }
    };
    for workload in mesh.workloads() {
        assert!(mesh.workload(&workload.uid).is_some_and(|found| found.uid == workload.uid));
        // A workload that shares its node's addresses is not found by them.
        for ip in workload.addresses.iter().filter(|_| !workload.host_network) {
            let found = mesh.workload_at(&workload.network, *ip);
            assert!(found.is_some_and(|found| found.uid == workload.uid), "{ip} of {workload:?} leads to {found:?}");
        }
        let _ = mesh.policies_for(workload);
    }
    for service in mesh.services() {
        for endpoint in mesh.endpoints(service) {
            assert!(mesh.workload(&endpoint.workload.uid).is_some(), "an endpoint that is not in the mesh");
        }
    }
}
