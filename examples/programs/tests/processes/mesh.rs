//! Two clusters on loopback. Each test has a /24 of its own, so that all can run at the same time on the ports of the
//! mesh.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use hbone::testing::{Ca, Issued};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::process::{Proxy, soon};

pub(crate) const GLOBAL: &str = "global.default.svc.cluster.local";

/// The files and addresses of a mesh: a client in east, a gateway and two pods in west.
pub(crate) struct Mesh {
    pub(crate) ca: Ca,
    dir: PathBuf,
    subnet: [u8; 3],
    /// The grace of its proxies' drains, in seconds.
    drain: &'static str,
}

impl Mesh {
    /// `number` tells the tests apart.
    pub(crate) fn new(number: u8) -> Self {
        let pid = std::process::id();
        let dir = std::env::temp_dir().join(format!("hbone-{pid}-{number}"));
        std::fs::create_dir_all(&dir).unwrap();
        // Two runs at the same time should not meet either.
        Self { ca: Ca::new(), dir, subnet: [127, 16 + (pid % 200) as u8, number], drain: "60" }
    }

    /// With proxies that give running connections no time to finish.
    pub(crate) fn impatient(mut self) -> Self {
        self.drain = "0";
        self
    }

    pub(crate) fn ip(&self, host: u8) -> Ipv4Addr {
        let [a, b, c] = self.subnet;
        Ipv4Addr::new(a, b, c, host)
    }

    pub(crate) fn client(&self, port: u16) -> SocketAddr {
        (self.ip(1), port).into()
    }

    pub(crate) fn vip(&self) -> Ipv4Addr {
        self.ip(100)
    }

    pub(crate) fn pod(&self, name: &str) -> Ipv4Addr {
        self.ip(if name == "w1" { 11 } else { 12 })
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(crate) fn file(&self, name: &str, text: &str) -> String {
        let path = self.dir.join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    }

    pub(crate) fn east(&self) -> String {
        let text = format!(
            r#"
workloads:
- {{uid: east/client, name: client, namespace: default, serviceAccount: client, network: east, clusterId: east, protocol: HBONE, workloadIps: [{client}]}}
- {{uid: west/gateway, name: gateway, namespace: istio, serviceAccount: gateway, network: west, protocol: HBONE, workloadIps: [{gateway}]}}
- uid: west/all
  name: all
  namespace: default
  network: west
  protocol: HBONE
  capacity: 2
  networkGateway: {{destination: west/{gateway}, hboneMtlsPort: 15008}}
  services: {{default/{GLOBAL}: {{}}}}
services:
- {{name: global, namespace: default, hostname: {GLOBAL}, vips: [east/{vip}], ports: {{80: 8080}}, subjectAltNames: ["spiffe://cluster.local/ns/default/sa/server"]}}
"#,
            client = self.ip(1),
            gateway = self.ip(2),
            vip = self.vip(),
        );
        self.file("east.yaml", &text)
    }

    /// With the given pods and their applications' ports.
    pub(crate) fn west(&self, pods: &[(&str, u16)]) -> String {
        let mut text = "workloads:\n".to_owned();
        for (name, port) in pods {
            text += &format!(
                "- {{uid: west/{name}, name: {name}, namespace: default, serviceAccount: server, network: west, \
                 protocol: HBONE, workloadIps: [{}], services: {{default/{GLOBAL}: {{80: {port}}}}}}}\n",
                self.pod(name)
            );
        }
        text +=
            &format!("services:\n- {{name: global, namespace: default, hostname: {GLOBAL}, ports: {{80: 8080}}}}\n");
        self.file("west.yaml", &text)
    }

    /// `--cert`, `--key` and `--ca` for an identity of the form `namespace/account`.
    pub(crate) fn certificate(&self, of: &str) -> Vec<String> {
        let (namespace, account) = of.split_once('/').unwrap();
        let uri = format!("spiffe://cluster.local/ns/{namespace}/sa/{account}");
        self.files(account, &self.ca.certificate().uri(&uri).issue())
    }

    pub(crate) fn files(&self, name: &str, issued: &Issued) -> Vec<String> {
        let files = [
            ("--cert", "pem", issued.chain_pem()),
            ("--key", "key", issued.key_pem()),
            ("--ca", "ca", issued.root_pem().to_owned()),
        ];
        let write = |(flag, ending, text): (&str, &str, String)| {
            [flag.to_owned(), self.file(&format!("{name}.{ending}"), &text)]
        };
        files.into_iter().flat_map(write).collect()
    }

    pub(crate) async fn start_gateway(&self, west: &str) -> Proxy {
        let mut args = self.certificate("istio/gateway");
        args.extend(strings(&["--mesh", west, "--network", "west", "--drain", self.drain, "--listen"]));
        args.push(format!("{}:15008", self.ip(2)));
        Proxy::start("gateway", &args).await
    }

    pub(crate) async fn start_pod(&self, west: &str, name: &str) -> Proxy {
        let mut args = self.certificate("default/server");
        args.extend(strings(&[
            "--mesh",
            west,
            "--workload",
            &format!("default/{name}"),
            "--drain",
            self.drain,
            "--inbound",
        ]));
        args.push(format!("{}:15008", self.pod(name)));
        Proxy::start("ztunnel", &args).await
    }

    /// The client's proxy: SOCKS5 on 1080, a forward to the service on 8000, admin on 15021.
    pub(crate) async fn start_client(&self) -> Proxy {
        let mut args = self.certificate("default/client");
        args.extend(strings(&["--mesh", &self.east(), "--workload", "default/client", "--drain", self.drain]));
        args.extend(strings(&["--socks5", &self.client(1080).to_string()]));
        args.extend(strings(&["--admin", &self.client(15021).to_string()]));
        args.extend(strings(&["--forward", &format!("{}={GLOBAL}:80", self.client(8000))]));
        Proxy::start("ztunnel", &args).await
    }

    /// An application in a pod: takes connections, and hands them to the test.
    pub(crate) async fn application(&self, pod: &str) -> TcpListener {
        TcpListener::bind((self.pod(pod), 0)).await.unwrap()
    }
}

impl Drop for Mesh {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

pub(crate) fn strings(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|text| (*text).to_owned()).collect()
}

/// Echoes on all connections, each with a line in front that says where it is.
pub(crate) fn echo(listener: TcpListener, name: &'static str) {
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                stream.write_all(format!("{name}\n").as_bytes()).await?;
                let (mut from, mut to) = stream.split();
                tokio::io::copy(&mut from, &mut to).await?;
                to.shutdown().await
            });
        }
    });
}

/// Sends a text, finishes, and returns all that comes back.
pub(crate) async fn exchange(mut stream: TcpStream, text: &str) -> String {
    stream.write_all(text.as_bytes()).await.unwrap();
    stream.shutdown().await.unwrap();
    crate::process::read_all(stream).await
}

pub(crate) async fn connect(to: SocketAddr) -> TcpStream {
    soon("a connection", TcpStream::connect(to)).await.unwrap()
}

/// Connects through SOCKS5; `address` with its type in front.
pub(crate) async fn socks5(proxy: SocketAddr, address: &[u8]) -> TcpStream {
    let mut stream = connect(proxy).await;
    stream.write_all(&[&[5, 1, 0, 5, 1, 0], address, &80_u16.to_be_bytes()].concat()).await.unwrap();
    let mut answer = [0; 12];
    soon("the SOCKS5 reply", stream.read_exact(&mut answer)).await.unwrap();
    assert_eq!(answer, [5, 0, 5, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    stream
}
