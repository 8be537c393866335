//! One end of an HTTP/2 connection, without TLS, against a scripted peer.

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::Duration;

use tokio::io::DuplexStream;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::frames::{
    self, ACK, DATA, END_STREAM, Frame, HEADERS, INITIAL_WINDOW_SIZE, PREFACE, RST_STREAM, SETTINGS, WINDOW_UPDATE,
};
use super::local::{Transfer, check_error, drive, pattern};
use super::peer::{Setup, Transcript, play, run};
use super::script::{Act, Step};
use crate::client::{self, Client};
use crate::metadata::Metadata;
use crate::refusal::{Refusal, RefusalReason};
use crate::server::{self, Incoming};

/// The initial size of a window (RFC 9113, section 6.9.2).
const WINDOW: u64 = 65_535;

/// Longer than any timeout of a connection.
const LONG: Duration = Duration::from_secs(300);

/// A server. The input is four bytes of setup and the client's script, which the preface precedes unless the highest
/// bit of the first byte is set.
pub fn http2_server(data: &[u8]) {
    run(async { drop(server_session(data).await) });
}

pub(super) async fn server_session(data: &[u8]) -> Vec<Transfer> {
    let (setup, mut steps) = Setup::read(data);
    if setup.has_preface() {
        steps.insert(0, Step::Bytes(PREFACE.to_vec()));
    }
    let (near, far) = setup.pipe();
    let (acts, wanted) = mpsc::unbounded_channel();
    let (over, is_over) = watch::channel(false);
    let transcript = Transcript::default();
    let peer = tokio::spawn(play(near, (setup, steps), acts, is_over, transcript.clone()));
    let moved = serve(setup, far, wanted).await;
    over.send_replace(true);
    peer.await.expect("the peer");
    let (written, read) = transcript.take();
    match written.strip_prefix(PREFACE) {
        Some(written) => check(&frames::parse(written), &frames::parse(&read), &moved),
        None => assert!(moved.is_empty(), "a tunnel without a preface"),
    }
    moved
}

async fn serve(setup: Setup, io: DuplexStream, mut acts: mpsc::UnboundedReceiver<(u8, Act)>) -> Vec<Transfer> {
    let mut server = match server::Builder::new().with_config(setup.config()).handshake(io).await {
        Ok(server) => server,
        Err(error) => {
            check_error(&error);
            return Vec::new();
        }
    };
    let mut tunnels = Tunnels::default();
    let (mut waiting, mut wanted) = (VecDeque::new(), VecDeque::new());
    loop {
        tokio::select! {
            biased;
            incoming = server.accept() => match incoming {
                Some(Ok(incoming)) => waiting.push_back(incoming),
                Some(Err(error)) => check_error(&error),
                None => break,
            },
            act = acts.recv(), if !acts.is_closed() || !acts.is_empty() => match act {
                Some((_, act @ (Act::Open | Act::OpenEarly))) => wanted.push_back(act),
                Some((tunnel, act)) => tunnels.act(tunnel, act),
                None => tunnels.acts.clear(),
            },
        }
        while !waiting.is_empty() && (acts.is_closed() || !wanted.is_empty()) {
            let (Some(incoming), act) = (waiting.pop_front(), wanted.pop_front()) else { break };
            match (act, tunnels.count % 4) {
                (Some(Act::OpenEarly), _) | (None, 1) => refuse(incoming, &mut tunnels),
                (None, 2) => drop(incoming),
                _ => tunnels.accept(incoming, acts.is_closed()),
            }
        }
    }
    assert!(server.accept().await.is_none(), "it stays ended");
    drop(server);
    tunnels.finish().await
}

fn refuse(incoming: Incoming, tunnels: &mut Tunnels) {
    tunnels.count += 1;
    incoming.reject(&Refusal::new(RefusalReason::Denied).with_details("by the script"));
}

/// Open tunnels, and the channels that control them.
#[derive(Default)]
struct Tunnels {
    acts: Vec<mpsc::UnboundedSender<Act>>,
    tasks: JoinSet<Option<Transfer>>,
    count: usize,
}

impl Tunnels {
    fn act(&self, tunnel: u8, act: Act) {
        if let Some(n) = usize::from(tunnel).checked_rem(self.acts.len()) {
            let _ = self.acts[n].send(act);
        }
    }

    fn listen(&mut self, for_itself: bool) -> mpsc::UnboundedReceiver<Act> {
        let (sender, receiver) = mpsc::unbounded_channel();
        self.count += 1;
        if !for_itself {
            self.acts.push(sender);
        }
        receiver
    }

    fn accept(&mut self, incoming: Incoming, for_itself: bool) {
        let acts = self.listen(for_itself);
        match incoming.accept(&Metadata::default()) {
            Ok(tunnel) => drop(self.tasks.spawn(async { Some(drive(tunnel, false, acts).await) })),
            Err(error) => check_error(&error),
        }
    }

    fn open(&mut self, client: &Client, early: bool) {
        let (acts, client) = (self.listen(false), client.clone());
        self.tasks.spawn(async move {
            let authority = "a.b.svc.cluster.local:80".parse().expect("an authority");
            match client.connect_early(&authority, &Metadata::default()).await {
                Ok(tunnel) => Some(drive(tunnel, early, acts).await),
                Err(error) => {
                    check_error(&error);
                    None
                }
            }
        });
    }

