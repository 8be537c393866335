//! The peer of a vector: sends what it is told to, and keeps what comes.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf, duplex, split};
use tokio::sync::{Mutex as AsyncMutex, mpsc};
use tokio::time::timeout;

use super::hpack::{Decoder, Fields};
use super::script::{self, Side};
use crate::tests::harness::BoxIo;

pub(super) const DATA: u8 = 0;
pub(super) const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;

pub(super) const END_STREAM: u8 = 1;
pub(super) const ACK: u8 = 1;
pub(super) const END_HEADERS: u8 = 4;
pub(super) const PADDED: u8 = 8;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// How long a frame may take to come. Nothing in the vectors takes longer unless they wait for it.
const PATIENCE: Duration = Duration::from_millis(500);

#[derive(Debug)]
pub(super) struct Received {
    pub(super) kind: u8,
    pub(super) flags: u8,
    pub(super) stream: u32,
    pub(super) payload: Vec<u8>,
    /// Of a HEADERS frame, with what CONTINUATION has added.
    pub(super) fields: Fields,
}

impl Received {
    pub(super) fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }
}

pub(super) struct Peer {
    received: mpsc::UnboundedReceiver<Received>,
    queued: VecDeque<Received>,
    writer: Writer,
    diverted: Diverted,
}

#[derive(Clone)]
struct Writer(Arc<AsyncMutex<WriteHalf<BoxIo>>>);

/// Where the DATA of some streams goes instead.
type Diverted = Arc<Mutex<HashMap<u32, mpsc::UnboundedSender<Received>>>>;

impl Writer {
    async fn frame(&self, kind: u8, flags: u8, stream: u32, payload: &[u8]) -> std::io::Result<()> {
        let mut frame = u32::try_from(payload.len()).unwrap().to_be_bytes()[1..].to_vec();
        frame.extend([kind, flags]);
        frame.extend(stream.to_be_bytes());
        frame.extend(payload);
        self.bytes(&frame).await
    }

    async fn bytes(&self, bytes: &[u8]) -> std::io::Result<()> {
        let mut io = self.0.lock().await;
        io.write_all(bytes).await?;
        io.flush().await
    }
}

impl Peer {
    /// Starts HTTP/2 as the other side of the one under test.
    pub(super) async fn start(io: BoxIo, tested: Side, settings: &BTreeMap<String, u32>, answers_pings: bool) -> Self {
        let (reader, writer) = split(io);
        let writer = Writer(Arc::new(AsyncMutex::new(writer)));
        if tested == Side::Server {
            writer.bytes(PREFACE).await.unwrap();
        }
        writer.frame(SETTINGS, 0, 0, &script::settings(settings)).await.unwrap();
        let (sender, received) = mpsc::unbounded_channel();
        let diverted = Diverted::default();
        let reading = Reading {
            reader,
            writer: writer.clone(),
            sender,
            diverted: diverted.clone(),
            answers_pings: AtomicBool::new(answers_pings),
        };
        tokio::spawn(reading.run(tested));
        Self { received, queued: VecDeque::new(), writer, diverted }
    }

    pub(super) async fn send(&self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        self.writer.frame(kind, flags, stream, payload).await.unwrap();
    }

    /// The next frame that `wanted` is true of. Others stay where they are.
    pub(super) async fn next(&mut self, wanted: impl Fn(&Received) -> bool) -> Option<Received> {
        loop {
            if let Some(position) = self.queued.iter().position(&wanted) {
                return self.queued.remove(position);
            }
            let received = timeout(PATIENCE, self.received.recv()).await.ok()??;
            self.queued.push_back(received);
        }
    }

    /// Puts a frame back as the next one.
    pub(super) fn put_back(&mut self, frame: Received) {
        self.queued.push_front(frame);
    }

    /// Everything that has come and was not taken.
    pub(super) async fn pending(&mut self) -> &VecDeque<Received> {
        while let Ok(Some(received)) = timeout(Duration::from_millis(1), self.received.recv()).await {
            self.queued.push_back(received);
        }
        &self.queued
    }

