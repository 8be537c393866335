//! Sends proxies what their cluster is to know.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use futures_util::{Stream, StreamExt as _};
use tokio::sync::{mpsc, watch};
use tonic::body::Body;
use tonic::server::StreamingService;
use tonic::{Request, Response, Status, Streaming};
use tonic_prost::ProstCodec;
use tower_service::Service;

use super::delta::Subscriber;
use super::proto::{ADDRESS_TYPE, AUTHORIZATION_TYPE, DeltaDiscoveryRequest, DeltaDiscoveryResponse, Node};
use super::view::{Change, View, Views};

const METHOD: &str = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources";
/// So many responses wait for a client that does not read; more come later, in one.
const UNREAD: usize = 4;

/// The views of all clusters, for those who change them and those who serve them. Cheap to clone.
#[derive(Clone)]
pub struct Publisher {
    views: Arc<Mutex<Views>>,
    revision: watch::Sender<u64>,
}

impl Publisher {
    /// Publishes these views.
    pub fn new(views: Views) -> Self {
        Self { views: Arc::new(Mutex::new(views)), revision: watch::channel(0).0 }
    }

    /// Makes changes to a cluster, and lets its proxies and those of the others know what they mean for them.
    pub fn apply(&self, cluster: &str, changes: impl IntoIterator<Item = Change>) {
        let mut views = self.lock();
        changes.into_iter().for_each(|change| views.apply(cluster, change));
        views.update();
        drop(views);
        self.revision.send_modify(|revision| *revision += 1);
    }

    /// Forgets a cluster.
    pub fn remove_cluster(&self, cluster: &str) {
        let mut views = self.lock();
        views.remove_cluster(cluster);
        views.update();
        drop(views);
        self.revision.send_modify(|revision| *revision += 1);
    }

    /// Looks at the views. Nothing changes and nothing is sent meanwhile.
    pub fn with<R>(&self, look: impl FnOnce(&Views) -> R) -> R {
        look(&self.lock())
    }

    fn lock(&self) -> MutexGuard<'_, Views> {
        self.views.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Publisher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Publisher").field("revision", &*self.revision.borrow()).finish_non_exhaustive()
    }
}

/// Which cluster's view a client may have.
pub type Admit = dyn Fn(&http::Extensions, &Node) -> Result<String, Status> + Send + Sync;

/// Serves `AggregatedDiscoveryService`, delta form, as a tower service for tonic's and hyper's servers.
#[derive(Clone)]
pub struct DiscoveryServer {
    publisher: Publisher,
    admit: Arc<Admit>,
}

impl DiscoveryServer {
    /// Serves each client the view of the cluster that it says it is in, by `CLUSTER_ID` of its node.
    ///
    /// Nothing is proved by that: see [`with_admission`](Self::with_admission).
    pub fn new(publisher: Publisher) -> Self {
        let admit = |_: &http::Extensions, node: &Node| {
            let cluster = node.metadata_text("CLUSTER_ID").map(str::to_owned);
            cluster.ok_or_else(|| Status::invalid_argument("node.metadata.CLUSTER_ID is missing"))
        };
        Self { publisher, admit: Arc::new(admit) }
    }

    /// Decides whose view a client gets: by what came with the connection, such as its identity, and by what it says of
    /// itself.
    pub fn with_admission(
        mut self,
        admit: impl Fn(&http::Extensions, &Node) -> Result<String, Status> + Send + Sync + 'static,
    ) -> Self {
        self.admit = Arc::new(admit);
        self
    }
}

impl fmt::Debug for DiscoveryServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DiscoveryServer").field("publisher", &self.publisher).finish_non_exhaustive()
    }
}

impl tonic::server::NamedService for DiscoveryServer {
    const NAME: &'static str = "envoy.service.discovery.v3.AggregatedDiscoveryService";
}

impl<B> Service<http::Request<B>> for DiscoveryServer
where
    B: http_body::Body + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>> + Send + 'static,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let method = Delta(self.clone());
        Box::pin(async move {
            if request.uri().path() != METHOD {
                return Ok(Status::unimplemented("only DeltaAggregatedResources is served").into_http());
            }
            let codec = ProstCodec::<DeltaDiscoveryResponse, DeltaDiscoveryRequest>::default();
            Ok(tonic::server::Grpc::new(codec).streaming(method, request).await)
        })
    }
}

/// The method.
struct Delta(DiscoveryServer);

type Responses = Pin<Box<dyn Stream<Item = Result<DeltaDiscoveryResponse, Status>> + Send>>;

