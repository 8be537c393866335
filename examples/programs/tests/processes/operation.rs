//! What operators do to a running proxy: logs that nobody reads, signals, renewed files, probes.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::process::Stdio;
use std::time::Duration;

use rstest::rstest;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};

use crate::mesh::{GLOBAL, Mesh, connect, echo, exchange, strings};
use crate::process::{Proxy, program, read_all, soon};
use crate::{get, one_connection};

/// The client's proxy with its forward port, and an application behind a gateway and a pod's proxy that echoes.
struct Running {
    mesh: Mesh,
    west: String,
    _servers: (Proxy, Proxy),
}

impl Running {
    async fn new(number: u8) -> Self {
        let mesh = Mesh::new(number);
        let application = mesh.application("w1").await;
        let west = mesh.west(&[("w1", application.local_addr().unwrap().port())]);
        echo(application, "w1");
        let _servers = (mesh.start_gateway(&west).await, mesh.start_pod(&west, "w1").await);
        Self { mesh, west, _servers }
    }

    fn client(&self) -> Command {
        let mut args = self.mesh.certificate("default/client");
        args.extend(strings(&["--mesh", &self.mesh.east(), "--workload", "default/client"]));
        args.extend(strings(&["--forward", &format!("{}={GLOBAL}:80", self.mesh.client(8000))]));
        let mut command = program("ztunnel");
        command.args(args);
        command
    }

    /// Waits until the client's proxy listens.
    async fn connect(&self) -> TcpStream {
        soon("a listener", async {
            loop {
                match TcpStream::connect(self.mesh.client(8000)).await {
                    Ok(stream) => return stream,
                    Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
                }
            }
        })
        .await
    }
}

async fn stop(mut child: Child) -> Option<i32> {
    let pid = child.id().unwrap().to_string();
    assert!(Command::new("kill").arg(&pid).status().await.unwrap().success());
    soon("the end", child.wait()).await.unwrap().code()
}

/// A pipe that is never read: the reading end is gone, or stays open while the pipe is full.
#[derive(Clone, Copy, Debug)]
enum Reader {
    Gone,
    Asleep,
    OnAFullDisk,
}

impl Reader {
    fn pipe(self) -> (Stdio, Option<std::io::PipeReader>) {
        let full = || std::fs::File::options().write(true).open("/dev/full").unwrap();
        match self {
            Self::OnAFullDisk => (full().into(), None),
            Self::Gone => (std::io::pipe().unwrap().1.into(), None),
            Self::Asleep => {
                let (reader, writer) = std::io::pipe().unwrap();
                (writer.into(), Some(reader))
            }
        }
    }
}

#[rstest]
#[case(40, Reader::Gone)]
#[case(41, Reader::Asleep)]
#[case(42, Reader::OnAFullDisk)]
#[tokio::test]
async fn a_log_that_nobody_reads_stops_nothing(#[case] number: u8, #[case] reader: Reader) {
    let running = Running::new(number).await;
    let ((stderr, _held), (stdout, _held_too)) = (reader.pipe(), reader.pipe());
    // Enough for more than a pipe holds.
    let child = running.client().env("RUST_LOG", "trace").stdout(stdout).stderr(stderr).spawn().unwrap();
    for _ in 0..50 {
        assert_eq!(exchange(running.connect().await, "hello").await, "w1\nhello");
    }
    assert_eq!(stop(child).await, Some(0), "drained");
}

#[rstest]
#[case(43, "TERM")]
#[case(44, "INT")]
#[tokio::test]
async fn a_second_signal_ends_a_drain(#[case] number: u8, #[case] signal: &str) {
    let mesh = Mesh::new(number);
    let (mut client, _gateway, _pod, mut near, _far) = one_connection(&mesh).await;
    client.signal(signal).await;
    client.logs("draining").await;
    client.signal(signal).await;
    let (code, log) = client.ended().await;
    assert_eq!(code, Some(1));
    assert!(log.contains("stopped by a second signal"), "{log}");
    let end = soon("the end", near.read(&mut [0])).await;
    assert_eq!(end.map_err(|e| e.kind()), Err(ErrorKind::ConnectionReset), "cut, not ended");
}

