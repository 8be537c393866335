//! Records seeds: sessions between this crate's own client and server. The frames of one end become the script, those
//! of the other end become acts.

use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

use rstest::rstest;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::sync::mpsc;
use tokio::time::sleep;

use super::frames::{self, ACK, DATA, END_HEADERS, END_STREAM, Frame, HEADERS, PING, PREFACE, RST_STREAM, SETTINGS};
use super::http2::{client_session, server_session};
use super::peer::{Setup, run};
use super::script::{Act, Step, encode};
use crate::client::{self, Client};
use crate::metadata::{Baggage, Forwarded, Metadata};
use crate::refusal::{Refusal, RefusalReason};
use crate::server;
use crate::tunnel::TunnelStream;

const GOAWAY: u8 = 7;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum From {
    Client,
    Server,
}

/// What happens in a recorded session.
#[derive(Clone, Copy, Debug)]
enum Scene {
    Echo,
    Three,
    Refused,
    Reset,
    Early,
    Bulk,
    Idle,
}

const SCENES: [(&str, Scene); 7] = [
    ("echo", Scene::Echo),
    ("three", Scene::Three),
    ("refused", Scene::Refused),
    ("reset", Scene::Reset),
    ("early", Scene::Early),
    ("bulk", Scene::Bulk),
    ("idle", Scene::Idle),
];

/// Forwards bytes between the ends and records them.
async fn tap(from: From, io: DuplexStream, to: DuplexStream, notes: mpsc::UnboundedSender<(From, Vec<u8>)>) {
    let ((mut near_read, mut near_write), (mut far_read, mut far_write)) = (tokio::io::split(io), tokio::io::split(to));
    let other = if from == From::Client { From::Server } else { From::Client };
    let there = copy(&mut near_read, &mut far_write, from, &notes);
    let back = copy(&mut far_read, &mut near_write, other, &notes);
    tokio::join!(there, back);
}

async fn copy(
    read: &mut (impl AsyncReadExt + Unpin),
    write: &mut (impl AsyncWriteExt + Unpin),
    from: From,
    notes: &mpsc::UnboundedSender<(From, Vec<u8>)>,
) {
    let mut buf = vec![0; 32 << 10];
    while let Ok(n @ 1..) = read.read(&mut buf).await {
        notes.send((from, buf[..n].to_vec())).unwrap();
        if write.write_all(&buf[..n]).await.is_err() {
            return;
        }
    }
    let _ = write.shutdown().await;
}

async fn echo(mut tunnel: TunnelStream) {
    let (mut read, mut write) = tokio::io::split(&mut tunnel);
    let _ = tokio::io::copy(&mut read, &mut write).await;
    let _ = write.shutdown().await;
}

async fn serve(io: DuplexStream) {
    let mut server = server::handshake(io).await.unwrap();
    while let Some(Ok(incoming)) = server.accept().await {
        if incoming.authority().to_string().starts_with("refused") {
            incoming.reject(&Refusal::new(RefusalReason::DnsError).with_details("no such name"));
        } else {
            let metadata = Metadata::default().with_baggage(Baggage::default().with_cluster("c1"));
            // The client may have cancelled it.
            if let Ok(tunnel) = incoming.accept(&metadata) {
                tokio::spawn(echo(tunnel));
            }
        }
    }
}

async fn ask(client: &Client, name: &str) -> crate::Result<TunnelStream> {
    let metadata = Metadata::default()
        .with_baggage(Baggage::default().with_cluster("c1").with_namespace("shop"))
        .with_forwarded(Forwarded::default().with_for(([10, 0, 0, 5], 41234).into()));
    client.connect_early(&format!("{name}.svc.cluster.local:80").parse().unwrap(), &metadata).await
}

async fn answered(mut tunnel: TunnelStream, bytes: &[u8]) {
    tunnel.opened().await.unwrap();
    let (mut read, mut write) = tokio::io::split(tunnel);
    let mut got = Vec::new();
    let sending = async {
        write.write_all(bytes).await.unwrap();
        write.shutdown().await.unwrap();
    };
    let ((), read) = tokio::join!(sending, read.read_to_end(&mut got));
    read.unwrap();
    assert_eq!(got, bytes);
}

