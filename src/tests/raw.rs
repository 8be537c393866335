//! A peer that speaks HTTP/2 byte by byte, and says what a proper one would not.

use std::io;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::harness::BoxIo;

pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PING: u8 = 6;
pub(crate) const GOAWAY: u8 = 7;
pub(crate) const WINDOW_UPDATE: u8 = 8;

pub(crate) const END_STREAM: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;
const ACK: u8 = 1;

const MAX_CONCURRENT_STREAMS: u8 = 3;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

#[derive(Debug)]
pub(crate) struct Frame {
    pub(crate) kind: u8,
    pub(crate) flags: u8,
    pub(crate) stream: u32,
    pub(crate) payload: Vec<u8>,
}

pub(crate) struct Raw {
    io: BoxIo,
    /// Whether PINGs are answered.
    pub(crate) answers: bool,
}

impl Raw {
    /// The server's side, before it has said anything.
    pub(crate) async fn server(mut io: BoxIo) -> Self {
        let mut preface = [0; PREFACE.len()];
        io.read_exact(&mut preface).await.unwrap();
        assert_eq!(preface, PREFACE);
        Self { io, answers: true }
    }

    /// The server's side, which has taken the first tunnel, and that tunnel's stream.
    pub(crate) async fn taking(io: BoxIo) -> (Self, u32) {
        let mut raw = Self::server(io).await;
        raw.settings(None).await;
        let stream = raw.expect(HEADERS).await.stream;
        raw.accept(stream).await;
        (raw, stream)
    }

    /// The client's side, which has sent its preface.
    pub(crate) async fn client(mut io: BoxIo) -> Self {
        io.write_all(PREFACE).await.unwrap();
        let mut raw = Self { io, answers: true };
        raw.settings(None).await;
        raw
    }

    pub(crate) async fn send(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        self.try_send(kind, flags, stream, payload).await.unwrap();
    }

    async fn try_send(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) -> io::Result<()> {
        let len = u32::try_from(payload.len()).unwrap().to_be_bytes();
        let mut frame = vec![len[1], len[2], len[3], kind, flags];
        frame.extend(stream.to_be_bytes());
        frame.extend(payload);
        self.io.write_all(&frame).await?;
        self.io.flush().await
    }

    pub(crate) async fn settings(&mut self, max_streams: Option<u32>) {
        let mut payload = Vec::new();
        if let Some(max) = max_streams {
            payload.extend([0, MAX_CONCURRENT_STREAMS]);
            payload.extend(max.to_be_bytes());
        }
        self.send(SETTINGS, 0, 0, &payload).await;
    }

    /// Answers a CONNECT with 200.
    pub(crate) async fn accept(&mut self, stream: u32) {
        self.send(HEADERS, END_HEADERS, stream, &[0x88]).await;
    }

    /// Asks for a tunnel.
    pub(crate) async fn connect(&mut self, stream: u32, authority: &str) {
        self.connect_with(stream, authority, &[]).await;
    }

    /// Likewise, with more fields.
    pub(crate) async fn connect_with(&mut self, stream: u32, authority: &str, fields: &[u8]) {
        let mut block = vec![0x42, 7];
        block.extend(b"CONNECT");
        block.extend([0x41, u8::try_from(authority.len()).unwrap()]);
        block.extend(authority.as_bytes());
        block.extend(fields);
        self.send(HEADERS, END_HEADERS, stream, &block).await;
    }

    pub(crate) async fn go_away(&mut self, last_stream: u32, code: u32) {
        let payload = [last_stream.to_be_bytes(), code.to_be_bytes()].concat();
        self.send(GOAWAY, 0, 0, &payload).await;
    }

    /// Ends this side's direction.
    pub(crate) async fn finish(&mut self) {
        self.io.shutdown().await.unwrap();
    }

    /// The next frame; `None` at the end. SETTINGS and PINGs are answered on the way.
    pub(crate) async fn next(&mut self) -> Option<Frame> {
        let mut head = [0; 9];
        self.io.read_exact(&mut head).await.ok()?;
        let len = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        let mut payload = vec![0; len as usize];
        self.io.read_exact(&mut payload).await.ok()?;
        let frame = Frame { kind: head[3], flags: head[4], stream, payload };
        // The other end may be gone, and what it said last is still to be read.
        let _ = match frame.kind {
            SETTINGS if frame.flags & ACK == 0 => self.try_send(SETTINGS, ACK, 0, &[]).await,
            PING if frame.flags & ACK == 0 && self.answers => self.try_send(PING, ACK, 0, &frame.payload).await,
            _ => Ok(()),
        };
        Some(frame)
    }

    /// The next frame of a kind.
    pub(crate) async fn expect(&mut self, kind: u8) -> Frame {
        loop {
            let frame = self.next().await.unwrap();
            if frame.kind == kind {
                return frame;
            }
        }
    }
}
