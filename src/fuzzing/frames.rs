//! HTTP/2 frames by the byte (RFC 9113, section 4.1).

#[cfg(test)]
use tokio::io::{AsyncRead, AsyncReadExt};

/// The start of a connection (RFC 9113, section 3.4).
pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PING: u8 = 6;
pub(crate) const WINDOW_UPDATE: u8 = 8;

pub(crate) const END_STREAM: u8 = 1;
pub(crate) const ACK: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;
pub(crate) const PADDED: u8 = 8;

/// The identifier of SETTINGS_INITIAL_WINDOW_SIZE.
pub(crate) const INITIAL_WINDOW_SIZE: u16 = 4;

/// What precedes the payload.
pub(crate) const HEAD: usize = 9;

/// One frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) kind: u8,
    pub(crate) flags: u8,
    pub(crate) stream: u32,
    pub(crate) payload: Vec<u8>,
}

impl Frame {
    pub(crate) fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// The payload of DATA without its padding; `None` where the padding is longer than the frame.
    pub(crate) fn data(&self) -> Option<&[u8]> {
        if !self.has(PADDED) {
            return Some(&self.payload);
        }
        let (padding, rest) = self.payload.split_first()?;
        rest.get(..rest.len().checked_sub(usize::from(*padding))?)
    }
}

pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = u32::try_from(payload.len()).unwrap_or(u32::MAX).to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// A header block in one frame, each field a literal that is not indexed (RFC 7541, section 6.2.2).
pub(crate) fn headers(flags: u8, stream: u32, fields: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0);
        for text in [name, value] {
            block.push(u8::try_from(text.len()).ok().filter(|len| *len < 127).expect("a short text"));
            block.extend(text.as_bytes());
        }
    }
    frame(HEADERS, flags | END_HEADERS, stream, &block)
}

/// The next frame; `None` at the end.
#[cfg(test)]
pub(crate) async fn read_frame<R: AsyncRead + Unpin>(io: &mut R) -> Option<Frame> {
    let mut head = [0; HEAD];
    io.read_exact(&mut head).await.ok()?;
    let (len, mut frame) = parse_head(&head);
    frame.payload = vec![0; len];
    io.read_exact(&mut frame.payload).await.ok()?;
    Some(frame)
}

/// The whole frames in `bytes`, which begin with one.
pub(crate) fn parse(mut bytes: &[u8]) -> Vec<Frame> {
    let mut frames = Vec::new();
    while let Some((head, rest)) = bytes.split_first_chunk() {
        let (len, mut frame) = parse_head(head);
        let Some((payload, rest)) = rest.split_at_checked(len) else { break };
        frame.payload = payload.to_vec();
        frames.push(frame);
        bytes = rest;
    }
    frames
}

/// The length of the payload, and the frame without it.
fn parse_head(head: &[u8; HEAD]) -> (usize, Frame) {
    let [a, b, c, kind, flags, stream @ ..] = *head;
    let len = u32::from_be_bytes([0, a, b, c]) as usize;
    (len, Frame { kind, flags, stream: u32::from_be_bytes(stream) & !(1 << 31), payload: Vec::new() })
}
