//! SOCKS5 in front of the client's proxy: what is answered to which bytes.

use rstest::rstest;
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

use super::world::World;
use crate::ErrorKind;
use crate::proxy::socks5;

const HELLO: [u8; 3] = [5, 1, 0];
const CHOSEN: [u8; 2] = [5, 0];

fn reply(code: u8) -> Vec<u8> {
    vec![5, code, 0, 1, 0, 0, 0, 0, 0, 0]
}

fn request(command: u8, address_type: u8, address: &[u8], port: u16) -> Vec<u8> {
    [&HELLO[..], &[5, command, 0, address_type], address, &port.to_be_bytes()].concat()
}

fn named(name: &[u8], port: u16) -> Vec<u8> {
    request(1, 3, &[&[name.len() as u8][..], name].concat(), port)
}

/// What comes back until the end, and how serving ended.
async fn talk(world: &World, sent: &[u8]) -> (Vec<u8>, crate::Result<()>) {
    let (mut client, served) = duplex(1024);
    let outbound = world.outbound();
    let serving = tokio::spawn(async move { socks5::serve(&outbound, served, None).await.map(|_| ()) });
    client.write_all(sent).await.unwrap();
    client.shutdown().await.unwrap();
    let mut got = Vec::new();
    client.read_to_end(&mut got).await.unwrap();
    (got, serving.await.unwrap())
}

#[rstest]
#[case::ipv4(request(1, 1, &[10, 96, 0, 1], 80))]
#[case::ipv6(request(1, 4, &[0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1], 80))]
#[case::ipv4_as_ipv6(request(1, 4, &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 96, 0, 1], 80))]
#[case::name(named(b"near.default.svc.cluster.local", 80))]
#[case::name_in_capitals_with_a_dot(named(b"NEAR.default.svc.cluster.local.", 80))]
#[case::ipv4_in_the_name(named(b"10.96.0.1", 80))]
#[case::ipv6_in_the_name(named(b"fd00::1", 80))]
#[case::several_methods([&[5, 3, 1, 2, 0], &named(b"near.default.svc.cluster.local", 80)[3..]].concat())]
#[tokio::test]
async fn a_valid_request_is_connected(#[case] sent: Vec<u8>) {
    let world = World::new();
    let _near = world.near();
    let (got, served) = talk(&world, &[&sent[..], b"hello"].concat()).await;
    assert_eq!(got, [&CHOSEN[..], &reply(0), b"hello"].concat());
    served.unwrap();
}

/// As a health check of the port does.
#[tokio::test]
async fn a_client_that_says_nothing_is_no_failure() {
    let (got, served) = talk(&World::new(), &[]).await;
    assert!(got.is_empty());
    served.unwrap();
}

