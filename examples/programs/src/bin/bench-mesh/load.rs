//! The load, and what one run of it gives.

use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use clap::ValueEnum;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use crate::Failure;
use crate::roles::{CHUNK, DOWNLOAD, ECHO, ONCE, UPLOAD, head};
use crate::stats::{cpu, percentile};
use crate::world::Route;

/// How many connections the closed loops keep busy.
const CLOSED: usize = 16;
/// The fixed rate: requests per second over all of its connections.
const RATE: u32 = 2000;
const OPEN: u32 = 64;
const REQUEST: usize = 100;
const RESPONSE: usize = 1024;
const ONCE_SIZE: usize = 64;
/// Between the requests of the slow path.
const PAUSE: Duration = Duration::from_millis(10);
/// How long it is measured at least: a request may take a third of a second.
const SLOW: Duration = Duration::from_secs(5);
/// Until what waits along the way is no longer growing.
const FULL: Duration = Duration::from_secs(3);
/// Until windows and buffers have their size.
const WARM: Duration = Duration::from_millis(300);
/// A request that takes longer has failed.
const LOST: Duration = Duration::from_secs(20);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Load {
    /// One connection, as fast as it can, towards the client
    BulkDown,
    /// Likewise, towards the application
    BulkUp,
    /// New connections with a request each, 16 at a time
    New,
    /// Requests over 16 open connections, one after the other on each
    Keep,
    /// 2,000 requests per second over 64 open connections, whether or not the one before is answered
    Rate,
    /// The same beside one bulk download over the same path
    RateBusy,
    /// A request each 10 ms beside a bulk upload, where the path has a link of 100 Mb/s
    Slow,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Metric {
    /// Gb/s of bulk, else requests per second.
    Throughput,
    /// CPU seconds of all proxies per GB of bulk, else microseconds per request.
    Cpu,
    /// Microseconds.
    P50,
    P99,
    P999,
}

pub(crate) type Figures = Vec<(Metric, f64)>;

/// What one run of a load gives.
#[derive(Default)]
pub(crate) struct Outcome {
    pub(crate) figures: Figures,
    /// Requests and connections that went wrong, and what was wrong with the first of them.
    pub(crate) failed: u64,
    pub(crate) why: Option<String>,
}

impl Outcome {
    fn fail(&mut self, error: &io::Error) {
        self.failed += 1;
        self.why.get_or_insert_with(|| error.to_string());
    }
}

impl Load {
    pub(crate) fn is_bulk(self) -> bool {
        matches!(self, Self::BulkDown | Self::BulkUp)
    }

    /// Whether the path is one to measure it on.
    pub(crate) fn is_for(self, route: &Route) -> bool {
        (self == Self::Slow) == route.is_slow() && (self.is_bulk() || !route.is_for_bulk())
    }

    pub(crate) async fn run(self, route: &Route, time: Duration) -> Result<Outcome, Failure> {
        let address = route.address;
        match self {
            Self::BulkDown | Self::BulkUp => bulk(route, self == Self::BulkUp, time).await,
            Self::New => requests(route, time, move |until, latencies| new(address, until, latencies)).await,
            Self::Keep => requests(route, time, move |until, latencies| keep(address, until, latencies)).await,
            Self::Rate => rate(route, time).await,
            Self::Slow => Ok(slow(address, time.max(SLOW)).await),
            Self::RateBusy => {
                let busy = tokio::spawn(async move {
                    let mut stream = connect(address, DOWNLOAD, 0, 0).await?;
                    let mut buffer = vec![0; CHUNK];
                    while stream.read(&mut buffer).await? > 0 {}
                    Err::<(), _>(io::Error::from(io::ErrorKind::UnexpectedEof))
                });
                sleep(WARM).await;
                let mut outcome = rate(route, time).await?;
                if busy.is_finished() {
                    let error = busy.await?.err().unwrap_or_else(|| io::Error::other("it has ended"));
                    outcome.fail(&error);
                } else {
                    busy.abort();
                }
                Ok(outcome)
            }
        }
    }
}

async fn connect(address: SocketAddr, kind: u8, request: usize, response: usize) -> io::Result<TcpStream> {
    let mut stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    stream.write_all(&head(kind, request as u32, response as u32)).await?;
    Ok(stream)
}

async fn bulk(route: &Route, up: bool, time: Duration) -> Result<Outcome, Failure> {
    let mut outcome = Outcome::default();
    let measured = async {
        let mut stream = connect(route.address, if up { UPLOAD } else { DOWNLOAD }, 0, 0).await?;
        let mut buffer = vec![0x5a; CHUNK];
        let (mut bytes, mut sent) = (0, 0);
        let mut step = async |stream: &mut TcpStream| -> io::Result<usize> {
            match up {
                true => stream.write(&buffer).await,
                false => match stream.read(&mut buffer).await? {
                    0 => Err(io::ErrorKind::UnexpectedEof.into()),
                    n => Ok(n),
                },
            }
        };
        let warm = Instant::now();
        while warm.elapsed() < WARM {
            sent += step(&mut stream).await?;
        }
        let pids = route.pids().map_err(io::Error::other)?;
        let (before, start) = (cpu(&pids).map_err(io::Error::other)?, Instant::now());
        while start.elapsed() < time {
            bytes += step(&mut stream).await?;
        }
        let (used, took) = (cpu(&pids).map_err(io::Error::other)? - before, start.elapsed());
        if up {
            stream.shutdown().await?;
            let arrived = timeout(LOST, stream.read_u64()).await.map_err(|_| io::ErrorKind::TimedOut)??;
            sent += bytes;
            if arrived != sent as u64 {
                return Err(io::Error::other(format!("{arrived} of {sent} bytes arrived")));
            }
        }
        Ok::<_, io::Error>((bytes as f64, used, took.as_secs_f64()))
    };
    match measured.await {
        Ok((bytes, used, took)) => {
            outcome.figures =
                vec![(Metric::Throughput, bytes * 8.0 / 1e9 / took), (Metric::Cpu, used / (bytes / 1e9).max(1e-9))];
        }
        Err(error) => outcome.fail(&error),
    }
    Ok(outcome)
}

/// Latencies in microseconds, and how the first failure went.
type Latencies = (Vec<u32>, u64, Option<io::Error>);

/// Runs 16 closed loops until the time is over.
async fn requests<F>(route: &Route, time: Duration, each: impl Fn(Instant, Vec<u32>) -> F) -> Result<Outcome, Failure>
where
    F: Future<Output = Latencies> + Send + 'static,
{
    let pids = route.pids()?;
    let (before, start) = (cpu(&pids)?, Instant::now());
    let mut loops = JoinSet::new();
    for _ in 0..CLOSED {
        loops.spawn(each(start + time, Vec::with_capacity(100_000)));
    }
    let results = loops.join_all().await;
    let (used, took) = (cpu(&pids)? - before, start.elapsed());
    Ok(summary(results, used, took))
}

fn summary(results: Vec<Latencies>, used: f64, took: Duration) -> Outcome {
    let mut outcome = Outcome::default();
    let mut all = Vec::new();
    for (latencies, failed, why) in results {
        all.extend(latencies);
        outcome.failed += failed;
        outcome.why = outcome.why.or(why.map(|e| e.to_string()));
    }
    all.sort_unstable();
    let done = all.len() as f64;
    outcome.figures = vec![(Metric::Throughput, done / took.as_secs_f64()), (Metric::Cpu, used * 1e6 / done.max(1.0))];
    for (metric, percent) in [(Metric::P50, 50.0), (Metric::P99, 99.0), (Metric::P999, 99.9)] {
        outcome.figures.extend(percentile(&all, percent).map(|us| (metric, f64::from(us))));
    }
    outcome
}

fn micros(since: Instant) -> u32 {
    u32::try_from(since.elapsed().as_micros()).unwrap_or(u32::MAX)
}

async fn new(address: SocketAddr, until: Instant, mut latencies: Vec<u32>) -> Latencies {
    let (mut failed, mut why) = (0, None);
    let mut answer = Vec::with_capacity(ONCE_SIZE);
    let mut ask = [0; 9 + ONCE_SIZE];
    ask[..9].copy_from_slice(&head(ONCE, ONCE_SIZE as u32, ONCE_SIZE as u32));
    while Instant::now() < until {
        let start = Instant::now();
        answer.clear();
        let request = async {
            let mut stream = TcpStream::connect(address).await?;
            stream.write_all(&ask).await?;
            stream.read_to_end(&mut answer).await
        };
        match timeout(LOST, request).await {
            Ok(Ok(ONCE_SIZE)) => latencies.push(micros(start)),
            Ok(Ok(n)) => {
                failed += 1;
                why = Some(io::Error::other(format!("{n} of {ONCE_SIZE} bytes arrived")));
            }
            Ok(Err(error)) => (failed, why) = (failed + 1, Some(error)),
            Err(_) => (failed, why) = (failed + 1, Some(io::ErrorKind::TimedOut.into())),
        }
    }
    (latencies, failed, why)
}

async fn keep(address: SocketAddr, until: Instant, mut latencies: Vec<u32>) -> Latencies {
    let run = async {
        let mut stream = connect(address, ECHO, REQUEST, RESPONSE).await?;
        let mut answer = [0; RESPONSE];
        while Instant::now() < until {
            let start = Instant::now();
            stream.write_all(&[0; REQUEST]).await?;
            stream.read_exact(&mut answer).await?;
            latencies.push(micros(start));
        }
        Ok(())
    };
    let spare = until + LOST;
    let why: Option<io::Error> = match tokio::time::timeout_at(spare, run).await {
        Ok(Ok(())) => None,
        Ok(Err(error)) => Some(error),
        Err(_) => Some(io::ErrorKind::TimedOut.into()),
    };
    (latencies, u64::from(why.is_some()), why)
}

/// Requests at a fixed rate, by threads: timers of the runtime are as coarse as what is measured.
async fn rate(route: &Route, time: Duration) -> Result<Outcome, Failure> {
    let pids = route.pids()?;
    let address = route.address;
    let (before, start) = (cpu(&pids)?, Instant::now());
    let threads: Vec<_> =
        (0..OPEN).map(|n| tokio::task::spawn_blocking(move || paced(address, start, n, time))).collect();
    let mut results = Vec::new();
    for thread in threads {
        results.push(thread.await?);
    }
    Ok(summary(results, cpu(&pids)? - before, time))
}

/// Requests beside an upload that fills whatever the way has to wait in.
async fn slow(address: SocketAddr, time: Duration) -> Outcome {
    let mut latencies = Vec::new();
    let run = async {
        let mut stream = connect(address, ECHO, REQUEST, RESPONSE).await?;
        let mut answer = [0; RESPONSE];
        let upload = async {
            let mut bulk = connect(address, UPLOAD, 0, 0).await?;
            let chunk = vec![0x5a; CHUNK];
            loop {
                bulk.write_all(&chunk).await?;
            }
        };
        let requests = async {
            sleep(FULL).await;
            let until = Instant::now() + time;
            while Instant::now() < until {
                let start = Instant::now();
                stream.write_all(&[0; REQUEST]).await?;
                timeout(LOST, stream.read_exact(&mut answer)).await.map_err(|_| io::ErrorKind::TimedOut)??;
                latencies.push(micros(start));
                sleep(PAUSE).await;
            }
            Ok(())
        };
        tokio::select! {
            failed = upload => failed,
            done = requests => done,
        }
    };
    let why: Option<io::Error> = run.await.err();
    let mut outcome = summary(vec![(latencies, u64::from(why.is_some()), why)], 0.0, time);
    // How many there were follows from how long each took, and the upload's rate from the link.
    outcome.figures.retain(|(metric, _)| !matches!(metric, Metric::Throughput | Metric::Cpu));
    outcome
}

/// The part of one connection. Each latency counts from when the request was to be sent, so that one that waits for the
/// answer of the one before is as late as a user would find it.
fn paced(address: SocketAddr, start: Instant, n: u32, time: Duration) -> Latencies {
    let (period, mut due) = (Duration::from_secs(1) * OPEN / RATE, start + Duration::from_secs(1) * n / RATE);
    let mut latencies = Vec::new();
    let mut run = || -> io::Result<()> {
        let mut stream = std::net::TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(LOST))?;
        stream.write_all(&head(ECHO, REQUEST as u32, RESPONSE as u32))?;
        // Connections that are opened all at once would be what is measured.
        let mut answer = [0; RESPONSE];
        due += WARM;
        while due < start + WARM + time {
            #[expect(clippy::disallowed_methods, reason = "a thread of its own, with real time")]
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            stream.write_all(&[0; REQUEST])?;
            stream.read_exact(&mut answer)?;
            latencies.push(micros(due));
            due += period;
        }
        Ok(())
    };
    let why = run().err();
    (latencies, u64::from(why.is_some()), why)
}

