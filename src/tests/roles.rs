//! The three roles together: client, outbound, gateway, inbound, application.

mod drain;
mod faults;
#[cfg(feature = "tower")]
mod http_stacks;
mod pods;
mod socks5;
mod world;

use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use rstest::rstest;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::time::{Instant, timeout};

use super::harness::{client_id, server_id, trusted};
use crate::connector::Connected;
use crate::io::RelayStats;
use crate::mesh::Snapshot;
use crate::metadata::{Metadata, WorkloadType};
use crate::proxy::Outbound;
use crate::{Authority, DirectHop, Error, ErrorKind, Layer, Path, RefusalReason, Reuse, client, nested};
use world::{Apps, FAR, FarEnd, GATEWAY, NEAR, POD, Role, World, address, exchange, gateway_id, pipe, refused};

/// Longer than anything that is waited for here, on a paused clock.
const AGES: Duration = Duration::from_secs(3600);

async fn connect(outbound: &Outbound, target: &str) -> Connected {
    outbound.connect(&target.parse().unwrap(), Some(address("10.1.0.1:5000"))).await.unwrap()
}

/// An application's connection through the client's proxy: its own end, and how serving it ends.
fn serve(outbound: &Outbound, target: &str) -> (FarEnd, tokio::task::JoinHandle<crate::Result<RelayStats>>) {
    let (stream, application) = pipe();
    let (outbound, target): (_, Authority) = (outbound.clone(), target.parse().unwrap());
    (application, tokio::spawn(async move { outbound.serve(stream, &target, None).await }))
}

/// Where a connection goes: within east, or through the gateway to west.
#[derive(Clone, Copy, Debug)]
enum Way {
    Near,
    Far,
}

impl Way {
    fn target(self) -> &'static str {
        match self {
            Self::Near => NEAR,
            Self::Far => FAR,
        }
    }

    /// The hop that leads to the pod.
    fn last_hop(self) -> usize {
        match self {
            Self::Near => 0,
            Self::Far => 1,
        }
    }

    /// The proxy of the pod there, its applications, and the roles on the way.
    fn start(self, world: &World) -> (Role, Apps, Option<Role>) {
        let (cluster, pod) = match self {
            Self::Near => (&world.east, "near"),
            Self::Far => (&world.west, "far"),
        };
        let (role, apps) = world.inbound(cluster, pod);
        (role, apps, matches!(self, Self::Far).then(|| world.gateway()))
    }
}

#[rstest]
#[tokio::test]
async fn within_a_network_one_tunnel_leads_to_the_pod(
    #[values("near.default.svc.cluster.local:80", "10.96.0.1:80", "[fd00::1]:80", "10.1.0.2:8080")] target: &str,
) {
    let world = World::new();
    let _near = world.near();
    let connected = connect(&world.outbound(), target).await;
    assert_eq!(connected.route.path.depth(), 1);
    assert_eq!(connected.route.authority, "10.1.0.2:8080".parse().unwrap());
    assert_eq!(connected.identities, [server_id()]);
    assert_eq!(exchange(connected.tunnel, "hello").await, "hello");
}

#[rstest]
#[tokio::test]
async fn between_networks_a_tunnel_in_a_tunnel_leads_to_the_pod(#[values(FAR, "10.96.0.3:80")] target: &str) {
    let world = World::new();
    let _roles = world.far();
    // The pod of the client's own network with the same address must not see any of it.
    let (_near, apps) = world.inbound(&world.east, "near");
    let connected = connect(&world.outbound(), target).await;
    assert_eq!(connected.route.path.depth(), 2);
    assert_eq!(connected.route.authority, FAR.parse().unwrap());
    assert_eq!(connected.identities, [gateway_id(), server_id()]);
    assert_eq!(exchange(connected.tunnel, "hello").await, "hello");
    assert!(apps.is_untouched());
}

