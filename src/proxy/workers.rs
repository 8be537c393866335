//! Threads for a proxy's connections, each with a runtime of its own.

use std::io;
use std::num::NonZeroUsize;
use std::thread;

use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;

use crate::error::{Error, ErrorKind, Layer, Result, Side};

/// After so many tasks the thread looks whether anything has come for others. By default it is 61: behind bulk transfers, where
/// each of them takes a tenth of a millisecond, that is long.
const EVENT_INTERVAL: u32 = 8;

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
    handles: Vec<Handle>,
    threads: Vec<Thread>,
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
        let mut workers = Self { handles: Vec::new(), threads: Vec::new() };
        for n in 0..threads.get() {
            let (handle, thread) = start(n).map_err(|e| {
                Error::new(ErrorKind::Local, Layer::Config, Side::Local, "starting a thread").with_source(e)
            })?;
            workers.handles.push(handle);
            workers.threads.push(thread);
        }
        Ok(workers)
    }

    /// The runtime of each thread, to spawn on.
    pub fn handles(&self) -> &[Handle] {
        &self.handles
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

    use super::*;

    #[tokio::test]
    async fn what_is_spawned_on_a_worker_runs_on_its_thread_until_it_is_dropped() {
        let workers = Workers::start(NonZeroUsize::new(3).unwrap()).unwrap();
        let mut threads = HashSet::new();
        for handle in workers.handles() {
            let id = || async { thread::current().id() };
            let (first, again) = (handle.spawn(id()).await.unwrap(), handle.spawn(id()).await.unwrap());
            assert_eq!(first, again);
            threads.insert(first);
        }
        assert_eq!(threads.len(), 3);
        let running = workers.handles()[1].spawn(std::future::pending::<()>());
        drop(workers);
        assert!(running.await.unwrap_err().is_cancelled());
    }
}
