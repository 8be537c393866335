//! SOCKS5 (RFC 1928) in front of an [`Outbound`]: CONNECT without authentication, to addresses and names.

use std::future::Future;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use super::Outbound;
use super::outbound::Carried;
use super::reset_on_drop::ResetOnDrop;
use crate::authority::Authority;
use crate::error::{Error, ErrorKind, Layer, Result, Side};
use crate::io::{RelayStats, Stream};
use crate::refusal::RefusalReason;

const VERSION: u8 = 5;
const NO_AUTHENTICATION: u8 = 0;
const NO_ACCEPTABLE_METHOD: u8 = 0xff;
const COMMAND_CONNECT: u8 = 1;

/// How long the client may take to say where it wants to go.
const GREETING_TIMEOUT: Duration = Duration::from_secs(10);

/// Replies of RFC 1928, section 6.
#[derive(Clone, Copy, Debug, PartialEq)]
#[repr(u8)]
enum Reply {
    Succeeded = 0,
    Failure = 1,
    NotAllowed = 2,
    HostUnreachable = 4,
    ConnectionRefused = 5,
    TimedOut = 6,
    UnknownCommand = 7,
    UnknownAddressType = 8,
}

/// Serves one SOCKS5 client: reads where it wants to go, opens the tunnel, answers, and carries the connection. The
/// answer follows the tunnel's, so the client learns whether its destination is there. Dropped before its answer, the
/// client sees its connection end without one; later, as with [`Outbound::serve`].
///
/// # Errors
///
/// [`ErrorKind::Protocol`] when it is not SOCKS5, or as [`Outbound::serve`].
pub fn serve<'a, S>(
    outbound: &'a Outbound,
    stream: S,
    from: Option<SocketAddr>,
) -> impl Future<Output = Result<RelayStats>> + Send + use<'a, S>
where
    S: Stream + 'static,
{
    // Boxed, so that its memory is free again while bytes flow, or don't.
    let opening = Box::pin(open(outbound, stream, from));
    async move {
        match opening.await? {
            Some(carried) => carried.carry().await,
            None => Ok(RelayStats::default()),
        }
    }
}

/// What comes before the connection can be carried. `None` for a client that says nothing, such as a health check.
async fn open(
    outbound: &Outbound,
    mut stream: impl Stream + 'static,
    from: Option<SocketAddr>,
) -> Result<Option<Box<Carried>>> {
    let target = match timeout(GREETING_TIMEOUT, greet(&mut stream)).await {
        Ok(Ok(Some(target))) => target,
        Ok(Ok(None)) => return Ok(None),
        Ok(Err((reply, error))) => {
            if let Some(reply) = reply {
                answer(&mut stream, reply).await;
            }
            return Err(error);
        }
        Err(_) => {
            return Err(Error::new(
                ErrorKind::Timeout,
                Layer::Application,
                Side::Remote,
                "waiting for a SOCKS5 request",
            ));
        }
    };
    match outbound.connect(&target, from).await {
        Ok(connected) => {
            answer(&mut stream, Reply::Succeeded).await;
            Ok(Some(Carried::new(connected, ResetOnDrop::new(Box::new(stream)))))
        }
        Err(error) => {
            answer(&mut stream, reply_for(&error)).await;
            Err(error)
        }
    }
}

