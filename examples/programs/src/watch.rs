//! Follows the files that a proxy was started with: a good change is taken within a second, without a tunnel dropped;
//! what is wrong with a bad one is logged, and the last good state stays.

mod places;

use std::path::PathBuf;
use std::time::Duration;

use hbone::connector::MeshWatch;
use hbone::mesh::{Applied, LeftOut, MeshFile, Store};
use hbone::tls::{Credentials, ReloadingCredentials};
use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout, timeout_at};

use self::places::{Directories, Stamp};

/// How long files have to be left alone until they are read: whoever writes several, or one in pieces, is let finish.
const QUIET: Duration = Duration::from_millis(50);
/// How long that is waited for.
const MAX_WAIT: Duration = Duration::from_millis(500);
/// How often files are looked at without an event: some file systems, such as NFS, have none for what others do.
const LOOK_AGAIN: Duration = Duration::from_secs(30);
/// The same where events can't be had.
const LOOK_OFTEN: Duration = Duration::from_millis(500);
/// How much of what is left out of a mesh is logged line by line.
const MAX_LINES: usize = 20;

/// The files of a proxy.
#[derive(Clone, Debug)]
pub struct Files {
    /// The mesh.
    pub mesh: PathBuf,
    /// The certificate chain.
    pub cert: PathBuf,
    /// The private key.
    pub key: PathBuf,
    /// The trusted roots.
    pub ca: PathBuf,
}

/// Has the files read again. Clones ask the same follower.
#[derive(Clone, Debug)]
pub struct Reload(mpsc::Sender<Wake>);

impl Reload {
    /// Has all files read again soon, changed or not. What comes of it is logged.
    pub fn reload(&self) {
        // When the channel is full, the files are about to be read anyway.
        let _ = self.0.try_send(Wake::Asked);
    }
}

/// Why files are looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wake {
    Changed,
    Asked,
}

/// What follows the files, from [`Follower::open`] on.
#[derive(Debug)]
pub struct Follower {
    state: State,
    sender: mpsc::Sender<Wake>,
    wakes: mpsc::Receiver<Wake>,
}

/// The last good state, and the files as they were then.
#[derive(Debug)]
struct State {
    files: Files,
    store: Store,
    credentials: ReloadingCredentials,
    mesh_stamp: Stamp,
    credentials_stamp: Stamp,
}

impl Follower {
    /// Reads the files.
    ///
    /// # Errors
    ///
    /// What is wrong with which file. What is only left out of the mesh is logged.
    pub fn open(files: Files) -> hbone::Result<Self> {
        let (mesh_stamp, credentials_stamp) = (files.mesh_stamp(), files.credentials_stamp());
        let mut store = Store::new();
        let mesh = MeshFile::load(&files.mesh)?;
        log_left_out(&mesh, &mesh.apply_to(&mut store));
        let credentials = ReloadingCredentials::from(files.credentials()?);
        let (sender, wakes) = mpsc::channel(16);
        let state = State { files, store, credentials, mesh_stamp, credentials_stamp };
        Ok(Self { state, sender, wakes })
    }

    /// The mesh, from now on.
    pub fn mesh(&self) -> MeshWatch {
        self.state.store.subscribe()
    }

    /// Certificate, key and roots, from now on.
    pub fn credentials(&self) -> &ReloadingCredentials {
        &self.state.credentials
    }

    /// To have the files read again.
    pub fn reload(&self) -> Reload {
        Reload(self.sender.clone())
    }

    /// Follows the files until dropped.
    pub async fn run(self) {
        // The sender is kept, so that the channel never closes.
        let Self { mut state, sender, mut wakes } = self;
        let mut directories = Directories::default();
        let mut watcher = watcher(sender.clone()).inspect_err(warn_no_events).ok();
        loop {
            let places = state.files.all();
            let has_events = watcher
                .as_mut()
                .is_some_and(|watcher| directories.follow(places, watcher).inspect_err(warn_no_events).is_ok());
            let look_again = if has_events { LOOK_AGAIN } else { LOOK_OFTEN };
            let first = match state.is_unsettled() {
                // Written before it was watched, or while it was read.
                true => Some(Wake::Changed),
                false => timeout(look_again, wakes.recv()).await.ok().flatten(),
            };
            let asked = until_quiet(&mut wakes, first).await;
            state = match tokio::task::spawn_blocking(move || state.read_again(asked)).await {
                Ok(state) => state,
                Err(error) => return tracing::error!(%error, "the files are not followed any more"),
            };
        }
    }
}

