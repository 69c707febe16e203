//! Certificates of clients: who is asked, who gets in, what the application is told, and what a resumed session brings.

use std::{
    fs,
    sync::Arc,
    time::{Duration, SystemTime},
};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, IsCa, KeyPair};
use rustls::{ClientConfig, HandshakeKind, RootCertStore, SupportedProtocolVersion, version};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::support::{
    Backend, TestGateway, body,
    clients::{self, block_on, certificate, tls, tls_connect},
    proxying, raw,
    served::{self, Served, signal},
    status, wait_for,
};

/// Vouches for clients.
struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new(name: &str) -> Self {
        let mut params = CertificateParams::new([]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    fn client(&self, name: &str) -> (rcgen::Certificate, KeyPair) {
        self.client_with(name, |_| {})
    }

    fn client_with(&self, name: &str, change: impl FnOnce(&mut CertificateParams)) -> (rcgen::Certificate, KeyPair) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new([]).unwrap();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, "Court");
        params.distinguished_name.push(DnType::CommonName, name);
        change(&mut params);
        (params.signed_by(&key, &self.0).unwrap(), key)
    }
}

const BOTH: &[&SupportedProtocolVersion] = &[&version::TLS13, &version::TLS12];

/// A client that believes `server` and shows `own`.
fn client(
    server: &CertificateDer<'static>,
    own: Option<&(rcgen::Certificate, KeyPair)>,
    versions: &[&'static SupportedProtocolVersion],
) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(server.clone()).unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_protocol_versions(versions)
        .unwrap()
        .with_root_certificates(roots);
    Arc::new(match own {
        None => config.with_no_client_auth(),
        Some((certificate, key)) => {
            let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
            config.with_client_auth_cert(vec![certificate.der().clone()], key).unwrap()
        }
    })
}

/// Asks for `path` with headers that nobody is to believe; what came, if anything, and how it came about.
fn ask(
    address: std::net::SocketAddr,
    client: &Arc<ClientConfig>,
    path: &str,
) -> std::io::Result<(String, HandshakeKind)> {
    block_on(async {
        let mut stream = tls_connect(address, "site.example", Arc::clone(client)).await?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: site.example\r\nConnection: close\r\n{FORGED}\r\n");
        stream.write_all(request.as_bytes()).await?;
        stream.flush().await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok((answer, stream.get_ref().1.handshake_kind().unwrap()))
    })
}

const FORGED: &str = "X-SSL-Client-Verify: SUCCESS\r\nX-SSL-Client-S-DN: CN=root\r\nX_SSL_Client_Verify: SUCCESS\r\n\
                      X-SSL-Client-CN: root\r\nX_Ssl-Client_S-Dn: CN=root\r\nSSL-Client-Verify: SUCCESS\r\n\
                      Connection: X-SSL-Client-Verify\r\n";

/// What an echoing application was told of certificates.
fn told(answer: &str) -> Vec<String> {
    let lines = body(answer).lines().map(str::to_ascii_lowercase).collect::<Vec<_>>();
    let mut lines: Vec<_> = lines.into_iter().filter(|line| line.contains("ssl")).collect();
    lines.sort();
    lines
}

/// A TLS listener with `keys`, one without TLS, and one that asks for no certificate; `/staff` is for holders of one.
fn configuration(backend: &Backend, keys: &str) -> String {
    proxying(backend.address, "", "")
        .replace(
            "{ address: '127.0.0.1:0' }",
            &format!(
                "{{ address: '127.0.0.1:0', tls: true, client_ca: '{{dir}}/clients.pem', {keys} }}, \
                 {{ address: '127.0.0.1:0' }}, {{ address: '127.0.0.1:0', tls: true }}"
            ),
        )
        .replace(
            "{ prefix: /, upstream: app,  }",
            "{ prefix: /, upstream: app }, { prefix: /staff, upstream: app, client_certificate: required }",
        )
        + &tls(&["site"])
}

struct Site {
    gateway: TestGateway,
    server: CertificateDer<'static>,
    authority: Authority,
    backend: Backend,
}

fn site(keys: &str, more: &str) -> Site {
    let folder = tempfile::tempdir().unwrap();
    let (authority, backend) = (Authority::new("clients"), Backend::echoing());
    let server = certificate(folder.path(), "site", &["site.example"]);
    fs::write(folder.path().join("clients.pem"), authority.0.pem()).unwrap();
    let gateway = TestGateway::start_in(folder, &(configuration(&backend, keys) + more));
    Site { gateway, server, authority, backend }
}

