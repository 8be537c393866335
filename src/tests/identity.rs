//! Who is let in on either side, and that the other side learns why it was not.

use std::io;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use rstest::rstest;
use rustls::CipherSuite;

use super::harness::{Carrier, authority, client_id, id, server_id, trusted};
use super::peers::{Session, acceptor, connector, handshake};
use crate::client;
use crate::error::{Error, ErrorKind, Layer, Side};
use crate::identity::{AcceptedIdentities, SpiffeId, TrustDomains};
use crate::metadata::Metadata;
use crate::testing::Ca;
use crate::tls::{Acceptor, Connector, CredentialSource, Credentials, ReloadingCredentials};
use crate::{Config, TunnelStream, server};

fn set(ids: &[&str]) -> AcceptedIdentities {
    ids.iter().map(|id| id.parse().unwrap()).collect()
}

const SERVER: &str = "spiffe://cluster.local/ns/default/sa/server";
const OTHER: &str = "spiffe://cluster.local/ns/default/sa/other";

#[rstest]
#[case::the_only_one(&[SERVER])]
#[case::the_last_of_several(&[OTHER, SERVER])]
#[case::the_first_of_several(&[SERVER, "spiffe://cluster.local/ns/z/sa/z"])]
#[tokio::test(start_paused = true)]
async fn the_client_accepts_a_server_in_its_set(#[case] accepted: &[&str]) {
    let ca = Ca::new();
    let (near, far) = handshake(&connector(&ca, &client_id()), &set(accepted), &acceptor(&ca, &server_id())).await;
    assert_eq!(near.unwrap().peer_identity(), &server_id());
    assert_eq!(far.unwrap().peer_identity(), &client_id());
}

#[rstest]
#[case::nobody(&[], "nobody")]
#[case::other_account(&[OTHER], OTHER)]
#[case::longer_account(&["spiffe://cluster.local/ns/default/sa/server2"], "spiffe://cluster.local/ns/default/sa/server2")]
#[case::shorter_account(&["spiffe://cluster.local/ns/default/sa/serve"], "spiffe://cluster.local/ns/default/sa/serve")]
#[case::other_case(&["spiffe://cluster.local/ns/default/sa/Server"], "spiffe://cluster.local/ns/default/sa/Server")]
#[case::other_namespace(&["spiffe://cluster.local/ns/prod/sa/server"], "spiffe://cluster.local/ns/prod/sa/server")]
#[case::other_trust_domain(&["spiffe://cluster.loca/ns/default/sa/server"], "spiffe://cluster.loca/ns/default/sa/server")]
#[case::several(
    &["spiffe://td/ns/b/sa/b", OTHER],
    "spiffe://cluster.local/ns/default/sa/other, spiffe://td/ns/b/sa/b"
)]
#[tokio::test(start_paused = true)]
async fn the_client_accepts_nobody_else_and_names_both(#[case] accepted: &[&str], #[case] names: &str) {
    let ca = Ca::new();
    let (near, far) = handshake(&connector(&ca, &client_id()), &set(accepted), &acceptor(&ca, &server_id())).await;
    let error = near.unwrap_err();
    assert_eq!((error.kind(), error.side()), (&ErrorKind::IdentityNotAccepted, Side::Remote));
    assert_eq!(
        error.to_string(),
        format!(
            "TLS: handshake: the peer's certificate belongs to {SERVER}, and accepted is {names}; check that the address belongs to the \
             intended workload, and the service's subject alternative names"
        )
    );
    assert_eq!(far.unwrap_err().kind(), &ErrorKind::RejectedByPeer);
}

#[rstest]
#[case::own("spiffe://cluster.local/ns/a/sa/b", true)]
#[case::alias("spiffe://old.example/ns/a/sa/b", true)]
#[case::other_alias("spiffe://older.example/ns/a/sa/b", true)]
#[case::longer("spiffe://cluster.local.evil/ns/a/sa/b", false)]
#[case::shorter("spiffe://cluster.loca/ns/a/sa/b", false)]
#[case::below("spiffe://x.cluster.local/ns/a/sa/b", false)]
#[case::foreign("spiffe://evil/ns/cluster.local/sa/cluster.local", false)]
#[tokio::test(start_paused = true)]
async fn the_server_lets_in_its_trust_domain_and_the_aliases_only(#[case] who: &str, #[case] let_in: bool) {
    let ca = Ca::new();
    let trusted = trusted().with_aliases(["old.example".parse().unwrap(), "older.example".parse().unwrap()]);
    let acceptor = Acceptor::new(Arc::new(ca.issue(&server_id())), trusted, Arc::default());
    let (near, far) = handshake(&connector(&ca, &who.parse().unwrap()), &set(&[SERVER]), &acceptor).await;
    if let_in {
        assert_eq!(far.unwrap().peer_identity().to_string(), who);
        return;
    }
    let error = far.unwrap_err();
    assert_eq!((error.kind(), error.layer()), (&ErrorKind::IdentityNotAccepted, Layer::Tls));
    let expected = format!(
        "TLS: handshake: the peer's certificate belongs to {who}, and let in are the trust domains cluster.local, \
         old.example, older.example; add an alias if workloads of that trust domain are to be let in"
    );
    assert_eq!(error.to_string(), expected);
    assert_eq!(first_use(near, 0).await.kind(), &ErrorKind::RejectedByPeer);
}

