//! What a TLS handshake requires and shows: certificates, ALPN, versions, and the ClientHello.

use std::sync::Arc;

use rstest::rstest;
use rustls::AlertDescription as Alert;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::frames;
use super::harness::{client_id, server_id, trusted};
use super::peers::{Peer, acceptor, alert, connector, handshake, pipe};
use crate::error::{ErrorKind, Layer};
use crate::testing::{Ca, Issued};
use crate::tls::{Acceptor, Connector};

const SERVER: &str = "spiffe://cluster.local/ns/default/sa/server";
const OTHER: &str = "spiffe://cluster.local/ns/default/sa/other";

/// What is odd about a certificate.
#[derive(Clone, Copy, Debug)]
enum Odd {
    OtherCa,
    Expired,
    NotYetValid,
    Names(&'static [&'static str]),
}

impl Odd {
    fn issue(self, ca: &Ca) -> Issued {
        match self {
            Self::OtherCa => Ca::new().certificate().uri(SERVER).issue(),
            Self::Expired => ca.certificate().uri(SERVER).expired().issue(),
            Self::NotYetValid => ca.certificate().uri(SERVER).not_yet_valid().issue(),
            Self::Names(names) => names.iter().fold(ca.certificate(), |c, name| c.uri(name)).issue(),
        }
    }
}

#[rstest]
#[case::of_another_ca(Odd::OtherCa, "UnknownIssuer", Alert::UnknownCA)]
#[case::expired(Odd::Expired, "certificate expired", Alert::CertificateExpired)]
#[case::not_yet_valid(Odd::NotYetValid, "certificate not valid yet", Alert::CertificateExpired)]
#[case::no_name(Odd::Names(&[]), "no SPIFFE ID among", Alert::CertificateUnknown)]
#[case::other_scheme(Odd::Names(&["https://cluster.local/ns/default/sa/server"]), "no SPIFFE ID", Alert::CertificateUnknown)]
#[case::two_ids(Odd::Names(&[SERVER, OTHER]), "more than one SPIFFE ID", Alert::CertificateUnknown)]
#[case::the_same_twice(Odd::Names(&[SERVER, SERVER]), "more than one SPIFFE ID", Alert::CertificateUnknown)]
#[case::malformed_path(
    Odd::Names(&["spiffe://cluster.local/default/server"]),
    r#"the certificate's URI name "spiffe://cluster.local/default/server" is not a workload identity"#,
    Alert::CertificateUnknown
)]
#[case::longer_path(
    Odd::Names(&["spiffe://cluster.local/ns/default/sa/server/x"]), "is not a workload identity", Alert::CertificateUnknown
)]
#[case::no_slashes(Odd::Names(&["spiffe:cluster.local"]), "is not a workload identity", Alert::CertificateUnknown)]
#[tokio::test(start_paused = true)]
async fn an_odd_certificate_is_refused_on_both_sides(#[case] odd: Odd, #[case] says: &str, #[case] told: Alert) {
    let ca = Ca::new();
    let issued = odd.issue(&ca);
    let (connector, acceptor, accept) = (connector(&ca, &client_id()), acceptor(&ca, &server_id()), server_id().into());
    let (near, far) = pipe();
    let (peer, server) = tokio::join!(Peer::with(&issued).connect(near), acceptor.accept(far));
    let (near, far) = pipe();
    let (client, other_peer) = tokio::join!(connector.connect(near, &accept), Peer::with(&issued).accept(far));
    for error in [server.unwrap_err(), client.unwrap_err()] {
        assert_eq!((error.kind(), error.layer()), (&ErrorKind::CertificateInvalid, Layer::Tls));
        assert!(error.to_string().contains(says), "{error}");
    }
    assert_eq!((alert(peer).await, alert(other_peer).await), (told, told));
}

#[tokio::test(start_paused = true)]
async fn other_uri_names_beside_one_spiffe_id_are_fine() {
    let ca = Ca::new();
    let issued = || ca.certificate().uri("https://example.com/x").uri(SERVER).uri("urn:uuid:1").issue();
    let credentials = Arc::new(issued().credentials().unwrap());
    let connector = Connector::new(credentials.clone(), Arc::default());
    let acceptor = Acceptor::new(credentials, trusted(), Arc::default());
    let (near, far) = handshake(&connector, &server_id().into(), &acceptor).await;
    assert_eq!(near.unwrap().peer_identity(), &server_id());
    assert_eq!(far.unwrap().peer_identity(), &server_id());
}

