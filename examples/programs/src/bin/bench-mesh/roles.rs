//! What runs in processes of its own beside the proxies: the application, and the relays that the proxies are compared
//! to.

use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use clap::Subcommand;
use hbone::SpiffeId;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

use crate::Failure;
use crate::link::{self, Link};
use crate::raw_tls::{self, Pem};
use crate::relay::How;

/// As many connections as may wait to be accepted.
const BACKLOG: u32 = 4096;
pub(crate) const CHUNK: usize = 256 << 10;

/// What a connection is for: its first byte, with two numbers after it.
pub(crate) const DOWNLOAD: u8 = b'D';
pub(crate) const UPLOAD: u8 = b'U';
pub(crate) const ECHO: u8 = b'E';
pub(crate) const ONCE: u8 = b'O';

/// The first bytes of a connection: its kind, and the sizes of a request and of its response.
pub(crate) fn head(kind: u8, request: u32, response: u32) -> [u8; 9] {
    let mut head = [kind; 9];
    head[1..5].copy_from_slice(&request.to_be_bytes());
    head[5..].copy_from_slice(&response.to_be_bytes());
    head
}

#[derive(Subcommand)]
pub(crate) enum Role {
    /// The application behind all paths
    #[command(hide = true)]
    Server { listen: Vec<SocketAddr> },
    /// Copies bytes, and nothing else; connections go to the upstreams in turn
    #[command(hide = true)]
    TcpRelay {
        listen: SocketAddr,
        #[arg(required = true)]
        upstreams: Vec<SocketAddr>,
        #[arg(long, value_enum, default_value_t)]
        how: How,
    },
    /// Copies bytes as slowly as a link of 100 Mb/s
    #[command(hide = true)]
    SlowLink { listen: SocketAddr, upstream: SocketAddr },
    /// Takes TCP, and gives mutual TLS: a session for each connection
    #[command(hide = true)]
    TlsClient { listen: SocketAddr, upstream: SocketAddr, files: PathBuf },
    /// Takes mutual TLS, and gives TCP
    #[command(hide = true)]
    TlsServer { listen: SocketAddr, upstream: SocketAddr, files: PathBuf },
}

impl Role {
    /// Runs until the process is killed.
    pub(crate) fn run(self) -> Result<(), Failure> {
        // The application is to take as little of the machine as it can; the relays get what the proxies have.
        let runtime = match self {
            Self::Server { .. } => tokio::runtime::Builder::new_current_thread().enable_all().build(),
            _ => tokio::runtime::Builder::new_multi_thread().enable_all().build(),
        };
        runtime?.block_on(self.listen())
    }

    async fn listen(self) -> Result<(), Failure> {
        match self {
            Self::Server { listen } => {
                let listeners = listen.into_iter().map(|at| bind(at, None)).collect::<Result<Vec<_>, _>>()?;
                println!("ready");
                let served = listeners.into_iter().map(|listener| tokio::spawn(each(listener, serve)));
                futures_util::future::join_all(served).await;
            }
            Self::TcpRelay { listen, upstreams, how } => {
                let (listener, mut turns) = (bind(listen, None)?, upstreams.into_iter().cycle());
                println!("ready");
                each(listener, move |near| {
                    let upstream = turns.next();
                    async move {
                        let upstream = upstream.ok_or_else(|| io::Error::other("no upstream to relay to"))?;
                        how.relay(near, dial(upstream).await?).await
                    }
                })
                .await;
            }
            Self::SlowLink { listen, upstream } => {
                let (listener, link) = (bind(listen, Some(link::QUEUE))?, Link::new());
                println!("ready");
                each(listener, move |near| link.clone().carry(near, upstream)).await;
            }
            Self::TlsClient { listen, upstream, files } => {
                let connector = credentials(&files, "client")?.connector()?;
                let listener = bind(listen, None)?;
                println!("ready");
                each(listener, move |mut near| {
                    let connector = connector.clone();
                    async move {
                        let mut far = connector.connect(raw_tls::name(), dial(upstream).await?).await?;
                        copy_bidirectional(&mut near, &mut far).await.map(|_| ())
                    }
                })
                .await;
            }
            Self::TlsServer { listen, upstream, files } => {
                let acceptor = credentials(&files, "server")?.acceptor()?;
                let listener = bind(listen, None)?;
                println!("ready");
                each(listener, move |near| {
                    let acceptor = acceptor.clone();
                    async move {
                        let mut near = acceptor.accept(near).await?;
                        copy_bidirectional(&mut near, &mut dial(upstream).await?).await.map(|_| ())
                    }
                })
                .await;
            }
        }
        Ok(())
    }
}