impl StreamingService<DeltaDiscoveryRequest> for Delta {
    type Response = DeltaDiscoveryResponse;
    type ResponseStream = Responses;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Responses>, Status>> + Send>>;

    fn call(&mut self, request: Request<Streaming<DeltaDiscoveryRequest>>) -> Self::Future {
        let DiscoveryServer { publisher, admit } = self.0.clone();
        Box::pin(async move {
            let (_, extensions, requests) = request.into_parts();
            let (sender, receiver) = mpsc::channel(UNREAD);
            tokio::spawn(async move {
                let ended = serve(requests, &publisher, |node| admit(&extensions, node), &sender).await;
                if let Err(status) = ended {
                    let _ = sender.send(Err(status)).await;
                }
            });
            let responses = futures_util::stream::unfold(receiver, |mut receiver| async {
                receiver.recv().await.map(|next| (next, receiver))
            });
            Ok(Response::new(Box::pin(responses) as Responses))
        })
    }
}

/// One client's stream, until it ends.
async fn serve(
    mut requests: Streaming<DeltaDiscoveryRequest>,
    publisher: &Publisher,
    admit: impl Fn(&Node) -> Result<String, Status>,
    responses: &mpsc::Sender<Result<DeltaDiscoveryResponse, Status>>,
) -> Result<(), Status> {
    let mut changed = publisher.revision.subscribe();
    let mut client: Option<Subscribed> = None;
    loop {
        let answers = tokio::select! {
            request = requests.next() => {
                let Some(request) = request.transpose()? else { return Ok(()) };
                if let Some(error) = &request.error_detail {
                    tracing::warn!(type_url = request.type_url, message = error.message, "a proxy has rejected something");
                }
                let client = match &mut client {
                    Some(client) => client,
                    None => {
                        let node = request.node.as_ref();
                        let node = node.ok_or_else(|| Status::invalid_argument("the first request has no node"))?;
                        client.insert(Subscribed::new(admit(node)?, node))
                    }
                };
                client.request(&request, publisher)?
            }
            Ok(()) = changed.changed() => client.as_mut().map(|client| client.catch_up(publisher)).unwrap_or_default(),
        };
        for answer in answers {
            // A client that does not read receives later changes later, all at once.
            if responses.send(Ok(answer)).await.is_err() {
                return Ok(());
            }
        }
    }
}

/// A client whose cluster is known.
struct Subscribed {
    cluster: String,
    node: String,
    addresses: Subscriber,
    policies: Subscriber,
    revision: u64,
}

impl Subscribed {
    fn new(cluster: String, node: &Node) -> Self {
        Self {
            cluster,
            node: node.metadata_text("NODE_NAME").unwrap_or_default().into(),
            addresses: Subscriber::new(),
            policies: Subscriber::new(),
            revision: 0,
        }
    }

    fn request(
        &mut self,
        request: &DeltaDiscoveryRequest,
        publisher: &Publisher,
    ) -> Result<Vec<DeltaDiscoveryResponse>, Status> {
        // What has changed comes first, so that an answer never is older than what was sent before.
        let mut answers = self.catch_up(publisher);
        let empty = View::default();
        let answer = publisher.with(|views| {
            let view = views.view(&self.cluster).unwrap_or(&empty);
            match &*request.type_url {
                ADDRESS_TYPE => {
                    Ok(self.addresses.request(request, view.addresses(), || view.addresses().on_node(&self.node)))
                }
                AUTHORIZATION_TYPE => Ok(self.policies.request(request, view.policies(), BTreeSet::new)),
                other => Err(Status::unimplemented(format!("the type {other:?} is not served"))),
            }
        })?;
        answers.extend(answer);
        Ok(answers)
    }

    fn catch_up(&mut self, publisher: &Publisher) -> Vec<DeltaDiscoveryResponse> {
        publisher.with(|views| {
            let Some(view) = views.view(&self.cluster) else { return Vec::new() };
            let revision = std::mem::replace(&mut self.revision, view.revision());
            if revision == self.revision {
                return Vec::new();
            }
            let pinned = || view.addresses().on_node(&self.node);
            let (addresses, policies) = match view.changed_since(revision) {
                Some((addresses, policies)) => (
                    self.addresses.changed(addresses, view.addresses(), ADDRESS_TYPE, pinned),
                    self.policies.changed(policies, view.policies(), AUTHORIZATION_TYPE, BTreeSet::new),
                ),
                None => (
                    self.addresses.resync(view.addresses(), ADDRESS_TYPE, pinned),
                    self.policies.resync(view.policies(), AUTHORIZATION_TYPE, BTreeSet::new),
                ),
            };
            addresses.into_iter().chain(policies).collect()
        })
    }
}
