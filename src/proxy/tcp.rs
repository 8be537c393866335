//! TCP for the roles: dialing, listening, and the original destination of a captured connection.

use std::io;
use std::net::SocketAddr;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_util::FutureExt;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpListener, TcpSocket, TcpStream, lookup_host};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::workers::Placement;
use super::{WorkerSet, ports};
use crate::authority::HostPort;
use crate::drain::Watch;
use crate::error::{Error, ErrorKind, Layer, Result, Side};
use crate::io::{Accept, Accepted, BoxStream, Dial, DialFuture, DialRequest};
use crate::server::{self, Accepting};
use crate::target::DialTarget;

/// As ztunnel: a peer that vanished is noticed even where nothing is sent. Its interval stays that of the system, 75 s.
const KEEPALIVE: Duration = Duration::from_secs(180);
/// For how long a peer may acknowledge nothing of what was sent to it. Keepalive does not run while something is on its
/// way, and the system alone goes on for a quarter of an hour.
#[cfg(target_os = "linux")]
const USER_TIMEOUT: Duration = Duration::from_secs(60);
const BACKLOG: u32 = 1024;
/// How much may wait in a socket to be sent. Whatever comes later, from any tunnel of the connection, waits until that
/// has left: without a limit the system takes up to 4 MiB, a third of a second at 100 Mb/s. A quarter of this costs
/// nested bulk 8 % more CPU.
#[cfg(target_os = "linux")]
const NOT_SENT: u32 = 512 << 10;
/// Whether connections have the options of their listener, which saves four system calls for each.
const INHERITED: bool = cfg!(target_os = "linux");

/// Dials TCP with the options that a proxy wants: no delay, keepalive, a mark if asked for, and on Linux also little
/// that waits to be sent (TCP_NOTSENT_LOWAT), and an end when the peer acknowledges nothing for a minute
/// (TCP_USER_TIMEOUT).
///
/// When all local ports are in use or in TIME_WAIT, one in TIME_WAIT is used again (Linux).
#[derive(Clone, Debug, Default)]
pub struct TcpDialer {
    mark: Option<u32>,
}

impl TcpDialer {
    /// A dialer without a mark.
    pub fn new() -> Self {
        Self::default()
    }

    /// Marks each socket (SO_MARK), so that capture rules can tell the proxy's own connections and leave them alone.
    /// Linux only, and needs CAP_NET_ADMIN; elsewhere dialing fails.
    pub fn with_mark(mut self, mark: u32) -> Self {
        self.mark = Some(mark);
        self
    }

    /// Connects to an address.
    ///
    /// # Errors
    ///
    /// Those of the system; `PermissionDenied` or `Unsupported` for a mark that can't be set.
    pub async fn connect(&self, address: SocketAddr) -> io::Result<BoxStream> {
        Ok(Box::new(ports::connect(address, || self.socket(address)).await?))
    }

    fn socket(&self, address: SocketAddr) -> io::Result<TcpSocket> {
        let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        if let Some(mark) = self.mark {
            set_mark(&socket, mark).map_err(|e| {
                io::Error::new(e.kind(), format!("marking the socket with {mark} (needs CAP_NET_ADMIN): {e}"))
            })?;
        }
        tune(&SockRef::from(&socket))?;
        Ok(socket)
    }

    /// Connects to the first address of a name that answers, in the resolver's order.
    async fn connect_by_name(&self, name: &HostPort) -> io::Result<BoxStream> {
        let mut failed = None;
        for address in lookup_host((name.host(), name.port())).await? {
            match self.connect(address).await {
                Ok(stream) => return Ok(stream),
                Err(error) => failed = Some(io::Error::new(error.kind(), format!("{address}: {error}"))),
            }
        }
        Err(failed.unwrap_or_else(|| io::Error::new(io::ErrorKind::NotFound, "the name has no addresses")))
    }
}

impl Dial for TcpDialer {
    fn dial<'a>(&'a self, request: &'a DialRequest<'a>) -> DialFuture<'a> {
        Box::pin(async move {
            match request.target {
                DialTarget::Socket(address) => self.connect(*address).await,
                DialTarget::Name(name) => self.connect_by_name(name).await,
                #[cfg(unix)]
                DialTarget::Unix(path) => Ok(Box::new(tokio::net::UnixStream::connect(path).await?) as BoxStream),
                #[cfg(not(unix))]
                DialTarget::Unix(_) => {
                    Err(io::Error::new(io::ErrorKind::Unsupported, "no Unix sockets on this system"))
                }
            }
        })
    }
}

