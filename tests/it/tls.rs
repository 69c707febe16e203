//! TLS, with rustls, openssl and curl at the other end.

use std::{
    io::{Read, Write},
    process::Command,
    sync::Arc,
    time::{Duration, Instant},
};

use rustls::{HandshakeKind, NamedGroup, ProtocolVersion};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::support::{
    Backend, TestGateway,
    clients::{self, block_on, certificate, client, run, tls, tls_connect},
    connect, header, ok, program, proxying, raw, status, wait_for,
};

/// A TLS listener before `backend`, with what else the configuration says.
fn start(folder: tempfile::TempDir, backend: &Backend, more: &str) -> TestGateway {
    let configuration = proxying(backend.address, "", "").replace("0' }", "0', tls: true }");
    TestGateway::start_in(folder, &(configuration + more))
}

/// `openssl s_client` against `gateway`; what it printed, handshake failed or not. `None` where it is not installed.
fn openssl(gateway: &TestGateway, arguments: &[&str]) -> Option<String> {
    let address = gateway.address(0).to_string();
    let output = run(Command::new(program("openssl")?).args(["s_client", "-connect", &address]).args(arguments));
    Some(String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr))
}

#[test]
fn the_certificate_is_the_one_of_the_name_and_the_first_without_a_name() {
    let folder = tempfile::tempdir().unwrap();
    certificate(folder.path(), "first", &["first.example"]);
    certificate(folder.path(), "second", &["second.example"]);
    certificate(folder.path(), "wild", &["*.wild.example"]);
    let backend = ok();
    let gateway = start(folder, &backend, &tls(&["first", "second", "wild"]));
    let pem = |name: &str| std::fs::read_to_string(gateway.folder.path().join(format!("{name}.crt"))).unwrap();
    for (arguments, expected) in [
        (&["-servername", "first.example"][..], "first"),
        (&["-servername", "second.example"], "second"),
        (&["-servername", "SECOND.example"], "second"),
        (&["-servername", "a.wild.example"], "wild"),
        (&["-servername", "unknown.example"], "first"),
        (&["-noservername"], "first"),
    ] {
        let Some(said) = openssl(&gateway, arguments) else { return };

        let sent =
            said.split_once("-----BEGIN").and_then(|(_, rest)| rest.split_once("-----END")).map(|(body, _)| body);
        let expected_pem = pem(expected).replace("\r\n", "\n");
        assert!(expected_pem.contains(sent.unwrap_or("nothing").trim()), "{arguments:?}: not {expected}: {said}");
    }
}

#[test]
fn both_versions_are_spoken_and_older_ones_are_not() {
    let folder = tempfile::tempdir().unwrap();
    certificate(folder.path(), "site", &["site.example"]);
    let backend = ok();
    let gateway = start(folder, &backend, &tls(&["site"]));
    for (version, spoken) in
        [("-tls1_3", Some("TLSv1.3")), ("-tls1_2", Some("TLSv1.2")), ("-tls1_1", None), ("-tls1", None)]
    {
        let Some(said) = openssl(&gateway, &[version, "-cipher", "DEFAULT:@SECLEVEL=0"]) else { return };

        match spoken {
            Some(version) => assert!(said.contains(&format!("New, {version}, ")), "{version}: {said}"),
            None => assert!(said.contains("Cipher is (NONE)"), "{version}: {said}"),
        }
    }
}

#[test]
fn a_version_that_is_not_in_the_plan_is_not_spoken() {
    let folder = tempfile::tempdir().unwrap();
    certificate(folder.path(), "site", &["site.example"]);
    let backend = ok();
    let configuration = tls(&["site"]).replace("storage,", "storage, protocols: [TLSv1.3],");
    let gateway = start(folder, &backend, &configuration);

    let Some(said) = openssl(&gateway, &["-tls1_2"]) else { return };

    assert!(said.contains("Cipher is (NONE)"), "{said}");
}

#[test]
fn h2_and_http_1_are_offered_by_alpn() {
    let folder = tempfile::tempdir().unwrap();
    certificate(folder.path(), "site", &["site.example"]);
    let backend = ok();
    let gateway = start(folder, &backend, &tls(&["site"]));
    for (offered, chosen) in [
        ("h2,http/1.1", "ALPN protocol: h2"),
        ("http/1.1", "ALPN protocol: http/1.1"),
        ("http/1.1,h2", "ALPN protocol: h2"),
    ] {
        let Some(said) = openssl(&gateway, &["-alpn", offered]) else { return };

        assert!(said.contains(chosen), "{offered}: {said}");
    }
    let Some(none) = openssl(&gateway, &[]) else { return };
    assert!(none.contains("No ALPN negotiated"), "{none}");
}

