//! Both directions between two byte streams, until both have ended.

use std::fmt;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;

use super::scheduler::{Budget, Scheduler, Turns};
use super::{BytesRead, BytesWrite};

/// How many bytes a [`relay`] has moved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RelayStats {
    /// Read from the first stream and written to the second.
    pub a_to_b: u64,
    /// Read from the second stream and written to the first.
    pub b_to_a: u64,
}

/// One of the two streams of a [`relay`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RelayEnd {
    /// The first argument.
    A,
    /// The second argument.
    B,
}

/// What a [`relay`] was doing when it failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum RelayOperation {
    /// Reading.
    Read,
    /// Writing or flushing.
    Write,
    /// Passing the end of the stream on.
    Shutdown,
}

/// Why a [`relay`] ended early: which stream failed, at what, and what had been moved by then.
#[derive(Debug)]
pub struct RelayError {
    end: RelayEnd,
    operation: RelayOperation,
    stats: RelayStats,
    source: io::Error,
}

impl RelayError {
    /// The stream that failed.
    pub fn end(&self) -> RelayEnd {
        self.end
    }

    /// What it was asked to do.
    pub fn operation(&self) -> RelayOperation {
        self.operation
    }

    /// What had been moved by then.
    pub fn stats(&self) -> RelayStats {
        self.stats
    }

    /// The failure itself.
    pub fn io_error(&self) -> &io::Error {
        &self.source
    }
}

impl fmt::Display for RelayError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let operation = match self.operation {
            RelayOperation::Read => "reading from",
            RelayOperation::Write => "writing to",
            RelayOperation::Shutdown => "shutting down",
        };
        let end = match self.end {
            RelayEnd::A => "first",
            RelayEnd::B => "second",
        };
        write!(f, "{operation} the {end} stream after {} + {} bytes", self.stats.a_to_b, self.stats.b_to_a)
    }
}

impl std::error::Error for RelayError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}

/// Moves bytes both ways between `a` and `b` until both directions have ended, and passes each end on (half-close).
///
/// Nothing is buffered beyond the chunk that is on its way in each direction. When one stream fails, both directions stop:
/// the caller then decides how the other stream ends (a tunnel is best reset with CONNECT_ERROR, RFC 9113 section 8.5).
/// When cancelled, chunks on their way are lost.
///
/// # Errors
///
/// [`RelayError`] says which of the two streams failed.
pub async fn relay<A, B>(a: &mut A, b: &mut B) -> Result<RelayStats, RelayError>
where
    A: BytesRead + BytesWrite + Unpin,
    B: BytesRead + BytesWrite + Unpin,
{
    relay_in_turns(a, b, Turns::default()).await
}

impl Scheduler {
    /// [`relay`], with its turns scheduled.
    ///
    /// # Errors
    ///
    /// As [`relay`].
    pub async fn relay<A, B>(&self, a: &mut A, b: &mut B) -> Result<RelayStats, RelayError>
    where
        A: BytesRead + BytesWrite + Unpin,
        B: BytesRead + BytesWrite + Unpin,
    {
        relay_in_turns(a, b, Turns::new(self)).await
    }
}

/// [`relay`], in the turns of a task.
pub(crate) async fn relay_in_turns<A, B>(a: &mut A, b: &mut B, mut turns: Turns) -> Result<RelayStats, RelayError>
where
    A: BytesRead + BytesWrite + Unpin,
    B: BytesRead + BytesWrite + Unpin,
{
    let mut up = Direction::default();
    let mut down = Direction::default();
    let result = poll_fn(|cx| {
        ready!(turns.poll_begin(cx));
        let before = up.moved + down.moved;
        let up_done =
            up.poll(cx, a, b).map_err(|(from, op, e)| (if from { RelayEnd::A } else { RelayEnd::B }, op, e))?;
        let down_done =
            down.poll(cx, b, a).map_err(|(from, op, e)| (if from { RelayEnd::B } else { RelayEnd::A }, op, e))?;
        turns.end(up.moved + down.moved - before);
        if up_done.is_ready() && down_done.is_ready() { Poll::Ready(Ok(())) } else { Poll::Pending }
    })
    .await;
    let stats = RelayStats { a_to_b: up.moved, b_to_a: down.moved };
    result.map(|()| stats).map_err(|(end, operation, source)| RelayError { end, operation, stats, source })
}

#[derive(Default)]
struct Direction {
    chunk: Bytes,
    state: State,
    moved: u64,
    unflushed: bool,
}