impl Scene {
    async fn play(self, client: &Client) {
        match self {
            Self::Echo => answered(ask(client, "a").await.unwrap(), b"hello").await,
            Self::Three => {
                let [a, b, c] = [ask(client, "a").await, ask(client, "b").await, ask(client, "c").await];
                let (a, b, c) = (a.unwrap(), b.unwrap(), c.unwrap());
                tokio::join!(answered(a, b"one"), answered(b, &[2; 300]), answered(c, b""));
            }
            Self::Refused => {
                ask(client, "refused").await.unwrap().opened().await.unwrap_err();
                answered(ask(client, "a").await.unwrap(), b"hello").await;
            }
            Self::Reset => {
                let mut tunnel = ask(client, "a").await.unwrap();
                tunnel.opened().await.unwrap();
                tunnel.write_all(b"hello").await.unwrap();
                drop(tunnel);
                drop(ask(client, "b").await.unwrap());
                answered(ask(client, "c").await.unwrap(), b"hello").await;
            }
            Self::Early => {
                let mut tunnel = ask(client, "a").await.unwrap();
                tunnel.write_all(b"before the 200").await.unwrap();
                tunnel.opened().await.unwrap();
                tunnel.read_exact(&mut [0; 14]).await.unwrap();
                tunnel.shutdown().await.unwrap();
                tunnel.read_to_end(&mut Vec::new()).await.unwrap();
            }
            Self::Bulk => answered(ask(client, "a").await.unwrap(), &[7; 200_000]).await,
            Self::Idle => {
                let mut tunnel = ask(client, "a").await.unwrap();
                tunnel.opened().await.unwrap();
                sleep(Duration::from_secs(200)).await;
                tunnel.write_all(b"hello").await.unwrap();
                tunnel.read_exact(&mut [0; 5]).await.unwrap();
            }
        }
    }
}

/// A request for a tunnel.
fn connect(stream: u8) -> Step {
    Step::Headers { flags: END_HEADERS, stream, fields: vec![0, 1] }
}

/// The response that opens it.
fn open(stream: u8) -> Step {
    let payload = vec![0x88];
    Step::Frame { kind: HEADERS, flags: END_HEADERS, stream, payload }
}

/// The frames of a session, each with its sender.
async fn record(scene: Scene) -> Vec<(From, Frame)> {
    let ((near, near_tap), (far_tap, far)) = (duplex(64 << 10), duplex(64 << 10));
    let (notes, mut noted) = mpsc::unbounded_channel();
    let tapping = tokio::spawn(tap(From::Client, near_tap, far_tap, notes));
    tokio::spawn(serve(far));
    let (client, driver) = client::handshake(near).await.unwrap();
    let driver = tokio::spawn(driver);
    scene.play(&client).await;
    drop(client);
    driver.await.unwrap().unwrap();
    tapping.await.unwrap();
    let mut unparsed: HashMap<bool, Vec<u8>> = HashMap::new();
    let (mut session, mut started) = (Vec::new(), false);
    while let Some((from, bytes)) = noted.recv().await {
        let rest = unparsed.entry(from == From::Client).or_default();
        rest.extend(bytes);
        if from == From::Client && !started && rest.len() >= PREFACE.len() {
            rest.drain(..PREFACE.len());
            started = true;
        }
        for frame in frames::parse(rest) {
            rest.drain(..frames::HEAD + frame.payload.len());
            session.push((from, frame));
        }
    }
    session
}

/// Turns a session into a script for `peer`. A responsive peer acknowledges by itself, so its script must not.
fn script(session: &[(From, Frame)], peer: From, answers: bool) -> Vec<Step> {
    let (mut steps, mut last, mut streams) = (Vec::new(), peer, Vec::new());
    for (from, frame) in session {
        if *from != last {
            last = *from;
            steps.push(Step::Pause(Duration::from_millis(1)));
        }
        if *from == peer {
            if !(answers && matches!(frame.kind, SETTINGS | PING) && frame.has(ACK)) {
                steps.extend(Step::recorded(frame));
            }
            continue;
        }
        let known = streams.iter().position(|stream| *stream == frame.stream);
        let tunnel = u8::try_from(known.unwrap_or(streams.len())).unwrap();
        let mut act = |act| steps.push(Step::Local { tunnel, act });
        match frame.kind {
            HEADERS if frame.has(END_STREAM) => act(Act::OpenEarly),
            HEADERS => {
                streams.push(frame.stream);
                act(Act::Open);
            }
            DATA => frame.payload.chunks(usize::from(u16::MAX)).for_each(|data| act(Act::Write(data.len() as u16))),
            RST_STREAM => act(Act::Reset),
            _ => {}
        }
        if frame.kind == DATA && frame.has(END_STREAM) {
            act(Act::ShutDown);
        }
    }
    steps
}

