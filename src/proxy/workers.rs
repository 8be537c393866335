//! Threads for a proxy's connections, each with a runtime of its own.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io;
use std::net::IpAddr;
use std::num::NonZeroUsize;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Context;
use std::thread::{self, ThreadId};

use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;
use tokio::task::yield_now;
use tokio::time::Instant;

use crate::error::{Error, ErrorKind, Layer, Result, Side};
use crate::io::{Load, LoadMeter, Sample, Scheduler, Threads};

/// After so many tasks a thread looks for events, 61 by default. That is long behind tasks that move much, though less
/// than a bulk turn.
const EVENT_INTERVAL: u32 = 16;

/// Threads that share no work: what is spawned on one of them stays there.
///
/// A connection and the tunnels through it are tasks that wake each other for every few bytes. On one thread that costs
/// next to nothing, and what all of them have to say meanwhile leaves in one piece; across threads it is a system call
/// and a cold cache each time. So give each connection with its tunnels to one of the threads, and each thread a
/// [`Pool`](crate::pool::Pool) of its own. A connection then never uses more than one core, and with so many pools
/// there are so many connections to each peer that is busy.
///
/// Their [`Scheduler`] is for everything that runs on them: hand it over with
/// [`Config::with_scheduler`](crate::Config::with_scheduler). Without it small messages wait behind bulk on the same
/// thread, and new connections don't keep away from it.
///
/// Dropping it stops the threads, and with them whatever is still running there.
#[derive(Debug)]
pub struct Workers {
    set: WorkerSet,
    threads: Vec<Thread>,
}

/// The runtimes of [`Workers`], to spawn on. Cheap to clone, and does not keep the threads.
#[derive(Clone, Debug)]
pub struct WorkerSet {
    workers: Arc<[Worker]>,
    scheduler: Scheduler,
}

#[derive(Debug)]
struct Worker {
    handle: Handle,
    meter: Mutex<LoadMeter>,
}

/// What the scheduler asks of the threads.
struct OwnThreads(Box<[ThreadId]>);

impl Threads for OwnThreads {
    fn current(&self) -> Option<usize> {
        let current = thread::current().id();
        self.0.iter().position(|id| *id == current)
    }

    fn wake_after_events(&self, cx: &mut Context<'_>) {
        // Never ready when polled first.
        let _ = pin!(yield_now()).poll(cx);
    }

    fn yield_core(&self) {
        thread::yield_now();
    }
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
        let failed = |e| Error::new(ErrorKind::Local, Layer::Config, Side::Local, "starting a thread").with_source(e);
        let mut workers = Self {
            set: WorkerSet { workers: [].into(), scheduler: Scheduler::default() },
            threads: Vec::with_capacity(threads.get()),
        };
        let mut started = Vec::with_capacity(threads.get());
        for n in 0..threads.get() {
            let (handle, thread) = start(n).map_err(failed)?;
            started.push(Worker { handle, meter: Mutex::new(LoadMeter::new(Instant::now())) });
            workers.threads.push(thread);
        }
        let ids = workers.threads.iter().map(|thread| thread.thread.thread().id()).collect();
        let scheduler = Scheduler::new(threads.get(), OwnThreads(ids));
        workers.set = WorkerSet { workers: started.into(), scheduler };
        Ok(workers)
    }

    /// Their runtimes.
    pub fn set(&self) -> WorkerSet {
        self.set.clone()
    }

    /// Their scheduler.
    pub fn scheduler(&self) -> Scheduler {
        self.set.scheduler.clone()
    }
}

impl WorkerSet {
    /// The runtime of each thread, in order.
    pub fn handles(&self) -> impl ExactSizeIterator<Item = &Handle> {
        self.workers.iter().map(|worker| &worker.handle)
    }

    /// Where to put a connection that would be put on the thread `preferred`: there, unless another one has less to do.
    pub(super) fn pick(&self, preferred: usize, now: Instant) -> (usize, &Handle) {
        let load = |(n, worker): (usize, &Worker)| worker.load(now, self.scheduler.bulk_moved(n));
        let loads: Vec<Load> = self.workers.iter().enumerate().map(load).collect();
        let picked = least_loaded(&loads, preferred);
        (picked, &self.workers[picked].handle)
    }
}

/// How many of a listener's connections each worker has.
///
/// A peer with several connections spreads its traffic over them, or keeps bulk apart on one. That is futile where all
/// of them are on one worker, however evenly connections are spread over the workers in all.
#[derive(Debug)]
pub(super) struct Placement {
    counts: Arc<Mutex<Counts>>,
    last: usize,
}

/// By worker.
#[derive(Debug)]
struct Counts {
    all: Box<[usize]>,
    peers: HashMap<IpAddr, Box<[usize]>>,
}

impl Placement {
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

    /// Counts a connection of this peer.
    pub(super) fn place(&self, worker: usize, peer: IpAddr) -> Placed {
        let mut counts = lock(&self.counts);
        let workers = counts.all.len();
        counts.all[worker] += 1;
        counts.peers.entry(peer).or_insert_with(|| vec![0; workers].into())[worker] += 1;
        Placed { counts: self.counts.clone(), worker, peer }
    }
}

/// A connection that counts until this is dropped.
#[derive(Debug)]
pub(super) struct Placed {
    counts: Arc<Mutex<Counts>>,
    worker: usize,
    peer: IpAddr,
}