#[rstest]
#[case(Way::Near, "10.1.0.2:8080", "east", "near")]
#[case(Way::Far, "10.1.0.2:9090", "west", "far")]
#[tokio::test]
async fn the_answer_names_the_pod_and_its_own_cluster_maps_the_port(
    #[case] way: Way,
    #[case] dialled: &str,
    #[case] cluster: &str,
    #[case] pod: &str,
) {
    let world = World::new();
    let (_pod, mut apps, _gateway) = way.start(&world);
    let dial = tokio::spawn(async move {
        let dial = apps.dialled().await;
        (dial.address, dial.connect())
    });
    let connected = connect(&world.outbound(), way.target()).await;
    assert_eq!(dial.await.unwrap().0, address(dialled));
    let baggage = connected.tunnel.metadata().baggage().unwrap();
    assert_eq!((baggage.cluster(), baggage.namespace()), (Some(cluster), Some("default")));
    assert_eq!((baggage.workload_type(), baggage.workload_name()), (Some(WorkloadType::Pod), Some(pod)));
}

/// Takes the tunnel at a bare gateway, leads it to a bare pod, and shows what each of them was told.
#[tokio::test]
async fn the_pod_sees_the_client_and_hears_more_than_the_gateway() {
    let world = World::new();
    let mut gateway = world.bare(&world.east.network, GATEWAY, &gateway_id());
    let mut pod = world.bare(&world.west.network, POD, &server_id());
    let network = world.west.network.clone();
    let between = tokio::spawn(async move {
        let incoming = gateway.recv().await.unwrap();
        let (peer, metadata) = (incoming.peer_identity().cloned().unwrap(), incoming.metadata().clone());
        let mut tunnel = incoming.accept(&Metadata::default()).unwrap();
        let mut pod = network.connect(address(POD)).unwrap();
        tokio::spawn(async move { copy_bidirectional(&mut tunnel, &mut pod).await });
        (peer, metadata)
    });
    let outbound = world.outbound();
    let connecting = tokio::spawn(async move { connect(&outbound, FAR).await });
    let incoming = pod.recv().await.unwrap();
    assert_eq!(incoming.peer_identity(), Some(&client_id()), "not the gateway's, although the gateway dialled");
    assert_eq!(incoming.authority(), &FAR.parse().unwrap());
    let inner = incoming.metadata().clone();
    let _tunnel = incoming.accept(&Metadata::default()).unwrap();
    connecting.await.unwrap();
    let (peer, outer) = between.await.unwrap();
    assert_eq!(peer, client_id());

    assert_eq!((outer.forwarded_network(), inner.forwarded_network()), (None, Some("east")));
    for metadata in [&outer, &inner] {
        let baggage = metadata.baggage().unwrap();
        assert_eq!((baggage.cluster(), baggage.workload_name()), (Some("east"), Some("client")));
        assert!(metadata.other().is_empty(), "{:?}", metadata.other());
    }
    let forwarded = inner.forwarded().unwrap();
    assert_eq!(forwarded.host(), Some("global.default.svc.cluster.local"));
    assert_eq!(forwarded.for_addr().map(|addr| addr.to_string()).as_deref(), Some("10.1.0.1:5000"));
    // The outer tunnel is there for many connections.
    assert_eq!((outer.forwarded(), outer.traceparent()), (None, None));
    assert!(inner.traceparent().is_some());
}

#[tokio::test]
async fn within_a_network_no_network_is_named_and_each_connection_is_a_trace() {
    let world = World::new();
    let mut pod = world.bare(&world.east.network, POD, &server_id());
    let outbound = world.outbound();
    let mut traces = Vec::new();
    for _ in 0..2 {
        let outbound = outbound.clone();
        let connecting = tokio::spawn(async move { connect(&outbound, NEAR).await });
        let incoming = pod.recv().await.unwrap();
        assert_eq!(incoming.metadata().forwarded_network(), None);
        assert_eq!(incoming.metadata().baggage().unwrap().workload_name(), Some("client"));
        traces.push(*incoming.metadata().traceparent().unwrap());
        drop(incoming.accept(&Metadata::default()).unwrap());
        connecting.await.unwrap();
    }
    assert_ne!(traces[0], traces[1]);
}

