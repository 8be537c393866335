//! A network without sockets: listeners by address, connections as pipes.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use tokio::io::{DuplexStream, duplex};
use tokio::sync::mpsc;

/// What a connection holds in each direction until it is read.
const PIPE: usize = 64 << 10;

/// An in-memory network. Clones are the same network; two networks know nothing of each other, so both may use the same
/// addresses.
#[derive(Clone, Debug, Default)]
pub struct Network {
    listeners: Arc<Mutex<HashMap<SocketAddr, mpsc::UnboundedSender<DuplexStream>>>>,
}

/// Takes the connections to one address of a [`Network`].
#[derive(Debug)]
pub struct NetworkListener {
    incoming: mpsc::UnboundedReceiver<DuplexStream>,
}

impl Network {
    /// A network with nobody on it.
    pub fn new() -> Self {
        Self::default()
    }

    /// Listens on an address. An earlier listener there gets no new connections.
    pub fn listen(&self, address: SocketAddr) -> NetworkListener {
        let (sender, incoming) = mpsc::unbounded_channel();
        self.listeners.lock().unwrap_or_else(PoisonError::into_inner).insert(address, sender);
        NetworkListener { incoming }
    }

    /// Connects to an address.
    ///
    /// # Errors
    ///
    /// `ConnectionRefused` where nobody listens.
    pub fn connect(&self, address: SocketAddr) -> io::Result<DuplexStream> {
        let (near, far) = duplex(PIPE);
        let listeners = self.listeners.lock().unwrap_or_else(PoisonError::into_inner);
        match listeners.get(&address).map(|listener| listener.send(far)) {
            Some(Ok(())) => Ok(near),
            _ => Err(io::Error::new(io::ErrorKind::ConnectionRefused, format!("nobody listens on {address}"))),
        }
    }
}

impl crate::io::Dial for Network {
    fn dial<'a>(&'a self, request: &'a crate::io::DialRequest<'a>) -> crate::io::DialFuture<'a> {
        let connected = request.socket_addr().and_then(|address| self.connect(address));
        let connected = connected.map(|stream| Box::new(stream) as crate::io::BoxStream);
        Box::pin(std::future::ready(connected))
    }
}

impl NetworkListener {
    /// Waits for the next connection. `None` when the network is gone or another listener took the address. Cancel
    /// safe.
    pub async fn accept(&mut self) -> Option<DuplexStream> {
        self.incoming.recv().await
    }
}

impl crate::io::Accept for NetworkListener {
    type Io = DuplexStream;

    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<Option<crate::io::Accepted<DuplexStream>>> {
        self.incoming.poll_recv(cx).map(|stream| stream.map(|stream| Ok((stream, None))))
    }
}
