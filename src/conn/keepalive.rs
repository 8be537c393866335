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
    ping: Ponger,
    interval: Option<Duration>,
    timeout: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum State {
    /// Nothing has come from the peer yet.
    Preface,
    /// Something came in the last interval.
    Alive,
    /// Nothing came, and the peer has been asked.
    Asked,
}

struct Ponger(Option<PingPong>);

impl std::fmt::Debug for Ponger {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PingPong")
    }
}

impl Keepalive {
    pub(super) fn new(config: &Config, ping: Option<PingPong>) -> Self {
        Self {
            state: State::Preface,
            timer: Some(Box::pin(sleep_until(Instant::now() + config.http2_timeout))),
            reads_seen: 0,
            ping: Ponger(ping),
            interval: config.keepalive_interval,
            timeout: config.keepalive_timeout,
        }
    }

    /// Ready when the peer has been silent for too long. `reads` counts what has come from it.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>, reads: u64) -> Poll<Error> {
        if self.state == State::Preface && reads > 0 {
            self.enter(State::Alive, self.interval);
            self.reads_seen = reads;
        }
        if self.state == State::Asked && reads != self.reads_seen {
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
                    if let Some(ping) = &mut self.ping.0 {
                        // Takes the answer to the last PING: no other can be sent before that. And wakes the driver when the
                        // next one is answered.
                        let _ = ping.poll_pong(cx);
                        // Fails only while an earlier one is unanswered, which asks the same question.
                        let _ = ping.send_ping(Ping::opaque());
                    }
                    self.enter(State::Asked, Some(self.timeout));
                }
                State::Asked => return Poll::Ready(silent("waiting for the answer to a keepalive PING")),
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