/// Waits until files that have changed are left alone, and says whether one has asked for them.
async fn until_quiet(wakes: &mut mpsc::Receiver<Wake>, first: Option<Wake>) -> bool {
    let mut asked = first == Some(Wake::Asked);
    let end = Instant::now() + MAX_WAIT;
    while first.is_some() && Instant::now() < end {
        match timeout_at(end.min(Instant::now() + QUIET), wakes.recv()).await {
            Ok(wake) => asked |= wake == Some(Wake::Asked),
            Err(_) => break,
        }
    }
    asked
}

fn watcher(sender: mpsc::Sender<Wake>) -> notify::Result<RecommendedWatcher> {
    notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        // Reading is an event too, and no reason to read.
        if !matches!(&event, Ok(event) if matches!(event.kind, EventKind::Access(_))) {
            let _ = sender.try_send(Wake::Changed);
        }
    })
}

fn warn_no_events(error: &notify::Error) {
    tracing::warn!(%error, "no events for changed files; they are looked at every {LOOK_OFTEN:?} instead");
}

impl Directories {
    /// Has the directories watched through which these files are reached.
    fn follow<'a>(
        &mut self,
        files: impl IntoIterator<Item = &'a PathBuf>,
        watcher: &mut RecommendedWatcher,
    ) -> notify::Result<()> {
        let change = self.change(files);
        for gone in change.gone {
            // It may be gone by itself.
            let _ = watcher.unwatch(&gone);
        }
        for new in change.new {
            if let Err(error) = watcher.watch(&new, RecursiveMode::NonRecursive) {
                self.forget(&new);
                return Err(error);
            }
        }
        Ok(())
    }
}

impl Files {
    fn all(&self) -> [&PathBuf; 4] {
        [&self.mesh, &self.cert, &self.key, &self.ca]
    }

    fn mesh_stamp(&self) -> Stamp {
        Stamp::of([&self.mesh])
    }

    fn credentials_stamp(&self) -> Stamp {
        Stamp::of([&self.cert, &self.key, &self.ca])
    }

    fn credentials(&self) -> hbone::Result<Credentials> {
        Credentials::from_pem_files(&self.cert, &self.key, &self.ca)
    }
}

impl State {
    /// Reads what has changed, or all.
    fn read_again(mut self, all: bool) -> Self {
        let stamp = self.files.mesh_stamp();
        if all || stamp != self.mesh_stamp {
            self.mesh_stamp = stamp;
            self.read_mesh();
        }
        let stamp = self.files.credentials_stamp();
        if all || stamp != self.credentials_stamp {
            self.credentials_stamp = stamp;
            self.read_credentials();
        }
        self
    }

    /// Whether a file has changed since before it was read.
    fn is_unsettled(&self) -> bool {
        self.files.mesh_stamp() != self.mesh_stamp || self.files.credentials_stamp() != self.credentials_stamp
    }

    fn read_mesh(&mut self) {
        match MeshFile::load(&self.files.mesh) {
            // What was written while it was read may be half of it, and valid: it is read once more.
            _ if self.files.mesh_stamp() != self.mesh_stamp => {}
            Ok(file) => {
                let applied = file.apply_to(&mut self.store);
                log_left_out(&file, &applied);
                tracing::info!(changed = applied.changed.len(), "mesh read again");
            }
            Err(error) => tracing::warn!(%error, "mesh not taken, the one before stays"),
        }
    }

    fn read_credentials(&mut self) {
        let loaded = self.files.credentials();
        if self.files.credentials_stamp() != self.credentials_stamp {
            return;
        }
        match self.credentials.update(loaded) {
            Ok(changed) => tracing::info!(changed, credentials = ?self.credentials.current(), "certificate read again"),
            Err(error) => tracing::warn!(%error, "certificate not taken, the one before stays"),
        }
    }
}

/// A warning for each thing that the mesh goes without.
fn log_left_out(file: &MeshFile, applied: &Applied) {
    let left_out = file.left_out().iter().map(LeftOut::to_string);
    let lines: Vec<String> = left_out.chain(applied.rejected.iter().map(ToString::to_string)).collect();
    for line in lines.iter().take(MAX_LINES) {
        tracing::warn!("mesh: {line}");
    }
    if let Some(more) = lines.len().checked_sub(MAX_LINES).filter(|more| *more > 0) {
        tracing::warn!("mesh: {more} more are left out");
    }
}
