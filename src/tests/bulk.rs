//! Much data and many tunnels arrive as they were sent.

use futures_util::FutureExt;
use rstest::rstest;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::harness::{Carrier, World, client_id, server_id, tunnel};
use super::peers::{acceptor, connector, handshake};
use crate::Config;
use crate::testing::Ca;
use crate::tunnel::TunnelStream;

/// FNV-1a: order-sensitive, and nothing to depend on.
fn hash(state: u64, data: &[u8]) -> u64 {
    data.iter().fold(state, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x0100_0000_01b3))
}

async fn send(mut tunnel: TunnelStream, len: usize, seed: u64) -> u64 {
    let mut rng = fastrand::Rng::with_seed(seed);
    let (mut left, mut sum) = (len, 0);
    let mut chunk = vec![0; 100_000];
    while left > 0 {
        let n = rng.usize(1..=chunk.len()).min(left);
        rng.fill(&mut chunk[..n]);
        tunnel.write_all(&chunk[..n]).await.unwrap();
        sum = hash(sum, &chunk[..n]);
        left -= n;
    }
    tunnel.shutdown().await.unwrap();
    assert_eq!(tunnel.read(&mut [0]).await.unwrap(), 0);
    sum
}

async fn receive(mut tunnel: TunnelStream) -> (usize, u64) {
    let mut buf = vec![0; 70_000];
    let (mut len, mut sum) = (0, 0);
    loop {
        match tunnel.read(&mut buf).await.unwrap() {
            0 => break,
            n => (len, sum) = (len + n, hash(sum, &buf[..n])),
        }
    }
    tunnel.shutdown().await.unwrap();
    (len, sum)
}

#[rstest]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sixty_four_mebibytes_arrive_unchanged(
    #[values(Carrier::Pipe, Carrier::Tcp, Carrier::Unix)] carrier: Carrier,
    #[values(1, 2, 3, 4)] depth: usize,
) {
    const LEN: usize = 64 << 20;
    let (client, mut incoming) = World::new(Config::new()).connect(carrier, depth).await;
    let (near, far) = tunnel(&client, &mut incoming).await;
    let sent = tokio::spawn(send(near, LEN, 1));
    assert_eq!(receive(far).await, (LEN, sent.await.unwrap()));
}

#[rstest]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_tunnels_at_once_keep_apart(
    #[values(Carrier::Pipe, Carrier::Tcp, Carrier::Unix)] carrier: Carrier,
    #[values(1, 2)] depth: usize,
) {
    const LEN: usize = 1 << 20;
    let (client, mut incoming) = World::new(Config::new()).connect(carrier, depth).await;
    let mut tasks = Vec::new();
    for seed in 0..100 {
        let (near, far) = tunnel(&client, &mut incoming).await;
        tasks.push((tokio::spawn(send(near, LEN, seed)), tokio::spawn(receive(far))));
    }
    for (sent, received) in tasks {
        assert_eq!(received.await.unwrap(), (LEN, sent.await.unwrap()));
    }
}

#[tokio::test]
async fn little_is_encrypted_ahead_of_a_byte_stream_that_is_slow() {
    let ca = Ca::new();
    let (connector, acceptor) = (connector(&ca, &client_id()), acceptor(&ca, &server_id()));
    let (near, far) = handshake(&connector, &server_id().into(), &acceptor).await;
    let (mut near, mut far) = (near.unwrap(), far.unwrap());
    let (piece, mut read) = (vec![0; 64 << 10], vec![0; 32 << 10]);
    let (mut ahead, mut ahead_at) = (0, Vec::new());
    for _ in 0..40 {
        while let Some(written) = near.write(&piece).now_or_never() {
            ahead += written.unwrap();
        }
        ahead_at.push(ahead);
        far.read_exact(&mut read).await.unwrap();
        ahead -= read.len();
    }
    // 64 KiB are in the pipe.
    assert!(ahead_at[0] >= 256 << 10, "{ahead_at:?}");
    assert!(ahead_at[39] <= 160 << 10, "{ahead_at:?}");
}