/// Connections that are open and have been answered once, until they are dropped.
pub(crate) struct Held {
    pub(crate) connections: Vec<TcpStream>,
    pub(crate) failed: u64,
    pub(crate) why: Option<String>,
}

/// Opens connections, 16 at a time.
pub(crate) async fn hold(address: SocketAddr, count: usize) -> Held {
    let (next, stopped) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let mut tasks = JoinSet::new();
    for _ in 0..CLOSED {
        let (next, stopped) = (next.clone(), stopped.clone());
        tasks.spawn(async move {
            let mut connections = Vec::new();
            while !stopped.load(Ordering::Relaxed) && next.fetch_add(1, Ordering::Relaxed) < count as u64 {
                let open = async {
                    let mut stream = connect(address, ECHO, 1, 1).await?;
                    stream.write_all(b"?").await?;
                    stream.read_u8().await?;
                    Ok::<_, io::Error>(stream)
                };
                match timeout(LOST, open).await {
                    Ok(Ok(stream)) => connections.push(stream),
                    failed => {
                        // For lack of file descriptors all others would fail as well, each after its time.
                        stopped.store(true, Ordering::Relaxed);
                        let why = failed.map(|r| r.err().map(|e| e.to_string()).unwrap_or_default());
                        return (connections, Some(why.unwrap_or_else(|_| "no answer".into())));
                    }
                }
            }
            (connections, None)
        });
    }
    let mut held = Held { connections: Vec::with_capacity(count), failed: 0, why: None };
    for (connections, why) in tasks.join_all().await {
        held.connections.extend(connections);
        held.failed += u64::from(why.is_some());
        held.why = held.why.or(why);
    }
    held
}
