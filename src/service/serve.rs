//! HTTP in the tunnels of a listener.

use std::error::Error as StdError;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use http::{Request, Response};
use hyper::body::{Body, Incoming};
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use tokio::sync::Notify;
use tokio::time::timeout;
use tower_service::Service;

use super::{Listener, Peer};
use crate::drain::Watch;
use crate::io::Accept;
use crate::tunnel::TunnelStream;

/// How long a drain waits for the first request of a tunnel: its 200 may not have reached the client yet. Several round
/// trips between continents.
const FIRST_REQUEST: Duration = Duration::from_secs(2);

/// Serves HTTP/1 and HTTP/2 (with prior knowledge) in each tunnel of `listener` by `service`, until the drain has ended
/// or no more tunnels can come. Each request has the [`Peer`] in its extensions. Upgrades and extended CONNECT work, so
/// WebSockets do.
///
/// `service` is cloned for each tunnel, and for each request in it. An `axum::Router` is such a service, so is
/// `tonic::service::Routes`.
///
/// When the drain starts, no more connections and tunnels are accepted, running requests finish, and so does the first
/// request of a tunnel that has just been opened. When its time is over, all connections are broken and the requests
/// dropped.
///
/// What goes wrong with a single connection, tunnel or request is logged at `debug` and ends nothing else. Must be
/// called on a tokio runtime. When the future is dropped, all connections are broken and the requests dropped.
pub async fn serve<A, S, B>(listener: Listener<A>, service: S, drain: Watch)
where
    A: Accept,
    S: Service<Request<Incoming>, Response = Response<B>> + Clone + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Into<Box<dyn StdError + Send + Sync>>,
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn StdError + Send + Sync>>,
{
    let watch = drain.uncounted();
    listener
        .serve(drain, move |opened| {
            let (service, watch) = (service.clone(), watch.clone());
            async move {
                if let Some((tunnel, peer)) = opened {
                    serve_tunnel(tunnel, peer, service, watch).await;
                }
            }
        })
        .await;
}

async fn serve_tunnel<S, B>(tunnel: TunnelStream, peer: Peer, service: S, drain: Watch)
where
    S: Service<Request<Incoming>, Response = Response<B>> + Clone + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Into<Box<dyn StdError + Send + Sync>>,
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn StdError + Send + Sync>>,
{
    let begun = Arc::new(Notify::new());
    let service = TowerToHyperService::new(service);
    let service = service_fn({
        let (peer, begun) = (peer.clone(), begun.clone());
        move |mut request: Request<Incoming>| {
            begun.notify_one();
            request.extensions_mut().insert(peer.clone());
            service.call(request)
        }
    });
    let mut builder = Builder::new(TokioExecutor::new());
    builder.http2().enable_connect_protocol();
    let mut connection = pin!(builder.serve_connection_with_upgrades(TokioIo::new(tunnel), service));
    let draining = async {
        drain.graceful().await;
        let _ = timeout(FIRST_REQUEST, begun.notified()).await;
    };
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = draining => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(peer = %peer.identity(), target = %peer.authority(), %error, "tunnel broke");
    }
}
