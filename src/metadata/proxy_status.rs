//! Refusals as a `proxy-status` header (RFC 9209), which is a list of structured-field items (RFC 9651).

use http::{HeaderMap, HeaderValue, StatusCode};

use super::{PROXY_STATUS, quoted};
use crate::refusal::{Refusal, RefusalReason};

/// What this crate calls itself in the header.
const NAME: &str = "hbone";
/// The longest details, in both directions.
const MAX_DETAILS: usize = 512;
/// The longest error type, in both directions; the longest registered one has 34 bytes.
const MAX_TOKEN: usize = 64;

/// Writes a refusal, such as `hbone; error=destination_not_found; details="no service x"`.
///
/// The header can carry visible ASCII and spaces only: other characters of the details become `?`, and what is over 512
/// bytes is cut off. A reason that is not a structured-field token is left out, and so is
/// [`RefusalReason::Unspecified`].
pub(crate) fn encode(refusal: &Refusal) -> HeaderValue {
    let mut line = NAME.to_owned();
    if let Some(token) = token(refusal.reason()) {
        line.push_str("; error=");
        line.push_str(&token);
    }
    if let Some(details) = refusal.details().and_then(sanitise) {
        line.push_str("; details=");
        line.push_str(&quoted::quote(&details));
    }
    HeaderValue::try_from(line).unwrap_or(HeaderValue::from_static(NAME))
}

/// Reads the refusal that came with `status`.
///
/// Only the last member counts, which the hop nearest to the client wrote (RFC 9209, section 2): the peer itself.
/// Without a readable error type in it the reason is [`RefusalReason::Unspecified`].
pub(crate) fn decode(status: StatusCode, headers: &HeaderMap) -> Refusal {
    let mut reason = RefusalReason::Unspecified;
    let mut details = None;
    for parameter in last_member(headers).into_iter().flat_map(|member| quoted::split(member, ';').skip(1)) {
        // Of a repeated parameter the last one counts (RFC 9651, section 4.2.3.2).
        match parameter.split_once('=').map(|(key, value)| (key.trim(), value.trim())) {
            Some(("error", value)) if is_token(value) => reason = RefusalReason::from_token(value),
            Some(("error", _)) => reason = RefusalReason::Unspecified,
            Some(("details", value)) => details = quoted::unquote(value).as_deref().and_then(sanitise),
            _ => {}
        }
    }
    Refusal::received(status, reason, details)
}

fn last_member(headers: &HeaderMap) -> Option<&str> {
    let lines = headers.get_all(PROXY_STATUS);
    let line = lines.iter().rfind(|line| !line.as_bytes().trim_ascii().is_empty())?.to_str().ok()?;
    let member = quoted::split(line, ',').filter(|member| !member.trim().is_empty()).last()?;
    let name = quoted::split(member, ';').next()?.trim();
    (is_token(name) || quoted::unquote(name).is_some()).then_some(member)
}

fn token(reason: &RefusalReason) -> Option<String> {
    match reason {
        RefusalReason::Unspecified => None,
        reason => Some(reason.token().into_owned()).filter(|t| is_token(t)),
    }
}

/// Whether `text` is a token of structured fields (RFC 9651, section 3.3.4) and of a sensible length.
fn is_token(text: &str) -> bool {
    text.len() <= MAX_TOKEN
        && text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '*')
        && text.bytes().all(|b| quoted::is_token_byte(b) || matches!(b, b':' | b'/'))
}

