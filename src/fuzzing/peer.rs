//! The scripted peer.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, WriteHalf, duplex, split};
use tokio::sync::{mpsc, watch};
use tokio::task::yield_now;
use tokio::time::{sleep, timeout};

use super::frames::{self, ACK, DATA, Frame, PING, PREFACE, SETTINGS, WINDOW_UPDATE, frame};
use super::script::{self, Act, Step};
use crate::config::Config;

/// Longer than all pauses and timeouts together. The clock is paused, so it passes at once.
const FOREVER: Duration = Duration::from_secs(7 * 24 * 3600);

/// How long a responsive peer goes on after its script.
const PATIENCE: Duration = Duration::from_secs(100);

/// The bit of [`Setup::pipe`] that leaves a client's preface out.
const NO_PREFACE: u8 = 0x80;

/// Runs a future on a paused clock, and panics if it never ends.
pub(super) fn run(future: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    runtime.expect("a runtime").block_on(async { timeout(FOREVER, future).await.expect("an end") });
}

/// The settings of a session, one byte each, in front of its script.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Setup {
    /// The capacity of the pipe between the ends.
    pub(crate) pipe: u8,
    /// The [`Config`] of our end.
    pub(crate) config: u8,
    /// What the peer does during and after its script.
    pub(crate) conduct: u8,
    /// How many tunnels a client opens before the script begins.
    pub(crate) opens: u8,
}

impl Setup {
    /// Decodes setup and script.
    pub(super) fn read(data: &[u8]) -> (Self, Vec<Step>) {
        let Some(([pipe, config, conduct, opens], script)) = data.split_first_chunk() else {
            return (Self::default(), Vec::new());
        };
        (Self { pipe: *pipe, config: *config, conduct: *conduct, opens: *opens % 4 }, script::decode(script))
    }

    /// Lets the client's script begin without the preface.
    #[cfg(test)]
    pub(crate) fn without_preface(self) -> Self {
        Self { pipe: self.pipe | NO_PREFACE, ..self }
    }

    /// Whether the client's preface precedes the script.
    pub(super) fn has_preface(self) -> bool {
        self.pipe & NO_PREFACE == 0
    }

    /// Encodes setup and script.
    #[cfg(test)]
    pub(crate) fn write(self, steps: &[Step]) -> Vec<u8> {
        [&[self.pipe, self.config, self.conduct, self.opens], &*script::encode(steps)].concat()
    }

    pub(super) fn pipe(self) -> (DuplexStream, DuplexStream) {
        duplex([64 << 10, 4096, 100, 16][usize::from(self.pipe) % 4])
    }

    pub(super) fn config(self) -> Arc<Config> {
        let config = Config::new();
        Arc::new(match self.config % 6 {
            0 => config,
            1 => config.with_max_tunnels(2).with_initial_tunnels(1),
            2 => config.with_stream_window(64 << 10).with_max_stream_window(1),
            3 => config.with_send_buffer(0).with_max_header_list_size(256),
            4 => config.with_small_frame_budget(1000),
            _ => config.with_keepalive_interval(Some(Duration::from_secs(1))).with_linger_timeout(Duration::ZERO),
        })
    }

    /// Whether the peer acknowledges SETTINGS and PING and returns window, beside its script.
    fn answers(self) -> bool {
        self.conduct & 4 != 0
    }

    /// Whether the peer drops the connection after its script.
    fn breaks(self) -> bool {
        self.conduct & 3 == 2
    }

    /// Whether the peer leaves its side open after its script.
    fn falls_silent(self) -> bool {
        self.conduct & 3 == 3
    }
}

/// The bytes of a connection, as the peer saw them.
#[derive(Clone, Debug, Default)]
pub(super) struct Transcript(Arc<Mutex<Sides>>);

#[derive(Debug, Default)]
struct Sides {
    written: Vec<u8>,
    read: Vec<u8>,
}

impl Transcript {
    fn lock(&self) -> MutexGuard<'_, Sides> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the peer wrote and what it read.
    pub(super) fn take(self) -> (Vec<u8>, Vec<u8>) {
        let sides = std::mem::take(&mut *self.lock());
        (sides.written, sides.read)
    }
}

/// The writing half of the peer.
#[derive(Debug)]
pub(super) struct Peer<IO> {
    write: WriteHalf<IO>,
    setup: Setup,
    transcript: Transcript,
    /// Whether it reads.
    reads: watch::Sender<bool>,
}

