//! Ports to dial from.
//!
//! The kernel picks a port that no connection to the same address uses, and counts those in TIME_WAIT: with one address
//! to dial from, some 28,000 connections a minute to one application use all of them up. A port that is bound by its
//! number may be used again at once, as TCP's timestamps tell the new connection from the old one.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;

use socket2::SockRef;
use tokio::net::{TcpSocket, TcpStream};

/// How many ports are tried. One that some connection still uses fails in microseconds.
const ATTEMPTS: usize = 64;

/// Linux's default, should its setting not be readable.
const DEFAULT_RANGE: RangeInclusive<u16> = 32768..=60999;

/// Connects a socket that `open` makes: from a port that the kernel picks, or from one in TIME_WAIT when it finds none.
pub(super) async fn connect(address: SocketAddr, open: impl Fn() -> io::Result<TcpSocket>) -> io::Result<TcpStream> {
    let socket = open()?;
    allow_reuse(&socket)?;
    match socket.connect(address).await {
        Err(e) if cfg!(target_os = "linux") && e.kind() == io::ErrorKind::AddrNotAvailable => {
            connect_from(address, &open, port_range(), e).await
        }
        connected => connected,
    }
}

/// Connects from a random port of `range`; fails with `error` when all that were tried are in use.
async fn connect_from(
    address: SocketAddr,
    open: impl Fn() -> io::Result<TcpSocket>,
    range: RangeInclusive<u16>,
    error: io::Error,
) -> io::Result<TcpStream> {
    for _ in 0..ATTEMPTS {
        let port = fastrand::u16(range.clone());
        let from: SocketAddr = match address {
            SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, port).into(),
            SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, port).into(),
        };
        let socket = open()?;
        allow_reuse(&socket)?;
        let connected = match socket.bind(from) {
            Ok(()) => socket.connect(address).await,
            Err(e) => Err(e),
        };
        match connected {
            Err(e) if matches!(e.kind(), io::ErrorKind::AddrInUse | io::ErrorKind::AddrNotAvailable) => {}
            connected => return connected,
        }
    }
    Err(error)
}

/// Lets the port be bound again while the connection is in TIME_WAIT. It has to be set on the old socket as well.
fn allow_reuse(socket: &TcpSocket) -> io::Result<()> {
    if cfg!(target_os = "linux") { SockRef::from(socket).set_reuse_address(true) } else { Ok(()) }
}

/// Read each time: it is needed when all ports are in use, and may differ between network namespaces.
fn port_range() -> RangeInclusive<u16> {
    let text = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    let mut bounds = text.split_whitespace().map_while(|bound| bound.parse().ok());
    match (bounds.next(), bounds.next()) {
        (Some(first), Some(last)) if 0 < first && first <= last => first..=last,
        _ => DEFAULT_RANGE,
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    fn used_up() -> io::Error {
        io::ErrorKind::AddrNotAvailable.into()
    }

    #[tokio::test]
    async fn a_port_in_time_wait_is_used_again_and_one_in_use_is_not() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let first = connect(address, TcpSocket::new_v4).await.unwrap();
        let port = first.local_addr().unwrap().port();
        let (accepted, _) = listener.accept().await.unwrap();
        let error = connect_from(address, TcpSocket::new_v4, port..=port, used_up()).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrNotAvailable);
        // Who closes first keeps the port.
        drop(first);
        accepted.readable().await.unwrap();
        drop(accepted);
        let again = connect_from(address, TcpSocket::new_v4, port..=port, used_up()).await.unwrap();
        assert_eq!(again.local_addr().unwrap().port(), port);
    }

    #[test]
    fn the_systems_range_is_one() {
        assert!(!port_range().is_empty());
    }
}
