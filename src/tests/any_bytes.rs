//! Whatever bytes a peer sends, neither side panics, and both come to an end.

use std::time::Duration;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

use super::frames::{self, ACK, DATA, END_STREAM, HEADERS, PING, RST_STREAM, SETTINGS, frame, headers};
use super::harness::authority;
use super::peers::pipe;
use crate::client;
use crate::fuzzing::{self, Act, Setup, Step};
use crate::metadata::Metadata;
use crate::refusal::RefusalReason;
use crate::server;

/// What a peer does beside sending bytes. Unless told to, it does not end its side until the other one does.
fn setup(ends: bool, opens: u8) -> Setup {
    Setup { conduct: if ends { 0 } else { 3 }, opens, ..Setup::default() }
}

fn steps(bytes: &[u8]) -> impl Iterator<Item = Step> {
    bytes.chunks(255).map(|piece| Step::Bytes(piece.to_vec()))
}

/// A server that accepts one tunnel, refuses the next one, drops the one after that, and so on.
fn serve(bytes: &[u8], ends: bool) {
    let setup = setup(ends, 0);
    let (setup, bytes) = match bytes.strip_prefix(frames::PREFACE) {
        Some(rest) => (setup, rest),
        None => (setup.without_preface(), bytes),
    };
    fuzzing::http2_server(&setup.write(&steps(bytes).collect::<Vec<_>>()));
}

/// A client that has asked for two tunnels: an answer to what was not asked says nothing about answers.
fn connect(bytes: &[u8], ends: bool) {
    let local = |tunnel, act| Step::Local { tunnel, act };
    let asked = [
        Step::Pause(Duration::from_millis(1)),
        local(0, Act::Write(5)),
        local(1, Act::Write(5)),
        local(0, Act::ShutDown),
    ];
    let steps: Vec<_> = asked.into_iter().chain(steps(bytes)).collect();
    fuzzing::http2_client(&setup(ends, 2).write(&steps));
}

/// Waits for the requests of two tunnels: an answer to what was not asked says nothing about answers.
async fn requested(io: &mut DuplexStream) {
    io.read_exact(&mut [0; frames::PREFACE.len()]).await.unwrap();
    while {
        let frame = frames::read_frame(io).await.unwrap();
        (frame.kind, frame.stream) != (HEADERS, 3)
    } {}
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
        serve(&if preface { [frames::PREFACE, &bytes].concat() } else { bytes }, ends);
    }

    #[test]
    fn a_server_ends_on_changed_requests(changes in vec(change(), 0..6), ends: bool) {
        serve(&changed(valid_request(), changes), ends);
    }

    #[test]
    fn a_server_ends_on_any_frames(frames in any_frames(), ends: bool) {
        let start = [frames::PREFACE, &frame(SETTINGS, 0, 0, &[])].concat();
        serve(&[start, frames].concat(), ends);
    }

    #[test]
    fn a_client_ends_on_any_bytes(bytes in vec(any::<u8>(), 0..300), ends: bool) {
        connect(&bytes, ends);
    }

    #[test]
    fn a_client_ends_on_changed_answers(changes in vec(change(), 0..6), ends: bool) {
        connect(&changed(valid_answer(), changes), ends);
    }

    #[test]
    fn a_client_ends_on_any_frames(frames in any_frames(), ends: bool) {
        connect(&[frame(SETTINGS, 0, 0, &[]), frames].concat(), ends);
    }
}

/// What the changes start from is what it seems to be.
#[tokio::test(start_paused = true)]
async fn the_unchanged_bytes_open_tunnels() {
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
        far.write_all(&valid_answer()).await.unwrap();
        far.read_to_end(&mut Vec::new()).await.unwrap();
    });
    let (client, driver) = client::handshake(near).await.unwrap();
    tokio::spawn(driver);
    let (target, metadata) = (authority(), Metadata::default());
    let (open, refused) = tokio::join!(client.connect(&target, &metadata), client.connect(&target, &metadata));
    let mut got = Vec::new();
    open.unwrap().read_to_end(&mut got).await.unwrap();
    assert_eq!(got, b"dataend");
    assert_eq!(refused.unwrap_err().refusal().unwrap().reason(), &RefusalReason::DnsError);
}