#[rstest]
#[tokio::test]
async fn each_direction_ends_on_its_own(
    #[values(Way::Near, Way::Far)] way: Way,
    #[values(true, false)] client_first: bool,
) {
    let world = World::new();
    let (mut pod, mut apps, gateway) = way.start(&world);
    let (mut client, served) = serve(&world.outbound(), way.target());
    let mut server = apps.dialled().await.connect();
    // More than any buffer on the way holds.
    let data = vec![7; 3 << 20];
    for from_client in [client_first, !client_first] {
        let (from, to) = if from_client { (&mut client, &mut server) } else { (&mut server, &mut client) };
        let sending = async {
            from.io.write_all(&data).await.unwrap();
            from.io.shutdown().await.unwrap();
        };
        let ((), (got, failed)) = tokio::join!(sending, to.read_to_end());
        assert!(got == data && !failed, "{} of {} bytes", got.len(), data.len());
    }
    let stats = served.await.unwrap().unwrap();
    assert_eq!((stats.a_to_b, stats.b_to_a), (data.len() as u64, data.len() as u64));
    pod.ended.recv().await.unwrap().unwrap();
    if let Some(mut gateway) = gateway {
        gateway.ended.recv().await.unwrap().unwrap();
    }
}

fn assert_refused(error: &Error, hop: usize, reason: RefusalReason, status: u16, details: &str) {
    let refusal = error.refusal().unwrap_or_else(|| panic!("{error}"));
    assert_eq!((error.hop(), error.layer()), (Some(hop), Layer::Connect), "{error}");
    assert_eq!((refusal.reason(), refusal.status()), (&reason, StatusCode::from_u16(status).unwrap()), "{error}");
    assert!(refusal.details().is_some_and(|text| text.contains(details)), "{error}");
}

#[rstest]
#[tokio::test]
async fn an_application_that_refuses_is_the_last_hops_refusal(#[values(Way::Near, Way::Far)] way: Way) {
    let world = World::new();
    let (_pod, mut apps, _gateway) = way.start(&world);
    let refusing = tokio::spawn(async move { drop(apps.dialled().await) });
    let error = refused(&world.outbound(), way.target()).await;
    assert_refused(
        &error,
        way.last_hop(),
        RefusalReason::ConnectionRefused,
        503,
        "the application could not be reached",
    );
    assert_eq!(error.peer(), Some(server_id().to_string().as_str()));
    refusing.await.unwrap();
}

#[rstest]
#[tokio::test(start_paused = true)]
async fn an_application_that_does_not_answer_is_the_last_hops_timeout(#[values(Way::Near, Way::Far)] way: Way) {
    let world = World::new();
    let (_pod, mut apps, _gateway) = way.start(&world);
    let holding = tokio::spawn(async move { apps.dialled().await });
    let error = refused(&world.outbound(), way.target()).await;
    assert_refused(
        &error,
        way.last_hop(),
        RefusalReason::ConnectionTimeout,
        503,
        "the application could not be reached",
    );
    holding.await.unwrap();
}

#[tokio::test]
async fn a_pod_without_proxy_is_the_gateways_refusal() {
    let world = World::new();
    let _gateway = world.gateway();
    let error = refused(&world.outbound(), FAR).await;
    assert_refused(&error, 0, RefusalReason::ConnectionRefused, 503, "the pod could not be reached");
    assert_eq!(error.peer(), Some(gateway_id().to_string().as_str()));
}

#[rstest]
#[case("ghost.default.svc.cluster.local:80", "no service has the hostname")]
#[case("global.default.svc.cluster.local:82", "has no port 82")]
#[case("private.default.svc.cluster.local:80", "is local to this cluster")]
#[tokio::test]
async fn the_gateway_refuses_what_its_cluster_does_not_share(#[case] target: &str, #[case] details: &str) {
    let world = World::new();
    let (_pod, apps) = world.inbound(&world.west, "far");
    let mut gateway = world.gateway();
    let error = refused(&world.outbound(), target).await;
    assert_refused(&error, 0, RefusalReason::DestinationNotFound, 503, details);
    gateway.ended.recv().await.unwrap().unwrap();
    assert!(apps.is_untouched());
}

fn direct(to: &str, identity: crate::SpiffeId) -> Path {
    Path::direct(DirectHop { address: address(to).into(), accept: identity.into(), reuse: Reuse::Never })
}

