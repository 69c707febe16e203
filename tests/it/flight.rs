//! The flight check: a real name server, and whoever answers at the addresses it gives.

use std::{
    io::Write,
    net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::{Arc, Mutex},
    time::{Duration, Instant, SystemTime},
};

use aws_lc_rs::digest::{SHA256, digest};
use rustls::{
    ServerConfig, ServerConnection,
    sign::{CertifiedKey, SingleCertAndKey},
};
use vestibule::tls::acme::flight::{Authority, Dns, Finding, Flight, Handshake, Page, Proof, Severity};

use super::support::{Backend, network, pebble::NameServer, read_request};

/// What a check needs, and what our server answers.
struct Setting {
    names: NameServer,
    dns: Dns,
    page: Page,
    authority: Authority,
    ours: Backend,
}

impl Setting {
    /// Our server is at 127.0.0.1, to which every name leads. `None` where the name server is not installed.
    fn new() -> Option<Self> {
        let names = NameServer::start()?;
        let ours = Backend::start(|mut stream| {
            let Some(request) = read_request(&mut stream) else { return };
            let ours = request.starts_with(b"GET /.well-known/acme-challenge/token HTTP/1.1\r\n");
            answer(&mut stream, if ours { "200 OK" } else { "404 Not Found" }, "", "token.thumbprint\n");
        });
        Some(Self {
            dns: Dns::at(&[names.dns()]).unwrap(),
            page: Page { port: ours.address.port(), token: "token".to_owned(), body: "token.thumbprint".to_owned() },
            authority: Authority { identities: vec!["ca.example".to_owned()], private: true, ..Authority::default() },
            names,
            ours,
        })
    }

    /// Another server at `address`, at the port that a CA comes to.
    fn other(&self, address: &str, serve: impl Fn(TcpStream) + Send + Sync + 'static) -> Backend {
        Backend::start_at(&format!("{address}:{}", self.page.port), serve)
    }

    fn check(&self, names: &[&str]) -> Vec<Finding> {
        self.check_by(names, Proof::Page(&self.page))
    }

    fn check_by(&self, names: &[&str], proof: Proof<'_>) -> Vec<Finding> {
        let flight = Flight { names, proof, authority: &self.authority };
        // Each check on a runtime that ends with it, as a command of the command line does.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(flight.check(&self.dns))
    }
}

fn answer(stream: &mut impl Write, status: &str, headers: &str, body: &str) {
    let length = body.len();
    // Who has hung up has seen enough.
    drop(write!(stream, "HTTP/1.1 {status}\r\n{headers}Content-Length: {length}\r\nConnection: close\r\n\r\n{body}"));
}

/// Severities and sentences.
fn said(findings: &[Finding]) -> Vec<(Severity, String)> {
    findings.iter().map(|finding| (finding.severity, finding.to_string())).collect()
}

fn severities(findings: &[Finding]) -> Vec<Severity> {
    findings.iter().map(|finding| finding.severity).collect()
}

#[test]
fn names_that_lead_to_us_have_no_findings_and_are_asked_for_as_themselves() {
    let Some(setting) = Setting::new() else { return };
    let asked = Arc::new(Mutex::new(Vec::new()));
    let heard = Arc::clone(&asked);
    let _second = setting.other("127.0.0.2", move |mut stream| {
        heard.lock().unwrap().push(String::from_utf8(read_request(&mut stream).unwrap()).unwrap());
        answer(&mut stream, "200 OK", "", "token.thumbprint");
    });
    setting.names.set_address("two.example", "127.0.0.2");

    let findings = setting.check(&["one.example", "two.example"]);

    assert_eq!(findings, []);
    let asked = asked.lock().unwrap().join("");
    assert!(asked.contains(&format!("\r\nhost: two.example:{}\r\n", setting.page.port)), "{asked}");
    assert_eq!(setting.ours.connections(), 1);
}

