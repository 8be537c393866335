//! What a route asks of the balancer, and what it holds for it.

use std::sync::{Arc, Mutex};

use rstest::rstest;

use super::super::{Choice, gateway, outbound};
use super::{SANS, ZONES, client, mesh, near};
use crate::balance::{Balance, Candidate, InFlight, LocalityTiers, Pick, WeightedRandom};
use crate::mesh::Network;

/// Picks the first, and knows the uids of what is in flight.
#[derive(Clone, Debug, Default)]
struct Recording(Arc<Mutex<Vec<String>>>);

impl Recording {
    fn live(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }
}

impl Balance for Recording {
    fn pick(&self, candidates: &[Candidate<'_>]) -> Option<Pick> {
        struct Held(Recording, String);
        impl Drop for Held {
            fn drop(&mut self) {
                self.0.0.lock().unwrap().retain(|uid| *uid != self.1);
            }
        }
        let uid = candidates.first()?.workload.uid.to_string();
        self.0.lock().unwrap().push(uid.clone());
        Some(Pick::new(0, InFlight::new(Held(self.clone(), uid))))
    }
}

#[rstest]
#[case::near("network: east, workloadIps: [10.0.1.1], protocol: HBONE", &["e0"])]
#[case::far("network: west, protocol: HBONE, networkGateway: {destination: west/192.0.2.1}", &["e0", "gateway"])]
fn a_route_is_in_flight_at_endpoint_and_gateway_until_all_of_its_clones_are_gone(
    #[case] endpoint: &str,
    #[case] expected: &[&str],
) {
    let (mesh, balance) = (mesh(SANS, &[endpoint]), Recording::default());
    let route = outbound(&mesh, &client(&mesh), &"cart.shop:80".parse().unwrap(), &Choice::new(&balance)).unwrap();
    let clone = route.clone();
    drop(route);
    assert_eq!(balance.live(), expected);
    drop(clone);
    assert!(balance.live().is_empty());
}

#[test]
fn a_backend_is_in_flight_until_it_is_dropped() {
    let (mesh, balance) = (mesh("", &[&near(1, "")]), Recording::default());
    let backend =
        gateway(&mesh, &Network::new("east"), &"cart.shop:80".parse().unwrap(), &Choice::new(&balance)).unwrap();
    assert_eq!(balance.live(), ["e0"]);
    drop(backend);
    assert!(balance.live().is_empty());
}

#[test]
fn a_balancer_that_heeds_ranks_is_given_all_tiers_in_their_order() {
    let service = format!("{SANS}  loadBalancing: {{mode: FAILOVER, routingPreference: [NETWORK, REGION, ZONE]}}\n");
    let mesh = mesh(&service, ZONES);
    let picked = |balance: &dyn Balance, times: usize| -> Vec<String> {
        let target = "cart.shop:80".parse().unwrap();
        let routes: Vec<_> =
            (0..times).map(|_| outbound(&mesh, &client(&mesh), &target, &Choice::new(balance)).unwrap()).collect();
        routes.iter().map(|route| route.picked.uid.to_string()).collect()
    };
    let tiers = LocalityTiers::new(WeightedRandom::with_seed(1));
    assert_eq!(picked(&tiers, 20), ["e0"; 20]);
    assert_eq!(picked(&tiers.with_spill_over(1.0), 6), ["e0", "e1", "e2", "e3", "e4", "e0"]);
}
