//! The byte stream behind a tunnel, which is reset unless it has ended.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::io::{BoxStream, BytesRead, BytesWrite, ReadBuffer, Stream, poll_write_some};

/// A byte stream that fails when it is dropped before both of its directions have [finished](Self::finish): what was
/// truncated must not look whole.
pub(super) struct ResetOnDrop {
    stream: BoxStream,
    buffer: ReadBuffer,
    /// What followed the bytes that were read last: the end, or a failure.
    next: Option<io::Result<()>>,
    /// A write has failed: an end that is read from here on may be that of what was reset.
    broken: bool,
    /// A write had to wait.
    blocked: bool,
    /// Boxed twice: connections are many, and few of them come to need it.
    sent: Option<Box<Sent>>,
    finished: bool,
}

type Sent = Pin<Box<dyn Future<Output = ()> + Send>>;

impl ResetOnDrop {
    pub(super) fn new(stream: BoxStream) -> Self {
        Self {
            stream,
            buffer: ReadBuffer::default(),
            next: None,
            broken: false,
            blocked: false,
            sent: None,
            finished: false,
        }
    }

    /// Both directions have ended: it may be dropped.
    pub(super) fn finish(&mut self) {
        self.finished = true;
    }

    /// What reading returns from here on, if that is known. A failure is returned once, as by any stream.
    fn end(&mut self) -> Option<io::Result<()>> {
        match &self.next {
            Some(Ok(())) => Some(Ok(())),
            _ => self.next.take(),
        }
    }

    /// What reading nothing means.
    fn end_of_read(&self) -> io::Result<()> {
        if self.broken { Err(io::ErrorKind::ConnectionReset.into()) } else { Ok(()) }
    }

    fn note<T>(&mut self, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        self.broken |= matches!(written, Poll::Ready(Err(_)));
        if written.is_pending() && !self.blocked {
            self.blocked = true;
            self.stream.write_blocked();
        }
        written
    }
}

impl Drop for ResetOnDrop {
    fn drop(&mut self) {
        if !self.finished {
            self.stream.fail();
        }
    }
}

