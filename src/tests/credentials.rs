//! Certificates, keys and roots from files: what is taken, and what is said of the rest.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair, SanType,
    SignatureAlgorithm,
};
use rstest::rstest;

use super::harness::{server_id, trusted};
use super::peers::{Session, handshake};
use crate::error::{Error, ErrorKind, Layer, Side};
use crate::testing::{Ca, Issued};
use crate::tls::{Acceptor, Connector, Credentials};

const SERVER: &str = "spiffe://cluster.local/ns/default/sa/server";
const OTHER: &str = "spiffe://cluster.local/ns/default/sa/other";

/// A directory that is gone afterwards.
struct TempDir(PathBuf);

impl TempDir {
    fn new() -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("hbone-credentials-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// The three texts.
struct Pems {
    ca: Ca,
    chain: String,
    key: String,
    roots: String,
}

impl Pems {
    fn good() -> Self {
        let ca = Ca::new();
        let issued = ca.certificate().uri(SERVER).issue();
        let mut pems = Self { ca, chain: String::new(), key: String::new(), roots: String::new() };
        pems.take(&issued);
        pems
    }

    fn take(&mut self, issued: &Issued) {
        (self.chain, self.key, self.roots) = (issued.chain_pem(), issued.key_pem(), issued.root_pem().to_owned());
    }

    fn load(&self) -> Result<Credentials, Error> {
        Credentials::from_pem(self.chain.as_bytes(), self.key.as_bytes(), self.roots.as_bytes())
    }
}

fn pem(label: &str, der: &[u8]) -> String {
    const ALPHABET: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in der.chunks(3) {
        let bits = chunk.iter().chain(&[0; 2]).take(3).fold(0, |bits, b| bits << 8 | usize::from(*b));
        for n in 0..4 {
            let sextet = ALPHABET[bits >> (18 - 6 * n) & 63];
            text.push(if n <= chunk.len() { char::from(sextet) } else { '=' });
        }
    }
    format!("-----BEGIN {label}-----\n{text}\n-----END {label}-----\n")
}

/// The P-256 key inside of PKCS#8, with the name of its curve as OpenSSL writes it or without (RFC 5915, section 3).
fn sec1(key_pem: &str, with_curve: bool) -> String {
    let pkcs8 = KeyPair::from_pem(key_pem).unwrap().serialize_der();
    // ECPrivateKey: version 1, 32 bytes of key.
    let start = pkcs8.windows(5).position(|w| w == [2, 1, 1, 4, 32]).unwrap();
    let mut body = pkcs8[start..start + 5 + 32].to_vec();
    if with_curve {
        body.extend([0xa0, 10, 6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 3, 1, 7]);
    }
    body.extend(&pkcs8[start + 5 + 32..]);
    let mut der = vec![0x30, u8::try_from(body.len()).ok().filter(|len| *len < 128).unwrap()];
    der.extend(body);
    pem("EC PRIVATE KEY", &der)
}

fn root(name: &str) -> CertifiedIssuer<'static, KeyPair> {
    CertifiedIssuer::self_signed(authority(name), KeyPair::generate().unwrap()).unwrap()
}

fn authority(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params
}

/// A workload's certificate: chain and key.
fn leaf(
    issuer: &CertifiedIssuer<'_, KeyPair>,
    algorithm: &'static SignatureAlgorithm,
    usages: &[ExtendedKeyUsagePurpose],
) -> (String, String) {
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![SanType::URI(SERVER.try_into().unwrap())];
    params.extended_key_usages = usages.to_vec();
    let key = KeyPair::generate_for(algorithm).unwrap();
    (params.signed_by(&key, issuer).unwrap().pem(), key.serialize_pem())
}

/// The client's end and the server's.
async fn sessions(client: &Arc<Credentials>, server: &Arc<Credentials>) -> (Session, Session) {
    let connector = Connector::new(client.clone(), Arc::default());
    let acceptor = Acceptor::new(server.clone(), trusted(), Arc::default());
    handshake(&connector, &server_id().into(), &acceptor).await
}

#[rstest]
#[case::pkcs_8(|_: &mut Pems| {})]
#[case::sec_1(|p: &mut Pems| p.key = sec1(&p.key, true))]
#[case::sec_1_without_curve(|p: &mut Pems| p.key = sec1(&p.key, false))]
#[case::parameters_before_the_key(|p: &mut Pems| p.key = format!("{}{}", pem("EC PARAMETERS", &[6, 0]), sec1(&p.key, true)))]
#[case::key_among_certificates(|p: &mut Pems| p.key = format!("{}{}{}", p.chain, p.key, p.roots))]
#[case::text_around_the_blocks(|p: &mut Pems| p.chain = format!("subject: workload\n\n{}\nthe end", p.chain))]
#[case::crlf(|p: &mut Pems| p.chain = p.chain.replace('\n', "\r\n"))]
#[case::root_in_the_chain(|p: &mut Pems| p.chain += &p.roots)]
#[case::root_twice(|p: &mut Pems| p.roots = p.roots.repeat(2))]
#[case::old_root_first(|p: &mut Pems| p.roots = Ca::new().root_pem() + &p.roots)]
#[case::new_root_last(|p: &mut Pems| p.roots += &Ca::new().root_pem())]
#[case::other_names_beside(|p: &mut Pems| p.take(&p.ca.certificate().uri("https://x").uri(SERVER).issue()))]
fn what_is_in_order_is_taken(#[case] change: fn(&mut Pems)) {
    let mut pems = Pems::good();
    change(&mut pems);
    assert_eq!(pems.load().unwrap().identity(), &server_id());
}

#[rstest]
#[case::p_256(&rcgen::PKCS_ECDSA_P256_SHA256)]
#[case::p_384(&rcgen::PKCS_ECDSA_P384_SHA384)]
#[case::ed25519(&rcgen::PKCS_ED25519)]
#[tokio::test(start_paused = true)]
async fn an_intermediate_in_the_chain_works_for_both_sides(#[case] algorithm: &'static SignatureAlgorithm) {
    let root = root("root");
    let intermediate =
        CertifiedIssuer::signed_by(authority("intermediate"), KeyPair::generate().unwrap(), &root).unwrap();
    let both = [ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    let (leaf, key) = leaf(&intermediate, algorithm, &both);
    let load = |chain: &str| Credentials::from_pem(chain.as_bytes(), key.as_bytes(), root.pem().as_bytes());

    let error = load(&leaf).unwrap_err();
    assert!(error.to_string().contains(&format!("the certificate of {SERVER}")), "{error}");
    assert!(error.to_string().contains("UnknownIssuer"), "{error}");

    let credentials = Arc::new(load(&format!("{leaf}{}", intermediate.pem())).unwrap());
    let (near, far) = sessions(&credentials, &credentials).await;
    assert_eq!((near.unwrap().peer_identity(), far.unwrap().peer_identity()), (&server_id(), &server_id()));
}

/// Such a certificate can be loaded, since it may be meant for one role only, and serves in that role only.
#[rstest]
#[case::server(ExtendedKeyUsagePurpose::ServerAuth)]
#[case::client(ExtendedKeyUsagePurpose::ClientAuth)]
#[tokio::test(start_paused = true)]
async fn a_certificate_for_one_role_works_in_that_role_only(#[case] usage: ExtendedKeyUsagePurpose) {
    let root = root("root");
    let load = |usages: &[ExtendedKeyUsagePurpose]| {
        let (chain, key) = leaf(&root, &rcgen::PKCS_ECDSA_P256_SHA256, usages);
        Arc::new(Credentials::from_pem(chain.as_bytes(), key.as_bytes(), root.pem().as_bytes()).unwrap())
    };
    let both = load(&[ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth]);
    let one = load(std::slice::from_ref(&usage));
    let rejected_by_server = sessions(&one, &both).await.1.map(drop).map_err(|e| e.kind().clone());
    let rejected_by_client = sessions(&both, &one).await.0.map(drop).map_err(|e| e.kind().clone());
    let expected = match usage {
        ExtendedKeyUsagePurpose::ServerAuth => (Err(ErrorKind::CertificateInvalid), Ok(())),
        _ => (Ok(()), Err(ErrorKind::CertificateInvalid)),
    };
    assert_eq!((rejected_by_server, rejected_by_client), expected);
}

const NO_CERTIFICATE: &str = "our own certificate: the certificate";

#[rstest]
#[case::empty_chain(|p: &mut Pems| p.chain.clear(), "the certificate chain is empty")]
#[case::empty_key(|p: &mut Pems| p.key.clear(), "reading the private key as PEM: there is no PRIVATE KEY block")]
#[case::empty_roots(|p: &mut Pems| p.roots.clear(), "there is no trusted root")]
#[case::key_as_chain(|p: &mut Pems| p.chain = p.key.clone(), "the certificate chain is empty")]
#[case::chain_as_key(|p: &mut Pems| p.key = p.chain.clone(), "reading the private key as PEM: there is no PRIVATE KEY block")]
#[case::key_as_roots(|p: &mut Pems| p.roots = p.key.clone(), "there is no trusted root")]
#[case::encrypted_key(|p: &mut Pems| p.key = p.key.replace("PRIVATE KEY", "ENCRYPTED PRIVATE KEY"), "reading the private key as PEM: there is no PRIVATE KEY block")]
#[case::broken_key(|p: &mut Pems| p.key = pem("PRIVATE KEY", &[0x30, 3, 2, 1, 0]), "the private key can't be used: ")]
#[case::key_of_another(
    |p: &mut Pems| p.key = p.ca.certificate().uri(SERVER).issue().key_pem(),
    "the private key does not belong to the certificate of spiffe://cluster.local/ns/default/sa/server"
)]
#[case::base64_of_chain(|p: &mut Pems| p.chain = p.chain.replacen("\nMI", "\n*!", 1), "reading the certificate chain as PEM: ")]
#[case::base64_of_key(|p: &mut Pems| p.key = p.key.replacen("\nMI", "\n*!", 1), "reading the private key as PEM: ")]
#[case::base64_of_roots(|p: &mut Pems| p.roots = p.roots.replacen("\nMI", "\n*!", 1), "reading the trusted roots as PEM: ")]
#[case::chain_cut_short(|p: &mut Pems| p.chain.truncate(p.chain.len() / 2), "reading the certificate chain as PEM: ")]
#[case::second_of_chain_cut_short(
    |p: &mut Pems| p.chain += &p.roots[..p.roots.len() / 2], "reading the certificate chain as PEM: "
)]
#[case::key_cut_short(|p: &mut Pems| p.key.truncate(p.key.len() / 2), "reading the private key as PEM: ")]
#[case::roots_cut_short(|p: &mut Pems| p.roots.truncate(p.roots.len() / 2), "reading the trusted roots as PEM: ")]
#[case::chain_of_something_else(|p: &mut Pems| p.chain = pem("CERTIFICATE", b"hello"), "our own certificate: the certificate is not X.509")]
#[case::root_of_something_else(|p: &mut Pems| p.roots += &pem("CERTIFICATE", b"hello"), "a trusted root is not a valid certificate: ")]
#[case::root_first_in_the_chain(|p: &mut Pems| p.chain.insert_str(0, &p.roots), NO_CERTIFICATE)]
#[case::expired(
    |p: &mut Pems| p.take(&p.ca.certificate().uri(SERVER).expired().issue()),
    "the certificate of spiffe://cluster.local/ns/default/sa/server: certificate expired"
)]
#[case::not_yet_valid(
    |p: &mut Pems| p.take(&p.ca.certificate().uri(SERVER).not_yet_valid().issue()),
    "the certificate of spiffe://cluster.local/ns/default/sa/server: certificate not valid yet"
)]
#[case::of_another_root(
    |p: &mut Pems| p.roots = Ca::new().root_pem(),
    "the certificate of spiffe://cluster.local/ns/default/sa/server: UnknownIssuer"
)]
#[case::no_name(|p: &mut Pems| p.take(&p.ca.certificate().issue()), "our own certificate: the certificate has no SPIFFE ID")]
#[case::two_names(
    |p: &mut Pems| p.take(&p.ca.certificate().uri(SERVER).uri(OTHER).issue()),
    "our own certificate: the certificate has more than one SPIFFE ID"
)]
#[case::malformed_name(
    |p: &mut Pems| p.take(&p.ca.certificate().uri("spiffe://td/x").issue()),
    r#"our own certificate: the certificate's URI name "spiffe://td/x" is not a workload identity: the SPIFFE ID is not of"#
)]
fn what_is_not_in_order_is_named_with_its_files(#[case] change: fn(&mut Pems), #[case] says: &str) {
    let mut pems = Pems::good();
    change(&mut pems);
    let dir = TempDir::new();
    let [chain, key, roots] = ["chain.pem", "key.pem", "roots.pem"].map(|name| dir.file(name));
    fs::write(&chain, &pems.chain).unwrap();
    fs::write(&key, &pems.key).unwrap();
    fs::write(&roots, &pems.roots).unwrap();
    let error = Credentials::from_pem_files(&chain, &key, &roots).unwrap_err();
    assert_eq!(
        (error.kind(), error.layer(), error.side()),
        (&ErrorKind::InvalidCredentials, Layer::Config, Side::Local)
    );
    let (text, files) = (error.to_string(), [&chain, &key, &roots].map(|f| f.display()));
    let [chain, key, roots] = files;
    let start = format!("configuration: loading the certificate {chain}, key {key}, roots {roots}: {says}");
    assert!(text.starts_with(&start), "{text}\nand not\n{start}");
    assert!(
        text.ends_with("; check that certificate, key and roots are there, belong together and are in date"),
        "{text}"
    );
    assert!(!text.contains("peer"), "it is our own certificate: {text}");

    let from_memory = pems.load().unwrap_err();
    assert_eq!(from_memory.kind(), &ErrorKind::InvalidCredentials);
    assert!(from_memory.to_string().starts_with(&format!("configuration: {says}")), "{from_memory}");
}

