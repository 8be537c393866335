//! A program as a process: started, listened to, and killed when it is not needed any more.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStderr, ChildStdout, Command};
use tokio::sync::mpsc;
use tokio::time::timeout;

/// Far more than anything here takes: reached only when something is broken.
const BROKEN: Duration = Duration::from_secs(60);

/// Waits for something that has to happen.
pub(crate) async fn soon<T>(what: &str, event: impl Future<Output = T>) -> T {
    timeout(BROKEN, event).await.unwrap_or_else(|_| panic!("{what}: nothing happened"))
}

/// A program of this package.
pub(crate) fn program(name: &str) -> Command {
    built(&[name], "cargo build")
}

/// An example of the library.
pub(crate) fn example(name: &str) -> Command {
    built(&["examples", name], "cargo build --examples")
}

/// What is built beside the tests' own program.
fn built(name: &[&str], by: &str) -> Command {
    let mut path: PathBuf = std::env::current_exe().unwrap();
    // target/PROFILE/deps/THIS
    path.pop();
    path.pop();
    path.extend(name);
    assert!(path.exists(), "{} is not built: run `{by}`, or all of `cargo test`", path.display());
    let mut command = Command::new(path);
    command.env_remove("RUST_LOG").stdin(Stdio::null()).kill_on_drop(true);
    command
}

/// What a process that ended by itself has left.
pub(crate) struct Ended {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// Runs a program to its end.
pub(crate) async fn run(name: &str, args: &[String]) -> Ended {
    ended(name, program(name).args(args)).await
}

/// Likewise, whatever it is.
pub(crate) async fn ended(name: &str, command: &mut Command) -> Ended {
    let output = soon(name, command.output()).await.unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Ended { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
}

/// A proxy that is up.
pub(crate) struct Proxy {
    name: String,
    child: Child,
    /// Its log. Read all the time: a full pipe would stop it.
    log: mpsc::UnboundedReceiver<String>,
    _stdout: Lines<BufReader<ChildStdout>>,
}

impl Proxy {
    /// Starts a program and waits until it says that it is ready.
    pub(crate) async fn start(name: &str, args: &[String]) -> Self {
        Self::start_logging(name, args, "info").await
    }

    /// Likewise, with a filter for its log.
    pub(crate) async fn start_logging(name: &str, args: &[String], filter: &str) -> Self {
        let mut command = program(name);
        command.args(args).env("RUST_LOG", filter).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("a process");
        let mut stdout = BufReader::new(child.stdout.take().unwrap()).lines();
        let log = read_lines(child.stderr.take().unwrap());
        let line = soon(name, stdout.next_line()).await.unwrap();
        let name = format!("{name} {}", args.join(" "));
        let mut proxy = Self { name, child, log, _stdout: stdout };
        if line.as_deref() != Some("ready") {
            let log = proxy.rest().await;
            panic!("{}: {line:?} instead of ready\n{log}", proxy.name);
        }
        proxy
    }

    /// Waits for a line in its log.
    pub(crate) async fn logs(&mut self, text: &str) -> String {
        loop {
            match soon(text, self.log.recv()).await {
                Some(line) if line.contains(text) => return line,
                Some(_) => {}
                None => panic!("{} ended without {text:?}", self.name),
            }
        }
    }

    /// The lines of its log that have come by now, as far as nothing has waited for them.
    pub(crate) fn logged(&mut self) -> String {
        let mut lines = String::new();
        while let Ok(line) = self.log.try_recv() {
            lines += &line;
            lines += "\n";
        }
        lines
    }

    pub(crate) async fn signal(&self, signal: &str) {
        let pid = self.child.id().expect("a running process").to_string();
        let sent = Command::new("sh").args(["-c", &format!("kill -{signal} {pid}")]).status().await.unwrap();
        assert!(sent.success());
    }

    /// Waits until it has ended, and returns its exit status and the rest of its log.
    pub(crate) async fn ended(mut self) -> (Option<i32>, String) {
        let rest = self.rest().await;
        (soon(&self.name, self.child.wait()).await.unwrap().code(), rest)
    }

    async fn rest(&mut self) -> String {
        let mut rest = String::new();
        while let Some(line) = soon(&self.name, self.log.recv()).await {
            rest += &line;
            rest += "\n";
        }
        rest
    }
}

fn read_lines(stderr: ChildStderr) -> mpsc::UnboundedReceiver<String> {
    let mut lines = BufReader::new(stderr).lines();
    let (sender, log) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok(Some(line)) = lines.next_line().await {
            // Also when nobody listens.
            let _ = sender.send(line);
        }
    });
    log
}

/// Reads to the end of a stream.
pub(crate) async fn read_all(mut stream: impl AsyncRead + Unpin) -> String {
    let mut text = String::new();
    soon("the end of a stream", stream.read_to_string(&mut text)).await.unwrap();
    text
}
