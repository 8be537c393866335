//! Much data and many tunnels arrive as they were sent.

use rstest::rstest;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::harness::{Carrier, World, tunnel};
use crate::Config;
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