/// The identity of one of the service accounts that everything here runs under.
pub(crate) fn identity(service_account: &str) -> Result<SpiffeId, Failure> {
    Ok(SpiffeId::new("cluster.local".parse()?, "default", service_account)?)
}

fn credentials(files: &Path, name: &str) -> Result<Pem, Failure> {
    let read = |file: String| -> Result<String, Failure> {
        let path = files.join(file);
        Ok(std::fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))?)
    };
    Ok(Pem { chain: read(format!("{name}.pem"))?, key: read(format!("{name}.key"))?, root: read("ca.pem".into())? })
}

/// Its connections have receive buffers of the given size, or else such as the system finds good.
fn bind(address: SocketAddr, buffer: Option<u32>) -> Result<TcpListener, Failure> {
    let listen = || {
        let socket = TcpSocket::new_v4()?;
        if let Some(size) = buffer {
            socket.set_recv_buffer_size(size)?;
        }
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        socket.listen(BACKLOG)
    };
    Ok(listen().map_err(|e: io::Error| format!("listening at {address}: {e}"))?)
}

async fn dial(address: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Serves each connection by a task of its own. Who opened one that fails counts it.
async fn each<F>(listener: TcpListener, mut serve: impl FnMut(TcpStream) -> F)
where
    F: Future<Output = io::Result<()>> + Send + 'static,
{
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let _ = stream.set_nodelay(true);
                tokio::spawn(serve(stream));
            }
            // Mostly for lack of file descriptors: some have to be closed first.
            Err(_) => tokio::time::sleep(std::time::Duration::from_millis(10)).await,
        }
    }
}

async fn serve(mut stream: TcpStream) -> io::Result<()> {
    let mut first = [0; 9];
    stream.read_exact(&mut first).await?;
    let [kind, a, b, c, d, e, f, g, h] = first;
    let (request, response) = (u32::from_be_bytes([a, b, c, d]) as usize, u32::from_be_bytes([e, f, g, h]) as usize);
    match kind {
        DOWNLOAD | UPLOAD => {
            // By a thread of its own: the requests beside it are not to wait for the application.
            let stream = stream.into_std()?;
            stream.set_nonblocking(false)?;
            tokio::task::spawn_blocking(move || bulk(stream, kind)).await?
        }
        ECHO | ONCE => {
            let (mut buffer, answer) = (vec![0; request], vec![0x5a; response]);
            loop {
                stream.read_exact(&mut buffer).await?;
                stream.write_all(&answer).await?;
                if kind == ONCE {
                    return stream.shutdown().await;
                }
            }
        }
        other => Err(io::Error::other(format!("unknown kind of connection {other}"))),
    }
}

fn bulk(mut stream: std::net::TcpStream, kind: u8) -> io::Result<()> {
    let mut chunk = vec![0x5a; CHUNK];
    let mut total = 0;
    loop {
        if kind == DOWNLOAD {
            stream.write_all(&chunk)?;
            continue;
        }
        match stream.read(&mut chunk)? {
            0 => return stream.write_all(&u64::to_be_bytes(total)),
            n => total += n as u64,
        }
    }
}
