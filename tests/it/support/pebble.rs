//! A certificate authority to order from: Debian's pebble, and pebble-challtestsrv as the DNS that both it and we ask.

use std::{
    fs,
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    ops::Deref,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::Duration,
};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustls_pki_types::{CertificateDer, pem::PemObject};
use serde_json::{Value, json};

use super::{PATIENCE, Peer, body, clients, network::HUB, program, status, wait_for};

/// pebble with its name server, both ended when dropped.
///
/// Each start is another authority: it has forgotten accounts and orders, and its root is a new one.
pub(crate) struct Pebble {
    program: PathBuf,
    peer: Option<Peer>,
    /// What it asks for names.
    pub(crate) names: NameServer,
    options: Builder,
    acme: SocketAddr,
    management: SocketAddr,
    /// Where nobody answers.
    nobody: u16,
    pub(crate) authority: Authority,
}

/// What a test asks of the authority.
#[derive(Clone)]
pub(crate) struct Builder {
    address: Ipv4Addr,
    http_port: Option<u16>,
    tls_port: Option<u16>,
    validity: Option<Duration>,
    nonce_reject: u8,
    authz_reuse: u8,
    chain_length: Option<u8>,
    eab: Vec<(String, String)>,
}

impl Pebble {
    pub(crate) fn builder() -> Builder {
        Builder {
            address: Ipv4Addr::LOCALHOST,
            http_port: None,
            tls_port: None,
            validity: None,
            nonce_reject: 0,
            authz_reuse: 0,
            chain_length: None,
            eab: Vec::new(),
        }
    }

    /// The URL of the directory.
    pub(crate) fn directory(&self) -> String {
        format!("https://{}/dir", self.address())
    }

    /// Where the ACME server listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.acme
    }

    /// The root that the servers of the authority are believed by, as PEM. It issues no certificates to us.
    pub(crate) fn ca_file(&self) -> &Path {
        &self.authority.file
    }

    /// The root that issues certificates since this start, as PEM.
    pub(crate) fn root(&self) -> String {
        body(&self.authority.get(self.management, "/roots/0").expect("pebble's management answers"))
    }

    /// The same for a client of ours.
    pub(crate) fn root_certificate(&self) -> CertificateDer<'static> {
        CertificateDer::from_pem_slice(self.root().as_bytes()).unwrap()
    }

    /// What pebble has said since its last start.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.authority.folder.path().join("pebble.log")).unwrap_or_default()
    }

    /// The authority is down: connections to it are refused. Names are still answered.
    pub(crate) fn stop(&mut self) {
        self.peer = None;
    }

    /// The authority is back at the address it had.
    pub(crate) fn start_again(&mut self) {
        assert!(self.peer.is_none(), "pebble runs");
        // Its port was free a moment ago and is not one that the kernel gives to others.
        self.peer = Some(self.run().unwrap_or_else(|| panic!("pebble has ended: {}", self.log())));
    }

    /// Starts pebble and waits for its directory. `None` where it has ended, as it does without its ports.
    fn run(&self) -> Option<Peer> {
        let folder = self.authority.folder.path();
        let mut command = Command::new(&self.program);
        for name in ["http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "PEBBLE_VA_ALWAYS_VALID"] {
            command.env_remove(name);
        }
        command
            .current_dir(folder)
            .env("PEBBLE_VA_NOSLEEP", "1")
            .env("PEBBLE_WFE_NONCEREJECT", self.options.nonce_reject.to_string())
            .env("PEBBLE_AUTHZREUSE", self.options.authz_reuse.to_string())
            .env("PEBBLE_CHAIN_LENGTH", self.options.chain_length.unwrap_or(2).to_string())
            .args(["-config", "config.json", "-strict=true", "-dnsserver"])
            .arg(self.dns().to_string());
        fs::write(folder.join("config.json"), self.configuration().to_string()).unwrap();
        let mut peer = Peer::start(&mut command, &folder.join("pebble.log"));
        let mut ended = false;
        wait_for("pebble's directory", || {
            ended = peer.has_ended();
            ended || self.authority.get(self.address(), "/dir").is_ok_and(|answer| status(&answer) == 200)
        });
        (!ended).then_some(peer)
    }

    fn configuration(&self) -> Value {
        let Builder { http_port, tls_port, validity, eab, .. } = &self.options;
        let mut pebble = json!({
            "listenAddress": self.address(),
            "managementListenAddress": self.management,
            "certificate": "pebble.crt",
            "privateKey": "pebble.key",
            // Where a test gives none, nothing answers a challenge.
            "httpPort": http_port.unwrap_or(self.nobody),
            "tlsPort": tls_port.unwrap_or(self.nobody),
            "ocspResponderURL": "",
            "externalAccountBindingRequired": !eab.is_empty(),
            "externalAccountMACKeys": eab.iter().cloned().collect::<std::collections::BTreeMap<_, _>>(),
        });
        if let Some(validity) = validity {
            pebble["certificateValidityPeriod"] = validity.as_secs().into();
        }
        json!({ "pebble": pebble })
    }
}