/// What somebody finds who uses a connection whose server has rejected it.
async fn first_use(session: Session, hop: usize) -> Error {
    let Ok(session) = session else { return session.unwrap_err() };
    let peer = session.peer_identity().clone();
    let (client, driver) = match client::Builder::new().with_peer_identity(peer).with_hop(hop).handshake(session).await
    {
        Ok(ends) => ends,
        Err(error) => return error,
    };
    let driver = tokio::spawn(driver);
    let error = client.connect(&authority(), &Metadata::default()).await.unwrap_err();
    assert_eq!(driver.await.unwrap().unwrap_err().kind(), error.kind(), "the driver knows the same");
    error
}

fn foreign_client() -> SpiffeId {
    "spiffe://foreign.example/ns/default/sa/client".parse().unwrap()
}

const REJECTED: &str = "TLS: handshake (peer spiffe://cluster.local/ns/default/sa/server): received fatal alert: \
                        CertificateUnknown; check our own certificate: its root, trust domain and dates";

/// The first use comes when the server has closed already, so that writing fails before the alert is read.
#[rstest]
#[tokio::test]
async fn a_rejected_client_learns_it_after_the_server_has_closed(
    #[values(Carrier::Pipe, Carrier::Tcp, Carrier::Unix)] carrier: Carrier,
) {
    let ca = Ca::new();
    let impatient = Config::new().with_linger_timeout(Duration::from_millis(10));
    let acceptor = Acceptor::new(Arc::new(ca.issue(&server_id())), trusted(), Arc::new(impatient));
    let connector = connector(&ca, &foreign_client());
    let (near, far) = carrier.pair().await;
    let accept = set(&[SERVER]);
    let (near, far) = tokio::join!(connector.connect(near, &accept), acceptor.accept(far));
    assert_eq!(far.unwrap_err().kind(), &ErrorKind::IdentityNotAccepted);
    let near = near.unwrap();
    let (client, driver) = match client::Builder::new().with_peer_identity(server_id()).handshake(near).await {
        Ok(ends) => ends,
        Err(error) => return assert_eq!(error.to_string(), format!("hop 0, {REJECTED}")),
    };
    tokio::spawn(driver);
    let error = client.connect(&authority(), &Metadata::default()).await.unwrap_err();
    assert_eq!(error.to_string(), format!("hop 0, {REJECTED}"));
}

/// Both sides at full speed: whichever comes first, the reason is the same.
#[rstest]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rejected_client_learns_it_in_any_order_of_events(
    #[values(Carrier::Pipe, Carrier::Tcp, Carrier::Unix)] carrier: Carrier,
) {
    let ca = Ca::new();
    let (connector, acceptor) = (connector(&ca, &foreign_client()), acceptor(&ca, &server_id()));
    for _ in 0..100 {
        let (near, far) = carrier.pair().await;
        let acceptor = acceptor.clone();
        let server = tokio::spawn(async move { acceptor.accept(far).await.unwrap_err() });
        let near = connector.connect(near, &set(&[SERVER])).await.unwrap();
        let error = match client::handshake(near).await {
            Ok((client, driver)) => {
                tokio::spawn(driver);
                client.connect(&authority(), &Metadata::default()).await.unwrap_err()
            }
            Err(error) => error,
        };
        assert_eq!(error.kind(), &ErrorKind::RejectedByPeer, "{error}");
        assert_eq!(server.await.unwrap().kind(), &ErrorKind::IdentityNotAccepted);
    }
}

