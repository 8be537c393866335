//! Sockets as streams.

#[cfg(target_os = "linux")]
use std::{future::Future, io, pin::Pin};

#[cfg(target_os = "linux")]
use socket2::SockRef;
use tokio::net::TcpStream;

use super::Stream;

impl Stream for TcpStream {
    fn fail(&mut self) {
        // Without it the peer merely sees an end.
        let _ = self.set_zero_linger();
    }

    #[cfg(target_os = "linux")]
    fn expect_shutdown(&mut self) {
        // Without it they leave one after the other.
        let _ = SockRef::from(&*self).set_tcp_cork(true);
    }

    /// The user timeout also ends connections to a peer that is there and does not read, as its window stays closed.
    #[cfg(target_os = "linux")]
    fn write_blocked(&mut self) {
        let _ = SockRef::from(&*self).set_tcp_user_timeout(None);
    }

    /// Failing throws away what the kernel has not sent yet.
    #[cfg(target_os = "linux")]
    fn sent(&mut self) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        let watch = || -> io::Result<TcpStream> {
            let socket = SockRef::from(&*self);
            // With this, the socket counts as writable only once all has been sent.
            socket.set_tcp_notsent_lowat(1)?;
            // A handle of its own, as the runtime remembers what this one was before.
            TcpStream::from_std(socket.try_clone()?.into())
        };
        match watch() {
            Ok(socket) => Box::pin(async move { drop(socket.writable().await) }),
            Err(_) => Box::pin(std::future::ready(())),
        }
    }
}

#[cfg(unix)]
impl Stream for tokio::net::UnixStream {}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    async fn connection() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let far = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (listener.accept().await.unwrap().0, far)
    }

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn the_last_bytes_wait_for_the_shutdown_and_leave_with_it() {
        let (mut stream, mut peer) = connection().await;
        stream.expect_shutdown();
        assert!(SockRef::from(&stream).tcp_cork().unwrap());
        stream.write_all(b"last").await.unwrap();
        stream.shutdown().await.unwrap();
        let mut rest = String::new();
        peer.read_to_string(&mut rest).await.unwrap();
        assert_eq!(rest, "last");
    }

    #[tokio::test]
    async fn a_connection_that_fails_is_reset() {
        let (mut stream, mut peer) = connection().await;
        stream.fail();
        drop(stream);
        assert_eq!(peer.read(&mut [0]).await.unwrap_err().kind(), ErrorKind::ConnectionReset);
    }
}
