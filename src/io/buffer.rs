//! Read buffers whose size follows the traffic.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::BytesMut;
use tokio::io::AsyncRead;
use tokio_util::io::poll_read_buf;

/// A read buffer. It grows with what there is to read, and is freed while there is nothing.
#[derive(Debug, Default)]
pub(crate) struct ReadBuffer {
    pub(crate) bytes: BytesMut,
    size: Size,
    /// The last read found nothing.
    found_nothing: bool,
}

impl ReadBuffer {
    /// Reads once, behind what the buffer holds; 0 is the end.
    pub(crate) fn poll_fill<IO: AsyncRead + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        io: &mut IO,
    ) -> Poll<io::Result<usize>> {
        // What is left of a buffer that was partly handed out is used up first.
        if self.bytes.capacity() - self.bytes.len() < self.size.bytes() / 2 {
            // Takes the old memory again when everything read into it has been let go of.
            self.bytes.reserve(self.size.bytes());
        }
        match poll_read_buf(Pin::new(io), cx, &mut self.bytes) {
            Poll::Ready(Ok(n)) => {
                self.found_nothing = false;
                self.size.adapt(n);
                Poll::Ready(Ok(n))
            }
            Poll::Ready(Err(e)) => Poll::Ready(Err(e)),
            Poll::Pending => {
                self.free();
                Poll::Pending
            }
        }
    }

    /// Reads what follows the message in the buffer, as far as there is room: `None` when nothing has come, 0 at the
    /// end. More mostly follows bulk, so it is not looked for there.
    #[cfg(feature = "proxy")]
    pub(crate) fn read_behind<IO: AsyncRead + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        io: &mut IO,
    ) -> Option<io::Result<usize>> {
        let held = self.bytes.len();
        if held > CHEAP || held == self.bytes.capacity() {
            return None;
        }
        match poll_read_buf(Pin::new(io), cx, &mut self.bytes) {
            Poll::Ready(read) => Some(read),
            Poll::Pending => None,
        }
    }

    /// Frees an empty buffer; a large one only when two reads in a row have found nothing. A busy stream is often
    /// drained for a moment, and an allocation of this size costs more than a read. An idle one is read again by its
    /// keepalive at the latest.
    fn free(&mut self) {
        // A small one is cheap to allocate again, and many idle streams would each hold one.
        if std::mem::replace(&mut self.found_nothing, true) || self.bytes.capacity() <= CHEAP {
            self.bytes = BytesMut::new();
        }
    }
}

/// Allocators keep pieces of this size at hand.
const CHEAP: usize = 16 << 10;

/// The sizes of a buffer: small messages need little, and bulk is fastest with few large reads.
const SIZES: [usize; 4] = [2 << 10, 16 << 10, 64 << 10, 128 << 10];

/// After so many reads in a row that would have fit the next smaller size, the buffer shrinks.
const PATIENCE: u8 = 8;

/// The one of [`SIZES`] that suits the latest reads.
#[derive(Clone, Copy, Debug, Default)]
struct Size {
    step: u8,
    small: u8,
}

impl Size {
    fn bytes(self) -> usize {
        SIZES[usize::from(self.step)]
    }

    fn adapt(&mut self, read: usize) {
        let step = usize::from(self.step);
        // A buffer that is used up in pieces is filled by less than its size.
        if read >= SIZES[step] / 2 && step + 1 < SIZES.len() {
            *self = Self { step: self.step + 1, small: 0 };
        } else if step > 0 && read <= SIZES[step - 1] / 2 {
            self.small += 1;
            if self.small == PATIENCE {
                *self = Self { step: self.step - 1, small: 0 };
            }
        } else {
            self.small = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    /// The size after these reads, each so many times.
    fn after(reads: &[(usize, usize)]) -> usize {
        let mut size = Size::default();
        reads.iter().flat_map(|(read, times)| [*read].repeat(*times)).for_each(|read| size.adapt(read));
        size.bytes()
    }

    #[rstest]
    #[case::at_first(&[], 2 << 10)]
    #[case::small_talk(&[(100, 1000)], 2 << 10)]
    #[case::more_than_fits(&[(2 << 10, 1)], 16 << 10)]
    #[case::bulk(&[(2 << 10, 1), (16 << 10, 1), (64 << 10, 1), (128 << 10, 9)], 128 << 10)]
    #[case::small_reads_between(&[(128 << 10, 3), (100, 7), (40 << 10, 1), (100, 7)], 128 << 10)]
    #[case::smaller_reads(&[(128 << 10, 3), (20 << 10, 8)], 64 << 10)]
    #[case::small_talk_after_bulk(&[(128 << 10, 3), (100, 3 * 8)], 2 << 10)]
    fn buffers_follow_what_is_read(#[case] reads: &[(usize, usize)], #[case] expected: usize) {
        assert_eq!(after(reads), expected);
    }
}