/// Reads the greeting and the request; `None` when the client ends before its first byte. The reply goes with the
/// error, unless there was no request to reply to.
async fn greet(stream: &mut (impl Stream + 'static)) -> Result<Option<Authority>, (Option<Reply>, Error)> {
    let Ok(version) = stream.read_u8().await else { return Ok(None) };
    choose_method(stream, version).await.map_err(|e| (None, e))?;
    request(stream).await.map(Some).map_err(|(reply, e)| (Some(reply), e))
}

fn protocol(what: &'static str) -> Error {
    Error::new(ErrorKind::Protocol, Layer::Application, Side::Remote, what)
}

fn broken(e: io::Error) -> Error {
    Error::new(ErrorKind::Closed, Layer::Application, Side::Remote, "reading a SOCKS5 request").with_source(e)
}

async fn choose_method(stream: &mut (impl Stream + 'static), version: u8) -> Result<()> {
    if version != VERSION {
        return Err(protocol("the connection does not start with a SOCKS5 greeting"));
    }
    let mut methods = vec![0; stream.read_u8().await.map_err(broken)?.into()];
    stream.read_exact(&mut methods).await.map_err(broken)?;
    let method = if methods.contains(&NO_AUTHENTICATION) { NO_AUTHENTICATION } else { NO_ACCEPTABLE_METHOD };
    stream.write_all(&[VERSION, method]).await.map_err(broken)?;
    if method == NO_ACCEPTABLE_METHOD {
        return Err(protocol("the SOCKS5 client insists on authentication, and there is none"));
    }
    Ok(())
}

async fn request(stream: &mut (impl Stream + 'static)) -> Result<Authority, (Reply, Error)> {
    let protocol = |what| (Reply::Failure, protocol(what));
    let broken = |e| (Reply::Failure, broken(e));
    let mut head = [0; 4];
    stream.read_exact(&mut head).await.map_err(broken)?;
    let [version, command, _, address_type] = head;
    if version != VERSION {
        return Err(protocol("the SOCKS5 request has another version than the greeting"));
    }
    let host = match address_type {
        1 => {
            let mut ip = [0; 4];
            stream.read_exact(&mut ip).await.map_err(broken)?;
            Host::Ip(Ipv4Addr::from(ip).into())
        }
        3 => {
            let mut name = vec![0; stream.read_u8().await.map_err(broken)?.into()];
            stream.read_exact(&mut name).await.map_err(broken)?;
            Host::Name(name)
        }
        4 => {
            let mut ip = [0; 16];
            stream.read_exact(&mut ip).await.map_err(broken)?;
            Host::Ip(Ipv6Addr::from(ip).into())
        }
        _ => return Err((Reply::UnknownAddressType, protocol("the SOCKS5 address is of no known type").1)),
    };
    let port = stream.read_u16().await.map_err(broken)?;
    if command != COMMAND_CONNECT {
        return Err((Reply::UnknownCommand, protocol("only SOCKS5's CONNECT is served").1));
    }
    host.with_port(port)
        .map_err(|e| (Reply::HostUnreachable, Error::new(ErrorKind::InvalidInput, Layer::Application, Side::Remote, e)))
}

enum Host {
    Ip(IpAddr),
    Name(Vec<u8>),
}

impl Host {
    fn with_port(self, port: u16) -> Result<Authority, String> {
        match self {
            Self::Ip(_) if port == 0 => Err("the SOCKS5 port is 0".into()),
            Self::Ip(ip) => Ok(SocketAddr::new(ip.to_canonical(), port).into()),
            Self::Name(name) => {
                let name = String::from_utf8_lossy(&name);
                // Some clients put an address into the name.
                match name.parse::<IpAddr>() {
                    Ok(ip) if port != 0 => Ok(SocketAddr::new(ip.to_canonical(), port).into()),
                    _ => Authority::name(&name, port).map_err(|e| format!("the SOCKS5 name {name:?}: {e}")),
                }
            }
        }
    }
}

/// Sends a reply; the address in it is not known, and zero. A client that is gone is noticed soon enough.
async fn answer(stream: &mut (impl Stream + 'static), reply: Reply) {
    let _ = timeout(GREETING_TIMEOUT, stream.write_all(&[VERSION, reply as u8, 0, 1, 0, 0, 0, 0, 0, 0])).await;
}

fn reply_for(error: &Error) -> Reply {
    match error.kind() {
        ErrorKind::NoRoute => Reply::HostUnreachable,
        ErrorKind::Timeout => Reply::TimedOut,
        ErrorKind::Unreachable => Reply::ConnectionRefused,
        ErrorKind::Refused(refusal) => match refusal.reason() {
            RefusalReason::Denied | RefusalReason::DestinationProhibited => Reply::NotAllowed,
            RefusalReason::ConnectionRefused => Reply::ConnectionRefused,
            RefusalReason::ConnectionTimeout => Reply::TimedOut,
            _ => Reply::HostUnreachable,
        },
        _ => Reply::Failure,
    }
}
