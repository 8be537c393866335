//! How tunnels end: half-close in either order, resets, GOAWAY, and what each costs on the wire.

use rstest::rstest;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::harness::{Carrier, World, tunnel};
use crate::Config;

#[rstest]
#[tokio::test]
async fn half_close_client_first(
    #[values(Carrier::Pipe, Carrier::Tcp, Carrier::Unix)] carrier: Carrier,
    #[values(1, 2)] depth: usize,
) {
    let (client, mut incoming) = World::new(Config::new()).connect(carrier, depth).await;
    let (mut near, mut far) = tunnel(&client, &mut incoming).await;
    near.write_all(b"question").await.unwrap();
    near.shutdown().await.unwrap();
    let mut got = Vec::new();
    far.read_to_end(&mut got).await.unwrap();
    assert_eq!(got, b"question");
    far.write_all(b"answer").await.unwrap();
    far.shutdown().await.unwrap();
    got.clear();
    near.read_to_end(&mut got).await.unwrap();
    assert_eq!(got, b"answer");
}
