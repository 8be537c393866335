//! What can be wrong when a proxy is started: each has its own line, and no exit status of 0.

use rstest::rstest;
use tokio::net::TcpListener;

use crate::mesh::{Mesh, strings};
use crate::process::run;

/// The arguments that are right.
fn ztunnel(mesh: &Mesh) -> Vec<String> {
    let mut args = mesh.certificate("default/client");
    args.extend(strings(&["--mesh", &mesh.east(), "--workload", "default/client"]));
    args.extend(strings(&["--forward", &format!("{}={}:80", mesh.client(8000), crate::GLOBAL)]));
    args
}

fn replace(args: &mut [String], flag: &str, value: &str) {
    let at = args.iter().position(|arg| arg == flag).unwrap();
    args[at + 1] = value.to_owned();
}

/// Runs it, and compares all that it says, with the directory of its files as DIR, its addresses as NET and times as
/// TIME.
async fn fails(mesh: &Mesh, program: &str, args: &[String], error: &str) {
    let ended = run(program, args).await;
    let [a, b, c, _] = mesh.ip(0).octets();
    let stderr = ended.stderr.replace(&mesh.dir().display().to_string(), "DIR").replace(&format!("{a}.{b}.{c}"), "NET");
    assert_eq!(without_times(&stderr), format!("error: {error}\n"));
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(1), ""));
}

/// What stands between `verification time` and the end of its sentence tells when the test ran.
fn without_times(text: &str) -> String {
    let Some((before, dates)) = text.split_once("verification time ") else { return text.to_owned() };
    let (dates, after) = dates.split_once(';').unwrap();
    let words = dates.split(' ').map(|word| match word.trim_start_matches('(').parse::<u64>() {
        Ok(_) if word.starts_with('(') => "(TIME",
        Ok(_) => "TIME",
        Err(_) => word,
    });
    format!("{before}verification time {};{after}", words.collect::<Vec<_>>().join(" "))
}

#[tokio::test]
async fn the_arguments_that_these_tests_break_are_right() {
    let mesh = Mesh::new(20);
    let _running = crate::Proxy::start("ztunnel", &ztunnel(&mesh)).await;
}

#[tokio::test]
async fn a_missing_certificate() {
    let mesh = Mesh::new(21);
    let mut args = ztunnel(&mesh);
    replace(&mut args, "--cert", &mesh.dir().join("nowhere.pem").display().to_string());
    fails(
        &mesh,
        "ztunnel",
        &args,
        "configuration: reading the certificate chain from DIR/nowhere.pem: No such file or directory (os error 2); \
         check that certificate, key and roots are there, belong together and are in date",
    )
    .await;
}

#[tokio::test]
async fn a_key_of_another_certificate() {
    let mesh = Mesh::new(22);
    let mut args = ztunnel(&mesh);
    let other = mesh.certificate("default/other");
    replace(&mut args, "--key", &other[3]);
    fails(
        &mesh,
        "ztunnel",
        &args,
        "configuration: loading the certificate DIR/client.pem, key DIR/other.key, roots DIR/client.ca: the private \
         key does not belong to the certificate of spiffe://cluster.local/ns/default/sa/client; check that certificate, key and roots are there, belong together and are in date",
    )
    .await;
}

#[tokio::test]
async fn an_expired_certificate() {
    let mesh = Mesh::new(23);
    let mut args = ztunnel(&mesh);
    let expired = mesh.ca.certificate().uri("spiffe://cluster.local/ns/default/sa/client").expired().issue();
    for (i, arg) in mesh.files("expired", &expired).into_iter().enumerate() {
        args[i] = arg;
    }
    fails(
        &mesh,
        "ztunnel",
        &args,
        "configuration: loading the certificate DIR/expired.pem, key DIR/expired.key, roots DIR/expired.ca: the \
         certificate of spiffe://cluster.local/ns/default/sa/client: certificate expired: \
         verification time TIME (UNIX), but certificate is not valid after TIME (TIME seconds ago); check \
         that certificate, key and roots are there, belong together and are in date",
    )
    .await;
}

#[tokio::test]
async fn a_certificate_of_somebody_else() {
    let mesh = Mesh::new(24);
    let mut args = ztunnel(&mesh);
    for (i, arg) in mesh.certificate("default/other").into_iter().enumerate() {
        args[i] = arg;
    }
    fails(
        &mesh,
        "ztunnel",
        &args,
        "the certificate belongs to spiffe://cluster.local/ns/default/sa/other, and default/client must be \
         spiffe://cluster.local/ns/default/sa/client",
    )
    .await;
}

