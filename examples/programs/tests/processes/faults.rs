//! Peers that die, stall, refuse and come back, under a load of 64 short connections at a time. None of them may fail,
//! and what has come back gets its share again.
//!
//! A connection whose tunnel was open in a process that was killed is cut: its bytes may have been on the way, so
//! nobody may send them again. These are counted, and nothing else may happen to any connection: all that had no 200
//! yet gets one.
//!
//! Each scenario runs for one and a half seconds beside the time that start and recovery take. To run them for longer,
//! and to see their figures:
//!
//! ```sh
//! HBONE_FAULT_SECONDS=10 cargo test --release --test processes faults -- --nocapture
//! ```

mod cluster;
mod fake;
mod load;

use rstest::rstest;
use tokio::time::{Instant, sleep};

use cluster::{Cluster, PODS};
use fake::{Counter, Fake, Wrong, load_time};
use load::{Load, Report};

use crate::process::Proxy;

/// Ends the load. `killed` is when something had been killed for good.
async fn finish(scenario: &str, load: Load, client: Proxy, killed: Option<Instant>) {
    assert_fine(scenario, &load.finish().await, client, killed);
}

fn assert_fine(scenario: &str, report: &Report, mut client: Proxy, killed: Option<Instant>) {
    println!("{scenario}: {report}");
    let lost = report.lost(killed);
    assert!(lost.is_empty(), "connections failed:\n{lost}\nof the log of their proxy:\n{}", client.logged());
}

/// Lets the load run while something is broken.
async fn endure(load: &Load) {
    sleep(load_time()).await;
    let since = Instant::now();
    load.until("more connections", |records| records.iter().filter(|record| record.began > since).count() > 64).await;
}

#[tokio::test]
async fn a_killed_pod_of_three_costs_no_connection_and_returns() {
    let cluster = Cluster::new(50, 2).await;
    let (_gateways, mut pods) = (cluster.start_gateways().await, cluster.start_pods().await);
    let client = cluster.start_client().await;
    let load = cluster.warm_load().await;
    let pod = pods.remove(0);
    pod.signal("KILL").await;
    pod.ended().await;
    let killed = Instant::now();
    endure(&load).await;
    let _again = cluster.start_pod(0).await;
    load.reaches(&PODS, Instant::now()).await;
    finish("pod of three killed", load, client, Some(killed)).await;
}

#[tokio::test]
async fn a_restarted_pod_costs_no_connection_and_returns() {
    let cluster = Cluster::new(51, 2).await;
    let (_gateways, mut pods) = (cluster.start_gateways().await, cluster.start_pods().await);
    let client = cluster.start_client().await;
    let load = cluster.warm_load().await;
    let pod = pods.remove(0);
    pod.signal("TERM").await;
    assert_eq!(pod.ended().await.0, Some(0));
    endure(&load).await;
    let _again = cluster.start_pod(0).await;
    load.reaches(&PODS, Instant::now()).await;
    finish("pod of three restarted", load, client, None).await;
}

#[tokio::test]
async fn a_stopped_pod_of_three_costs_no_connection_and_returns() {
    let cluster = Cluster::new(52, 2).await;
    let (_gateways, pods) = (cluster.start_gateways().await, cluster.start_pods().await);
    let client = cluster.start_client().await;
    let load = cluster.warm_load().await;
    pods[0].signal("STOP").await;
    endure(&load).await;
    pods[0].signal("CONT").await;
    load.reaches(&PODS, Instant::now()).await;
    finish("pod of three stopped and continued", load, client, None).await;
}

#[tokio::test]
async fn a_killed_gateway_of_two_costs_no_connection_and_returns() {
    let cluster = Cluster::new(53, 2).await;
    let (mut gateways, _pods) = (cluster.start_gateways().await, cluster.start_pods().await);
    let client = cluster.start_client().await;
    let load = cluster.warm_load().await;
    let mut gateway = gateways.remove(0);
    gateway.logs("tunnel opened").await;
    gateway.signal("KILL").await;
    gateway.ended().await;
    let killed = Instant::now();
    endure(&load).await;
    let mut again = cluster.start_gateway(0).await;
    again.logs("tunnel opened").await;
    finish("gateway of two killed", load, client, Some(killed)).await;
}

#[tokio::test]
async fn a_restarted_gateway_of_two_costs_no_connection_and_returns() {
    let cluster = Cluster::new(54, 2).await;
    let (mut gateways, _pods) = (cluster.start_gateways().await, cluster.start_pods().await);
    let client = cluster.start_client().await;
    let load = cluster.warm_load().await;
    let mut gateway = gateways.remove(0);
    gateway.logs("tunnel opened").await;
    gateway.signal("TERM").await;
    assert_eq!(gateway.ended().await.0, Some(0));
    endure(&load).await;
    let mut again = cluster.start_gateway(0).await;
    again.logs("tunnel opened").await;
    finish("gateway of two restarted", load, client, None).await;
}

#[rstest]
#[case::that_is_silent_after_tcp(55, Wrong::SilentAfterTcp)]
#[case::that_stalls_in_tls(56, Wrong::StallsInTls)]
#[case::that_refuses(57, Wrong::Refuses)]
#[case::that_goes_away_at_once(58, Wrong::GoesAwayAfter(0))]
#[case::that_goes_away_after_three_tunnels(59, Wrong::GoesAwayAfter(3))]
#[tokio::test]
async fn a_gateway_of_two_costs_no_connection_and_returns_healed(#[case] number: u8, #[case] wrong: Wrong) {
    let cluster = Cluster::new(number, 2).await;
    let (_good, _pods) = (cluster.start_gateway(0).await, cluster.start_pods().await);
    let bad = Fake::start(&cluster, 1, wrong).await;
    let client = cluster.start_client().await;
    let load = cluster.warm_load().await;
    endure(&load).await;
    bad.stop().await;
    let stopped = Instant::now();
    let mut healed = cluster.start_gateway(1).await;
    healed.logs("tunnel opened").await;
    // Tunnels that this one forwards are cut when it is stopped, as if it had been killed.
    let killed = matches!(wrong, Wrong::GoesAwayAfter(_)).then_some(stopped);
    finish(&format!("gateway of two: {wrong:?}"), load, client, killed).await;
}

#[tokio::test]
async fn three_thousand_connections_cost_six_inner_handshakes_and_are_spread_evenly() {
    const CONNECTIONS: usize = 3000;
    let cluster = Cluster::new(60, 1).await;
    let _gateways = cluster.start_gateways().await;
    let (mut pods, mut counters) = (Vec::new(), Vec::new());
    for n in 0..PODS.len() {
        pods.push(cluster.start_pod_at(n, cluster.hidden_address(n)).await);
        counters.push(Counter::start(cluster.pod_address(n), cluster.hidden_address(n)).await);
    }
    let client = cluster.start_client().await;
    // From the very first one on: what goes to the pod that is connected first, the others make up for.
    let report = Load::start_counted(cluster.proxy(), 16, CONNECTIONS).done().await;
    let handshakes: usize = counters.iter().map(Counter::connections).sum();
    assert_fine(&format!("16 at a time, {handshakes} inner handshakes"), &report, client, None);
    assert!(handshakes <= 6, "{handshakes} inner handshakes");
    let (mean, by_pod) = (CONNECTIONS / PODS.len(), report.by_pod());
    for pod in PODS {
        let answered = by_pod.get(pod).copied().unwrap_or_default();
        assert!(answered.abs_diff(mean) <= mean / 10, "{by_pod:?}");
    }
}
