//! TLS as a program outside of this crate may bring it: keys that are not files, secrets that are logged, other SPIFFE
//! IDs, a stack of its own.
#![expect(clippy::unwrap_used, reason = "a test that can't go on fails")]

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hbone::metadata::Metadata;
use hbone::pool::{Pool, PoolConfig, Source};
use hbone::testing::{Ca, Issued, Network};
use hbone::tls::rustls::pki_types::pem::PemObject;
use hbone::tls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use hbone::tls::rustls::sign::{CertifiedKey, Signer, SigningKey};
use hbone::tls::rustls::{KeyLog, SignatureAlgorithm, SignatureScheme};
use hbone::tls::{
    Acceptor, Certificate, ClientTls, Connector, CredentialSource, Credentials, Handshake, ReloadingCredentials,
    Secured, ServerTls, provider,
};
use hbone::{
    AcceptedIdentities, Config, DirectHop, ErrorKind, Path, SpiffeId, TrustDomains, TunnelStream, TunnelledHop, client,
    nested, server,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
use tokio::time::sleep;

fn id(service_account: &str) -> SpiffeId {
    format!("spiffe://cluster.local/ns/shop/sa/{service_account}").parse().unwrap()
}

fn trusted() -> TrustDomains {
    TrustDomains::new("cluster.local".parse().unwrap())
}

fn acceptor(ca: &Ca, service_account: &str) -> Acceptor {
    Acceptor::new(Arc::new(ca.issue(&id(service_account))), trusted(), Arc::default())
}

fn issue(ca: &Ca, uri: &str) -> Issued {
    ca.certificate().uri(uri).issue()
}

fn certificates(pem: &str) -> Vec<CertificateDer<'static>> {
    CertificateDer::pem_slice_iter(pem.as_bytes()).map(Result::unwrap).collect()
}

/// Handshakes over a pipe: what the client has to say of it.
async fn handshake(client: &Connector, accept: &AcceptedIdentities, server: &Acceptor) -> hbone::Result<Certificate> {
    let (near, far) = duplex(64 << 10);
    let (near, far) = tokio::join!(client.connect(near, accept), server.accept(far));
    let (near, _far) = (near?, far?);
    Ok(near.peer_certificate().clone())
}

/// A pod that echoes, behind `acceptor`.
fn pod(network: &Network, address: &str, acceptor: Acceptor) {
    let mut listener = network.listen(address.parse::<SocketAddr>().unwrap());
    tokio::spawn(async move {
        while let Some(stream) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let mut server = server::handshake(acceptor.accept(stream).await?).await?;
                while let Some(Ok(incoming)) = server.accept().await {
                    let (mut read, mut write) = tokio::io::split(incoming.accept(&Metadata::default())?);
                    tokio::spawn(async move {
                        tokio::io::copy(&mut read, &mut write).await?;
                        write.shutdown().await
                    });
                }
                Ok::<_, hbone::Error>(())
            });
        }
    });
}

async fn tunnel(pool: &Pool, source: &Source, path: &Path) -> hbone::Result<TunnelStream> {
    let lease = pool.checkout(source, path).await?;
    let authority = "pod.test:80".parse().unwrap();
    Ok(lease.connect(&authority, &Metadata::default()).await?)
}

async fn echoes(mut tunnel: TunnelStream) {
    tunnel.write_all(b"hello").await.unwrap();
    tunnel.flush().await.unwrap();
    let mut echoed = [0; 5];
    tunnel.read_exact(&mut echoed).await.unwrap();
    assert_eq!(&echoed, b"hello");
}

/// A key that only signs, as in an HSM.
#[derive(Debug)]
struct Hsm {
    key: Arc<dyn SigningKey>,
    signed: Arc<AtomicUsize>,
}

impl SigningKey for Hsm {
    fn choose_scheme(&self, offered: &[SignatureScheme]) -> Option<Box<dyn Signer>> {
        self.signed.fetch_add(1, Ordering::SeqCst);
        self.key.choose_scheme(offered)
    }

    fn algorithm(&self) -> SignatureAlgorithm {
        self.key.algorithm()
    }
}

