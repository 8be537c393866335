//! Plays a session's steps: the peer by the vector, the other side by this implementation.

use std::collections::{BTreeMap, HashMap};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use super::hpack::Fields;
use super::peer::{ACK, DATA, END_HEADERS, END_STREAM, HEADERS, PADDED, Peer, Received};
use super::script::{self, Action, Frame, Inside, Session, Side, Sight, Step};
use super::unhex;
use crate::client::{self, Client, Driver};
use crate::metadata::Metadata;
use crate::path::TunnelledHop;
use crate::refusal::{Refusal, RefusalReason};
use crate::server::{self, Incoming};
use crate::testing::Ca;
use crate::tests::harness::{BoxIo, Io, client_id, trusted};
use crate::tls::{Acceptor, Connector, TlsStream};
use crate::tunnel::{ResetReason, TunnelStream};
use crate::{Config, Error, ErrorKind, Result, nested};

/// How long anything may take that a vector does not wait for.
const PATIENCE: Duration = Duration::from_millis(500);

type Extended = Result<(Client, Driver<TlsStream<TunnelStream>>)>;

pub(super) async fn play(session: &Session) {
    let mut config = Config::new();
    if let Some(tunnels) = session.max_tunnels {
        config = config.with_max_tunnels(tunnels);
    }
    let config = Arc::new(config);
    let (near, far) = duplex(1 << 16);
    let tested = match session.side {
        Side::Server => Tested::server(near, config),
        Side::Client => Tested::client(near, config).await,
    };
    let peer = Peer::start(Box::new(far), session.side, &session.settings, session.answers_pings).await;
    let mut player = Player::new(tested, peer, Arc::new(Ca::new()));
    player.play(&session.steps, &session.about).await;
}

/// The side under test.
enum Tested {
    Server { incoming: mpsc::UnboundedReceiver<Incoming>, drain: Arc<Notify>, ended: JoinHandle<Result<()>> },
    Client { client: Option<Client>, ended: JoinHandle<Result<()>> },
}

impl Tested {
    fn server(io: impl Io + 'static, config: Arc<Config>) -> Self {
        let (sender, incoming) = mpsc::unbounded_channel();
        let drain = Arc::new(Notify::new());
        let start = drain.clone();
        let ended = tokio::spawn(async move {
            let mut server = server::Builder::new().with_config(config).handshake(io).await?;
            loop {
                tokio::select! {
                    incoming = server.accept() => match incoming {
                        Some(incoming) => drop(sender.send(incoming?)),
                        None => return Ok(()),
                    },
                    () = start.notified() => server.graceful_shutdown(),
                }
            }
        });
        Self::Server { incoming, drain, ended }
    }

    async fn client(io: impl Io + 'static, config: Arc<Config>) -> Self {
        let (client, driver) = client::Builder::new().with_config(config).handshake(io).await.unwrap();
        Self::Client { client: Some(client), ended: tokio::spawn(driver) }
    }

    fn as_client(&self) -> Client {
        let Self::Client { client: Some(client), .. } = self else { panic!("only a client does this") };
        client.clone()
    }
}

struct Player {
    tested: Tested,
    peer: Peer,
    ca: Arc<Ca>,
    requests: HashMap<u32, Incoming>,
    opening: HashMap<u32, JoinHandle<Result<TunnelStream>>>,
    tunnels: HashMap<u32, TunnelStream>,
    /// What could not be written yet.
    unwritten: BTreeMap<u32, Vec<u8>>,
    extending: Option<JoinHandle<Extended>>,
}

impl Player {
    fn new(tested: Tested, peer: Peer, ca: Arc<Ca>) -> Self {
        Self {
            tested,
            peer,
            ca,
            requests: HashMap::new(),
            opening: HashMap::new(),
            tunnels: HashMap::new(),
            unwritten: BTreeMap::new(),
            extending: None,
        }
    }

