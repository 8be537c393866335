//! Signs of life: the peer's preface at first, then any byte within each interval, or an answer to a PING.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use h2::{Ping, PingPong};
use tokio::time::{Instant, Sleep, sleep_until};

use crate::config::Config;
use crate::error::{Error, ErrorKind, Layer, Side};

#[derive(Debug)]
pub(super) struct Keepalive {
    state: State,
    timer: Option<Pin<Box<Sleep>>>,
    reads_seen: u64,
    interval: Option<Duration>,
    timeout: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum State {
    /// Nothing has come from the peer yet.
    Preface,
    /// Something came in the last interval.
    Alive,
    /// Nothing came, and a PING is on its way.
    Pinged,
}

/// Sends PINGs, one at a time.
pub(super) struct Pinger {
    ping: Option<PingPong>,
    outstanding: bool,
}

impl std::fmt::Debug for Pinger {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pinger").field("outstanding", &self.outstanding).finish_non_exhaustive()
    }
}

impl Pinger {
    pub(super) fn new(ping: Option<PingPong>) -> Self {
        Self { ping, outstanding: false }
    }

    /// Sends a PING; false while the last one has no answer.
    pub(super) fn send(&mut self, cx: &mut Context<'_>) -> bool {
        let Some(ping) = self.ping.as_mut().filter(|_| !self.outstanding) else { return false };
        self.outstanding = ping.send_ping(Ping::opaque()).is_ok();
        // Wakes the driver when it is answered.
        let _ = ping.poll_pong(cx);
        self.outstanding
    }

    /// Whether the last PING has just been answered; if not, wakes the driver when it is.
    pub(super) fn poll_answered(&mut self, cx: &mut Context<'_>) -> bool {
        // The answer must be taken before another one can be sent.
        let answered = self.outstanding && self.ping.as_mut().is_some_and(|ping| ping.poll_pong(cx).is_ready());
        self.outstanding &= !answered;
        answered
    }
}

impl Keepalive {
    pub(super) fn new(config: &Config) -> Self {
        Self {
            state: State::Preface,
            timer: Some(Box::pin(sleep_until(Instant::now() + config.http2_timeout))),
            reads_seen: 0,
            interval: config.keepalive_interval,
            timeout: config.keepalive_timeout,
        }
    }

    /// Ready when the peer has been silent for too long. `reads` counts what has come from it.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>, reads: u64, pinger: &mut Pinger) -> Poll<Error> {
        if self.state == State::Preface && reads > 0 {
            self.enter(State::Alive, self.interval);
            self.reads_seen = reads;
        }
        if self.state == State::Pinged && reads != self.reads_seen {
            self.enter(State::Alive, self.interval);
            self.reads_seen = reads;
        }
        while let Some(timer) = &mut self.timer {
            ready!(timer.as_mut().poll(cx));
            let heard = reads != self.reads_seen;
            self.reads_seen = reads;
            match self.state {
                State::Preface => return Poll::Ready(silent("waiting for the peer's HTTP/2 preface")),
                State::Alive if heard => self.enter(State::Alive, self.interval),
                State::Alive => {
                    // Not sent while an earlier one is unanswered, which serves as well.
                    pinger.send(cx);
                    self.enter(State::Pinged, Some(self.timeout));
                }
                State::Pinged => return Poll::Ready(silent("waiting for the answer to a keepalive PING")),
            }
        }
        Poll::Pending
    }

    fn enter(&mut self, state: State, wait: Option<Duration>) {
        self.state = state;
        match (wait, &mut self.timer) {
            (Some(wait), Some(timer)) => timer.as_mut().reset(Instant::now() + wait),
            (Some(wait), None) => self.timer = Some(Box::pin(sleep_until(Instant::now() + wait))),
            (None, _) => self.timer = None,
        }
    }
}

fn silent(doing: &'static str) -> Error {
    Error::new(ErrorKind::Timeout, Layer::Http2, Side::Remote, doing)
}
