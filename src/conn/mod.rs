//! What the client's and the server's end of one HTTP/2 connection have in common.

mod description;
mod early;
mod flow;
mod goaway;
mod keepalive;
mod linger;
mod maintenance;
mod open_tunnel;
mod opening;
mod permit;
mod pressure;
mod send_queue;
mod settings;
mod transport;
mod window;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::time::Instant;

use crate::config::Config;
use crate::error::{Error, ErrorKind, Layer, Result, Side};
use crate::identity::SpiffeId;
use crate::io::{Scheduler, Turns};
use crate::observe::{Connection, ConnectionId, ConnectionRole, Observer};

pub(crate) use description::Description;
pub(crate) use early::{EarlyData, EarlyDataCell};
pub(crate) use flow::{Flow, RoundMeter};
#[cfg(any(fuzzing, test))]
pub(crate) use goaway::GoAwayScanner;
use linger::LingerQueue;
pub(crate) use linger::LingeringTunnel;
pub(crate) use maintenance::Maintenance;
pub(crate) use open_tunnel::{OpenTunnel, OpenTunnels, notify_unopened};
pub(crate) use opening::ConnectionOpening;
pub(crate) use permit::{Permit, Permits, SharedPermit};
pub(crate) use send_queue::{Frame, SendQueue};
pub(crate) use settings::{client_builder, server_builder};
pub(crate) use transport::{Transport, WriteBatch};

const DRIVING: &str = "driving the connection";

/// What the tunnels of a connection and its driver know of each other.
#[derive(Debug)]
pub(crate) struct Shared {
    about: Description,
    since: Instant,
    scheduler: Scheduler,
    /// Counts reads that brought something: any byte is a sign of life.
    reads: AtomicU64,
    received: AtomicU64,
    sent: AtomicU64,
    /// Why the connection ended. Set before HTTP/2 tells the tunnels, which would otherwise only know that it did.
    failure: OnceLock<Error>,
    /// The peer takes no new tunnels.
    going_away: AtomicBool,
    early_data: EarlyDataCell,
    flow: Flow,
    linger: LingerQueue,
    tunnels: OpenTunnels,
}

impl Shared {
    pub(crate) fn new(config: &Config, about: Description) -> Arc<Self> {
        Arc::new(Self {
            about,
            since: Instant::now(),
            scheduler: config.scheduler.clone(),
            reads: AtomicU64::new(0),
            received: AtomicU64::new(0),
            sent: AtomicU64::new(0),
            failure: OnceLock::new(),
            going_away: AtomicBool::new(false),
            early_data: EarlyDataCell::default(),
            flow: Flow::default(),
            linger: LingerQueue::default(),
            tunnels: OpenTunnels::default(),
        })
    }

    pub(crate) fn id(&self) -> ConnectionId {
        self.about.id
    }

    pub(crate) fn role(&self) -> ConnectionRole {
        self.about.role
    }

    pub(crate) fn peer(&self) -> Option<&SpiffeId> {
        self.about.peer_identity.as_ref()
    }

    /// The address of the peer's end of the byte stream.
    pub(crate) fn address(&self) -> Option<SocketAddr> {
        self.about.address
    }

