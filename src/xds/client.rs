//! Follows a control plane.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::unfold;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, timeout};
use tonic::client::GrpcService;
use tonic::metadata::{Ascii, MetadataMap, MetadataValue};
use tonic::{Status, body::Body};
use tonic_prost::ProstCodec;

use super::decode;
use super::delta::{Subscriptions, Update};
use super::proto::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use crate::mesh::{Batch, Store};

const METHOD: &str = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources";
/// A resource that is longer is refused with the whole message. A full state of 100,000 workloads has about 40 MiB.
const MAX_MESSAGE: usize = 256 << 20;

/// How a [`Client`] behaves.
#[derive(Clone, Debug)]
pub struct ClientConfig {
    initial_backoff: Duration,
    max_backoff: Duration,
    connect_timeout: Duration,
}

impl Default for ClientConfig {
    fn default() -> Self {
        Self {
            initial_backoff: Duration::from_millis(200),
            max_backoff: Duration::from_secs(15),
            connect_timeout: Duration::from_secs(10),
        }
    }
}

impl ClientConfig {
    /// The defaults.
    pub fn new() -> Self {
        Self::default()
    }

    /// How long to wait before the second attempt, at most; twice as long before each further one. Default: 200 ms.
    pub fn with_initial_backoff(mut self, initial_backoff: Duration) -> Self {
        self.initial_backoff = initial_backoff;
        self
    }

    /// The longest wait between attempts. Default: 15 s.
    pub fn with_max_backoff(mut self, max_backoff: Duration) -> Self {
        self.max_backoff = max_backoff;
        self
    }

    /// How long opening a stream may take. Default: 10 s.
    pub fn with_connect_timeout(mut self, connect_timeout: Duration) -> Self {
        self.connect_timeout = connect_timeout;
        self
    }

    /// See [`with_initial_backoff`](Self::with_initial_backoff).
    pub fn initial_backoff(&self) -> Duration {
        self.initial_backoff
    }

    /// See [`with_max_backoff`](Self::with_max_backoff).
    pub fn max_backoff(&self) -> Duration {
        self.max_backoff
    }

    /// See [`with_connect_timeout`](Self::with_connect_timeout).
    pub fn connect_timeout(&self) -> Duration {
        self.connect_timeout
    }

    /// How long to wait after so many failures in a row: `random` of the full wait, from 0 to 1, so that not all
    /// clients come back at once.
    fn backoff(&self, failures: u32, random: f64) -> Duration {
        let doubled = 1_u32.checked_shl(failures.saturating_sub(1).min(31)).unwrap_or(u32::MAX);
        self.initial_backoff.saturating_mul(doubled).min(self.max_backoff).mul_f64(random.clamp(0.0, 1.0))
    }
}

/// How it is going.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ClientStatus {
    /// Whether a stream is up.
    pub connected: bool,
    /// When the last response came: since then the mesh may have changed unseen if the stream is down.
    pub last_response: Option<Instant>,
    /// Why the last stream ended, until another one is up.
    pub error: Option<Arc<str>>,
    /// Resources that were rejected and not sent again since, with the reason.
    pub rejected: Arc<BTreeMap<String, String>>,
    /// How many resources are held.
    pub resources: usize,
}

/// Keeps a [`Store`] as a control plane wants it, for as long as [`run`](Client::run) is polled.
///
/// While the control plane is away, the store stays as it was, and the client comes back with jittered and growing
/// waits. Then it says what it holds, and receives what has changed. Responses are applied whole: their good resources
/// at once, the bad ones are rejected by name, with the reason, and stay as they were.
pub struct Client<C> {
    channel: C,
    subscriptions: Subscriptions,
    store: Arc<Mutex<Store>>,
    config: ClientConfig,
    token: Option<Box<dyn Fn() -> Option<String> + Send + Sync>>,
    headers: MetadataMap,
    wanted: mpsc::UnboundedReceiver<(String, String)>,
    want: mpsc::UnboundedSender<(String, String)>,
    status: watch::Sender<ClientStatus>,
}

/// Asks a running [`Client`] for resources.
#[derive(Clone, Debug)]
pub struct Demand(mpsc::UnboundedSender<(String, String)>);

impl Demand {
    /// Asks for a resource by name: an address as `NETWORK/IP`, a service as `NAMESPACE/HOSTNAME`.
    pub fn ask(&self, type_url: &str, name: &str) {
        // A client that is gone asks for nothing.
        let _ = self.0.send((type_url.into(), name.into()));
    }
}

