//! The layer rule: a module imports only from those ranked before it, so that no imports go round in a circle. And who
//! may touch sockets, clock and tasks.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::path::Path;

use super::rust_source::{Import, code, imports, without_tests};

/// The modules of each layer, ranked: one imports from the layers before its own, and from those before it in its own.
/// Those of later plans may be missing from the source.
const LAYERS: &[&[&str]] = &[
    &[
        "authority",
        "identity",
        "refusal",
        "error",
        "metadata",
        "target",
        "path",
        "policy",
        "mesh",
        "balance",
        "route",
        "observe",
    ],
    &["drain", "io", "config"],
    &["tls"],
    &["conn", "tunnel", "client", "server", "nested"],
    &["pool"],
    &["retry", "connector", "service", "proxy", "xds"],
];

/// Test helpers import up to this layer, and nobody imports them.
const TESTING: &str = "testing";
const TESTING_IMPORTS_UP_TO: usize = 5;

/// In no build but those for tests and fuzzing.
const NOT_BUILT: &[&str] = &["tests", "fuzzing"];

const SOCKETS: &[&[&str]] = &[
    &["tokio", "net"],
    &["std", "net", "TcpStream"],
    &["std", "net", "TcpListener"],
    &["std", "net", "UdpSocket"],
    &["socket2"],
    &["std", "env"],
    &["std", "time", "Instant"],
];
const SOCKETS_ALLOWED: &[&str] = &["io/tcp", "proxy", "xds", TESTING];

const TASKS: &[&[&str]] = &[&["tokio", "spawn"], &["tokio", "task"], &["tokio", "runtime"], &["std", "thread"]];
const TASKS_ALLOWED: &[&str] =
    &["server/accept", "server/connection", "server/listener", "pool", "connector", "service", "proxy", "xds", TESTING];

/// A module's layer, and its rank among the modules of that.
fn rank(module: &str) -> Option<(usize, usize)> {
    let ranked =
        LAYERS.iter().enumerate().flat_map(|(layer, modules)| (0..).zip(*modules).map(move |(n, m)| (layer, n, m)));
    ranked.filter(|(.., name)| **name == module).map(|(layer, n, _)| (layer, n)).next()
}

/// Source files by their path below `src`, such as `conn/mod.rs`.
type Sources = BTreeMap<String, String>;

fn sources() -> Sources {
    fn walk(dir: &Path, prefix: &str, found: &mut Sources) {
        for entry in fs::read_dir(dir).unwrap() {
            let entry = entry.unwrap();
            let name = format!("{prefix}{}", entry.file_name().to_str().unwrap());
            if entry.file_type().unwrap().is_dir() {
                walk(&entry.path(), &format!("{name}/"), found);
            } else if name.ends_with(".rs") {
                found.insert(name, fs::read_to_string(entry.path()).unwrap());
            }
        }
    }
    let mut found = Sources::new();
    walk(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), "", &mut found);
    found
}

/// The modules that a file is in, from the crate down: `["conn", "keepalive"]` for `conn/keepalive.rs`.
fn modules(file: &str) -> Vec<&str> {
    let path = file.strip_suffix(".rs").unwrap();
    path.strip_suffix("/mod").unwrap_or(path).split('/').collect()
}

#[derive(Debug, Default)]
struct Report {
    violations: Vec<String>,
    /// How many imports inside the crate were looked at.
    edges: usize,
}

fn check(sources: &Sources) -> Report {
    let mut report = Report::default();
    let reexports = reexports(sources.get("lib.rs").map_or("", String::as_str));
    let mut parsed = Vec::new();
    let mut test_files = HashSet::new();
    for (file, text) in sources.iter().filter(|(file, _)| *file != "lib.rs" && !NOT_BUILT.contains(&modules(file)[0])) {
        let (code, test_modules) = without_tests(&code(text));
        for module in test_modules {
            let dir = modules(file).join("/");
            test_files.extend([format!("{dir}/{module}.rs"), format!("{dir}/{module}/")]);
        }
        parsed.push((file, code));
    }
    let is_test = |file: &str| test_files.iter().any(|tests: &String| file.starts_with(tests));
    for (file, code) in parsed.iter().filter(|(file, _)| !is_test(file)) {
        let path = modules(file);
        let module = path[0];
        let own = match rank(module) {
            Some(rank) => rank,
            None if module == TESTING => (TESTING_IMPORTS_UP_TO, usize::MAX),
            None => {
                report.violations.push(format!("{file}: {module} is in no layer"));
                continue;
            }
        };
        for Import { line, path: import } in imports(code) {
            for (banned, allowed) in [(SOCKETS, SOCKETS_ALLOWED), (TASKS, TASKS_ALLOWED)] {
                let hit =
                    banned.iter().any(|banned| import.len() >= banned.len() && import[..banned.len()] == **banned);
                // A whole module, or one of its files.
                if hit && !allowed.contains(&module) && !allowed.contains(&path.join("/").as_str()) {
                    report.violations.push(format!("{file}:{line}: {module} uses {}", import.join("::")));
                }
            }
            let Some(target) = target(&path, &import) else { continue };
            let target = reexports.get(target).map_or(target, String::as_str);
            report.edges += 1;
            let verdict = match rank(target) {
                Some(theirs) if theirs < own => continue,
                _ if target == module => continue,
                Some(_) => "ranked after it",
                None => "in no layer",
            };
            report.violations.push(format!("{file}:{line}: {module} imports {target}, {verdict}"));
        }
    }
    report
}

