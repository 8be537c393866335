//! Whom a failure speaks against, and whether another way may work.

use http::StatusCode;
use rstest::rstest;

use super::super::{Route, is_retryable};
use super::{FAR, SANS, mesh, near, route};
use crate::balance::health::HealthKey;
use crate::error::{Error, ErrorKind, Layer, Side};
use crate::refusal::{Refusal, RefusalReason};

fn near_route() -> Route {
    route(&mesh(SANS, &[&near(1, "")]), "cart.shop:80").unwrap()
}

fn far_route() -> Route {
    route(&mesh(SANS, &[&format!("network: west, protocol: HBONE, {FAR}")]), "cart.shop:80").unwrap()
}

fn endpoint() -> HealthKey {
    HealthKey::Workload("e0".into())
}

fn gateway() -> HealthKey {
    HealthKey::Gateway("gateway".into())
}

fn pair() -> HealthKey {
    HealthKey::GatewayService { gateway: "gateway".into(), service: "shop/cart.shop".parse().unwrap() }
}

fn error(kind: ErrorKind, layer: Layer, hop: Option<usize>) -> Error {
    let error = Error::new(kind, layer, Side::Remote, "testing");
    match hop {
        Some(hop) => error.with_hop(hop),
        None => error,
    }
}

fn refused(status: u16) -> ErrorKind {
    ErrorKind::Refused(Refusal::received(StatusCode::from_u16(status).unwrap(), RefusalReason::Unspecified, None))
}

#[test]
fn an_attempt_is_one_at_the_endpoint_or_at_the_gateway_and_what_is_behind_it() {
    assert_eq!(near_route().health_keys().collect::<Vec<_>>(), [endpoint()]);
    assert_eq!(far_route().health_keys().collect::<Vec<_>>(), [gateway(), pair()]);
    let by_address = route(&mesh(SANS, &[&near(1, "")]), "10.0.1.1:5432").unwrap();
    assert_eq!(by_address.health_keys().collect::<Vec<_>>(), [endpoint()]);
}

#[rstest]
#[case(ErrorKind::InvalidInput, false)]
#[case(ErrorKind::InvalidCredentials, false)]
#[case(ErrorKind::RejectedByPeer, false)]
#[case(ErrorKind::Local, false)]
#[case(ErrorKind::NoRoute, false)]
#[case(ErrorKind::WriteAfterShutdown, false)]
#[case(refused(400), false)]
#[case(refused(401), false)]
#[case(refused(403), false)]
#[case(refused(404), true)]
#[case(refused(408), true)]
#[case(refused(421), true)]
#[case(refused(425), true)]
#[case(refused(429), true)]
#[case(refused(431), false)]
#[case(refused(302), true)]
#[case(refused(500), true)]
#[case(refused(502), true)]
#[case(refused(503), true)]
#[case(refused(504), true)]
#[case(ErrorKind::Unreachable, true)]
#[case(ErrorKind::Timeout, true)]
#[case(ErrorKind::CertificateInvalid, true)]
#[case(ErrorKind::IdentityNotAccepted, true)]
#[case(ErrorKind::Protocol, true)]
#[case(ErrorKind::Reset(7), true)]
#[case(ErrorKind::GoAway(0), true)]
#[case(ErrorKind::Closed, true)]
fn what_another_endpoint_may_cure_speaks_against_this_one(#[case] kind: ErrorKind, #[case] retryable: bool) {
    let (near, far) = (near_route(), far_route());
    for hop in [None, Some(0), Some(1)] {
        for layer in [Layer::Dial, Layer::Tls, Layer::Http2, Layer::Connect] {
            let error = error(kind.clone(), layer, hop);
            assert_eq!(is_retryable(&error), retryable, "{error}");
            assert_eq!(near.blame(&error), retryable.then(endpoint), "{error}");
            assert_eq!(far.blame(&error).is_some(), retryable, "{error}");
        }
    }
}

#[rstest]
#[case::refuses_connections(ErrorKind::Unreachable, Layer::Dial, Some(0), gateway())]
#[case::swallows_packets(ErrorKind::Timeout, Layer::Dial, Some(0), gateway())]
#[case::stalls_in_tls(ErrorKind::Timeout, Layer::Tls, Some(0), gateway())]
#[case::is_somebody_else(ErrorKind::IdentityNotAccepted, Layer::Tls, Some(0), gateway())]
#[case::speaks_something_else(ErrorKind::Protocol, Layer::Http2, Some(0), gateway())]
#[case::goes_away(ErrorKind::GoAway(0), Layer::Http2, Some(0), gateway())]
#[case::dies(ErrorKind::Closed, Layer::Http2, Some(0), gateway())]
#[case::no_hop_is_named(ErrorKind::Timeout, Layer::Connect, None, gateway())]
#[case::has_no_backend(refused(503), Layer::Connect, Some(0), pair())]
#[case::does_not_know_the_service(refused(404), Layer::Connect, Some(0), pair())]
#[case::does_not_answer(ErrorKind::Timeout, Layer::Connect, Some(0), pair())]
#[case::resets(ErrorKind::Reset(7), Layer::Connect, Some(0), pair())]
#[case::backend_stalls(ErrorKind::Timeout, Layer::Tls, Some(1), pair())]
#[case::backend_is_somebody_else(ErrorKind::IdentityNotAccepted, Layer::Tls, Some(1), pair())]
#[case::backend_goes_away(ErrorKind::GoAway(0), Layer::Http2, Some(1), pair())]
#[case::backend_refuses(refused(503), Layer::Connect, Some(1), pair())]
#[case::a_hop_further_in(ErrorKind::Closed, Layer::Http2, Some(2), pair())]
fn a_gateway_is_to_blame_for_its_connection_and_the_pair_for_what_is_behind(
    #[case] kind: ErrorKind,
    #[case] layer: Layer,
    #[case] hop: Option<usize>,
    #[case] expected: HealthKey,
) {
    assert_eq!(far_route().blame(&error(kind, layer, hop)), Some(expected));
}