/// A client's connection to a gateway, and a tunnel on it: the client's end and the gateway's.
async fn outer(ca: &Ca) -> (TunnelStream, TunnelStream, SpiffeId, SpiffeId) {
    let (gateway, outer_client) = (id("ns/istio-system/sa/gateway"), id("ns/default/sa/node"));
    let (near, far) = handshake(&connector(ca, &outer_client), &gateway.clone().into(), &acceptor(ca, &gateway)).await;
    let (near, far) = (near.unwrap(), far.unwrap());
    let peers = (near.peer_identity().clone(), far.peer_identity().clone());
    let (client, driver) = client::Builder::new().with_peer_identity(peers.0).handshake(near).await.unwrap();
    tokio::spawn(driver);
    let (sender, tunnel) = tokio::sync::oneshot::channel();
    tokio::spawn(async move {
        let mut server = server::Builder::new().with_peer_identity(peers.1).handshake(far).await.unwrap();
        let incoming = server.accept().await.unwrap().unwrap();
        let peer = incoming.peer_identity().unwrap().clone();
        sender.send((incoming.accept(&Metadata::default()).unwrap(), peer)).unwrap();
        while server.accept().await.is_some() {}
    });
    let near = client.connect(&authority(), &Metadata::default()).await.unwrap();
    let (far, seen_by_gateway) = tunnel.await.unwrap();
    assert_eq!(near.peer_identity(), Some(&gateway));
    assert_eq!(far.peer_identity(), Some(&outer_client));
    (near, far, outer_client, seen_by_gateway)
}

#[tokio::test(start_paused = true)]
async fn each_hop_has_identities_of_its_own() {
    let ca = Ca::new();
    let (near, far, outer_client, seen_by_gateway) = outer(&ca).await;
    assert_eq!(seen_by_gateway, outer_client);
    let (connector, acceptor, accept) = (connector(&ca, &client_id()), acceptor(&ca, &server_id()), set(&[SERVER]));
    let (near, far) = tokio::join!(connector.connect(near, &accept), acceptor.accept(far));
    let (near, far) = (near.unwrap(), far.unwrap());
    let (near_peer, far_peer) = (near.peer_identity().clone(), far.peer_identity().clone());
    let (client, driver) =
        client::Builder::new().with_peer_identity(near_peer).with_hop(1).handshake(near).await.unwrap();
    tokio::spawn(driver);
    let mut server = server::Builder::new().with_peer_identity(far_peer).handshake(far).await.unwrap();
    let (authority, metadata) = (authority(), Metadata::default());
    let (near, incoming) = tokio::join!(client.connect(&authority, &metadata), async {
        let incoming = server.accept().await.unwrap().unwrap();
        let peer = incoming.peer_identity().cloned();
        let tunnel = incoming.accept(&Metadata::default()).unwrap();
        tokio::spawn(async move { while server.accept().await.is_some() {} });
        (peer, tunnel)
    });
    assert_eq!(incoming.0, Some(client_id()), "not the node's, which only the gateway saw");
    assert_eq!(incoming.1.peer_identity(), Some(&client_id()));
    assert_eq!(near.unwrap().peer_identity(), Some(&server_id()), "not the gateway's");
    assert_eq!(client.peer_identity(), Some(&server_id()));
}

/// Waits until nothing moves: the paused clock goes on only then.
async fn settle() {
    tokio::time::sleep(Duration::from_millis(1)).await;
}

#[rstest]
#[case::at_once(false)]
#[case::after_the_server_has_closed(true)]
#[tokio::test(start_paused = true)]
async fn a_client_rejected_at_the_inner_hop_learns_it_with_that_hop(#[case] late: bool) {
    let ca = Ca::new();
    let (near, far, ..) = outer(&ca).await;
    let (connector, acceptor) = (connector(&ca, &foreign_client()), acceptor(&ca, &server_id()));
    let server = tokio::spawn(async move { acceptor.accept(far).await.unwrap_err() });
    let near = connector.connect(near, &set(&[SERVER])).await.unwrap();
    if late {
        assert_eq!(server.await.unwrap().kind(), &ErrorKind::IdentityNotAccepted);
        settle().await;
    }
    let error = match client::Builder::new().with_peer_identity(server_id()).with_hop(1).handshake(near).await {
        Ok((client, driver)) => {
            tokio::spawn(driver);
            client.connect(&authority(), &Metadata::default()).await.unwrap_err()
        }
        Err(error) => error,
    };
    assert_eq!(error.to_string(), format!("hop 1, {REJECTED}"));
    assert_eq!(error.hop(), Some(1));
}

#[tokio::test(start_paused = true)]
async fn a_server_rejected_at_the_inner_hop_learns_it() {
    let ca = Ca::new();
    let (near, far, ..) = outer(&ca).await;
    let (connector, acceptor, accept) = (connector(&ca, &client_id()), acceptor(&ca, &server_id()), set(&[OTHER]));
    let (near, far) = tokio::join!(connector.connect(near, &accept), acceptor.accept(far));
    assert_eq!(near.unwrap_err().kind(), &ErrorKind::IdentityNotAccepted);
    let error = far.unwrap_err();
    assert_eq!((error.kind(), error.layer()), (&ErrorKind::RejectedByPeer, Layer::Tls));
}