#[rstest]
#[case::a_pod_behind_it("10.1.0.2:9090")]
#[case::itself("10.9.0.1:15008")]
#[tokio::test]
async fn the_gateway_serves_no_addresses(#[case] authority: &str) {
    let world = World::new();
    let _roles = world.far();
    let path = direct(GATEWAY, gateway_id());
    let error = world.open(&path, authority).await.unwrap_err();
    assert_refused(&error, 0, RefusalReason::DestinationProhibited, 400, "is an address");
}

#[rstest]
#[case::another_pod("10.1.0.3:8080", RefusalReason::DestinationProhibited, 400, "not an address of")]
#[case::loopback("127.0.0.1:8080", RefusalReason::DestinationProhibited, 400, "not an address of")]
#[case::another_service(
    "plain.default.svc.cluster.local:80",
    RefusalReason::DestinationNotFound,
    503,
    "does not serve"
)]
#[case::unknown_service("who.example:80", RefusalReason::DestinationNotFound, 503, "no service has")]
#[case::unknown_port("near.default.svc.cluster.local:81", RefusalReason::DestinationNotFound, 503, "port 81")]
#[case::its_own_proxy("10.1.0.2:15008", RefusalReason::LoopDetected, 503, "15008")]
#[tokio::test]
async fn a_pod_serves_nothing_but_itself(
    #[case] authority: &str,
    #[case] reason: RefusalReason,
    #[case] status: u16,
    #[case] details: &str,
) {
    let world = World::new();
    let (mut pod, apps) = world.inbound(&world.east, "near");
    let path = direct(POD, server_id());
    let error = world.open(&path, authority).await.unwrap_err();
    assert_refused(&error, 0, reason, status, details);
    pod.ended.recv().await.unwrap().unwrap();
    assert!(apps.is_untouched());
}

#[tokio::test]
async fn a_denying_policy_is_named_and_the_application_never_dialled() {
    let world = World::new();
    let (mut pod, apps) = world.inbound(&world.west, "guarded");
    let _gateway = world.gateway();
    let error = refused(&world.outbound(), "guarded.default.svc.cluster.local:80").await;
    assert_refused(&error, 1, RefusalReason::Denied, 401, "default/not-the-client");
    pod.ended.recv().await.unwrap().unwrap();
    assert!(apps.is_untouched());
}

#[tokio::test]
async fn a_workload_that_left_the_mesh_is_served_no_more() {
    let world = World::new();
    let near = world.near();
    let outbound = world.outbound();
    assert_eq!(exchange(connect(&outbound, NEAR).await.tunnel, "hello").await, "hello");

    let without = |pod: &str| {
        let name = format!("name: {pod}, ");
        let lines = world::EAST.lines().filter(|line| !(line.contains(&name) && line.contains("workloadIps")));
        Snapshot::parse("east", &lines.collect::<Vec<_>>().join("\n")).unwrap()
    };
    // The client still has the old route.
    let path = direct(POD, server_id());
    world.east.mesh.send_replace(without("near"));
    let error = world.open(&path, "10.1.0.2:8080").await.unwrap_err();
    assert_refused(&error, 0, RefusalReason::DestinationNotFound, 503, "default/near is not in the mesh");
    drop(near);

    world.east.mesh.send_replace(without("client"));
    let error = refused(&outbound, NEAR).await;
    assert_eq!((error.kind(), error.layer()), (&ErrorKind::NoRoute, Layer::Route));
    assert!(error.to_string().contains("default/client is not in the mesh"), "{error}");
}

#[rstest]
#[case::service("plain.default.svc.cluster.local:80")]
#[case::virtual_address("10.96.0.2:80")]
#[case::pod("10.1.0.3:8080")]
#[tokio::test]
async fn nothing_is_ever_sent_in_plaintext(#[case] target: &str) {
    let world = World::new();
    let mut listeners = ["10.1.0.3:8080", "10.1.0.3:15008", "10.1.0.3:80", "10.96.0.2:80"]
        .map(|at| world.east.network.listen(address(at)));
    let (mut application, served) = serve(&world.outbound(), target);
    let error = served.await.unwrap().unwrap_err();
    assert_eq!(error.kind(), &ErrorKind::NoRoute, "{error}");
    assert!(error.to_string().contains("plaintext"), "{error}");
    assert_eq!(application.read_to_end().await, (vec![], true));
    for listener in &mut listeners {
        tokio_test::assert_pending!(tokio_test::task::spawn(listener.accept()).poll());
    }
}

