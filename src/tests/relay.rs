//! A relay between a tunnel and an application that takes nothing.

use rstest::rstest;
use tokio::io::{AsyncWriteExt, duplex};

use super::harness::{Carrier, World, tunnel};
use crate::io::{BytesAdapter, RelayEnd, RelayOperation, relay};
use crate::tunnel::ResetReason;
use crate::{Config, Error, ErrorKind};

/// The application would hold the tunnel, its memory and its task for ever.
#[rstest]
#[tokio::test]
async fn a_dead_tunnel_is_noticed_although_the_application_does_not_read(
    #[values(Carrier::Pipe, Carrier::Tcp, Carrier::Unix)] carrier: Carrier,
    #[values(1, 2)] depth: usize,
    #[values(true, false)] reset: bool,
) {
    let (client, mut incoming) = World::new(Config::new()).connect(carrier, depth).await;
    let (mut near, mut far) = tunnel(&client, &mut incoming).await;
    let (_application, stream) = duplex(16);
    let relayed = tokio::spawn(async move { relay(&mut far, &mut BytesAdapter::new(stream)).await });
    near.write_all(&[0; 100_000]).await.unwrap();
    if reset {
        near.reset(ResetReason::ConnectError);
    }
    drop((near, client));
    let error = relayed.await.unwrap().unwrap_err();
    assert_eq!((error.end(), error.operation()), (RelayEnd::A, RelayOperation::Read));
    let code = if reset { 10 } else { 8 };
    assert_eq!(Error::from_io(error.io_error()).unwrap().kind(), &ErrorKind::Reset(code));
}