#[rstest]
#[case::socks4([4, 1, 0, 80, 10, 96, 0, 1].to_vec(), vec![])]
#[case::http(b"GET / HTTP/1.1\r\n\r\n".to_vec(), vec![])]
#[case::truncated_greeting(vec![5, 2, 0], vec![])]
#[case::only_authentication([&[5, 1, 2], &named(b"near", 80)[3..]].concat(), vec![5, 0xff])]
#[case::no_method([&[5, 0], &named(b"near", 80)[3..]].concat(), vec![5, 0xff])]
#[case::another_version([&HELLO[..], &[4, 1, 0, 1, 10, 96, 0, 1, 0, 80]].concat(), [&CHOSEN[..], &reply(1)].concat())]
#[case::truncated_request(request(1, 1, &[10, 96], 80)[..8].to_vec(), [&CHOSEN[..], &reply(1)].concat())]
#[case::truncated_name(named(b"near", 80)[..9].to_vec(), [&CHOSEN[..], &reply(1)].concat())]
#[case::bind(request(2, 1, &[10, 96, 0, 1], 80), [&CHOSEN[..], &reply(7)].concat())]
#[case::udp(request(3, 1, &[10, 96, 0, 1], 80), [&CHOSEN[..], &reply(7)].concat())]
#[case::unknown_address_type(request(1, 2, &[10, 96, 0, 1], 80), [&CHOSEN[..], &reply(8)].concat())]
#[case::port_0(request(1, 1, &[10, 96, 0, 1], 0), [&CHOSEN[..], &reply(4)].concat())]
#[case::name_and_port_0(named(b"near.default.svc.cluster.local", 0), [&CHOSEN[..], &reply(4)].concat())]
#[case::ip_in_the_name_and_port_0(named(b"10.96.0.1", 0), [&CHOSEN[..], &reply(4)].concat())]
#[case::empty_name(named(b"", 80), [&CHOSEN[..], &reply(4)].concat())]
#[case::name_of_255_bytes(named(&[b'a'; 255], 80), [&CHOSEN[..], &reply(4)].concat())]
#[case::name_of_odd_bytes(named(b"\xff\0\r\n", 80), [&CHOSEN[..], &reply(4)].concat())]
#[case::unknown_name(named(b"who.example", 80), [&CHOSEN[..], &reply(4)].concat())]
#[case::unknown_address(request(1, 1, &[192, 0, 2, 1], 80), [&CHOSEN[..], &reply(4)].concat())]
#[case::unknown_port(named(b"near.default.svc.cluster.local", 81), [&CHOSEN[..], &reply(4)].concat())]
#[case::outside_of_the_mesh(named(b"plain.default.svc.cluster.local", 80), [&CHOSEN[..], &reply(4)].concat())]
#[case::nobody_listens(named(b"near.default.svc.cluster.local", 80), [&CHOSEN[..], &reply(5)].concat())]
#[tokio::test]
async fn any_other_request_is_answered_with_its_reason(#[case] sent: Vec<u8>, #[case] answer: Vec<u8>) {
    let (got, served) = talk(&World::new(), &sent).await;
    assert_eq!(got, answer);
    served.unwrap_err();
}

#[tokio::test]
async fn a_denied_client_reads_not_allowed() {
    let world = World::new();
    let _gateway = world.gateway();
    let _pod = world.inbound(&world.west, "guarded");
    let (got, served) = talk(&world, &named(b"guarded.default.svc.cluster.local", 80)).await;
    assert_eq!(got, [&CHOSEN[..], &reply(2)].concat());
    assert!(served.unwrap_err().is_refused());
}

#[tokio::test]
async fn an_application_that_refuses_reads_connection_refused() {
    let world = World::new();
    let (_pod, mut apps) = world.inbound(&world.east, "near");
    let refuse = tokio::spawn(async move { drop(apps.dialled().await) });
    let (got, _) = talk(&world, &named(b"near.default.svc.cluster.local", 80)).await;
    assert_eq!(got, [&CHOSEN[..], &reply(5)].concat());
    refuse.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_application_that_does_not_answer_reads_timed_out() {
    let world = World::new();
    let (_pod, mut apps) = world.inbound(&world.east, "near");
    let hold = tokio::spawn(async move { apps.dialled().await });
    let (got, _) = talk(&world, &named(b"near.default.svc.cluster.local", 80)).await;
    assert_eq!(got, [&CHOSEN[..], &reply(6)].concat());
    hold.await.unwrap();
}

#[rstest]
#[case::from_the_start(&[], &[])]
#[case::in_the_greeting(&[5, 1], &[])]
#[case::in_the_request(&[5, 1, 0, 5, 1, 0, 3, 200], &CHOSEN)]
#[tokio::test(start_paused = true)]
async fn a_client_that_falls_silent_is_let_go(#[case] sent: &[u8], #[case] answer: &[u8]) {
    let (mut client, served) = duplex(1024);
    let outbound = World::new().outbound();
    let serving = tokio::spawn(async move { socks5::serve(&outbound, served, None).await.map(|_| ()) });
    client.write_all(sent).await.unwrap();
    let mut got = Vec::new();
    client.read_to_end(&mut got).await.unwrap();
    assert_eq!(got, answer);
    assert_eq!(serving.await.unwrap().unwrap_err().kind(), &ErrorKind::Timeout);
}