/// A test says to the authority what its names are.
impl Deref for Pebble {
    type Target = NameServer;

    fn deref(&self) -> &NameServer {
        &self.names
    }
}

impl Builder {
    /// Where it listens, and its name server too, if not on loopback.
    pub(crate) fn at(mut self, address: Ipv4Addr) -> Self {
        self.address = address;
        self
    }

    /// Where it comes for HTTP-01.
    pub(crate) fn http_port(mut self, port: u16) -> Self {
        self.http_port = Some(port);
        self
    }

    /// Where it comes for TLS-ALPN-01.
    pub(crate) fn tls_port(mut self, port: u16) -> Self {
        self.tls_port = Some(port);
        self
    }

    /// How long certificates last, in whole seconds; five years if nothing is said.
    pub(crate) fn validity(mut self, validity: Duration) -> Self {
        self.validity = Some(validity);
        self
    }

    /// How many of a hundred good nonces are refused.
    pub(crate) fn nonce_reject(mut self, percent: u8) -> Self {
        self.nonce_reject = percent;
        self
    }

    /// How many of a hundred valid authorisations are used for another order.
    pub(crate) fn authz_reuse(mut self, percent: u8) -> Self {
        self.authz_reuse = percent;
        self
    }

    /// The certificates of a chain without the root.
    pub(crate) fn chain_length(mut self, length: u8) -> Self {
        self.chain_length = Some(length);
        self
    }

    /// Lets nobody have an account without one of these keys: its name, and the key in base64url without padding.
    pub(crate) fn eab(mut self, kid: &str, key: &str) -> Self {
        self.eab.push((kid.to_owned(), key.to_owned()));
        self
    }

    /// Starts both and waits for the directory. `None` where they are not installed.
    pub(crate) fn start(self) -> Option<Pebble> {
        let (program, mut names) = (program("pebble")?, NameServer::start_at(self.address)?);
        // Another process may take a port between our look and its start.
        for _ in 0..5 {
            let [acme, management, nobody] = free_ports();
            let [acme, management] = [acme, management].map(|port| SocketAddr::from((self.address, port)));
            let (program, options, authority) = (program.clone(), self.clone(), Authority::new());
            let mut started = Pebble { program, peer: None, names, options, acme, management, nobody, authority };
            if let Some(peer) = started.run() {
                started.peer = Some(peer);
                return Some(started);
            }
            eprintln!("pebble has ended: {}", started.log());
            names = started.names;
        }
        panic!("pebble does not start")
    }
}

/// pebble-challtestsrv, ended when dropped: every name has the address 127.0.0.1 unless a test says otherwise.
pub(crate) struct NameServer {
    _peer: Peer,
    dns: SocketAddr,
    management: SocketAddr,
    _folder: tempfile::TempDir,
}

impl NameServer {
    /// Starts it and waits until it answers. `None` where it is not installed.
    pub(crate) fn start() -> Option<Self> {
        Self::start_at(Ipv4Addr::LOCALHOST)
    }

    pub(crate) fn start_at(address: Ipv4Addr) -> Option<Self> {
        let program = program("pebble-challtestsrv")?;
        // Another process may take a port between our look and its start.
        let started = (0..5).find_map(|_| Self::run(&program, address));
        Some(started.expect("pebble-challtestsrv starts"))
    }

    fn run(program: &Path, address: Ipv4Addr) -> Option<Self> {
        let [dns, management] = free_ports().map(|port| SocketAddr::from((address, port)));
        let folder = tempfile::tempdir().unwrap();
        let mut command = Command::new(program);
        command
            .args(["-defaultIPv4", "127.0.0.1", "-defaultIPv6", "", "-http01", "", "-https01", "", "-tlsalpn01", ""])
            .args(["-dns01", &dns.to_string(), "-management", &management.to_string()]);
        let mut peer = Peer::start(&mut command, &folder.path().join("dns.log"));
        let mut ended = false;
        wait_for("pebble-challtestsrv", || {
            ended = peer.has_ended();
            let managed = ask(management, "clear-txt", &json!({ "host": "nobody." })).is_ok();
            // The DNS listens over TCP as well.
            ended || managed && TcpStream::connect(dns).is_ok()
        });
        (!ended).then_some(Self { _peer: peer, dns, management, _folder: folder })
    }

    /// Where it answers, over UDP and TCP.
    pub(crate) fn dns(&self) -> SocketAddr {
        self.dns
    }

    /// Where a hook of a test can set and clear records.
    pub(crate) fn management(&self) -> SocketAddr {
        self.management
    }

