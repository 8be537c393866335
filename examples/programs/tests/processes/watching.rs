//! Files that change under a running proxy.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use hbone::testing::Ca;
use rstest::rstest;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::GLOBAL;
use crate::mesh::{Mesh, connect, echo, exchange, strings};
use crate::process::{Proxy, soon};

/// How a file is given new contents.
#[derive(Clone, Copy, Debug)]
enum Writing {
    InPlace,
    /// As editors and `sed -i` do.
    RenamedOver,
    /// As Kubernetes does with a mounted ConfigMap or Secret.
    LinkSwapped,
    /// As a deployment does that has a directory for each release.
    DirectorySwapped,
}

impl Writing {
    /// Where the file is found.
    fn path(self, mesh: &Mesh) -> String {
        let name = match self {
            Self::DirectorySwapped => "current/mesh.yaml",
            _ => "watched/mesh.yaml",
        };
        mesh.dir().join(name).display().to_string()
    }

    fn write(self, mesh: &Mesh, version: u8, text: &str) {
        let dir = mesh.dir().join("watched");
        let put = |path: &Path, text: &str| {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        let swap = |link: &Path, target: &Path| {
            let new = link.with_file_name("new-link");
            symlink(target, &new).unwrap();
            fs::rename(&new, link).unwrap();
        };
        match self {
            Self::InPlace => put(&dir.join("mesh.yaml"), text),
            Self::RenamedOver => {
                put(&dir.join(".mesh.yaml.swp"), text);
                fs::rename(dir.join(".mesh.yaml.swp"), dir.join("mesh.yaml")).unwrap();
            }
            Self::LinkSwapped => {
                put(&dir.join(format!("..{version}/mesh.yaml")), text);
                swap(&dir.join("..data"), Path::new(&format!("..{version}")));
                if version == 1 {
                    symlink("..data/mesh.yaml", dir.join("mesh.yaml")).unwrap();
                }
            }
            Self::DirectorySwapped => {
                let release = mesh.dir().join(format!("release{version}"));
                put(&release.join("mesh.yaml"), text);
                swap(&mesh.dir().join("current"), &release);
            }
        }
    }
}

/// A gateway, a pod with an application that echoes, and a client whose mesh is read from `file`.
async fn start(mesh: &Mesh, file: &str) -> (Proxy, Proxy, Proxy) {
    let application = mesh.application("w1").await;
    let west = mesh.west(&[("w1", application.local_addr().unwrap().port())]);
    echo(application, "w1");
    let (gateway, pod) = (mesh.start_gateway(&west).await, mesh.start_pod(&west, "w1").await);
    (gateway, pod, client(mesh, file, &mesh.certificate("default/client")).await)
}

async fn client(mesh: &Mesh, file: &str, certificate: &[String]) -> Proxy {
    let mut args = certificate.to_vec();
    args.extend(strings(&["--mesh", file, "--workload", "default/client", "--drain", "0"]));
    args.extend(strings(&["--forward", &format!("{}={GLOBAL}:80", mesh.client(8000))]));
    Proxy::start("ztunnel", &args).await
}

async fn is_served(mesh: &Mesh) -> bool {
    let mut answer = String::new();
    // An application whose connection can't be carried sees it fail, sooner or later.
    let exchanged = async {
        let mut stream = TcpStream::connect(mesh.client(8000)).await?;
        stream.write_all(b"hello").await?;
        stream.shutdown().await?;
        stream.read_to_string(&mut answer).await
    };
    let exchanged = soon("an answer", exchanged).await;
    exchanged.is_ok() && answer == "w1\nhello"
}

/// Says something on an open connection, and hears it back.
async fn still_echoes(stream: &mut TcpStream, text: &str) {
    stream.write_all(text.as_bytes()).await.unwrap();
    let mut back = vec![0; text.len()];
    soon("an echo", stream.read_exact(&mut back)).await.unwrap();
    assert_eq!(back, text.as_bytes());
}

#[rstest]
#[case(160, Writing::InPlace)]
#[case(161, Writing::RenamedOver)]
#[case(162, Writing::LinkSwapped)]
#[case(163, Writing::DirectorySwapped)]
#[tokio::test]
async fn a_mesh_that_changes_is_followed_and_open_connections_go_on(#[case] number: u8, #[case] writing: Writing) {
    let mesh = Mesh::new(number);
    let good = fs::read_to_string(mesh.east()).unwrap();
    let without = good.split("services:\n- {name: global").next().unwrap().to_owned();
    writing.write(&mesh, 1, &good);
    let (_gateway, _pod, mut client) = start(&mesh, &writing.path(&mesh)).await;
    let mut open = connect(mesh.client(8000)).await;
    let mut greeting = [0; 3];
    soon("a greeting", open.read_exact(&mut greeting)).await.unwrap();

    writing.write(&mesh, 2, &without);
    client.logs("mesh read again").await;
    assert!(!is_served(&mesh).await);
    still_echoes(&mut open, "without the service").await;

    writing.write(&mesh, 3, &good);
    client.logs("mesh read again").await;
    assert!(is_served(&mesh).await);

    // Of a bad one nothing is taken.
    writing.write(&mesh, 4, "workloads: [\n");
    let log = client.logs("mesh not taken").await;
    assert!(log.contains("mesh.yaml:1: unclosed bracket"), "{log}");
    assert!(is_served(&mesh).await);

    // Of one with an odd entry all but that.
    writing.write(&mesh, 5, &format!("{good}- {{name: x, namespace: x, hostname: '*.x'}}\n"));
    let log = client.logs("left out").await;
    assert!(log.contains("mesh.yaml:15: services[1].hostname: \"*.x\" is not a valid DNS name"), "{log}");
    assert!(is_served(&mesh).await);
    still_echoes(&mut open, "to the end").await;
}

#[tokio::test]
async fn a_directory_may_be_made_anew() {
    let mesh = Mesh::new(164);
    let good = fs::read_to_string(mesh.east()).unwrap();
    Writing::InPlace.write(&mesh, 1, &good);
    let (_gateway, _pod, mut client) = start(&mesh, &Writing::InPlace.path(&mesh)).await;

    fs::remove_dir_all(mesh.dir().join("watched")).unwrap();
    let log = client.logs("mesh not taken").await;
    assert!(log.contains("watched/mesh.yaml: the mesh can't be read"), "{log}");
    assert!(is_served(&mesh).await);

    Writing::InPlace.write(&mesh, 2, &good.replace(": 8080", ": 8081"));
    client.logs("mesh read again").await;
    assert!(is_served(&mesh).await);
}

#[tokio::test]
async fn certificates_that_change_are_checked_as_a_whole_and_used() {
    let mesh = Mesh::new(165);
    let uri = "spiffe://cluster.local/ns/default/sa/client";
    // Of a root that nobody else trusts, at first.
    let strange = Ca::new().certificate().uri(uri).issue();
    let certificate = mesh.files("watched", &strange);
    let (_gateway, _pod, mut client) = {
        let application = mesh.application("w1").await;
        let west = mesh.west(&[("w1", application.local_addr().unwrap().port())]);
        echo(application, "w1");
        let (gateway, pod) = (mesh.start_gateway(&west).await, mesh.start_pod(&west, "w1").await);
        (gateway, pod, client(&mesh, &mesh.east(), &certificate).await)
    };
    assert!(!is_served(&mesh).await);

    // One file at a time is no pair.
    let renewed = mesh.ca.certificate().uri(uri).issue();
    let replace = |ending: &str, text: &str| {
        let new = mesh.file("new", text);
        fs::rename(new, mesh.dir().join(format!("watched.{ending}"))).unwrap();
    };
    replace("key", &renewed.key_pem());
    let log = client.logs("certificate not taken").await;
    assert!(log.contains("the private key does not belong to the certificate of spiffe://cluster.local/"), "{log}");
    replace("pem", &renewed.chain_pem());
    client.logs("certificate not taken").await;
    replace("ca", renewed.root_pem());
    client.logs("certificate read again").await;
    assert!(is_served(&mesh).await);

    // Nor is one of another workload taken.
    let other = mesh.ca.certificate().uri("spiffe://cluster.local/ns/default/sa/other").issue();
    mesh.files("watched", &other);
    let log = client.logs("the new one is that of spiffe://cluster.local/ns/default/sa/other").await;
    assert!(log.contains("certificate not taken"), "{log}");
    assert!(is_served(&mesh).await);
    assert_eq!(exchange(connect(mesh.client(8000)).await, "at last").await, "w1\nat last");
}
