//! The processes of all paths, on loopback addresses of their own.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use hbone::testing::Ca;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::time::{Instant, timeout};

use crate::Failure;
use crate::relay::How;
use crate::roles::identity;
use crate::stats;

const SERVICE_ACCOUNTS: [&str; 3] = ["client", "eastwest", "server"];
/// Single HBONE with a slow link between the proxies.
const SLOW: &str = "slow";
/// Paths of plain relays, and the last part of the address of the first one.
const FLOORS: [(&str, How, u8, u8); 6] = [
    ("tcp2", How::Copy, 20, 2),
    ("tcp3", How::Copy, 30, 3),
    ("large2", How::Large, 60, 2),
    ("large3", How::Large, 70, 3),
    ("splice2", How::Splice, 80, 2),
    ("splice3", How::Splice, 90, 3),
];
/// Far more than a start takes.
const START: Duration = Duration::from_secs(20);

/// A way to the application.
pub(crate) struct Route {
    pub(crate) name: &'static str,
    pub(crate) address: SocketAddr,
    proxies: Vec<Proxy>,
    /// What it is compared to: plain relays, as many as it has proxies; and relays with mutual TLS.
    pub(crate) floors: &'static [&'static str],
}

struct Proxy {
    name: &'static str,
    pid: u32,
}

impl Route {
    /// Whether there are processes whose CPU and memory are of interest.
    pub(crate) fn has_proxies(&self) -> bool {
        !self.proxies.is_empty()
    }

    /// Whether it is there for bulk alone.
    pub(crate) fn is_for_bulk(&self) -> bool {
        FLOORS.iter().any(|(name, how, ..)| *name == self.name && *how != How::Copy)
    }

    pub(crate) fn is_slow(&self) -> bool {
        self.name == SLOW
    }

    /// The processes of the path, with those that they have started.
    pub(crate) fn pids(&self) -> Result<Vec<u32>, Failure> {
        let mut pids = Vec::new();
        for proxy in &self.proxies {
            pids.extend(stats::tree(proxy.pid)?);
        }
        Ok(pids)
    }

    /// What each proxy of the path has in memory, in KiB.
    pub(crate) fn memory(&self) -> Result<Vec<(&'static str, f64)>, Failure> {
        let of = |proxy: &Proxy| -> Result<_, Failure> {
            let pids = stats::tree(proxy.pid)?;
            Ok((proxy.name, pids.into_iter().map(stats::rss).sum::<Result<f64, _>>()?))
        };
        self.proxies.iter().map(of).collect()
    }
}

/// All paths. What was started ends when this is dropped.
pub(crate) struct World {
    pub(crate) routes: Vec<Route>,
    children: Vec<Child>,
    files: PathBuf,
}

