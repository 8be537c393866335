//! HTTP clients that dial through the mesh, and HTTP servers in it.

use std::sync::atomic::{AtomicUsize, Ordering};

use axum::routing::get;
use axum::{Extension, Router};
use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;

use super::world::Cluster;
use super::*;
use crate::connector::Connector;
use crate::drain::{self, Drain};
use crate::service::{Listener, Peer, serve};

type Http = Client<Connector, Empty<Bytes>>;

/// A pod that is an HTTP server itself, and how many tunnels it has got.
fn pod(world: &World, cluster: &Cluster) -> (Arc<AtomicUsize>, Drain) {
    let (tunnels, (drain, watch)) = (Arc::new(AtomicUsize::new(0)), drain::channel());
    let counted = tunnels.clone();
    let listener = Listener::new(cluster.network.listen(address(POD)), world.server(&server_id()))
        .with_answer(Metadata::default().with_forwarded_network("here").unwrap())
        .with_decision(move |_| {
            counted.fetch_add(1, Ordering::Relaxed);
            Ok(())
        });
    let greet = async |Extension(peer): Extension<Peer>| format!("{} to {}", peer.identity(), peer.authority());
    tokio::spawn(serve(listener, Router::new().route("/", get(greet)), watch));
    (tunnels, drain)
}

async fn call(http: &Http, uri: &str) -> (Peer, String) {
    let response = http.get(uri.parse().unwrap()).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    let peer = response.extensions().get::<Peer>().unwrap().clone();
    (peer, String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap())
}

#[rstest]
#[case::near(Way::Near, "http://near.default.svc.cluster.local/", "10.1.0.2:8080")]
#[case::near_by_address(Way::Near, "http://[fd00::1]:80/", "10.1.0.2:8080")]
#[case::far(Way::Far, "http://global.default.svc.cluster.local/", FAR)]
#[tokio::test]
async fn a_client_and_a_server_know_each_other(
    #[case] way: Way,
    #[case] uri: &str,
    #[case] authority: &str,
    #[values(false, true)] http2: bool,
) {
    let world = World::new();
    let (cluster, _gateway) = match way {
        Way::Near => (&world.east, None),
        Way::Far => (&world.west, Some(world.gateway())),
    };
    let (tunnels, _drain) = pod(&world, cluster);
    let http: Http = Client::builder(TokioExecutor::new()).http2_only(http2).build(world.connector_over(&world.pool()));
    for _ in 0..3 {
        let (peer, answer) = call(&http, uri).await;
        assert_eq!(answer, format!("{} to {authority}", client_id()));
        assert_eq!((peer.identity(), peer.authority().to_string().as_str()), (&server_id(), authority));
        assert_eq!(peer.metadata().forwarded_network(), Some("here"));
    }
    assert_eq!(tunnels.load(Ordering::Relaxed), 1, "the client keeps its tunnel");
}

#[rstest]
#[case::unknown("http://nowhere.default.svc.cluster.local/", ErrorKind::NoRoute)]
#[case::nobody_there("http://near.default.svc.cluster.local/", ErrorKind::Unreachable)]
#[case::no_port("ftp://near.default.svc.cluster.local/", ErrorKind::InvalidInput)]
#[tokio::test]
async fn a_call_that_fails_says_why(#[case] uri: &str, #[case] kind: ErrorKind) {
    let world = World::new();
    let mut connector = world.connector_over(&world.pool());
    let error =
        tower_service::Service::<http::Uri>::call(&mut connector, uri.parse().unwrap()).await.map(drop).unwrap_err();
    assert_eq!(error.kind(), &kind, "{error}");
}