#[rstest]
#[tokio::test(start_paused = true)]
async fn the_tunnel_is_open_only_once_the_application_is_there(#[values(Way::Near, Way::Far)] way: Way) {
    let world = World::new();
    let (_pod, mut apps, _gateway) = way.start(&world);
    let outbound = world.outbound();
    let mut connecting = tokio::spawn(async move { connect(&outbound, way.target()).await });
    let dial = apps.dialled().await;
    timeout(Duration::from_secs(5), &mut connecting).await.unwrap_err();
    let mut application = dial.connect();
    let mut tunnel = connecting.await.unwrap().tunnel;
    tunnel.write_all(b"hello").await.unwrap();
    let mut got = [0; 5];
    application.io.read_exact(&mut got).await.unwrap();
    assert_eq!(&got, b"hello");
}

/// A client that gives up must not cost the pod a dial until that times out.
#[rstest]
#[tokio::test(start_paused = true)]
async fn a_client_that_gives_up_leaves_nothing(#[values(Way::Near, Way::Far)] way: Way) {
    let world = World::new();
    let (mut pod, mut apps, gateway) = way.start(&world);
    let outbound = world.outbound();
    let connecting = tokio::spawn(async move { connect(&outbound, way.target()).await });
    let mut dial = apps.dialled().await;
    let start = Instant::now();
    connecting.abort();
    dial.answer.closed().await;
    pod.ended.recv().await.unwrap().unwrap();
    if let Some(mut gateway) = gateway {
        gateway.ended.recv().await.unwrap().unwrap();
    }
    assert_eq!(start.elapsed(), Duration::ZERO, "it was waited for");
}

#[tokio::test(start_paused = true)]
async fn a_client_that_gives_up_ends_the_gateways_dial() {
    let world = World::new();
    let (mut gateway, mut pods) = world.gateway_alone();
    let outbound = world.outbound();
    let connecting = tokio::spawn(async move { connect(&outbound, FAR).await });
    let mut dial = pods.dialled().await;
    let start = Instant::now();
    connecting.abort();
    dial.answer.closed().await;
    gateway.ended.recv().await.unwrap().unwrap();
    assert_eq!(start.elapsed(), Duration::ZERO, "it was waited for");
}

/// A proxy that stops when the last connection has ended would take with it what its tunnel had not sent yet.
#[tokio::test(start_paused = true)]
async fn a_pool_is_closed_only_when_everything_is_sent() {
    let world = World::new();
    let pool = world.pool();
    let mut listener = world.east.network.listen(address(POD));
    let (mut client, served) = serve(&world.outbound_over(&pool), NEAR);
    let acceptor = crate::tls::Acceptor::new(Arc::new(world.ca.issue(&server_id())), trusted(), world.config.clone());
    let stream = acceptor.accept(listener.accept().await.unwrap()).await.unwrap();
    let mut server = crate::server::handshake(stream).await.unwrap();
    let mut tunnel = server.accept().await.unwrap().unwrap().accept(&Metadata::default()).unwrap();
    tunnel.shutdown().await.unwrap();
    tokio::select! {
        _ = server.accept() => panic!("one tunnel was enough"),
        end = client.read_to_end() => assert_eq!(end, (vec![], false)),
    }
    // From here on the pod takes nothing. This is more than the network holds, and less than the tunnel does.
    let data = vec![7; 300_000];
    client.io.write_all(&data).await.unwrap();
    client.io.shutdown().await.unwrap();
    assert_eq!(served.await.unwrap().unwrap().b_to_a, 300_000);
    let closing = tokio::spawn(async move { pool.close(Duration::from_secs(60)).await });
    quiet().await;
    assert!(!closing.is_finished());
    let server = tokio::spawn(async move { server.accept().await.is_none() });
    let mut got = Vec::new();
    tunnel.read_to_end(&mut got).await.unwrap();
    assert!(got == data, "{} bytes", got.len());
    drop(tunnel);
    assert!(server.await.unwrap(), "it ended in order");
    assert_eq!(closing.await.unwrap().cut, 0);
}