impl World {
    /// Starts the processes of the paths that are asked for; all when `only` is empty.
    pub(crate) async fn start(only: &[String], against: Option<&str>) -> Result<Self, Failure> {
        let id = std::process::id();
        let files = std::env::temp_dir().join(format!("bench-mesh-{id}"));
        std::fs::create_dir_all(&files).map_err(|e| format!("{}: {e}", files.display()))?;
        // Some network of loopback for each run, so that two at once don't get in each other's way.
        let net = [127, 64 + (id >> 8 & 63) as u8, id as u8];
        let mut world = Self { routes: Vec::new(), children: Vec::new(), files };
        world.write_files(net)?;
        let ip = |host: u8| Ipv4Addr::new(net[0], net[1], net[2], host);
        let at = |host: u8, port: u16| SocketAddr::from((ip(host), port));
        // One application behind all pods.
        let (app, apps) = (at(11, 8080), [11, 12, 13].map(|pod| at(pod, 8080).to_string()));
        world.role("server", &apps.each_ref().map(String::as_str)).await?;

        let wanted = |name: &str| only.is_empty() || only.iter().any(|path| path == name);
        if wanted("direct") {
            world.route("direct", app, Vec::new(), &[]);
        }
        for (name, how, first, hops) in FLOORS {
            if wanted(name) {
                let mut relays = Vec::new();
                for hop in (0..hops).rev() {
                    let to = if hop + 1 == hops { app } else { at(first + hop + 1, 9000) };
                    let (listen, to) = (at(first + hop, 9000).to_string(), to.to_string());
                    relays.push(world.role("tcp-relay", &[&listen, &to, "--how", how.name()]).await?);
                }
                world.route(name, at(first, 9000), relays, &[]);
            }
        }
        if wanted("mtls2") {
            let files = world.files.clone();
            let server = world.relay("tls-server", at(41, 9000), app, Some(&files)).await?;
            let client = world.relay("tls-client", at(40, 9000), at(41, 9000), Some(&files)).await?;
            world.route("mtls2", at(40, 9000), vec![client, server], &["tcp2"]);
        }
        if wanted("hbone") {
            let server = world.inbound("b1", at(11, 15008)).await?;
            let client = world.client("west.yaml", at(1, 9000), "near").await?;
            world.route("hbone", at(1, 9000), vec![client, server], &["tcp2", "mtls2", "large2", "splice2"]);
        }
        if wanted("nested") {
            let server = world.inbound("b2", at(12, 15008)).await?;
            let listen = at(3, 15008).to_string();
            let arguments = ["--network", "west", "--mesh", "west.yaml", "--listen", &listen];
            let gateway = world.proxy("gateway", "gateway", &arguments, "eastwest").await?;
            let client = world.client("east.yaml", at(2, 9000), "far").await?;
            world.route("nested", at(2, 9000), vec![client, gateway, server], &["tcp3", "mtls2", "large3", "splice3"]);
        }
        if wanted(SLOW) {
            // The client dials the workload's address, which is the link's.
            let (link, listen) = (at(13, 15008), at(14, 15008));
            world.inbound("b3", listen).await?;
            world.relay("slow-link", link, listen, None).await?;
            // One thread, so that all share a connection.
            let forward = format!("{}=slow.default.svc.cluster.local:80", at(4, 9000));
            let arguments =
                ["--workload", "default/client", "--mesh", "west.yaml", "--forward", &forward, "--threads", "1"];
            world.proxy("client", "ztunnel", &arguments, "client").await?;
            world.route(SLOW, at(4, 9000), Vec::new(), &[]);
        }
        if let Some(command) = against.filter(|_| wanted("against")) {
            let listen = at(50, 9000);
            let mut shell = Command::new("sh");
            shell.args(["-c", command]).env("LISTEN", listen.to_string()).env("UPSTREAM", app.to_string());
            let child = spawn(&mut shell, command)?;
            let proxy = Proxy { name: "against", pid: child.id().ok_or("the other proxy has ended")? };
            world.children.push(child);
            until_reachable(listen, command).await?;
            world.route("against", listen, vec![proxy], &["tcp2", "hbone"]);
        }
        match only.iter().find(|name| !world.routes.iter().any(|route| route.name == **name)) {
            Some(name) => Err(format!("--paths {name}: the paths are {}", PATHS.join(", ")).into()),
            None => Ok(world),
        }
    }