#[test]
fn the_key_exchange_withstands_quantum_computers_where_the_client_can() {
    let folder = tempfile::tempdir().unwrap();
    let own = certificate(folder.path(), "site", &["site.example"]);
    let backend = ok();
    let gateway = start(folder, &backend, &tls(&["site"]));

    let stream = block_on(tls_connect(gateway.address(0), "site.example", client(&[&own], &[]))).unwrap();

    let connection = stream.get_ref().1;
    assert_eq!(connection.protocol_version(), Some(ProtocolVersion::TLSv1_3));
    assert_eq!(connection.negotiated_key_exchange_group().unwrap().name(), NamedGroup::X25519MLKEM768);
}

#[test]
fn a_client_that_comes_again_resumes_its_session() {
    let folder = tempfile::tempdir().unwrap();
    let own = certificate(folder.path(), "site", &["site.example"]);
    let backend = ok();
    let gateway = start(folder, &backend, &tls(&["site"]));
    for version in [&rustls::version::TLS13, &rustls::version::TLS12] {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut roots = rustls::RootCertStore::empty();
        roots.add(own.clone()).unwrap();
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[version])
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let config = Arc::new(config);

        let kinds = block_on(async {
            let mut kinds = Vec::new();
            for _ in 0..3 {
                let mut stream = tls_connect(gateway.address(0), "site.example", Arc::clone(&config)).await.unwrap();
                stream.write_all(b"GET / HTTP/1.1\r\nHost: site.example\r\nConnection: close\r\n\r\n").await.unwrap();
                stream.flush().await.unwrap();
                // Tickets come with the answer.
                let mut answer = String::new();
                stream.read_to_string(&mut answer).await.unwrap();
                assert_eq!(status(&answer), 200, "{answer}");
                kinds.push(stream.get_ref().1.handshake_kind().unwrap());
            }
            kinds
        });

        // Connections are spread over two threads, which must know each other's sessions.
        assert_eq!(kinds[1..], [HandshakeKind::Resumed; 2], "{version:?}");
    }
}

#[test]
fn a_self_signed_certificate_is_kept_over_a_restart() {
    let backend = ok();
    let configuration = proxying(backend.address, "", "").replace("0' }", "0', tls: true }") + "host: site.example\n";
    let folder = tempfile::tempdir().unwrap();
    let storage = format!("tls: {{ storage: '{}' }}\n", folder.path().join("storage").display());
    let shown = || {
        let gateway = TestGateway::start(&(configuration.clone() + &storage));
        let said = openssl(&gateway, &["-servername", "site.example"])?;
        let pem = said.split_once("-----BEGIN").and_then(|(_, rest)| rest.split_once("-----END"));
        Some(pem.unwrap_or_else(|| panic!("no certificate: {said}")).0.to_owned())
    };

    let (Some(first), Some(second)) = (shown(), shown()) else { return };

    assert_eq!(first, second);
}

#[test]
fn a_client_that_says_nothing_is_closed_and_holds_nobody_up() {
    let folder = tempfile::tempdir().unwrap();
    let own = certificate(folder.path(), "site", &["site.example"]);
    let backend = ok();
    let gateway = start(folder, &backend, &(tls(&["site"]) + "limits: { handshake_timeout: 400ms }\nworkers: 1\n"));
    let began = Instant::now();
    let mut silent: Vec<_> = (0..20).map(|_| connect(gateway.address(0))).collect();
    // Half a handshake is none.
    silent[0].write_all(&[0x16, 0x03, 0x01, 0x02, 0x00, 0x01]).unwrap();

    block_on(tls_connect(gateway.address(0), "site.example", client(&[&own], &[]))).unwrap();
    let served = began.elapsed();
    for stream in &mut silent {
        let read = stream.read(&mut [0; 16]);
        assert!(matches!(read, Ok(0)) || read.is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionReset));
    }

    assert!(served < Duration::from_millis(400), "served after {served:?}");
    assert!(began.elapsed() >= Duration::from_millis(350), "closed after {:?}", began.elapsed());
}

#[test]
fn plain_http_on_the_tls_port_reaches_nobody() {
    let folder = tempfile::tempdir().unwrap();
    certificate(folder.path(), "site", &["site.example"]);
    let backend = ok();
    let gateway = start(folder, &backend, &tls(&["site"]));

    let answer = raw(gateway.address(0), "GET / HTTP/1.1\r\nHost: site.example\r\n\r\n");

    assert!(!answer.contains("HTTP/1.1 200"), "{answer:?}");
    assert_eq!(backend.connections(), 0);
}

/// Sends `request` on TLS, for `name`, which must be in `own`.
fn ask(gateway: &TestGateway, own: &rustls_pki_types::CertificateDer<'static>, request: &str) -> String {
    block_on(async {
        let mut stream = tls_connect(gateway.address(0), "site.example", client(&[own], &["http/1.1"])).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        stream.flush().await.unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        String::from_utf8(answer).unwrap()
    })
}