    fn play<'a>(&'a mut self, steps: &'a [Step], about: &'a str) -> Pin<Box<dyn Future<Output = ()> + 'a>> {
        Box::pin(async move {
            for (n, step) in steps.iter().enumerate() {
                let at = format!("{about}: step {}, {step:?}", n + 1);
                match step {
                    Step::Peer(frame) => self.send(frame).await,
                    Step::Expect(frame) => self.expect(frame, &at).await,
                    Step::Never(frame) => {
                        let kind = script::kind(&frame.frame);
                        let found = self.peer.pending().await.iter().find(|f| f.kind == kind);
                        assert!(found.is_none(), "{at}: {found:?}");
                    }
                    Step::App(action) => self.act(action, &at).await,
                    Step::Sees(sight) => self.see(sight, &at).await,
                    Step::Wait(seconds) => sleep(Duration::from_secs(*seconds)).await,
                    Step::Inside(inside) => self.inside(inside, &at).await,
                }
            }
        })
    }

    async fn send(&mut self, frame: &Frame) {
        let mut payload = match (&frame.text, &frame.hex, &frame.fields) {
            (Some(text), None, None) => text.as_bytes().to_vec(),
            (None, Some(hex), None) => unhex(hex),
            (None, None, Some(fields)) => literals(fields),
            _ => Vec::new(),
        };
        payload.extend(script::settings(&frame.settings));
        payload.extend(frame.last_stream.iter().flat_map(|stream| stream.to_be_bytes()));
        payload.extend(frame.code.iter().flat_map(|code| script::code(code).to_be_bytes()));
        payload.extend(frame.increment.iter().flat_map(|increment| increment.to_be_bytes()));
        let kind = script::kind(&frame.frame);
        let mut flags = if frame.end_stream { END_STREAM } else { 0 } | if frame.ack { ACK } else { 0 };
        if matches!(&*frame.frame, "HEADERS" | "CONTINUATION") && !frame.unfinished {
            flags |= END_HEADERS;
        }
        if let Some(padding) = frame.padding {
            flags |= PADDED;
            payload.insert(0, padding);
            payload.extend(vec![0; padding.into()]);
        }
        self.peer.send(kind, flags, frame.stream, &payload).await;
    }

    async fn expect(&mut self, frame: &Frame, at: &str) {
        self.write_on().await;
        let kind = script::kind(&frame.frame);
        if kind == DATA {
            return self.expect_data(frame, at).await;
        }
        let wanted =
            |f: &Received| (f.kind, f.stream) == (kind, frame.stream) && (f.stream > 0 || f.has(ACK) == frame.ack);
        let Some(got) = self.peer.next(wanted).await else {
            panic!("{at}: there are only {:?}", self.peer.pending().await);
        };
        let number = |at: usize| u32::from_be_bytes(got.payload[at..][..4].try_into().unwrap());
        match &*frame.frame {
            "HEADERS" => {
                assert_eq!(got.has(END_STREAM), frame.end_stream, "{at}");
                let mut expected = frame.fields.clone().unwrap();
                let mut fields = got.fields;
                expected.sort();
                fields.sort();
                assert_eq!(fields, expected, "{at}");
            }
            "RST_STREAM" => assert_eq!(number(0), script::code(frame.code.as_deref().unwrap()), "{at}"),
            "GOAWAY" => {
                assert_eq!(number(4), script::code(frame.code.as_deref().unwrap()), "{at}");
                assert_eq!(frame.last_stream.unwrap_or(number(0)), number(0), "{at}");
            }
            _ => {}
        }
    }

    /// The bytes of a stream, however they are cut into frames.
    async fn expect_data(&mut self, frame: &Frame, at: &str) {
        let expected = frame.text.clone().unwrap_or_default().into_bytes();
        let mut got: Option<Received> = None;
        let wanted = |f: &Received| (f.kind, f.stream) == (DATA, frame.stream);
        loop {
            let enough = got
                .as_ref()
                .is_some_and(|got| got.payload.len() >= expected.len() && (!frame.end_stream || got.has(END_STREAM)));
            if enough {
                break;
            }
            let Some(next) = self.peer.next(wanted).await else {
                panic!("{at}: got {got:?}, and there are only {:?}", self.peer.pending().await);
            };
            got = Some(match got {
                None => next,
                Some(mut got) => {
                    got.payload.extend(next.payload);
                    got.flags |= next.flags;
                    got
                }
            });
        }
        let mut got = got.unwrap();
        if let Some(begins) = &frame.begins {
            assert!(got.payload.starts_with(&unhex(begins)), "{at}: {got:?}");
            return self.peer.put_back(got);
        }
        assert_eq!(got.payload[..expected.len()], expected, "{at}");
        got.payload.drain(..expected.len());
        if frame.end_stream {
            assert_eq!(got.payload, b"", "{at}");
        } else if !got.payload.is_empty() || got.has(END_STREAM) {
            self.peer.put_back(got);
        }
    }

    async fn act(&mut self, action: &Action, at: &str) {
        match action {
            Action::Open { tunnel, authority, fields, early } => {
                let (client, authority, early) = (self.tested.as_client(), authority.parse().unwrap(), *early);
                let metadata = metadata(fields);
                let opening = tokio::spawn(async move {
                    match early {
                        true => client.connect_early(&authority, &metadata).await,
                        false => client.connect(&authority, &metadata).await,
                    }
                });
                if early {
                    self.tunnels.insert(*tunnel, opening.await.unwrap().unwrap());
                } else {
                    self.opening.insert(*tunnel, opening);
                    // Two that are opened one after the other are to be asked for in that order.
                    sleep(Duration::from_millis(1)).await;
                }
            }
            Action::Extend { authority, accept, fields } => {
                let connector = Connector::new(Arc::new(self.ca.issue(&client_id())), Arc::default());
                let accept = accept.iter().map(|id| id.parse().unwrap()).collect();
                let hop = TunnelledHop::new(authority.parse().unwrap(), accept);
                let (client, metadata) = (self.tested.as_client(), metadata(fields));
                self.extending =
                    Some(tokio::spawn(async move { nested::extend(&client, &hop, &connector, &metadata).await }));
            }
            Action::Accept { tunnel, fields } => {
                let accepted = self.requests.remove(tunnel).expect(at).accept(&metadata(fields));
                self.tunnels.insert(*tunnel, accepted.unwrap());
            }
            Action::Refuse { tunnel, error, details } => {
                let mut refusal = Refusal::new(RefusalReason::from_token(error));
                if let Some(details) = details {
                    refusal = refusal.with_details(details.clone());
                }
                self.requests.remove(tunnel).expect(at).reject(&refusal);
            }
            Action::Drop { tunnel } => {
                if let Some(opening) = self.opening.remove(tunnel) {
                    opening.abort();
                    let _ = opening.await;
                } else {
                    let found = (self.requests.remove(tunnel).is_some(), self.tunnels.remove(tunnel).is_some());
                    assert_ne!(found, (false, false), "{at}");
                }
            }
            Action::Write { tunnel, text } => {
                self.unwritten.entry(*tunnel).or_default().extend(text.as_bytes());
                self.write_on().await;
            }
            Action::Finish { tunnel } => self.tunnels.get_mut(tunnel).expect(at).shutdown().await.unwrap(),
            Action::Reset { tunnel, code } => {
                let reason = match &**code {
                    "CANCEL" => ResetReason::Cancel,
                    "CONNECT_ERROR" => ResetReason::ConnectError,
                    "INTERNAL_ERROR" => ResetReason::Internal,
                    "REFUSED_STREAM" => ResetReason::Refused,
                    code => panic!("{at}: {code} is not for users"),
                };
                self.tunnels.get_mut(tunnel).expect(at).reset(reason);
            }
            Action::Drain => match &mut self.tested {
                Tested::Server { drain, .. } => drain.notify_one(),
                Tested::Client { client, .. } => *client = None,
            },
        }
    }

    /// As much of what waits to be written as the windows allow.
    async fn write_on(&mut self) {
        for (tunnel, text) in &mut self.unwritten {
            let tunnel = self.tunnels.get_mut(tunnel).unwrap();
            while !text.is_empty() {
                let Ok(written) = timeout(Duration::from_millis(1), tunnel.write(text)).await else { break };
                text.drain(..written.unwrap());
            }
        }
    }

    async fn see(&mut self, sight: &Sight, at: &str) {
        let seen = timeout(PATIENCE, async {
            match sight {
                Sight::Request { tunnel, authority, fields } => {
                    let Tested::Server { incoming, .. } = &mut self.tested else { panic!("{at}") };
                    let request = incoming.recv().await.expect(at);
                    assert_eq!(&request.authority().to_string(), authority, "{at}");
                    assert_eq!(request.metadata(), &metadata(fields), "{at}");
                    self.requests.insert(*tunnel, request);
                }
                Sight::Opened { tunnel, fields } => {
                    let opened = match self.opening.remove(tunnel) {
                        Some(opening) => opening.await.unwrap().unwrap_or_else(|e| panic!("{at}: {e}")),
                        None => {
                            let mut opening = self.tunnels.remove(tunnel).expect(at);
                            opening.opened().await.unwrap_or_else(|e| panic!("{at}: {e}"));
                            opening
                        }
                    };
                    assert_eq!(opened.metadata(), &metadata(fields), "{at}");
                    self.tunnels.insert(*tunnel, opened);
                }
                Sight::Refused { tunnel, status, error, details } => {
                    let failed = self.failed_opening(*tunnel, at).await;
                    let refusal = failed.refusal().unwrap_or_else(|| panic!("{at}: {failed}"));
                    assert_eq!(refusal.status().as_u16(), *status, "{at}");
                    let reason = match error {
                        Some(error) => RefusalReason::from_token(error),
                        None => RefusalReason::Unspecified,
                    };
                    assert_eq!((refusal.reason(), refusal.details()), (&reason, details.as_deref()), "{at}");
                }
                Sight::Data { tunnel, text } => {
                    let mut got = vec![0; text.len()];
                    let read = self.tunnels.get_mut(tunnel).expect(at).read_exact(&mut got).await;
                    read.unwrap_or_else(|e| panic!("{at}: {e}"));
                    assert_eq!(str::from_utf8(&got), Ok(&**text), "{at}");
                }
                Sight::End { tunnel } => {
                    let read = self.tunnels.get_mut(tunnel).expect(at).read(&mut [0]).await;
                    assert_eq!(read.unwrap_or_else(|e| panic!("{at}: {e}")), 0, "{at}");
                }
                Sight::Failure { tunnel, code } => {
                    let error = match self.tunnels.get_mut(tunnel).filter(|tunnel| tunnel.is_open()) {
                        Some(open) => match open.read(&mut [0]).await {
                            Ok(n) => panic!("{at}: read {n}"),
                            Err(e) => Error::from_io(&e).expect(at).clone(),
                        },
                        None => self.failed_opening(*tunnel, at).await,
                    };
                    if let Some(code) = code {
                        assert_eq!(error.kind(), &ErrorKind::Reset(script::code(code)), "{at}");
                    }
                }
                Sight::ExtendFailed => {
                    let extended = self.extending.take().expect(at).await.unwrap();
                    assert!(extended.is_err(), "{at}");
                }
                Sight::Connection { in_order } => {
                    let (Tested::Server { ended, .. } | Tested::Client { ended, .. }) = &mut self.tested;
                    let ended = ended.await.unwrap();
                    assert_eq!(ended.is_ok(), *in_order, "{at}: {ended:?}");
                }
            }
        });
        if seen.await.is_err() {
            panic!("{at}: nothing of that kind; of frames there are {:?}", self.peer.pending().await);
        }
    }

    async fn failed_opening(&mut self, tunnel: u32, at: &str) -> Error {
        match self.opening.remove(&tunnel) {
            Some(opening) => opening.await.unwrap().expect_err(at),
            None => self.tunnels.get_mut(&tunnel).expect(at).opened().await.expect_err(at),
        }
    }

    async fn inside(&mut self, inside: &Inside, at: &str) {
        let stream = self.peer.divert(inside.stream);
        let server = self.ca.issue(&inside.server.parse().unwrap());
        let acceptor = Acceptor::new(Arc::new(server), trusted(), Arc::default());
        let session = timeout(Duration::from_secs(5), acceptor.accept(stream)).await.expect(at);
        assert_eq!(session.is_ok(), inside.handshake, "{at}: {session:?}");
        let Ok(session) = session else { return };
        assert_eq!(session.peer_identity(), &client_id(), "{at}");
        let io: BoxIo = Box::new(session);
        let peer = Peer::start(io, Side::Client, &inside.settings, true).await;
        let (client, driver) = self.extending.take().expect(at).await.unwrap().unwrap_or_else(|e| panic!("{at}: {e}"));
        let tested = Tested::Client { client: Some(client), ended: tokio::spawn(driver) };
        Player::new(tested, peer, self.ca.clone()).play(&inside.steps, "inside").await;
    }
}