    /// The bytes of a stream, as a byte stream. Its END_STREAM still counts as a frame.
    pub(super) fn divert(&mut self, stream: u32) -> DuplexStream {
        let (near, far) = duplex(1 << 16);
        let (mut from, mut to) = split(far);
        let (sender, mut frames) = mpsc::unbounded_channel();
        while let Ok(received) = self.received.try_recv() {
            self.queued.push_back(received);
        }
        let is_data = |frame: &Received| frame.kind == DATA && frame.stream == stream;
        while let Some(position) = self.queued.iter().position(is_data) {
            let _ = sender.send(self.queued.remove(position).unwrap());
        }
        self.diverted.lock().unwrap().insert(stream, sender);
        tokio::spawn(async move {
            while let Some(frame) = frames.recv().await {
                let _ = to.write_all(&frame.payload).await;
                if frame.has(END_STREAM) {
                    let _ = to.shutdown().await;
                }
            }
        });
        let writer = self.writer.clone();
        tokio::spawn(async move {
            let mut buf = vec![0; 16 << 10];
            while let Ok(n) = from.read(&mut buf).await {
                let flags = if n == 0 { END_STREAM } else { 0 };
                if writer.frame(DATA, flags, stream, &buf[..n]).await.is_err() || n == 0 {
                    break;
                }
            }
        });
        near
    }
}

struct Reading {
    reader: ReadHalf<BoxIo>,
    writer: Writer,
    sender: mpsc::UnboundedSender<Received>,
    diverted: Diverted,
    answers_pings: AtomicBool,
}

impl Reading {
    async fn run(mut self, tested: Side) {
        if tested == Side::Client {
            let mut preface = [0; PREFACE.len()];
            if self.reader.read_exact(&mut preface).await.is_err() {
                return;
            }
            assert_eq!(preface, PREFACE);
        }
        let mut decoder = Decoder::default();
        while let Some(mut frame) = read(&mut self.reader).await {
            match frame.kind {
                HEADERS => {
                    while !frame.has(END_HEADERS) {
                        let Some(more) = read(&mut self.reader).await else { return };
                        assert_eq!((more.kind, more.stream), (CONTINUATION, frame.stream));
                        frame.flags |= more.flags & END_HEADERS;
                        frame.payload.extend(more.payload);
                    }
                    frame.fields = decoder.decode(&frame.payload);
                }
                SETTINGS if !frame.has(ACK) => {
                    let _ = self.writer.frame(SETTINGS, ACK, 0, &[]).await;
                }
                PING if !frame.has(ACK) && self.answers_pings.load(Ordering::Relaxed) => {
                    let _ = self.writer.frame(PING, ACK, 0, &frame.payload).await;
                }
                WINDOW_UPDATE => continue,
                DATA => {
                    let to = self.diverted.lock().unwrap().get(&frame.stream).cloned();
                    if let Some(to) = to {
                        let end = frame.has(END_STREAM).then(|| Received {
                            kind: DATA,
                            flags: END_STREAM,
                            stream: frame.stream,
                            payload: Vec::new(),
                            fields: Vec::new(),
                        });
                        let _ = to.send(frame);
                        let Some(end) = end else { continue };
                        frame = end;
                    }
                }
                _ => {}
            }
            let _ = self.sender.send(frame);
        }
        // A connection ends when both sides have ended it.
        let _ = self.writer.0.lock().await.shutdown().await;
    }
}

async fn read(io: &mut (impl AsyncRead + Unpin)) -> Option<Received> {
    let mut head = [0; 9];
    io.read_exact(&mut head).await.ok()?;
    let [a, b, c, kind, flags, stream @ ..] = head;
    let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
    io.read_exact(&mut payload).await.ok()?;
    Some(Received { kind, flags, stream: u32::from_be_bytes(stream), payload, fields: Vec::new() })
}