#[test]
fn an_address_where_another_server_answers_is_a_fault_beside_one_that_is_ours() {
    let Some(setting) = Setting::new() else { return };
    let _other = setting.other("127.0.0.3", |mut stream| {
        read_request(&mut stream);
        answer(&mut stream, "404 Not Found", "Server: nginx\r\n", "no\n");
    });
    setting.names.set_addresses("justice.example.com", &["127.0.0.1".parse().unwrap(), "127.0.0.3".parse().unwrap()]);

    let findings = setting.check(&["justice.example.com"]);

    let port = setting.page.port;
    let expected = format!(
        "justice.example.com leads to 127.0.0.3, which is not answered by this server but by another (nginx): change the A \
         record at your DNS provider, or forward port {port} of your router to this machine"
    );
    assert_eq!(said(&findings), [(Severity::Fault, expected)]);
    assert_eq!(findings[0].name.as_deref(), Some("justice.example.com"));
}

#[test]
fn ipv6_is_looked_at_by_itself() {
    let Some(setting) = Setting::new() else { return };
    let Ok(listener) = TcpListener::bind((Ipv6Addr::LOCALHOST, setting.page.port)) else {
        eprintln!("skipped: no IPv6 here");
        return;
    };
    let other = Backend::start_on(listener, |mut stream| {
        read_request(&mut stream);
        answer(&mut stream, "200 OK", "", "token.thumbprint of another account");
    });
    setting.names.set_addresses("six.example", &["127.0.0.1".parse().unwrap(), "::1".parse().unwrap()]);

    let findings = setting.check(&["six.example"]);

    assert_eq!(severities(&findings), [Severity::Fault], "{findings:?}");
    assert!(findings[0].to_string().starts_with("six.example leads to ::1, which is not answered"), "{}", findings[0]);
    assert!(findings[0].remedy.contains("change the AAAA record"), "{}", findings[0]);
    assert_eq!(other.connections(), 1);
}

#[test]
fn a_port_of_this_machine_where_nobody_listens_is_a_fault() {
    let Some(setting) = Setting::new() else { return };
    setting.names.set_address("closed.example", "127.0.0.4");

    let findings = setting.check(&["closed.example"]);

    let port = setting.page.port;
    let expected = format!(
        "closed.example leads to 127.0.0.4, which is this machine, but nothing answers there on port {port}: see that \
         Vestibule runs and that a listener of its configuration has port {port}"
    );
    assert_eq!(said(&findings), [(Severity::Fault, expected)]);
}

#[test]
fn an_address_that_only_we_cannot_reach_is_a_warning() {
    network::in_network(|| {
        let Some(setting) = Setting::new() else { return };
        setting.names.set_addresses("far.example", &["192.0.2.7".parse().unwrap(), "2001:db8::7".parse().unwrap()]);

        let findings = setting.check(&["far.example"]);

        assert_eq!(severities(&findings), [Severity::Warning, Severity::Warning], "{findings:?}");
        assert_eq!(
            findings[0].what,
            "far.example leads to 192.0.2.7, which cannot be tried, since this machine has no way to it"
        );
        assert!(findings[1].remedy.contains("remove the AAAA record"), "{}", findings[1]);
    });
}

#[test]
fn who_takes_the_connection_and_says_nothing_is_waited_for_five_seconds() {
    let Some(setting) = Setting::new() else { return };
    let _silent = setting.other("127.0.0.5", |mut stream| while read_request(&mut stream).is_some() {});
    setting.names.set_address("silent.example", "127.0.0.5");
    let begin = Instant::now();

    let findings = setting.check(&["silent.example"]);

    assert_eq!(severities(&findings), [Severity::Warning], "{findings:?}");
    let port = setting.page.port;
    let expected = format!("takes connections of this server on port {port} and says nothing");
    assert!(findings[0].what.ends_with(&expected), "{}", findings[0]);
    let took = begin.elapsed();
    assert!((Duration::from_secs(5)..Duration::from_secs(9)).contains(&took), "{took:?}");
}

#[test]
fn a_redirect_is_a_warning_and_not_followed() {
    let Some(setting) = Setting::new() else { return };
    let target = super::support::ok();
    let location = format!("Location: http://{}/\r\n", target.address);
    let _sends_on = setting.other("127.0.0.6", move |mut stream| {
        read_request(&mut stream);
        answer(&mut stream, "301 Moved Permanently", &location, "");
    });
    setting.names.set_address("moved.example", "127.0.0.6");

    let findings = setting.check(&["moved.example"]);

    assert_eq!(severities(&findings), [Severity::Warning], "{findings:?}");
    assert!(findings[0].what.ends_with(&format!("sends visitors on to http://{}/", target.address)), "{}", findings[0]);
    assert_eq!(target.connections(), 0);
}

