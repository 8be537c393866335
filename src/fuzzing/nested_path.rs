//! A path of nested connections with a hostile peer at one hop.

use std::pin::Pin;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

use super::frames::PREFACE;
use super::local::check_error;
use super::peer::{Setup, Transcript, play, run};
use super::script::Step;
use crate::authority::Authority;
use crate::client::{self, Client};
use crate::config::Config;
use crate::error::Result;
use crate::identity::{AcceptedIdentities, SpiffeId, TrustDomains};
use crate::io::BoxStream;
use crate::metadata::Metadata;
use crate::path::TunnelledHop;
use crate::testing::Ca;
use crate::tls::{Acceptor, Connector, Credentials};
use crate::{nested, server};

/// Longer than a tunnel on a healthy connection takes.
const LONG: Duration = Duration::from_secs(600);

/// What happens where.
#[derive(Clone, Debug)]
struct Plan {
    depth: usize,
    /// The hop with the hostile peer.
    hop: usize,
    /// The hostile peer is the client.
    client: bool,
    /// The script replaces TLS instead of running inside it.
    raw: bool,
    setup: Setup,
    steps: Vec<Step>,
    /// Turns true when the legitimate ends are done.
    over: watch::Receiver<bool>,
    /// Each task holds a clone, so that the receiver ends with the last task.
    alive: mpsc::Sender<()>,
}

/// Issued once per process: keys are random, and expensive.
static CREDENTIALS: LazyLock<[Arc<Credentials>; 2]> = LazyLock::new(|| {
    let ca = Ca::new();
    [client_id(), server_id()].map(|id| Arc::new(ca.issue(&id)))
});

fn client_id() -> SpiffeId {
    "spiffe://cluster.local/ns/default/sa/client".parse().expect("an identity")
}

fn server_id() -> SpiffeId {
    "spiffe://cluster.local/ns/default/sa/server".parse().expect("an identity")
}

fn authority(name: &str) -> Authority {
    Authority::name(name, 80).expect("a name")
}

/// The input is one byte each for the depth, the hostile hop and the kind of attack, then setup and script as for the
/// HTTP/2 targets.
///
/// All tasks end, errors name the hop, and the connection that carries the hostile hop still carries other tunnels.
pub fn nested_path(data: &[u8]) {
    let Some(([depth, hop, whose], rest)) = data.split_first_chunk() else { return };
    let depth = 1 + usize::from(*depth) % 3;
    let (setup, steps) = Setup::read(rest);
    run(async move {
        let (over, is_over) = watch::channel(false);
        let (alive, mut all_gone) = mpsc::channel(1);
        let hop = usize::from(*hop) % depth;
        let (client, raw) = (whose & 1 != 0, whose & 2 != 0);
        let plan = Plan { depth, hop, client, raw, setup, steps, over: is_over, alive };
        let (near, far) = setup.pipe();
        tokio::spawn(serve(Box::new(far), 0, plan.clone()));
        let clients = dial(Box::new(near), plan).await;
        if let Some(below) = hop.checked_sub(1) {
            echoes(&clients[below]).await;
        }
        over.send_replace(true);
        drop(clients);
        assert_eq!(all_gone.recv().await, None, "all tasks come to an end");
    });
}

fn connector() -> Connector {
    Connector::new(CREDENTIALS[0].clone(), Arc::default())
}

