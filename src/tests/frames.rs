//! TLS and HTTP/2 by the byte, for what no library can be made to send.

use tokio::io::{AsyncRead, AsyncReadExt};

pub(super) use crate::fuzzing::frames::{
    ACK, DATA, END_STREAM, HEADERS, PING, PREFACE, RST_STREAM, SETTINGS, WINDOW_UPDATE, frame, headers, read_frame,
};

/// A ClientHello of TLS 1.2: one without the extension that offers 1.3.
pub(super) fn tls12_client_hello() -> Vec<u8> {
    let mut extensions = Vec::new();
    // supported_groups: x25519, secp256r1; signature_algorithms: ecdsa_secp256r1_sha256, rsa_pss_rsae_sha256.
    for (kind, body) in [(10u16, [0, 4, 0, 0x1d, 0, 0x17]), (13, [0, 4, 4, 3, 8, 4])] {
        extensions.extend(kind.to_be_bytes());
        extensions.extend(6u16.to_be_bytes());
        extensions.extend(body);
    }
    let mut body = vec![3, 3];
    body.extend([7; 32]);
    body.push(0);
    // TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, null compression.
    body.extend([0, 2, 0xc0, 0x2b, 1, 0]);
    body.extend(u16::try_from(extensions.len()).unwrap().to_be_bytes());
    body.extend(extensions);
    handshake_record(1, &body)
}

/// The answer of a server that picked TLS 1.2.
pub(super) fn tls12_server_hello() -> Vec<u8> {
    let mut body = vec![3, 3];
    body.extend([7; 32]);
    body.extend([0, 0xc0, 0x2b, 0]);
    handshake_record(2, &body)
}

fn handshake_record(kind: u8, body: &[u8]) -> Vec<u8> {
    let mut message = vec![kind];
    message.extend(&u32::try_from(body.len()).unwrap().to_be_bytes()[1..]);
    message.extend(body);
    let mut record = vec![22, 3, 3];
    record.extend(u16::try_from(message.len()).unwrap().to_be_bytes());
    record.extend(message);
    record
}

/// The extensions of the ClientHello that comes next, in order: type and content (RFC 8446, section 4.1.2).
pub(super) async fn client_hello<R: AsyncRead + Unpin>(io: &mut R) -> Vec<(u16, Vec<u8>)> {
    let mut message = Vec::new();
    // Type and length of the handshake message, then the message.
    while message.len() < 4 || message.len() < 4 + number(&message[1..4]) {
        let mut head = [0; 5];
        io.read_exact(&mut head).await.unwrap();
        assert_eq!(head[0], 22, "a handshake record");
        let mut record = vec![0; number(&head[3..])];
        io.read_exact(&mut record).await.unwrap();
        message.extend(record);
    }
    assert_eq!(message[0], 1, "a ClientHello");
    let mut rest = &message[4 + 2 + 32..];
    // Session id, cipher suites, compression methods.
    for width in [1, 2, 1] {
        vector(&mut rest, width);
    }
    let mut extensions = vector(&mut rest, 2);
    assert!(rest.is_empty());
    let mut found = Vec::new();
    while !extensions.is_empty() {
        let kind = u16::from_be_bytes([extensions[0], extensions[1]]);
        extensions = &extensions[2..];
        found.push((kind, vector(&mut extensions, 2).to_vec()));
    }
    found
}

fn number(bytes: &[u8]) -> usize {
    bytes.iter().fold(0, |n, b| n << 8 | usize::from(*b))
}

/// Takes a vector with a length of `width` bytes in front.
fn vector<'a>(rest: &mut &'a [u8], width: usize) -> &'a [u8] {
    let (len, after) = rest.split_at(width);
    let (content, after) = after.split_at(number(len));
    *rest = after;
    content
}
