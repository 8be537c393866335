//! A control plane: reads the manifests of each cluster, and sends their proxies over xDS what they have to know of
//! each other.

mod admin;
mod serve;

use std::error::Error;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};

use clap::Parser;
use hbone::proxy::tcp;
use hbone::xds::view::{Options, Views};
use hbone::xds::{DiscoveryServer, Publisher};
use hbone_programs::controlplane::convert::{Converter, Features};
use hbone_programs::controlplane::manifest::Problem;
use hbone_programs::controlplane::source::{Directory, Source};
use tokio::task::JoinSet;

/// A control plane for several clusters, from their manifests
#[derive(Parser, Debug)]
#[command(name = "controlplane", version)]
struct Args {
    /// A cluster, and the directory of its manifests (repeatable)
    #[arg(long = "cluster", value_name = "NAME=DIR", value_parser = cluster, required = true)]
    clusters: Vec<(String, PathBuf)>,
    /// Serves delta xDS (TLS; usually port 15012)
    #[arg(long, value_name = "ADDR")]
    listen: SocketAddr,
    /// The certificate chain, PEM
    #[arg(long, value_name = "FILE")]
    cert: PathBuf,
    /// Its private key, PEM
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    /// Proxies need a certificate of these roots, PEM. Without it, anyone gets what is meant for the cluster that they
    /// name
    #[arg(long, value_name = "FILE")]
    client_ca: Option<PathBuf>,
    /// Serves /healthz/ready and what is known, for people and as JSON
    #[arg(long, value_name = "ADDR")]
    admin: Option<SocketAddr>,
    /// Sends exactly what Istio's control plane sends, even where that is worse
    #[arg(long)]
    like_istio: bool,
    /// Lets the waypoint of a workload in, whatever its policies say
    #[arg(long)]
    auto_allow_waypoint: bool,
    /// Sends proxies the policies that are only logged
    #[arg(long)]
    dry_run_policies: bool,
}

/// What can't be used, by cluster.
type Problems = Arc<Mutex<std::collections::BTreeMap<String, Vec<Problem>>>>;

fn cluster(text: &str) -> Result<(String, PathBuf), String> {
    match text.split_once('=') {
        Some((name, dir)) if !name.is_empty() && !dir.is_empty() => Ok((name.into(), dir.into())),
        _ => Err("it is not of the form NAME=DIR".into()),
    }
}

fn main() -> ExitCode {
    let args = Args::parse();
    hbone_programs::main(run(args))
}

async fn run(args: Args) -> Result<(), Box<dyn Error>> {
    let options = if args.like_istio { Options::istio() } else { Options::new() };
    let features = Features { auto_allow_waypoint: args.auto_allow_waypoint, dry_run_policies: args.dry_run_policies };
    let publisher = Publisher::new(Views::new(options));
    let problems = Problems::default();
    let mut tasks = JoinSet::new();
    let tls = serve::tls(&args.cert, &args.key, args.client_ca.as_deref())?;
    for (name, dir) in &args.clusters {
        let mut following = Following {
            source: Directory::new(dir),
            converter: Converter::new(name.as_str(), features),
            publisher: publisher.clone(),
            problems: problems.clone(),
        };
        // Whoever connects first finds everything.
        following.step().await;
        tasks.spawn(async move {
            loop {
                following.step().await;
            }
        });
    }
    let listener = tcp::listen(args.listen).map_err(|e| format!("--listen {}: {e}", args.listen))?;
    tracing::info!(address = %listener.local_addr()?, "delta xDS");
    tasks.spawn(serve::run(listener, tls, DiscoveryServer::new(publisher.clone())));
    if let Some(address) = args.admin {
        let listener = tcp::listen(address).map_err(|e| format!("--admin {address}: {e}"))?;
        tracing::info!(address = %listener.local_addr()?, "admin");
        tasks.spawn(hbone_programs::admin::serve(listener, move |path: &str| {
            admin::answer(path, &publisher, &problems)
        }));
    }
    hbone_programs::ready_until_stopped().await?;
    Ok(())
}

/// One cluster's source, and what becomes of it.
struct Following<S> {
    source: S,
    converter: Converter,
    publisher: Publisher,
    problems: Problems,
}

impl<S: Source> Following<S> {
    async fn step(&mut self) {
        let events = self.source.next().await;
        events.removed.iter().for_each(|object| self.converter.remove(object));
        events.put.into_iter().for_each(|object| self.converter.put(object));
        let changes = self.converter.changes();
        let cluster = self.converter.cluster();
        tracing::info!(cluster, changes = changes.len(), "read");
        self.publisher.apply(cluster, changes);
        let all: Vec<_> = events.problems.into_iter().chain(self.converter.problems().cloned()).collect();
        let mut known = self.problems.lock().unwrap_or_else(PoisonError::into_inner);
        let before = known.insert(cluster.into(), all.clone()).unwrap_or_default();
        for problem in all.iter().filter(|problem| !before.contains(problem)) {
            tracing::warn!(cluster, "{problem}");
        }
    }
}
