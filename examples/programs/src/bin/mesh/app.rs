//! The applications: HTTP servers in the pods, and the client that asks them.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use hbone::proxy::tcp;
use http_body_util::{BodyExt, Full};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::Failure;

/// How often something happened.
#[derive(Clone, Debug, Default)]
pub(crate) struct Count(Arc<AtomicUsize>);

impl Count {
    pub(crate) fn add(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

/// Starts a pod's HTTP server, which says its name and gives back what it was sent. Returns where it listens.
pub(crate) fn serve(name: &'static str, hits: Count) -> Result<SocketAddr, Failure> {
    let listener = tcp::listen(([127, 0, 0, 1], 0).into())?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let hits = hits.clone();
            let answer = service_fn(move |request: Request<hyper::body::Incoming>| {
                hits.add();
                async move {
                    let sent = request.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default();
                    let text = [name.as_bytes(), b"\n", &sent[..]].concat();
                    Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(text))))
                }
            });
            let connection = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), answer);
            tokio::spawn(async move {
                // A client that leaves early is its own business.
                let _ = connection.await;
            });
        }
    });
    Ok(address)
}

/// One HTTP request on a connection of its own. Returns the answer's lines.
pub(crate) async fn request<IO>(io: IO, host: &str, body: &str) -> Result<String, Failure>
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(io)).await?;
    tokio::spawn(connection);
    let request = Request::post("/")
        .header("host", host)
        .header("connection", "close")
        .body(Full::new(Bytes::from(body.to_owned())))?;
    let response = sender.send_request(request).await?;
    let status = response.status();
    let text = String::from_utf8(response.into_body().collect().await?.to_bytes().into())?;
    if status.is_success() { Ok(text) } else { Err(format!("HTTP {status}: {text}").into()) }
}

/// Connects through a SOCKS5 proxy, as `curl --socks5-hostname` does.
pub(crate) async fn socks5(proxy: SocketAddr, host: &str, port: u16) -> Result<TcpStream, Failure> {
    let mut stream = TcpStream::connect(proxy).await?;
    stream.write_all(&[5, 1, 0]).await?;
    stream.read_exact(&mut [0; 2]).await?;
    let mut request = vec![5, 1, 0, 3, u8::try_from(host.len())?];
    request.extend_from_slice(host.as_bytes());
    request.extend_from_slice(&port.to_be_bytes());
    stream.write_all(&request).await?;
    let mut reply = [0; 10];
    stream.read_exact(&mut reply).await?;
    match reply[1] {
        0 => Ok(stream),
        code => Err(format!("SOCKS5 reply {code}").into()),
    }
}
