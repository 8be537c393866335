//! A session as bytes: the peer's frames, how they are cut into writes, pauses, and what our end does meanwhile.
//!
//! Any bytes decode to a script, and any script can be encoded, so that recorded sessions are seeds. Each length
//! precedes what it counts, so that a mutation leaves the rest of the script intact.

use std::time::Duration;

use arbitrary::{Arbitrary, Unstructured};

use super::frames::{frame, headers};

/// The most steps of a script. Longer ones are slow and show nothing new.
const MOST_STEPS: usize = 200;

/// The most pieces of one step.
const MOST_PIECES: usize = 300;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// A frame, with the right length in its header.
    Frame { kind: u8, flags: u8, stream: u8, payload: Vec<u8> },
    /// A frame with a payload of one byte repeated.
    Long { kind: u8, flags: u8, stream: u8, len: u16, fill: u8 },
    /// HEADERS with fields of the table.
    Headers { flags: u8, stream: u8, fields: Vec<u8> },
    /// Raw bytes.
    Bytes(Vec<u8>),
    /// From here on, at most this many bytes per write; 0 for no limit.
    Cut(u8),
    /// Lets time pass.
    Pause(Duration),
    /// From here on the peer reads, or stops reading.
    Read(bool),
    /// Our end acts on one of its tunnels.
    Local { tunnel: u8, act: Act },
    /// Ends the script.
    End,
}

/// What our end does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Act {
    /// A client opens a tunnel; a server accepts the next one.
    Open,
    /// A client opens a tunnel and writes before the 200; a server refuses the next one.
    OpenEarly,
    Write(u16),
    ShutDown,
    Reset,
    Drop,
    /// Stops reading, or resumes.
    Stall,
}

/// Header fields that are valid in a CONNECT or its response, and some that are not.
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
    /// What the peer writes for this step.
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

    /// The writes of this step, of `size` bytes each unless these would be too many.
    pub(super) fn pieces(&self, size: usize) -> Vec<Vec<u8>> {
        let bytes = self.bytes();
        bytes.chunks(size.max(bytes.len().div_ceil(MOST_PIECES))).map(<[u8]>::to_vec).collect()
    }

    /// A recorded frame, split if it is long.
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

/// Bytes after their count, cut short where the input ends.
fn counted(u: &mut Unstructured<'_>) -> arbitrary::Result<Vec<u8>> {
    let len = usize::from(u8::arbitrary(u)?).min(u.len());
    u.bytes(len).map(<[u8]>::to_vec)
}

/// Decodes a script. Any input is valid.
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

/// The inverse of [`decode`].
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