#[rstest]
#[tokio::test(start_paused = true)]
async fn a_recorded_session_plays_again(
    #[values(Scene::Echo, Scene::Three, Scene::Refused, Scene::Early, Scene::Bulk)] scene: Scene,
) {
    let session = record(scene).await;
    let setup = Setup { conduct: 4, ..Setup::default() };
    let moved = server_session(&setup.write(&script(&session, From::Client, true))).await;
    assert!(moved.iter().any(|tunnel| tunnel.sent > 0 && !tunnel.received.is_empty()), "server: {moved:?}");
    let moved = client_session(&setup.write(&script(&session, From::Server, true))).await;
    assert!(moved.iter().any(|tunnel| tunnel.sent > 0 && !tunnel.received.is_empty()), "client: {moved:?}");
}

/// Run with `cargo test --lib fuzzing::seeds -- --ignored` when the sessions above change.
#[test]
#[ignore = "writes to fuzz/corpus"]
fn sessions_are_recorded() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
    let put = |target: &str, name: &str, bytes: Vec<u8>| {
        std::fs::create_dir_all(corpus.join(target)).unwrap();
        std::fs::write(corpus.join(target).join(name), bytes).unwrap();
    };
    run(async move {
        for (name, scene) in SCENES {
            let session = record(scene).await;
            let name = format!("recorded-{name}");
            let server = script(&session, From::Server, false);
            put("goaway", &name, encode(&server));
            for (n, conduct) in [4, 2, 7].into_iter().enumerate() {
                let kind = n as u8;
                let setup = Setup { conduct, config: kind, pipe: kind, opens: 0 };
                let [client, server] =
                    [From::Client, From::Server].map(|peer| setup.write(&script(&session, peer, conduct & 4 != 0)));
                put("nested_path", &format!("{name}-{n}"), [&[1, 1, 0], &*server].concat());
                put("nested_path", &format!("{name}-client-{n}"), [&[1, 1, 1], &*client].concat());
                put("http2_server", &format!("{name}-{n}"), client);
                put("http2_client", &format!("{name}-{n}"), server);
            }
        }
    });
    let go_away = |last: u8, code: u8| Step::Frame {
        kind: GOAWAY,
        flags: 0,
        stream: 0,
        payload: vec![0, 0, 0, last, 0, 0, 0, code, b'w', b'h', b'y'],
    };
    let settings = || Step::Frame { kind: SETTINGS, flags: 0, stream: 0, payload: Vec::new() };
    let go = [settings(), Step::Cut(5), go_away(9, 0), go_away(3, 11), go_away(1, 2)];
    put("goaway", "made-twice", encode(&go));
    let refused = [settings(), go_away(1, 0), open(1), Step::Pause(Duration::from_secs(5)), go_away(1, 11)];
    put("goaway", "made-open", encode(&refused));
    let setup = Setup { opens: 3, conduct: 4, ..Setup::default() };
    put("http2_client", "made-goaway", setup.write(&refused));
    let early =
        [open(1), Step::Frame { kind: HEADERS, flags: END_HEADERS | END_STREAM, stream: 3, payload: vec![0x8d] }];
    put("http2_client", "made-open", setup.write(&early));
    put("http2_server", "made-connect", setup.write(&[settings(), connect(1), connect(3), go_away(1, 0)]));
    for whose in 0..4 {
        for depth in 0..3 {
            let bytes =
                [&[depth, depth, whose], &*setup.write(&[settings(), open(1), connect(1), go_away(1, 0)])].concat();
            put("nested_path", &format!("made-{depth}-{whose}"), bytes);
        }
    }
}
