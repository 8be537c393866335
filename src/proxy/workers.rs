//! Threads for a proxy's connections, each with a runtime of its own.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io;
use std::net::IpAddr;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::error::{Error, ErrorKind, Layer, Result, Side};

/// After so many tasks the thread looks whether anything has come for others. By default it is 61: behind bulk transfers, where
/// each of them takes a tenth of a millisecond, that is long.
const EVENT_INTERVAL: u32 = 16;

/// Threads that share no work: what is spawned on one of them stays there.
///
/// A connection and the tunnels through it are tasks that wake each other for every few bytes. On one thread that costs
/// next to nothing, and what all of them have to say meanwhile leaves in one piece; across threads it is a system call and a
/// cold cache each time. So give each connection with its tunnels to one of the threads, and each thread a
/// [`Pool`](crate::pool::Pool) of its own. A connection then never uses more than one core, and with so many pools there are
/// so many connections to each peer that is busy.
///
/// Dropping it stops the threads, and with them whatever is still running there.
#[derive(Debug)]
pub struct Workers {
    set: WorkerSet,
    threads: Vec<Thread>,
}

/// The runtimes of [`Workers`], to spawn on. Cheap to clone, and does not keep the threads.
#[derive(Clone, Debug)]
pub struct WorkerSet(Arc<[Worker]>);

#[derive(Debug)]
struct Worker {
    handle: Handle,
    load: Mutex<Load>,
}

#[derive(Debug)]
struct Thread {
    stop: oneshot::Sender<()>,
    thread: thread::JoinHandle<()>,
}

impl Workers {
    /// Starts so many threads.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Local`] when the system has no more threads or file descriptors.
    pub fn start(threads: NonZeroUsize) -> Result<Self> {
        let mut workers = Self { set: WorkerSet([].into()), threads: Vec::new() };
        let mut set = Vec::new();
        for n in 0..threads.get() {
            let (handle, thread) = start(n).map_err(|e| {
                Error::new(ErrorKind::Local, Layer::Config, Side::Local, "starting a thread").with_source(e)
            })?;
            set.push(Worker { handle, load: Mutex::new(Load::new(Instant::now())) });
            workers.threads.push(thread);
        }
        workers.set = WorkerSet(set.into());
        Ok(workers)
    }

    /// Their runtimes.
    pub fn set(&self) -> WorkerSet {
        self.set.clone()
    }
}

impl WorkerSet {
    /// The runtime of each thread, in order.
    pub fn handles(&self) -> impl ExactSizeIterator<Item = &Handle> {
        self.0.iter().map(|worker| &worker.handle)
    }

    /// Where to put a connection that would be put on the thread `preferred`: there, unless it has little time left and
    /// another one far more. Small messages beside bulk then come to a thread that has time for them.
    pub(super) fn pick(&self, preferred: usize) -> (usize, &Handle) {
        let loads: Vec<u32> = self.0.iter().map(Worker::load).collect();
        let picked = pick(&loads, preferred);
        (picked, &self.0[picked].handle)
    }
}

/// How many of a listener's connections each worker has.
///
/// A peer that has several shares its traffic out between them, or keeps what is bulk apart: on one worker that would be for nothing,
/// however evenly connections are spread over the workers in all.
#[derive(Debug)]
pub(super) struct Shares {
    counts: Arc<Mutex<Counts>>,
    last: usize,
}

/// By worker.
#[derive(Debug)]
struct Counts {
    all: Box<[usize]>,
    peers: HashMap<IpAddr, Box<[usize]>>,
}

impl Shares {
    pub(super) fn new(workers: usize) -> Self {
        let counts = Counts { all: vec![0; workers].into(), peers: HashMap::new() };
        Self { counts: Arc::new(Mutex::new(counts)), last: workers.saturating_sub(1) }
    }

    /// The worker with the fewest of this peer; of equals the one with the fewest, and of equals the next in turn.
    pub(super) fn fewest(&mut self, peer: IpAddr) -> usize {
        let counts = lock(&self.counts);
        let workers = counts.all.len();
        let of_peer = counts.peers.get(&peer);
        let in_turn = (1..=workers).map(|step| (self.last + step) % workers);
        self.last = in_turn
            .min_by_key(|&worker| (of_peer.map_or(0, |of_peer| of_peer[worker]), counts.all[worker]))
            .expect("at least one worker");
        self.last
    }

    /// Counts a connection of this peer until what is returned is dropped.
    pub(super) fn take(&self, worker: usize, peer: IpAddr) -> Share {
        let mut counts = lock(&self.counts);
        let workers = counts.all.len();
        counts.all[worker] += 1;
        counts.peers.entry(peer).or_insert_with(|| vec![0; workers].into())[worker] += 1;
        Share { counts: self.counts.clone(), worker, peer }
    }
}