#[rstest]
#[case::chain(0, "certificate chain")]
#[case::key(1, "private key")]
#[case::roots(2, "trusted roots")]
fn a_file_that_can_not_be_read_is_named(
    #[case] which: usize,
    #[case] what: &str,
    #[values(true, false)] missing: bool,
) {
    let pems = Pems::good();
    let dir = TempDir::new();
    let files = ["chain.pem", "key.pem", "roots.pem"].map(|name| dir.file(name));
    for (n, (file, text)) in files.iter().zip([&pems.chain, &pems.key, &pems.roots]).enumerate() {
        match (n == which, missing) {
            (false, _) => fs::write(file, text).unwrap(),
            (true, true) => {}
            (true, false) => fs::create_dir(file).unwrap(),
        }
    }
    let [chain, key, roots] = &files;
    let error = Credentials::from_pem_files(chain, key, roots).unwrap_err();
    assert_eq!((error.kind(), error.layer()), (&ErrorKind::InvalidCredentials, Layer::Config));
    let start = format!("configuration: reading the {what} from {}: ", files[which].display());
    let cause = error.to_string().strip_prefix(&start).map(str::to_lowercase).unwrap_or_else(|| panic!("{error}"));
    if cfg!(unix) {
        assert!(cause.starts_with(if missing { "no such file" } else { "is a directory" }), "{cause}");
    }
}

#[test]
fn files_in_order_are_taken() {
    let (pems, dir) = (Pems::good(), TempDir::new());
    let [chain, key, roots] = ["a", "b", "c"].map(|name| dir.file(name));
    fs::write(&chain, &pems.chain).unwrap();
    fs::write(&key, &pems.key).unwrap();
    fs::write(&roots, &pems.roots).unwrap();
    assert_eq!(Credentials::from_pem_files(&chain, &key, &roots).unwrap().identity(), &server_id());
}
