//! Both directions between two byte streams, until both have ended.

use std::fmt;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, Sleep, sleep};

use super::scheduler::{Budget, Scheduler, Turns};
use super::{BytesRead, BytesWrite};

/// For how long a stream may take nothing of what the other one, which has failed, had received.
const LAST_BYTES_TIMEOUT: Duration = Duration::from_secs(2);

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

    /// What the relay was doing with it.
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
/// Nothing is buffered beyond the chunk that is on its way in each direction.
///
/// When one stream fails, what it had received by then is still delivered to the other one, and
/// [sent](BytesWrite::poll_sent), unless that one takes nothing for 2 s. Then the relay returns, and the caller decides
/// how the other stream ends (a tunnel is best reset with CONNECT_ERROR, RFC 9113 section 8.5). When cancelled, chunks
/// on their way are lost.
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
    let mut relaying = Relaying::default();
    poll_fn(|cx| {
        ready!(turns.poll_begin(cx));
        let before = relaying.moved();
        let done = relaying.poll(cx, a, b);
        turns.end(relaying.moved() - before);
        done
    })
    .await
}

#[derive(Default)]
struct Relaying {
    up: Direction,
    down: Direction,
    failure: Option<Box<Failure>>,
}

/// Why a relay ends, while what the failed stream had received is delivered.
struct Failure {
    end: RelayEnd,
    operation: RelayOperation,
    source: io::Error,
    stalled: Pin<Box<Sleep>>,
}

impl Relaying {
    fn moved(&self) -> u64 {
        self.up.moved + self.down.moved
    }

    fn poll<A, B>(&mut self, cx: &mut Context<'_>, a: &mut A, b: &mut B) -> Poll<Result<RelayStats, RelayError>>
    where
        A: BytesRead + BytesWrite + Unpin,
        B: BytesRead + BytesWrite + Unpin,
    {
        let mut failure = match self.failure.take() {
            Some(failure) => failure,
            None => match self.poll_both(cx, a, b) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(stats)) => return Poll::Ready(Ok(stats)),
                Poll::Ready(Err((end, operation, source))) => {
                    Box::new(Failure { end, operation, source, stalled: Box::pin(sleep(LAST_BYTES_TIMEOUT)) })
                }
            },
        };
        let before = self.moved();
        let delivered = match failure.end {
            RelayEnd::A => self.up.poll_last(cx, a, b),
            RelayEnd::B => self.down.poll_last(cx, b, a),
        };
        if self.moved() > before {
            failure.stalled.as_mut().reset(Instant::now() + LAST_BYTES_TIMEOUT);
        }
        if delivered.is_pending() && failure.stalled.as_mut().poll(cx).is_pending() {
            self.failure = Some(failure);
            return Poll::Pending;
        }
        let Failure { end, operation, source, .. } = *failure;
        Poll::Ready(Err(RelayError { end, operation, stats: self.stats(), source }))
    }

    fn poll_both<A, B>(&mut self, cx: &mut Context<'_>, a: &mut A, b: &mut B) -> Poll<Result<RelayStats, Failed>>
    where
        A: BytesRead + BytesWrite + Unpin,
        B: BytesRead + BytesWrite + Unpin,
    {
        let up = self.up.poll(cx, a, b).map_err(|e| e.between(RelayEnd::A, RelayEnd::B))?;
        let down = self.down.poll(cx, b, a).map_err(|e| e.between(RelayEnd::B, RelayEnd::A))?;
        if up.is_ready() && down.is_ready() {
            return Poll::Ready(Ok(self.stats()));
        }
        // A stream that has been read to its end is only written to, and the other one may have nothing to say for
        // ever.
        if up.is_ready()
            && let Poll::Ready(e) = Pin::new(a).poll_failed(cx)
        {
            return Poll::Ready(Err((RelayEnd::A, RelayOperation::Read, e)));
        }
        if down.is_ready()
            && let Poll::Ready(e) = Pin::new(b).poll_failed(cx)
        {
            return Poll::Ready(Err((RelayEnd::B, RelayOperation::Read, e)));
        }
        Poll::Pending
    }

    fn stats(&self) -> RelayStats {
        RelayStats { a_to_b: self.up.moved, b_to_a: self.down.moved }
    }
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
    /// Nothing follows the chunk.
    Ending,
    Ended,
    /// Nothing more comes, as the stream that is read has failed.
    Failed,
}

type Failed = (RelayEnd, RelayOperation, io::Error);