#[tokio::test]
async fn a_hang_up_has_the_files_read_again_and_cuts_nothing() {
    let running = Running::new(45).await;
    let mut client = running.mesh.start_client().await;
    let mut open = connect(running.mesh.client(8000)).await;
    open.read_exact(&mut [0; 3]).await.unwrap();

    // The certificate is renewed, and the mesh has another port.
    running.mesh.certificate("default/client");
    let east = std::fs::read_to_string(running.mesh.east()).unwrap();
    running.mesh.file("east.yaml", &east.replace("{80: 8080}", "{80: 8080, 81: 8080}"));
    client.signal("HUP").await;
    client.logs("mesh read again").await;
    client.logs("certificate read again").await;
    assert_eq!(exchange(connect(running.mesh.client(8000)).await, "hello").await, "w1\nhello");

    // What can't be used is reported, and the last good one stays in use.
    running.mesh.file("east.yaml", "workloads: 7");
    running.mesh.file("client.pem", "no certificate");
    client.signal("HUP").await;
    let line = client.logs("mesh not taken").await;
    assert!(line.contains("east.yaml"), "{line}");
    let line = client.logs("certificate not taken").await;
    assert!(line.contains("client.pem"), "{line}");
    assert_eq!(exchange(connect(running.mesh.client(8000)).await, "hello").await, "w1\nhello");

    open.write_all(b"still here").await.unwrap();
    open.shutdown().await.unwrap();
    assert_eq!(read_all(open).await, "still here");
    assert!(!running.west.is_empty());
}

/// Connects and goes away: with an end, or with a reset.
async fn probe(address: SocketAddr, resets: bool) {
    let stream = connect(address).await;
    if resets {
        stream.set_zero_linger().unwrap();
    }
}

#[tokio::test]
async fn health_checks_of_the_ports_leave_no_warning() {
    let mesh = Mesh::new(46);
    let application = mesh.application("w1").await;
    let west = mesh.west(&[("w1", application.local_addr().unwrap().port())]);
    echo(application, "w1");
    let (gateway, pod, client) =
        (mesh.start_gateway(&west).await, mesh.start_pod(&west, "w1").await, mesh.start_client().await);
    for resets in [false, true] {
        for address in [(mesh.ip(2), 15008).into(), (mesh.pod("w1"), 15008).into(), mesh.client(1080)] {
            for _ in 0..5 {
                probe(address, resets).await;
            }
        }
    }
    // What comes later on the same ports has been served after them.
    assert_eq!(exchange(connect(mesh.client(8000)).await, "hello").await, "w1\nhello");
    // From the far end on: a client that ends may be about to open one more connection to the pod.
    for proxy in [pod, gateway, client] {
        proxy.signal("TERM").await;
        let (code, log) = proxy.ended().await;
        assert_eq!(code, Some(0));
        assert!(!log.contains("WARN") && !log.contains("ERROR"), "{log}");
    }
}

#[tokio::test]
async fn idle_clients_of_the_admin_port_leave_descriptors_to_the_data_path() {
    let running = Running::new(47).await;
    let mut command = Command::new("sh");
    let client = running.client();
    let admin = running.mesh.client(15021);
    command.args(["-c", "ulimit -n 100; exec \"$0\" \"$@\""]).arg(client.as_std().get_program());
    command.args(client.as_std().get_args()).args(["--admin", &admin.to_string()]);
    let child = command.kill_on_drop(true).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    assert_eq!(exchange(running.connect().await, "hello").await, "w1\nhello");
    let mut idle = Vec::new();
    for _ in 0..150 {
        idle.push(connect(admin).await);
    }
    assert_eq!(exchange(connect(running.mesh.client(8000)).await, "hello").await, "w1\nhello");
    let ready = get(connect(admin).await, "/healthz/ready").await;
    assert!(ready.ends_with("ready\n"), "{ready}");
    assert_eq!(stop(child).await, Some(0));
}