fn host_rule(trusted: &str) -> (TestGateway, rustls_pki_types::CertificateDer<'static>, Backend) {
    let folder = tempfile::tempdir().unwrap();
    let own = certificate(folder.path(), "site", &["site.example", "named.example"]);
    let backend = Backend::echoing();
    let configuration = proxying(backend.address, "health: { path: /health_check }", "")
        .replace("0' }", "0', tls: true }")
        + &tls(&["site"])
        + &format!("host: site.example\naliases: [alias.example]\ntrusted_proxies: [{trusted}]\n");
    (TestGateway::start_in(folder, &configuration), own, backend)
}

#[test]
fn a_host_that_is_not_known_is_redirected_to_the_canonical_one() {
    let (gateway, own, backend) = host_rule("");

    // The port stays the one the client came to, which need not be the listener's.
    for (host, target) in [("evil.example", "https://site.example"), ("evil.example:8443", "https://site.example:8443")]
    {
        let request = format!("GET /a%2Fb?c=%20d HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        let answer = ask(&gateway, &own, &request);

        assert_eq!(status(&answer), 301);
        assert_eq!(header(&answer, "location"), Some(format!("{target}/a%2Fb?c=%20d")));
        assert_eq!(header(&answer, "server"), None);
    }
    assert_eq!(backend.connections(), 0);
}

#[test]
fn known_hosts_the_health_path_and_websockets_are_served_as_they_are() {
    let (gateway, own, _backend) = host_rule("");
    let upgrade = "Upgrade: websocket\r\nConnection: Upgrade, close\r\nSec-WebSocket-Version: 13\r\n";
    for (host, path, fields) in [
        ("site.example", "/x", ""),
        ("SITE.example.", "/x", ""),
        ("site.example:8443", "/x", ""),
        ("alias.example", "/x", ""),
        ("named.example", "/x", ""),
        ("10.0.0.7", "/health_check", ""),
        ("evil.example", "/ws", upgrade),
    ] {
        let connection = if fields.is_empty() { "Connection: close\r\n" } else { "" };
        let answer = ask(&gateway, &own, &format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n{connection}{fields}\r\n"));

        assert_eq!(status(&answer), 200, "{host}{path}: {answer}");
    }
    let below = ask(&gateway, &own, "GET /health_check/x HTTP/1.1\r\nHost: 10.0.0.7\r\nConnection: close\r\n\r\n");
    assert_eq!(status(&below), 301, "only the exact path");
}

#[test]
fn a_trusted_proxy_has_chosen_the_host_already() {
    let (gateway, own, _backend) = host_rule("loopback");

    let answer = ask(&gateway, &own, "GET / HTTP/1.1\r\nHost: other.example\r\nConnection: close\r\n\r\n");

    assert_eq!(status(&answer), 200);
}

#[test]
fn a_redirecting_listener_answers_before_every_route_and_names_the_canonical_host() {
    let backend = ok();
    let configuration =
        proxying(backend.address, "", "").replace("0' }", "0', redirect: https }") + "host: site.example\n";
    let gateway = TestGateway::start(&configuration);
    for (request, location) in [
        ("GET /x?y=1", "https://site.example/x?y=1"),
        ("GET /a%2Fb?c=%20d", "https://site.example/a%2Fb?c=%20d"),
        ("POST /x", "https://site.example/x"),
        ("GET //evil.example/", "https://site.example//evil.example/"),
    ] {
        let answer = gateway.raw(format!(
            "{request} HTTP/1.1\r\nHost: evil.example:8080\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
        ));

        assert_eq!(status(&answer), 301, "{request}");
        assert_eq!(header(&answer, "location").as_deref(), Some(location));
    }
    assert_eq!(backend.connections(), 0);
}

#[test]
fn curl_believes_the_chain_and_is_logged_with_its_tls() {
    let folder = tempfile::tempdir().unwrap();
    certificate(folder.path(), "site", &["site.example"]);
    let backend = ok();
    let log = "access_log: { path: access.log, format: '{tls_version} {version} {status}' }\n";
    let gateway = start(folder, &backend, &(tls(&["site"]) + log));
    let port = gateway.address(0).port();
    let file = gateway.folder.path().join("site.crt");

    let Some(answer) = clients::curl(&[
        "--http1.1",
        "--tlsv1.3",
        "--cacert",
        file.to_str().unwrap(),
        "--resolve",
        &format!("site.example:{port}:127.0.0.1"),
        &format!("https://site.example:{port}/"),
    ]) else {
        return;
    };

    assert_eq!(answer, "ok");
    wait_for("a line", || !gateway.log(1).is_empty());
    assert_eq!(gateway.log(1)[0], "TLSv1.3 HTTP/1.1 200");
}
