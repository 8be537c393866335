//! The programs, and the library's examples, as processes on loopback: two clusters, bad starts, bad peers.
//!
//! The examples must have been built: `cargo test` does so, `cargo test --test processes` alone does not.
#![expect(clippy::unwrap_used, reason = "a test that can't go on fails")]
#![cfg(target_os = "linux")]

mod bad_starts;
mod faults;
mod mesh;
mod operation;
mod process;
mod watching;

use std::collections::BTreeSet;
use std::io::ErrorKind;

use mesh::{GLOBAL, Mesh, connect, echo, exchange, socks5};
use process::{Proxy, ended, example, read_all, run, soon};
use rstest::rstest;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

async fn get(mut stream: TcpStream, path: &str) -> String {
    let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    read_all(stream).await
}

#[tokio::test]
async fn two_clusters_by_name_by_address_and_by_forward() {
    let mesh = Mesh::new(1);
    let (one, two) = (mesh.application("w1").await, mesh.application("w2").await);
    let west = mesh.west(&[("w1", one.local_addr().unwrap().port()), ("w2", two.local_addr().unwrap().port())]);
    echo(one, "w1");
    echo(two, "w2");
    let _west = (mesh.start_gateway(&west).await, mesh.start_pod(&west, "w1").await, mesh.start_pod(&west, "w2").await);
    let _client = mesh.start_client().await;

    let name = [&[3, GLOBAL.len() as u8][..], GLOBAL.as_bytes()].concat();
    let vip = [&[1][..], &mesh.vip().octets()].concat();
    let mut pods = BTreeSet::new();
    // Chance leaves one pod out once in a billion runs.
    for _ in 0..10 {
        for stream in [
            socks5(mesh.client(1080), &name).await,
            socks5(mesh.client(1080), &vip).await,
            connect(mesh.client(8000)).await,
        ] {
            let answer = exchange(stream, "hello").await;
            let (pod, echoed) = answer.split_once('\n').unwrap();
            assert_eq!(echoed, "hello");
            pods.insert(pod.to_owned());
        }
    }
    assert_eq!(pods, ["w1", "w2"].map(str::to_owned).into());

    let ready = get(connect(mesh.client(15021)).await, "/healthz/ready").await;
    assert!(ready.starts_with("HTTP/1.1 200 ") && ready.ends_with("\r\n\r\nready\n"), "{ready}");
    let other = get(connect(mesh.client(15021)).await, "/").await;
    assert!(other.starts_with("HTTP/1.1 404 "), "{other}");
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Stopped {
    Client,
    Gateway,
    Pod,
}

/// One pod with the proxies on the way to it, the listener of its application, and an open connection: both its ends.
async fn one_connection(mesh: &Mesh) -> (Proxy, Proxy, Proxy, TcpStream, TcpStream) {
    let application = mesh.application("w1").await;
    let west = mesh.west(&[("w1", application.local_addr().unwrap().port())]);
    let (gateway, pod, client) =
        (mesh.start_gateway(&west).await, mesh.start_pod(&west, "w1").await, mesh.start_client().await);
    let near = connect(mesh.client(8000)).await;
    let (far, _) = soon("a connection to the application", application.accept()).await.unwrap();
    (client, gateway, pod, near, far)
}

#[rstest]
#[case(2, Stopped::Client, "TERM")]
#[case(3, Stopped::Gateway, "TERM")]
#[case(4, Stopped::Pod, "TERM")]
#[case(5, Stopped::Pod, "INT")]
#[tokio::test]
async fn a_signal_lets_running_connections_finish(#[case] number: u8, #[case] stopped: Stopped, #[case] signal: &str) {
    let mesh = Mesh::new(number);
    let (client, gateway, pod, mut near, mut far) = one_connection(&mesh).await;
    near.write_all(b"half a quest").await.unwrap();
    let mut got = [0; 12];
    soon("the question", far.read_exact(&mut got)).await.unwrap();

    let (mut draining, listener, others) = match stopped {
        Stopped::Client => (client, mesh.client(8000), (gateway, pod)),
        Stopped::Gateway => (gateway, (mesh.ip(2), 15008).into(), (client, pod)),
        Stopped::Pod => (pod, (mesh.pod("w1"), 15008).into(), (client, gateway)),
    };
    draining.signal(signal).await;
    draining.logs("draining").await;
    // The log comes first, the listener's end right after it.
    soon("the end of the listener", async {
        while !TcpStream::connect(listener).await.is_err_and(|e| e.kind() == ErrorKind::ConnectionRefused) {}
    })
    .await;
    if stopped == Stopped::Client {
        let answer = get(connect(mesh.client(15021)).await, "/healthz/ready").await;
        assert!(answer.starts_with("HTTP/1.1 503 ") && answer.ends_with("\r\n\r\ndraining\n"), "{answer}");
    }

    near.write_all(b"ion").await.unwrap();
    near.shutdown().await.unwrap();
    assert_eq!(read_all(&mut far).await, "ion");
    far.write_all(b"answer").await.unwrap();
    drop(far);
    assert_eq!(read_all(&mut near).await, "answer");
    drop(near);
    let (code, log) = draining.ended().await;
    assert_eq!(code, Some(0));
    assert!(!log.contains("cut"), "{log}");
    drop(others);
}

/// What comes until the end, whichever it is.
async fn to_the_end(mut stream: TcpStream) -> Vec<u8> {
    let mut got = Vec::new();
    let _ = stream.read_to_end(&mut got).await;
    got
}

#[rstest]
#[case(6, Stopped::Client)]
#[case(7, Stopped::Gateway)]
#[case(8, Stopped::Pod)]
#[tokio::test]
async fn what_outlasts_the_drain_is_reset_on_both_sides(#[case] number: u8, #[case] stopped: Stopped) {
    let mesh = Mesh::new(number).impatient();
    let (client, gateway, pod, mut near, mut far) = one_connection(&mesh).await;
    near.write_all(b"half a quest").await.unwrap();
    far.write_all(b"half an answ").await.unwrap();
    let mut got = [0; 12];
    soon("the question", far.read_exact(&mut got)).await.unwrap();
    soon("the answer", near.read_exact(&mut got)).await.unwrap();
    let (draining, others) = match stopped {
        Stopped::Client => (client, (gateway, pod)),
        Stopped::Gateway => (gateway, (client, pod)),
        Stopped::Pod => (pod, (client, gateway)),
    };
    draining.signal("TERM").await;
    for (side, mut stream) in [("client", near), ("application", far)] {
        let end = soon(side, stream.read(&mut got)).await;
        assert_eq!(end.map_err(|e| e.kind()), Err(ErrorKind::ConnectionReset), "{side}");
    }
    let (code, log) = draining.ended().await;
    assert_eq!(code, Some(0));
    assert!(log.contains("connections cut at the end of the drain"), "{log}");
    drop(others);
}

#[tokio::test]
async fn a_pod_proxy_that_is_killed_resets_the_clients_connection() {
    let mesh = Mesh::new(9);
    let (_client, _gateway, pod, mut near, mut far) = one_connection(&mesh).await;
    let sending = tokio::spawn(async move { while far.write_all(&[7; 1 << 16]).await.is_ok() {} });
    let mut some = vec![0; 1 << 20];
    soon("some of the answer", near.read_exact(&mut some)).await.unwrap();
    pod.signal("KILL").await;
    let error = loop {
        match soon("the end", near.read(&mut some)).await {
            Ok(0) => panic!("a truncated answer came to a clean end"),
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    assert_eq!(pod.ended().await.0, None, "killed by a signal");
    sending.await.unwrap();
}

#[tokio::test]
async fn a_client_proxy_that_is_killed_resets_the_applications_connection() {
    let mesh = Mesh::new(10);
    let (client, _gateway, _pod, mut near, mut far) = one_connection(&mesh).await;
    near.write_all(b"half a quest").await.unwrap();
    let mut got = [0; 12];
    soon("the question", far.read_exact(&mut got)).await.unwrap();
    client.signal("KILL").await;
    let error = soon("the end", far.read(&mut got)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}

#[rstest]
#[case::where_nobody_is(11, false)]
#[case::without_a_gateway(12, true)]
#[tokio::test]
async fn a_target_that_is_not_reached_resets_the_applications_connection(#[case] number: u8, #[case] known: bool) {
    let mesh = Mesh::new(number);
    let mut args = mesh.certificate("default/client");
    let target = if known { format!("{GLOBAL}:80") } else { "192.0.2.1:80".to_owned() };
    args.extend(mesh::strings(&["--mesh", &mesh.east(), "--workload", "default/client"]));
    args.extend(mesh::strings(&["--forward", &format!("{}={target}", mesh.client(8000))]));
    let mut client = Proxy::start("ztunnel", &args).await;
    // The reset may be there before connecting is over.
    let end = match soon("a connection", TcpStream::connect(mesh.client(8000))).await {
        Ok(mut stream) => soon("the end", stream.read(&mut [0; 1])).await.map(drop),
        Err(error) => Err(error),
    };
    assert_eq!(end.map_err(|e| e.kind()), Err(ErrorKind::ConnectionReset));
    let line = client.logs("outbound connection").await;
    let why = if known { "hop 0, dial: connecting" } else { "no way to 192.0.2.1:80 from workload default/client" };
    assert!(line.contains(why), "{line}");
}

#[tokio::test]
async fn garbage_and_silence_do_not_hurt_others() {
    let mesh = Mesh::new(13);
    let (_client, _gateway, mut pod, near, far) = one_connection(&mesh).await;
    let inbound = (mesh.pod("w1"), 15008).into();
    let hello = [&[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3][..], &[0; 20]].concat();
    // Silence, and half a ClientHello: both wait for their time to be over, and are still there at the end.
    let silent = connect(inbound).await;
    let mut slow = connect(inbound).await;
    slow.write_all(&hello).await.unwrap();
    let crowd = futures_util::future::join_all((0..200).map(|_| connect(inbound))).await;
    for garbage in [
        b"GET / HTTP/1.1\r\nhost: x\r\n\r\n".to_vec(),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
        vec![0; 100_000],
        vec![0xff; 100_000],
        (0..100_000_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect(),
    ] {
        let mut stream = connect(inbound).await;
        // It may be cut off before it has said everything.
        let _ = stream.write_all(&garbage).await;
        let answer = soon("the end", to_the_end(stream)).await;
        assert!(answer.len() < 10, "at most an alert: {answer:?}");
        pod.logs("inbound connection").await;
    }
    let mut far = far;
    let answering = tokio::spawn(async move {
        assert_eq!(read_all(&mut far).await, "question");
        far.write_all(b"answer").await.unwrap();
    });
    assert_eq!(exchange(near, "question").await, "answer");
    answering.await.unwrap();
    drop((silent, slow, crowd));
}

#[tokio::test]
async fn the_demo_mesh_keeps_all_of_its_promises() {
    let ended = run("mesh", &[]).await;
    assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""), "{}", ended.stdout);
    assert!(!ended.stdout.contains("NO  "), "{}", ended.stdout);
    assert!(ended.stdout.ends_with("\n10 of 10 steps held.\n"), "{}", ended.stdout);
}

#[tokio::test]
async fn echo_prints_its_line() {
    let ended = ended("echo", &mut example("echo")).await;
    assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""));
    assert_eq!(ended.stdout, "hello through two tunnels\n");
}

#[rstest]
#[tokio::test]
async fn the_readme_shows_what_the_http_examples_print(#[values("http_server", "http_client")] name: &str) {
    let ended = ended(name, &mut example(name)).await;
    assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""));
    let shown = format!("--features tower --example {name}\n{}```\n", ended.stdout);
    assert!(include_str!("../../../README.md").contains(&shown), "{}", ended.stdout);
}
