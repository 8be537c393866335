//! The flags that the proxies have in common.

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use hbone::TrustDomain;
use hbone::balance::health::OutlierConfig;
use hbone::proxy::Workers;

/// As ztunnel: a proxy leaves the machine to the applications.
const MAX_DEFAULT_THREADS: NonZeroUsize = NonZeroUsize::new(2).expect("not zero");

/// What every proxy is started with.
#[derive(clap::Args, Debug)]
pub struct Common {
    /// Mesh file: workloads, services and policies, in the local form of the control plane's tables
    #[arg(long, value_name = "FILE")]
    pub(crate) mesh: PathBuf,
    /// Certificate chain of this proxy, PEM
    #[arg(long, value_name = "FILE")]
    pub(crate) cert: PathBuf,
    /// Private key of the certificate, PEM
    #[arg(long, value_name = "FILE")]
    pub(crate) key: PathBuf,
    /// Trusted root certificates, PEM
    #[arg(long, value_name = "FILE")]
    pub(crate) ca: PathBuf,
    /// Trust domain to accept besides that of the certificate (repeatable)
    #[arg(long = "trust-domain-alias", value_name = "NAME")]
    pub(crate) aliases: Vec<TrustDomain>,
    /// Address of the admin port, which serves /healthz/ready
    #[arg(long, value_name = "ADDR")]
    pub(crate) admin: Option<SocketAddr>,
    /// Number of worker threads [default: one per core, at most 2]
    #[arg(long, value_name = "N")]
    threads: Option<NonZeroUsize>,
    /// How long open connections may take to finish after a signal to stop
    #[arg(long, alias = "drain", value_name = "SECONDS", value_parser = seconds_or_zero, default_value = "5")]
    pub(crate) drain_timeout: Duration,
}

impl Common {
    /// Starts the worker threads.
    ///
    /// # Errors
    ///
    /// When the system has no more threads.
    pub fn workers(&self) -> hbone::Result<Workers> {
        let cores = std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
        let workers = Workers::start(self.threads.unwrap_or(cores.min(MAX_DEFAULT_THREADS)))?;
        #[cfg(feature = "jemalloc")]
        crate::memory::keep_little(&workers.set());
        Ok(workers)
    }
}

/// When endpoints are ejected.
#[derive(clap::Args, Debug)]
pub struct Health {
    /// Failures in a row after which an endpoint is ejected; 0 ejects none [default: 5]
    #[arg(long, value_name = "N")]
    consecutive_failures: Option<u32>,
    /// How long the first ejection lasts; each one that follows directly adds as much again [default: 30]
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    ejection_time: Option<Duration>,
}

impl Health {
    /// The flags, over the library's defaults.
    pub fn outliers(&self) -> OutlierConfig {
        // When all endpoints are ejected, all are used, so there is no need for a maximum.
        let config = OutlierConfig::new().with_max_ejection_percent(100);
        let config = set(config, self.consecutive_failures, OutlierConfig::with_consecutive_failures);
        set(config, self.ejection_time, OutlierConfig::with_base_ejection_time)
    }
}

/// Sets an option where the flag is given.
pub fn set<C, V>(config: C, value: Option<V>, with: impl FnOnce(C, V) -> C) -> C {
    match value {
        Some(value) => with(config, value),
        None => config,
    }
}

/// Parses a time in seconds, such as `5` or `0.25`.
///
/// # Errors
///
/// What is wrong with it, for clap to show.
pub fn seconds(text: &str) -> Result<Duration, String> {
    match seconds_or_zero(text) {
        Ok(Duration::ZERO) => Err("it must be more than 0".into()),
        other => other,
    }
}

fn seconds_or_zero(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "it is not a number of seconds")?;
    match Duration::try_from_secs_f64(seconds) {
        Ok(time) => Ok(time),
        Err(_) if seconds >= 1.0 => Err("it is too long".into()),
        Err(_) => Err("it must be more than 0".into()),
    }
}
