//! What the proxies have in common: their files, their admin port, and how they start and stop.

pub mod controlplane;
#[cfg(feature = "jemalloc")]
mod memory;
pub mod watch;

use std::convert::Infallible;
use std::error::Error;
use std::io::IsTerminal;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use hbone::balance::health::OutlierConfig;
use hbone::connector::MeshWatch;
use hbone::drain::{Drain, Watch};
use hbone::mesh::Snapshot;
use hbone::proxy::{Workers, tcp};
use hbone::tls::{CredentialSource, Credentials, ReloadingCredentials};
use hbone::{TrustDomain, TrustDomains};
use http_body_util::Full;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tracing_subscriber::EnvFilter;

use crate::watch::{Files, Follower, Reload};

/// As ztunnel: a proxy is to leave the machine to the applications.
const MOST_THREADS: NonZeroUsize = NonZeroUsize::new(2).expect("more than none");

/// What each proxy is started with.
#[derive(clap::Args, Debug)]
pub struct Common {
    /// The mesh: a file in the local form of the control plane's tables
    #[arg(long, value_name = "FILE")]
    mesh: PathBuf,
    /// The own certificate chain, PEM
    #[arg(long, value_name = "FILE")]
    cert: PathBuf,
    /// Its private key, PEM
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    /// The trusted roots, PEM
    #[arg(long, value_name = "FILE")]
    ca: PathBuf,
    /// A trust domain to let in beside the own one (repeatable)
    #[arg(long = "trust-domain-alias", value_name = "NAME")]
    aliases: Vec<TrustDomain>,
    /// Serves /healthz/ready
    #[arg(long, value_name = "ADDR")]
    admin: Option<SocketAddr>,
    /// How many threads move the bytes. Default: one for each core, and two at most
    #[arg(long, value_name = "N")]
    threads: Option<NonZeroUsize>,
    /// How long running connections may take to finish when stopped
    #[arg(long, value_name = "SECONDS", default_value_t = 5)]
    drain: u64,
}

/// When endpoints are left out.
#[derive(clap::Args, Debug)]
pub struct Health {
    /// How many failures in a row leave an endpoint out for a while; 0 never does. Default 5
    #[arg(long, value_name = "N")]
    consecutive_failures: Option<u32>,
    /// For how long: the first time, twice that the second time in a row, and so on. Default 30
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    ejection_time: Option<Duration>,
}

impl Health {
    /// As said by the flags, else by the library.
    pub fn outliers(&self) -> OutlierConfig {
        // All are used when none is left, so any number of them may be left out.
        let config = OutlierConfig::new().with_max_ejection_percent(100);
        let config = set(config, self.consecutive_failures, OutlierConfig::with_consecutive_failures);
        set(config, self.ejection_time, OutlierConfig::with_base_ejection_time)
    }
}

/// Sets what is given.
pub fn set<C, V>(config: C, value: Option<V>, with: impl FnOnce(C, V) -> C) -> C {
    match value {
        Some(value) => with(config, value),
        None => config,
    }
}

/// A time in seconds, such as `5` or `0.25`.
pub fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "it is not a number of seconds")?;
    match Duration::try_from_secs_f64(seconds) {
        Ok(time) if time > Duration::ZERO => Ok(time),
        _ if seconds >= 1.0 => Err("it is too long".into()),
        _ => Err("it must be more than 0".into()),
    }
}

/// The files, read and checked.
#[derive(Debug)]
pub struct Loaded {
    /// The mesh as the file has it.
    pub snapshot: Snapshot,
    /// The same, for those who follow it.
    pub mesh: MeshWatch,
    /// Certificate, key and roots as the files had them first.
    pub credentials: Credentials,
    /// The same, for those who follow them.
    pub source: Arc<ReloadingCredentials>,
    /// Whose certificates are let in.
    pub trusted: TrustDomains,
    /// To have the files read again, which is done by itself when they change.
    pub reload: Reload,
}