/// The near end of the path: a client for each hop that was reached.
async fn dial(io: BoxStream, plan: Plan) -> Vec<Client> {
    let accept = AcceptedIdentities::from(server_id());
    let mut clients: Vec<Client> = Vec::new();
    if plan.client && plan.hop == 0 {
        attack(io, plan).await;
        return clients;
    }
    let Ok(stream) = connector().connect(io, &accept).await.inspect_err(check_error) else { return clients };
    let builder =
        client::Builder::new().with_config(Arc::new(Config::new())).with_peer_identity(stream.peer_identity().clone());
    let (client, driver) = builder.handshake(stream).await.expect("a start");
    spawn(driver, &plan);
    clients.push(client);
    for hop in 1..plan.depth {
        let below = &clients[hop - 1];
        if plan.client && plan.hop == hop {
            if let Ok(tunnel) = below.connect(&authority("next"), &Metadata::default()).await {
                attack(Box::new(tunnel), plan).await;
            }
            return clients;
        }
        let next = TunnelledHop::new(authority("next"), accept.clone());
        match nested::extend(below, &next, &connector(), &Metadata::default()).await {
            Ok((client, driver)) => {
                spawn(driver, &plan);
                clients.push(client);
            }
            Err(error) => {
                check_error(&error);
                let blamed = error.hop().expect("the hop that failed");
                assert!(blamed == plan.hop || blamed == plan.hop + 1, "hop {} and not {blamed}: {error}", plan.hop);
                return clients;
            }
        }
    }
    // Any outcome is fine: the innermost peer may be the hostile one.
    let innermost = &clients[plan.depth - 1];
    if let Ok(mut tunnel) = innermost.connect(&authority("any"), &Metadata::default()).await {
        let _ = timeout(LONG, async {
            let _ = tunnel.write_all(b"hello").await;
            tunnel.read_to_end(&mut Vec::new()).await
        })
        .await;
    }
    clients
}

/// Spawns a driver, which holds `alive`.
fn spawn(driver: impl Future<Output = Result<()>> + Send + 'static, plan: &Plan) {
    let alive = plan.alive.clone();
    tokio::spawn(async move {
        if let Err(error) = driver.await {
            check_error(&error);
        }
        drop(alive);
    });
}

/// Attacks as a client.
async fn attack(io: BoxStream, mut plan: Plan) {
    if plan.raw {
        script(io, plan).await;
    } else if let Ok(stream) = connector().connect(io, &server_id().into()).await {
        plan.steps.insert(0, Step::Bytes(PREFACE.to_vec()));
        script(Box::new(stream), plan).await;
    }
}

/// Plays the script.
async fn script(io: BoxStream, plan: Plan) {
    let (acts, _) = mpsc::unbounded_channel();
    let playing = play(io, (plan.setup, plan.steps), acts, plan.over, Transcript::default());
    if plan.client {
        // The connection below is checked only after this client is gone.
        let _ = timeout(LONG, playing).await;
    } else {
        playing.await;
    }
    drop(plan.alive);
}

/// The far end of the path: each hop leads to the next one and to an echo.
fn serve(io: BoxStream, hop: usize, plan: Plan) -> Pin<Box<dyn Future<Output = ()> + Send>> {
    Box::pin(async move {
        let hostile = !plan.client && plan.hop == hop;
        if hostile && plan.raw {
            return script(io, plan).await;
        }
        let trusted = TrustDomains::new("cluster.local".parse().expect("a trust domain"));
        let acceptor = Acceptor::new(CREDENTIALS[1].clone(), trusted, Arc::default());
        let Ok(stream) = acceptor.accept(io).await.inspect_err(check_error) else { return };
        if hostile {
            return script(Box::new(stream), plan).await;
        }
        let builder =
            server::Builder::new().with_config(plan.setup.config()).with_peer_identity(stream.peer_identity().clone());
        let Ok(mut server) = builder.handshake(stream).await.inspect_err(check_error) else { return };
        while let Some(incoming) = server.accept().await {
            let Ok(incoming) = incoming.inspect_err(check_error) else { continue };
            let leads_on = *incoming.authority() == authority("next") && hop + 1 < plan.depth;
            let Ok(mut tunnel) = incoming.accept(&Metadata::default()) else { continue };
            if leads_on {
                tokio::spawn(serve(Box::new(tunnel), hop + 1, plan.clone()));
            } else {
                let alive = plan.alive.clone();
                tokio::spawn(async move {
                    let (mut read, mut write) = tokio::io::split(&mut tunnel);
                    let _ = tokio::io::copy(&mut read, &mut write).await;
                    let _ = write.shutdown().await;
                    drop(alive);
                });
            }
        }
    })
}

/// A connection with a hostile tunnel still carries other tunnels.
async fn echoes(client: &Client) {
    let echo = async {
        let mut tunnel = client.connect(&authority("echo"), &Metadata::default()).await.expect("a tunnel");
        tunnel.write_all(b"hello").await.expect("a write");
        tunnel.shutdown().await.expect("an end");
        let mut got = Vec::new();
        tunnel.read_to_end(&mut got).await.expect("an echo");
        assert_eq!(got, b"hello");
    };
    timeout(LONG, echo).await.expect("in time");
}