impl BytesRead for ResetOnDrop {
    fn poll_read_bytes(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<Bytes>> {
        let this = self.get_mut();
        if let Some(end) = this.end() {
            return Poll::Ready(end.map(|()| Bytes::new()));
        }
        if ready!(this.buffer.poll_fill(cx, &mut this.stream))? > 0 {
            this.next = match this.buffer.read_behind(cx, &mut this.stream) {
                Some(Ok(0)) => Some(this.end_of_read()),
                Some(Err(e)) => Some(Err(e)),
                Some(Ok(_)) | None => None,
            };
        } else {
            this.end_of_read()?;
        }
        let read = this.buffer.bytes.split().freeze();
        if this.next.is_some() || read.is_empty() {
            // The other direction may go on for long.
            this.buffer = ReadBuffer::default();
        }
        Poll::Ready(Ok(read))
    }

    fn poll_failed(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Error> {
        match self.next.take() {
            Some(Err(e)) => Poll::Ready(e),
            other => {
                self.next = other;
                Poll::Pending
            }
        }
    }

    fn is_at_end(&self) -> bool {
        matches!(self.next, Some(Ok(())))
    }
}

impl BytesWrite for ResetOnDrop {
    fn poll_write_bytes(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &mut Bytes) -> Poll<io::Result<()>> {
        let written = poll_write_some(&mut self.stream, cx, data);
        self.note(written)
    }

    fn poll_write_last(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &mut Bytes) -> Poll<io::Result<()>> {
        if !data.is_empty() {
            self.stream.expect_shutdown();
        }
        while !data.is_empty() {
            ready!(self.as_mut().poll_write_bytes(cx, data))?;
        }
        self.poll_shutdown(cx)
    }

    fn poll_sent(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.get_mut();
        this.sent.get_or_insert_with(|| Box::new(this.stream.sent())).as_mut().as_mut().poll(cx)
    }
}

impl AsyncRead for ResetOnDrop {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.end() {
            Some(end) => Poll::Ready(end),
            None => Pin::new(&mut self.stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for ResetOnDrop {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.note(written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(cx);
        self.note(flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let ended = Pin::new(&mut self.stream).poll_shutdown(cx);
        self.note(ended)
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::sync::{Arc, Mutex};
    use std::time::Duration;

    use rstest::rstest;
    use tokio::io::{AsyncReadExt, duplex};
    use tokio_test::io::{Builder, Mock};
    use tokio_test::task;

    use super::*;
    use crate::io::read_bytes;

    impl Stream for Mock {}

    fn reading(script: &mut Builder) -> ResetOnDrop {
        ResetOnDrop::new(Box::new(script.build()))
    }

    fn lost() -> io::Error {
        io::ErrorKind::ConnectionReset.into()
    }

    #[tokio::test]
    async fn an_end_right_behind_the_last_bytes_is_known_with_them() {
        let mut stream = reading(Builder::new().read(b"word"));
        assert_eq!(read_bytes(&mut stream).await.unwrap(), "word");
        assert!(stream.is_at_end());
        for _ in 0..2 {
            assert!(read_bytes(&mut stream).await.unwrap().is_empty());
        }
    }

    #[tokio::test]
    async fn what_comes_right_behind_is_read_along() {
        let mut stream = reading(Builder::new().read(b"two ").read(b"words").wait(Duration::from_millis(1)).read(b"!"));
        assert_eq!(read_bytes(&mut stream).await.unwrap(), "two words");
        assert!(!stream.is_at_end());
        assert_eq!(read_bytes(&mut stream).await.unwrap(), "!");
    }

    #[tokio::test]
    async fn a_failure_right_behind_the_last_bytes_is_returned_after_them() {
        let mut stream = reading(Builder::new().read(b"word").read_error(lost()));
        assert_eq!(read_bytes(&mut stream).await.unwrap(), "word");
        assert!(!stream.is_at_end());
        assert_eq!(read_bytes(&mut stream).await.unwrap_err().kind(), lost().kind());
    }

    #[rstest]
    #[tokio::test]
    async fn both_ways_of_reading_return_the_same(#[values(true, false)] fails: bool) {
        let mut stream = match fails {
            true => reading(Builder::new().read(b"word").read_error(lost())),
            false => reading(Builder::new().read(b"word")),
        };
        assert_eq!(read_bytes(&mut stream).await.unwrap(), "word");
        let rest = stream.read(&mut [0]).await.map_err(|e| e.kind());
        assert_eq!(rest, if fails { Err(lost().kind()) } else { Ok(0) });
    }

    #[tokio::test]
    async fn a_known_failure_is_reported_to_a_blocked_writer() {
        let mut stream = reading(Builder::new().read(b"word").read_error(lost()));
        assert_eq!(read_bytes(&mut stream).await.unwrap(), "word");
        let failed = poll_fn(|cx| Pin::new(&mut stream).poll_failed(cx)).await;
        assert_eq!(failed.kind(), lost().kind());
    }

    #[tokio::test]
    async fn the_last_bytes_are_written_on_as_far_as_there_is_room() {
        let (mut near, far) = duplex(4);
        let mut stream = ResetOnDrop::new(Box::new(far));
        let mut data = Bytes::from("more than fits");
        let mut writing = task::spawn(poll_fn(|cx| Pin::new(&mut stream).poll_write_last(cx, &mut data)));
        assert!(writing.poll().is_pending());
        let mut got = String::new();
        let (read, written) = tokio::join!(near.read_to_string(&mut got), writing);
        read.unwrap();
        written.unwrap();
        assert_eq!(got, "more than fits");
    }

    /// Records what it is asked for.
    struct Recording(Arc<Mutex<Vec<&'static str>>>);

    impl Recording {
        fn note(&self, what: &'static str) {
            self.0.lock().unwrap().push(what);
        }
    }

    impl Stream for Recording {
        fn expect_shutdown(&mut self) {
            self.note("expect shutdown");
        }
    }

    impl AsyncRead for Recording {
        fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, _: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            Poll::Pending
        }
    }

    impl AsyncWrite for Recording {
        fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
            self.note("write");
            Poll::Ready(Ok(data.len().min(4)))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            self.note("shutdown");
            Poll::Ready(Ok(()))
        }
    }

    #[rstest]
    #[case::bytes("words", &["expect shutdown", "write", "write", "shutdown"])]
    #[case::nothing("", &["shutdown"])]
    #[tokio::test]
    async fn the_shutdown_follows_the_last_bytes_and_is_announced(
        #[case] last: &'static str,
        #[case] expected: &[&'static str],
    ) {
        let notes = Arc::default();
        let mut stream = ResetOnDrop::new(Box::new(Recording(Arc::clone(&notes))));
        let mut data = Bytes::from(last);
        poll_fn(|cx| Pin::new(&mut stream).poll_write_last(cx, &mut data)).await.unwrap();
        assert_eq!(*notes.lock().unwrap(), expected);
    }
}
