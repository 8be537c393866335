//! What a connection needs besides HTTP/2 itself.

use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Buf;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;

use super::Shared;
use super::keepalive::{Keepalive, Pinger};
use super::linger::Lingering;
use super::pressure::Pressure;
use super::window::Window;
use crate::config::{Config, TotalUnread, Windows};
use crate::error::Error;

/// Watches the peer's signs of life, tunnels that wait for their end, and the size of the windows.
#[derive(Debug)]
pub(crate) struct Maintenance {
    keepalive: Keepalive,
    lingering: Lingering,
    pinger: Pinger,
    window: Window,
    pressure: Pressure,
    windows: Windows,
    total: TotalUnread,
    counted: Counted,
    /// Of each tunnel: what it is to be, and what the peer was told last.
    wanted: u32,
    announced: u32,
    /// The peer may not know yet that the window is smaller.
    shrinking: bool,
    /// The reserve is part of the connection's window.
    extended: bool,
}

/// What was unread when that was counted last, and how much had come and been read by then.
#[derive(Clone, Copy, Debug, Default)]
struct Counted {
    held: u64,
    at: Option<Instant>,
    reads: u64,
    received: u64,
    read: u64,
}

/// After how many reads from the peer it is counted again what is unread, while the windows have grown.
const READS_BETWEEN_COUNTS: u64 = 16;

/// After how long, while much was: tunnels that end take theirs with them.
const TIME_BETWEEN_COUNTS: Duration = Duration::from_secs(1);

/// The two windows of an HTTP/2 connection.
pub(crate) trait HasWindows {
    /// Fails until the peer has acknowledged the last one.
    fn set_stream_window(&mut self, bytes: u32) -> Result<(), h2::Error>;

    fn set_connection_window(&mut self, bytes: u32);
}

impl<IO: AsyncRead + AsyncWrite + Unpin, B: Buf> HasWindows for h2::client::Connection<IO, B> {
    fn set_stream_window(&mut self, bytes: u32) -> Result<(), h2::Error> {
        self.set_initial_window_size(bytes)
    }

    fn set_connection_window(&mut self, bytes: u32) {
        self.set_target_window_size(bytes);
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin, B: Buf> HasWindows for h2::server::Connection<IO, B> {
    fn set_stream_window(&mut self, bytes: u32) -> Result<(), h2::Error> {
        self.set_initial_window_size(bytes)
    }

    fn set_connection_window(&mut self, bytes: u32) {
        self.set_target_window_size(bytes);
    }
}

impl Maintenance {
    pub(crate) fn new(config: &Config, ping: Option<h2::PingPong>) -> Self {
        let windows = config.windows();
        Self {
            keepalive: Keepalive::new(config),
            lingering: Lingering::new(config.linger_timeout),
            pinger: Pinger::new(ping),
            window: Window::new(windows.stream, windows.max_stream),
            pressure: Pressure::new(&windows),
            windows,
            total: config.total.clone(),
            counted: Counted::default(),
            wanted: windows.stream,
            announced: windows.stream,
            shrinking: false,
            extended: false,
        }
    }

    /// Does what is due. Never ready unless the connection has to be given up.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>, shared: &Shared) -> Poll<Error> {
        self.lingering.poll(cx, &shared.linger);
        self.measure(cx, shared);
        self.keepalive.poll(cx, shared.reads(), &mut self.pinger).map(|error| shared.fail(error))
    }

    fn measure(&mut self, cx: &mut Context<'_>, shared: &Shared) {
        let (flow, now) = (&shared.flow, Instant::now());
        let (ends, read) = (self.pinger.poll_answered(cx) && self.window.is_in_round(), flow.read());
        self.count(shared, now, ends);
        self.wanted = if ends {
            self.window.end(now, read, flow.best(), self.counted.held)
        } else {
            self.window.look(now, self.counted.held)
        };
        if let Some(level) = self.pressure.level() {
            self.wanted = level;
        } else if self.window.wants_round(read) && self.pinger.send(cx) {
            flow.begin_round();
            self.window.begin(now);
        }
    }

    /// Counts what is unread, where that may have changed much, or has to be known.
    fn count(&mut self, shared: &Shared, now: Instant, always: bool) {
        let (reads, received, read) = (shared.reads(), shared.received(), shared.flow.read());
        let last = self.counted;
        let grown = self.window.is_grown() && reads >= last.reads + READS_BETWEEN_COUNTS;
        let moved = (received - last.received).max(read - last.read);
        let later = last.at.is_some_and(|at| now.saturating_duration_since(at) >= TIME_BETWEEN_COUNTS);
        if always || grown || self.pressure.is_much(moved) || self.pressure.is_much(last.held) && later {
            self.counted = Counted { held: shared.flow.unread(), at: Some(now), reads, received, read };
            self.total.update(last.held, self.counted.held);
            self.pressure.update(self.counted.held, self.total.left(), self.total.limit());
        }
    }

    /// Announces another size of the windows to the peer, where there is one. To be called before and after HTTP/2 is
    /// polled.
    pub(crate) fn resize(&mut self, cx: &mut Context<'_>, shared: &Shared, connection: &mut impl HasWindows) {
        if self.pressure.is_much(shared.received() - self.counted.received) {
            // It may be all that comes until somebody reads.
            cx.waker().wake_by_ref();
        }
        let pressed = self.pressure.level().is_some();
        if self.extended && !pressed {
            self.extended = false;
            connection.set_connection_window(self.windows.connection);
        }
        if (self.wanted != self.announced || self.shrinking) && connection.set_stream_window(self.wanted).is_ok() {
            if self.shrinking {
                // The peer has acknowledged the smaller one, and so keeps to it.
                shared.flow.announce();
            }
            self.shrinking = self.wanted < self.announced;
            self.announced = self.wanted;
            self.window.set(if pressed { self.windows.stream } else { self.wanted });
            // Nothing else makes HTTP/2 look at it.
            cx.waker().wake_by_ref();
        }
        let keeps_to_least = !self.shrinking && self.announced <= self.windows.least_stream;
        if pressed && keeps_to_least && self.pressure.is_used_up() && !self.extended {
            self.extended = true;
            connection.set_connection_window(self.windows.connection + self.windows.reserve);
            cx.waker().wake_by_ref();
        }
    }
}

impl Drop for Maintenance {
    fn drop(&mut self) {
        self.total.update(self.counted.held, 0);
    }
}