#[test]
fn without_a_certificate_of_the_authority_there_is_no_connection() {
    let Site { gateway, server, authority, backend } = site("", "");
    let (alice, mallory) = (authority.client("alice"), Authority::new("clients").client("alice"));
    for versions in [&BOTH[..1], &BOTH[1..]] {
        assert!(ask(gateway.address(0), &client(&server, None, versions), "/").is_err());
        let refused = ask(gateway.address(0), &client(&server, Some(&mallory), versions), "/").unwrap_err();
        assert!(refused.to_string().contains("received fatal alert"), "{refused}");
        assert_eq!(backend.connections(), 0);
    }
    let (answer, _) = ask(gateway.address(0), &client(&server, Some(&alice), BOTH), "/staff").unwrap();
    assert_eq!(status(&answer), 200);
}

#[test]
fn the_application_is_told_whose_certificate_it_was_and_nothing_that_the_client_says() {
    let Site { gateway, server, authority, backend: _backend } = site("client_certificate: optional", "");
    let alice = authority.client("alice");

    let (known, _) = ask(gateway.address(0), &client(&server, Some(&alice), BOTH), "/").unwrap();
    let (unknown, _) = ask(gateway.address(0), &client(&server, None, BOTH), "/").unwrap();
    let plain =
        raw(gateway.address(1), format!("GET / HTTP/1.1\r\nHost: site.example\r\nConnection: close\r\n{FORGED}\r\n"));
    let (not_asked, _) = ask(gateway.address(2), &client(&server, Some(&alice), BOTH), "/").unwrap();

    let told_of_alice = told(&known);
    assert_eq!(told_of_alice.len(), 5, "{told_of_alice:?}");
    for line in ["x-ssl-client-i-dn: cn=clients", "x-ssl-client-s-dn: cn=alice,o=court", "x-ssl-client-verify: success"]
    {
        assert!(told_of_alice.iter().any(|told| told == line), "{line}: {told_of_alice:?}");
    }
    assert_eq!(told(&unknown), ["x-ssl-client-verify: none"]);
    assert_eq!([told(&plain), told(&not_asked)], [vec![], Vec::<String>::new()]);
}

#[test]
fn a_route_that_demands_one_is_closed_to_everybody_who_was_not_verified_on_this_connection() {
    // Whoever is trusted to say who the client is says nothing of certificates here.
    let Site { gateway, server, authority, backend } =
        site("client_certificate: optional", "trusted_proxies: [loopback]\n");
    let alice = authority.client("alice");
    let stranger = client(&server, None, BOTH);

    for path in ["/staff", "/staff/x", "//staff//x", "/%73taff/x"] {
        let (answer, _) = ask(gateway.address(0), &stranger, path).unwrap();
        assert_eq!(status(&answer), 403, "{path}");
        assert!(answer.contains("takes a certificate"), "{answer}");
        let (answer, _) = ask(gateway.address(2), &client(&server, Some(&alice), BOTH), path).unwrap();
        assert_eq!(status(&answer), 403, "{path} where nobody is asked");
        let request = format!("GET {path} HTTP/1.1\r\nHost: site.example\r\nConnection: close\r\n{FORGED}\r\n");
        assert_eq!(status(&raw(gateway.address(1), request)), 403, "{path} without TLS");
    }
    assert_eq!(backend.connections(), 0);

    let (answer, _) = ask(gateway.address(0), &client(&server, Some(&alice), BOTH), "/staff/x").unwrap();
    assert_eq!(status(&answer), 200);
    assert!(told(&answer).contains(&"x-ssl-client-s-dn: cn=alice,o=court".to_owned()), "{answer}");
}

#[test]
fn a_session_that_resumes_is_that_of_the_same_client_and_of_no_other_listener() {
    let Site { gateway, server, authority, backend: _backend } = site("client_certificate: optional", "");
    for version in [&BOTH[..1], &BOTH[1..]] {
        let alice = client(&server, Some(&authority.client("alice")), version);
        let stranger = client(&server, None, version);
        let kinds: Vec<_> = (0..3)
            .map(|_| {
                let (answer, kind) = ask(gateway.address(0), &alice, "/staff").unwrap();
                assert!(told(&answer).contains(&"x-ssl-client-s-dn: cn=alice,o=court".to_owned()), "{answer}");
                let (answer, _) = ask(gateway.address(0), &stranger, "/").unwrap();
                assert_eq!(told(&answer), ["x-ssl-client-verify: none"]);
                kind
            })
            .collect();
        assert_eq!(kinds[1..], [HandshakeKind::Resumed; 2], "{version:?}");

        // The client knows the site by its name, whatever the port.
        let (answer, kind) = ask(gateway.address(2), &alice, "/staff").unwrap();
        assert_eq!((status(&answer), kind), (403, HandshakeKind::Full), "{version:?}");
        let (answer, kind) = ask(gateway.address(0), &alice, "/staff").unwrap();
        assert_eq!((status(&answer), kind), (200, HandshakeKind::Full), "{version:?}: the way back");
    }
}

