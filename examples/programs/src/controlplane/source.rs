//! Where a cluster's objects come from.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::path::{Path, PathBuf};
use std::time::Duration;

use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

use super::manifest::{self, Object, Problem};

/// How long files have to be left alone until they are read: whoever writes several is let finish.
const QUIET: Duration = Duration::from_millis(50);
/// How often files are looked at without an event: some file systems have none for what others do.
const LOOK_AGAIN: Duration = Duration::from_secs(10);

/// What has happened to the objects of a cluster since the last look.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Events {
    /// Made or changed.
    pub put: Vec<Object>,
    /// Gone.
    pub removed: Vec<Object>,
    /// What can't be read, as a whole: it replaces what was said before. The last good version of such an object stays, and as
    /// long as it is not known which object it is, none is taken for gone.
    pub problems: Vec<Problem>,
}

/// Follows the objects of one cluster.
pub trait Source: Send {
    /// Waits for the next events. The first are those of all objects there are. Cancel safe.
    fn next(&mut self) -> impl Future<Output = Events> + Send;
}

/// The manifests in a directory: all files named `*.yaml`, `*.yml` and `*.json` in it and below.
#[derive(Debug)]
pub struct Directory {
    path: PathBuf,
    known: BTreeMap<String, Object>,
    problems: Vec<Problem>,
    started: bool,
    changed: mpsc::Receiver<()>,
    /// So that the channel stays open without a watcher.
    _sender: mpsc::Sender<()>,
    /// `None` where the system has no events.
    _watcher: Option<RecommendedWatcher>,
}

impl Directory {
    /// Follows a directory. It may be missing, and come later.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        let path = path.into();
        let (sender, changed) = mpsc::channel(1);
        let events = sender.clone();
        let notify = move |_: notify::Result<notify::Event>| {
            // One that waits already stands for all.
            let _ = events.try_send(());
        };
        let watcher = notify::recommended_watcher(notify).and_then(|mut watcher| {
            watcher.watch(&path, RecursiveMode::Recursive)?;
            Ok(watcher)
        });
        let watcher = watcher
            .inspect_err(|error| tracing::warn!(path = %path.display(), %error, "no events, looking now and then"))
            .ok();
        Self {
            path,
            known: BTreeMap::new(),
            problems: Vec::new(),
            started: false,
            changed,
            _sender: sender,
            _watcher: watcher,
        }
    }

    /// Reads everything, and compares it with what was there.
    fn look(&mut self) -> Option<Events> {
        let mut found = BTreeMap::new();
        let mut problems = Vec::new();
        for path in files(&self.path, &mut problems) {
            let name = path.display().to_string();
            match std::fs::read_to_string(&path) {
                Ok(text) => {
                    let (objects, bad) = manifest::parse(&name, &text);
                    problems.extend(bad);
                    for object in objects {
                        match found.entry(object.describe()) {
                            Entry::Vacant(free) => drop(free.insert(object)),
                            Entry::Occupied(taken) => {
                                let reason = "another document has this object too, which is used";
                                problems.push(problem(&name, taken.key().clone(), reason));
                            }
                        }
                    }
                }
                Err(error) => problems.push(problem(&name, String::new(), error.to_string())),
            }
        }
        let bad: BTreeSet<&str> = problems.iter().map(|problem| problem.object.as_str()).collect();
        // What can't be read may have had any of them.
        let is_whole = !bad.contains("");
        let is_gone = |key: &&String| is_whole && !found.contains_key(*key) && !bad.contains(key.as_str());
        let gone: Vec<String> = self.known.keys().filter(is_gone).cloned().collect();
        let removed: Vec<_> = gone.iter().filter_map(|key| self.known.remove(key)).collect();
        let mut put = Vec::new();
        for (key, object) in found {
            if self.known.get(&key) != Some(&object) {
                put.push(object.clone());
                self.known.insert(key, object);
            }
        }
        let is_news = !self.started || !put.is_empty() || !removed.is_empty() || problems != self.problems;
        self.started = true;
        self.problems.clone_from(&problems);
        is_news.then_some(Events { put, removed, problems })
    }
}

impl Source for Directory {
    async fn next(&mut self) -> Events {
        loop {
            if self.started {
                let _ = timeout(LOOK_AGAIN, self.changed.recv()).await;
                sleep(QUIET).await;
                while self.changed.try_recv().is_ok() {}
            }
            if let Some(events) = self.look() {
                return events;
            }
        }
    }
}

fn problem(source: &str, object: String, reason: impl Into<String>) -> Problem {
    Problem { source: source.into(), line: 0, object, reason: reason.into() }
}

/// The manifests below a directory, in order.
fn files(dir: &Path, problems: &mut Vec<Problem>) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) => {
            problems.push(problem(&dir.display().to_string(), String::new(), error.to_string()));
            return found;
        }
    };
    for path in entries.flatten().map(|entry| entry.path()) {
        let extension = path.extension().and_then(|extension| extension.to_str());
        if path.is_dir() {
            found.extend(files(&path, problems));
        } else if matches!(extension, Some("yaml" | "yml" | "json")) {
            found.push(path);
        }
    }
    found.sort();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(objects: &[Object]) -> Vec<String> {
        objects.iter().map(Object::describe).collect()
    }

    #[test]
    fn a_change_is_what_differs_and_a_bad_document_keeps_the_last_good_one() {
        let dir = std::env::temp_dir().join(format!("hbone-source-{}", std::process::id()));
        std::fs::create_dir_all(dir.join("below")).unwrap();
        let write = |name: &str, text: &str| std::fs::write(dir.join(name), text).unwrap();
        write("a.yaml", "kind: Namespace\nmetadata: {name: a}\n---\nkind: Pod\nmetadata: {name: p, namespace: a}\n");
        write("below/b.yml", "kind: Service\nmetadata: {name: s, namespace: a}\n");
        write("notes.txt", "kind: Pod\n");
        let mut source = Directory::new(&dir);
        let first = source.look().unwrap();
        assert_eq!(names(&first.put), ["Namespace a", "Pod a/p", "Service a/s"]);
        assert_eq!(source.look(), None, "nothing has changed");

        write("a.yaml", "kind: Namespace\nmetadata: {name: a}\n");
        write("below/b.yml", "kind: Service\nmetadata: {name: s, namespace: a}\nspec: {ports: 7}\n");
        let second = source.look().unwrap();
        assert_eq!((names(&second.put), names(&second.removed)), (vec![], vec!["Pod a/p".to_owned()]));
        assert_eq!(second.problems.len(), 1);
        assert_eq!(second.problems[0].object, "Service a/s");

        std::fs::remove_file(dir.join("below/b.yml")).unwrap();
        assert_eq!(names(&source.look().unwrap().removed), ["Service a/s"]);
        write("b.yaml", "kind: [\n");
        std::fs::remove_file(dir.join("a.yaml")).unwrap();
        let unknown = source.look().unwrap();
        assert_eq!((names(&unknown.removed), unknown.problems.len()), (vec![], 1), "it may be the namespace");
        std::fs::remove_dir_all(&dir).unwrap();
        let missing = source.look().unwrap();
        assert_eq!((names(&missing.removed), missing.problems.len()), (vec![], 1));
        std::fs::create_dir_all(&dir).unwrap();
        assert_eq!(names(&source.look().unwrap().removed), ["Namespace a"]);
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
