//! What a peer does on one connection, as bytes: frames, how they are cut, pauses, and what this side does meanwhile.
//!
//! Any bytes are a script, and each script has bytes ([`encode`]), so that recorded sessions are seeds. Lengths stand
//! before what they count: a change in one place leaves the rest as it is.

use std::time::Duration;

use arbitrary::{Arbitrary, Unstructured};

use super::frames::{frame, headers};

/// The most steps: what goes on after them differs from what was before in its length only.
const MOST_STEPS: usize = 200;

/// The most pieces of one step.
const MOST_PIECES: usize = 300;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// A frame. Its header says what its payload is.
    Frame { kind: u8, flags: u8, stream: u8, payload: Vec<u8> },
    /// A frame with a payload of one byte repeated.
    Long { kind: u8, flags: u8, stream: u8, len: u16, fill: u8 },
    /// HEADERS with fields of the table.
    Headers { flags: u8, stream: u8, fields: Vec<u8> },
    /// Bytes, whatever they are.
    Bytes(Vec<u8>),
    /// From here on, so many bytes are written at a time; 0 for all that there are.
    Cut(u8),
    /// Time passes.
    Pause(Duration),
    /// The peer reads on from here, or no more.
    Read(bool),
    /// Something is done at this side with one of its tunnels.
    Local { tunnel: u8, act: Act },
    /// The peer says nothing more.
    End,
}

/// What this side does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Act {
    /// Opens a tunnel, or accepts the next one that comes.
    Open,
    /// Opens a tunnel with bytes before the 200, or refuses the next one that comes.
    OpenEarly,
    Write(u16),
    ShutDown,
    Reset,
    Drop,
    /// Lets bytes lie from here on, or reads on.
    Stall,
}

/// Fields that mean something in a CONNECT, an answer, or nowhere.
const FIELDS: &[(&str, &str)] = &[
    (":method", "CONNECT"),
    (":authority", "a.b.svc.cluster.local:80"),
    (":status", "200"),
    (":status", "103"),
    (":status", "503"),
    (":status", "204"),
    (":method", "GET"),
    (":authority", "10.0.0.1:0"),
    (":authority", "10.0.0.1:80"),
    (":scheme", "https"),
    (":path", "/"),
    (":protocol", "websocket"),
    ("baggage", "k8s.cluster.name=c1,k8s.pod.name=p"),
    ("forwarded", "for=\"10.0.0.5:1\";host=a"),
    ("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"),
    ("x-hbone-backend", "b1"),
    ("x-hbone-backends", "b1, b2"),
    ("proxy-status", "x; error=dns_error; details=\"d\""),
    ("content-length", "3"),
    ("connection", "close"),
    ("te", "trailers"),
    ("Upper", "x"),
];

impl Step {
    /// The bytes that it puts on the connection.
    pub(super) fn bytes(&self) -> Vec<u8> {
        match self {
            Self::Frame { kind, flags, stream, payload } => frame(*kind, *flags, (*stream).into(), payload),
            Self::Long { kind, flags, stream, len, fill } => {
                frame(*kind, *flags, (*stream).into(), &vec![*fill; usize::from(*len)])
            }
            Self::Headers { flags, stream, fields } => {
                let fields: Vec<_> = fields.iter().map(|field| FIELDS[usize::from(*field) % FIELDS.len()]).collect();
                headers(*flags, (*stream).into(), &fields)
            }
            Self::Bytes(bytes) => bytes.clone(),
            _ => Vec::new(),
        }
    }

    /// Its bytes in pieces of a size; in larger ones where these would be too many, which take long and show nothing more.
    pub(super) fn pieces(&self, size: usize) -> Vec<Vec<u8>> {
        let bytes = self.bytes();
        bytes.chunks(size.max(bytes.len().div_ceil(MOST_PIECES))).map(<[u8]>::to_vec).collect()
    }

    /// A frame that was recorded, in several if it is long.
    #[cfg(test)]
    pub(super) fn recorded(frame: &super::frames::Frame) -> Vec<Self> {
        let (kind, flags) = (frame.kind, frame.flags);
        let stream = u8::try_from(frame.stream).expect("one of the first streams");
        if frame.payload.len() <= usize::from(u8::MAX) {
            return vec![Self::Frame { kind, flags, stream, payload: frame.payload.clone() }];
        }
        let pieces = frame.payload.chunks(16 << 10);
        pieces.map(|piece| Self::Long { kind, flags, stream, len: piece.len() as u16, fill: piece[0] }).collect()
    }
}