#[tokio::test(start_paused = true)]
async fn a_client_without_certificate_is_refused_and_told() {
    let acceptor = acceptor(&Ca::new(), &server_id());
    let (near, far) = pipe();
    let (peer, server) = tokio::join!(Peer::anonymous().connect(near), acceptor.accept(far));
    let error = server.unwrap_err();
    assert_eq!(error.kind(), &ErrorKind::CertificateInvalid);
    assert!(error.to_string().contains("peer sent no certificates"), "{error}");
    assert_eq!(alert(peer).await, Alert::CertificateRequired);
}

#[rstest]
#[case::none(&[], false)]
#[case::http_1_1(&["http/1.1"], false)]
#[case::cleartext_h2(&["h2c"], false)]
#[case::h2_among_others(&["http/1.1", "h2"], true)]
#[tokio::test(start_paused = true)]
async fn alpn_h2_is_required_of_both_sides(#[case] offered: &[&str], #[case] fine: bool) {
    let ca = Ca::new();
    let issued = ca.certificate().uri(SERVER).issue();
    let (connector, acceptor, accept) = (connector(&ca, &client_id()), acceptor(&ca, &server_id()), server_id().into());
    let (near, far) = pipe();
    let (_peer, server) = tokio::join!(Peer::with(&issued).alpn(offered).connect(near), acceptor.accept(far));
    let (near, far) = pipe();
    let (client, _peer) = tokio::join!(connector.connect(near, &accept), Peer::with(&issued).alpn(offered).accept(far));
    for session in [server, client] {
        match session {
            Ok(session) => assert!(fine, "{session:?}"),
            Err(error) => {
                assert!(!fine, "{error}");
                assert_eq!((error.kind(), error.layer()), (&ErrorKind::Protocol, Layer::Tls));
                assert!(error.to_string().contains("TLS 1.3 with ALPN h2"), "{error}");
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_peer_with_tls_1_2_only_is_refused() {
    let ca = Ca::new();
    let (mut near, far) = pipe();
    near.write_all(&frames::tls12_client_hello()).await.unwrap();
    let error = acceptor(&ca, &server_id()).accept(far).await.unwrap_err();
    assert_eq!((error.kind(), error.layer()), (&ErrorKind::Protocol, Layer::Tls));
    let mut told = Vec::new();
    near.read_to_end(&mut told).await.unwrap();
    assert_eq!(told, [21, 3, 3, 0, 2, 2, 70], "a fatal alert, protocol_version");

    for answer in [frames::tls12_server_hello(), told] {
        let (near, mut far) = pipe();
        far.write_all(&answer).await.unwrap();
        let error = connector(&ca, &client_id()).connect(near, &server_id().into()).await.unwrap_err();
        assert_eq!((error.kind(), error.layer()), (&ErrorKind::Protocol, Layer::Tls), "{error}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_client_hello_gives_no_name_and_offers_only_tls_1_3_and_h2() {
    let connector = connector(&Ca::new(), &client_id());
    let (near, mut far) = pipe();
    let connecting = tokio::spawn(async move { connector.connect(near, &server_id().into()).await });
    let extensions = frames::client_hello(&mut far).await;
    drop(far);
    assert_eq!(connecting.await.unwrap().unwrap_err().kind(), &ErrorKind::Closed);
    let content = |kind: u16| extensions.iter().find(|(k, _)| *k == kind).map(|(_, content)| content.as_slice());
    assert_eq!(content(0), None, "server_name");
    assert_eq!(content(16), Some(&b"\0\x03\x02h2"[..]), "ALPN");
    assert_eq!(content(43), Some(&[2, 3, 4][..]), "supported_versions");
    assert_eq!(content(41), None, "pre_shared_key");
    assert_eq!(content(42), None, "early_data");
    let groups = content(10).unwrap();
    assert!(groups.len() > 4, "{groups:?}");
    #[cfg(feature = "aws-lc-rs")]
    assert_eq!(groups[2..4], [0x11, 0xec], "X25519MLKEM768 comes first");
}
