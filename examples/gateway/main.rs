//! An east-west gateway: passes tunnels from other networks on to the pods of global services.

#[path = "../common/mod.rs"]
mod common;

use std::error::Error;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser;
use common::{Common, Loaded};
use hbone::balance::LeastRequests;
use hbone::mesh::Network;
use hbone::proxy::{Gateway, tcp};
use hbone::{Config, drain};
use tokio::task::JoinSet;

/// An east-west gateway
#[derive(Parser, Debug)]
#[command(name = "gateway")]
struct Args {
    #[command(flatten)]
    common: Common,
    /// The network behind the gateway
    #[arg(long, value_name = "N")]
    network: String,
    /// Takes tunnels from other networks (HBONE; usually port 15008)
    #[arg(long, value_name = "ADDR")]
    listen: SocketAddr,
}

fn main() -> ExitCode {
    let args = Args::parse();
    common::main(run(args))
}

async fn run(args: Args) -> Result<(), Box<dyn Error>> {
    let Loaded { snapshot, mesh, credentials, trusted } = args.common.load()?;
    let network = Network::new(args.network.as_str());
    if !snapshot.workloads().any(|workload| workload.network == network) {
        return Err(format!("the mesh has no workload in network {:?}", args.network).into());
    }
    let (dialer, balance) = (Arc::new(tcp::TcpDialer::new()), Arc::new(LeastRequests::new()));
    let config = Arc::new(Config::new());
    let gateway = Gateway::new(mesh, network, Arc::new(credentials), trusted, dialer, balance, config);

    let (drain, watch) = drain::channel();
    let mut tasks = JoinSet::new();
    let listener = tcp::listen(args.listen)?;
    tracing::info!(address = %listener.local_addr()?, "gateway");
    tasks.spawn(tcp::accept_each(listener, watch.clone(), move |stream, peer, drain| {
        let gateway = gateway.clone();
        async move {
            if let Err(error) = gateway.serve(stream, Some(peer), &drain).await {
                tracing::warn!(%error, "connection");
            }
        }
    }));
    args.common.run(tasks, drain, watch).await
}