    pub(crate) fn connection(&self) -> Connection<'_> {
        self.about.connection()
    }

    pub(crate) fn observer(&self) -> Option<&Arc<dyn Observer>> {
        self.about.observer.as_ref()
    }

    /// Since HTTP/2 was started.
    pub(crate) fn age(&self) -> Duration {
        self.since.elapsed()
    }

    pub(crate) fn tunnels(&self) -> &OpenTunnels {
        &self.tunnels
    }

    /// For a task that moves bytes of this connection.
    pub(crate) fn turns(&self) -> Turns {
        Turns::new(&self.scheduler)
    }

    pub(crate) fn flow(&self) -> &Flow {
        &self.flow
    }

    pub(crate) fn early_data(&self) -> &EarlyDataCell {
        &self.early_data
    }

    /// Leaves a finished tunnel to the driver, which waits for the peer's end.
    pub(crate) fn linger(&self, tunnel: LingeringTunnel) {
        self.linger.push(tunnel);
    }

    /// The driver is gone: nothing is waited for any longer.
    pub(crate) fn close(&self) {
        self.linger.close();
    }

    /// Fills in who and where.
    pub(crate) fn describe(&self, error: Error) -> Error {
        let error = match self.peer() {
            Some(peer) => error.with_peer(peer),
            None => error,
        };
        match self.about.hop {
            Some(hop) if error.hop().is_none() => error.with_hop(hop),
            _ => error,
        }
    }

    /// Notes why the connection ends; the first reason stays.
    pub(crate) fn fail(&self, error: Error) -> Error {
        self.failure.get_or_init(|| self.describe(error)).clone()
    }

    pub(crate) fn failure(&self) -> Option<Error> {
        self.failure.get().cloned()
    }

    /// Takes note of a GOAWAY by this or the other side. With an error it is why the connection will end.
    fn note_go_away(&self, code: u32, side: Side) {
        if side == Side::Remote {
            self.going_away.store(true, Ordering::Release);
        }
        if code != u32::from(h2::Reason::NO_ERROR) {
            self.fail(go_away(code, side, DRIVING));
        }
    }

    /// Whether the peer has sent GOAWAY.
    pub(crate) fn is_going_away(&self) -> bool {
        self.going_away.load(Ordering::Acquire)
    }

    /// The error for a caller that finds the connection gone, or going.
    pub(crate) fn gone(&self, doing: &'static str) -> Error {
        self.failure().unwrap_or_else(|| {
            let kind = if self.is_going_away() { ErrorKind::GoAway(0) } else { ErrorKind::Closed };
            self.describe(Error::new(kind, Layer::Http2, Side::Remote, doing))
        })
    }

    /// The connection's failure, where a stream that HTTP/2 says was reset with `code` went down with it.
    pub(crate) fn failure_behind_reset(&self, code: u32) -> Option<Error> {
        self.failure().filter(|failure| {
            matches!(failure.kind(), ErrorKind::GoAway(c) if *c == code) || *failure.kind() == ErrorKind::Protocol
        })
    }

    /// What an error of HTTP/2 means.
    pub(crate) fn explain(&self, error: h2::Error, layer: Layer, doing: &'static str) -> Error {
        let side = if error.is_remote() { Side::Remote } else { Side::Local };
        let code = error.reason().map(u32::from).unwrap_or_default();
        let explained = if error.is_go_away() {
            go_away(code, side, doing)
        } else if error.is_reset() {
            Error::new(ErrorKind::Reset(code), layer, side, doing)
        } else if error.is_io() {
            match self.failure() {
                Some(failure) => return failure,
                None => Error::new(ErrorKind::Closed, Layer::Http2, Side::Remote, doing).with_source(error),
            }
        } else if error.reason().is_some() {
            Error::new(ErrorKind::Protocol, Layer::Http2, side, doing).with_source(error)
        } else {
            // A misuse of h2 that only a connection ending at the same moment can bring about.
            return self.gone(doing);
        };
        self.describe(explained)
    }

    fn count_received(&self, bytes: usize) {
        self.reads.fetch_add(1, Ordering::Relaxed);
        self.received.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    fn count_sent(&self, bytes: usize) {
        self.sent.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// Bytes in both directions.
    pub(crate) fn moved(&self) -> u64 {
        self.received() + self.sent.load(Ordering::Relaxed)
    }

    pub(crate) fn reads(&self) -> u64 {
        self.reads.load(Ordering::Relaxed)
    }
}

/// The count of a connection's bytes.
#[derive(Debug)]
pub(crate) struct Traffic(pub(crate) Arc<Shared>);

impl Traffic {
    /// In both directions.
    pub(crate) fn moved(&self) -> u64 {
        self.0.moved()
    }
}

/// The error of a connection that `side` gave up with a code. Where this side did so over what the peer sent, the peer
/// is at fault.
fn go_away(code: u32, side: Side, doing: &'static str) -> Error {
    let reason = h2::Reason::from(code);
    let violation = matches!(
        reason,
        h2::Reason::PROTOCOL_ERROR
            | h2::Reason::FLOW_CONTROL_ERROR
            | h2::Reason::STREAM_CLOSED
            | h2::Reason::FRAME_SIZE_ERROR
            | h2::Reason::COMPRESSION_ERROR
    );
    if side == Side::Local && violation {
        return Error::new(ErrorKind::Protocol, Layer::Http2, Side::Remote, doing).with_source(reason.description());
    }
    Error::new(ErrorKind::GoAway(code), Layer::Http2, side, doing)
}

/// The end of a driver: an orderly close, or the reason why not.
pub(crate) fn driver_result(shared: &Shared, result: Result<(), h2::Error>) -> Result<()> {
    match result {
        Ok(()) => Ok(()),
        Err(e) => Err(shared.fail(shared.explain(e, Layer::Http2, DRIVING))),
    }
}
