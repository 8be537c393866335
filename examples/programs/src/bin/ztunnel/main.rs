//! A proxy for one workload: its connections go out through tunnels, and tunnels to it come in.

use std::error::Error;
use std::future::Future;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::{ArgGroup, Parser};
use futures_util::future::{FutureExt, join_all};
use hbone::connector::{Connector, ConnectorConfig};
use hbone::io::{RelayStats, Stream};
use hbone::pool::{Pool, PoolConfig};
use hbone::proxy::{Inbound, Outbound, WorkerSet, socks5, tcp};
use hbone::server::ConnectionServer;
use hbone::tls::Acceptor;
use hbone::{Authority, Config, drain};
use hbone_programs::{Common, Health, Loaded, seconds, set};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

/// A mesh proxy for one workload
#[derive(Parser, Debug)]
#[command(name = "ztunnel", version)]
#[command(group(ArgGroup::new("listeners").required(true).multiple(true).args(["inbound", "outbound", "socks5", "forward"])))]
struct Args {
    /// Workload to serve
    #[arg(long, value_name = "NS/NAME", value_parser = workload)]
    workload: (String, String),
    #[command(flatten)]
    common: Common,
    /// Network that the workload must be in
    #[arg(long, value_name = "N")]
    network: Option<String>,
    /// Cluster that the workload must be in
    #[arg(long, value_name = "C")]
    cluster: Option<String>,
    /// Address to accept tunnels to the workload on (HBONE, usually port 15008)
    #[arg(long, value_name = "ADDR")]
    inbound: Option<SocketAddr>,
    /// Address to accept connections on that a REDIRECT rule captures (Linux)
    #[arg(long, value_name = "ADDR")]
    outbound: Option<SocketAddr>,
    /// Address to accept SOCKS5 connections on, to addresses and names
    #[arg(long, value_name = "ADDR")]
    socks5: Option<SocketAddr>,
    /// Local address to forward to one target (repeatable)
    #[arg(long, value_name = "LISTEN=HOST:PORT", value_parser = forward)]
    forward: Vec<(SocketAddr, Authority)>,
    /// Mark for the proxy's own connections (SO_MARK), so that capture rules can skip them (Linux)
    #[arg(long, value_name = "N")]
    mark: Option<u32>,
    /// How long opening an outbound connection may take, all attempts together [default: 20]
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    connect_timeout: Option<Duration>,
    /// How many attempts an outbound connection gets [default: 3]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    attempts: Option<u16>,
    /// How long one attempt may take while there is another endpoint to try [default: 3]
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    attempt_timeout: Option<Duration>,
    /// How long opening a connection to another proxy may take, for all that wait for it [default: 10]
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    dial_timeout: Option<Duration>,
    /// How long a connection to another proxy is kept without tunnels [default: 300]
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    idle_timeout: Option<Duration>,
    #[command(flatten)]
    health: Health,
}

impl Args {
    fn connector(&self) -> ConnectorConfig {
        let config = ConnectorConfig::new().with_outliers(self.health.outliers());
        let config = set(config, self.connect_timeout, ConnectorConfig::with_connect_timeout);
        let config = set(config, self.attempts.map(usize::from), ConnectorConfig::with_attempts);
        set(config, self.attempt_timeout, ConnectorConfig::with_attempt_timeout)
    }

    fn pool(&self) -> PoolConfig {
        let config = set(PoolConfig::new(), self.dial_timeout, PoolConfig::with_open_timeout);
        set(config, self.idle_timeout, PoolConfig::with_idle_timeout)
    }
}

fn workload(text: &str) -> Result<(String, String), String> {
    match text.split_once('/') {
        Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() => Ok((namespace.into(), name.into())),
        _ => Err("it is not of the form NAMESPACE/NAME".into()),
    }
}

fn forward(text: &str) -> Result<(SocketAddr, Authority), String> {
    let (listen, target) = text.split_once('=').ok_or("it is not of the form LISTEN=HOST:PORT")?;
    let listen = listen.parse().map_err(|e| format!("{listen:?}: {e}"))?;
    Ok((listen, target.parse().map_err(|e| format!("{target:?}: {e}"))?))
}

fn main() -> ExitCode {
    let args = Args::parse();
    hbone_programs::main(run(args))
}