    /// Closes the channels and waits for the tunnels.
    async fn finish(mut self) -> Vec<Transfer> {
        self.acts.clear();
        let mut moved = Vec::new();
        while let Some(tunnel) = self.tasks.join_next().await {
            moved.extend(tunnel.expect("a tunnel's task"));
        }
        moved
    }
}

/// A client. The input is four bytes of setup and the server's script.
pub fn http2_client(data: &[u8]) {
    run(async { drop(client_session(data).await) });
}

pub(super) async fn client_session(data: &[u8]) -> Vec<Transfer> {
    let (setup, steps) = Setup::read(data);
    let (near, far) = setup.pipe();
    let (acts, wanted) = mpsc::unbounded_channel();
    let (over, is_over) = watch::channel(false);
    let transcript = Transcript::default();
    let (client, driver) = client::Builder::new().with_config(setup.config()).handshake(near).await.expect("a start");
    let driver = tokio::spawn(driver);
    let mut tunnels = Tunnels::default();
    (0..setup.opens).for_each(|n| tunnels.open(&client, n == 1));
    let peer = tokio::spawn(play(far, (setup, steps), acts, is_over, transcript.clone()));
    let moved = connect(&client, tunnels, wanted).await;
    // Finished tunnels count until the peer has ended them too, or the linger timeout is over.
    sleep(LONG).await;
    assert_eq!(client.capacity().open, 0, "no tunnel counts that is gone");
    drop(client);
    if let Err(error) = driver.await.expect("the driver") {
        check_error(&error);
    }
    over.send_replace(true);
    peer.await.expect("the peer");
    let (written, read) = transcript.take();
    let read = read.strip_prefix(PREFACE).unwrap_or_default();
    check(&frames::parse(&written), &frames::parse(read), &moved);
    moved
}

async fn connect(client: &Client, mut tunnels: Tunnels, mut acts: mpsc::UnboundedReceiver<(u8, Act)>) -> Vec<Transfer> {
    while let Some((tunnel, act)) = acts.recv().await {
        match act {
            Act::Open => tunnels.open(client, false),
            Act::OpenEarly => tunnels.open(client, true),
            act => tunnels.act(tunnel, act),
        }
    }
    tunnels.finish().await
}

/// Each tunnel received a prefix of what the peer sent on its stream, and sent its own pattern: within the peer's
/// windows, and nothing after the end of the stream.
fn check(peer: &[Frame], ours: &[Frame], moved: &[Transfer]) {
    let (mut sent, mut granted, mut initial) = (HashMap::<u32, Vec<u8>>::new(), HashMap::<u32, u64>::new(), WINDOW);
    for frame in peer {
        match frame.kind {
            DATA => sent.entry(frame.stream).or_default().extend(frame.data().unwrap_or_default()),
            WINDOW_UPDATE => *granted.entry(frame.stream).or_default() += number(&frame.payload) & !(1 << 31),
            SETTINGS if !frame.has(ACK) => {
                let settings = frame.payload.chunks_exact(6).map(|setting| setting.split_at(2));
                let windows = settings.filter(|(id, _)| *id == INITIAL_WINDOW_SIZE.to_be_bytes());
                initial = windows.map(|(_, value)| number(value)).fold(initial, u64::max);
            }
            _ => {}
        }
    }
    let granted = |stream| granted.get(&stream).copied().unwrap_or_default();
    let (mut left, mut ended) = (HashMap::<u32, Vec<u8>>::new(), HashSet::new());
    for frame in ours {
        if matches!(frame.kind, DATA | HEADERS) {
            assert!(!ended.contains(&frame.stream), "{frame:?} after the end of its stream");
        }
        if frame.kind == DATA {
            left.entry(frame.stream).or_default().extend(frame.data().expect("well-formed DATA"));
        }
        if matches!(frame.kind, DATA | HEADERS) && frame.has(END_STREAM) || frame.kind == RST_STREAM {
            ended.insert(frame.stream);
        }
    }
    let total: usize = left.values().map(Vec::len).sum();
    assert!(total as u64 <= WINDOW + granted(0), "{total} bytes are more than the connection's window");
    for (stream, bytes) in &left {
        assert!(bytes.len() as u64 <= initial + granted(*stream), "more than the window of stream {stream}");
        let tunnel = moved.iter().find(|tunnel| tunnel.stream == *stream);
        let sent = tunnel.map_or(0, |tunnel| tunnel.sent);
        assert!(bytes.len() <= sent, "{} bytes left stream {stream}, which had {sent}", bytes.len());
        assert!(**bytes == *pattern(*stream, 0, bytes.len()), "stream {stream} sent something else");
    }
    for tunnel in moved {
        let sent = sent.get(&tunnel.stream).map_or(&[][..], Vec::as_slice);
        assert!(sent.starts_with(&tunnel.received), "stream {} received something else", tunnel.stream);
    }
}

fn number(bytes: &[u8]) -> u64 {
    bytes.iter().take(4).fold(0, |number, byte| number << 8 | u64::from(*byte))
}
