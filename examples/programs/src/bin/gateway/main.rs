//! An east-west gateway: passes tunnels from other networks on to the pods of global services.

use std::error::Error;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use hbone::mesh::Network;
use hbone::proxy::{Gateway, tcp};
use hbone::server::ConnectionServer;
use hbone::tls::Acceptor;
use hbone::{Config, drain};
use hbone_programs::{Common, Health, Loaded, seconds, set};
use tokio::task::JoinSet;

/// An east-west gateway
#[derive(Parser, Debug)]
#[command(name = "gateway", version)]
struct Args {
    #[command(flatten)]
    common: Common,
    /// Network behind the gateway
    #[arg(long, value_name = "N")]
    network: String,
    /// Address to accept tunnels from other networks on (HBONE, usually port 15008)
    #[arg(long, value_name = "ADDR")]
    listen: SocketAddr,
    /// How many pods are dialed for one tunnel [default: 3]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    attempts: Option<u16>,
    /// How long dialing a pod may take while there is another one to try [default: 2]
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    attempt_timeout: Option<Duration>,
    #[command(flatten)]
    health: Health,
}

fn main() -> ExitCode {
    let args = Args::parse();
    hbone_programs::main(run(args))
}

async fn run(args: Args) -> Result<(), Box<dyn Error>> {
    let Loaded { snapshot, mesh, source, trusted, reload, .. } = args.common.load()?;
    let network = Network::new(args.network.as_str());
    if !snapshot.workloads().any(|workload| workload.network == network) {
        return Err(format!("the mesh has no workload in network {:?}", args.network).into());
    }
    let workers = args.common.workers()?;
    let config = Arc::new(Config::new().with_scheduler(workers.scheduler()));
    let acceptor = Acceptor::new(source, trusted, config.clone());
    let gateway = Gateway::new(ConnectionServer::new(acceptor, config), mesh, network);
    let gateway = gateway.with_outliers(args.health.outliers());
    let gateway = set(gateway, args.attempts.map(usize::from), Gateway::with_attempts);
    let gateway = set(gateway, args.attempt_timeout, Gateway::with_attempt_timeout);

    let (drain, watch) = drain::channel();
    let mut tasks = JoinSet::new();
    let listener = tcp::listen(args.listen)?;
    tracing::info!(address = %listener.local_addr()?, "gateway");
    let serve = move |_, stream, peer, drain| {
        let gateway = gateway.clone();
        async move {
            if let Err(error) = gateway.serve(stream, Some(peer), &drain).await {
                tracing::warn!(%error, "connection");
            }
        }
    };
    tasks.spawn(tcp::accept_across(listener, None, workers.set(), watch.clone(), serve));
    args.common.run(reload, tasks, drain, watch).await
}