#[test]
fn what_is_no_http_and_what_has_no_end_is_another_server() {
    let Some(setting) = Setting::new() else { return };
    let _ssh = setting.other("127.0.0.7", |mut stream| {
        read_request(&mut stream);
        drop(stream.write_all(b"SSH-2.0-OpenSSH_9.2\r\n"));
    });
    let _endless = setting.other("127.0.0.8", |mut stream| {
        read_request(&mut stream);
        drop(stream.write_all(b"HTTP/1.1 200 OK\r\n\r\ntoken.thumbprint"));
        while stream.write_all(&[b' '; 4096]).is_ok() {}
    });
    setting.names.set_address("ssh.example", "127.0.0.7");
    setting.names.set_address("endless.example", "127.0.0.8");

    let findings = setting.check(&["ssh.example", "endless.example"]);

    assert_eq!(severities(&findings), [Severity::Fault, Severity::Fault], "{findings:?}");
    assert!(findings.iter().all(|finding| finding.what.ends_with("is not answered by this server")), "{findings:?}");
}

#[test]
fn an_address_in_a_certificate_is_tried_without_a_name_server() {
    let Some(mut setting) = Setting::new() else { return };
    setting.dns = Dns::at(&["127.0.0.1:9".parse().unwrap()]).unwrap();

    let findings = setting.check(&["127.0.0.1", "127.0.0.9"]);

    assert_eq!(severities(&findings), [Severity::Fault], "{findings:?}");
    assert!(findings[0].what.starts_with("127.0.0.9 is this machine, but nothing answers"), "{}", findings[0]);
}

#[test]
fn a_name_without_an_address_is_a_fault_unless_a_record_is_the_proof() {
    let Some(setting) = Setting::new() else { return };
    setting.names.set_default_addresses("", "");

    let findings = setting.check(&["new.example", "mistyped.invalid"]);

    let remedy = "have your DNS provider make an A record for it, with the public address of this server";
    let expected = ["new.example has no address in the DNS", "mistyped.invalid is not known in the DNS"];
    assert_eq!(said(&findings), expected.map(|what| (Severity::Fault, format!("{what}: {remedy}"))));
    let handshake = Handshake { port: 443, key_authorization: "token.thumbprint".to_owned() };
    assert_eq!(severities(&setting.check_by(&["new.example"], Proof::Handshake(&handshake))), [Severity::Fault]);
    assert_eq!(severities(&setting.check_by(&["new.example"], Proof::Record)), [Severity::Warning]);
    assert_eq!(setting.check_by(&["*.new.example"], Proof::Record), [], "nobody goes to a wildcard");
}

#[test]
fn a_name_server_that_fails_is_a_fault_said_once() {
    let Some(setting) = Setting::new() else { return };
    setting.names.set_servfail("broken.example");

    let findings = setting.check(&["broken.example"]);

    assert_eq!(severities(&findings), [Severity::Fault], "{findings:?}");
    assert_eq!(findings[0].what, "broken.example cannot be looked up: its name servers fail (SERVFAIL)");

    setting.names.clear_servfail("broken.example");
    assert_eq!(setting.check(&["broken.example"]), [], "what is mended is seen at once");
    setting.names.set_servfail("example");
    let findings = setting.check(&["broken.example"]);
    assert_eq!(severities(&findings), [Severity::Warning], "the CAA records above it: {findings:?}");
    assert_eq!(findings[0].what, "broken.example: the CAA records of example cannot be looked up (SERVFAIL)");
}

#[test]
fn a_name_server_that_does_not_answer_is_a_warning_within_seconds() {
    let Some(mut setting) = Setting::new() else { return };
    let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
    setting.dns = Dns::at(&[silent.local_addr().unwrap()]).unwrap();
    let begin = Instant::now();

    let findings = setting.check(&["one.example", "*.one.example"]);

    assert_eq!(severities(&findings), [Severity::Warning, Severity::Warning], "{findings:?}");
    assert_eq!(findings[0].what, "one.example cannot be looked up: no name server has an answer for this machine");
    assert!(findings[1].what.contains("CAA"), "{}", findings[1]);
    let took = begin.elapsed();
    assert!(took < Duration::from_secs(9), "{took:?}");
}