#[derive(Debug)]
struct Rotating(Mutex<Vec<Credentials>>);

impl CredentialSource for Rotating {
    fn credentials(&self) -> io::Result<Credentials> {
        self.0.lock().unwrap().pop().ok_or_else(|| io::Error::other("the agent has no certificate"))
    }
}

#[tokio::test(start_paused = true)]
async fn credentials_are_asked_for_at_each_handshake() {
    let (ca, config) = (Ca::new(), Arc::new(Config::new()));
    let rotating =
        |names: [&str; 2]| Arc::new(Rotating(Mutex::new(names.iter().rev().map(|name| ca.issue(&id(name))).collect())));
    let connector = Connector::new(rotating(["ns/c/sa/one", "ns/c/sa/two"]), config.clone());
    let acceptor = Acceptor::new(rotating(["ns/s/sa/one", "ns/s/sa/two"]), trusted(), config.clone());
    for (client, server) in [("ns/c/sa/one", "ns/s/sa/one"), ("ns/c/sa/two", "ns/s/sa/two")] {
        let (near, far) = handshake(&connector, &id(server).into(), &acceptor).await;
        assert_eq!(near.unwrap().peer_identity(), &id(server));
        assert_eq!(far.unwrap().peer_identity(), &id(client));
    }
    let (near, far) = handshake(&connector, &id("ns/s/sa/two").into(), &acceptor).await;
    for error in [near.unwrap_err(), far.unwrap_err()] {
        assert_eq!((error.kind(), error.side()), (&ErrorKind::InvalidCredentials, Side::Local));
        assert!(error.to_string().starts_with("TLS: handshake: the agent has no certificate; check"), "{error}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_handshake_waits_for_the_first_certificate() {
    let (ca, config) = (Ca::new(), Arc::new(Config::new()));
    let (client, server) = (ReloadingCredentials::new(), ReloadingCredentials::new());
    let connector = Connector::new(Arc::new(client.clone()), config.clone());
    let acceptor = Acceptor::new(Arc::new(server.clone()), trusted(), config.clone());
    let issue = async {
        tokio::time::sleep(Duration::from_secs(3)).await;
        client.update(Ok(ca.issue(&client_id()))).unwrap();
        server.update(Ok(ca.issue(&server_id()))).unwrap();
    };
    let accept = server_id().into();
    let ((near, far), ()) = tokio::join!(handshake(&connector, &accept, &acceptor), issue);
    assert_eq!(near.unwrap().peer_identity(), &server_id());
    assert_eq!(far.unwrap().peer_identity(), &client_id());
}

#[tokio::test(start_paused = true)]
async fn a_session_says_by_which_certificates_and_how_it_was_made() {
    let ca = Ca::new();
    let soon = SystemTime::now() + Duration::from_secs(60 * 60);
    let client = ca.certificate().uri(&client_id().to_string()).not_after(soon).issue().credentials().unwrap();
    let server = ca.issue(&server_id());
    let connector = Connector::new(Arc::new(client.clone()), Arc::default());
    let acceptor = Acceptor::new(Arc::new(server.clone()), trusted(), Arc::default());
    let (near, far) = handshake(&connector, &server_id().into(), &acceptor).await;
    for (session, local, peer) in [(near.unwrap(), &client, &server), (far.unwrap(), &server, &client)] {
        assert_eq!(session.local_certificate(), Some(local.certificate()));
        assert_eq!(session.peer_certificate(), peer.certificate());
        assert_eq!(session.peer_certificates(), peer.chain());
        assert_eq!(session.not_after(), client.certificate().not_after());
        assert_eq!(session.alpn(), b"h2");
        assert_eq!(session.cipher_suite(), Some(CipherSuite::TLS13_AES_128_GCM_SHA256));
    }
}

#[tokio::test(start_paused = true)]
async fn trust_domains_are_of_the_certificate_and_not_of_the_name() {
    // The own trust domain of a server need not be the one of its certificate.
    let ca = Ca::new();
    let trusted = TrustDomains::new("foreign.example".parse().unwrap());
    let acceptor = Acceptor::new(Arc::new(ca.issue(&server_id())), trusted, Arc::default());
    let accept = set(&[SERVER]);
    let (_, far) = handshake(&connector(&ca, &foreign_client()), &accept, &acceptor).await;
    assert_eq!(far.unwrap().peer_identity(), &foreign_client());
    let (_, far) = handshake(&connector(&ca, &client_id()), &accept, &acceptor).await;
    assert_eq!(far.unwrap_err().kind(), &ErrorKind::IdentityNotAccepted);
}