impl<IO: AsyncRead + AsyncWrite> Peer<IO> {
    async fn write(&mut self, bytes: &[u8]) -> bool {
        self.transcript.lock().written.extend(bytes);
        self.write.write_all(bytes).await.is_ok() && self.write.flush().await.is_ok()
    }

    /// Plays the script until its end or the connection's.
    async fn play(
        &mut self,
        steps: Vec<Step>,
        acts: mpsc::UnboundedSender<(u8, Act)>,
        answers: &mut mpsc::UnboundedReceiver<Vec<u8>>,
    ) {
        let mut size = usize::MAX;
        for step in steps {
            while let Ok(bytes) = answers.try_recv() {
                if !self.write(&bytes).await {
                    return;
                }
            }
            match step {
                Step::Cut(len) => size = if len == 0 { usize::MAX } else { len.into() },
                Step::Pause(time) => sleep(time).await,
                Step::Read(on) => {
                    self.reads.send_replace(on);
                }
                Step::Local { tunnel, act } => {
                    let _ = acts.send((tunnel, act));
                    yield_now().await;
                }
                Step::End => return,
                step => {
                    for piece in step.pieces(size) {
                        if !self.write(&piece).await {
                            return;
                        }
                        yield_now().await;
                    }
                }
            }
        }
    }

    /// Goes on after the script, until our end is `over`.
    async fn end(&mut self, over: &mut watch::Receiver<bool>, answers: &mut mpsc::UnboundedReceiver<Vec<u8>>) {
        if self.setup.answers() {
            let answering = timeout(PATIENCE, async {
                while let Some(bytes) = answers.recv().await
                    && self.write(&bytes).await
                {}
            });
            let _ = answering.await;
        }
        if !self.setup.falls_silent() {
            let _ = self.write.shutdown().await;
        }
        let _ = over.wait_for(|over| *over).await;
        self.reads.send_replace(true);
    }
}

/// Plays a script on one end of a connection, then reads until the other end closes. Acts for our end go to `acts`;
/// `over` turns true when our end is done.
pub(super) async fn play<IO: AsyncRead + AsyncWrite>(
    io: IO,
    (setup, steps): (Setup, Vec<Step>),
    acts: mpsc::UnboundedSender<(u8, Act)>,
    mut over: watch::Receiver<bool>,
    transcript: Transcript,
) {
    let (mut read, write) = split(io);
    let (reads, mut listening) = watch::channel(true);
    let (answer, mut answers) = mpsc::unbounded_channel();
    let mut peer = Peer { write, setup, transcript: transcript.clone(), reads };
    let reading = async move {
        let (mut buf, mut parsed) = ([0; 4096], 0);
        loop {
            let _ = listening.wait_for(|on| *on).await;
            match read.read(&mut buf).await {
                Ok(0) | Err(_) => break,
                Ok(n) => transcript.lock().read.extend(&buf[..n]),
            }
            if setup.answers() {
                parsed += respond(&transcript.lock().read, parsed, &answer);
            }
        }
    };
    let writing = async move {
        peer.play(steps, acts, &mut answers).await;
        if !setup.breaks() {
            peer.end(&mut over, &mut answers).await;
        }
    };
    if setup.breaks() {
        tokio::select! {
            biased;
            () = writing => {}
            () = async { reading.await; std::future::pending().await } => {}
        }
    } else {
        tokio::join!(writing, reading);
    }
}

/// Answers the whole frames from `parsed` on, and returns their length.
fn respond(read: &[u8], parsed: usize, answer: &mpsc::UnboundedSender<Vec<u8>>) -> usize {
    let after_preface = if read.starts_with(PREFACE) { PREFACE.len() } else { 0 };
    let start = parsed.max(after_preface);
    let mut len = start - parsed;
    for frame in frames::parse(&read[start..]) {
        len += frames::HEAD + frame.payload.len();
        for bytes in response(&frame) {
            let _ = answer.send(bytes);
        }
    }
    len
}

fn response(to: &Frame) -> Vec<Vec<u8>> {
    match to.kind {
        SETTINGS if !to.has(ACK) => vec![frame(SETTINGS, ACK, 0, &[])],
        PING if !to.has(ACK) => vec![frame(PING, ACK, 0, &to.payload)],
        DATA if !to.payload.is_empty() => {
            let len = u32::try_from(to.payload.len()).unwrap_or(u32::MAX).to_be_bytes();
            vec![frame(WINDOW_UPDATE, 0, 0, &len), frame(WINDOW_UPDATE, 0, to.stream, &len)]
        }
        _ => Vec::new(),
    }
}