#[rstest]
#[tokio::test]
async fn a_reset_of_the_application_reaches_the_client_as_one(#[values(Way::Near, Way::Far)] way: Way) {
    let world = World::new();
    let (_pod, mut apps, _gateway) = way.start(&world);
    let outbound = world.outbound();
    let (mut client, served) = serve(&outbound, way.target());
    let mut application = apps.dialled().await.connect();
    application.io.write_all(b"half an ans").await.unwrap();
    let mut got = [0; 11];
    client.io.read_exact(&mut got).await.unwrap();
    application.reset();
    assert_eq!(client.read_to_end().await, (vec![], true), "the rest of the answer");
    let error = served.await.unwrap().unwrap_err();
    assert_eq!(error.kind(), &ErrorKind::Reset(h2::Reason::CONNECT_ERROR.into()), "{error}");
    assert_eq!((error.hop(), error.layer()), (Some(way.last_hop()), Layer::Tunnel), "{error}");
}

#[rstest]
#[tokio::test]
async fn a_reset_of_the_client_reaches_the_application_as_one(#[values(Way::Near, Way::Far)] way: Way) {
    let world = World::new();
    let (_pod, mut apps, _gateway) = way.start(&world);
    let (mut client, served) = serve(&world.outbound(), way.target());
    let mut application = apps.dialled().await.connect();
    client.io.write_all(b"half a quest").await.unwrap();
    let mut got = [0; 12];
    application.io.read_exact(&mut got).await.unwrap();
    client.reset();
    assert_eq!(application.read_to_end().await, (vec![], true), "the rest of the question");
    assert_eq!(served.await.unwrap().unwrap_err().layer(), Layer::Application);
}

#[rstest]
#[tokio::test]
async fn a_client_proxy_that_dies_is_no_end_to_the_application(#[values(Way::Near, Way::Far)] way: Way) {
    let world = World::new();
    let (_pod, mut apps, _gateway) = way.start(&world);
    let (mut client, served) = serve(&world.outbound(), way.target());
    let mut application = apps.dialled().await.connect();
    client.io.write_all(b"half a quest").await.unwrap();
    let mut got = [0; 12];
    application.io.read_exact(&mut got).await.unwrap();
    served.abort();
    assert_eq!(application.read_to_end().await, (vec![], true), "the rest of the question");
    assert_eq!(client.read_to_end().await, (vec![], true), "the answer");
}

/// On a paused clock: until nobody has anything left to do.
async fn quiet() {
    tokio::time::sleep(Duration::from_millis(1)).await;
}

fn connector(world: &World) -> crate::tls::Connector {
    crate::tls::Connector::new(Arc::new(world.ca.issue(&client_id())), world.config.clone())
}

/// What a gateway passes on is opaque, so a client can go on and nest one more.
#[tokio::test]
async fn a_pod_may_be_reached_through_any_number_of_hops_by_hand() {
    let world = World::new();
    let _roles = world.far();
    let (path, none, tls) = (direct(GATEWAY, gateway_id()), Metadata::default(), connector(&world));
    let outer = world.east.network.connect(address(GATEWAY)).unwrap();
    let outer = tls.connect(outer, &path.first().accept).await.unwrap();
    let (outer, driver) = client::handshake(outer).await.unwrap();
    tokio::spawn(driver);
    let hop = crate::TunnelledHop::new(FAR.parse().unwrap(), server_id().into()).with_reuse(Reuse::Spread(1));
    let (inner, driver) = nested::extend(&outer, &hop, &tls, &none).await.unwrap();
    tokio::spawn(driver);
    // Several tunnels in one inner connection: the gateway sees one.
    for text in ["one", "two"] {
        let tunnel = inner.connect(&hop.authority, &none).await.unwrap();
        assert_eq!(exchange(tunnel, text).await, text);
    }
    assert_eq!(outer.capacity().open, 1);
}
