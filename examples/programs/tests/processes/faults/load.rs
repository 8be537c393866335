//! Applications that connect all the time, and what became of each connection.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::mesh::GLOBAL;
use crate::process::soon;

/// What became of one connection.
pub(super) struct Record {
    pub(super) began: Instant,
    pub(super) ended: Instant,
    pub(super) outcome: Outcome,
}

pub(super) enum Outcome {
    /// This pod answered. It took this long until the proxy said that the tunnel is open.
    Answered { pod: String, connect: Duration },
    /// No tunnel was opened: the proxy said so, with the code of SOCKS5 or by an error of the connection.
    NotOpened(String),
    /// The tunnel was open, and broke before the answer.
    Cut(String),
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Answered { pod, connect } => write!(f, "connected in {connect:.1?} and answered by {pod}"),
            Self::NotOpened(why) => write!(f, "not opened: {why}"),
            Self::Cut(why) => write!(f, "opened and cut: {why}"),
        }
    }
}

/// Short connections to the service through a SOCKS5 proxy, so and so many at a time: connect, send a line, get the
/// pod's name, close.
pub(super) struct Load {
    shared: Arc<Shared>,
    workers: JoinSet<()>,
}

struct Shared {
    records: Mutex<Vec<Record>>,
    /// How many there are.
    count: watch::Sender<usize>,
    left: Mutex<usize>,
}

/// All connections of a scenario.
pub(super) struct Report(Vec<Record>);

impl Load {
    /// Goes on until [`finish`](Self::finish).
    pub(super) fn start(proxy: SocketAddr, concurrency: usize) -> Self {
        Self::start_counted(proxy, concurrency, usize::MAX)
    }

    /// Makes this many connections.
    pub(super) fn start_counted(proxy: SocketAddr, concurrency: usize, connections: usize) -> Self {
        let (records, left) = (Mutex::default(), Mutex::new(connections));
        let shared = Arc::new(Shared { records, count: watch::channel(0).0, left });
        let mut workers = JoinSet::new();
        for _ in 0..concurrency {
            let shared = shared.clone();
            workers.spawn(async move {
                while shared.take() {
                    shared.add(connection(proxy).await);
                }
            });
        }
        Self { shared, workers }
    }

    /// Waits until this holds for all the connections that have ended.
    pub(super) async fn until(&self, what: &str, holds: impl Fn(&[Record]) -> bool) {
        let mut count = self.shared.count.subscribe();
        soon(what, async {
            while !holds(&self.shared.records.lock().unwrap()) {
                count.changed().await.unwrap();
            }
        })
        .await;
    }

    /// Waits until each of these pods has answered a connection that began after `since`.
    pub(super) async fn reaches(&self, pods: &[&str], since: Instant) {
        let answered = |record: &Record, pod: &str| {
            record.began > since && matches!(&record.outcome, Outcome::Answered { pod: by, .. } if by == pod)
        };
        let all = |records: &[Record]| pods.iter().all(|pod| records.iter().rev().any(|r| answered(r, pod)));
        self.until(&format!("answers from {pods:?}"), all).await;
    }

    /// Begins no more connections, and waits for those that are under way.
    pub(super) async fn finish(self) -> Report {
        *self.shared.left.lock().unwrap() = 0;
        self.done().await
    }

    /// Waits for all connections.
    pub(super) async fn done(mut self) -> Report {
        soon("the last connections", async { while self.workers.join_next().await.is_some() {} }).await;
        Report(std::mem::take(&mut *self.shared.records.lock().unwrap()))
    }
}

impl Shared {
    fn take(&self) -> bool {
        let mut left = self.left.lock().unwrap();
        let taken = left.checked_sub(1);
        *left = taken.unwrap_or(0);
        taken.is_some()
    }

    fn add(&self, record: Record) {
        self.records.lock().unwrap().push(record);
        self.count.send_modify(|count| *count += 1);
    }
}

async fn connection(proxy: SocketAddr) -> Record {
    let began = Instant::now();
    let outcome = match open(proxy).await {
        Err(why) => Outcome::NotOpened(why),
        Ok(stream) => {
            let connect = began.elapsed();
            match ask(stream).await {
                Ok(pod) => Outcome::Answered { pod, connect },
                Err(error) => Outcome::Cut(error.to_string()),
            }
        }
    };
    Record { began, ended: Instant::now(), outcome }
}

/// Returns when there is a tunnel: that is when the proxy answers.
async fn open(proxy: SocketAddr) -> Result<TcpStream, String> {
    let error = |e: io::Error| e.to_string();
    let mut stream = TcpStream::connect(proxy).await.map_err(error)?;
    let length = u8::try_from(GLOBAL.len()).unwrap();
    let request = [&[5, 1, 0, 5, 1, 0, 3, length], GLOBAL.as_bytes(), &80_u16.to_be_bytes()].concat();
    stream.write_all(&request).await.map_err(error)?;
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).await.map_err(error)?;
    match answer[3] {
        0 => Ok(stream),
        code => Err(format!("SOCKS5 reply {code}")),
    }
}

async fn ask(mut stream: TcpStream) -> io::Result<String> {
    stream.write_all(b"who?\n").await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    answer.strip_suffix('\n').map(str::to_owned).ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
}

/// An application: answers a line with its name.
pub(super) fn answer(listener: TcpListener, name: &'static str) {
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut question = [0; 5];
                stream.read_exact(&mut question).await?;
                stream.write_all(format!("{name}\n").as_bytes()).await?;
                stream.shutdown().await
            });
        }
    });
}

impl Report {
    /// What failed and should not have, a line for each: everything except those whose tunnels were open when something
    /// was killed, and so began before `killed`.
    pub(super) fn lost(&self, killed: Option<Instant>) -> String {
        let allowed = |record: &&Record| match &record.outcome {
            Outcome::Answered { .. } => true,
            Outcome::NotOpened(_) => false,
            Outcome::Cut(_) => killed.is_some_and(|killed| record.began < killed),
        };
        let start = self.0.iter().map(|record| record.began).min().unwrap();
        let line = |r: &Record| format!("from {:.1?} to {:.1?}: {}\n", r.began - start, r.ended - start, r.outcome);
        self.0.iter().filter(|record| !allowed(record)).map(line).collect()
    }

    /// How many connections each pod has answered.
    pub(super) fn by_pod(&self) -> BTreeMap<&str, usize> {
        let mut pods = BTreeMap::new();
        for record in &self.0 {
            if let Outcome::Answered { pod, .. } = &record.outcome {
                *pods.entry(&**pod).or_default() += 1;
            }
        }
        pods
    }
}

/// One line of a table.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let connect = |record: &Record| match record.outcome {
            Outcome::Answered { connect, .. } => Some(connect),
            _ => None,
        };
        let mut times: Vec<_> = self.0.iter().filter_map(connect).collect();
        times.sort_unstable();
        let at = |percent: usize| times.get((times.len() * percent / 100).min(times.len().saturating_sub(1)));
        let [p50, p99, max] = [50, 99, 100].map(|percent| at(percent).copied().unwrap_or_default());
        let cut = self.0.iter().filter(|record| matches!(record.outcome, Outcome::Cut(_))).count();
        let not_opened = self.0.len() - times.len() - cut;
        write!(
            f,
            "{} connections, {not_opened} not opened, {cut} cut after the 200; connect p50 {p50:.1?}, p99 {p99:.1?}, max {max:.1?}; {:?}",
            self.0.len(),
            self.by_pod()
        )
    }
}
