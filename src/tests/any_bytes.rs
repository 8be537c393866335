//! Whatever bytes a peer sends, neither side panics, and both come to an end.

use std::future::Future;
use std::time::Duration;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::frames::{self, ACK, DATA, END_STREAM, HEADERS, PING, RST_STREAM, SETTINGS, frame, headers};
use super::harness::authority;
use super::peers::pipe;
use crate::client::{self, Client};
use crate::metadata::Metadata;
use crate::refusal::{Refusal, RefusalReason};
use crate::server;

/// More than all timeouts together; the clock is paused, so nobody waits for it.
const FOREVER: Duration = Duration::from_secs(3600);

fn run<F: Future<Output = ()>>(future: F) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(async { timeout(FOREVER, future).await.expect("an end") });
}

/// Sends `bytes` and reads what comes. When told to, it does not end its side until the other one does.
async fn peer(mut io: DuplexStream, bytes: Vec<u8>, ends: bool) {
    let (mut read, mut write) = tokio::io::split(&mut io);
    let writing = async {
        let _ = write.write_all(&bytes).await;
        if ends {
            let _ = write.shutdown().await;
        }
    };
    tokio::join!(writing, async { read.read_to_end(&mut Vec::new()).await.unwrap() });
}

async fn serve(bytes: Vec<u8>, ends: bool) {
    let (near, far) = pipe();
    let peer = tokio::spawn(peer(near, bytes, ends));
    if let Ok(mut server) = server::handshake(far).await {
        let (mut requests, mut tunnels) = (0, JoinSet::new());
        while let Some(Ok(incoming)) = server.accept().await {
            requests += 1;
            match requests % 3 {
                0 => drop(incoming),
                1 => incoming.reject(&Refusal::new(RefusalReason::Denied)),
                _ => {
                    if let Ok(mut tunnel) = incoming.accept(&Metadata::default()) {
                        tunnels.spawn(async move {
                            let _ = tunnel.write_all(b"hello").await;
                            let _ = tunnel.read_to_end(&mut Vec::new()).await;
                        });
                    }
                }
            }
        }
        assert!(server.accept().await.is_none(), "it stays ended");
        drop(server);
        while let Some(tunnel) = tunnels.join_next().await {
            tunnel.unwrap();
        }
    }
    peer.await.unwrap();
}

async fn connect(bytes: Vec<u8>, ends: bool) {
    let (near, mut far) = pipe();
    let peer = tokio::spawn(async move {
        requested(&mut far).await;
        peer(far, bytes, ends).await;
    });
    let (client, driver) = client::handshake(near).await.unwrap();
    let driver = tokio::spawn(driver);
    tokio::join!(use_tunnel(&client, true), use_tunnel(&client, false));
    drop(client);
    let _ = driver.await.unwrap();
    peer.await.unwrap();
}

/// Waits for the requests of two tunnels: an answer to what was not asked says nothing about answers.
async fn requested(io: &mut DuplexStream) {
    io.read_exact(&mut [0; frames::PREFACE.len()]).await.unwrap();
    while {
        let frame = frames::read_frame(io).await.unwrap();
        (frame.kind, frame.stream) != (HEADERS, 3)
    } {}
}

async fn use_tunnel(client: &Client, shut_down: bool) {
    if let Ok(mut tunnel) = client.connect(&authority(), &Metadata::default()).await {
        let _ = tunnel.write_all(b"hello").await;
        if shut_down {
            let _ = tunnel.shutdown().await;
        }
        let _ = timeout(Duration::from_secs(60), tunnel.read_to_end(&mut Vec::new())).await;
    }
}

fn valid_request() -> Vec<u8> {
    let connect = [(":method", "CONNECT"), (":authority", "a:80"), ("baggage", "k8s.cluster.name=c1")];
    [
        frames::PREFACE.to_vec(),
        frame(SETTINGS, 0, 0, &[0, 4, 0, 1, 0, 0]),
        frame(SETTINGS, ACK, 0, &[]),
        headers(0, 1, &connect),
        frame(DATA, 0, 1, b"data"),
        headers(0, 3, &connect),
        headers(END_STREAM, 5, &connect),
        frame(PING, 0, 0, &[7; 8]),
        frame(frames::WINDOW_UPDATE, 0, 1, &[0, 0, 1, 0]),
        frame(RST_STREAM, 0, 3, &[0, 0, 0, 8]),
        frame(DATA, END_STREAM, 1, b"end"),
    ]
    .concat()
}

fn valid_answer() -> Vec<u8> {
    [
        frame(SETTINGS, 0, 0, &[0, 3, 0, 0, 0, 100]),
        frame(SETTINGS, ACK, 0, &[]),
        headers(0, 1, &[(":status", "200"), ("baggage", "k8s.cluster.name=c1")]),
        frame(DATA, 0, 1, b"data"),
        frame(PING, 0, 0, &[7; 8]),
        frame(DATA, END_STREAM, 1, b"end"),
        headers(END_STREAM, 3, &[(":status", "503"), ("proxy-status", "x; error=dns_error")]),
    ]
    .concat()
}

#[derive(Clone, Debug)]
enum Change {
    Flip(u8),
    Insert(Vec<u8>),
    Cut(usize),
    Repeat(usize),
    Truncate,
}

