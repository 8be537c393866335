//! The `traceparent` header.

use std::fmt;
use std::str::FromStr;

use http::HeaderValue;

use crate::error::{Error, Result};

/// The place of a tunnel in a distributed trace: the `traceparent` header (W3C Trace Context, section 3.2).
///
/// It lets the logs of both ends of a tunnel be brought together. Written in version 00; a later version is read as far
/// as version 00 goes (section 3.2.4). Of the flags it holds only `sampled`.
///
/// ```
/// use hbone::metadata::Traceparent;
///
/// let parent: Traceparent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".parse()?;
/// assert!(parent.is_sampled());
/// assert_eq!(parent.to_string(), "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01");
/// # Ok::<(), hbone::Error>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Traceparent {
    trace_id: [u8; 16],
    parent_id: [u8; 8],
    sampled: bool,
}

const SAMPLED: u8 = 1;

impl Traceparent {
    /// Builds it from its parts; `None` when an id is all zeros, which both mean "invalid" (sections 3.2.2.3 and
    /// 3.2.2.4).
    pub fn new(trace_id: [u8; 16], parent_id: [u8; 8], sampled: bool) -> Option<Self> {
        (trace_id != [0; 16] && parent_id != [0; 8]).then_some(Self { trace_id, parent_id, sampled })
    }

    /// Starts a new trace, not sampled, with ids made of these random numbers. Zeros count as ones, as no id may be
    /// zero.
    pub fn from_random(trace: u128, parent: u64) -> Self {
        Self { trace_id: trace.max(1).to_be_bytes(), parent_id: parent.max(1).to_be_bytes(), sampled: false }
    }

    /// The id of the whole trace; not all zeros.
    pub fn trace_id(&self) -> [u8; 16] {
        self.trace_id
    }

    /// The id of the caller's span; not all zeros.
    pub fn parent_id(&self) -> [u8; 8] {
        self.parent_id
    }

    /// Whether the caller may have recorded the trace.
    pub fn is_sampled(&self) -> bool {
        self.sampled
    }

    pub(super) fn read(text: &str) -> Option<Self> {
        let mut fields = text.split('-');
        let [version] = hex(fields.next()?)?;
        let trace_id = hex(fields.next()?)?;
        let parent_id = hex(fields.next()?)?;
        let [flags] = hex(fields.next()?)?;
        let version_allows_more = version != 0;
        if version == 0xff || (fields.next().is_some() && !version_allows_more) {
            return None;
        }
        Self::new(trace_id, parent_id, flags & SAMPLED != 0)
    }
}

impl Traceparent {
    pub(super) fn write(&self) -> HeaderValue {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let mut text = [b'-'; 55];
        let hex = |out: &mut [u8], bytes: &[u8]| {
            for (pair, byte) in out.chunks_exact_mut(2).zip(bytes) {
                pair.copy_from_slice(&[DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]]);
            }
        };
        hex(&mut text[..2], &[0]);
        hex(&mut text[3..35], &self.trace_id);
        hex(&mut text[36..52], &self.parent_id);
        hex(&mut text[53..], &[u8::from(self.sampled)]);
        HeaderValue::from_bytes(&text).expect("hexadecimal digits")
    }
}

impl FromStr for Traceparent {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::read(text).ok_or_else(|| Error::invalid("reading a traceparent").with_source("not in the W3C format"))
    }
}

impl fmt::Display for Traceparent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (trace_id, parent_id) = (u128::from_be_bytes(self.trace_id), u64::from_be_bytes(self.parent_id));
        write!(f, "00-{trace_id:032x}-{parent_id:016x}-{:02x}", u8::from(self.sampled))
    }
}

impl fmt::Debug for Traceparent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Exactly `N` bytes in hexadecimal. Upper case is not valid in this header.
fn hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digit = |b: u8| match b {
        b'0'..=b'9' => Some(b - b'0'),
        b'a'..=b'f' => Some(b - b'a' + 10),
        _ => None,
    };
    if text.len() != 2 * N {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    const IDS: &str = "4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7";

    #[rstest]
    #[case("00", "-00", false)]
    #[case("00", "-01", true)]
    #[case("00", "-03", true)]
    #[case("00", "-fe", false)]
    #[case("cc", "-01", true)]
    #[case("cc", "-01-", true)]
    #[case("cc", "-01-what-the-future-brings", true)]
    fn valid_forms_are_read(#[case] version: &str, #[case] rest: &str, #[case] sampled: bool) {
        let parent: Traceparent = format!("{version}-{IDS}{rest}").parse().unwrap();
        assert_eq!(parent.is_sampled(), sampled);
        assert_eq!(parent.to_string(), format!("00-{IDS}-{:02x}", u8::from(sampled)));
    }

    #[rstest]
    #[case("")]
    #[case("00")]
    #[case("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7")]
    #[case("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-")]
    #[case("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-1")]
    #[case("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-")]
    #[case("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more")]
    #[case("cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01more")]
    #[case("ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")]
    #[case("0-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")]
    #[case("00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01")]
    #[case("00-4bf92f3577b34da6a3ce929d0e0e473-00f067aa0ba902b7-01")]
    #[case("00-4bf92f3577b34da6a3ce929d0e0e473x-00f067aa0ba902b7-01")]
    #[case("00-00000000000000000000000000000000-00f067aa0ba902b7-01")]
    #[case("00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01")]
    fn invalid_forms_are_refused(#[case] text: &str) {
        assert!(text.parse::<Traceparent>().is_err());
    }

    #[test]
    fn ids_of_zeros_are_refused() {
        assert_eq!(Traceparent::new([0; 16], [1; 8], false), None);
        assert_eq!(Traceparent::new([1; 16], [0; 8], false), None);
    }

    #[test]
    fn a_new_trace_has_the_ids_of_its_random_numbers() {
        let trace = Traceparent::from_random(7, 8);
        assert_eq!(Some(trace), Traceparent::new(7_u128.to_be_bytes(), 8_u64.to_be_bytes(), false));
        assert_ne!(trace, Traceparent::from_random(7, 9));
        assert_ne!(trace, Traceparent::from_random(6, 8));
        let zeros = Traceparent::from_random(0, 0);
        assert_eq!(zeros.to_string().parse::<Traceparent>().unwrap(), zeros);
    }

    proptest! {
        #[test]
        fn what_is_printed_is_read_back(trace in 1_u128.., parent in 1_u64.., sampled: bool) {
            let parent = Traceparent::new(trace.to_be_bytes(), parent.to_be_bytes(), sampled).unwrap();
            prop_assert_eq!(parent.to_string().parse::<Traceparent>().unwrap(), parent);
        }

        #[test]
        fn any_text_is_read_without_panic(text in "\\PC{0,80}|[0-9a-f-]{50,60}") {
            let _ = text.parse::<Traceparent>();
        }
    }
}
