//! Where files are, and whether they are still the same.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::Metadata;
use std::io;
use std::path::{Component, Path, PathBuf};
use std::time::SystemTime;

/// More symbolic links than that, one behind the other, are a loop.
const MAX_LINKS: usize = 40;

/// What tells a version of some files from another, without reading them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Stamp(Vec<Result<Version, io::ErrorKind>>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Version {
    /// Behind all symbolic links.
    path: PathBuf,
    id: (u64, u64),
    changed: Option<SystemTime>,
    len: u64,
}

impl Stamp {
    pub(super) fn of<'a>(files: impl IntoIterator<Item = &'a PathBuf>) -> Self {
        Self(files.into_iter().map(|file| version(file).map_err(|e| e.kind())).collect())
    }
}

fn version(file: &Path) -> io::Result<Version> {
    let (path, metadata) = (file.canonicalize()?, file.metadata()?);
    Ok(Version { path, id: id(&metadata), changed: metadata.modified().ok(), len: metadata.len() })
}

#[cfg(unix)]
fn id(metadata: &Metadata) -> (u64, u64) {
    use std::os::unix::fs::MetadataExt;
    (metadata.dev(), metadata.ino())
}

#[cfg(not(unix))]
fn id(_: &Metadata) -> (u64, u64) {
    (0, 0)
}

/// The directories that are watched, each with the identity that it had then.
///
/// Directories and not files: an editor writes a new file and renames it over the old one, and Kubernetes renames a
/// link, `..data`, to a directory of new files. Neither is an event of the file that was there before.
#[derive(Debug, Default)]
pub(super) struct Directories(BTreeMap<PathBuf, (u64, u64)>);

/// What has to be done to watch other directories.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Change {
    pub(super) gone: Vec<PathBuf>,
    pub(super) new: Vec<PathBuf>,
}

impl Directories {
    /// From now on the directories through which `files` are reached.
    pub(super) fn change<'a>(&mut self, files: impl IntoIterator<Item = &'a PathBuf>) -> Change {
        let mut now = BTreeMap::new();
        for directory in files.into_iter().flat_map(|file| directories(file)) {
            if let Ok(metadata) = directory.metadata() {
                now.insert(directory, id(&metadata));
            }
        }
        let change = Change { gone: only_in(&self.0, &now), new: only_in(&now, &self.0) };
        self.0 = now;
        change
    }

    /// As if it were not watched, so that it is tried again.
    pub(super) fn forget(&mut self, directory: &Path) {
        self.0.remove(directory);
    }
}

fn only_in(a: &BTreeMap<PathBuf, (u64, u64)>, b: &BTreeMap<PathBuf, (u64, u64)>) -> Vec<PathBuf> {
    a.iter().filter(|(path, id)| b.get(*path) != Some(*id)).map(|(path, _)| path.clone()).collect()
}

/// The directories in which something may be renamed so that the path leads to another file: those of the file and of
/// each symbolic link on the way. Where the path ends early, the last directory that is there.
fn directories(file: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let Ok(absolute) = std::path::absolute(file) else { return found };
    let mut rest: Vec<OsString> = parts(&absolute);
    let mut at = PathBuf::from("/");
    let mut links = 0;
    while let Some(part) = rest.pop() {
        if part == ".." {
            at.pop();
            continue;
        }
        let next = at.join(&part);
        match next.symlink_metadata() {
            Ok(metadata) if metadata.is_symlink() && links < MAX_LINKS => {
                links += 1;
                found.push(at.clone());
                let Ok(target) = next.read_link() else { return found };
                if target.is_absolute() {
                    at = PathBuf::from("/");
                }
                rest.extend(parts(&target));
            }
            Ok(metadata) if metadata.is_dir() => at = next,
            _ => {
                found.push(at);
                return found;
            }
        }
    }
    found
}

/// The parts of a path below the root, the last one first.
fn parts(path: &Path) -> Vec<OsString> {
    let part = |component| match component {
        Component::Normal(part) => Some(part.to_owned()),
        Component::ParentDir => Some("..".into()),
        Component::Prefix(_) | Component::RootDir | Component::CurDir => None,
    };
    path.components().rev().filter_map(part).collect()
}

#[cfg(all(test, unix))]
#[expect(clippy::unwrap_used, reason = "a test that can't go on fails")]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    /// An empty directory of this test's own, without symbolic links in its path.
    fn directory(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("hbone-places-{}-{name}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).unwrap();
        path.canonicalize().unwrap()
    }

    #[test]
    fn each_directory_with_a_link_on_the_way_is_one_to_watch() {
        let root = directory("links");
        fs::create_dir_all(root.join("secret/..2026_01")).unwrap();
        fs::write(root.join("secret/..2026_01/tls.crt"), "1").unwrap();
        symlink("..2026_01", root.join("secret/..data")).unwrap();
        symlink("..data/tls.crt", root.join("secret/tls.crt")).unwrap();
        symlink(root.join("secret"), root.join("current")).unwrap();
        let found = directories(&root.join("current/tls.crt"));
        let (secret, version) = (root.join("secret"), root.join("secret/..2026_01"));
        assert_eq!(found, [root.clone(), secret.clone(), secret, version]);
        assert_eq!(directories(&root.join("not/there")), std::slice::from_ref(&root));
        symlink("loop", root.join("loop")).unwrap();
        assert!(!directories(&root.join("loop")).is_empty());
        fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn a_stamp_changes_with_the_file_behind_the_links() {
        let root = directory("stamps");
        let file = root.join("mesh.yaml");
        let mut stamps = vec![Stamp::of([&file])];
        for text in ["one", "three"] {
            fs::write(&file, text).unwrap();
            stamps.push(Stamp::of([&file]));
            assert_eq!(Stamp::of([&file]), stamps[stamps.len() - 1]);
        }
        fs::write(root.join("new"), "three").unwrap();
        fs::rename(root.join("new"), &file).unwrap();
        stamps.push(Stamp::of([&file]));
        for (i, a) in stamps.iter().enumerate() {
            assert!(stamps[i + 1..].iter().all(|b| a != b), "{stamps:?}");
        }
        fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn a_directory_that_is_made_anew_is_watched_anew() {
        let root = directory("again");
        let (inner, file) = (root.join("inner"), root.join("inner/mesh.yaml"));
        fs::create_dir(&inner).unwrap();
        let mut directories = Directories::default();
        assert_eq!(directories.change([&file]), Change { gone: vec![], new: vec![inner.clone()] });
        assert_eq!(directories.change([&file]), Change::default());
        // Kept under another name, so that the new one can't get its number.
        fs::rename(&inner, root.join("old")).unwrap();
        assert_eq!(directories.change([&file]), Change { gone: vec![inner.clone()], new: vec![root.clone()] });
        fs::create_dir(&inner).unwrap();
        assert_eq!(directories.change([&file]), Change { gone: vec![root.clone()], new: vec![inner] });
        fs::remove_dir_all(root).unwrap();
    }
}