/// What failed in one direction: reading from its one stream, or something about the other.
enum DirectionError {
    Reading(io::Error),
    Writing(RelayOperation, io::Error),
}

impl DirectionError {
    fn between(self, from: RelayEnd, to: RelayEnd) -> Failed {
        match self {
            Self::Reading(e) => (from, RelayOperation::Read, e),
            Self::Writing(operation, e) => (to, operation, e),
        }
    }
}

impl Direction {
    fn poll<R, W>(&mut self, cx: &mut Context<'_>, from: &mut R, to: &mut W) -> Poll<Result<(), DirectionError>>
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
                Poll::Ready(Err(e)) => {
                    self.state = State::Failed;
                    return Poll::Ready(Err(DirectionError::Reading(e)));
                }
                Poll::Pending => {
                    if self.unflushed {
                        ready!(Pin::new(&mut *to).poll_flush(cx))
                            .map_err(|e| DirectionError::Writing(RelayOperation::Write, e))?;
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
    fn write<R, W>(&mut self, cx: &mut Context<'_>, from: &mut R, to: &mut W) -> Poll<Result<(), DirectionError>>
    where
        R: BytesRead + Unpin,
        W: BytesWrite + Unpin,
    {
        let written = self.write_some(cx, to);
        if let Poll::Ready(Err(e)) = written {
            let all_but_the_end = self.state == State::Ending && self.chunk.is_empty();
            let operation = if all_but_the_end { RelayOperation::Shutdown } else { RelayOperation::Write };
            return Poll::Ready(Err(DirectionError::Writing(operation, e)));
        }
        if written.is_pending() && !self.chunk.is_empty() {
            let failed = ready!(Pin::new(from).poll_failed(cx));
            return Poll::Ready(Err(DirectionError::Reading(failed)));
        }
        written.map(|_| Ok(()))
    }

    fn write_some<W: BytesWrite + Unpin>(&mut self, cx: &mut Context<'_>, to: &mut W) -> Poll<io::Result<()>> {
        let before = self.chunk.len();
        let written = match self.state {
            State::Ending => Pin::new(to).poll_write_last(cx, &mut self.chunk),
            _ => Pin::new(to).poll_write_bytes(cx, &mut self.chunk),
        };
        self.moved += (before - self.chunk.len()) as u64;
        written
    }

    /// Delivers what is left of a stream that has failed. Ready when that is done, or can't be.
    ///
    /// An end that is merely read is not passed on: after a failed write, a socket that was reset reads like one that
    /// ended.
    fn poll_last<R, W>(&mut self, cx: &mut Context<'_>, from: &mut R, to: &mut W) -> Poll<()>
    where
        R: BytesRead + Unpin,
        W: BytesWrite + Unpin,
    {
        let mut budget = Budget::RELAY;
        loop {
            if !self.chunk.is_empty() || self.state == State::Ending {
                if ready!(self.write_some(cx, to)).is_err() {
                    return Poll::Ready(());
                }
                if self.state == State::Ending {
                    self.state = State::Ended;
                }
                continue;
            }
            self.chunk = Bytes::new();
            if self.state != State::Moving {
                break;
            }
            if budget.is_spent() {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            match ready!(Pin::new(&mut *from).poll_read_bytes(cx)) {
                Ok(chunk) if from.is_at_end() => (self.chunk, self.state) = (chunk, State::Ending),
                Ok(chunk) if chunk.is_empty() => self.state = State::Failed,
                Ok(chunk) => {
                    budget.spend(chunk.len());
                    self.chunk = chunk;
                }
                Err(_) => self.state = State::Failed,
            }
        }
        // Where flushing fails, nothing is left to wait for.
        let _ = ready!(Pin::new(&mut *to).poll_flush(cx));
        Pin::new(to).poll_sent(cx)
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
            Poll::Ready(Ok(()))
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
        let a = Builder::new().read(b"abc").wait(Duration::from_secs(60)).build();
        let b = Builder::new().write(b"abc").read_error(io::Error::new(io::ErrorKind::ConnectionReset, "gone")).build();
        let error = relay(&mut BytesAdapter::new(a), &mut BytesAdapter::new(b)).await.unwrap_err();
        assert_eq!((error.end(), error.operation()), (RelayEnd::B, RelayOperation::Read));
        assert_eq!(error.stats(), RelayStats { a_to_b: 3, b_to_a: 0 });
        assert_eq!(error.to_string(), "reading from the second stream after 3 + 0 bytes");
    }
}
