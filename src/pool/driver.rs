//! The task of each connection.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::Instant;

use super::Inner;
use super::dial::BoxDriver;
use super::lease::Connection;
use super::state::ConnId;
use crate::conn::{Permits, Traffic};
use crate::error::{Error, ErrorKind, Layer, Result, Side};
use crate::io::{Load, LoadMeter, Sample};

/// The task of one connection: drives it, and reports to the pool what changes.
pub(super) struct ConnectionTask {
    pool: Weak<Inner>,
    id: ConnId,
    driver: BoxDriver,
    /// Does not keep the connection open.
    connection: Weak<Connection>,
    permits: Arc<Permits>,
    traffic: Traffic,
    reported: Report,
    /// How long it has been at work so far.
    busy: Duration,
    meter: LoadMeter,
}

/// What the pool knows of a connection.
#[derive(Clone, Copy)]
struct Report {
    limit: usize,
    /// The peer has said something.
    settled: bool,
    closed: bool,
}

impl ConnectionTask {
    pub(super) fn new(pool: Weak<Inner>, connection: &Arc<Connection>, driver: BoxDriver) -> Self {
        let permits = connection.client.permits().clone();
        Self {
            pool,
            id: connection.id,
            driver,
            connection: Arc::downgrade(connection),
            reported: Report { limit: permits.limit(), settled: false, closed: false },
            permits,
            traffic: connection.client.traffic(),
            busy: Duration::ZERO,
            meter: LoadMeter::new(Instant::now()),
        }
    }

    /// The load, whenever that makes a difference; and again and again while it is not light, since the pool forgets it
    /// when the last tunnel ends.
    fn measure(&mut self, began: Instant) -> Option<Load> {
        let at = Instant::now();
        let before = self.meter.load();
        self.meter.resume(began);
        self.busy += at.saturating_duration_since(began);
        let load = self.meter.observe(Sample { at, busy: self.busy, moved: self.traffic.moved() })?;
        (load != before || load != Load::Light).then_some(load)
    }

    fn report(&mut self, load: Option<Load>, result: &Poll<Result<()>>) {
        let before = self.reported;
        let heard = || self.connection.upgrade().is_none_or(|connection| connection.client.reads() > 0);
        let (limit, closed) = (self.permits.limit(), self.permits.is_closed());
        self.reported = Report { limit, settled: before.settled || heard(), closed };
        let stillborn = match result {
            Poll::Ready(result) if !self.reported.settled => Some(result.clone().err().unwrap_or_else(unheard)),
            _ => None,
        };
        let news = limit > before.limit || closed != before.closed || self.reported.settled != before.settled;
        if !news && load.is_none() {
            return;
        }
        let Some(pool) = self.pool.upgrade() else { return };
        pool.step(|state, now| match (stillborn, closed) {
            (Some(error), _) => state.failed_before_settings(self.id, error, now),
            // Also when the pool gives no places on it any more: those inside it have to know.
            (None, true) => state.drain(self.id, now),
            (None, false) => {
                state.changed(self.id, now);
                if let Some(load) = load {
                    state.load_changed(self.id, load, now);
                }
            }
        });
    }
}

fn unheard() -> Error {
    Error::new(ErrorKind::Closed, Layer::Http2, Side::Remote, "waiting for the peer's HTTP/2 preface")
}

impl Future for ConnectionTask {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        let began = Instant::now();
        let result = this.driver.as_mut().poll(cx);
        let load = this.measure(began);
        this.report(load, &result);
        result.map(|result| {
            if let Err(error) = result {
                tracing::debug!(%error, "connection ended");
            }
        })
    }
}

impl Drop for ConnectionTask {
    fn drop(&mut self) {
        if let Some(pool) = self.pool.upgrade() {
            pool.ended(self.id);
        }
    }
}