    /// Gives `name` these addresses and no others; the default ones where there are none of a family.
    pub(crate) fn set_addresses(&self, name: &str, addresses: &[IpAddr]) {
        self.manage("clear-a", &json!({ "host": absolute(name) }));
        self.manage("clear-aaaa", &json!({ "host": absolute(name) }));
        let (v4, v6): (Vec<&IpAddr>, Vec<&IpAddr>) = addresses.iter().partition(|address| address.is_ipv4());
        for (verb, addresses) in [("add-a", v4), ("add-aaaa", v6)] {
            if !addresses.is_empty() {
                self.manage(verb, &json!({ "host": absolute(name), "addresses": addresses }));
            }
        }
    }

    pub(crate) fn set_address(&self, name: &str, address: &str) {
        self.set_addresses(name, &[address.parse().unwrap()]);
    }

    /// The addresses of names that have none of their own; an empty one for none.
    pub(crate) fn set_default_addresses(&self, v4: &str, v6: &str) {
        self.manage("set-default-ipv4", &json!({ "ip": v4 }));
        self.manage("set-default-ipv6", &json!({ "ip": v6 }));
    }

    pub(crate) fn set_txt(&self, name: &str, value: &str) {
        self.manage("set-txt", &json!({ "host": absolute(name), "value": value }));
    }

    pub(crate) fn clear_txt(&self, name: &str) {
        self.manage("clear-txt", &json!({ "host": absolute(name) }));
    }

    pub(crate) fn set_cname(&self, name: &str, target: &str) {
        self.manage("set-cname", &json!({ "host": absolute(name), "target": absolute(target) }));
    }

    /// Adds CAA records of these tags and values.
    pub(crate) fn add_caa(&self, name: &str, records: &[(&str, &str)]) {
        let policies: Vec<Value> = records.iter().map(|(tag, value)| json!({ "tag": tag, "value": value })).collect();
        self.manage("add-caa", &json!({ "host": absolute(name), "policies": policies }));
    }

    pub(crate) fn clear_caa(&self, name: &str) {
        self.manage("clear-caa", &json!({ "host": absolute(name) }));
    }

    /// Has every question about `name` answered with SERVFAIL.
    pub(crate) fn set_servfail(&self, name: &str) {
        self.manage("set-servfail", &json!({ "host": absolute(name) }));
    }

    pub(crate) fn clear_servfail(&self, name: &str) {
        self.manage("clear-servfail", &json!({ "host": absolute(name) }));
    }

    /// An order to the name server.
    fn manage(&self, verb: &str, body: &Value) {
        let answer = ask(self.management, verb, body).expect("challtestsrv answers");
        assert_eq!(status(&answer), 200, "{verb} {body}: {answer}");
    }
}

/// Who the servers of the tests are believed by: a root, its file, and certificates for this machine.
pub(crate) struct Authority {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) file: PathBuf,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::new([]).unwrap();
        params.distinguished_name.push(DnType::CommonName, "servers of the tests");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("ca.pem");
        fs::write(&file, issuer.pem()).unwrap();
        let authority = Self { folder, file, issuer };
        let (certificate, key) = authority.issue();
        fs::write(authority.folder.path().join("pebble.crt"), certificate.pem()).unwrap();
        fs::write(authority.folder.path().join("pebble.key"), key.serialize_pem()).unwrap();
        authority
    }

    /// For `localhost`, 127.0.0.1 and where machines of a test find it.
    pub(crate) fn issue(&self) -> (rcgen::Certificate, KeyPair) {
        let names = ["localhost".to_owned(), Ipv4Addr::LOCALHOST.to_string(), HUB.to_string()];
        let params = CertificateParams::new(names).unwrap();
        let key = KeyPair::generate().unwrap();
        (params.signed_by(&key, &self.issuer).unwrap(), key)
    }

    /// The root that clients are to believe.
    pub(crate) fn root(&self) -> CertificateDer<'static> {
        self.issuer.der().clone()
    }

    /// `GET path` over TLS.
    pub(crate) fn get(&self, address: SocketAddr, path: &str) -> std::io::Result<String> {
        let config = Arc::new(clients::client(&[&self.root()], &[]));
        let session = rustls::ClientConnection::new(config, address.ip().into()).unwrap();
        let stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut stream = rustls::StreamOwned::new(session, stream);
        // Of HTTP/1.0, so that no answer is in chunks.
        write!(stream, "GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    }
}

/// Ports that nobody takes while nobody listens: below those that the kernel gives to connections.
pub(crate) fn free_ports<const N: usize>() -> [u16; N] {
    let mut ports = [0; N];
    for number in 0..N {
        ports[number] = loop {
            let port = fastrand::u16(20_000..32_000);
            let address = loopback(port);
            if !ports.contains(&port) && TcpListener::bind(address).is_ok() && UdpSocket::bind(address).is_ok() {
                break port;
            }
        };
    }
    ports
}

/// An order to challtestsrv and its answer.
fn ask(address: SocketAddr, verb: &str, body: &Value) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let body = body.to_string();
    write!(
        stream,
        "POST /{verb} HTTP/1.0\r\nHost: {address}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

/// As the DNS server knows names.
fn absolute(name: &str) -> String {
    format!("{}.", name.trim_end_matches('.'))
}
