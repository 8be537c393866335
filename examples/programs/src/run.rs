//! How a proxy starts and stops.

use std::error::Error;
use std::future::Future;
use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Duration;

use hbone::drain::{Drain, Watch};
use hbone::proxy::tcp;
use tokio::task::JoinSet;

use crate::Common;
use crate::admin::{self, Status};
use crate::logging::{Log, announce_ready};
use crate::signals::{Signal, Signals};
use crate::watch::Reload;

/// How long the end of the process waits for the log.
const LOG_TIMEOUT: Duration = Duration::from_secs(1);

impl Common {
    /// Announces that all listeners are up, serves until a signal says to stop, and drains. SIGHUP has the files read
    /// again. A second signal to stop is an error: what still runs is to be cut.
    ///
    /// # Errors
    ///
    /// When the admin port can't be opened or signals can't be received; and for the second signal.
    pub async fn run(
        &self,
        reload: Reload,
        mut tasks: JoinSet<()>,
        drain: Drain,
        watch: Watch,
    ) -> Result<(), Box<dyn Error>> {
        let status = Status::default();
        let mut admin = JoinSet::new();
        if let Some(address) = self.admin {
            let listener = tcp::listen(address)?;
            tracing::info!(address = %listener.local_addr()?, "admin");
            let status = status.clone();
            admin.spawn(admin::serve(listener, move |path: &str| admin::readiness(path, &status)));
        }
        drop(watch);
        let mut signals = Signals::listen()?;
        announce_ready();
        while signals.next().await == Signal::Reload {
            reload.reload();
        }
        tracing::info!("draining");
        status.set_draining();
        let drained = async {
            let report = drain.drain(self.drain_timeout).await;
            if !report.completed {
                tracing::warn!(forced = report.forced, "connections cut at the end of the drain");
            }
            while tasks.join_next().await.is_some() {}
        };
        tokio::select! {
            () = drained => Ok(()),
            () = stop(&mut signals) => Err("stopped by a second signal, without the rest of the drain".into()),
        }
    }
}

/// Announces that all listeners are up, and waits for a signal to stop: for programs that have nothing to drain.
///
/// # Errors
///
/// When signals can't be received.
pub async fn ready_until_stopped() -> io::Result<()> {
    let mut signals = Signals::listen()?;
    announce_ready();
    stop(&mut signals).await;
    Ok(())
}

async fn stop(signals: &mut Signals) {
    while signals.next().await == Signal::Reload {}
}

/// Runs a proxy's `main`: with a log, as many descriptors as the system allows, and errors on one line.
pub fn main<F>(run: F) -> ExitCode
where
    F: Future<Output = Result<(), Box<dyn Error>>>,
{
    let log = match Log::start(io::stderr()) {
        Ok(log) => log,
        Err(e) => {
            // Never `eprintln!`: it panics where stderr can't be written to.
            let _ = writeln!(io::stderr(), "error: starting the log's thread: {e}");
            return ExitCode::FAILURE;
        }
    };
    log.install();
    crate::limits::raise();
    // The main thread only starts and stops: workers have runtimes of their own.
    let result = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime.block_on(run),
        Err(e) => Err(format!("starting the runtime: {e}").into()),
    };
    let code = match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            log.line(format!("error: {e}\n").as_bytes());
            ExitCode::FAILURE
        }
    };
    log.flush(LOG_TIMEOUT);
    code
}
