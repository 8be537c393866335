//! The task of each connection.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
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
use crate::observe::{ConnectionClosed, ConnectionDraining, Event, notify};

/// The task of one connection: drives it, and reports to the pool what changes.
pub(super) struct ConnectionTask {
    pool: Weak<Inner>,
    id: ConnId,
    driver: BoxDriver,
    /// Does not keep the connection open.
    connection: Weak<Connection>,
    permits: Arc<Permits>,
    traffic: Traffic,
    asked: Arc<AtomicU64>,
    /// Why it ended.
    failure: Option<Error>,
    reported: Report,
    /// How long it has been at work so far.
    busy: Duration,
    meter: LoadMeter,
}

/// What the pool knows of a connection.
#[derive(Clone, Copy)]
struct Report {
    limit: usize,
    /// The peer's settings are here.
    has_settings: bool,
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
            reported: Report { limit: permits.limit(), has_settings: false, closed: false },
            permits,
            traffic: connection.client.traffic(),
            asked: connection.asked.clone(),
            failure: None,
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
        let has_read = || self.connection.upgrade().is_none_or(|connection| connection.client.reads() > 0);
        let (limit, closed) = (self.permits.limit(), self.permits.is_closed());
        self.reported = Report { limit, has_settings: before.has_settings || has_read(), closed };
        let failed_before_settings = match result {
            Poll::Ready(result) if !self.reported.has_settings => {
                Some(result.clone().err().unwrap_or_else(no_settings))
            }
            _ => None,
        };
        let news = limit > before.limit || closed != before.closed || self.reported.has_settings != before.has_settings;
        if !news && load.is_none() {
            return;
        }
        let Some(pool) = self.pool.upgrade() else { return };
        let shared = &self.traffic.0;
        if closed && !before.closed && shared.is_going_away() {
            notify(shared.observer(), || {
                Event::ConnectionDraining(ConnectionDraining { connection: shared.connection(), by: Side::Remote })
            });
        }
        pool.step(|state, now| match (failed_before_settings, closed) {
            (Some(error), _) => state.failed_before_settings(self.id, error, now),
            // Also when the pool issues no permits on it any more: the connections inside it have to drain.
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

fn no_settings() -> Error {
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
                this.failure = Some(error);
            }
        })
    }
}

impl Drop for ConnectionTask {
    fn drop(&mut self) {
        let shared = &self.traffic.0;
        notify(shared.observer(), || {
            Event::ConnectionClosed(ConnectionClosed {
                connection: shared.connection(),
                error: self.failure.as_ref(),
                tunnels: self.asked.load(Ordering::Relaxed),
                bytes: shared.moved(),
                duration: shared.age(),
            })
        });
        if let Some(pool) = self.pool.upgrade() {
            pool.ended(self.id);
        }
    }
}