/// The module or item at the top of this crate that an import reaches, if it reaches there.
fn target<'a>(path: &[&str], import: &'a [String]) -> Option<&'a str> {
    let supers = import.iter().take_while(|segment| *segment == "super").count();
    if import[0] != "crate" && supers != path.len() {
        return None;
    }
    import.get(supers.max(1)).map(String::as_str)
}

/// Where the items come from that `lib.rs` hands out itself.
fn reexports(lib: &str) -> BTreeMap<String, String> {
    let imports = imports(&code(lib)).into_iter().map(|import| import.path);
    imports
        .filter(|path| path.len() == 3 && path[0] == "crate")
        .map(|path| (path[2].clone(), path[1].clone()))
        .collect()
}

#[test]
fn every_module_imports_only_from_those_ranked_before_it() {
    let sources = sources();
    let report = check(&sources);
    assert!(sources.len() > 60 && report.edges > 150, "{} files, {} edges", sources.len(), report.edges);
    assert!(report.violations.is_empty(), "\n{}", report.violations.join("\n"));
}

#[test]
fn violations_are_found_with_file_and_line_and_nothing_else_is() {
    let lib = "mod error; pub use crate::tunnel::{TunnelStream, TunnelSend};";
    let files = [
        ("lib.rs", lib),
        ("tls/mod.rs", "use crate::error::Error;\nuse crate::config::Config;\n\nuse crate::conn::Shared;"),
        (
            "error.rs",
            "fn f(e: &crate::io::BytesAdapter) {}\n/// See [`crate::Client`] and crate::pool.\nconst S: &str = \"crate::pool\";",
        ),
        ("io/adapter.rs", "use crate::{\n    error::Error,\n    drain::{self, Watch},\n    pool::Pool,\n};"),
        ("path.rs", "use super::server::Server;\nuse crate::TunnelStream;"),
        (
            "route/mod.rs",
            "use super::error;\nuse super::pool;\n#[cfg(test)]\nmod tests;\n#[cfg(test)]\nuse crate::pool::A;\n",
        ),
        ("route/tests.rs", "use crate::pool::Pool;"),
        ("route/tests/deep/x.rs", "use crate::pool::Pool;"),
        ("route/deep/x.rs", "use super::super::Y;\nuse super::super::super::client;\nuse crate::route::z;"),
        ("conn/mod.rs", "use crate::config::C;\nuse crate::tls::T;\nuse crate::testing::Ca;\nuse crate::unheard::Of;"),
        (
            "nested.rs",
            "#[cfg(test)]\nmod tests {\n use crate::pool::P;\n fn f() { tokio::spawn(x()); }\n}\nuse crate::pool::Q;",
        ),
        ("stray.rs", "use crate::error::Error;"),
        ("testing/mod.rs", "use crate::server::S;\nuse crate::proxy::P;\nuse tokio::net::TcpStream;"),
        ("tests/any.rs", "use crate::proxy::P;\nfn f() { tokio::spawn(x()) }"),
        (
            "drain.rs",
            "use tokio::{net::TcpStream, sync::watch};\nuse std::{env, time};\nfn f() { time::Instant::now(); env!(\"X\") }",
        ),
        (
            "client/driver.rs",
            "use tokio::spawn as go;\nuse tokio::task;\nfn f() { tokio::time::Instant::now();\n task::spawn_local(x) }",
        ),
        ("pool/driver.rs", "fn f() { tokio::spawn(x) }\nfn g() { std::env::var(\"A\") }"),
        ("io/tcp.rs", "use tokio::net::TcpStream;"),
        ("proxy/mod.rs", "use tokio::net::TcpStream;\nfn f() { tokio::spawn(x) }\nuse crate::pool::Pool;"),
    ];
    let sources = files.iter().map(|(file, text)| ((*file).to_owned(), (*text).to_owned())).collect();
    let mut found = check(&sources).violations;
    found.sort();
    let mut expected = [
        "tls/mod.rs:4: tls imports conn, ranked after it",
        "error.rs:1: error imports io, ranked after it",
        "io/adapter.rs:4: io imports pool, ranked after it",
        "path.rs:1: path imports server, ranked after it",
        "path.rs:2: path imports tunnel, ranked after it",
        "route/mod.rs:2: route imports pool, ranked after it",
        "route/deep/x.rs:2: route imports client, ranked after it",
        "conn/mod.rs:3: conn imports testing, in no layer",
        "conn/mod.rs:4: conn imports unheard, in no layer",
        "nested.rs:6: nested imports pool, ranked after it",
        "stray.rs: stray is in no layer",
        "drain.rs:1: drain uses tokio::net::TcpStream",
        "drain.rs:2: drain uses std::env",
        "drain.rs:3: drain uses std::time::Instant::now",
        "client/driver.rs:1: client uses tokio::spawn",
        "client/driver.rs:2: client uses tokio::task",
        "client/driver.rs:4: client uses tokio::task::spawn_local",
        "pool/driver.rs:2: pool uses std::env::var",
    ];
    expected.sort_unstable();
    assert_eq!(found, expected);
}

#[test]
fn a_circle_inside_a_layer_is_found() {
    let files = [
        ("conn/linger.rs", "use crate::tunnel::Permit;"),
        ("tunnel/recv.rs", "use crate::conn::Shared;\nuse super::Permit;"),
        ("client/mod.rs", "use crate::{conn::Shared, tunnel::TunnelStream};"),
    ];
    let sources = files.iter().map(|(file, text)| ((*file).to_owned(), (*text).to_owned())).collect();
    assert_eq!(check(&sources).violations, ["conn/linger.rs:1: conn imports tunnel, ranked after it"]);
}