impl<'a> Arbitrary<'a> for Act {
    fn arbitrary(u: &mut Unstructured<'a>) -> arbitrary::Result<Self> {
        Ok(match u8::arbitrary(u)? % 7 {
            0 => Self::Open,
            1 => Self::OpenEarly,
            2 => Self::Write(u.arbitrary()?),
            3 => Self::ShutDown,
            4 => Self::Reset,
            5 => Self::Drop,
            _ => Self::Stall,
        })
    }
}

impl<'a> Arbitrary<'a> for Step {
    fn arbitrary(u: &mut Unstructured<'a>) -> arbitrary::Result<Self> {
        Ok(match u8::arbitrary(u)? % 9 {
            0 => Self::Frame {
                kind: u.arbitrary()?,
                flags: u.arbitrary()?,
                stream: u.arbitrary()?,
                payload: counted(u)?,
            },
            1 => Self::Long {
                kind: u.arbitrary()?,
                flags: u.arbitrary()?,
                stream: u.arbitrary()?,
                len: u.arbitrary()?,
                fill: u.arbitrary()?,
            },
            2 => Self::Headers { flags: u.arbitrary()?, stream: u.arbitrary()?, fields: counted(u)? },
            3 => Self::Bytes(counted(u)?),
            4 => Self::Cut(u.arbitrary()?),
            5 => Self::Pause(Duration::from_millis(u16::arbitrary(u)?.into())),
            6 => Self::Read(u.arbitrary()?),
            7 => Self::Local { tunnel: u.arbitrary()?, act: u.arbitrary()? },
            _ => Self::End,
        })
    }
}

/// Bytes with their count in front; fewer where the input ends.
fn counted(u: &mut Unstructured<'_>) -> arbitrary::Result<Vec<u8>> {
    let len = usize::from(u8::arbitrary(u)?).min(u.len());
    u.bytes(len).map(<[u8]>::to_vec)
}

/// The script that bytes stand for. Each byte string is one.
pub(super) fn decode(data: &[u8]) -> Vec<Step> {
    let mut u = Unstructured::new(data);
    let mut steps = Vec::new();
    while !u.is_empty()
        && steps.len() < MOST_STEPS
        && let Ok(step) = u.arbitrary()
    {
        steps.push(step);
    }
    steps
}

/// The bytes that a script is decoded from.
#[cfg(test)]
pub(super) fn encode(steps: &[Step]) -> Vec<u8> {
    fn put(bytes: &mut Vec<u8>, payload: &[u8]) {
        bytes.push(u8::try_from(payload.len()).expect("a short payload"));
        bytes.extend(payload);
    }
    let mut bytes = Vec::new();
    for step in steps {
        match step {
            Step::Frame { kind, flags, stream, payload } => {
                bytes.extend([0, *kind, *flags, *stream]);
                put(&mut bytes, payload);
            }
            Step::Long { kind, flags, stream, len, fill } => {
                bytes.extend([1, *kind, *flags, *stream]);
                bytes.extend(len.to_le_bytes());
                bytes.push(*fill);
            }
            Step::Headers { flags, stream, fields } => {
                bytes.extend([2, *flags, *stream]);
                put(&mut bytes, fields);
            }
            Step::Bytes(payload) => {
                bytes.push(3);
                put(&mut bytes, payload);
            }
            Step::Cut(len) => bytes.extend([4, *len]),
            Step::Pause(time) => {
                bytes.push(5);
                bytes.extend(u16::try_from(time.as_millis()).expect("a short pause").to_le_bytes());
            }
            Step::Read(on) => bytes.extend([6, u8::from(*on)]),
            Step::Local { tunnel, act } => {
                bytes.extend([7, *tunnel]);
                match act {
                    Act::Open => bytes.push(0),
                    Act::OpenEarly => bytes.push(1),
                    Act::Write(len) => {
                        bytes.push(2);
                        bytes.extend(len.to_le_bytes());
                    }
                    Act::ShutDown => bytes.push(3),
                    Act::Reset => bytes.push(4),
                    Act::Drop => bytes.push(5),
                    Act::Stall => bytes.push(6),
                }
            }
            Step::End => bytes.push(8),
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_script_has_bytes_and_they_decode_to_it(data: Vec<u8>) {
            let steps = decode(&data);
            prop_assert_eq!(decode(&encode(&steps)), steps);
        }
    }
}