impl Drop for Placed {
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

/// The preferred one, unless another one has a lighter load.
fn least_loaded(loads: &[Load], preferred: usize) -> usize {
    let least = loads.iter().enumerate().min_by_key(|(_, load)| **load);
    match (loads.get(preferred), least) {
        (Some(load), Some((lightest, least))) if least < load => lightest,
        _ => preferred,
    }
}

impl Worker {
    /// That of the last window, or of all the time since the last look where that is longer.
    fn load(&self, at: Instant, bulk_moved: u64) -> Load {
        let busy = self.handle.metrics().worker_total_busy_duration(0);
        let mut meter = lock(&self.meter);
        meter.observe(Sample { at, busy, moved: bulk_moved });
        meter.load()
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
    use std::future::poll_fn;
    use std::io::Write;
    use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
    use std::task::{Poll, ready};
    use std::time::Duration;

    use rstest::rstest;
    use tokio::io::AsyncReadExt;
    use tokio::net::TcpListener;

    use super::*;
    use crate::io::Turns;

    #[rstest]
    #[case::all_light(&[Load::Light, Load::Light], 1, 1)]
    #[case::all_with_bulk(&[Load::Bulk, Load::Bulk], 1, 1)]
    #[case::away_from_bulk(&[Load::Light, Load::Bulk], 1, 0)]
    #[case::away_from_one_without_time(&[Load::Bulk, Load::Full], 1, 0)]
    #[case::to_the_lightest(&[Load::Bulk, Load::Full, Load::Light], 1, 2)]
    #[case::others_are_worse(&[Load::Full, Load::Bulk], 1, 1)]
    #[case::alone(&[Load::Full], 0, 0)]
    fn a_connection_goes_to_a_worker_with_a_lighter_load(
        #[case] loads: &[Load],
        #[case] preferred: usize,
        #[case] expected: usize,
    ) {
        assert_eq!(least_loaded(loads, preferred), expected);
    }

    fn peer(n: u8) -> IpAddr {
        [10, 0, 0, n].into()
    }

    /// Puts a connection where the fewest are.
    fn place(placement: &mut Placement, peer: IpAddr) -> (usize, Placed) {
        let worker = placement.fewest(peer);
        (worker, placement.place(worker, peer))
    }

    #[rstest]
    #[case::all_of_one_peer(|_| peer(1))]
    #[case::each_of_its_own_peer(peer)]
    fn each_connection_goes_where_the_fewest_are_whatever_has_ended_before(#[case] peer_of: fn(u8) -> IpAddr) {
        let mut placement = Placement::new(3);
        let mut open: Vec<_> = (0..6).map(|n| place(&mut placement, peer_of(n))).collect();
        assert_eq!(open.iter().map(|(worker, _)| *worker).collect::<Vec<_>>(), [0, 1, 2, 0, 1, 2]);
        open.retain(|(worker, _)| *worker != 1);
        let again = [6, 7].map(|n| place(&mut placement, peer_of(n)));
        assert_eq!(again.map(|(worker, _)| worker), [1, 1]);
    }

    #[test]
    fn a_peers_connections_are_spread_however_they_alternate_with_those_of_others() {
        let mut placement = Placement::new(2);
        let placed: Vec<_> = [1, 2, 1, 2].map(|n| place(&mut placement, peer(n))).into();
        assert_eq!(placed.iter().map(|(worker, _)| *worker).collect::<Vec<_>>(), [0, 1, 1, 0]);
        drop(placed);
        assert!(lock(&placement.counts).peers.is_empty(), "who has none is forgotten");
    }

    const BULK_TURN: u64 = 128 << 10;

    #[tokio::test]
    async fn new_connections_keep_away_from_a_worker_with_bulk() {
        let workers = Workers::start(NonZeroUsize::new(2).unwrap()).unwrap();
        let set = workers.set();
        let mut turns = Turns::new(&workers.scheduler());
        let moving = set.handles().nth(1).unwrap().spawn(async move { (0..1000).for_each(|_| turns.end(BULK_TURN)) });
        moving.await.unwrap();
        let later = Instant::now() + Duration::from_millis(200);
        assert_eq!([0, 1].map(|preferred| set.pick(preferred, later).0), [0, 0]);
    }

    #[rstest]
    #[case::bulk(BULK_TURN, true)]
    #[case::less(BULK_TURN - 1, false)]
    #[test]
    fn what_comes_for_others_waits_for_one_bulk_turn_at_most(#[case] moved: u64, #[case] gives_way: bool) {
        let workers = Workers::start(NonZeroUsize::MIN).unwrap();
        let (mut turns, (sender, longest)) = (Turns::new(&workers.scheduler()), std::sync::mpsc::channel());
        workers.set().handles().next().unwrap().spawn(async move {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let mut far = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let mut near = listener.accept().await.unwrap().0;
            let (turn, counted) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
            let (turn_of, at) = (turn.clone(), counted.clone());
            // Something comes for the other task in every hundredth turn.
            let busy = tokio::spawn(poll_fn(move |cx| {
                ready!(turns.poll_begin(cx));
                let turn = turn_of.fetch_add(1, Relaxed) + 1;
                if turn % 100 == 0 {
                    at.store(turn, Relaxed);
                    far.write_all(b"x").unwrap();
                }
                turns.end(moved);
                cx.waker().wake_by_ref();
                Poll::<()>::Pending
            }));
            let mut longest = 0;
            for _ in 0..20 {
                near.read_u8().await.unwrap();
                longest = longest.max(turn.load(Relaxed) - counted.load(Relaxed));
            }
            busy.abort();
            sender.send(longest).unwrap();
        });
        let longest = longest.recv().unwrap();
        assert_eq!(longest <= 1, gives_way, "{longest} turns");
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