fn metadata(fields: &Fields) -> Metadata {
    let headers: HeaderMap = fields
        .iter()
        .map(|(name, value)| (name.parse::<HeaderName>().unwrap(), HeaderValue::from_str(value).unwrap()))
        .collect();
    Metadata::from_headers(&headers)
}

/// A block of literals that are not indexed.
fn literals(fields: &Fields) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0);
        for text in [name, value] {
            match text.len() {
                len @ ..127 => block.push(len as u8),
                len => {
                    let mut rest = len - 127;
                    block.push(127);
                    while rest >= 128 {
                        block.push((rest % 128 + 128) as u8);
                        rest /= 128;
                    }
                    block.push(rest as u8);
                }
            }
            block.extend(text.as_bytes());
        }
    }
    block
}

/// Blocks of one connection, as a server gets them; and the blocks that a client makes of the same.
pub(super) async fn blocks(title: &str, blocks: &[(Vec<u8>, Fields)]) {
    let (near, far) = duplex(1 << 16);
    let Tested::Server { mut incoming, ended, .. } = Tested::server(near, Arc::default()) else { unreachable!() };
    let peer = Peer::start(Box::new(far), Side::Server, &BTreeMap::new(), true).await;
    let mut requests = Vec::new();
    for (n, (block, fields)) in blocks.iter().enumerate() {
        peer.send(HEADERS, END_HEADERS, 2 * n as u32 + 1, block).await;
        let request = timeout(PATIENCE, incoming.recv()).await.expect(title).expect(title);
        assert_eq!(request.authority().to_string(), authority_of(fields), "{title}");
        assert_eq!(request.metadata(), &metadata_of(fields), "{title}");
        requests.push(request);
    }
    ended.abort();

    let (near, far) = duplex(1 << 16);
    let tested = Tested::client(near, Arc::default()).await;
    let mut peer = Peer::start(Box::new(far), Side::Client, &BTreeMap::new(), true).await;
    for (n, (_, fields)) in blocks.iter().enumerate() {
        let (client, metadata) = (tested.as_client(), metadata_of(fields));
        let authority = authority_of(fields).parse().unwrap();
        tokio::spawn(async move { client.connect(&authority, &metadata).await.map(drop) });
        let got = peer.next(|frame| frame.kind == HEADERS).await.expect(title);
        assert_eq!(got.stream, 2 * n as u32 + 1);
        let pseudo = got.fields.iter().take_while(|(name, _)| name.starts_with(':')).count();
        assert_eq!(pseudo, 2, "{title}: {:?}", got.fields);
        let mut made = got.fields;
        let mut meant = vec![(":method".to_owned(), "CONNECT".to_owned())];
        meant.push((":authority".to_owned(), authority_of(fields).to_owned()));
        let mut headers = HeaderMap::new();
        metadata_of(fields).write_to(&mut headers);
        meant.extend(headers.iter().map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned())));
        made.sort();
        meant.sort();
        assert_eq!(made, meant, "{title}");
    }
}

fn authority_of(fields: &Fields) -> &str {
    &fields.iter().find(|(name, _)| name == ":authority").unwrap().1
}

fn metadata_of(fields: &Fields) -> Metadata {
    metadata(&fields.iter().filter(|(name, _)| !name.starts_with(':')).cloned().collect())
}