fn change() -> impl Strategy<Value = (Index, Change)> {
    let change = prop_oneof![
        4 => (1..=255u8).prop_map(Change::Flip),
        1 => vec(any::<u8>(), 1..20).prop_map(Change::Insert),
        1 => (1..40usize).prop_map(Change::Cut),
        1 => (1..40usize).prop_map(Change::Repeat),
        1 => Just(Change::Truncate),
    ];
    (any::<Index>(), change)
}

fn changed(mut bytes: Vec<u8>, changes: Vec<(Index, Change)>) -> Vec<u8> {
    for (place, change) in changes {
        if bytes.is_empty() {
            break;
        }
        let at = place.index(bytes.len());
        let upto = |len: usize| at..(at + len).min(bytes.len());
        match change {
            Change::Flip(mask) => bytes[at] ^= mask,
            Change::Insert(more) => drop(bytes.splice(at..at, more)),
            Change::Cut(len) => drop(bytes.drain(upto(len))),
            Change::Repeat(len) => bytes.splice(at..at, bytes[upto(len)].to_vec()).for_each(drop),
            Change::Truncate => bytes.truncate(at),
        }
    }
    bytes
}

/// Frames that are whole, and hardly ever in order.
fn any_frames() -> impl Strategy<Value = Vec<u8>> {
    let fields = prop_oneof![
        Just(vec![(":method", "CONNECT"), (":authority", "a:80")]),
        Just(vec![(":status", "200")]),
        Just(vec![(":status", "103")]),
        Just(vec![]),
    ];
    let any_frame = prop_oneof![
        3 => (0..11u8, any::<u8>(), 0..8u32, vec(any::<u8>(), 0..24))
            .prop_map(|(kind, flags, stream, payload)| frame(kind, flags, stream, &payload)),
        3 => (fields, 0..2u8, 0..8u32).prop_map(|(fields, flags, stream)| headers(flags, stream, &fields)),
        1 => (0..2u8, 0..8u32).prop_map(|(flags, stream)| frame(DATA, flags, stream, b"data")),
        1 => (0..8u32, 0..14u8).prop_map(|(stream, code)| frame(RST_STREAM, 0, stream, &[0, 0, 0, code])),
        1 => (0..7u8, any::<u32>()).prop_map(|(id, value)| {
            frame(SETTINGS, 0, 0, &[&[0, id], &value.to_be_bytes()[..]].concat())
        }),
    ];
    vec(any_frame, 0..20).prop_map(|frames| frames.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn a_server_ends_on_any_bytes(bytes in vec(any::<u8>(), 0..300), preface: bool, ends: bool) {
        run(serve(if preface { [frames::PREFACE, &bytes].concat() } else { bytes }, ends));
    }

    #[test]
    fn a_server_ends_on_changed_requests(changes in vec(change(), 0..6), ends: bool) {
        run(serve(changed(valid_request(), changes), ends));
    }

    #[test]
    fn a_server_ends_on_any_frames(frames in any_frames(), ends: bool) {
        let start = [frames::PREFACE, &frame(SETTINGS, 0, 0, &[])].concat();
        run(serve([start, frames].concat(), ends));
    }

    #[test]
    fn a_client_ends_on_any_bytes(bytes in vec(any::<u8>(), 0..300), ends: bool) {
        run(connect(bytes, ends));
    }

    #[test]
    fn a_client_ends_on_changed_answers(changes in vec(change(), 0..6), ends: bool) {
        run(connect(changed(valid_answer(), changes), ends));
    }

    #[test]
    fn a_client_ends_on_any_frames(frames in any_frames(), ends: bool) {
        run(connect([frame(SETTINGS, 0, 0, &[]), frames].concat(), ends));
    }
}

/// What the changes start from is what it seems to be.
#[test]
fn the_unchanged_bytes_open_tunnels() {
    run(async {
        let (mut near, far) = pipe();
        near.write_all(&valid_request()).await.unwrap();
        let mut server = server::handshake(far).await.unwrap();
        let mut first = server.accept().await.unwrap().unwrap().accept(&Metadata::default()).unwrap();
        assert_eq!(first.authority().to_string(), "a:80");
        let mut got = Vec::new();
        // Frames move only while the server is asked for more.
        let reading = first.read_to_end(&mut got);
        tokio::select! {
            read = reading => assert_eq!(read.unwrap(), 7),
            () = async { while server.accept().await.is_some() {} } => panic!("ended"),
        }
        assert_eq!(got, b"dataend");

        let (near, mut far) = pipe();
        tokio::spawn(async move {
            requested(&mut far).await;
            peer(far, valid_answer(), false).await;
        });
        let (client, driver) = client::handshake(near).await.unwrap();
        tokio::spawn(driver);
        let (target, metadata) = (authority(), Metadata::default());
        let (open, refused) = tokio::join!(client.connect(&target, &metadata), client.connect(&target, &metadata));
        let mut got = Vec::new();
        open.unwrap().read_to_end(&mut got).await.unwrap();
        assert_eq!(got, b"dataend");
        assert_eq!(refused.unwrap_err().refusal().unwrap().reason(), &RefusalReason::DnsError);
    });
}
