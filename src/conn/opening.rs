//! A connection that is not up yet, for the observer.

use tokio::time::Instant;

use super::Description;
use crate::error::Error;
use crate::observe::{ConnectionFailed, ConnectionOpened, ConnectionRole, Event, Handshake, notify};
use crate::tls::TlsStream;

/// Says once what became of it: dropped without an end, that it was given up.
pub(crate) struct ConnectionOpening {
    pub(crate) about: Description,
    since: Instant,
    handshake: Handshake,
    is_over: bool,
}

impl ConnectionOpening {
    pub(crate) fn begin(about: Description) -> Self {
        notify(about.observer.as_ref(), || Event::ConnectionOpening(about.connection()));
        Self { about, since: Instant::now(), handshake: Handshake::default(), is_over: false }
    }

    pub(crate) fn dialed(&mut self) {
        self.handshake.dial = Some(self.since.elapsed());
    }

    pub(crate) fn tls_done<IO>(&mut self, stream: &TlsStream<IO>) {
        self.about.peer_identity = Some(stream.peer_identity().clone());
        self.about.local_identity = stream.local_certificate().map(|own| own.identity().clone());
        self.handshake.tls = Some(self.since.elapsed().saturating_sub(self.handshake.dial.unwrap_or_default()));
    }

    pub(crate) fn end(&mut self, error: Option<&Error>) {
        self.is_over = true;
        let elapsed = self.since.elapsed();
        // A client does not wait for its peer's settings.
        if error.is_none() && self.about.role == ConnectionRole::Server {
            self.handshake.http2 = Some(elapsed.saturating_sub(self.handshake.tls.unwrap_or_default()));
        }
        let (connection, handshake) = (self.about.connection(), self.handshake);
        notify(self.about.observer.as_ref(), || match error {
            None => Event::ConnectionOpened(ConnectionOpened { connection, handshake }),
            error => Event::ConnectionFailed(ConnectionFailed { connection, error, handshake, elapsed }),
        });
    }
}

impl Drop for ConnectionOpening {
    fn drop(&mut self) {
        if !self.is_over {
            let (connection, handshake, elapsed) = (self.about.connection(), self.handshake, self.since.elapsed());
            notify(self.about.observer.as_ref(), || {
                Event::ConnectionFailed(ConnectionFailed { connection, error: None, handshake, elapsed })
            });
        }
    }
}