#[rstest]
#[case::no_such_field(25, "services:\n- hostnam: x", "DIR/bad.yaml:2: services[0].hostnam: no such field")]
#[case::wrong_type(26, "workloads:\n- uid: a\n  name: [b]", "DIR/bad.yaml:3: workloads[0].name: a list is not a text")]
#[case::no_yaml(27, "workloads: [\n", "DIR/bad.yaml:1: unclosed bracket '['")]
#[case::empty(28, "", "DIR/bad.yaml:1: the file is empty")]
#[tokio::test]
async fn a_malformed_mesh(#[case] number: u8, #[case] text: &str, #[case] error: &str) {
    let mesh = Mesh::new(number);
    let mut args = ztunnel(&mesh);
    replace(&mut args, "--mesh", &mesh.file("bad.yaml", text));
    fails(&mesh, "ztunnel", &args, &format!("configuration: {error}")).await;
}

#[tokio::test]
async fn no_mesh() {
    let mesh = Mesh::new(29);
    let mut args = ztunnel(&mesh);
    replace(&mut args, "--mesh", &mesh.dir().join("nowhere.yaml").display().to_string());
    fails(
        &mesh,
        "ztunnel",
        &args,
        "configuration: DIR/nowhere.yaml: the mesh can't be read: No such file or directory (os error 2)",
    )
    .await;
}

#[tokio::test]
async fn an_unknown_workload() {
    let mesh = Mesh::new(30);
    let mut args = ztunnel(&mesh);
    replace(&mut args, "--workload", "default/nobody");
    fails(&mesh, "ztunnel", &args, "the mesh has no workload default/nobody").await;
}

#[tokio::test]
async fn a_workload_of_another_network() {
    let mesh = Mesh::new(31);
    let mut args = ztunnel(&mesh);
    args.extend(strings(&["--network", "west"]));
    fails(&mesh, "ztunnel", &args, "default/client is in \"east\", and --network says \"west\"").await;
}

#[tokio::test]
async fn a_port_in_use() {
    let mesh = Mesh::new(32);
    let args = ztunnel(&mesh);
    let _taken = TcpListener::bind(mesh.client(8000)).await.unwrap();
    fails(
        &mesh,
        "ztunnel",
        &args,
        "configuration: listening on NET.1:8000: Address already in use (os error 98); free the resource named above, \
         or choose another",
    )
    .await;
}

#[tokio::test]
async fn a_gateway_of_an_unknown_network() {
    let mesh = Mesh::new(33);
    let mut args = mesh.certificate("istio/gateway");
    args.extend(strings(&["--mesh", &mesh.east(), "--network", "north"]));
    args.extend(strings(&["--listen", &format!("{}:15008", mesh.ip(2))]));
    fails(&mesh, "gateway", &args, "the mesh has no workload in network \"north\"").await;
}

/// These the parser of the command line finds, and adds where to find help.
#[rstest]
#[case::no_target(34, "--forward", "127.0.0.1:1", "it is not of the form LISTEN=HOST:PORT")]
#[case::no_port(35, "--forward", "127.0.0.1:1=host", "\"host\": the authority has no port")]
#[case::no_listener(36, "--forward", "x=host:1", "\"x\": invalid socket address syntax")]
#[case::no_namespace(37, "--workload", "client", "it is not of the form NAMESPACE/NAME")]
#[tokio::test]
async fn a_malformed_flag(#[case] number: u8, #[case] flag: &str, #[case] value: &str, #[case] error: &str) {
    let mesh = Mesh::new(number);
    let mut args = ztunnel(&mesh);
    replace(&mut args, flag, value);
    let ended = run("ztunnel", &args).await;
    let first = ended.stderr.lines().next().unwrap_or_default();
    assert!(first.starts_with(&format!("error: invalid value '{value}' for '{flag} <")), "{first}");
    assert!(first.ends_with(&format!(": {error}")), "{first}");
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(2), ""));
}

#[rstest]
#[case::no_number(38, "--attempt-timeout", "3s", "it is not a number of seconds")]
#[case::no_time(39, "--ejection-time", "0", "it must be more than 0")]
#[case::no_end(40, "--idle-timeout", "1e30", "it is too long")]
#[case::no_attempt(41, "--attempts", "0", "0 is not in 1..=65535")]
#[tokio::test]
async fn a_malformed_limit(#[case] number: u8, #[case] flag: &str, #[case] value: &str, #[case] error: &str) {
    let mesh = Mesh::new(number);
    let mut args = ztunnel(&mesh);
    args.extend(strings(&[flag, value]));
    let ended = run("ztunnel", &args).await;
    let first = ended.stderr.lines().next().unwrap_or_default();
    assert!(first.starts_with(&format!("error: invalid value '{value}' for '{flag} <")), "{first}");
    assert!(first.ends_with(&format!(": {error}")), "{first}");
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(2), ""));
}
