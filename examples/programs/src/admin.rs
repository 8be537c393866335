//! The admin port: whether a proxy is ready, and what else a program has to tell.
//!
//! Its clients are probes and people, few and quick. Others must not take descriptors from the data path, so there are
//! few connections at a time, each for one request and a short time, and a new one ends the oldest.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::task::AbortHandle;
use tokio::time::{sleep, timeout};

const MAX_CONNECTIONS: usize = 16;
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(10);
/// After a failed accept, mostly for lack of descriptors, some have to be closed first.
const ACCEPT_BACK_OFF: Duration = Duration::from_millis(50);

/// Whether a proxy is ready.
#[derive(Clone, Debug, Default)]
pub(crate) struct Status(Arc<AtomicBool>);

impl Status {
    pub(crate) fn set_draining(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    fn is_draining(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// What is answered to a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The status code.
    pub status: StatusCode,
    /// The media type of `body`.
    pub content_type: &'static str,
    /// What is said.
    pub body: String,
}

impl Answer {
    /// A text.
    pub fn text(status: StatusCode, body: impl Into<String>) -> Self {
        Self { status, content_type: "text/plain; charset=utf-8", body: body.into() }
    }
}

/// Answers each path by `answer` until it is dropped.
pub async fn serve(listener: TcpListener, answer: impl Fn(&str) -> Answer + Clone + Send + 'static) {
    let mut connections = Connections::default();
    loop {
        match listener.accept().await {
            Ok((stream, _)) => connections.add(serve_one(stream, answer.clone())),
            Err(_) => sleep(ACCEPT_BACK_OFF).await,
        }
    }
}

/// The connections that are open, oldest first.
#[derive(Default)]
struct Connections(VecDeque<AbortHandle>);

impl Connections {
    fn add(&mut self, connection: impl Future<Output = ()> + Send + 'static) {
        self.0.retain(|connection| !connection.is_finished());
        if self.0.len() == MAX_CONNECTIONS
            && let Some(oldest) = self.0.pop_front()
        {
            oldest.abort();
        }
        self.0.push_back(tokio::spawn(connection).abort_handle());
    }
}

async fn serve_one(stream: impl AsyncRead + AsyncWrite + Unpin, answer: impl Fn(&str) -> Answer) {
    let service = service_fn(move |request: Request<Incoming>| {
        std::future::ready(Ok::<_, Infallible>(response(answer(request.uri().path()))))
    });
    let connection =
        hyper::server::conn::http1::Builder::new().keep_alive(false).serve_connection(TokioIo::new(stream), service);
    match timeout(CONNECTION_TIMEOUT, connection).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "admin connection"),
        Err(_) => tracing::debug!("admin connection: no request in time"),
    }
}

fn response(Answer { status, content_type, body }: Answer) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

/// What a proxy answers: also during its drain, which it tells of.
pub(crate) fn readiness(path: &str, status: &Status) -> Answer {
    match path {
        "/healthz/ready" if status.is_draining() => Answer::text(StatusCode::SERVICE_UNAVAILABLE, "draining\n"),
        "/healthz/ready" => Answer::text(StatusCode::OK, "ready\n"),
        _ => Answer::text(StatusCode::NOT_FOUND, "there is /healthz/ready\n"),
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
    use tokio::time::Instant;

    use super::*;

    fn connect(connections: &mut Connections) -> DuplexStream {
        let (near, far) = duplex(1 << 10);
        connections.add(serve_one(far, |path| readiness(path, &Status::default())));
        near
    }

    async fn ask(stream: &mut DuplexStream) -> String {
        stream.write_all(b"GET /healthz/ready HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_client_is_cut_off_in_time() {
        let start = Instant::now();
        let mut silent = connect(&mut Connections::default());
        silent.write_all(b"GET /healthz/ready HTTP/1.1\r\n").await.unwrap();
        silent.read_to_end(&mut Vec::new()).await.unwrap();
        assert_eq!(start.elapsed(), CONNECTION_TIMEOUT);
    }

    #[tokio::test(start_paused = true)]
    async fn many_silent_clients_keep_no_probe_waiting() {
        let (start, mut connections) = (Instant::now(), Connections::default());
        let mut silent: Vec<_> = (0..10 * MAX_CONNECTIONS).map(|_| connect(&mut connections)).collect();
        let answer = ask(&mut connect(&mut connections)).await;
        assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("ready\n"), "{answer}");
        silent[0].read_to_end(&mut Vec::new()).await.unwrap();
        assert_eq!((start.elapsed(), connections.0.len()), (Duration::ZERO, MAX_CONNECTIONS));
    }
}