#[derive(Debug)]
pub(super) struct Share {
    counts: Arc<Mutex<Counts>>,
    worker: usize,
    peer: IpAddr,
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut counts = lock(&self.counts);
        counts.all[self.worker] -= 1;
        if let Entry::Occupied(mut of_peer) = counts.peers.entry(self.peer) {
            of_peer.get_mut()[self.worker] -= 1;
            if of_peer.get().iter().all(|count| *count == 0) {
                of_peer.remove();
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A worker that is busy for so much of its time, in permille, may have bulk to move: a gateway, whose share of it is the smallest,
/// is busy for about 300 with all that one client's thread can send.
const BUSY: u32 = 200;

/// By how much of its time each has been busy, in permille.
fn pick(loads: &[u32], preferred: usize) -> usize {
    let least = loads.iter().enumerate().min_by_key(|(_, load)| **load);
    match (loads.get(preferred), least) {
        (Some(&load), Some((idlest, &least))) if load >= BUSY && least * 3 <= load => idlest,
        _ => preferred,
    }
}

/// How busy a thread has been of late.
#[derive(Debug)]
struct Load {
    since: Instant,
    busy: Duration,
    permille: u32,
}

/// Over how long that is measured.
const WINDOW: Duration = Duration::from_millis(200);

impl Load {
    fn new(now: Instant) -> Self {
        Self { since: now, busy: Duration::ZERO, permille: 0 }
    }

    /// Takes note that by now the thread has been busy for so long in all.
    fn note(&mut self, now: Instant, busy: Duration) -> u32 {
        let elapsed = now.saturating_duration_since(self.since);
        if elapsed >= WINDOW {
            let permille = busy.saturating_sub(self.busy).as_micros() * 1000 / elapsed.as_micros();
            *self = Self { since: now, busy, permille: u32::try_from(permille).unwrap_or(1000).min(1000) };
        }
        self.permille
    }
}

impl Worker {
    fn load(&self) -> u32 {
        let busy = self.handle.metrics().worker_total_busy_duration(0);
        lock(&self.load).note(Instant::now(), busy)
    }
}

fn start(n: usize) -> io::Result<(Handle, Thread)> {
    let runtime = Builder::new_current_thread().event_interval(EVENT_INTERVAL).enable_all().build()?;
    let handle = runtime.handle().clone();
    let (stop, stopped) = oneshot::channel::<()>();
    let run = move || {
        // Ends when `stop` is dropped, too.
        let _ = runtime.block_on(stopped);
    };
    let thread = thread::Builder::new().name(format!("worker-{n}")).spawn(run)?;
    Ok((handle, Thread { stop, thread }))
}

impl Drop for Workers {
    fn drop(&mut self) {
        let stopping: Vec<_> =
            self.threads.drain(..).map(|Thread { stop, thread }| (stop.send(()), thread).1).collect();
        for thread in stopping {
            // A thread that panicked has ended, too.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::all_idle(&[0, 0, 0], 1, 1)]
    #[case::busy_like_the_others(&[900, 950], 1, 1)]
    #[case::a_little_busier(&[400, 900], 1, 1)]
    #[case::far_busier(&[300, 900], 1, 0)]
    #[case::far_busier_than_the_idlest(&[200, 900, 100], 1, 2)]
    #[case::not_busy_enough_to_matter(&[0, 199], 1, 1)]
    #[case::alone(&[1000], 0, 0)]
    fn who_has_little_time_left_hands_on_to_who_has_far_more(
        #[case] loads: &[u32],
        #[case] preferred: usize,
        #[case] expected: usize,
    ) {
        assert_eq!(pick(loads, preferred), expected);
    }

    fn peer(n: u8) -> IpAddr {
        [10, 0, 0, n].into()
    }

    /// Puts a connection where the fewest are.
    fn place(shares: &mut Shares, peer: IpAddr) -> (usize, Share) {
        let worker = shares.fewest(peer);
        (worker, shares.take(worker, peer))
    }

    #[rstest]
    #[case::all_of_one_peer(|_| peer(1))]
    #[case::each_of_its_own_peer(peer)]
    fn each_connection_goes_where_the_fewest_are_whatever_has_ended_before(#[case] peer_of: fn(u8) -> IpAddr) {
        let mut shares = Shares::new(3);
        let mut open: Vec<_> = (0..6).map(|n| place(&mut shares, peer_of(n))).collect();
        assert_eq!(open.iter().map(|(worker, _)| *worker).collect::<Vec<_>>(), [0, 1, 2, 0, 1, 2]);
        open.retain(|(worker, _)| *worker != 1);
        let again = [6, 7].map(|n| place(&mut shares, peer_of(n)));
        assert_eq!(again.map(|(worker, _)| worker), [1, 1]);
    }

    #[test]
    fn a_peers_connections_are_spread_however_they_alternate_with_those_of_others() {
        let mut shares = Shares::new(2);
        let placed: Vec<_> = [1, 2, 1, 2].map(|n| place(&mut shares, peer(n))).into();
        assert_eq!(placed.iter().map(|(worker, _)| *worker).collect::<Vec<_>>(), [0, 1, 1, 0]);
        drop(placed);
        assert!(lock(&shares.counts).peers.is_empty(), "who has none is forgotten");
    }

    #[tokio::test(start_paused = true)]
    async fn a_load_is_that_of_the_last_window() {
        let (start, ms) = (Instant::now(), Duration::from_millis);
        let mut load = Load::new(start);
        assert_eq!(load.note(start + ms(10), ms(10)), 0, "too early to tell");
        assert_eq!(load.note(start + ms(200), ms(160)), 800);
        assert_eq!(load.note(start + ms(220), ms(161)), 800, "as before");
        assert_eq!(load.note(start + ms(400), ms(180)), 100);
    }

    #[tokio::test]
    async fn what_is_spawned_on_a_worker_runs_on_its_thread_until_it_is_dropped() {
        let workers = Workers::start(NonZeroUsize::new(3).unwrap()).unwrap();
        let mut threads = HashSet::new();
        for handle in workers.set().handles() {
            let id = || async { thread::current().id() };
            let (first, again) = (handle.spawn(id()).await.unwrap(), handle.spawn(id()).await.unwrap());
            assert_eq!(first, again);
            threads.insert(first);
        }
        assert_eq!(threads.len(), 3);
        let running = workers.set().handles().nth(1).unwrap().spawn(std::future::pending::<()>());
        drop(workers);
        assert!(running.await.unwrap_err().is_cancelled());
    }
}
