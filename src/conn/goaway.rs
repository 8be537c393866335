//! Finds GOAWAY, and the ends of streams, among the frames of one direction.
//!
//! h2 reports a GOAWAY to nobody while tunnels are open, and when the connection goes down after one, tells the tunnels
//! only that it is gone.

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const GOAWAY: u8 = 7;
const END_STREAM: u8 = 1;
const HEADER: usize = 9;
/// The header, the last stream and the code.
const FIXED: usize = HEADER + 8;

/// The bytes that a client sends before its first frame (RFC 9113, section 3.4).
const PREFACE: usize = 24;

/// Follows the frame headers in a stream of bytes.
#[derive(Debug)]
pub(crate) struct GoAwayScanner {
    /// Bytes until the next frame header.
    skip: usize,
    head: [u8; FIXED],
    filled: usize,
    /// The code of the GOAWAY whose other bytes are being skipped.
    code: Option<u32>,
}

impl GoAwayScanner {
    pub(crate) fn new(after_preface: bool) -> Self {
        Self { skip: if after_preface { PREFACE } else { 0 }, head: [0; FIXED], filled: 0, code: None }
    }

    /// The code of a GOAWAY that ends in `data`, the last one of several. Until its end HTTP/2 does not know of it
    /// either.
    pub(crate) fn scan(&mut self, data: &[u8]) -> Option<u32> {
        self.scan_ends(data, |_| {})
    }

    /// [`Self::scan`], with each stream whose END_STREAM is here, though some of its frame may be missing.
    pub(super) fn scan_ends(&mut self, mut data: &[u8], mut ended: impl FnMut(u32)) -> Option<u32> {
        let mut found = None;
        while !data.is_empty() {
            let skipped = self.skip.min(data.len());
            self.skip -= skipped;
            data = &data[skipped..];
            if self.skip == 0 {
                found = self.code.take().or(found);
            }
            let wanted = if self.filled < HEADER { HEADER } else { FIXED };
            let taken = (wanted - self.filled).min(data.len());
            self.head[self.filled..][..taken].copy_from_slice(&data[..taken]);
            self.filled += taken;
            data = &data[taken..];
            let [a, b, c, kind, flags, stream @ ..] = self.head;
            let len = u32::from_be_bytes([0, a, b, c]) as usize;
            if self.filled == HEADER && matches!(kind, DATA | HEADERS) && flags & END_STREAM != 0 {
                let [a, b, c, d, ..] = stream;
                ended(u32::from_be_bytes([a & 0x7f, b, c, d]));
            }
            if self.filled == HEADER && (kind != GOAWAY || len < FIXED - HEADER) {
                (self.skip, self.filled) = (len, 0);
            } else if self.filled == FIXED {
                let [.., e, f, g, h] = self.head;
                let code = Some(u32::from_be_bytes([e, f, g, h]));
                (self.skip, self.filled) = (HEADER + len - FIXED, 0);
                if self.skip == 0 {
                    found = code;
                } else {
                    self.code = code;
                }
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
        let len = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&[len[1], len[2], len[3], kind, 0, 0, 0, 0, 0], payload].concat()
    }

    #[test]
    fn a_go_away_counts_when_all_of_it_is_there() {
        let bytes = frame(GOAWAY, &[0, 0, 0, 1, 0, 0, 1, 2, b'w', b'h', b'y']);
        let mut scanner = GoAwayScanner::new(false);
        let found: Vec<_> = bytes.iter().map(|byte| scanner.scan(&[*byte])).collect();
        assert_eq!(found.iter().position(Option::is_some), Some(bytes.len() - 1));
    }

    #[test]
    fn the_ends_of_streams_are_found_however_the_bytes_are_cut() {
        let mut bytes = Vec::new();
        for (kind, flags, stream) in
            [(DATA, 1, 1), (DATA, 0, 3), (HEADERS, 5, 5), (GOAWAY, 1, 7), (DATA, 9, 1 << 31 | 9)]
        {
            let mut frame = frame(kind, &[1; 12]);
            frame[4] = flags;
            frame[5..9].copy_from_slice(&u32::to_be_bytes(stream));
            bytes.extend(frame);
        }
        for cut in 1..=bytes.len() {
            let (mut scanner, mut ended) = (GoAwayScanner::new(false), Vec::new());
            for chunk in bytes.chunks(cut) {
                scanner.scan_ends(chunk, |stream| ended.push(stream));
            }
            assert_eq!(ended, [1, 5, 9], "in pieces of {cut}");
        }
    }

    #[test]
    fn a_go_away_is_found_however_the_bytes_are_cut() {
        let bytes = [
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
            frame(4, &[]),
            frame(0, &[GOAWAY; 100]),
            frame(GOAWAY, &[0, 0, 0, 1, 0, 0, 0, 11]),
            frame(GOAWAY, b"short"),
            frame(GOAWAY, &[0, 0, 0, 1, 0, 0, 1, 2, b'w', b'h', b'y']),
            frame(0, &[0; 3]),
        ]
        .concat();
        for cut in 1..=bytes.len() {
            let mut scanner = GoAwayScanner::new(true);
            let found: Vec<u32> = bytes.chunks(cut).filter_map(|chunk| scanner.scan(chunk)).collect();
            assert_eq!(found.last(), Some(&258), "in pieces of {cut}");
            assert!(cut > 30 || found == [11, 258], "in pieces of {cut}: {found:?}");
            assert_eq!((scanner.skip, scanner.filled), (0, 0));
        }
    }
}