#[test]
fn no_other_spelling_of_a_path_is_a_way_around_the_certificate() {
    let Site { gateway, server, backend: _backend, .. } = site("client_certificate: optional", "");
    let stranger = client(&server, None, BOTH);

    for path in [
        "/staff",
        "/staff/",
        "//staff",
        "/%73taff",
        "/%2Fstaff",
        "/staff%2F",
        "/staff%2Fx",
        "/staff;x=1/y",
        "/%5cstaff",
        "/staff%3Bx",
    ] {
        let (answer, _) = ask(gateway.address(0), &stranger, path).unwrap();
        assert_eq!(status(&answer), 403, "{path}");
    }
    for path in ["/staffing", "/other%2Fstaff", "/%252Fstaff"] {
        let (answer, _) = ask(gateway.address(0), &stranger, path).unwrap();
        assert_eq!(status(&answer), 200, "{path}");
    }
}

#[test]
fn a_session_ends_with_the_certificate_that_it_began_with() {
    let Site { gateway, server, authority, backend: _backend } = site("", "");
    let alice =
        authority.client_with("alice", |params| params.not_after = (SystemTime::now() + Duration::from_secs(4)).into());
    let clients = [client(&server, Some(&alice), &BOTH[..1]), client(&server, Some(&alice), &BOTH[1..])];
    for client in &clients {
        ask(gateway.address(0), client, "/").unwrap();
        assert_eq!(ask(gateway.address(0), client, "/").unwrap().1, HandshakeKind::Resumed);
    }

    for client in &clients {
        wait_for("the certificate to have expired", || ask(gateway.address(0), client, "/").is_err());
    }
}

#[test]
fn a_client_whose_authority_is_taken_out_of_the_file_is_out_and_its_session_does_not_resume() {
    let folder = served::folder();
    let (old, new, backend) = (Authority::new("old"), Authority::new("new"), Backend::echoing());
    let own = certificate(folder.path(), "site", &["site.example"]);
    fs::write(folder.path().join("clients.pem"), old.0.pem()).unwrap();
    let served = Served::start_in(folder, &configuration(&backend, ""), |_| {});
    let address = served.address(0);
    let (alice, bob) = (client(&own, Some(&old.client("alice")), BOTH), client(&own, Some(&new.client("bob")), BOTH));
    assert!(ask(address, &alice, "/").is_ok() && ask(address, &bob, "/").is_err());
    assert_eq!(ask(address, &alice, "/").unwrap().1, HandshakeKind::Resumed);

    // Another program, and another worker, know whom they are to believe, without a look at the disk.
    served.order(&["upgrade"]);
    assert_eq!(ask(address, &alice, "/").unwrap().1, HandshakeKind::Resumed);
    signal("KILL", served.worker());
    wait_for("the crash", || served.status()["processes"]["crashes"] == 1);
    assert_eq!(ask(address, &alice, "/").unwrap().1, HandshakeKind::Resumed);
    assert!(ask(address, &bob, "/").is_err());

    fs::write(served.path("clients.pem.new"), new.0.pem()).unwrap();
    fs::rename(served.path("clients.pem.new"), served.path("clients.pem")).unwrap();
    wait_for("the new authority to be in force", || ask(address, &bob, "/").is_ok());

    assert!(ask(address, &alice, "/").is_err());
    // A file of which half is there changes nothing, and is told.
    fs::write(served.path("clients.pem"), &new.0.pem()[..100]).unwrap();
    wait_for("the fault to be told", || served.events().contains("listeners[0].client_ca"));
    assert!(ask(address, &bob, "/").is_ok());
}

#[test]
fn curl_shows_its_certificate_over_h2_as_well() {
    let Site { gateway, authority, .. } = &site("", "");
    let (certificate, key) = authority.client("alice");
    let file = |name: &str| gateway.folder.path().join(name).display().to_string();
    fs::write(file("alice.crt"), certificate.pem()).unwrap();
    fs::write(file("alice.key"), key.serialize_pem()).unwrap();
    let port = gateway.address(0).port();

    let Some(seen) = clients::curl(&[
        "--http2",
        "--cacert",
        &file("site.crt"),
        "--cert",
        &file("alice.crt"),
        "--key",
        &file("alice.key"),
        "--resolve",
        &format!("site.example:{port}:127.0.0.1"),
        &format!("https://site.example:{port}/staff"),
    ]) else {
        return;
    };

    assert!(seen.to_ascii_lowercase().contains("x-ssl-client-s-dn: cn=alice,o=court\r\n"), "{seen}");
}