/// What a string of structured fields can carry (RFC 9651, section 3.3.3); `None` for an empty one.
fn sanitise(details: &str) -> Option<String> {
    let visible = |c: char| if c.is_ascii_graphic() || c == ' ' { c } else { '?' };
    let details: String = details.chars().take(MAX_DETAILS).map(visible).collect();
    Some(details).filter(|d| !d.is_empty())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    fn headers(lines: &[&str]) -> HeaderMap {
        let value = |line: &&str| HeaderValue::from_bytes(line.as_bytes()).unwrap();
        lines.iter().map(|line| (PROXY_STATUS, value(line))).collect()
    }

    fn sanitised(refusal: &Refusal) -> Refusal {
        Refusal::received(refusal.status(), refusal.reason().clone(), refusal.details().and_then(sanitise))
    }

    #[rstest]
    #[case(
        RefusalReason::DestinationNotFound,
        Some("no service x"),
        r#"hbone; error=destination_not_found; details="no service x""#
    )]
    #[case(RefusalReason::Denied, None, "hbone; error=http_request_denied")]
    #[case(RefusalReason::Unspecified, None, "hbone")]
    #[case(RefusalReason::Unspecified, Some("why"), r#"hbone; details="why""#)]
    #[case(RefusalReason::Internal, Some(""), "hbone; error=proxy_internal_error")]
    #[case(RefusalReason::DnsError, Some(r#"a"b\c"#), r#"hbone; error=dns_error; details="a\"b\\c""#)]
    #[case(RefusalReason::DnsError, Some("a\nb\u{e9}"), r#"hbone; error=dns_error; details="a?b?""#)]
    #[case(RefusalReason::Other("tls_alert_received".to_owned()), None, "hbone; error=tls_alert_received")]
    fn a_refusal_is_written_and_read_back(
        #[case] reason: RefusalReason,
        #[case] details: Option<&str>,
        #[case] line: &str,
    ) {
        let refusal = Refusal::received(reason.status(), reason, details.map(str::to_owned));
        assert_eq!(encode(&refusal), line);
        assert_eq!(decode(refusal.status(), &headers(&[line])), sanitised(&refusal));
    }

    #[rstest]
    #[case("")]
    #[case("two words")]
    #[case("x\r\ninjected: 1")]
    #[case("1digit")]
    #[case(&"a".repeat(65))]
    fn a_reason_that_is_no_token_is_left_out(#[case] token: &str) {
        assert_eq!(encode(&Refusal::new(RefusalReason::Other(token.to_owned()))), "hbone");
    }

    #[rstest]
    #[case::other_proxies_before(&[r#"Envoy; error=dns_error; details="a, b", hbone; error=http_request_denied"#])]
    #[case::another_line_before(&["envoy; error=dns_error", "hbone; error=http_request_denied"])]
    #[case::a_malformed_member_before(&["?; =, hbone; error=http_request_denied"])]
    #[case::an_empty_line_after(&["hbone; error=http_request_denied", " "])]
    #[case::an_empty_member_after(&["hbone; error=http_request_denied, "])]
    #[case::unknown_parameters(&[r#"hbone; x; next-hop="a;b"; error=http_request_denied; received-status=401; y=%"\""#])]
    #[case::no_spaces(&["hbone;error=http_request_denied"])]
    #[case::a_name_in_quotes(&[r#""my, proxy";error=http_request_denied"#])]
    #[case::a_repeated_parameter(&["hbone; error=dns_error; error=http_request_denied"])]
    #[case::details_of_the_wrong_type(&["hbone; details=token; error=http_request_denied"])]
    #[case::details_without_an_end(&[r#"hbone; error=http_request_denied; details="a, b; c"#])]
    fn the_reason_is_found(#[case] lines: &[&str]) {
        let refusal = decode(StatusCode::UNAUTHORIZED, &headers(lines));
        assert_eq!(refusal, Refusal::new(RefusalReason::Denied));
    }

    #[rstest]
    #[case::no_header(&[])]
    #[case::empty(&[""])]
    #[case::only_a_name(&["hbone"])]
    #[case::no_name(&["; error=dns_error"])]
    #[case::a_number_as_name(&["1; error=dns_error"])]
    #[case::the_last_hop_says_nothing(&["envoy; error=dns_error, hbone"])]
    #[case::an_error_in_quotes(&[r#"hbone; error="dns_error""#])]
    #[case::an_error_without_value(&["hbone; error", "hbone; error="])]
    #[case::an_error_inside_details(&[r#"hbone; next-hop="; error=dns_error""#])]
    #[case::a_quote_without_end(&[r#"hbone; next-hop="; error=dns_error"#])]
    #[case::not_ascii(&["hbone; error=dns_error; näxt"])]
    #[case::garbage(&[",;=\"\\,;;==,\""])]
    fn without_a_readable_reason_it_is_unspecified(#[case] lines: &[&str]) {
        let refusal = decode(StatusCode::BAD_GATEWAY, &headers(lines));
        assert_eq!(refusal, Refusal::received(StatusCode::BAD_GATEWAY, RefusalReason::Unspecified, None));
    }

    #[test]
    fn details_and_token_of_a_peer_are_bounded() {
        let long = "x".repeat(10_000);
        let refusal = decode(StatusCode::BAD_GATEWAY, &headers(&[&format!("a; error={long}; details=\"{long}\"")]));
        assert_eq!(refusal.reason(), &RefusalReason::Unspecified);
        assert_eq!(refusal.details().unwrap().len(), MAX_DETAILS);
    }

    fn reason() -> impl Strategy<Value = RefusalReason> {
        prop_oneof![
            Just(RefusalReason::InvalidRequest),
            Just(RefusalReason::DestinationProhibited),
            Just(RefusalReason::ConnectionLimitReached),
            Just(RefusalReason::LoopDetected),
            Just(RefusalReason::Unspecified),
            "x-[a-z_:/*]{0,62}".prop_map(RefusalReason::Other),
        ]
    }

    proptest! {
        #[test]
        fn encode_then_decode_is_the_identity(
            reason in reason(),
            details in proptest::option::of("(?s).{0,600}|[\"\\\\;,=% ]{0,20}"),
        ) {
            let refusal = Refusal::received(reason.status(), reason, details);
            let mut headers = HeaderMap::new();
            headers.append(PROXY_STATUS, HeaderValue::from_static("envoy; error=dns_error; details=\"a, b\""));
            headers.append(PROXY_STATUS, encode(&refusal));
            prop_assert_eq!(decode(refusal.status(), &headers), sanitised(&refusal));
        }

        #[test]
        fn any_bytes_are_decoded_without_panic(lines: Vec<Vec<u8>>, text in "[a-z\"\\\\;,=% ]{0,60}") {
            let values = lines.iter().map(Vec::as_slice).chain([text.as_bytes()]);
            let values = values.filter_map(|l| HeaderValue::from_bytes(l).ok());
            let headers: HeaderMap = values.map(|v| (PROXY_STATUS, v)).collect();
            let refusal = decode(StatusCode::BAD_GATEWAY, &headers);
            prop_assert!(refusal.details().is_none_or(|d| d.len() <= MAX_DETAILS));
        }
    }
}
