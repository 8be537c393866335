//! A decoder of header blocks (RFC 7541) that shares nothing with the one under test.

use std::collections::VecDeque;

pub(super) type Fields = Vec<(String, String)>;

/// What one direction of a connection remembers.
#[derive(Debug)]
pub(super) struct Decoder {
    dynamic: VecDeque<(String, String)>,
    size: usize,
}

impl Default for Decoder {
    fn default() -> Self {
        Self { dynamic: VecDeque::new(), size: 4096 }
    }
}

impl Decoder {
    /// The fields of a block.
    ///
    /// # Panics
    ///
    /// When it is malformed.
    pub(super) fn decode(&mut self, block: &[u8]) -> Fields {
        let mut rest = block;
        let mut fields = Vec::new();
        while let [first, ..] = rest {
            match first {
                0x80.. => fields.push(self.entry(integer(&mut rest, 7))),
                0x40.. => {
                    let field = self.literal(&mut rest, 6);
                    self.dynamic.push_front(field.clone());
                    self.evict();
                    fields.push(field);
                }
                0x20.. => {
                    self.size = integer(&mut rest, 5);
                    self.evict();
                }
                _ => fields.push(self.literal(&mut rest, 4)),
            }
        }
        fields
    }

    fn literal(&self, rest: &mut &[u8], prefix: u32) -> (String, String) {
        let name = match integer(rest, prefix) {
            0 => string(rest),
            index => self.entry(index).0,
        };
        (name, string(rest))
    }

    fn entry(&self, index: usize) -> (String, String) {
        assert_ne!(index, 0, "no entry has the index 0");
        match STATIC.get(index - 1) {
            Some((name, value)) => ((*name).to_owned(), (*value).to_owned()),
            None => self.dynamic[index - 1 - STATIC.len()].clone(),
        }
    }

    fn evict(&mut self) {
        let size = |(name, value): &(String, String)| name.len() + value.len() + 32;
        while self.dynamic.iter().map(size).sum::<usize>() > self.size {
            self.dynamic.pop_back();
        }
    }
}

/// An integer whose first byte has `prefix` bits for it (section 5.1).
fn integer(rest: &mut &[u8], prefix: u32) -> usize {
    let mask = (1_usize << prefix) - 1;
    let mut number = usize::from(byte(rest)) & mask;
    if number < mask {
        return number;
    }
    for shift in (0..28).step_by(7) {
        let next = byte(rest);
        number += usize::from(next & 0x7f) << shift;
        if next < 0x80 {
            return number;
        }
    }
    panic!("an integer without an end");
}

fn byte(rest: &mut &[u8]) -> u8 {
    let (first, after) = rest.split_first().expect("a byte more");
    *rest = after;
    *first
}

/// A string (section 5.2).
fn string(rest: &mut &[u8]) -> String {
    let huffman = rest.first().is_some_and(|first| *first >= 0x80);
    let len = integer(rest, 7);
    let (text, after) = rest.split_at(len);
    *rest = after;
    let text = if huffman { unhuffman(text) } else { text.to_vec() };
    String::from_utf8(text).expect("the fields of the vectors are text")
}

/// The code is canonical (appendix B): the lengths of the codes say what they are.
fn unhuffman(text: &[u8]) -> Vec<u8> {
    let mut order: Vec<usize> = (0..LENGTHS.len()).collect();
    order.sort_by_key(|symbol| (LENGTHS[*symbol], *symbol));
    let mut codes = Vec::new();
    let (mut code, mut length) = (0_u32, 0);
    for symbol in order {
        code <<= LENGTHS[symbol] - length;
        length = LENGTHS[symbol];
        codes.push((length, code, symbol));
        code += 1;
    }
    let (mut decoded, mut seen, mut bits) = (Vec::new(), 0_u32, 0_u8);
    for bit in text.iter().flat_map(|byte| (0..8).rev().map(move |n| byte >> n & 1)) {
        (seen, bits) = (seen << 1 | u32::from(bit), bits + 1);
        if let Some((.., symbol)) = codes.iter().find(|(length, code, _)| (*length, *code) == (bits, seen)) {
            decoded.push(u8::try_from(*symbol).expect("the end of a string is never written"));
            (seen, bits) = (0, 0);
        }
    }
    assert!(bits < 8 && seen == (1 << bits) - 1, "padding that is not of ones");
    decoded
}

/// The lengths of the codes of all bytes and of the end (appendix B).
#[rustfmt::skip]
const LENGTHS: [u8; 257] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28,
    28, 28, 28, 28, 6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6, 5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15,
    6, 12, 10, 13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6,
    15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5, 6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28, 20, 22, 20,
    20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23, 24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23,
    24, 22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23, 21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22,
    22, 23, 22, 22, 23, 26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25, 19, 21, 26, 27, 27, 26, 27,
    24, 21, 21, 26, 26, 28, 27, 27, 27, 20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23, 26, 27, 26,
    26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26, 30,
];

/// The static table (appendix A).
#[rustfmt::skip]
const STATIC: [(&str, &str); 61] = [
    (":authority", ""), (":method", "GET"), (":method", "POST"), (":path", "/"), (":path", "/index.html"),
    (":scheme", "http"), (":scheme", "https"), (":status", "200"), (":status", "204"), (":status", "206"),
    (":status", "304"), (":status", "400"), (":status", "404"), (":status", "500"), ("accept-charset", ""),
    ("accept-encoding", "gzip, deflate"), ("accept-language", ""), ("accept-ranges", ""), ("accept", ""),
    ("access-control-allow-origin", ""), ("age", ""), ("allow", ""), ("authorization", ""), ("cache-control", ""),
    ("content-disposition", ""), ("content-encoding", ""), ("content-language", ""), ("content-length", ""),
    ("content-location", ""), ("content-range", ""), ("content-type", ""), ("cookie", ""), ("date", ""), ("etag", ""),
    ("expect", ""), ("expires", ""), ("from", ""), ("host", ""), ("if-match", ""), ("if-modified-since", ""),
    ("if-none-match", ""), ("if-range", ""), ("if-unmodified-since", ""), ("last-modified", ""), ("link", ""),
    ("location", ""), ("max-forwards", ""), ("proxy-authenticate", ""), ("proxy-authorization", ""), ("range", ""),
    ("referer", ""), ("refresh", ""), ("retry-after", ""), ("server", ""), ("set-cookie", ""),
    ("strict-transport-security", ""), ("transfer-encoding", ""), ("user-agent", ""), ("vary", ""), ("via", ""),
    ("www-authenticate", ""),
];