async fn run(args: Args) -> Result<(), Box<dyn Error>> {
    let Loaded { snapshot, mesh, credentials, source, trusted, reload } = args.common.load()?;
    let (namespace, name) = &args.workload;
    let Some(own) = snapshot.workload_named(namespace, name) else {
        return Err(format!("the mesh has no workload {namespace}/{name}").into());
    };
    if own.identity() != credentials.identity() {
        let (is, must) = (credentials.identity(), own.identity());
        return Err(format!("the certificate belongs to {is}, and {namespace}/{name} must be {must}").into());
    }
    for (flag, is, must) in
        [("--network", own.network.as_str(), &args.network), ("--cluster", &*own.cluster, &args.cluster)]
    {
        if must.as_ref().is_some_and(|must| must != is) {
            let must = must.as_deref().unwrap_or_default();
            return Err(format!("{namespace}/{name} is in {is:?}, and {flag} says {must:?}").into());
        }
    }

    let workers = args.common.workers()?;
    let config = Arc::new(Config::new().with_scheduler(workers.scheduler()));
    let mut dialer = tcp::TcpDialer::new();
    if let Some(mark) = args.mark {
        dialer = dialer.with_mark(mark);
    }
    let dialer = Arc::new(dialer);
    let acceptor = Acceptor::new(source.clone(), trusted, config.clone());
    let server = ConnectionServer::new(acceptor, config.clone());
    let inbound = Inbound::new(server, mesh.clone(), namespace, name).with_dialer(dialer.clone());
    let pools =
        workers.set().handles().map(|_| Pool::new(dialer.clone(), config.clone(), args.pool())).collect::<Vec<_>>();
    let builder = Connector::builder(mesh, namespace, name).with_config(args.connector());
    let connector = builder.build(&pools[0], source)?;
    let ways = pools.iter().map(|pool| Ok(Outbound::new(connector.with_pool(pool)?)));
    let ways = ways.collect::<hbone::Result<Arc<[_]>>>()?;

    let (drain, watch) = drain::channel();
    let mut tasks = JoinSet::new();
    if let Some(address) = args.inbound {
        let listener = tcp::listen(address)?;
        tracing::info!(address = %listener.local_addr()?, "inbound");
        let serve = move |_, stream, peer, drain| {
            let inbound = inbound.clone();
            async move {
                if let Err(error) = inbound.serve(stream, Some(peer), &drain).await {
                    tracing::warn!(%error, "inbound connection");
                }
            }
        };
        tasks.spawn(tcp::accept_across(listener, None, workers.set(), watch.clone(), serve));
    }
    let mut applications = Applications { workers: workers.set(), ways, watch: &watch, tasks: &mut tasks };
    if let Some(address) = args.outbound {
        applications.take("outbound", address, |outbound, mut stream, peer| async move {
            let target = tcp::original_destination(&stream).inspect_err(|_| stream.fail())?;
            outbound.serve(stream, &target.into(), Some(peer)).await
        })?;
    }
    if let Some(address) = args.socks5 {
        applications.take("socks5", address, |outbound, stream, peer| async move {
            socks5::serve(&outbound, stream, Some(peer)).await
        })?;
    }
    for (address, target) in args.forward {
        applications.take("forward", address, move |outbound, stream, peer| {
            let target = target.clone();
            async move { outbound.serve(stream, &target, Some(peer)).await }
        })?;
    }
    args.common.run(reload, tasks, drain, watch).await?;
    // Nobody sends any more; what was sent last is still to leave.
    let reports = join_all(pools.iter().map(|pool| pool.close(Duration::from_secs(2)))).await;
    tracing::debug!(?reports, "connections closed");
    Ok(())
}

/// Whose connections go out, on all threads.
struct Applications<'a> {
    workers: WorkerSet,
    /// Each thread's.
    ways: Arc<[Outbound]>,
    watch: &'a drain::Watch,
    tasks: &'a mut JoinSet<()>,
}

impl Applications<'_> {
    /// Takes connections at an address.
    fn take<F, S>(&mut self, what: &str, address: SocketAddr, serve: F) -> Result<(), Box<dyn Error>>
    where
        F: Fn(Outbound, TcpStream, SocketAddr) -> S + Clone + Send + Sync + 'static,
        S: Future<Output = hbone::Result<RelayStats>> + Send + 'static,
    {
        let listeners = tcp::listen_on_each(address, &self.workers)?;
        if let Some(listener) = listeners.first() {
            tracing::info!(address = %listener.local_addr()?, "{what}");
        }
        for (home, (listener, runtime)) in listeners.into_iter().zip(self.workers.handles()).enumerate() {
            let (serve, ways) = (serve.clone(), self.ways.clone());
            let serve = move |worker: usize, stream, peer, _| {
                serve(ways[worker].clone(), stream, peer).map(move |ended| {
                    if let Err(error) = ended {
                        tracing::warn!(%peer, %error, "outbound connection");
                    }
                })
            };
            let accepting = tcp::accept_across(listener, Some(home), self.workers.clone(), self.watch.clone(), serve);
            self.tasks.spawn_on(accepting, runtime);
        }
        Ok(())
    }
}
