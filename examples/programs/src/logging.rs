//! A log that keeps nobody waiting.
//!
//! Whoever reads stderr may be slow, stopped or gone, and the disk behind it full. A thread of its own writes; while
//! that can't go on, lines are dropped and counted, and the count is logged as soon as something can be written again.

use std::io::{self, IsTerminal, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread;
use std::time::Duration;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

/// How many bytes may wait to be written.
const MAX_QUEUED: usize = 1 << 20;

/// The way to the thread that writes. Clones lead to the same one.
#[derive(Clone, Debug)]
pub struct Log {
    queue: Sender<Message>,
    counts: Arc<Counts>,
}

#[derive(Debug)]
enum Message {
    Line(Vec<u8>),
    /// Answered once everything before it has been written.
    Flush(SyncSender<()>),
}

#[derive(Debug, Default)]
struct Counts {
    queued: AtomicUsize,
    dropped: AtomicU64,
}

impl Log {
    /// Starts the thread that writes to `output`. It ends with the process, whatever `output` does then.
    ///
    /// # Errors
    ///
    /// When the system has no more threads.
    pub fn start(output: impl Write + Send + 'static) -> io::Result<Self> {
        let (queue, messages) = channel();
        let counts = Arc::<Counts>::default();
        let counted = counts.clone();
        thread::Builder::new().name("log".into()).spawn(move || write_all(&messages, output, &counted))?;
        Ok(Self { queue, counts })
    }

    /// Takes one line, its end included. Never waits.
    pub fn line(&self, line: &[u8]) {
        let queued = self.counts.queued.fetch_add(line.len(), Ordering::AcqRel);
        if queued + line.len() > MAX_QUEUED || self.queue.send(Message::Line(line.to_vec())).is_err() {
            self.counts.queued.fetch_sub(line.len(), Ordering::AcqRel);
            self.counts.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// How many lines have been dropped since the log last said so.
    pub fn dropped(&self) -> u64 {
        self.counts.dropped.load(Ordering::Relaxed)
    }

    /// Waits until the lines taken so far have been written, for this time at most.
    pub fn flush(&self, timeout: Duration) {
        let (done, flushed) = sync_channel(1);
        if self.queue.send(Message::Flush(done)).is_ok() {
            let _ = flushed.recv_timeout(timeout);
        }
    }

    /// Makes this the log of the process, filtered as `RUST_LOG` says, or at `info`.
    pub(crate) fn install(&self) {
        let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
        tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_writer(self.clone())
            .with_ansi(io::stderr().is_terminal())
            // It would go to stderr at once.
            .log_internal_errors(false)
            .init();
    }
}

fn write_all(messages: &Receiver<Message>, mut output: impl Write, counts: &Counts) {
    for message in messages {
        let line = match message {
            Message::Line(line) => line,
            Message::Flush(done) => {
                let _ = done.send(());
                continue;
            }
        };
        let mut dropped = counts.dropped.swap(0, Ordering::Relaxed);
        if dropped > 0 {
            let note = format!("{dropped} lines of the log were dropped: they could not be written\n");
            if output.write_all(note.as_bytes()).is_ok() {
                dropped = 0;
            }
        }
        if output.write_all(&line).and_then(|()| output.flush()).is_err() {
            dropped += 1;
        }
        counts.dropped.fetch_add(dropped, Ordering::Relaxed);
        counts.queued.fetch_sub(line.len(), Ordering::AcqRel);
    }
}

/// Each write is one line: the subscriber puts it together before.
impl Write for Log {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.line(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Log {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}

/// Says on stdout that all listeners are up. Whoever started the process may wait for that, or have gone away, or never
/// read.
pub(crate) fn announce_ready() {
    let announce = || {
        let mut stdout = io::stdout().lock();
        let _ = stdout.write_all(b"ready\n").and_then(|()| stdout.flush());
    };
    // Without a thread to spare it is better not to be heard than to wait.
    let _ = thread::Builder::new().name("ready".into()).spawn(announce);
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::mpsc::SyncSender;

    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    /// What was written, and whether the next write succeeds.
    #[derive(Clone, Default)]
    struct Output(Arc<Mutex<(String, bool)>>);

    impl Write for Output {
        fn write(&mut self, line: &[u8]) -> io::Result<usize> {
            let mut output = self.0.lock().unwrap();
            if output.1 {
                return Err(io::ErrorKind::StorageFull.into());
            }
            output.0 += std::str::from_utf8(line).unwrap();
            Ok(line.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// A pipe that nobody reads: the first write never comes back, until the test ends.
    struct Stuck(SyncSender<()>);

    impl Write for Stuck {
        fn write(&mut self, line: &[u8]) -> io::Result<usize> {
            self.0.send(()).map(|()| line.len()).map_err(io::Error::other)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn lines_are_written_in_order_and_each_whole() {
        let output = Output::default();
        let log = Log::start(output.clone()).unwrap();
        log.line(b"one\n");
        log.clone().write_all(b"two\n").unwrap();
        log.flush(LONG);
        assert_eq!(output.0.lock().unwrap().0, "one\ntwo\n");
    }

    #[test]
    fn what_could_not_be_written_is_counted_and_the_count_is_logged() {
        let output = Output::default();
        let log = Log::start(output.clone()).unwrap();
        output.0.lock().unwrap().1 = true;
        (0..3).for_each(|_| log.line(b"lost\n"));
        log.flush(LONG);
        assert_eq!(log.dropped(), 3);
        output.0.lock().unwrap().1 = false;
        log.line(b"found\n");
        log.flush(LONG);
        let written = output.0.lock().unwrap().0.clone();
        assert_eq!(written, "3 lines of the log were dropped: they could not be written\nfound\n");
        assert_eq!(log.dropped(), 0);
    }

    #[test]
    fn a_log_that_nobody_reads_keeps_nobody_waiting_and_little_memory() {
        let (stuck, _never_read) = sync_channel(0);
        let log = Log::start(Stuck(stuck)).unwrap();
        for _ in 0..10_000 {
            log.line(&[b'x'; 1000]);
        }
        assert!(log.dropped() > 8_900, "{}", log.dropped());
        assert!(log.counts.queued.load(Ordering::Relaxed) <= MAX_QUEUED);
        log.flush(Duration::from_millis(1));
    }
}