#[test]
fn a_name_server_that_refuses_or_talks_nonsense_is_a_warning_and_one_that_knows_no_such_name_a_fault() {
    let Some(mut setting) = Setting::new() else { return };
    let refused = replying(|question| [&HEAD[..], &[0x85, 0, 1, 0, 0, 0, 0, 0, 0], question].concat());
    let missing = replying(|question| [&HEAD[..], &[0x83, 0, 1, 0, 0, 0, 0, 0, 0], question].concat());
    // An A record of sixty thousand bytes, of which there are three, and a name that points at itself.
    let nonsense = replying(|question| {
        let record = [0xc0, 0x0c, 0, 1, 0, 1, 0, 0, 0, 9, 0xea, 0x60, 1, 2, 3, 0xc0, 0x1c];
        [&HEAD[..], &[0x80, 0, 1, 0, 9, 0, 9, 0, 9], question, &record].concat()
    });
    let mut check = |server| {
        setting.dns = Dns::at(&[server]).unwrap();
        setting.check(&["one.example"])
    };

    let (refused, missing, nonsense) = (check(refused), check(missing), check(nonsense));

    assert_eq!(severities(&refused), [Severity::Warning], "{refused:?}");
    assert_eq!(severities(&nonsense), [Severity::Warning], "{nonsense:?}");
    assert_eq!(severities(&missing), [Severity::Fault], "{missing:?}");
    assert_eq!(missing[0].what, "one.example is not known in the DNS");
}

/// A name server that answers with what `reply` makes of the bytes of a question, after its number.
fn replying(reply: impl Fn(&[u8]) -> Vec<u8> + Send + 'static) -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    // To the end of the tests.
    std::thread::spawn(move || {
        let mut packet = [0; 1500];
        while let Ok((length, from)) = socket.recv_from(&mut packet) {
            let name = packet[12..length].iter().position(|byte| *byte == 0).unwrap();
            let mut answer = reply(&packet[12..12 + name + 5]);
            answer[..2].copy_from_slice(&packet[..2]);
            drop(socket.send_to(&answer, from));
        }
    });
    address
}

/// The number, and that it is an answer.
const HEAD: [u8; 3] = [0, 0, 0x81];

#[test]
fn caa_records_of_a_parent_forbid_what_they_do_not_name() {
    let Some(mut setting) = Setting::new() else { return };
    setting.names.add_caa("firm.example", &[("issue", "other-ca.example"), ("iodef", "mailto:security@firm.example")]);

    let findings = setting.check(&["a.b.firm.example"]);

    let expected = "a.b.firm.example may not have a certificate of this CA: the CAA records of firm.example let only \
                    other-ca.example issue: have your DNS provider add the CAA record `0 issue \"ca.example\"` to \
                    firm.example, or remove those that are there";
    assert_eq!(said(&findings), [(Severity::Fault, expected.to_owned())]);

    setting.names.add_caa("b.firm.example", &[("issue", "CA.example; validationmethods=http-01")]);
    assert_eq!(setting.check(&["a.b.firm.example"]), [], "the nearest ones count");
    let by_record = setting.check_by(&["a.b.firm.example"], Proof::Record);
    assert_eq!(severities(&by_record), [Severity::Fault], "not by that way: {by_record:?}");

    setting.authority.identities.clear();
    let unknown = setting.check(&["firm.example"]);
    assert_eq!(severities(&unknown), [Severity::Warning], "a CA that does not say who it is: {unknown:?}");
}

#[test]
fn caa_records_may_forbid_wildcards_only_or_everything() {
    let Some(setting) = Setting::new() else { return };
    setting.names.add_caa("wild.example", &[("issue", "ca.example"), ("issuewild", ";")]);
    setting.names.add_caa("shut.example", &[("issue", ";")]);
    setting.names.add_caa("mail.example", &[("iodef", "mailto:a@mail.example")]);

    let findings = setting.check_by(
        &["wild.example", "*.wild.example", "*.shut.example", "mail.example", "*.mail.example"],
        Proof::Record,
    );

    let names: Vec<_> = findings.iter().map(|finding| finding.name.as_deref().unwrap()).collect();
    assert_eq!(names, ["*.wild.example", "*.shut.example"], "{findings:?}");
    assert_eq!(severities(&findings), [Severity::Fault; 2]);
    assert!(findings[0].what.ends_with("let nobody issue for wildcards"), "{}", findings[0]);
}

