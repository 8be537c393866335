//! The networks under the mesh: mesh addresses on loopback ports, and taps that record what passes.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use hbone::io::{BoxStream, Dial, DialFuture, DialRequest, Stream};
use hbone::proxy::tcp::TcpDialer;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// One cluster's network. An address means whatever its cluster says; two clusters may use the same ones.
#[derive(Clone, Debug)]
pub(crate) struct Fabric {
    name: &'static str,
    places: Arc<Mutex<HashMap<SocketAddr, Place>>>,
}

#[derive(Clone, Debug)]
struct Place {
    loopback: SocketAddr,
    tap: Option<Tap>,
}

impl Fabric {
    pub(crate) fn new(name: &'static str) -> Self {
        Self { name, places: Arc::default() }
    }

    /// Makes `address` lead to a loopback port.
    pub(crate) fn place(&self, address: SocketAddr, loopback: SocketAddr) {
        self.insert(address, Place { loopback, tap: None });
    }

    /// Likewise, and records what passes on the way there.
    pub(crate) fn place_tapped(&self, address: SocketAddr, loopback: SocketAddr, tap: &Tap) {
        self.insert(address, Place { loopback, tap: Some(tap.clone()) });
    }

    fn insert(&self, address: SocketAddr, place: Place) {
        self.places.lock().unwrap_or_else(PoisonError::into_inner).insert(address, place);
    }

    async fn connect(&self, address: SocketAddr) -> io::Result<BoxStream> {
        let place = self.places.lock().unwrap_or_else(PoisonError::into_inner).get(&address).cloned();
        let Some(place) = place else {
            let text = format!("cluster {} has no {address}", self.name);
            return Err(io::Error::new(io::ErrorKind::HostUnreachable, text));
        };
        let io = TcpDialer::new().connect(place.loopback).await?;
        Ok(match place.tap {
            Some(tap) => Box::new(Tapped { io, tap }),
            None => io,
        })
    }
}

impl Dial for Fabric {
    fn dial<'a>(&'a self, request: &'a DialRequest<'a>) -> DialFuture<'a> {
        Box::pin(async move { self.connect(request.socket_addr()?).await })
    }
}

/// Everything that passed some point, in both directions.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tap(Arc<Mutex<Vec<u8>>>);

impl Tap {
    pub(crate) fn clear(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    pub(crate) fn len(&self) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Whether the bytes stand anywhere in what passed, in either case of letters.
    pub(crate) fn contains(&self, text: &str) -> bool {
        let seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        seen.windows(text.len()).any(|window| window.eq_ignore_ascii_case(text.as_bytes()))
    }

    fn record(&self, bytes: &[u8]) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
    }
}

struct Tapped {
    io: BoxStream,
    tap: Tap,
}

impl Stream for Tapped {
    fn fail(&mut self) {
        self.io.fail();
    }

    fn expect_shutdown(&mut self) {
        self.io.expect_shutdown();
    }
}

impl AsyncRead for Tapped {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let result = Pin::new(&mut self.io).poll_read(cx, buf);
        self.tap.record(&buf.filled()[before..]);
        result
    }
}

impl AsyncWrite for Tapped {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.io).poll_write(cx, buf);
        if let Poll::Ready(Ok(n)) = &result {
            self.tap.record(&buf[..*n]);
        }
        result
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