/// Each connection gets the options that a [`TcpDialer`] sets, but for the mark.
impl Accept for TcpListener {
    type Io = TcpStream;

    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<Option<Accepted<TcpStream>>> {
        loop {
            let (stream, peer) = ready!(Self::poll_accept(self, cx))?;
            match tune(&SockRef::from(&stream)) {
                Ok(()) => return Poll::Ready(Some(Ok((stream, Some(peer))))),
                Err(error) => tracing::debug!(%peer, %error, "connection lost before it was served"),
            }
        }
    }
}

#[cfg(target_os = "linux")]
fn set_mark(socket: &TcpSocket, mark: u32) -> io::Result<()> {
    SockRef::from(socket).set_mark(mark)
}

#[cfg(not(target_os = "linux"))]
fn set_mark(_socket: &TcpSocket, _mark: u32) -> io::Result<()> {
    Err(io::Error::new(io::ErrorKind::Unsupported, "marks exist on Linux only"))
}

fn tune(socket: &SockRef<'_>) -> io::Result<()> {
    socket.set_tcp_nodelay(true)?;
    // Sandboxes that only look like Linux may not have it, and it works without.
    #[cfg(target_os = "linux")]
    let _ = socket.set_tcp_notsent_lowat(NOT_SENT);
    #[cfg(target_os = "linux")]
    let _ = socket.set_tcp_user_timeout(Some(USER_TIMEOUT));
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE))
}

/// Listens on an address. Port 0 takes any free one. Connections have the options that a [`TcpDialer`] sets,
/// but for the mark.
///
/// # Errors
///
/// [`ErrorKind::Local`], naming the address: in use, not of this machine, not allowed.
pub fn listen(address: SocketAddr) -> Result<TcpListener> {
    bind(address, false).map_err(|e| not_listening(address, e))
}

/// Listens on an address with a socket for each worker, in order; see [`accept_across`]. On Linux the system spreads
/// the connections over them evenly; elsewhere whichever worker is first takes one.
///
/// # Errors
///
/// As [`listen`]; also where another process listens there.
pub fn listen_on_each(address: SocketAddr, workers: &WorkerSet) -> Result<Vec<TcpListener>> {
    let open = || -> io::Result<Vec<TcpListener>> {
        // Sharing a port is for this process alone: without this, a second one would silently get half of all
        // connections.
        let first = bind(address, false)?;
        let address = first.local_addr()?;
        #[cfg(target_os = "linux")]
        {
            drop(first);
            workers.handles().map(|runtime| (runtime.enter(), bind(address, true)).1).collect()
        }
        #[cfg(not(target_os = "linux"))]
        {
            let first = first.into_std()?;
            let again =
                |runtime: &tokio::runtime::Handle| (runtime.enter(), TcpListener::from_std(first.try_clone()?)).1;
            workers.handles().map(again).collect()
        }
    };
    open().map_err(|e| not_listening(address, e))
}

/// A socket that listens, on the runtime whose context this is called in.
fn bind(address: SocketAddr, shared: bool) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // Lets a restarted proxy listen again at once. On Windows it would let two listen at the same time.
    #[cfg(not(windows))]
    socket.set_reuseaddr(true)?;
    #[cfg(target_os = "linux")]
    socket.set_reuseport(shared)?;
    #[cfg(not(target_os = "linux"))]
    let _ = shared;
    socket.bind(address)?;
    if INHERITED {
        tune(&SockRef::from(&socket))?;
    }
    socket.listen(BACKLOG)
}

fn not_listening(address: SocketAddr, e: io::Error) -> Error {
    Error::new(ErrorKind::Local, Layer::Config, Side::Local, format!("listening on {address}")).with_source(e)
}

/// Accepts connections until the drain starts, and gives each to `serve` in a task of its own with a watch on the
/// drain. Returns when all of them have ended.
///
/// Each connection is waited for and counted in the drain's [`Report`](crate::drain::Report), whether or not `serve`
/// keeps its watch. When the drain's time is over, those that have not ended by themselves a tenth of a second later
/// are dropped: an application that is [served by `Outbound`](super::Outbound::serve) then sees its connection fail,
/// while a bare stream just ends.
pub async fn accept_each<F, S>(listener: TcpListener, drain: Watch, serve: F)
where
    F: Fn(TcpStream, SocketAddr, Watch) -> S,
    S: Future<Output = ()> + Send + 'static,
{
    accept(listener, drain, |tasks, stream, peer, drain| {
        tasks.spawn(counted(serve(stream, peer, drain.uncounted()), drain));
    })
    .await;
}