#[test]
fn a_private_address_is_a_warning_where_the_ca_is_on_the_internet() {
    let Some(mut setting) = Setting::new() else { return };
    setting.authority.private = false;

    let findings = setting.check(&["home.example"]);

    assert_eq!(severities(&findings), [Severity::Warning], "{findings:?}");
    assert!(findings[0].what.starts_with("home.example leads to 127.0.0.1, to which nobody comes"), "{}", findings[0]);
}

#[test]
fn a_clock_that_is_wrong_is_found_once_for_all_names() {
    let Some(mut setting) = Setting::new() else { return };
    let now = SystemTime::now();
    let off = |seconds: u64| Some((now + Duration::from_secs(seconds), now));
    let mut findings = |clock| {
        setting.authority.clock = clock;
        setting.check(&["one.example", "two.example"])
    };

    assert_eq!(findings(off(55)), []);
    assert_eq!(severities(&findings(off(90))), [Severity::Warning]);
    let fault = findings(off(7200));
    assert_eq!(severities(&fault), [Severity::Fault]);
    assert_eq!(fault[0].name, None);
    assert_eq!(fault[0].what, "the clock of this machine is about 120 minutes behind that of the CA");
    assert_eq!(severities(&findings(Some((now - Duration::from_secs(301), now)))), [Severity::Fault]);
}

#[test]
fn a_handshake_is_ours_if_it_bears_our_digest() {
    let Some(setting) = Setting::new() else { return };
    let names = ["one.example", "two.example", "three.example", "127.0.0.12"];
    for (name, address) in names.iter().zip(["127.0.0.10", "127.0.0.11", "127.0.0.1"]) {
        setting.names.set_address(name, address);
    }
    let _ours = setting.other("127.0.0.10", shaking("one.example", "token.thumbprint"));
    let _another = setting.other("127.0.0.11", shaking("two.example", "token.thumbprint of another account"));
    let _by_address = setting.other("127.0.0.12", shaking("12.0.0.127.in-addr.arpa", "token.thumbprint"));

    let handshake = Handshake { port: setting.page.port, key_authorization: "token.thumbprint".to_owned() };
    let findings = setting.check_by(&names, Proof::Handshake(&handshake));

    // At 127.0.0.1 there is no TLS.
    let found: Vec<_> = findings.iter().map(|finding| (finding.name.as_deref().unwrap(), finding.severity)).collect();
    let another = ("two.example", Severity::Fault);
    assert!(matches!(found[..], [first, ("three.example", _)] if first == another), "{findings:?}");
}

/// A server that speaks `acme-tls/1` for `name`.
fn shaking(name: &str, key_authorization: &str) -> impl Fn(TcpStream) + Send + Sync + 'static {
    let digest = digest(&SHA256, key_authorization.as_bytes());
    let mut params = rcgen::CertificateParams::new([name.to_owned()]).unwrap();
    params.custom_extensions = vec![rcgen::CustomExtension::new_acme_identifier(digest.as_ref())];
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = params.self_signed(&key).unwrap().der().clone();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let key = provider.key_provider.load_private_key(rustls_pki_types::PrivateKeyDer::from(key)).unwrap();
    // rustls would look into the certificate, and refuse its critical extension.
    let certified = SingleCertAndKey::from(CertifiedKey::new(vec![certificate], key));
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(certified));
    config.alpn_protocols = vec![b"acme-tls/1".to_vec()];
    let (config, name) = (Arc::new(config), name.to_owned());
    move |mut stream| {
        let mut connection = ServerConnection::new(Arc::clone(&config)).unwrap();
        while connection.is_handshaking() {
            if connection.complete_io(&mut stream).is_err() {
                return;
            }
        }
        assert_eq!(connection.server_name(), Some(name.as_str()));
        // Until the client has seen enough.
        drop(connection.complete_io(&mut stream));
    }
}

#[test]
fn findings_are_read_back_as_they_were_written() {
    let Some(setting) = Setting::new() else { return };
    setting.names.set_address("closed.example", "127.0.0.4");

    let findings = setting.check(&["closed.example"]);

    let json = serde_json::to_string(&findings).unwrap();
    assert!(json.contains("\"severity\":\"fault\""), "{json}");
    assert_eq!(serde_json::from_str::<Vec<Finding>>(&json).unwrap(), findings);
}