    fn route(&mut self, name: &'static str, address: SocketAddr, proxies: Vec<Proxy>, floors: &'static [&'static str]) {
        self.routes.push(Route { name, address, proxies, floors });
    }

    fn write_files(&self, net: [u8; 3]) -> Result<(), Failure> {
        let ca = Ca::new();
        let write = |name: String, text: String| -> Result<(), Failure> {
            let path = self.files.join(name);
            Ok(std::fs::write(&path, text).map_err(|e| format!("{}: {e}", path.display()))?)
        };
        write("ca.pem".into(), ca.root_pem())?;
        for name in SERVICE_ACCOUNTS {
            let issued = ca.certificate().uri(&identity(name)?.to_string()).issue();
            write(format!("{name}.pem"), issued.chain_pem())?;
            write(format!("{name}.key"), issued.key_pem())?;
        }
        let net = net.map(|part| part.to_string()).join(".");
        for (name, text) in [("east.yaml", include_str!("east.yaml")), ("west.yaml", include_str!("west.yaml"))] {
            write(name.into(), text.replace("127.0.0", &net))?;
        }
        Ok(())
    }

    async fn role(&mut self, role: &'static str, arguments: &[&str]) -> Result<Proxy, Failure> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg(role).args(arguments);
        self.ready(role, command).await
    }

    async fn relay(
        &mut self,
        role: &'static str,
        listen: SocketAddr,
        to: SocketAddr,
        files: Option<&Path>,
    ) -> Result<Proxy, Failure> {
        let (listen, to) = (listen.to_string(), to.to_string());
        let mut arguments = vec![listen.as_str(), to.as_str()];
        arguments.extend(files.and_then(Path::to_str));
        self.role(role, &arguments).await
    }

    async fn inbound(&mut self, pod: &str, listen: SocketAddr) -> Result<Proxy, Failure> {
        let (workload, listen) = (format!("default/{pod}"), listen.to_string());
        let arguments = ["--workload", &workload, "--mesh", "west.yaml", "--inbound", &listen];
        self.proxy("server", "ztunnel", &arguments, "server").await
    }

    async fn client(&mut self, mesh: &str, listen: SocketAddr, service: &str) -> Result<Proxy, Failure> {
        let forward = format!("{listen}={service}.default.svc.cluster.local:80");
        let arguments = ["--workload", "default/client", "--mesh", mesh, "--forward", &forward];
        self.proxy("client", "ztunnel", &arguments, "client").await
    }

    /// Starts a program that is beside this one, in the directory of the files.
    async fn proxy(
        &mut self,
        name: &'static str,
        program: &str,
        arguments: &[&str],
        service_account: &str,
    ) -> Result<Proxy, Failure> {
        let program = std::env::current_exe()?.with_file_name(program);
        if !program.exists() {
            let program = program.display();
            return Err(format!("{program} is not built: run `cargo build --release --bins` first").into());
        }
        let mut command = Command::new(program);
        command.args(arguments).current_dir(&self.files).env("RUST_LOG", "error");
        command.args(["--cert", &format!("{service_account}.pem"), "--key", &format!("{service_account}.key")]);
        command.args(["--ca", "ca.pem"]);
        self.ready(name, command).await
    }

    /// Starts a process and waits until it says that it is ready.
    async fn ready(&mut self, name: &'static str, mut command: Command) -> Result<Proxy, Failure> {
        let mut child = spawn(command.stdout(Stdio::piped()), name)?;
        let pid = child.id().ok_or("it has ended")?;
        let stdout = child.stdout.take().ok_or("it has no output")?;
        self.children.push(child);
        let mut lines = BufReader::new(stdout).lines();
        match timeout(START, lines.next_line()).await {
            Ok(Ok(Some(line))) if line == "ready" => Ok(Proxy { name, pid }),
            _ => Err(format!("{name} does not start").into()),
        }
    }
}

/// The names of all paths.
pub(crate) const PATHS: [&str; 12] = [
    "direct",
    "tcp2",
    "tcp3",
    "large2",
    "large3",
    "splice2",
    "splice3",
    "mtls2",
    "hbone",
    "nested",
    "slow",
    "against (with --against)",
];

impl Drop for World {
    fn drop(&mut self) {
        for child in &mut self.children {
            // Also what a shell has started for `--against`.
            for pid in child.id().map(stats::tree).and_then(Result::ok).unwrap_or_default() {
                let _ = std::process::Command::new("kill").args(["-9", &pid.to_string()]).status();
            }
        }
        let _ = std::fs::remove_dir_all(&self.files);
    }
}

fn spawn(command: &mut Command, name: &str) -> Result<Child, Failure> {
    let child = command.stdin(Stdio::null()).kill_on_drop(true).spawn();
    Ok(child.map_err(|e| format!("starting {name}: {e}"))?)
}

async fn until_reachable(address: SocketAddr, command: &str) -> Result<(), Failure> {
    let deadline = Instant::now() + START;
    while TcpStream::connect(address).await.is_err() {
        if Instant::now() > deadline {
            return Err(format!("--against {command:?} does not listen at LISTEN ({address})").into());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}