/// [`accept_each`], with each connection served by one of several workers, whose number `serve` gets.
///
/// With `home`, this runs on that worker with one of the listeners of [`listen_on_each`], and serves what comes: the
/// way for connections that are many. Without, it runs anywhere, and the worker that has the fewest of this listener's
/// from the same address, and of those the one that has the fewest in all, gets the next one: the way for those that
/// are few and live long. In both cases another worker gets it that has a lighter load, if there is one.
///
/// # Panics
///
/// When there are no workers, or `home` is none of them.
pub async fn accept_across<F, S>(listener: TcpListener, home: Option<usize>, workers: WorkerSet, drain: Watch, serve: F)
where
    F: Fn(usize, TcpStream, SocketAddr, Watch) -> S + Clone + Send + 'static,
    S: Future<Output = ()> + Send + 'static,
{
    let mut placement = Placement::new(workers.handles().len());
    accept(listener, drain, |tasks, stream, peer, drain| {
        let preferred = home.unwrap_or_else(|| placement.fewest(peer.ip()));
        let (worker, runtime) = workers.pick(preferred, Instant::now());
        if home == Some(worker) {
            tasks.spawn(counted(serve(worker, stream, peer, drain.uncounted()), drain));
            return;
        }
        let lost = move |error| tracing::warn!(%peer, %error, "connection lost before it was served");
        let (serve, placed, watch) = (serve.clone(), placement.place(worker, peer.ip()), drain.uncounted());
        // Its events are to come to the other runtime.
        match stream.into_std() {
            Ok(stream) => {
                let serving = async move {
                    let _placed = placed;
                    match TcpStream::from_std(stream) {
                        Ok(stream) => serve(worker, stream, peer, watch).await,
                        Err(error) => lost(error),
                    }
                };
                tasks.spawn_on(counted(serving, drain), runtime);
            }
            Err(error) => lost(error),
        }
    })
    .await;
}

/// Holds the drain open for as long as a connection is served. An async block would keep the future twice.
fn counted(serving: impl Future<Output = ()> + Send, drain: Watch) -> impl Future<Output = ()> + Send {
    serving.map(move |()| drop(drain))
}

async fn accept(
    listener: TcpListener,
    drain: Watch,
    mut serve: impl FnMut(&mut JoinSet<()>, TcpStream, SocketAddr, Watch),
) {
    if INHERITED && let Err(error) = tune(&SockRef::from(&listener)) {
        tracing::warn!(%error, "setting the options of a listener");
    }
    let accepting = Accepting::new(Inheriting(listener)).with_drain(&drain);
    server::accept_each(accepting, Some(drain), |tasks, stream, peer, drain| {
        if let (Some(peer), Some(drain)) = (peer, drain) {
            serve(tasks, stream, peer, drain);
        }
    })
    .await;
}

/// A listener whose options its connections have already, where they inherit them.
struct Inheriting(TcpListener);

impl Accept for Inheriting {
    type Io = TcpStream;

    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<Option<Accepted<TcpStream>>> {
        if !INHERITED {
            return Accept::poll_accept(&mut self.0, cx);
        }
        let (stream, peer) = ready!(self.0.poll_accept(cx))?;
        Poll::Ready(Some(Ok((stream, Some(peer)))))
    }
}

/// Where a connection captured by a REDIRECT rule was meant to go.
///
/// # Errors
///
/// [`ErrorKind::InvalidInput`] when it was made to the listener directly, or the system can't tell.
#[cfg(target_os = "linux")]
pub fn original_destination(stream: &TcpStream) -> Result<SocketAddr> {
    let local = stream.local_addr();
    let socket = SockRef::from(stream);
    let original = match local {
        Ok(SocketAddr::V6(v6)) if v6.ip().to_ipv4_mapped().is_none() => socket.original_dst_v6(),
        _ => socket.original_dst_v4(),
    };
    let failed =
        || Error::new(ErrorKind::InvalidInput, Layer::Application, Side::Remote, "reading where it was meant to go");
    let original = original.map_err(|e| failed().with_source(e))?;
    match (original.as_socket(), local) {
        (Some(original), Ok(local)) if unmapped(original) == unmapped(local) => {
            Err(failed().with_source("it was made to the capture port itself, and would loop"))
        }
        (Some(original), _) => Ok(unmapped(original)),
        (None, _) => Err(failed().with_source("its address is of no IP family")),
    }
}

/// Capture exists on Linux only.
///
/// # Errors
///
/// Always.
#[cfg(not(target_os = "linux"))]
pub fn original_destination(_stream: &TcpStream) -> Result<SocketAddr> {
    Err(Error::new(ErrorKind::Local, Layer::Application, Side::Local, "capture works on Linux only"))
}