impl Common {
    /// Reads and checks the files, and follows them from then on. Must be called on a tokio runtime.
    ///
    /// # Errors
    ///
    /// What is wrong with which file.
    pub fn load(&self) -> Result<Loaded, Box<dyn Error>> {
        let (mesh, cert, key, ca) = (self.mesh.clone(), self.cert.clone(), self.key.clone(), self.ca.clone());
        let follower = Follower::open(Files { mesh, cert, key, ca })?;
        let (mesh, source, reload) = (follower.mesh(), follower.credentials().clone(), follower.reload());
        tokio::spawn(follower.run());
        let snapshot = mesh.borrow().clone();
        let credentials = source.credentials()?;
        let own = credentials.identity().trust_domain().clone();
        let trusted = TrustDomains::new(own).with_aliases(self.aliases.iter().cloned());
        Ok(Loaded { snapshot, mesh, credentials, source: Arc::new(source), trusted, reload })
    }

    /// The threads that everything but this one's work is done on.
    pub fn workers(&self) -> hbone::Result<Workers> {
        let cores = std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
        let workers = Workers::start(self.threads.unwrap_or(cores.min(MOST_THREADS)))?;
        #[cfg(feature = "jemalloc")]
        memory::keep_little(&workers.set());
        Ok(workers)
    }

    /// Says that all listeners are up, waits for a signal, and drains.
    pub async fn run(&self, mut tasks: JoinSet<()>, drain: Drain, watch: Watch) -> Result<(), Box<dyn Error>> {
        let draining = Arc::new(AtomicBool::new(false));
        if let Some(address) = self.admin {
            let listener = tcp::listen(address)?;
            tracing::info!(address = %listener.local_addr()?, "admin");
            tokio::spawn(admin(listener, draining.clone()));
        }
        drop(watch);
        let stopped = stop_signal()?;
        println!("ready");
        stopped.await;
        tracing::info!("draining");
        draining.store(true, Ordering::Relaxed);
        let report = drain.drain(Duration::from_secs(self.drain)).await;
        if !report.completed {
            tracing::warn!(forced = report.forced, "connections cut at the end of the drain");
        }
        while tasks.join_next().await.is_some() {}
        Ok(())
    }
}

/// Runs a proxy's `main`, with errors on one line.
pub fn main<F>(run: F) -> ExitCode
where
    F: Future<Output = Result<(), Box<dyn Error>>>,
{
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    // Only for what comes and goes seldom: workers have runtimes of their own.
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(e) => {
            eprintln!("error: starting the runtime: {e}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(run) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("error: {e}");
            ExitCode::FAILURE
        }
    }
}

/// Answers until the process ends, so that it also tells of the drain.
async fn admin(listener: TcpListener, draining: Arc<AtomicBool>) {
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            // Mostly for lack of file descriptors: some have to be closed first.
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let draining = draining.clone();
        let answer = service_fn(move |request: Request<hyper::body::Incoming>| {
            let (status, text) = match request.uri().path() {
                "/healthz/ready" if draining.load(Ordering::Relaxed) => (StatusCode::SERVICE_UNAVAILABLE, "draining\n"),
                "/healthz/ready" => (StatusCode::OK, "ready\n"),
                _ => (StatusCode::NOT_FOUND, "there is /healthz/ready\n"),
            };
            let mut response = Response::new(Full::new(Bytes::from_static(text.as_bytes())));
            *response.status_mut() = status;
            std::future::ready(Ok::<_, Infallible>(response))
        });
        let connection = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), answer);
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "admin connection");
            }
        });
    }
}

/// Waits for a signal to stop. From the call on it is waited for, not only from the first poll on.
#[cfg(unix)]
fn stop_signal() -> std::io::Result<impl Future<Output = ()>> {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

#[cfg(windows)]
fn stop_signal() -> std::io::Result<impl Future<Output = ()>> {
    let mut ctrl_c = tokio::signal::windows::ctrl_c()?;
    Ok(async move {
        ctrl_c.recv().await;
    })
}
