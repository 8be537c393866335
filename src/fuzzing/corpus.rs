//! Runs each target over its corpus, and compares the lists of targets.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use rstest::rstest;

use super::TARGETS;

fn fuzz() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz")
}

/// The names in a directory, in order. Nothing where there is no such directory: `fuzz/` is not in the packaged crate.
fn names(dir: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(dir).into_iter().flatten();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

#[rstest]
fn each_target_runs_over_its_corpus(#[values(0, 1, 2, 3)] part: usize) {
    if !fuzz().exists() {
        return;
    }
    for (name, target) in TARGETS.iter().skip(part).step_by(4) {
        let corpus = fuzz().join("corpus").join(name);
        let seeds = names(&corpus);
        assert!(seeds.len() >= 5, "{} seeds in {}", seeds.len(), corpus.display());
        for seed in seeds {
            let seed = corpus.join(seed);
            eprintln!("{}", seed.display());
            target(&fs::read(&seed).unwrap());
        }
        target(&[]);
    }
}

#[test]
fn each_target_has_a_program_and_nothing_else_has() {
    if !fuzz().exists() {
        return;
    }
    let targets: BTreeSet<_> = TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect();
    let programs = names(&fuzz().join("fuzz_targets"));
    let programs: BTreeSet<_> = programs.iter().map(|name| name.strip_suffix(".rs").unwrap().to_owned()).collect();
    assert_eq!(programs, targets);
    assert_eq!(names(&fuzz().join("corpus")), targets);
    let manifest = fs::read_to_string(fuzz().join("Cargo.toml")).unwrap();
    for name in targets {
        assert!(manifest.contains(&format!("name = \"{name}\"\npath = \"fuzz_targets/{name}.rs\"")), "{name}");
        let program = fs::read_to_string(fuzz().join(format!("fuzz_targets/{name}.rs"))).unwrap();
        assert!(program.contains(&format!("|data: &[u8]| hbone::fuzzing::{name}(data)")), "{program}");
    }
}
