//! The `x-hbone-backend` and `x-hbone-backends` headers.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use http::HeaderValue;

/// The longest token.
const MAX_LENGTH: usize = 64;

/// How many tokens one header carries, in both directions: with ours, of 16 bytes, 2.3 KiB, and at most 8.3 KiB. A
/// peer's header list may have [16 KiB](crate::Config::with_max_header_list_size) by default.
pub(super) const MAX_TOKENS: usize = 128;

/// What a gateway calls the backend that it forwarded a tunnel to. Cheap to clone.
///
/// It is opaque: only whether two of them from the same gateway are equal means something, namely that both tunnels
/// lead to the same backend. Another gateway, or the same one after a restart, may call it something else.
///
/// ```
/// use hbone::metadata::BackendToken;
///
/// let token: BackendToken = "9f86d081884c7d65".parse()?;
/// assert_eq!(token.to_string(), "9f86d081884c7d65");
/// assert!("two words".parse::<BackendToken>().is_err());
/// # Ok::<(), hbone::metadata::BackendTokenError>(())
/// ```
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BackendToken(Arc<str>);

/// Why a text is not a [`BackendToken`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum BackendTokenError {
    /// Nothing in it.
    Empty,
    /// Longer than 64 bytes.
    TooLong,
    /// A character outside of `A-Z a-z 0-9 _ -`.
    BadCharacter,
}

impl BackendToken {
    /// The token.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The only value of a header, if it is a token.
    pub(super) fn read(text: &str) -> Option<Self> {
        text.trim_matches([' ', '\t']).parse().ok()
    }

    pub(super) fn write(&self) -> Option<HeaderValue> {
        HeaderValue::from_str(&self.0).ok()
    }

    /// The tokens of all lines, without what is not one.
    pub(super) fn read_list<'a>(lines: impl IntoIterator<Item = &'a HeaderValue>) -> Vec<Self> {
        let pieces = lines.into_iter().flat_map(|line| line.as_bytes().split(|byte| *byte == b','));
        let tokens = pieces.filter_map(|piece| Self::read(str::from_utf8(piece).ok()?));
        tokens.take(MAX_TOKENS).collect()
    }

    /// `None` when there is nothing to send.
    pub(super) fn write_list(tokens: &[Self]) -> Option<HeaderValue> {
        let line = tokens.iter().map(Self::as_str).collect::<Vec<_>>().join(", ");
        HeaderValue::try_from(line).ok().filter(|line| !line.is_empty())
    }
}

/// As 16 hexadecimal digits: for a gateway that calls its backends by a hash.
impl From<u64> for BackendToken {
    fn from(hash: u64) -> Self {
        Self(format!("{hash:016x}").into())
    }
}

impl FromStr for BackendToken {
    type Err = BackendTokenError;

    fn from_str(text: &str) -> Result<Self, BackendTokenError> {
        if text.is_empty() {
            Err(BackendTokenError::Empty)
        } else if text.len() > MAX_LENGTH {
            Err(BackendTokenError::TooLong)
        } else if !text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-')) {
            Err(BackendTokenError::BadCharacter)
        } else {
            Ok(Self(text.into()))
        }
    }
}

impl fmt::Display for BackendToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for BackendToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for BackendTokenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Empty => "an empty token",
            Self::TooLong => "longer than 64 bytes",
            Self::BadCharacter => "a character outside of A-Z a-z 0-9 _ -",
        })
    }
}

impl std::error::Error for BackendTokenError {}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("", BackendTokenError::Empty)]
    #[case(&"a".repeat(65), BackendTokenError::TooLong)]
    #[case("two words", BackendTokenError::BadCharacter)]
    #[case("a,b", BackendTokenError::BadCharacter)]
    #[case("a\nb", BackendTokenError::BadCharacter)]
    #[case("ä", BackendTokenError::BadCharacter)]
    fn other_texts_are_no_tokens(#[case] text: &str, #[case] error: BackendTokenError) {
        assert_eq!(text.parse::<BackendToken>(), Err(error));
    }

    #[rstest]
    #[case::one(&["a"], &["a"])]
    #[case::spaces(&[" a ,\tb,c "], &["a", "b", "c"])]
    #[case::lines(&["a, b", "c"], &["a", "b", "c"])]
    #[case::malformed_ones_are_dropped(&["a, two words, b=c, , \"d\", e"], &["a", "e"])]
    #[case::not_ascii(&["ä, b"], &["b"])]
    #[case::nothing(&["", " , ,"], &[])]
    fn lists_are_read_as_far_as_they_go(#[case] lines: &[&str], #[case] expected: &[&str]) {
        let lines: Vec<_> = lines.iter().map(|line| HeaderValue::from_bytes(line.as_bytes()).unwrap()).collect();
        let read = BackendToken::read_list(&lines);
        assert_eq!(read.iter().map(BackendToken::as_str).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn of_a_long_list_the_first_are_kept() {
        let line: Vec<_> = (0..1000).map(|n| n.to_string()).collect();
        let read = BackendToken::read_list([&HeaderValue::from_str(&line.join(",")).unwrap()]);
        assert_eq!((read.len(), read.last().unwrap().as_str()), (MAX_TOKENS, "127"));
    }

    proptest! {
        #[test]
        fn what_is_printed_parses(tokens in prop::collection::vec("[A-Za-z0-9_-]{1,64}", 0..=MAX_TOKENS)) {
            let tokens: Vec<BackendToken> = tokens.iter().map(|token| token.parse().unwrap()).collect();
            for token in &tokens {
                prop_assert_eq!(token.to_string().parse(), Ok(token.clone()));
                let value = token.write().unwrap();
                prop_assert_eq!(BackendToken::read(value.to_str().unwrap()), Some(token.clone()));
            }
            let line = BackendToken::write_list(&tokens);
            prop_assert_eq!(line.is_none(), tokens.is_empty());
            prop_assert_eq!(BackendToken::read_list(&line), tokens);
        }

        #[test]
        fn hashes_are_tokens(hash: u64) {
            let token = BackendToken::from(hash);
            prop_assert_eq!(token.as_str().len(), 16);
            prop_assert_eq!(u64::from_str_radix(token.as_str(), 16), Ok(hash));
            prop_assert_eq!(token.to_string().parse(), Ok(token));
        }

        #[test]
        fn any_bytes_are_read_without_panic(line: Vec<u8>) {
            if let Ok(line) = HeaderValue::from_bytes(&line) {
                prop_assert!(BackendToken::read_list([&line]).len() <= MAX_TOKENS);
            }
        }
    }
}