#[cfg(target_os = "linux")]
fn unmapped(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

#[cfg(test)]
mod tests {
    use std::future::pending;
    use std::num::NonZeroUsize;

    use rstest::rstest;
    use tokio::io::AsyncReadExt;
    use tokio::time::timeout;

    use super::super::Workers;
    use super::*;
    use crate::drain;
    #[cfg(target_os = "linux")]
    use crate::io::Stream;

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn a_peer_that_vanished_is_noticed_in_a_minute_unless_it_may_just_not_be_reading() {
        let listener = listen(([127, 0, 0, 1], 0).into()).unwrap();
        let mut dialled = TcpDialer::new().connect(listener.local_addr().unwrap()).await.unwrap();
        let (mut accepted, _) = listener.accept().await.unwrap();
        let timeout = |stream: &TcpStream| SockRef::from(stream).tcp_user_timeout().unwrap();
        assert_eq!(timeout(&accepted), Some(USER_TIMEOUT), "from its listener");
        accepted.write_blocked();
        assert_eq!(timeout(&accepted), None);
        dialled.write_blocked();
    }

    /// What serves a connection.
    #[derive(Clone, Copy, Debug)]
    enum Serving {
        Listens,
        KeepsItsWatch,
        KnowsOfNoDrain,
    }

    async fn serve(serving: Serving, _stream: TcpStream, watch: Watch) {
        match serving {
            Serving::Listens => watch.forced().await,
            Serving::KeepsItsWatch => pending().map(|()| drop(watch)).await,
            Serving::KnowsOfNoDrain => {
                drop(watch);
                pending().await
            }
        }
    }

    #[rstest]
    #[tokio::test]
    async fn a_drain_counts_and_ends_the_connections_that_it_cuts(
        #[values(Serving::Listens, Serving::KeepsItsWatch, Serving::KnowsOfNoDrain)] connection: Serving,
        #[values(false, true)] across: bool,
    ) {
        let listener = listen(([127, 0, 0, 1], 0).into()).unwrap();
        let address = listener.local_addr().unwrap();
        let (drain, watch) = drain::channel();
        let (served, mut serving) = tokio::sync::mpsc::unbounded_channel();
        let served = move |stream: TcpStream, watch| {
            served.send(()).unwrap();
            serve(connection, stream, watch)
        };
        let workers = Workers::start(NonZeroUsize::MIN).unwrap();
        let accepting = match across {
            false => tokio::spawn(accept_each(listener, watch, move |stream, _, watch| served(stream, watch))),
            true => {
                let served = move |_, stream, _, watch| served(stream, watch);
                tokio::spawn(accept_across(listener, None, workers.set(), watch, served))
            }
        };
        let two = [TcpStream::connect(address).await.unwrap(), TcpStream::connect(address).await.unwrap()];
        serving.recv().await.unwrap();
        serving.recv().await.unwrap();
        let draining = drain.drain(Duration::from_millis(50));
        let report = timeout(Duration::from_secs(60), draining).await.expect("it ends");
        assert_eq!((report.completed, report.forced), (false, 2));
        accepting.await.unwrap();
        for mut client in two {
            assert_eq!(client.read(&mut [0]).await.unwrap(), 0, "its end is closed");
        }
    }

    #[cfg(target_os = "linux")]
    mod not_sent {
        use tokio::io::AsyncWriteExt;

        use super::*;

        /// A socket with a small buffer for what it receives.
        fn small() -> TcpSocket {
            let socket = TcpSocket::new_v4().unwrap();
            socket.set_recv_buffer_size(16 << 10).unwrap();
            socket.bind(([127, 0, 0, 1], 0).into()).unwrap();
            socket
        }

        async fn dialled() -> (BoxStream, TcpStream) {
            let listener = small().listen(1).unwrap();
            let near = TcpDialer::new().connect(listener.local_addr().unwrap()).await.unwrap();
            (near, listener.accept().await.unwrap().0)
        }

        async fn inherited() -> (BoxStream, TcpStream) {
            let listener = listen(([127, 0, 0, 1], 0).into()).unwrap();
            let far = small().connect(listener.local_addr().unwrap()).await.unwrap();
            (Box::new(listener.accept().await.unwrap().0), far)
        }

        #[rstest]
        #[case::dialled(dialled())]
        #[case::inherited(inherited())]
        #[tokio::test]
        async fn little_waits_in_the_socket_for_a_peer_that_is_slow(
            #[future]
            #[case]
            connection: (BoxStream, TcpStream),
        ) {
            let (mut near, _far) = connection.await;
            let (piece, mut taken) = (vec![0; 64 << 10], 0);
            while let Ok(written) = timeout(Duration::from_millis(100), near.write(&piece)).await {
                taken += written.unwrap();
            }
            assert!(taken <= 1 << 20, "{taken} bytes");
        }
    }
}