impl<C> Client<C>
where
    C: GrpcService<Body> + Clone,
    C::ResponseBody: http_body::Body<Data = bytes::Bytes> + Send + 'static,
    <C::ResponseBody as http_body::Body>::Error: Into<Box<dyn std::error::Error + Send + Sync>> + Send,
    C::Error: fmt::Display,
{
    /// Follows the control plane behind `channel` with these subscriptions.
    pub fn new(channel: C, subscriptions: Subscriptions, store: Arc<Mutex<Store>>, config: ClientConfig) -> Self {
        let (want, wanted) = mpsc::unbounded_channel();
        let status =
            ClientStatus { connected: false, last_response: None, error: None, rejected: Arc::default(), resources: 0 };
        let status = watch::channel(status).0;
        let headers = MetadataMap::new();
        Self { channel, subscriptions, store, config, token: None, headers, wanted, want, status }
    }

    /// Shows a bearer token, asked for anew with each stream.
    pub fn with_token(mut self, token: impl Fn() -> Option<String> + Send + Sync + 'static) -> Self {
        self.token = Some(Box::new(token));
        self
    }

    /// Sends a header with each stream; Istio's ztunnel says its cluster in `clusterid`. Names and values that are not
    /// allowed are left out.
    pub fn with_header(mut self, name: &'static str, value: &str) -> Self {
        if let Ok(value) = value.parse::<MetadataValue<Ascii>>() {
            self.headers.insert(name, value);
        }
        self
    }

    /// To ask for resources while it runs.
    pub fn demand(&self) -> Demand {
        Demand(self.want.clone())
    }

    /// How it is going.
    pub fn status(&self) -> watch::Receiver<ClientStatus> {
        self.status.subscribe()
    }

    /// Runs until it is dropped. Cancel safe: the store has each response whole or not at all.
    pub async fn run(mut self) {
        let mut failures = 0;
        loop {
            let ended = self.stream().await;
            let was_up = self.status.borrow().connected;
            failures = if was_up { 1 } else { failures + 1 };
            tracing::info!(error = %ended, "the control plane's stream ended, going on with what is known");
            self.status.send_modify(|status| {
                status.connected = false;
                status.error = Some(ended.to_string().into());
            });
            sleep(self.config.backoff(failures, 0.5 + 0.5 * fastrand::f64())).await;
        }
    }

    /// One stream. Returns why it ended.
    async fn stream(&mut self) -> Status {
        let (requests, outgoing) = mpsc::unbounded_channel::<DeltaDiscoveryRequest>();
        for request in self.subscriptions.connect() {
            let _ = requests.send(request);
        }
        let outgoing = unfold(outgoing, |mut outgoing| async { outgoing.recv().await.map(|next| (next, outgoing)) });
        let mut request = tonic::Request::new(outgoing);
        *request.metadata_mut() = self.headers.clone();
        let token = self.token.as_ref().and_then(|token| token());
        if let Some(value) = token.and_then(|token| format!("Bearer {token}").parse().ok()) {
            request.metadata_mut().insert("authorization", value);
        }
        let mut grpc = tonic::client::Grpc::new(self.channel.clone()).max_decoding_message_size(MAX_MESSAGE);
        let open = async {
            grpc.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
            let codec = ProstCodec::<DeltaDiscoveryRequest, DeltaDiscoveryResponse>::default();
            grpc.streaming(request, http::uri::PathAndQuery::from_static(METHOD), codec).await
        };
        let mut responses = match timeout(self.config.connect_timeout, open).await {
            Ok(Ok(response)) => response.into_inner(),
            Ok(Err(status)) => return status,
            Err(_) => return Status::deadline_exceeded("opening a stream to the control plane took too long"),
        };
        loop {
            tokio::select! {
                response = responses.next() => match response {
                    Some(Ok(response)) => {
                        let answer = self.apply(response);
                        let _ = requests.send(answer);
                    }
                    Some(Err(status)) => return status,
                    None => return Status::unavailable("the control plane ended the stream"),
                },
                Some((type_url, name)) = self.wanted.recv() => {
                    if let Some(request) = self.subscriptions.subscribe(&type_url, &name) {
                        let _ = requests.send(request);
                    }
                }
            }
        }
    }

    /// Applies a response. Returns the answer.
    fn apply(&mut self, response: DeltaDiscoveryResponse) -> DeltaDiscoveryRequest {
        let update = self.subscriptions.receive(response);
        let (batch, mut rejected) = decoded(&update);
        let applied = self.store.lock().unwrap_or_else(PoisonError::into_inner).apply(batch);
        for reject in &applied.rejected {
            let name = reject.resource.name();
            rejected.insert(resource_name(&name), reject.reason.to_string());
        }
        for (name, reason) in &rejected {
            tracing::warn!(%name, %reason, "resource rejected, the last good version stays");
        }
        let (names, removed): (Vec<_>, _) =
            (update.resources.iter().map(|resource| resource.name.clone()).collect(), update.removed.clone());
        let answer = self.subscriptions.applied(update, &rejected);
        let resources = self.subscriptions.held();
        self.status.send_modify(|status| {
            status.connected = true;
            status.error = None;
            status.last_response = Some(Instant::now());
            status.resources = resources;
            let all = Arc::make_mut(&mut status.rejected);
            names.iter().chain(&removed).for_each(|name| drop(all.remove(name)));
            all.extend(rejected.clone());
        });
        answer
    }
}

/// The changes of an update, and what of it can't be used.
fn decoded(update: &Update) -> (Batch, BTreeMap<String, String>) {
    let (mut batch, mut rejected) = (Batch::new(), BTreeMap::new());
    for name in &update.removed {
        decode::resource_names(&update.type_url, name).into_iter().for_each(|name| batch.remove(name));
    }
    for resource in &update.resources {
        match resource.resource.as_ref().map(decode::resource) {
            Some(Ok(decoded)) => batch.upsert(decoded),
            Some(Err(error)) => drop(rejected.insert(resource.name.clone(), error.to_string())),
            None => drop(rejected.insert(resource.name.clone(), "it is empty".into())),
        }
    }
    (batch, rejected)
}

/// As xDS names it.
fn resource_name(name: &crate::mesh::ResourceName) -> String {
    match name {
        crate::mesh::ResourceName::Workload(uid) => uid.to_string(),
        crate::mesh::ResourceName::Service(key) => key.to_string(),
        crate::mesh::ResourceName::Policy(name) => name.to_string(),
        #[expect(unreachable_patterns, reason = "there may be more")]
        other => other.to_string(),
    }
}

impl<C> fmt::Debug for Client<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("status", &*self.status.borrow()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_longest_and_are_jittered() {
        let config = ClientConfig::new();
        let wait = |failures| config.backoff(failures, 1.0).as_millis();
        assert_eq!([1, 2, 3, 4].map(wait), [200, 400, 800, 1600]);
        assert_eq!(wait(1000), 15_000);
        assert_eq!(config.backoff(1, 0.5), Duration::from_millis(100));
    }
}
