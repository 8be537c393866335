//! The plain relays that the proxies are compared to, by how they move bytes.

use std::io;

use clap::ValueEnum;
use tokio::io::{copy_bidirectional, copy_bidirectional_with_sizes};
use tokio::net::TcpStream;

/// As much as a proxy moves at a time.
const LARGE: usize = 256 << 10;

/// How bytes get from one socket to the other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum How {
    /// tokio's `copy_bidirectional` as it comes, 8 KiB at a time
    #[default]
    Copy,
    /// The same, 256 KiB at a time
    Large,
    /// Inside the kernel, by splice(2)
    Splice,
}

impl How {
    /// As on the command line.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Copy => "copy",
            Self::Large => "large",
            Self::Splice => "splice",
        }
    }

    /// Joins two connections until both directions have ended.
    pub(crate) async fn relay(self, mut near: TcpStream, mut far: TcpStream) -> io::Result<()> {
        match self {
            Self::Copy => copy_bidirectional(&mut near, &mut far).await.map(|_| ()),
            Self::Large => copy_bidirectional_with_sizes(&mut near, &mut far, LARGE, LARGE).await.map(|_| ()),
            Self::Splice => splice::relay(near, far).await,
        }
    }
}

#[cfg(target_os = "linux")]
mod splice {
    use std::io;
    use std::os::fd::OwnedFd;

    use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice};
    use tokio::io::{AsyncWriteExt, Interest};
    use tokio::net::TcpStream;
    use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

    /// The most that the system lets anybody have.
    const PIPE: usize = 1 << 20;

    pub(super) async fn relay(near: TcpStream, far: TcpStream) -> io::Result<()> {
        let ((near_read, near_write), (far_read, far_write)) = (near.into_split(), far.into_split());
        tokio::try_join!(direction(near_read, far_write), direction(far_read, near_write)).map(|_| ())
    }

    async fn direction(from: OwnedReadHalf, mut to: OwnedWriteHalf) -> io::Result<()> {
        let (out, into) = pipe()?;
        let flags = SpliceFlags::MOVE | SpliceFlags::NONBLOCK;
        let (source, target): (&TcpStream, &TcpStream) = (from.as_ref(), to.as_ref());
        loop {
            let taken = || Ok(splice(source, None, &into, None, PIPE, flags)?);
            let mut left = source.async_io(Interest::READABLE, taken).await?;
            if left == 0 {
                break;
            }
            while left > 0 {
                let given = || Ok(splice(&out, None, target, None, left, flags)?);
                left -= target.async_io(Interest::WRITABLE, given).await?;
            }
        }
        to.shutdown().await
    }

    /// What is read from it, and what is written to it.
    fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
        let (out, into) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        // An unprivileged user has only so much for all pipes; smaller ones work as well.
        let _ = fcntl_setpipe_size(&into, PIPE);
        Ok((out, into))
    }
}

#[cfg(not(target_os = "linux"))]
mod splice {
    use std::io;

    use tokio::net::TcpStream;

    pub(super) async fn relay(_near: TcpStream, _far: TcpStream) -> io::Result<()> {
        Err(io::Error::new(io::ErrorKind::Unsupported, "splice(2) exists on Linux only"))
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    async fn connection() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let far = TcpStream::connect(listener.local_addr().expect("an address")).await.expect("a connection");
        (listener.accept().await.expect("a connection").0, far)
    }

    #[tokio::test]
    async fn each_way_passes_all_bytes_and_both_ends_on() {
        for how in How::value_variants() {
            let ((near, mut client), (far, mut server)) = (connection().await, connection().await);
            let relaying = tokio::spawn(how.relay(near, far));
            let sent = vec![7; 5 << 20];
            let question = sent.clone();
            let asking = tokio::spawn(async move {
                client.write_all(&question).await.expect("a relay");
                client.shutdown().await.expect("a relay");
                let mut answer = String::new();
                client.read_to_string(&mut answer).await.expect("a relay");
                answer
            });
            let mut got = Vec::new();
            server.read_to_end(&mut got).await.expect("a relay");
            assert!(got == sent, "{how:?}");
            server.write_all(b"thanks").await.expect("a relay");
            server.shutdown().await.expect("a relay");
            assert_eq!(asking.await.expect("an answer"), "thanks", "{how:?}");
            relaying.await.expect("no panic").expect("an end");
        }
    }
}