#[tokio::test]
async fn a_signing_key_need_not_be_in_memory() {
    let (ca, provider, signed) = (Ca::new(), provider::installed().unwrap(), Arc::new(AtomicUsize::new(0)));
    let issued = issue(&ca, &id("web").to_string());
    let key = PrivateKeyDer::from_pem_slice(issued.key_pem().as_bytes()).unwrap();
    let key = Hsm { key: provider.key_provider.load_private_key(key).unwrap(), signed: signed.clone() };
    let key = CertifiedKey::new(certificates(&issued.chain_pem()), Arc::new(key));
    let credentials =
        Credentials::builder().with_provider(provider).from_key(key, certificates(issued.root_pem())).unwrap();
    let connector = Connector::new(Arc::new(credentials), Arc::default());
    handshake(&connector, &id("cart").into(), &acceptor(&ca, "cart")).await.unwrap();
    assert_eq!(signed.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_provider_without_tls_1_3_is_refused_when_it_is_given() {
    let ca = Ca::new();
    let mut provider = (*provider::installed().unwrap()).clone();
    provider.cipher_suites.clear();
    let issued = issue(&ca, &id("web").to_string());
    let builder = Credentials::builder().with_provider(Arc::new(provider));
    let error = builder
        .from_pem(issued.chain_pem().as_bytes(), issued.key_pem().as_bytes(), issued.root_pem().as_bytes())
        .unwrap_err();
    assert_eq!(error.kind(), &ErrorKind::InvalidCredentials);
    assert!(error.to_string().contains("no cipher suite of TLS 1.3"), "{error}");
}

#[derive(Debug, Default)]
struct Secrets(Mutex<Vec<String>>);

impl KeyLog for Secrets {
    fn log(&self, label: &str, _client_random: &[u8], _secret: &[u8]) {
        self.0.lock().unwrap().push(label.to_owned());
    }
}

#[tokio::test]
async fn secrets_can_be_logged_on_both_sides() {
    let (ca, near, far) = (Ca::new(), Arc::new(Secrets::default()), Arc::new(Secrets::default()));
    let connector = Connector::new(Arc::new(ca.issue(&id("web"))), Arc::default()).with_key_log(near.clone());
    let acceptor = acceptor(&ca, "cart").with_key_log(far.clone());
    handshake(&connector, &id("cart").into(), &acceptor).await.unwrap();
    for log in [near, far] {
        assert!(log.0.lock().unwrap().iter().any(|label| label == "CLIENT_TRAFFIC_SECRET_0"));
    }
}

#[tokio::test(start_paused = true)]
async fn spire_s_ids_and_foreign_trust_domains_are_let_in_where_that_is_chosen() {
    const SPIRE: &str = "spiffe://example.org/agent/web/1";
    let ca = Ca::new();
    let load = |builder: hbone::tls::CredentialsBuilder| {
        let issued = issue(&ca, SPIRE);
        builder.from_pem(issued.chain_pem().as_bytes(), issued.key_pem().as_bytes(), issued.root_pem().as_bytes())
    };
    assert_eq!(load(Credentials::builder()).unwrap_err().kind(), &ErrorKind::InvalidCredentials);
    let spire = Arc::new(load(Credentials::builder().with_any_path()).unwrap());
    assert_eq!(spire.identity(), &SpiffeId::from_any_path(SPIRE).unwrap());

    // As a server.
    let connector = Connector::new(Arc::new(ca.issue(&id("web"))), Arc::default());
    let server = Acceptor::new(spire.clone(), trusted(), Arc::default());
    let chosen = [
        AcceptedIdentities::from(SpiffeId::from_any_path(SPIRE).unwrap()),
        AcceptedIdentities::trust_domain("example.org".parse().unwrap()),
        AcceptedIdentities::any(),
    ];
    for accept in chosen {
        assert_eq!(handshake(&connector, &accept, &server).await.unwrap().identity(), spire.identity());
    }
    for accept in [id("web").into(), AcceptedIdentities::trust_domain("example.com".parse().unwrap())] {
        assert!(handshake(&connector, &accept, &server).await.unwrap_err().is_identity());
    }

    // As a client.
    let connector = Connector::new(spire, Arc::default());
    let server = |trusted| Acceptor::new(Arc::new(ca.issue(&id("cart"))), trusted, Arc::default());
    let example = TrustDomains::new("example.org".parse().unwrap());
    for trusted in [example.clone().with_any_path(), TrustDomains::any().with_any_path()] {
        handshake(&connector, &id("cart").into(), &server(trusted)).await.unwrap();
    }
    for trusted in [example, TrustDomains::any(), trusted().with_any_path()] {
        let (near, far) = duplex(64 << 10);
        let (server, accept) = (server(trusted), id("cart").into());
        let (near, far) = tokio::join!(connector.connect(near, &accept), server.accept(far));
        drop(near);
        assert!(far.unwrap_err().is_identity());
    }
}

/// A TLS stack of its own, as far as this crate can tell.
#[derive(Debug)]
struct Own {
    tls: Mutex<(Connector, Certificate)>,
    acceptor: Acceptor,
    handshakes: AtomicUsize,
}

impl Own {
    fn new(ca: &Ca, service_account: &str) -> Arc<Self> {
        Arc::new(Self {
            tls: Mutex::new(Self::connector(ca, service_account)),
            acceptor: Acceptor::new(Arc::new(ca.issue(&id(service_account))), TrustDomains::any(), Arc::default()),
            handshakes: AtomicUsize::new(0),
        })
    }

    fn connector(ca: &Ca, service_account: &str) -> (Connector, Certificate) {
        let credentials = ca.issue(&id(service_account));
        let certificate = credentials.certificate().clone();
        (Connector::new(Arc::new(credentials), Arc::default()), certificate)
    }

    fn renew(&self, ca: &Ca, service_account: &str) {
        *self.tls.lock().unwrap() = Self::connector(ca, service_account);
    }
}

impl ClientTls for Own {
    fn connect<'a>(&'a self, io: hbone::io::BoxStream, accept: &'a AcceptedIdentities) -> Handshake<'a> {
        self.handshakes.fetch_add(1, Ordering::SeqCst);
        let connector = self.tls.lock().unwrap().0.clone();
        Box::pin(async move {
            let stream = connector.connect(io, accept).await?;
            let peer = stream.peer_certificate().clone();
            Ok(Secured::new(Box::new(stream), peer))
        })
    }

    fn certificate(&self) -> Option<Certificate> {
        Some(self.tls.lock().unwrap().1.clone())
    }
}

impl ServerTls for Own {
    fn accept(&self, io: hbone::io::BoxStream) -> Handshake<'_> {
        self.handshakes.fetch_add(1, Ordering::SeqCst);
        Box::pin(async move {
            let stream = self.acceptor.accept(io).await?;
            let peer = stream.peer_certificate().clone();
            Ok(Secured::new(Box::new(stream), peer))
        })
    }
}

#[tokio::test(start_paused = true)]
async fn a_tls_stack_of_its_own_serves_pool_and_server() {
    let (ca, network) = (Ca::new(), Network::new());
    let (near, far) = (Own::new(&ca, "web"), Own::new(&ca, "cart"));
    pod(&network, "10.0.0.2:15008", Acceptor::custom(far.clone(), trusted(), Arc::default()));
    let pool = Pool::new(Arc::new(network), Arc::default(), PoolConfig::new());
    let source = pool.source_with(Connector::custom(near.clone(), Arc::default()), Metadata::default());
    assert_eq!(source.identity(), Some(id("web")));
    let path = |who: &str| Path::direct(DirectHop::new("10.0.0.2:15008".parse().unwrap(), id(who).into()));
    for _ in 0..3 {
        echoes(tunnel(&pool, &source, &path("cart")).await.unwrap()).await;
    }
    assert_eq!(near.handshakes.load(Ordering::SeqCst), 1);

    near.renew(&ca, "web");
    echoes(tunnel(&pool, &source, &path("cart")).await.unwrap()).await;
    assert_eq!(near.handshakes.load(Ordering::SeqCst), 2, "for the new certificate");
    assert_eq!(far.handshakes.load(Ordering::SeqCst), 2);

    let error = tunnel(&pool, &source, &path("other")).await.unwrap_err();
    assert_eq!(error.kind(), &ErrorKind::IdentityNotAccepted);
}

#[tokio::test(start_paused = true)]
async fn a_tls_stack_of_its_own_serves_a_nested_hop() {
    let ca = Ca::new();
    let (outer, inner, far) = (acceptor(&ca, "gateway"), acceptor(&ca, "cart"), Own::new(&ca, "web"));
    let (near, gateway) = duplex(64 << 10);
    tokio::spawn(async move {
        let mut server = server::handshake(outer.accept(gateway).await?).await?;
        while let Some(Ok(incoming)) = server.accept().await {
            let (tunnel, inner) = (incoming.accept(&Metadata::default())?, inner.clone());
            tokio::spawn(async move {
                let mut server = server::handshake(inner.accept(tunnel).await?).await?;
                while let Some(Ok(incoming)) = server.accept().await {
                    let (mut read, mut write) = tokio::io::split(incoming.accept(&Metadata::default())?);
                    tokio::spawn(async move { tokio::io::copy(&mut read, &mut write).await });
                }
                Ok::<_, hbone::Error>(())
            });
        }
        Ok::<_, hbone::Error>(())
    });
    let tls = Connector::custom(far.clone(), Arc::default());
    let (client, driver) = client::handshake(tls.connect(near, &id("gateway").into()).await.unwrap()).await.unwrap();
    tokio::spawn(driver);
    let hop = |who: &str| TunnelledHop::new("cart.test:80".parse().unwrap(), id(who).into());
    let (nested, driver) = nested::extend(&client, &hop("cart"), &tls, &Metadata::default()).await.unwrap();
    tokio::spawn(driver);
    assert_eq!((nested.peer_identity(), nested.hop()), (Some(&id("cart")), 1));
    echoes(nested.connect(&"pod.test:80".parse().unwrap(), &Metadata::default()).await.unwrap()).await;
    assert_eq!(far.handshakes.load(Ordering::SeqCst), 2);

    let error = nested::extend(&client, &hop("other"), &tls, &Metadata::default()).await.unwrap_err();
    assert_eq!((error.kind(), error.hop()), (&ErrorKind::IdentityNotAccepted, Some(1)));
}

/// A stack that lets anybody in.
#[derive(Debug)]
struct Careless(Connector);

impl ClientTls for Careless {
    fn connect<'a>(&'a self, io: hbone::io::BoxStream, _: &'a AcceptedIdentities) -> Handshake<'a> {
        Box::pin(async move {
            let stream = self.0.connect(io, &AcceptedIdentities::any()).await?;
            let peer = stream.peer_certificate().clone();
            Ok(Secured::new(Box::new(stream), peer))
        })
    }
}

#[tokio::test(start_paused = true)]
async fn whom_a_hop_accepts_is_checked_whatever_the_stack() {
    let ca = Ca::new();
    let careless = Careless(Connector::new(Arc::new(ca.issue(&id("web"))), Arc::default()));
    let connector = Connector::custom(Arc::new(careless), Arc::default());
    let error = handshake(&connector, &id("cart").into(), &acceptor(&ca, "other")).await.unwrap_err();
    assert_eq!(error.kind(), &ErrorKind::IdentityNotAccepted);
    handshake(&connector, &id("cart").into(), &acceptor(&ca, "cart")).await.unwrap();

    let far =
        Acceptor::custom(Own::new(&ca, "cart"), TrustDomains::new("example.org".parse().unwrap()), Arc::default());
    let error = handshake(&connector, &id("cart").into(), &far).await.unwrap_err();
    assert_eq!(error.kind(), &ErrorKind::IdentityNotAccepted);
}

/// An agent that has a certificate only after a while, and then a new one each time it is asked.
#[derive(Debug)]
struct Agent(ReloadingCredentials);

impl CredentialSource for Agent {
    fn credentials(&self) -> io::Result<Credentials> {
        self.0.credentials()
    }

    fn ready(&self) -> hbone::tls::Ready<'_> {
        self.0.ready()
    }
}

#[tokio::test(start_paused = true)]
async fn credentials_may_come_later_and_be_renewed() {
    let (ca, network) = (Ca::new(), Network::new());
    pod(&network, "10.0.0.2:15008", acceptor(&ca, "cart"));
    let pool = Pool::new(Arc::new(network), Arc::new(Config::new()), PoolConfig::new());
    let credentials = ReloadingCredentials::new();
    let source = pool.source(Arc::new(Agent(credentials.clone())), Metadata::default()).unwrap();
    let path = Path::direct(DirectHop::new("10.0.0.2:15008".parse().unwrap(), id("cart").into()));
    let later = async {
        sleep(Duration::from_secs(2)).await;
        credentials.update(Ok(ca.issue(&id("web")))).unwrap()
    };
    let (first, changed) = tokio::join!(tunnel(&pool, &source, &path), later);
    let first = first.unwrap();
    assert!(changed);
    assert!(credentials.update(Ok(ca.issue(&id("web")))).unwrap());
    let second = tunnel(&pool, &source, &path).await.unwrap();
    assert_eq!(pool.stats().connections, 2);
    echoes(first).await;
    echoes(second).await;
}