#[derive(Clone, Copy, Default, PartialEq)]
enum State {
    #[default]
    Moving,
    /// Nothing more comes: what is left of the chunk is the last.
    Ending,
    Ended,
}

/// The `bool` says whether the reading stream failed, rather than the writing one.
type Failure = (bool, RelayOperation, io::Error);

impl Direction {
    fn poll<R, W>(&mut self, cx: &mut Context<'_>, from: &mut R, to: &mut W) -> Poll<Result<(), Failure>>
    where
        R: BytesRead + Unpin,
        W: BytesWrite + Unpin,
    {
        let mut budget = Budget::RELAY;
        while self.state == State::Moving {
            while !self.chunk.is_empty() {
                ready!(self.write(cx, from, to))?;
                self.unflushed = true;
            }
            // Frees the chunk's memory while there is nothing to move.
            self.chunk = Bytes::new();
            if budget.is_spent() {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            match Pin::new(&mut *from).poll_read_bytes(cx) {
                Poll::Ready(Ok(chunk)) => {
                    budget.spend(chunk.len());
                    if chunk.is_empty() || from.is_at_end() {
                        self.state = State::Ending;
                    }
                    self.chunk = chunk;
                }
                Poll::Ready(Err(e)) => return Poll::Ready(Err((true, RelayOperation::Read, e))),
                Poll::Pending => {
                    if self.unflushed {
                        ready!(Pin::new(&mut *to).poll_flush(cx)).map_err(|e| (false, RelayOperation::Write, e))?;
                        self.unflushed = false;
                    }
                    return Poll::Pending;
                }
            }
        }
        if self.state == State::Ending {
            ready!(self.write(cx, from, to))?;
            // As above: the other direction may go on for long.
            self.chunk = Bytes::new();
            self.state = State::Ended;
        }
        Poll::Ready(Ok(()))
    }

    /// Writes something of the chunk, or at the end all of it with the end.
    fn write<R, W>(&mut self, cx: &mut Context<'_>, from: &mut R, to: &mut W) -> Poll<Result<(), Failure>>
    where
        R: BytesRead + Unpin,
        W: BytesWrite + Unpin,
    {
        let (before, to) = (self.chunk.len(), Pin::new(to));
        let (written, operation) = match self.state {
            State::Ending => {
                let written = to.poll_write_last(cx, &mut self.chunk);
                (written, if self.chunk.is_empty() { RelayOperation::Shutdown } else { RelayOperation::Write })
            }
            _ => (to.poll_write_bytes(cx, &mut self.chunk), RelayOperation::Write),
        };
        if let Poll::Ready(Err(e)) = written {
            return Poll::Ready(Err((false, operation, e)));
        }
        self.moved += (before - self.chunk.len()) as u64;
        if written.is_pending() && !self.chunk.is_empty() {
            let failed = ready!(Pin::new(from).poll_failed(cx));
            return Poll::Ready(Err((true, RelayOperation::Read, failed)));
        }
        written.map(|_| Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bytes::Buf;
    use rstest::rstest;
    use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf, duplex};
    use tokio_test::io::Builder;

    use super::super::BytesAdapter;
    use super::*;

    #[tokio::test]
    async fn each_end_is_passed_on_while_the_other_direction_goes_on() {
        let (mut client, a) = duplex(16);
        let (mut server, b) = duplex(16);
        let relayed = tokio::spawn(async move { relay(&mut BytesAdapter::new(a), &mut BytesAdapter::new(b)).await });
        client.write_all(b"question").await.unwrap();
        client.shutdown().await.unwrap();
        let mut got = String::new();
        server.read_to_string(&mut got).await.unwrap();
        assert_eq!(got, "question");
        server.write_all(b"a much longer answer than fits the pipe").await.unwrap();
        server.shutdown().await.unwrap();
        got.clear();
        client.read_to_string(&mut got).await.unwrap();
        assert_eq!(got, "a much longer answer than fits the pipe");
        assert_eq!(relayed.await.unwrap().unwrap(), RelayStats { a_to_b: 8, b_to_a: 39 });
    }

    /// One word to read and then an end, if it has one; and a note of how each was written.
    #[derive(Default)]
    struct Scripted {
        word: Option<Bytes>,
        knows_its_end: bool,
        open: bool,
        broken: bool,
        written: Vec<(&'static str, String)>,
    }

    impl Scripted {
        fn says(word: Bytes, knows_its_end: bool) -> Self {
            Self { word: Some(word), knows_its_end, ..Self::default() }
        }

        fn note(&mut self, how: &'static str, data: &mut Bytes) -> Poll<io::Result<()>> {
            self.written.push((how, String::from_utf8(data.to_vec()).unwrap()));
            if self.broken {
                return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
            }
            data.advance(data.len());
            Poll::Ready(Ok(()))
        }
    }

    impl BytesRead for Scripted {
        fn poll_read_bytes(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<Bytes>> {
            match self.word.take() {
                None if self.open => Poll::Pending,
                word => Poll::Ready(Ok(word.unwrap_or_default())),
            }
        }

        fn is_at_end(&self) -> bool {
            self.knows_its_end && self.word.is_none()
        }
    }

    impl BytesWrite for Scripted {
        fn poll_write_bytes(mut self: Pin<&mut Self>, _: &mut Context<'_>, data: &mut Bytes) -> Poll<io::Result<()>> {
            self.note("write", data)
        }

        fn poll_write_last(mut self: Pin<&mut Self>, _: &mut Context<'_>, data: &mut Bytes) -> Poll<io::Result<()>> {
            self.note("last", data)
        }
    }

    impl AsyncRead for Scripted {
        fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, _: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            unreachable!()
        }
    }

    impl AsyncWrite for Scripted {
        fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, _: &[u8]) -> Poll<io::Result<usize>> {
            unreachable!()
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            unreachable!()
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            unreachable!()
        }
    }

    #[rstest]
    #[case::known(true, &[("last", "word")])]
    #[case::found_out(false, &[("write", "word"), ("last", "")])]
    #[tokio::test]
    async fn an_end_that_is_known_goes_along_with_the_last_bytes(
        #[case] known: bool,
        #[case] expected: &[(&'static str, &str)],
    ) {
        let (mut a, mut b) = (Scripted::says("word".into(), known), Scripted::default());
        assert_eq!(relay(&mut a, &mut b).await.unwrap(), RelayStats { a_to_b: 4, b_to_a: 0 });
        assert!(b.written.iter().map(|(how, data)| (*how, &data[..])).eq(expected.iter().copied()), "{:?}", b.written);
    }

    #[rstest]
    #[case::bytes("word", false, RelayOperation::Write)]
    #[case::the_last_bytes("word", true, RelayOperation::Write)]
    #[case::the_end("", false, RelayOperation::Shutdown)]
    #[tokio::test]
    async fn what_could_not_be_written_is_not_counted(
        #[case] word: &'static str,
        #[case] known: bool,
        #[case] operation: RelayOperation,
    ) {
        let (mut a, mut b) = (Scripted::says(word.into(), known), Scripted { broken: true, ..Scripted::default() });
        let error = relay(&mut a, &mut b).await.unwrap_err();
        assert_eq!((error.end(), error.operation()), (RelayEnd::B, operation));
        assert_eq!(error.stats(), RelayStats::default());
    }

    /// The memory of some bytes.
    struct Held {
        _by: Arc<()>,
    }

    impl AsRef<[u8]> for Held {
        fn as_ref(&self) -> &[u8] {
            b"word"
        }
    }

    #[rstest]
    #[tokio::test]
    async fn nothing_is_held_of_a_direction_that_has_ended(#[values(true, false)] known: bool) {
        let held = Arc::new(());
        let mut a = Scripted::says(Bytes::from_owner(Held { _by: held.clone() }), known);
        let mut b = Scripted { open: true, ..Scripted::default() };
        let mut relaying = tokio_test::task::spawn(relay(&mut a, &mut b));
        assert!(relaying.poll().is_pending());
        assert_eq!(Arc::strong_count(&held), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn an_error_names_the_stream_and_what_was_moved() {
        let a = Builder::new().read(b"abc").wait(std::time::Duration::from_secs(60)).build();
        let b = Builder::new().write(b"abc").read_error(io::Error::new(io::ErrorKind::ConnectionReset, "gone")).build();
        let error = relay(&mut BytesAdapter::new(a), &mut BytesAdapter::new(b)).await.unwrap_err();
        assert_eq!((error.end(), error.operation()), (RelayEnd::B, RelayOperation::Read));
        assert_eq!(error.stats(), RelayStats { a_to_b: 3, b_to_a: 0 });
        assert_eq!(error.to_string(), "reading from the second stream after 3 + 0 bytes");
    }
}
